//! The first time over: a region at a time, its chunks offered before they are sent.
//!
//! ```text
//!  few extents: lock ── clear their bits, read ── unlock ─┐
//!  the next few …                                        ─┴─► cut, hash ──► offer ──► answer ──► compress what is lacking,
//!                                                             (pool)                             prove the rest (pool)
//!                                                                                                    │
//!                                                            assembled by the other side ◄── put on the stream
//! ```
//! Invariants
//! - No lock is held but for the read of a few extents. `unlocked` counts the run from before its first read until all of it
//!   is on the stream: no write is mirrored meanwhile. What is written over it is marked, and sent after it.
//! - An offer changes nothing. What follows from its answer is on the stream like any copy, in the order of the calls.
//! - What the other side could not assemble is marked again, and the next round, which offers nothing, sends it.
//! - Chunks are offered only where that pays: always where the other side has had some lately; else not where the link is
//!   faster than compression, and seldom where it has had none at all.

use super::copy::{Load, Reply, Run};
use super::{Sender, Up};
use crate::compress::{Piece, squeeze, squeezed, stretches};
use crate::ledger::Flight;
use crate::level::Level;
use drover_base::planted::{Bug, is_planted};
use drover_base::units::EXTENT_BYTES;
use drover_base::{ByteRange, IoError};
use drover_disk::Buffer;
use drover_store::{NAMED_BYTES_MIN, chunk_digest, chunk_proof, cut};
use drover_wire::peer::{Answer, Assembly, CHUNKS_MAX, ChunkName, Offered, Operation, Part, Payload};
use std::rc::Rc;

/// Regions whose offers found nothing, after which only some are offered.
const MISSES_MAX: u32 = 16;
/// One in so many: what its offer costs is nothing then.
const SELDOM: u32 = 8;

/// Whether offering pays.
pub struct Offers {
    enabled: bool,
    has_found: bool,
    /// Since one found something.
    misses: u32,
    skipped: u32,
}

impl Offers {
    pub fn new(enabled: bool) -> Self {
        Self { enabled, has_found: false, misses: 0, skipped: 0 }
    }

    fn is_due(&mut self, level: Level) -> bool {
        let is_lucky = self.misses < MISSES_MAX;
        // Finding costs less than compressing, too: that the pool is busy is no reason to stop.
        if !self.enabled || level == Level::Raw && !(self.has_found && is_lucky) {
            return false;
        }
        if is_lucky {
            return true;
        }
        self.skipped = (self.skipped + 1) % SELDOM;
        self.skipped == 0
    }

    fn answered(&mut self, has_found: bool) {
        self.has_found |= has_found;
        self.misses = if has_found { 0 } else { self.misses.saturating_add(1) };
    }
}

/// Data without zeros worth telling, and how it is cut; not cut: not to be offered.
struct Stretch {
    offset: u64,
    data: Buffer,
    chunks: Vec<ChunkName>,
}

/// What a region holds, as it goes on the stream.
#[derive(Default)]
struct Content {
    stretches: Vec<Stretch>,
    zero: Vec<ByteRange>,
}

/// A frame of it.
enum Frame {
    Piece(Piece),
    Assembly(Assembly),
}

impl Content {
    /// Of what was read, in ascending order. Arithmetic for the pool.
    fn of(read: Vec<(u64, Buffer)>, is_cut: bool) -> Self {
        let mut content = Self::default();
        for (offset, data) in joined(read) {
            for (range, data) in stretches(offset, data) {
                let Some(data) = data else {
                    content.zero.push(range);
                    continue;
                };
                let is_cut = is_cut && data.len() >= NAMED_BYTES_MIN;
                let chunks = if is_cut { names(&data) } else { Vec::new() };
                content.stretches.push(Stretch { offset: range.offset, data, chunks });
            }
        }
        content
    }

    fn chunks(&self) -> Vec<ChunkName> {
        let offered = |chunk: &&ChunkName| chunk.len as usize >= NAMED_BYTES_MIN;
        self.stretches.iter().flat_map(|stretch| &stretch.chunks).filter(offered).copied().collect()
    }

    /// Compressed, but for what the other side has. Arithmetic for the pool.
    fn frames(self, offered: Option<Offered>, level: Level) -> Vec<Frame> {
        let zeros = self.zero.into_iter().map(|range| Frame::Piece(Piece::Zero(range)));
        let (nonce, held) = offered.map(|offered| (offered.nonce, offered.held)).unwrap_or_default();
        let mut held = held.into_iter();
        let data = self.stretches.into_iter().map(|stretch| stretch.frame(&nonce, &mut held, level));
        data.chain(zeros).collect()
    }
}

impl Stretch {
    fn frame(self, nonce: &[u8; 32], held: &mut impl Iterator<Item = bool>, level: Level) -> Frame {
        if self.chunks.is_empty() {
            return Frame::Piece(Piece::Data { offset: self.offset, payload: squeeze(self.data, level) });
        }
        let (mut parts, mut lacking) = (Vec::with_capacity(self.chunks.len()), Vec::new());
        let mut at = 0;
        for chunk in self.chunks {
            let content = &self.data[at..at + chunk.len as usize];
            at += chunk.len as usize;
            let is_held = chunk.len as usize >= NAMED_BYTES_MIN && held.next().unwrap_or(false);
            if !is_held {
                lacking.extend_from_slice(content);
            }
            parts.push(Part { chunk, proof: is_held.then(|| chunk_proof(nonce, content)) });
        }
        let data = squeezed(&lacking, level).unwrap_or_else(|| Payload::plain(lacking.into()));
        Frame::Assembly(Assembly { offset: self.offset, parts, data })
    }
}

