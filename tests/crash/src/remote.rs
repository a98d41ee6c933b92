//! Blocks that are at another node, under crashes: marked, filled, overwritten, trimmed. After any crash a block is remote,
//! or holds exactly what it may hold; it never reads as zeros instead, and never as what it held before it was marked.
//!
//! A chain of lives as in [`crate::checks`], with a model of its own: the versions of a block are contents, or *remote*.
//! The other node has the same content of a block for ever.

use crate::{
    Finding,
    content::{Content, pattern},
    ensure,
    model::blocks,
    node::{Chance, EAGER, Images, Node, Observer, Parts, Setup, VOLUME},
};
use drover_base::{
    BlockMask, ByteRange, ExtentIndex, IoError,
    units::{BLOCK_BYTES, BLOCKS_PER_EXTENT, EXTENT_BYTES, EXTENTS_PER_REGION},
};
use drover_disk::Buffer;
use drover_sim::runtime::{Generator, Sim};
use drover_store::{StoreError, Unfenced, Volume, ZeroMode, fsck};
use futures::future::join_all;
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
    time::Duration,
};

const VOLUME_BYTES: u64 = 8 << 20;
/// Extents that requests go to; few, so that they meet.
const EXTENTS: [u64; 5] = [0, 1, 2, EXTENTS_PER_REGION - 1, EXTENTS_PER_REGION];
const ROUNDS: u64 = 14;
const LIVES: u64 = 3;
/// Of the moments worth a look, the share looked at.
const LOOKS_PERCENT: u64 = 12;
/// The other node's writes, by number.
const THERE: u64 = (1 << 23) - 1;

/// What a block is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Is {
    Here(Content),
    Remote,
}

/// The versions of one block from the last durable one on; the last may be in flight.
#[derive(Clone, Debug)]
struct History {
    first: u64,
    versions: VecDeque<Is>,
    in_flight: bool,
}

#[derive(Clone, Debug, Default)]
struct Model(BTreeMap<u64, History>);

/// One request. No two of a round touch one block.
#[derive(Clone, Debug)]
enum Op {
    Mark { extent: u64, mask: BlockMask },
    Fill(ByteRange),
    Write { range: ByteRange, serial: u64, fua: bool },
    Zero { range: ByteRange, may_unmap: bool },
    Read(ByteRange),
    Flush,
}

#[derive(Clone)]
struct Point {
    images: Images,
    model: Model,
    label: String,
}

struct Life {
    volume: Rc<Volume>,
    model: Rc<RefCell<Model>>,
}

impl History {
    fn new(is: Is) -> Self {
        Self { first: 0, versions: VecDeque::from([is]), in_flight: false }
    }

    fn completed(&self) -> u64 {
        self.first + self.versions.len() as u64 - 1 - u64::from(self.in_flight)
    }

    fn current(&self) -> &Is {
        &self.versions[(self.completed() - self.first) as usize]
    }

    fn raise_floor(&mut self, number: u64) {
        while self.first < number {
            self.versions.pop_front();
            self.first += 1;
        }
    }
}

impl Model {
    fn history(&mut self, block: u64) -> &mut History {
        self.0.entry(block).or_insert_with(|| History::new(Is::Here(Content::zero())))
    }

    fn begin(&mut self, block: u64, is: Is) {
        let history = self.history(block);
        history.versions.push_back(is);
        history.in_flight = true;
    }

    fn end(&mut self, blocks: &[u64], is_durable: bool) {
        for block in blocks {
            let history = self.history(*block);
            history.in_flight = false;
            if is_durable {
                history.raise_floor(history.completed());
            }
        }
    }

    fn moment(&self) -> Vec<(u64, u64)> {
        self.0.iter().map(|(block, history)| (*block, history.completed())).collect()
    }

    /// The volume was opened and the block found to be this.
    fn found(&mut self, block: u64, is: Is) -> Result<(), Finding> {
        let versions = &self.history(block).versions;
        ensure!(versions.contains(&is), "block {block} is {is:?}, not one of {versions:?}");
        *self.history(block) = History::new(is);
        Ok(())
    }
}

