//! The proof before the release of the source.

use crate::back::flipped;
use crate::pair::{Pair, run, run_each};
use drover_base::ByteRange;
use drover_base::units::{BLOCK_BYTES, region_count};
use drover_disk::Buffer;
use drover_sim::runtime::Sim;
use drover_store::Unfenced;
use drover_wire::admin::{Proof, SendPhase};
use std::time::Duration;

fn all_equal() -> Proof {
    let regions = region_count(crate::side::VOLUME_BYTES);
    Proof { regions_total: regions, regions_equal: regions, regions_different: 0, regions_thicker: 0 }
}

async fn mirroring_back(sim: &Sim) -> Pair {
    let mut pair = flipped(sim).await;
    pair.connect();
    pair.model.start(&pair.from);
    pair.until_phase(SendPhase::Synced).await;
    pair
}

#[test]
fn equal_sides_are_proven_while_clients_write() {
    run_each(0..10, async |sim| {
        let mut pair = mirroring_back(&sim).await;
        pair.sender.begin_proof();
        pair.sender.begin_proof();
        let progress = pair.until_phase(SendPhase::Proven).await;
        assert_eq!(progress.proof, Some(all_equal()));
        // It is the proof of this link: another one has to bring its own.
        pair.cut_off().await;
        assert_eq!(pair.progress().proof.unwrap().regions_equal, 0);
        pair.connect();
        pair.until_phase(SendPhase::Proven).await;
        pair.sender.begin_proof();
        assert_eq!(pair.progress().phase, SendPhase::Proven);
        pair.drain_and_compare().await
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
            let ended = |proof: &Proof| proof.regions_equal + proof.regions_different == proof.regions_total;
            let progress = pair.until(|progress| progress.proof.as_ref().is_some_and(ended)).await;
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
