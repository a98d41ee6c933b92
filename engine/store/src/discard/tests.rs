use super::*;
use crate::{
    Store, StoreConfig, TierClass, TierSpec, Unfenced, Volume,
    checkpoint::CheckpointPlace,
    meta::memory::MemoryMeta,
    testing::{ID, SIZE, bytes, read},
};
use drover_base::{LocalFuture, units::BLOCKS_PER_EXTENT};
use drover_disk::{
    Buffer,
    fault::{Event, FailNth, Observe, Operation},
    sim::{SimDevice, SimImage, SoloWorld},
};
use proptest::prelude::*;
use std::{cell::RefCell, collections::BTreeSet, future::Future, io, rc::Rc};

const SLOTS: u64 = 8;
const EXTENT: u64 = EXTENT_BYTES;
const PACE: DiscardPace = DiscardPace { look_every: Duration::from_millis(10), pause: Duration::from_millis(1) };
/// All that is free is discarded by then.
const LONG: Duration = Duration::from_millis(200);

/// A node of one tier that discards, and what its device was told of: first slot and number of slots.
#[derive(Clone)]
struct Node {
    world: World,
    sim: SimDevice,
    fault: Rc<FailNth>,
    meta: MemoryMeta,
    tiers: Tiers,
    told: Rc<RefCell<Vec<(u64, u64)>>>,
}

impl Node {
    fn new(world: World) -> Self {
        let sim = SimDevice::from_image(world.clone(), SimImage::new(SLOTS * EXTENT));
        let spec = TierSpec { name: "a".into(), class: TierClass::Nvme, slots: SLOTS, discards: true };
        let meta = MemoryMeta::new(world.clone());
        let fault = Rc::new(FailNth::new(Rc::new(sim.clone())));
        Self { world, sim, fault, meta, tiers: Tiers::new(vec![spec]), told: Rc::default() }
    }

    async fn open(&self, checkpoint: Option<Rc<dyn CheckpointPlace>>) -> (Rc<Store>, Rc<Volume>) {
        let told = self.told.clone();
        let device = Observe::new(self.fault.clone(), move |event| {
            if let Event::DiscardBegins { offset, len } = event {
                told.borrow_mut().push((offset / EXTENT, len / EXTENT));
            }
        });
        let config = StoreConfig { checkpoint, discard_pace: PACE, ..StoreConfig::default() };
        let meta = Rc::new(self.meta.clone());
        let store = Store::open(config, self.world.clone(), vec![Rc::new(device)], self.tiers.clone(), meta);
        let store = store.await.unwrap();
        let volume = store.create_volume(ID, "web", SIZE).await.unwrap();
        (store, volume)
    }

    /// What its device is told within a while.
    async fn told(&self) -> Vec<(u64, u64)> {
        self.told.take();
        self.world.sleep(LONG).await;
        self.told.take()
    }

    /// Slots in which the device holds something.
    fn filled(&self) -> usize {
        let image = self.sim.live_image();
        image.written().map(|block| block / u64::from(BLOCKS_PER_EXTENT)).collect::<BTreeSet<_>>().len()
    }
}

fn run<F: Future<Output = ()> + 'static>(test: impl Fn(Node) -> F) {
    for seed in 1..=8 {
        let mut solo = SoloWorld::new(seed);
        let node = Node::new(solo.world());
        solo.run(test(node));
    }
}

fn extents(count: u64, byte: u8) -> Buffer {
    bytes((count * EXTENT) as usize, byte)
}

/// A thin volume was trimmed, and the file under it stayed as large as it had ever been.
#[test]
fn what_is_freed_is_discarded_once_it_is_durable() {
    run(|node| async move {
        let (store, volume) = node.open(None).await;
        assert_eq!(node.told().await, [(0, SLOTS)], "nobody knows what was discarded before the start");
        volume.write(&Unfenced, 0, extents(6, 1), true).await.unwrap();
        volume.trim(&Unfenced, EXTENT, 3 * EXTENT, false).await.unwrap();
        assert_eq!(node.told().await, [], "a crash would need it");
        assert_eq!(node.filled(), 6);
        volume.flush(&Unfenced).await.unwrap();
        assert_eq!(node.told().await, [(1, 3)], "neighbours go together");
        assert_eq!(node.filled(), 3);
        assert_eq!(node.told().await, [], "nothing is discarded twice");
        volume.snapshot("s").await.unwrap();
        volume.write(&Unfenced, 0, extents(1, 2), true).await.unwrap();
        volume.delete_snapshot("s").await.unwrap();
        volume.merges_done().await;
        volume.flush(&Unfenced).await.unwrap();
        assert_eq!(node.told().await.len(), 1, "what only the snapshot had");
        assert_eq!(node.filled(), 3);
        assert_eq!(read(&volume, 0, EXTENT).await, vec![2; EXTENT as usize]);
        store.delete_volume(ID).await.unwrap();
        node.told().await;
        assert_eq!((node.filled(), node.tiers.usage()[0].slots_used), (0, 0));
    });
}

/// A place in memory.
#[derive(Default)]
struct Place(RefCell<Option<Vec<u8>>>);

impl CheckpointPlace for Place {
    fn store(&self, bytes: Vec<u8>) -> LocalFuture<'_, io::Result<()>> {
        *self.0.borrow_mut() = Some(bytes);
        Box::pin(std::future::ready(Ok(())))
    }
    fn load(&self) -> LocalFuture<'_, io::Result<Option<Vec<u8>>>> {
        Box::pin(std::future::ready(Ok(self.0.borrow().clone())))
    }
}

