//! A node's membership in the cluster: one registration, and renewals of the leases of all its shards.
//!
//! ```text
//!   register ──► renew, every third of the shortest time to live ──► …
//!       ▲───────────── any error: the connection or the registration is gone
//! ```
//! Invariants
//! - A renewal counts from when it was sent; its answer is used only for the epoch that was asked for.
//! - A control plane that is down stops nothing here: untimed leases need none of this.
//! - A node whose name another live process has serves nobody: at its start it waits until it was registered, or nobody is
//!   there to say so; later it ends.
//! - A shard that is too busy to say what it holds delays nobody: the others' leases are renewed without it.

use crate::backoff::Backoff;
use crate::node::NodeSettings;
use crate::shards::{Confirmed, Held, Shards};
use drover_base::{Epoch, Instant, VolumeId, World};
use drover_wire::admin::{ControlReply, ControlRequest, NodeRegistration, Refusal};
use drover_wire::preamble::{Channel, Preamble};
use drover_wire::rpc::{RpcClient, RpcError};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, watch};

/// How often at least a node is heard of.
const PERIOD_MAX: Duration = Duration::from_secs(2);

/// How long shards may take to say what they hold, or to take note of an answer: far below the period of the shortest
/// lease.
const SHARD_DEADLINE: Duration = Duration::from_millis(100);

/// How long a start waits for the one before, at another address, to be taken for gone.
const TAKEN_PATIENCE: Duration = Duration::from_secs(20);

/// Whether the node may serve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Office {
    /// Nobody has said yet.
    #[default]
    Awaited,
    Serves,
    /// Another process is the node of this name: what the control plane said.
    Taken(String),
}

/// What shards know of the node's membership, and ask of it.
#[derive(Default)]
pub(crate) struct Standing {
    /// The control plane has recorded this start.
    pub has_registered: AtomicBool,
    /// A lease waits for its confirmation.
    pub renew_now: Notify,
    pub office: watch::Sender<Office>,
}

pub(crate) struct Membership<C> {
    world: World,
    client: RpcClient<ControlRequest, ControlReply>,
    registration: NodeRegistration,
    shards: Rc<Shards<C>>,
    standing: Arc<Standing>,
    /// Why the last registration got no answer.
    failed: RefCell<Option<RpcError>>,
    /// Since when it is told that its name is taken.
    taken_since: Cell<Option<Instant>>,
}

impl<C: 'static> Membership<C> {
    /// `None`: the node is on its own.
    pub fn new(
        world: World,
        settings: &NodeSettings,
        shards: Rc<Shards<C>>,
        standing: Arc<Standing>,
    ) -> Option<Membership<C>> {
        let preamble = Preamble::new(Channel::Control, settings.secret);
        let client = RpcClient::new(world.clone(), settings.control.as_deref()?, preamble);
        let registration = NodeRegistration {
            address: settings.address.clone(),
            admin: settings.admin.clone(),
            instance: settings.instance,
            nbd_unix: settings.nbd_unix.clone(),
            nbd_tcp: settings.nbd_tcp.clone(),
        };
        Some(Self {
            world,
            client,
            registration,
            shards,
            standing,
            failed: RefCell::default(),
            taken_since: Cell::default(),
        })
    }

    /// Registers and renews for as long as the node lives.
    pub async fn run(self) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        let mut is_registered = false;
        loop {
            let held = self.held().await;
            let sent = self.world.now();
            let period = held.shortest_ttl.map_or(PERIOD_MAX, |ttl| PERIOD_MAX.min(ttl / 3));
            // Not longer than a period: there must be time to ask again before a lease runs out.
            let confirmed = match is_registered {
                true => self.renew(held, sent, period).await,
                false => self.register(sent, period).await,
            };
            is_registered = match confirmed {
                Some(confirmed) => self.note(confirmed).await,
                None => false,
            };
            if !is_registered {
                backoff.wait(&self.world).await;
                continue;
            }
            backoff.reset();
            let since = self.world.now().since(sent);
            // Asked for or not, the next renewal follows.
            let _ = self.world.timeout(period.saturating_sub(since), self.standing.renew_now.notified()).await;
        }
    }

    async fn held(&self) -> Held {
        let deadline = self.world.now() + SHARD_DEADLINE;
        let of_each = self.shards.each(|shard| {
            let world = self.world.clone();
            async move { world.timeout_at(deadline, shard.held()).await }
        });
        let mut all = Held::default();
        for held in futures::future::join_all(of_each).await.into_iter().flatten() {
            all.merge(held);
        }
        all
    }

    /// Whether every shard took note of its part; where one did not, registering again tells it all there is.
    async fn note(&self, confirmed: Confirmed) -> bool {
        let noted = self.world.timeout(SHARD_DEADLINE, self.shards.confirm(confirmed)).await;
        if noted.is_err() {
            tracing::warn!(target: "drover::membership", "a shard is too busy to take note of its leases");
        }
        noted.is_ok()
    }

    async fn register(&self, sent: Instant, deadline: Duration) -> Option<Confirmed> {
        let request = ControlRequest::Register { node: self.registration.clone() };
        match self.client.call(&request, deadline).await {
            Ok(ControlReply::Registered { grants }) => {
                self.standing.has_registered.store(true, Ordering::Release);
                self.standing.office.send_replace(Office::Serves);
                self.taken_since.take();
                self.failed.take();
                let mine = grants.iter().filter(|grant| grant.holder.node == self.registration.address.node);
                let renewed = mine.map(|grant| (grant.volume, grant.epoch)).collect();
                Some(Confirmed { sent, grants, renewed })
            }
            Ok(ControlReply::Refused(taken @ Refusal::Taken { .. })) => {
                self.taken(taken.to_string());
                None
            }
            Ok(refused) => {
                tracing::warn!(target: "drover::membership", ?refused, "not registered");
                None
            }
            Err(error) => {
                if self.taken_since.get().is_none() {
                    // Its volumes need no control plane.
                    self.standing.office.send_replace(Office::Serves);
                }
                // Tried again and again: told once.
                if self.failed.replace(Some(error.clone())) != Some(error.clone()) {
                    tracing::warn!(target: "drover::membership", %error, "not registered");
                }
                None
            }
        }
    }

    fn taken(&self, by: String) {
        let now = self.world.now();
        let since = self.taken_since.get().unwrap_or_else(|| {
            tracing::warn!(target: "drover::membership", %by, "not registered");
            now
        });
        self.taken_since.set(Some(since));
        let serves = *self.standing.office.borrow() == Office::Serves;
        if serves || now.since(since) >= TAKEN_PATIENCE {
            self.standing.office.send_replace(Office::Taken(by));
        }
    }

    async fn renew(&self, held: Held, sent: Instant, deadline: Duration) -> Option<Confirmed> {
        let epochs: BTreeMap<VolumeId, Epoch> = held.leases.iter().copied().collect();
        let (node, instance) = (self.registration.address.node.clone(), self.registration.instance);
        let request = ControlRequest::Renew { node, instance, leases: held.leases };
        match self.client.call(&request, deadline).await {
            Ok(ControlReply::Renewed { renewed, changed }) => {
                let asked_for = |volume: VolumeId| Some((volume, *epochs.get(&volume)?));
                let renewed = renewed.into_iter().filter_map(asked_for).collect();
                Some(Confirmed { sent, grants: changed, renewed })
            }
            other => {
                tracing::debug!(target: "drover::membership", ?other, "not renewed");
                None
            }
        }
    }
}
