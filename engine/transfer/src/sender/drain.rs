//! The last of the stream before a flip.

use super::{Sender, Step};
use crate::TransferError;
use drover_base::Instant;
use drover_wire::admin::Position;
use futures::future::join;

/// While it lives the sender hurries: no throttle, no pause, the whole window.
struct Hurry<'a>(&'a Sender);

impl<'a> Hurry<'a> {
    fn begin(sender: &'a Sender) -> Self {
        sender.state.borrow_mut().draining = true;
        sender.changed.notify_waiters();
        Self(sender)
    }
}

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.state.borrow_mut().draining = false;
        self.0.changed.notify_waiters();
    }
}

impl Sender {
    /// Sends what is left and has it flushed, there and here; returns the place in the stream up to which the other side has then
    /// applied and flushed everything. To be called while the volume is quiesced. After a success nothing more is
    /// sent until [`Sender::resume`]; after a failure all goes on as before.
    pub async fn drain(&self, deadline: Instant) -> Result<Position, TransferError> {
        let drained = {
            let _hurry = Hurry::begin(self);
            self.world.timeout_at(deadline, self.drain_now()).await
        };
        let mut state = self.state.borrow_mut();
        let outcome = drained.unwrap_or_else(|_| {
            let dirty_bytes = state.dirty_bytes();
            Err(TransferError::Deadline { dirty_bytes })
        });
        state.drained = outcome.is_ok();
        drop(state);
        self.changed.notify_waiters();
        outcome
    }

    async fn drain_now(&self) -> Result<Position, TransferError> {
        loop {
            let is_stopped = self
                .until(|state, now| {
                    let retry_at = state.trouble.retry_at();
                    if state.stopped {
                        Step::Done(true)
                    } else if retry_at > now {
                        Step::WaitUntil(retry_at)
                    } else if state.is_all_sent() {
                        Step::Done(false)
                    } else {
                        Step::Wait
                    }
                })
                .await;
            if is_stopped {
                return Err(TransferError::Stopped);
            }
            self.fence.check().map_err(TransferError::Fenced)?;
            let before = self.state.borrow().unsynced;
            // This side's own volume too: the mirror back will count on what it has.
            let (own, other) = join(self.volume.flush(&*self.fence), self.flush_once()).await;
            own.map_err(TransferError::Local)?;
            let Ok(position) = other else { continue };
            let state = self.state.borrow();
            // An error or another link in between: the flush may not cover what was sent.
            if state.unsynced == before && state.is_all_sent() {
                return Ok(position);
            }
        }
    }

    /// The drain did not become a flip: goes on as before it.
    pub fn resume(&self) {
        self.state.borrow_mut().drained = false;
        self.changed.notify_waiters();
    }
}
