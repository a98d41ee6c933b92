//! The activity log: after a crash only the regions in it may differ from what was last flushed.
//!
//! Invariants
//! - Before the first write into a region its activation is durable; `active` holds durable ones only.
//! - Activations that are asked for together are committed together, one group at a time.
//! - A region leaves the log only when no write to it runs, all that were done are flushed, and nobody has it
//!   pinned. Its deletion is committed by the group that needed the room, so activations of it come after.
//! - The log is bounded by `active_regions_max`. Pinned and busy regions alone may push it past the bound,
//!   rather than stop writes until a migration has got them clean; a volume's regions bound it then.

use crate::{Volume, flush::Scope, meta::Batch, outcome::Outcome, record};
use drover_base::{
    ByteRange, IoError, RegionIndex,
    planted::{Bug, is_planted},
};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

/// When the log is full this share of it leaves at once, so that not every new region costs a flush.
const RETIRED_SHARE: usize = 8;

/// Says for which regions an unfinished migration is not clean yet.
pub type ActivityPin = Rc<dyn Fn(RegionIndex) -> bool>;

#[derive(Default)]
struct Active {
    writers: u32,
    /// The tick at which the last write ended.
    last: u64,
}

#[derive(Default)]
struct Group {
    regions: BTreeSet<RegionIndex>,
    done: Outcome<Result<(), IoError>>,
}

/// The active regions of one volume.
#[derive(Default)]
pub struct Activity {
    active: RefCell<BTreeMap<RegionIndex, Active>>,
    /// Counts the writes that ended.
    tick: Cell<u64>,
    /// Writes that ended up to this tick are flushed.
    flushed: Cell<u64>,
    waiting: RefCell<Option<Group>>,
    running: Cell<bool>,
    idle: RefCell<Outcome<()>>,
    pin: RefCell<Option<ActivityPin>>,
}

impl Activity {
    pub fn load(&self, regions: impl IntoIterator<Item = RegionIndex>) {
        *self.active.borrow_mut() = regions.into_iter().map(|region| (region, Active::default())).collect();
    }

    pub fn regions(&self) -> Vec<RegionIndex> {
        self.active.borrow().keys().copied().collect()
    }

    /// When the last write of the region ended, by a count of them; `None`: it is not in the log.
    pub fn last_write(&self, region: RegionIndex) -> Option<u64> {
        self.active.borrow().get(&region).map(|state| state.last)
    }

    pub fn set_pin(&self, pin: Option<ActivityPin>) {
        *self.pin.borrow_mut() = pin;
    }

    /// Now, for [`Self::flushed`].
    pub fn mark(&self) -> u64 {
        self.tick.get()
    }

    /// What ended up to `mark` is durable.
    pub fn flushed(&self, mark: u64) {
        self.flushed.set(mark);
    }

    /// Regions written to since the last flush of everything.
    pub fn unflushed(&self) -> Vec<RegionIndex> {
        let active = self.active.borrow();
        let unflushed = active.iter().filter(|(_, state)| state.writers > 0 || state.last > self.flushed.get());
        unflushed.map(|(region, _)| *region).collect()
    }

    /// Counts a write into the regions, if all of them are active.
    fn begin(self: &Rc<Self>, regions: std::ops::RangeInclusive<u64>) -> Option<Writing> {
        let mut active = self.active.borrow_mut();
        if regions.start() == regions.end() {
            active.get_mut(&RegionIndex(*regions.start()))?.writers += 1;
        } else {
            if regions.clone().any(|region| !active.contains_key(&RegionIndex(region))) {
                return None;
            }
            for region in regions.clone() {
                active.get_mut(&RegionIndex(region)).expect("it was looked for").writers += 1;
            }
        }
        Some(Writing { activity: self.clone(), regions })
    }

    /// Regions that are past the end of a volume of so many.
    pub fn past(&self, regions: u64) -> Vec<RegionIndex> {
        self.active.borrow().range(RegionIndex(regions)..).map(|(region, _)| *region).collect()
    }

    /// The volume has so many regions from now on; nobody writes past them.
    pub fn truncate(&self, regions: u64) {
        drop(self.active.borrow_mut().split_off(&RegionIndex(regions)));
    }

