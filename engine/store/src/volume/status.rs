//! What a volume holds, told without reading data.

use crate::{
    Volume,
    layer::{Layer, Source, resolve},
    merge::yield_once,
};
use drover_base::{
    BlockMask, ByteRange, ExtentIndex, IoError, RegionIndex,
    units::{BLOCK_BYTES, EXTENT_BYTES, REGION_BYTES},
};

/// Regions that are looked at before other tasks have their turn: 16,384 entries, some 100 µs.
const REGIONS_AT_ONCE: u64 = 256;

/// Space that a volume takes: with all layers it stands on, or as a copy of what it shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeUsage {
    /// Slots × 64 KiB.
    pub used_bytes: u64,
    /// Blocks whose data is stored × 4 KiB.
    pub valid_bytes: u64,
}

/// A snapshot as shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    pub name: String,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// Slots of its own layer × 64 KiB: what was written between the snapshot before and this one.
    pub used_bytes: u64,
}

/// What a run of bytes is: the two flags of NBD's `base:allocation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockStatus {
    pub hole: bool,
    pub zero: bool,
}

impl BlockStatus {
    pub const DATA: Self = Self { hole: false, zero: false };
    pub const HOLE: Self = Self { hole: true, zero: true };
}

/// Grows the last run or begins one. False: there are `most` runs and this would be another.
fn push(runs: &mut Vec<(u64, BlockStatus)>, most: usize, len: u64, status: BlockStatus) -> bool {
    if let Some((last, of)) = runs.last_mut()
        && *of == status
    {
        *last += len;
        return true;
    }
    if runs.len() == most {
        return false;
    }
    runs.push((len, status));
    true
}

impl Volume {
    pub fn usage(&self) -> VolumeUsage {
        let tree = self.family.tree.borrow();
        let mut usage = VolumeUsage::default();
        for layer in self.family.seen_by(self).iter().filter_map(|id| tree.layer(*id)) {
            usage.used_bytes += layer.slots() * EXTENT_BYTES;
            usage.valid_bytes += layer.valid_blocks() * BLOCK_BYTES;
        }
        usage
    }

    /// Of what it uses, what other volumes use, too: clones of it, or what it is a clone of. It stays when this one goes.
    pub fn shared_bytes(&self) -> u64 {
        let others = self.family.seen_by_others(self.id);
        let tree = self.family.tree.borrow();
        let seen = self.family.seen_by(self);
        let shared = seen.intersection(&others).filter_map(|id| tree.layer(*id));
        shared.map(|layer| layer.slots() * EXTENT_BYTES).sum()
    }

    /// What the head shows, of whatever layer it is: extents with data × 64 KiB, and blocks with data × 4 KiB. That is
    /// what a copy of the volume takes. It looks at every entry where there are snapshots or remote blocks, other tasks in
    /// between.
    pub async fn head_usage(&self) -> VolumeUsage {
        let head = self.stack.borrow().head().clone();
        let is_one_layer = self.stack.borrow().below().next().is_none();
        if is_one_layer && head.remote().is_empty() {
            return VolumeUsage {
                used_bytes: head.slots() * EXTENT_BYTES,
                valid_bytes: head.valid_blocks() * BLOCK_BYTES,
            };
        }
        let mut usage = VolumeUsage::default();
        let regions = self.size_bytes().div_ceil(REGION_BYTES);
        for region in (0..regions).map(RegionIndex) {
            if region.0 % REGIONS_AT_ONCE == REGIONS_AT_ONCE - 1 {
                yield_once().await;
            }
            if !self.is_region_mapped(region) {
                continue;
            }
            for data in region.extents().map(|extent| self.data_mask(extent)).filter(|data| !data.is_empty()) {
                usage.used_bytes += EXTENT_BYTES;
                usage.valid_bytes += u64::from(data.count()) * BLOCK_BYTES;
            }
        }
        usage
    }

    /// Ascending by name.
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        let stack = self.stack.borrow();
        let info = |(name, snapshot): (&String, &crate::stack::Snapshot)| SnapshotInfo {
            name: name.clone(),
            created_ms: snapshot.created_ms,
            used_bytes: self.family.layer(snapshot.layer).map_or(0, |layer| layer.slots() * EXTENT_BYTES),
        };
        stack.snapshots.iter().map(info).collect()
    }

    /// Runs of bytes from `offset` on, neighbours differing: at most `most`, at most `len` bytes together.
    pub fn block_status(&self, offset: u64, len: u64, most: usize) -> Result<Vec<(u64, BlockStatus)>, IoError> {
        let range = self.range(offset, len)?;
        self.health.check()?;
        let mut runs = Vec::new();
        for (region, part) in range.by_region() {
            let more = if self.is_region_mapped(region) {
                self.push_region(part, &mut runs, most)
            } else {
                push(&mut runs, most, part.len, BlockStatus::HOLE)
            };
            if !more {
                break;
            }
        }
        Ok(runs)
    }

    fn push_region(&self, range: ByteRange, runs: &mut Vec<(u64, BlockStatus)>, most: usize) -> bool {
        for (extent, part) in range.by_extent() {
            let data = self.data_mask(extent);
            if data.is_empty() || data.is_full() {
                let status = if data.is_full() { BlockStatus::DATA } else { BlockStatus::HOLE };
                if !push(runs, most, part.len, status) {
                    return false;
                }
                continue;
            }
            let mut at = part.offset;
            while at < part.end() {
                let block = (at % EXTENT_BYTES / BLOCK_BYTES) as u32;
                let end = (extent.offset() + u64::from(block + 1) * BLOCK_BYTES).min(part.end());
                let is_data = data.contains(BlockMask::span(block, 1));
                let status = if is_data { BlockStatus::DATA } else { BlockStatus::HOLE };
                if !push(runs, most, end - at, status) {
                    return false;
                }
                at = end;
            }
        }
        true
    }

    fn is_region_mapped(&self, region: RegionIndex) -> bool {
        let is_mapped = |layer: &Layer| layer.map().region(region).is_some() || layer.remote().has_region(region);
        self.stack.borrow().chain().any(is_mapped)
    }

    /// Which blocks of the extent hold data, in whichever layer or at another node; the others read as zero.
    pub fn data_mask(&self, extent: ExtentIndex) -> BlockMask {
        let stack = self.stack.borrow();
        let mut data = BlockMask::EMPTY;
        resolve(stack.chain(), extent, BlockMask::FULL, |mask, source| {
            if source != Source::Zero {
                data = data.with(mask);
            }
        });
        data
    }

    /// Whether any block of the region holds data.
    pub fn region_has_data(&self, region: RegionIndex) -> bool {
        self.is_region_mapped(region) && region.extents().any(|extent| !self.data_mask(extent).is_empty())
    }
}
