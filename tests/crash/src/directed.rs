//! Checkers of one thing each, where random requests would meet it too seldom.

use crate::{
    Finding, ensure,
    node::{EAGER, Images, Node, Parts, VOLUME, VOLUME_BYTES},
};
use drover_base::{
    Epoch, IoError, VolumeId, World,
    units::{BLOCK_BYTES, EXTENT_BYTES},
};
use drover_disk::Buffer;
use drover_sim::runtime::Sim;
use drover_store::{Fence, StoreConfig, Unfenced, Volume, fsck};
use futures::future::join;
use std::{cell::Cell, collections::BTreeSet, future::Future, rc::Rc, time::Duration};

fn run<F>(seed: u64, slots: [u64; 2], check: impl FnOnce(Sim, Parts) -> F) -> Result<(), Finding>
where
    F: Future<Output = Result<(), Finding>>,
{
    let sim = Sim::new(seed);
    let parts = Parts::new(sim.process("node").world(), &Images::new(slots));
    sim.block_on(check(sim.clone(), parts)).map_err(|finding| Finding(format!("seed {seed}: {finding}")))
}

async fn open(parts: &Parts) -> Result<(Node, Rc<Volume>), Finding> {
    let node = parts.open_with(StoreConfig::default(), Rc::new(|_| ())).await;
    let node = node.map_err(|error| Finding(format!("open: {error}")))?;
    let volume = node.store.create_volume(VOLUME, "v", VOLUME_BYTES).await;
    Ok((node, volume.map_err(|error| Finding(format!("create: {error}")))?))
}

fn filled(byte: u8) -> Buffer {
    Buffer::from_slice(&vec![byte; EXTENT_BYTES as usize])
}

fn io<T>(result: Result<T, IoError>) -> Result<T, Finding> {
    result.map_err(|error| Finding(format!("unexpected: {error}")))
}

/// A read that is slow while its extent is trimmed, flushed and its slot wanted by another extent sees its
/// own extent's content or zeros. There are so few slots that a freed one is used at once.
pub fn slow_reads_keep_their_slots(seed: u64) -> Result<(), Finding> {
    run(seed, [2, 0], |sim, parts| async move {
        let (_node, volume) = open(&parts).await?;
        let mut random = sim.generator("pauses");
        for round in 0..12u8 {
            let (mine, others) = (2 * round + 1, 2 * round + 2);
            io(volume.write(&Unfenced, 0, filled(mine), false).await)?;
            io(volume.write(&Unfenced, EXTENT_BYTES, filled(mine), false).await)?;
            let pause = Duration::from_micros(random.below(500));
            let read = volume.read(&Unfenced, 0, EXTENT_BYTES);
            let reuse = async {
                sim.sleep(pause).await;
                io(volume.trim(&Unfenced, 0, EXTENT_BYTES, true).await)?;
                // Waits while the read keeps the slot.
                io(volume.write(&Unfenced, 2 * EXTENT_BYTES, filled(others), false).await)
            };
            let (read, reused) = join(read, reuse).await;
            reused?;
            let read = io(read)?;
            let stranger = read.iter().find(|byte| **byte != 0 && **byte != mine);
            ensure!(stranger.is_none(), "round {round}: a read of {mine} got {stranger:?}");
            io(volume.trim(&Unfenced, 0, 3 * EXTENT_BYTES, true).await)?;
        }
        Ok(())
    })
}

/// Free slots are discarded while others want them: what is read is always what was written, and so it is after a crash
/// at any moment, although what a device was told to discard is garbage there.
pub fn discards_touch_only_what_is_free(seed: u64) -> Result<(), Finding> {
    const EXTENTS: u64 = 8;
    run(seed, [5, 5], |sim, parts| async move {
        let config = StoreConfig { discard_pace: EAGER, ..StoreConfig::default() };
        let node = parts.open_with(config.clone(), Rc::new(|_| ())).await;
        let node = node.map_err(|error| Finding(format!("open: {error}")))?;
        let volume = node.store.create_volume(VOLUME, "v", VOLUME_BYTES).await;
        let volume = volume.map_err(|error| Finding(format!("create: {error}")))?;
        let mut random = sim.generator("work");
        // Of each extent what it holds, and what it held when it was last flushed and since.
        let mut model: Vec<Vec<u8>> = vec![vec![0]; EXTENTS as usize];
        for round in 1..=40u8 {
            let extent = random.below(EXTENTS);
            let (at, of) = (extent * EXTENT_BYTES, &mut model[extent as usize]);
            match random.below(3) {
                0 => {
                    of.push(0);
                    io(volume.trim(&Unfenced, at, EXTENT_BYTES, false).await)?;
                }
                _ => {
                    of.push(round);
                    io(volume.write(&Unfenced, at, filled(round), false).await)?;
                }
            }
            if random.below(3) == 0 {
                io(volume.flush(&Unfenced).await)?;
                model.iter_mut().for_each(|of| drop(of.drain(..of.len() - 1)));
            }
            sim.sleep(Duration::from_micros(random.below(1500))).await;
            for (extent, of) in (0..).zip(&model) {
                let data = io(volume.read(&Unfenced, extent * EXTENT_BYTES, EXTENT_BYTES).await)?;
                let expected = of.last().expect("it holds something");
                ensure!(data.iter().all(|byte| byte == expected), "round {round}: extent {extent} is not {expected}");
            }
        }
        let images = parts.crash_images(&*node.world.random, random.below(2) == 0);
        let parts = Parts::new(sim.process("after").world(), &images);
        let node = parts.open_with(config, Rc::new(|_| ())).await;
        let node = node.map_err(|error| Finding(format!("open: {error}")))?;
        let volume = node.store.volume(VOLUME).ok_or_else(|| Finding("the volume is gone".into()))?;
        // What is free after the start is discarded as well.
        sim.sleep(Duration::from_millis(20)).await;
        for (extent, of) in (0..).zip(&model) {
            let data = io(volume.read(&Unfenced, extent * EXTENT_BYTES, EXTENT_BYTES).await)?;
            let blocks = data.chunks_exact(BLOCK_BYTES as usize);
            let stranger = blocks.flatten().find(|byte| !of.contains(byte));
            ensure!(stranger.is_none(), "extent {extent} holds {stranger:?} after the crash, not of {of:?}");
        }
        Ok(())
    })
}

