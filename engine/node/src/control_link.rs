//! The way to the control plane: registration, renewals, look-ups, events.
//!
//! ```text
//!   register ──► renew, every third of the shortest time to live ──► …
//!       ▲───────────── any error: the connection or the registration is gone
//! ```
//! Invariants
//! - A renewal counts from when it was sent; its answer is used only for the epoch that was asked for.
//! - A control plane that is down stops nothing here: untimed leases need none of this, look-ups answer what was last
//!   known.
//! - Events are kept up to a bound and then dropped, oldest first: they inform, nothing depends on them.
//! - Each shard of a node has a link of its own and speaks of its own volumes, under the node's one instance.

use crate::backoff::Backoff;
use drover_base::{Epoch, InstanceId, Instant, MigrationId, NodeId, VolumeId, World};
use drover_wire::admin::{ControlReply, ControlRequest, Grant, NodeRegistration, Refusal};
use drover_wire::preamble::{Channel, Preamble};
use drover_wire::rpc::{RpcClient, RpcError};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    rc::{Rc, Weak},
    time::Duration,
};
use tokio::sync::Notify;

/// How often at least a node is heard of.
const PERIOD_MAX: Duration = Duration::from_secs(2);

/// How long one request to the control plane may take.
const CALL_DEADLINE: Duration = Duration::from_secs(2);

/// A look-up is done while a client waits, and can be repeated.
const LOOKUP_DEADLINE: Duration = Duration::from_secs(1);

/// Events kept while the control plane is away.
const EVENTS_MAX: usize = 256;

/// What a node's leases are to its link.
pub(crate) trait Leases {
    /// Volumes held, each with its epoch.
    fn held(&self) -> Vec<(VolumeId, Epoch)>;
    /// Shortest time to live of the timed ones.
    fn shortest_ttl(&self) -> Option<Duration>;
    /// The lease of that epoch was confirmed, in answer to what was sent at `sent`.
    fn renewed(&self, volume: VolumeId, epoch: Epoch, sent: Instant);
    /// A grant as it is recorded now. Returns at once; what follows from it is done in the background.
    fn recorded(&self, grant: Grant);
}

struct Event {
    kind: String,
    volume: Option<VolumeId>,
    text: String,
}

pub(crate) struct ControlLink {
    world: World,
    client: Option<RpcClient<ControlRequest, ControlReply>>,
    registration: NodeRegistration,
    known: RefCell<BTreeMap<VolumeId, Grant>>,
    renew_now: Notify,
    has_registered: Cell<bool>,
    /// Why the last registration got no answer.
    failed: RefCell<Option<RpcError>>,
    events: RefCell<VecDeque<Event>>,
    has_events: Notify,
    way_back_changes: Cell<u64>,
}

impl ControlLink {
    /// `control`: the control plane's address; `None` for a node on its own, which then knows only what it is told.
    /// `secret`: BLAKE3 of the cluster's.
    pub fn new(world: World, control: Option<&str>, secret: [u8; 32], registration: NodeRegistration) -> Rc<Self> {
        let preamble = Preamble::new(Channel::Control, secret);
        Rc::new(Self {
            client: control.map(|address| RpcClient::new(world.clone(), address, preamble)),
            world,
            registration,
            known: RefCell::default(),
            renew_now: Notify::new(),
            has_registered: Cell::new(false),
            failed: RefCell::default(),
            events: RefCell::default(),
            has_events: Notify::new(),
            way_back_changes: Cell::new(0),
        })
    }

    fn node(&self) -> &NodeId {
        &self.registration.address.node
    }

    fn instance(&self) -> InstanceId {
        self.registration.instance
    }

    async fn call(&self, request: &ControlRequest, deadline: Duration) -> Result<ControlReply, RpcError> {
        match &self.client {
            Some(client) => client.call(request, deadline).await,
            None => Err(RpcError::Disconnected { address: String::new() }),
        }
    }

    /// Registers and renews until `leases` is gone.
    pub async fn run(self: Rc<Self>, leases: Weak<dyn Leases>) {
        if self.client.is_none() {
            return;
        }
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        let mut registered = false;
        while let Some(leases) = leases.upgrade() {
            let sent = self.world.now();
            let period = leases.shortest_ttl().map_or(PERIOD_MAX, |ttl| PERIOD_MAX.min(ttl / 3));
            // Not longer than a period: there must be time to ask again before a lease runs out.
            registered = match registered {
                true => self.renew(&*leases, sent, period).await,
                false => self.register(&*leases, sent, period).await,
            };
            drop(leases);
            if !registered {
                backoff.wait(&self.world).await;
                continue;
            }
            backoff.reset();
            let since = self.world.now().since(sent);
            // Asked for or not, the next renewal follows.
            let _ = self.world.timeout(period.saturating_sub(since), self.renew_now.notified()).await;
        }
    }

    /// Whether the control plane has recorded this start, with all that it voids.
    pub fn has_registered(&self) -> bool {
        self.has_registered.get()
    }

