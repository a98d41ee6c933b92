//! A node's shards seen as one: whoever asks the node is given the shard that is concerned.
//!
//! ```text
//!   control plane ──► handle ────┬──► shard of the volume            every shard: its volumes, with maps, ring and thread
//!   other nodes ────► serve_peer ┤    (or all, where only a
//!   Membership ─────► confirm ───┘    migration is named)
//! ```
//! Invariants
//! - A volume has one home shard as long as the process lives; its requests and connections go nowhere else.
//! - What only a migration names is asked of all shards: whoever has no part in it answers `NotFound` and does nothing.
//!   A migration is of one volume, so at most one has.
//! - Exports belong to the node as a whole: the first shard changes them, every shard reads them.
//!
//! `C` is a connection of another node as it arrives: where shards are threads, one that can still move.

use crate::admin::request_name;
use crate::membership::{Membership, Office, Standing};
use crate::nbd::{Catalog, ExportFacts, ExportName, Offer};
use crate::node::{NodeSettings, merge_status};
use crate::peer_server::{HELLO_DEADLINE, hello_of, node_of, volume_of};
use drover_base::world::Connection;
use drover_base::{Epoch, Instant, LocalFuture, VolumeId, World};
use drover_store::{Tiers, home_shard};
use drover_wire::admin::{Export, Grant, NodeReply, NodeRequest, NodeStatus, Refusal};
use drover_wire::peer::PeerRequest;
use drover_wire::preamble::{Channel, Preamble};
use drover_wire::{nbd, rpc};
use futures::stream::{FuturesUnordered, StreamExt};
use std::{
    collections::{BTreeMap, btree_map::Entry},
    io,
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::sync::watch;

mod local;

pub use local::LocalNode;

/// What the shards of one node share. Clones share it.
#[derive(Clone)]
pub struct Common {
    pub tiers: Tiers,
    pub(crate) exports: Exports,
    pub(crate) standing: Arc<Standing>,
}

impl Common {
    pub fn new(tiers: Tiers) -> Self {
        Self { tiers, exports: Exports::default(), standing: Arc::default() }
    }

    /// Whether the node may serve.
    pub fn office(&self) -> watch::Receiver<Office> {
        self.standing.office.subscribe()
    }

    /// What clients are told of before they have chosen an export.
    pub fn exports(&self) -> Exports {
        self.exports.clone()
    }
}

/// The exports of a node by name. Clones share them.
#[derive(Clone, Default)]
pub struct Exports(Arc<Mutex<BTreeMap<String, Served>>>);

struct Served {
    export: Export,
    offer: Offer,
}

impl Exports {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Served>> {
        self.0.lock().expect("no panic under this lock")
    }

    pub fn get(&self, name: &str) -> Option<Export> {
        self.all().get(name).map(|served| served.export.clone())
    }

    /// The export, and what completes when it is withdrawn: then its clients are sent away.
    pub(crate) fn attach(&self, name: &str) -> Option<(Export, LocalFuture<'static, ()>)> {
        let all = self.all();
        let Served { export, offer } = all.get(name)?;
        Some((export.clone(), offer.withdrawn()))
    }

    /// The same export again leaves its connections alone.
    pub(crate) fn insert(&self, export: Export) {
        match self.all().entry(export.name.clone()) {
            Entry::Occupied(mut known) if known.get().export.volume == export.volume => known.get_mut().export = export,
            Entry::Occupied(mut known) => drop(known.insert(Served::new(export))),
            Entry::Vacant(free) => drop(free.insert(Served::new(export))),
        }
    }

    pub(crate) fn remove(&self, name: &str) {
        self.all().remove(name);
    }

    /// Ascending by name.
    pub(crate) fn to_vec(&self) -> Vec<Export> {
        self.all().values().map(|served| served.export.clone()).collect()
    }
}

impl Served {
    fn new(export: Export) -> Self {
        Self { export, offer: Offer::default() }
    }
}

pub(crate) fn facts_of(export: &Export) -> ExportFacts {
    ExportFacts {
        name: export.name.clone(),
        description: export.volume.to_string(),
        size_bytes: export.size_bytes,
        read_only: false,
    }
}

impl Catalog for Exports {
    fn facts(&self, name: &ExportName) -> Result<ExportFacts, nbd::Refusal> {
        self.get(&name.export).map(|export| facts_of(&export)).ok_or(nbd::Refusal::Unknown)
    }

    fn list(&self) -> Vec<(String, String)> {
        self.all().values().map(|Served { export, .. }| (export.name.clone(), export.volume.to_string())).collect()
    }
}

/// The leases of a shard, or of all.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Volumes held, each with its epoch.
    pub leases: Vec<(VolumeId, Epoch)>,
    /// Of the timed ones.
    pub shortest_ttl: Option<Duration>,
}

impl Held {
    pub(crate) fn merge(&mut self, other: Self) {
        self.leases.extend(other.leases);
        self.shortest_ttl = self.shortest_ttl.into_iter().chain(other.shortest_ttl).min();
    }
}

