//! Thin stays thin: what is allocated at the destination is within what is allocated at the source, both ways.

use crate::back::flipped;
use crate::pair::{Pair, options, run, run_each};
use crate::side::Side;
use drover_base::units::{BLOCK_BYTES, EXTENT_BYTES, EXTENTS_PER_REGION, REGION_BYTES};
use drover_base::{ByteRange, ExtentIndex};
use drover_disk::Buffer;
use drover_sim::runtime::Sim;
use drover_store::{Unfenced, ZeroMode};
use drover_transfer::OnLinkLoss;
use drover_wire::admin::{Proof, SendPhase};
use std::time::Duration;

/// kubevirt#12876, ovirt-engine#1157: a thin disk became thick by being moved.
#[test]
fn the_destination_allocates_nothing_that_the_source_does_not() {
    run_each(0..15, async |sim| {
        let mut pair = Pair::new(&sim, options()).await;
        pair.model.start(&pair.from);
        pair.connect();
        pair.sleep(Duration::from_millis(15)).await;
        pair.cut_and_connect().await;
        pair.until_synced().await;
        pair.model.stop(&pair.from).await;
        let quiesced = pair.from.volume.quiesce().await;
        pair.drain(Duration::from_secs(5)).await.unwrap();
        drop(quiesced);
        pair.check_thin(&pair.from, &pair.to);
        assert!(pair.to.volume.usage().valid_bytes <= pair.from.volume.usage().valid_bytes);
        pair.compare().await
    });
}

#[test]
fn going_back_the_source_goes_on_having_all_that_is_allocated() {
    run_each(0..15, async |sim| {
        let mut pair = flipped(&sim).await;
        pair.connect();
        pair.model.start(&pair.from);
        pair.sleep(Duration::from_millis(30)).await;
        pair.cut_off().await;
        pair.sender.go_alone();
        pair.sleep(Duration::from_millis(20)).await;
        pair.receiving_side_crashes().await;
        pair.connect();
        pair.sender.synced_again().await;
        pair.model.stop(&pair.from).await;
        pair.until_phase(SendPhase::Synced).await;
        pair.check_thin(&pair.to, &pair.from);
        pair.compare().await
    });
}

/// Holes cost nothing, stored zeros one frame, and a trim of what was never sent nothing either.
#[test]
fn zeros_and_holes_cost_next_to_nothing() {
    run(1, async |sim| {
        let from = Side::new(&sim, "source").await;
        let zeros = ZeroMode { may_unmap: false, fast_only: false };
        from.volume.write(&Unfenced, 1 << 20, Buffer::zeroed(1 << 20), false).await.unwrap();
        from.volume.write_zeroes(&Unfenced, 3 << 20, 1 << 20, zeros, false).await.unwrap();
        let mut pair = Pair::of(&sim, from, Default::default(), options()).await;
        pair.from.volume.trim(&Unfenced, 3 << 20, 2 << 20, false).await.unwrap();
        let wire = pair.connect();
        pair.until_synced().await;
        let sent = wire.sent();
        assert_eq!(sent.writes, 0);
        assert!(sent.zeros <= 8, "{sent:?}");
        assert!(pair.progress().wire_bytes < 2_000, "{:?}", pair.progress());
        assert_eq!(pair.to.volume.usage().used_bytes, 0);
        // A large write of zeros while mirroring goes as zeros, too.
        let before = pair.progress().wire_bytes;
        pair.from.volume.write(&Unfenced, 0, Buffer::zeroed(8 << 20), false).await.unwrap();
        assert!(pair.progress().wire_bytes - before < 1_000);
        assert_eq!(pair.to.volume.usage().valid_bytes, 8 << 20, "allocated as it is at the source");
        pair.drain_and_compare().await.unwrap();
    });
}

