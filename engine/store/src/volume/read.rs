//! Reading: where each block is gets resolved in one step, then the devices are asked.

use crate::{
    Access, Volume,
    layer::{Layer, Source, resolve},
    locks::LockGuard,
    tap::Fence,
};
use drover_base::{
    BlockMask, ByteRange, ExtentIndex, IoError,
    planted::{Bug, is_planted},
    units::{BLOCK_BYTES, BLOCKS_PER_EXTENT},
};
use drover_disk::Buffer;

/// Neighbouring blocks of a request that are neighbours on one device, or all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Device and byte offset on it; `None` is zeros.
    pub at: Option<(u8, u64)>,
    pub len: u64,
}

/// Adds a run, joined to the last one where they meet.
pub(crate) fn push_run(runs: &mut Vec<Run>, run: Run) {
    if let Some(last) = runs.last_mut() {
        let meets = match (last.at, run.at) {
            (None, None) => true,
            (Some((device, offset)), Some(next)) => next == (device, offset + last.len),
            _ => false,
        };
        if meets {
            last.len += run.len;
            return;
        }
    }
    runs.push(run);
}

impl Volume {
    /// Exactly the bytes `offset..offset + len`.
    pub async fn read(&self, fence: &dyn Fence, offset: u64, len: u64) -> Result<Buffer, IoError> {
        let range = self.request_range(offset, len)?;
        self.health.check()?;
        let aligned = range.block_aligned();
        self.tell_origin(range, Access::Read);
        let (mut buffer, _inside) = loop {
            let inside = self.clients.enter().await;
            self.may_apply(fence)?;
            match self.read_blocks(aligned).await {
                // Not inside the gate: who quiesces does not wait for another node.
                Err(IoError::Remote) => drop(inside),
                result => break (result?, inside),
            }
            self.bring(fence, aligned).await?;
        };
        self.may_answer(fence)?;
        buffer.advance((offset - aligned.offset) as usize);
        buffer.truncate(len as usize);
        Ok(buffer)
    }

    /// The same, block-aligned, inside the guard's extents, admitted always. Remote blocks are not brought:
    /// [`IoError::Remote`].
    pub async fn read_locked(&self, guard: &LockGuard, range: ByteRange) -> Result<Buffer, IoError> {
        self.assert_locked(guard, range);
        assert!(range.is_block_aligned());
        self.request_range(range.offset, range.len)?;
        self.health.check()?;
        self.read_blocks(range).await
    }

    /// Reads a block-aligned range inside the volume. [`IoError::Remote`] where any block of it is.
    pub(crate) async fn read_blocks(&self, range: ByteRange) -> Result<Buffer, IoError> {
        self.read_resolved(range, |volume| volume.resolve_range(range)).await
    }

    /// Reads what `resolve` finds of the range, which takes no time.
    pub(super) async fn read_resolved(
        &self,
        range: ByteRange,
        resolve: impl FnOnce(&Self) -> Result<Vec<Run>, IoError>,
    ) -> Result<Buffer, IoError> {
        let running = self.inflight.begin();
        let runs = resolve(self)?;
        // Held until the devices have answered: the slots are not reused before.
        let _running = Some(running).filter(|_| !is_planted(Bug::SlotReusedUnderRead));
        let buffer = Buffer::for_read(range.len as usize);
        match runs.as_slice() {
            [] => Ok(buffer),
            [run] => self.read_run(*run, buffer).await,
            runs => self.read_runs(runs, buffer).await,
        }
    }

    async fn read_run(&self, run: Run, buffer: Buffer) -> Result<Buffer, IoError> {
        self.env.read_run(run, buffer).await.map_err(|error| {
            let device = run.at.map(|(device, _)| device);
            tracing::warn!(volume = %self.id, device, %error, "read failed");
            IoError::Device
        })
    }

    async fn read_runs(&self, runs: &[Run], mut buffer: Buffer) -> Result<Buffer, IoError> {
        let pieces = runs.iter().map(|run| self.read_run(*run, buffer.split_to(run.len as usize)));
        Ok(Buffer::join(futures::future::try_join_all(pieces).await?))
    }

    /// Where the blocks of an aligned range are, in order. Takes no time: nothing moves meanwhile.
    pub(crate) fn resolve_range(&self, range: ByteRange) -> Result<Vec<Run>, IoError> {
        let stack = self.stack.borrow();
        let mut runs = Vec::with_capacity(1);
        for (extent, part) in range.by_extent() {
            let first = (part.offset % drover_base::units::EXTENT_BYTES / BLOCK_BYTES) as u32;
            let entry = stack.head().entry(extent);
            match entry.slot_address() {
                Some(at) if entry.valid().contains(part.block_mask()) => {
                    push_run(&mut runs, Run { at: Some((at.device, at.block_offset(first))), len: part.len });
                }
                _ => resolve_blocks(stack.chain(), extent, part.block_mask(), &mut runs)?,
            }
        }
        Ok(runs)
    }
}

/// Resolves blocks that are not all in one place.
pub(super) fn resolve_blocks<'a>(
    chain: impl Iterator<Item = &'a Layer>,
    extent: ExtentIndex,
    want: BlockMask,
    runs: &mut Vec<Run>,
) -> Result<(), IoError> {
    let mut sources = [Source::Zero; BLOCKS_PER_EXTENT as usize];
    resolve(chain, extent, want, |mask, source| {
        for (first, count) in mask.runs() {
            sources[first as usize..(first + count) as usize].fill(source);
        }
    });
    for (first, count) in want.runs() {
        for block in first..first + count {
            let at = match sources[block as usize] {
                Source::Zero => None,
                Source::Slot(at) => Some((at.device, at.block_offset(block))),
                Source::Remote => return Err(IoError::Remote),
            };
            push_run(runs, Run { at, len: BLOCK_BYTES });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_join_where_they_meet_on_the_device() {
        let mut runs = Vec::new();
        for at in [None, None, Some((0, 0)), Some((0, 4096)), Some((1, 8192)), Some((1, 4096)), None] {
            push_run(&mut runs, Run { at, len: 4096 });
        }
        let lens: Vec<u64> = runs.iter().map(|run| run.len).collect();
        assert_eq!(lens, [8192, 8192, 4096, 4096, 4096]);
    }
}
