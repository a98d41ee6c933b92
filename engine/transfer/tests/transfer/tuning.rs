//! Throttle and pause: of background sending only, changeable at any time.

use crate::pair::{MIRRORED_BYTES_MAX, Pair, options, run, run_each};
use drover_sim::runtime::Sim;
use drover_wire::admin::{SendOptions, SendPhase, SendProgress};
use std::{cell::Cell, rc::Rc, time::Duration};

/// longhorn#5692, longhorn#10770: the copy saturated the network.
#[test]
fn the_throttle_holds_and_changes_at_once() {
    run(1, async |sim| {
        let rate = 200_000;
        let mut pair = Pair::new(&sim, SendOptions { throttle_bytes_per_s: Some(rate), ..options() }).await;
        pair.connect();
        let mut before = 0;
        for second in 0..5 {
            pair.sleep(Duration::from_secs(1)).await;
            let now = pair.progress().wire_bytes;
            let most = rate * 12 / 10 + 300_000 * u64::from(second == 0);
            assert!((rate / 2..most).contains(&(now - before)), "second {second}: {}", now - before);
            before = now;
        }
        pair.sender.tune(None, false);
        pair.sleep(Duration::from_millis(200)).await;
        assert!(pair.progress().rounds > 0, "{:?}", pair.progress());
        pair.drain_and_compare().await.unwrap();
    });
}

#[test]
fn a_pause_stops_the_copy_but_not_mirrored_writes_nor_the_drain() {
    run(2, async |sim| {
        let mut pair = Pair::new(&sim, options()).await;
        pair.sender.tune(Some(500_000), false);
        pair.connect();
        pair.until(|progress| progress.logical_bytes > 0).await;
        pair.sender.tune(None, true);
        pair.sleep(Duration::from_millis(50)).await;
        let paused = pair.progress();
        assert!(paused.paused && paused.phase == SendPhase::Copying, "{paused:?}");
        pair.sleep(Duration::from_secs(10)).await;
        assert_eq!(pair.progress().logical_bytes, paused.logical_bytes);
        pair.sender.begin_mirror();
        pair.model.start(&pair.from);
        pair.sleep(Duration::from_millis(100)).await;
        assert!(pair.model.answers.get() > 50, "{}", pair.model.answers.get());
        assert!(pair.progress().logical_bytes > paused.logical_bytes);
        assert_eq!(pair.progress().phase, SendPhase::Mirroring);
        assert!(pair.progress().client_write_bytes_per_s > 0);
        pair.drain_and_compare().await.unwrap();
    });
}

#[test]
fn a_paused_sender_goes_on_where_it_was() {
    run(3, async |sim| {
        let mut pair = Pair::new(&sim, options()).await;
        pair.connect();
        pair.sender.tune(None, true);
        pair.sleep(Duration::from_secs(1)).await;
        pair.sender.tune(None, false);
        pair.until_synced().await;
        pair.drain_and_compare().await.unwrap();
    });
}

/// longhorn#9051: under load the copy never converged. Here a writer faster than the copy may send ends the rounds, and
/// mirroring, which is not throttled, brings both sides together while it goes on.
#[test]
fn a_writer_faster_than_the_throttle_does_not_keep_it_from_ending() {
    run_each(700..703, async |sim| {
        let rate = 1_000_000;
        let mut pair = Pair::new(&sim, SendOptions { throttle_bytes_per_s: Some(rate), ..options() }).await;
        pair.model.start(&pair.from);
        pair.connect();
        let ready = pair.until(|progress| progress.ready_to_mirror).await;
        assert!(ready.client_write_bytes_per_s > rate, "{ready:?}");
        pair.sender.begin_mirror();
        // What is left goes at the throttle's pace, with every extent written meanwhile already mirrored.
        pair.until_phase(SendPhase::Synced).await;
        let before = pair.model.answers.get();
        pair.sleep(Duration::from_millis(100)).await;
        assert!(pair.model.answers.get() > before, "the writer goes on");
        pair.drain_and_compare().await
    });
}

/// Writers that each write a block, wait for the answer, and think for a moment.
fn write_on(pair: &Pair, stop: &Rc<Cell<bool>>) {
    for block in 0..4 {
        let (volume, model, world) = (pair.from.volume.clone(), pair.model.clone(), pair.from.world.clone());
        let stop = stop.clone();
        let writer = async move {
            while !stop.get() {
                model.write_block(&volume, block * 100).await;
                world.sleep(Duration::from_millis(5)).await;
            }
        };
        pair.from.world.spawn(writer).detach();
    }
}

/// A writer faster than the link is slowed to it, which is what makes a migration end. It must not go unnoticed.
#[test]
fn who_is_slowed_to_the_link_is_told_from_who_is_not() {
    run(4, async |sim| {
        let mut pair = Pair::new(&sim, options()).await;
        let wire = pair.connect();
        let is_slowed = |progress: &SendProgress| {
            progress.writes_wait && progress.client_write_bytes_per_s * 10 < progress.free_write_bytes_per_s * 8
        };
        let stop = Rc::new(Cell::new(false));
        write_on(&pair, &stop);
        pair.sleep(Duration::from_secs(6)).await;
        let free = pair.progress();
        let rate = free.client_write_bytes_per_s;
        assert!(rate > 0 && free.free_write_bytes_per_s.abs_diff(rate) < rate / 4 && !free.writes_wait, "{free:?}");

        // Mirrored over a link that carries it, it goes on as before.
        pair.until_synced().await;
        for _ in 0..4 {
            pair.sleep(Duration::from_secs(1)).await;
            assert!(!is_slowed(&pair.progress()), "{:?}", pair.progress());
        }
        wire.limit(rate / 4);
        pair.until(is_slowed).await;
        for _ in 0..5 {
            pair.sleep(Duration::from_secs(1)).await;
            let slowed = pair.progress();
            assert!(is_slowed(&slowed) && slowed.free_write_bytes_per_s > rate / 2, "{slowed:?}");
        }
        wire.limit(0);
        pair.until(|progress| !is_slowed(progress)).await;
        // Nor is one that wants no more.
        stop.set(true);
        pair.sleep(Duration::from_secs(2)).await;
        assert!(!pair.progress().writes_wait, "{:?}", pair.progress());
        pair.drain_and_compare().await.unwrap();
    });
}

/// More than may be on its way is written while the link carries nothing; then it goes on, or is lost.
pub async fn more_than_there_is_room_for(sim: Sim) -> Result<(), String> {
    let mut pair = Pair::new(&sim, options()).await;
    let wire = pair.connect();
    pair.until_synced().await;
    wire.hold(true);
    for block in 0..60 {
        pair.begin_write(block * 20);
    }
    pair.sleep(Duration::from_millis(50)).await;
    assert!(wire.queued_bytes() <= MIRRORED_BYTES_MAX, "{}", wire.queued_bytes());
    wire.hold(false);
    if sim.generator("lost").below(2) == 0 {
        pair.cut_and_connect().await;
    }
    pair.drain_and_compare().await
}

/// Five connections with full windows over a slow link had more on their way than a connection may queue: it broke, they
/// were marked, and came again, for as long as they went on.
#[test]
fn mirrored_writes_wait_for_room_on_the_stream() {
    run_each(800..808, more_than_there_is_room_for);
}
