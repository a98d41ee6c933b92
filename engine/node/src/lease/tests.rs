use super::*;

struct Hand(Cell<u64>);

impl Clock for Hand {
    fn now(&self) -> Instant {
        Instant(self.0.get())
    }
    fn wall_ms(&self) -> u64 {
        0
    }
}

const TTL: Duration = Duration::from_secs(9);

fn at(seconds: u64) -> Instant {
    Instant(0) + Duration::from_secs(seconds)
}

fn clock(seconds: u64) -> Rc<Hand> {
    Rc::new(Hand(Cell::new(at(seconds).0)))
}

fn check(clock: &Hand, guard: &LeaseGuard, seconds: u64, valid: bool) {
    clock.0.set(at(seconds).0);
    assert_eq!(guard.check().is_ok(), valid, "at {seconds} s");
}

#[test]
fn an_untimed_lease_does_not_end() {
    let clock = clock(0);
    let guard = LeaseGuard::untimed(clock.clone(), Epoch(1));
    check(&clock, &guard, 1_000_000, true);
    guard.renewed(at(1));
    guard.suspend();
    check(&clock, &guard, 2_000_000, true);
    guard.revoke();
    assert_eq!(guard.check(), Err(IoError::Fenced { epoch: Epoch(1) }));
}

#[test]
fn a_timed_lease_counts_from_the_sending() {
    let clock = clock(100);
    let guard = LeaseGuard::timed(clock.clone(), Epoch(1), TTL);
    check(&clock, &guard, 100, false);
    // The answer comes 4 seconds after the question: 2 are left of 6.
    clock.0.set(at(104).0);
    guard.renewed(at(100));
    check(&clock, &guard, 105, true);
    check(&clock, &guard, 106, false);
}

/// A renewal's answer that was overtaken by a later one's takes nothing back.
#[test]
fn renewals_never_shorten() {
    let clock = clock(100);
    let guard = LeaseGuard::timed(clock.clone(), Epoch(1), TTL);
    guard.renewed(at(100));
    guard.renewed(at(97));
    check(&clock, &guard, 105, true);
}

#[test]
fn mirroring_makes_it_timed_from_its_receipt_and_commit_untimed() {
    let clock = clock(50);
    let guard = LeaseGuard::untimed(clock.clone(), Epoch(1));
    guard.make_timed(TTL, at(50));
    check(&clock, &guard, 55, true);
    check(&clock, &guard, 56, false);
    guard.make_untimed();
    check(&clock, &guard, 500, true);
}

/// A holder that drained must not serve again by a renewal that was under way then: the lease may have moved.
#[test]
fn a_drained_holder_needs_a_renewal_sent_later() {
    let clock = clock(100);
    let guard = LeaseGuard::timed(clock.clone(), Epoch(1), TTL);
    guard.renewed(at(100));
    clock.0.set(at(101).0);
    guard.suspend();
    check(&clock, &guard, 101, false);
    guard.renewed(at(100));
    check(&clock, &guard, 101, false);
    guard.renewed(at(102));
    check(&clock, &guard, 103, true);
}

#[test]
fn a_revoked_lease_stays_revoked() {
    let clock = clock(100);
    let guard = LeaseGuard::timed(clock.clone(), Epoch(1), TTL);
    guard.revoke();
    guard.renewed(at(100));
    guard.make_untimed();
    guard.make_timed(TTL, at(100));
    check(&clock, &guard, 100, false);
}
