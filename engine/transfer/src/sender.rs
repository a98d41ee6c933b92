//! The sending side of a migration or mirror.
//!
//! ```text
//!            start                link_up              first pass ends             begin_mirror
//!  (new) ─────────► Connecting ───────────► Copying ───────────────────► Converging ──────────┐
//!                    ▲  │ ▲ Start::Compare: Comparing first                                   ▼
//!          link lost │  │ └─────────────────────────────────────────────────────────────── Mirroring ◄──┐
//!      (from anywhere)  │                                                                     │         │ an error
//!                       │                        all sent, and a later flush succeeded        ▼         │
//!                       └─ mirroring goes on where it was when the link is up again         Synced ─────┘
//!                                                                                    drain │ ▲ │ begin_proof
//!                                                             Drained ◄────────────────────┘ │ └──► Proving ─► Proven
//!                                                                └────────── resume ─────────┘
//! ```
//!
//! - **Copying, Converging**: writes are only marked; the copier sends what is marked, in rounds. On success of a
//!   send its blocks wait for a flush; on failure they are marked again.
//! - Asked to mirror, the copier first lets what is on its way shrink to the window that mirroring has: a mirrored
//!   write waits behind it on the stream.
//! - **Mirroring, Synced**: every write is put on the stream under its extents' locks, beside the local write. On
//!   success the client is answered. On failure the blocks are marked, and `OnLinkLoss` says whether the client is
//!   answered (before the flip: this side alone counts) or waits (after it: the other side may have to take over).
//! - **Synced** is lost with the link and with every error, and is reached again by the same way.
//! - **Drained**: the volume is quiesced; everything was sent and a flush covers it.
//! - **Hot first**: as soon as it mirrors, whatever is pending is announced to stay behind. Then synced and drained say that
//!   everything was sent *or announced*; the copier goes on meanwhile, with what is accessed most (`announce.rs`).
//! - **Layers**: a volume with snapshots is sent from the bottom up. Frozen layers come first (`layers.rs`); of the head nothing
//!   is put on the stream before all of them are there.
//! - **Proving**: regions are compared in stream order; what is proven is forgotten when the link breaks.
//!
//! Ordering rules
//! - Whatever is put on the stream about an extent is put there while its lock is held. So the other side, which
//!   applies in stream order, sees the same order as this one. Copies made before mirroring was asked for are the
//!   exception: what is written over one before it is on the stream is marked, and sent after it; mirroring begins
//!   when none of them is left.
//! - Dirty bits are cleared before the content is read; both under the lock.
//! - No lock is held across a network round trip by this crate. The store holds those of a write until it and its
//!   mirror are done; a write that waits for a new link is therefore sent again by itself, not by the copier.
//! - A mirrored write that waits is sent on a new link before anything else is.

mod announce;
mod bulk;
mod compare;
mod copy;
mod digests;
mod drain;
mod flush;
mod layer_proof;
mod layers;
mod mirror;
mod proof;
mod reading;
mod scan;
mod state;

use crate::Link;
pub use announce::Ranking;
use drover_base::{ByteRange, Generation, Instant, IoError, LocalFuture, MigrationId, RegionIndex, World};
use drover_store::{Fence, Tap, TapChange, Volume};
use drover_wire::admin::{SendOptions, SendProgress};
use drover_wire::peer::{Answer, Operation};
use futures::future::select;
use state::{State, Up};
use std::{
    cell::RefCell,
    pin::pin,
    rc::{Rc, Weak},
    time::Duration,
};
use tokio::sync::Notify;

/// Bytes of a frame's head on the wire.
pub(crate) const FRAME_HEAD_BYTES: u64 = 72;

/// Bytes of a chunk's name on the wire, as near as it matters.
const OFFERED_BYTES: u64 = 35;

/// How long an answer may wait for the other side before somebody should do something about it.
const HOLD_PATIENCE: Duration = Duration::from_secs(1);

