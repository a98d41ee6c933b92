//! The control plane's requests of one migration, at either side.
//!
//! ```text
//!   destination   PrepareReceive ─────────────────────────────── ConfirmPosition ── SetGrant ──► holder
//!   source        BeginSend ── BeginMirror ── Quiesce ─► drained ────────────────── SetGrant ──► mirror
//!                                               ▲           └─ ResumeHolder ─► goes on
//! ```
//! Orders that must hold
//! - The record names the migration before tracking begins or a volume is made for it.
//! - A holder that has drained goes on only by `ResumeHolder` of that attempt or a newer one, or by a newer epoch; its
//!   lease then needs a renewal sent after it drained.
//! - The other side confirms a position only for what this instance of it has applied and flushed.

use crate::admin::{Outcome, check_epoch, check_generation, not_here, refusal_of};
use crate::grants::{not_durable, open_admission, return_mirror, stop_sending};
use crate::lease::EpochFence;
use crate::migration::{Leaving, Outbound};
use crate::node::Node;
use crate::seat::{Confirmed, Seat, Stopped};
use drover_base::planted::{Bug, is_planted};
use drover_base::units::EXTENT_BYTES;
use drover_base::{Epoch, Generation, MigrationId, VolumeId};
use drover_store::StoreError;
use drover_transfer::Start;
use drover_wire::admin::{
    IoLimits, Leg, NodeAddress, NodeReply, NodeRequest, Position, Refusal, Role, SendOptions, SendPhase,
};
use drover_wire::seat_record::{LegDirection, SeatRecord};
use drover_wire::writer_record::WriterRecord;
use std::{rc::Rc, time::Duration};

/// A `BeginSend`.
struct Sending {
    migration: MigrationId,
    generation: Generation,
    destination: NodeAddress,
    base_snapshot: String,
    options: SendOptions,
    compare: bool,
}

/// A `PrepareReceive`.
struct Receiving {
    migration: MigrationId,
    generation: Generation,
    volume: VolumeId,
    name: String,
    size_bytes: u64,
    reserve_bytes: u64,
    epoch: Epoch,
    source: NodeAddress,
    tenant: String,
}

/// A `Quiesce`.
struct Quiescing {
    generation: Generation,
    epoch: Epoch,
    attempt: u64,
    deadline: Duration,
}

impl Node {
    pub(crate) async fn migrate(self: &Rc<Self>, request: NodeRequest) -> Outcome {
        use NodeRequest as Ask;
        match request {
            Ask::PrepareReceive {
                migration,
                generation,
                volume,
                name,
                size_bytes,
                reserve_bytes,
                epoch,
                source,
                tenant,
            } => {
                let of =
                    Receiving { migration, generation, volume, name, size_bytes, reserve_bytes, epoch, source, tenant };
                self.prepare_receive(of).await
            }
            Ask::BeginSend { migration, generation, volume, epoch, destination, base_snapshot, options, compare } => {
                let of = Sending { migration, generation, destination, base_snapshot, options, compare };
                self.begin_send(volume, epoch, of).await
            }
            Ask::BeginMirror { migration, generation, ttl_ms } => {
                self.begin_mirror(migration, generation, ttl_ms).await
            }
            Ask::Tune { migration, generation, throttle_bytes_per_s, paused } => {
                let (_, outbound) = self.sending(migration)?;
                check_generation(generation, outbound.generation)?;
                outbound.tune(throttle_bytes_per_s, paused);
                Ok(NodeReply::Done)
            }
            Ask::Quiesce { migration, generation, epoch, attempt, deadline_ms } => {
                let deadline = Duration::from_millis(deadline_ms);
                self.quiesce(migration, Quiescing { generation, epoch, attempt, deadline }).await
            }
            Ask::ConfirmPosition { migration, generation, position } => {
                self.confirm_position(migration, generation, position).await
            }
            Ask::ResumeHolder { migration, generation, epoch, attempt } => {
                self.resume_holder(migration, generation, epoch, attempt).await
            }
            Ask::BeginProof { migration, generation } => {
                let (seat, outbound) = self.sending(migration)?;
                check_generation(generation, outbound.generation)?;
                let bytes = seat.volume.remote_bytes();
                if bytes > 0 {
                    return Err(Refusal::Conflict { reason: format!("{bytes} bytes are still at the other side") });
                }
                // What was brought is durable before the other side may be let go: no client may ever flush again.
                if !is_planted(Bug::ProofWithoutFlush) {
                    seat.volume.flush(&EpochFence(seat.lease())).await.map_err(Refusal::Io)?;
                }
                outbound.sender.begin_proof();
                Ok(NodeReply::Done)
            }
            Ask::Progress { migration } => {
                let (_, outbound) = self.sending(migration)?;
                Ok(NodeReply::Progress(Box::new(outbound.progress())))
            }
            Ask::EndMigration { migration, generation, volume, epoch, drop_volume } => {
                self.end_migration(migration, generation, volume, epoch, drop_volume).await
            }
            other => Err(Refusal::Invalid { reason: format!("{other:?} is not about a migration") }),
        }
    }

