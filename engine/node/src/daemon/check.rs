//! `drover fsck`: a stopped node's metadata is checked, or made again from its checkpoint.
//!
//! What a restore replaces is moved aside, and only if it is damaged or cannot be opened. What is restored holds no lease
//! before the control plane says so again, and copies that migrations kept for other holders do not come back (see
//! [`crate::distrust_seats`]).

use super::{CHECKPOINT_FILE, DaemonError, hold_lock, tiers};
use crate::config::{NodeConfig, TierConfig};
use crate::distrust_seats;
use drover_base::units::EXTENT_BYTES;
use drover_base::world::World;
use drover_runtime::Workers;
use drover_store::checkpoint::CheckpointFile;
use drover_store::fsck::{self, Report};
use drover_store::meta::Meta;
use drover_store::meta::rocks::RocksMeta;
use std::fs;
use std::path::PathBuf;

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
        let meta = open(config)?;
        let report = examine(config, &*meta.handle()).await;
        meta.close();
        report
    })??;
    Ok(Checked { report, moved_to: None })
}

/// Makes the metadata again from the checkpoint, unless what is there is sound.
pub fn restore(config: &NodeConfig) -> Result<Checked, DaemonError> {
    let _lock = hold_lock(config)?;
    let Some(folder) = &config.checkpoint else { return Err(DaemonError::NoCheckpoint) };
    drover_runtime::block_on(async {
        let world = drover_runtime::world(&Workers::start(1)?);
        if let Ok(meta) = open_existing(config) {
            let examined = examine(config, &*meta.handle()).await;
            let is_empty = meta.handle().scan(&[]).await.is_ok_and(|pairs| pairs.is_empty());
            meta.close();
            if !is_empty && examined.is_ok_and(|report| report.problems.is_empty()) {
                return Err(DaemonError::Sound { meta: config.meta.clone() });
            }
        }
        let moved_to = move_aside(config, &world)?;
        let meta = open(config)?;
        let place = CheckpointFile::new(world, folder.join(CHECKPOINT_FILE));
        let restored = fsck::restore(&*meta.handle(), &place, &slots(&config.tiers)).await;
        let report = match restored {
            Ok(_) => {
                distrust_seats(&*meta.handle()).await?;
                examine(config, &*meta.handle()).await
            }
            Err(error) => Err(error.into()),
        };
        meta.close();
        Ok(Checked { report: report?, moved_to })
    })?
}

fn open(config: &NodeConfig) -> Result<RocksMeta, DaemonError> {
    RocksMeta::open(&config.meta).map_err(|error| DaemonError::Meta { meta: config.meta.clone(), error })
}

fn open_existing(config: &NodeConfig) -> Result<RocksMeta, DaemonError> {
    if config.meta.exists() { open(config) } else { Err(DaemonError::NoMeta { meta: config.meta.clone() }) }
}

async fn examine(config: &NodeConfig, meta: &dyn Meta) -> Result<Report, DaemonError> {
    let ordered = tiers::as_recorded(meta, &config.tiers).await?;
    let report = fsck::check(meta, &slots(&ordered)).await;
    report.map_err(|error| DaemonError::Meta { meta: config.meta.clone(), error })
}

fn slots(tiers: &[TierConfig]) -> Vec<u64> {
    tiers.iter().map(|tier| tier.size_bytes / EXTENT_BYTES).collect()
}

fn move_aside(config: &NodeConfig, world: &World) -> Result<Option<PathBuf>, DaemonError> {
    if !config.meta.exists() {
        return Ok(None);
    }
    let mut name = config.meta.as_os_str().to_owned();
    name.push(format!(".before-restore-{}", world.clock.wall_ms()));
    let aside = PathBuf::from(name);
    let moved = fs::rename(&config.meta, &aside);
    moved.map_err(|error| DaemonError::Folder { path: config.meta.clone(), error })?;
    Ok(Some(aside))
}
