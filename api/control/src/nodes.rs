//! The nodes: connections to them, when each was last heard of, and what each last reported.
//!
//! Invariant: a node is silent only while this process could hear it. After a standstill of its own (stopped, suspended,
//! overloaded) nobody is taken for gone before there was time to hear from everybody.

use crate::config::{RPC_DEADLINE, STATUS_EVERY};
use crate::lived::Lived;
use drover_base::{Instant, NodeId, VolumeId, World};
use drover_types::Health;
use drover_wire::admin::{NodeReply, NodeRequest, NodeStatus, Refusal, VolumeStatus};
use drover_wire::preamble::{Channel, Preamble};
use drover_wire::rpc::{RpcClient, RpcError};
use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};

/// A node that was not heard of for this long counts as down: several renewals were due.
pub const SILENT_AFTER: Duration = Duration::from_secs(10);

/// Connections kept: one a node and a few of addresses that nodes had before.
const CLIENTS_MAX: usize = 1024;

/// Status reports closer to each other than this do not measure a rate.
const RATE_SPAN_MIN: Duration = Duration::from_millis(500);

type Client = RpcClient<NodeRequest, NodeReply>;

/// What a node last reported, and when.
#[derive(Clone)]
pub struct Report {
    pub at: Instant,
    pub status: Rc<NodeStatus>,
}

#[derive(Default)]
struct Contact {
    /// In time lived through.
    heard: Option<Duration>,
    report: Option<Report>,
    /// The report since which writes are counted.
    counted_from: Option<Report>,
    write_bytes_per_s: BTreeMap<VolumeId, u64>,
}

/// Why a node did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It did nothing, for a reason.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Whether it did is unknown, except where it could not be reached at all.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    #[error("the node has never registered")]
    Unregistered,
    #[error("the node answered something else")]
    Unexpected,
}

pub struct Nodes {
    world: World,
    lived: Rc<Lived>,
    preamble: Preamble,
    clients: RefCell<BTreeMap<String, Rc<Client>>>,
    contacts: RefCell<BTreeMap<NodeId, Contact>>,
}

impl Nodes {
    /// `secret`: BLAKE3 of the cluster's.
    pub fn new(world: World, lived: Rc<Lived>, secret: [u8; 32]) -> Self {
        let preamble = Preamble::new(Channel::Admin, secret);
        Self { world, lived, preamble, clients: RefCell::default(), contacts: RefCell::default() }
    }

    /// The node gave a sign of life.
    pub fn heard(&self, node: &NodeId) {
        let now = self.lived.now();
        self.contacts.borrow_mut().entry(node.clone()).or_default().heard = Some(now);
    }

    /// Time lived through since its last sign of life; `None`: none since the start.
    pub fn silence(&self, node: &NodeId) -> Option<Duration> {
        let heard = self.contacts.borrow().get(node)?.heard?;
        Some(self.lived.now().saturating_sub(heard))
    }

    /// Unknown only until there was time to hear from everybody.
    pub fn health(&self, node: &NodeId) -> Health {
        match self.silence(node) {
            Some(silence) if silence < SILENT_AFTER => Health::Up,
            None if self.lived.now() < SILENT_AFTER => Health::Unknown,
            _ => Health::Down,
        }
    }

    pub fn forget(&self, node: &NodeId) {
        self.contacts.borrow_mut().remove(node);
    }

    fn client(&self, admin: &str) -> Rc<Client> {
        let mut clients = self.clients.borrow_mut();
        if clients.len() >= CLIENTS_MAX && !clients.contains_key(admin) {
            clients.clear();
        }
        let client = || Rc::new(Client::new(self.world.clone(), admin, self.preamble));
        clients.entry(admin.into()).or_insert_with(client).clone()
    }

