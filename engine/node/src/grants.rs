//! Adopting grants: how a seat becomes holder, becomes the other side, or only learns who holds.
//!
//! ```text
//!   same epoch, newer revision: time limit and leg change         newer epoch: fence ► drain ► persist ► act
//!   anything not newer: nothing changes
//! ```
//! Order within a newer epoch (must): what is done under the old one is fenced, then drained, then the record is
//! written, then the new role is taken. The tap of a return mirror is installed before the first request is admitted.

use crate::lease::LeaseGuard;
use crate::migration::{Leaving, Outbound};
use crate::node::Node;
use crate::seat::Seat;
use crate::session::SessionKey;
use crate::writers::writer_may_owe;
use drover_base::planted::{Bug, is_planted};
use drover_base::{Instant, VolumeId};
use drover_store::meta::MetaError;
use drover_store::{Quiesced, Unfenced};
use drover_transfer::Start;
use drover_wire::admin::{Grant, Leg, Refusal, Role, SendOptions};
use drover_wire::seat_record::{LegDirection, SeatRecord};
use drover_wire::writer_record::WriterRecord;
use std::{rc::Rc, time::Duration};

/// What a return mirror is sent with: as fast as it goes, it mirrors from the start.
const RETURN_OPTIONS: SendOptions =
    SendOptions { throttle_bytes_per_s: None, mirror_at_once: true, hot_first: false, dedup: true };

pub(crate) fn not_durable(error: MetaError) -> Refusal {
    Refusal::Failed { reason: format!("the record could not be written: {error}") }
}

impl Node {
    /// Adopts what is recorded. Idempotent; a copy of an older grant changes nothing.
    pub(crate) async fn adopt(self: &Rc<Self>, grant: Grant) -> Result<(), Refusal> {
        self.context.control.learn(&grant);
        let mine = self.context.is_me(&grant.holder.node);
        let Some((seat, _turn)) = self.seat_in_turn(grant.volume).await else {
            let what = || format!("{}, which it is to hold,", grant.volume);
            return if mine { Err(Refusal::NotFound { what: what() }) } else { Ok(()) };
        };
        let record = take_limits(&seat, &grant).await?;
        if grant.epoch < record.epoch {
            return Err(Refusal::Epoch { asked: grant.epoch, known: record.epoch });
        }
        if (grant.epoch, grant.revision) <= (record.epoch, record.revision) {
            return Ok(());
        }
        match () {
            () if grant.epoch == record.epoch => self.revise(&seat, record, grant).await,
            () if mine => self.activate(&seat, record, grant).await,
            () => self.stand_down(&seat, record, grant).await,
        }
    }

    /// Same epoch, so the same holder: its time limit or its leg changed.
    async fn revise(self: &Rc<Self>, seat: &Rc<Seat>, record: SeatRecord, grant: Grant) -> Result<(), Refusal> {
        let mut next = SeatRecord { revision: grant.revision, ..record.clone() };
        if record.role != Role::Holder {
            // The other side's leg ends by `EndMigration`, which names it.
            return seat.persist(next).await.map_err(not_durable);
        }
        next.ttl_ms = grant.ttl_ms;
        next.leg = match (record.leg, grant.leg) {
            (Some(known), Some(told)) if known.migration == told.migration => Some(told),
            (Some(known), None) => {
                next.ended = Some(known.migration);
                None
            }
            // Before the flip a leg begins by `BeginSend` alone.
            (known, _) => known,
        };
        let is_over = next.leg.is_none();
        seat.persist(next).await.map_err(not_durable)?;
        match grant.ttl_ms {
            None => seat.lease().make_untimed(),
            Some(ttl_ms) => {
                // Being told starts no clock: it runs once a renewal is answered.
                seat.lease().make_timed(Duration::from_millis(ttl_ms), Instant(0));
                self.context.control.renew_now();
            }
        }
        if is_over {
            stop_sending(seat);
            self.forget_kept(seat);
            // It had drained for a flip that never came: nobody tells it to go on once its sender is gone.
            if seat.stopped.borrow().is_some() {
                open_admission(seat);
            }
        }
        seat.tell();
        Ok(())
    }

    /// This node holds the volume from now on.
    async fn activate(self: &Rc<Self>, seat: &Rc<Seat>, record: SeatRecord, grant: Grant) -> Result<(), Refusal> {
        let quiesced = fence_and_drain(seat).await;
        // Nothing to do after a drain. Where the lease is taken over, what the note says of earlier terms becomes true
        // here; if that fails, the volume is poisoned, and opened again it has the note that is.
        let _ = seat.volume.flush(&Unfenced).await;
        let writers = WriterRecord::decode(&seat.volume.note()).map_err(|error| {
            seat.give_up_role_change();
            Refusal::Failed { reason: format!("the volume's note is damaged: {error}") }
        })?;
        let confirmed = seat.confirmed.get().filter(|confirmed| {
            record.role == Role::Mirror && record.leg.as_ref().is_some_and(|leg| leg.migration == confirmed.migration)
        });
        let next = SeatRecord {
            epoch: grant.epoch,
            revision: grant.revision,
            holder: grant.holder.clone(),
            role: Role::Holder,
            ttl_ms: grant.ttl_ms,
            leg: grant.leg.clone(),
            direction: LegDirection::Return,
            ended: ended(&record, grant.leg.as_ref()),
            ..record
        };
        if let Err(error) = seat.persist(next).await {
            seat.give_up_role_change();
            return Err(not_durable(error));
        }
        // This instance has had everything since it confirmed a position, if the holder had; otherwise it may have lost
        // something.
        let may_owe = writer_may_owe(&self.context, self.known_route(seat.id()).as_deref(), &writers);
        let owes = may_owe && (confirmed.is_none() || writers.owed);
        seat.load_writers(writers, owes);
        // Nothing waits between the new guard and the tap: no request comes in between.
        let lease = seat.take_office();
        seat.set_handed_over(false);
        seat.confirmed.set(None);
        // While its layers came, it had their sizes.
        seat.grew();
        self.route_became_local(seat.id());
        let start = if confirmed.is_some() { Start::Clean } else { Start::Compare };
        let outbound = grant.leg.map(|leg| return_mirror(seat, &lease, leg, start));
        if let Some(confirmed) = confirmed {
            lease.renewed(confirmed.asked);
        }
        open_admission(seat);
        drop(quiesced);
        if let Some(outbound) = outbound {
            outbound.run();
        }
        self.context.control.renew_now();
        seat.tell();
        Ok(())
    }