/// What the other node has in the block.
fn there(block: u64) -> Vec<u8> {
    pattern(THERE, block * BLOCK_BYTES, BLOCK_BYTES)
}

fn unexpected(error: impl std::fmt::Display) -> Finding {
    Finding(format!("unexpected: {error}"))
}

fn all_blocks() -> impl Iterator<Item = u64> {
    let of = |extent: &u64| extent * u64::from(BLOCKS_PER_EXTENT)..(extent + 1) * u64::from(BLOCKS_PER_EXTENT);
    EXTENTS.iter().flat_map(of).collect::<Vec<_>>().into_iter()
}

fn draw_range(random: &mut Generator) -> ByteRange {
    let first = random.below(u64::from(BLOCKS_PER_EXTENT));
    let count = random.between(1, u64::from(BLOCKS_PER_EXTENT) - first);
    let (first, count) = if random.below(4) == 0 { (0, u64::from(BLOCKS_PER_EXTENT)) } else { (first, count) };
    let offset = *random.pick(&EXTENTS) * EXTENT_BYTES + first * BLOCK_BYTES;
    ByteRange { offset, len: count * BLOCK_BYTES }
}

fn draw_round(random: &mut Generator, serial: &mut u64) -> Vec<(Duration, Op)> {
    let mut taken = BTreeSet::new();
    let mut ops = Vec::new();
    for _ in 0..random.between(1, 9) {
        let range = draw_range(random);
        if blocks(range).any(|block| !taken.insert(block)) {
            continue;
        }
        *serial += 1;
        ops.push(match random.below(10) {
            0..=2 => Op::Mark { extent: range.offset / EXTENT_BYTES, mask: range.block_mask() },
            3..=5 => Op::Fill(range),
            6 | 7 => Op::Write { range, serial: *serial, fua: random.below(5) == 0 },
            8 => Op::Zero { range, may_unmap: random.below(3) > 0 },
            _ => Op::Read(range),
        });
    }
    if random.below(2) == 0 {
        ops.push(Op::Flush);
    }
    let spread = *random.pick(&[1, 500, 3_000]);
    ops.into_iter().map(|op| (Duration::from_micros(random.below(spread)), op)).collect()
}

impl Life {
    async fn request(&self, op: Op) -> Result<(), Finding> {
        match op {
            Op::Mark { extent, mask } => {
                let first = extent * u64::from(BLOCKS_PER_EXTENT);
                let marked = mask.runs().flat_map(|(at, count)| (at..at + count).map(u64::from));
                let marked: Vec<u64> = marked.map(|at| first + at).collect();
                let range = ByteRange { offset: extent * EXTENT_BYTES, len: EXTENT_BYTES };
                let guard = self.volume.enqueue(range).await;
                marked.iter().for_each(|block| self.model.borrow_mut().begin(*block, Is::Remote));
                let done = self.volume.mark_remote_locked(&guard, &Unfenced, ExtentIndex(extent), mask).await;
                done.map_err(unexpected)?;
                self.model.borrow_mut().end(&marked, false);
            }
            Op::Fill(range) => {
                let is_remote = |block: &u64| *self.model.borrow_mut().history(*block).current() == Is::Remote;
                let filled: Vec<u64> = blocks(range).filter(is_remote).collect();
                let data: Vec<u8> = blocks(range).flat_map(there).collect();
                let guard = self.volume.enqueue(range).await;
                for block in &filled {
                    self.model.borrow_mut().begin(*block, Is::Here(Content::from_bytes(&there(*block))));
                }
                let done = self.volume.fill_locked(&guard, &Unfenced, range.offset, Buffer::from_slice(&data)).await;
                done.map_err(unexpected)?;
                self.model.borrow_mut().end(&filled, false);
            }
            Op::Write { range, serial, fua } => {
                let data = pattern(serial, range.offset, range.len);
                for (block, bytes) in blocks(range).zip(data.chunks(BLOCK_BYTES as usize)) {
                    self.model.borrow_mut().begin(block, Is::Here(Content::from_bytes(bytes)));
                }
                let data = Buffer::from_slice(&data);
                self.volume.write(&Unfenced, range.offset, data, fua).await.map_err(unexpected)?;
                self.model.borrow_mut().end(&blocks(range).collect::<Vec<_>>(), fua);
            }
            Op::Zero { range, may_unmap } => {
                for block in blocks(range) {
                    self.model.borrow_mut().begin(block, Is::Here(Content::zero()));
                }
                let zero = ZeroMode { may_unmap, fast_only: false };
                let done = self.volume.write_zeroes(&Unfenced, range.offset, range.len, zero, false).await;
                done.map_err(unexpected)?;
                self.model.borrow_mut().end(&blocks(range).collect::<Vec<_>>(), false);
            }
            Op::Read(range) => {
                for block in blocks(range) {
                    self.check(block).await?;
                }
            }
            Op::Flush => {
                let moment = self.model.borrow().moment();
                self.volume.flush(&Unfenced).await.map_err(unexpected)?;
                for (block, number) in moment {
                    self.model.borrow_mut().history(block).raise_floor(number);
                }
            }
        }
        Ok(())
    }

