//! A storage node as the control plane sees it: seats, leases, senders and mirrors, with sets of numbers for data.
//!
//! Everything a node does for a client is checked against what was acknowledged before: see [`Checker`].

mod requests;

use super::cluster::Cluster;
use drover_base::{Epoch, Generation, InstanceId, Instant, IoError, MigrationId, NodeId, OperationId, VolumeId, World};
use drover_wire::admin::*;
use drover_wire::preamble::{Channel, Preamble};
use drover_wire::rpc::RpcClient;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::{Rc, Weak},
    time::Duration,
};

/// What survives a crash: every write is durable at once.
#[derive(Clone, Debug)]
pub struct Seat {
    pub epoch: Epoch,
    pub revision: u64,
    pub role: Role,
    pub holder: NodeId,
    pub ttl_ms: Option<u64>,
    pub leg: Option<Leg>,
    /// The leg's data goes back to who held before.
    pub returns: bool,
    pub size_bytes: u64,
    /// Numbers of the writes applied.
    pub content: BTreeSet<u64>,
    /// Writes whose bytes rotted on the way here.
    pub damaged: BTreeSet<u64>,
    /// Each with the size that the volume had.
    pub snapshots: BTreeMap<String, u64>,
    pub limits: IoLimits,
    /// What it did once: see [`OperationId`].
    pub operations: BTreeSet<OperationId>,
    pub rollbacks: u64,
}

pub type Disk = Rc<RefCell<BTreeMap<VolumeId, Seat>>>;

/// What one life of the node knows of a volume.
#[derive(Default)]
pub struct Life {
    pub lease_from: Option<Instant>,
    pub held: Option<OperationId>,
    confirmed_at: Option<Instant>,
    /// The attempt it drains or has drained for, and whether it has.
    quiesced: Option<(u64, bool)>,
    ended_attempts: u64,
    writes_under_way: u64,
    pub sender: Option<Sender>,
}

pub struct Sender {
    migration: MigrationId,
    generation: Generation,
    /// Both sides are to be compared first.
    compare: bool,
    pub mirroring: bool,
    /// The control plane has recorded the way back as closed, in answer to this sender.
    alone: bool,
    /// The control plane has recorded it as open since.
    told_open: bool,
    paused: bool,
    proving: bool,
    link_up: bool,
    /// What the other side lacks.
    dirty: BTreeSet<u64>,
    total: u64,
    sent: u64,
    /// Mirrored writes that wait for the way back to be recorded as closed.
    waiting: u64,
    changes: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Habits {
    /// Thousandths of admin requests that are refused though they could be met.
    pub refuses_permille: u64,
    /// What draining takes.
    pub drain: Duration,
    /// A write that is lost on the way to this node without anyone noticing.
    pub rots: bool,
    /// It stores more than the other side.
    pub thickens: bool,
    /// A snapshot or rollback takes so long.
    pub snapshots_take: Duration,
    /// Until a volume is held.
    pub holds_take: Duration,
    pub free_bytes: u64,
    /// What its volumes' deleted snapshots still hold.
    pub merge: Option<MergeStatus>,
    /// It has room, and takes no migration all the same.
    pub takes_nothing: bool,
    /// Its clients write half of what they did before, waiting for the other side.
    pub slows: bool,
}

pub struct FakeNode {
    pub name: NodeId,
    pub instance: InstanceId,
    pub world: World,
    pub disk: Disk,
    pub lives: RefCell<BTreeMap<VolumeId, Life>>,
    pub exports: RefCell<BTreeSet<String>>,
    cluster: Weak<Cluster>,
    control: RpcClient<ControlRequest, ControlReply>,
}

/// Bytes that one number of content stands for.
pub const WRITE_BYTES: u64 = 4096;

/// What stands for BLAKE3 of the cluster's secret.
pub const SECRET: [u8; 32] = [7; 32];

const SEND_EVERY: Duration = Duration::from_millis(10);
const SENT_AT_ONCE: usize = 20;

pub fn address(node: &NodeId) -> NodeAddress {
    NodeAddress { node: node.clone(), peer: format!("{node}:2"), migration: format!("{node}:2") }
}

fn refused<T>(reason: &str) -> Result<T, Refusal> {
    Err(Refusal::Conflict { reason: reason.into() })
}

impl FakeNode {
    pub fn start(name: &NodeId, world: World, disk: Disk, cluster: &Rc<Cluster>) -> Rc<Self> {
        let instance = InstanceId(world.random.next_u64());
        let control = RpcClient::new(world.clone(), "control:1", Preamble::new(Channel::Control, SECRET));
        let node = Rc::new(Self {
            name: name.clone(),
            instance,
            world,
            disk,
            lives: RefCell::default(),
            exports: RefCell::default(),
            cluster: Rc::downgrade(cluster),
            control,
        });
        let volumes: Vec<VolumeId> = node.disk.borrow().keys().copied().collect();
        for volume in volumes {
            node.restart_sender(volume);
        }
        node.world.spawn(node.clone().serve()).detach();
        node.world.spawn(node.clone().keep_registered()).detach();
        node.world.spawn(node.clone().send_all()).detach();
        node
    }

