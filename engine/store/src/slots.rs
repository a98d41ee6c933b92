//! Which slots of a node's tiers are free. Shared by the node's shards.
//!
//! Invariants
//! - A slot is free, used, held, being released, or being discarded; only free ones are handed out.
//! - Held: freed since the last checkpoint began. It is not handed out before a checkpoint that began later is
//!   done, so that a map restored from a checkpoint never names a slot with another volume's bytes. After a
//!   start it is not known what the stored checkpoint names: nothing is handed out before the first new one.
//! - A slot is freed once per allocation; a second time is a bug and stops the process.
//! - Failures only count up; whoever wrote to a device compares counts to learn that a sync failed since.

use crate::{
    discard::Undiscarded,
    entry::{DEVICES_MAX, SLOTS_MAX, SlotAddress},
    promises::Promises,
    room::Room,
};
use drover_base::VolumeId;
use drover_base::planted::{Bug, is_planted};
use std::{
    future::poll_fn,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    task::{Poll, Waker},
};

/// What kind of device a tier is, fastest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TierClass {
    Nvme,
    Ssd,
    Hdd,
}

/// A tier as configured; its position in the list is its device number in the maps, for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierSpec {
    pub name: String,
    pub class: TierClass,
    /// Slots of 64 KiB.
    pub slots: u64,
    /// Its device is told of free slots.
    pub discards: bool,
}

/// How full a tier is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpaceLevel {
    Normal,
    At80,
    At90,
    Full,
}

impl SpaceLevel {
    /// The level of a tier with so many slots, of which so many are used.
    pub fn of(slots_used: u64, slots_total: u64) -> Self {
        match slots_used.saturating_mul(100) {
            _ if slots_used >= slots_total => Self::Full,
            share if share >= slots_total.saturating_mul(90) => Self::At90,
            share if share >= slots_total.saturating_mul(80) => Self::At80,
            _ => Self::Normal,
        }
    }
}

/// A tier's slots, counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierUsage {
    pub name: String,
    pub class: TierClass,
    pub slots_total: u64,
    pub slots_used: u64,
    /// Freed, but waiting for a checkpoint before they can be used again.
    pub slots_held: u64,
    /// A sync of the device failed and no volume was reopened on it since.
    pub poisoned: bool,
    pub level: SpaceLevel,
    /// Writes into slots that failed since the node started because the file system under the tier was full.
    pub refused_writes: u64,
    /// The device was to be told of free slots, and refused it: it is told no more.
    pub discard_failed: bool,
}

/// Not enough free slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// A checkpoint would give slots back.
    pub is_held: bool,
    /// With those that are being discarded there would be enough.
    pub is_discarding: bool,
}

/// Why a map's slot could not be taken as used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSlot {
    #[error("slot {0:?} is past its device's end")]
    OutOfBounds(SlotAddress),
    #[error("slot {0:?} is named twice")]
    Twice(SlotAddress),
}

/// The slots of all tiers of a node. Clones share them.
#[derive(Clone)]
pub struct Tiers(Arc<Shared>);

struct Shared {
    /// Sum of all failures, to be looked at on every I/O without taking the lock.
    failures: AtomicU64,
    state: Mutex<State>,
    room: Room,
}

struct State {
    tiers: Vec<Tier>,
    /// Positions in `tiers`, fastest first.
    by_speed: Vec<usize>,
    promises: Promises,
    meta_failures: u64,
    /// Whether freed slots are held until the next checkpoint.
    is_holding: bool,
    /// No checkpoint of this start is done yet: the stored one may name slots that are free now.
    awaits_checkpoint: bool,
    is_checkpointing: bool,
    waiting_for_checkpoint: Vec<Waker>,
    waiting_for_discard: Vec<Waker>,
}

