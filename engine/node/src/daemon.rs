//! A storage node as a process: opens what the settings name, serves until told to stop, stops in order.
//!
//! ```text
//!  lock and open tiers, metadata ─► recovery ─► listen ─► register, serve ─► SIGTERM ─► NBD drains ─► flush ─► checkpoint
//! ```
//! Orders that must hold
//! - Nothing is served, and the control plane is told nothing, before recovery is done and every address is bound.
//! - A tier keeps its device number for life: the numbers stand in the maps, so they are recorded by name. Its device
//!   bears a label, without which it is not opened again.
//! - Stopping loses nothing also when it is cut off: what was acknowledged as flushed already is durable.

// The machine's side: sockets, signals, time of the runtime.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod check;
pub(crate) mod label;
mod tiers;

pub use check::{Checked, check, restore};

use crate::config::{Class, NodeConfig};
use crate::nbd::{self, NbdAddress, NbdListener, ServerSettings};
use crate::{Node, NodeSettings, NodeStorage, Reservations, RestoredError, StartError};
use drover_base::world::{Connection, Listener};
use drover_base::{InstanceId, World};
use drover_disk::{Device, KernelError, Part};
use drover_runtime::Workers;
use drover_store::checkpoint::{CheckpointFile, CheckpointPlace};
use drover_store::meta::{Meta, MetaError, rocks::RocksMeta};
use drover_store::{Store, StoreConfig, StoreError, TierClass, TierSpec, Tiers, Unfenced};
use drover_wire::admin::NodeAddress;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use std::{fs, io};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use label::{HEADER_BYTES, OpenTier};
pub use tiers::TierError;

/// Threads for hashing and compression.
const WORKERS: usize = 2;

/// Between two checkpoints of the maps: bounds what a restore loses, and how long freed slots wait at most.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(60);

/// How long connections may take to end what they have in flight when the node stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// The checkpoint's file in its folder.
pub const CHECKPOINT_FILE: &str = "checkpoint";

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
    let world = drover_runtime::world(&Workers::start(WORKERS)?);
    let meta = open_meta(&config)?;
    refuse_lost_meta(&config, &*meta.handle()).await?;
    let bound = Bound::bind(&config, &world).await?;
    let storage = open_storage(&config, &world, meta.handle()).await?;
    let store = storage.store.clone();
    let settings = bound.settings(&config, InstanceId(world.random.next_u64()));
    tracing::info!(target: "node", node = %config.id, instance = %settings.instance, volumes = store.volumes().len(), "up");
    let node = Node::start(settings, world.clone(), storage).await?;
    let (closing, closed) = watch::channel(false);
    let clients = bound.serve(&node, &closed);
    if config.checkpoint.is_some() {
        world.spawn(checkpoints(world.clone(), store.clone())).detach();
    }
    tokio::select! {
        biased;
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!(target: "node", "stopping");
    // Nobody listens any more only if no connection was ever there.
    let _ = closing.send(true);
    if tokio::time::timeout(DRAIN_DEADLINE, clients).await.is_err() {
        tracing::warn!(target: "node", "clients took too long to end what they had in flight");
    }
    settle(&store, config.checkpoint.is_some()).await;
    meta.close();
    tracing::info!(target: "node", "stopped");
    Ok(())
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

/// A node whose metadata was lost would take the slots of its volumes for free ones.
async fn refuse_lost_meta(config: &NodeConfig, meta: &dyn Meta) -> Result<(), DaemonError> {
    let failed = |error| DaemonError::Meta { meta: config.meta.clone(), error };
    let has_checkpoint = config.checkpoint.as_ref().is_some_and(|folder| folder.join(CHECKPOINT_FILE).exists());
    if has_checkpoint && meta.scan(&[]).await.map_err(failed)?.is_empty() {
        return Err(DaemonError::Lost { meta: config.meta.clone() });
    }
    Ok(())
}

async fn open_storage(config: &NodeConfig, world: &World, meta: Rc<dyn Meta>) -> Result<NodeStorage, DaemonError> {
    let open = label::open_tiers(world, &config.id, &*meta, &config.tiers).await?;
    let mut devices: Vec<Rc<dyn Device>> = Vec::new();
    let mut ordered = Vec::new();
    for OpenTier { tier, device } in open {
        if !device.direct() {
            tracing::warn!(target: "node", tier = %tier.name, "its file system has no O_DIRECT: slower, and memory is used twice");
        }
        if tier.overwrite {
            tracing::warn!(target: "node", tier = %tier.name, "overwrite has done its work: take it out of the settings");
        }
        devices.push(Rc::new(Part::behind(Rc::new(device), HEADER_BYTES)));
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
    });
    let tiers = Tiers::new(specs.collect());
    Store::scan_slots(&*meta, &tiers).await?;
    let checkpoint = match &config.checkpoint {
        Some(folder) => {
            make_folder(folder)?;
            let place: Rc<dyn CheckpointPlace> =
                Rc::new(CheckpointFile::new(world.clone(), folder.join(CHECKPOINT_FILE)));
            Some(place)
        }
        None => None,
    };
    let store_config = StoreConfig { checkpoint, ..StoreConfig::default() };
    let store = Store::open(store_config, world.clone(), devices, tiers.clone(), meta.clone()).await?;
    Ok(NodeStorage { store, meta, tiers, reservations: Reservations::default(), watches_tiers: true })
}