    fn cluster(&self) -> Rc<Cluster> {
        self.cluster.upgrade().expect("the cluster outlives its nodes")
    }

    /// A holder that had a return mirror begins it again, comparing.
    fn restart_sender(&self, volume: VolumeId) {
        let disk = self.disk.borrow();
        let seat = &disk[&volume];
        if let (Role::Holder, true, Some(leg)) = (seat.role, seat.returns, &seat.leg) {
            let sender = Sender::new(leg, true, true);
            self.lives.borrow_mut().entry(volume).or_default().sender = Some(sender);
        }
    }

    async fn serve(self: Rc<Self>) {
        let mut listener = self.world.net.listen(&format!("{}:1", self.name)).await.expect("the address is free");
        let preamble = Preamble::new(Channel::Admin, SECRET);
        while let Ok(connection) = listener.accept().await {
            let this = self.clone();
            let handle = move |request: NodeRequest| {
                let this = this.clone();
                async move { this.answer(request).await.unwrap_or_else(NodeReply::Refused) }
            };
            self.world
                .spawn(drover_wire::rpc::serve(self.world.clone(), preamble, connection, |_| None, handle))
                .detach();
        }
    }

    async fn keep_registered(self: Rc<Self>) {
        let deadline = Duration::from_secs(2);
        loop {
            let sent = self.world.now();
            let node = NodeRegistration {
                address: address(&self.name),
                admin: format!("{}:1", self.name),
                instance: self.instance,
                nbd_unix: Some(format!("/run/{}.sock", self.name)),
                nbd_tcp: None,
            };
            match self.control.call(&ControlRequest::Register { node }, deadline).await {
                Ok(ControlReply::Registered { grants }) => {
                    for grant in grants {
                        let volume = grant.volume;
                        // A grant of a volume that is not stored here is for its exports.
                        let _ = self.adopt(grant);
                        self.renewed(volume, sent);
                    }
                    self.renew_until_refused(deadline).await;
                }
                _ => self.world.sleep(Duration::from_millis(200)).await,
            }
        }
    }

    async fn renew_until_refused(&self, deadline: Duration) {
        loop {
            self.world.sleep(Duration::from_millis(700)).await;
            let leases: Vec<_> = self
                .disk
                .borrow()
                .iter()
                .filter(|(_, seat)| seat.role == Role::Holder && seat.ttl_ms.is_some())
                .map(|(volume, seat)| (*volume, seat.epoch))
                .collect();
            let sent = self.world.now();
            let request =
                ControlRequest::Renew { node: self.name.clone(), instance: self.instance, leases: leases.clone() };
            match self.control.call(&request, deadline).await {
                Ok(ControlReply::Renewed { renewed, changed }) => {
                    for (volume, epoch) in leases {
                        let same = self.disk.borrow().get(&volume).is_some_and(|seat| seat.epoch == epoch);
                        if renewed.contains(&volume) && same {
                            self.renewed(volume, sent);
                        }
                    }
                    for grant in changed {
                        let _ = self.adopt(grant);
                    }
                }
                Ok(_) => return,
                Err(_) => {
                    // The connection broke: register again.
                    return;
                }
            }
        }
    }

