//! `drover fsck --restore`: the metadata made again from the checkpoint, in place of what is damaged or lost.
//!
//! ```text
//!  META.restoring: made, loaded, set back, examined ─► exchanged with META ─► the old one becomes META.before-restore-TIME
//! ```
//! Invariants
//! - META is, at every moment and after every crash, the old metadata or the whole new one; where there was none, none or
//!   the new one.
//! - Nothing is taken away before what replaces it is durable, and old metadata is only ever moved aside.
//! - Beside META an unfinished restore is told from old metadata by the mark in it, and only the former is removed.
//!
//! What is restored holds no lease before the control plane says so again, and copies that migrations kept for other
//! holders do not come back (see [`crate::distrust_seats`]).

use super::check::{examine, open, slots};
use super::{CHECKPOINT_FILE, Checked, DaemonError, hold_lock};
use crate::config::NodeConfig;
use crate::distrust_seats;
use drover_runtime::Workers;
use drover_store::checkpoint::{CheckpointFile, CheckpointPlace};
use drover_store::fsck::{self, Report};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The file in a folder that is not yet, or was never, the node's metadata. RocksDB minds only files of its own.
const MARK: &str = "unfinished-restore";

/// What a restore has done, durably, when it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// A place beside the metadata is empty and marked.
    Begun,
    Loaded,
    SetBack,
    /// The new metadata is where the old was, and the old beside it.
    InPlace,
    MovedAside,
}

/// Makes the metadata again from the checkpoint, unless what is there is sound.
pub fn restore(config: &NodeConfig) -> Result<Checked, DaemonError> {
    restore_told(config, |_| ())
}

/// The same, telling each step.
fn restore_told(config: &NodeConfig, mut tell: impl FnMut(Step)) -> Result<Checked, DaemonError> {
    let _lock = hold_lock(config)?;
    let Some(folder) = &config.checkpoint else { return Err(DaemonError::NoCheckpoint) };
    drover_runtime::block_on(async {
        let world = drover_runtime::world(&Workers::start(1)?, None);
        let place = CheckpointFile::new(world.clone(), folder.join(CHECKPOINT_FILE));
        let beside = with_suffix(&config.meta, "restoring");
        let aside = with_suffix(&config.meta, &format!("before-restore-{}", world.clock.wall_ms()));
        let left = settle_unfinished(&config.meta, &beside, &aside).map_err(|error| failed(&beside, error))?;
        refuse_sound(config).await?;
        let made = make(config, &place, &beside, &mut tell).await;
        if made.is_err() {
            fs::remove_dir_all(&beside).map_err(|error| failed(&beside, error))?;
        }
        let report = made?;
        // Old metadata that an unfinished restore had left has the name already.
        let aside = if left { with_suffix(&aside, "2") } else { aside };
        let is_moved = put_in_place(&beside, &config.meta, &aside, &mut tell);
        let is_moved = is_moved.map_err(|error| failed(&config.meta, error))?;
        Ok(Checked { report, moved_to: is_moved.then_some(aside) })
    })?
}

fn failed(path: &Path, error: io::Error) -> DaemonError {
    DaemonError::Folder { path: path.into(), error }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{suffix}"));
    PathBuf::from(name)
}

async fn refuse_sound(config: &NodeConfig) -> Result<(), DaemonError> {
    if !config.meta.exists() {
        return Ok(());
    }
    let Ok(meta) = open(&config.meta) else { return Ok(()) };
    let examined = examine(config, &*meta.handle()).await;
    let is_empty = meta.handle().scan(&[]).await.is_ok_and(|pairs| pairs.is_empty());
    meta.close();
    let is_sound = examined.is_ok_and(|report| report.problems.is_empty());
    if is_sound && !is_empty { Err(DaemonError::Sound { meta: config.meta.clone() }) } else { Ok(()) }
}

/// What an unfinished restore has left: unfinished metadata is removed, old metadata is moved aside. Whether there was
/// any of the latter.
fn settle_unfinished(meta: &Path, beside: &Path, aside: &Path) -> io::Result<bool> {
    match fs::remove_file(meta.join(MARK)) {
        Ok(()) => sync_parent(&meta.join(MARK))?,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
        Err(error) => return Err(error),
    }
    let is_empty = match fs::read_dir(beside) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if is_empty || beside.join(MARK).exists() {
        return fs::remove_dir_all(beside).map(|()| false);
    }
    fs::rename(beside, aside)?;
    sync_parent(beside)?;
    Ok(true)
}

/// Makes the metadata in the folder `beside`, whole and durable.
async fn make(
    config: &NodeConfig,
    place: &dyn CheckpointPlace,
    beside: &Path,
    tell: &mut impl FnMut(Step),
) -> Result<Report, DaemonError> {
    begin(beside).map_err(|error| failed(beside, error))?;
    tell(Step::Begun);
    let meta = open(beside)?;
    fsck::restore(&*meta.handle(), place, &slots(&config.tiers)).await?;
    tell(Step::Loaded);
    distrust_seats(&*meta.handle()).await?;
    tell(Step::SetBack);
    let report = examine(config, &*meta.handle()).await;
    meta.close();
    report
}

fn begin(beside: &Path) -> io::Result<()> {
    // For nobody else to read, as a node makes it.
    fs::DirBuilder::new().mode(0o700).create(beside)?;
    File::create(beside.join(MARK))?.sync_all()?;
    File::open(beside)?.sync_all()?;
    sync_parent(beside)
}

/// Puts the folder `new` where `meta` is, in one step, and moves what was there aside; whether there was something.
fn put_in_place(new: &Path, meta: &Path, aside: &Path, tell: &mut impl FnMut(Step)) -> io::Result<bool> {
    File::open(new)?.sync_all()?;
    let is_moved = meta.exists();
    let exchanged = if is_moved { renameat_with(CWD, new, CWD, meta, RenameFlags::EXCHANGE) } else { Ok(()) };
    match exchanged {
        Ok(()) if is_moved => {
            sync_parent(meta)?;
            tell(Step::InPlace);
            fs::rename(new, aside)?;
        }
        Ok(()) => fs::rename(new, meta)?,
        // A file system that cannot. Cut off in between, there is no metadata: the node does not start without.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            fs::rename(meta, aside)?;
            fs::rename(new, meta)?;
        }
        Err(error) => return Err(error.into()),
    }
    sync_parent(meta)?;
    tell(Step::MovedAside);
    fs::remove_file(meta.join(MARK))?;
    Ok(is_moved)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests;