    async fn prepare_receive(self: &Rc<Self>, of: Receiving) -> Outcome {
        let _turn = self.making.lock().await;
        if let Some((seat, _its_turn)) = self.seat_in_turn(of.volume).await
            && !self.drop_superseded(&seat, &of).await?
        {
            return prepare_again(&seat, &of).await;
        }
        if !self.has_tiers() {
            return Err(Refusal::NoTiers);
        }
        let filled = self.context.store.volume(of.volume).map_or(0, |volume| volume.usage().used_bytes);
        self.refresh_promises();
        self.tiers
            .promise(of.volume, of.reserve_bytes.div_ceil(EXTENT_BYTES), filled / EXTENT_BYTES)
            .map_err(|free| Refusal::NoSpace { needed: of.reserve_bytes, free: free * EXTENT_BYTES })?;
        let record = SeatRecord {
            epoch: of.epoch,
            revision: 0,
            holder: of.source.clone(),
            role: Role::Mirror,
            ttl_ms: None,
            leg: Some(Leg {
                migration: of.migration,
                generation: of.generation,
                other: of.source,
                way_back_open: false,
            }),
            direction: LegDirection::Forward,
            base_snapshot: None,
            reserve_bytes: of.reserve_bytes,
            ended: None,
            limits: IoLimits::default(),
            tenant: of.tenant,
        };
        // The record first: a volume left by a crash in between is found by the migration that made it.
        self.write_record(of.volume, &record).await?;
        let made = self.context.store.create_volume(of.volume, &of.name, of.size_bytes).await.map_err(refusal_of)?;
        self.forget_orphan(of.volume);
        // It may have been here before, and held: what gateways were acknowledged then is not in this copy.
        self.seat_volume(made, record, WriterRecord::default()).new_instance();
        Ok(NodeReply::Done)
    }

    /// Makes room for the volume as it is now; whether an old copy was in its place. The caller has the seat's turn.
    async fn drop_superseded(self: &Rc<Self>, seat: &Rc<Seat>, of: &Receiving) -> Result<bool, Refusal> {
        let record = seat.record();
        if !is_superseded(&record, of) {
            return Ok(false);
        }
        let epoch = record.epoch;
        let text = format!("an old copy, fenced since epoch {epoch}, makes way for the volume as it is now");
        self.context.control.event("copy_dropped", Some(seat.id()), text);
        self.drop_seat(seat).await.map(|_| true)
    }

    async fn begin_send(self: &Rc<Self>, volume: VolumeId, epoch: Epoch, of: Sending) -> Outcome {
        let (seat, _turn) = self.seat_in_turn(volume).await.ok_or_else(|| not_here(volume))?;
        let record = seat.record();
        check_epoch(epoch, record.epoch)?;
        if !seat.is_holder() {
            return Err(Refusal::Conflict { reason: "this node does not hold the volume".into() });
        }
        if record.ended == Some(of.migration) {
            return Err(Refusal::Conflict { reason: format!("migration {} has ended here", of.migration) });
        }
        if let Some(leg) = &record.leg {
            if leg.migration != of.migration {
                return Err(Refusal::Conflict { reason: format!("migration {} has the volume", leg.migration) });
            }
            check_generation(of.generation, leg.generation)?;
            if record.direction == LegDirection::Return {
                return Err(Refusal::Conflict { reason: "the migration has flipped".into() });
            }
        }
        if seat.stopped.borrow().is_some() {
            return Err(Refusal::Conflict { reason: "the holder has drained for a flip".into() });
        }
        let running = seat.outbound.borrow().clone();
        if running.is_some_and(|outbound| outbound.generation == of.generation) {
            return Ok(NodeReply::Done);
        }
        // Begun before: the other side may have what was sent then, also of what is gone here since.
        let was_begun = record.leg.is_some() && !is_planted(Bug::SendNotCompared);
        let of = Sending { compare: of.compare || was_begun, ..of };
        let leg = Leg {
            migration: of.migration,
            generation: of.generation,
            other: of.destination.clone(),
            way_back_open: false,
        };
        let base_snapshot = Some(of.base_snapshot.clone());
        let next = SeatRecord { leg: Some(leg), direction: LegDirection::Forward, base_snapshot, ..record };
        seat.persist(next).await.map_err(not_durable)?;
        start_sending(&seat, of).await?;
        Ok(NodeReply::Done)
    }

