//! Links that break and nodes that crash, in every phase.

use crate::pair::{Pair, options, run, run_each};
use crate::wire::Faults;
use drover_disk::fault;
use drover_sim::runtime::{Generator, Sim};
use drover_transfer::OnLinkLoss;
use drover_wire::admin::SendPhase;
use std::time::Duration;

async fn some_time(pair: &Pair, random: &mut Generator, most_ms: u64) {
    pair.sleep(Duration::from_micros(random.below(most_ms * 1000))).await;
}

/// Something breaks, for a while.
pub async fn mishap(pair: &mut Pair, random: &mut Generator) {
    match random.below(4) {
        0 => pair.cut_and_connect().await,
        1 => {
            pair.cut_off().await;
            some_time(pair, random, 20).await;
            pair.connect();
        }
        2 => {
            pair.receiving_side_crashes().await;
            some_time(pair, random, 20).await;
            pair.connect();
        }
        _ => {
            let wire = pair.wire.as_ref().expect("connected between mishaps");
            wire.set_faults(Faults { refused_ppm: 30_000, flushes_refused_ppm: 200_000 });
            some_time(pair, random, 50).await;
            pair.wire.as_ref().expect("connected").set_faults(Faults::default());
        }
    }
}

/// Mishaps from the beginning to the end.
pub async fn mishaps_all_the_way(sim: Sim) -> Result<(), String> {
    let mut random = sim.generator("mishaps");
    let mut pair = Pair::new(&sim, options()).await;
    pair.model.start(&pair.from);
    pair.connect();
    for _ in 0..random.below(5) {
        some_time(&pair, &mut random, 20).await;
        mishap(&mut pair, &mut random).await;
    }
    pair.until(|progress| progress.ready_to_mirror).await;
    pair.sender.begin_mirror();
    for _ in 0..random.below(5) {
        some_time(&pair, &mut random, 60).await;
        mishap(&mut pair, &mut random).await;
    }
    if random.below(2) == 0 {
        pair.until_phase(SendPhase::Synced).await;
        mishap(&mut pair, &mut random).await;
    }
    pair.drain_and_compare().await
}

/// crucible#837, crucible#968: a repair that hung. Here comparison and copy end whatever broke meanwhile.
#[test]
fn whatever_breaks_both_sides_end_equal() {
    run_each(0..25, mishaps_all_the_way);
}

/// The destination loses what it had acknowledged but not flushed.
pub async fn crash_of_the_destination(sim: Sim) -> Result<(), String> {
    let mut random = sim.generator("when");
    let mut pair = Pair::new(&sim, options()).await;
    pair.connect();
    some_time(&pair, &mut random, 60).await;
    pair.receiving_side_crashes().await;
    pair.connect();
    pair.drain_and_compare().await
}

#[test]
fn what_a_crash_of_the_destination_took_is_sent_again() {
    run_each(200..225, crash_of_the_destination);
}

/// Errors that are not the link's: some requests are refused.
pub async fn refused_now_and_then(sim: Sim) -> Result<(), String> {
    let mut pair = Pair::new(&sim, options()).await;
    pair.model.start(&pair.from);
    let wire = pair.connect();
    wire.set_faults(Faults { refused_ppm: 50_000, ..Faults::default() });
    pair.sleep(Duration::from_millis(100)).await;
    pair.sender.begin_mirror();
    pair.sleep(Duration::from_millis(100)).await;
    wire.set_faults(Faults::default());
    pair.drain_and_compare().await
}

#[test]
fn what_was_refused_is_sent_again() {
    run_each(300..312, refused_now_and_then);
}

#[test]
fn a_side_that_refuses_everything_is_told_of() {
    run(4, async |sim| {
        let mut pair = Pair::new(&sim, options()).await;
        let wire = pair.connect();
        wire.set_faults(Faults { refused_ppm: 1_000_000, ..Faults::default() });
        let progress = pair.until_phase(SendPhase::Failed).await;
        assert!(progress.error.unwrap().contains("no tier has a free slot"));
        // A new link is a new beginning.
        pair.cut_and_connect().await;
        pair.until_synced().await;
        assert_eq!(pair.progress().error, None);
        pair.drain_and_compare().await.unwrap();
    });
}

