//! Brings to a holder what its flip did not wait for: on demand, ahead of demand, and in the background.
//!
//! ```text
//!  a client's read ── bring ──┐
//!  streams ── ahead ──────────┼─► extents not under way ── read put on the stream ── unpack ── lock ── fill ── unlock
//!  hottest regions ── window ─┘
//! ```
//!
//! Invariants
//! - An extent is under way at most once; whoever wants it waits for the same pull.
//! - Pulls go over the stream of the mirror back, so that an answer contains every mirrored write that was put there before
//!   it. What a client changed since is local by the time the fill has the lock, and a fill stores only what is remote.
//! - No lock is held while the other side is awaited.
//! - What was read before a local write failed is not stored (see `sender/reading.rs`).
//! - Demand never waits for the throttle, a pause, or the background's window.
//! - A request waits until its deadline at most, and then fails alone. What failed is asked for again by the next.

mod ahead;
mod background;

use crate::compress::{POOL_BYTES_MIN, unpack};
use crate::sender::{FRAME_HEAD_BYTES, Ranking, Sender};
use crate::throttle::Throttle;
use ahead::Streams;
use background::Plan;
use drover_base::units::{BLOCK_BYTES, EXTENT_BYTES};
use drover_base::{ByteRange, ExtentIndex, Instant, IoError, LocalFuture, World};
use drover_store::{Access, Fence, Origin, Volume};
use drover_wire::admin::PullProgress;
use drover_wire::peer::Payload;
use futures::channel::oneshot;
use futures::future::{FutureExt, Shared, select};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    pin::pin,
    rc::{Rc, Weak},
    time::Duration,
};
use tokio::sync::Notify;

/// Extents of one pull at most: 1 MiB.
const PULL_EXTENTS_MAX: u64 = 16;

/// Bytes of pulls that clients wait for, or will soon, at once: what they hold in memory here.
const DEMAND_WINDOW_BYTES: u64 = 16 << 20;

/// What is read ahead leaves this much of it to those who wait.
const AHEAD_WINDOW_BYTES: u64 = DEMAND_WINDOW_BYTES / 2;

/// Wait before an extent is asked for again that the other side could not give, doubled with each further failure.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(2);

/// How often it is looked whether clients have overwritten all that was left.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Failed extents that are remembered; more are asked for again without waiting.
const FAILED_EXTENTS_MAX: usize = 4096;

/// How long accesses are counted as the first ones.
const FIRST_ACCESSES: Duration = Duration::from_secs(60);

const _: () = assert!(PULL_EXTENTS_MAX * EXTENT_BYTES <= DEMAND_WINDOW_BYTES);

pub struct PullerConfig {
    /// What is accessed more is brought earlier.
    pub ranking: Rc<dyn Ranking>,
    /// How long a request waits for what is at the other side.
    pub demand_deadline: Duration,
    /// Bytes a second on the wire for what nobody waits for; `None`: as fast as it goes.
    pub throttle_bytes_per_s: Option<u64>,
    pub paused: bool,
}

/// Brings one volume's remote blocks over a sender's stream.
pub struct Puller {
    world: World,
    volume: Rc<Volume>,
    fence: Rc<dyn Fence>,
    sender: Rc<Sender>,
    config: PullerConfig,
    me: Weak<Puller>,
    state: RefCell<State>,
    /// Told when a pull ends and when anything is set.
    changed: Notify,
}

/// Why an extent did not come.
#[derive(Clone, Debug)]
enum Failure {
    /// To be asked for again.
    There(IoError),
    /// It came and could not be stored.
    Here(IoError),
}

type Pulled = Shared<oneshot::Receiver<Result<(), Failure>>>;

/// Why something is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Demand,
    Ahead,
    Background,
}

/// Neighbouring extents that are pulled together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: ExtentIndex,
    extents: u64,
    /// Remote when it was chosen.
    bytes: u64,
}

/// An extent that the other side could not give.
struct Failed {
    retry_at: Instant,
    wait: Duration,
}

struct State {
    stopped: bool,
    paused: bool,
    throttle: Throttle,
    /// Extents under way.
    pulls: BTreeMap<ExtentIndex, Pulled>,
    failed: BTreeMap<ExtentIndex, Failed>,
    demand_bytes: u64,
    background_bytes: u64,
    streams: Streams,
    plan: Plan,
    first_accesses_until: Instant,
    figures: PullProgress,
}

