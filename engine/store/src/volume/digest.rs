//! Digests of what a client would read, by region and by block: how two nodes compare a volume.

use crate::{Volume, locks::LockGuard};
use drover_base::{
    IoError, RegionIndex,
    units::{BLOCK_BYTES, REGION_BYTES},
};
use std::sync::LazyLock;

/// Digests of one region. Zeros count like data, so they do not depend on where a volume has holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionDigests {
    /// BLAKE3 of the region's content; of a last, partial region: of what there is.
    pub region: [u8; 32],
    /// BLAKE3 of each block; [`zero_block_digest`] for one of zeros.
    pub blocks: Vec<[u8; 32]>,
    /// Blocks that hold data here, in whichever layer.
    pub data_blocks: u64,
    /// Slots of all layers that hold something of the region.
    pub slots: u64,
}

static ZERO_BLOCK: LazyLock<[u8; 32]> = LazyLock::new(|| *blake3::hash(&[0; BLOCK_BYTES as usize]).as_bytes());

/// The digest of a block of zeros.
pub fn zero_block_digest() -> [u8; 32] {
    *ZERO_BLOCK
}

impl Volume {
    /// Digests the region, under a guard that covers what exists of it. Holes are not read. `OutOfRange` for a
    /// region past the volume's end.
    pub async fn region_digests_locked(
        &self,
        guard: &LockGuard,
        region: RegionIndex,
    ) -> Result<RegionDigests, IoError> {
        let range = self.region_range(region);
        if range.is_empty() {
            let (offset, size) = (region.0.saturating_mul(REGION_BYTES), self.size_bytes());
            return Err(IoError::OutOfRange { offset, len: REGION_BYTES, size });
        }
        self.assert_locked(guard, range);
        self.health.check()?;
        let data_blocks = region.extents().map(|extent| u64::from(self.data_mask(extent).count())).sum();
        let slots = self.region_slots(region);
        let block_count = (range.len / BLOCK_BYTES) as usize;
        if data_blocks == 0 {
            let zeros = vec![zero_block_digest(); block_count];
            let region = self.env.world.offload(move || digest_zeros(block_count)).await;
            return Ok(RegionDigests { region, blocks: zeros, data_blocks, slots });
        }
        let data = self.read_blocks(range).await?;
        let (region, blocks) = self
            .env
            .world
            .offload(move || {
                let blocks = data.chunks_exact(BLOCK_BYTES as usize).map(|block| *blake3::hash(block).as_bytes());
                (*blake3::hash(&data).as_bytes(), blocks.collect())
            })
            .await;
        Ok(RegionDigests { region, blocks, data_blocks, slots })
    }
}

fn digest_zeros(blocks: usize) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for _ in 0..blocks {
        hasher.update(&[0; BLOCK_BYTES as usize]);
    }
    *hasher.finalize().as_bytes()
}