    fn renewed(&self, volume: VolumeId, sent: Instant) {
        if self.disk.borrow().get(&volume).is_some_and(|seat| seat.role == Role::Holder) {
            self.lives.borrow_mut().entry(volume).or_default().lease_from = Some(sent);
        }
    }

    /// Whether it may apply and acknowledge now under this epoch.
    fn holds(&self, volume: VolumeId) -> Option<Epoch> {
        let disk = self.disk.borrow();
        let seat = disk.get(&volume).filter(|seat| seat.role == Role::Holder)?;
        let valid = match seat.ttl_ms {
            None => true,
            Some(ttl_ms) => {
                let from = self.lives.borrow().get(&volume).and_then(|life| life.lease_from)?;
                self.world.now().since(from) < Duration::from_millis(ttl_ms * 2 / 3)
            }
        };
        valid.then_some(seat.epoch)
    }

    /// A client's write.
    pub async fn write(self: Rc<Self>, volume: VolumeId, number: u64) -> Result<(), IoError> {
        let Some(epoch) = self.holds(volume) else { return Err(IoError::NotHere) };
        {
            let mut lives = self.lives.borrow_mut();
            let life = lives.entry(volume).or_default();
            if life.quiesced.is_some() {
                return Err(IoError::NotHere);
            }
            life.writes_under_way += 1;
        }
        let outcome = self.apply(volume, epoch, number).await;
        if let Some(life) = self.lives.borrow_mut().get_mut(&volume) {
            life.writes_under_way -= 1;
        }
        outcome
    }

    async fn apply(&self, volume: VolumeId, epoch: Epoch, number: u64) -> Result<(), IoError> {
        self.world.sleep(Duration::from_micros(self.world.random.next_u64() % 1500)).await;
        let fenced = IoError::Fenced { epoch };
        if self.holds(volume) != Some(epoch) {
            return Err(fenced);
        }
        let cluster = self.cluster();
        {
            let mut disk = self.disk.borrow_mut();
            let Some(seat) = disk.get_mut(&volume) else { return Err(IoError::NotHere) };
            cluster.checker.applies(self, epoch, seat);
            seat.content.insert(number);
        }
        loop {
            if self.mirrored(volume, epoch, number) {
                break;
            }
            self.world.sleep(Duration::from_millis(5)).await;
            if self.holds(volume) != Some(epoch) {
                return Err(fenced);
            }
        }
        self.world.sleep(Duration::from_micros(self.world.random.next_u64() % 500)).await;
        if self.holds(volume) != Some(epoch) {
            return Err(fenced);
        }
        cluster.checker.acknowledged(number, epoch);
        Ok(())
    }

    /// Whether the write may be answered as far as the other side goes; marks it dirty where it may go on alone.
    fn mirrored(&self, volume: VolumeId, epoch: Epoch, number: u64) -> bool {
        let mut lives = self.lives.borrow_mut();
        let Some(sender) = lives.get_mut(&volume).and_then(|life| life.sender.as_mut()) else { return true };
        let (returns, other) = {
            let disk = self.disk.borrow();
            let Some(seat) = disk.get(&volume) else { return true };
            let Some(leg) = &seat.leg else { return true };
            (seat.returns, leg.other.node.clone())
        };
        if !sender.mirroring || sender.compare {
            sender.dirty.insert(number);
            // After a flip nothing is answered that the other side lacks, unless the way back is closed.
            if !returns || sender.alone {
                return true;
            }
            sender.waiting += 1;
            return false;
        }
        let (migration, generation) = (sender.migration, sender.generation);
        if self.reach(&other, volume, migration, generation, epoch, |seat| {
            seat.content.insert(number);
        }) {
            sender.dirty.remove(&number);
            sender.waiting = 0;
            return true;
        }
        sender.link_up = false;
        sender.dirty.insert(number);
        if !returns {
            sender.mirroring = false;
            return true;
        }
        sender.waiting += 1;
        sender.alone
    }

