//! Sets of blocks of a volume.
//!
//! Invariants
//! - A region is present only while at least one of its blocks is in the set.
//! - `blocks` is the number of blocks in the set.
//!
//! A set costs some 150 bytes for each region that it touches: 38 MiB a TiB when full.

use crate::units::{BLOCK_BYTES, EXTENTS_PER_REGION};
use crate::{BlockMask, ByteRange, ExtentIndex, RegionIndex};
use std::collections::{BTreeMap, btree_map::Entry};

/// The masks of a region's extents, by position within it.
pub type RegionMasks = [u16; EXTENTS_PER_REGION as usize];

/// A set of blocks, by extent and region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockSet {
    regions: BTreeMap<RegionIndex, Box<RegionMasks>>,
    blocks: u64,
}

impl BlockSet {
    pub fn bytes(&self) -> u64 {
        self.blocks * BLOCK_BYTES
    }

    pub fn is_empty(&self) -> bool {
        self.blocks == 0
    }

    /// The extent's blocks that are in the set.
    pub fn get(&self, extent: ExtentIndex) -> BlockMask {
        self.regions.get(&extent.region()).map_or(BlockMask::EMPTY, |masks| BlockMask(masks[extent.in_region()]))
    }

    pub fn mark(&mut self, extent: ExtentIndex, mask: BlockMask) {
        if mask.is_empty() {
            return;
        }
        let masks = self.regions.entry(extent.region()).or_insert_with(|| Box::new([0; _]));
        let bits = &mut masks[extent.in_region()];
        self.blocks += u64::from((mask.0 & !*bits).count_ones());
        *bits |= mask.0;
    }

    /// Takes blocks of the extent out; returns those that were in the set.
    pub fn remove(&mut self, extent: ExtentIndex, mask: BlockMask) -> BlockMask {
        let Entry::Occupied(mut region) = self.regions.entry(extent.region()) else { return BlockMask::EMPTY };
        let bits = &mut region.get_mut()[extent.in_region()];
        let removed = BlockMask(*bits & mask.0);
        *bits &= !mask.0;
        self.blocks -= u64::from(removed.count());
        if !removed.is_empty() && region.get().iter().all(|bits| *bits == 0) {
            region.remove();
        }
        removed
    }

    /// Takes all blocks of the extent out.
    pub fn take(&mut self, extent: ExtentIndex) -> BlockMask {
        self.remove(extent, BlockMask::FULL)
    }

    /// Marks every block that the range touches.
    pub fn mark_range(&mut self, range: ByteRange) {
        for (extent, part) in range.block_aligned().by_extent() {
            self.mark(extent, part.block_mask());
        }
    }

    /// Takes every block that the range touches out; returns how many were in the set.
    pub fn remove_range(&mut self, range: ByteRange) -> u64 {
        let before = self.blocks;
        for (extent, part) in range.block_aligned().by_extent() {
            self.remove(extent, part.block_mask());
        }
        before - self.blocks
    }

    pub fn has_region(&self, region: RegionIndex) -> bool {
        self.regions.contains_key(&region)
    }

