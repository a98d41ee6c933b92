//! Reading from the other side: what this side does not have yet, after a flip that did not wait for it.
//!
//! Invariants
//! - A read is put on the stream like everything else: it sees each write that was put there before it.
//! - Nothing is read on a link before a flush has succeeded on it. What is remote here was not written by this sender, but
//!   the one before a restart may have written it, and this side has forgotten that: with the flush the other side has it
//!   durably, and cannot forget it after it was read.
//! - A local write that failed may have reached the other side, or not: what was read before is not to be stored any more.

use super::{Sender, State, Step};
use drover_base::{ByteRange, IoError, LocalFuture};
use drover_wire::peer::{Answer, Operation, Payload};

impl State {
    fn is_readable(&self) -> bool {
        !self.drained && !self.stopped && self.link.as_ref().is_some_and(|up| up.number == self.flushed_link)
    }

    pub fn wants_flush_for_reads(&self) -> bool {
        self.reads_wait > 0 && self.link.as_ref().is_some_and(|up| up.number != self.flushed_link)
    }
}

/// Counts as a read that waits, while it lives.
struct Waits<'a>(&'a Sender);

impl<'a> Waits<'a> {
    fn begin(sender: &'a Sender) -> Self {
        sender.state.borrow_mut().reads_wait += 1;
        sender.changed.notify_waiters();
        Self(sender)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.state.borrow_mut().reads_wait -= 1;
    }
}

impl Sender {
    /// Whether the other side can be read now.
    pub fn is_readable(&self) -> bool {
        self.state.borrow().is_readable()
    }

    /// Completes when the other side can be read; never once the sender was stopped.
    pub async fn readable(&self) {
        if self.is_readable() {
            return;
        }
        let _waits = Waits::begin(self);
        self.until(|state, _| if state.is_readable() { Step::Done(()) } else { Step::Wait }).await;
    }

    /// Puts a read of whole blocks on the stream, now. The result only waits for what the other side had there.
    pub fn read(&self, range: ByteRange) -> LocalFuture<'static, Result<Payload, IoError>> {
        let up = self.state.borrow().link.clone().filter(|_| self.is_readable());
        let (Some(up), Some(me)) = (up, self.me.upgrade()) else {
            return Box::pin(std::future::ready(Err(IoError::Disconnected)));
        };
        let reply = self.put(&up, Operation::Read { range });
        Box::pin(async move {
            match reply.await {
                Ok(Answer::Data(payload)) if u64::from(payload.raw_len) == range.len => Ok(payload),
                Ok(_) => Err(IoError::Corrupt),
                Err(error) => {
                    if error == IoError::Disconnected {
                        me.failed_on(up.number, &error);
                    }
                    Err(error)
                }
            }
        })
    }

    /// Grows with each local write that failed. What was read before it grew may be older than what the other side has.
    pub fn local_failures(&self) -> u64 {
        self.state.borrow().local_failures
    }
}
