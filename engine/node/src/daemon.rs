//! A storage node as a process: opens what the settings name, serves until told to stop, stops in order.
//!
//! ```text
//!  lock and open tiers, metadata ─► recovery ─► listen ─► register, serve ─► SIGTERM ─► NBD drains ─► flush ─► checkpoint
//!                                   each shard: on a thread of its own, with a ring and open files of its own
//! ```
//! Orders that must hold
//! - Nothing is served, and the control plane is told nothing, before recovery is done and every address is bound.
//! - A tier keeps its device number for life: the numbers stand in the maps, so they are recorded by name. Its device
//!   bears a label, without which it is not opened again.
//! - Stopping loses nothing also when it is cut off: what was acknowledged as flushed already is durable.

// The machine's side: sockets, signals, time of the runtime.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod bound;
mod check;
pub(crate) mod label;
mod restore;
mod shards;
mod tiers;

pub use check::{Checked, check};
pub use restore::restore;

use crate::config::{Class, NodeConfig};
use crate::{Common, Office, RestoredError, StartError};
use bound::Bound;
use drover_base::{InstanceId, World};
use drover_disk::{KernelError, OpenError, UringDevice};
use drover_runtime::Workers;
use drover_runtime::tls::{Tls, TlsError};
use drover_store::meta::{
    Meta, MetaError,
    rocks::{RocksMeta, Room},
};
use drover_store::{Store, StoreError, TierClass, TierSpec, Tiers};
use shards::{Parts, Running};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use std::{fs, io};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use label::OpenTier;
pub use tiers::TierError;

/// Threads for hashing and compression.
const WORKERS: usize = 2;

/// Between two checkpoints of the maps: bounds what a restore loses, and how long freed slots wait at most.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(60);

/// How long connections may take to end what they have in flight when the node stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// The checkpoint's file in its folder.
pub const CHECKPOINT_FILE: &str = "checkpoint";
/// In the folder of the metadata.
const CHUNKS_FOLDER: &str = "chunks";