    async fn begin_mirror(self: &Rc<Self>, migration: MigrationId, generation: Generation, ttl_ms: u64) -> Outcome {
        let received = self.world().now();
        let (seat, outbound) = self.sending(migration)?;
        let _turn = seat.changing.lock().await;
        still_sending(&seat, &outbound)?;
        check_generation(generation, outbound.generation)?;
        if outbound.direction == LegDirection::Return {
            return Err(Refusal::Conflict { reason: "the migration has flipped".into() });
        }
        let record = seat.record();
        let was_timed = record.ttl_ms.is_some();
        if record.ttl_ms != Some(ttl_ms) {
            seat.persist(SeatRecord { ttl_ms: Some(ttl_ms), ..record }).await.map_err(not_durable)?;
        }
        if !was_timed {
            seat.lease().make_timed(Duration::from_millis(ttl_ms), received);
            self.context.control.renew_now();
        }
        outbound.sender.begin_mirror();
        if let Some(route) = self.known_route(seat.id()) {
            // After the flip this node's clients come through a gateway.
            seat.name_if_alone(route.writer());
        }
        Ok(NodeReply::Done)
    }

    async fn quiesce(self: &Rc<Self>, migration: MigrationId, of: Quiescing) -> Outcome {
        let asked = self.world().now();
        let deadline = asked + of.deadline;
        let (seat, outbound) = self.sending(migration)?;
        let _turn = seat.changing.lock().await;
        still_sending(&seat, &outbound)?;
        check_generation(of.generation, outbound.generation)?;
        check_epoch(of.epoch, seat.record_view().epoch)?;
        if let Some(position) = already_drained(&seat, of.attempt)? {
            return Ok(NodeReply::Drained { position, admitted_ms: 0 });
        }
        seat.attempt.set(of.attempt);
        let phase = outbound.sender.progress().phase;
        if !matches!(phase, SendPhase::Synced | SendPhase::Proving | SendPhase::Proven) {
            return Err(Refusal::Conflict { reason: format!("the other side has not everything yet ({phase:?})") });
        }
        let too_late = |reason: String| Refusal::Deadline { reason };
        if is_planted(Bug::FlipWithoutDrain) {
            let position = outbound.sender.drain(deadline).await.map_err(|error| too_late(error.to_string()))?;
            return Ok(NodeReply::Drained { position, admitted_ms: 0 });
        }
        // While clients are served: the drain's own flush then has little to do. If this one fails, that one tells.
        let lease = seat.lease();
        let _ = self.world().timeout_at(deadline, seat.volume.flush(&*lease)).await;
        let admitted_ms = self.world().now().since(asked).as_millis() as u64;
        seat.set_quiescing(true);
        let stopped = async {
            let closed = self.world().timeout_at(deadline, seat.volume.quiesce()).await;
            let quiesced = closed.map_err(|_| too_late("requests under way did not end".into()))?;
            let position = outbound.sender.drain(deadline).await.map_err(|error| too_late(error.to_string()))?;
            Ok::<_, Refusal>(Stopped::new(of.attempt, position, quiesced))
        };
        match stopped.await {
            Ok(stopped) => {
                let position = stopped.position;
                // From here on it does not go on by itself, and no renewal sent before makes it serve again.
                seat.lease().suspend();
                *seat.stopped.borrow_mut() = Some(stopped);
                Ok(NodeReply::Drained { position, admitted_ms })
            }
            Err(refusal) => {
                seat.set_quiescing(false);
                Err(refusal)
            }
        }
    }

    async fn resume_holder(
        self: &Rc<Self>,
        migration: MigrationId,
        generation: Generation,
        epoch: Epoch,
        attempt: u64,
    ) -> Outcome {
        let (seat, outbound) = self.sending(migration)?;
        let _turn = seat.changing.lock().await;
        still_sending(&seat, &outbound)?;
        check_generation(generation, outbound.generation)?;
        check_epoch(epoch, seat.record_view().epoch)?;
        seat.attempt.set(seat.attempt.get().max(attempt));
        let is_ended = seat.stopped.borrow().as_ref().is_some_and(|stopped| stopped.attempt <= attempt);
        if is_ended {
            outbound.sender.resume();
            open_admission(&seat);
            self.context.control.renew_now();
        }
        Ok(NodeReply::Done)
    }

