//! What a sender knows, and what follows from it.

use super::announce::Announcer;
use super::bulk::Offers;
use super::compare::Compare;
use super::copy::Copier;
use super::layers::Layers;
use super::mirror::Outstanding;
use super::proof::ProofRun;
use super::scan::Scan;
use super::{OnLinkLoss, SenderConfig, Start};
use crate::Link;
use crate::ledger::Ledger;
use crate::level::Chooser;
use crate::pace::Pace;
use crate::rate::Rate;
use crate::throttle::Throttle;
use drover_base::planted::{Bug, is_planted};
use drover_base::units::region_count;
use drover_base::{InstanceId, Instant};
use drover_store::Volume;
use drover_wire::admin::{SendPhase, SendProgress};
use std::{collections::BTreeMap, rc::Rc, time::Duration};

/// Wait after a first failure, doubled with each further one.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(2);
/// Passes in a row with failures after which somebody must look at it: with the waits between them some ten seconds.
const TROUBLED_PASSES_MAX: u32 = 10;

/// A link, and the how manieth it is.
#[derive(Clone)]
pub struct Up {
    pub link: Rc<dyn Link>,
    pub number: u64,
}

/// Errors of either side that are not the link's, and how long to wait because of them.
#[derive(Default)]
pub struct Trouble {
    error: Option<String>,
    retry_at: Instant,
    wait: Duration,
    in_this_pass: bool,
    passes: u32,
}

impl Trouble {
    /// Many requests fail at once; they count as one as long as it is waited because of the first.
    pub fn add(&mut self, error: String, now: Instant) {
        self.error = Some(error);
        self.in_this_pass = true;
        if now >= self.retry_at {
            self.wait = (self.wait * 2).clamp(RETRY_FIRST, RETRY_MOST);
            self.retry_at = now + self.wait;
        }
    }

    pub fn pass_ended(&mut self) {
        if self.in_this_pass {
            self.passes += 1;
        } else {
            self.forget();
        }
        self.in_this_pass = false;
    }

    pub fn forget(&mut self) {
        *self = Self::default();
    }

    pub fn retry_at(&self) -> Instant {
        self.retry_at
    }

    pub fn is_hopeless(&self) -> bool {
        self.passes >= TROUBLED_PASSES_MAX
    }
}

pub struct State {
    pub ledger: Ledger,
    pub link: Option<Up>,
    /// Links there have been.
    pub links: u64,
    /// Whose acknowledgements the ledger holds.
    pub instance: Option<InstanceId>,
    started: bool,
    pub stopped: bool,
    /// Every write is to go to both sides as soon as little else is on its way.
    pub mirror_asked: bool,
    /// Every write goes to both sides.
    pub mirror: bool,
    /// The way back is recorded as closed: answers do not wait.
    pub alone: bool,
    hold: bool,
    pub paused: bool,
    pub draining: bool,
    pub drained: bool,
    /// Mirrors, and all else has arrived and is durable.
    pub synced: bool,
    /// Grows whenever `synced` is lost or could not come true by a flush that is on its way.
    pub unsynced: u64,
    pub layers: Layers,
    pub scan: Scan,
    pub copy: Copier,
    pub announcer: Announcer,
    pub compare: Compare,
    pub proof: Option<ProofRun>,
    pub throttle: Throttle,
    pub trouble: Trouble,
    /// Mirrored writes that were not answered yet, by age. Kept where answers may have to wait.
    pub outstanding: BTreeMap<u64, Outstanding>,
    pub writes: u64,
    /// Answers that wait for the other side, and since when.
    pub waiting: usize,
    pub waiting_since: Instant,
    /// The link on which a flush succeeded last.
    pub flushed_link: u64,
    /// Reads that wait for a flush on the present link.
    pub reads_wait: usize,
    /// Writes of this side that failed after they were put on the stream, or may have.
    pub local_failures: u64,
    /// Bytes of mirrored writes that are on their way, and writes that wait until there are fewer.
    pub mirrored_bytes: u64,
    pub room_waits: usize,
    pub flush_sent_at: Instant,
    pub flushed_at: Option<Instant>,
    pub acknowledged_since_flush: u64,
    pub logical_bytes: u64,
    pub wire_bytes: u64,
    pub deduplicated_bytes: u64,
    pub chooser: Chooser,
    pub offers: Offers,
    pub client_writes: Rate,
    pub pace: Pace,
}

impl State {
    pub fn new(config: &SenderConfig, now: Instant) -> Self {
        let hold = config.on_link_loss == OnLinkLoss::Hold;
        Self {
            ledger: if config.start == Start::AllData { Ledger::for_empty() } else { Ledger::default() },
            link: None,
            links: 0,
            instance: None,
            started: false,
            stopped: false,
            mirror_asked: hold,
            mirror: hold,
            alone: false,
            hold,
            paused: false,
            draining: false,
            drained: false,
            synced: false,
            unsynced: 0,
            layers: Layers::default(),
            scan: Scan::default(),
            copy: Copier::new(&config.options),
            announcer: Announcer::default(),
            compare: Compare::default(),
            proof: None,
            throttle: Throttle::new(config.options.throttle_bytes_per_s, now),
            trouble: Trouble::default(),
            outstanding: BTreeMap::new(),
            writes: 0,
            waiting: 0,
            waiting_since: now,
            flushed_link: 0,
            reads_wait: 0,
            local_failures: 0,
            mirrored_bytes: 0,
            room_waits: 0,
            flush_sent_at: now,
            flushed_at: None,
            acknowledged_since_flush: 0,
            logical_bytes: 0,
            wire_bytes: 0,
            deduplicated_bytes: 0,
            chooser: Chooser::new(now),
            offers: Offers::new(config.options.dedup),
            client_writes: Rate::default(),
            pace: Pace::new(now),
        }
    }

