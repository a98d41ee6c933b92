//! The copier: sends what is pending, in rounds, coldest regions first.
//!
//! ```text
//!  pick a run ── lock ── clear its bits, read, pack ── put on the stream ── unlock ── await the replies aside
//!  (one after the other) └──────────────── several at once ─────────────────────────────────────────────────┘
//! ```
//! Until mirroring is asked for, a run unlocks before it packs: its writers wait for a read, not for compression. In the
//! first round it is then as much as a region, whose chunks may be named instead of sent (`bulk.rs`).
//!
//! A round goes once over what is pending when it begins; what is written behind its back is left for the next. Hot first,
//! a round begins with the extents that are accessed most, and is short, so that the next one knows of new ones.
//!
//! Invariants
//! - `bytes_in_flight` counts the raw bytes of every run from its choice to its last reply: they bound the memory
//!   here and, decompressed, at the other side.
//! - A round ends when all of its runs are on the stream. So no extent is chosen twice for the same bits, and what was
//!   written while a run was packed is put there after it.
//! - No write is mirrored while a run is packed without its locks: it would be put on the stream over the write.

use super::{Ranking, Sender, State, Step, Up};
use crate::compress::{POOL_BYTES_MIN, Piece, pack};
use crate::ledger::{Flight, Taken};
use crate::level::{Bound, PACKING_BUSY};
use drover_base::limits::SEND_WINDOW_BYTES;
use drover_base::planted::{Bug, is_planted};
use drover_base::units::{BLOCK_BYTES, EXTENT_BYTES, REGION_BYTES};
use drover_base::{ByteRange, ExtentIndex, Instant, IoError, LocalFuture, RegionIndex};
use drover_disk::Buffer;
use drover_store::LockGuard;
use drover_wire::admin::SendOptions;
use drover_wire::peer::{Answer, Operation};
use std::{rc::Rc, time::Duration};

/// Extents of one run, whose locks are held together while they are read and packed: under a millisecond.
const RUN_EXTENTS_MAX: usize = 4;

/// The same of runs of a region: an offer and its answer wait behind what is on the stream, and meanwhile others must be ready.
const BULK_READING_MAX: usize = 12;

/// Raw bytes of runs of a region from choice to last reply: what may be on the stream, and as much that is being made ready.
const BULK_WINDOW_BYTES: u64 = 2 * SEND_WINDOW_BYTES;

/// A run of a region is made only where the throttle passes it at once, near enough.
const BULK_THROTTLE_MIN: u64 = 4 * REGION_BYTES;

/// Bytes a second on the wire from which on a link passes a region's frame many times faster than one that answers nothing
/// is given up.
const BULK_LINK_MIN: u64 = REGION_BYTES;

/// Runs that may be between choice and stream: enough to keep disk and pool busy, few enough to wait little.
const RUNS_READING_MAX: usize = 8;

/// Background bytes unacknowledged while clients wait for the same stream: 8 ms of a gigabit link.
const MIRROR_WINDOW_BYTES: u64 = 1 << 20;

/// A round that ends with no more than this is short enough to begin mirroring.
const READY_BYTES: u64 = 8 << 20;

/// A round that ends with more than this share (percent) of what the former left does not shrink any more.
const SHRINKING_PERCENT: u64 = 80;

/// While little is pending and nobody waits, rounds keep this distance: a block written often is not sent each time.
const ROUND_DISTANCE: Duration = Duration::from_millis(250);

/// Regions of a round that goes hot first: a gigabyte, after which the order is worked out anew.
const HOT_ROUND_REGIONS: usize = 256;

const _: () = assert!(RUN_EXTENTS_MAX as u64 * EXTENT_BYTES <= MIRROR_WINDOW_BYTES);
const _: () = assert!(MIRROR_WINDOW_BYTES <= SEND_WINDOW_BYTES);

