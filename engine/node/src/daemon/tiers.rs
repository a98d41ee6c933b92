//! Which device number a tier has.
//!
//! The maps name devices by number, the settings by name. The first start with a tier records its number for good, so
//! that the order of the settings is free and a tier that is missing is noticed before anything is read wrongly.
//!
//! Stored under `nt`: one line a tier, in the order of the numbers: `name TAB size in bytes`.

use crate::config::{TIERS_MAX, TierConfig};
use drover_store::meta::{Batch, Meta, MetaError};

const KEY: &[u8] = b"nt";

/// Why the tiers do not fit what is recorded.
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
}

/// The tiers by device number, new ones last. Changes nothing.
pub async fn as_recorded(meta: &dyn Meta, tiers: &[TierConfig]) -> Result<Vec<TierConfig>, TierError> {
    order(&recorded(meta).await?, tiers)
}

/// The tiers by device number. New ones are given the next numbers, durably.
pub async fn in_recorded_order(meta: &dyn Meta, tiers: &[TierConfig]) -> Result<Vec<TierConfig>, TierError> {
    let recorded = recorded(meta).await?;
    let ordered = order(&recorded, tiers)?;
    let lines = encode(&ordered);
    if decode(&lines)? != recorded {
        let mut batch = Batch::default();
        batch.put(KEY.to_vec(), lines);
        meta.commit(batch).await?;
    }
    Ok(ordered)
}

async fn recorded(meta: &dyn Meta) -> Result<Vec<(String, u64)>, TierError> {
    match meta.get(KEY).await? {
        Some(value) => decode(&value),
        None => Ok(Vec::new()),
    }
}

fn order(recorded: &[(String, u64)], tiers: &[TierConfig]) -> Result<Vec<TierConfig>, TierError> {
    let mut ordered = Vec::new();
    for (name, size) in recorded {
        let tier = tiers.iter().find(|tier| tier.name == *name);
        let tier = tier.ok_or_else(|| TierError::Missing { name: name.clone() })?;
        if tier.size_bytes < *size {
            return Err(TierError::Shrunk { name: name.clone(), recorded: *size, wanted: tier.size_bytes });
        }
        ordered.push(tier.clone());
    }
    let is_new = |tier: &&TierConfig| recorded.iter().all(|(name, _)| *name != tier.name);
    ordered.extend(tiers.iter().filter(is_new).cloned());
    if ordered.len() > TIERS_MAX {
        return Err(TierError::TooMany { count: ordered.len() });
    }
    Ok(ordered)
}

fn encode(tiers: &[TierConfig]) -> Vec<u8> {
    tiers.iter().map(|tier| format!("{}\t{}\n", tier.name, tier.size_bytes)).collect::<String>().into_bytes()
}

fn decode(value: &[u8]) -> Result<Vec<(String, u64)>, TierError> {
    let text = std::str::from_utf8(value).map_err(|_| TierError::Damaged)?;
    text.lines()
        .map(|line| {
            let (name, size) = line.split_once('\t').ok_or(TierError::Damaged)?;
            Ok((name.to_owned(), size.parse().map_err(|_| TierError::Damaged)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Class;
    use drover_store::meta::rocks::RocksMeta;

    fn tier(name: &str, size_bytes: u64) -> TierConfig {
        TierConfig { name: name.into(), class: Class::Ssd, device: name.into(), is_block_device: false, size_bytes }
    }

    fn order(meta: &RocksMeta, tiers: &[TierConfig]) -> Result<Vec<String>, TierError> {
        let ordered = drover_runtime::block_on(in_recorded_order(&*meta.handle(), tiers)).unwrap()?;
        Ok(ordered.into_iter().map(|tier| tier.name).collect())
    }

    #[test]
    fn a_tier_keeps_its_number_when_the_settings_change_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let meta = RocksMeta::open(folder.path()).unwrap();
        assert_eq!(order(&meta, &[tier("b", 1), tier("a", 1)]).unwrap(), ["b", "a"]);
        assert_eq!(order(&meta, &[tier("a", 1), tier("c", 1), tier("b", 2)]).unwrap(), ["b", "a", "c"]);
        assert_eq!(order(&meta, &[tier("c", 1), tier("b", 2), tier("a", 1)]).unwrap(), ["b", "a", "c"]);
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