/// What happens to the answers of mirrored writes while the other side cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLinkLoss {
    /// Before the flip: they are marked and answered.
    FallBack,
    /// After the flip: they wait until [`Sender::go_alone`] or until the other side has them. Mirrors from the start.
    Hold,
}

/// What the other side has when the sender starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Nothing: a new, empty volume.
    AllData,
    /// Nobody knows: all is compared, and what differs is sent.
    Compare,
    /// Everything, durably.
    Clean,
}

pub struct SenderConfig {
    pub migration: MigrationId,
    pub generation: Generation,
    pub options: SendOptions,
    pub on_link_loss: OnLinkLoss,
    pub start: Start,
    pub ranking: Rc<dyn Ranking>,
    /// Bytes of clients' writes that may be unacknowledged at once before the flip.
    pub mirrored_bytes_max: u64,
    /// Regions of a frozen layer after which a flush makes them durable there: an interruption costs no more than these.
    pub stretch_regions: usize,
}

/// Sends a volume to the other side and keeps it equal there. Installed as the volume's tap.
pub struct Sender {
    world: World,
    volume: Rc<Volume>,
    fence: Rc<dyn Fence>,
    config: SenderConfig,
    me: Weak<Sender>,
    state: RefCell<State>,
    /// Told about every change of `state` that somebody may wait for.
    changed: Notify,
}

/// Whether what is waited for has come.
enum Step<T> {
    Done(T),
    Wait,
    WaitUntil(Instant),
}

impl Sender {
    pub fn new(world: World, volume: Rc<Volume>, fence: Rc<dyn Fence>, config: SenderConfig) -> Rc<Sender> {
        let state = RefCell::new(State::new(&config, world.now()));
        Rc::new_cyclic(|me| Self { world, volume, fence, config, me: me.clone(), state, changed: Notify::new() })
    }

    /// Begins to track. To be called while no client request is admitted, the tap being installed in the same
    /// moment. Takes no time: what is to be sent is worked out afterwards.
    pub fn start(self: &Rc<Self>) {
        self.state.borrow_mut().begin(&self.volume, &self.config);
        self.world.spawn(self.clone().run_scan()).detach();
        self.world.spawn(self.clone().run_copier()).detach();
        self.world.spawn(self.clone().run_flusher()).detach();
        if self.state.borrow().layers.is_open() {
            self.world.spawn(self.clone().run_layers()).detach();
        }
        if self.config.start == Start::Compare {
            self.world.spawn(self.clone().run_compare()).detach();
        }
        if self.config.options.hot_first {
            self.world.spawn(self.clone().run_announcer()).detach();
        }
    }

    /// The other side is reached (again). Whatever this link's instance may have lost is marked again.
    pub fn link_up(self: &Rc<Self>, link: Rc<dyn Link>) {
        {
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            state.lose_link();
            let instance = link.instance();
            if state.instance.is_some_and(|known| known != instance) {
                state.ledger.instance_changed();
            }
            state.instance = Some(instance);
            if state.links > 0 {
                state.copy.suspect_link(state.wire_bytes, self.world.now());
            }
            state.links += 1;
            state.link = Some(Up { link, number: state.links });
            state.trouble.forget();
        }
        self.resend_held();
        self.changed.notify_waiters();
    }

    /// The other side cannot be reached.
    pub fn link_down(&self) {
        self.state.borrow_mut().lose_link();
        self.changed.notify_waiters();
    }

    /// Every write is to go to both sides: from when what is on its way is little enough for clients to wait behind.
    pub fn begin_mirror(&self) {
        let mut state = self.state.borrow_mut();
        state.mirror_asked = true;
        state.mirror_if_calm();
        drop(state);
        self.changed.notify_waiters();
    }