impl State {
    /// Neighbouring remote extents from `from` on, up to `end` and `most` of them, that are not under way.
    fn next_run(&self, volume: &Volume, from: ExtentIndex, end: ExtentIndex, most: u64, now: Instant) -> Option<Run> {
        let mut run: Option<Run> = None;
        for extent in (from.0..end.0).map(ExtentIndex) {
            let remote = volume.remote_mask(extent);
            let may_ask = self.failed.get(&extent).is_none_or(|failed| failed.retry_at <= now);
            let is_wanted = !remote.is_empty() && may_ask && !self.pulls.contains_key(&extent);
            match &mut run {
                Some(run) if !is_wanted || run.extents == most => return Some(*run),
                None if !is_wanted => {}
                _ => {
                    let run = run.get_or_insert(Run { first: extent, extents: 0, bytes: 0 });
                    run.extents += 1;
                    run.bytes += u64::from(remote.count()) * BLOCK_BYTES;
                }
            }
        }
        run
    }

    fn note_failure(&mut self, run: &Run, failure: &Failure, now: Instant) {
        let (Failure::There(error) | Failure::Here(error)) = failure;
        self.figures.error = Some(error.to_string());
        // A link that broke says nothing about the extents: they wait for the next one.
        if *error == IoError::Disconnected {
            return;
        }
        for extent in run.extents() {
            if self.failed.len() < FAILED_EXTENTS_MAX || self.failed.contains_key(&extent) {
                let failed = self.failed.entry(extent).or_insert(Failed { retry_at: now, wait: RETRY_FIRST / 2 });
                failed.wait = (failed.wait * 2).min(RETRY_MOST);
                failed.retry_at = now + failed.wait;
            }
        }
    }
}

impl Run {
    fn range(&self) -> ByteRange {
        ByteRange { offset: self.first.offset(), len: self.extents * EXTENT_BYTES }
    }

    fn extents(&self) -> impl Iterator<Item = ExtentIndex> + use<> {
        (self.first.0..self.first.0 + self.extents).map(ExtentIndex)
    }
}

/// The extents that a range touches: the first, and the one after the last.
fn extents_of(range: ByteRange) -> (ExtentIndex, ExtentIndex) {
    (ExtentIndex::containing(range.offset), ExtentIndex(range.end().div_ceil(EXTENT_BYTES)))
}

/// Extents in any order, as ranges of neighbours.
fn neighbours(mut extents: Vec<ExtentIndex>) -> Vec<(ExtentIndex, ExtentIndex)> {
    extents.sort_unstable();
    let mut ranges: Vec<(ExtentIndex, ExtentIndex)> = Vec::new();
    for extent in extents {
        let next = ExtentIndex(extent.0 + 1);
        match ranges.last_mut().filter(|(_, end)| *end == extent) {
            Some((_, end)) => *end = next,
            None => ranges.push((extent, next)),
        }
    }
    ranges
}

/// Counts as a request that waits, while it lives.
struct Waiting(Rc<Puller>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.state.borrow_mut().figures.demand_waits -= 1;
        self.0.changed.notify_waiters();
    }
}

impl Puller {
    pub fn new(
        world: World,
        volume: Rc<Volume>,
        fence: Rc<dyn Fence>,
        sender: Rc<Sender>,
        config: PullerConfig,
    ) -> Rc<Puller> {
        let now = world.now();
        let state = RefCell::new(State {
            stopped: false,
            paused: config.paused,
            throttle: Throttle::new(config.throttle_bytes_per_s, now),
            pulls: BTreeMap::new(),
            failed: BTreeMap::new(),
            demand_bytes: 0,
            background_bytes: 0,
            streams: Streams::default(),
            plan: Plan::default(),
            first_accesses_until: now + FIRST_ACCESSES,
            figures: PullProgress::default(),
        });
        Rc::new_cyclic(|me| Self {
            world,
            volume,
            fence,
            sender,
            config,
            me: me.clone(),
            state,
            changed: Notify::new(),
        })
    }

    /// Becomes the volume's origin and begins to bring what nobody waits for.
    pub fn start(self: &Rc<Self>) {
        self.volume.set_origin(Some(self.clone()));
        self.world.spawn(self.clone().run_background()).detach();
    }

    /// Brings nothing more. Requests that wait look again who is to be asked, if anybody.
    pub fn stop(&self) {
        self.state.borrow_mut().stopped = true;
        self.volume.set_origin(None);
        self.changed.notify_waiters();
    }

    /// `throttle_bytes_per_s` and `paused` hold for what nobody waits for.
    pub fn tune(&self, throttle_bytes_per_s: Option<u64>, paused: bool) {
        let now = self.world.now();
        let mut state = self.state.borrow_mut();
        state.throttle.set_rate(throttle_bytes_per_s, now);
        state.paused = paused;
        drop(state);
        self.changed.notify_waiters();
    }

