//! A layer that no snapshot names any more merges up into the one layer that stands on it.
//!
//! ```text
//!  child has        parent has         afterwards the child has
//!  nothing          anything           the parent's entry: metadata only
//!  hidden h         hidden p           hidden h ∪ p
//!  hidden h         slot, valid v      nothing left of v under h: hidden h; else the slot, h zeroed in it
//!  slot, valid c    hidden p           its slot, p \ c zeroed in it
//!  slot, valid c    slot, valid v      its slot with v \ c copied in, or the parent's with c copied in: the fewer
//! ```
//!
//! Invariants
//! - An extent's entries of parent and child change together, under its lock, in one step without await; the
//!   flush commits a region's entries of all layers in one batch. So at every crash each slot is named once.
//! - Data is copied before entries change, and synced before they are committed, as for any write.
//! - Copies go to blocks that no lookup reaches: through the only child they are shadowed, and no snapshot
//!   names the parent. So a merge that a crash cut short is merely begun again.
//! - Nobody waits for an extent's lock in the family's turn: it may be held for as long as a mirror takes to answer.
//! - With several children the layer stays, until one or none is left.
//! - Where one volume sees the two layers, its flushes carry the merge. Where several do, a region's entries change in
//!   memory when they are durable (copy, sync, commit, then change): nobody reads by an entry that a failed sync takes back,
//!   and what is seen by several never waits for the flush of one. While a volume of the family is poisoned nothing merges.

use crate::{
    Volume,
    entry::{Entry, Place, SlotAddress},
    env::Env,
    family::Family,
    flush::{Scope, Structural, sync_devices},
    health::Health,
    layer::Layer,
    map::NOTHING,
    meta::{Batch, Change},
    outcome::Outcome,
    record,
    snapshot::forget_layer,
};
use drover_base::{
    BlockMask, ByteRange, ExtentIndex, IoError, LayerId, RegionIndex,
    planted::{Bug, is_planted},
    units::{BLOCK_BYTES, EXTENT_BYTES},
};
use drover_disk::Buffer;
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

/// How long a merge that failed (a device's read error, say) waits before it tries again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Regions merged before they are flushed: bounds what a batch holds and how long slots wait to be free.
const REGIONS_AT_ONCE: u32 = 64;

/// What merging is still to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MergeLeft {
    /// Layers of deleted snapshots that go. Those that several layers stand on stay for now, and do not count.
    pub layers: u64,
    /// What they still hold: slots × 64 KiB. It only shrinks, but for further deletions.
    pub left_bytes: u64,
}

/// What merging has done since the volume was opened by this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    pub layers: u64,
    /// Slots that came free × 64 KiB.
    pub freed_bytes: u64,
}

/// The merging of one family.
#[derive(Default)]
pub struct Merger {
    running: Cell<bool>,
    idle: RefCell<Outcome<()>>,
    /// Regions merged since the last flush.
    unflushed: Cell<u32>,
    /// Where the search for the layer's next region begins.
    cursor: Cell<(LayerId, u64)>,
}

/// What can be done next for a layer that is being deleted.
enum Job {
    /// Nothing stands on it.
    Drop(Rc<Layer>),
    /// One layer stands on it. `by`: the only volume that sees them; none: several do.
    Merge { parent: Rc<Layer>, child: Rc<Layer>, by: Option<Rc<Volume>> },
}

/// What came of a step.
enum Step {
    Made,
    /// All of a region but what others hold the locks of, this among it.
    Busy(Rc<Volume>, ByteRange),
    NothingLeft,
}

impl Volume {
    /// Merges in the background what can be merged.
    pub(crate) fn start_merging(&self) {
        self.family.start_merging();
    }

    /// Waits until nothing is left to merge, or a volume that it shares layers with, or itself, is poisoned.
    pub async fn merges_done(&self) {
        let merger = &self.family.merger;
        while merger.running.get() {
            let idle = merger.idle.borrow().clone();
            idle.wait().await;
        }
    }

    /// `None`: nothing is left to merge.
    pub fn merge_left(&self) -> Option<MergeLeft> {
        let (mine, others) = (self.family.seen_by(self), self.family.seen_by_others(self.id));
        let tree = self.family.tree.borrow();
        let children = tree.children();
        let of_mine = |layer: &&Rc<Layer>| mine.contains(&layer.id) || !others.contains(&layer.id);
        let is_going = |layer: &&Rc<Layer>| {
            layer.deleting.get() && children.get(&layer.id).is_none_or(|children| children.len() == 1)
        };
        let left = tree.layers().filter(is_going).filter(of_mine).fold(MergeLeft::default(), |left, layer| MergeLeft {
            layers: left.layers + 1,
            left_bytes: left.left_bytes + layer.slots() * EXTENT_BYTES,
        });
        (left.layers > 0).then_some(left)
    }

