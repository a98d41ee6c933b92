//! Mirrored writes: what a client's change means for the other side.
//!
//! A change is put on the stream where it is seen, under its extents' locks. Its answer waits for the reply; what
//! happens on an error is told at the head of [`crate::sender`].
//!
//! Invariants
//! - A mirrored write runs apart from the request that caused it: a client that goes away leaves no block in flight.
//! - A write that waits has its blocks marked, and is sent again with its own data: no later change can have touched
//!   its extents, because the store holds their locks until the write is answered. The copier cannot get at them.
//! - Before the flip, at most `mirrored_bytes_max` are on their way, and one write more: what comes then is put on the stream
//!   when there is room, or marked when the link is lost. All at once they would break the connection again and again.

use super::copy::Reply;
use super::{Sender, State, Step, Up};

use crate::ledger::Flight;
use drover_base::planted::{Bug, is_planted};
use drover_base::units::EXTENT_BYTES;
use drover_base::{ByteRange, Instant, IoError, LocalFuture};
use drover_store::{TapChange, is_zero};
use drover_wire::peer::{Operation, Payload};
use futures::channel::oneshot;
use std::{future::Future, rc::Rc};

/// A mirrored write that was not answered yet.
pub struct Outstanding {
    operation: Operation,
    range: ByteRange,
    /// It failed and waits to be sent again.
    waiting: bool,
    /// It was sent again; for its own task to take up.
    again: Option<Attempt>,
}

/// One sending of a write.
pub struct Attempt {
    bytes: u64,
    flight: Flight,
    link: u64,
    reply: Reply,
}

/// What to do about a write that the other side does not have.
enum Verdict {
    Answer,
    /// It was sent again by a new link.
    Sent(Attempt),
    Send(Operation, Up),
}

fn zero(range: ByteRange, may_unmap: bool) -> Operation {
    Operation::Zero { range, may_unmap, fast_only: false, fua: false, replay: false }
}

fn operation_of(change: &TapChange) -> (ByteRange, Operation) {
    match change {
        TapChange::Write { offset, data } => {
            let range = ByteRange { offset: *offset, len: data.len() as u64 };
            if is_zero(data) {
                // Allocated as it is here, but not sent.
                return (range, zero(range, false));
            }
            let data = Payload::plain(data.clone());
            (range, Operation::Write { offset: *offset, data, fua: false, replay: false })
        }
        TapChange::Zero { offset, len, may_unmap } => {
            let range = ByteRange { offset: *offset, len: *len };
            (range, zero(range, *may_unmap))
        }
    }
}

/// The extents that a range touches, as one range.
fn whole_extents(range: ByteRange) -> ByteRange {
    let offset = range.offset / EXTENT_BYTES * EXTENT_BYTES;
    ByteRange { offset, len: range.end().next_multiple_of(EXTENT_BYTES) - offset }
}

impl State {
    fn mark_change(&mut self, range: ByteRange, is_write: bool) {
        if is_write { self.ledger.mark(range) } else { self.ledger.mark_zeroed(range) }
    }

    /// Every call of [`Sender::carry`] follows one of this.
    fn begin_pace(&mut self, now: Instant) {
        self.pace.begin(now, self.client_writes.bytes_per_s(now));
    }

    fn is_alone_on_its_extents(&self, range: ByteRange) -> bool {
        let extents = whole_extents(range);
        let meets = |other: ByteRange| other.offset < extents.end() && extents.offset < other.end();
        !self.outstanding.values().any(|write| meets(whole_extents(write.range)))
    }

    fn register(&mut self, range: ByteRange, operation: Operation) -> u64 {
        debug_assert!(self.is_alone_on_its_extents(range) || is_planted(Bug::MirrorNotAwaited), "{range:?}");
        self.writes += 1;
        let write = Outstanding { operation, range, waiting: false, again: None };
        self.outstanding.insert(self.writes, write);
        self.writes
    }
}