    pub fn begin(&mut self, volume: &Volume, config: &SenderConfig) {
        self.started = true;
        self.layers = Layers::of(volume, self.hold);
        if self.layers.is_open() {
            // The head stands on layers that hold data, at the other side too: nothing there is known to read as zero.
            self.ledger = Ledger::default();
        }
        self.scan = Scan::of(volume, config.start);
        if config.start == Start::Compare {
            self.compare = Compare::all(region_count(volume.size_bytes()));
        }
    }

    pub fn is_running(&self) -> bool {
        self.started && !self.stopped
    }

    /// Answers that the other side does not have must wait.
    pub fn must_hold(&self) -> bool {
        self.hold && !self.alone && !self.stopped
    }

    pub fn is_hold_kind(&self) -> bool {
        self.hold
    }

    pub fn lose_link(&mut self) {
        self.link = None;
        self.ledger.forget_announced();
        self.compare.link_lost();
        self.unsync();
        if let Some(proof) = &mut self.proof {
            proof.begin_again();
        }
    }

    pub fn unsync(&mut self) {
        self.synced = false;
        self.unsynced += 1;
    }

    /// Everything that is known to differ is sent, or announced to stay behind; only a flush is missing to be synced.
    pub fn wants_sync(&self) -> bool {
        let is_copied = self.copy.is_idle() || self.copy.is_hot_first();
        self.mirror
            && !self.synced
            && self.link.is_some()
            && !self.is_working_out()
            && is_copied
            && self.announcer.is_idle()
            && self.ledger.owes_nothing()
    }

    /// Everything is sent and acknowledged, mirrored writes included.
    pub fn is_all_sent(&self) -> bool {
        self.link.is_some()
            && !self.is_working_out()
            && self.copy.is_idle()
            && self.announcer.is_idle()
            && self.ledger.is_sent()
    }

    /// What is to be sent is not all known yet.
    pub fn is_working_out(&self) -> bool {
        self.scan.is_running() || self.compare.is_running() || self.are_layers_awaited()
    }

    /// Frozen layers are not all at the other side: nothing of the head may be put on the stream.
    pub fn are_layers_awaited(&self) -> bool {
        self.layers.is_open() && !is_planted(Bug::LayersNotAwaited)
    }

    pub fn is_failed(&self) -> bool {
        self.trouble.is_hopeless()
    }

    fn phase(&self) -> SendPhase {
        if self.is_failed() {
            SendPhase::Failed
        } else if self.drained {
            SendPhase::Drained
        } else if self.link.is_none() || self.scan.is_running() || self.layers.is_counting() {
            SendPhase::Connecting
        } else if self.are_layers_awaited() {
            SendPhase::Copying
        } else if self.compare.is_running() {
            SendPhase::Comparing
        } else if let Some(proof) = self.proof.as_ref().filter(|_| self.synced) {
            if proof.is_proven() { SendPhase::Proven } else { SendPhase::Proving }
        } else if self.synced {
            SendPhase::Synced
        } else if self.mirror {
            SendPhase::Mirroring
        } else if self.copy.rounds == 0 {
            SendPhase::Copying
        } else {
            SendPhase::Converging
        }
    }

    /// While mirrored writes go on, some blocks are always in flight or unflushed; once synced those do not count.
    pub fn dirty_bytes(&self) -> u64 {
        let pending = self.ledger.pending().bytes() - self.ledger.announced_bytes();
        if self.synced {
            return pending + self.copy.bytes_in_flight;
        }
        let layers = self.layers.left_bytes();
        let uncompared = if self.compare.is_running() { self.ledger.initial_left_bytes() } else { 0 };
        (pending + self.ledger.in_flight_bytes() + self.ledger.unflushed_bytes()).max(uncompared) + layers
    }

    pub fn progress(&self, config: &SenderConfig, coverage_permille: Option<u32>, now: Instant) -> SendProgress {
        let total_bytes = self.ledger.initial_bytes() + self.layers.total_bytes;
        let left_bytes = self.ledger.initial_left_bytes() + self.layers.left_bytes();
        SendProgress {
            migration: config.migration,
            generation: config.generation,
            phase: self.phase(),
            paused: self.paused,
            total_bytes,
            done_bytes: total_bytes - left_bytes,
            snapshots: self.layers.snapshots,
            dirty_bytes: self.dirty_bytes(),
            remote_bytes: self.ledger.announced_bytes(),
            coverage_permille,
            logical_bytes: self.logical_bytes,
            wire_bytes: self.wire_bytes,
            deduplicated_bytes: self.deduplicated_bytes,
            rounds: self.copy.rounds,
            ready_to_mirror: self.copy.ready && !self.are_layers_awaited(),
            link_up: self.link.is_some() && !self.alone,
            last_flush_ms_ago: self.flushed_at.map(|at| now.since(at).as_millis() as u64),
            client_write_bytes_per_s: self.client_writes.bytes_per_s(now),
            free_write_bytes_per_s: self.pace.free_bytes_per_s(),
            writes_wait: self.pace.waits(),
            proof: self.proof.as_ref().map(|proof| proof.figures.clone()),
            pull: None,
            error: self.trouble.error.clone(),
        }
    }
}
