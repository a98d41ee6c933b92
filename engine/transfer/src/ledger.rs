//! Where each block of a volume stands between the two sides.
//!
//! ```text
//!   a write, an error          put on the stream         acknowledged            a flush covers it
//!  ───────────────────► pending ───────────► in flight ──────────────► unflushed ────────────────► clean
//!                          ▲                     │ error                    │ other instance
//!                          └─────────────────────┴──────────────────────────┘
//! ```
//!
//! Invariants
//! - A block that may differ, or may be lost at the other side by a crash there, is in at least one of the sets.
//!   It may be in several: written again while in flight, say.
//! - Blocks leave `pending` under their extent's lock, before their content is read.
//! - A flush makes clean what was acknowledged before the flush was put on the stream, and nothing else.
//! - `initial` only shrinks: progress does not go back.
//! - `announced` ⊆ `pending`: what the other side was told of a block of it, last on this link's stream, is that it stays
//!   behind. So the two sides agree about every such block. With the link that knowledge is gone.

use drover_base::planted::{Bug, is_planted};
use drover_base::units::BLOCK_BYTES;
use drover_base::{BlockMask, BlockSet, ByteRange, ExtentIndex, RegionIndex, RegionMasks};
use std::collections::{BTreeMap, VecDeque};

/// A block-aligned range on its way. Must be given back to [`Ledger::arrived`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "what departs must arrive"]
pub struct Flight {
    pub range: ByteRange,
    /// Which instance of the other side it was sent to, counted.
    lap: u64,
}

/// What to do with the dirty blocks of an extent, decided under its lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    pub data: BlockMask,
    pub zero: BlockMask,
}

#[derive(Debug, Default)]
pub struct Ledger {
    pending: BlockSet,
    /// Pending blocks that the other side knows to be here only: after a flip it asks for them.
    announced: BlockSet,
    /// Blocks in flight, by region; a block counts as often as it is in flight.
    in_flight: BTreeMap<RegionIndex, u64>,
    in_flight_blocks: u64,
    /// Acknowledged since the last flush was put on the stream.
    acknowledged: BlockSet,
    /// Acknowledged before a flush that has not succeeded yet, oldest flush first.
    covered: VecDeque<(u64, BlockSet)>,
    flushes: u64,
    /// Grows with each instance of the other side.
    lap: u64,
    /// Blocks that the other side may hold data of; `None`: any. A block outside of it reads as zero there.
    reached: Option<BlockSet>,
    initial: BlockSet,
    initial_blocks: u64,
}

impl Ledger {
    /// A ledger for another side that is known to be empty.
    pub fn for_empty() -> Self {
        Self { reached: Some(BlockSet::default()), ..Self::default() }
    }

    /// Before the first send: these blocks are part of the work.
    pub fn begin_with(&mut self, extent: ExtentIndex, mask: BlockMask, is_pending: bool) {
        self.initial.mark(extent, mask);
        self.initial_blocks += u64::from(mask.count());
        if is_pending {
            self.pending.mark(extent, mask);
        }
    }

    pub fn pending(&self) -> &BlockSet {
        &self.pending
    }

    pub fn in_flight_bytes(&self) -> u64 {
        self.in_flight_blocks * BLOCK_BYTES
    }

    pub fn unflushed_bytes(&self) -> u64 {
        self.acknowledged.bytes() + self.covered.iter().map(|(_, set)| set.bytes()).sum::<u64>()
    }

    pub fn has_unflushed(&self) -> bool {
        !self.acknowledged.is_empty() || self.covered.iter().any(|(_, set)| !set.is_empty())
    }

    /// Nothing has to be sent and nothing is on its way.
    pub fn is_sent(&self) -> bool {
        self.owes_nothing() && self.in_flight_blocks == 0
    }

    /// The other side has, or has been sent, everything that it does not know to be here only.
    pub fn owes_nothing(&self) -> bool {
        assert!(self.announced.bytes() <= self.pending.bytes(), "what is announced is pending");
        self.pending.bytes() == self.announced.bytes()
    }

    /// Bytes that stay behind if the other side takes over now.
    pub fn announced_bytes(&self) -> u64 {
        self.announced.bytes()
    }

    /// Blocks of the region that have to be sent, or announced.
    pub fn owed(&self, region: RegionIndex) -> Option<RegionMasks> {
        self.pending.region_without(&self.announced, region)
    }

