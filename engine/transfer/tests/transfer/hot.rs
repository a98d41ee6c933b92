//! Hot first: a flip with blocks that stay behind.

use crate::links::mishap;
use crate::pair::{Pair, hot_extents, options, run, run_each};
use crate::side::VOLUME_BYTES;
use drover_base::units::{BLOCK_BYTES, EXTENT_BYTES};
use drover_base::{BlockMask, ByteRange, ExtentIndex};
use drover_sim::runtime::Sim;
use drover_store::Unfenced;
use drover_wire::admin::{SendOptions, SendPhase};
use std::time::Duration;

fn hot_first() -> SendOptions {
    SendOptions { hot_first: true, ..options() }
}

fn extents() -> impl Iterator<Item = (ExtentIndex, ByteRange)> {
    let all = (0..VOLUME_BYTES.div_ceil(EXTENT_BYTES)).map(ExtentIndex);
    all.map(|extent| {
        let offset = extent.offset();
        (extent, ByteRange { offset, len: EXTENT_BYTES.min(VOLUME_BYTES - offset) })
    })
}

fn runs(extent: ExtentIndex, mask: BlockMask) -> impl Iterator<Item = ByteRange> {
    mask.runs().map(move |(first, count)| ByteRange {
        offset: extent.offset() + u64::from(first) * BLOCK_BYTES,
        len: u64::from(count) * BLOCK_BYTES,
    })
}

/// After a drain: what the destination has is what the source has, and what it knows to be at the source only is there.
async fn compare_what_came(pair: &Pair) -> Result<(), String> {
    if let Some(difference) = pair.model.difference(&pair.from.content().await, "source") {
        return Err(difference);
    }
    for (extent, range) in extents() {
        let remote = pair.to.volume.remote_mask(extent);
        let held = pair.from.volume.data_mask(extent);
        if !held.contains(remote) {
            return Err(format!("{extent:?}: {remote:?} is remote, of {held:?}"));
        }
        let (ours, theirs) = (pair.from.volume.enqueue(range).await, pair.to.volume.enqueue(range).await);
        for part in runs(extent, range.block_mask().without(remote)) {
            let source = pair.from.volume.read_locked(&ours, part).await.unwrap();
            let destination = pair.to.volume.read_locked(&theirs, part).await.unwrap();
            if source[..] != destination[..] {
                return Err(format!("{part:?} differs and is not remote"));
            }
        }
    }
    Ok(())
}

/// Brings everything that is remote, and compares all of it.
async fn fetch_and_compare(pair: &Pair) -> Result<(), String> {
    for (extent, range) in extents() {
        for part in runs(extent, pair.to.volume.remote_mask(extent)) {
            let (ours, theirs) = (pair.from.volume.enqueue(range).await, pair.to.volume.enqueue(range).await);
            let data = pair.from.volume.read_locked(&ours, part).await.unwrap();
            pair.to.volume.fill_locked(&theirs, &Unfenced, part.offset, data).await.unwrap();
        }
    }
    pair.check_thin(&pair.from, &pair.to);
    pair.compare().await
}

/// Drains, compares, loses power at both sides, compares again, fetches the rest.
async fn drain_and_fetch(pair: &mut Pair) -> Result<(), String> {
    let quiesced = pair.from.volume.quiesce().await;
    pair.drain(Duration::from_secs(20)).await.map_err(|error| error.to_string())?;
    let progress = pair.progress();
    if progress.remote_bytes != pair.to.volume.remote_bytes() {
        return Err(format!("{} are remote, not {}", pair.to.volume.remote_bytes(), progress.remote_bytes));
    }
    compare_what_came(pair).await?;
    pair.receiving_side_crashes().await;
    drop(quiesced);
    pair.model.forget_clients();
    pair.from.crash().await;
    compare_what_came(pair).await?;
    fetch_and_compare(pair).await
}

/// A flip at some moment, while clients write and the link carries little.
pub async fn flipped_early(sim: Sim) -> Result<(), String> {
    let mut random = sim.generator("when");
    let mut pair = Pair::new(&sim, hot_first()).await;
    pair.model.start(&pair.from);
    let wire = pair.connect();
    wire.limit(random.between(1, 50) << 20);
    pair.sleep(Duration::from_micros(random.below(20_000))).await;
    pair.until_synced().await;
    pair.sleep(Duration::from_micros(random.below(200_000))).await;
    drain_and_fetch(&mut pair).await
}