    pub fn progress(&self) -> PullProgress {
        let state = self.state.borrow();
        PullProgress { remote_bytes: self.volume.remote_bytes(), paused: state.paused, ..state.figures.clone() }
    }

    /// Completes when nothing of the volume is remote any more, or when this was stopped.
    pub async fn done(&self) {
        loop {
            let changed = self.changed.notified();
            if self.volume.remote_bytes() == 0 || self.state.borrow().stopped {
                return;
            }
            // The last of it may be overwritten by a client, of which nobody tells.
            select(pin!(changed), pin!(self.world.sleep(LOOK_EVERY))).await;
        }
    }

    /// Waits until the other side can be read, or this was stopped.
    async fn readable(&self) {
        loop {
            let changed = self.changed.notified();
            if self.state.borrow().stopped || self.sender.is_readable() {
                return;
            }
            select(pin!(changed), pin!(self.sender.readable())).await;
        }
    }

    async fn bring_now(&self, range: ByteRange) -> Result<(), IoError> {
        loop {
            if self.state.borrow().stopped || !self.volume.is_any_remote(range) {
                return Ok(());
            }
            self.readable().await;
            let changed = self.changed.notified();
            self.launch_all(range, Why::Demand);
            let (first, end) = extents_of(range);
            let pulls: Vec<Pulled> =
                self.state.borrow().pulls.range(first..end).map(|(_, pulled)| pulled.clone()).collect();
            if pulls.is_empty() {
                match self.retry_at(first, end) {
                    Some(at) => drop(select(pin!(changed), self.world.timer.sleep_until(at)).await),
                    // The window is full. Otherwise the range has come meanwhile, or the link is lost again.
                    None if self.sender.is_readable() && self.volume.is_any_remote(range) => changed.await,
                    None => {}
                }
                continue;
            }
            for pulled in pulls {
                // After any other failure the next look waits: for the link, or for the extent's time to be asked again.
                if let Ok(Err(Failure::Here(error))) = pulled.await {
                    return Err(error);
                }
            }
        }
    }

    /// When the first failed extent of the range may be asked for again that may not yet.
    fn retry_at(&self, first: ExtentIndex, end: ExtentIndex) -> Option<Instant> {
        let (state, now) = (self.state.borrow(), self.world.now());
        let retries = state.failed.range(first..end).map(|(_, failed)| failed.retry_at);
        retries.filter(|at| *at > now).min()
    }

    /// Begins to pull what of the range is not under way, as far as the window goes.
    fn launch_all(&self, range: ByteRange, why: Why) {
        let (mut from, end) = extents_of(range);
        while from < end {
            let now = self.world.now();
            let run = {
                let state = self.state.borrow();
                let window = if why == Why::Ahead { AHEAD_WINDOW_BYTES } else { DEMAND_WINDOW_BYTES };
                if state.demand_bytes >= window || !self.sender.is_readable() {
                    return;
                }
                state.next_run(&self.volume, from, end, PULL_EXTENTS_MAX, now)
            };
            let Some(run) = run else { return };
            from = ExtentIndex(run.first.0 + run.extents);
            self.launch(run, why);
        }
    }

    /// Puts the reads of a run on the stream, now.
    fn launch(&self, run: Run, why: Why) {
        let Some(me) = self.me.upgrade() else { return };
        let (tell, told) = oneshot::channel();
        let told = told.shared();
        {
            let mut state = self.state.borrow_mut();
            state.pulls.extend(run.extents().map(|extent| (extent, told.clone())));
            match why {
                Why::Background => state.background_bytes += run.bytes,
                Why::Demand | Why::Ahead => state.demand_bytes += run.bytes,
            }
            state.figures.demand_pulls += u64::from(why == Why::Demand);
            let now = self.world.now();
            state.throttle.take(run.bytes, now);
        }
        let failures = self.sender.local_failures();
        let parts = self.volume.remote_runs(self.volume.inside(run.range()));
        let replies: Vec<_> = parts.into_iter().map(|part| (part, self.sender.read(part))).collect();
        let pull = async move {
            let mut result = Ok(());
            for (part, reply) in replies {
                let stored = match reply.await {
                    Ok(payload) => me.store(part, payload, failures).await,
                    Err(error) => {
                        me.state.borrow_mut().throttle.give_back(part.len);
                        Err(Failure::There(error))
                    }
                };
                result = result.and(stored);
            }
            me.pulled(&run, why, &result);
            // Nobody may wait for it.
            let _ = tell.send(result);
            me.changed.notify_waiters();
        };
        self.world.spawn(pull).detach();
    }

