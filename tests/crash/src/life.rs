//! One life of a node: rounds of requests beside the model, with crash points taken on the way.

use crate::{
    Finding,
    content::{Content, pattern},
    ensure,
    model::{Model, Named, blocks},
    node::{Chance, Images, Node, Observer, Parts, Setup, VOLUME, VOLUME_BYTES_AT_FIRST},
    plan::{Fault, Op, Planner, Round},
};
use drover_base::{
    ByteRange, IoError,
    units::{BLOCK_BYTES, EXTENT_BYTES},
};
use drover_disk::{Buffer, fault::Operation};
use drover_sim::runtime::Sim;
use drover_store::{StoreError, Unfenced, Volume, ZeroMode};
use futures::future::join_all;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::Duration,
};

/// What a crash at one moment could leave, and what must hold of it.
#[derive(Clone)]
pub struct CrashPoint {
    pub images: Images,
    pub model: Model,
    pub label: String,
}

/// How a life is led.
#[derive(Clone, Copy, Debug)]
pub struct Conduct {
    pub rounds: u64,
    /// Of the moments worth a look, the share looked at.
    pub looks_percent: u64,
}

/// Looks, a millisecond apart, after which a slot that was given up and is still used is lost: all I/O has ended.
const SLOT_LOOKS: u32 = 1000;

/// Takes crash points.
struct Camera {
    parts: Parts,
    model: RefCell<Model>,
    chance: Chance,
    looks_percent: u64,
    is_on: Cell<bool>,
    points: RefCell<Vec<CrashPoint>>,
}

impl Camera {
    fn look(&self, what: &str) {
        let draw = |bound| self.chance.0.borrow_mut().below(bound);
        // Writes end far more often than syncs; a look at one in eight is enough.
        let is_rare = what != "after a write" || draw(8) == 0;
        if self.is_on.get() && is_rare && draw(100) < self.looks_percent {
            let images = self.parts.crash_images(&self.chance, draw(4) != 0);
            let mut points = self.points.borrow_mut();
            let label = format!("crash point {} ({what})", points.len());
            points.push(CrashPoint { images, model: self.model.borrow().clone(), label });
        }
    }
}

struct Life {
    sim: Sim,
    node: Node,
    volume: Rc<Volume>,
    camera: Rc<Camera>,
    /// Ranges whose request failed in this round.
    failed: RefCell<Vec<ByteRange>>,
    /// Something was made to fail: errors are expected from then on.
    is_faulty: Cell<bool>,
}

/// Leads one life from `images`; returns its crash points, the last one taken when all was done.
pub fn lead(
    seed: u64,
    life: u64,
    setup: &Setup,
    images: &Images,
    model: Model,
    conduct: Conduct,
) -> Result<Vec<CrashPoint>, Finding> {
    let sim = Sim::new(seed.wrapping_mul(1000) + life);
    let world = sim.process("node").world();
    let camera = Rc::new(Camera {
        parts: Parts::new(world, images),
        model: RefCell::new(model),
        chance: Chance(RefCell::new(sim.generator("crashes"))),
        looks_percent: conduct.looks_percent,
        is_on: Cell::new(false),
        points: RefCell::default(),
    });
    let planner = Planner::new(sim.generator("plan"), life);
    sim.block_on(run(sim.clone(), *setup, camera.clone(), planner, conduct.rounds))?;
    Ok(camera.points.take())
}

async fn run(sim: Sim, setup: Setup, camera: Rc<Camera>, mut planner: Planner, rounds: u64) -> Result<(), Finding> {
    let observer: Observer = Rc::new({
        let camera = camera.clone();
        move |what| camera.look(what)
    });
    let node = camera.parts.open(&setup, observer).await.map_err(unexpected)?;
    let volume = match node.store.volume(VOLUME) {
        Some(volume) => volume,
        None => node.store.create_volume(VOLUME, "v", VOLUME_BYTES_AT_FIRST).await.map_err(unexpected)?,
    };
    camera.model.borrow_mut().sizes = [volume.size_bytes()].into();
    camera.is_on.set(true);
    let (failed, is_faulty) = (RefCell::default(), Cell::new(false));
    let life = Rc::new(Life { sim, node, volume, camera: camera.clone(), failed, is_faulty });
    for number in 0..rounds {
        let names: Vec<String> = life.model(|model| model.snapshots.keys().cloned().collect());
        let round = planner.round(&names, life.volume.size_bytes());
        let played = life.clone().play(round.clone()).await;
        if !played.map_err(|finding| Finding(format!("round {number}: {finding}\n{round:#?}")))? {
            camera.look("at the end");
            return Ok(());
        }
    }
    life.volume.merges_done().await;
    if life.settle().await? {
        life.check_slots().await?;
    }
    camera.look("at the end");
    Ok(())
}

