//! Which device number a tier has, and which label its device bears.
//!
//! The maps name devices by number, the settings by name. The first start with a tier records its number for good, so
//! that the order of the settings is free and a tier that is missing is noticed before anything is read wrongly.
//!
//! Stored under `nt`: one line a tier, in the order of the numbers:
//! `name TAB size in bytes TAB id in hexadecimal TAB new|labelled`.

use crate::config::{TIERS_MAX, TierConfig};
use drover_base::World;
use drover_disk::{DeviceError, OpenError};
use drover_store::meta::{Batch, Meta, MetaError};
use drover_wire::WireError;
use std::path::PathBuf;

pub(super) const KEY: &[u8] = b"nt";

const NEW: &str = "new";
const LABELLED: &str = "labelled";

/// Why the tiers are not what is recorded, or may not be taken.
#[derive(Debug, thiserror::Error)]
pub enum TierError {
    #[error("tier {name} is missing in the settings, and volumes may lie on it; add it again")]
    Missing { name: String },
    #[error("tier {name} had {recorded} bytes and would have {wanted}: a tier never shrinks")]
    Shrunk { name: String, recorded: u64, wanted: u64 },
    #[error("{count} tiers with those of before, at most {TIERS_MAX}")]
    TooMany { count: usize },
    #[error("the record of tiers is damaged")]
    Damaged,
    #[error(transparent)]
    Meta(#[from] MetaError),
    #[error("tier {name}: {error}")]
    Device { name: String, error: OpenError },
    #[error("tier {name}: {path}: its label: {error}")]
    Label { name: String, path: PathBuf, error: DeviceError },
    #[error("tier {name}: the label on {path} is damaged: {error}")]
    BadLabel { name: String, path: PathBuf, error: WireError },
    #[error(
        "tier {name}: {path} does not bear the label it was given: it is another device, or was written over by \
         somebody else; give the tier its device again"
    )]
    NoLabel { name: String, path: PathBuf },
    #[error("tier {name}: {path} is {found}; give each tier its own device again")]
    Exchanged { name: String, path: PathBuf, found: String },
    #[error("tier {name}: {path} has {has} bytes, and volumes may lie on all of {recorded}")]
    Cut { name: String, path: PathBuf, has: u64, recorded: u64 },
    #[error(
        "tier {name}: {path} is this node's tier of that name, but the metadata does not know it: was it lost? \
         Restore it (drover fsck --restore); only if nothing on the tier is needed, set overwrite = true for it"
    )]
    Unknown { name: String, path: PathBuf },
    #[error("tier {name}: {path} is {found}; if nothing on it is needed, set overwrite = true for the tier")]
    Taken { name: String, path: PathBuf, found: String },
    #[error(
        "tier {name}: {path} is not empty, and what it holds is not Drover's; if nothing of it is needed, wipe it \
         (wipefs -a, blkdiscard) or set overwrite = true for the tier"
    )]
    NotEmpty { name: String, path: PathBuf },
}

/// A tier with its device number: its place in the order.
#[derive(Clone, Debug)]
pub struct Placed {
    pub tier: TierConfig,
    /// Of its label.
    pub id: u128,
    /// Bytes that volumes may lie on already.
    pub recorded_bytes: u64,
    /// Its device was given its label.
    pub is_labelled: bool,
}

/// A line of the record.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Recorded {
    name: String,
    size_bytes: u64,
    id: u128,
    is_labelled: bool,
}

/// The tiers by device number, new ones last. Changes nothing.
pub async fn as_recorded(meta: &dyn Meta, tiers: &[TierConfig]) -> Result<Vec<TierConfig>, TierError> {
    let placed = order(&recorded(meta).await?, tiers, || 0)?;
    Ok(placed.into_iter().map(|placed| placed.tier).collect())
}

/// The tiers by device number, new ones last and with new ids. Changes nothing.
pub async fn placed(world: &World, meta: &dyn Meta, tiers: &[TierConfig]) -> Result<Vec<Placed>, TierError> {
    let id = || u128::from(world.random.next_u64()) << 64 | u128::from(world.random.next_u64());
    order(&recorded(meta).await?, tiers, id)
}

/// Makes the numbers, sizes and ids durable.
pub async fn record(meta: &dyn Meta, placed: &[Placed]) -> Result<(), TierError> {
    let lines = encode(placed);
    if decode(&lines)? != recorded(meta).await? {
        let mut batch = Batch::default();
        batch.put(KEY.to_vec(), lines);
        meta.commit(batch).await?;
    }
    Ok(())
}

async fn recorded(meta: &dyn Meta) -> Result<Vec<Recorded>, TierError> {
    match meta.get(KEY).await? {
        Some(value) => decode(&value),
        None => Ok(Vec::new()),
    }
}

