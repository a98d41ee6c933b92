//! Volumes that share layers: clones, snapshots, rollbacks and deletions in any order while others write and layers merge,
//! with a crash at every sync and commit, against a plain model.
//!
//! Requests of one volume come one after the other, so what a snapshot holds is known to the byte; those of different
//! volumes run at once.

use crate::{
    Finding, ensure,
    node::{Chance, Images, Node, Observer, Parts, Setup},
};
use drover_base::{
    IoError, VolumeId,
    units::{BLOCK_BYTES, BLOCKS_PER_EXTENT, EXTENT_BYTES, REGION_BYTES},
};
use drover_disk::{Buffer, Device};
use drover_sim::runtime::{Generator, Sim};
use drover_store::{StoreError, Unfenced, Volume, fsck};
use futures::future::join_all;
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

/// Those that are written to, in two regions.
const EXTENTS: [u64; 6] = [0, 1, 2, 63, 64, 65];
const BLOCKS: usize = EXTENTS.len() * BLOCKS_PER_EXTENT as usize;
const SIZE: u64 = 2 * REGION_BYTES;
const ORIGIN: VolumeId = VolumeId(7);
const VOLUMES_MOST: usize = 5;
const SNAPSHOTS_MOST: usize = 3;
/// How often a volume is opened again where a device was made to fail in between.
const REOPENINGS_MAX: usize = 8;

/// What a block shows, and what a crash may leave of it. Zero is nobody's.
#[derive(Clone)]
struct Block {
    now: u8,
    possible: BTreeSet<u8>,
}

impl Block {
    fn of(byte: u8) -> Self {
        Self { now: byte, possible: BTreeSet::from([byte]) }
    }
}

/// What a snapshot holds, and whether it is there for sure.
type Frozen = (bool, Vec<u8>);

#[derive(Clone)]
struct Known {
    /// Neither being made nor being deleted.
    is_sure: bool,
    blocks: Vec<Block>,
    snapshots: BTreeMap<String, Frozen>,
}

impl Known {
    fn holding(bytes: &[u8], is_sure: bool) -> Self {
        Self { is_sure, blocks: bytes.iter().copied().map(Block::of).collect(), snapshots: BTreeMap::new() }
    }

    fn now(&self) -> Vec<u8> {
        self.blocks.iter().map(|block| block.now).collect()
    }

    fn flushed(&mut self) {
        self.blocks.iter_mut().for_each(|block| block.possible = BTreeSet::from([block.now]));
    }
}

type Model = BTreeMap<VolumeId, Known>;

struct CrashPoint {
    images: Images,
    model: Model,
    label: &'static str,
}

struct Life {
    sim: Sim,
    node: Node,
    model: Rc<RefCell<Model>>,
    random: RefCell<Generator>,
    serial: Cell<u64>,
    /// Devices were made to fail, so errors are expected.
    is_faulty: bool,
}

/// A change of layers.
#[derive(Clone, Copy, Debug)]
enum Change {
    Snapshot,
    DeleteSnapshot,
    Rollback,
    Clone,
    Delete,
    Reopen,
}

const CHANGES: [Change; 9] = [
    Change::Snapshot,
    Change::Snapshot,
    Change::Snapshot,
    Change::DeleteSnapshot,
    Change::DeleteSnapshot,
    Change::Rollback,
    Change::Clone,
    Change::Delete,
    Change::Reopen,
];

/// One life with clones, every one of some moments looked at as if it were the last.
pub fn clones_share_layers(seed: u64) -> Result<usize, Finding> {
    let at_seed = |finding: Finding| Finding(format!("seed {seed}: {finding}"));
    let mut random = Generator::new(seed, "clones");
    let setup = Setup { slots: [random.between(40, 90), random.between(40, 90)], ..Setup::draw(&mut random) };
    let points = lead(seed, &setup, random).map_err(at_seed)?;
    for point in &points {
        let sim = Sim::new(seed);
        let parts = Parts::new(sim.process("after").world(), &point.images);
        let checked = sim.block_on(verify(sim.clone(), parts, &setup, &point.model));
        checked.map_err(|finding| at_seed(Finding(format!("{}: {finding}", point.label))))?;
    }
    Ok(points.len())
}

