//! Several shards over the same tiers: volumes that want each other's slots and meet each other's failures, until the
//! node crashes and starts with another number of shards.

use crate::{
    Finding, ensure,
    layers::MemoryPlace,
    node::{EAGER, Images, Node, Parts},
};
use drover_base::{
    IoError, VolumeId,
    units::{BLOCK_BYTES, BLOCKS_PER_EXTENT, EXTENT_BYTES},
};
use drover_disk::Buffer;
use drover_sim::runtime::{Generator, Sim};
use drover_store::{StoreConfig, StoreError, Unfenced, Volume, checkpoint::CheckpointPlace, fsck, home_shard};
use futures::future::{Either, select, try_join_all};
use std::{cell::RefCell, collections::BTreeSet, pin::pin, rc::Rc, time::Duration};

const VOLUMES: u64 = 4;
const EXTENTS: u64 = 8;
const BLOCKS: usize = (EXTENTS * BLOCKS_PER_EXTENT as u64) as usize;

/// A fault in another shard may meet a reopening; how often it is tried again.
const REOPENINGS_MAX: usize = 8;

/// A block is full of one byte, which tells the volume it was written to; zero is nobody's.
fn byte_of(volume: u64, serial: u64) -> u8 {
    (1 + volume + VOLUMES * (serial % 60)) as u8
}

#[derive(Clone)]
struct Block {
    now: u8,
    /// What a crash may leave.
    possible: BTreeSet<u8>,
}

/// What is known of one volume. Its requests come one after the other.
#[derive(Clone)]
struct Model(Vec<Block>);

impl Model {
    fn new() -> Self {
        Self(vec![Block { now: 0, possible: BTreeSet::from([0]) }; BLOCKS])
    }

    fn begin(&mut self, blocks: std::ops::Range<usize>, byte: u8) {
        for block in &mut self.0[blocks] {
            block.possible.insert(byte);
        }
    }

    fn done(&mut self, blocks: std::ops::Range<usize>, byte: u8, is_durable: bool) {
        for block in &mut self.0[blocks] {
            block.now = byte;
            if is_durable {
                block.possible = BTreeSet::from([byte]);
            }
        }
    }

    fn flushed(&mut self) {
        self.0.iter_mut().for_each(|block| block.possible = BTreeSet::from([block.now]));
    }

    /// After an opening all that is seen is durable, and nothing else may be seen.
    fn opened(&mut self, data: &[u8]) -> Result<(), Finding> {
        for (at, (block, bytes)) in self.0.iter_mut().zip(data.chunks(BLOCK_BYTES as usize)).enumerate() {
            let byte = bytes[0];
            ensure!(bytes.iter().all(|other| *other == byte), "block {at} is torn");
            ensure!(block.possible.contains(&byte), "block {at} has {byte}, not one of {:?}", block.possible);
            *block = Block { now: byte, possible: BTreeSet::from([byte]) };
        }
        Ok(())
    }

    fn check(&self, data: &[u8]) -> Result<(), Finding> {
        for (at, (block, bytes)) in self.0.iter().zip(data.chunks(BLOCK_BYTES as usize)).enumerate() {
            let stranger = bytes.iter().find(|byte| **byte != block.now);
            ensure!(stranger.is_none(), "block {at} shows {stranger:?} for {}", block.now);
        }
        Ok(())
    }
}

/// One volume on its home shard.
struct Tenant {
    index: u64,
    node: Rc<Node>,
    volume: Rc<Volume>,
    model: Rc<RefCell<Model>>,
}

impl Tenant {
    /// Requests, one after the other, until the node crashes.
    async fn live(&self, sim: &Sim, mut random: Generator) -> Result<(), Finding> {
        for serial in 0.. {
            sim.sleep(Duration::from_micros(random.below(300))).await;
            let result = self.request(&mut random, serial).await?;
            match result {
                Ok(()) | Err(IoError::NoSpace) => {}
                Err(IoError::Device | IoError::Poisoned) => {
                    if !self.reopen().await? {
                        // Until the node starts again.
                        std::future::pending::<()>().await;
                    }
                }
                Err(error) => return Err(Finding(format!("volume {}: {error}", self.index))),
            }
        }
        Ok(())
    }

    async fn request(&self, random: &mut Generator, serial: u64) -> Result<Result<(), IoError>, Finding> {
        let (volume, model) = (&self.volume, &self.model);
        let (extent, is_durable) = (random.below(EXTENTS), random.below(3) == 0);
        let offset = extent * EXTENT_BYTES;
        let blocks = (extent * BLOCKS_PER_EXTENT as u64) as usize..((extent + 1) * BLOCKS_PER_EXTENT as u64) as usize;
        let byte = match random.below(8) {
            0 => {
                let flushed = volume.flush(&Unfenced).await;
                if flushed.is_ok() {
                    model.borrow_mut().flushed();
                }
                return Ok(flushed);
            }
            1 => {
                let read = volume.read(&Unfenced, 0, EXTENTS * EXTENT_BYTES).await;
                return read.map_or_else(|error| Ok(Err(error)), |data| self.check(&data).map(Ok));
            }
            2 if self.node.store.is_first() => {
                // Refused, at most, where a commit has failed.
                let _ = self.node.store.checkpoint().await;
                return Ok(Ok(()));
            }
            3 | 4 => 0,
            _ => byte_of(self.index, serial),
        };
        model.borrow_mut().begin(blocks.clone(), byte);
        let result = match byte {
            0 => volume.trim(&Unfenced, offset, EXTENT_BYTES, is_durable).await,
            _ => volume.write(&Unfenced, offset, filled(byte), is_durable).await,
        };
        if result.is_ok() {
            model.borrow_mut().done(blocks, byte, is_durable);
        }
        Ok(result)
    }

