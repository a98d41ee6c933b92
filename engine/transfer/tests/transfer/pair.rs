//! A sending and a receiving side with what is between them.

use crate::clients::Model;
use crate::side::{Side, VOLUME_BYTES};
use crate::wire::Wire;
use drover_base::units::{BLOCK_BYTES, EXTENT_BYTES};
use drover_base::{ByteRange, ExtentIndex, Generation, MigrationId, RegionIndex};
use drover_sim::runtime::Sim;
use drover_store::{Tap, Unfenced};
use drover_transfer::{
    OnLinkLoss, Puller, PullerConfig, Ranking, Receiver, Sender, SenderConfig, Start, TransferError,
};
use drover_wire::admin::{Position, SendOptions, SendPhase, SendProgress};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

pub struct Pair {
    pub sim: Sim,
    pub from: Side,
    pub to: Side,
    pub model: Rc<Model>,
    pub sender: Rc<Sender>,
    pub receiver: Rc<Receiver>,
    pub wire: Option<Wire>,
    sessions: Cell<u64>,
    seen: RefCell<Option<SendProgress>>,
}

/// So little that clients meet it.
pub const MIRRORED_BYTES_MAX: u64 = 64 << 10;

/// Extents that are accessed, the first most.
pub fn hot_extents() -> Vec<(ExtentIndex, f32)> {
    [129, 70, 66, 40, 3]
        .into_iter()
        .enumerate()
        .map(|(at, extent)| (ExtentIndex(extent), 1000.0 - 100.0 * at as f32))
        .collect()
}

/// Written coldest: regions 1, 5, 9 … Accessed most: regions 1, 4, 7 …
pub struct Ranked;

impl Ranking for Ranked {
    fn write_rank(&self, region: RegionIndex) -> u64 {
        [2, 0, 3, 1][region.0 as usize % 4]
    }
    fn heat_rank(&self, region: RegionIndex) -> u64 {
        [5, 9, 1][region.0 as usize % 3]
    }
    fn hot_extents(&self) -> (Vec<(ExtentIndex, f32)>, f32) {
        let hot = hot_extents();
        let total = hot.iter().map(|(_, heat)| heat).sum();
        (hot, total)
    }
}

pub fn options() -> SendOptions {
    SendOptions { throttle_bytes_per_s: None, mirror_at_once: false, hot_first: false, dedup: true }
}

pub fn config(on_link_loss: OnLinkLoss, start: Start, options: SendOptions) -> SenderConfig {
    SenderConfig {
        migration: MigrationId(3),
        generation: Generation(1),
        options,
        on_link_loss,
        start,
        ranking: Rc::new(Ranked),
        mirrored_bytes_max: MIRRORED_BYTES_MAX,
        stretch_regions: 1,
    }
}

fn receiver(side: &Side) -> Rc<Receiver> {
    Receiver::new(side.world.clone(), side.volume.clone(), Rc::new(Unfenced))
}

impl Pair {
    /// A filled source, an empty destination, tracking just begun; not connected.
    pub async fn new(sim: &Sim, options: SendOptions) -> Self {
        let from = Side::new(sim, "source").await;
        let model = Rc::new(Model::default());
        model.fill(&from).await;
        Self::of(sim, from, model, options).await
    }

    /// The same with a source and a model that exist.
    pub async fn of(sim: &Sim, from: Side, model: Rc<Model>, options: SendOptions) -> Self {
        Self::tracking(sim, from, model, options, false).await
    }

    /// `is_frozen`: the base exists, so tracking begins behind a barrier of its own.
    pub async fn tracking(sim: &Sim, from: Side, model: Rc<Model>, options: SendOptions, is_frozen: bool) -> Self {
        let to = Side::new(sim, "destination").await;
        let config = config(OnLinkLoss::FallBack, Start::AllData, options);
        let sender = Sender::new(from.world.clone(), from.volume.clone(), Rc::new(Unfenced), config);
        let begin = || {
            from.volume.set_tap(Some(sender.clone() as Rc<dyn Tap>));
            sender.start();
        };
        match is_frozen {
            true => from.volume.barrier(begin).await,
            false => from.volume.snapshot_with("drover-3", begin).await.unwrap(),
        }
        Self::with(sim, from, to, model, sender)
    }

    fn with(sim: &Sim, from: Side, to: Side, model: Rc<Model>, sender: Rc<Sender>) -> Self {
        let receiver = receiver(&to);
        let (sessions, seen) = (Cell::new(0), RefCell::new(None));
        Self { sim: sim.clone(), from, to, model, sender, receiver, wire: None, sessions, seen }
    }