fn lead(seed: u64, setup: &Setup, mut random: Generator) -> Result<Vec<CrashPoint>, Finding> {
    let sim = Sim::new(seed);
    let parts = Parts::new(sim.process("node").world(), &Images::new(setup.slots));
    let model: Rc<RefCell<Model>> = Rc::default();
    let points: Rc<RefCell<Vec<CrashPoint>>> = Rc::default();
    let (is_on, looks_percent) = (Rc::new(Cell::new(false)), *random.pick(&[10, 30, 100]));
    let observer: Observer = Rc::new({
        let (parts, model, points, is_on) = (parts.clone(), model.clone(), points.clone(), is_on.clone());
        let chance = Chance(RefCell::new(sim.generator("crashes")));
        move |label| {
            let draw = |bound| chance.0.borrow_mut().below(bound);
            let is_rare = label != "after a write" || draw(8) == 0;
            if is_on.get() && is_rare && draw(100) < looks_percent {
                let is_power_lost = draw(4) > 0;
                let images = parts.crash_images(&chance, is_power_lost);
                points.borrow_mut().push(CrashPoint { images, model: model.borrow().clone(), label });
            }
        }
    });
    let rounds = if looks_percent == 100 { 16 } else { 40 };
    sim.clone().block_on(async move {
        let node = parts.open(setup, observer).await.map_err(unexpected)?;
        node.store.create_volume(ORIGIN, "v7", SIZE).await.map_err(unexpected)?;
        model.borrow_mut().insert(ORIGIN, Known::holding(&[0; BLOCKS], true));
        is_on.set(true);
        let is_faulty = random.below(3) == 0;
        let (random, serial) = (RefCell::new(random), Cell::new(0));
        let life = Life { sim, node, model, random, serial, is_faulty };
        for number in 0..rounds {
            life.round().await.map_err(|finding| Finding(format!("round {number}: {finding}")))?;
        }
        Ok::<_, Finding>(())
    })?;
    Ok(points.take())
}

fn unexpected(error: StoreError) -> Finding {
    Finding(format!("unexpected: {error}"))
}

impl Life {
    fn draw(&self, bound: u64) -> u64 {
        self.random.borrow_mut().below(bound)
    }

    fn known<T>(&self, id: VolumeId, with: impl FnOnce(&mut Known) -> T) -> T {
        with(self.model.borrow_mut().get_mut(&id).expect("it is known"))
    }

    fn serial(&self) -> u64 {
        self.serial.set(self.serial.get() + 1);
        self.serial.get()
    }

    fn volume(&self, id: VolumeId) -> Result<Rc<Volume>, Finding> {
        self.node.store.volume(id).ok_or_else(|| Finding(format!("{id} is not there")))
    }

    async fn round(&self) -> Result<(), Finding> {
        let ids: Vec<VolumeId> = self.model.borrow().keys().copied().collect();
        if self.is_faulty && self.draw(5) == 0 {
            self.node.devices[self.draw(2) as usize].fail_sync_after(self.draw(4));
        }
        let changes = (self.draw(100) < 60).then(|| *self.random.borrow_mut().pick(&ids));
        let writers = ids.iter().copied().filter(|id| Some(*id) != changes && self.draw(100) < 60);
        let writers: Vec<VolumeId> = writers.collect();
        let spread = *self.random.borrow_mut().pick(&[1, 500, 3_000]);
        let written = join_all(writers.into_iter().map(|id| self.write_some(id, spread)));
        let changed = async {
            match changes {
                Some(id) => self.change(id, spread).await,
                None => Ok(()),
            }
        };
        let (written, changed) = futures::future::join(written, changed).await;
        written.into_iter().collect::<Result<Vec<_>, _>>()?;
        changed?;
        self.settle().await
    }