    /// Takes regions out that may leave, the longest idle first.
    fn retire(&self, count: usize) -> Vec<RegionIndex> {
        let pin = self.pin.borrow().clone();
        let mut active = self.active.borrow_mut();
        let may_leave = |region: RegionIndex, state: &Active| {
            state.writers == 0 && state.last <= self.flushed.get() && !pin.as_ref().is_some_and(|pin| pin(region))
        };
        let mut idle: Vec<(u64, RegionIndex)> = active
            .iter()
            .filter(|(region, state)| may_leave(**region, state))
            .map(|(region, state)| (state.last, *region))
            .collect();
        idle.sort_unstable();
        idle.truncate(count);
        let leaving: Vec<RegionIndex> = idle.into_iter().map(|(_, region)| region).collect();
        for region in &leaving {
            active.remove(region);
        }
        leaving
    }
}

/// A write into active regions; they stay active while it lives.
pub struct Writing {
    activity: Rc<Activity>,
    regions: std::ops::RangeInclusive<u64>,
}

impl Drop for Writing {
    fn drop(&mut self) {
        let tick = self.activity.tick.get() + 1;
        self.activity.tick.set(tick);
        let mut active = self.activity.active.borrow_mut();
        for region in self.regions.clone() {
            // It is missing only when the volume was reopened from metadata meanwhile.
            if let Some(state) = active.get_mut(&RegionIndex(region)) {
                state.writers = state.writers.saturating_sub(1);
                state.last = tick;
            }
        }
    }
}

impl Volume {
    /// Makes the regions of `range` active, durably, and counts a write into them.
    pub(crate) async fn activate(&self, range: ByteRange) -> Result<Writing, IoError> {
        let first = RegionIndex::containing(range.offset).0;
        let last = RegionIndex::containing(range.end() - 1).0;
        loop {
            self.health.check()?;
            if let Some(writing) = self.activity.begin(first..=last) {
                return Ok(writing);
            }
            let done = self.request_activation(first..=last);
            if is_planted(Bug::ActivationNotAwaited) {
                let unawaited = (first..=last).map(|region| (RegionIndex(region), Active::default()));
                let mut active = self.activity.active.borrow_mut();
                for (region, state) in unawaited {
                    active.entry(region).or_insert(state);
                }
                continue;
            }
            done.wait().await?;
        }
    }

    fn request_activation(&self, regions: std::ops::RangeInclusive<u64>) -> Outcome<Result<(), IoError>> {
        let activity = &self.activity;
        let mut waiting = activity.waiting.borrow_mut();
        let group = waiting.get_or_insert_default();
        group.regions.extend(regions.map(RegionIndex));
        let done = group.done.clone();
        if !activity.running.replace(true) {
            *activity.idle.borrow_mut() = Outcome::default();
            self.env.world.spawn(self.me().run_activations()).detach();
        }
        done
    }

    /// Waits until no activation is being committed.
    pub(crate) async fn activations_end(&self) {
        while self.activity.running.get() {
            let idle = self.activity.idle.borrow().clone();
            idle.wait().await;
        }
    }

    async fn run_activations(self: Rc<Self>) {
        loop {
            let Some(group) = self.activity.waiting.take() else { break };
            let result = self.run_activation(group.regions).await;
            group.done.set(result);
        }
        self.activity.running.set(false);
        self.activity.idle.borrow().set(());
    }

    async fn run_activation(&self, mut regions: BTreeSet<RegionIndex>) -> Result<(), IoError> {
        self.health.check()?;
        let activity = &self.activity;
        if !is_planted(Bug::ActivationNotAwaited) {
            // Some may have become active while they waited for their turn.
            regions.retain(|region| !activity.active.borrow().contains_key(region));
        }
        let most = self.env.active_regions_max;
        let over = (activity.active.borrow().len() + regions.len()).saturating_sub(most);
        let mut batch = Batch::default();
        if over > 0 {
            self.make_durable(Scope::All, None).await?;
            for region in activity.retire(over + most / RETIRED_SHARE) {
                batch.delete(record::activity_key(self.id, region));
            }
        }
        for region in &regions {
            batch.put(record::activity_key(self.id, *region), record::encode_activity(self.id, *region));
        }
        if batch.is_empty() {
            return Ok(());
        }
        self.env.commit(batch).await.map_err(|_| IoError::Poisoned)?;
        self.health.check()?;
        let mut active = activity.active.borrow_mut();
        for region in regions {
            // Not retired before somebody has used it: it counts as written now.
            let state = active.entry(region).or_default();
            state.last = state.last.max(activity.tick.get() + 1);
        }
        Ok(())
    }
}
