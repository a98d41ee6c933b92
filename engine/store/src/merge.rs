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
//! - With several children the layer stays, until one or none is left.

use crate::{
    Volume,
    entry::{Entry, Place, SlotAddress},
    flush::{Scope, Structural},
    layer::Layer,
    meta::Change,
    outcome::Outcome,
    record,
    snapshot::forget_layer,
    volume::Run,
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

/// The merging of one volume.
#[derive(Default)]
pub struct Merger {
    done: Cell<Merged>,
    running: Cell<bool>,
    idle: RefCell<Outcome<()>>,
    /// Regions merged since the last flush.
    unflushed: Cell<u32>,
    /// Where the search for the layer's next region begins.
    cursor: Cell<(LayerId, u64)>,
}

impl Merger {
    fn count(&self, layers: u64, slots: u64) {
        let Merged { layers: before, freed_bytes } = self.done.get();
        self.done.set(Merged { layers: before + layers, freed_bytes: freed_bytes + slots * EXTENT_BYTES });
    }
}

/// What can be done next for a layer that is being deleted.
enum Job {
    /// Nothing stands on it.
    Drop(Rc<Layer>),
    /// One layer stands on it.
    Merge { parent: Rc<Layer>, child: Rc<Layer> },
}

impl Volume {
    /// Merges in the background what can be merged.
    pub(crate) fn start_merging(&self) {
        if self.next_job().is_some() && !self.merger.running.replace(true) {
            *self.merger.idle.borrow_mut() = Outcome::default();
            self.env.world.spawn(self.me().run_merges()).detach();
        }
    }

    /// Waits until nothing is left to merge, or the volume is poisoned.
    pub async fn merges_done(&self) {
        while self.merger.running.get() {
            let idle = self.merger.idle.borrow().clone();
            idle.wait().await;
        }
    }

    /// `None`: nothing is left to merge.
    pub fn merge_left(&self) -> Option<MergeLeft> {
        let stack = self.stack.borrow();
        let going = stack.layers().filter(|layer| layer.deleting.get() && stack.children(layer.id).len() <= 1);
        let left = going.fold(MergeLeft::default(), |left, layer| MergeLeft {
            layers: left.layers + 1,
            left_bytes: left.left_bytes + layer.slots() * EXTENT_BYTES,
        });
        (left.layers > 0).then_some(left)
    }

    pub fn merged(&self) -> Merged {
        self.merger.done.get()
    }

    async fn run_merges(self: Rc<Self>) {
        loop {
            match self.merge_step().await {
                Ok(true) => yield_once().await,
                Ok(false) => break,
                Err(error) if self.health.check().is_ok() => {
                    tracing::warn!(volume = %self.id, %error, "a merge of layers failed and will be tried again");
                    self.env.world.sleep(RETRY_AFTER).await;
                }
                Err(_) => break,
            }
        }
        self.merger.running.set(false);
        self.merger.idle.borrow().set(());
        // A snapshot deleted between the last look and now found a merge running.
        if self.health.check().is_ok() {
            self.start_merging();
        }
    }

    fn next_job(&self) -> Option<Job> {
        let stack = self.stack.borrow();
        stack.layers().filter(|layer| layer.deleting.get()).find_map(|layer| {
            let mut children = stack.children(layer.id);
            match children.len() {
                0 => Some(Job::Drop(layer.clone())),
                1 => Some(Job::Merge { parent: layer.clone(), child: children.remove(0) }),
                _ => None,
            }
        })
    }

    /// One region's worth. False: nothing is left to do.
    async fn merge_step(&self) -> Result<bool, IoError> {
        let _turn = self.tree.clone().lock_owned().await;
        self.health.check()?;
        match self.next_job() {
            None => return Ok(false),
            Some(Job::Drop(layer)) => self.drop_layer(layer).await?,
            Some(Job::Merge { parent, child }) => match self.next_merge_region(&parent) {
                Some(region) => self.merge_region(&parent, &child, region).await?,
                None => self.finish_merge(parent, child).await?,
            },
        }
        Ok(true)
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

    async fn drop_layer(&self, layer: Rc<Layer>) -> Result<(), IoError> {
        let changes = forget_layer(&layer).into();
        let volume = self.me();
        let then = Box::new(move || {
            volume.stack.borrow_mut().remove(layer.id);
            volume.inflight.retire(layer.slot_addresses());
            volume.merger.count(1, layer.slots());
        });
        self.make_durable(Scope::All, Some(Structural { changes, then })).await
    }

    async fn finish_merge(&self, parent: Rc<Layer>, child: Rc<Layer>) -> Result<(), IoError> {
        let mut merged = self.stack.borrow().layer_record(&child);
        merged.parent = parent.parent.get();
        let mut changes = vec![Change::Put { key: record::layer_key(child.id), value: merged.encode() }];
        changes.extend(forget_layer(&parent));
        let volume = self.me();
        let then = Box::new(move || {
            volume.stack.borrow_mut().remove(parent.id);
            volume.merger.unflushed.set(0);
            volume.merger.count(1, 0);
        });
        self.make_durable(Scope::All, Some(Structural { changes, then })).await
    }

    async fn merge_region(&self, parent: &Layer, child: &Layer, region: RegionIndex) -> Result<(), IoError> {
        for extent in region.extents() {
            if parent.entry(extent) != Entry::NOTHING {
                let lock = self.locks.enqueue(ByteRange { offset: extent.offset(), len: EXTENT_BYTES });
                let _guard = lock.await;
                self.merge_extent(parent, child, extent).await?;
            }
        }
        parent.forget_region(region);
        self.merger.unflushed.set(self.merger.unflushed.get() + 1);
        if self.merger.unflushed.get() >= REGIONS_AT_ONCE {
            self.make_durable(Scope::All, None).await?;
            self.merger.unflushed.set(0);
        }
        Ok(())
    }

    async fn merge_extent(&self, parent: &Layer, child: &Layer, extent: ExtentIndex) -> Result<(), IoError> {
        let is_bottom = parent.parent.get().is_none();
        // Remote blocks of the child shadow the parent's, as its data does.
        let below = parent.entry(extent).without(child.remote_mask(extent));
        let plan = plan_extent(below, child.entry(extent), is_bottom);
        let running = self.inflight.begin();
        if let Some((at, blocks)) = plan.zero {
            for (first, count) in blocks.runs() {
                let len = u64::from(count) * BLOCK_BYTES;
                self.write_copy(run(at, first, len), Buffer::zeroed(len as usize)).await?;
            }
        }
        if let Some((from, to, blocks)) = plan.copy {
            for (first, count) in blocks.runs() {
                let len = u64::from(count) * BLOCK_BYTES;
                let data = self.read_run(run(from, first, len), Buffer::for_read(len as usize)).await?;
                self.write_copy(run(to, first, len), data).await?;
            }
        }
        drop(running);
        self.change_entry(child, extent, plan.child);
        self.change_entry(parent, extent, Entry::NOTHING);
        if let Some(slot) = plan.freed {
            self.release(extent, slot);
            self.merger.count(0, 1);
        }
        Ok(())
    }
}

fn run(at: SlotAddress, block: u32, len: u64) -> Run {
    Run { at: Some((at.device, at.block_offset(block))), len }
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