/// A restore goes back to the checkpoint: what that names stays until there is a new one.
#[test]
fn what_a_checkpoint_names_is_not_discarded() {
    run(|node| async move {
        let (store, volume) = node.open(Some(Rc::new(Place::default()))).await;
        assert_eq!(node.told().await, [], "a checkpoint of before the start may name anything");
        store.checkpoint().await.unwrap();
        assert_eq!(node.told().await, [(0, SLOTS)]);
        volume.write(&Unfenced, 0, extents(4, 1), true).await.unwrap();
        store.checkpoint().await.unwrap();
        volume.trim(&Unfenced, 0, 4 * EXTENT, true).await.unwrap();
        assert_eq!((node.told().await, node.filled()), (vec![], 4));
        store.checkpoint().await.unwrap();
        assert_eq!((node.told().await, node.filled()), (vec![(0, 4)], 0));
    });
}

/// The last free slots are being discarded when a write wants them: it waits, and nothing of it is discarded.
#[test]
fn a_write_waits_for_the_discard_of_its_slot() {
    run(|node| async move {
        let (_store, volume) = node.open(None).await;
        node.told().await;
        for turn in 1..=20u8 {
            volume.write(&Unfenced, 0, extents(SLOTS, turn), true).await.unwrap();
            volume.trim(&Unfenced, 0, SLOTS * EXTENT, true).await.unwrap();
            node.told.take();
            while node.told.borrow().is_empty() {
                node.world.sleep(Duration::from_micros(20)).await;
            }
            assert_eq!(node.tiers.usage()[0].slots_used, 0, "those that are being discarded are nobody's");
            volume.write(&Unfenced, 0, extents(SLOTS, turn), false).await.unwrap();
            node.world.sleep(Duration::from_millis(5)).await;
            assert_eq!(read(&volume, 0, SLOTS * EXTENT).await, vec![turn; (SLOTS * EXTENT) as usize]);
        }
    });
}

/// A device without discard is told once, and its volumes never notice.
#[test]
fn a_device_that_refuses_is_told_no_more() {
    run(|node| async move {
        let (_store, volume) = node.open(None).await;
        node.fault.arm(Operation::Discard, 1);
        assert_eq!(node.told().await, [(0, SLOTS)]);
        assert!(!node.tiers.usage()[0].discard_failed);
        volume.write(&Unfenced, 0, extents(SLOTS, 1), true).await.unwrap();
        volume.trim(&Unfenced, 0, SLOTS / 2 * EXTENT, true).await.unwrap();
        assert_eq!(node.told().await, [(0, SLOTS / 2)]);
        assert!(node.tiers.usage()[0].discard_failed);
        volume.trim(&Unfenced, 0, SLOTS * EXTENT, true).await.unwrap();
        assert_eq!(node.told().await, []);
        volume.write(&Unfenced, 0, extents(SLOTS, 2), true).await.unwrap();
        assert_eq!(read(&volume, 0, SLOTS * EXTENT).await, vec![2; (SLOTS * EXTENT) as usize]);
    });
}

/// A device that lost writes is left alone, and one that is not to discard is told nothing.
#[test]
fn only_a_sound_tier_that_wants_it_is_told() {
    let spec = |discards| TierSpec { name: "a".into(), class: TierClass::Nvme, slots: SLOTS, discards };
    let tiers = Tiers::new(vec![spec(true), spec(false)]);
    assert_eq!((tiers.begin_discard(1), tiers.has_discards()), (None, true));
    assert!(!Tiers::new(vec![spec(false)]).has_discards());
    tiers.sync_failed(0);
    assert_eq!(tiers.begin_discard(0), None);
    tiers.mend(0, tiers.sync_failures(0));
    assert_eq!(tiers.begin_discard(0), Some(0..SLOTS));
    assert_eq!(tiers.begin_discard(0), None, "one at a time");
}

#[test]
fn a_run_is_bounded_and_the_next_begins_behind_it() {
    let mut free = Undiscarded::all(2 * SLOTS_AT_ONCE + 10);
    let mut ends = Vec::new();
    while let Some(run) = free.next_run() {
        ends.push(run.end);
        run.for_each(|slot| free.remove(slot));
    }
    assert_eq!(ends, [SLOTS_AT_ONCE, 2 * SLOTS_AT_ONCE, 2 * SLOTS_AT_ONCE + 10]);
    [5, 4, 70].into_iter().for_each(|slot| free.insert(slot));
    let runs: Vec<_> = std::iter::from_fn(|| free.next_run()).take(3).collect();
    assert_eq!(runs, [4..6, 70..71, 4..6], "round and round");
}

proptest! {
    /// Against a plain set: each run is free and cannot be longer, and in turn all of them are found.
    #[test]
    fn runs_are_what_a_set_says(slots in 1u64..400, steps in prop::collection::vec((0u8..3, 0u64..400), 0..300)) {
        let mut free = Undiscarded::all(slots);
        let mut set: BTreeSet<u64> = (0..slots).collect();
        // At last, all that is left.
        let rest = std::iter::repeat_n((2, 0), slots as usize);
        for (what, slot) in steps.into_iter().chain(rest) {
            let slot = slot % slots;
            match what {
                0 => {
                    free.insert(slot);
                    set.insert(slot);
                }
                1 => {
                    free.remove(slot);
                    set.remove(&slot);
                }
                _ => {
                    let run = free.next_run().unwrap_or(0..0);
                    prop_assert!(run.is_empty() == set.is_empty() && run.end - run.start <= SLOTS_AT_ONCE);
                    prop_assert!(run.end - run.start == SLOTS_AT_ONCE || !set.contains(&run.end));
                    for slot in run {
                        prop_assert!(set.remove(&slot));
                        free.remove(slot);
                    }
                }
            }
        }
        prop_assert!(set.is_empty() && free.count == 0);
    }
}
