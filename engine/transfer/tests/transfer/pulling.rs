//! After a flip that did not wait for all data: the rest is brought, on demand and in the background.

use crate::pair::{Pair, Ranked, run, run_each};
use crate::side::{VOLUME_BLOCKS, VOLUME_BYTES};
use drover_base::units::{BLOCK_BYTES, EXTENT_BYTES};
use drover_base::{ByteRange, ExtentIndex, IoError, RegionIndex, World};
use drover_disk::Buffer;
use drover_disk::fault::Operation as DeviceOperation;
use drover_sim::runtime::Sim;
use drover_store::Unfenced;
use drover_transfer::{OnLinkLoss, Puller, PullerConfig};
use drover_wire::admin::SendPhase;
use futures::future::join_all;
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

const DEADLINE: Duration = Duration::from_secs(5);

fn config() -> PullerConfig {
    PullerConfig { ranking: Rc::new(Ranked), demand_deadline: DEADLINE, throttle_bytes_per_s: None, paused: false }
}

/// Nothing is brought that nobody asks for.
fn paused() -> PullerConfig {
    PullerConfig { paused: true, ..config() }
}

/// A share of the extents was copied before the flip, by chance.
async fn some_copied(sim: &Sim) -> Pair {
    let random = RefCell::new(sim.generator("copied"));
    let share = random.borrow_mut().below(70);
    Pair::flipped_early(sim, |_| random.borrow_mut().below(100) < share).await
}

async fn none_copied(sim: &Sim) -> Pair {
    Pair::flipped_early(sim, |_| false).await
}

/// Extents of the pair's volume that are wholly remote, ascending.
fn remote_extents(pair: &Pair) -> Vec<ExtentIndex> {
    let extents = (0..VOLUME_BYTES / EXTENT_BYTES).map(ExtentIndex);
    extents.filter(|extent| pair.from.volume.remote_mask(*extent).is_full()).collect()
}

fn block_of(extent: ExtentIndex) -> u64 {
    extent.offset() / BLOCK_BYTES
}

/// Clients that read here and there until told to stop, and what they found wrong.
#[derive(Clone, Default)]
struct Readers {
    stop: Rc<Cell<bool>>,
    wrong: Rc<RefCell<Option<String>>>,
    running: Rc<Cell<u32>>,
}

impl Readers {
    fn start(&self, pair: &Pair) {
        self.stop.set(false);
        for reader in 0..3 {
            let (me, model, volume) = (self.clone(), pair.model.clone(), pair.from.volume.clone());
            let world: World = pair.from.world.clone();
            let mut random = pair.sim.generator(&format!("reader {reader} after {}", model.answers.get()));
            me.running.set(me.running.get() + 1);
            let reading = async move {
                while !me.stop.get() {
                    let first = random.below(VOLUME_BLOCKS);
                    let count = random.between(1, 40).min(VOLUME_BLOCKS - first);
                    if let Err(wrong) = model.read_blocks(&volume, first, count).await {
                        *me.wrong.borrow_mut() = Some(wrong);
                    }
                    world.sleep(Duration::from_micros(random.below(3_000))).await;
                }
                me.running.set(me.running.get() - 1);
            };
            pair.from.world.spawn(reading).detach();
        }
    }

    async fn end(&self, sim: &Sim) -> Result<(), String> {
        self.stop.set(true);
        while self.running.get() > 0 {
            sim.sleep(Duration::from_millis(1)).await;
        }
        self.wrong.borrow_mut().take().map_or(Ok(()), Err)
    }
}

async fn mishaps(pair: &mut Pair) {
    let mut random = pair.sim.generator("mishaps while pulling");
    for _ in 0..random.below(5) {
        pair.sleep(Duration::from_micros(random.below(15_000))).await;
        match random.below(3) {
            0 => pair.cut_and_connect().await,
            1 => {
                pair.cut_off().await;
                pair.sleep(Duration::from_micros(random.below(15_000))).await;
                pair.connect();
            }
            _ => {
                pair.receiving_side_crashes().await;
                pair.sleep(Duration::from_micros(random.below(15_000))).await;
                pair.connect();
            }
        }
    }
}

/// Everything is here, is what clients wrote, and is at the other side too.
async fn all_is_here(pair: &mut Pair, puller: &Puller) -> Result<(), String> {
    puller.done().await;
    assert_eq!(puller.progress().remote_bytes, 0);
    puller.stop();
    pair.until_phase(SendPhase::Synced).await;
    pair.drain_and_compare().await?;
    pair.check_thin(&pair.to, &pair.from);
    Ok(())
}

