//! One shard of a node: the volumes whose home it is, and the exports of them that it serves.
//!
//! ```text
//!   NBD ──► exports() ─► Route ──┬─► Seat ─► Volume          Shards::handle ─────► handle ─► Seat
//!                                └─► Gateway ─► other node   Shards::serve_peer ─► serve_peer ─► Seat
//!                                                            ControlLink ──► control plane
//! ```
//! Invariants
//! - Every record of a volume is read before anything is served. A holder of an untimed lease then serves at once,
//!   whether or not the control plane is there; one of a timed lease waits until its lease is confirmed.
//! - A volume without a record is served to nobody: its making was cut off by a crash.
//! - It knows nothing of volumes whose home is another shard: `shards` gives it only what concerns its own.

use crate::accounts::Accounts;
use crate::context::Context;
use crate::control_link::ControlLink;
use crate::nbd::{BlockService, ExportName, Opened};
use crate::peer_server;
use crate::router::{Route, RoutedExport};
use crate::seat::{EXPORT_PREFIX, SEAT_PREFIX, Seat};
use crate::shards::{Common, Confirmed, Exports, Held, Shard, facts_of};
use crate::space::SpaceWatch;
use crate::writers::{Writers, writer_may_owe};
use drover_base::text::show_bytes;
use drover_base::world::Connection;
use drover_base::{InstanceId, LocalFuture, MigrationId, VolumeId, World, units::EXTENT_BYTES};
use drover_store::meta::{Meta, MetaError};
use drover_store::{Merged, Store, TierClass, Tiers, Volume};
use drover_wire::admin::{Export, Grant, NodeAddress, NodeReply, NodeRequest, NodeStatus, Role, TierStatus};
use drover_wire::peer::PeerRequest;
use drover_wire::seat_record::{SeatRecord, decode_export};
use drover_wire::writer_record::WriterRecord;
use drover_wire::{WireError, nbd};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    rc::{Rc, Weak},
    time::Duration,
};

/// How often tiers and volumes are looked at for what people should know.
const WATCH_PERIOD: Duration = Duration::from_secs(5);

/// Who a node is and whom it talks to.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// Its name, and where other nodes reach it.
    pub address: NodeAddress,
    /// Where the control plane reaches it.
    pub admin: String,
    /// This start of the process; the same for all its shards.
    pub instance: InstanceId,
    /// BLAKE3 of the cluster's secret; zeros where none is set.
    pub secret: [u8; 32],
    /// The control plane's address for nodes; `None`: there is none, and no timed lease is ever valid.
    pub control: Option<String>,
    pub nbd_unix: Option<String>,
    pub nbd_tcp: Option<String>,
}

/// What a shard stores in.
pub struct NodeStorage {
    pub store: Rc<Store>,
    pub meta: Rc<dyn Meta>,
    pub common: Common,
}

/// Why a node did not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Meta(#[from] MetaError),
    #[error("the record of {what} is damaged: {error}")]
    Record { what: String, error: WireError },
}

pub struct Node {
    pub(crate) context: Rc<Context>,
    pub(crate) tiers: Tiers,
    seats: RefCell<BTreeMap<VolumeId, Rc<Seat>>>,
    /// Records whose volumes are not here: their making or their deletion was cut off.
    orphans: RefCell<BTreeMap<VolumeId, SeatRecord>>,
    routes: RefCell<BTreeMap<VolumeId, Rc<Route>>>,
    exports: Exports,
    accounts: Accounts,
    /// Volumes are made one after the other: a request that is asked again meanwhile finds what the first has made.
    pub(crate) making: tokio::sync::Mutex<()>,
}

impl Node {
    /// Takes its volumes up as recorded.
    pub async fn start(settings: NodeSettings, world: World, storage: NodeStorage) -> Result<Rc<Node>, StartError> {
        let common = storage.common;
        let control = ControlLink::new(world.clone(), &settings, common.standing.clone());
        let context = Rc::new(Context {
            address: settings.address.clone(),
            instance: settings.instance,
            secret: settings.secret,
            world: world.clone(),
            store: storage.store,
            meta: storage.meta,
            control: control.clone(),
        });
        let node = Rc::new(Self {
            context,
            tiers: common.tiers,
            seats: RefCell::default(),
            orphans: RefCell::default(),
            routes: RefCell::default(),
            exports: common.exports,
            accounts: Accounts::default(),
            making: tokio::sync::Mutex::new(()),
        });
        node.take_up().await?;
        world.spawn(control.send_events()).detach();
        world.spawn(watch(Rc::downgrade(&node))).detach();
        Ok(node)
    }