    /// A block that nobody changes meanwhile is what it was last made.
    async fn check(&self, block: u64) -> Result<(), Finding> {
        let is = look(&self.volume, block).await?;
        let expected = self.model.borrow_mut().history(block).current().clone();
        ensure!(is == expected, "block {block} is {is:?}, not {expected:?}");
        Ok(())
    }

    /// The volume is opened again while it runs.
    async fn reopen(&self, node: &Node) -> Result<(), Finding> {
        node.store.reopen(VOLUME).await.map_err(unexpected)?;
        for block in all_blocks() {
            let is = look(&self.volume, block).await?;
            self.model.borrow_mut().found(block, is)?;
        }
        Ok(())
    }
}

async fn look(volume: &Volume, block: u64) -> Result<Is, Finding> {
    let extent = ExtentIndex::containing(block * BLOCK_BYTES);
    let bit = BlockMask::span((block % u64::from(BLOCKS_PER_EXTENT)) as u32, 1);
    let is_remote = volume.remote_mask(extent).intersects(bit);
    ensure!(!is_remote || volume.data_mask(extent).contains(bit), "block {block} is remote and no data");
    match volume.read(&Unfenced, block * BLOCK_BYTES, BLOCK_BYTES).await {
        Ok(data) if !is_remote => Ok(Is::Here(Content::from_bytes(&data))),
        Err(IoError::Remote) if is_remote => Ok(Is::Remote),
        other => Err(Finding(format!("block {block} (remote: {is_remote}): {:?}", other.map(|_| ())))),
    }
}

fn lead(seed: u64, life: u64, setup: &Setup, images: &Images, model: Model) -> Result<Vec<Point>, Finding> {
    let sim = Sim::new(seed.wrapping_mul(1000) + life);
    let parts = Parts::new(sim.process("node").world(), images);
    let points: Rc<RefCell<Vec<Point>>> = Rc::default();
    let model = Rc::new(RefCell::new(model));
    let is_on = Rc::new(Cell::new(false));
    let observer: Observer = Rc::new({
        let chance = Chance(RefCell::new(sim.generator("crashes")));
        let (parts, points, model, is_on) = (parts.clone(), points.clone(), model.clone(), is_on.clone());
        move |what| {
            let draw = |bound| chance.0.borrow_mut().below(bound);
            if is_on.get() && draw(100) < LOOKS_PERCENT {
                let images = parts.crash_images(&chance, draw(4) != 0);
                let label = format!("crash point {} ({what})", points.borrow().len());
                let model = model.borrow().clone();
                points.borrow_mut().push(Point { images, model, label });
            }
        }
    });
    let (setup, mut random) = (*setup, sim.generator("plan"));
    let mut serial = life << 16;
    sim.block_on(async {
        let node = parts.open(&setup, observer).await.map_err(unexpected)?;
        let volume = node.store.create_volume(VOLUME, "v", VOLUME_BYTES).await.map_err(unexpected)?;
        is_on.set(true);
        let life = Life { volume, model };
        for number in 0..ROUNDS {
            let round = draw_round(&mut random, &mut serial);
            let told = format!("{round:?}");
            let requests = round.into_iter().map(|(delay, op)| {
                let (sim, life) = (&sim, &life);
                async move {
                    sim.sleep(delay).await;
                    life.request(op).await
                }
            });
            let mut results = join_all(requests).await;
            if random.below(8) == 0 {
                results.push(life.reopen(&node).await);
            }
            for block in all_blocks() {
                results.push(life.check(block).await);
            }
            let result = results.into_iter().collect::<Result<(), Finding>>();
            result.map_err(|finding| Finding(format!("round {number}: {finding}\n{told}")))?;
        }
        Ok(())
    })?;
    Ok(points.take())
}