/// What the copier knows beside the ledger.
#[derive(Default)]
pub struct Copier {
    round: Option<Round>,
    round_began: Instant,
    /// Rounds that have ended.
    pub rounds: u32,
    /// What the last round left.
    left_bytes: u64,
    pub ready: bool,
    hot_first: bool,
    reading: usize,
    /// Runs among those that let their locks go before they are on the stream.
    pub(super) unlocked: usize,
    /// Runs in the worker pool, and those whose offer was not answered yet.
    pub(super) packing: usize,
    pub(super) offering: usize,
    pub bytes_in_flight: u64,
    /// No runs of a region: the link before this one may have been lost because it was too slow for their frames.
    suspect: Option<Suspect>,
}

/// A link that has to show how fast it is.
struct Suspect {
    since: Instant,
    /// Put on the stream before.
    wire_bytes: u64,
}

impl Copier {
    pub fn new(options: &SendOptions) -> Self {
        let ready = options.mirror_at_once || options.hot_first;
        Self { ready, hot_first: options.hot_first, ..Self::default() }
    }

    pub fn is_hot_first(&self) -> bool {
        self.hot_first
    }

    /// A link follows one that was lost.
    pub fn suspect_link(&mut self, wire_bytes: u64, since: Instant) {
        self.suspect = Some(Suspect { since, wire_bytes });
    }

    /// `wire_bytes`: put on the stream until now, of which a window at most has not arrived.
    fn trust_if_fast(&mut self, wire_bytes: u64, now: Instant) {
        self.suspect.take_if(|suspect| {
            let arrived = (wire_bytes - suspect.wire_bytes).saturating_sub(SEND_WINDOW_BYTES);
            let needed = u128::from(BULK_LINK_MIN) * now.since(suspect.since).as_millis() / 1000;
            arrived > 0 && u128::from(arrived) >= needed
        });
    }

    /// Nothing is between choice and reply.
    pub fn is_idle(&self) -> bool {
        self.bytes_in_flight == 0
    }
}

/// Where a round is.
struct Round {
    hot: std::vec::IntoIter<ExtentIndex>,
    regions: std::vec::IntoIter<RegionIndex>,
    region: Option<RegionIndex>,
    /// In the region, 0..=64.
    from: usize,
    /// Only regions with blocks that cannot stay behind.
    only_owed: bool,
}

/// Neighbouring extents that are sent together.
pub struct Run {
    pub(super) first: ExtentIndex,
    pub(super) extents: u64,
    /// Raw bytes when it was chosen, as counted in `bytes_in_flight`.
    pub(super) bytes: u64,
    /// Locked and read piece by piece, and put on the stream without locks.
    is_bulk: bool,
}

impl Run {
    /// A part of it, for its locks.
    pub(super) fn part(&self, at: u64) -> Run {
        let extents = (self.extents - at).min(RUN_EXTENTS_MAX as u64);
        Run { first: ExtentIndex(self.first.0 + at), extents, bytes: 0, is_bulk: false }
    }
}

/// What a run turned out to hold, under its locks. All of it is in flight.
#[derive(Default)]
pub(super) struct Load {
    pub data: Vec<ByteRange>,
    pub zero: Vec<ByteRange>,
}

impl Round {
    /// `is_bulk`: as much as there is of a region.
    fn next(&mut self, state: &State, is_bulk: bool) -> Option<Run> {
        let blocks = |extent| state.ledger.pending().get(extent).count();
        if let Some(first) = self.hot.find(|extent| blocks(*extent) > 0) {
            return Some(Run { first, extents: 1, bytes: u64::from(blocks(first)) * BLOCK_BYTES, is_bulk: false });
        }
        loop {
            let region = match self.region {
                Some(region) => region,
                None => {
                    self.from = 0;
                    *self.region.insert(self.regions.next()?)
                }
            };
            let masks = match self.only_owed {
                true => state.ledger.owed(region),
                false => state.ledger.pending().region(region).copied(),
            };
            let masks = masks.unwrap_or([0; _]);
            let Some(first) = (self.from..masks.len()).find(|at| masks[*at] != 0) else {
                self.region = None;
                continue;
            };
            let end = match is_bulk {
                true => masks.len(),
                false => masks[first..].iter().take(RUN_EXTENTS_MAX).take_while(|mask| **mask != 0).count() + first,
            };
            let blocks: u64 = masks[first..end].iter().map(|mask| u64::from(mask.count_ones())).sum();
            let extents = (end - first) as u64;
            self.from = end;
            return Some(Run { first: region.extent(first), extents, bytes: blocks * BLOCK_BYTES, is_bulk });
        }
    }
}

