//! A node, or one shard of it: the volumes it stores, the exports it serves, and its place in the cluster.
//!
//! ```text
//!   NBD ──► exports() ─► Route ──┬─► Seat ─► Volume          control plane ──► handle ─► Seat
//!                                └─► Gateway ─► other node   other nodes ──► serve_peer ─► Seat
//!                                                            ControlLink ──► control plane
//! ```
//! Invariants
//! - Every record of a volume is read before anything is served. A holder of an untimed lease then serves at once,
//!   whether or not the control plane is there; one of a timed lease waits until its lease is confirmed.
//! - A volume without a record is served to nobody: its making was cut off by a crash.
//! - Where a node has several shards, each is a `Node` of its own with the volumes of its store; whoever dispatches
//!   gives requests and connections to the shard of the volume they name, and `Status` to all.

use crate::context::Context;
use crate::control_link::{ControlLink, Leases};
use crate::nbd::{BlockExport, BlockService, ExportFacts, ExportName};
use crate::peer_server;
use crate::router::{Route, RoutedExport};
use crate::seat::{EXPORT_PREFIX, SEAT_PREFIX, Seat};
use crate::space::{Reservations, SpaceWatch};
use crate::writers::{Writers, writer_may_owe};
use drover_base::world::{Connection, Listener};
use drover_base::{Epoch, InstanceId, Instant, LocalFuture, MigrationId, VolumeId, World, units::EXTENT_BYTES};
use drover_store::meta::{Meta, MetaError};
use drover_store::{Store, TierClass, Tiers, Volume};
use drover_wire::admin::{
    Export, Grant, NodeAddress, NodeRegistration, NodeReply, NodeRequest, NodeStatus, Role, TierStatus,
};
use drover_wire::peer::PeerRequest;
use drover_wire::preamble::{Channel, Preamble};
use drover_wire::seat_record::{SeatRecord, decode_export};
use drover_wire::writer_record::WriterRecord;
use drover_wire::{WireError, nbd, rpc};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    io,
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

/// What a node stores in.
pub struct NodeStorage {
    pub store: Rc<Store>,
    pub meta: Rc<dyn Meta>,
    pub tiers: Tiers,
    /// Shared by the shards of a node.
    pub reservations: Reservations,
    /// Whether this shard reports how full the tiers are; one of them does.
    pub watches_tiers: bool,
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
    pub(crate) reservations: Reservations,
    settings: NodeSettings,
    seats: RefCell<BTreeMap<VolumeId, Rc<Seat>>>,
    /// Records whose volumes are not here: their making or their deletion was cut off.
    orphans: RefCell<BTreeMap<VolumeId, SeatRecord>>,
    routes: RefCell<BTreeMap<VolumeId, Rc<Route>>>,
    exports: RefCell<BTreeMap<String, Export>>,
    /// Volumes are made one after the other: a request that is asked again meanwhile finds what the first has made.
    pub(crate) making: tokio::sync::Mutex<()>,
    me: Weak<Node>,
}

impl Node {
    /// Takes its volumes up as recorded, and registers with the control plane in the background.
    pub async fn start(settings: NodeSettings, world: World, storage: NodeStorage) -> Result<Rc<Node>, StartError> {
        let registration = NodeRegistration {
            address: settings.address.clone(),
            admin: settings.admin.clone(),
            instance: settings.instance,
            nbd_unix: settings.nbd_unix.clone(),
            nbd_tcp: settings.nbd_tcp.clone(),
        };
        let control = ControlLink::new(world.clone(), settings.control.as_deref(), settings.secret, registration);
        let context = Rc::new(Context {
            address: settings.address.clone(),
            instance: settings.instance,
            secret: settings.secret,
            world: world.clone(),
            store: storage.store,
            meta: storage.meta,
            control: control.clone(),
        });
        let node = Rc::new_cyclic(|me| Self {
            context,
            tiers: storage.tiers,
            reservations: storage.reservations,
            settings,
            seats: RefCell::default(),
            orphans: RefCell::default(),
            routes: RefCell::default(),
            exports: RefCell::default(),
            making: tokio::sync::Mutex::new(()),
            me: me.clone(),
        });
        node.take_up().await?;
        let leases: Rc<dyn Leases> = node.clone();
        world.spawn(control.clone().run(Rc::downgrade(&leases))).detach();
        world.spawn(control.send_events()).detach();
        world.spawn(watch(Rc::downgrade(&node), storage.watches_tiers)).detach();
        Ok(node)
    }

