//! What a gateway's clients were told is written and the holder may still lose: acknowledged, not yet flushed.
//!
//! Invariants
//! - Entries stand in the order of their acknowledgements. Mutations that overlap are never in flight together
//!   (`gateway`), so for each block this is the order in which they were applied.
//! - All entries are of one term, and were acknowledged by one instance of the holder or are known to be applied there.
//! - A mutation that was durable on its own (FUA) stands here too while anything does: an older entry replayed over
//!   it would undo it.
//! - So does, over what it was sent to change, a mutation that was not answered: it may have been applied, shown to others
//!   and flushed by them.

use bytes::Bytes;
use drover_base::limits::REPLAY_LOG_BYTES_MAX;
use drover_base::units::BLOCK_BYTES;
use drover_base::{ByteRange, InstanceId};
use drover_wire::peer::{LogOrigin, Operation, Payload};
use std::collections::{BTreeMap, VecDeque};

/// What an entry costs beside its data.
const ENTRY_BYTES: u64 = 64;

#[derive(Clone, Debug)]
pub(crate) enum Mutation {
    Write { offset: u64, data: Bytes },
    Zero { range: ByteRange, may_unmap: bool },
    Trim { range: ByteRange },
}

impl Mutation {
    pub fn range(&self) -> ByteRange {
        match self {
            Self::Write { offset, data } => ByteRange { offset: *offset, len: data.len() as u64 },
            Self::Zero { range, .. } | Self::Trim { range } => *range,
        }
    }

    pub fn cost_bytes(&self) -> u64 {
        match self {
            Self::Write { data, .. } => data.len() as u64 + ENTRY_BYTES,
            Self::Zero { .. } | Self::Trim { .. } => ENTRY_BYTES,
        }
    }

    /// The bytes that it changes: a trim only whole blocks.
    fn changed(&self) -> ByteRange {
        let range = self.range();
        if !matches!(self, Self::Trim { .. }) {
            return range;
        }
        let start = range.offset.next_multiple_of(BLOCK_BYTES);
        let end = range.end() - range.end() % BLOCK_BYTES;
        ByteRange { offset: start, len: end.saturating_sub(start) }
    }

    /// What it makes of a part of what it changes.
    fn piece(&self, part: ByteRange) -> Self {
        match self {
            Self::Write { offset, data } => {
                let start = (part.offset - offset) as usize;
                Self::Write { offset: part.offset, data: data.slice(start..start + part.len as usize) }
            }
            Self::Zero { may_unmap, .. } => Self::Zero { range: part, may_unmap: *may_unmap },
            Self::Trim { .. } => Self::Zero { range: part, may_unmap: true },
        }
    }

    /// As a request that says it was acknowledged before.
    pub fn replay(&self) -> Operation {
        match self.clone() {
            Self::Write { offset, data } => {
                Operation::Write { offset, data: Payload::plain(data), fua: false, replay: true }
            }
            Self::Zero { range, may_unmap } => {
                Operation::Zero { range, may_unmap, fast_only: false, fua: false, replay: true }
            }
            Self::Trim { range } => Operation::Trim { range, fua: false, replay: true },
        }
    }
}

/// A place in the log: all entries before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mark(u64);

#[derive(Default)]
pub(crate) struct ReplayLog {
    entries: VecDeque<Mutation>,
    /// Number of the first entry.
    first: u64,
    bytes: u64,
    term: u64,
    instance: InstanceId,
}

impl ReplayLog {
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether mutations of `cost_bytes` more still fit.
    pub fn has_room(&self, cost_bytes: u64) -> bool {
        self.bytes + cost_bytes <= REPLAY_LOG_BYTES_MAX + ENTRY_BYTES
    }

    /// Whose acknowledgements these are; `None`: there are none.
    pub fn origin(&self) -> Option<LogOrigin> {
        (!self.is_empty()).then_some(LogOrigin { instance: self.instance, term: self.term })
    }

    /// `instance` has applied all that is in the log, and acknowledges what comes.
    pub fn belongs_to(&mut self, instance: InstanceId) {
        self.instance = instance;
    }

    pub fn push(&mut self, term: u64, mutation: Mutation, durable: bool) {
        if term > self.term || self.is_empty() {
            // What was acknowledged in an older term became durable when it ended.
            self.clear();
            self.term = term;
        }
        if term < self.term || durable && self.is_empty() {
            return;
        }
        self.bytes += mutation.cost_bytes();
        self.entries.push_back(mutation);
    }

