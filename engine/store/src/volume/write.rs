//! Writing: plan under the locks, ask the fence, tell the tap, write, then change the map.

use crate::{
    Access, Volume,
    admission::Inside,
    entry::{Entry, Place, SlotAddress},
    inflight::Running,
    layer::Layer,
    locks::LockGuard,
    slots::Tiers,
    tap::{Fence, Tap, TapChange},
    volume::read::{Run, push_run},
    volume::zero::parts,
};
use bytes::Bytes;
use drover_base::{
    BlockMask, ByteRange, ExtentIndex, IoError, LocalFuture,
    limits::REQUEST_BYTES_MAX,
    planted::{Bug, is_planted},
    units::{BLOCK_BYTES, EXTENT_BYTES},
};
use drover_disk::Buffer;
use std::rc::Rc;

/// What a change holds until it is done, whoever still waits for it.
pub(super) struct Held {
    pub locks: LockGuard,
    pub client: Option<Rc<Inside>>,
}

impl Held {
    pub(super) fn share(&self) -> Held {
        Held { locks: self.locks.share(), client: self.client.clone() }
    }
}

/// Slots taken for a change; those not installed go back unused.
struct NewSlots {
    tiers: Tiers,
    slots: Vec<SlotAddress>,
}

impl Drop for NewSlots {
    fn drop(&mut self) {
        if !self.slots.is_empty() {
            self.tiers.free_unused(&self.slots);
        }
    }
}

/// What a change does to devices and to the head's map.
#[derive(Default)]
pub(super) struct Plan {
    /// Where the data goes, in the order of the data.
    pub data: Vec<Run>,
    /// Where zeros are written beside it.
    pub zeros: Vec<Run>,
    /// Entries of the head, once all is written.
    pub entries: Vec<(ExtentIndex, Entry)>,
    /// Blocks of the head that are remote no more, once all is written.
    pub local: Vec<(ExtentIndex, BlockMask)>,
    /// Slots that these entries give up.
    pub released: Vec<(ExtentIndex, SlotAddress)>,
    new_slots: Option<NewSlots>,
}

/// A change that passed all checks and is about to be submitted.
pub(super) struct Submission {
    pub volume: Rc<Volume>,
    pub layer: Rc<Layer>,
    pub range: ByteRange,
    pub plan: Plan,
    pub data: Buffer,
    pub tap: Option<Rc<dyn Tap>>,
    pub mirrored: Option<LocalFuture<'static, Result<(), IoError>>>,
    pub holding: Holding,
}

/// What is let go when the change is done.
pub(super) struct Holding {
    pub _held: Held,
    pub _mutation: Inside,
    pub _writing: crate::activity::Writing,
    pub _running: Running,
}

impl Volume {
    /// Writes `data` at any offset; answered when it is stored (`fua`: durable), and where the tap mirrors to.
    pub async fn write(&self, fence: &dyn Fence, offset: u64, data: Buffer, fua: bool) -> Result<(), IoError> {
        let range = self.request_range(offset, data.len() as u64)?;
        self.health.check()?;
        if !range.is_empty() {
            self.tell_origin(range, Access::Change);
            let held = self.hold_with_edges(fence, range).await?;
            if range.block_aligned().len <= REQUEST_BYTES_MAX {
                self.apply_write(fence, &held, range, data, self.tap()).await?;
            } else {
                // Grown to whole blocks it would be larger than anything that is passed on.
                for part in parts(range) {
                    let at = (part.offset - range.offset) as usize;
                    let piece = Buffer::from_slice(&data[at..at + part.len as usize]);
                    self.apply_write(fence, &held, part, piece, self.tap()).await?;
                }
            }
        }
        if fua {
            self.flush_range(range).await?;
        }
        self.may_answer(fence)
    }

    /// The same under a guard that covers the range, past the tap; admitted always.
    pub async fn write_locked(
        &self,
        guard: &LockGuard,
        fence: &dyn Fence,
        offset: u64,
        data: Buffer,
    ) -> Result<(), IoError> {
        let range = self.request_range(offset, data.len() as u64)?;
        self.assert_locked(guard, range);
        self.health.check()?;
        if !range.is_empty() {
            let held = Held { locks: guard.share(), client: None };
            self.apply_write(fence, &held, range, data, None).await?;
        }
        self.may_answer(fence)
    }