    async fn take_up(self: &Rc<Self>) -> Result<(), StartError> {
        for (key, value) in self.context.meta.scan(SEAT_PREFIX).await? {
            let what = || format!("seat {}", String::from_utf8_lossy(&key).escape_debug());
            let damaged = |error| StartError::Record { what: what(), error };
            let id = key[SEAT_PREFIX.len()..].try_into().map_err(|_| damaged(WireError::Body("seat key")))?;
            let id = VolumeId(u64::from_be_bytes(id));
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
            self.reservations.restore(volume.id(), reserved, volume.usage().used_bytes);
        }
        let seat = self.seat_volume(volume, record, writers);
        if has_leg {
            self.resume_return_mirror(&seat);
        }
    }

    pub fn world(&self) -> &World {
        &self.context.world
    }

    pub fn settings(&self) -> &NodeSettings {
        &self.settings
    }

    pub(crate) fn instance(&self) -> InstanceId {
        self.context.instance
    }

    pub(crate) fn secret(&self) -> [u8; 32] {
        self.context.secret
    }

    /// Listens for the control plane and for other nodes, and serves both in the background.
    pub async fn serve(self: &Rc<Self>) -> io::Result<()> {
        let net = &self.world().net;
        let admin = net.listen(&self.settings.admin).await?;
        let peer = net.listen(&self.settings.address.peer).await?;
        let migration = match self.settings.address.migration == self.settings.address.peer {
            true => None,
            false => Some(net.listen(&self.settings.address.migration).await?),
        };
        self.world().spawn(accept(self.clone(), admin, Self::spawn_admin)).detach();
        for peers in [Some(peer), migration].into_iter().flatten() {
            self.world().spawn(accept(self.clone(), peers, Self::spawn_peer)).detach();
        }
        Ok(())
    }

    fn spawn_admin(self: &Rc<Self>, connection: Connection) {
        let node = self.clone();
        self.world().spawn(async move { node.serve_admin(connection).await }).detach();
    }

    /// Answers a connection of the control plane until it ends.
    pub async fn serve_admin(self: &Rc<Self>, connection: Connection) {
        let node = self.clone();
        let handle = move |request: NodeRequest| {
            let node = node.clone();
            async move { node.handle(request).await }
        };
        let preamble = Preamble::new(Channel::Admin, self.secret());
        rpc::serve::<NodeRequest, NodeReply, _, _>(self.world().clone(), preamble, connection, handle).await;
    }

    fn spawn_peer(self: &Rc<Self>, connection: Connection) {
        let node = self.clone();
        self.world().spawn(async move { node.serve_peer(connection).await }).detach();
    }

    /// Serves a connection of another node until it ends.
    pub async fn serve_peer(self: &Rc<Self>, mut connection: Connection) {
        match peer_server::greeted(self, &mut connection).await {
            Some(hello) => self.serve_peer_with(hello, connection).await,
            None => connection.sender.close(),
        }
    }

    /// The same for a connection whose `Hello` was read by a front that looks for the shard.
    pub async fn serve_peer_with(self: &Rc<Self>, hello: PeerRequest, connection: Connection) {
        peer_server::serve(self, hello, connection).await;
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
        self.exports.borrow().get(name).cloned()
    }

    pub(crate) fn add_export(&self, export: Export) {
        self.exports.borrow_mut().insert(export.name.clone(), export);
    }

    pub(crate) fn drop_export(&self, name: &str) {
        // Connections that are open, and what their clients were acknowledged, keep the route.
        self.exports.borrow_mut().remove(name);
    }

    /// What NBD serves.
    pub fn exports(self: &Rc<Self>) -> Rc<dyn BlockService> {
        Rc::new(Exports(self.clone()))
    }

    pub(crate) fn refresh_reservations(&self) {
        for seat in self.seats() {
            self.reservations.filled(seat.id(), seat.volume.usage().used_bytes);
        }
    }

