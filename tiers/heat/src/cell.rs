//! One region's counts and when they were last brought up to date.

use crate::HALF_LIFE;
use std::time::Duration;

/// Tenths of a second since the heat began; 13 years fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticks(u32);

const TICK: Duration = Duration::from_millis(100);

impl Ticks {
    pub fn of(since: Duration) -> Self {
        Self(u32::try_from(since.as_millis() / TICK.as_millis()).unwrap_or(u32::MAX))
    }

    /// Half-lives that have ended by then.
    pub fn half_lives(self) -> u32 {
        self.0 / (HALF_LIFE.as_millis() / TICK.as_millis()) as u32
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cell {
    pub read: f32,
    pub written: f32,
    at: Ticks,
}

const _: () = assert!(size_of::<Cell>() <= 16, "the memory bound counts 16 bytes a region");

impl Cell {
    /// Its counts at `ticks`: halved once a half-life. A clock that went back decays nothing.
    pub fn decayed(self, ticks: Ticks) -> Self {
        let passed = ticks.0.saturating_sub(self.at.0);
        if passed == 0 {
            return self;
        }
        let half_lives = passed as f32 * (TICK.as_secs_f32() / HALF_LIFE.as_secs_f32());
        let factor = (-half_lives).exp2();
        Self { read: self.read * factor, written: self.written * factor, at: ticks }
    }
}