    /// Asks the node at this admin address.
    pub async fn call(
        &self,
        node: &NodeId,
        admin: &str,
        request: &NodeRequest,
        deadline: Duration,
    ) -> Result<NodeReply, CallError> {
        let client = self.client(admin);
        match client.call(request, deadline).await? {
            NodeReply::Refused(refusal) => {
                self.heard(node);
                Err(refusal.into())
            }
            reply => {
                self.heard(node);
                Ok(reply)
            }
        }
    }

    /// Asks for the node's status and keeps it.
    pub async fn poll(&self, node: &NodeId, admin: &str) -> Result<Rc<NodeStatus>, CallError> {
        match self.call(node, admin, &NodeRequest::Status, RPC_DEADLINE).await? {
            NodeReply::Status(status) if status.node == *node => Ok(self.keep(node, *status)),
            _ => Err(CallError::Unexpected),
        }
    }

    fn keep(&self, node: &NodeId, status: NodeStatus) -> Rc<NodeStatus> {
        let report = Report { at: self.world.now(), status: Rc::new(status) };
        let mut contacts = self.contacts.borrow_mut();
        let contact = contacts.entry(node.clone()).or_default();
        let span = contact.counted_from.as_ref().map(|earlier| report.at.since(earlier.at));
        if span.is_none_or(|span| span >= RATE_SPAN_MIN) {
            if let Some((earlier, span)) = contact.counted_from.as_ref().zip(span) {
                contact.write_bytes_per_s = write_rates(&earlier.status, &report.status, span);
            }
            contact.counted_from = Some(report.clone());
        }
        contact.report = Some(report.clone());
        report.status
    }

    pub fn report(&self, node: &NodeId) -> Option<Report> {
        self.contacts.borrow().get(node)?.report.clone()
    }

    /// What the node last reported of a volume, how long ago, and the bytes a second clients wrote.
    pub fn volume(&self, node: &NodeId, volume: VolumeId) -> Option<(VolumeStatus, Duration, Option<u64>)> {
        let report = self.report(node)?;
        let status = report.status.volumes.iter().find(|status| status.volume == volume)?.clone();
        let rate = self.contacts.borrow().get(node)?.write_bytes_per_s.get(&volume).copied();
        Some((status, self.world.now().since(report.at), rate))
    }

    /// Bytes that the node can still take, over all its tiers, as last reported.
    pub fn free_bytes(&self, node: &NodeId) -> Option<u64> {
        let report = self.report(node)?;
        let free = |tier: &drover_wire::admin::TierStatus| {
            let taken = tier.used_bytes.saturating_add(tier.held_bytes).saturating_add(tier.reserved_bytes);
            if tier.poisoned { 0 } else { tier.total_bytes.saturating_sub(taken) }
        };
        Some(report.status.tiers.iter().map(free).fold(0, u64::saturating_add))
    }

    /// What clients write a second to the volumes that the node has, as last measured.
    pub fn write_bytes_per_s(&self, node: &NodeId) -> u64 {
        let contacts = self.contacts.borrow();
        contacts
            .get(node)
            .map_or(0, |contact| contact.write_bytes_per_s.values().fold(0, |sum, rate| rate.saturating_add(sum)))
    }

    /// When a status is due again.
    pub fn status_is_old(&self, node: &NodeId) -> bool {
        self.report(node).is_none_or(|report| self.world.now().since(report.at) >= STATUS_EVERY)
    }
}

fn write_rates(earlier: &NodeStatus, later: &NodeStatus, span: Duration) -> BTreeMap<VolumeId, u64> {
    if earlier.instance != later.instance {
        return BTreeMap::new();
    }
    let before: BTreeMap<_, _> = earlier.volumes.iter().map(|volume| (volume.volume, volume.written_bytes)).collect();
    let rate = |volume: &VolumeStatus| {
        let written = volume.written_bytes.checked_sub(*before.get(&volume.volume)?)?;
        let per_s = u128::from(written) * 1000 / span.as_millis().max(1);
        Some((volume.volume, u64::try_from(per_s).unwrap_or(u64::MAX)))
    };
    later.volumes.iter().filter_map(rate).collect()
}
