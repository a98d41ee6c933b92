//! What the volume should hold: for each block the versions that could be read or could survive a crash.
//!
//! ```text
//!  versions   floor … completed … in flight
//!             │       │           └ issued, not answered: may or may not be there
//!             │       └ the last answered: what is read while nothing is in flight
//!             └ flushed: a crash leaves this one or any later
//! ```

use crate::{Finding, content::Content, ensure};
use drover_base::{
    ByteRange,
    units::{BLOCK_BYTES, REGION_BYTES},
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The history of one block.
#[derive(Clone, Debug)]
pub struct History {
    /// Number of the first of `versions`, the floor.
    first: u64,
    versions: VecDeque<Content>,
    /// Of the versions, the last so many are in flight.
    in_flight: usize,
    /// The version in flight may be long done: it is answered only when durable, or its request failed.
    may_be_done: bool,
}

impl Default for History {
    fn default() -> Self {
        Self { first: 0, versions: VecDeque::from([Content::zero()]), in_flight: 0, may_be_done: false }
    }
}

impl History {
    fn completed(&self) -> u64 {
        self.first + (self.versions.len() - 1 - self.in_flight) as u64
    }

    pub fn current(&self) -> &Content {
        &self.versions[self.versions.len() - 1 - self.in_flight]
    }

    pub fn latest(&self) -> &Content {
        self.versions.back().expect("there is always a version")
    }

    /// Whether the block may hold `content` though its region is not active.
    pub fn is_settled(&self, content: &Content) -> bool {
        content == self.current() || self.may_be_done && content == self.latest()
    }

    fn since(&self, number: u64) -> impl Iterator<Item = &Content> {
        self.versions.iter().skip(number.saturating_sub(self.first) as usize)
    }

    fn raise_floor(&mut self, number: u64) {
        while self.first < number && self.versions.len() > 1 + self.in_flight {
            self.versions.pop_front();
            self.first += 1;
        }
    }
}

/// The completed version of each block, at one moment. Blocks not named were never written.
#[derive(Clone, Debug, Default)]
pub struct Moment(BTreeMap<u64, (u64, Content)>);

/// A snapshot: what each block may hold in it. Blocks not named hold zeros.
pub type Frozen = BTreeMap<u64, BTreeSet<Content>>;

/// What may be known of a snapshot's name after a crash.
#[derive(Clone, Debug)]
pub enum Named {
    /// Its creation is in flight: what it would hold if it ended now is made when asked.
    Coming(Moment),
    There(Frozen),
    /// Its deletion is in flight.
    Going(Frozen),
}

#[derive(Clone, Debug, Default)]
pub struct Model {
    blocks: BTreeMap<u64, History>,
    pub snapshots: BTreeMap<String, Named>,
    /// How large the volume may be; one, but while it changes.
    pub sizes: BTreeSet<u64>,
    /// The same of snapshots, by name.
    pub snapshot_sizes: BTreeMap<String, BTreeSet<u64>>,
    /// A rollback is in flight: it changes regions at once, whole, without making them active.
    pub is_rolling_back: bool,
}

/// Blocks that the range touches.
pub fn blocks(range: ByteRange) -> std::ops::Range<u64> {
    range.offset / BLOCK_BYTES..range.end().div_ceil(BLOCK_BYTES)
}

impl Model {
    pub fn history(&self, block: u64) -> History {
        self.blocks.get(&block).cloned().unwrap_or_default()
    }

    /// Blocks with a history.
    pub fn touched(&self) -> Vec<u64> {
        self.blocks.keys().copied().collect()
    }

    /// A write of `data` is issued.
    pub fn begin_write(&mut self, offset: u64, data: &[u8], fua: bool) {
        let range = ByteRange { offset, len: data.len() as u64 };
        for block in blocks(range) {
            let start = (block * BLOCK_BYTES).max(range.offset);
            let end = ((block + 1) * BLOCK_BYTES).min(range.end());
            let bytes = &data[(start - offset) as usize..(end - offset) as usize];
            let history = self.blocks.entry(block).or_default();
            let content = history.latest().overwritten((start % BLOCK_BYTES) as usize, bytes);
            history.versions.push_back(content);
            history.in_flight += 1;
            history.may_be_done = fua;
        }
    }

    /// The write of the range was answered with success.
    pub fn end(&mut self, range: ByteRange) {
        for block in blocks(range) {
            self.blocks.entry(block).or_default().in_flight -= 1;
        }
    }

    /// A request on the range failed: some of it may have been stored.
    pub fn failed(&mut self, range: ByteRange) {
        for block in blocks(range) {
            self.blocks.entry(block).or_default().may_be_done = true;
        }
    }

    /// A request on the range failed, so it is open what is there: `now` was read. It counts as completed.
    pub fn settle(&mut self, block: u64, now: &Content) -> Result<(), Finding> {
        let history = self.blocks.entry(block).or_default();
        let allowed: Vec<Content> = history.since(history.completed()).cloned().collect();
        ensure!(allowed.contains(now), "block {block} reads {now:?} after a failure, not one of {allowed:?}");
        history.versions.push_back(now.clone());
        history.in_flight = 0;
        Ok(())
    }

    /// A snapshot of this name is begun.
    pub fn begin_snapshot(&mut self, name: &str) -> Moment {
        let moment = self.moment();
        self.snapshots.insert(name.into(), Named::Coming(moment.clone()));
        self.snapshot_sizes.insert(name.into(), self.sizes.clone());
        moment
    }

    /// The volume is to become that large; a snapshot that is being made may still get the former size.
    pub fn begin_grow(&mut self, size_bytes: u64) {
        self.sizes.insert(size_bytes);
        for (name, _) in self.snapshots.iter().filter(|(_, named)| matches!(named, Named::Coming(_))) {
            self.snapshot_sizes.entry(name.clone()).or_default().insert(size_bytes);
        }
    }

    /// Now, for a flush or a read that begins.
    pub fn moment(&self) -> Moment {
        let now = |(block, history): (&u64, &History)| (*block, (history.completed(), history.current().clone()));
        Moment(self.blocks.iter().map(now).collect())
    }

    /// A flush that began at `moment` was answered with success.
    pub fn flushed(&mut self, moment: &Moment) {
        for (block, (number, _)) in &moment.0 {
            self.blocks.entry(*block).or_default().raise_floor(*number);
        }
    }

    /// A write with FUA was answered: its own blocks are durable, as of now.
    pub fn flushed_range(&mut self, range: ByteRange) {
        for block in blocks(range) {
            let history = self.blocks.entry(block).or_default();
            history.raise_floor(history.completed());
        }
    }

    /// Whether a read that began at `moment` and ends now may see `bytes` at `at` in the block.
    pub fn check_read(&self, moment: &Moment, block: u64, at: usize, bytes: &[u8]) -> Result<(), Finding> {
        let (number, before) = moment.0.get(&block).cloned().unwrap_or((0, Content::zero()));
        let history = self.history(block);
        let is = |version: &Content| version.bytes()[at..at + bytes.len()] == *bytes;
        let is_allowed = is(&before) || history.since(number).any(is);
        let shown = Content::zero().overwritten(at, bytes);
        ensure!(is_allowed, "block {block} reads {shown:?}; it held {before:?}, now {:?}", history.versions);
        Ok(())
    }

    /// What a snapshot that began at `moment` and ends now holds.
    pub fn frozen_since(&self, moment: &Moment) -> Frozen {
        let frozen = |(block, history): (&u64, &History)| {
            let (number, before) = moment.0.get(block).cloned().unwrap_or((0, Content::zero()));
            let contents = history.since(number).cloned().chain([before]).collect();
            (*block, contents)
        };
        self.blocks.iter().map(frozen).collect()
    }

    /// What a snapshot may hold, whatever of it is in flight.
    pub fn frozen(&self, named: &Named) -> Frozen {
        match named {
            Named::Coming(moment) => self.frozen_since(moment),
            Named::There(frozen) | Named::Going(frozen) => frozen.clone(),
        }
    }

    /// A rollback to `frozen` is issued: each block may become what it is there.
    pub fn begin_rollback(&mut self, frozen: &Frozen) {
        self.is_rolling_back = true;
        let all: BTreeSet<u64> = self.blocks.keys().chain(frozen.keys()).copied().collect();
        for block in all {
            let zero = BTreeSet::from([Content::zero()]);
            let history = self.blocks.entry(block).or_default();
            for content in frozen.get(&block).unwrap_or(&zero) {
                history.versions.push_back(content.clone());
                history.in_flight += 1;
            }
        }
    }

    /// The rollback was answered; this is what the block was found to hold. It is durable.
    pub fn end_rollback(&mut self, block: u64, now: &Content) {
        self.is_rolling_back = false;
        let history = self.blocks.entry(block).or_default();
        history.first += history.versions.len() as u64;
        history.versions = VecDeque::from([now.clone()]);
        history.in_flight = 0;
    }

    /// Whether a crash now may leave `content`.
    pub fn check_survivor(&self, block: u64, content: &Content) -> Result<(), Finding> {
        let history = self.history(block);
        let is_allowed = history.versions.contains(content);
        ensure!(is_allowed, "block {block} holds {content:?} after a crash, not one of {:?}", history.versions);
        Ok(())
    }

    /// The volume was opened after a crash and found to hold `content`.
    pub fn recovered(&mut self, contents: &BTreeMap<u64, Content>) {
        self.blocks.clear();
        self.is_rolling_back = false;
        for (block, content) in contents {
            let history = History { versions: VecDeque::from([content.clone()]), ..History::default() };
            self.blocks.insert(*block, history);
        }
    }

    /// The volume was reopened while it ran: what was not flushed may have gone; what is there is durable.
    pub fn reopened(&mut self, block: u64, now: &Content) -> Result<(), Finding> {
        self.check_survivor(block, now)?;
        self.end_rollback(block, now);
        Ok(())
    }

    /// The volume was opened, and is that large.
    pub fn opened_with(&mut self, size_bytes: u64) -> Result<(), Finding> {
        ensure!(self.sizes.contains(&size_bytes), "the volume has {size_bytes} bytes, not one of {:?}", self.sizes);
        self.sizes = [size_bytes].into();
        Ok(())
    }

    /// The volume went back to the snapshot, and is that large.
    pub fn went_back_to(&mut self, name: &str, size_bytes: u64) -> Result<(), Finding> {
        let sizes = &self.snapshot_sizes[name];
        ensure!(sizes.contains(&size_bytes), "snapshot {name} has {size_bytes} bytes, not one of {sizes:?}");
        self.snapshot_sizes.insert(name.into(), [size_bytes].into());
        self.sizes = [size_bytes].into();
        Ok(())
    }

    /// The volume was reopened and has these snapshots: what was in flight of them is decided.
    pub fn resolve_names(&mut self, names: &BTreeSet<String>) -> Result<(), Finding> {
        for (name, named) in std::mem::take(&mut self.snapshots) {
            if names.contains(&name) {
                self.snapshots.insert(name, Named::There(self.frozen(&named)));
            } else {
                ensure!(!matches!(named, Named::There(_)), "snapshot {name} is gone");
            }
        }
        Ok(())
    }
}

/// The region of a block.
pub fn region(block: u64) -> u64 {
    block * BLOCK_BYTES / REGION_BYTES
}