    /// Regions with blocks in the set, from `from` on, ascending.
    pub fn regions_from(&self, from: RegionIndex) -> impl Iterator<Item = RegionIndex> + '_ {
        self.regions.range(from..).map(|(region, _)| *region)
    }

    /// Regions with blocks in the set, ascending.
    pub fn regions(&self) -> impl Iterator<Item = RegionIndex> + '_ {
        self.regions.keys().copied()
    }

    /// The region's masks; `None`: it has no block in the set.
    pub fn region(&self, region: RegionIndex) -> Option<&RegionMasks> {
        self.regions.get(&region).map(|masks| &**masks)
    }

    /// The first region at or after `from` with blocks in the set.
    pub fn next_region(&self, from: RegionIndex) -> Option<RegionIndex> {
        self.regions.range(from..).next().map(|(region, _)| *region)
    }

    /// Blocks of the region that are in this set and not in `other`; `None`: there are none.
    pub fn region_without(&self, other: &Self, region: RegionIndex) -> Option<RegionMasks> {
        let mut masks = *self.region(region)?;
        if let Some(theirs) = other.region(region) {
            masks.iter_mut().zip(theirs).for_each(|(mask, theirs)| *mask &= !theirs);
        }
        masks.iter().any(|mask| *mask != 0).then_some(masks)
    }

    /// Marks everything that is in `other`.
    pub fn absorb(&mut self, other: BlockSet) {
        if self.is_empty() {
            *self = other;
            return;
        }
        for (region, masks) in other.regions {
            match self.regions.entry(region) {
                Entry::Vacant(free) => {
                    self.blocks += masks.iter().map(|bits| u64::from(bits.count_ones())).sum::<u64>();
                    free.insert(masks);
                }
                Entry::Occupied(mut ours) => {
                    for (ours, theirs) in ours.get_mut().iter_mut().zip(masks.iter()) {
                        self.blocks += u64::from((theirs & !*ours).count_ones());
                        *ours |= theirs;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::EXTENT_BYTES;
    use std::collections::BTreeSet;

    /// Splitmix64: enough chance for a test.
    fn next(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 29)
    }

    fn blocks_of(range: ByteRange) -> impl Iterator<Item = u64> {
        range.offset / BLOCK_BYTES..range.end().div_ceil(BLOCK_BYTES)
    }

    fn all_blocks(set: &BlockSet) -> BTreeSet<u64> {
        let mut found = BTreeSet::new();
        for region in set.regions() {
            let masks = set.region(region).expect("it has blocks");
            for (extent, mask) in region.extents().zip(masks) {
                for (first, count) in BlockMask(*mask).runs() {
                    found.extend((0..count).map(|at| extent.0 * 16 + u64::from(first + at)));
                }
            }
        }
        found
    }

    #[test]
    fn behaves_as_a_set_of_blocks() {
        let mut state = 1;
        let (mut set, mut other, mut plain, mut plain_other) =
            (BlockSet::default(), BlockSet::default(), BTreeSet::new(), BTreeSet::new());
        for _ in 0..3_000 {
            let offset = next(&mut state) % (3 * 64 * EXTENT_BYTES);
            let range = ByteRange { offset, len: 1 + next(&mut state) % (3 * EXTENT_BYTES) };
            match next(&mut state) % 4 {
                0 => {
                    set.mark_range(range);
                    plain.extend(blocks_of(range));
                }
                1 => {
                    let removed = blocks_of(range).filter(|block| plain.remove(block)).count() as u64;
                    assert_eq!(set.remove_range(range), removed);
                }
                2 => {
                    other.mark_range(range);
                    plain_other.extend(blocks_of(range));
                }
                _ if next(&mut state).is_multiple_of(8) => {
                    set.absorb(std::mem::take(&mut other));
                    plain.append(&mut plain_other);
                }
                _ => {
                    let extent = ExtentIndex::containing(offset);
                    let mask = (0..16u16).filter(|bit| plain.contains(&(extent.0 * 16 + u64::from(*bit))));
                    assert_eq!(set.get(extent), BlockMask(mask.fold(0, |mask, bit| mask | 1 << bit)));
                }
            }
            assert_eq!(set.bytes(), plain.len() as u64 * BLOCK_BYTES);
        }
        assert_eq!(all_blocks(&set), plain);
    }

    #[test]
    fn a_region_without_another_set_s_blocks() {
        let (mut set, mut other) = (BlockSet::default(), BlockSet::default());
        assert_eq!(set.region_without(&other, RegionIndex(1)), None);
        set.mark(ExtentIndex(70), BlockMask(0b1101));
        set.mark(ExtentIndex(71), BlockMask(1));
        other.mark(ExtentIndex(70), BlockMask(0b0110));
        other.mark(ExtentIndex(72), BlockMask(1));
        let mut left = [0; _];
        (left[6], left[7]) = (0b1001, 1);
        assert_eq!(set.region_without(&other, RegionIndex(1)), Some(left));
        other.absorb(set.clone());
        assert_eq!(set.region_without(&other, RegionIndex(1)), None);
    }

    #[test]
    fn taking_empties_the_extent_and_its_region() {
        let mut set = BlockSet::default();
        set.mark(ExtentIndex(70), BlockMask(0b101));
        assert_eq!(set.take(ExtentIndex(70)), BlockMask(0b101));
        assert_eq!(set.take(ExtentIndex(70)), BlockMask::EMPTY);
        assert!(set.is_empty() && !set.has_region(RegionIndex(1)));
    }
}
