//! What a fake node answers to the control plane.

use super::{Disk, FakeNode, Habits, SENT_AT_ONCE, Seat, Sender, WRITE_BYTES, refused};
use drover_base::{Epoch, Generation, MigrationId, OperationId, VolumeId};
use drover_wire::admin::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

impl FakeNode {
    pub async fn answer(self: Rc<Self>, request: NodeRequest) -> Result<NodeReply, Refusal> {
        self.world.sleep(Duration::from_micros(self.world.random.next_u64() % 800)).await;
        let habits = self.cluster().habits(&self.name);
        if self.world.random.next_u64() % 1000 < habits.refuses_permille && !matches!(request, NodeRequest::Status) {
            return Err(Refusal::Failed { reason: "not now".into() });
        }
        match request {
            NodeRequest::Status => Ok(NodeReply::Status(Box::new(self.status(&habits)))),
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
            NodeRequest::CreateSnapshot { volume, name, operation } => {
                let made = self.snapshot(volume, name, operation);
                self.world.sleep(habits.snapshots_take).await;
                made
            }
            NodeRequest::CloneVolume { volume, origin, snapshot, epoch, .. } => {
                let made = self.clone_of(volume, origin, &snapshot, epoch);
                self.world.sleep(habits.snapshots_take).await;
                made
            }
            NodeRequest::HoldVolume { volume, hold, .. } => {
                self.world.sleep(habits.holds_take).await;
                self.lives.borrow_mut().entry(volume).or_default().held = Some(hold);
                Ok(NodeReply::Done)
            }
            NodeRequest::SnapshotHeld { volume, name, hold } => {
                if self.lives.borrow_mut().entry(volume).or_default().held != Some(hold) {
                    return refused("it is not held");
                }
                self.snapshot(volume, name, hold)
            }
            NodeRequest::ReleaseVolume { volume, .. } => {
                self.lives.borrow_mut().entry(volume).or_default().held = None;
                Ok(NodeReply::Done)
            }
            NodeRequest::UndoSnapshot { volume, name, hold } => {
                self.lives.borrow_mut().entry(volume).or_default().held = None;
                let mut disk = self.disk.borrow_mut();
                let seat = disk.get_mut(&volume).ok_or(Refusal::NotFound { what: "volume".into() })?;
                if seat.operations.contains(&hold) {
                    seat.snapshots.remove(&name);
                }
                Ok(NodeReply::Done)
            }
            NodeRequest::ResizeVolume { volume, size_bytes, .. } => {
                let done = self.resize(volume, size_bytes);
                self.world.sleep(habits.snapshots_take).await;
                done
            }
            NodeRequest::RollbackSnapshot { volume, name, operation } => {
                let done = self.go_back(volume, &name, operation);
                self.world.sleep(habits.snapshots_take).await;
                done
            }
            NodeRequest::DeleteSnapshot { volume, name } => {
                let gone = name.clone();
                self.named(volume, name, |seat| {
                    seat.snapshots.remove(&gone);
                })
            }
            NodeRequest::MeasureVolume { volume } => {
                let disk = self.disk.borrow();
                let seat = disk.get(&volume).ok_or(Refusal::NotFound { what: "volume".into() })?;
                let bytes = seat.content.len() as u64 * WRITE_BYTES;
                Ok(NodeReply::Measured { used_bytes: bytes, valid_bytes: bytes, size_bytes: seat.size_bytes })
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
            snapshots: BTreeMap::new(),
            limits: IoLimits::default(),
            operations: BTreeSet::new(),
            rollbacks: 0,
        });
        Ok(NodeReply::Done)
    }

    fn clone_of(&self, volume: VolumeId, origin: VolumeId, name: &str, epoch: Epoch) -> Result<NodeReply, Refusal> {
        let missing = || Refusal::NotFound { what: name.into() };
        let size_bytes =
            *self.disk.borrow().get(&origin).and_then(|seat| seat.snapshots.get(name)).ok_or_else(missing)?;
        self.create(volume, size_bytes, epoch, 1)?;
        Ok(NodeReply::Size { size_bytes })
    }

    fn resize(&self, volume: VolumeId, size_bytes: u64) -> Result<NodeReply, Refusal> {
        let mut disk = self.disk.borrow_mut();
        let seat = disk.get_mut(&volume).ok_or(Refusal::NotFound { what: "volume".into() })?;
        if size_bytes < seat.size_bytes {
            return Err(Refusal::Invalid { reason: "it can only grow".into() });
        }
        seat.size_bytes = size_bytes;
        Ok(NodeReply::Size { size_bytes })
    }

    fn go_back(&self, volume: VolumeId, name: &str, operation: OperationId) -> Result<NodeReply, Refusal> {
        self.named(volume, name.into(), |seat| {
            if seat.operations.insert(operation) {
                seat.rollbacks += 1;
                seat.size_bytes = seat.snapshots[name];
            }
        })?;
        Ok(NodeReply::Size { size_bytes: self.disk.borrow()[&volume].size_bytes })
    }

    /// Does something with the seat if it has the snapshot.
    fn named(&self, volume: VolumeId, name: String, act: impl FnOnce(&mut Seat)) -> Result<NodeReply, Refusal> {
        let mut disk = self.disk.borrow_mut();
        let seat = disk.get_mut(&volume).ok_or(Refusal::NotFound { what: "volume".into() })?;
        if !seat.snapshots.contains_key(&name) {
            return Err(Refusal::NotFound { what: name });
        }
        act(seat);
        Ok(NodeReply::Done)
    }