    /// `throttle`: bytes a second on the wire for background sending. `paused` stops it; neither slows mirrored
    /// writes.
    pub fn tune(&self, throttle: Option<u64>, paused: bool) {
        let now = self.world.now();
        let mut state = self.state.borrow_mut();
        state.throttle.set_rate(throttle, now);
        state.paused = paused;
        drop(state);
        self.changed.notify_waiters();
    }

    pub fn progress(&self) -> SendProgress {
        let now = self.world.now();
        let mut state = self.state.borrow_mut();
        let rate_bytes_per_s = state.client_writes.bytes_per_s(now);
        state.pace.roll(now, rate_bytes_per_s);
        let coverage_permille = state.coverage_permille(&*self.config.ranking, now);
        state.progress(&self.config, coverage_permille, now)
    }

    /// The region is durably equal at the other side: a crash there or here loses nothing of it.
    pub fn is_clean(&self, region: RegionIndex) -> bool {
        let state = self.state.borrow();
        !state.scan.is_open(region) && !state.compare.is_open(region) && state.ledger.is_clean(region)
    }

    /// Ends all sending. Answers that wait are given; the fence decides what they are worth.
    pub fn stop(&self) {
        self.state.borrow_mut().stopped = true;
        self.changed.notify_waiters();
    }

    /// Waits until `decide` says that it is done; asks again after every change.
    async fn until<T>(&self, mut decide: impl FnMut(&mut State, Instant) -> Step<T>) -> T {
        loop {
            let step = decide(&mut self.state.borrow_mut(), self.world.now());
            let changed = self.changed.notified();
            match step {
                Step::Done(done) => return done,
                Step::Wait => changed.await,
                Step::WaitUntil(at) => {
                    select(pin!(changed), self.world.timer.sleep_until(at)).await;
                }
            }
        }
    }

    /// Puts an operation on the stream, now.
    fn put(&self, up: &Up, operation: Operation) -> LocalFuture<'static, Result<Answer, IoError>> {
        let (logical, body) = match &operation {
            Operation::Write { data, .. } => (u64::from(data.raw_len), data.bytes.len() as u64),
            Operation::Assemble(assembly) => (assembly.range().len, assembly.body_bytes()),
            Operation::Offer { chunks } => (0, chunks.len() as u64 * OFFERED_BYTES),
            Operation::Zero { range, .. } => (range.len, 0),
            _ => (0, 0),
        };
        let mut state = self.state.borrow_mut();
        state.logical_bytes += logical;
        state.wire_bytes += FRAME_HEAD_BYTES + body;
        state.chooser.sent(FRAME_HEAD_BYTES + body);
        drop(state);
        up.link.send(operation)
    }

    /// What the error of a reply of link `number` means for the sender as a whole.
    fn failed_on(&self, number: u64, error: &IoError) {
        let now = self.world.now();
        let mut state = self.state.borrow_mut();
        state.unsync();
        let is_current = state.link.as_ref().is_some_and(|up| up.number == number);
        match error {
            IoError::Disconnected if is_current => state.lose_link(),
            IoError::Disconnected => {}
            // What was acknowledged before a poisoning may be lost like by a crash.
            IoError::Poisoned => {
                state.ledger.instance_changed();
                state.trouble.add(format!("the other side: {error}"), now);
            }
            _ => state.trouble.add(format!("the other side: {error}"), now),
        }
        drop(state);
        self.changed.notify_waiters();
    }
}

impl Tap for Sender {
    fn change(&self, change: &TapChange) -> Option<LocalFuture<'static, Result<(), IoError>>> {
        self.changing(change)
    }

    fn failed(&self, range: ByteRange) {
        let mut state = self.state.borrow_mut();
        state.local_failures += 1;
        if state.is_running() {
            state.ledger.mark(range);
            state.unsync();
        }
        drop(state);
        self.changed.notify_waiters();
    }

    fn flush(&self) -> Option<LocalFuture<'static, Result<(), IoError>>> {
        self.flushing()
    }
}
