//! The mirror back: after a flip, the side that was left must have whatever was answered, as long as the record
//! says that the way back is open.

use crate::pair::{Pair, options, run, run_each};
use crate::wire::Faults;
use drover_base::World;
use drover_sim::runtime::Sim;
use drover_store::Unfenced;
use drover_transfer::{OnLinkLoss, Sender, Start};
use drover_wire::admin::SendPhase;
use std::{cell::Cell, rc::Rc, time::Duration};

/// What the control plane has recorded.
#[derive(Default)]
struct Record {
    closed: Cell<bool>,
    closings: Cell<u32>,
}

/// What the holder's node does about the way back; recording takes a while.
async fn keep_way_back(world: World, sender: Rc<Sender>, record: Rc<Record>) {
    loop {
        if !record.closed.get() {
            sender.link_lost_with_writes_waiting().await;
            world.sleep(Duration::from_millis(3)).await;
            record.closed.set(true);
            record.closings.set(record.closings.get() + 1);
            world.sleep(Duration::from_millis(1)).await;
        }
        sender.go_alone();
        sender.synced_again().await;
        world.sleep(Duration::from_millis(1)).await;
        record.closed.set(false);
    }
}

/// A pair after a flip: the destination holds and mirrors back; not connected.
pub async fn flipped(sim: &Sim) -> Pair {
    let mut pair = Pair::new(sim, options()).await;
    pair.connect();
    pair.until_synced().await;
    let quiesced = pair.from.volume.quiesce().await;
    pair.drain(Duration::from_secs(20)).await.unwrap();
    drop(quiesced);
    pair.turn(Start::Clean).await
}

fn start_keeper(pair: &Pair) -> Rc<Record> {
    let record = Rc::new(Record::default());
    let keeper = keep_way_back(pair.from.world.clone(), pair.sender.clone(), record.clone());
    pair.from.world.spawn(keeper).detach();
    record
}

/// The holder dies at this moment, for good: what the other side has must do.
async fn take_over(pair: &mut Pair) -> Result<(), String> {
    pair.sim.kill(pair.from.name);
    pair.model.forget_clients();
    pair.cut_off().await;
    match pair.model.difference(&pair.to.content().await, pair.to.name) {
        Some(difference) => Err(difference),
        None => Ok(()),
    }
}

async fn mishaps(pair: &mut Pair, number: u64) {
    let mut random = pair.sim.generator(&format!("back {number}"));
    for _ in 0..random.below(5) {
        pair.sleep(Duration::from_micros(random.below(40_000))).await;
        match random.below(4) {
            0 => pair.cut_and_connect().await,
            1 => {
                pair.cut_off().await;
                pair.sleep(Duration::from_micros(random.below(15_000))).await;
                pair.connect();
            }
            2 => {
                pair.receiving_side_crashes().await;
                pair.sleep(Duration::from_micros(random.below(15_000))).await;
                pair.connect();
            }
            _ => {
                let wire = pair.wire.clone().expect("connected");
                wire.set_faults(Faults { refused_ppm: 20_000, flushes_refused_ppm: 100_000 });
                pair.sleep(Duration::from_micros(random.below(30_000))).await;
                wire.set_faults(Faults::default());
            }
        }
    }
    pair.sleep(Duration::from_micros(random.below(40_000))).await;
    if random.below(3) == 0 {
        pair.cut_off().await;
        pair.sleep(Duration::from_micros(random.below(4_000))).await;
    }
}

/// The holder dies at a random moment.
pub async fn holder_dies(sim: Sim) -> Result<(), String> {
    let mut pair = flipped(&sim).await;
    let record = start_keeper(&pair);
    pair.connect();
    pair.model.start(&pair.from);
    mishaps(&mut pair, 1).await;
    if record.closed.get() {
        return Ok(());
    }
    take_over(&mut pair).await
}

#[test]
fn with_the_way_back_open_a_takeover_loses_no_answered_write() {
    run_each(0..40, holder_dies);
}

