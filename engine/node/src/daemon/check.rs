//! `drover fsck`: a stopped node's metadata is checked.

use super::{DaemonError, hold_lock, tiers};
use crate::config::{NodeConfig, TierConfig};
use drover_base::units::EXTENT_BYTES;
use drover_store::fsck::{self, Report};
use drover_store::meta::Meta;
use drover_store::meta::rocks::RocksMeta;
use std::path::{Path, PathBuf};

/// What was found, and what was done.
pub struct Checked {
    pub report: Report,
    /// Where the metadata from before a restore lies now, if there was any.
    pub moved_to: Option<PathBuf>,
}

/// Checks the metadata. Changes nothing.
pub fn check(config: &NodeConfig) -> Result<Checked, DaemonError> {
    let _lock = hold_lock(config)?;
    if !config.meta.exists() {
        return Err(DaemonError::NoMeta { meta: config.meta.clone() });
    }
    let report = drover_runtime::block_on(async {
        let meta = open(&config.meta)?;
        // A start that was refused for it has left an empty place.
        let report = match super::refuse_lost_meta(config, &*meta.handle()).await {
            Ok(()) => examine(config, &*meta.handle()).await,
            Err(lost) => Err(lost),
        };
        meta.close();
        report
    })??;
    Ok(Checked { report, moved_to: None })
}

pub(super) fn open(meta: &Path) -> Result<RocksMeta, DaemonError> {
    RocksMeta::open(meta).map_err(|error| DaemonError::Meta { meta: meta.into(), error })
}

pub(super) async fn examine(config: &NodeConfig, meta: &dyn Meta) -> Result<Report, DaemonError> {
    let ordered = tiers::as_recorded(meta, &config.tiers).await?;
    let report = fsck::check(meta, &slots(&ordered)).await;
    report.map_err(|error| DaemonError::Meta { meta: config.meta.clone(), error })
}

pub(super) fn slots(tiers: &[TierConfig]) -> Vec<u64> {
    tiers.iter().map(|tier| tier.size_bytes / EXTENT_BYTES).collect()
}