    /// What several volumes see is counted with the first of them.
    pub fn merged(&self) -> Merged {
        self.merged.get()
    }

    fn count_merged(&self, layers: u64, slots: u64) {
        let Merged { layers: before, freed_bytes } = self.merged.get();
        self.merged.set(Merged { layers: before + layers, freed_bytes: freed_bytes + slots * EXTENT_BYTES });
    }

    async fn finish_merge(&self, parent: Rc<Layer>, child: Rc<Layer>) -> Result<(), IoError> {
        let changes = merged_records(&self.family, &parent, &child);
        let volume = self.me();
        let then = Box::new(move || {
            volume.family.remove(parent.id);
            volume.family.merger.unflushed.set(0);
            volume.count_merged(1, 0);
        });
        self.make_durable(Scope::All, Some(Structural { changes, then })).await
    }

    /// Leaves out what others hold the locks of: somebody else of the family may wait for the turn. Returns one such.
    async fn merge_region(
        &self,
        parent: &Layer,
        child: &Layer,
        region: RegionIndex,
    ) -> Result<Option<ByteRange>, IoError> {
        let mut busy = None;
        for extent in region.extents().filter(|extent| parent.entry(*extent) != Entry::NOTHING) {
            let range = ByteRange { offset: extent.offset(), len: EXTENT_BYTES };
            match self.locks.try_lock(range) {
                Some(_guard) => self.merge_extent(parent, child, extent).await?,
                None => busy = Some(range),
            }
        }
        if busy.is_some() {
            return Ok(busy);
        }
        parent.forget_region(region);
        let unflushed = &self.family.merger.unflushed;
        unflushed.set(unflushed.get() + 1);
        if unflushed.get() >= REGIONS_AT_ONCE {
            self.make_durable(Scope::All, None).await?;
            unflushed.set(0);
        }
        Ok(None)
    }

    async fn merge_extent(&self, parent: &Layer, child: &Layer, extent: ExtentIndex) -> Result<(), IoError> {
        let is_bottom = parent.parent.get().is_none();
        // Remote blocks of the child shadow the parent's, as its data does.
        let below = parent.entry(extent).without(child.remote_mask(extent));
        let plan = plan_extent(below, child.entry(extent), is_bottom);
        let running = self.inflight.begin();
        plan.copy(&self.env, &self.health).await?;
        drop(running);
        self.change_entry(child, extent, plan.child);
        self.change_entry(parent, extent, Entry::NOTHING);
        if let Some(slot) = plan.freed {
            self.release(extent, slot);
            self.count_merged(0, 1);
        }
        Ok(())
    }
}

impl Family {
    /// Merges in the background what can be merged.
    pub(crate) fn start_merging(self: &Rc<Self>) {
        if self.next_job().is_some() && !self.merger.running.replace(true) {
            *self.merger.idle.borrow_mut() = Outcome::default();
            self.env.world.spawn(self.clone().run_merges()).detach();
        }
    }

    async fn run_merges(self: Rc<Self>) {
        self.health.reset();
        loop {
            match self.merge_step().await {
                Ok(Step::Made) => yield_once().await,
                Ok(Step::Busy(volume, range)) => drop(volume.locks.enqueue(range).await),
                Ok(Step::NothingLeft) => break,
                Err(error) if self.are_sound().is_ok() => {
                    tracing::warn!(family = ?self.id, %error, "a merge of layers failed and will be tried again");
                    self.env.world.sleep(RETRY_AFTER).await;
                    self.health.reset();
                }
                Err(_) => break,
            }
        }
        self.merger.running.set(false);
        self.merger.idle.borrow().set(());
        // A snapshot deleted between the last look and now found a merge running.
        if self.are_sound().is_ok() {
            self.start_merging();
        }
    }

    fn are_sound(&self) -> Result<(), IoError> {
        self.members().iter().try_for_each(|volume| volume.health.check())
    }