    async fn confirm_position(
        self: &Rc<Self>,
        migration: MigrationId,
        generation: Generation,
        position: Position,
    ) -> Outcome {
        let asked = self.world().now();
        let seat = self.receiving(migration)?;
        let known = seat.record_view().leg.as_ref().map_or(generation, |leg| leg.generation);
        check_generation(generation, known)?;
        if !self.context.control.has_registered() {
            // Recorded after the lease has moved here, this start would close a way back that is whole.
            return Err(Refusal::Conflict { reason: "the control plane has yet to record this start".into() });
        }
        if seat.mirrors_under().is_none() || !seat.has_durable(position) {
            return Err(Refusal::Conflict { reason: "not all of it is applied and flushed in this instance".into() });
        }
        let newest = seat.confirmed.get().filter(|confirmed| confirmed.migration == migration);
        // Asked again, or late for an earlier attempt: the clock keeps running from the first time of the newest.
        if newest.is_none_or(|newest| {
            newest.position.session != position.session || newest.position.sequence < position.sequence
        }) {
            seat.confirmed.set(Some(Confirmed { migration, position, asked }));
        }
        Ok(NodeReply::Done)
    }

    fn receiving(&self, migration: MigrationId) -> Result<Rc<Seat>, Refusal> {
        let is_it = |seat: &&Rc<Seat>| {
            let record = seat.record_view();
            record.role == Role::Mirror && record.leg.as_ref().is_some_and(|leg| leg.migration == migration)
        };
        let what = || format!("a mirror of {migration}");
        self.seats().iter().find(is_it).cloned().ok_or_else(|| Refusal::NotFound { what: what() })
    }

    async fn end_migration(
        self: &Rc<Self>,
        migration: MigrationId,
        generation: Generation,
        volume: VolumeId,
        epoch: Epoch,
        drop_volume: bool,
    ) -> Outcome {
        let Some((seat, _turn)) = self.seat_once_made(volume).await else {
            if drop_volume && self.is_orphan_of(volume, migration) {
                return self.drop_volume(volume).await;
            }
            return Ok(NodeReply::Done);
        };
        let record = seat.record();
        let leg = record.leg.as_ref().filter(|leg| leg.migration == migration);
        if let Some(leg) = leg {
            check_generation(generation, leg.generation)?;
        }
        if epoch < record.epoch {
            return Err(Refusal::Epoch { asked: epoch, known: record.epoch });
        }
        if !drop_volume {
            let ended = end_here(&seat, record, migration).await?;
            self.forget_kept(&seat);
            self.tiers.end_promise(volume);
            return Ok(ended);
        }
        if leg.is_none() {
            // Of an earlier migration: what lies here now was brought by another.
            return Ok(NodeReply::Done);
        }
        if record.role == Role::Holder && record.epoch >= epoch {
            return Err(Refusal::Conflict { reason: "the holder of a volume does not drop it".into() });
        }
        self.drop_seat(&seat).await
    }

    /// Starts the mirror back of a holder whose record has a leg, comparing everything: after a restart or a
    /// reopening nobody knows what the other side has more.
    pub(crate) fn resume_return_mirror(&self, seat: &Rc<Seat>) {
        let record = seat.record();
        let Some(leg) = record.leg else { return };
        if record.role == Role::Holder && record.direction == LegDirection::Return {
            return_mirror(seat, &seat.lease(), leg, Start::Compare).run();
        } else {
            // Whoever sends from here next compares the active regions; none may leave the log before.
            seat.volume.set_activity_pin(Some(Rc::new(|_| true)));
        }
    }
}

/// Whether what lies here is left of a lease that ended: no migration counts on it, and another node has held the volume
/// since, which is the one that sends it now. A restore of the node's metadata leaves such copies.
fn is_superseded(record: &SeatRecord, of: &Receiving) -> bool {
    record.role == Role::Fenced && record.leg.is_none() && record.epoch < of.epoch
}

