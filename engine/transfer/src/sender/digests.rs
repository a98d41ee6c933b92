//! A region's digests at both sides, taken at the same place of the stream.
//!
//! Under the locks of the whole region the question is put on the stream and the own content is hashed. Writes
//! before it are in both digests, writes after it in neither.

use super::Sender;
use super::copy::Reply;
use drover_base::units::{BLOCK_BYTES, BLOCKS_PER_EXTENT, REGION_BYTES};
use drover_base::{BlockMask, ByteRange, IoError, RegionIndex};
use drover_store::zero_block_digest;
use drover_wire::peer::{Answer, Operation};

/// Length of a block's digest as it travels.
const BLOCK_DIGEST_BYTES: usize = 16;

type BlockDigest = [u8; BLOCK_DIGEST_BYTES];

/// What both sides hold of a region.
pub(super) struct Pair {
    pub range: ByteRange,
    pub is_equal: bool,
    /// Block by block: our digest and whether theirs differs.
    blocks: Vec<(BlockDigest, bool)>,
    /// Our blocks that hold data, by extent.
    held: Vec<BlockMask>,
    pub our_data_blocks: u64,
    pub their_data_blocks: u64,
}

impl Pair {
    fn block_range(&self, index: usize) -> ByteRange {
        ByteRange { offset: self.range.offset + index as u64 * BLOCK_BYTES, len: BLOCK_BYTES }
    }

    fn is_held(&self, index: usize) -> bool {
        let (extent, block) = (index / BLOCKS_PER_EXTENT as usize, index % BLOCKS_PER_EXTENT as usize);
        self.held.get(extent).is_some_and(|mask| mask.intersects(BlockMask::span(block as u32, 1)))
    }

    /// Every block, and whether it differs.
    pub fn blocks(&self) -> impl Iterator<Item = (ByteRange, bool)> + '_ {
        self.blocks.iter().enumerate().map(|(index, (_, differs))| (self.block_range(index), *differs))
    }

    /// Our blocks that hold no data.
    pub fn holes(&self) -> impl Iterator<Item = ByteRange> + '_ {
        (0..self.blocks.len()).filter(|index| !self.is_held(*index)).map(|index| self.block_range(index))
    }

    /// Our blocks that hold data which is zeros.
    pub fn stored_zeros(&self) -> impl Iterator<Item = ByteRange> + '_ {
        let zero = short(&zero_block_digest());
        (0..self.blocks.len())
            .filter(move |index| self.is_held(*index) && self.blocks[*index].0 == zero)
            .map(|index| self.block_range(index))
    }
}

fn short(digest: &[u8; 32]) -> BlockDigest {
    digest[..BLOCK_DIGEST_BYTES].try_into().expect("a prefix of the digest")
}

impl Sender {
    /// An error has been noted already; the region is to be asked about again.
    pub(super) async fn digests(&self, region: RegionIndex) -> Result<Pair, ()> {
        let range = self.inside(ByteRange { offset: region.offset(), len: REGION_BYTES });
        let guard = self.volume.enqueue(range).await;
        let up = self.state.borrow().link.clone().ok_or(())?;
        let reply: Reply = self.put(&up, Operation::Digests { region });
        let ours =
            self.volume.region_digests_locked(&guard, region).await.map_err(|error| self.trouble_here(&error))?;
        let held = range.by_extent().map(|(extent, _)| self.volume.data_mask(extent)).collect();
        drop(guard);
        let theirs = match reply.await {
            Ok(Answer::Digests(theirs)) if theirs.blocks.len() == ours.blocks.len() => theirs,
            other => {
                self.failed_on(up.number, &other.err().unwrap_or(IoError::Corrupt));
                return Err(());
            }
        };
        let blocks: Vec<_> =
            ours.blocks.iter().map(short).zip(&theirs.blocks).map(|(ours, theirs)| (ours, ours != *theirs)).collect();
        Ok(Pair {
            range,
            is_equal: ours.region == theirs.region && blocks.iter().all(|(_, differs)| !differs),
            blocks,
            held,
            our_data_blocks: ours.data_blocks,
            their_data_blocks: theirs.data_blocks,
        })
    }
}