    /// After a drain: the roles change. The new sender starts with what is stated, and is not connected yet.
    pub async fn turn(self, start: Start) -> Self {
        self.from.volume.set_tap(None);
        self.sender.stop();
        if let Some(wire) = &self.wire {
            wire.cut();
            wire.ended().await;
        }
        self.receiver.drained().await;
        let (from, to) = (self.to, self.from);
        let config = config(OnLinkLoss::Hold, start, options());
        let sender = Sender::new(from.world.clone(), from.volume.clone(), Rc::new(Unfenced), config);
        let begin = || {
            from.volume.set_tap(Some(sender.clone() as Rc<dyn Tap>));
            sender.start();
        };
        from.volume.barrier(begin).await;
        Self::with(&self.sim, from, to, self.model, sender)
    }

    /// A flip that did not wait: of what the source holds, the new holder has every extent that `is_copied`; the rest is
    /// remote. Not connected.
    pub async fn flipped_early(sim: &Sim, is_copied: impl Fn(ExtentIndex) -> bool) -> Self {
        let from = Side::new(sim, "source").await;
        let model = Rc::new(Model::default());
        model.fill(&from).await;
        let to = Side::new(sim, "destination").await;
        for extent in (0..VOLUME_BYTES.div_ceil(EXTENT_BYTES)).map(ExtentIndex) {
            let data = from.volume.data_mask(extent);
            let range = ByteRange { offset: extent.offset(), len: EXTENT_BYTES.min(VOLUME_BYTES - extent.offset()) };
            let (here, there) = (from.volume.enqueue(range).await, to.volume.enqueue(range).await);
            if !is_copied(extent) {
                to.volume.mark_remote_locked(&there, &Unfenced, extent, data).await.unwrap();
                continue;
            }
            for (first, count) in data.runs() {
                let (at, len) = (u64::from(first) * BLOCK_BYTES, u64::from(count) * BLOCK_BYTES);
                let part = ByteRange { offset: extent.offset() + at, len };
                let bytes = from.volume.read_locked(&here, part).await.unwrap();
                to.volume.write_locked(&there, &Unfenced, part.offset, bytes).await.unwrap();
            }
        }
        model.adopt(&from.content().await);
        from.volume.flush(&Unfenced).await.unwrap();
        to.volume.flush(&Unfenced).await.unwrap();
        let config = config(OnLinkLoss::Hold, Start::Clean, options());
        let sender = Sender::new(to.world.clone(), to.volume.clone(), Rc::new(Unfenced), config);
        to.volume.set_tap(Some(sender.clone() as Rc<dyn Tap>));
        sender.start();
        Self::with(sim, to, from, model, sender)
    }

    /// Who brings what is remote, at work.
    pub fn puller(&self, config: PullerConfig) -> Rc<Puller> {
        let (world, volume, sender) = (self.from.world.clone(), self.from.volume.clone(), self.sender.clone());
        let puller = Puller::new(world, volume, Rc::new(Unfenced), sender, config);
        puller.start();
        puller
    }

    /// The sending node crashed (its clients with it) and starts again with a sender that compares.
    pub async fn sending_side_crashes(&mut self, on_link_loss: OnLinkLoss) {
        self.sending_side_crashes_with(on_link_loss, options()).await;
    }

    pub async fn sending_side_crashes_with(&mut self, on_link_loss: OnLinkLoss, options: SendOptions) {
        self.model.forget_clients();
        self.from.crash().await;
        self.cut_off().await;
        let config = config(on_link_loss, Start::Compare, options);
        let sender = Sender::new(self.from.world.clone(), self.from.volume.clone(), Rc::new(Unfenced), config);
        self.from.volume.set_tap(Some(sender.clone() as Rc<dyn Tap>));
        sender.start();
        self.sender = sender;
        *self.seen.borrow_mut() = None;
    }

    pub fn connect(&mut self) -> Wire {
        self.sessions.set(self.sessions.get() + 1);
        let session = self.sessions.get();
        self.receiver = receiver(&self.to);
        let random = self.sim.generator(&format!("wire {session} of {}", self.from.name));
        let wire = Wire::new(session, self.to.instance, random, self.receiver.clone(), &self.to.world);
        self.sender.link_up(Rc::new(wire.clone()));
        self.wire = Some(wire.clone());
        wire
    }

    /// The link breaks; what is under way at the other side ends before this does.
    pub async fn cut_off(&mut self) {
        if let Some(wire) = self.wire.take() {
            wire.cut();
            if self.sim.generator("told").below(2) == 0 {
                self.sender.link_down();
            }
            wire.ended().await;
            self.receiver.drained().await;
        }
        self.sender.link_down();
    }

    pub async fn cut_and_connect(&mut self) {
        self.cut_off().await;
        self.connect();
    }

    /// The receiving node loses power and comes back; not connected.
    pub async fn receiving_side_crashes(&mut self) {
        if let Some(wire) = self.wire.take() {
            wire.cut();
        }
        self.to.crash().await;
        self.sender.link_down();
    }

    /// One write of a client, not waited for.
    pub fn begin_write(&self, block: u64) {
        let (volume, model) = (self.from.volume.clone(), self.model.clone());
        self.from.world.spawn(async move { model.write_block(&volume, block).await }).detach();
    }