/// The volume is here already: for the same migration it stays, and the newer generation is adopted. The caller has the
/// seat's turn.
async fn prepare_again(seat: &Rc<Seat>, of: &Receiving) -> Outcome {
    let record = seat.record();
    let leg = record.leg.clone().filter(|leg| {
        leg.migration == of.migration && record.role == Role::Mirror && record.direction == LegDirection::Forward
    });
    let Some(leg) = leg else {
        return Err(Refusal::Conflict { reason: format!("{} is on this node", of.volume) });
    };
    check_generation(of.generation, leg.generation)?;
    check_epoch(of.epoch, record.epoch)?;
    if of.generation > leg.generation {
        let leg = Some(Leg { generation: of.generation, ..leg });
        seat.persist(SeatRecord { leg, ..record }).await.map_err(not_durable)?;
    }
    Ok(NodeReply::Done)
}

/// Installs the sender exactly where tracking begins: at the base snapshot, or, where that was taken before, behind a
/// barrier.
async fn start_sending(seat: &Rc<Seat>, of: Sending) -> Result<(), Refusal> {
    let leaving = Leaving {
        migration: of.migration,
        generation: of.generation,
        direction: LegDirection::Forward,
        other: of.destination,
        options: of.options,
        start: if of.compare { Start::Compare } else { Start::AllData },
    };
    let outbound = Outbound::new(seat, &seat.lease(), leaving);
    let install = || {
        stop_sending(seat);
        outbound.install(seat);
        *seat.outbound.borrow_mut() = Some(outbound.clone());
    };
    if seat.volume.snapshots().iter().any(|snapshot| snapshot.name == of.base_snapshot) {
        seat.volume.barrier(install).await;
    } else {
        seat.volume.snapshot_with(&of.base_snapshot, install).await.map_err(refusal_of)?;
    }
    outbound.run();
    Ok(())
}

/// The seat's part in the migration is over and the volume stays: a holder's sender and base snapshot go.
async fn end_here(seat: &Rc<Seat>, record: SeatRecord, migration: MigrationId) -> Outcome {
    let is_its_leg = record.leg.as_ref().is_some_and(|leg| leg.migration == migration);
    if !is_its_leg && record.ended != Some(migration) {
        return Ok(NodeReply::Done);
    }
    if record.role != Role::Holder {
        return Err(Refusal::Conflict {
            reason: "who does not hold the volume keeps it only for the migration".into(),
        });
    }
    let ended = SeatRecord { leg: None, ended: Some(migration), ..record };
    if is_its_leg {
        // Durable before answers that wait for the other side are given.
        seat.persist(ended.clone()).await.map_err(not_durable)?;
        stop_sending(seat);
        seat.volume.set_activity_pin(None);
        if seat.stopped.borrow().is_some() {
            open_admission(seat);
        }
    }
    if let Some(name) = &ended.base_snapshot {
        match seat.volume.delete_snapshot(name).await {
            Ok(()) | Err(StoreError::NoSnapshot { .. }) => {}
            Err(error) => return Err(refusal_of(error)),
        }
    }
    // What came with the volume without being anybody's snapshot stays for as long as others stand on it.
    seat.volume.forget_passing().await.map_err(refusal_of)?;
    if ended.base_snapshot.is_some() || ended.reserve_bytes > 0 {
        let last = SeatRecord { base_snapshot: None, reserve_bytes: 0, ..ended };
        seat.persist(last).await.map_err(not_durable)?;
    }
    seat.context.control.renew_now();
    Ok(NodeReply::Done)
}

fn still_sending(seat: &Seat, outbound: &Rc<Outbound>) -> Result<(), Refusal> {
    let is_current = seat.outbound.borrow().as_ref().is_some_and(|current| Rc::ptr_eq(current, outbound));
    if is_current { Ok(()) } else { Err(Refusal::NotFound { what: format!("a sender of {}", outbound.migration) }) }
}

/// The position at which an attempt has drained before; an attempt that is over is refused.
fn already_drained(seat: &Seat, attempt: u64) -> Result<Option<Position>, Refusal> {
    let over = || Refusal::Conflict { reason: format!("attempt {attempt} at the flip is over") };
    let mut stopped = seat.stopped.borrow_mut();
    if let Some(stopped) = &mut *stopped {
        if attempt < stopped.attempt {
            return Err(over());
        }
        // Nothing was admitted since: what an earlier attempt drained is drained for this one.
        stopped.attempt = attempt;
        seat.attempt.set(attempt);
        return Ok(Some(stopped.position));
    }
    if attempt <= seat.attempt.get() { Err(over()) } else { Ok(None) }
}
