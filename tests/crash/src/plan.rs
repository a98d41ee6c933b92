//! What a round of requests does, drawn from a seed.

use crate::{model::blocks, node::VOLUME_BYTES};
use drover_base::{
    ByteRange,
    units::{BLOCK_BYTES, EXTENT_BYTES, REGION_BYTES},
};
use drover_sim::runtime::Generator;
use std::{collections::BTreeSet, time::Duration};

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Read {
        range: ByteRange,
    },
    Write {
        range: ByteRange,
        serial: u64,
        fua: bool,
    },
    Zero {
        range: ByteRange,
        may_unmap: bool,
        fast_only: bool,
        fua: bool,
    },
    Trim {
        range: ByteRange,
        fua: bool,
    },
    Flush,
    Snapshot {
        name: String,
    },
    DeleteSnapshot {
        name: String,
    },
    Grow {
        size_bytes: u64,
    },
    /// From now on something fails.
    Fault(Fault),
}

/// What fails, after so many that do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Read {
        device: usize,
        good: u64,
    },
    Write {
        device: usize,
        good: u64,
    },
    /// And half of what it covered never becomes durable.
    Sync {
        device: usize,
        good: u64,
    },
    /// And every commit after it: the life ends with that.
    Commit {
        good: u64,
    },
}

/// A round: requests that run at once, each after a delay. Or one that wants the volume for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Round {
    Together(Vec<(Duration, Op)>),
    Rollback { name: String },
    Reopen,
}

/// What is likely in a run. Runs differ in it, so that each mixture gets its turn.
#[derive(Clone, Debug)]
pub struct Mixture {
    /// Extents that requests go to; few, so that they meet.
    pub extents: Vec<u64>,
    /// Chances in percent.
    pub trim: u64,
    pub snapshot: u64,
    pub rollback: u64,
    pub flush: u64,
    pub unaligned: u64,
    pub grow: u64,
    pub snapshots_most: usize,
    pub fault: u64,
}

impl Mixture {
    pub fn draw(random: &mut Generator) -> Self {
        let regions = random.between(1, VOLUME_BYTES / REGION_BYTES);
        let mut extents = BTreeSet::new();
        for _ in 0..random.between(2, 12) {
            let region = random.below(regions) * REGION_BYTES / EXTENT_BYTES;
            let extent = region + *random.pick(&[0, 1, 2, 3, 30, 62, 63]);
            extents.insert(extent);
        }
        Self {
            extents: extents.into_iter().collect(),
            trim: random.between(5, 50),
            snapshot: random.between(0, 40),
            rollback: random.between(0, 12),
            flush: random.between(10, 80),
            unaligned: random.between(0, 40),
            grow: random.between(0, 15),
            snapshots_most: random.between(1, 4) as usize,
            // In one run of three; in the others every error is a finding.
            fault: *random.pick(&[0, 0, 20]),
        }
    }
}

/// Draws rounds. Keeps track of the snapshots that exist and the names used.
pub struct Planner {
    pub random: Generator,
    pub mixture: Mixture,
    serial: u64,
    snapshots_named: u64,
    /// Of the volume when the round begins.
    size_bytes: u64,
}

impl Planner {
    /// Numbers of writes and names of snapshots go on from `life`, so that none is used twice in a run.
    pub fn new(mut random: Generator, life: u64) -> Self {
        let mixture = Mixture::draw(&mut random);
        Self { random, mixture, serial: life << 16, snapshots_named: life << 16, size_bytes: VOLUME_BYTES }
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.random.below(100) < chance
    }

    /// The next round, given the snapshots that exist and how large the volume is.
    pub fn round(&mut self, snapshots: &[String], size_bytes: u64) -> Round {
        self.size_bytes = size_bytes;
        if !snapshots.is_empty() && self.percent(self.mixture.rollback) {
            return Round::Rollback { name: self.random.pick(snapshots).clone() };
        }
        if self.percent(3) {
            return Round::Reopen;
        }
        let mut ops = Vec::new();
        let mut taken = BTreeSet::new();
        for _ in 0..self.random.between(1, 8) {
            if let Some(op) = self.change(&mut taken) {
                ops.push(op);
            }
            if self.percent(60) {
                ops.push(Op::Read { range: self.range() });
            }
        }
        if self.percent(self.mixture.flush) {
            ops.push(Op::Flush);
        }
        if self.percent(self.mixture.snapshot) {
            ops.push(self.snapshot(snapshots));
        }
        if size_bytes < VOLUME_BYTES && self.percent(self.mixture.grow) {
            let blocks = self.random.between(1, (VOLUME_BYTES - size_bytes) / BLOCK_BYTES);
            ops.push(Op::Grow { size_bytes: size_bytes + blocks * BLOCK_BYTES });
        }
        if self.percent(self.mixture.fault) {
            ops.push(Op::Fault(self.fault()));
        }
        let spread = *self.random.pick(&[1, 500, 3_000]);
        let delayed = ops.into_iter().map(|op| (Duration::from_micros(self.random.below(spread)), op));
        Round::Together(delayed.collect())
    }

    fn fault(&mut self) -> Fault {
        let device = self.random.below(2) as usize;
        let good = self.random.below(4);
        match self.random.below(10) {
            0 => Fault::Commit { good },
            1 | 2 => Fault::Read { device, good },
            3..6 => Fault::Write { device, good },
            _ => Fault::Sync { device, good },
        }
    }

    fn snapshot(&mut self, snapshots: &[String]) -> Op {
        if snapshots.len() >= self.mixture.snapshots_most || (!snapshots.is_empty() && self.percent(30)) {
            return Op::DeleteSnapshot { name: self.random.pick(snapshots).clone() };
        }
        self.snapshots_named += 1;
        Op::Snapshot { name: format!("s{}", self.snapshots_named) }
    }

    /// A change of blocks that no other change of the round touches.
    fn change(&mut self, taken: &mut BTreeSet<u64>) -> Option<Op> {
        let range = self.range();
        if blocks(range).any(|block| taken.contains(&block)) {
            return None;
        }
        taken.extend(blocks(range));
        let fua = self.percent(15);
        if !self.percent(self.mixture.trim) {
            self.serial += 1;
            return Some(Op::Write { range, serial: self.serial, fua });
        }
        if self.percent(50) {
            return Some(Op::Trim { range, fua });
        }
        let fast_only = self.percent(20);
        Some(Op::Zero { range, may_unmap: self.percent(70), fast_only, fua })
    }

    /// A range in one of the mixture's extents, or beginning there.
    fn range(&mut self) -> ByteRange {
        let extent = *self.random.pick(&self.mixture.extents.clone()) % (self.size_bytes / EXTENT_BYTES);
        let block = self.random.below(16);
        let start = extent * EXTENT_BYTES + block * BLOCK_BYTES;
        let range = match self.random.below(10) {
            0 => ByteRange { offset: extent * EXTENT_BYTES, len: EXTENT_BYTES },
            1 => ByteRange { offset: start, len: self.random.between(1, 40) * BLOCK_BYTES },
            2..5 => ByteRange { offset: start, len: BLOCK_BYTES },
            _ => ByteRange { offset: start, len: self.random.between(1, 16 - block) * BLOCK_BYTES },
        };
        let range = ByteRange { len: range.len.min(self.size_bytes - range.offset), ..range };
        if !self.percent(self.mixture.unaligned) {
            return range;
        }
        let cut = self.random.below(range.len.min(6000));
        let len = self.random.between(1, range.len - cut);
        ByteRange { offset: range.offset + cut, len }
    }
}