    async fn take_up(self: &Rc<Self>) -> Result<(), StartError> {
        for (key, value) in self.context.meta.scan(SEAT_PREFIX).await? {
            let what = || format!("seat {}", String::from_utf8_lossy(&key).escape_debug());
            let damaged = |error| StartError::Record { what: what(), error };
            let id = key[SEAT_PREFIX.len()..].try_into().map_err(|_| damaged(WireError::Body("seat key")))?;
            let id = VolumeId(u64::from_be_bytes(id));
            if !self.context.store.is_home_of(id) {
                continue;
            }
            let record = SeatRecord::decode(&value).map_err(damaged)?;
            match self.context.store.volume(id) {
                Some(volume) => {
                    let writers = WriterRecord::decode(&volume.note()).map_err(damaged)?;
                    self.take_seat(volume, record, writers);
                }
                None => {
                    self.orphans.borrow_mut().insert(id, record);
                }
            }
        }
        if !self.context.store.is_first() {
            return Ok(());
        }
        for (key, value) in self.context.meta.scan(EXPORT_PREFIX).await? {
            let what = String::from_utf8_lossy(&key).into_owned();
            let export = decode_export(&value).map_err(|error| StartError::Record { what, error })?;
            self.add_export(export);
        }
        Ok(())
    }

    fn take_seat(self: &Rc<Self>, volume: Rc<Volume>, record: SeatRecord, writers: WriterRecord) {
        let (reserved, has_leg) = (record.reserve_bytes, record.leg.is_some());
        if reserved > 0 {
            let filled = volume.usage().used_bytes / EXTENT_BYTES;
            self.tiers.restore_promise(volume.id(), reserved.div_ceil(EXTENT_BYTES), filled);
        }
        let seat = self.seat_volume(volume, record, writers);
        if has_leg {
            self.resume_return_mirror(&seat);
        }
    }

    pub fn world(&self) -> &World {
        &self.context.world
    }

    pub(crate) fn instance(&self) -> InstanceId {
        self.context.instance
    }

    /// Serves a connection of another node, whose `Hello` was read, until it ends.
    pub async fn serve_peer(self: &Rc<Self>, hello: PeerRequest, connection: Connection) {
        peer_server::serve(self, hello, connection).await;
    }

    /// Takes note of what the control plane confirmed; what follows from grants is done in the background.
    pub fn note(self: &Rc<Self>, confirmed: Confirmed) {
        for grant in confirmed.grants {
            self.context.control.learn(&grant);
            self.recorded(grant);
        }
        for (volume, epoch) in confirmed.renewed {
            if let Some(seat) = self.seat(volume) {
                seat.renewed(epoch, confirmed.sent);
            }
        }
    }

    fn recorded(self: &Rc<Self>, grant: Grant) {
        let node = self.clone();
        let adopt = async move {
            let volume = grant.volume;
            if let Err(refusal) = node.adopt(grant).await {
                tracing::debug!(target: "drover::node", %volume, %refusal, "a recorded grant was not adopted");
            }
        };
        self.world().spawn(adopt).detach();
    }

    /// What this shard holds.
    pub fn held_leases(&self) -> Held {
        let held = |seat: &Rc<Seat>| seat.is_holder().then(|| (seat.id(), seat.record_view().epoch));
        let ttl = |seat: &Rc<Seat>| {
            let record = seat.record_view();
            record.ttl_ms.filter(|_| record.role == Role::Holder).map(Duration::from_millis)
        };
        let seats = self.seats();
        Held { leases: seats.iter().filter_map(held).collect(), shortest_ttl: seats.iter().filter_map(ttl).min() }
    }

    pub(crate) fn seat(&self, volume: VolumeId) -> Option<Rc<Seat>> {
        self.seats.borrow().get(&volume).cloned()
    }

    /// Ascending by volume.
    pub(crate) fn seats(&self) -> Vec<Rc<Seat>> {
        self.seats.borrow().values().cloned().collect()
    }