#[test]
fn what_was_sent_and_then_trimmed_is_trimmed_there() {
    run(2, async |sim| {
        let from = Side::new(&sim, "source").await;
        let data: Vec<u8> = (0..1 << 20).map(|at: u32| at.to_le_bytes()[1] | 1).collect();
        from.volume.write(&Unfenced, 0, Buffer::from_slice(&data), false).await.unwrap();
        let mut pair = Pair::of(&sim, from, Default::default(), options()).await;
        pair.connect();
        pair.until(|progress| progress.rounds > 0 && progress.dirty_bytes == 0).await;
        pair.from.volume.trim(&Unfenced, 0, 1 << 20, false).await.unwrap();
        assert_eq!(pair.progress().dirty_bytes, 1 << 20);
        pair.until_synced().await;
        assert_eq!(pair.to.volume.usage().valid_bytes, 0);
        assert_eq!(pair.from.volume.data_mask(drover_base::ExtentIndex(0)).count() as u64 * BLOCK_BYTES, 0);
    });
}

/// Past the mirror, as a bug would: zeros that one side stores where the other has a hole. Every byte is equal.
async fn store_zeros(side: &Side, block: u64) {
    let range = ByteRange { offset: block * BLOCK_BYTES, len: BLOCK_BYTES };
    let guard = side.volume.enqueue(range).await;
    let zeros = Buffer::zeroed(BLOCK_BYTES as usize);
    side.volume.write_locked(&guard, &Unfenced, range.offset, zeros).await.unwrap();
}

/// As many blocks are stored on both sides, but not the same ones: the proof counted them.
pub async fn thicker_elsewhere(sim: Sim) -> Result<(), String> {
    let mut pair = flipped(&sim).await;
    pair.connect();
    pair.until_phase(SendPhase::Synced).await;
    pair.from.volume.trim(&Unfenced, 0, REGION_BYTES, true).await.unwrap();
    let mut chosen = None;
    for hole in (0..EXTENTS_PER_REGION).map(ExtentIndex) {
        let first = hole.offset() / BLOCK_BYTES;
        if [&pair.from, &pair.to].iter().all(|side| side.volume.data_mask(hole).is_empty()) {
            store_zeros(&pair.to, first + 2).await;
            // Over what a snapshot keeps, the source stores zeros in the whole extent.
            if pair.to.volume.data_mask(hole).count() == 1 {
                chosen = Some(first);
                break;
            }
        }
    }
    store_zeros(&pair.from, chosen.ok_or("no extent is a hole at both sides")? + 1).await;
    pair.sender.begin_proof();
    let has_ended = |proof: &Proof| proof.regions_equal == proof.regions_total;
    let progress = pair.until(|progress| progress.proof.as_ref().is_some_and(has_ended)).await;
    let thicker = progress.proof.map(|proof| proof.regions_thicker);
    if thicker != Some(1) || progress.phase == SendPhase::Proven {
        return Err(format!(
            "the holder stores a block more than its source, and is {:?}: {thicker:?}",
            progress.phase
        ));
    }
    Ok(())
}

#[test]
fn a_copy_that_is_thicker_is_refused() {
    run_each(0..5, thicker_elsewhere);
}

/// After the holder's restart both sides stored as many blocks of a region, zeros among them, but not the same ones. The
/// comparison left it at that; the next write went where the source stored something already, and then the destination
/// held more: the proof failed though every byte was equal.
#[test]
fn a_comparison_looks_at_what_is_stored_block_by_block() {
    run_each(0..10, async |sim| {
        let mut pair = flipped(&sim).await;
        pair.connect();
        pair.until_phase(SendPhase::Synced).await;
        pair.from.volume.trim(&Unfenced, 0, EXTENT_BYTES, true).await.unwrap();
        store_zeros(&pair.from, 1).await;
        store_zeros(&pair.to, 2).await;
        pair.from.volume.flush(&Unfenced).await.unwrap();
        pair.sending_side_crashes(OnLinkLoss::Hold).await;
        pair.connect();
        pair.until_phase(SendPhase::Synced).await;
        let data = Buffer::from_slice(&[7; BLOCK_BYTES as usize]);
        pair.from.volume.write(&Unfenced, 2 * BLOCK_BYTES, data, false).await.unwrap();
        pair.check_thin(&pair.to, &pair.from);
        pair.sender.begin_proof();
        let progress = pair.until(|progress| progress.phase == SendPhase::Proven).await;
        assert_eq!(progress.proof.unwrap().regions_thicker, 0);
        Ok(())
    });
}
