//! What a gateway's clients were told is written and the holder may still lose: acknowledged, not yet flushed.
//!
//! Invariants
//! - Entries stand in the order of their acknowledgements. Mutations that overlap are never in flight together
//!   (`gateway`), so for each block this is the order in which they were applied.
//! - All entries were acknowledged, or replayed and acknowledged again, by one instance of the holder.
//! - A mutation that was durable on its own (FUA) stands here too while anything does: an older entry replayed over
//!   it would undo it.

use bytes::Bytes;
use drover_base::limits::REPLAY_LOG_BYTES_MAX;
use drover_base::{ByteRange, InstanceId};
use drover_wire::peer::{Operation, Payload};
use std::collections::VecDeque;

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
    instance: Option<InstanceId>,
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

    /// Whose acknowledgements these are.
    pub fn instance(&self) -> Option<InstanceId> {
        self.instance
    }

    /// `instance` has acknowledged all that is in the log.
    pub fn belongs_to(&mut self, instance: InstanceId) {
        self.instance = Some(instance);
    }

    pub fn push(&mut self, mutation: Mutation, durable: bool) {
        if durable && self.is_empty() {
            return;
        }
        self.bytes += mutation.cost_bytes();
        self.entries.push_back(mutation);
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

    /// The entries in order, as batches of at most `most` that do not overlap within a batch: those of one batch may
    /// be replayed at once.
    pub fn batches(&self, most: usize) -> Vec<Vec<Mutation>> {
        let mut batches: Vec<Vec<Mutation>> = Vec::new();
        for entry in &self.entries {
            let fits = |batch: &Vec<Mutation>| {
                batch.len() < most && !batch.iter().any(|other| overlap(other.range(), entry.range()))
            };
            match batches.last_mut().filter(|batch| fits(batch)) {
                Some(batch) => batch.push(entry.clone()),
                None => batches.push(vec![entry.clone()]),
            }
        }
        batches
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
        log.push(write(0, 4096), false);
        let mark = log.mark();
        log.push(write(4096, 4096), false);
        log.release(mark);
        assert_eq!(log.batches(8).len(), 1);
        assert_eq!(log.batches(8)[0][0].range().offset, 4096);
        // A late answer to an older flush releases nothing more.
        log.release(mark);
        assert!(!log.is_empty());
        log.clear();
        assert_eq!(log.bytes(), 0);
    }

    /// W1 unflushed, W2 over it with FUA, the holder restarts: replaying W1 alone would undo a durable write.
    #[test]
    fn a_durable_write_over_an_unflushed_one_is_replayed_after_it() {
        let mut log = ReplayLog::default();
        log.push(write(0, 4096), true);
        assert!(log.is_empty(), "nothing older could undo it");
        log.push(write(0, 4096), false);
        log.push(write(0, 512), true);
        let batches = log.batches(8);
        assert_eq!(batches.len(), 2);
        assert_eq!(batches[1][0].range().len, 512);
    }

    #[test]
    fn batches_keep_the_order_of_what_overlaps() {
        let mut log = ReplayLog::default();
        for offset in [0, 8192, 4096, 8192, 12_288] {
            log.push(write(offset, 4096), false);
        }
        log.push(Mutation::Trim { range: ByteRange { offset: 0, len: 16_384 } }, false);
        let sizes: Vec<_> = log.batches(8).iter().map(Vec::len).collect();
        assert_eq!(sizes, [3, 2, 1]);
        assert_eq!(log.batches(2).iter().map(Vec::len).max(), Some(2));
    }

    #[test]
    fn the_largest_write_fits_an_empty_log_and_the_bound_holds() {
        let mut log = ReplayLog::default();
        assert!(log.has_room(write(0, drover_base::limits::REQUEST_BYTES_MAX as usize).cost_bytes()));
        while log.has_room(write(0, 1 << 20).cost_bytes()) {
            log.push(write(0, 1 << 20), false);
        }
        assert!(log.bytes() <= REPLAY_LOG_BYTES_MAX + ENTRY_BYTES);
    }
}