    /// Another node holds the volume from now on.
    async fn stand_down(self: &Rc<Self>, seat: &Rc<Seat>, record: SeatRecord, grant: Grant) -> Result<(), Refusal> {
        let had_drained = seat.stopped.borrow().is_some();
        let quiesced = fence_and_drain(seat).await;
        let same_leg = |leg: &Leg| record.leg.as_ref().is_some_and(|known| known.migration == leg.migration);
        let leg = grant.leg.clone().filter(same_leg);
        let next = SeatRecord {
            epoch: grant.epoch,
            revision: grant.revision,
            holder: grant.holder.clone(),
            role: if leg.is_some() { Role::Mirror } else { Role::Fenced },
            ttl_ms: grant.ttl_ms,
            // Without a leg the volume waits to be dropped, by a request that names the migration.
            leg: leg.or(record.leg.clone()),
            direction: LegDirection::Return,
            ..record
        };
        if let Err(error) = seat.persist(next).await {
            seat.give_up_role_change();
            return Err(not_durable(error));
        }
        if !had_drained && !is_planted(Bug::SupersededInstanceStays) {
            // What it acknowledged last may be lost, whoever holds the volume next: itself, too.
            seat.new_instance();
        }
        seat.set_handed_over(had_drained);
        seat.confirmed.set(None);
        if let Some(route) = self.known_route(seat.id()) {
            route.became_remote(&grant, had_drained);
        }
        seat.take_office();
        open_admission(seat);
        drop(quiesced);
        Ok(())
    }

    /// The leg may be over: then nobody can take over, and what is kept for that is let go.
    pub(crate) fn forget_kept(&self, seat: &Seat) {
        if !seat.may_be_superseded()
            && let Some(route) = self.known_route(seat.id())
        {
            route.forget_kept();
        }
    }

    pub(crate) fn route_became_local(&self, volume: VolumeId) {
        if let Some(route) = self.known_route(volume) {
            route.became_local();
        }
    }
}

/// Their revision is their own: they count whatever the rest of the grant says. Before anything else: a holder serves
/// nothing without them.
async fn take_limits(seat: &Seat, grant: &Grant) -> Result<SeatRecord, Refusal> {
    let record = seat.record();
    if grant.limits.revision <= record.limits.revision || is_planted(Bug::LimitsStayBehind) && !seat.is_holder() {
        return Ok(record);
    }
    let next = SeatRecord { limits: grant.limits, ..record };
    seat.persist(next.clone()).await.map_err(not_durable)?;
    Ok(next)
}

/// Which migration is over for a seat whose leg changes.
fn ended(record: &SeatRecord, leg: Option<&Leg>) -> Option<drover_base::MigrationId> {
    match (&record.leg, leg) {
        (Some(known), Some(told)) if known.migration == told.migration => record.ended,
        (Some(known), _) => Some(known.migration),
        (None, _) => record.ended,
    }
}

/// Ends what the seat does under its present epoch: clients' requests, a sender, a stream that is applied. The volume
/// admits nobody until the result is dropped.
async fn fence_and_drain(seat: &Rc<Seat>) -> Option<Quiesced> {
    seat.begin_role_change();
    seat.lease().revoke();
    seat.tell();
    stop_sending(seat);
    let is_mirror = |key| key == SessionKey::Mirror;
    seat.sessions.close(is_mirror);
    seat.sessions.drained(is_mirror).await;
    if seat.stopped.borrow().is_some() {
        return None;
    }
    Some(seat.volume.quiesce().await)
}

/// Lets requests in again; those that waited find what the seat is now.
pub(crate) fn open_admission(seat: &Seat) {
    let stopped = seat.stopped.take();
    seat.set_quiescing(false);
    drop(stopped);
}

pub(crate) fn stop_sending(seat: &Seat) {
    if let Some(outbound) = seat.outbound.take() {
        outbound.stop(seat);
    }
}

/// Installs the mirror back to the side that held before; it does not run yet. Nothing may wait between this and the
/// guard under which clients are served.
pub(crate) fn return_mirror(seat: &Rc<Seat>, lease: &Rc<LeaseGuard>, leg: Leg, start: Start) -> Rc<Outbound> {
    let leaving = Leaving {
        migration: leg.migration,
        generation: leg.generation,
        direction: LegDirection::Return,
        other: leg.other,
        options: RETURN_OPTIONS,
        start,
    };
    let outbound = Outbound::new(seat, lease, leaving);
    outbound.install(seat);
    *seat.outbound.borrow_mut() = Some(outbound.clone());
    outbound
}
