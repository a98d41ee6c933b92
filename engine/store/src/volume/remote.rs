//! Blocks whose data is at another node: the one that the volume moved away from before all of it had been copied.
//!
//! ```text
//!            mark_remote_locked                        fill_locked, a write, a zero, a trim
//!  anything ─────────────────────► remote in the head ──────────────────────────────────────► valid, hidden, nothing
//! ```
//! Invariants
//! - A remote block is read by nobody: clients wait until the [`Origin`] has brought it, everybody else gets an error. It
//!   never reads as zeros.
//! - A remote block counts as data wherever it is asked what the volume holds.
//! - A fill stores only what is still remote when it holds the extents' locks, so it never goes over a newer change; and
//!   it passes the tap, since the other node has that data.
//! - The remote bit goes when the change has completed, with the bit of validity, and both are committed in one value.

use crate::{Volume, entry::Entry, locks::LockGuard, tap::Fence, volume::write::Held};
use drover_base::{
    BlockMask, ByteRange, ExtentIndex, IoError, LocalFuture, RegionIndex,
    planted::{Bug, is_planted},
    units::BLOCK_BYTES,
};
use drover_disk::Buffer;
use futures::future::{Either, select, try_join_all};
use std::rc::Rc;

/// Brings what is remote.
pub trait Origin {
    /// Completes when no block of the range is remote any more or somebody else is to be asked, or says why that cannot
    /// be now. Called without any lock of the volume; stores with [`Volume::fill_locked`].
    fn bring(&self, range: ByteRange) -> LocalFuture<'static, Result<(), IoError>>;
    /// A client is about to access the range, once for each request: what is wanted next may follow from it.
    fn accessed(&self, range: ByteRange, access: Access);
}

/// What a client does with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    /// Of whole blocks it needs nothing that was there before.
    Change,
}

/// The blocks that the range covers in part, at its two ends.
fn edges(range: ByteRange) -> impl Iterator<Item = ByteRange> {
    let aligned = range.block_aligned();
    let head = (range.offset > aligned.offset).then_some(aligned.offset);
    let tail = (range.end() < aligned.end()).then(|| aligned.end() - BLOCK_BYTES);
    head.into_iter().chain(tail).map(|offset| ByteRange { offset, len: BLOCK_BYTES })
}

/// Runs of blocks that are all zeros, and of others.
fn by_zeros(range: ByteRange, data: &[u8]) -> Vec<(ByteRange, bool)> {
    const ZEROS: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];
    let mut runs: Vec<(ByteRange, bool)> = Vec::new();
    for (offset, block) in (range.offset..).step_by(ZEROS.len()).zip(data.chunks_exact(ZEROS.len())) {
        let is_zero = *block == ZEROS;
        match runs.last_mut() {
            Some((run, of_zeros)) if *of_zeros == is_zero => run.len += BLOCK_BYTES,
            _ => runs.push((ByteRange { offset, len: BLOCK_BYTES }, is_zero)),
        }
    }
    runs
}

impl Volume {
    /// Installs or removes who brings remote blocks. Without one, a read of them fails with [`IoError::Remote`].
    pub fn set_origin(&self, origin: Option<Rc<dyn Origin>>) {
        *self.origin.borrow_mut() = origin;
    }

    /// Tells the origin of a client's request that does not pass this volume's own.
    pub fn tell_origin(&self, range: ByteRange, access: Access) {
        let origin = self.origin.borrow().clone();
        if let Some(origin) = origin.filter(|_| !range.is_empty()) {
            origin.accessed(range, access);
        }
    }

    /// Has what is remote of the range brought, for as long as who asked is there. The caller holds no lock, and looks
    /// again afterwards.
    pub async fn bring(&self, fence: &dyn Fence, range: ByteRange) -> Result<(), IoError> {
        let origin = self.origin.borrow().clone().ok_or(IoError::Remote)?;
        match select(origin.bring(range), fence.gone()).await {
            Either::Left((brought, _)) => brought,
            Either::Right(_) => Err(IoError::Disconnected),
        }
    }

    /// The same of what a change of the range needs: both edges at once, before anybody has to wait for the change.
    pub async fn bring_edges(&self, fence: &dyn Fence, range: ByteRange) -> Result<(), IoError> {
        let missing = edges(range).filter(|edge| self.is_any_remote(*edge));
        try_join_all(missing.map(|edge| self.bring(fence, edge))).await.map(drop)
    }