/// What the control plane answered to what was sent at `sent`.
#[derive(Clone, Debug)]
pub struct Confirmed {
    pub sent: Instant,
    /// Grants as they are recorded now.
    pub grants: Vec<Grant>,
    /// Leases confirmed, each for the epoch that was asked for.
    pub renewed: Vec<(VolumeId, Epoch)>,
}

/// One shard, wherever it runs.
pub trait Shard<C> {
    /// Carries out a request of the control plane that concerns this shard.
    fn ask(self: Rc<Self>, request: NodeRequest) -> LocalFuture<'static, NodeReply>;
    fn held(self: Rc<Self>) -> LocalFuture<'static, Held>;
    /// Completes when the shard has taken note; what follows from the grants is done in the background.
    fn confirm(self: Rc<Self>, confirmed: Confirmed) -> LocalFuture<'static, ()>;
    /// Completes when the shard has taken the connection over.
    fn serve_peer(self: Rc<Self>, hello: PeerRequest, connection: C) -> LocalFuture<'static, ()>;
}

/// A connection of which the first message tells where it is served.
pub trait Arriving {
    /// As this thread has it.
    fn connection(&mut self) -> &mut Connection;
    /// Stays on this thread.
    fn into_connection(self) -> Connection;
}

impl Arriving for Connection {
    fn connection(&mut self) -> &mut Connection {
        self
    }

    fn into_connection(self) -> Connection {
        self
    }
}

/// Where connections arrive.
pub(crate) trait Arrivals<C> {
    async fn next(&mut self) -> io::Result<C>;
}

/// After an accept that failed: out of descriptors, most likely; those that end make room.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