    /// Stores what has come, as far as it is still remote.
    async fn store(&self, part: ByteRange, payload: Payload, failures: u64) -> Result<(), Failure> {
        let wire_bytes = payload.bytes.len() as u64 + FRAME_HEAD_BYTES;
        self.give_back(part.len, wire_bytes);
        let is_large = payload.is_compressed() && payload.raw_len as usize >= POOL_BYTES_MIN;
        let unpacking = move || unpack(&payload);
        let unpacked = if is_large { self.world.offload(unpacking).await } else { unpacking() };
        let data = unpacked.map_err(Failure::There)?;
        let guard = self.volume.enqueue(part).await;
        if self.state.borrow().stopped || self.sender.local_failures() != failures {
            return Err(Failure::There(IoError::Remote));
        }
        let bytes = self.volume.remote_runs(part).iter().map(|run| run.len).sum::<u64>();
        // Where there is no room now, there may be later: a read is not to fail for that at once.
        let failed = |error| if error == IoError::NoSpace { Failure::There(error) } else { Failure::Here(error) };
        self.volume.fill_locked(&guard, &*self.fence, part.offset, data).await.map_err(failed)?;
        let mut state = self.state.borrow_mut();
        state.figures.pulled_bytes += bytes;
        state.figures.pulled_wire_bytes += wire_bytes;
        Ok(())
    }

    /// Only what went on the wire counts for the throttle.
    fn give_back(&self, taken: u64, used: u64) {
        let now = self.world.now();
        let mut state = self.state.borrow_mut();
        match taken.checked_sub(used) {
            Some(unused) => state.throttle.give_back(unused),
            None => state.throttle.take(used - taken, now),
        }
    }

    fn pulled(&self, run: &Run, why: Why, result: &Result<(), Failure>) {
        let now = self.world.now();
        let mut state = self.state.borrow_mut();
        for extent in run.extents() {
            state.pulls.remove(&extent);
        }
        match why {
            Why::Background => state.background_bytes -= run.bytes,
            Why::Demand | Why::Ahead => state.demand_bytes -= run.bytes,
        }
        match result {
            Ok(()) => {
                for extent in run.extents() {
                    state.failed.remove(&extent);
                }
                state.figures.error = None;
            }
            Err(failure) => state.note_failure(run, failure, now),
        }
    }

    /// Counts an access among the first: how many of its blocks are remote and needed.
    fn count_access(&self, range: ByteRange, access: Access) {
        let aligned = range.block_aligned();
        let needed =
            |block: ByteRange| access == Access::Read || block.offset < range.offset || block.end() > range.end();
        let mut remote = 0;
        for (extent, part) in aligned.by_extent() {
            for (first, count) in self.volume.remote_mask(extent).and(part.block_mask()).runs() {
                let blocks = (first..first + count).map(|block| ByteRange {
                    offset: extent.offset() + u64::from(block) * BLOCK_BYTES,
                    len: BLOCK_BYTES,
                });
                remote += blocks.filter(|block| needed(*block)).count() as u64;
            }
        }
        let mut state = self.state.borrow_mut();
        state.figures.local_blocks_60s += aligned.len / BLOCK_BYTES - remote;
        state.figures.remote_blocks_60s += remote;
    }
}

impl Origin for Puller {
    fn bring(&self, range: ByteRange) -> LocalFuture<'static, Result<(), IoError>> {
        let Some(me) = self.me.upgrade() else { return Box::pin(std::future::ready(Ok(()))) };
        me.state.borrow_mut().figures.demand_waits += 1;
        let waiting = Waiting(me);
        Box::pin(async move {
            let me = &waiting.0;
            let deadline = me.world.now() + me.config.demand_deadline;
            let brought = me.world.timeout_at(deadline, me.bring_now(range)).await;
            brought.unwrap_or_else(|_| {
                me.state.borrow_mut().figures.demand_failures += 1;
                Err(IoError::Remote)
            })
        })
    }

    fn accessed(&self, range: ByteRange, access: Access) {
        if self.world.now() < self.state.borrow().first_accesses_until {
            self.count_access(range, access);
        }
        if access == Access::Change || self.volume.remote_bytes() == 0 {
            return;
        }
        let (first, end) = extents_of(range);
        let next = self.state.borrow_mut().streams.accessed(first, ExtentIndex(end.0 - 1));
        for (first, end) in neighbours(next) {
            let range = ByteRange { offset: first.offset(), len: (end.0 - first.0) * EXTENT_BYTES };
            let inside = self.volume.inside(range);
            if self.volume.is_any_remote(inside) {
                self.launch_all(inside, Why::Ahead);
            }
        }
    }
}