    /// The mutation was sent and not answered. Where it changes what older entries changed, it is replayed over them;
    /// elsewhere nothing is: nobody was told that it is there.
    pub fn doubt(&mut self, mutation: &Mutation) {
        let range = mutation.changed();
        let mut older = Covered::default();
        for entry in self.entries.iter().map(Mutation::changed).filter(|entry| overlap(*entry, range)) {
            older.add(entry);
        }
        for (start, end) in older.0.into_iter().filter(|_| !range.is_empty()) {
            let (start, end) = (start.max(range.offset), end.min(range.end()));
            let piece = mutation.piece(ByteRange { offset: start, len: end - start });
            self.bytes += piece.cost_bytes();
            self.entries.push_back(piece);
        }
    }

    /// The place after the last entry.
    pub fn mark(&self) -> Mark {
        Mark(self.first + self.entries.len() as u64)
    }

    /// All entries before `mark` are durable.
    pub fn release(&mut self, mark: Mark) {
        while self.first < mark.0 {
            let Some(entry) = self.entries.pop_front() else { break };
            self.bytes -= entry.cost_bytes();
            self.first += 1;
        }
    }

    pub fn clear(&mut self) {
        self.release(self.mark());
    }

    /// What the entries come to, newest content only: pieces that do not overlap, so that their order does not matter
    /// and a replay that is cut off has put nothing old over anything newer.
    pub fn newest(&self) -> Vec<Mutation> {
        let mut covered = Covered::default();
        let mut pieces = Vec::new();
        for entry in self.entries.iter().rev() {
            let gaps = covered.add(entry.changed());
            pieces.extend(gaps.into_iter().map(|gap| entry.piece(gap)));
        }
        pieces
    }
}

/// Disjoint ranges that do not touch, as end by start.
#[derive(Default)]
struct Covered(BTreeMap<u64, u64>);

impl Covered {
    /// Adds the range; returns the parts of it that were not in there, ascending.
    fn add(&mut self, range: ByteRange) -> Vec<ByteRange> {
        let (mut start, mut end) = (range.offset, range.end());
        let touched: Vec<(u64, u64)> =
            self.0.range(..=end).rev().take_while(|(_, e)| **e >= start).map(|(s, e)| (*s, *e)).collect();
        let mut gaps = Vec::new();
        let mut at = range.offset;
        for (s, e) in touched.into_iter().rev() {
            if s > at {
                gaps.push(ByteRange { offset: at, len: s - at });
            }
            at = at.max(e);
            (start, end) = (start.min(s), end.max(e));
            self.0.remove(&s);
        }
        if at < range.end() {
            gaps.push(ByteRange { offset: at, len: range.end() - at });
        }
        if start < end {
            self.0.insert(start, end);
        }
        gaps
    }
}