    /// Does `what` to the other side's seat, if it can be reached and accepts this stream.
    fn reach(
        &self,
        other: &NodeId,
        volume: VolumeId,
        migration: MigrationId,
        generation: Generation,
        epoch: Epoch,
        what: impl FnOnce(&mut Seat),
    ) -> bool {
        let cluster = self.cluster();
        let Some(other) = cluster.reachable(&self.name, other) else { return false };
        let mut disk = other.disk.borrow_mut();
        let Some(seat) = disk.get_mut(&volume) else { return false };
        let of_leg = seat.leg.as_ref().is_some_and(|leg| leg.migration == migration && leg.generation <= generation);
        if seat.role != Role::Mirror || seat.epoch != epoch || !of_leg {
            return false;
        }
        what(seat);
        true
    }

    async fn send_all(self: Rc<Self>) {
        loop {
            self.world.sleep(SEND_EVERY).await;
            let volumes: Vec<VolumeId> = self.lives.borrow().keys().copied().collect();
            for volume in volumes {
                if let Some(request) = self.send(volume) {
                    self.tell_way_back(volume, request).await;
                }
            }
        }
    }

    /// One turn of the sender. Returns what the control plane is to be told of the way back.
    fn send(&self, volume: VolumeId) -> Option<ControlRequest> {
        let (role, epoch, returns, leg) = {
            let disk = self.disk.borrow();
            let seat = disk.get(&volume)?;
            (seat.role, seat.epoch, seat.returns, seat.leg.clone()?)
        };
        let mut lives = self.lives.borrow_mut();
        let sender = lives.get_mut(&volume)?.sender.as_mut()?;
        if role != Role::Holder || sender.paused {
            return None;
        }
        let (migration, generation) = (sender.migration, sender.generation);
        let lost = self.cluster().loses_a_write(&leg.other.node);
        let (compare, mut dirty, total) = (sender.compare, std::mem::take(&mut sender.dirty), sender.total);
        let sent: Vec<u64> = if compare { Vec::new() } else { dirty.iter().take(SENT_AT_ONCE).copied().collect() };
        let mine = if compare { self.disk.borrow()[&volume].content.clone() } else { BTreeSet::new() };
        let mut differs = BTreeSet::new();
        let reached = self.reach(&leg.other.node, volume, migration, generation, epoch, |other| {
            if compare {
                differs = mine.difference(&other.content).copied().collect();
                other.content.retain(|number| mine.contains(number));
                other.damaged.clear();
            }
            for number in &sent {
                other.content.insert(*number);
                if lost && *number == 1 {
                    other.damaged.insert(*number);
                }
            }
        });
        for number in sent.iter().filter(|_| reached) {
            dirty.remove(number);
        }
        dirty.extend(differs);
        sender.link_up = reached;
        sender.dirty = dirty;
        if reached {
            sender.compare = false;
            sender.sent += sent.len() as u64;
            sender.total = total.max(sender.sent + sender.dirty.len() as u64);
        }
        if returns { self.way_back_word(volume, epoch, &leg, sender) } else { None }
    }