    /// Admission and the locks of a client's change, once what it needs of blocks that it changes in part is here.
    pub(super) async fn hold_with_edges(&self, fence: &dyn Fence, range: ByteRange) -> Result<Held, IoError> {
        loop {
            let held = self.hold(range).await;
            if !edges(range).any(|edge| self.is_any_remote(edge)) {
                return Ok(held);
            }
            // It may have waited for a node that holds the volume again: then nobody here is to be asked.
            self.may_apply(fence)?;
            // Who brings it needs the locks.
            drop(held);
            self.bring_edges(fence, range).await?;
        }
    }

    /// Whether a block that the range touches is remote.
    pub fn is_any_remote(&self, range: ByteRange) -> bool {
        let stack = self.stack.borrow();
        let remote = stack.head().remote();
        !remote.is_empty()
            && range.block_aligned().by_extent().any(|(extent, part)| remote.get(extent).intersects(part.block_mask()))
    }

    /// The extent's remote blocks.
    pub fn remote_mask(&self, extent: ExtentIndex) -> BlockMask {
        self.stack.borrow().head().remote_mask(extent)
    }

    pub fn remote_bytes(&self) -> u64 {
        self.stack.borrow().head().remote().bytes()
    }

    /// The first region at or after `from` that has remote blocks.
    pub fn next_remote_region(&self, from: RegionIndex) -> Option<RegionIndex> {
        self.stack.borrow().head().remote().next_region(from)
    }

    /// These blocks of the extent are at the other node only, from now on: what is stored of them here counts no more.
    /// Under a guard that covers what exists of the extent; blocks past the volume's end are left out. Durable with the
    /// next flush.
    pub async fn mark_remote_locked(
        &self,
        guard: &LockGuard,
        fence: &dyn Fence,
        extent: ExtentIndex,
        mask: BlockMask,
    ) -> Result<(), IoError> {
        let range = self.extent_range(extent)?;
        self.assert_locked(guard, range);
        self.health.check()?;
        let mask = mask.and(range.block_mask());
        if mask.is_empty() {
            return self.may_answer(fence);
        }
        let _mutation = self.mutations.enter().await;
        let _writing = self.activate(range).await?;
        self.may_apply(fence)?;
        let layer = self.stack.borrow().head().clone();
        let entry = layer.entry(extent).without(mask);
        match entry.slot_address().filter(|_| entry.valid().is_empty()) {
            Some(slot) => {
                self.change_entry(&layer, extent, Entry::NOTHING);
                self.release(extent, slot);
            }
            None => self.change_entry(&layer, extent, entry),
        }
        layer.mark_remote(extent, mask);
        self.flusher.changed(extent.region(), layer.id);
        self.may_answer(fence)
    }

    /// Stores what was brought, block-aligned, under a guard that covers the range: of those blocks that are still remote.
    /// Zeros become holes: a client may have trimmed them at both sides since, and this one forgotten it in a crash. The
    /// other side must hold whatever this one holds.
    pub async fn fill_locked(
        &self,
        guard: &LockGuard,
        fence: &dyn Fence,
        offset: u64,
        data: Buffer,
    ) -> Result<(), IoError> {
        let range = self.request_range(offset, data.len() as u64)?;
        assert!(range.is_block_aligned());
        self.assert_locked(guard, range);
        self.health.check()?;
        let held = Held { locks: guard.share(), client: None };
        let tap = self.tap().filter(|_| is_planted(Bug::FillMirrored));
        let bytes = |part: ByteRange| {
            let at = (part.offset - offset) as usize;
            &data[at..at + part.len as usize]
        };
        for run in self.remote_runs(range) {
            for (part, is_zero) in by_zeros(run, bytes(run)) {
                if is_zero {
                    self.apply_unmap(fence, &held, part, false, tap.clone()).await?;
                } else {
                    let piece = Buffer::from_slice(bytes(part));
                    self.apply_write(fence, &held, part, piece, tap.clone()).await?;
                }
            }
        }
        self.may_answer(fence)
    }

    /// The remote blocks of an aligned range, neighbours together.
    pub fn remote_runs(&self, range: ByteRange) -> Vec<ByteRange> {
        if is_planted(Bug::FillOverNewer) {
            return vec![range];
        }
        let mut runs = Vec::new();
        for (extent, part) in range.by_extent() {
            extent.add_blocks(self.remote_mask(extent).and(part.block_mask()), &mut runs);
        }
        runs
    }
}

#[cfg(test)]
mod tests;