    pub(crate) fn seat_volume(&self, volume: Rc<Volume>, record: SeatRecord, writers: WriterRecord) -> Rc<Seat> {
        let route = self.known_route(volume.id());
        let owes = writer_may_owe(&self.context, route.as_deref(), &writers);
        let seat = Seat::new(self.context.clone(), volume, record, Writers::new(writers.clone(), owes));
        if seat.is_holder() {
            seat.load_writers(writers, owes);
        }
        self.reseat(seat.clone());
        seat
    }

    pub(crate) fn reseat(&self, seat: Rc<Seat>) {
        let id = seat.id();
        self.seats.borrow_mut().insert(id, seat.clone());
        if let Some(route) = self.known_route(id) {
            route.set_seat(Some(seat));
        }
    }

    pub(crate) fn unseat(&self, volume: VolumeId) {
        self.seats.borrow_mut().remove(&volume);
        if let Some(route) = self.known_route(volume) {
            route.set_seat(None);
        }
    }

    pub(crate) fn is_orphan_of(&self, volume: VolumeId, migration: MigrationId) -> bool {
        let orphans = self.orphans.borrow();
        let leg = orphans.get(&volume).and_then(|record| record.leg.as_ref());
        leg.is_some_and(|leg| leg.migration == migration)
    }

    pub(crate) fn forget_orphan(&self, volume: VolumeId) {
        self.orphans.borrow_mut().remove(&volume);
    }

    pub(crate) fn known_route(&self, volume: VolumeId) -> Option<Rc<Route>> {
        self.routes.borrow().get(&volume).cloned()
    }

    fn route(&self, volume: VolumeId) -> Rc<Route> {
        let seat = self.seat(volume);
        let mut routes = self.routes.borrow_mut();
        routes.entry(volume).or_insert_with(|| Route::new(self.context.clone(), volume, seat)).clone()
    }

    pub(crate) fn export(&self, name: &str) -> Option<Export> {
        self.exports.get(name)
    }

    pub(crate) fn add_export(&self, export: Export) {
        self.exports.insert(export);
    }

    pub(crate) fn drop_export(&self, name: &str) {
        // Its clients are sent away. What they were acknowledged keeps the route.
        self.exports.remove(name);
    }

    /// What NBD serves of the volumes whose home this is.
    pub fn exports(self: &Rc<Self>) -> Rc<dyn BlockService> {
        Rc::new(HomeExports(self.clone()))
    }

    /// A gateway has none, and holds no volumes.
    pub(crate) fn has_tiers(&self) -> bool {
        !self.tiers.usage().is_empty()
    }

    pub(crate) fn refresh_promises(&self) {
        for seat in self.seats() {
            self.tiers.promise_filled(seat.id(), seat.volume.usage().used_bytes / EXTENT_BYTES);
        }
    }

    pub fn status(&self) -> NodeStatus {
        self.refresh_promises();
        NodeStatus {
            node: self.context.address.node.clone(),
            instance: self.context.instance,
            tiers: self.tier_status(),
            volumes: self.seats().iter().map(|seat| seat.status()).collect(),
            exports: if self.context.store.is_first() { self.exports.to_vec() } else { Vec::new() },
            usage: self.accounts.usage(),
        }
    }

    /// What was promised is shown with the tier that new slots come from: the fastest with room.
    fn tier_status(&self) -> Vec<TierStatus> {
        let mut reserved = self.tiers.promised() * EXTENT_BYTES;
        let status = |tier: drover_store::TierUsage| {
            let (total, taken) = (tier.slots_total * EXTENT_BYTES, (tier.slots_used + tier.slots_held) * EXTENT_BYTES);
            let here = reserved.min(total - taken);
            reserved -= here;
            TierStatus {
                name: tier.name,
                class: class_name(tier.class).into(),
                total_bytes: total,
                used_bytes: tier.slots_used * EXTENT_BYTES,
                held_bytes: tier.slots_held * EXTENT_BYTES,
                reserved_bytes: here,
                poisoned: tier.poisoned,
            }
        };
        self.tiers.usage().into_iter().map(status).collect()
    }
}

