//! Slots promised to volumes that are being filled, and not yet taken.
//!
//! Invariants
//! - A promise is refused unless it fits what is free beside all others.
//! - Who has no promise, or has used it up, leaves what is promised to others: its write finds no room.
//! - What its volume takes is no longer promised but used, from the moment it is taken.

use drover_base::VolumeId;
use std::collections::BTreeMap;

#[derive(Clone, Copy)]
struct Promise {
    slots: u64,
    filled: u64,
}

impl Promise {
    fn open(self) -> u64 {
        self.slots.saturating_sub(self.filled)
    }
}

/// Of one node, over all its tiers.
#[derive(Default)]
pub(crate) struct Promises(BTreeMap<VolumeId, Promise>);

impl Promises {
    /// What is promised and not yet filled.
    pub fn open(&self) -> u64 {
        self.0.values().map(|promise| promise.open()).sum()
    }

    fn open_to_others(&self, volume: VolumeId) -> u64 {
        self.open() - self.0.get(&volume).map_or(0, |promise| promise.open())
    }

    /// Promises `slots` in all to a volume that uses `filled` of them, or tells how many there are for it.
    pub fn make(&mut self, volume: VolumeId, slots: u64, filled: u64, free: u64) -> Result<(), u64> {
        let free = free.saturating_sub(self.open_to_others(volume));
        let promise = Promise { slots, filled };
        if promise.open() > free {
            return Err(free);
        }
        self.0.insert(volume, promise);
        Ok(())
    }

    /// A promise that was made before the node started.
    pub fn restore(&mut self, volume: VolumeId, slots: u64, filled: u64) {
        self.0.insert(volume, Promise { slots, filled });
    }

    /// How much the volume uses by now: what it gave up is promised again.
    pub fn filled(&mut self, volume: VolumeId, slots: u64) {
        if let Some(promise) = self.0.get_mut(&volume) {
            promise.filled = slots;
        }
    }

    pub fn end(&mut self, volume: VolumeId) {
        self.0.remove(&volume);
    }

    /// How many of `free` slots the volume must leave if it takes `count` of them.
    pub fn kept_from(&self, volume: VolumeId, count: u64) -> u64 {
        let own = self.0.get(&volume).map_or(0, |promise| promise.open());
        if count <= own { 0 } else { self.open_to_others(volume) }
    }

    pub fn taken(&mut self, volume: VolumeId, count: u64) {
        if let Some(promise) = self.0.get_mut(&volume) {
            promise.filled += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: VolumeId = VolumeId(1);
    const B: VolumeId = VolumeId(2);
    const LOCAL: VolumeId = VolumeId(3);

    #[test]
    fn promises_are_kept_apart_and_shrink_as_they_are_filled() {
        let mut promises = Promises::default();
        assert_eq!(promises.make(A, 60, 0, 100), Ok(()));
        assert_eq!(promises.make(B, 41, 0, 100), Err(40));
        assert_eq!(promises.make(A, 60, 0, 100), Ok(()), "asked again");
        promises.taken(A, 30);
        assert_eq!((promises.open(), promises.make(B, 40, 0, 70)), (30, Ok(())));
        promises.filled(A, 10);
        assert_eq!(promises.open(), 90, "what it gave up is promised again");
        promises.end(A);
        assert_eq!(promises.open(), 40);
    }

    #[test]
    fn who_has_no_promise_leaves_what_is_promised() {
        let mut promises = Promises::default();
        promises.make(A, 60, 0, 100).unwrap();
        promises.make(B, 10, 0, 100).unwrap();
        assert_eq!([promises.kept_from(LOCAL, 1), promises.kept_from(A, 60), promises.kept_from(A, 61)], [70, 0, 10]);
        promises.taken(A, 60);
        assert_eq!([promises.kept_from(LOCAL, 1), promises.kept_from(A, 1)], [10, 10], "it has used its own up");
    }
}