    fn next_job(&self) -> Option<Job> {
        let tree = self.tree.borrow();
        let mut deleting = tree.layers().filter(|layer| layer.deleting.get()).peekable();
        deleting.peek()?;
        let mut children = tree.children();
        let members = self.members();
        let seen: Vec<_> = members.iter().map(|volume| self.seen_by(volume)).collect();
        deleting.find_map(|parent| {
            let mut children = children.remove(&parent.id).unwrap_or_default();
            let Some(child) = children.pop() else { return Some(Job::Drop(parent.clone())) };
            let mut see = members.iter().zip(&seen).filter(|(_, seen)| seen.contains(&child.id));
            let (first, is_one) = (see.next().map(|(volume, _)| volume.clone()), see.next().is_none());
            // What nobody sees goes from the top down.
            let first = first.filter(|_| children.is_empty())?;
            Some(Job::Merge { parent: parent.clone(), child, by: is_one.then_some(first) })
        })
    }

    /// One region's worth.
    async fn merge_step(&self) -> Result<Step, IoError> {
        let _turn = self.turn.clone().lock_owned().await;
        self.are_sound()?;
        match self.next_job() {
            None => return Ok(Step::NothingLeft),
            Some(Job::Drop(layer)) => self.drop_layer(layer).await?,
            Some(Job::Merge { parent, child, by }) => match (self.next_merge_region(&parent), by) {
                (Some(region), Some(volume)) => {
                    if let Some(busy) = volume.merge_region(&parent, &child, region).await? {
                        return Ok(Step::Busy(volume, busy));
                    }
                }
                (Some(region), None) => self.merge_region(&parent, &child, region).await?,
                (None, Some(volume)) => volume.finish_merge(parent, child).await?,
                (None, None) => self.finish_merge(parent, child).await?,
            },
        }
        Ok(Step::Made)
    }

    /// The parent's next region with entries. The search goes on where it stopped, then once more from the
    /// start: a merge from below may have filled what was passed.
    fn next_merge_region(&self, parent: &Layer) -> Option<RegionIndex> {
        let (layer, from) = self.merger.cursor.get();
        let from = if layer == parent.id { from } else { 0 };
        let map = parent.map();
        let found = map.next_region(RegionIndex(from)).or_else(|| map.next_region(RegionIndex(0)));
        self.merger.cursor.set((parent.id, found.map_or(0, |region| region.0)));
        found
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<(), IoError> {
        self.env.commit(Batch { changes }).await.map_err(|_| IoError::Poisoned)?;
        self.health.check()
    }

    /// Nobody sees it, so no flush carries anything of it.
    async fn drop_layer(&self, layer: Rc<Layer>) -> Result<(), IoError> {
        self.commit(forget_layer(&layer).into()).await?;
        self.remove(layer.id);
        self.inflight.retire(layer.slot_addresses());
        self.count_merged(1, layer.slots());
        Ok(())
    }

    async fn finish_merge(&self, parent: Rc<Layer>, child: Rc<Layer>) -> Result<(), IoError> {
        self.commit(merged_records(self, &parent, &child)).await?;
        self.remove(parent.id);
        self.count_merged(1, 0);
        Ok(())
    }

    /// Copies, syncs, commits, and only then changes what the volumes look things up by.
    async fn merge_region(&self, parent: &Layer, child: &Layer, region: RegionIndex) -> Result<(), IoError> {
        let is_bottom = parent.parent.get().is_none();
        let mut entries = child.map().region(region).copied().unwrap_or(NOTHING);
        let mut freed = Vec::new();
        let running = self.inflight.begin();
        for extent in region.extents().filter(|extent| parent.entry(*extent) != Entry::NOTHING) {
            let plan = plan_extent(parent.entry(extent), child.entry(extent), is_bottom);
            plan.copy(&self.env, &self.health).await?;
            entries[extent.in_region()] = plan.child;
            freed.extend(plan.freed);
        }
        drop(running);
        let apply = || {
            for extent in region.extents() {
                child.set(extent, entries[extent.in_region()]);
                parent.set(extent, Entry::NOTHING);
            }
            parent.forget_region(region);
        };
        if is_planted(Bug::SharedMergedBeforeDurable) {
            apply();
            self.inflight.retire(freed);
            return Ok(());
        }
        sync_devices(&self.env, &self.health).await?;
        let key = record::map_key(child.id, region);
        let merged = match record::encode_region(child.id, region, Some(&entries), None) {
            Some(value) => Change::Put { key, value },
            None => Change::Delete { key },
        };
        self.commit(vec![merged, Change::Delete { key: record::map_key(parent.id, region) }]).await?;
        apply();
        self.count_merged(0, freed.len() as u64);
        self.inflight.retire(freed);
        Ok(())
    }

    fn count_merged(&self, layers: u64, slots: u64) {
        if let Some(volume) = self.members().first() {
            volume.count_merged(layers, slots);
        }
    }
}

/// The child stands on what the parent stood on; the parent is gone.
fn merged_records(family: &Family, parent: &Layer, child: &Layer) -> Vec<Change> {
    let mut merged = family.record(child);
    merged.parent = parent.parent.get();
    let mut changes = vec![Change::Put { key: record::layer_key(child.id), value: merged.encode() }];
    changes.extend(forget_layer(parent));
    changes
}

/// What merging one extent takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ExtentPlan {
    /// The child's entry afterwards; the parent's is then nothing.
    child: Entry,
    /// Blocks to zero first.
    zero: Option<(SlotAddress, BlockMask)>,
    /// Blocks to copy first, from one slot to another.
    copy: Option<(SlotAddress, SlotAddress, BlockMask)>,
    /// The slot that nobody names afterwards.
    freed: Option<SlotAddress>,
}

