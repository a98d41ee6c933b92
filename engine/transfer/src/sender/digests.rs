//! A region's digests at both sides, extent by extent, each taken at the same place of the stream.
//!
//! ```text
//!  lock the extent ── put the question on the stream ── read ── unlock ── hash ── await the reply
//! ```
//!
//! Invariants
//! - The question about an extent is put on the stream, and the own content read, under one hold of the extent's
//!   lock; the other side does its part in stream order. So writes before the question are in both digests, writes
//!   after it in neither: no write crosses a comparison, and none has to be made again because of one.
//! - What was found equal stays so: every later write of the extent goes to both sides in the same order, and an
//!   error of one takes `synced` away.
//! - A writer waits for the read of one extent at most. No lock is held while anything is hashed or awaited from the
//!   other side.
//! - Blocks of ours that are at the other side only are not compared: they are what stands there, and nothing of them is
//!   ever sent.
//! - A run of extents without data is asked about as a whole, and only at a moment at which nobody holds a lock in it:
//!   then nothing is under way that one side has and the other has not.

use super::Sender;
use super::copy::Reply;
use drover_base::planted::{Bug, is_planted};
use drover_base::units::{BLOCK_BYTES, BLOCKS_PER_EXTENT, EXTENT_BYTES, REGION_BYTES};
use drover_base::{BlockMask, ByteRange, ExtentIndex, IoError, RegionIndex};
use drover_store::{ExtentContent, LockGuard, zero_block_digest};
use drover_wire::peer::{Answer, ExtentDigests, Operation};
use futures::{StreamExt, TryStreamExt, stream};

/// Extents of a region that are asked about at once: enough to hide the way there and back, and few enough that a
/// client's request waits little behind their reads on the devices of both sides.
const EXTENTS_AT_ONCE: usize = 8;

/// Length of a block's digest as it travels.
const BLOCK_DIGEST_BYTES: usize = 16;

type BlockDigest = [u8; BLOCK_DIGEST_BYTES];

/// What both sides hold of a region.
pub(super) struct Pair {
    range: ByteRange,
    pub is_equal: bool,
    /// Some of it is at the other side only, and was not compared.
    pub is_remote: bool,
    /// Block by block: our digest and whether theirs differs.
    blocks: Vec<(BlockDigest, bool)>,
    /// Our blocks that hold data, by extent.
    held: Vec<BlockMask>,
    /// Theirs that do.
    theirs: Vec<BlockMask>,
    /// Ours that hold zeros over data of a layer below: how a block is hidden is no matter of thin or thick.
    hiding: Vec<BlockMask>,
}

/// What both sides hold of one extent.
struct ExtentPair {
    is_equal: bool,
    is_remote: bool,
    blocks: Vec<(BlockDigest, bool)>,
    held: BlockMask,
    theirs: BlockMask,
    hiding: BlockMask,
}

impl Pair {
    fn of(range: ByteRange, extents: Vec<ExtentPair>) -> Self {
        Self {
            range,
            is_equal: extents.iter().all(|extent| extent.is_equal),
            is_remote: extents.iter().any(|extent| extent.is_remote),
            held: extents.iter().map(|extent| extent.held).collect(),
            theirs: extents.iter().map(|extent| extent.theirs).collect(),
            hiding: extents.iter().map(|extent| extent.hiding).collect(),
            blocks: extents.into_iter().flat_map(|extent| extent.blocks).collect(),
        }
    }

    /// Whether we hold a block that they do not: as many as theirs, but others, is thicker too.
    pub fn is_thicker_here(&self) -> bool {
        if is_planted(Bug::ThicknessCounted) {
            let count = |masks: &[BlockMask]| masks.iter().map(|mask| mask.count()).sum::<u32>();
            return count(&self.held) > count(&self.theirs);
        }
        let masks = self.held.iter().zip(&self.hiding).zip(&self.theirs);
        masks.into_iter().any(|((ours, hiding), theirs)| !theirs.contains(ours.without(*hiding)))
    }