impl State {
    /// The next run, if one may be sent now.
    fn next_run(&mut self, now: Instant, ranking: &dyn Ranking) -> Step<Option<Run>> {
        if self.stopped {
            return Step::Done(None);
        }
        let may_send = self.link.is_some()
            && !self.scan.is_running()
            && !self.are_layers_awaited()
            && !self.is_failed()
            && !self.drained
            && (self.draining || !self.paused);
        self.copy.trust_if_fast(self.wire_bytes, now);
        let is_bulk = self.is_bulk();
        let (window, reading_most) = match is_bulk {
            true => (BULK_WINDOW_BYTES, BULK_READING_MAX),
            false if self.mirror_asked && !self.draining => (MIRROR_WINDOW_BYTES, RUNS_READING_MAX),
            false => (SEND_WINDOW_BYTES, RUNS_READING_MAX),
        };
        let is_window_full = self.copy.bytes_in_flight >= window;
        let is_pool_busy = self.copy.packing >= PACKING_BUSY;
        if !may_send || self.copy.reading >= reading_most || is_window_full {
            let bound = match () {
                () if !may_send => Bound::Other,
                () if is_pool_busy => Bound::Pool,
                () if is_window_full || self.copy.offering > 0 => Bound::Link,
                () => Bound::Other,
            };
            self.chooser.waits_for(bound, now);
            return Step::Wait;
        }
        let ready_at = if self.draining { now } else { self.throttle.ready_at(now) };
        self.chooser.waits_for(if ready_at > now { Bound::Link } else { Bound::Other }, now);
        let ready_at = ready_at.max(self.trouble.retry_at());
        if ready_at > now {
            return Step::WaitUntil(ready_at);
        }
        if self.draining && self.copy.hot_first {
            // What was announced stays behind.
            if !self.owes_holes() {
                return Step::Wait;
            }
            if self.copy.reading == 0 {
                self.copy.round.take_if(|round| !round.only_owed);
            }
        }
        loop {
            if let Some(mut round) = self.copy.round.take() {
                let run = round.next(self, is_bulk);
                self.copy.round = Some(round);
                if let Some(run) = run {
                    self.copy.reading += 1;
                    // From now on: before it begins, mirroring may.
                    self.copy.unlocked += usize::from(run.is_bulk);
                    self.copy.bytes_in_flight += run.bytes;
                    self.throttle.take(run.bytes, now);
                    return Step::Done(Some(run));
                }
                if self.copy.reading > 0 {
                    return Step::Wait;
                }
                self.end_round();
            }
            if let Some(wait) = self.begin_round(now, ranking) {
                return wait;
            }
        }
    }

    /// The first time over, nobody waits behind it: much at once, and offered by chunks.
    fn is_bulk(&self) -> bool {
        let is_first = self.copy.rounds == 0 && !self.compare.is_running();
        let is_urgent = self.mirror_asked || self.draining || self.copy.hot_first;
        let is_held_back = is_urgent || self.copy.suspect.is_some();
        is_first && !is_held_back && self.throttle.rate_bytes_per_s().is_none_or(|rate| rate >= BULK_THROTTLE_MIN)
    }