/// A lease that ends at some moment.
struct Lease {
    world: World,
    until: drover_base::Instant,
    refused: Cell<bool>,
}

impl Fence for Lease {
    fn check(&self) -> Result<(), IoError> {
        if self.world.now() < self.until {
            return Ok(());
        }
        self.refused.set(true);
        Err(IoError::Fenced { epoch: Epoch(1) })
    }
}

/// Under a lease that ends while requests run, none is answered after its end, and none is begun.
pub fn nothing_passes_an_ended_lease(seed: u64) -> Result<(), Finding> {
    run(seed, [64, 0], |sim, parts| async move {
        let (node, volume) = open(&parts).await?;
        let mut random = sim.generator("leases");
        for round in 1..30u8 {
            let until = node.world.now() + Duration::from_micros(random.below(900));
            let lease = Lease { world: node.world.clone(), until, refused: Cell::new(false) };
            sim.sleep(Duration::from_micros(random.below(600))).await;
            let is_over = node.world.now() >= until;
            let before = io(volume.read(&Unfenced, 0, BLOCK_BYTES).await)?[0];
            let data = Buffer::from_slice(&[round; BLOCK_BYTES as usize]);
            let begun_late = node.world.now() >= until;
            let answer = volume.write(&lease, 0, data, random.below(4) == 0).await;
            ensure!(
                answer.is_err() || node.world.now() < until + Duration::from_micros(5),
                "round {round}: a write was answered after the lease had ended"
            );
            let after = io(volume.read(&Unfenced, 0, BLOCK_BYTES).await)?[0];
            let is_applied = after != before;
            ensure!(!(is_over || begun_late) || !is_applied, "round {round}: applied after the lease had ended");
            let flushed = volume.flush(&lease).await;
            ensure!(
                flushed.is_err() || node.world.now() < until + Duration::from_micros(5),
                "round {round}: a flush was answered after the lease had ended"
            );
        }
        Ok(())
    })
}

/// The sync of a device fails under one volume; another with unflushed writes there learns of it too, and
/// both stay poisoned until they are reopened.
pub fn a_failed_sync_is_never_forgotten(seed: u64) -> Result<(), Finding> {
    run(seed, [64, 0], |sim, parts| async move {
        let (node, mine) = open(&parts).await?;
        let others = VolumeId(8);
        let other = node.store.create_volume(others, "other", VOLUME_BYTES).await;
        let other = other.map_err(|error| Finding(format!("create: {error}")))?;
        for volume in [&mine, &other] {
            io(volume.write(&Unfenced, 0, filled(1), true).await)?;
            io(volume.write(&Unfenced, 0, filled(2), false).await)?;
        }
        node.devices[0].fail_sync_after(0);
        ensure!(mine.flush(&Unfenced).await.is_err(), "a failed sync was answered with success");
        for volume in [&mine, &other] {
            for _ in 0..2 {
                let flushed = volume.flush(&Unfenced).await;
                ensure!(
                    flushed == Err(IoError::Poisoned),
                    "{} was flushed after a failed sync: {flushed:?}",
                    volume.id()
                );
                let read = volume.read(&Unfenced, 0, 1).await;
                ensure!(read == Err(IoError::Poisoned), "{} was read after a failed sync", volume.id());
            }
        }
        for id in [VOLUME, others] {
            node.store.reopen(id).await.map_err(|error| Finding(format!("reopen: {error}")))?;
        }
        let seen =
            [io(mine.read(&Unfenced, 0, EXTENT_BYTES).await)?, io(other.read(&Unfenced, 0, EXTENT_BYTES).await)?];
        for volume in [&mine, &other] {
            io(volume.flush(&Unfenced).await)?;
        }
        // What was seen after reopening and flushed is there after a crash.
        let images = parts.crash_images(&*node.world.random, true);
        let crashed = Parts::new(sim.process("after").world(), &images);
        let after = crashed.open_with(StoreConfig::default(), Rc::new(|_| ())).await;
        let after = after.map_err(|error| Finding(format!("open: {error}")))?;
        for (id, seen) in [VOLUME, others].into_iter().zip(seen) {
            let volume = after.store.volume(id).ok_or_else(|| Finding(format!("{id} is gone")))?;
            ensure!(io(volume.read(&Unfenced, 0, EXTENT_BYTES).await)? == seen, "{id} lost what it had flushed");
        }
        Ok(())
    })
}