impl ExtentPlan {
    /// Writes what has to be in the child's slot.
    async fn copy(&self, env: &Env, health: &Health) -> Result<(), IoError> {
        if let Some((at, blocks)) = self.zero {
            for (first, count) in blocks.runs() {
                let zeros = Buffer::zeroed(count as usize * BLOCK_BYTES as usize);
                write(env, health, at, first, zeros).await?;
            }
        }
        if let Some((from, to, blocks)) = self.copy {
            for (first, count) in blocks.runs() {
                let buffer = Buffer::for_read(count as usize * BLOCK_BYTES as usize);
                let device = &env.devices[usize::from(from.device)];
                let (read, data) = device.read(from.block_offset(first), buffer).await;
                read.map_err(|error| {
                    tracing::warn!(device = from.device, %error, "a merge could not read");
                    IoError::Device
                })?;
                write(env, health, to, first, data).await?;
            }
        }
        Ok(())
    }
}

async fn write(env: &Env, health: &Health, at: SlotAddress, block: u32, data: Buffer) -> Result<(), IoError> {
    health.check_device(at.device)?;
    env.write(health, at.device, at.block_offset(block), data).await
}

/// The table at the head of this file. At the bottom a block that nobody has is zero anyway.
fn plan_extent(parent: Entry, child: Entry, is_bottom: bool) -> ExtentPlan {
    let plan = ExtentPlan { child, zero: None, copy: None, freed: None };
    let ignores_hidden = is_planted(Bug::MergeIgnoresHidden);
    match (child.place(), parent.place()) {
        (Place::Absent { hidden: over }, Place::Absent { hidden }) => {
            let hidden = if is_bottom { BlockMask::EMPTY } else { over.with(hidden) };
            ExtentPlan { child: Entry::absent(hidden), ..plan }
        }
        (Place::Absent { hidden }, Place::Slot { at, valid }) => {
            let hidden = if ignores_hidden { BlockMask::EMPTY } else { hidden };
            let rest = valid.without(hidden);
            if rest.is_empty() {
                let hidden = if is_bottom { BlockMask::EMPTY } else { hidden };
                return ExtentPlan { child: Entry::absent(hidden), freed: Some(at), ..plan };
            }
            if is_bottom || hidden.is_empty() {
                return ExtentPlan { child: Entry::slot(at, rest), ..plan };
            }
            ExtentPlan { child: Entry::slot(at, rest.with(hidden)), zero: Some((at, hidden)), ..plan }
        }
        (Place::Slot { at, valid }, Place::Absent { hidden }) => {
            let missing = hidden.without(valid);
            if is_bottom || missing.is_empty() {
                return plan;
            }
            ExtentPlan { child: Entry::slot(at, valid.with(missing)), zero: Some((at, missing)), ..plan }
        }
        (Place::Slot { at: over, valid: top }, Place::Slot { at: under, valid: bottom }) => {
            let up = bottom.without(top);
            let both = bottom.with(top);
            if up.is_empty() {
                ExtentPlan { freed: Some(under), ..plan }
            } else if up.count() <= top.count() {
                let copy = Some((under, over, up));
                ExtentPlan { child: Entry::slot(over, both), copy, freed: Some(under), ..plan }
            } else {
                let copy = Some((over, under, top));
                ExtentPlan { child: Entry::slot(under, both), copy, freed: Some(over), ..plan }
            }
        }
    }
}

/// Lets other tasks run.
pub(crate) async fn yield_once() {
    let mut has_yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut has_yielded, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}