    /// Admission and the locks of a client's change.
    pub(super) async fn hold(&self, range: ByteRange) -> Held {
        let client = Rc::new(self.clients.enter().await);
        Held { locks: self.locks.enqueue(range).await, client: Some(client) }
    }

    /// Writes under locks that are held.
    pub(super) async fn apply_write(
        &self,
        fence: &dyn Fence,
        held: &Held,
        range: ByteRange,
        data: Buffer,
        tap: Option<Rc<dyn Tap>>,
    ) -> Result<(), IoError> {
        let mutation = self.mutations.enter().await;
        let writing = self.activate(range).await?;
        let (range, data) = self.complete_blocks(range, data).await?;
        let (layer, plan) = self.plan_write(range).await?;
        self.check_devices(&plan)?;
        self.may_apply(fence)?;
        let mirrored = tap.as_ref().and_then(|tap| {
            tap.change(&TapChange::Write { offset: range.offset, data: Bytes::copy_from_slice(&data) })
        });
        let holding =
            Holding { _held: held.share(), _mutation: mutation, _writing: writing, _running: self.inflight.begin() };
        let submission = Submission { volume: self.me(), layer, range, plan, data, tap, mirrored, holding };
        self.env.to_the_end(Box::pin(submission.run())).await
    }

    /// The range and data grown to whole blocks, from what is stored at the edges.
    async fn complete_blocks(&self, range: ByteRange, data: Buffer) -> Result<(ByteRange, Buffer), IoError> {
        if range.is_block_aligned() {
            let data = if data.is_aligned() { data } else { Buffer::from_slice(&data) };
            return Ok((range, data));
        }
        let aligned = range.block_aligned();
        let mut whole = Buffer::for_read(aligned.len as usize);
        let block = BLOCK_BYTES as usize;
        if range.offset > aligned.offset {
            let head = self.read_blocks(ByteRange { offset: aligned.offset, len: BLOCK_BYTES }).await?;
            whole[..block].copy_from_slice(&head);
        }
        if range.end() < aligned.end() {
            let tail = self.read_blocks(ByteRange { offset: aligned.end() - BLOCK_BYTES, len: BLOCK_BYTES }).await?;
            let at = whole.len() - block;
            whole[at..].copy_from_slice(&tail);
        }
        let at = (range.offset - aligned.offset) as usize;
        whole[at..at + data.len()].copy_from_slice(&data);
        Ok((aligned, whole))
    }

    /// Where the range goes, with slots for the extents that have none.
    async fn plan_write(&self, range: ByteRange) -> Result<(Rc<Layer>, Plan), IoError> {
        let layer = self.stack.borrow().head().clone();
        let missing = range.by_extent().filter(|(extent, _)| layer.entry(*extent).slot_address().is_none()).count();
        let slots = self.env.allocate(self.id, missing).await?;
        let mut next = slots.iter().copied();
        let mut plan = Plan::default();
        for (extent, part) in range.by_extent() {
            let mask = part.block_mask();
            plan.note_local(&layer, extent, mask);
            let entry = layer.entry(extent);
            let at = match entry.place() {
                Place::Slot { at, valid } => {
                    if !valid.contains(mask) {
                        plan.entries.push((extent, Entry::slot(at, valid.with(mask))));
                    }
                    at
                }
                Place::Absent { hidden } => {
                    let at = next.next().expect("a slot was taken for each absent extent");
                    plan.fill_new_slot(extent, at, mask, hidden);
                    at
                }
            };
            let first = (part.offset % EXTENT_BYTES / BLOCK_BYTES) as u32;
            push_run(&mut plan.data, Run { at: Some((at.device, at.block_offset(first))), len: part.len });
        }
        if !slots.is_empty() {
            plan.new_slots = Some(NewSlots { tiers: self.env.tiers.clone(), slots });
        }
        Ok((layer, plan))
    }

    pub(super) fn check_devices(&self, plan: &Plan) -> Result<(), IoError> {
        for (device, _) in plan.data.iter().chain(&plan.zeros).filter_map(|run| run.at) {
            self.health.check_device(device)?;
        }
        Ok(())
    }

