//! Whether clients wait for the other side. Once writes are mirrored, a writer faster than the link is slowed to it.
//!
//! Time is cut into windows. Clients wait through one of them where at nearly every moment of it a mirrored write was
//! unanswered. In the others, and before anything is mirrored, they write as fast as they want: that rate is kept. So a
//! writer is slowed where it waits and its rate is well below the one that was kept; one that only waits may have many
//! requests under way, and one whose rate has only fallen may want no more.

use drover_base::Instant;
use std::time::Duration;

const WINDOW: Duration = Duration::from_secs(1);

/// Share of a window, in percent, that counts as all of it.
const NEARLY_PERCENT: u128 = 90;

pub struct Pace {
    mirrors: bool,
    window_began: Instant,
    /// Mirrored writes that were not answered yet, and since when there were any in this window.
    unanswered: u64,
    since: Instant,
    waited: Duration,
    waits: bool,
    free_bytes_per_s: u64,
}

impl Pace {
    pub fn new(now: Instant) -> Self {
        Self {
            mirrors: false,
            window_began: now,
            unanswered: 0,
            since: now,
            waited: Duration::ZERO,
            waits: false,
            free_bytes_per_s: 0,
        }
    }

    /// A write is mirrored. `rate_bytes_per_s`: what clients write now.
    pub fn begin(&mut self, now: Instant, rate_bytes_per_s: u64) {
        if !std::mem::replace(&mut self.mirrors, true) {
            (self.free_bytes_per_s, self.window_began) = (rate_bytes_per_s, now);
        }
        self.roll(now, rate_bytes_per_s);
        if self.unanswered == 0 {
            self.since = now;
        }
        self.unanswered += 1;
    }

    /// It may be answered.
    pub fn end(&mut self, now: Instant) {
        self.unanswered -= 1;
        if self.unanswered == 0 {
            self.waited += now.since(self.since);
        }
    }

    /// Ends the window if it is over.
    pub fn roll(&mut self, now: Instant, rate_bytes_per_s: u64) {
        let length = now.since(self.window_began);
        if length < WINDOW {
            return;
        }
        if self.unanswered > 0 {
            self.waited += now.since(self.since);
            self.since = now;
        }
        self.waits = self.waited.as_nanos() * 100 >= length.as_nanos() * NEARLY_PERCENT;
        if !self.waits {
            self.free_bytes_per_s = rate_bytes_per_s;
        }
        (self.window_began, self.waited) = (now, Duration::ZERO);
    }

    /// Whether clients waited for the other side through all of the last window.
    pub fn waits(&self) -> bool {
        self.waits
    }

    /// What clients wrote a second when they last did not wait.
    pub fn free_bytes_per_s(&self) -> u64 {
        self.free_bytes_per_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mirrors a write each 10 ms that is answered `latency` later, for some seconds.
    fn writes(pace: &mut Pace, from: Instant, seconds: u64, latency: Duration, rate: u64) -> Instant {
        let mut answers = std::collections::VecDeque::new();
        for step in 0..seconds * 100 {
            let now = from + Duration::from_millis(step * 10);
            while answers.front().is_some_and(|answer| *answer <= now) {
                pace.end(answers.pop_front().unwrap());
            }
            pace.begin(now, rate);
            answers.push_back(now + latency);
        }
        answers.iter().for_each(|answer| pace.end(*answer));
        from + Duration::from_secs(seconds)
    }

    #[test]
    fn the_rate_of_before_is_kept_while_clients_wait() {
        let mut pace = Pace::new(Instant(0));
        let now = Instant(0) + Duration::from_millis(1_500);
        pace.roll(now, 900);
        assert_eq!((pace.waits(), pace.free_bytes_per_s()), (false, 900));
        // Mirroring begins in the middle of a window: it counts from there.
        let now = now + Duration::from_millis(700);
        let now = writes(&mut pace, now, 3, Duration::from_millis(25), 300);
        assert_eq!((pace.waits(), pace.free_bytes_per_s()), (true, 300), "the rate when the first write was mirrored");
        let now = writes(&mut pace, now, 3, Duration::from_millis(25), 100);
        assert_eq!((pace.waits(), pace.free_bytes_per_s()), (true, 300));
        let now = writes(&mut pace, now, 3, Duration::from_millis(5), 250);
        assert_eq!((pace.waits(), pace.free_bytes_per_s()), (false, 250), "half of the time nobody waits");
        let now = writes(&mut pace, now, 2, Duration::from_millis(10), 250);
        let now = writes(&mut pace, now, 3, Duration::from_millis(10), 200);
        assert_eq!((pace.waits(), pace.free_bytes_per_s()), (true, 250));
        // Nobody writes any more.
        pace.roll(now + Duration::from_secs(9), 3);
        assert_eq!((pace.waits(), pace.free_bytes_per_s()), (false, 3));
    }

    #[test]
    fn a_write_that_is_not_answered_at_all_is_waited_for() {
        let mut pace = Pace::new(Instant(0));
        pace.begin(Instant(5), 70);
        for second in 1..5 {
            pace.roll(Instant(5) + Duration::from_secs(second), 0);
            assert!(pace.waits(), "{second}");
        }
        assert_eq!(pace.free_bytes_per_s(), 70);
    }
}
