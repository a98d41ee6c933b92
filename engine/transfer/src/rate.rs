//! How fast something comes: a rate in which the past fades.

use drover_base::Instant;
use std::time::Duration;

/// After this time what was counts a third (1/e) of what is.
const FADE: Duration = Duration::from_secs(5);

/// An exponentially decayed rate of bytes a second.
#[derive(Debug, Default)]
pub struct Rate {
    bytes_per_s: f64,
    at: Instant,
}

impl Rate {
    pub fn add(&mut self, bytes: u64, now: Instant) {
        self.bytes_per_s = self.at(now) + bytes as f64 / FADE.as_secs_f64();
        self.at = now;
    }

    pub fn bytes_per_s(&self, now: Instant) -> u64 {
        self.at(now) as u64
    }

    fn at(&self, now: Instant) -> f64 {
        self.bytes_per_s * (-now.since(self.at).as_secs_f64() / FADE.as_secs_f64()).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_a_steady_stream_and_forgets_it() {
        let mut rate = Rate::default();
        let mut now = Instant(77);
        for _ in 0..6_000 {
            now = now + Duration::from_millis(10);
            rate.add(10_000, now);
        }
        let seen = rate.bytes_per_s(now);
        assert!(seen.abs_diff(1_000_000) < 10_000, "{seen}");
        assert_eq!(rate.bytes_per_s(now + Duration::from_secs(120)), 0);
    }
}