    async fn write_run(&self, run: Run, data: Buffer) -> Result<(), IoError> {
        let (device, offset) = run.at.expect("a plan writes to devices");
        self.env.write(&self.health, device, offset, data).await
    }

    /// Writes zeros at `run`.
    pub(crate) async fn write_zeros(&self, run: Run) -> Result<(), IoError> {
        self.write_run(run, Buffer::zeroed(run.len as usize)).await
    }
}

impl Plan {
    /// Whether carrying it out would change nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.data.is_empty()
            && self.zeros.is_empty()
            && self.entries.is_empty()
            && self.local.is_empty()
            && self.released.is_empty()
    }

    /// The plan gives the blocks their place in the layer: those that were remote are not any more.
    pub(super) fn note_local(&mut self, layer: &Layer, extent: ExtentIndex, mask: BlockMask) {
        let local = layer.remote_mask(extent).and(mask);
        if !local.is_empty() {
            self.local.push((extent, local));
        }
    }

    /// The entry of an extent that gets its slot now. What was hidden there must read as zero on.
    fn fill_new_slot(&mut self, extent: ExtentIndex, at: SlotAddress, mask: BlockMask, hidden: BlockMask) {
        if is_planted(Bug::HiddenNotZeroed) {
            self.entries.push((extent, Entry::slot(at, mask)));
            return;
        }
        self.zero_blocks(at, hidden.without(mask));
        self.entries.push((extent, Entry::slot(at, mask.with(hidden))));
    }

    /// Zeros to write into blocks of a slot.
    pub(super) fn zero_blocks(&mut self, at: SlotAddress, blocks: BlockMask) {
        for (first, count) in blocks.runs() {
            let run = Run { at: Some((at.device, at.block_offset(first))), len: u64::from(count) * BLOCK_BYTES };
            self.zeros.push(run);
        }
    }
}

impl Submission {
    pub(super) async fn run(self) -> Result<(), IoError> {
        let Self { volume, layer, range, plan, data, tap, mirrored, holding } = self;
        let local = async {
            let result = volume.submit(&layer, plan, data).await;
            if result.is_err()
                && let Some(tap) = &tap
            {
                tap.failed(range);
            }
            result
        };
        let result = match mirrored {
            None => local.await,
            Some(mirrored) => {
                let (local, mirrored) = futures::future::join(local, mirrored).await;
                local.and(mirrored)
            }
        };
        drop(holding);
        result
    }
}

impl Volume {
    /// Writes what the plan says; only when all of it is stored do the entries change.
    async fn submit(&self, layer: &Layer, mut plan: Plan, mut data: Buffer) -> Result<(), IoError> {
        if is_planted(Bug::ValidOnSubmission) {
            self.install(layer, &mut plan);
        }
        match (plan.data.as_slice(), plan.zeros.as_slice()) {
            ([], []) => {}
            ([run], []) => self.write_run(*run, data).await?,
            (runs, zeros) => {
                let mut writes: Vec<LocalFuture<'_, Result<(), IoError>>> =
                    Vec::with_capacity(runs.len() + zeros.len());
                for run in runs {
                    writes.push(Box::pin(self.write_run(*run, data.split_to(run.len as usize))));
                }
                for run in zeros {
                    writes.push(Box::pin(self.write_zeros(*run)));
                }
                // All of them end before this does, also when one fails: the locks cover them.
                for result in futures::future::join_all(writes).await {
                    result?;
                }
            }
        }
        self.install(layer, &mut plan);
        Ok(())
    }

    fn install(&self, layer: &Layer, plan: &mut Plan) {
        for (extent, entry) in plan.entries.drain(..) {
            self.change_entry(layer, extent, entry);
        }
        for (extent, mask) in plan.local.drain(..) {
            if layer.clear_remote(extent, mask) {
                self.flusher.changed(extent.region(), layer.id);
            }
        }
        for (extent, slot) in plan.released.drain(..) {
            self.release(extent, slot);
        }
        if let Some(new) = &mut plan.new_slots {
            new.slots.clear();
        }
    }
}