async fn accept<C>(world: &World, mut arrivals: impl Arrivals<C>, serve: impl Fn(C)) {
    loop {
        match arrivals.next().await {
            Ok(connection) => serve(connection),
            Err(error) => {
                tracing::warn!(target: "drover::shards", %error, "a connection was not accepted");
                world.sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whom a request concerns.
enum Concerns {
    All,
    /// The shard that keeps what belongs to the node as a whole.
    First,
    Volume(VolumeId),
    /// Whoever has part in the migration.
    Migration,
}

fn concerns(request: &NodeRequest) -> Concerns {
    use NodeRequest as Ask;
    match request {
        Ask::Status => Concerns::All,
        Ask::SetExport { .. } | Ask::RemoveExport { .. } => Concerns::First,
        Ask::CreateVolume { volume, .. }
        | Ask::CloneVolume { volume, .. }
        | Ask::ResizeVolume { volume, .. }
        | Ask::HoldVolume { volume, .. }
        | Ask::SnapshotHeld { volume, .. }
        | Ask::ReleaseVolume { volume, .. }
        | Ask::UndoSnapshot { volume, .. }
        | Ask::DeleteVolume { volume, .. }
        | Ask::MeasureVolume { volume }
        | Ask::CreateSnapshot { volume, .. }
        | Ask::RollbackSnapshot { volume, .. }
        | Ask::DeleteSnapshot { volume, .. }
        | Ask::Reopen { volume }
        | Ask::PrepareReceive { volume, .. }
        | Ask::BeginSend { volume, .. }
        | Ask::EndMigration { volume, .. } => Concerns::Volume(*volume),
        Ask::SetGrant { grant } => Concerns::Volume(grant.volume),
        Ask::BeginMirror { .. }
        | Ask::Tune { .. }
        | Ask::Quiesce { .. }
        | Ask::ConfirmPosition { .. }
        | Ask::ResumeHolder { .. }
        | Ask::BeginProof { .. }
        | Ask::Progress { .. } => Concerns::Migration,
    }
}

/// The shards of a node, in their order.
pub struct Shards<C> {
    shards: Vec<Rc<dyn Shard<C>>>,
    /// BLAKE3 of the cluster's secret.
    secret: [u8; 32],
}

impl<C: 'static> Shards<C> {
    pub fn new(shards: Vec<Rc<dyn Shard<C>>>, secret: [u8; 32]) -> Rc<Self> {
        assert!(!shards.is_empty(), "a node has a shard");
        Rc::new(Self { shards, secret })
    }

    pub fn home(&self, volume: VolumeId) -> &Rc<dyn Shard<C>> {
        &self.shards[self.home_index(volume)]
    }

    fn home_index(&self, volume: VolumeId) -> usize {
        home_shard(volume, self.shards.len() as u32) as usize
    }

    pub(crate) fn each<F>(&self, ask: impl Fn(Rc<dyn Shard<C>>) -> F) -> Vec<F> {
        self.shards.iter().map(|shard| ask(shard.clone())).collect()
    }

    /// Registers the node with its control plane and renews its leases, in the background. Not before every shard has
    /// taken its volumes up.
    pub fn join(self: &Rc<Self>, world: &World, settings: &NodeSettings, common: &Common) {
        match Membership::new(world.clone(), settings, self.clone(), common.standing.clone()) {
            Some(membership) => world.spawn(membership.run()).detach(),
            None => drop(common.standing.office.send_replace(Office::Serves)),
        }
    }

    /// Carries out one request of the control plane.
    pub async fn handle(&self, request: NodeRequest) -> NodeReply {
        let name = request_name(&request);
        let reply = self.give(request).await;
        if let NodeReply::Refused(refusal) = &reply {
            tracing::info!(target: "drover::shards", request = name, %refusal, "refused");
        }
        reply
    }

    async fn give(&self, request: NodeRequest) -> NodeReply {
        match concerns(&request) {
            Concerns::All => match self.status().await {
                Some(status) => NodeReply::Status(Box::new(status)),
                None => stopping(),
            },
            Concerns::First => self.shards[0].clone().ask(request).await,
            Concerns::Volume(volume) => {
                if matches!(request, NodeRequest::PrepareReceive { .. }) {
                    // What earlier promises have become is asked of everybody, so that no room is counted twice.
                    self.status().await;
                }
                self.home(volume).clone().ask(request).await
            }
            Concerns::Migration => {
                // At once: a flip does not wait for shards that are busy with other volumes.
                let mut asked: FuturesUnordered<_> =
                    self.each(|shard| shard.ask(request.clone())).into_iter().collect();
                let mut last = stopping();
                while let Some(reply) = asked.next().await {
                    last = reply;
                    if !matches!(last, NodeReply::Refused(Refusal::NotFound { .. })) {
                        break;
                    }
                }
                last
            }
        }
    }

    /// `None`: the node is stopping.
    pub async fn status(&self) -> Option<NodeStatus> {
        let asked = self.each(|shard| shard.ask(NodeRequest::Status));
        let mut parts = Vec::new();
        for reply in futures::future::join_all(asked).await {
            let NodeReply::Status(status) = reply else { return None };
            parts.push(*status);
        }
        merge_status(parts)
    }

    /// Tells each shard what concerns its volumes.
    pub(crate) async fn confirm(&self, confirmed: Confirmed) {
        let nothing = || Confirmed { sent: confirmed.sent, grants: Vec::new(), renewed: Vec::new() };
        let mut parts: Vec<Confirmed> = self.shards.iter().map(|_| nothing()).collect();
        for grant in confirmed.grants {
            parts[self.home_index(grant.volume)].grants.push(grant);
        }
        for (volume, epoch) in confirmed.renewed {
            parts[self.home_index(volume)].renewed.push((volume, epoch));
        }
        // At once, so that one that is slow to take note keeps no other from it.
        let told = self.shards.iter().zip(parts).map(|(shard, part)| shard.clone().confirm(part));
        futures::future::join_all(told).await;
    }

    /// Answers the requests of a connection of the control plane until it breaks.
    async fn serve_admin(self: Rc<Self>, world: World, connection: Connection) {
        let preamble = Preamble::new(Channel::Admin, self.secret);
        let handle = move |request: NodeRequest| {
            let shards = self.clone();
            async move { shards.handle(request).await }
        };
        rpc::serve::<NodeRequest, NodeReply, _, _>(world, preamble, connection, |_| None, handle).await;
    }
}

impl<C: Arriving + 'static> Shards<C> {
    /// Serves the control plane's connections as they arrive.
    pub(crate) async fn accept_admins(self: Rc<Self>, world: World, arrivals: impl Arrivals<C>) {
        let serve = |connection: C| {
            world.spawn(self.clone().serve_admin(world.clone(), connection.into_connection())).detach();
        };
        accept(&world, arrivals, serve).await;
    }

    /// Serves the connections of other nodes as they arrive.
    pub(crate) async fn accept_peers(self: Rc<Self>, world: World, arrivals: impl Arrivals<C>) {
        let serve = |connection: C| {
            let (shards, own) = (self.clone(), world.clone());
            world.spawn(async move { shards.serve_peer(&own, connection).await }).detach();
        };
        accept(&world, arrivals, serve).await;
    }

    /// Gives a connection of another node to the shard of the volume that its first message names; without one, or
    /// without a preamble, it is dropped.
    async fn serve_peer(&self, world: &World, mut arriving: C) {
        let preamble = Preamble::new(Channel::Peer, self.secret);
        let connection = arriving.connection();
        if let Err(error) = preamble.answer(world, connection).await {
            tracing::warn!(target: "drover::peer", peer = connection.peer, %error, "a connection is not served");
            return;
        }
        let first = world.timeout(HELLO_DEADLINE, connection.receiver.receive()).await;
        let hello = first.ok().and_then(Result::ok).flatten().and_then(hello_of);
        let Some((hello, volume)) = hello.and_then(|hello| volume_of(&hello).map(|volume| (hello, volume))) else {
            return;
        };
        if let Some(node) = node_of(&hello).filter(|node| !arriving.connection().receiver.may_be(node)) {
            let peer = &arriving.connection().peer;
            tracing::warn!(target: "drover::peer", peer, %node, "its certificate is not that of the node it says it is");
            return;
        }
        self.home(volume).clone().serve_peer(hello, arriving).await;
    }
}

/// What is answered when a shard has ended already.
pub(crate) fn stopping() -> NodeReply {
    NodeReply::Refused(Refusal::Failed { reason: "the node is stopping".into() })
}