fn names(data: &[u8]) -> Vec<ChunkName> {
    let mut at = 0;
    let name = |len: usize| {
        let digest = chunk_digest(&data[at..at + len]);
        at += len;
        ChunkName { digest, len: len as u32 }
    };
    cut(data).into_iter().map(name).collect()
}

/// Neighbours in one.
fn joined(read: Vec<(u64, Buffer)>) -> Vec<(u64, Buffer)> {
    let mut groups: Vec<(u64, u64, Vec<Buffer>)> = Vec::new();
    for (offset, data) in read {
        let end = offset + data.len() as u64;
        match groups.last_mut() {
            Some((_, last, pieces)) if *last == offset => {
                *last = end;
                pieces.push(data);
            }
            _ => groups.push((offset, end, vec![data])),
        }
    }
    groups.into_iter().map(|(offset, _, pieces)| (offset, Buffer::join(pieces))).collect()
}

impl Sender {
    pub(super) async fn launch_bulk(self: &Rc<Self>, run: &Run) -> Vec<(Flight, u64, Reply)> {
        let (load, read) = self.read_bulk(run).await;
        let replies = match read {
            Ok(read) => self.put_bulk(run, &load, read).await,
            Err(error) => {
                self.not_sent(&load);
                self.give_back(run.bytes, 0);
                if let Some(error) = error {
                    self.trouble_here(&error);
                }
                Vec::new()
            }
        };
        let mut state = self.state.borrow_mut();
        state.copy.unlocked -= 1;
        state.mirror_if_calm();
        replies
    }

    /// What was loaded, and read of it if all could be; an error is `None` where it is only that nothing may be sent.
    async fn read_bulk(&self, run: &Run) -> (Load, Result<Vec<(u64, Buffer)>, Option<IoError>>) {
        let (mut all, mut read) = (Load::default(), Vec::new());
        let mut at = 0;
        while at < run.extents {
            let part = run.part(at);
            at += part.extents;
            let range = ByteRange { offset: part.first.offset(), len: part.extents * EXTENT_BYTES };
            let guard = self.volume.enqueue(self.volume.inside(range)).await;
            if !self.may_read() {
                return (all, Err(None));
            }
            let load = self.load(&part);
            let part_read = self.read_load(&load, &guard).await;
            drop(guard);
            all.data.extend(load.data);
            all.zero.extend(load.zero);
            match part_read {
                Ok(part) => read.extend(part),
                Err(error) => return (all, Err(Some(error))),
            }
        }
        (all, Ok(read))
    }

    async fn put_bulk(self: &Rc<Self>, run: &Run, load: &Load, read: Vec<(u64, Buffer)>) -> Vec<(Flight, u64, Reply)> {
        let (is_cut, level) = {
            let mut state = self.state.borrow_mut();
            let level = state.chooser.level();
            (state.offers.is_due(level), level)
        };
        let content = self.in_pool(move || Content::of(read, is_cut)).await;
        let offered = self.offer(content.chunks()).await;
        let mut frames = self.in_pool(move || content.frames(offered, level)).await;
        frames.extend(load.zero.iter().map(|range| Frame::Piece(Piece::Zero(*range))));
        let Some(up) = self.state.borrow().link.clone() else {
            self.not_sent(load);
            self.give_back(run.bytes, 0);
            return Vec::new();
        };
        let before = self.state.borrow().wire_bytes;
        let replies = frames.into_iter().map(|frame| self.put_frame(frame, &up)).collect();
        let used = self.state.borrow().wire_bytes - before;
        self.give_back(run.bytes, used);
        replies
    }

    /// What the other side says to have of these chunks; `None`: nothing can be named.
    async fn offer(&self, chunks: Vec<ChunkName>) -> Option<Offered> {
        let up = self.state.borrow().link.clone()?;
        let count = chunks.len();
        if count == 0 || count > CHUNKS_MAX {
            return None;
        }
        self.state.borrow_mut().copy.offering += 1;
        let answer = self.put(&up, Operation::Offer { chunks }).await;
        let mut state = self.state.borrow_mut();
        state.copy.offering -= 1;
        match answer {
            Ok(Answer::Offered(offered)) if offered.held.len() == count => {
                state.offers.answered(offered.held.contains(&true));
                Some(offered)
            }
            // What is wrong shows when the content is sent.
            _ => None,
        }
    }

    fn put_frame(self: &Rc<Self>, frame: Frame, up: &Up) -> (Flight, u64, Reply) {
        let assembly = match frame {
            Frame::Piece(piece) => return self.launch(piece, up),
            Frame::Assembly(assembly) => assembly,
        };
        let named = assembly.parts.iter().filter(|part| part.proof.is_some());
        let named_bytes: u64 = named.map(|part| u64::from(part.chunk.len)).sum();
        let flight = self.state.borrow().ledger.flight(assembly.range());
        let (me, reply) = (self.clone(), self.put(up, Operation::Assemble(Box::new(assembly))));
        let counted = async move {
            let result = reply.await;
            // What was named in vain is sent after all.
            if result == Ok(Answer::Done) {
                me.state.borrow_mut().deduplicated_bytes += named_bytes;
            }
            result
        };
        (flight, up.number, Box::pin(counted))
    }

    /// The other side could not make it of what it has: it was not sent. That is nobody's fault.
    pub(super) fn lacking(&self, flight: Flight) -> bool {
        if is_planted(Bug::LackingNotMarked) {
            self.state.borrow_mut().ledger.arrived(flight, true);
            return true;
        }
        self.state.borrow_mut().ledger.arrived(flight, false);
        self.changed.notify_waiters();
        false
    }
}