    fn way_back_word(&self, volume: VolumeId, epoch: Epoch, leg: &Leg, sender: &mut Sender) -> Option<ControlRequest> {
        let (migration, instance) = (leg.migration, self.instance);
        let whole = sender.link_up && !sender.compare && sender.dirty.is_empty();
        if whole && !sender.told_open {
            // From here on every write goes to both sides again; what was written alone has arrived.
            sender.alone = false;
            sender.changes += 1;
            let change = sender.changes;
            return Some(ControlRequest::OpenWayBack { volume, migration, epoch, instance, change });
        }
        if !sender.alone && sender.waiting > 0 && !whole {
            sender.changes += 1;
            let change = sender.changes;
            return Some(ControlRequest::CloseWayBack { volume, migration, epoch, instance, change });
        }
        None
    }

    async fn tell_way_back(&self, volume: VolumeId, request: ControlRequest) {
        let closes = matches!(request, ControlRequest::CloseWayBack { .. });
        let mut answered = false;
        for _ in 0..if closes { 1 } else { 5 } {
            match self.control.call(&request, Duration::from_millis(500)).await {
                Ok(ControlReply::Done) => {
                    answered = true;
                    break;
                }
                Ok(ControlReply::Refused(_)) => break,
                _ => {}
            }
        }
        if let Some(sender) = self.lives.borrow_mut().get_mut(&volume).and_then(|life| life.sender.as_mut()) {
            sender.waiting = 0;
            // What was not answered is unknown: it is said again, under a new number.
            match (closes, answered) {
                (true, true) => (sender.alone, sender.told_open) = (true, false),
                (true, false) => sender.told_open = false,
                (false, answered) => sender.told_open = answered,
            }
        }
    }

    /// Takes over what is recorded. Older: changes nothing.
    fn adopt(&self, grant: Grant) -> Result<(), Refusal> {
        let mut disk = self.disk.borrow_mut();
        let Some(seat) = disk.get_mut(&grant.volume) else {
            return Err(Refusal::NotFound { what: grant.volume.to_string() });
        };
        if grant.limits.revision > seat.limits.revision {
            seat.limits = grant.limits;
        }
        if grant.epoch < seat.epoch {
            return Err(Refusal::Epoch { asked: grant.epoch, known: seat.epoch });
        }
        if (grant.epoch, grant.revision) <= (seat.epoch, seat.revision) {
            return Ok(());
        }
        let mut lives = self.lives.borrow_mut();
        let life = lives.entry(grant.volume).or_default();
        let moved = grant.epoch > seat.epoch;
        let held = seat.role == Role::Holder;
        (seat.epoch, seat.revision, seat.ttl_ms) = (grant.epoch, grant.revision, grant.ttl_ms);
        seat.holder = grant.holder.node.clone();
        seat.leg = grant.leg.clone();
        seat.role = match (&grant.leg, grant.holder.node == self.name) {
            (_, true) => Role::Holder,
            (Some(_), false) => Role::Mirror,
            (None, false) => Role::Fenced,
        };
        if moved {
            life.quiesced = None;
            life.sender = None;
            seat.returns = true;
        }
        let holds = seat.role == Role::Holder;
        if holds && !held {
            life.lease_from = life.confirmed_at.take();
            life.sender = grant.leg.as_ref().map(|leg| Sender::new(leg, false, true));
        }
        if grant.leg.is_none() {
            life.sender = None;
        } else if let (Some(leg), Some(sender)) = (&grant.leg, &mut life.sender)
            && holds
            && moved
        {
            // Closed though it never served: it was restarted between the flip and this grant.
            (sender.alone, sender.told_open) = (!leg.way_back_open, leg.way_back_open);
        }
        Ok(())
    }
}

impl Sender {
    fn new(leg: &Leg, compare: bool, mirroring: bool) -> Self {
        Self {
            migration: leg.migration,
            generation: leg.generation,
            compare,
            mirroring,
            alone: compare && mirroring,
            told_open: !compare,
            paused: false,
            proving: false,
            link_up: mirroring && !compare,
            dirty: BTreeSet::new(),
            total: 0,
            sent: 0,
            waiting: 0,
            changes: 0,
        }
    }

    fn is_synced(&self) -> bool {
        self.mirroring && self.link_up && !self.compare && self.dirty.is_empty()
    }
}
