//! Sending what the head stands on: the volume's frozen layers, from the bottom up, each as what it adds to the one below.
//!
//! ```text
//!   Begin ──► data and zeros, stretch by stretch, a flush after each ──► Freeze ──► the next layer … ──► Head
//!     └─ the other side has it ─────────────────────────────────────────────────────────┘
//! ```
//! Nobody writes to a frozen layer, so there are no locks, rounds or dirty blocks: a layer is sent once, and after an
//! error or on a new link it goes on behind the last stretch that a flush covers.
//!
//! Invariants
//! - A layer is frozen there on the link on which the last of it was acknowledged, and so by the instance that has it; the
//!   freezing makes it durable together with its name.
//! - Of the head nothing is put on the stream before `Head` was answered: until then the other side's head is a layer that is
//!   being built. Whatever clients write meanwhile is marked.

use super::scan::give_way;
use super::{FRAME_HEAD_BYTES, Sender, State, Step, Up};
use crate::compress::{POOL_BYTES_MIN, Piece, pack};
use crate::receiver::spec_of;
use drover_base::limits::SEND_WINDOW_BYTES;
use drover_base::planted::{Bug, is_planted};
use drover_base::units::{BLOCK_BYTES, EXTENT_BYTES};
use drover_base::{ByteRange, ExtentIndex, Instant, IoError, RegionIndex};
use drover_store::{FrozenLayer, Volume};
use drover_wire::layer::{LayerAnswer, LayerRequest};
use drover_wire::peer::{Answer, Operation};
use futures::{StreamExt, TryStreamExt, stream};
use std::rc::Rc;

/// Extents that are read and packed together.
const RUN_EXTENTS_MAX: usize = 4;

/// Runs on their way at once.
const RUNS_AT_ONCE: usize = 16;

const _: () = assert!((RUNS_AT_ONCE * RUN_EXTENTS_MAX) as u64 * EXTENT_BYTES <= SEND_WINDOW_BYTES);

/// How far the layers are. None, once the head follows: also where there were none.
#[derive(Default)]
pub struct Layers {
    plan: Vec<FrozenLayer>,
    /// What each holds; as many as were counted.
    bytes: Vec<u64>,
    /// Of the plan, what the other side has.
    have: usize,
    is_open: bool,
    /// The layer that is being sent was begun.
    is_begun: bool,
    /// Of the layer that is being sent: regions below are durable there.
    durable_to: u64,
    /// Bytes of the plan that were sent, or are there.
    done_bytes: u64,
    /// The layer that the head stands on.
    pub head_on: Option<FrozenLayer>,
    pub total_bytes: u64,
    /// Those that people made.
    pub snapshots: u64,
}

/// What to do next.
enum Task {
    Layer(FrozenLayer),
    Head,
}

/// Neighbouring extents of a layer.
struct LayerRun {
    data: Vec<ByteRange>,
    zero: Vec<ByteRange>,
    extents: usize,
}

impl Layers {
    /// `is_back`: of a mirror back, whose other side has them all.
    pub fn of(volume: &Volume, is_back: bool) -> Self {
        let plan = volume.frozen_layers();
        let snapshots = plan.iter().filter(|layer| layer.is_snapshot()).count() as u64;
        if is_back {
            return Self { snapshots, ..Self::default() };
        }
        let head_on = volume.head_stands_on(&plan).cloned();
        Self { is_open: !plan.is_empty(), plan, head_on, snapshots, ..Self::default() }
    }

    /// The other side's head is not the head yet.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    pub fn is_counting(&self) -> bool {
        self.bytes.len() < self.plan.len()
    }

    pub fn left_bytes(&self) -> u64 {
        self.total_bytes - self.done_bytes
    }

    fn bytes_before(&self, index: usize) -> u64 {
        self.bytes[..index].iter().sum()
    }

    /// So much of the layer that is being sent has come, now or on another link.
    fn came(&mut self, bytes: u64) {
        let end = self.bytes_before(self.have + 1);
        self.done_bytes = (self.done_bytes + bytes).min(end);
    }

    fn has_one_more(&mut self) {
        self.have += 1;
        (self.is_begun, self.durable_to) = (false, 0);
        self.done_bytes = self.bytes_before(self.have);
    }
}