/// Clients read and write, links break, the source restarts.
pub async fn under_load(sim: Sim) -> Result<(), String> {
    let mut pair = some_copied(&sim).await;
    let puller = pair.puller(config());
    let readers = Readers::default();
    readers.start(&pair);
    pair.model.start(&pair.from);
    pair.sleep(Duration::from_millis(2)).await;
    pair.connect();
    mishaps(&mut pair).await;
    puller.done().await;
    readers.end(&sim).await?;
    all_is_here(&mut pair, &puller).await
}

#[test]
fn all_comes_whatever_happens_meanwhile() {
    run_each(0..30, under_load);
}

/// The holder crashes while it pulls, and finds what is still remote; nothing of that is sent to the source.
pub async fn holder_restarts(sim: Sim) -> Result<(), String> {
    let mut pair = some_copied(&sim).await;
    let mut random = sim.generator("restarts");
    let puller = pair.puller(config());
    pair.connect();
    pair.model.start(&pair.from);
    pair.sleep(Duration::from_micros(random.below(8_000))).await;
    puller.stop();
    pair.sending_side_crashes(OnLinkLoss::Hold).await;
    pair.sender.go_alone();
    // In one run of two the comparison is through before anything more has come.
    let puller = pair.puller(PullerConfig { paused: random.below(2) == 0, ..config() });
    pair.sleep(Duration::from_micros(random.below(3_000))).await;
    pair.connect();
    mishaps(&mut pair).await;
    pair.sleep(Duration::from_millis(100)).await;
    puller.tune(None, false);
    puller.done().await;
    pair.sender.synced_again().await;
    if let Some(wrong) = pair.model.never_held(&pair.from.content().await, "destination") {
        return Err(wrong);
    }
    pair.model.adopt(&pair.from.content().await);
    pair.model.start(&pair.from);
    pair.sleep(Duration::from_millis(5)).await;
    all_is_here(&mut pair, &puller).await
}

#[test]
fn a_restarted_holder_goes_on_pulling_and_sends_nothing_that_it_has_not() {
    run_each(0..30, holder_restarts);
}

/// All that was answered was flushed before the holder's crash: it must be there.
#[test]
fn a_restart_loses_nothing_that_was_flushed() {
    run_each(0..10, async |sim| {
        let mut pair = some_copied(&sim).await;
        let puller = pair.puller(config());
        pair.connect();
        pair.model.start(&pair.from);
        pair.sleep(Duration::from_millis(4)).await;
        pair.model.stop(&pair.from).await;
        pair.from.volume.flush(&Unfenced).await.unwrap();
        puller.stop();
        pair.sending_side_crashes(OnLinkLoss::Hold).await;
        pair.sender.go_alone();
        let puller = pair.puller(config());
        pair.connect();
        pair.sender.synced_again().await;
        all_is_here(&mut pair, &puller).await
    });
}

/// The other side has it already: sent back, it would be traffic for nothing, and could go over what is newer.
pub async fn nothing_goes_back(sim: Sim) -> Result<(), String> {
    let mut pair = none_copied(&sim).await;
    let puller = pair.puller(config());
    let wire = pair.connect();
    puller.done().await;
    pair.sleep(Duration::from_millis(100)).await;
    match wire.sent() {
        sent if sent.writes + sent.zeros == 0 => all_is_here(&mut pair, &puller).await,
        sent => Err(format!("{sent:?} though nobody wrote")),
    }
}

#[test]
fn what_is_pulled_is_not_mirrored_back() {
    run_each(0..3, nothing_goes_back);
}

#[test]
fn without_the_source_a_range_alone_waits_and_fails_and_is_served_again() {
    run(1, async |sim| {
        let half = ExtentIndex(VOLUME_BYTES / EXTENT_BYTES / 2);
        let mut pair = Pair::flipped_early(&sim, |extent| extent < half).await;
        let puller = pair.puller(config());
        let volume = pair.from.volume.clone();
        let remote = remote_extents(&pair)[3];
        let began = pair.from.world.now();
        assert_eq!(volume.read(&Unfenced, 0, 8192).await.map(|data| data.len()), Ok(8192));
        let failed = volume.read(&Unfenced, remote.offset() + 1, 1).await;
        assert_eq!(failed.unwrap_err(), IoError::Remote);
        let waited = pair.from.world.now().since(began);
        assert!(waited >= DEADLINE && waited < DEADLINE + Duration::from_millis(10), "{waited:?}");
        // The link comes back while another waits.
        let (reader, model) = (volume.clone(), pair.model.clone());
        let read = async move { model.read_blocks(&reader, block_of(remote), 16).await };
        let (read, ()) = futures::join!(read, async {
            pair.sleep(Duration::from_secs(4)).await;
            assert_eq!(puller.progress().demand_waits, 1);
            pair.connect();
        });
        read.unwrap();
        all_is_here(&mut pair, &puller).await.unwrap();
        puller.stop();
    });
}

