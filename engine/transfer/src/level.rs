//! How hard to compress: as hard as the link is slow and the pool idle.
//!
//! Time is divided by what the copier waited for. Where it mostly waited for the pool, the level goes down, at last to sending
//! as it is; where it mostly waited for the link or the throttle, up, if one core would still keep up with the link then.
//!
//! Invariants
//! - The level moves by one step at a time, and only after a whole `WINDOW`.
//! - After the pool was the limit, going up again waits; twice as long each time that going up made it the limit again: a
//!   machine on the edge settles.

use drover_base::Instant;
use std::time::Duration;

/// How long is watched before a decision: many frames, and short beside any copy that is worth one.
const WINDOW: Duration = Duration::from_millis(250);
/// Windows without going up after the pool was the limit.
const PATIENCE_FIRST: u32 = 8;
const PATIENCE_MOST: u32 = 256;
/// A core is not planned for more than this share (percent): the same machine serves clients.
const CORE_PERCENT: u64 = 75;
/// Runs in the pool at once from which on it is the limit; fewer are work that goes on beside the link's.
pub const PACKING_BUSY: usize = 4;

/// A level of zstd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it is.
    Raw,
    Fast,
    Usual,
    Better,
    Best,
}

impl Level {
    const ALL: [Level; 5] = [Level::Raw, Level::Fast, Level::Usual, Level::Better, Level::Best];

    /// As zstd numbers it; `None`: not compressed.
    pub fn number(self) -> Option<i32> {
        match self {
            Level::Raw => None,
            Level::Fast => Some(-5),
            Level::Usual => Some(1),
            Level::Better => Some(3),
            Level::Best => Some(6),
        }
    }

    /// What a core compresses in a second, in MB, and how many times smaller it gets, in percent: of a file system image, on
    /// a small machine. A slower machine is found out by its pool being the limit.
    fn nominal(self) -> (u64, u64) {
        match self {
            Level::Raw => (u64::MAX, 100),
            Level::Fast => (1060, 260),
            Level::Usual => (760, 340),
            Level::Better => (580, 360),
            Level::Best => (180, 370),
        }
    }

    fn step(self, by: isize) -> Option<Level> {
        Self::ALL.get((self as usize).checked_add_signed(by)?).copied()
    }
}

/// What the copier waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Replies, or the throttle.
    Link,
    /// The worker pool.
    Pool,
    /// The devices, or nothing to do.
    Other,
}

/// Chooses the level.
#[derive(Debug)]
pub struct Chooser {
    level: Level,
    began: Instant,
    bound: Bound,
    since: Instant,
    link: Duration,
    pool: Duration,
    /// Put on the stream within the window.
    wire_bytes: u64,
    /// Windows to wait before going up.
    wait: u32,
    patience: u32,
    /// It went up since it last went down.
    has_risen: bool,
}

impl Chooser {
    pub fn new(now: Instant) -> Self {
        Self {
            level: Level::Usual,
            began: now,
            bound: Bound::Other,
            since: now,
            link: Duration::ZERO,
            pool: Duration::ZERO,
            wire_bytes: 0,
            wait: 0,
            patience: PATIENCE_FIRST,
            has_risen: false,
        }
    }

    pub fn level(&self) -> Level {
        self.level
    }

    /// So many bytes were put on the stream.
    pub fn sent(&mut self, wire_bytes: u64) {
        self.wire_bytes += wire_bytes;
    }

    /// From now on this is what is waited for.
    pub fn waits_for(&mut self, bound: Bound, now: Instant) {
        let waited = now.since(self.since);
        match self.bound {
            Bound::Link => self.link += waited,
            Bound::Pool => self.pool += waited,
            Bound::Other => {}
        }
        (self.bound, self.since) = (bound, now);
        let window = now.since(self.began);
        if window >= WINDOW {
            self.decide(window);
            (self.began, self.link, self.pool, self.wire_bytes) = (now, Duration::ZERO, Duration::ZERO, 0);
        }
    }

    fn decide(&mut self, window: Duration) {
        self.wait = self.wait.saturating_sub(1);
        if self.pool * 2 > window {
            if let Some(lower) = self.level.step(-1) {
                self.level = lower;
            }
            if std::mem::take(&mut self.has_risen) {
                self.patience = (self.patience * 2).min(PATIENCE_MOST);
            }
            self.wait = self.patience;
        } else if self.link * 2 > window && self.wait == 0 && self.link_needs_less_than_a_core(window) {
            self.level = self.level.step(1).expect("a level above was looked at");
            self.has_risen = true;
        }
    }

    /// Whether a core at the next level makes as many bytes as the link took.
    fn link_needs_less_than_a_core(&self, window: Duration) -> bool {
        let Some(higher) = self.level.step(1) else { return false };
        let (mb_per_s, ratio_percent) = higher.nominal();
        let link_bytes_per_s = self.wire_bytes as u128 * 1000 / window.as_millis().max(1);
        let raw_bytes_per_s = link_bytes_per_s * u128::from(ratio_percent) / 100;
        raw_bytes_per_s <= u128::from(mb_per_s) * 1_000_000 * u128::from(CORE_PERCENT) / 100
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Windows in which all time goes to one bound, with so many bytes on the stream a second.
    fn after(chooser: &mut Chooser, now: &mut Instant, windows: u32, bound: Bound, bytes_per_s: u64) -> Level {
        for _ in 0..windows {
            chooser.waits_for(bound, *now);
            chooser.sent(bytes_per_s / 4);
            *now = *now + WINDOW;
        }
        chooser.waits_for(bound, *now);
        chooser.level()
    }

    #[test]
    fn the_level_follows_what_is_waited_for() {
        let gigabit = 118_000_000;
        for (what, steps, expected) in [
            ("a gigabit link", vec![(10, Bound::Link, gigabit)], Level::Better),
            ("a slow link", vec![(10, Bound::Link, gigabit / 10)], Level::Best),
            ("a link faster than a core", vec![(10, Bound::Link, 400_000_000)], Level::Usual),
            ("a busy pool", vec![(10, Bound::Pool, 400_000_000)], Level::Raw),
            ("one that was busy for a moment", vec![(1, Bound::Pool, 0), (20, Bound::Link, gigabit)], Level::Better),
            ("one that was busy at first", vec![(9, Bound::Pool, 0), (30, Bound::Link, gigabit)], Level::Better),
            ("slow devices", vec![(10, Bound::Other, gigabit / 10)], Level::Usual),
            ("loopback", vec![(9, Bound::Pool, 0), (900, Bound::Link, 1_500_000_000)], Level::Raw),
        ] {
            let mut now = Instant::default();
            let mut chooser = Chooser::new(now);
            let steps = steps.into_iter();
            let last = steps.map(|(windows, bound, rate)| after(&mut chooser, &mut now, windows, bound, rate)).last();
            assert_eq!(last, Some(expected), "{what}");
        }
    }

    #[test]
    fn a_machine_on_the_edge_settles() {
        let mut now = Instant::default();
        let mut chooser = Chooser::new(now);
        let mut changes = 0;
        for _ in 0..2000 {
            let before = chooser.level();
            let bound = if before >= Level::Better { Bound::Pool } else { Bound::Link };
            changes += u32::from(after(&mut chooser, &mut now, 1, bound, 50_000_000) != before);
        }
        assert!(changes < 40, "{changes}");
    }
}