    /// Hot first: what is not known at the other side to stay behind cannot be made known, and has to be sent.
    fn owes_holes(&self) -> bool {
        self.copy.hot_first && self.announcer.swept && !self.ledger.owes_nothing()
    }

    /// Begins a round, or says what to wait for.
    fn begin_round(&mut self, now: Instant, ranking: &dyn Ranking) -> Option<Step<Option<Run>>> {
        let pending = self.ledger.pending();
        if pending.is_empty() && (self.copy.rounds > 0 || self.compare.is_running()) {
            return Some(Step::Wait);
        }
        let is_urgent =
            self.mirror_asked || self.draining || self.compare.is_running() || pending.bytes() > READY_BYTES;
        let due = self.copy.round_began + ROUND_DISTANCE;
        if !is_urgent && self.copy.rounds > 0 && now < due {
            return Some(Step::WaitUntil(due));
        }
        let only_owed = self.owes_holes();
        let regions: Vec<_> =
            if only_owed { self.ledger.owed_regions().collect() } else { pending.regions().collect() };
        let mut regions: Vec<_> = regions.into_iter().map(|region| (ranking.write_rank(region), region)).collect();
        regions.sort_unstable();
        let mut regions: Vec<_> = regions.into_iter().map(|(_, region)| region).collect();
        let mut hot = Vec::new();
        if self.copy.hot_first && !only_owed {
            regions.truncate(HOT_ROUND_REGIONS);
            hot = ranking.hot_extents().0.into_iter().map(|(extent, _)| extent).collect();
        }
        self.copy.round =
            Some(Round { hot: hot.into_iter(), regions: regions.into_iter(), region: None, from: 0, only_owed });
        self.copy.round_began = now;
        None
    }

    /// Begins to mirror if that was asked for, no run is without its locks, and what is on its way fits the window.
    pub fn mirror_if_calm(&mut self) {
        let is_calm = self.copy.unlocked == 0 && self.copy.bytes_in_flight <= MIRROR_WINDOW_BYTES;
        self.mirror |= self.mirror_asked && is_calm && !self.are_layers_awaited();
    }

    fn end_round(&mut self) {
        self.copy.round = None;
        self.trouble.pass_ended();
        if self.compare.is_running() {
            return;
        }
        let left_bytes = self.ledger.pending().bytes();
        let is_shrinking = self.copy.rounds == 0 || left_bytes * 100 <= self.copy.left_bytes * SHRINKING_PERCENT;
        self.copy.ready |= left_bytes <= READY_BYTES || !is_shrinking;
        self.copy.left_bytes = left_bytes;
        self.copy.rounds += 1;
    }
}

impl Sender {
    pub(super) async fn run_copier(self: Rc<Self>) {
        let ranking = self.config.ranking.clone();
        while let Some(run) = self.until(|state, now| state.next_run(now, &*ranking)).await {
            self.world.spawn(self.clone().send_run(run)).detach();
        }
    }

    async fn send_run(self: Rc<Self>, run: Run) {
        let range = ByteRange { offset: run.first.offset(), len: run.extents * EXTENT_BYTES };
        let replies = if run.is_bulk {
            self.launch_bulk(&run).await
        } else {
            let guard = self.volume.enqueue(self.volume.inside(range)).await;
            self.launch_run(&run, guard).await
        };
        let sent_bytes: u64 = replies.iter().map(|(flight, ..)| flight.range.len).sum();
        {
            let mut state = self.state.borrow_mut();
            state.copy.reading -= 1;
            // More or less may have become dirty since the run was chosen.
            state.copy.bytes_in_flight = state.copy.bytes_in_flight - run.bytes + sent_bytes;
            state.mirror_if_calm();
        }
        self.changed.notify_waiters();
        for (flight, link, reply) in replies {
            let (bytes, result) = (flight.range.len, reply.await);
            {
                let mut state = self.state.borrow_mut();
                state.copy.bytes_in_flight -= bytes;
                state.mirror_if_calm();
            }
            self.landed(flight, link, result);
            self.changed.notify_waiters();
        }
    }

