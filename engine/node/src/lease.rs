//! Whether this node may apply and acknowledge clients' writes of a volume now.
//!
//! ```text
//!   Untimed ──make_timed──► Until(t) ──renewed──► Until(later t)      suspend: Until(0), older renewals no longer count
//!      ▲────make_untimed──────┘                                       revoke: Revoked, for good
//! ```
//! Invariants
//! - A guard belongs to one epoch; a new epoch has a new guard, and the old one is revoked before the new one serves.
//! - A timed lease ends at 2/3 of its time to live, counted from the *sending* of what confirmed it: the control
//!   plane waits longer than the whole of it, counted from the *arrival*, before it lets another node take over.
//! - The clock counts suspends (`CLOCK_BOOTTIME`), so a node that slept finds its lease over when it wakes.
//! - After `suspend` (the holder has drained for a flip) only a renewal that was sent later starts the lease again.

use drover_base::planted::{Bug, is_planted};
use drover_base::{Epoch, Instant, IoError, world::Clock};
use drover_store::Fence;
use std::{cell::Cell, rc::Rc, time::Duration};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Untimed,
    Until(Instant),
    Revoked,
}

/// The lease of one epoch, asked before each write is applied and again before it is acknowledged.
pub struct LeaseGuard {
    clock: Rc<dyn Clock>,
    epoch: Epoch,
    state: Cell<State>,
    ttl: Cell<Duration>,
    /// Confirmations sent before this do not count.
    counts_from: Cell<Instant>,
}

impl LeaseGuard {
    fn new(clock: Rc<dyn Clock>, epoch: Epoch, state: State, ttl: Duration) -> Rc<Self> {
        let (state, ttl, counts_from) = (Cell::new(state), Cell::new(ttl), Cell::new(Instant(0)));
        Rc::new(Self { clock, epoch, state, ttl, counts_from })
    }

    /// Valid until revoked.
    pub fn untimed(clock: Rc<dyn Clock>, epoch: Epoch) -> Rc<Self> {
        Self::new(clock, epoch, State::Untimed, Duration::ZERO)
    }

    /// Not valid before the first [`LeaseGuard::renewed`].
    pub fn timed(clock: Rc<dyn Clock>, epoch: Epoch, ttl: Duration) -> Rc<Self> {
        Self::new(clock, epoch, State::Until(Instant(0)), ttl)
    }

    /// Never valid: for a volume that this node does not hold.
    pub fn none(clock: Rc<dyn Clock>, epoch: Epoch) -> Rc<Self> {
        Self::new(clock, epoch, State::Revoked, Duration::ZERO)
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether it was the lease of an epoch that has ended, or of another node.
    pub fn is_revoked(&self) -> bool {
        self.state.get() == State::Revoked
    }

    pub fn is_timed(&self) -> bool {
        matches!(self.state.get(), State::Until(_))
    }

    /// Whether I/O may be served now. Unlike [`Fence::check`] it has no planted bugs.
    pub fn is_valid(&self) -> bool {
        match self.state.get() {
            State::Untimed => true,
            State::Until(end) => self.clock.now() < end,
            State::Revoked => false,
        }
    }

    /// From now on the lease lives by confirmations; one sent at `from` is at hand.
    pub fn make_timed(&self, ttl: Duration, from: Instant) {
        self.ttl.set(ttl);
        match self.state.get() {
            State::Untimed => {
                self.state.set(State::Until(Instant(0)));
                self.renewed(from);
            }
            State::Until(_) => self.renewed(from),
            State::Revoked => {}
        }
    }

    /// The lease has no time limit any more.
    pub fn make_untimed(&self) {
        if !self.is_revoked() {
            self.state.set(State::Untimed);
        }
    }

    /// The control plane confirmed the lease in answer to what was sent at `sent`.
    pub fn renewed(&self, sent: Instant) {
        if let State::Until(end) = self.state.get()
            && sent >= self.counts_from.get()
        {
            self.state.set(State::Until(end.max(sent + self.ttl.get() * 2 / 3)));
        }
    }

    /// The holder has drained: what confirmed the lease until now must not make it serve again.
    pub fn suspend(&self) {
        if self.is_timed() {
            self.counts_from.set(self.clock.now());
            self.state.set(State::Until(Instant(0)));
        }
    }

    /// Ends it for good.
    pub fn revoke(&self) {
        self.state.set(State::Revoked);
    }
}

impl Fence for LeaseGuard {
    fn check(&self) -> Result<(), IoError> {
        if self.is_valid() || is_planted(Bug::EpochNotChecked) {
            Ok(())
        } else {
            Err(IoError::Fenced { epoch: self.epoch })
        }
    }
}

/// Holds as long as the epoch lasts, whether or not the lease is confirmed at the moment: what a sender needs. What it
/// sends under an epoch that has ended elsewhere is refused there.
pub struct EpochFence(pub Rc<LeaseGuard>);

impl Fence for EpochFence {
    fn check(&self) -> Result<(), IoError> {
        if self.0.is_revoked() { Err(IoError::Fenced { epoch: self.0.epoch }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