/// The status of a node from those of its shards: each has its own volumes, all have the same tiers.
pub fn merge_status(mut parts: Vec<NodeStatus>) -> Option<NodeStatus> {
    let mut whole = parts.pop()?;
    for part in parts {
        whole.volumes.extend(part.volumes);
        whole.exports.extend(part.exports);
        whole.usage.extend(part.usage);
    }
    whole.volumes.sort_by_key(|volume| volume.volume);
    whole.exports.sort_by(|a, b| a.name.cmp(&b.name));
    whole.usage.sort_by(|a, b| (&a.export, &a.workload).cmp(&(&b.export, &b.workload)));
    Some(whole)
}

fn class_name(class: TierClass) -> &'static str {
    match class {
        TierClass::Nvme => "nvme",
        TierClass::Ssd => "ssd",
        TierClass::Hdd => "hdd",
    }
}

/// What was last told of the tiers and volumes.
#[derive(Default)]
struct Told {
    space: SpaceWatch,
    poisoned: BTreeMap<VolumeId, bool>,
    merged: BTreeMap<VolumeId, Merged>,
}

async fn watch(node: Weak<Node>) {
    let mut told = Told::default();
    while let Some(node) = node.upgrade() {
        if node.context.store.is_first() {
            told.tiers(&node);
        }
        told.volumes(&node);
        let pause = node.world().sleep(WATCH_PERIOD);
        drop(node);
        pause.await;
    }
}

impl Told {
    fn tiers(&mut self, node: &Node) {
        for text in self.space.look(&node.tiers.usage()) {
            node.context.control.event("tier_space", None, text);
        }
    }

    fn volumes(&mut self, node: &Node) {
        let seats = node.seats();
        self.poisoned.retain(|id, _| seats.iter().any(|seat| seat.id() == *id));
        self.merged.retain(|id, _| seats.iter().any(|seat| seat.id() == *id));
        for seat in seats {
            let is_poisoned = seat.volume.is_poisoned();
            if !self.poisoned.insert(seat.id(), is_poisoned).unwrap_or(false) && is_poisoned {
                let text = "a sync or a commit of metadata failed: every request fails until it is reopened";
                node.context.control.event("poisoned", Some(seat.id()), text);
            }
            self.merges(node, &seat);
        }
    }

    /// Tells of merges when nothing is left to merge.
    fn merges(&mut self, node: &Node, seat: &Seat) {
        let merged = seat.volume.merged();
        let told = self.merged.entry(seat.id()).or_default();
        if *told == merged || seat.volume.merge_left().is_some() {
            return;
        }
        let layers = merged.layers.saturating_sub(told.layers);
        let freed = show_bytes(merged.freed_bytes.saturating_sub(told.freed_bytes));
        *told = merged;
        let text = format!("what deleted snapshots held is merged: {layers} of them are gone, {freed} came free");
        node.context.control.event("snapshots_merged", Some(seat.id()), text);
    }
}

impl Shard<Connection> for Node {
    fn ask(self: Rc<Self>, request: NodeRequest) -> LocalFuture<'static, NodeReply> {
        Box::pin(async move { self.handle(request).await })
    }

    fn held(self: Rc<Self>) -> LocalFuture<'static, Held> {
        Box::pin(std::future::ready(self.held_leases()))
    }

    fn confirm(self: Rc<Self>, confirmed: Confirmed) -> LocalFuture<'static, ()> {
        self.note(confirmed);
        Box::pin(std::future::ready(()))
    }

    fn serve_peer(self: Rc<Self>, hello: PeerRequest, connection: Connection) -> LocalFuture<'static, ()> {
        let own = self.clone();
        self.world().spawn(async move { Node::serve_peer(&own, hello, connection).await }).detach();
        Box::pin(std::future::ready(()))
    }
}

/// The exports of a shard's volumes as NBD sees them.
struct HomeExports(Rc<Node>);

impl BlockService for HomeExports {
    fn open(&self, name: &ExportName) -> LocalFuture<'_, Result<Opened, nbd::Refusal>> {
        // On the way here the name may have become another volume's.
        let offered = self.0.exports.attach(&name.export);
        let here = offered.filter(|(export, _)| self.0.context.store.is_home_of(export.volume));
        let opened = here.ok_or(nbd::Refusal::Unknown).map(|(export, withdrawn)| {
            let routed = RoutedExport::new(self.0.route(export.volume), facts_of(&export));
            Opened { export: self.0.accounts.charged(&export, name.workload.as_deref(), routed), withdrawn }
        });
        Box::pin(std::future::ready(opened))
    }
}