pub(crate) fn overlap(a: ByteRange, b: ByteRange) -> bool {
    a.offset < b.end() && b.offset < a.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(offset: u64, len: usize) -> Mutation {
        Mutation::Write { offset, data: Bytes::from(vec![1; len]) }
    }

    #[test]
    fn a_flush_releases_what_was_acknowledged_before_it_was_sent() {
        let mut log = ReplayLog::default();
        log.push(1, write(0, 4096), false);
        let mark = log.mark();
        log.push(1, write(4096, 4096), false);
        log.release(mark);
        assert_eq!(log.newest().len(), 1);
        assert_eq!(log.newest()[0].range().offset, 4096);
        // A late answer to an older flush releases nothing more.
        log.release(mark);
        assert!(!log.is_empty());
        log.clear();
        assert_eq!(log.bytes(), 0);
    }

    /// W1 unflushed, W2 over it with FUA, the holder restarts: replaying W1 alone would undo a durable write.
    #[test]
    fn a_durable_write_over_an_unflushed_one_is_replayed_too() {
        let mut log = ReplayLog::default();
        log.push(1, write(0, 4096), true);
        assert!(log.is_empty(), "nothing older could undo it");
        log.push(1, write(0, 4096), false);
        log.push(1, write(0, 512), true);
        let lens: Vec<_> = log.newest().iter().map(|piece| piece.range().len).collect();
        assert_eq!(lens, [512, 4096 - 512]);
    }

    /// W1 unflushed, W2 over a part of it without an answer: either may be there, but W1 alone is not put over W2.
    #[test]
    fn what_was_not_answered_is_replayed_over_what_was_kept_and_nowhere_else() {
        let mut log = ReplayLog::default();
        log.doubt(&write(0, 4096));
        assert!(log.is_empty(), "nothing older could undo it");
        log.push(1, write(0, 4096), false);
        log.push(1, write(16_384, 4096), false);
        log.doubt(&Mutation::Write { offset: 2048, data: Bytes::from(vec![2; 16_384]) });
        log.doubt(&write(8192, 4096));
        let mut newest = log.newest();
        newest.sort_by_key(|piece| piece.range().offset);
        let told = newest.iter().map(|piece| match piece {
            Mutation::Write { offset, data } => (*offset, data.len(), data[0]),
            other => panic!("{other:?}"),
        });
        let expected = [(0, 2048, 1), (2048, 2048, 2), (16_384, 2048, 2), (18_432, 2048, 1)];
        assert_eq!(told.collect::<Vec<_>>(), expected);
        let mark = log.mark();
        log.release(mark);
        assert_eq!((log.bytes(), log.is_empty()), (0, true));
    }

    /// Against the entries carried out one after the other.
    #[test]
    fn the_newest_pieces_are_what_the_entries_come_to() {
        const LEN: u64 = 10 * BLOCK_BYTES;
        let apply = |content: &mut [u8], mutation: &Mutation| {
            let range = mutation.changed();
            let span = &mut content[range.offset as usize..range.end() as usize];
            match mutation {
                Mutation::Write { data, .. } => span.copy_from_slice(data),
                Mutation::Zero { .. } | Mutation::Trim { .. } => span.fill(0),
            }
        };
        let mut state = 1_u64;
        let mut below = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % bound
        };
        for _ in 0..200 {
            let (mut log, mut expected) = (ReplayLog::default(), vec![0xff; LEN as usize]);
            for number in 1..20 {
                let unit = [1, 512, BLOCK_BYTES][below(3) as usize];
                let len = 1 + below(3 * BLOCK_BYTES / unit);
                let range = ByteRange { offset: below(LEN / unit - len + 1) * unit, len: len * unit };
                let mutation = match below(4) {
                    0 => Mutation::Zero { range, may_unmap: false },
                    1 => Mutation::Trim { range },
                    _ => Mutation::Write { offset: range.offset, data: vec![number; range.len as usize].into() },
                };
                apply(&mut expected, &mutation);
                log.push(1, mutation, false);
            }
            let pieces = log.newest();
            let mut content = vec![0xff; LEN as usize];
            // In either order.
            pieces.iter().rev().for_each(|piece| apply(&mut content, piece));
            assert!(content == expected);
            for (at, piece) in pieces.iter().enumerate() {
                assert!(pieces[..at].iter().all(|other| !overlap(other.range(), piece.range())));
            }
        }
    }

    /// A higher term says that what was acknowledged before is durable, and maybe overwritten by others.
    #[test]
    fn a_log_is_of_one_term() {
        let mut log = ReplayLog::default();
        log.belongs_to(InstanceId(1));
        log.push(2, write(0, 4096), false);
        log.push(4, write(8192, 4096), false);
        // An answer that was overtaken.
        log.push(2, write(4096, 4096), false);
        let kept: Vec<_> = log.newest().iter().map(Mutation::range).collect();
        assert_eq!(kept, [write(8192, 4096).range()]);
        assert_eq!(log.origin(), Some(LogOrigin { instance: InstanceId(1), term: 4 }));
        log.clear();
        assert_eq!((log.origin(), log.bytes()), (None, 0));
    }

    #[test]
    fn the_largest_write_fits_an_empty_log_and_the_bound_holds() {
        let mut log = ReplayLog::default();
        assert!(log.has_room(write(0, drover_base::limits::REQUEST_BYTES_MAX as usize).cost_bytes()));
        while log.has_room(write(0, 1 << 20).cost_bytes()) {
            log.push(1, write(0, 1 << 20), false);
        }
        assert!(log.bytes() <= REPLAY_LOG_BYTES_MAX + ENTRY_BYTES);
    }
}