    /// Regions with such blocks.
    pub fn owed_regions(&self) -> impl Iterator<Item = RegionIndex> + '_ {
        self.pending.regions().filter(|region| self.owed(*region).is_some())
    }

    /// The next region, from `from` on, with pending blocks that hold data and that the other side does not know to be here
    /// only, and which: they are put on the stream in this moment. Holes are sent: what stays behind comes back as data.
    pub fn announce_next(
        &mut self,
        from: RegionIndex,
        held: impl Fn(ExtentIndex) -> BlockMask,
    ) -> Option<(RegionIndex, RegionMasks)> {
        let (region, masks) = self.pending.regions_from(from).find_map(|region| {
            let mut masks = self.owed(region)?;
            for (extent, mask) in region.extents().zip(masks.iter_mut()).filter(|(_, mask)| **mask != 0) {
                *mask &= held(extent).0;
            }
            masks.iter().any(|mask| *mask != 0).then_some((region, masks))
        })?;
        for (extent, mask) in region.extents().zip(masks.iter()) {
            self.announced.mark(extent, BlockMask(*mask));
            if let Some(reached) = &mut self.reached {
                // A trim of them has to be sent, like that of any block the other side does not read as zero.
                reached.mark(extent, BlockMask(*mask));
            }
        }
        Some((region, masks))
    }

    /// What the other side knows of what stays behind is uncertain from now on.
    pub fn forget_announced(&mut self) {
        if is_planted(Bug::AnnouncedOutlivesLink) {
            return;
        }
        self.announced = BlockSet::default();
    }

    pub fn is_clean(&self, region: RegionIndex) -> bool {
        !self.pending.has_region(region)
            && !self.in_flight.contains_key(&region)
            && !self.acknowledged.has_region(region)
            && !self.covered.iter().any(|(_, set)| set.has_region(region))
    }

    pub fn initial_bytes(&self) -> u64 {
        self.initial_blocks * BLOCK_BYTES
    }

    /// Bytes of `initial` that are not done yet.
    pub fn initial_left_bytes(&self) -> u64 {
        self.initial.bytes()
    }

    /// The range may differ from now on.
    pub fn mark(&mut self, range: ByteRange) {
        self.pending.mark_range(range);
    }

    /// The range reads as zero from now on: blocks that never reached the other side need not go there any more.
    pub fn mark_zeroed(&mut self, range: ByteRange) {
        for (extent, part) in range.block_aligned().by_extent() {
            let mask = part.block_mask();
            let there = self.reached.as_ref().map_or(mask, |reached| reached.get(extent).and(mask));
            self.forget(extent, mask.without(there));
            self.pending.mark(extent, there);
        }
    }

    /// The range is known to be equal at the other side, durably.
    pub fn found_equal(&mut self, range: ByteRange) {
        self.initial.remove_range(range);
    }

    /// Clears the extent's dirty bits and puts its blocks in flight, by what they hold now. `held` are the blocks
    /// that hold data. Blocks that read as zero at both sides cost nothing.
    pub fn depart_extent(&mut self, extent: ExtentIndex, held: BlockMask) -> Taken {
        let dirty =
            if is_planted(Bug::DirtyClearedAfterRead) { self.pending.get(extent) } else { self.pending.take(extent) };
        let data = dirty.and(held);
        let empty = dirty.without(held);
        let zero = self.reached.as_ref().map_or(empty, |reached| reached.get(extent).and(empty));
        if !is_planted(Bug::SentStaysAnnounced) {
            self.announced.take(extent);
        }
        self.forget(extent, empty.without(zero));
        if let Some(reached) = &mut self.reached {
            reached.mark(extent, data);
        }
        self.add_in_flight(extent.region(), u64::from(data.with(zero).count()));
        Taken { data, zero }
    }

    /// The flight of a range that [`Ledger::depart_extent`] has put in flight.
    pub fn flight(&self, range: ByteRange) -> Flight {
        Flight { range, lap: self.lap }
    }

    /// Puts all of the range in flight: it is sent with the content it has from now on.
    pub fn depart_range(&mut self, range: ByteRange) -> Flight {
        self.pending.remove_range(range);
        self.announced.remove_range(range);
        if let Some(reached) = &mut self.reached {
            reached.mark_range(range);
        }
        for (region, part) in range.block_aligned().by_region() {
            self.add_in_flight(region, part.len / BLOCK_BYTES);
        }
        self.flight(range)
    }

    /// The other side has acknowledged the range, or an error came and it is dirty again.
    pub fn arrived(&mut self, flight: Flight, acknowledged: bool) {
        let range = flight.range.block_aligned();
        for (region, part) in range.by_region() {
            self.take_in_flight(region, part.len / BLOCK_BYTES);
        }
        if acknowledged && flight.lap == self.lap {
            if is_planted(Bug::DirtyClearedAfterRead) {
                self.pending.remove_range(range);
            }
            if !is_planted(Bug::CleanWithoutFlush) {
                self.acknowledged.mark_range(range);
            }
            self.initial.remove_range(range);
        } else if !is_planted(Bug::SendErrorNotMarked) {
            self.pending.mark_range(range);
        }
    }

    /// A flush is put on the stream; the number is for [`Ledger::flushed`].
    pub fn flush_sent(&mut self) -> u64 {
        self.flushes += 1;
        if !self.acknowledged.is_empty() {
            self.covered.push_back((self.flushes, std::mem::take(&mut self.acknowledged)));
        }
        self.flushes
    }

    /// A flush succeeded. One that fails needs no telling: a later one covers what it would have covered.
    pub fn flushed(&mut self, number: u64) {
        while self.covered.front().is_some_and(|(flush, _)| *flush <= number) {
            self.covered.pop_front();
        }
    }

    /// The other side is another instance than before: what it had not flushed may be lost.
    pub fn instance_changed(&mut self) {
        self.lap += 1;
        self.forget_announced();
        self.pending.absorb(std::mem::take(&mut self.acknowledged));
        for (_, set) in std::mem::take(&mut self.covered) {
            self.pending.absorb(set);
        }
    }

    /// The other side has these blocks and this side has not: nothing of them is to be sent.
    pub fn only_there(&mut self, extent: ExtentIndex, mask: BlockMask) {
        self.forget(extent, mask);
    }

    /// These blocks are equal without being sent: they read as zero and never reached the other side.
    fn forget(&mut self, extent: ExtentIndex, mask: BlockMask) {
        self.pending.remove(extent, mask);
        self.announced.remove(extent, mask);
        self.initial.remove(extent, mask);
    }

    fn add_in_flight(&mut self, region: RegionIndex, blocks: u64) {
        if blocks > 0 {
            *self.in_flight.entry(region).or_default() += blocks;
            self.in_flight_blocks += blocks;
        }
    }

    fn take_in_flight(&mut self, region: RegionIndex, blocks: u64) {
        let left = self.in_flight.get_mut(&region).expect("what arrives has departed");
        *left -= blocks;
        self.in_flight_blocks -= blocks;
        if *left == 0 {
            self.in_flight.remove(&region);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_base::units::EXTENT_BYTES;

    const EXTENT: ExtentIndex = ExtentIndex(3);
    const RANGE: ByteRange = ByteRange { offset: 3 * EXTENT_BYTES, len: EXTENT_BYTES };

    fn sent(ledger: &mut Ledger) -> Flight {
        ledger.mark(RANGE);
        let taken = ledger.depart_extent(EXTENT, BlockMask::FULL);
        assert_eq!(taken, Taken { data: BlockMask::FULL, zero: BlockMask::EMPTY });
        ledger.flight(RANGE)
    }

    #[test]
    fn only_a_flush_sent_after_the_acknowledgement_makes_clean() {
        let mut ledger = Ledger::default();
        let flight = sent(&mut ledger);
        let early = ledger.flush_sent();
        ledger.arrived(flight, true);
        ledger.flushed(early);
        assert!(ledger.is_sent() && !ledger.is_clean(RegionIndex(0)));
        let late = ledger.flush_sent();
        assert!(!ledger.is_clean(RegionIndex(0)));
        ledger.flushed(late);
        assert!(ledger.is_clean(RegionIndex(0)));
    }

    #[test]
    fn a_later_flush_covers_what_a_failed_one_did_not() {
        let mut ledger = Ledger::default();
        let flight = sent(&mut ledger);
        ledger.arrived(flight, true);
        let _failed = ledger.flush_sent();
        let second = ledger.flush_sent();
        ledger.flushed(second);
        assert!(ledger.is_clean(RegionIndex(0)));
    }

    #[test]
    fn another_instance_brings_the_unflushed_back() {
        let mut ledger = Ledger::default();
        let (first, second) = (sent(&mut ledger), sent(&mut ledger));
        ledger.arrived(first, true);
        let flush = ledger.flush_sent();
        ledger.instance_changed();
        ledger.flushed(flush);
        assert_eq!(ledger.pending().bytes(), EXTENT_BYTES);
        let _ = ledger.depart_extent(EXTENT, BlockMask::FULL);
        ledger.arrived(second, true);
        assert_eq!(ledger.pending().bytes(), EXTENT_BYTES, "an acknowledgement of the old instance counts for nothing");
    }

    #[test]
    fn an_error_marks_again() {
        let mut ledger = Ledger::default();
        let flight = sent(&mut ledger);
        assert!(ledger.pending().is_empty());
        ledger.arrived(flight, false);
        assert_eq!(ledger.pending().get(EXTENT), BlockMask::FULL);
    }

    #[test]
    fn zeros_that_never_reached_an_empty_side_cost_nothing() {
        let mut ledger = Ledger::for_empty();
        ledger.begin_with(EXTENT, BlockMask(0xff), true);
        ledger.mark_zeroed(ByteRange { len: EXTENT_BYTES / 4, ..RANGE });
        assert_eq!(ledger.pending().get(EXTENT), BlockMask(0xf0));
        assert_eq!((ledger.initial_bytes(), ledger.initial_left_bytes()), (8 * BLOCK_BYTES, 4 * BLOCK_BYTES));
        assert_eq!(ledger.depart_extent(EXTENT, BlockMask(0x30)), Taken { data: BlockMask(0x30), zero: BlockMask(0) });
        ledger.mark_zeroed(RANGE);
        assert_eq!(ledger.depart_extent(EXTENT, BlockMask(0)), Taken { data: BlockMask(0), zero: BlockMask(0x30) });
    }
}
