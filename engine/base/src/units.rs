//! Block, extent, region: sizes and checked conversions between them.
//!
//! ```text
//! region 4 MiB ├ extent 64 KiB ├ block 4 KiB
//!              64 a region      16 an extent
//! ```

use serde::{Deserialize, Serialize};

/// Bytes of a block: the unit of validity and of checksums.
pub const BLOCK_BYTES: u64 = 4 << 10;
/// Bytes of an extent: the unit of mapping, copy-on-write, dirty tracking and movement.
pub const EXTENT_BYTES: u64 = 64 << 10;
/// Bytes of a region: the unit of the activity log, of heat and of digests.
pub const REGION_BYTES: u64 = 4 << 20;
pub const BLOCKS_PER_EXTENT: u32 = (EXTENT_BYTES / BLOCK_BYTES) as u32;
pub const EXTENTS_PER_REGION: u64 = REGION_BYTES / EXTENT_BYTES;

const _: () = assert!(BLOCKS_PER_EXTENT == 16, "a BlockMask has one bit per block");

/// An extent of a volume, counted from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ExtentIndex(pub u64);

/// A region of a volume, counted from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RegionIndex(pub u64);

impl ExtentIndex {
    pub fn containing(offset: u64) -> Self {
        Self(offset / EXTENT_BYTES)
    }
    pub fn offset(self) -> u64 {
        self.0 * EXTENT_BYTES
    }
    pub fn region(self) -> RegionIndex {
        RegionIndex(self.0 / EXTENTS_PER_REGION)
    }
    /// Position within its region, 0..64.
    pub fn in_region(self) -> usize {
        (self.0 % EXTENTS_PER_REGION) as usize
    }
    /// Adds these blocks of the extent to ascending ranges before it, neighbours together.
    pub fn add_blocks(self, mask: BlockMask, ranges: &mut Vec<ByteRange>) {
        for (first, count) in mask.runs() {
            let offset = self.offset() + u64::from(first) * BLOCK_BYTES;
            let len = u64::from(count) * BLOCK_BYTES;
            match ranges.last_mut().filter(|last| last.end() == offset) {
                Some(last) => last.len += len,
                None => ranges.push(ByteRange { offset, len }),
            }
        }
    }
}

impl RegionIndex {
    pub fn containing(offset: u64) -> Self {
        Self(offset / REGION_BYTES)
    }
    pub fn offset(self) -> u64 {
        self.0 * REGION_BYTES
    }
    pub fn extents(self) -> impl DoubleEndedIterator<Item = ExtentIndex> {
        let first = self.0 * EXTENTS_PER_REGION;
        (first..first + EXTENTS_PER_REGION).map(ExtentIndex)
    }
    pub fn extent(self, in_region: usize) -> ExtentIndex {
        debug_assert!((in_region as u64) < EXTENTS_PER_REGION);
        ExtentIndex(self.0 * EXTENTS_PER_REGION + in_region as u64)
    }
}

/// Regions that a volume of `size_bytes` has, the last one possibly partial.
pub fn region_count(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(REGION_BYTES)
}

/// One bit per block of an extent, block 0 lowest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlockMask(pub u16);

impl BlockMask {
    pub const EMPTY: Self = Self(0);
    pub const FULL: Self = Self(u16::MAX);

    /// Blocks `first..first + count`; `first + count` is at most 16.
    pub fn span(first: u32, count: u32) -> Self {
        assert!(first + count <= BLOCKS_PER_EXTENT);
        Self((((1u32 << count) - 1) << first) as u16)
    }
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
    pub fn is_full(self) -> bool {
        self.0 == u16::MAX
    }
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
    /// Runs of set bits as (first block, count), ascending.
    pub fn runs(self) -> impl Iterator<Item = (u32, u32)> {
        let mut rest = u32::from(self.0);
        std::iter::from_fn(move || {
            if rest == 0 {
                return None;
            }
            let first = rest.trailing_zeros();
            let count = (rest >> first).trailing_ones();
            rest &= !(((1u32 << count) - 1) << first);
            Some((first, count))
        })
    }
}

/// `len` bytes from `offset`; never wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ByteRange {
    pub offset: u64,
    pub len: u64,
}

impl ByteRange {
    /// `None` when `offset + len` passes `u64::MAX`.
    pub fn new(offset: u64, len: u64) -> Option<Self> {
        offset.checked_add(len)?;
        Some(Self { offset, len })
    }
    pub fn end(self) -> u64 {
        self.offset + self.len
    }
    pub fn is_empty(self) -> bool {
        self.len == 0
    }
    pub fn is_block_aligned(self) -> bool {
        self.offset.is_multiple_of(BLOCK_BYTES) && self.len.is_multiple_of(BLOCK_BYTES)
    }
    /// The smallest block-aligned range that contains this one.
    pub fn block_aligned(self) -> Self {
        let start = self.offset - self.offset % BLOCK_BYTES;
        let end = self.end().next_multiple_of(BLOCK_BYTES);
        Self { offset: start, len: end - start }
    }
    /// The parts of the range, one per extent it touches, ascending.
    pub fn by_extent(self) -> impl Iterator<Item = (ExtentIndex, ByteRange)> {
        self.cut(EXTENT_BYTES).map(|part| (ExtentIndex::containing(part.offset), part))
    }
    /// The parts of the range, one per region it touches, ascending.
    pub fn by_region(self) -> impl Iterator<Item = (RegionIndex, ByteRange)> {
        self.cut(REGION_BYTES).map(|part| (RegionIndex::containing(part.offset), part))
    }
    fn cut(self, unit: u64) -> impl Iterator<Item = ByteRange> {
        let mut at = self.offset;
        let end = self.end();
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let next = ((at / unit + 1) * unit).min(end);
            let part = ByteRange { offset: at, len: next - at };
            at = next;
            Some(part)
        })
    }
    /// The blocks of its one extent that a block-aligned range covers.
    pub fn block_mask(self) -> BlockMask {
        assert!(self.is_block_aligned() && self.len <= EXTENT_BYTES);
        let first = (self.offset % EXTENT_BYTES / BLOCK_BYTES) as u32;
        BlockMask::span(first, (self.len / BLOCK_BYTES) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_at_extents() {
        let range = ByteRange::new(EXTENT_BYTES - 4096, 2 * EXTENT_BYTES).unwrap();
        let parts: Vec<_> = range.by_extent().collect();
        assert_eq!(parts.len(), 3);
        assert_eq!(parts[0].1, ByteRange { offset: EXTENT_BYTES - 4096, len: 4096 });
        assert_eq!(parts[1].1.block_mask(), BlockMask::FULL);
        assert_eq!(parts[2].1.block_mask(), BlockMask(0x7fff));
        assert_eq!(parts.iter().map(|part| part.1.len).sum::<u64>(), range.len);
    }

    #[test]
    fn mask_runs_cover_each_bit_once() {
        for bits in 0..=u16::MAX {
            let mut seen = BlockMask::EMPTY;
            for (first, count) in BlockMask(bits).runs() {
                let run = BlockMask::span(first, count);
                assert!(!seen.intersects(run));
                seen = seen.with(run);
            }
            assert_eq!(seen.0, bits);
        }
    }

    #[test]
    fn a_range_that_wraps_is_refused() {
        assert_eq!(ByteRange::new(u64::MAX, 1), None);
    }
}
