//! Digests of what a client would read, by extent and by block: how two nodes compare a volume.
//!
//! The content of an extent is taken under its lock and hashed when the lock is gone, so that a writer waits for one
//! read at most.

use crate::{Volume, locks::LockGuard};
use drover_base::{BlockMask, ByteRange, ExtentIndex, IoError, units::BLOCK_BYTES};
use drover_disk::Buffer;
use std::sync::LazyLock;

/// Digests of one extent. Zeros count like data, so they do not depend on where a volume has holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentDigests {
    /// BLAKE3 of the blocks' digests, in their order.
    pub extent: [u8; 32],
    /// BLAKE3 of each block; [`zero_block_digest`] for one of zeros.
    pub blocks: Vec<[u8; 32]>,
}

/// What an extent holds, as it was under its lock.
pub struct ExtentContent {
    held: BlockMask,
    remote: BlockMask,
    blocks: usize,
    /// `None`: zeros, which nobody had to read.
    data: Option<Buffer>,
}

static ZERO_BLOCK: LazyLock<[u8; 32]> = LazyLock::new(|| *blake3::hash(&[0; BLOCK_BYTES as usize]).as_bytes());

/// The digest of a block of zeros.
pub fn zero_block_digest() -> [u8; 32] {
    *ZERO_BLOCK
}

impl ExtentContent {
    /// An extent of `blocks` blocks, none of which holds data.
    pub fn empty(blocks: usize) -> Self {
        Self { held: BlockMask::EMPTY, remote: BlockMask::EMPTY, blocks, data: None }
    }

    pub(super) fn new(held: BlockMask, blocks: usize, data: Option<Buffer>) -> Self {
        Self { held, remote: BlockMask::EMPTY, blocks, data }
    }

    /// Blocks that hold data, in whichever layer; the others read as zero.
    pub fn held(&self) -> BlockMask {
        self.held
    }

    /// Blocks that were left out because they are remote: their digests say nothing. None, but where they were asked for.
    pub fn remote(&self) -> BlockMask {
        self.remote
    }

    /// Arithmetic for the worker pool: 40 µs, next to nothing where there is no data.
    pub fn digests(&self) -> ExtentDigests {
        let blocks: Vec<[u8; 32]> = match &self.data {
            None => vec![zero_block_digest(); self.blocks],
            Some(data) => {
                data.chunks_exact(BLOCK_BYTES as usize).map(|block| *blake3::hash(block).as_bytes()).collect()
            }
        };
        ExtentDigests { extent: *blake3::hash(blocks.as_flattened()).as_bytes(), blocks }
    }

    /// Whether [`ExtentContent::digests`] is worth another thread.
    pub fn has_data(&self) -> bool {
        self.data.is_some()
    }
}

impl Volume {
    /// Reads the extent, under a guard that covers what exists of it. `OutOfRange` for one past the volume's end,
    /// `Remote` for one with remote blocks.
    pub async fn extent_content_locked(
        &self,
        guard: &LockGuard,
        extent: ExtentIndex,
    ) -> Result<ExtentContent, IoError> {
        let content = self.here_content_locked(guard, extent).await?;
        if content.remote.is_empty() { Ok(content) } else { Err(IoError::Remote) }
    }

    /// The same, but remote blocks are left out: [`ExtentContent::remote`] tells which.
    pub async fn here_content_locked(&self, guard: &LockGuard, extent: ExtentIndex) -> Result<ExtentContent, IoError> {
        let range = self.extent_range(extent)?;
        self.assert_locked(guard, range);
        self.health.check()?;
        let blocks = (range.len / BLOCK_BYTES) as usize;
        let (held, remote) = (self.data_mask(extent), self.remote_mask(extent));
        let here = held.without(remote);
        let data = match () {
            () if here.is_empty() => None,
            () if remote.is_empty() => Some(self.read_blocks(range).await?),
            () => Some(self.read_only(range, here).await?),
        };
        Ok(ExtentContent { held, remote, blocks, data })
    }

    /// These blocks of an extent's range, with zeros where the others stand.
    async fn read_only(&self, range: ByteRange, blocks: BlockMask) -> Result<Buffer, IoError> {
        let mut whole = Buffer::zeroed(range.len as usize);
        for (first, count) in blocks.runs() {
            let (at, len) = (u64::from(first) * BLOCK_BYTES, u64::from(count) * BLOCK_BYTES);
            let part = self.read_blocks(ByteRange { offset: range.offset + at, len }).await?;
            whole[at as usize..(at + len) as usize].copy_from_slice(&part);
        }
        Ok(whole)
    }
}