    fn snapshot(&self, volume: VolumeId, name: String, operation: OperationId) -> Result<NodeReply, Refusal> {
        let mut disk = self.disk.borrow_mut();
        let seat = disk.get_mut(&volume).ok_or(Refusal::NotFound { what: "volume".into() })?;
        if seat.operations.contains(&operation) {
            return Ok(NodeReply::Done);
        }
        if seat.snapshots.contains_key(&name) {
            return refused("there is one of this name");
        }
        seat.operations.insert(operation);
        seat.snapshots.insert(name, seat.size_bytes);
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
                let habits = self.cluster().habits(&self.name);
                let free = if habits.takes_nothing { 0 } else { habits.free_bytes };
                if habits.takes_nothing || reserve_bytes > free {
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
                        snapshots: BTreeMap::new(),
                        limits: IoLimits::default(),
                        operations: BTreeSet::new(),
                        rollbacks: 0,
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
                    return Ok(NodeReply::Drained {
                        position: Position { session: attempt, sequence: 0 },
                        admitted_ms: 0,
                    });
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
                    return Ok(NodeReply::Drained {
                        position: Position { session: attempt, sequence: 0 },
                        admitted_ms: 0,
                    });
                }
            }
            self.world.sleep(Duration::from_millis(1)).await;
        }
    }

    fn progress(&self, migration: MigrationId) -> Result<NodeReply, Refusal> {
        let volume = self.volume_of(migration)?;
        let habits = self.cluster().habits(&self.name);
        let drained =
            self.lives.borrow().get(&volume).and_then(|life| life.quiesced).is_some_and(|(_, drained)| drained);
        let made = |name: &&String| !name.starts_with("drover-");
        let snapshots = self.disk.borrow()[&volume].snapshots.keys().filter(made).count() as u64;
        let other = self.disk.borrow()[&volume].leg.as_ref().map(|leg| leg.other.node.clone());
        let other = other.and_then(|other| self.cluster().reachable(&self.name, &other));
        let damaged = |disk: &Disk| disk.borrow().get(&volume).map(|seat| seat.damaged.clone());
        let (mine, theirs) = (damaged(&self.disk).unwrap_or_default(), other.and_then(|other| damaged(&other.disk)));
        self.with_sender(migration, None, |sender| {
            let regions_thicker = u64::from(self.cluster().habits(&self.name).thickens);
            let proof = sender.proving.then(|| Proof { regions_thicker, ..proof(&mine, theirs.as_ref(), sender) });
            let proven = proof
                .as_ref()
                .is_some_and(|proof| proof.regions_equal == proof.regions_total && proof.regions_thicker == 0);
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
                snapshots,
                dirty_bytes: sender.dirty.len() as u64 * WRITE_BYTES,
                remote_bytes: 0,
                coverage_permille: None,
                logical_bytes: sender.sent * WRITE_BYTES,
                wire_bytes: sender.sent * WRITE_BYTES / 2,
                deduplicated_bytes: 0,
                rounds: 1,
                ready_to_mirror: sender.link_up && !sender.compare && sender.dirty.len() < SENT_AT_ONCE,
                link_up: sender.link_up,
                last_flush_ms_ago: Some(1),
                client_write_bytes_per_s: 1000,
                free_write_bytes_per_s: if habits.slows { 2000 } else { 1000 },
                writes_wait: habits.slows && sender.mirroring,
                proof,
                pull: None,
                error: None,
            }))
        })
    }

    fn status(&self, habits: &Habits) -> NodeStatus {
        let tier = TierStatus {
            name: "t".into(),
            class: "nvme".into(),
            total_bytes: 1 << 40,
            used_bytes: (1 << 40) - habits.free_bytes,
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
            shared_bytes: 0,
            remote_bytes: 0,
            epoch: seat.epoch,
            role: seat.role,
            poisoned: false,
            snapshots: seat
                .snapshots
                .keys()
                .map(|name| SnapshotStatus { name: name.clone(), created_ms: 1, used_bytes: 0 })
                .collect(),
            merge: habits.merge,
            read_bytes: 0,
            written_bytes: seat.content.len() as u64 * WRITE_BYTES,
            limits: seat.limits,
            limited_requests: 3,
            limited_us: 7_000,
            indexed_bytes: 0,
        };
        let volume_id = self.cluster().volume.get();
        let usage = |export: &String| WorkloadUsage {
            export: export.clone(),
            volume: volume_id,
            workload: Some("db\"1".into()),
            connections: 2,
            read_requests: 1,
            read_bytes: 4096,
            write_requests: 3,
            written_bytes: 12_288,
        };
        let export =
            |name: &String| Export { name: name.clone(), volume: volume_id, size_bytes: 1 << 30, workload: None };
        NodeStatus {
            node: self.name.clone(),
            instance: self.instance,
            tiers: vec![tier],
            volumes: disk.iter().map(volume).collect(),
            exports: self.exports.borrow().iter().map(export).collect(),
            usage: self.exports.borrow().iter().map(usage).collect(),
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
