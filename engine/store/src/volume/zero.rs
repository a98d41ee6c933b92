//! Trim and write-zeroes: unmap where it can be, write zeros where it must be.

use crate::{
    Access, Volume,
    entry::{Entry, Place},
    layer::{Layer, Source, resolve},
    locks::LockGuard,
    tap::{Fence, Tap, TapChange},
    volume::write::{Held, Holding, Plan, Submission},
};
use drover_base::{BlockMask, ByteRange, ExtentIndex, IoError, limits::REQUEST_BYTES_MAX, units::BLOCK_BYTES};
use drover_disk::Buffer;
use std::rc::Rc;

/// How zeroes may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZeroMode {
    /// Blocks may lose their place; otherwise zeros are stored, so that a later write needs no space.
    pub may_unmap: bool,
    /// Fail with `NotFast` rather than write data.
    pub fast_only: bool,
}

/// Consecutive parts no larger than a request, cut at multiples of it.
pub(super) fn parts(range: ByteRange) -> impl Iterator<Item = ByteRange> {
    let mut offset = range.offset;
    std::iter::from_fn(move || {
        let len = (REQUEST_BYTES_MAX - offset % REQUEST_BYTES_MAX).min(range.end() - offset);
        let part = ByteRange { offset, len };
        offset += len;
        (len > 0).then_some(part)
    })
}

/// The whole blocks inside the range; possibly none.
fn whole_blocks(range: ByteRange) -> ByteRange {
    let start = range.offset.next_multiple_of(BLOCK_BYTES);
    let end = range.end() - range.end() % BLOCK_BYTES;
    ByteRange { offset: start, len: end.saturating_sub(start) }
}

impl Volume {
    /// Makes the range read as zero. Longer ranges than a request are done part by part.
    pub async fn write_zeroes(
        &self,
        fence: &dyn Fence,
        offset: u64,
        len: u64,
        zero: ZeroMode,
        fua: bool,
    ) -> Result<(), IoError> {
        let range = self.range(offset, len)?;
        self.health.check()?;
        self.tell_origin(range, Access::Change);
        for part in parts(range) {
            // A fast zero has no edges: it is refused with any.
            let held = if zero.fast_only { self.hold(part).await } else { self.hold_with_edges(fence, part).await? };
            self.apply_zeroes(fence, &held, part, zero, self.tap()).await?;
        }
        if fua {
            self.flush_range(range).await?;
        }
        self.may_answer(fence)
    }

    /// Makes the whole blocks inside the range read as zero; what is left of it stays as it was.
    pub async fn trim(&self, fence: &dyn Fence, offset: u64, len: u64, fua: bool) -> Result<(), IoError> {
        let range = whole_blocks(self.range(offset, len)?);
        let zero = ZeroMode { may_unmap: true, fast_only: false };
        self.write_zeroes(fence, range.offset, range.len, zero, fua).await
    }

    /// Makes a block-aligned range read as zero, under a guard that covers it, past the tap.
    pub async fn zero_locked(
        &self,
        guard: &LockGuard,
        fence: &dyn Fence,
        offset: u64,
        len: u64,
        may_unmap: bool,
    ) -> Result<(), IoError> {
        let range = self.range(offset, len)?;
        self.assert_locked(guard, range);
        self.health.check()?;
        let held = Held { locks: guard.share(), client: None };
        let zero = ZeroMode { may_unmap, fast_only: false };
        for part in parts(range) {
            self.apply_zeroes(fence, &held, part, zero, None).await?;
        }
        self.may_answer(fence)
    }

    /// At most one request's worth, under locks that are held.
    async fn apply_zeroes(
        &self,
        fence: &dyn Fence,
        held: &Held,
        range: ByteRange,
        zero: ZeroMode,
        tap: Option<Rc<dyn Tap>>,
    ) -> Result<(), IoError> {
        let whole = if zero.may_unmap { whole_blocks(range) } else { ByteRange { offset: range.end(), len: 0 } };
        if zero.fast_only && whole != range {
            return Err(IoError::NotFast);
        }
        let edges = if whole.is_empty() {
            [range, ByteRange { offset: range.end(), len: 0 }]
        } else {
            [
                ByteRange { offset: range.offset, len: whole.offset - range.offset },
                ByteRange { offset: whole.end(), len: range.end() - whole.end() },
            ]
        };
        for edge in edges.into_iter().filter(|edge| !edge.is_empty()) {
            self.apply_write(fence, held, edge, Buffer::zeroed(edge.len as usize), tap.clone()).await?;
        }
        if whole.is_empty() {
            return Ok(());
        }
        self.apply_unmap(fence, held, whole, zero.fast_only, tap).await
    }