    /// Takes the run's dirty blocks, reads them and puts them on the stream.
    async fn launch_run(&self, run: &Run, guard: LockGuard) -> Vec<(Flight, u64, Reply)> {
        if !self.may_read() {
            self.give_back(run.bytes, 0);
            return Vec::new();
        }
        let load = self.load(run);
        let read = self.read_load(&load, &guard).await;
        let guard = self.unlocked_unless_mirroring(guard);
        let packed = match read {
            Ok(read) => Ok(self.pack_load(read, &load).await),
            Err(error) => Err(error),
        };
        let replies = self.put_load(run, &load, packed);
        if guard.is_none() {
            let mut state = self.state.borrow_mut();
            state.copy.unlocked -= 1;
            state.mirror_if_calm();
        }
        replies
    }

    /// There is a link to send over, and the lease allows it.
    pub(super) fn may_read(&self) -> bool {
        let fenced = self.fence.check();
        if let Err(error) = &fenced {
            self.trouble_here(error);
        }
        fenced.is_ok() && self.state.borrow().link.is_some()
    }

    fn unlocked_unless_mirroring(&self, guard: LockGuard) -> Option<LockGuard> {
        let mut state = self.state.borrow_mut();
        if state.mirror_asked {
            return Some(guard);
        }
        state.copy.unlocked += 1;
        None
    }

    fn put_load(&self, run: &Run, load: &Load, packed: Result<Vec<Piece>, IoError>) -> Vec<(Flight, u64, Reply)> {
        let up = self.state.borrow().link.clone();
        match (packed, up) {
            (Ok(pieces), Some(up)) => {
                let wire_bytes = pieces.iter().map(|piece| super::FRAME_HEAD_BYTES + piece.body_bytes()).sum();
                self.give_back(run.bytes, wire_bytes);
                pieces.into_iter().map(|piece| self.launch(piece, &up)).collect()
            }
            (packed, _) => {
                self.give_back(run.bytes, 0);
                self.not_sent(load);
                if let Err(error) = packed {
                    self.trouble_here(&error);
                }
                Vec::new()
            }
        }
    }

    /// What departed stays here.
    pub(super) fn not_sent(&self, load: &Load) {
        let mut state = self.state.borrow_mut();
        for range in load.data.iter().chain(&load.zero) {
            let flight = state.ledger.flight(*range);
            state.ledger.arrived(flight, false);
        }
    }

    /// Clears the dirty bits of the run's extents; what they hold is in flight from here on.
    pub(super) fn load(&self, run: &Run) -> Load {
        let mut state = self.state.borrow_mut();
        let mut load = Load::default();
        for extent in (run.first.0..run.first.0 + run.extents).map(ExtentIndex) {
            let (mut held, remote) = (self.volume.data_mask(extent), self.volume.remote_mask(extent));
            match is_planted(Bug::RemoteSentAsZero) {
                false => state.ledger.only_there(extent, remote),
                true => held = held.without(remote),
            }
            let Taken { data, zero } = state.ledger.depart_extent(extent, held);
            let is_sound = !data.with(zero).intersects(remote) || is_planted(Bug::RemoteSentAsZero);
            assert!(is_sound, "what is only at the other side is never sent there");
            extent.add_blocks(data, &mut load.data);
            extent.add_blocks(zero, &mut load.zero);
        }
        load
    }

    pub(super) async fn read_load(&self, load: &Load, guard: &LockGuard) -> Result<Vec<(u64, Buffer)>, IoError> {
        let mut read = Vec::with_capacity(load.data.len());
        for range in &load.data {
            read.push((range.offset, self.volume.read_locked(guard, *range).await?));
        }
        Ok(read)
    }

