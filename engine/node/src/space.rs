//! What is told as the space of the tiers runs out.
//!
//! Invariant: a level is told when it is reached, and as left only when clearly left: a tier at the edge tells it once.

use drover_store::{SpaceLevel, TierUsage};
use std::collections::BTreeMap;

/// How far, in percent of the tier, it must fall below a level's threshold before the level counts as left.
const HYSTERESIS_PERCENT: u64 = 2;

/// After so many looks without a refused write, the next one is told again.
const QUIET_LOOKS: u32 = 60;

/// What was last told of each tier.
#[derive(Default)]
pub(crate) struct SpaceWatch(BTreeMap<String, Told>);

struct Told {
    level: SpaceLevel,
    refused_writes: u64,
    discard_failed: bool,
    /// Looks until a refused write is told.
    quiet_looks: u32,
}

impl SpaceWatch {
    /// What is to be told now.
    pub(crate) fn look(&mut self, tiers: &[TierUsage]) -> Vec<String> {
        let mut texts = Vec::new();
        for tier in tiers {
            let new = Told { level: SpaceLevel::Normal, refused_writes: 0, discard_failed: false, quiet_looks: 0 };
            let told = self.0.entry(tier.name.clone()).or_insert(new);
            texts.extend(told.level_text(tier));
            texts.extend(told.refused_text(tier));
            texts.extend(told.discard_text(tier));
        }
        texts
    }
}

impl Told {
    /// The file system under a sparse device file may be full while slots are free.
    fn refused_text(&mut self, tier: &TierUsage) -> Option<String> {
        let is_refused = std::mem::replace(&mut self.refused_writes, tier.refused_writes) < tier.refused_writes;
        if !is_refused {
            self.quiet_looks = self.quiet_looks.saturating_sub(1);
            return None;
        }
        let is_told = std::mem::replace(&mut self.quiet_looks, QUIET_LOOKS) > 0;
        let text = || format!("the file system under tier {} is full: writes that need space fail", tier.name);
        (!is_told).then(text)
    }

    /// Nothing of a volume is in danger; but whoever counts on the space learns that it does not come back.
    fn discard_text(&mut self, tier: &TierUsage) -> Option<String> {
        let is_new = tier.discard_failed && !std::mem::replace(&mut self.discard_failed, tier.discard_failed);
        let text = || {
            format!(
                "the device of tier {} refused a discard: until the node starts again, space that becomes free is not \
                 given back to it",
                tier.name
            )
        };
        is_new.then(text)
    }

    fn level_text(&mut self, tier: &TierUsage) -> Option<String> {
        let told = &mut self.level;
        // To be left behind, a level must not be reached with this much more used either.
        let margin = (tier.slots_total.saturating_mul(HYSTERESIS_PERCENT) / 100).max(1);
        let left = SpaceLevel::of(tier.slots_used.saturating_add(margin), tier.slots_total);
        let level = tier.level.max(left.min(*told));
        let before = std::mem::replace(told, level);
        let name = &tier.name;
        match level {
            _ if level == before => None,
            SpaceLevel::Full => Some(format!("tier {name} is full: writes that need space fail")),
            SpaceLevel::At90 if before == SpaceLevel::Full => {
                Some(format!("tier {name} has room again, and is still 90 % full"))
            }
            SpaceLevel::At90 => Some(format!("tier {name} is 90 % full")),
            SpaceLevel::At80 if before > level => Some(format!("tier {name} is below 90 % again, and still 80 % full")),
            SpaceLevel::At80 => Some(format!("tier {name} is 80 % full")),
            SpaceLevel::Normal => Some(format!("tier {name} is below 80 % again")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_base::VolumeId;
    use drover_store::{TierClass, TierSpec, Tiers};

    /// What is told while a tier of so many slots has, one after the other, so many used.
    fn told(slots: u64, used: &[u64]) -> Vec<String> {
        let mut watch = SpaceWatch::default();
        let mut taken = Vec::new();
        let tiers = Tiers::new(vec![TierSpec { name: "t".into(), class: TierClass::Nvme, slots, discards: false }]);
        let mut look = |used: &u64| {
            let used = *used as usize;
            match taken.len() < used {
                true => taken.extend(tiers.allocate(VolumeId(1), used - taken.len()).unwrap()),
                false => tiers.free(&taken.split_off(used)),
            }
            watch.look(&tiers.usage())
        };
        used.iter().flat_map(&mut look).collect()
    }

    #[test]
    fn each_threshold_is_told_upwards_and_downwards() {
        let all = told(1000, &[799, 800, 900, 999, 1000, 979, 879, 779]);
        let expected = [
            "tier t is 80 % full",
            "tier t is 90 % full",
            "tier t is full: writes that need space fail",
            "tier t has room again, and is still 90 % full",
            "tier t is below 90 % again, and still 80 % full",
            "tier t is below 80 % again",
        ];
        assert_eq!(all, expected);
        assert_eq!(told(1000, &[1000, 0]), [expected[2], expected[5]], "what lies between is passed over");
    }

    /// A guest that writes and discards at a threshold would fill the log with one event a look.
    #[test]
    fn a_tier_at_the_edge_of_a_level_tells_it_once() {
        for edge in [800, 900, 1000] {
            let hovering: Vec<u64> = (0..100).map(|turn| if turn % 2 == 0 { edge } else { edge - 20 }).collect();
            assert_eq!(told(1000, &hovering).len(), 1, "at {edge}");
            assert_eq!(told(1000, &[edge, edge - 20, edge - 21, edge]).len(), 3, "at {edge}");
        }
        // A tier so small that the margin is less than a slot.
        assert_eq!(told(10, &[10, 9, 10, 9]), ["tier t is full: writes that need space fail"]);
    }

    /// A guest tries again and again while the file system is full.
    #[test]
    fn a_full_file_system_is_told_once_until_it_was_quiet_for_long() {
        let tiers =
            Tiers::new(vec![TierSpec { name: "t".into(), class: TierClass::Nvme, slots: 100, discards: false }]);
        let mut watch = SpaceWatch::default();
        let mut looks = |count: u32, refuses: bool| {
            let look = |_| {
                if refuses {
                    tiers.refused_write(0);
                }
                watch.look(&tiers.usage())
            };
            (0..count).flat_map(look).collect::<Vec<_>>()
        };
        let text = "the file system under tier t is full: writes that need space fail";
        assert_eq!(looks(1, false), [""; 0]);
        assert_eq!(looks(100, true), [text]);
        assert_eq!(looks(QUIET_LOOKS - 1, false), [""; 0]);
        assert_eq!(looks(1, true), [""; 0], "not quiet for long enough");
        assert_eq!(looks(QUIET_LOOKS, false), [""; 0]);
        assert_eq!(looks(1, true), [text]);
    }

    #[test]
    fn a_device_that_refuses_discards_is_told_once() {
        let spec = TierSpec { name: "t".into(), class: TierClass::Nvme, slots: 100, discards: true };
        let mut usage = Tiers::new(vec![spec]).usage();
        let mut watch = SpaceWatch::default();
        assert_eq!(watch.look(&usage), [""; 0]);
        usage[0].discard_failed = true;
        let told = watch.look(&usage);
        assert!(told.len() == 1 && told[0].contains("tier t refused a discard"), "{told:?}");
        assert_eq!(watch.look(&usage), [""; 0]);
    }
}