fn unexpected(error: StoreError) -> Finding {
    Finding(format!("unexpected: {error}"))
}

impl Life {
    fn model<T>(&self, with: impl FnOnce(&mut Model) -> T) -> T {
        with(&mut self.camera.model.borrow_mut())
    }

    /// False: the metadata is gone for good, and with it the life.
    async fn play(self: Rc<Self>, round: Round) -> Result<bool, Finding> {
        match round {
            Round::Together(ops) => {
                let ops = ops.into_iter().map(|(delay, op)| self.clone().request(delay, op));
                for result in join_all(ops).await {
                    result?;
                }
            }
            Round::Rollback { name } => self.roll_back(&name).await?,
            Round::Reopen => {
                if !self.reopen().await? {
                    return Ok(false);
                }
            }
        }
        self.settle().await
    }

    /// Reopens what is poisoned and looks everything over. False: the metadata is gone for good.
    async fn settle(&self) -> Result<bool, Finding> {
        // A merge in the background may meet a fault while the outcome is looked at.
        loop {
            if self.volume.is_poisoned() && !self.reopen().await? {
                return Ok(false);
            }
            match self.look_over().await {
                Err(_) if self.is_faulty.get() && self.volume.is_poisoned() => {}
                result => return result.map(|()| true),
            }
        }
    }

    async fn look_over(&self) -> Result<(), Finding> {
        self.settle_failed().await?;
        self.check_all().await
    }

    /// Opens the volume again, as often as a device's error stands in the way.
    async fn reopen(&self) -> Result<bool, Finding> {
        let mut result = self.node.store.reopen(VOLUME).await;
        for _ in 0..5 {
            if result.is_ok() || !self.is_faulty.get() {
                break;
            }
            result = self.node.store.reopen(VOLUME).await;
        }
        if self.is_faulty.get() && matches!(result, Err(StoreError::Meta(_))) {
            return Ok(false);
        }
        result.map_err(unexpected)?;
        let contents = match self.contents().await {
            // By a merge that went on; it will be reopened again.
            Err(_) if self.is_faulty.get() && self.volume.is_poisoned() => return Ok(true),
            contents => contents?,
        };
        self.failed.take();
        for (block, content) in contents {
            self.model(|model| model.reopened(block, &content))?;
        }
        self.model(|model| model.opened_with(self.volume.size_bytes()))?;
        let names = self.volume.snapshots().into_iter().map(|snapshot| snapshot.name).collect();
        self.model(|model| model.resolve_names(&names))?;
        Ok(true)
    }

    fn expected(&self, error: &IoError) -> bool {
        self.is_faulty.get() && matches!(error, IoError::Device | IoError::Poisoned)
    }

    /// An error of a change of snapshots, if it is not one that a fault explains.
    fn excused(&self, result: Result<(), StoreError>) -> Result<bool, Finding> {
        match result {
            Ok(()) => Ok(true),
            Err(StoreError::Poisoned) if self.is_faulty.get() => Ok(false),
            Err(StoreError::Io(error)) if self.expected(&error) => Ok(false),
            Err(error) => Err(unexpected(error)),
        }
    }

    fn arm(&self, fault: Fault) {
        self.is_faulty.set(true);
        match fault {
            Fault::Read { device, good } => self.node.faults[device].arm(Operation::Read, good),
            Fault::Write { device, good } => self.node.faults[device].arm(Operation::Write, good),
            Fault::Sync { device, good } => self.node.devices[device].fail_sync_after(good),
            Fault::Commit { good } => self.node.meta.fail_commit_after(good),
        }
    }

