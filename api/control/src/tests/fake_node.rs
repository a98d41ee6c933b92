//! A storage node as the control plane sees it: seats, leases, senders and mirrors, with sets of numbers for data.
//!
//! Everything a node does for a client is checked against what was acknowledged before: see [`Checker`].

use super::cluster::Cluster;
use drover_base::{Epoch, Generation, InstanceId, Instant, IoError, MigrationId, NodeId, VolumeId, World};
use drover_wire::admin::*;
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
    pub snapshots: Vec<String>,
}

pub type Disk = Rc<RefCell<BTreeMap<VolumeId, Seat>>>;

/// What one life of the node knows of a volume.
#[derive(Default)]
pub struct Life {
    pub lease_from: Option<Instant>,
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
    pub free_bytes: u64,
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
        let control = RpcClient::new(world.clone(), "control:1");
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
        while let Ok(connection) = listener.accept().await {
            let this = self.clone();
            let handle = move |request: NodeRequest| {
                let this = this.clone();
                async move { this.answer(request).await.unwrap_or_else(NodeReply::Refused) }
            };
            self.world.spawn(drover_wire::rpc::serve(self.world.clone(), connection, handle)).detach();
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
                secret: [7; 32],
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

    async fn answer(self: Rc<Self>, request: NodeRequest) -> Result<NodeReply, Refusal> {
        self.world.sleep(Duration::from_micros(self.world.random.next_u64() % 800)).await;
        let habits = self.cluster().habits(&self.name);
        if self.world.random.next_u64() % 1000 < habits.refuses_permille && !matches!(request, NodeRequest::Status) {
            return Err(Refusal::Failed { reason: "not now".into() });
        }
        match request {
            NodeRequest::Status => Ok(NodeReply::Status(Box::new(self.status(habits.free_bytes)))),
            NodeRequest::SetGrant { grant } => self.adopt(grant).map(|()| NodeReply::Done),
            NodeRequest::Progress { migration } => self.progress(migration),
            NodeRequest::Quiesce { migration, epoch, attempt, deadline_ms, .. } => {
                self.quiesce(migration, epoch, attempt, Duration::from_millis(deadline_ms), habits.drain).await
            }
            NodeRequest::SetExport { export } => {
                self.exports.borrow_mut().insert(export.name);
                Ok(NodeReply::Done)
            }
            NodeRequest::RemoveExport { name } => {
                self.exports.borrow_mut().remove(&name);
                Ok(NodeReply::Done)
            }
            NodeRequest::CreateSnapshot { volume, name } => self.snapshot(volume, name),
            NodeRequest::RollbackSnapshot { volume, name } | NodeRequest::DeleteSnapshot { volume, name } => {
                let disk = self.disk.borrow();
                let seat = disk.get(&volume).ok_or(Refusal::NotFound { what: "volume".into() })?;
                let there = seat.snapshots.contains(&name);
                if there { Ok(NodeReply::Done) } else { Err(Refusal::NotFound { what: name }) }
            }
            NodeRequest::Reopen { .. } => Ok(NodeReply::Done),
            NodeRequest::CreateVolume { volume, size_bytes, epoch, .. } => {
                self.create(volume, size_bytes, epoch, habits.free_bytes)
            }
            NodeRequest::DeleteVolume { volume, .. } => {
                self.lives.borrow_mut().remove(&volume);
                match self.disk.borrow_mut().remove(&volume) {
                    Some(_) => Ok(NodeReply::Done),
                    None => Err(Refusal::NotFound { what: volume.to_string() }),
                }
            }
            other => self.migrate(other),
        }
    }

    fn create(&self, volume: VolumeId, size_bytes: u64, epoch: Epoch, free: u64) -> Result<NodeReply, Refusal> {
        if free == 0 {
            return Err(Refusal::NoSpace { needed: 1, free });
        }
        self.disk.borrow_mut().entry(volume).or_insert_with(|| Seat {
            epoch,
            revision: 0,
            role: Role::Holder,
            holder: self.name.clone(),
            ttl_ms: None,
            leg: None,
            returns: false,
            size_bytes,
            content: BTreeSet::new(),
            damaged: BTreeSet::new(),
            snapshots: Vec::new(),
        });
        Ok(NodeReply::Done)
    }

    fn snapshot(&self, volume: VolumeId, name: String) -> Result<NodeReply, Refusal> {
        let mut disk = self.disk.borrow_mut();
        let seat = disk.get_mut(&volume).ok_or(Refusal::NotFound { what: "volume".into() })?;
        if seat.snapshots.contains(&name) {
            return refused("there is one of this name");
        }
        seat.snapshots.push(name);
        Ok(NodeReply::Done)
    }

    fn volume_of(&self, migration: MigrationId) -> Result<VolumeId, Refusal> {
        let disk = self.disk.borrow();
        let found = disk.iter().find(|(_, seat)| seat.leg.as_ref().is_some_and(|leg| leg.migration == migration));
        found.map(|(volume, _)| *volume).ok_or(Refusal::NotFound { what: migration.to_string() })
    }

    /// Runs `what` on the sender of this migration and generation.
    fn with_sender<T>(
        &self,
        migration: MigrationId,
        generation: Option<Generation>,
        what: impl FnOnce(&mut Sender) -> T,
    ) -> Result<T, Refusal> {
        let volume = self.volume_of(migration)?;
        let mut lives = self.lives.borrow_mut();
        let sender = lives.get_mut(&volume).and_then(|life| life.sender.as_mut());
        let sender =
            sender.filter(|sender| sender.migration == migration).ok_or(Refusal::NotFound { what: "sender".into() })?;
        match generation {
            Some(asked) if asked < sender.generation => Err(Refusal::Generation { asked, known: sender.generation }),
            _ => Ok(what(sender)),
        }
    }

    fn migrate(&self, request: NodeRequest) -> Result<NodeReply, Refusal> {
        match request {
            NodeRequest::PrepareReceive {
                migration,
                generation,
                volume,
                size_bytes,
                epoch,
                source,
                reserve_bytes,
                ..
            } => {
                let free = self.cluster().habits(&self.name).free_bytes;
                if reserve_bytes > free {
                    return Err(Refusal::NoSpace { needed: reserve_bytes, free });
                }
                self.prepare(migration, generation, volume, size_bytes, epoch, source)
            }
            NodeRequest::BeginSend { migration, generation, volume, epoch, destination, compare, .. } => {
                self.begin_send(migration, generation, volume, epoch, destination, compare)
            }
            NodeRequest::BeginMirror { migration, generation, ttl_ms } => {
                let volume = self.volume_of(migration)?;
                self.with_sender(migration, Some(generation), |sender| sender.mirroring = true)?;
                let mut disk = self.disk.borrow_mut();
                let seat = disk.get_mut(&volume).ok_or(Refusal::NotFound { what: "volume".into() })?;
                if seat.ttl_ms.replace(ttl_ms).is_none() {
                    self.lives.borrow_mut().entry(volume).or_default().lease_from = Some(self.world.now());
                }
                Ok(NodeReply::Done)
            }
            NodeRequest::Tune { migration, generation, paused, .. } => {
                self.with_sender(migration, Some(generation), |sender| sender.paused = paused)?;
                Ok(NodeReply::Done)
            }
            NodeRequest::ConfirmPosition { migration, .. } => {
                let volume = self.volume_of(migration)?;
                let now = self.world.now();
                self.lives.borrow_mut().entry(volume).or_default().confirmed_at.get_or_insert(now);
                Ok(NodeReply::Done)
            }
            NodeRequest::ResumeHolder { migration, epoch, attempt, .. } => {
                let volume = self.volume_of(migration)?;
                if self.disk.borrow()[&volume].epoch != epoch {
                    return refused("another epoch");
                }
                let mut lives = self.lives.borrow_mut();
                let life = lives.entry(volume).or_default();
                life.ended_attempts = life.ended_attempts.max(attempt);
                if life.quiesced.is_some_and(|(of, _)| of <= attempt) {
                    life.quiesced = None;
                }
                Ok(NodeReply::Done)
            }
            NodeRequest::BeginProof { migration, generation } => {
                self.with_sender(migration, Some(generation), |sender| sender.proving = true)?;
                Ok(NodeReply::Done)
            }
            NodeRequest::EndMigration { migration, volume, epoch, drop_volume, .. } => {
                self.end(migration, volume, epoch, drop_volume)
            }
            _ => Err(Refusal::Invalid { reason: "not a request of a migration".into() }),
        }
    }

    fn prepare(
        &self,
        migration: MigrationId,
        generation: Generation,
        volume: VolumeId,
        size_bytes: u64,
        epoch: Epoch,
        source: NodeAddress,
    ) -> Result<NodeReply, Refusal> {
        let leg = Leg { migration, generation, other: source.clone(), way_back_open: false };
        let mut disk = self.disk.borrow_mut();
        match disk.get_mut(&volume) {
            Some(seat)
                if seat.role == Role::Mirror && seat.leg.as_ref().is_some_and(|leg| leg.migration == migration) =>
            {
                seat.leg = Some(leg);
            }
            Some(_) => return refused("the volume is here already"),
            None => {
                disk.insert(
                    volume,
                    Seat {
                        epoch,
                        revision: 0,
                        role: Role::Mirror,
                        holder: source.node,
                        ttl_ms: None,
                        leg: Some(leg),
                        returns: false,
                        size_bytes,
                        content: BTreeSet::new(),
                        damaged: BTreeSet::new(),
                        snapshots: Vec::new(),
                    },
                );
            }
        }
        Ok(NodeReply::Done)
    }

    fn begin_send(
        &self,
        migration: MigrationId,
        generation: Generation,
        volume: VolumeId,
        epoch: Epoch,
        destination: NodeAddress,
        compare: bool,
    ) -> Result<NodeReply, Refusal> {
        let mut disk = self.disk.borrow_mut();
        let seat = disk.get_mut(&volume).ok_or(Refusal::NotFound { what: "volume".into() })?;
        if seat.role != Role::Holder || seat.epoch != epoch {
            return Err(Refusal::Epoch { asked: epoch, known: seat.epoch });
        }
        let mut lives = self.lives.borrow_mut();
        let life = lives.entry(volume).or_default();
        if life.sender.as_ref().is_some_and(|sender| sender.migration == migration && sender.generation >= generation) {
            return Ok(NodeReply::Done);
        }
        let leg = Leg { migration, generation, other: destination.clone(), way_back_open: false };
        let mut sender = Sender::new(&leg, compare, false);
        sender.dirty = seat.content.clone();
        sender.total = sender.dirty.len() as u64;
        if !compare {
            self.cluster().checker.sends_all(volume, &destination.node, &self.cluster());
        }
        seat.leg = Some(leg);
        seat.returns = false;
        life.sender = Some(sender);
        Ok(NodeReply::Done)
    }

    fn end(
        &self,
        migration: MigrationId,
        volume: VolumeId,
        epoch: Epoch,
        drop_volume: bool,
    ) -> Result<NodeReply, Refusal> {
        let mut disk = self.disk.borrow_mut();
        let Some(seat) = disk.get_mut(&volume) else { return Ok(NodeReply::Done) };
        if seat.leg.as_ref().is_none_or(|leg| leg.migration != migration) {
            return Ok(NodeReply::Done);
        }
        if drop_volume && seat.role == Role::Holder && seat.epoch >= epoch {
            return Err(Refusal::Epoch { asked: epoch, known: seat.epoch });
        }
        self.lives.borrow_mut().entry(volume).or_default().sender = None;
        if drop_volume {
            disk.remove(&volume);
            drop(disk);
            self.lives.borrow_mut().remove(&volume);
            self.cluster().checker.dropped(volume, &self.cluster());
        } else {
            seat.leg = None;
        }
        Ok(NodeReply::Done)
    }

    async fn quiesce(
        &self,
        migration: MigrationId,
        epoch: Epoch,
        attempt: u64,
        deadline: Duration,
        drain: Duration,
    ) -> Result<NodeReply, Refusal> {
        let volume = self.volume_of(migration)?;
        {
            let synced = self.with_sender(migration, None, |sender| sender.is_synced())?;
            let holds = self.holds(volume) == Some(epoch);
            let mut lives = self.lives.borrow_mut();
            let life = lives.entry(volume).or_default();
            match life.quiesced {
                Some((of, true)) if of == attempt => {
                    return Ok(NodeReply::Drained { position: Position { session: attempt, sequence: 0 } });
                }
                Some((of, _)) if of >= attempt => return refused("another attempt"),
                _ if life.ended_attempts >= attempt => return refused("the attempt is over"),
                _ if !synced || !holds => return refused("not synced, or not the holder"),
                _ => life.quiesced = Some((attempt, false)),
            }
        }
        let until = self.world.now() + deadline;
        self.world.sleep(drain).await;
        loop {
            {
                let holds = self.holds(volume) == Some(epoch);
                let mut lives = self.lives.borrow_mut();
                let life = lives.entry(volume).or_default();
                if life.quiesced != Some((attempt, false)) {
                    return refused("resumed");
                }
                let whole = life.sender.as_ref().is_some_and(Sender::is_synced);
                if self.world.now() >= until {
                    life.quiesced = None;
                    return Err(Refusal::Deadline { reason: "draining".into() });
                }
                if life.writes_under_way == 0 && whole && holds {
                    life.quiesced = Some((attempt, true));
                    return Ok(NodeReply::Drained { position: Position { session: attempt, sequence: 0 } });
                }
            }
            self.world.sleep(Duration::from_millis(1)).await;
        }
    }

    fn progress(&self, migration: MigrationId) -> Result<NodeReply, Refusal> {
        let volume = self.volume_of(migration)?;
        let drained =
            self.lives.borrow().get(&volume).and_then(|life| life.quiesced).is_some_and(|(_, drained)| drained);
        let other = self.disk.borrow()[&volume].leg.as_ref().map(|leg| leg.other.node.clone());
        let other = other.and_then(|other| self.cluster().reachable(&self.name, &other));
        let damaged = |disk: &Disk| disk.borrow().get(&volume).map(|seat| seat.damaged.clone());
        let (mine, theirs) = (damaged(&self.disk).unwrap_or_default(), other.and_then(|other| damaged(&other.disk)));
        self.with_sender(migration, None, |sender| {
            let proof = sender.proving.then(|| proof(&mine, theirs.as_ref(), sender));
            let proven = proof.as_ref().is_some_and(|proof| proof.regions_equal == proof.regions_total);
            let phase = match () {
                () if drained => SendPhase::Drained,
                () if !sender.link_up => SendPhase::Connecting,
                () if sender.compare => SendPhase::Comparing,
                () if sender.mirroring && !sender.dirty.is_empty() => SendPhase::Mirroring,
                () if sender.mirroring && proven => SendPhase::Proven,
                () if sender.mirroring => SendPhase::Synced,
                () if sender.sent == 0 && !sender.dirty.is_empty() => SendPhase::Copying,
                () => SendPhase::Converging,
            };
            NodeReply::Progress(Box::new(SendProgress {
                migration,
                generation: sender.generation,
                phase,
                paused: sender.paused,
                total_bytes: sender.total * WRITE_BYTES,
                done_bytes: sender.total.saturating_sub(sender.dirty.len() as u64) * WRITE_BYTES,
                dirty_bytes: sender.dirty.len() as u64 * WRITE_BYTES,
                logical_bytes: sender.sent * WRITE_BYTES,
                wire_bytes: sender.sent * WRITE_BYTES / 2,
                rounds: 1,
                ready_to_mirror: sender.link_up && !sender.compare && sender.dirty.len() < SENT_AT_ONCE,
                link_up: sender.link_up,
                last_flush_ms_ago: Some(1),
                client_write_bytes_per_s: 1000,
                proof,
                error: None,
            }))
        })
    }

    fn status(&self, free: u64) -> NodeStatus {
        let tier = TierStatus {
            name: "t".into(),
            class: "nvme".into(),
            total_bytes: 1 << 40,
            used_bytes: (1 << 40) - free,
            held_bytes: 0,
            reserved_bytes: 0,
            poisoned: false,
        };
        let disk = self.disk.borrow();
        let volume = |(volume, seat): (&VolumeId, &Seat)| VolumeStatus {
            volume: *volume,
            name: "v".into(),
            size_bytes: seat.size_bytes,
            used_bytes: seat.content.len() as u64 * WRITE_BYTES,
            valid_bytes: seat.content.len() as u64 * WRITE_BYTES,
            epoch: seat.epoch,
            role: seat.role,
            poisoned: false,
            snapshots: seat
                .snapshots
                .iter()
                .map(|name| SnapshotStatus { name: name.clone(), created_ms: 1, used_bytes: 0 })
                .collect(),
            read_bytes: 0,
            written_bytes: seat.content.len() as u64 * WRITE_BYTES,
        };
        NodeStatus {
            node: self.name.clone(),
            instance: self.instance,
            tiers: vec![tier],
            volumes: disk.iter().map(volume).collect(),
            exports: Vec::new(),
        }
    }
}

fn proof(mine: &BTreeSet<u64>, theirs: Option<&BTreeSet<u64>>, sender: &Sender) -> Proof {
    let Some(theirs) = theirs.filter(|_| sender.link_up && sender.dirty.is_empty()) else {
        return Proof { regions_total: 1, ..Proof::default() };
    };
    let different = mine.symmetric_difference(theirs).count() as u64;
    let total = different + 10;
    Proof { regions_total: total, regions_equal: total - different, regions_different: different, regions_thicker: 0 }
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