    async fn write_some(&self, id: VolumeId, spread: u64) -> Result<(), Finding> {
        let volume = self.volume(id)?;
        for _ in 0..1 + self.draw(4) {
            self.sim.sleep(Duration::from_micros(self.draw(spread))).await;
            let result = match self.draw(8) {
                0 | 1 => {
                    let flushed = volume.flush(&Unfenced).await;
                    if flushed.is_ok() {
                        self.known(id, Known::flushed);
                    }
                    flushed
                }
                2 | 3 => self.store(&volume, 0).await,
                _ => self.store(&volume, 1 + (self.serial() % 255) as u8).await,
            };
            match result {
                Ok(()) | Err(IoError::NoSpace) => {}
                Err(IoError::Device | IoError::Poisoned) if self.is_faulty => return Ok(()),
                Err(error) => return Err(Finding(format!("{id}: {error}"))),
            }
        }
        Ok(())
    }

    /// Fills a run of blocks with the byte; zeros by a trim.
    async fn store(&self, volume: &Volume, byte: u8) -> Result<(), IoError> {
        let at = self.draw(EXTENTS.len() as u64) as usize;
        let first = self.draw(u64::from(BLOCKS_PER_EXTENT));
        let count = 1 + self.draw(u64::from(BLOCKS_PER_EXTENT) - first);
        let begin = at * BLOCKS_PER_EXTENT as usize + first as usize;
        let blocks = begin..begin + count as usize;
        self.known(volume.id(), |known| {
            for block in &mut known.blocks[blocks.clone()] {
                block.possible.insert(byte);
            }
        });
        let (offset, len) = (EXTENTS[at] * EXTENT_BYTES + first * BLOCK_BYTES, count * BLOCK_BYTES);
        let result = match byte {
            0 => volume.trim(&Unfenced, offset, len, false).await,
            _ => volume.write(&Unfenced, offset, Buffer::from_slice(&vec![byte; len as usize]), false).await,
        };
        if result.is_ok() {
            self.known(volume.id(), |known| known.blocks[blocks].iter_mut().for_each(|block| block.now = byte));
        }
        result
    }

    async fn change(&self, id: VolumeId, spread: u64) -> Result<(), Finding> {
        self.sim.sleep(Duration::from_micros(self.draw(spread))).await;
        let volume = self.volume(id)?;
        let names: Vec<String> = self.known(id, |known| known.snapshots.keys().cloned().collect());
        let volumes = self.model.borrow().len();
        let name = || self.random.borrow_mut().pick(&names).clone();
        let change = *self.random.borrow_mut().pick(&CHANGES);
        let result = match change {
            Change::Snapshot if names.len() < SNAPSHOTS_MOST => self.snapshot(id, &volume).await,
            Change::DeleteSnapshot if !names.is_empty() => {
                let (gone, other) = (name(), name());
                let deleted = self.delete_snapshot(id, &volume, &gone).await;
                if deleted.is_ok() && other != gone && volumes < VOLUMES_MOST {
                    // While it merges into what the clone is made of.
                    self.sim.sleep(Duration::from_micros(self.draw(600))).await;
                    self.clone_of(id, &other).await
                } else {
                    deleted
                }
            }
            Change::Rollback if !names.is_empty() => self.roll_back(id, &volume, &name()).await,
            Change::Clone if !names.is_empty() && volumes < VOLUMES_MOST => self.clone_of(id, &name()).await,
            Change::Delete if volumes > 1 => self.delete(id).await,
            Change::Reopen => self.reopen(id).await,
            _ => return Ok(()),
        };
        match result {
            Ok(()) => Ok(()),
            Err(StoreError::Poisoned | StoreError::Io(IoError::Device | IoError::Poisoned)) if self.is_faulty => Ok(()),
            Err(error) => Err(Finding(format!("{change:?} of {id}: {error}"))),
        }
    }

    async fn snapshot(&self, id: VolumeId, volume: &Volume) -> Result<(), StoreError> {
        let name = format!("s{}", self.serial());
        self.known(id, |known| known.snapshots.insert(name.clone(), (false, known.now())));
        volume.snapshot(&name).await?;
        self.known(id, |known| {
            known.snapshots.get_mut(&name).expect("just put").0 = true;
            known.flushed();
        });
        Ok(())
    }

    async fn delete_snapshot(&self, id: VolumeId, volume: &Volume, name: &str) -> Result<(), StoreError> {
        self.known(id, |known| known.snapshots.get_mut(name).expect("it was picked").0 = false);
        volume.delete_snapshot(name).await?;
        self.known(id, |known| {
            known.snapshots.remove(name);
            known.flushed();
        });
        Ok(())
    }

