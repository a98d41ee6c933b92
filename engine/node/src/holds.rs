//! Snapshots of several volumes at one moment: each volume is held, then each is frozen, then each is released.
//!
//! ```text
//!   volume 1  ──HoldVolume──┤ nobody admitted ├─SnapshotHeld─┤──ReleaseVolume──►
//!   volume 2  ───HoldVolume───┤ nobody admitted ├─SnapshotHeld──┤──ReleaseVolume──►
//!                               ▲ all hold: what is frozen afterwards is of this moment
//! ```
//! Orders that must hold
//! - A snapshot is taken only while its hold lasts without a break: what it freezes is what the volume held when the hold
//!   began, so if all of them were asked for after all had answered that they hold, all are of one moment.
//! - A hold ends by itself when its time is over, counted from when the request came: whoever asked may be gone.

use crate::admin::{Outcome, not_here, refusal_of};
use crate::node::Node;
use drover_base::{Instant, OperationId, VolumeId};
use drover_store::Quiesced;
use drover_wire::admin::{NodeReply, Refusal};
use std::{rc::Rc, time::Duration};

/// Nobody is admitted to the volume while it lives.
pub(crate) struct Hold {
    of: OperationId,
    until: Instant,
    quiesced: Rc<Quiesced>,
}

impl Node {
    pub(crate) async fn hold_volume(self: &Rc<Self>, volume: VolumeId, hold: OperationId, time: Duration) -> Outcome {
        let deadline = self.world().now() + time;
        let late = |what: &str| Refusal::Deadline { reason: format!("{what} took longer than a volume may be held") };
        let holding = async {
            let (seat, turn) = self.free_holder(volume).await?;
            if seat.held.borrow().is_some() {
                return Err(Refusal::Conflict { reason: "the volume is held for another snapshot".into() });
            }
            seat.whole().await.map_err(Refusal::Io)?;
            // While clients are served: the snapshot's own flush then has little to do. If this one fails, that one tells.
            let lease = seat.lease();
            let _ = seat.volume.flush(&*lease).await;
            let quiesced = Rc::new(seat.volume.quiesce().await);
            *seat.held.borrow_mut() = Some(Hold { of: hold, until: deadline, quiesced });
            drop(turn);
            Ok(seat)
        };
        let seat = self.world().timeout_at(deadline, holding).await.map_err(|_| late("what was under way"))??;
        let world = self.world().clone();
        self.world()
            .spawn(async move {
                world.timer.sleep_until(deadline).await;
                end_hold(&seat.held, hold);
            })
            .detach();
        Ok(NodeReply::Done)
    }

    pub(crate) async fn snapshot_held(self: &Rc<Self>, volume: VolumeId, name: &str, hold: OperationId) -> Outcome {
        let (seat, _turn) = self.free_holder(volume).await?;
        let held = |held: &Hold| (held.until, held.quiesced.clone());
        let held = seat.held.borrow().as_ref().filter(|held| held.of == hold).map(held);
        let over = || Refusal::Conflict { reason: "the volume is not held any more".into() };
        let (until, quiesced) = held.ok_or_else(over)?;
        let taken = async { seat.volume.snapshot_quiesced(name, hold, &quiesced).await };
        let taken = self.world().timeout_at(until, taken).await;
        let late = |_| Refusal::Deadline { reason: "the snapshot took longer than a volume may be held".into() };
        taken.map_err(late)?.map_err(refusal_of)?;
        Ok(NodeReply::Done)
    }

    pub(crate) fn release_volume(&self, volume: VolumeId, hold: OperationId) -> Outcome {
        if let Some(seat) = self.seat(volume) {
            end_hold(&seat.held, hold);
        }
        Ok(NodeReply::Done)
    }

    /// Waits for a snapshot that is being taken: it has the seat's turn, and where its time was over, its flush ends before
    /// another.
    pub(crate) async fn undo_snapshot(self: &Rc<Self>, volume: VolumeId, name: &str, hold: OperationId) -> Outcome {
        let (seat, _turn) = self.seat_in_turn(volume).await.ok_or_else(|| not_here(volume))?;
        end_hold(&seat.held, hold);
        let lease = seat.lease();
        seat.volume.flush(&*lease).await.map_err(Refusal::Io)?;
        let is_there = || seat.volume.snapshots().iter().any(|snapshot| snapshot.name == name);
        if seat.volume.has_done(hold) && is_there() {
            seat.volume.delete_snapshot(name).await.map_err(refusal_of)?;
        }
        Ok(NodeReply::Done)
    }
}

/// Lets clients in again, if it is this hold that keeps them out.
fn end_hold(held: &std::cell::RefCell<Option<Hold>>, hold: OperationId) {
    let ended = {
        let mut held = held.borrow_mut();
        if held.as_ref().is_some_and(|held| held.of == hold) { held.take() } else { None }
    };
    drop(ended);
}