impl State {
    fn layers_step(&mut self, now: Instant) -> Step<Option<(Up, Task)>> {
        if self.stopped || !self.layers.is_open {
            return Step::Done(None);
        }
        let Some(up) = self.link.clone().filter(|_| !self.is_failed() && (self.draining || !self.paused)) else {
            return Step::Wait;
        };
        if self.trouble.retry_at() > now {
            return Step::WaitUntil(self.trouble.retry_at());
        }
        let task = self.layers.plan.get(self.layers.have).map_or(Task::Head, |layer| Task::Layer(layer.clone()));
        Step::Done(Some((up, task)))
    }

    /// False: not on this link any more.
    fn layer_run_step(&mut self, link: u64, bytes: u64, now: Instant) -> Step<bool> {
        if self.stopped || self.link.as_ref().is_none_or(|up| up.number != link) {
            return Step::Done(false);
        }
        if self.paused && !self.draining {
            return Step::Wait;
        }
        match self.throttle.ready_at(now) {
            at if at > now && !self.draining => Step::WaitUntil(at),
            _ => {
                self.throttle.take(bytes, now);
                Step::Done(true)
            }
        }
    }
}

impl Sender {
    pub(super) async fn run_layers(self: Rc<Self>) {
        self.count_layers().await;
        while let Some((up, task)) = self.until(|state, now| state.layers_step(now)).await {
            let done = match &task {
                Task::Layer(layer) => self.bring_layer(layer, &up).await,
                Task::Head => self.bring_head(&up).await,
            };
            let mut state = self.state.borrow_mut();
            state.trouble.pass_ended();
            if done.is_ok() {
                match task {
                    Task::Layer(_) => state.layers.has_one_more(),
                    Task::Head => state.layers.is_open = false,
                }
                state.mirror_if_calm();
            }
            drop(state);
            self.changed.notify_waiters();
        }
    }

    async fn count_layers(&self) {
        let plan = self.state.borrow().layers.plan.clone();
        for layer in &plan {
            let bytes = self.volume.layer_bytes(layer).await;
            let mut state = self.state.borrow_mut();
            state.layers.bytes.push(bytes);
            state.layers.total_bytes += bytes;
        }
        self.changed.notify_waiters();
    }

    /// An error has been noted.
    async fn bring_layer(&self, layer: &FrozenLayer, up: &Up) -> Result<(), ()> {
        let resumes = self.state.borrow().layers.is_begun;
        let from = match self.ask(up, LayerRequest::Begin { layer: spec_of(layer), resumes }).await? {
            LayerAnswer::Have => return Ok(()),
            LayerAnswer::Begun { is_new: true } => RegionIndex(0),
            LayerAnswer::Begun { is_new: false } => RegionIndex(self.state.borrow().layers.durable_to),
            _ => return self.wrong_answer(up),
        };
        {
            let layers = &mut self.state.borrow_mut().layers;
            (layers.is_begun, layers.durable_to) = (true, from.0);
        }
        self.send_layer(layer, up, from).await?;
        match self.ask(up, LayerRequest::Freeze(spec_of(layer))).await? {
            LayerAnswer::Have => Ok(()),
            _ => self.wrong_answer(up),
        }
    }

    async fn bring_head(&self, up: &Up) -> Result<(), ()> {
        let on = self.state.borrow().layers.head_on.as_ref().map(|on| on.name.clone());
        match self.ask(up, LayerRequest::Head { on, size_bytes: self.volume.size_bytes() }).await? {
            LayerAnswer::Begun { .. } => Ok(()),
            _ => self.wrong_answer(up),
        }
    }

    async fn send_layer(&self, layer: &FrozenLayer, up: &Up, mut from: RegionIndex) -> Result<(), ()> {
        loop {
            let (runs, next) = self.stretch(layer, from).await.map_err(|error| self.trouble_here(&error))?;
            let sends =
                stream::iter(runs).map(|run| self.send_layer_run(layer, run, up)).buffer_unordered(RUNS_AT_ONCE);
            let sent = sends.try_for_each(|()| async { Ok(()) }).await;
            if !is_planted(Bug::LayerNamedIncomplete) {
                sent?;
            }
            let Some(next) = next else { return Ok(()) };
            if !is_planted(Bug::LayerResumedUnflushed) {
                // A failure has been noted by the flush itself.
                self.flush_once().await.map_err(drop)?;
            }
            let mut state = self.state.borrow_mut();
            if state.link.as_ref().is_none_or(|now| now.number != up.number) {
                return Err(());
            }
            state.layers.durable_to = next.0;
            from = next;
        }
    }