#[test]
fn an_extent_that_the_source_cannot_read_fails_alone() {
    run(2, async |sim| {
        let mut pair = none_copied(&sim).await;
        let puller = pair.puller(paused());
        pair.connect();
        pair.until_phase(SendPhase::Synced).await;
        let volume = pair.from.volume.clone();
        let [bad, good] = remote_extents(&pair)[..2] else { panic!("some are remote") };
        pair.to.faults.arm(DeviceOperation::Read, 0);
        let read = pair.model.read_blocks(&volume, block_of(bad), 1).await;
        assert_eq!(read, Ok(()), "it is asked for again");
        let (world, faults) = (pair.from.world.clone(), pair.to.faults.clone());
        let stop = Rc::new(Cell::new(false));
        let keep_failing = {
            let stop = stop.clone();
            async move {
                while !stop.get() {
                    faults.arm(DeviceOperation::Read, 0);
                    world.sleep(Duration::from_micros(20)).await;
                }
            }
        };
        pair.from.world.spawn(keep_failing).detach();
        let bad = remote_extents(&pair)[1];
        assert_eq!(volume.read(&Unfenced, bad.offset(), 1).await.unwrap_err(), IoError::Remote);
        assert!(puller.progress().error.is_some());
        stop.set(true);
        pair.sleep(Duration::from_millis(1)).await;
        // The last failure that was armed is used up.
        let _ = pair.to.volume.read(&Unfenced, bad.offset(), 1).await;
        pair.model.read_blocks(&volume, block_of(good), 16).await.unwrap();
        pair.sleep(Duration::from_secs(2)).await;
        pair.model.read_blocks(&volume, block_of(bad), 16).await.unwrap();
        puller.tune(None, false);
        all_is_here(&mut pair, &puller).await.unwrap();
    });
}

#[test]
fn many_who_want_an_extent_wait_for_one_pull() {
    run(3, async |sim| {
        let mut pair = none_copied(&sim).await;
        let puller = pair.puller(paused());
        let wire = pair.connect();
        let extent = remote_extents(&pair)[0];
        let reads = (0..16).map(|block| pair.model.read_blocks(&pair.from.volume, block_of(extent) + block, 1));
        assert!(join_all(reads).await.iter().all(|read| read.is_ok()));
        assert_eq!(wire.sent().reads, [ByteRange { offset: extent.offset(), len: EXTENT_BYTES }]);
        let progress = puller.progress();
        assert_eq!((progress.demand_pulls, progress.pulled_bytes, progress.demand_waits), (1, EXTENT_BYTES, 0));
        assert_eq!((progress.local_blocks_60s, progress.remote_blocks_60s), (0, 16));
        // A change of whole blocks needs nothing; one in part needs what is around it.
        let other = remote_extents(&pair)[0];
        pair.from.volume.write(&Unfenced, other.offset(), Buffer::zeroed(8192), false).await.unwrap();
        assert_eq!(wire.sent().reads.len(), 1);
        pair.from.volume.write(&Unfenced, other.offset() + 8192 + 100, Buffer::zeroed(8192), false).await.unwrap();
        assert_eq!(wire.sent().reads.len(), 2);
        let progress = puller.progress();
        assert_eq!((progress.local_blocks_60s, progress.remote_blocks_60s), (3, 18));
        assert_eq!(progress.local_permille_60s(), Some(3000 / 21));
        puller.stop();
    });
}

#[test]
fn a_reader_in_sequence_seldom_waits() {
    run(4, async |sim| {
        let mut pair = none_copied(&sim).await;
        let puller = pair.puller(paused());
        pair.connect();
        pair.until_phase(SendPhase::Synced).await;
        let extents = VOLUME_BYTES / EXTENT_BYTES;
        for block in 0..extents * 16 {
            pair.model.read_blocks(&pair.from.volume, block, 1).await.unwrap();
            pair.sleep(Duration::from_micros(20)).await;
        }
        let progress = puller.progress();
        assert!(progress.demand_pulls < extents / 8, "{progress:?}");
        assert!(progress.local_permille_60s().unwrap() > 900, "{progress:?}");
        puller.stop();
    });
}