#[test]
fn the_way_back_is_whole_again_after_any_mishap() {
    run_each(0..20, async |sim| {
        let mut pair = flipped(&sim).await;
        let record = start_keeper(&pair);
        pair.connect();
        pair.model.start(&pair.from);
        mishaps(&mut pair, 2).await;
        if pair.wire.is_none() {
            pair.connect();
        }
        pair.until_phase(SendPhase::Synced).await;
        while record.closed.get() {
            pair.sleep(Duration::from_millis(1)).await;
        }
        assert!(pair.progress().link_up);
        // The flip back.
        pair.drain_and_compare().await
    });
}

/// The other side restarts and loses what it had not flushed; a flush of a client then covers that too, or waits.
pub async fn flush_after_restart(sim: Sim) -> Result<(), String> {
    let mut pair = flipped(&sim).await;
    pair.connect();
    pair.until_phase(SendPhase::Synced).await;
    for block in 0..200 {
        pair.model.write_block(&pair.from.volume, block * 5).await;
    }
    pair.receiving_side_crashes().await;
    pair.connect();
    pair.from.volume.flush(&Unfenced).await.map_err(|error| error.to_string())?;
    // Both lose power: what was flushed is there, on either side.
    pair.cut_off().await;
    pair.receiving_side_crashes().await;
    match pair.model.difference(&pair.to.content().await, pair.to.name) {
        Some(difference) => Err(difference),
        None => Ok(()),
    }
}

#[test]
fn a_flush_after_a_restart_of_the_other_side_covers_what_that_lost() {
    run_each(0..15, flush_after_restart);
}

#[test]
fn answers_wait_for_the_record_or_for_the_other_side() {
    run(1, async |sim| {
        let mut pair = flipped(&sim).await;
        pair.connect();
        pair.until_phase(SendPhase::Synced).await;
        pair.model.write_block(&pair.from.volume, 3).await;
        pair.cut_off().await;
        let before = pair.model.answers.get();
        pair.begin_write(4);
        pair.sender.link_lost_with_writes_waiting().await;
        pair.sleep(Duration::from_secs(5)).await;
        assert_eq!(pair.model.answers.get(), before, "it waits");
        // A new link lets it go, and the other side has it then.
        pair.connect();
        pair.sleep(Duration::from_millis(100)).await;
        assert_eq!(pair.model.answers.get(), before + 1);
        assert_eq!(pair.model.difference(&pair.to.content().await, "source"), None);
        // So does the record.
        pair.cut_off().await;
        let before = pair.model.answers.get();
        pair.begin_write(5);
        pair.sleep(Duration::from_millis(100)).await;
        pair.sender.go_alone();
        pair.sleep(Duration::from_millis(100)).await;
        assert_eq!(pair.model.answers.get(), before + 1);
        pair.model.write_block(&pair.from.volume, 6).await;
        assert!(!pair.progress().link_up);
        pair.connect();
        pair.sender.synced_again().await;
        assert_eq!(pair.model.difference(&pair.to.content().await, "source"), None);
    });
}

/// The holder restarts while it settles: the way back is closed by then, and opens after a comparison.
#[test]
fn a_restarted_holder_compares_and_is_whole_again() {
    run_each(0..15, async |sim| {
        let mut pair = flipped(&sim).await;
        pair.connect();
        pair.model.start(&pair.from);
        pair.sleep(Duration::from_millis(30)).await;
        pair.sending_side_crashes(OnLinkLoss::Hold).await;
        pair.model.adopt(&pair.from.content().await);
        pair.sender.go_alone();
        pair.model.start(&pair.from);
        pair.sleep(Duration::from_millis(5)).await;
        pair.connect();
        mishaps_without_end(&mut pair).await;
        pair.sender.synced_again().await;
        pair.drain_and_compare().await
    });
}

async fn mishaps_without_end(pair: &mut Pair) {
    let mut random = pair.sim.generator("while comparing");
    for _ in 0..random.below(3) {
        pair.sleep(Duration::from_micros(random.below(10_000))).await;
        pair.cut_and_connect().await;
    }
}