/// A device of either side fails single reads and writes. A local write that fails after its mirror succeeded
/// leaves the sides different until it is sent again.
async fn devices_fail(sim: Sim) -> Result<(), String> {
    let mut random = sim.generator("faults");
    let mut pair = Pair::new(&sim, options()).await;
    pair.model.start(&pair.from);
    pair.connect();
    for round in 0..6 {
        let faults = if random.below(4) == 0 { &pair.to.faults } else { &pair.from.faults };
        let kind = *random.pick(&[fault::Operation::Read, fault::Operation::Write]);
        faults.arm(kind, random.below(40));
        some_time(&pair, &mut random, 30).await;
        if round == 2 {
            pair.sender.begin_mirror();
        }
    }
    // A client that was told of an error may ask again or not; what is stored must be equal all the same.
    pair.model.stop(&pair.from).await;
    pair.from.faults.arm(fault::Operation::Read, u64::MAX);
    pair.to.faults.arm(fault::Operation::Read, u64::MAX);
    pair.drain_and_compare().await
}

#[test]
fn single_failures_of_devices_leave_the_sides_equal() {
    run_each(500..512, devices_fail);
}

/// The source restarts: what it had sent is there, what it lost is not; only a comparison tells.
pub async fn source_restarts(sim: Sim) -> Result<(), String> {
    let mut random = sim.generator("when");
    let mut pair = Pair::new(&sim, options()).await;
    pair.model.start(&pair.from);
    pair.connect();
    if random.below(2) == 0 {
        pair.until_synced().await;
    }
    some_time(&pair, &mut random, 80).await;
    pair.sending_side_crashes(OnLinkLoss::FallBack).await;
    // What a restart left of unflushed writes is what counts from now on.
    pair.model.adopt(&pair.from.content().await);
    pair.model.start(&pair.from);
    pair.connect();
    assert_eq!(pair.progress().phase, SendPhase::Comparing);
    for _ in 0..random.below(3) {
        some_time(&pair, &mut random, 15).await;
        mishap(&mut pair, &mut random).await;
    }
    pair.until_synced().await;
    let progress = pair.progress();
    assert_eq!(progress.done_bytes, progress.total_bytes);
    pair.drain_and_compare().await
}

/// longhorn#6034: a timeout threw the work away, 90 % became 0.
#[test]
fn after_a_restart_of_the_source_only_what_differs_is_sent() {
    run_each(400..420, source_restarts);
    run(5, async |sim| {
        let mut pair = Pair::new(&sim, options()).await;
        pair.connect();
        pair.until_synced().await;
        pair.from.volume.flush(&drover_store::Unfenced).await.unwrap();
        pair.sending_side_crashes(OnLinkLoss::FallBack).await;
        let wire = pair.connect();
        pair.until_synced().await;
        let progress = pair.progress();
        assert_eq!(progress.done_bytes, progress.total_bytes);
        assert_eq!((wire.sent().writes, progress.dirty_bytes), (0, 0), "nothing differed");
        pair.drain_and_compare().await.unwrap();
    });
}

/// What a former sender had sent is found equal, but the destination had not flushed it: then it crashes.
async fn equal_but_not_flushed(sim: Sim) -> Result<(), String> {
    let mut pair = Pair::new(&sim, options()).await;
    pair.connect();
    pair.until(|progress| progress.rounds > 0 && progress.logical_bytes > 0).await;
    pair.from.volume.flush(&drover_store::Unfenced).await.unwrap();
    pair.sending_side_crashes(OnLinkLoss::FallBack).await;
    pair.connect();
    pair.until(|progress| progress.phase > SendPhase::Comparing).await;
    pair.receiving_side_crashes().await;
    pair.connect();
    pair.drain_and_compare().await
}

#[test]
fn what_is_found_equal_is_durable() {
    run_each(600..610, equal_but_not_flushed);
}
