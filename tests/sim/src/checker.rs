//! What a read of a volume may return, judged by what its clients were told.
//!
//! The volume is a row of cells (blocks, or sectors), each a register. Every write carries a tag of its own, repeated
//! over the cell together with the cell's number, so that a torn or misplaced cell shows.
//!
//! A read may return a write *w* that had begun before the read ended, unless *w* was overwritten: another write
//! that surely took effect began after *w* ended and ended before the read began (linearizable registers).
//! A write surely took effect when it was acknowledged; in a cell also when a read that began after it ended has
//! returned it. A crash makes
//! the unflushed, acknowledged writes of the clients that did not survive it uncertain again: it may have lost each of them, by
//! itself, whatever was read before; what a flush that began after their answer has covered stays.
//!
//! Invariants: times are moments of one counter, one for each event; a write that is still under way has no end; an
//! uncertain write never overwrites, but can be overwritten.

mod content;
#[cfg(test)]
mod tests;

pub use content::{Content, Damage, fill, inspect};

use std::{collections::BTreeMap, fmt, ops::Range};

/// Zeros: what a volume holds at first, and what trims and zeroing write.
pub const ZERO: u64 = 0;

/// Writes of a cell above which those that no read can return any more are forgotten.
const PRUNE_ABOVE: usize = 24;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WriteId(usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlushId(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadId(u64);

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Acknowledged,
    /// It failed, or its answer was lost: it took effect before now or never will.
    Unknown,
}

#[derive(Clone, Debug)]
struct Write {
    client: u32,
    tag: u64,
    begun: u64,
    /// `None`: under way.
    ended: Option<u64>,
    /// Since when it is sure that it took effect.
    sure: Option<u64>,
    /// When a crash last made it uncertain: an answer to a read that began before may come from before, too.
    doubted: u64,
    /// Cells in which it was found since, while it was uncertain: a crash may leave a part of it.
    found: BTreeMap<u64, u64>,
    durable: bool,
    durable_at_end: bool,
}

/// The history of one volume.
pub struct History {
    cell_bytes: usize,
    now: u64,
    next_tag: u64,
    writes: Vec<Write>,
    /// Writes of each cell that reads may still return or that overwrite such, in order of their begin.
    cells: Vec<Vec<WriteId>>,
    /// Acknowledged, and covered by no flush.
    unflushed: Vec<WriteId>,
    flushes: BTreeMap<FlushId, ()>,
    reads: BTreeMap<ReadId, Range<u64>>,
}

/// A read returned what it must not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub cell: u64,
    pub found: Result<u64, Damage>,
    /// Tags it might have returned.
    pub legal: Vec<u64>,
    /// The writes of the cell, for people.
    pub history: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.found {
            Ok(tag) => write!(f, "cell {}: read tag {tag}, legal are {:?}", self.cell, self.legal)?,
            Err(damage) => write!(f, "cell {}: {damage}, legal are {:?}", self.cell, self.legal)?,
        }
        self.history.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

impl std::error::Error for Violation {}

impl History {
    /// A volume of `cells` cells of `cell_bytes` bytes, all zeros, durably. Cells are as large as the pieces that must not
    /// tear, or as small as the smallest write.
    pub fn new(cells: u64, cell_bytes: usize) -> Self {
        assert!(cell_bytes.is_multiple_of(content::LINE_BYTES));
        let zero = Write {
            client: 0,
            tag: ZERO,
            begun: 0,
            ended: Some(0),
            sure: Some(0),
            doubted: 0,
            found: BTreeMap::new(),
            durable: true,
            durable_at_end: true,
        };
        Self {
            cell_bytes,
            now: 1,
            next_tag: ZERO + 1,
            writes: vec![zero],
            cells: vec![vec![WriteId(0)]; cells as usize],
            unflushed: Vec::new(),
            flushes: BTreeMap::new(),
            reads: BTreeMap::new(),
        }
    }

    pub fn cell_bytes(&self) -> usize {
        self.cell_bytes
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// A client begins to write new content over `cells`; returns also that content.
    pub fn begin_write(&mut self, client: u32, cells: Range<u64>, fua: bool) -> (WriteId, Vec<u8>) {
        let tag = self.next_tag;
        self.next_tag += 1;
        let mut bytes = vec![0; (cells.end - cells.start) as usize * self.cell_bytes];
        for (cell, bytes) in (cells.start..).zip(bytes.chunks_exact_mut(self.cell_bytes)) {
            fill(bytes, cell, tag);
        }
        (self.begin(client, cells, tag, fua), bytes)
    }

    /// A client begins to trim or zero `cells`.
    pub fn begin_zero(&mut self, client: u32, cells: Range<u64>, fua: bool) -> WriteId {
        self.begin(client, cells, ZERO, fua)
    }

    fn begin(&mut self, client: u32, cells: Range<u64>, tag: u64, fua: bool) -> WriteId {
        let begun = self.tick();
        let id = WriteId(self.writes.len());
        for cell in cells.clone() {
            if self.cells[cell as usize].len() > PRUNE_ABOVE {
                self.prune(cell);
            }
            self.cells[cell as usize].push(id);
        }
        self.writes.push(Write {
            client,
            tag,
            begun,
            ended: None,
            sure: None,
            doubted: 0,
            found: BTreeMap::new(),
            durable: false,
            durable_at_end: fua,
        });
        id
    }

    pub fn end_write(&mut self, id: WriteId, outcome: Outcome) {
        let now = self.tick();
        let write = &mut self.writes[id.0];
        assert!(write.ended.is_none(), "a write ends once");
        write.ended = Some(now);
        if outcome == Outcome::Acknowledged {
            write.sure = Some(now);
            write.durable = write.durable_at_end;
            if !write.durable {
                self.unflushed.push(id);
            }
        }
    }

    pub fn begin_flush(&mut self) -> FlushId {
        let id = FlushId(self.tick());
        self.flushes.insert(id, ());
        id
    }

    /// A flush covers what was acknowledged, to any client, before it began.
    pub fn end_flush(&mut self, id: FlushId, succeeded: bool) {
        self.tick();
        assert!(self.flushes.remove(&id).is_some(), "a flush ends once");
        if !succeeded {
            return;
        }
        let writes = &mut self.writes;
        self.unflushed.retain(|write| {
            let write = &mut writes[write.0];
            write.durable |= write.sure.is_some() && write.ended.is_some_and(|ended| ended < id.0);
            !write.durable
        });
    }

    /// The node that served crashed. `lost` names the clients whose unflushed writes nobody replays: those that were
    /// connected to it, and those whose gateway died since; a gateway that comes back is a new client.
    pub fn crash(&mut self, lost: impl Fn(u32) -> bool) {
        let now = self.tick();
        for write in self.writes.iter_mut().filter(|write| !write.durable && lost(write.client)) {
            write.sure = None;
            write.doubted = now;
            write.found.clear();
        }
        let writes = &self.writes;
        self.unflushed.retain(|write| writes[write.0].sure.is_some());
    }

    pub fn begin_read(&mut self, cells: Range<u64>) -> ReadId {
        let id = ReadId(self.tick());
        self.reads.insert(id, cells);
        id
    }

    /// The read failed, and told nothing.
    pub fn abandon_read(&mut self, id: ReadId) {
        assert!(self.reads.remove(&id).is_some(), "a read ends once");
    }

    /// Judges what the read returned: exactly the bytes of its cells.
    pub fn end_read(&mut self, id: ReadId, bytes: &[u8]) -> Result<(), Violation> {
        self.tick();
        let cells = self.reads.remove(&id).expect("a read ends once");
        assert_eq!(bytes.len() as u64, (cells.end - cells.start) * self.cell_bytes as u64);
        for (cell, bytes) in cells.zip(bytes.chunks_exact(self.cell_bytes)) {
            let found = inspect(bytes, cell).map(Content::tag);
            self.check_read(cell, id.0, found)?;
        }
        Ok(())
    }

    /// Judges a read of one cell that began at `begun` and ended now.
    fn check_read(&mut self, cell: u64, begun: u64, found: Result<u64, Damage>) -> Result<(), Violation> {
        let legal = self.legal(cell, begun);
        let Some(seen) = legal.iter().copied().find(|id| Ok(self.writes[id.0].tag) == found) else {
            let mut tags: Vec<u64> = legal.iter().map(|id| self.writes[id.0].tag).collect();
            tags.dedup();
            let history = self.cells[cell as usize].iter().map(|id| format!("{:?}", self.writes[id.0])).collect();
            return Err(Violation { cell, found, legal: tags, history });
        };
        // Zeros have many writers: which of them was seen is not known.
        let write = &mut self.writes[seen.0];
        let since = |ended: u64| ended.max(write.doubted);
        if write.tag != ZERO && write.ended.is_some_and(|ended| since(ended) < begun) && write.sure.is_none() {
            write.found.entry(cell).or_insert(self.now);
        }
        Ok(())
    }

    /// The writes that a read of `cell` begun at `begun` and ending now may return.
    fn legal(&self, cell: u64, begun: u64) -> Vec<WriteId> {
        let writes = &self.cells[cell as usize];
        writes.iter().copied().filter(|write| !self.is_overwritten(cell, *write, begun, false)).collect()
    }

    /// Whether another write of the cell surely replaced `write` before `begun`; with `durably`, for ever.
    fn is_overwritten(&self, cell: u64, write: WriteId, begun: u64, durably: bool) -> bool {
        let writes = &self.cells[cell as usize];
        let Some(ended) = self.writes[write.0].ended else { return false };
        writes.iter().map(|later| &self.writes[later.0]).any(|later| {
            let sure = later.sure.or_else(|| later.found.get(&cell).copied());
            later.begun > ended && sure.is_some_and(|sure| sure < begun) && (later.durable || !durably)
        })
    }

    fn prune(&mut self, cell: u64) {
        let oldest_read = self.reads.keys().next().map_or(self.now, |id| id.0);
        let writes = self.cells[cell as usize].iter().copied();
        let kept = writes.filter(|write| !self.is_overwritten(cell, *write, oldest_read, true)).collect();
        self.cells[cell as usize] = kept;
    }
}