    pub fn status(&self) -> NodeStatus {
        self.refresh_reservations();
        NodeStatus {
            node: self.context.address.node.clone(),
            instance: self.context.instance,
            tiers: self.tier_status(),
            volumes: self.seats().iter().map(|seat| seat.status()).collect(),
            exports: self.exports.borrow().values().cloned().collect(),
        }
    }

    /// What was promised is shown with the tier that new slots come from: the fastest with room.
    fn tier_status(&self) -> Vec<TierStatus> {
        let mut reserved = self.reservations.open_bytes();
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
    }
    whole.volumes.sort_by_key(|volume| volume.volume);
    whole.exports.sort_by(|a, b| a.name.cmp(&b.name));
    Some(whole)
}

fn class_name(class: TierClass) -> &'static str {
    match class {
        TierClass::Nvme => "nvme",
        TierClass::Ssd => "ssd",
        TierClass::Hdd => "hdd",
    }
}

async fn accept(node: Rc<Node>, mut listener: Box<dyn Listener>, serve: fn(&Rc<Node>, Connection)) {
    loop {
        match listener.accept().await {
            Ok(connection) => serve(&node, connection),
            Err(error) => {
                // Out of descriptors, most likely: those that end make room.
                tracing::warn!(target: "drover::node", %error, "a connection was not accepted");
                node.world().sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// What was last told of the tiers and volumes.
#[derive(Default)]
struct Told {
    space: SpaceWatch,
    poisoned: BTreeMap<VolumeId, bool>,
}

async fn watch(node: Weak<Node>, watches_tiers: bool) {
    let mut told = Told::default();
    while let Some(node) = node.upgrade() {
        if watches_tiers {
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
            node.context.control.event("tier-space", None, text);
        }
    }

    fn volumes(&mut self, node: &Node) {
        let seats = node.seats();
        self.poisoned.retain(|id, _| seats.iter().any(|seat| seat.id() == *id));
        for seat in seats {
            let is_poisoned = seat.volume.is_poisoned();
            if !self.poisoned.insert(seat.id(), is_poisoned).unwrap_or(false) && is_poisoned {
                let text = "a sync or a commit of metadata failed: every request fails until it is reopened";
                node.context.control.event("poisoned", Some(seat.id()), text);
            }
        }
    }
}

impl Leases for Node {
    fn held(&self) -> Vec<(VolumeId, Epoch)> {
        let held = |seat: &Rc<Seat>| seat.is_holder().then(|| (seat.id(), seat.record_view().epoch));
        self.seats().iter().filter_map(held).collect()
    }

    fn shortest_ttl(&self) -> Option<Duration> {
        let ttl = |seat: &Rc<Seat>| {
            let record = seat.record_view();
            record.ttl_ms.filter(|_| record.role == Role::Holder).map(Duration::from_millis)
        };
        self.seats().iter().filter_map(ttl).min()
    }

    fn renewed(&self, volume: VolumeId, epoch: Epoch, sent: Instant) {
        if let Some(seat) = self.seat(volume) {
            seat.renewed(epoch, sent);
        }
    }

    fn recorded(&self, grant: Grant) {
        let Some(node) = self.me.upgrade() else { return };
        let adopt = async move {
            let volume = grant.volume;
            if let Err(refusal) = node.adopt(grant).await {
                tracing::debug!(target: "drover::node", %volume, %refusal, "a recorded grant was not adopted");
            }
        };
        self.world().spawn(adopt).detach();
    }
}

/// The exports of a node as NBD sees them.
struct Exports(Rc<Node>);

impl BlockService for Exports {
    fn open(&self, name: &ExportName) -> LocalFuture<'_, Result<Rc<dyn BlockExport>, nbd::Refusal>> {
        let opened = self.0.export(&name.export).ok_or(nbd::Refusal::Unknown).map(|export| {
            let facts = ExportFacts {
                name: export.name,
                description: export.volume.to_string(),
                size_bytes: export.size_bytes,
                read_only: false,
            };
            RoutedExport::new(self.0.route(export.volume), facts) as Rc<dyn BlockExport>
        });
        Box::pin(std::future::ready(opened))
    }

    fn list(&self) -> Vec<(String, String)> {
        let exports = self.0.exports.borrow();
        exports.values().map(|export| (export.name.clone(), export.volume.to_string())).collect()
    }
}
