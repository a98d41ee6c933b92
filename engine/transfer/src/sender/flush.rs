//! Flushes of the other side: those that clients ask for, and those that keep what is unflushed small.
//!
//! A flush covers what was acknowledged before it was put on the stream. One that is put there while nothing
//! is left to send makes the sender synced when it succeeds, unless an error or a new link came between.

use super::copy::Reply;
use super::{Sender, State, Step};
use drover_base::{Instant, IoError, LocalFuture};
use drover_wire::admin::Position;
use drover_wire::peer::{Answer, Operation};
use std::{rc::Rc, time::Duration};

/// How often the other side is flushed: what a crash there makes sent again, and how recent a flush the flip finds.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

/// Acknowledged bytes after which it is flushed sooner: half a second of a gigabit link.
const FLUSH_BYTES: u64 = 64 << 20;

impl State {
    fn flush_due(&self, now: Instant) -> Step<bool> {
        if self.stopped {
            return Step::Done(false);
        }
        if self.link.is_none() || self.draining || self.drained || self.is_failed() {
            return Step::Wait;
        }
        if self.trouble.retry_at() > now {
            return Step::WaitUntil(self.trouble.retry_at());
        }
        if self.wants_sync()
            || self.compare.wants_flush()
            || self.wants_flush_for_reads()
            || self.acknowledged_since_flush >= FLUSH_BYTES
        {
            return Step::Done(true);
        }
        if !self.mirror && !self.ledger.has_unflushed() {
            return Step::Wait;
        }
        let due = self.flush_sent_at + FLUSH_INTERVAL;
        if now >= due { Step::Done(true) } else { Step::WaitUntil(due) }
    }

    /// Somebody waits for what the landing of a mirrored write changes.
    pub fn is_landing_awaited(&self) -> bool {
        self.draining || self.waiting > 0 || self.room_waits > 0 || self.acknowledged_since_flush >= FLUSH_BYTES
    }

    /// A flush of a client may be put on the stream, or answered without.
    fn client_flush_step(&self, now: Instant) -> Step<ClientFlush> {
        if self.link.is_none() || self.stopped {
            return if self.must_hold() { Step::Wait } else { Step::Done(ClientFlush::Answer) };
        }
        if !self.must_hold() {
            return Step::Done(ClientFlush::Send);
        }
        if self.trouble.retry_at() > now {
            return Step::WaitUntil(self.trouble.retry_at());
        }
        // What was acknowledged but got lost at the other side must be there again before a flush says so.
        let is_whole = self.ledger.pending().is_empty() && self.copy.is_idle() && !self.is_working_out();
        if is_whole { Step::Done(ClientFlush::Send) } else { Step::Wait }
    }
}

/// What to do with a client's flush.
enum ClientFlush {
    Send,
    /// This side alone counts.
    Answer,
}

impl Sender {
    pub(super) async fn run_flusher(self: Rc<Self>) {
        while self.until(|state, now| state.flush_due(now)).await {
            // A failure is noted by the flush itself and makes the next one wait.
            let _ = self.flush_once().await;
        }
    }

    /// One flush on the stream, and its place there. Everything acknowledged before this call is durable when it
    /// succeeds.
    pub(super) async fn flush_once(&self) -> Result<Position, IoError> {
        let now = self.world.now();
        let (up, number, syncs) = {
            let mut state = self.state.borrow_mut();
            let up = state.link.clone().ok_or(IoError::Disconnected)?;
            state.acknowledged_since_flush = 0;
            state.flush_sent_at = now;
            let syncs = state.wants_sync().then_some(state.unsynced);
            (up, state.ledger.flush_sent(), syncs)
        };
        let reply: Reply = self.put(&up, Operation::Flush { note: self.volume.note() });
        let position = up.link.position();
        let error = match reply.await {
            Ok(Answer::Done) => {
                let now = self.world.now();
                let mut state = self.state.borrow_mut();
                state.ledger.flushed(number);
                state.flushed_at = Some(now);
                state.flushed_link = up.number;
                state.synced |= syncs == Some(state.unsynced);
                let link = state.link.as_ref().map(|up| up.number);
                state.compare.flushed(link == Some(up.number));
                drop(state);
                self.changed.notify_waiters();
                return Ok(position);
            }
            Ok(_) => IoError::Corrupt,
            Err(error) => error,
        };
        if error != IoError::Disconnected {
            // A sync that failed may have lost what came before it, without a crash.
            self.state.borrow_mut().ledger.instance_changed();
        }
        self.failed_on(up.number, &error);
        Err(error)
    }

    /// What a client's flush means for the other side.
    pub(super) fn flushing(&self) -> Option<LocalFuture<'static, Result<(), IoError>>> {
        let state = self.state.borrow();
        if !state.is_running() || !state.mirror || state.link.is_none() && !state.must_hold() {
            return None;
        }
        drop(state);
        let me = self.me.upgrade()?;
        Some(self.apart(me.flush_for_client()))
    }

    async fn flush_for_client(self: Rc<Self>) -> Result<(), IoError> {
        loop {
            let step = self.state.borrow().client_flush_step(self.world.now());
            let what = match step {
                Step::Done(what) => what,
                _ => {
                    self.begin_waiting();
                    let what = self.until(|state, now| state.client_flush_step(now)).await;
                    self.end_waiting();
                    what
                }
            };
            match what {
                ClientFlush::Answer => return Ok(()),
                ClientFlush::Send if self.flush_once().await.is_ok() => return Ok(()),
                // It failed. Before the flip this side alone counts.
                ClientFlush::Send if !self.state.borrow().must_hold() => return Ok(()),
                ClientFlush::Send => {}
            }
        }
    }
}