    async fn roll_back(&self, id: VolumeId, volume: &Volume, name: &str) -> Result<(), StoreError> {
        let frozen = self.known(id, |known| {
            let frozen = known.snapshots[name].1.clone();
            for (block, byte) in known.blocks.iter_mut().zip(&frozen) {
                block.possible.insert(*byte);
            }
            frozen
        });
        volume.rollback(name).await?;
        self.known(id, |known| known.blocks = frozen.into_iter().map(Block::of).collect());
        Ok(())
    }

    async fn clone_of(&self, origin: VolumeId, name: &str) -> Result<(), StoreError> {
        let id = VolumeId::kin_of(ORIGIN, self.serial());
        let frozen = self.known(origin, |known| known.snapshots[name].1.clone());
        self.model.borrow_mut().insert(id, Known::holding(&frozen, false));
        let made = self.node.store.clone_volume(origin, name, id, &format!("v{}", id.0)).await;
        if made.is_err() {
            // Metadata does not fail here, so it is not there.
            self.model.borrow_mut().remove(&id);
        }
        made?;
        self.known(id, |known| known.is_sure = true);
        Ok(())
    }

    async fn delete(&self, id: VolumeId) -> Result<(), StoreError> {
        self.known(id, |known| known.is_sure = false);
        self.node.store.delete_volume(id).await?;
        self.model.borrow_mut().remove(&id);
        Ok(())
    }

    /// What was not flushed may be lost; what is there is durable.
    async fn reopen(&self, id: VolumeId) -> Result<(), StoreError> {
        let mut result = self.node.store.reopen(id).await;
        for _ in 0..REOPENINGS_MAX {
            if result.is_ok() || !self.is_faulty {
                break;
            }
            result = self.node.store.reopen(id).await;
        }
        result
    }

    /// Opens again what is poisoned, and looks everything over. A merge may poison or be failed meanwhile.
    async fn settle(&self) -> Result<(), Finding> {
        let ids: Vec<VolumeId> = self.model.borrow().keys().copied().collect();
        for id in ids {
            let volume = self.volume(id)?;
            for _ in 0..REOPENINGS_MAX {
                if !volume.is_poisoned() {
                    break;
                }
                self.reopen(id).await.map_err(unexpected)?;
            }
            let names: BTreeSet<String> = volume.snapshots().into_iter().map(|snapshot| snapshot.name).collect();
            let shown = match read(&volume).await {
                Err(_) if self.is_faulty && volume.is_poisoned() => continue,
                shown => shown?,
            };
            self.known(id, |known| {
                // A deletion that failed: it is there all the same.
                known.is_sure = true;
                check_blocks(&known.blocks, &shown)?;
                for (block, byte) in known.blocks.iter_mut().zip(&shown) {
                    // Where a request failed, either may be there, and either may be durable.
                    block.now = *byte;
                }
                check_names(&known.snapshots, &names)?;
                known.snapshots.retain(|name, _| names.contains(name));
                known.snapshots.values_mut().for_each(|(is_sure, _)| *is_sure = true);
                Ok::<_, Finding>(())
            })?;
        }
        Ok(())
    }
}

/// The byte that each block of the extents is full of.
async fn read(volume: &Volume) -> Result<Vec<u8>, Finding> {
    let mut bytes = Vec::with_capacity(BLOCKS);
    for extent in EXTENTS {
        let data = volume.read(&Unfenced, extent * EXTENT_BYTES, EXTENT_BYTES).await;
        let data = data.map_err(|error| Finding(format!("{}: reading: {error}", volume.id())))?;
        for block in data.chunks_exact(BLOCK_BYTES as usize) {
            ensure!(
                block.iter().all(|byte| *byte == block[0]),
                "a block of extent {extent} of {} is torn",
                volume.id()
            );
            bytes.push(block[0]);
        }
    }
    Ok(bytes)
}