    /// What the layer says from a region on, for so many regions, and where the next stretch begins.
    async fn stretch(
        &self,
        layer: &FrozenLayer,
        from: RegionIndex,
    ) -> Result<(Vec<LayerRun>, Option<RegionIndex>), IoError> {
        let (mut runs, mut at) = (Vec::new(), from);
        for _ in 0..self.config.stretch_regions {
            let Some(region) = self.volume.layer_region(layer, at)? else { return Ok((runs, None)) };
            let mut run = LayerRun::new();
            for extent in region.extents() {
                self.add_extent(layer, extent, &mut run)?;
                if run.extents == RUN_EXTENTS_MAX {
                    runs.push(std::mem::replace(&mut run, LayerRun::new()));
                }
            }
            runs.extend(Some(run).filter(|run| run.extents > 0));
            at = RegionIndex(region.0 + 1);
            give_way().await;
        }
        let next = self.volume.layer_region(layer, at)?;
        Ok((runs, next))
    }

    fn add_extent(&self, layer: &FrozenLayer, extent: ExtentIndex, run: &mut LayerRun) -> Result<(), IoError> {
        let masks = self.volume.layer_masks(layer, extent)?;
        extent.add_blocks(masks.data, &mut run.data);
        if !is_planted(Bug::LayerHiddenAsBelow) {
            extent.add_blocks(masks.zero, &mut run.zero);
        }
        run.extents += usize::from(!masks.all().is_empty());
        Ok(())
    }

    async fn send_layer_run(&self, layer: &FrozenLayer, run: LayerRun, up: &Up) -> Result<(), ()> {
        let bytes = run.data.iter().map(|range| range.len).sum();
        if !self.until(|state, now| state.layer_run_step(up.number, bytes, now)).await {
            return Err(());
        }
        self.fence.check().map_err(|error| self.trouble_here(&error))?;
        let mut read = Vec::with_capacity(run.data.len());
        for range in &run.data {
            let data = self.volume.read_layer(layer, *range).await.map_err(|error| self.trouble_here(&error))?;
            read.push((range.offset, data));
        }
        let level = self.state.borrow().chooser.level();
        let work = move || read.into_iter().flat_map(|(offset, data)| pack(offset, data, level)).collect::<Vec<_>>();
        let mut pieces = if bytes < POOL_BYTES_MIN as u64 { work() } else { self.world.offload(work).await };
        pieces.extend(run.zero.into_iter().map(Piece::Zero));
        self.give_back(bytes, pieces.iter().map(|piece| FRAME_HEAD_BYTES + piece.body_bytes()).sum());
        let replies: Vec<_> = pieces.into_iter().map(|piece| self.put(up, operation_of(piece))).collect();
        for reply in futures::future::join_all(replies).await {
            match reply {
                Ok(Answer::Done) => {}
                Ok(_) => return self.wrong_answer(up),
                Err(error) => {
                    self.failed_on(up.number, &error);
                    return Err(());
                }
            }
        }
        self.state.borrow_mut().layers.came(bytes / BLOCK_BYTES * BLOCK_BYTES);
        Ok(())
    }

    /// Asks about layers on the link; an error has been noted.
    pub(super) async fn ask(&self, up: &Up, request: LayerRequest) -> Result<LayerAnswer, ()> {
        match self.put(up, Operation::Layer(Box::new(request))).await {
            Ok(Answer::Layer(answer)) => Ok(*answer),
            Ok(_) => self.wrong_answer(up),
            Err(error) => {
                self.failed_on(up.number, &error);
                Err(())
            }
        }
    }

    pub(super) fn wrong_answer<T>(&self, up: &Up) -> Result<T, ()> {
        self.failed_on(up.number, &IoError::Corrupt);
        Err(())
    }
}

impl LayerRun {
    fn new() -> Self {
        Self { data: Vec::new(), zero: Vec::new(), extents: 0 }
    }
}

/// Zeros are holes where nothing is below, and hide what is: thin stays thin.
fn operation_of(piece: Piece) -> Operation {
    match piece {
        Piece::Data { offset, payload } => Operation::Write { offset, data: payload, fua: false, replay: false },
        Piece::Zero(range) => Operation::Zero { range, may_unmap: true, fast_only: false, fua: false, replay: false },
    }
}