/// The metadata is lost and restored from a checkpoint: every block is as of the checkpoint or later, and
/// shows no other volume's bytes, however slots were freed and wanted since.
pub fn a_checkpoint_brings_volumes_back(seed: u64) -> Result<(), Finding> {
    run(seed, [12, 0], |sim, parts| async move {
        let place = Rc::new(crate::layers::MemoryPlace::new(parts.world.clone()));
        let config = StoreConfig { checkpoint: Some(place.clone()), discard_pace: EAGER, ..StoreConfig::default() };
        let node = parts.open_with(config, Rc::new(|_| ())).await;
        let node = node.map_err(|error| Finding(format!("open: {error}")))?;
        let ids = [VolumeId(1), VolumeId(2)];
        for id in ids {
            node.store.create_volume(id, "v", VOLUME_BYTES).await.map_err(|e| Finding(format!("create: {e}")))?;
        }
        let mut random = sim.generator("work");
        // Volume 1 writes even bytes, volume 2 odd ones, neither zero.
        for step in 0..random.between(20, 60) {
            if random.below(8) == 0 {
                node.store.checkpoint().await.map_err(|e| Finding(format!("checkpoint: {e}")))?;
            }
            let which = random.below(2);
            let volume = node.store.volume(ids[which as usize]).expect("it was created");
            let at = random.below(8) * EXTENT_BYTES;
            let byte = (step * 2 + 2 - which) as u8;
            let result = match random.below(3) {
                0 => volume.trim(&Unfenced, at, EXTENT_BYTES, true).await,
                _ => volume.write(&Unfenced, at, filled(byte), true).await,
            };
            ensure!(matches!(result, Ok(()) | Err(IoError::NoSpace)), "step {step}: {result:?}");
        }
        node.store.checkpoint().await.map_err(|e| Finding(format!("checkpoint: {e}")))?;
        let volume = node.store.volume(ids[0]).expect("it was created");
        let kept = io(volume.read(&Unfenced, 0, 8 * EXTENT_BYTES).await)?;
        // Volume 1 gives everything up; volume 2 takes what it gets.
        io(volume.trim(&Unfenced, 0, 8 * EXTENT_BYTES, true).await)?;
        let other = node.store.volume(ids[1]).expect("it was created");
        for at in 0..random.below(9) {
            match other.write(&Unfenced, at * EXTENT_BYTES, filled(253), true).await {
                Ok(()) | Err(IoError::NoSpace) => {}
                Err(error) => io(Err(error))?,
            }
        }
        let images = parts.crash_images(&*node.world.random, true);
        restored(&sim, images, &*place, ids, &kept).await
    })
}

async fn restored(
    sim: &Sim,
    mut images: Images,
    place: &dyn drover_store::checkpoint::CheckpointPlace,
    ids: [VolumeId; 2],
    kept: &[u8],
) -> Result<(), Finding> {
    images.meta.clear();
    let parts = Parts::new(sim.process("restored").world(), &images);
    let report = fsck::restore(&parts.meta, place, &images.slots()).await;
    let report = report.map_err(|error| Finding(format!("restore: {error}")))?;
    ensure!(report.problems.is_empty(), "fsck after restoring: {:?}", report.problems);
    let node = parts.open_with(StoreConfig::default(), Rc::new(|_| ())).await;
    let node = node.map_err(|error| Finding(format!("open: {error}")))?;
    for (id, parity) in ids.into_iter().zip([0, 1]) {
        let volume = node.store.volume(id).ok_or_else(|| Finding(format!("{id} is gone")))?;
        let data = io(volume.read(&Unfenced, 0, 8 * EXTENT_BYTES).await)?;
        let bytes: BTreeSet<u8> = data.iter().copied().filter(|byte| *byte != 0).collect();
        ensure!(bytes.iter().all(|byte| byte % 2 == parity), "{id} shows bytes of the other volume: {bytes:?}");
        // A checkpoint that the shortage of slots forced knows of the trim.
        let is_as_of_checkpoint = *data == *kept || bytes.is_empty();
        ensure!(parity != 0 || is_as_of_checkpoint, "{id} is not as of the checkpoint");
    }
    Ok(())
}