fn order(recorded: &[Recorded], tiers: &[TierConfig], mut id: impl FnMut() -> u128) -> Result<Vec<Placed>, TierError> {
    let mut ordered = Vec::new();
    for Recorded { name, size_bytes, id, is_labelled } in recorded {
        let tier = tiers.iter().find(|tier| tier.name == *name);
        let tier = tier.ok_or_else(|| TierError::Missing { name: name.clone() })?;
        if tier.size_bytes < *size_bytes {
            return Err(TierError::Shrunk { name: name.clone(), recorded: *size_bytes, wanted: tier.size_bytes });
        }
        let (id, recorded_bytes, is_labelled) = (*id, *size_bytes, *is_labelled);
        ordered.push(Placed { tier: tier.clone(), id, recorded_bytes, is_labelled });
    }
    let is_new = |tier: &&TierConfig| recorded.iter().all(|known| known.name != tier.name);
    let mut new = |tier: &TierConfig| Placed { tier: tier.clone(), id: id(), recorded_bytes: 0, is_labelled: false };
    ordered.extend(tiers.iter().filter(is_new).map(&mut new));
    if ordered.len() > TIERS_MAX {
        return Err(TierError::TooMany { count: ordered.len() });
    }
    Ok(ordered)
}

fn encode(placed: &[Placed]) -> Vec<u8> {
    let line = |Placed { tier, id, is_labelled, .. }: &Placed| {
        let state = if *is_labelled { LABELLED } else { NEW };
        format!("{}\t{}\t{id:032x}\t{state}\n", tier.name, tier.size_bytes)
    };
    placed.iter().map(line).collect::<String>().into_bytes()
}

fn decode(value: &[u8]) -> Result<Vec<Recorded>, TierError> {
    let text = std::str::from_utf8(value).map_err(|_| TierError::Damaged)?;
    let line = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        let [name, size, id, state] = fields[..] else { return None };
        let is_labelled = (state == LABELLED || state == NEW).then_some(state == LABELLED)?;
        let (size_bytes, id) = (size.parse().ok()?, u128::from_str_radix(id, 16).ok()?);
        Some(Recorded { name: name.into(), size_bytes, id, is_labelled })
    };
    text.lines().map(|text| line(text).ok_or(TierError::Damaged)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Class;
    use drover_store::meta::rocks::RocksMeta;

    fn tier(name: &str, size_bytes: u64) -> TierConfig {
        TierConfig {
            name: name.into(),
            class: Class::Ssd,
            device: name.into(),
            is_block_device: false,
            size_bytes,
            sparse: false,
            discards: false,
            overwrite: false,
        }
    }

    /// Records the tiers; their names and ids in the order of their numbers.
    fn order(meta: &RocksMeta, tiers: &[TierConfig]) -> Result<Vec<(String, u128)>, TierError> {
        drover_runtime::block_on(async {
            let world = drover_runtime::world(&drover_runtime::Workers::start(1).unwrap(), None);
            let placed = placed(&world, &*meta.handle(), tiers).await?;
            record(&*meta.handle(), &placed).await?;
            Ok(placed.into_iter().map(|placed| (placed.tier.name, placed.id)).collect())
        })
        .unwrap()
    }

    #[test]
    fn a_tier_keeps_its_number_when_the_settings_change_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let meta = RocksMeta::open(folder.path()).unwrap();
        let names = |placed: &[(String, u128)]| placed.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        let first = order(&meta, &[tier("b", 1), tier("a", 1)]).unwrap();
        assert_eq!(names(&first), ["b", "a"]);
        let second = order(&meta, &[tier("a", 1), tier("c", 1), tier("b", 2)]).unwrap();
        assert_eq!((names(&second), &second[..2]), (vec!["b".into(), "a".into(), "c".into()], &first[..]));
        assert_eq!(order(&meta, &[tier("c", 1), tier("b", 2), tier("a", 1)]).unwrap(), second);
    }

    #[test]
    fn a_damaged_record_is_an_error() {
        for damaged in ["a", "a\t1", "a\tx\t0\tnew", "a\t1\tx\tnew", "a\t1\t0\told", "a\t1\t0\tnew\t", "\n"] {
            assert!(matches!(decode(damaged.as_bytes()), Err(TierError::Damaged)), "{damaged:?}");
        }
        assert!(matches!(decode(&[0xff]), Err(TierError::Damaged)));
    }

    #[test]
    fn a_tier_that_is_missing_or_shrank_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let meta = RocksMeta::open(folder.path()).unwrap();
        order(&meta, &[tier("a", 2), tier("b", 2)]).unwrap();
        assert!(matches!(order(&meta, &[tier("a", 2)]), Err(TierError::Missing { name }) if name == "b"));
        assert!(matches!(order(&meta, &[tier("a", 1), tier("b", 2)]), Err(TierError::Shrunk { .. })));
    }
}