    fn block_range(&self, index: usize) -> ByteRange {
        ByteRange { offset: self.range.offset + index as u64 * BLOCK_BYTES, len: BLOCK_BYTES }
    }

    /// Every block, and whether it differs.
    pub fn blocks(&self) -> impl Iterator<Item = (ByteRange, bool)> + '_ {
        self.blocks.iter().enumerate().map(|(index, (_, differs))| (self.block_range(index), *differs))
    }

    /// Our blocks without data where they hold some.
    pub fn holes_they_fill(&self) -> impl Iterator<Item = ByteRange> + '_ {
        self.blocks_where(|ours, theirs| theirs.without(ours)).map(|index| self.block_range(index))
    }

    /// Our blocks that hold data which is zeros, where they hold none.
    pub fn stored_zeros_they_lack(&self) -> impl Iterator<Item = ByteRange> + '_ {
        let zero = short(&zero_block_digest());
        self.blocks_where(|ours, theirs| ours.without(theirs))
            .filter(move |index| self.blocks[*index].0 == zero)
            .map(|index| self.block_range(index))
    }

    /// The blocks that are chosen by what is held of their extent here and there.
    fn blocks_where(&self, choose: fn(BlockMask, BlockMask) -> BlockMask) -> impl Iterator<Item = usize> + '_ {
        let masks = self.held.iter().zip(&self.theirs);
        let chosen = masks.map(move |(ours, theirs)| choose(*ours, *theirs));
        let blocks = |(extent, mask): (usize, BlockMask)| {
            let first = extent * BLOCKS_PER_EXTENT as usize;
            mask.runs().flat_map(move |(at, count)| first + at as usize..first + (at + count) as usize)
        };
        chosen.enumerate().flat_map(blocks)
    }
}

impl ExtentPair {
    /// `remote`: our blocks that are at the other side only. What stands there is what they are.
    /// `over_data`: our blocks that hold data over data of a layer below.
    fn new(
        ours: &drover_store::ExtentDigests,
        (held, over_data): (BlockMask, BlockMask),
        remote: BlockMask,
        theirs: &ExtentDigests,
    ) -> Self {
        let zero = zero_block_digest();
        let zeros = ours.blocks.iter().enumerate().filter(|(_, digest)| **digest == zero);
        let zeros = zeros.fold(BlockMask::EMPTY, |mask, (index, _)| mask.with(BlockMask::span(index as u32, 1)));
        let pairs = ours.blocks.iter().map(short).zip(&theirs.blocks).enumerate();
        let pair = |(index, (ours, theirs)): (usize, (BlockDigest, &BlockDigest))| {
            let is_remote = remote.contains(BlockMask::span(index as u32, 1));
            if is_remote { (*theirs, false) } else { (ours, ours != *theirs) }
        };
        let blocks: Vec<_> = pairs.map(pair).collect();
        let is_same_whole = ours.extent == theirs.extent || !remote.is_empty();
        Self {
            is_equal: is_same_whole && blocks.iter().all(|(_, differs)| !differs),
            is_remote: !remote.is_empty(),
            blocks,
            held,
            hiding: zeros.and(over_data),
            // Of what exists of the extent: the answer may say anything.
            theirs: theirs.held.and(BlockMask::span(0, theirs.blocks.len() as u32)),
        }
    }

    /// Neither side holds data.
    fn empty(blocks: usize) -> Self {
        let blocks = vec![(short(&zero_block_digest()), false); blocks];
        Self {
            is_equal: true,
            is_remote: false,
            blocks,
            held: BlockMask::EMPTY,
            theirs: BlockMask::EMPTY,
            hiding: BlockMask::EMPTY,
        }
    }
}

fn short(digest: &[u8; 32]) -> BlockDigest {
    digest[..BLOCK_DIGEST_BYTES].try_into().expect("a prefix of the digest")
}

fn extents(range: ByteRange) -> Vec<(ExtentIndex, ByteRange)> {
    range.by_extent().collect()
}

fn block_count(range: ByteRange) -> usize {
    (range.len / BLOCK_BYTES) as usize
}

