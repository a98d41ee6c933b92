//! A shard's way to the control plane: look-ups, changes of the way back, events. Registration and renewals are the
//! whole node's (`membership`).
//!
//! Invariants
//! - A control plane that is down stops nothing here: look-ups answer what was last known.
//! - Events are kept up to a bound and then dropped, oldest first: they inform, nothing depends on them.
//! - Each shard of a node has a link of its own and speaks of its own volumes, under the node's one instance.

use crate::backoff::Backoff;
use crate::membership::Standing;
use crate::node::NodeSettings;
use drover_base::{Epoch, InstanceId, MigrationId, NodeId, VolumeId, World};
use drover_wire::admin::{ControlReply, ControlRequest, Grant, Refusal};
use drover_wire::preamble::{Channel, Preamble};
use drover_wire::rpc::{RpcClient, RpcError};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::sync::Notify;

/// How long one request to the control plane may take.
const CALL_DEADLINE: Duration = Duration::from_secs(2);

/// A look-up is done while a client waits, and can be repeated.
const LOOKUP_DEADLINE: Duration = Duration::from_secs(1);

/// Events kept while the control plane is away.
const EVENTS_MAX: usize = 256;

struct Event {
    kind: String,
    volume: Option<VolumeId>,
    text: String,
}

pub(crate) struct ControlLink {
    world: World,
    client: Option<RpcClient<ControlRequest, ControlReply>>,
    node: NodeId,
    instance: InstanceId,
    known: RefCell<BTreeMap<VolumeId, Grant>>,
    standing: Arc<Standing>,
    events: RefCell<VecDeque<Event>>,
    has_events: Notify,
    way_back_changes: Cell<u64>,
}

impl ControlLink {
    /// A node without a control plane knows only what it is told.
    pub fn new(world: World, settings: &NodeSettings, standing: Arc<Standing>) -> Rc<Self> {
        let preamble = Preamble::new(Channel::Control, settings.secret);
        Rc::new(Self {
            client: settings.control.as_deref().map(|address| RpcClient::new(world.clone(), address, preamble)),
            world,
            node: settings.address.node.clone(),
            instance: settings.instance,
            known: RefCell::default(),
            standing,
            events: RefCell::default(),
            has_events: Notify::new(),
            way_back_changes: Cell::new(0),
        })
    }

    async fn call(&self, request: &ControlRequest, deadline: Duration) -> Result<ControlReply, RpcError> {
        match &self.client {
            Some(client) => client.call(request, deadline).await,
            None => Err(RpcError::Disconnected { address: String::new() }),
        }
    }

    /// Whether the control plane has recorded this start, with all that it voids.
    pub fn has_registered(&self) -> bool {
        self.standing.has_registered.load(Ordering::Acquire)
    }

    /// A lease waits for its confirmation: the node renews without waiting for the period to end.
    pub fn renew_now(&self) {
        self.standing.renew_now.notify_one();
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
        let instance = self.instance;
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
            let node = self.node.clone();
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