    /// A lease waits for its confirmation: renews without waiting for the period to end.
    pub fn renew_now(&self) {
        self.renew_now.notify_one();
    }

    async fn register(&self, leases: &dyn Leases, sent: Instant, deadline: Duration) -> bool {
        let request = ControlRequest::Register { node: self.registration.clone() };
        match self.call(&request, deadline).await {
            Ok(ControlReply::Registered { grants }) => {
                self.has_registered.set(true);
                for grant in grants {
                    self.learn(&grant);
                    let (volume, epoch, mine) = (grant.volume, grant.epoch, grant.holder.node == *self.node());
                    leases.recorded(grant);
                    if mine {
                        leases.renewed(volume, epoch, sent);
                    }
                }
                self.failed.take();
                true
            }
            Ok(refused) => {
                tracing::warn!(target: "drover::control_link", ?refused, "not registered");
                false
            }
            Err(error) => {
                // Tried again and again: told once.
                if self.failed.replace(Some(error.clone())) != Some(error.clone()) {
                    tracing::warn!(target: "drover::control_link", %error, "not registered");
                }
                false
            }
        }
    }

    async fn renew(&self, leases: &dyn Leases, sent: Instant, deadline: Duration) -> bool {
        let held = leases.held();
        let epochs: BTreeMap<VolumeId, Epoch> = held.iter().copied().collect();
        let request = ControlRequest::Renew { node: self.node().clone(), instance: self.instance(), leases: held };
        match self.call(&request, deadline).await {
            Ok(ControlReply::Renewed { renewed, changed }) => {
                for volume in renewed {
                    if let Some(epoch) = epochs.get(&volume) {
                        leases.renewed(volume, *epoch, sent);
                    }
                }
                for grant in changed {
                    self.learn(&grant);
                    leases.recorded(grant);
                }
                true
            }
            other => {
                tracing::debug!(target: "drover::control_link", ?other, "not renewed");
                false
            }
        }
    }

    /// Notes who holds a volume.
    pub fn learn(&self, grant: &Grant) {
        let mut known = self.known.borrow_mut();
        let is_newer = |old: &Grant| (old.epoch, old.revision) <= (grant.epoch, grant.revision);
        if known.get(&grant.volume).is_none_or(is_newer) {
            known.insert(grant.volume, grant.clone());
        }
    }

    /// The last grant this node heard of.
    pub fn known_grant(&self, volume: VolumeId) -> Option<Grant> {
        self.known.borrow().get(&volume).cloned()
    }

    /// Who holds the volume, as the control plane has it recorded; what was last known where it does not answer.
    pub async fn lookup(&self, volume: VolumeId) -> Option<Grant> {
        if let Ok(ControlReply::Grant(grant)) = self.call(&ControlRequest::Lookup { volume }, LOOKUP_DEADLINE).await {
            self.learn(&grant);
        }
        self.known_grant(volume)
    }

    /// The number of the next change of the way back.
    pub fn next_way_back_change(&self) -> u64 {
        let change = self.way_back_changes.get() + 1;
        self.way_back_changes.set(change);
        change
    }

    /// Asks once that the way back be recorded as closed or open. `Ok(None)`: it is recorded.
    pub async fn record_way_back(
        &self,
        volume: VolumeId,
        migration: MigrationId,
        epoch: Epoch,
        open: bool,
        change: u64,
    ) -> Result<Option<Refusal>, RpcError> {
        let instance = self.instance();
        let request = match open {
            true => ControlRequest::OpenWayBack { volume, migration, epoch, instance, change },
            false => ControlRequest::CloseWayBack { volume, migration, epoch, instance, change },
        };
        match self.call(&request, CALL_DEADLINE).await? {
            ControlReply::Done => Ok(None),
            ControlReply::Refused(refusal) => Ok(Some(refusal)),
            _ => Err(RpcError::Protocol { address: String::new() }),
        }
    }

    /// Tells people that something happened.
    pub fn event(&self, kind: &str, volume: Option<VolumeId>, text: impl Into<String>) {
        let text = text.into();
        tracing::info!(target: "drover::event", kind, volume = volume.map(|volume| volume.to_string()), "{text}");
        let mut events = self.events.borrow_mut();
        if events.len() == EVENTS_MAX {
            events.pop_front();
        }
        events.push_back(Event { kind: kind.into(), volume, text });
        drop(events);
        self.has_events.notify_one();
    }

    /// Sends events as they come, as long as the node lives.
    pub async fn send_events(self: Rc<Self>) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        while self.client.is_some() {
            let event = self.events.borrow_mut().pop_front();
            let Some(event) = event else {
                self.has_events.notified().await;
                continue;
            };
            let node = self.node().clone();
            let request = ControlRequest::Event {
                node,
                kind: event.kind.clone(),
                volume: event.volume,
                text: event.text.clone(),
            };
            if self.call(&request, CALL_DEADLINE).await.is_err() {
                if self.events.borrow().len() < EVENTS_MAX {
                    self.events.borrow_mut().push_front(event);
                }
                backoff.wait(&self.world).await;
            } else {
                backoff.reset();
            }
        }
    }
}