    fn check(&self, data: &[u8]) -> Result<(), Finding> {
        let checked = self.model.borrow().check(data);
        checked.map_err(|finding| Finding(format!("volume {}: {finding}", self.index)))
    }

    /// False: metadata, which all shards share, has failed for good.
    async fn reopen(&self) -> Result<bool, Finding> {
        let mut last = None;
        for _ in 0..REOPENINGS_MAX {
            let reopened = self.node.store.reopen(self.volume.id()).await;
            let read = match reopened {
                Ok(()) => self.volume.read(&Unfenced, 0, EXTENTS * EXTENT_BYTES).await.map_err(StoreError::from),
                Err(error) => Err(error),
            };
            match read {
                Ok(data) => return self.opened(&data).map(|()| true),
                Err(StoreError::Meta(_)) => {
                    let read = self.volume.read(&Unfenced, 0, BLOCK_BYTES).await;
                    ensure!(read == Err(IoError::Poisoned), "volume {} without metadata: {read:?}", self.index);
                    return Ok(false);
                }
                Err(error) => last = Some(error),
            }
        }
        Err(Finding(format!("volume {} is not opened again: {last:?}", self.index)))
    }

    fn opened(&self, data: &[u8]) -> Result<(), Finding> {
        let opened = self.model.borrow_mut().opened(data);
        opened.map_err(|finding| Finding(format!("volume {}, opened: {finding}", self.index)))
    }
}

fn filled(byte: u8) -> Buffer {
    Buffer::from_slice(&vec![byte; EXTENT_BYTES as usize])
}

/// The volumes on so many shards, each looked at.
async fn open(
    parts: &Parts,
    shards: u32,
    has_checkpoint: bool,
    models: &[Rc<RefCell<Model>>],
) -> Result<Vec<Tenant>, Finding> {
    let unexpected = |error: StoreError| Finding(format!("unexpected: {error}"));
    let place = has_checkpoint.then(|| Rc::new(MemoryPlace::new(parts.world.clone())) as Rc<dyn CheckpointPlace>);
    let config = StoreConfig { shards, checkpoint: place, discard_pace: EAGER, ..StoreConfig::default() };
    let nodes = parts.open_shards(config, Rc::new(|_| ())).await.map_err(unexpected)?;
    let nodes: Vec<Rc<Node>> = nodes.into_iter().map(Rc::new).collect();
    let mut tenants = Vec::new();
    for (index, model) in (0..VOLUMES).zip(models) {
        let (id, model) = (VolumeId(index), model.clone());
        let node = nodes[home_shard(id, shards) as usize].clone();
        let volume = node.store.create_volume(id, "v", EXTENTS * EXTENT_BYTES).await.map_err(unexpected)?;
        let tenant = Tenant { index, node, volume, model };
        let data = tenant.volume.read(&Unfenced, 0, EXTENTS * EXTENT_BYTES).await;
        tenant.opened(&data.map_err(|error| Finding(format!("volume {index}: {error}")))?)?;
        tenants.push(tenant);
    }
    // Nobody has written yet: what is taken is what the maps name, once each.
    let report = fsck::check(&parts.meta, &nodes[0].tiers.slots()).await;
    let report = report.map_err(|error| Finding(format!("fsck: {error}")))?;
    ensure!(report.problems.is_empty(), "fsck: {:?}", report.problems);
    ensure!(report.slots_used == nodes[0].slots_used(), "slots: {:?}", nodes[0].tiers.usage());
    Ok(tenants)
}

/// Volumes on several shards write, trim and flush, with too few slots for all of them, while syncs and commits fail;
/// after each crash the node has another number of shards. Nobody sees what is another's, and what was flushed stays.
pub fn shards_share_their_tiers(seed: u64) -> Result<(), Finding> {
    let sim = Sim::new(seed);
    let mut random = sim.generator("shards");
    // All volumes together want up to 32.
    let mut images = Images::new([random.between(3, 14), random.between(3, 14)]);
    let models: Vec<_> = (0..VOLUMES).map(|_| Rc::new(RefCell::new(Model::new()))).collect();
    let has_checkpoint = random.below(3) == 0;
    for life in 0..3 {
        let sim = Sim::new(seed.wrapping_mul(1000) + life);
        let parts = Parts::new(sim.process("node").world(), &images);
        let shards = random.between(1, 4) as u32;
        let lived = sim.block_on(lead(sim.clone(), parts, shards, has_checkpoint, models.clone()));
        images = lived.map_err(|finding| Finding(format!("seed {seed}, life {life}, {shards} shards: {finding}")))?;
    }
    Ok(())
}

/// One life of the node; returns what its crash leaves.
async fn lead(
    sim: Sim,
    parts: Parts,
    shards: u32,
    has_checkpoint: bool,
    models: Vec<Rc<RefCell<Model>>>,
) -> Result<Images, Finding> {
    let tenants = open(&parts, shards, has_checkpoint, &models).await?;
    let mut random = sim.generator("life");
    match random.below(3) {
        0 => parts.devices[random.below(2) as usize].fail_sync_after(random.below(12)),
        1 => parts.meta.fail_commit_after(random.below(12)),
        _ => {}
    }
    let crash = sim.sleep(Duration::from_millis(random.between(1, 60)));
    let lives = tenants.iter().map(|tenant| {
        let random = sim.generator(&format!("volume {}", tenant.index));
        tenant.live(&sim, random)
    });
    // Only a finding ends one.
    let lives = try_join_all(lives);
    // The volumes go on in the background; what they leave is taken at this moment.
    if let Either::Left((ended, _)) = select(lives, pin!(crash)).await {
        ended?;
    }
    Ok(parts.crash_images(&*parts.world.random, random.below(2) == 0))
}