#[test]
fn what_stays_behind_at_an_early_flip_is_known_and_all_else_is_equal() {
    run_each(400..425, flipped_early);
}

/// The same with links that break, refusals, and a destination that loses power.
pub async fn flipped_early_after_mishaps(sim: Sim) -> Result<(), String> {
    let mut random = sim.generator("when");
    let mut pair = Pair::new(&sim, hot_first()).await;
    pair.model.start(&pair.from);
    pair.connect().limit(random.between(1, 50) << 20);
    pair.sender.begin_mirror();
    for _ in 0..random.between(1, 6) {
        pair.sleep(Duration::from_micros(random.below(60_000))).await;
        mishap(&mut pair, &mut random).await;
        pair.wire.as_ref().expect("connected").limit(random.between(1, 50) << 20);
    }
    pair.until_phase(SendPhase::Synced).await;
    if random.below(2) == 0 {
        mishap(&mut pair, &mut random).await;
    }
    drain_and_fetch(&mut pair).await
}

#[test]
fn what_breaks_on_the_way_to_an_early_flip_is_made_good() {
    run_each(500..540, flipped_early_after_mishaps);
}

/// The destination loses what it was told and had not flushed.
pub async fn announcements_are_lost(sim: Sim) -> Result<(), String> {
    let mut random = sim.generator("when");
    let mut pair = Pair::new(&sim, hot_first()).await;
    pair.sender.begin_mirror();
    pair.connect().limit(4 << 20);
    while pair.progress().remote_bytes == 0 {
        pair.sleep(Duration::from_micros(20)).await;
    }
    pair.sleep(Duration::from_micros(random.below(400))).await;
    pair.receiving_side_crashes().await;
    pair.connect().limit(4 << 20);
    pair.until_phase(SendPhase::Synced).await;
    drain_and_fetch(&mut pair).await
}

#[test]
fn what_a_destination_forgot_it_is_told_again() {
    run_each(700..710, announcements_are_lost);
}

/// With most of the volume still to come it is synced, and drains.
#[test]
fn it_may_flip_when_little_has_come() {
    run(1, async |sim| {
        let mut pair = Pair::new(&sim, hot_first()).await;
        pair.sender.begin_mirror();
        pair.connect().limit(64 << 10);
        pair.until_phase(SendPhase::Synced).await;
        let progress = pair.progress();
        assert!(progress.remote_bytes > progress.total_bytes / 3, "{progress:?}");
        drain_and_fetch(&mut pair).await.unwrap();
    });
}

/// The extents that are accessed most go first, whatever is written there.
#[test]
fn what_is_accessed_most_is_sent_first_and_covers_most() {
    run(2, async |sim| {
        let mut pair = Pair::new(&sim, hot_first()).await;
        pair.sender.begin_mirror();
        let wire = pair.connect();
        wire.limit(64 << 10);
        assert!(pair.progress().coverage_permille < Some(1000));
        let progress = pair.until(|progress| progress.coverage_permille == Some(1000)).await;
        assert!(progress.done_bytes < progress.total_bytes / 2, "{progress:?}");
        let mut first: Vec<u64> = wire.sent().order.iter().map(|offset| offset / EXTENT_BYTES).collect();
        first.dedup();
        // Of those that are read at once any may be sent first.
        let at = |(extent, _): (ExtentIndex, f32)| first.iter().position(|sent| *sent == extent.0);
        let places: Vec<_> = hot_extents().into_iter().filter_map(at).collect();
        assert!(places.len() > 1 && places.iter().all(|place| *place < 8), "{places:?} of {first:?}");
    });
}

/// A source that restarts before the flip compares: what the destination knew to be remote is sent, or announced again.
#[test]
fn a_source_that_restarts_begins_anew() {
    run_each(600..612, async |sim| {
        let mut pair = Pair::new(&sim, hot_first()).await;
        pair.model.start(&pair.from);
        pair.connect().limit(8 << 20);
        pair.until_synced().await;
        pair.sending_side_crashes_with(drover_transfer::OnLinkLoss::FallBack, hot_first()).await;
        pair.model.adopt(&pair.from.content().await);
        pair.model.start(&pair.from);
        pair.connect().limit(8 << 20);
        pair.until_synced().await;
        drain_and_fetch(&mut pair).await
    });
}
