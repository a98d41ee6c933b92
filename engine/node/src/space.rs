//! Space of the tiers that migrations were promised.
//!
//! Invariants
//! - A promise is refused unless all promises together fit what is free: what a migration has filled of its own is no
//!   longer promised but used.
//! - Promises are kept in the seats' records; this is their sum over the node's shards.

use drover_base::{VolumeId, units::EXTENT_BYTES};
use drover_store::Tiers;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

/// Bytes promised to volumes and not yet filled. Shared by the shards of a node.
#[derive(Clone, Default)]
pub struct Reservations(Arc<Mutex<BTreeMap<VolumeId, Reserved>>>);

#[derive(Clone, Copy)]
struct Reserved {
    promised_bytes: u64,
    filled_bytes: u64,
}

impl Reserved {
    fn open_bytes(self) -> u64 {
        self.promised_bytes.saturating_sub(self.filled_bytes)
    }
}

impl Reservations {
    fn all(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Reserved>> {
        self.0.lock().expect("no panic under this lock")
    }

    /// Promises `bytes` in all to the volume, or tells how many are free for it.
    pub(crate) fn reserve(&self, tiers: &Tiers, volume: VolumeId, bytes: u64, filled: u64) -> Result<(), u64> {
        let mut all = self.all();
        let others: u64 = all.iter().filter(|(id, _)| **id != volume).map(|(_, it)| it.open_bytes()).sum();
        let free = free_bytes(tiers).saturating_sub(others);
        let reserved = Reserved { promised_bytes: bytes, filled_bytes: filled };
        if reserved.open_bytes() > free {
            return Err(free);
        }
        all.insert(volume, reserved);
        Ok(())
    }

    /// A promise that was made before the node started.
    pub(crate) fn restore(&self, volume: VolumeId, bytes: u64, filled: u64) {
        self.all().insert(volume, Reserved { promised_bytes: bytes, filled_bytes: filled });
    }

    /// How much the volume uses by now.
    pub(crate) fn filled(&self, volume: VolumeId, bytes: u64) {
        if let Some(reserved) = self.all().get_mut(&volume) {
            reserved.filled_bytes = bytes;
        }
    }

    pub(crate) fn release(&self, volume: VolumeId) {
        self.all().remove(&volume);
    }

    /// Bytes promised and not yet filled.
    pub fn open_bytes(&self) -> u64 {
        self.all().values().map(|it| it.open_bytes()).sum()
    }
}

fn free_bytes(tiers: &Tiers) -> u64 {
    let free = |tier: &drover_store::TierUsage| tier.slots_total - tier.slots_used - tier.slots_held;
    tiers.usage().iter().filter(|tier| !tier.poisoned).map(free).sum::<u64>() * EXTENT_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_store::{TierClass, TierSpec};

    #[test]
    fn promises_are_kept_apart_and_shrink_as_they_are_filled() {
        let tiers = Tiers::new(vec![TierSpec { name: "t".into(), class: TierClass::Nvme, slots: 100 }]);
        let reservations = Reservations::default();
        let slots = |count: u64| count * EXTENT_BYTES;
        assert_eq!(reservations.reserve(&tiers, VolumeId(1), slots(60), 0), Ok(()));
        assert_eq!(reservations.reserve(&tiers, VolumeId(2), slots(41), 0), Err(slots(40)));
        assert_eq!(reservations.reserve(&tiers, VolumeId(1), slots(60), 0), Ok(()), "asked again");
        tiers.allocate(30).unwrap();
        reservations.filled(VolumeId(1), slots(30));
        assert_eq!(reservations.open_bytes(), slots(30));
        assert_eq!(reservations.reserve(&tiers, VolumeId(2), slots(40), 0), Ok(()));
        reservations.release(VolumeId(1));
        assert_eq!(reservations.open_bytes(), slots(40));
    }
}