/// Why a node did not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("a node runs with these settings: {lock} is locked")]
    Running { lock: PathBuf },
    #[error("there is no metadata at {meta}")]
    NoMeta { meta: PathBuf },
    #[error(
        "there is a checkpoint but no metadata at {meta}: it was lost, and starting without it would overwrite data"
    )]
    Lost { meta: PathBuf },
    #[error("the settings name no checkpoint to restore from")]
    NoCheckpoint,
    #[error("the metadata at {meta} is sound: nothing is restored over it")]
    Sound { meta: PathBuf },
    #[error("{path}: {error}")]
    Folder { path: PathBuf, error: io::Error },
    #[error("a tier's device cannot be opened by every shard: {error}")]
    Reopened { error: OpenError },
    #[error("shard {shard}: {error}")]
    Shard { shard: u32, error: Box<DaemonError> },
    #[error("no thread for shard {shard}: {error}")]
    Thread { shard: u32, error: io::Error },
    #[error(transparent)]
    Tiers(#[from] TierError),
    #[error("{meta}: {error}")]
    Meta { meta: PathBuf, error: MetaError },
    #[error("the volumes cannot be opened: {0}")]
    Store(#[from] StoreError),
    #[error("what was restored cannot be set back: {0}")]
    Restored(#[from] RestoredError),
    #[error("the volumes cannot be taken up: {0}")]
    Start(#[from] StartError),
    #[error("cannot listen at {address}: {error}")]
    Listen { address: String, error: io::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{by}")]
    Taken { by: String },
    #[error("the runtime failed: {0}")]
    Runtime(#[from] io::Error),
}

/// Runs a node until SIGTERM or SIGINT.
pub fn run(config: NodeConfig) -> Result<(), DaemonError> {
    let _lock = hold_lock(&config)?;
    drover_disk::run(serve(config))?
}

/// Keeps a second process from this node's metadata, also where that is lost or damaged.
fn hold_lock(config: &NodeConfig) -> Result<fs::File, DaemonError> {
    let mut name = config.meta.as_os_str().to_owned();
    name.push(".lock");
    let lock = PathBuf::from(name);
    let file = fs::File::create(&lock).map_err(|error| DaemonError::Folder { path: lock.clone(), error })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(DaemonError::Running { lock }),
        Err(fs::TryLockError::Error(error)) => Err(DaemonError::Folder { path: lock, error }),
    }
}

async fn serve(config: NodeConfig) -> Result<(), DaemonError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let workers = Workers::start(WORKERS)?;
    let tls = config.tls.clone().map(Tls::load).transpose()?;
    let world = drover_runtime::world(&workers, tls.clone());
    let meta = open_meta(&config)?;
    refuse_lost_meta(&config, &*meta.handle()).await?;
    let bound = Bound::bind(&config, tls.as_ref()).await?;
    let opened = open_tiers(&config, &world, &*meta.handle()).await?;
    let settings = bound.settings(&config, InstanceId(world.random.next_u64()));
    let common = Common::new(opened.tiers);
    let chunks = open_chunks(&config);
    let close = || {
        meta.close();
        chunks.iter().for_each(RocksMeta::close);
    };
    let parts = Parts {
        settings: settings.clone(),
        meta: meta.clone(),
        chunks: chunks.clone(),
        common: common.clone(),
        devices: opened.devices.iter().map(UringDevice::handle).collect(),
        checkpoint: config.checkpoint.as_ref().map(|folder| folder.join(CHECKPOINT_FILE)),
        workers,
        tls,
        shards: config.shards,
    };
    let running = Running::start(&parts, world.clone()).await?;
    tracing::info!(target: "node", node = %config.id, instance = %settings.instance, shards = config.shards, "up");
    running.shards().join(&world, &settings, &common);
    let mut stop = Box::pin(async move {
        tokio::select! {
            biased;
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    let mut office = common.office();
    let ended_early = tokio::select! {
        biased;
        () = &mut stop => Some(Ok(())),
        said = office.wait_for(|office| *office != Office::Awaited) => admitted(said).err().map(Err),
    };
    if let Some(ended) = ended_early {
        running.stop().await;
        close();
        return ended;
    }
    let (closing, closed) = watch::channel(false);
    let clients = bound.serve(&world, &running, common.exports(), &closed);
    let store = running.first().store.clone();
    if config.checkpoint.is_some() {
        world.spawn(checkpoints(world.clone(), store.clone())).detach();
    }
    let ended = tokio::select! {
        biased;
        () = &mut stop => Ok(()),
        said = office.wait_for(|office| matches!(office, Office::Taken(_))) => admitted(said),
    };
    tracing::info!(target: "node", "stopping");
    // Nobody listens any more only if no connection was ever there.
    let _ = closing.send(true);
    if tokio::time::timeout(DRAIN_DEADLINE, clients).await.is_err() {
        tracing::warn!(target: "node", "clients took too long to end what they had in flight");
    }
    running.stop().await;
    if config.checkpoint.is_some()
        && let Err(error) = store.checkpoint().await
    {
        tracing::warn!(target: "node", %error, "no checkpoint at the end");
    }
    close();
    tracing::info!(target: "node", "stopped");
    ended
}

/// Whether the node may serve. Who could say otherwise is gone only when the node is.
fn admitted(said: Result<watch::Ref<'_, Office>, watch::error::RecvError>) -> Result<(), DaemonError> {
    match said.as_deref() {
        Ok(Office::Taken(by)) => Err(DaemonError::Taken { by: by.clone() }),
        Ok(Office::Awaited | Office::Serves) | Err(_) => Ok(()),
    }
}

/// Volumes' data lies below: it is for nobody else to read.
fn make_folder(path: &Path) -> Result<(), DaemonError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| DaemonError::Folder { path: path.into(), error })
}

fn open_meta(config: &NodeConfig) -> Result<RocksMeta, DaemonError> {
    make_folder(&config.meta)?;
    RocksMeta::open(&config.meta).map_err(|error| DaemonError::Meta { meta: config.meta.clone(), error })
}

/// The index of chunks: what is damaged of it is only found again. A node without it sends more, and receives more.
fn open_chunks(config: &NodeConfig) -> Option<RocksMeta> {
    let folder = config.meta.join(CHUNKS_FOLDER);
    let open = || {
        let measured = config.meta.clone();
        RocksMeta::open_hints(&folder, move || room_at(&measured))
    };
    let opened = open().or_else(|error| {
        tracing::warn!(target: "node", %error, "the index of chunks cannot be read: it is begun anew");
        // Where even that fails, opening tells.
        let _ = fs::remove_dir_all(&folder);
        open()
    });
    opened.map_err(|error| tracing::error!(target: "node", %error, "chunks are not indexed")).ok()
}

/// Of the file system, for who is not its superuser. What cannot be told bounds nothing: writing there tells.
fn room_at(folder: &Path) -> Option<Room> {
    let told = rustix::fs::statvfs(folder).ok()?;
    Some(Room { free: told.f_bavail * told.f_frsize, total: told.f_blocks * told.f_frsize })
}

/// A node whose metadata was lost would take the slots of its volumes for free ones.
async fn refuse_lost_meta(config: &NodeConfig, meta: &dyn Meta) -> Result<(), DaemonError> {
    let failed = |error| DaemonError::Meta { meta: config.meta.clone(), error };
    let has_checkpoint = config.checkpoint.as_ref().is_some_and(|folder| folder.join(CHECKPOINT_FILE).exists());
    if has_checkpoint && meta.scan(&[]).await.map_err(failed)?.is_empty() {
        return Err(DaemonError::Lost { meta: config.meta.clone() });
    }
    Ok(())
}

/// The devices of the tiers, open and locked, and their slots: used as the maps name them.
struct OpenTiers {
    devices: Vec<UringDevice>,
    tiers: Tiers,
}

async fn open_tiers(config: &NodeConfig, world: &World, meta: &dyn Meta) -> Result<OpenTiers, DaemonError> {
    let open = label::open_tiers(world, &config.id, meta, &config.tiers).await?;
    let (mut devices, mut ordered) = (Vec::new(), Vec::new());
    for OpenTier { tier, device } in open {
        if !device.direct() {
            tracing::warn!(target: "node", tier = %tier.name, "its file system has no O_DIRECT: slower, and memory is used twice");
        }
        if tier.overwrite {
            tracing::warn!(target: "node", tier = %tier.name, "overwrite has done its work: take it out of the settings");
        }
        devices.push(device);
        ordered.push(tier);
    }
    let specs = ordered.iter().map(|tier| TierSpec {
        name: tier.name.clone(),
        class: match tier.class {
            Class::Nvme => TierClass::Nvme,
            Class::Ssd => TierClass::Ssd,
            Class::Hdd => TierClass::Hdd,
        },
        slots: tier.size_bytes / drover_base::units::EXTENT_BYTES,
        discards: tier.discards,
    });
    let tiers = Tiers::new(specs.collect());
    Store::scan_slots(meta, &tiers).await?;
    if let Some(folder) = &config.checkpoint {
        make_folder(folder)?;
    }
    Ok(OpenTiers { devices, tiers })
}

async fn checkpoints(world: World, store: Rc<Store>) {
    loop {
        world.sleep(CHECKPOINT_EVERY).await;
        if let Err(error) = store.checkpoint().await {
            tracing::warn!(target: "node", %error, "no checkpoint could be written");
        }
    }
}