    async fn request(self: Rc<Self>, delay: Duration, op: Op) -> Result<(), Finding> {
        self.sim.sleep(delay).await;
        let volume = &self.volume;
        match op {
            Op::Read { range } => self.check_range(range).await,
            Op::Write { range, serial, fua } => {
                let data = pattern(serial, range.offset, range.len);
                self.model(|model| model.begin_write(range.offset, &data, fua));
                let data = Buffer::from_slice(&data);
                let result = volume.write(&Unfenced, range.offset, data, fua).await;
                self.changed(range, fua, result)
            }
            Op::Zero { range, may_unmap, fast_only, fua } => {
                self.model(|model| model.begin_write(range.offset, &vec![0; range.len as usize], fua));
                let zero = ZeroMode { may_unmap, fast_only };
                let result = volume.write_zeroes(&Unfenced, range.offset, range.len, zero, fua).await;
                self.changed(range, fua, result)
            }
            Op::Trim { range, fua } => {
                let start = range.offset.next_multiple_of(BLOCK_BYTES);
                let end = range.end() - range.end() % BLOCK_BYTES;
                let whole = ByteRange { offset: start, len: end.saturating_sub(start) };
                self.model(|model| model.begin_write(whole.offset, &vec![0; whole.len as usize], fua));
                let result = volume.trim(&Unfenced, range.offset, range.len, fua).await;
                self.changed(whole, fua, result)
            }
            Op::Flush => {
                let moment = self.model(|model| model.moment());
                match volume.flush(&Unfenced).await {
                    Ok(()) => self.model(|model| model.flushed(&moment)),
                    Err(error) => ensure!(self.expected(&error), "flush: {error}"),
                }
                Ok(())
            }
            Op::Snapshot { name } => self.snapshot(name).await,
            Op::DeleteSnapshot { name } => {
                self.model(|model| {
                    if let Some(Named::There(frozen)) = model.snapshots.get(&name).cloned() {
                        model.snapshots.insert(name.clone(), Named::Going(frozen));
                    }
                });
                if self.excused(volume.delete_snapshot(&name).await)? {
                    self.model(|model| model.snapshots.remove(&name));
                }
                Ok(())
            }
            Op::Grow { size_bytes } => {
                self.model(|model| model.begin_grow(size_bytes));
                if self.excused(volume.grow(size_bytes).await)? {
                    self.model(|model| model.sizes = [size_bytes].into());
                }
                Ok(())
            }
            Op::Fault(fault) => {
                self.arm(fault);
                Ok(())
            }
        }
    }

    fn changed(&self, range: ByteRange, fua: bool, result: Result<(), IoError>) -> Result<(), Finding> {
        match result {
            Ok(()) => self.model(|model| {
                model.end(range);
                if fua {
                    model.flushed_range(range);
                }
            }),
            Err(error) if matches!(error, IoError::NoSpace | IoError::NotFast) || self.expected(&error) => {
                self.model(|model| model.failed(range));
                self.failed.borrow_mut().push(range);
            }
            Err(error) => return Err(Finding(format!("unexpected: {error}"))),
        }
        Ok(())
    }

    async fn snapshot(&self, name: String) -> Result<(), Finding> {
        let moment = self.model(|model| model.begin_snapshot(&name));
        if !self.excused(self.volume.snapshot(&name).await)? {
            return Ok(());
        }
        self.model(|model| {
            let frozen = model.frozen_since(&moment);
            model.snapshots.insert(name, Named::There(frozen));
            model.flushed(&moment);
        });
        Ok(())
    }

    async fn roll_back(&self, name: &str) -> Result<(), Finding> {
        let frozen = self.model(|model| {
            let frozen = model.frozen(&model.snapshots[name]);
            model.begin_rollback(&frozen);
            model.sizes.extend(model.snapshot_sizes[name].clone());
            frozen
        });
        if !self.excused(self.volume.rollback(name).await)? {
            return Ok(());
        }
        let contents = match self.contents().await {
            Err(_) if self.is_faulty.get() && self.volume.is_poisoned() => return Ok(()),
            contents => contents?,
        };
        for (block, content) in &contents {
            let allowed = frozen.get(block).cloned().unwrap_or_else(|| [Content::zero()].into());
            ensure!(allowed.contains(content), "block {block} of snapshot {name} is {content:?}, not {allowed:?}");
            self.model(|model| model.end_rollback(*block, content));
        }
        let size = self.volume.size_bytes();
        self.model(|model| model.went_back_to(name, size))?;
        // Now it is known, and must stay so.
        let exact = contents.into_iter().map(|(block, content)| (block, [content].into())).collect();
        self.model(|model| model.snapshots.insert(name.into(), Named::There(exact)));
        Ok(())
    }