impl Sender {
    /// An error has been noted already; the region is to be asked about again.
    pub(super) async fn digests(&self, region: RegionIndex) -> Result<Pair, ()> {
        let range = self.volume.inside(ByteRange { offset: region.offset(), len: REGION_BYTES });
        let runs = self.runs(range);
        let pairs = stream::iter(runs).map(|run| self.run_pairs(run)).buffered(EXTENTS_AT_ONCE).try_concat().await?;
        Ok(Pair::of(range, pairs))
    }

    /// Neighbouring extents without data together, every other extent by itself.
    fn runs(&self, range: ByteRange) -> Vec<ByteRange> {
        let mut runs: Vec<(ByteRange, bool)> = Vec::new();
        for (extent, part) in range.by_extent() {
            let is_empty = self.volume.data_mask(extent).is_empty();
            match runs.last_mut() {
                Some((run, true)) if is_empty => run.len += part.len,
                _ => runs.push((part, is_empty)),
            }
        }
        runs.into_iter().map(|(run, _)| run).collect()
    }

    async fn run_pairs(&self, run: ByteRange) -> Result<Vec<ExtentPair>, ()> {
        if run.len > EXTENT_BYTES && self.is_hole_at_both(run).await? {
            return Ok(extents(run).into_iter().map(|(_, part)| ExtentPair::empty(block_count(part))).collect());
        }
        let mut pairs = Vec::new();
        for (extent, part) in extents(run) {
            pairs.push(self.extent_pair(extent, part).await?);
        }
        Ok(pairs)
    }

    /// Whether the run is certainly without data at both sides at one place of the stream. Reads nothing.
    async fn is_hole_at_both(&self, run: ByteRange) -> Result<bool, ()> {
        let Some(guard) = self.volume.try_lock(run) else { return Ok(false) };
        if extents(run).iter().any(|(extent, _)| !self.volume.data_mask(*extent).is_empty()) {
            return Ok(false);
        }
        let up = self.state.borrow().link.clone().ok_or(())?;
        let reply: Reply = self.put(&up, Operation::BlockStatus { range: run });
        drop(guard);
        match reply.await {
            Ok(Answer::Status(runs)) => {
                Ok(runs.iter().all(|run| run.hole) && runs.iter().map(|run| run.len).sum::<u64>() == run.len)
            }
            other => self.no_answer(up.number, other),
        }
    }

    async fn extent_pair(&self, extent: ExtentIndex, part: ByteRange) -> Result<ExtentPair, ()> {
        let guard = self.volume.enqueue(part).await;
        let up = self.state.borrow().link.clone().ok_or(())?;
        let reply: Reply = self.put(&up, Operation::Digests { extent });
        let over_data = self.volume.shadowing_mask(extent);
        let content = self.content(guard, extent, part).await.map_err(|error| self.trouble_here(&error))?;
        let held = content.held();
        let remote = if is_planted(Bug::RemoteSentAsZero) { BlockMask::EMPTY } else { content.remote() };
        let has_data = content.has_data();
        let hash = move || content.digests();
        let ours = if has_data { self.world.offload(hash).await } else { hash() };
        match reply.await {
            Ok(Answer::Digests(theirs)) if theirs.blocks.len() == ours.blocks.len() => {
                Ok(ExtentPair::new(&ours, (held, over_data), remote, &theirs))
            }
            other => self.no_answer(up.number, other),
        }
    }

    /// Reads the extent and lets its lock go.
    async fn content(&self, guard: LockGuard, extent: ExtentIndex, part: ByteRange) -> Result<ExtentContent, IoError> {
        let guard = if is_planted(Bug::DigestCrossed) {
            drop(guard);
            self.volume.enqueue(part).await
        } else {
            guard
        };
        self.volume.here_content_locked(&guard, extent).await
    }

    fn no_answer<T>(&self, link: u64, reply: Result<Answer, IoError>) -> Result<T, ()> {
        self.failed_on(link, &reply.err().unwrap_or(IoError::Corrupt));
        Err(())
    }
}
