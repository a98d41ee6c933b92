//! How a region's accesses are spread over its extents.
//!
//! Invariants
//! - Counts are shares only: what a region counts as a whole, its cell says. So they need no exact decay: they halve with
//!   each half-life that ends, and all together when one would overflow.

use crate::cell::Ticks;
use drover_base::units::EXTENTS_PER_REGION;

const EXTENTS: usize = EXTENTS_PER_REGION as usize;

/// What a block counts, so that one that a scan reads still counts something.
pub const BLOCK_WEIGHT: f32 = 16.0;

/// Accesses of the extents of one region.
#[derive(Clone)]
pub struct Extents {
    counts: [u16; EXTENTS],
    halved: u32,
}

impl Extents {
    pub fn new(at: Ticks) -> Self {
        Self { counts: [0; EXTENTS], halved: at.half_lives() }
    }

    pub fn add(&mut self, extent: usize, weight: f32, at: Ticks) {
        let passed = at.half_lives().saturating_sub(self.halved);
        if passed > 0 {
            self.halve(passed);
            self.halved = at.half_lives();
        }
        let weight = weight.clamp(1.0, f32::from(u16::MAX / 2)) as u16;
        if self.counts[extent].checked_add(weight).is_none() {
            self.halve(1);
        }
        self.counts[extent] += weight;
    }

    fn halve(&mut self, times: u32) {
        for count in &mut self.counts {
            *count = count.checked_shr(times).unwrap_or(0);
        }
    }

    /// The share of each extent, together 1; equal ones where nothing is known.
    pub fn shares(&self) -> [f32; EXTENTS] {
        let total: u32 = self.counts.iter().map(|count| u32::from(*count)).sum();
        match total {
            0 => [1.0 / EXTENTS as f32; EXTENTS],
            total => self.counts.map(|count| f32::from(count) / total as f32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HALF_LIFE;
    use std::time::Duration;

    #[test]
    fn shares_outlive_an_overflow_and_old_ones_fade() {
        let at = |passed: Duration| Ticks::of(passed);
        let mut extents = Extents::new(at(Duration::ZERO));
        for _ in 0..30_000 {
            extents.add(3, 3.0, at(Duration::ZERO));
            extents.add(5, 1.0, at(Duration::ZERO));
        }
        let shares = extents.shares();
        assert!((shares[3] - 0.75).abs() < 0.05 && (shares[5] - 0.25).abs() < 0.05, "{shares:?}");
        extents.add(7, 30_000.0, at(HALF_LIFE * 5));
        assert!(extents.shares()[7] > 0.9);
        extents.add(9, 1.0, at(HALF_LIFE * 40));
        assert_eq!(extents.shares()[9], 1.0);
    }
}