    pub async fn sleep(&self, duration: Duration) {
        self.sim.sleep(duration).await;
    }

    /// The progress; its figures must never go back.
    pub fn progress(&self) -> SendProgress {
        let now = self.sender.progress();
        let mut seen = self.seen.borrow_mut();
        if let Some(before) = &*seen {
            let is_same_total = now.total_bytes == before.total_bytes || before.phase == SendPhase::Connecting;
            assert!(now.done_bytes >= before.done_bytes && is_same_total, "{before:?} {now:?}");
            assert!(now.logical_bytes >= before.logical_bytes && now.wire_bytes >= before.wire_bytes);
            assert!(now.rounds >= before.rounds && now.ready_to_mirror >= before.ready_to_mirror);
        }
        assert!(now.done_bytes <= now.total_bytes, "{now:?}");
        *seen = Some(now.clone());
        now
    }

    pub async fn until(&self, what: impl Fn(&SendProgress) -> bool) -> SendProgress {
        loop {
            let progress = self.progress();
            if what(&progress) {
                return progress;
            }
            self.sleep(Duration::from_millis(1)).await;
        }
    }

    pub async fn until_phase(&self, phase: SendPhase) -> SendProgress {
        self.until(|progress| progress.phase == phase).await
    }

    /// Copies, converges, mirrors until synced.
    pub async fn until_synced(&self) {
        self.until(|progress| progress.ready_to_mirror).await;
        self.sender.begin_mirror();
        self.until_phase(SendPhase::Synced).await;
    }

    /// Quiesces, drains, and says what differs; clients that run are cut short.
    pub async fn drain_and_compare(&mut self) -> Result<(), String> {
        let quiesced = self.from.volume.quiesce().await;
        let position = self.drain(Duration::from_secs(20)).await.map_err(|error| error.to_string())?;
        let session = self.sessions.get();
        assert!(position.session == session && position.sequence <= self.receiver.durable_position());
        assert_eq!(self.progress().phase, SendPhase::Drained);
        self.compare().await?;
        // All of it was flushed: a crash of both takes nothing.
        self.receiving_side_crashes().await;
        drop(quiesced);
        self.model.forget_clients();
        self.from.crash().await;
        self.compare().await
    }

    pub async fn drain(&self, within: Duration) -> Result<Position, TransferError> {
        let deadline = self.from.world.now() + within;
        self.sender.drain(deadline).await
    }

    /// Both sides by reading and by digest, and what the clients were told.
    pub async fn compare(&self) -> Result<(), String> {
        let (ours, theirs) = (self.from.content().await, self.to.content().await);
        if let Some(difference) = self.model.difference(&ours, self.from.name) {
            return Err(difference);
        }
        if let Some(difference) = self.model.difference(&theirs, self.to.name) {
            return Err(difference);
        }
        if let Some(at) = ours.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs) {
            return Err(format!("the sides differ at byte {at}"));
        }
        for extent in (0..VOLUME_BYTES.div_ceil(EXTENT_BYTES)).map(ExtentIndex) {
            if digests(&self.from, extent).await != digests(&self.to, extent).await {
                return Err(format!("the digests of extent {extent:?} differ"));
            }
        }
        Ok(())
    }

    /// Every block that is allocated at the destination is so at the source.
    pub fn check_thin(&self, source: &Side, destination: &Side) {
        for extent in (0..VOLUME_BYTES.div_ceil(EXTENT_BYTES)).map(ExtentIndex) {
            let (has, may) = (destination.volume.data_mask(extent), source.volume.data_mask(extent));
            assert!(may.contains(has), "{extent:?}: {has:?} is not within {may:?}");
        }
    }
}

async fn digests(side: &Side, extent: ExtentIndex) -> drover_store::ExtentDigests {
    let offset = extent.offset();
    let range = ByteRange { offset, len: EXTENT_BYTES.min(VOLUME_BYTES - offset) };
    let guard = side.volume.enqueue(range).await;
    side.volume.extent_content_locked(&guard, extent).await.unwrap().digests()
}

/// Runs a scenario under one seed.
pub fn run<T>(seed: u64, scenario: impl AsyncFnOnce(Sim) -> T) -> T {
    let sim = Sim::new(seed);
    sim.set_time_limit(Duration::from_secs(600));
    sim.clone().block_on(scenario(sim))
}

/// Runs a scenario that must succeed under each seed; `DROVER_SEEDS_TIMES` makes it that many times as many.
pub fn run_each(seeds: std::ops::Range<u64>, scenario: impl AsyncFn(Sim) -> Result<(), String>) {
    let times = std::env::var("DROVER_SEEDS_TIMES").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    let more = (1..times).map(|time| 1_000_000 * time).flat_map(|from| from + seeds.start..from + seeds.end);
    for seed in seeds.clone().chain(more) {
        if let Err(difference) = run(seed, &scenario) {
            panic!("seed {seed}: {difference}");
        }
    }
}