fn check_blocks(blocks: &[Block], shown: &[u8]) -> Result<(), Finding> {
    for (at, (block, byte)) in blocks.iter().zip(shown).enumerate() {
        ensure!(block.possible.contains(byte), "block {at} shows {byte}, not one of {:?}", block.possible);
    }
    Ok(())
}

fn check_names(snapshots: &BTreeMap<String, Frozen>, names: &BTreeSet<String>) -> Result<(), Finding> {
    for (name, (is_sure, _)) in snapshots {
        ensure!(!is_sure || names.contains(name), "snapshot {name} is gone");
    }
    let stranger = names.iter().find(|name| !snapshots.contains_key(*name));
    ensure!(stranger.is_none(), "snapshot {stranger:?} is there again");
    Ok(())
}

/// What the crash left is what it may leave; each snapshot holds what it froze; and whatever goes, what stays is as it was.
async fn verify(sim: Sim, parts: Parts, setup: &Setup, model: &Model) -> Result<(), Finding> {
    let named = check_stored(&parts).await?;
    let node = parts.open(setup, Rc::new(|_| ())).await.map_err(unexpected)?;
    ensure!(named == node.slots_used(), "maps name {named:?} slots, {:?} are used", node.slots_used());
    let volumes = node.store.volumes();
    for volume in &volumes {
        let known = model.get(&volume.id()).ok_or_else(|| Finding(format!("{} is there again", volume.id())))?;
        let of = |finding: Finding| Finding(format!("{}: {finding}", volume.id()));
        check_blocks(&known.blocks, &read(volume).await?).map_err(of)?;
        let names: BTreeSet<String> = volume.snapshots().into_iter().map(|snapshot| snapshot.name).collect();
        check_names(&known.snapshots, &names).map_err(of)?;
        for name in names {
            let id = VolumeId::kin_of(ORIGIN, u64::from(u32::MAX));
            let copy = node.store.clone_volume(volume.id(), &name, id, "look").await.map_err(unexpected)?;
            let (shown, frozen) = (read(&copy).await?, &known.snapshots[&name].1);
            ensure!(shown == *frozen, "snapshot {name} of {} holds {shown:?}, not {frozen:?}", volume.id());
            node.store.delete_volume(id).await.map_err(unexpected)?;
        }
    }
    for (id, known) in model {
        ensure!(!known.is_sure || volumes.iter().any(|volume| volume.id() == *id), "{id} is gone");
    }
    check_ending(&sim, &node).await?;
    let named = check_stored(&parts).await?;
    ensure!(named == [0, 0] && named == node.slots_used(), "{:?} slots are used by nobody", node.slots_used());
    Ok(())
}

/// Layers go one after the other, as do volumes: what is left shows what it did, and in the end every slot is free.
async fn check_ending(sim: &Sim, node: &Node) -> Result<(), Finding> {
    let mut random = sim.generator("ending");
    let mut volumes = node.store.volumes();
    let mut shown = BTreeMap::new();
    for volume in &volumes {
        shown.insert(volume.id(), read(volume).await?);
    }
    while !volumes.is_empty() {
        let at = random.below(volumes.len() as u64) as usize;
        match volumes[at].snapshots().first() {
            Some(snapshot) if random.below(3) > 0 => {
                volumes[at].delete_snapshot(&snapshot.name).await.map_err(unexpected)?;
            }
            _ => node.store.delete_volume(volumes.remove(at).id()).await.map_err(unexpected)?,
        }
        if random.below(2) == 0
            && let Some(volume) = volumes.first()
        {
            volume.merges_done().await;
        }
        for volume in &volumes {
            ensure!(read(volume).await? == shown[&volume.id()], "{} changed when others went", volume.id());
        }
    }
    Ok(())
}

/// The offline check finds nothing. Returns how many slots the maps name.
async fn check_stored(parts: &Parts) -> Result<Vec<u64>, Finding> {
    let slots: Vec<u64> = parts.devices.iter().map(|device| device.size_bytes() / EXTENT_BYTES).collect();
    let report = fsck::check(&parts.meta, &slots).await.map_err(|error| unexpected(error.into()))?;
    ensure!(report.problems.is_empty(), "fsck: {:?}", report.problems);
    Ok(report.slots_used)
}