    async fn pack_load(&self, read: Vec<(u64, Buffer)>, load: &Load) -> Vec<Piece> {
        let bytes: usize = read.iter().map(|(_, data)| data.len()).sum();
        let level = self.state.borrow().chooser.level();
        let work = move || read.into_iter().flat_map(|(offset, data)| pack(offset, data, level)).collect::<Vec<_>>();
        let mut pieces = if bytes < POOL_BYTES_MIN { work() } else { self.in_pool(work).await };
        pieces.extend(load.zero.iter().map(|range| Piece::Zero(*range)));
        pieces
    }

    /// Runs arithmetic on the pool, and knows how much of it waits there.
    pub(super) async fn in_pool<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.state.borrow_mut().copy.packing += 1;
        let done = self.world.offload(work).await;
        self.state.borrow_mut().copy.packing -= 1;
        done
    }

    pub(super) fn launch(&self, piece: Piece, up: &Up) -> (Flight, u64, Reply) {
        let range = piece.range();
        let flight = self.state.borrow().ledger.flight(range);
        let operation = match piece {
            Piece::Data { offset, payload } => Operation::Write { offset, data: payload, fua: false, replay: false },
            // Thin stays thin towards a destination. Back to the source it is kept as it is here, so that the
            // source goes on having all that is allocated here.
            Piece::Zero(range) => {
                let is_hole = !self.holds_data(range);
                let may_unmap = is_hole || !self.state.borrow().is_hold_kind();
                Operation::Zero { range, may_unmap, fast_only: false, fua: false, replay: false }
            }
        };
        (flight, up.number, self.put(up, operation))
    }

    fn holds_data(&self, range: ByteRange) -> bool {
        range
            .block_aligned()
            .by_extent()
            .any(|(extent, part)| self.volume.data_mask(extent).intersects(part.block_mask()))
    }

    /// Only what went on the wire counts for the throttle.
    pub(super) fn give_back(&self, taken: u64, used: u64) {
        let mut state = self.state.borrow_mut();
        if used <= taken {
            state.throttle.give_back(taken - used);
        } else {
            let now = self.world.now();
            state.throttle.take(used - taken, now);
        }
    }

    pub(super) fn trouble_here(&self, error: &IoError) {
        let now = self.world.now();
        let mut state = self.state.borrow_mut();
        state.unsync();
        state.trouble.add(format!("this side: {error}"), now);
        drop(state);
        self.changed.notify_waiters();
    }

    /// A reply to something that was in flight has come. True: the other side has it.
    pub(super) fn landed(&self, flight: Flight, link: u64, result: Result<Answer, IoError>) -> bool {
        let error = match result {
            Ok(Answer::Done) => None,
            Ok(Answer::Lacking) => return self.lacking(flight),
            Ok(_) => Some(IoError::Corrupt),
            Err(error) => Some(error),
        };
        let mut state = self.state.borrow_mut();
        if error.is_none() {
            state.acknowledged_since_flush += flight.range.len;
        }
        state.ledger.arrived(flight, error.is_none());
        let is_awaited = state.is_landing_awaited();
        drop(state);
        match &error {
            Some(error) => self.failed_on(link, error),
            None if is_awaited => self.changed.notify_waiters(),
            None => {}
        }
        error.is_none()
    }
}

pub(super) type Reply = LocalFuture<'static, Result<Answer, IoError>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_after_a_lost_one_is_trusted_once_it_was_fast() {
        for (what, bytes_per_s, expected) in [("slow", BULK_LINK_MIN / 2, false), ("fast", 3 * BULK_LINK_MIN, true)] {
            let (mut copy, began) = (Copier::default(), Instant::default());
            copy.suspect_link(1000, began);
            copy.trust_if_fast(1000 + SEND_WINDOW_BYTES, began);
            assert!(copy.suspect.is_some(), "{what}: nothing needs to have arrived");
            for second in 1..60 {
                copy.trust_if_fast(1000 + second * bytes_per_s, began + Duration::from_secs(second));
            }
            assert_eq!(copy.suspect.is_none(), expected, "{what}");
        }
    }
}
