//! Whether what a volume stored can still be trusted to become durable.
//!
//! Invariants
//! - A device has its bit in `unsynced` from the submission of a write until a sync that began after the
//!   write completed has succeeded; while that sync runs it has its bit in `syncing`.
//! - The sync of a device fails once and for everybody: kernels tell it once, to one caller. So every volume
//!   compares the device's failure count with the one it saw last, and is poisoned if it had unsynced writes.
//! - A poisoned volume stays so until it is reopened.

use crate::slots::Tiers;
use drover_base::IoError;
use std::cell::{Cell, RefCell};

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Sound,
    Poisoned,
    /// The volume was deleted.
    Gone,
}

pub struct Health {
    tiers: Tiers,
    state: Cell<State>,
    unsynced: Cell<u64>,
    syncing: Cell<u64>,
    seen: Cell<u64>,
    seen_syncs: RefCell<Vec<u64>>,
    seen_meta: Cell<u64>,
}

impl Health {
    pub fn new(tiers: Tiers) -> Self {
        let health = Self {
            tiers,
            state: Cell::new(State::Sound),
            unsynced: Cell::new(0),
            syncing: Cell::new(0),
            seen: Cell::new(0),
            seen_syncs: RefCell::default(),
            seen_meta: Cell::new(0),
        };
        health.reset();
        health
    }

    /// The volume was opened anew from metadata.
    pub fn reset(&self) {
        self.seen.set(self.tiers.failures());
        let (syncs, meta) = self.tiers.failure_counts();
        *self.seen_syncs.borrow_mut() = syncs;
        self.seen_meta.set(meta);
        self.unsynced.set(0);
        self.syncing.set(0);
        self.state.set(State::Sound);
    }

    pub fn check(&self) -> Result<(), IoError> {
        if self.tiers.failures() != self.seen.get() {
            self.compare();
        }
        match self.state.get() {
            State::Sound => Ok(()),
            State::Poisoned => Err(IoError::Poisoned),
            State::Gone => Err(IoError::NotHere),
        }
    }

    fn compare(&self) {
        self.seen.set(self.tiers.failures());
        let (syncs, meta) = self.tiers.failure_counts();
        let mut seen_syncs = self.seen_syncs.borrow_mut();
        let at_stake = self.unsynced.get() | self.syncing.get();
        for (device, (now, seen)) in syncs.iter().zip(seen_syncs.iter()).enumerate() {
            if now != seen && at_stake & (1 << device) != 0 {
                self.poison();
            }
        }
        if meta != self.seen_meta.get() {
            self.poison();
        }
        *seen_syncs = syncs;
        self.seen_meta.set(meta);
    }

    pub fn poison(&self) {
        if self.state.get() == State::Sound {
            self.state.set(State::Poisoned);
        }
    }

    pub fn set_gone(&self) {
        self.state.set(State::Gone);
    }

    /// A write to the device is being submitted, or has completed.
    pub fn touch(&self, device: u8) {
        self.unsynced.set(self.unsynced.get() | 1 << device);
    }

    /// Whether the volume may write to the device now. On a device whose sync failed nothing becomes durable.
    pub fn check_device(&self, device: u8) -> Result<(), IoError> {
        if self.tiers.failures() > 0 && self.tiers.is_poisoned(device) {
            self.poison();
        }
        self.check()
    }

    /// Whether any write since the last sync has been submitted.
    pub fn has_unsynced(&self) -> bool {
        self.unsynced.get() != 0
    }

    /// Devices with writes since their last sync; they count as being synced from now on.
    pub fn begin_sync(&self) -> Vec<u8> {
        let devices = self.unsynced.take();
        self.syncing.set(devices);
        (0..64).filter(|device| devices & (1 << device) != 0).collect()
    }

    /// The sync that began ended, well unless the volume is poisoned.
    pub fn end_sync(&self) -> Result<(), IoError> {
        let result = self.check();
        self.syncing.set(0);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::{TierClass, TierSpec};

    fn tiers() -> Tiers {
        let tier = |name: &str| TierSpec { name: name.into(), class: TierClass::Ssd, slots: 1, discards: false };
        Tiers::new(vec![tier("a"), tier("b")])
    }

    #[test]
    fn a_failed_sync_poisons_who_wrote_since_the_last_good_one() {
        let tiers = tiers();
        let [wrote, synced, elsewhere] = std::array::from_fn(|_| Health::new(tiers.clone()));
        wrote.touch(0);
        synced.touch(0);
        assert_eq!(synced.begin_sync(), [0]);
        synced.end_sync().unwrap();
        elsewhere.touch(1);
        tiers.sync_failed(0);
        assert_eq!(wrote.check(), Err(IoError::Poisoned));
        assert_eq!(wrote.check(), Err(IoError::Poisoned), "not only once");
        assert_eq!(synced.check(), Ok(()));
        assert_eq!(elsewhere.check(), Ok(()));
        assert_eq!(synced.check_device(0), Err(IoError::Poisoned), "nothing new goes to that device");
        wrote.reset();
        assert_eq!(wrote.check(), Ok(()));
    }

    #[test]
    fn a_sync_that_fails_elsewhere_during_ours_counts() {
        let tiers = tiers();
        let health = Health::new(tiers.clone());
        health.touch(1);
        health.begin_sync();
        tiers.sync_failed(1);
        assert_eq!(health.end_sync(), Err(IoError::Poisoned));
    }

    #[test]
    fn failed_metadata_poisons_all() {
        let tiers = tiers();
        let health = Health::new(tiers.clone());
        tiers.meta_failed();
        assert_eq!(health.check(), Err(IoError::Poisoned));
    }
}
