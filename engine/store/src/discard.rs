//! Gives the space of free slots back to the devices that want it: sparse files, and block devices set to discard.
//!
//! ```text
//!                                                   ┌────────────── handed out ──────────────┐
//!                                                   │                                        ▼
//!  used ── batch durable, I/O ended, checkpoint ──► free, undiscarded ──► being discarded   used
//!          done (see slots.rs)                                                   │           ▲
//!                                                          free, discarded ◄─────┘           │
//!                                                                  └──── handed out ─────────┘
//! ```
//! Invariants
//! - Only free slots are discarded: no durable map, no stored checkpoint and no running I/O names them.
//! - A slot counts as taken from before its device is asked until it has answered: whatever is written there next is
//!   written after the discard. Where the device never answers, the slot is never handed out.
//! - One discard of a tier runs at a time, bounded in size and followed by a pause: the I/O of clients comes first.
//! - Nobody waits for a discard that has not begun: a slot may be used again undiscarded.
//! - After a start nobody knows what was discarded before; so all that is free then is discarded once.

use crate::{env::Env, slots::Tiers};
use drover_base::{World, units::EXTENT_BYTES};
use std::{ops::Range, rc::Weak, time::Duration};

/// Slots of one request, 16 MiB: a file system keeps other I/O from the file while it punches a hole.
const SLOTS_AT_ONCE: u64 = 256;

/// Of the time, at most one part in so many plus one is spent discarding.
const PAUSE_FACTOR: u32 = 3;

/// How eagerly free slots are discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardPace {
    /// Between two looks for slots that became free: neighbours gather.
    pub look_every: Duration,
    /// After each request, at least.
    pub pause: Duration,
}

impl Default for DiscardPace {
    /// Up to 320 MiB a second.
    fn default() -> Self {
        Self { look_every: Duration::from_secs(1), pause: Duration::from_millis(50) }
    }
}

/// Discards what is free, for as long as the shard is open.
pub(crate) async fn discard_free(env: Weak<Env>, world: World, pace: DiscardPace) {
    loop {
        world.sleep(pace.look_every).await;
        let Some(tiers) = env.upgrade().map(|env| env.tiers.clone()) else { return };
        for device in 0..tiers.slots().len() {
            while let Some(took) = discard_next(&env, &tiers, device as u8).await {
                world.sleep(pace.pause.max(took * PAUSE_FACTOR)).await;
            }
        }
    }
}

/// Discards some neighbours, if there are any, and tells how long it took.
async fn discard_next(env: &Weak<Env>, tiers: &Tiers, number: u8) -> Option<Duration> {
    // The store is not kept open by this.
    let (world, device) = env.upgrade().map(|env| (env.world.clone(), env.devices[usize::from(number)].clone()))?;
    let slots = tiers.begin_discard(number)?;
    let began = world.now();
    let result = device.discard(slots.start * EXTENT_BYTES, (slots.end - slots.start) * EXTENT_BYTES).await;
    if let Err(error) = &result {
        tracing::warn!(device = number, %error, "a discard failed; none is tried again before the next start");
    }
    tiers.end_discard(number, slots, result.is_ok());
    Some(world.now().since(began))
}

/// Free slots of a tier that its device has not been told of.
pub(crate) struct Undiscarded {
    /// One bit per slot.
    words: Vec<u64>,
    count: u64,
    /// Slot at which the next search begins.
    cursor: u64,
}

impl Undiscarded {
    /// All of so many slots.
    pub fn all(slots: u64) -> Self {
        let mut words = vec![u64::MAX; slots.div_ceil(64) as usize];
        if !slots.is_multiple_of(64) {
            *words.last_mut().expect("there is a rest") = (1 << (slots % 64)) - 1;
        }
        Self { words, count: slots, cursor: 0 }
    }

    fn has(&self, slot: u64) -> bool {
        self.words.get((slot / 64) as usize).is_some_and(|word| word & (1 << (slot % 64)) != 0)
    }

    pub fn insert(&mut self, slot: u64) {
        self.count += u64::from(!self.has(slot));
        self.words[(slot / 64) as usize] |= 1 << (slot % 64);
    }

    pub fn remove(&mut self, slot: u64) {
        self.count -= u64::from(self.has(slot));
        self.words[(slot / 64) as usize] &= !(1 << (slot % 64));
    }

    /// The next neighbours, as many as go into one request; each turn looks behind those of the last.
    pub fn next_run(&mut self) -> Option<Range<u64>> {
        if self.count == 0 {
            return None;
        }
        let start = self.first_from(self.cursor).or_else(|| self.first_from(0)).expect("some are left");
        let end = (start..start + SLOTS_AT_ONCE).find(|slot| !self.has(*slot)).unwrap_or(start + SLOTS_AT_ONCE);
        self.cursor = end;
        Some(start..end)
    }

    fn first_from(&self, slot: u64) -> Option<u64> {
        let first = (slot / 64) as usize;
        let masked = self.words.get(first)? & (u64::MAX << (slot % 64));
        if masked != 0 {
            return Some(first as u64 * 64 + u64::from(masked.trailing_zeros()));
        }
        let at = (first + 1..self.words.len()).find(|at| self.words[*at] != 0)?;
        Some(at as u64 * 64 + u64::from(self.words[at].trailing_zeros()))
    }
}

#[cfg(test)]
mod tests;