struct Tier {
    spec: TierSpec,
    /// One bit per slot that is not free.
    taken: Vec<u64>,
    taken_count: u64,
    held: Vec<u64>,
    releasing: Vec<u64>,
    /// Of the free slots; none where the device is not told of them.
    undiscarded: Option<Undiscarded>,
    /// Slots that are being discarded.
    discarding: u64,
    /// Word at which the search for a free slot begins: neighbours in time become neighbours on the device.
    cursor: usize,
    poisoned: bool,
    sync_failures: u64,
    refused_writes: u64,
}

impl Tiers {
    /// Panics on more than 64 tiers or more slots than an entry can name: configuration is checked before.
    pub fn new(specs: Vec<TierSpec>) -> Self {
        assert!(specs.len() <= DEVICES_MAX, "at most {DEVICES_MAX} tiers");
        let mut by_speed: Vec<usize> = (0..specs.len()).collect();
        by_speed.sort_by_key(|&at| (specs[at].class, at));
        let tiers = specs.into_iter().map(Tier::new).collect();
        let state = State {
            tiers,
            by_speed,
            promises: Promises::default(),
            meta_failures: 0,
            is_holding: false,
            awaits_checkpoint: false,
            is_checkpointing: false,
            waiting_for_checkpoint: Vec::new(),
            waiting_for_discard: Vec::new(),
        };
        Self(Arc::new(Shared { failures: AtomicU64::new(0), state: Mutex::new(state), room: Room::default() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("nobody panics while holding the slots")
    }

    /// Where shards ask each other for what they have freed.
    pub(crate) fn room(&self) -> &Room {
        &self.0.room
    }

    pub fn usage(&self) -> Vec<TierUsage> {
        self.state().tiers.iter().map(Tier::usage).collect()
    }

    /// Slots of each device.
    pub fn slots(&self) -> Vec<u64> {
        self.state().tiers.iter().map(|tier| tier.spec.slots).collect()
    }

    /// Promises slots to a volume that is being filled, `slots` in all of which it uses `filled`, or tells how many there
    /// are for it: see [`Promises`].
    pub fn promise(&self, volume: VolumeId, slots: u64, filled: u64) -> Result<(), u64> {
        let state = &mut *self.state();
        let usable = state.tiers.iter().filter(|tier| !tier.poisoned);
        let free = usable.map(|tier| tier.spec.slots - tier.usage().slots_used - tier.held_count()).sum();
        state.promises.make(volume, slots, filled, free)
    }

    /// A promise that was made before the node started.
    pub fn restore_promise(&self, volume: VolumeId, slots: u64, filled: u64) {
        self.state().promises.restore(volume, slots, filled);
    }

    /// How many slots a volume uses by now, for its promise if it has one.
    pub fn promise_filled(&self, volume: VolumeId, slots: u64) {
        self.state().promises.filled(volume, slots);
    }

    pub fn end_promise(&self, volume: VolumeId) {
        self.state().promises.end(volume);
    }

    /// Slots that are promised and not yet filled.
    pub fn promised(&self) -> u64 {
        self.state().promises.open()
    }

    /// Takes `count` slots for the volume from the fastest tiers with room: all of them, or none. What is promised to
    /// others is no room.
    pub fn allocate(&self, volume: VolumeId, count: usize) -> Result<Vec<SlotAddress>, NoRoom> {
        let mut state = self.state();
        let state = &mut *state;
        if state.awaits_checkpoint {
            return Err(NoRoom { is_held: true, is_discarding: false });
        }
        let usable = || state.by_speed.iter().copied().filter(|&at| !state.tiers[at].poisoned);
        let free: u64 = usable().map(|at| state.tiers[at].free_count()).sum();
        let wanted = match is_planted(Bug::PromisesIgnored) {
            true => count as u64,
            false => count as u64 + state.promises.kept_from(volume, count as u64),
        };
        if free < wanted {
            let is_held = usable().any(|at| state.tiers[at].held_count() > 0);
            let discarding: u64 = usable().map(|at| state.tiers[at].discarding).sum();
            return Err(NoRoom { is_held, is_discarding: free + discarding >= wanted });
        }
        let order: Vec<usize> = usable().collect();
        let mut slots = Vec::with_capacity(count);
        for at in order {
            while slots.len() < count
                && let Some(slot) = state.tiers[at].take_free()
            {
                slots.push(SlotAddress { device: at as u8, slot });
            }
        }
        state.promises.taken(volume, count as u64);
        Ok(slots)
    }

    /// Gives slots back that a durable map may have named: they may be held for a while.
    pub fn free(&self, slots: &[SlotAddress]) {
        let mut state = self.state();
        let is_holding = state.is_holding;
        for at in slots {
            let tier = &mut state.tiers[usize::from(at.device)];
            if is_holding {
                tier.assert_taken(at.slot);
                tier.held.push(at.slot);
            } else {
                tier.clear(at.slot);
            }
        }
    }

    /// Gives slots back that no durable map ever named.
    pub fn free_unused(&self, slots: &[SlotAddress]) {
        let mut state = self.state();
        for at in slots {
            state.tiers[usize::from(at.device)].clear(at.slot);
        }
    }

    /// Takes a slot that a stored map names.
    pub fn mark(&self, at: SlotAddress) -> Result<(), BadSlot> {
        let mut state = self.state();
        let tier = state.tiers.get_mut(usize::from(at.device)).ok_or(BadSlot::OutOfBounds(at))?;
        if at.slot >= tier.spec.slots {
            return Err(BadSlot::OutOfBounds(at));
        }
        if tier.is_taken(at.slot) {
            return Err(BadSlot::Twice(at));
        }
        tier.set(at.slot);
        Ok(())
    }

    /// From now on freed slots wait for a checkpoint.
    pub fn hold_until_checkpoint(&self) {
        let mut state = self.state();
        if !std::mem::replace(&mut state.is_holding, true) {
            state.awaits_checkpoint = true;
        }
    }

    /// Waits for a running checkpoint, then begins one: what is held now is free once it is done.
    pub(crate) async fn begin_checkpoint(&self) -> CheckpointTurn {
        poll_fn(|context| {
            let mut state = self.state();
            if state.is_checkpointing {
                state.waiting_for_checkpoint.push(context.waker().clone());
                return Poll::Pending;
            }
            state.is_checkpointing = true;
            for tier in &mut state.tiers {
                tier.releasing = std::mem::take(&mut tier.held);
            }
            Poll::Ready(())
        })
        .await;
        CheckpointTurn { tiers: self.clone(), is_done: false }
    }

    fn end_checkpoint(&self, is_done: bool) {
        let mut state = self.state();
        state.is_checkpointing = false;
        state.awaits_checkpoint &= !is_done;
        for tier in &mut state.tiers {
            let slots = std::mem::take(&mut tier.releasing);
            if is_done {
                for slot in slots {
                    tier.clear(slot);
                }
            } else {
                tier.held.extend(slots);
            }
        }
        for waker in state.waiting_for_checkpoint.drain(..) {
            waker.wake();
        }
    }

    /// Takes neighbours that are free, for as long as they are being discarded. None where there are none, or where the
    /// tier's device is not to be told now.
    pub(crate) fn begin_discard(&self, device: u8) -> Option<Range<u64>> {
        let mut state = self.state();
        if state.awaits_checkpoint {
            return None;
        }
        let tier = &mut state.tiers[usize::from(device)];
        if tier.poisoned || tier.discarding != 0 {
            return None;
        }
        let slots = tier.undiscarded.as_mut()?.next_run()?;
        tier.discarding = slots.end - slots.start;
        slots.clone().for_each(|slot| tier.set(slot));
        if is_planted(Bug::ReusedWhileDiscarded) {
            tier.end_discard(slots.clone());
        }
        Some(slots)
    }

    /// The device has answered: the slots are free again. One that refuses is told no more.
    pub(crate) fn end_discard(&self, device: u8, slots: Range<u64>, is_ok: bool) {
        let mut state = self.state();
        let tier = &mut state.tiers[usize::from(device)];
        if !is_planted(Bug::ReusedWhileDiscarded) {
            tier.end_discard(slots);
        }
        if !is_ok {
            tier.undiscarded = None;
        }
        for waker in state.waiting_for_discard.drain(..) {
            waker.wake();
        }
    }

    /// Waits until nothing is being discarded.
    pub(crate) async fn discards_end(&self) {
        poll_fn(|context| {
            let mut state = self.state();
            if state.tiers.iter().all(|tier| tier.discarding == 0) {
                return Poll::Ready(());
            }
            state.waiting_for_discard.push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Whether a device is to be told of free slots.
    pub(crate) fn has_discards(&self) -> bool {
        self.state().tiers.iter().any(|tier| tier.undiscarded.is_some())
    }

    /// Changes whenever a sync or the metadata failed anywhere on the node.
    pub fn failures(&self) -> u64 {
        self.0.failures.load(Ordering::Acquire)
    }

    /// Failed syncs of each device so far, and failed metadata commits.
    pub fn failure_counts(&self) -> (Vec<u64>, u64) {
        let state = self.state();
        (state.tiers.iter().map(|tier| tier.sync_failures).collect(), state.meta_failures)
    }

    /// The file system under a device had no room for a write.
    pub fn refused_write(&self, device: u8) {
        self.state().tiers[usize::from(device)].refused_writes += 1;
    }

    /// The sync of a device failed: nothing new goes there until a volume reopened on it.
    pub fn sync_failed(&self, device: u8) {
        let mut state = self.state();
        let tier = &mut state.tiers[usize::from(device)];
        tier.poisoned = true;
        tier.sync_failures += 1;
        drop(state);
        self.0.failures.fetch_add(1, Ordering::AcqRel);
    }

    /// A commit of metadata failed: no volume of the node knows what is durable.
    pub fn meta_failed(&self) {
        self.state().meta_failures += 1;
        self.0.failures.fetch_add(1, Ordering::AcqRel);
    }

    pub fn is_poisoned(&self, device: u8) -> bool {
        self.state().tiers[usize::from(device)].poisoned
    }

    /// Failed syncs of the device so far.
    pub fn sync_failures(&self, device: u8) -> u64 {
        self.state().tiers[usize::from(device)].sync_failures
    }

    /// A sync of the device succeeded that began after `failures` of them had failed, and who wrote before it has been
    /// told. Another that failed meanwhile, perhaps on another shard, keeps the device poisoned.
    pub fn mend(&self, device: u8, failures: u64) {
        let mut state = self.state();
        let tier = &mut state.tiers[usize::from(device)];
        tier.poisoned &= tier.sync_failures != failures && !is_planted(Bug::MendedTooEarly);
    }
}

impl Tier {
    fn new(spec: TierSpec) -> Self {
        assert!(spec.slots < SLOTS_MAX, "a tier's slots fit an entry");
        let words = spec.slots.div_ceil(64) as usize;
        let mut taken = vec![0u64; words];
        if !spec.slots.is_multiple_of(64) {
            // Slots past the end are never free.
            taken[words - 1] = u64::MAX << (spec.slots % 64);
        }
        Self {
            undiscarded: spec.discards.then(|| Undiscarded::all(spec.slots)),
            discarding: 0,
            spec,
            taken,
            taken_count: 0,
            held: Vec::new(),
            releasing: Vec::new(),
            cursor: 0,
            poisoned: false,
            sync_failures: 0,
            refused_writes: 0,
        }
    }

    fn free_count(&self) -> u64 {
        self.spec.slots - self.taken_count
    }

    fn held_count(&self) -> u64 {
        (self.held.len() + self.releasing.len()) as u64
    }

    fn take_free(&mut self) -> Option<u64> {
        if self.free_count() == 0 {
            return None;
        }
        while self.taken[self.cursor] == u64::MAX {
            self.cursor = (self.cursor + 1) % self.taken.len();
        }
        let slot = self.cursor as u64 * 64 + u64::from(self.taken[self.cursor].trailing_ones());
        self.set(slot);
        Some(slot)
    }

    fn is_taken(&self, slot: u64) -> bool {
        self.taken[(slot / 64) as usize] & (1 << (slot % 64)) != 0
    }

    fn set(&mut self, slot: u64) {
        self.taken[(slot / 64) as usize] |= 1 << (slot % 64);
        self.taken_count += 1;
        if let Some(undiscarded) = &mut self.undiscarded {
            undiscarded.remove(slot);
        }
    }

    fn assert_taken(&self, slot: u64) {
        assert!(self.is_taken(slot), "slot {slot} of {} is freed while free", self.spec.name);
    }

    fn clear(&mut self, slot: u64) {
        self.assert_taken(slot);
        self.taken[(slot / 64) as usize] &= !(1 << (slot % 64));
        self.taken_count -= 1;
        if let Some(undiscarded) = &mut self.undiscarded {
            undiscarded.insert(slot);
        }
    }

    fn end_discard(&mut self, slots: Range<u64>) {
        self.discarding = 0;
        for slot in slots {
            self.clear(slot);
            if let Some(undiscarded) = &mut self.undiscarded {
                undiscarded.remove(slot);
            }
        }
    }

    fn usage(&self) -> TierUsage {
        let slots_total = self.spec.slots;
        let slots_held = self.held_count();
        let slots_used = self.taken_count - slots_held - self.discarding;
        TierUsage {
            name: self.spec.name.clone(),
            class: self.spec.class,
            slots_total,
            slots_used,
            slots_held,
            poisoned: self.poisoned,
            level: SpaceLevel::of(slots_used, slots_total),
            refused_writes: self.refused_writes,
            discard_failed: self.spec.discards && self.undiscarded.is_none(),
        }
    }
}

/// A checkpoint that runs. Dropped before `done`, the slots it would have released are held on.
pub(crate) struct CheckpointTurn {
    tiers: Tiers,
    is_done: bool,
}

impl CheckpointTurn {
    pub(crate) fn done(mut self) {
        self.is_done = true;
    }
}

impl Drop for CheckpointTurn {
    fn drop(&mut self) {
        self.tiers.end_checkpoint(self.is_done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    const VOLUME: VolumeId = VolumeId(1);

    fn tier(name: &str, class: TierClass, slots: u64) -> TierSpec {
        TierSpec { name: name.into(), class, slots, discards: false }
    }

    #[test]
    fn the_fastest_tier_with_room_is_used_first() {
        let tiers = Tiers::new(vec![tier("slow", TierClass::Hdd, 70), tier("fast", TierClass::Nvme, 2)]);
        let slots = tiers.allocate(VOLUME, 3).unwrap();
        assert_eq!(slots.iter().map(|at| at.device).collect::<Vec<_>>(), [1, 1, 0]);
        assert_eq!(tiers.allocate(VOLUME, 70), Err(NoRoom { is_held: false, is_discarding: false }));
        assert_eq!(tiers.allocate(VOLUME, 69).unwrap().len(), 69);
        assert_eq!(tiers.usage()[0].level, SpaceLevel::Full);
        tiers.free(&slots);
        assert_eq!(tiers.usage()[1].level, SpaceLevel::Normal);
    }

    #[test]
    fn levels_are_reached_at_their_share() {
        let tiers = Tiers::new(vec![tier("a", TierClass::Ssd, 10)]);
        let mut levels = Vec::new();
        for _ in 0..10 {
            tiers.allocate(VOLUME, 1).unwrap();
            levels.push(tiers.usage()[0].level);
        }
        assert_eq!(levels[6..], [SpaceLevel::Normal, SpaceLevel::At80, SpaceLevel::At90, SpaceLevel::Full]);
    }

    #[test]
    fn held_slots_come_back_with_a_checkpoint_that_began_later() {
        let tiers = Tiers::new(vec![tier("a", TierClass::Ssd, 2)]);
        tiers.hold_until_checkpoint();
        assert_eq!(
            tiers.allocate(VOLUME, 1),
            Err(NoRoom { is_held: true, is_discarding: false }),
            "the stored checkpoint may name anything"
        );
        tiers.begin_checkpoint().now_or_never().unwrap().done();
        let slots = tiers.allocate(VOLUME, 2).unwrap();
        tiers.free(&slots[..1]);
        assert_eq!(tiers.allocate(VOLUME, 1), Err(NoRoom { is_held: true, is_discarding: false }));
        let turn = tiers.begin_checkpoint().now_or_never().unwrap();
        tiers.free(&slots[1..]);
        assert!(tiers.begin_checkpoint().now_or_never().is_none(), "one at a time");
        turn.done();
        assert_eq!(tiers.usage()[0].slots_held, 1);
        assert_eq!(tiers.allocate(VOLUME, 1).unwrap(), slots[..1]);
        drop(tiers.begin_checkpoint().now_or_never().unwrap());
        assert_eq!(
            tiers.allocate(VOLUME, 1),
            Err(NoRoom { is_held: true, is_discarding: false }),
            "that one was given up"
        );
    }

    #[test]
    fn a_device_is_mended_by_a_sync_that_began_after_the_last_failure() {
        let tiers = Tiers::new(vec![tier("a", TierClass::Ssd, 1)]);
        tiers.sync_failed(0);
        let before = tiers.sync_failures(0);
        tiers.sync_failed(0);
        tiers.mend(0, before);
        assert!(tiers.is_poisoned(0), "the second failure is nobody's yet");
        tiers.mend(0, tiers.sync_failures(0));
        assert!(!tiers.is_poisoned(0));
    }

    #[cfg(feature = "planted")]
    #[test]
    fn planted_mended_too_early_is_caught() {
        drover_base::planted::plant(Some(Bug::MendedTooEarly));
        let outcome = std::panic::catch_unwind(a_device_is_mended_by_a_sync_that_began_after_the_last_failure);
        drover_base::planted::plant(None);
        assert!(outcome.is_err(), "it was planted and nothing failed");
    }

    /// Shards allocate at once: none gets what another has, and the last slot is found whoever asks.
    #[test]
    #[allow(clippy::disallowed_methods)] // Threads are what it is about.
    fn threads_take_each_slot_once() {
        const SLOTS: u64 = 10_000;
        let tiers = Tiers::new(vec![tier("a", TierClass::Ssd, SLOTS / 2), tier("b", TierClass::Hdd, SLOTS / 2)]);
        let take = |tiers: Tiers| {
            std::thread::spawn(move || {
                let (mut mine, mut given_back) = (Vec::new(), 0);
                while let Ok(slots) = tiers.allocate(VOLUME, 3).or_else(|_| tiers.allocate(VOLUME, 1)) {
                    mine.extend(slots);
                    // Not for ever: who is the last could take one and give it back without an end.
                    if mine.len().is_multiple_of(7) && given_back < 200 {
                        given_back += 1;
                        tiers.free_unused(&[mine.pop().expect("some were taken")]);
                    }
                }
                mine
            })
        };
        let threads: Vec<_> = (0..4).map(|_| take(tiers.clone())).collect();
        let mut all: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        // A thread that gave one back last may have ended before another did.
        all.extend(std::iter::from_fn(|| tiers.allocate(VOLUME, 1).ok()).flatten());
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len() as u64, SLOTS);
        assert_eq!(tiers.usage().iter().map(|tier| tier.slots_used).sum::<u64>(), SLOTS);
    }

    #[test]
    fn a_stored_slot_is_taken_once() {
        let tiers = Tiers::new(vec![tier("a", TierClass::Ssd, 65)]);
        let at = |device, slot| SlotAddress { device, slot };
        assert_eq!(tiers.mark(at(0, 64)), Ok(()));
        assert_eq!(tiers.mark(at(0, 64)), Err(BadSlot::Twice(at(0, 64))));
        assert_eq!(tiers.mark(at(0, 65)), Err(BadSlot::OutOfBounds(at(0, 65))));
        assert_eq!(tiers.mark(at(1, 0)), Err(BadSlot::OutOfBounds(at(1, 0))));
    }
}