/// Opens what the crash left: each block is what it may be; what is remote can be brought, and then nothing is missing and
/// no slot is lost. Returns the model to go on with.
fn verify(seed: u64, setup: &Setup, point: &Point) -> Result<Model, Finding> {
    let sim = Sim::new(seed);
    let parts = Parts::new(sim.process("node").world(), &point.images);
    sim.block_on(async {
        let report = fsck::check(&parts.meta, &point.images.slots()).await.map_err(unexpected)?;
        ensure!(report.problems.is_empty(), "fsck: {:?}", report.problems);
        let node = parts.open(setup, Rc::new(|_| ())).await.map_err(unexpected)?;
        let volume = node.store.volume(VOLUME).ok_or_else(|| Finding("the volume is gone".into()))?;
        ensure!(report.remote_blocks * BLOCK_BYTES == volume.remote_bytes(), "{report:?}");
        let mut model = point.model.clone();
        for block in all_blocks() {
            model.found(block, look(&volume, block).await?)?;
        }
        let life = Life { volume: volume.clone(), model: Rc::new(RefCell::new(model.clone())) };
        for extent in EXTENTS {
            let range = ByteRange { offset: extent * EXTENT_BYTES, len: EXTENT_BYTES };
            life.request(Op::Fill(range)).await?;
            life.request(Op::Read(range)).await?;
        }
        ensure!(volume.remote_bytes() == 0, "{} bytes are remote after all was brought", volume.remote_bytes());
        check_ending(&node, &volume).await?;
        Ok(model)
    })
    .map_err(|finding| Finding(format!("{}: {finding}", point.label)))
}

async fn check_ending(node: &Node, volume: &Volume) -> Result<(), Finding> {
    volume.flush(&Unfenced).await.map_err(unexpected)?;
    let (named, used) = (volume.usage().used_bytes / EXTENT_BYTES, node.slots_used());
    ensure!(used.iter().sum::<u64>() == named, "the volume names {named} slots, {used:?} are used");
    let deleted: Result<(), StoreError> = node.store.delete_volume(VOLUME).await;
    deleted.map_err(unexpected)?;
    ensure!(node.slots_used() == [0, 0], "{:?} slots are used by nobody", node.slots_used());
    Ok(())
}

/// Lives and crashes in turn, every crash point looked at. Returns how many there were.
pub fn remote_run(seed: u64) -> Result<usize, Finding> {
    let mut random = Generator::new(seed, "remote run");
    let setup = Setup { slots: [random.between(4, 20), 40], discard_pace: EAGER, ..Setup::draw(&mut random) };
    let (mut images, mut model, mut looked) = (Images::new(setup.slots), Model::default(), 0);
    for life in 0..LIVES {
        let told = |finding| Finding(format!("seed {seed}, life {life}: {finding}"));
        let points = lead(seed, life, &setup, &images, model.clone()).map_err(told)?;
        let next = random.below(points.len().max(1) as u64) as usize;
        for (at, point) in points.iter().enumerate() {
            let recovered = verify(seed, &setup, point).map_err(told)?;
            looked += 1;
            if at == next {
                (model, images) = (recovered, point.images.clone());
            }
        }
    }
    Ok(looked)
}
