//! A bound on bytes a second: a bucket that fills with time and that each frame empties.
//!
//! The bucket may go below empty by what was taken at once; nothing more is taken until it is full above
//! that again. So the long-run rate is exact whatever the frames' sizes are.

use drover_base::Instant;
use std::time::Duration;

const NANOS_PER_S: i128 = 1_000_000_000;

/// How much of an unused allowance may be caught up with at once.
const BURST: Duration = Duration::from_millis(100);

/// Bytes a second, changeable at any time.
#[derive(Debug)]
pub struct Throttle {
    rate_bytes_per_s: Option<u64>,
    /// In bytes times nanoseconds, so that nothing is lost to rounding.
    balance: i128,
    at: Instant,
}

impl Throttle {
    pub fn new(rate_bytes_per_s: Option<u64>, now: Instant) -> Self {
        Self { rate_bytes_per_s, balance: 0, at: now }
    }

    /// What was taken so far counts at the old rate; debts are kept.
    pub fn set_rate(&mut self, rate_bytes_per_s: Option<u64>, now: Instant) {
        self.refill(now);
        self.rate_bytes_per_s = rate_bytes_per_s;
    }

    pub fn rate_bytes_per_s(&self) -> Option<u64> {
        self.rate_bytes_per_s
    }

    /// Takes `bytes`, whether they are there or not.
    pub fn take(&mut self, bytes: u64, now: Instant) {
        self.refill(now);
        if self.rate_bytes_per_s.is_some() {
            self.balance -= i128::from(bytes) * NANOS_PER_S;
        }
    }

    /// Gives bytes back that were taken but not used.
    pub fn give_back(&mut self, bytes: u64) {
        if self.rate_bytes_per_s.is_some() {
            self.balance += i128::from(bytes) * NANOS_PER_S;
        }
    }

    /// When the next bytes may be taken: not after `now` where they may be taken at once.
    pub fn ready_at(&mut self, now: Instant) -> Instant {
        self.refill(now);
        let Some(rate) = self.rate_bytes_per_s else { return now };
        if self.balance >= 0 {
            return now;
        }
        let rate = i128::from(rate.max(1));
        let wait_nanos = (-self.balance + rate - 1) / rate;
        now + Duration::from_nanos(u64::try_from(wait_nanos).unwrap_or(u64::MAX))
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.since(self.at).as_nanos() as i128;
        self.at = now;
        match self.rate_bytes_per_s {
            None => self.balance = 0,
            Some(rate) => {
                let rate = i128::from(rate);
                let most = rate * BURST.as_nanos() as i128;
                self.balance = self.balance.saturating_add(rate.saturating_mul(elapsed)).min(most.max(0));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that frames of `frame` bytes get through in `span`.
    fn through(throttle: &mut Throttle, frame: u64, start: Instant, span: Duration) -> u64 {
        let (mut now, mut bytes) = (start, 0);
        loop {
            now = throttle.ready_at(now).max(now);
            if now > start + span {
                return bytes;
            }
            throttle.take(frame, now);
            bytes += frame;
        }
    }

    #[test]
    fn keeps_the_rate_whatever_the_frames() {
        for frame in [4 << 10, 256 << 10, 1 << 20] {
            let mut throttle = Throttle::new(Some(10 << 20), Instant(0));
            let bytes = through(&mut throttle, frame, Instant(0), Duration::from_secs(10));
            let expected = 100 << 20;
            assert!(bytes.abs_diff(expected) <= frame + (1 << 20), "{frame}: {bytes}");
        }
    }

    #[test]
    fn a_new_rate_holds_at_once() {
        let mut throttle = Throttle::new(Some(1), Instant(0));
        throttle.take(1000, Instant(0));
        assert_eq!(throttle.ready_at(Instant(0)), Instant(1_000_000_000_000));
        throttle.set_rate(Some(1000), Instant(0));
        assert_eq!(throttle.ready_at(Instant(0)), Instant(1_000_000_000));
        throttle.set_rate(None, Instant(0));
        assert_eq!(throttle.ready_at(Instant(5)), Instant(5));
    }

    #[test]
    fn what_was_not_used_comes_back() {
        let mut throttle = Throttle::new(Some(1000), Instant(0));
        throttle.take(1000, Instant(0));
        throttle.give_back(900);
        assert_eq!(throttle.ready_at(Instant(0)), Instant(100_000_000));
    }

    #[test]
    fn idleness_is_not_saved_up() {
        let mut throttle = Throttle::new(Some(1 << 20), Instant(0));
        let start = Instant(3600 * 1_000_000_000);
        let bytes = through(&mut throttle, 4096, start, Duration::from_secs(1));
        assert!(bytes < (1 << 20) * 12 / 10, "{bytes}");
    }
}