#[test]
fn the_hottest_regions_come_first_within_throttle_and_pause() {
    run(5, async |sim| {
        let mut pair = none_copied(&sim).await;
        let remote_bytes = pair.from.volume.remote_bytes();
        let throttle = Some(1 << 20);
        let puller = pair.puller(PullerConfig { throttle_bytes_per_s: throttle, ..config() });
        let wire = pair.connect();
        let began = sim.now();
        pair.sleep(Duration::from_millis(500)).await;
        // Who waits does not wait for the throttle.
        let last = remote_extents(&pair).pop().unwrap();
        let asked = sim.now();
        pair.model.read_blocks(&pair.from.volume, block_of(last), 1).await.unwrap();
        assert!(sim.now() - asked < Duration::from_millis(20));
        puller.tune(throttle, true);
        pair.sleep(Duration::from_millis(20)).await;
        let brought = puller.progress().pulled_bytes;
        pair.sleep(Duration::from_secs(30)).await;
        assert_eq!((puller.progress().pulled_bytes, puller.progress().paused), (brought, true));
        puller.tune(throttle, false);
        puller.done().await;
        let progress = puller.progress();
        assert_eq!(progress.pulled_bytes, remote_bytes);
        let least = Duration::from_secs_f64(progress.pulled_wire_bytes as f64 / (1 << 20) as f64);
        assert!(sim.now() - began - Duration::from_secs(30) > least.mul_f64(0.8), "{least:?}");
        let reads = wire.sent().reads;
        let of_background = reads.iter().filter(|read| read.offset != last.offset());
        let mut order: Vec<u64> = of_background.map(|read| RegionIndex::containing(read.offset).0).collect();
        order.dedup();
        assert_eq!(order, [1, 0, 2]);
        all_is_here(&mut pair, &puller).await.unwrap();
    });
}

#[test]
fn no_proof_begins_while_anything_is_remote() {
    run(6, async |sim| {
        let mut pair = some_copied(&sim).await;
        let puller = pair.puller(paused());
        pair.connect();
        pair.until_phase(SendPhase::Synced).await;
        pair.sender.begin_proof();
        pair.sleep(Duration::from_secs(1)).await;
        assert_eq!((pair.progress().phase, pair.progress().proof), (SendPhase::Synced, None));
        puller.tune(None, false);
        puller.done().await;
        pair.sender.begin_proof();
        pair.until_phase(SendPhase::Proven).await;
        puller.stop();
        pair.drain_and_compare().await.unwrap();
    });
}

/// What was read before a mirrored write whose local half failed is older than what the source has: stored, it would stay
/// different for good.
#[test]
fn what_was_read_before_a_failed_write_is_read_again() {
    run(7, async |sim| {
        let mut pair = none_copied(&sim).await;
        let puller = pair.puller(paused());
        let wire = pair.connect();
        pair.until_phase(SendPhase::Synced).await;
        let extent = remote_extents(&pair)[0];
        wire.hold(true);
        let (volume, model) = (pair.from.volume.clone(), pair.model.clone());
        let reader = volume.clone();
        let read = async move { reader.read(&Unfenced, extent.offset(), BLOCK_BYTES).await.unwrap() };
        let (read, ()) = futures::join!(read, async {
            pair.sleep(Duration::from_millis(1)).await;
            assert_eq!(wire.sent().reads.len(), 1);
            pair.from.faults.arm(DeviceOperation::Write, 0);
            futures::join!(model.write_block(&volume, block_of(extent)), async {
                pair.sleep(Duration::from_millis(1)).await;
                assert_eq!(wire.sent().writes, 1, "it was mirrored");
                wire.hold(false);
            });
        });
        let there = pair.to.content().await;
        let at = extent.offset() as usize;
        assert_eq!(read[..], there[at..at + BLOCK_BYTES as usize]);
        assert_eq!(wire.sent().reads.len(), 2);
        puller.tune(None, false);
        all_is_here(&mut pair, &puller).await.unwrap();
    });
}

#[test]
fn it_is_done_also_when_clients_overwrote_the_last_of_it() {
    run(9, async |sim| {
        let mut pair = none_copied(&sim).await;
        let puller = pair.puller(paused());
        pair.connect();
        pair.until_phase(SendPhase::Synced).await;
        let (volume, waits) = (pair.from.volume.clone(), puller.clone());
        let overwrite = async { volume.trim(&Unfenced, 0, VOLUME_BYTES, false).await.unwrap() };
        futures::join!(waits.done(), overwrite);
        assert_eq!(puller.progress().pulled_bytes, 0);
        puller.stop();
    });
}

#[test]
fn a_puller_that_was_stopped_keeps_nobody_waiting() {
    run(8, async |sim| {
        let pair = none_copied(&sim).await;
        let puller = pair.puller(config());
        let remote = remote_extents(&pair)[0];
        let volume = pair.from.volume.clone();
        let began = pair.from.world.now();
        let read = volume.read(&Unfenced, remote.offset(), 1);
        let (read, ()) = futures::join!(read, async {
            pair.sleep(Duration::from_millis(5)).await;
            puller.stop();
        });
        assert_eq!(read.unwrap_err(), IoError::Remote);
        assert!(pair.from.world.now().since(began) < DEADLINE);
    });
}