/// Every address the node listens at.
struct Bound {
    admin: Box<dyn Listener>,
    peer: Box<dyn Listener>,
    migration: Option<Box<dyn Listener>>,
    nbd: Vec<NbdListener>,
}

impl Bound {
    async fn bind(config: &NodeConfig, world: &World) -> Result<Self, DaemonError> {
        let listen = async |address: &str| {
            world.net.listen(address).await.map_err(|error| DaemonError::Listen { address: address.into(), error })
        };
        let admin = listen(&config.listen.admin).await?;
        let peer = listen(&config.listen.peer).await?;
        let migration = match &config.listen.migration {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let mut nbd = Vec::new();
        if let Some(path) = &config.listen.nbd_unix {
            nbd.push(bind_nbd(&NbdAddress::Unix(path.clone()), &path.display().to_string()).await?);
        }
        if let Some(address) = &config.listen.nbd_tcp {
            let (host, port) = address.rsplit_once(':').expect("checked with the settings");
            let port = port.parse().expect("checked with the settings");
            nbd.push(bind_nbd(&NbdAddress::Tcp { host: host.into(), port }, address).await?);
        }
        Ok(Self { admin, peer, migration, nbd })
    }

    fn settings(&self, config: &NodeConfig, instance: InstanceId) -> NodeSettings {
        let told =
            |advertised: &Option<String>, bound: &dyn Listener| advertised.clone().unwrap_or_else(|| bound.address());
        let peer = told(&config.advertise.peer, &*self.peer);
        let migration = match &self.migration {
            Some(listener) => told(&config.advertise.migration, &**listener),
            None => peer.clone(),
        };
        let nbd_tcp = self.nbd.iter().find_map(|listener| match listener.address() {
            Ok(NbdAddress::Tcp { host, port }) => Some(format!("{host}:{port}")),
            _ => None,
        });
        NodeSettings {
            address: NodeAddress { node: config.id.clone(), peer, migration },
            admin: told(&config.advertise.admin, &*self.admin),
            instance,
            secret: config.secret,
            control: Some(config.control.clone()),
            nbd_unix: config.listen.nbd_unix.as_ref().map(|path| path.display().to_string()),
            nbd_tcp: nbd_tcp.map(|bound| config.advertise.nbd_tcp.clone().unwrap_or(bound)),
        }
    }

    /// Serves all of it in the background. The future completes when every client has been let go.
    fn serve(self, node: &Rc<Node>, closed: &watch::Receiver<bool>) -> impl Future<Output = ()> + use<> {
        let world = node.world().clone();
        world.spawn(accept(node.clone(), self.admin, serve_admin)).detach();
        for peers in [Some(self.peer), self.migration].into_iter().flatten() {
            world.spawn(accept(node.clone(), peers, serve_peer)).detach();
        }
        let clients = self.nbd.into_iter().map(|listener| {
            let serving = nbd::run(listener, node.exports(), closed.clone(), ServerSettings::default());
            tokio::task::spawn_local(serving)
        });
        let clients: Vec<_> = clients.collect();
        async move {
            for client in clients {
                // It ends by panic only, which ends the process.
                let _ = client.await;
            }
        }
    }
}

async fn bind_nbd(address: &NbdAddress, shown: &str) -> Result<NbdListener, DaemonError> {
    NbdListener::bind(address).await.map_err(|error| DaemonError::Listen { address: shown.into(), error })
}

async fn accept(node: Rc<Node>, mut listener: Box<dyn Listener>, serve: fn(&Rc<Node>, Connection)) {
    loop {
        match listener.accept().await {
            Ok(connection) => serve(&node, connection),
            Err(error) => {
                // Out of descriptors, most likely: those that end make room.
                tracing::warn!(target: "node", %error, "a connection was not accepted");
                node.world().sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn serve_admin(node: &Rc<Node>, connection: Connection) {
    let own = node.clone();
    node.world().spawn(async move { own.serve_admin(connection).await }).detach();
}

fn serve_peer(node: &Rc<Node>, connection: Connection) {
    let own = node.clone();
    node.world().spawn(async move { own.serve_peer(connection).await }).detach();
}

async fn checkpoints(world: World, store: Rc<Store>) {
    loop {
        world.sleep(CHECKPOINT_EVERY).await;
        if let Err(error) = store.checkpoint().await {
            tracing::warn!(target: "node", %error, "no checkpoint could be written");
        }
    }
}

/// Makes what clients wrote durable, whether or not they asked for it.
async fn settle(store: &Store, has_checkpoint: bool) {
    for volume in store.volumes() {
        if let Err(error) = volume.flush(&Unfenced).await {
            tracing::warn!(target: "node", volume = %volume.id(), %error, "not flushed at the end");
        }
    }
    if has_checkpoint && let Err(error) = store.checkpoint().await {
        tracing::warn!(target: "node", %error, "no checkpoint at the end");
    }
}