impl Sender {
    pub(super) fn changing(&self, change: &TapChange) -> Option<LocalFuture<'static, Result<(), IoError>>> {
        let (range, operation) = operation_of(change);
        let is_write = matches!(change, TapChange::Write { .. });
        let now = self.world.now();
        let mut state = self.state.borrow_mut();
        if !state.is_running() {
            return None;
        }
        if is_write {
            state.client_writes.add(range.len, now);
        }
        if !state.mirror {
            let was_empty = state.ledger.pending().is_empty();
            if !is_planted(Bug::DirtyNotMarked) {
                state.mark_change(range, is_write);
            }
            drop(state);
            if was_empty {
                self.changed.notify_waiters();
            }
            return None;
        }
        let up = state.link.clone();
        match up {
            None => self.change_without_link(&mut state, range, operation, is_write),
            Some(_) if !state.is_hold_kind() && state.mirrored_bytes >= self.config.mirrored_bytes_max => {
                state.begin_pace(now);
                state.room_waits += 1;
                let failures = state.local_failures;
                drop(state);
                Some(self.apart(self.me.upgrade()?.carry_when_there_is_room(range, operation, is_write, failures)))
            }
            Some(up) => {
                state.begin_pace(now);
                let number = state.is_hold_kind().then(|| state.register(range, operation.clone()));
                drop(state);
                let attempt = self.attempt(range, operation, &up);
                let carried = self.apart(self.me.upgrade()?.carry(number, range, Some(attempt)));
                if is_planted(Bug::MirrorNotAwaited) { None } else { Some(carried) }
            }
        }
    }

    fn change_without_link(
        &self,
        state: &mut State,
        range: ByteRange,
        operation: Operation,
        is_write: bool,
    ) -> Option<LocalFuture<'static, Result<(), IoError>>> {
        state.mark_change(range, is_write);
        if !state.must_hold() || is_planted(Bug::WayBackNotRecorded) {
            return None;
        }
        state.begin_pace(self.world.now());
        let number = state.register(range, operation);
        // From here on, not from its first poll: a link that comes up now must find it.
        self.wait_counted(state, number);
        Some(self.apart(self.me.upgrade()?.carry(Some(number), range, None)))
    }

    /// Puts a write on the stream; its blocks are in flight and no longer pending.
    fn attempt(&self, range: ByteRange, operation: Operation, up: &Up) -> Attempt {
        let bytes = if matches!(operation, Operation::Write { .. }) { range.len } else { 0 };
        let mut state = self.state.borrow_mut();
        let flight = state.ledger.depart_range(range);
        state.mirrored_bytes += bytes;
        drop(state);
        Attempt { bytes, flight, link: up.number, reply: self.put(up, operation) }
    }

    /// `failures`: local ones when it was asked.
    async fn carry_when_there_is_room(
        self: Rc<Self>,
        range: ByteRange,
        operation: Operation,
        is_write: bool,
        failures: u64,
    ) -> Result<(), IoError> {
        let room = |state: &mut State, _| match &state.link {
            Some(up) if !state.stopped => {
                if state.mirrored_bytes < self.config.mirrored_bytes_max {
                    Step::Done(Some(up.clone()))
                } else {
                    Step::Wait
                }
            }
            _ => Step::Done(None),
        };
        let up = self.until(room).await;
        let attempt = up.map(|up| self.attempt(range, operation, &up));
        {
            let mut state = self.state.borrow_mut();
            state.room_waits -= 1;
            if attempt.is_none() && !is_planted(Bug::WaitingNotMarked) {
                state.mark_change(range, is_write);
            } else if state.local_failures != failures {
                // It may be the one that failed here: that had marked it before it was sent.
                state.ledger.mark(range);
                state.unsync();
            }
        }
        self.carry(None, range, attempt).await
    }

    /// Sees a write through until it may be answered. `number`: its place in `outstanding`, where answers may wait.
    async fn carry(
        self: Rc<Self>,
        number: Option<u64>,
        range: ByteRange,
        mut attempt: Option<Attempt>,
    ) -> Result<(), IoError> {
        loop {
            if let Some(Attempt { bytes, flight, link, reply }) = attempt.take() {
                let result = reply.await;
                self.state.borrow_mut().mirrored_bytes -= bytes;
                if self.landed(flight, link, result) {
                    break;
                }
            }
            let Some(number) = number else { break };
            attempt = match self.until(|state, now| self.verdict(state, number, now)).await {
                Verdict::Answer => None,
                Verdict::Sent(again) => Some(again),
                Verdict::Send(operation, up) => Some(self.attempt(range, operation, &up)),
            };
            self.wait_over(number);
            if attempt.is_none() {
                break;
            }
        }
        let mut state = self.state.borrow_mut();
        state.pace.end(self.world.now());
        if let Some(number) = number {
            state.outstanding.remove(&number);
        }
        Ok(())
    }

    /// The other side does not have the write: it waits until it need not, or is sent again.
    fn verdict(&self, state: &mut State, number: u64, now: Instant) -> Step<Verdict> {
        let must_hold = state.must_hold() && !is_planted(Bug::WayBackNotRecorded);
        let up = state.link.clone().filter(|_| !state.is_failed());
        let retry_at = state.trouble.retry_at();
        let write = state.outstanding.get_mut(&number).expect("a write is outstanding until answered");
        if let Some(again) = write.again.take() {
            return Step::Done(Verdict::Sent(again));
        }
        if !must_hold {
            return Step::Done(Verdict::Answer);
        }
        match up {
            Some(up) if retry_at <= now => return Step::Done(Verdict::Send(write.operation.clone(), up)),
            _ => self.wait_counted(state, number),
        }
        if state.link.is_some() && retry_at > now { Step::WaitUntil(retry_at) } else { Step::Wait }
    }

    /// Sends every write that waits on the new link, in their order, before anything else goes there.
    pub(super) fn resend_held(&self) {
        let Some(up) = self.state.borrow().link.clone() else { return };
        let waiting: Vec<_> = self
            .state
            .borrow()
            .outstanding
            .iter()
            .filter(|(_, write)| write.waiting && write.again.is_none())
            .map(|(number, write)| (*number, write.range, write.operation.clone()))
            .collect();
        for (number, range, operation) in waiting {
            let attempt = self.attempt(range, operation, &up);
            let mut state = self.state.borrow_mut();
            state.outstanding.get_mut(&number).expect("nothing ran in between").again = Some(attempt);
        }
    }

    fn wait_counted(&self, state: &mut State, number: u64) {
        let write = state.outstanding.get_mut(&number).expect("a write is outstanding until answered");
        if !std::mem::replace(&mut write.waiting, true) {
            self.count_waiting(state);
            self.changed.notify_waiters();
        }
    }

    fn wait_over(&self, number: u64) {
        let mut state = self.state.borrow_mut();
        let write = state.outstanding.get_mut(&number).expect("a write is outstanding until answered");
        if std::mem::replace(&mut write.waiting, false) {
            state.waiting -= 1;
        }
    }

    pub(super) fn begin_waiting(&self) {
        self.count_waiting(&mut self.state.borrow_mut());
        self.changed.notify_waiters();
    }

    pub(super) fn end_waiting(&self) {
        self.state.borrow_mut().waiting -= 1;
    }

    fn count_waiting(&self, state: &mut State) {
        if state.waiting == 0 {
            state.waiting_since = self.world.now();
        }
        state.waiting += 1;
    }

    /// Runs `work` as a task of its own; what is returned only waits for it.
    pub(super) fn apart(
        &self,
        work: impl Future<Output = Result<(), IoError>> + 'static,
    ) -> LocalFuture<'static, Result<(), IoError>> {
        let (tell, told) = oneshot::channel();
        let task = async move {
            // Whoever asked may be gone.
            let _ = tell.send(work.await);
        };
        self.world.spawn(task).detach();
        // The task is dropped only with the node.
        Box::pin(async move { told.await.unwrap_or(Err(IoError::Disconnected)) })
    }

    /// The way back is recorded as closed: answers that wait are given, and later ones do not wait.
    pub fn go_alone(&self) {
        self.state.borrow_mut().alone = true;
        self.changed.notify_waiters();
    }

    /// Completes when answers wait for the other side: at once if it cannot be reached, after a while if it can
    /// but does not get on. Then only [`Sender::go_alone`], once the way back is recorded as closed, or a new link
    /// lets them go.
    pub async fn link_lost_with_writes_waiting(&self) {
        self.until(|state, now| {
            if state.waiting == 0 {
                return Step::Wait;
            }
            let patience = state.waiting_since + super::HOLD_PATIENCE;
            if state.link.is_none() || now >= patience { Step::Done(()) } else { Step::WaitUntil(patience) }
        })
        .await;
    }

    /// After [`Sender::go_alone`]: completes when the other side has everything durably again. From that moment
    /// answers wait again, so that the way back may be recorded as open.
    pub async fn synced_again(&self) {
        self.until(|state, _| {
            if !state.alone || !state.synced || state.link.is_none() {
                return Step::Wait;
            }
            state.alone = false;
            Step::Done(())
        })
        .await;
        self.changed.notify_waiters();
    }
}