    /// Makes whole blocks read as zero, storing zeros only where an extent keeps other data over data below.
    pub(super) async fn apply_unmap(
        &self,
        fence: &dyn Fence,
        held: &Held,
        range: ByteRange,
        fast_only: bool,
        tap: Option<Rc<dyn Tap>>,
    ) -> Result<(), IoError> {
        let mutation = self.mutations.enter().await;
        let layer = self.stack.borrow().head().clone();
        let mut plan = Plan::default();
        for (extent, part) in range.by_extent() {
            self.plan_unmap(&mut plan, &layer, extent, part.block_mask());
        }
        if fast_only && !plan.zeros.is_empty() {
            return Err(IoError::NotFast);
        }
        if plan.is_empty() {
            // It reads as zero already: a discard of a whole fresh volume must not make every region active.
            return self.may_apply(fence);
        }
        let writing = self.activate(range).await?;
        self.check_devices(&plan)?;
        self.may_apply(fence)?;
        let mirrored = tap
            .as_ref()
            .and_then(|tap| tap.change(&TapChange::Zero { offset: range.offset, len: range.len, may_unmap: true }));
        let holding =
            Holding { _held: held.share(), _mutation: mutation, _writing: writing, _running: self.inflight.begin() };
        let data = Buffer::zeroed(0);
        let submission = Submission { volume: self.me(), layer, range, plan, data, tap, mirrored, holding };
        self.env.to_the_end(Box::pin(submission.run())).await
    }

    fn plan_unmap(&self, plan: &mut Plan, layer: &Layer, extent: ExtentIndex, mask: BlockMask) {
        let shadowed = self.data_below(extent, mask);
        plan.note_local(layer, extent, mask);
        let entry = layer.entry(extent);
        let after = match entry.place() {
            Place::Absent { hidden } => Entry::absent(hidden.without(mask).with(shadowed)),
            Place::Slot { at, valid } if mask.contains(valid) => {
                plan.released.push((extent, at));
                Entry::absent(shadowed)
            }
            Place::Slot { at, valid } => {
                plan.zero_blocks(at, shadowed);
                Entry::slot(at, valid.without(mask).with(shadowed))
            }
        };
        if after != entry {
            plan.entries.push((extent, after));
        }
    }

    /// Blocks whose data, in whichever layer it is found, stands over data of a layer below: stored zeros may be all that
    /// hides it.
    pub fn shadowing_mask(&self, extent: ExtentIndex) -> BlockMask {
        let stack = self.stack.borrow();
        let (mut shadowing, mut rest) = (BlockMask::EMPTY, BlockMask::FULL);
        for (depth, layer) in stack.chain().enumerate() {
            let entry = layer.entry(extent);
            let here = entry.valid().and(rest);
            if !here.is_empty() {
                shadowing = shadowing.with(data_of(stack.chain().skip(depth + 1), extent, here));
            }
            rest = rest.without(here).without(entry.hidden()).without(layer.remote_mask(extent));
        }
        shadowing
    }

    /// Blocks of `mask` that have data in the layers under the head.
    fn data_below(&self, extent: ExtentIndex, mask: BlockMask) -> BlockMask {
        data_of(self.stack.borrow().below(), extent, mask)
    }
}

fn data_of<'a>(chain: impl Iterator<Item = &'a Layer>, extent: ExtentIndex, mask: BlockMask) -> BlockMask {
    let mut data = BlockMask::EMPTY;
    resolve(chain, extent, mask, |found, source| {
        if source != Source::Zero {
            data = data.with(found);
        }
    });
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_range_once() {
        let range = ByteRange { offset: 5, len: 3 * REQUEST_BYTES_MAX };
        let parts: Vec<_> = parts(range).collect();
        assert_eq!(parts.len(), 4);
        assert_eq!(parts[0].offset, 5);
        assert!(parts.windows(2).all(|pair| pair[0].end() == pair[1].offset));
        assert_eq!(parts[3].end(), range.end());
    }

    #[test]
    fn only_whole_blocks_are_trimmed() {
        assert_eq!(whole_blocks(ByteRange { offset: 1, len: 8191 }), ByteRange { offset: 4096, len: 4096 });
        assert!(whole_blocks(ByteRange { offset: 1, len: 4096 }).is_empty());
        assert!(whole_blocks(ByteRange { offset: 4095, len: 2 }).is_empty());
    }
}
