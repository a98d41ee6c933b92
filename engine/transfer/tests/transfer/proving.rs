//! The proof before the release of the source.

use crate::back::flipped;
use crate::pair::{Pair, run, run_each};
use crate::side::VOLUME_BYTES;
use drover_base::units::{BLOCK_BYTES, EXTENT_BYTES, region_count};
use drover_base::{ByteRange, ExtentIndex};
use drover_disk::Buffer;
use drover_sim::runtime::Sim;
use drover_store::Unfenced;
use drover_wire::admin::{Proof, SendPhase};
use std::{cell::Cell, rc::Rc, time::Duration};

fn all_equal() -> Proof {
    let regions = region_count(VOLUME_BYTES);
    Proof { regions_total: regions, regions_equal: regions, regions_different: 0, regions_thicker: 0 }
}

async fn mirroring_back(sim: &Sim) -> Pair {
    let mut pair = flipped(sim).await;
    pair.connect();
    pair.model.start(&pair.from);
    pair.until_phase(SendPhase::Synced).await;
    pair
}

fn has_ended(proof: &Proof) -> bool {
    proof.regions_equal + proof.regions_different == proof.regions_total
}

/// Clients write all the while, most of them again and again to the same few extents.
async fn proven_while_clients_write(sim: Sim) -> Result<(), String> {
    let mut pair = mirroring_back(&sim).await;
    pair.sender.begin_proof();
    pair.sender.begin_proof();
    let progress = pair.until(|progress| progress.proof.as_ref().is_some_and(has_ended)).await;
    if progress.proof != Some(all_equal()) {
        return Err(format!("the sides are equal, but {:?}", progress.proof));
    }
    pair.until_phase(SendPhase::Proven).await;
    // It is the proof of this link: another one has to bring its own.
    pair.cut_off().await;
    assert_eq!(pair.progress().proof.unwrap().regions_equal, 0);
    pair.connect();
    pair.until_phase(SendPhase::Proven).await;
    pair.sender.begin_proof();
    assert_eq!(pair.progress().phase, SendPhase::Proven);
    pair.drain_and_compare().await
}

#[test]
fn equal_sides_are_proven_while_clients_write() {
    run_each(0..10, proven_while_clients_write);
}

/// Several clients write to one extent without a pause: at no moment is there none waiting for its lock.
pub async fn proven_under_constant_writes(sim: Sim) -> Result<(), String> {
    let mut pair = flipped(&sim).await;
    pair.connect();
    pair.until_phase(SendPhase::Synced).await;
    let stop = Rc::new(Cell::new(false));
    for block in 20..26 {
        let (volume, model, stop) = (pair.from.volume.clone(), pair.model.clone(), stop.clone());
        let writing = async move {
            while !stop.get() {
                model.write_block(&volume, block).await;
            }
        };
        pair.from.world.spawn(writing).detach();
    }
    pair.sender.begin_proof();
    let progress = pair.until(|progress| progress.proof.as_ref().is_some_and(has_ended)).await;
    stop.set(true);
    if progress.proof != Some(all_equal()) {
        return Err(format!("the sides are equal, but {:?}", progress.proof));
    }
    pair.drain_and_compare().await
}

#[test]
fn a_region_that_is_written_all_the_time_is_proven() {
    run_each(0..5, proven_under_constant_writes);
}

/// A region under comparison was locked as a whole while it was read and hashed: its writers waited for all of that.
#[test]
fn few_extents_are_locked_at_a_time_and_none_while_an_answer_is_awaited() {
    run_each(0..4, async |sim| {
        let mut pair = flipped(&sim).await;
        let wire = pair.connect();
        pair.until_phase(SendPhase::Synced).await;
        let volume = pair.from.volume.clone();
        let extents = || (0..VOLUME_BYTES.div_ceil(EXTENT_BYTES)).map(ExtentIndex);
        let range = |extent: ExtentIndex| ByteRange { offset: extent.offset(), len: BLOCK_BYTES };
        let locked = || extents().filter(|extent| volume.try_lock(range(*extent)).is_none()).count();
        pair.sender.begin_proof();
        let (mut most, mut samples) = (0, 0);
        while pair.progress().phase != SendPhase::Proven {
            most = most.max(locked());
            samples += 1;
            if samples == 20 {
                wire.hold(true);
                pair.sleep(Duration::from_millis(100)).await;
                assert_eq!(locked(), 0, "questions are under way, and no writer waits for their answers");
                assert_eq!(pair.progress().phase, SendPhase::Proving);
                wire.hold(false);
            }
            pair.sleep(Duration::from_micros(7)).await;
        }
        assert!((1..=16).contains(&most) && samples > 20, "{most} extents were locked at once, {samples} samples");
        Ok(())
    });
}

#[test]
fn a_link_that_breaks_meanwhile_makes_no_difference() {
    run_each(0..10, async |sim| {
        let mut pair = mirroring_back(&sim).await;
        let mut random = sim.generator("breaks");
        pair.sender.begin_proof();
        for _ in 0..4 {
            pair.sleep(Duration::from_micros(random.below(8_000))).await;
            if random.below(2) == 0 {
                pair.cut_and_connect().await;
            } else {
                pair.receiving_side_crashes().await;
                pair.connect();
            }
        }
        let progress = pair.until_phase(SendPhase::Proven).await;
        assert_eq!(progress.proof, Some(all_equal()));
        Ok(())
    });
}

/// One byte flipped on either side.
#[test]
fn a_single_different_byte_is_found() {
    for at_sender in [false, true] {
        run(1, async |sim| {
            let mut pair = flipped(&sim).await;
            pair.connect();
            let side = if at_sender { &pair.from } else { &pair.to };
            flip_one_bit(&side.volume, 5 << 20).await;
            pair.until_phase(SendPhase::Synced).await;
            pair.sender.begin_proof();
            let progress = pair.until(|progress| progress.proof.as_ref().is_some_and(has_ended)).await;
            assert_eq!(progress.phase, SendPhase::Proving);
            assert_eq!(progress.proof.unwrap().regions_different, 1);
            // Repaired, it may be asked again.
            flip_one_bit(&side.volume, 5 << 20).await;
            pair.sender.begin_proof();
            assert_eq!(pair.until_phase(SendPhase::Proven).await.proof, Some(all_equal()));
        });
    }
}

/// Past tap and stream.
async fn flip_one_bit(volume: &drover_store::Volume, offset: u64) {
    let range = ByteRange { offset, len: BLOCK_BYTES };
    let guard = volume.enqueue(range).await;
    let mut bytes = volume.read_locked(&guard, range).await.unwrap();
    bytes[77] ^= 4;
    volume.write_locked(&guard, &Unfenced, offset, Buffer::from_slice(&bytes)).await.unwrap();
}