    async fn settle_failed(&self) -> Result<(), Finding> {
        for range in self.failed.take() {
            for block in blocks(range) {
                let content = self.read_again(&[block]).await?.remove(&block).expect("it was asked for");
                self.model(|model| model.settle(block, &content))?;
            }
        }
        Ok(())
    }

    async fn check_range(&self, range: ByteRange) -> Result<(), Finding> {
        let moment = self.model(|model| model.moment());
        let data = match self.volume.read(&Unfenced, range.offset, range.len).await {
            Ok(data) => data,
            Err(error) if self.expected(&error) => return Ok(()),
            Err(error) => return Err(Finding(format!("read: {error}"))),
        };
        ensure!(data.len() as u64 == range.len, "a read of {range:?} returned {} bytes", data.len());
        for block in blocks(range) {
            let start = (block * BLOCK_BYTES).max(range.offset);
            let end = ((block + 1) * BLOCK_BYTES).min(range.end());
            let bytes = &data[(start - range.offset) as usize..(end - range.offset) as usize];
            self.model(|model| model.check_read(&moment, block, (start % BLOCK_BYTES) as usize, bytes))?;
        }
        Ok(())
    }

    /// Every block with a history holds what was last answered, and holes are told right.
    async fn check_all(&self) -> Result<(), Finding> {
        let moment = self.model(|model| model.moment());
        for (block, content) in self.contents().await? {
            self.model(|model| model.check_read(&moment, block, 0, content.bytes()))?;
            if block * BLOCK_BYTES >= self.volume.size_bytes() {
                continue;
            }
            let status = self.volume.block_status(block * BLOCK_BYTES, BLOCK_BYTES, 1);
            let is_told_zero = matches!(status.as_deref(), Ok([(BLOCK_BYTES, status)]) if status.zero);
            ensure!(!is_told_zero || content == Content::zero(), "block {block} is told zero, holds {content:?}");
        }
        Ok(())
    }

    async fn contents(&self) -> Result<BTreeMap<u64, Content>, Finding> {
        self.read_again(&self.model(|model| model.touched())).await
    }

    /// Reads blocks, again where a device was made to fail.
    async fn read_again(&self, blocks: &[u64]) -> Result<BTreeMap<u64, Content>, Finding> {
        for _ in 0..3 {
            match read_all(&self.volume, blocks).await {
                Err(_) if self.is_faulty.get() => {}
                result => return result,
            }
        }
        read_all(&self.volume, blocks).await
    }

    /// When all is flushed and merged, the tiers' slots are the volume's: a start would find out again which are used,
    /// and hide that one was lost while the node ran.
    async fn check_slots(&self) -> Result<(), Finding> {
        while let Err(error) = self.volume.flush(&Unfenced).await {
            ensure!(self.expected(&error) || self.volume.is_poisoned(), "the last flush: {error}");
            if self.volume.is_poisoned() && !self.reopen().await? {
                return Ok(());
            }
            self.volume.merges_done().await;
        }
        let named = || self.volume.usage().used_bytes / EXTENT_BYTES;
        let used = || self.node.slots_used().iter().sum::<u64>();
        for _ in 0..SLOT_LOOKS {
            if used() == named() {
                return Ok(());
            }
            self.sim.sleep(Duration::from_millis(1)).await;
        }
        Err(Finding(format!("{} slots are named, {} used", named(), used())))
    }
}

/// The contents of ascending `blocks`, those that follow each other read together; past the volume's end are zeros.
pub async fn read_all(volume: &Volume, blocks: &[u64]) -> Result<BTreeMap<u64, Content>, Finding> {
    let end = volume.size_bytes() / BLOCK_BYTES;
    let (blocks, past) = blocks.split_at(blocks.partition_point(|block| *block < end));
    let mut contents: BTreeMap<u64, Content> = past.iter().map(|block| (*block, Content::zero())).collect();
    for run in blocks.chunk_by(|a, b| a + 1 == *b) {
        let len = run.len() as u64 * BLOCK_BYTES;
        let data = volume.read(&Unfenced, run[0] * BLOCK_BYTES, len).await;
        let data = data.map_err(|error| Finding(format!("reading block {}: {error}", run[0])))?;
        let of = data.chunks_exact(BLOCK_BYTES as usize).map(Content::from_bytes);
        contents.extend(run.iter().copied().zip(of));
    }
    Ok(contents)
}
