//! A process's clock: what it shows at which virtual time.

use super::Generator;

/// `shown = base_shown + (virtual - base_virtual) * rate`, in nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct ProcessClock {
    base_virtual: u64,
    base_shown: u64,
    /// Millionths that it runs faster (slower: negative) than virtual time; -1,000,000 stands still.
    drift_ppm: i64,
    stopped: bool,
}

impl ProcessClock {
    /// Machines did not boot together: 1 hour to 12 days of uptime, so that comparing the clocks of two
    /// machines shows.
    pub fn new(random: &mut Generator) -> Self {
        let uptime = random.between(3_600, 1_000_000) * 1_000_000_000;
        Self { base_virtual: 0, base_shown: uptime, drift_ppm: 0, stopped: false }
    }

    fn rate_millionths(&self) -> u128 {
        if self.stopped { 0 } else { u128::try_from(1_000_000 + self.drift_ppm).unwrap_or(0) }
    }

    pub fn read(&self, now: u64) -> u64 {
        let passed = u128::from(now - self.base_virtual) * self.rate_millionths() / 1_000_000;
        self.base_shown.saturating_add(passed as u64)
    }

    /// The virtual time at which it shows `deadline` or more; `None` for a clock that stands still before it.
    pub fn when(&self, deadline: u64, now: u64) -> Option<u64> {
        if self.read(now) >= deadline {
            return Some(now);
        }
        let rate = self.rate_millionths();
        if rate == 0 {
            return None;
        }
        let missing = u128::from(deadline - self.base_shown) * 1_000_000;
        let at = u128::from(self.base_virtual) + missing.div_ceil(rate);
        Some(u64::try_from(at).unwrap_or(u64::MAX))
    }

    fn rebase(&mut self, now: u64) {
        self.base_shown = self.read(now);
        self.base_virtual = now;
    }
    pub fn set_drift(&mut self, now: u64, ppm: i64) {
        self.rebase(now);
        self.drift_ppm = ppm;
    }
    pub fn set_stopped(&mut self, now: u64, stopped: bool) {
        self.rebase(now);
        self.stopped = stopped;
    }
    pub fn jump(&mut self, now: u64, by_nanos: i64) {
        self.rebase(now);
        self.base_shown = self.base_shown.saturating_add_signed(by_nanos);
    }
}
