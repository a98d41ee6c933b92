use super::*;
use crate::{contract, sim::SoloWorld};
use futures::future::{join, join_all};
use proptest::prelude::*;
use std::cell::Cell;

const BLOCK: usize = BLOCK_BYTES as usize;

fn filled(value: u8, blocks: usize) -> Buffer {
    let mut buffer = Buffer::for_read(blocks * BLOCK);
    buffer.fill(value);
    buffer
}

/// The value a block was filled with; `None` if it holds nothing.
fn value(image: &SimImage, block: u64) -> Option<u8> {
    let bytes = image.get(block)?;
    assert!(bytes.iter().all(|&byte| byte == bytes[0]), "block {block} is torn inside");
    Some(bytes[0])
}

#[test]
fn it_is_a_device() {
    for seed in 0..20 {
        let mut solo = SoloWorld::new(seed);
        let device = SimDevice::new(solo.world(), contract::SIZE_BYTES);
        solo.run(contract::check(Rc::new(device)));
    }
}

#[test]
fn a_seed_gives_one_history() {
    let run = || {
        let mut solo = SoloWorld::new(7);
        let (device, world) = (SimDevice::new(solo.world(), 1 << 20), solo.world());
        solo.run(async move {
            join_all((0..200u64).map(|at| device.write(at % 50 * BLOCK_BYTES, filled(at as u8, 3)))).await;
            (device.crash(&*world.random), world.now())
        })
    };
    assert_eq!(run(), run());
}

#[test]
fn blocks_never_written_are_not_zero() {
    let mut solo = SoloWorld::new(1);
    let device = SimDevice::new(solo.world(), 1 << 20);
    solo.run(async move {
        device.write(0, filled(0, 1)).await.0.unwrap();
        device.discard(0, BLOCK_BYTES).await.unwrap();
        let (result, first) = device.read(0, Buffer::zeroed(2 * BLOCK)).await;
        result.unwrap();
        assert!(first.iter().all(|&byte| byte != 0));
        assert_ne!(first[..BLOCK], first[BLOCK..]);
        let (_, again) = device.read(0, Buffer::zeroed(2 * BLOCK)).await;
        assert_eq!(first, again);
    });
}

/// Over many seeds each thing that may happen does happen, or the simulation would test nothing.
#[test]
fn chance_reaches_every_outcome() {
    let (mut lost, mut kept, mut torn, mut overtaken, mut unseen) = (0, 0, 0, 0, 0);
    for seed in 0..200 {
        let mut solo = SoloWorld::new(seed);
        let (device, world) = (SimDevice::new(solo.world(), 1 << 20), solo.world());
        let outcome = solo.run(async move {
            device.write(0, filled(1, 8)).await.0.unwrap();
            let (mut first, mut second) = (None, None);
            let one = async {
                device.write(100 * BLOCK_BYTES, filled(1, 1)).await.0.unwrap();
                first = Some(world.now());
            };
            let two = async {
                device.write(101 * BLOCK_BYTES, filled(1, 1)).await.0.unwrap();
                second = Some(world.now());
            };
            join(one, two).await;
            // A write in flight when power goes.
            let in_flight = device.write(200 * BLOCK_BYTES, filled(1, 8));
            let cut = world.sleep(Duration::from_micros(60));
            futures::future::select(in_flight, cut).await;
            let seen = device.live_image();
            (device.crash(&*world.random), seen, second < first)
        });
        let (image, seen, is_overtaken) = outcome;
        let there = (0..8).filter(|&block| image.get(block).is_some()).count();
        lost += usize::from(there == 0);
        kept += usize::from(there == 8);
        torn += usize::from((1..8).contains(&there));
        overtaken += usize::from(is_overtaken);
        unseen += usize::from((200..208).any(|block| image.get(block).is_some() && seen.get(block).is_none()));
    }
    for (what, count) in [("lost", lost), ("kept", kept), ("torn", torn), ("overtaken", overtaken), ("unseen", unseen)]
    {
        assert!(count > 10, "{what}: {count}");
    }
}

#[test]
fn a_sync_does_not_cover_writes_that_end_while_it_runs() {
    let mut lost = 0;
    for seed in 0..200 {
        let mut solo = SoloWorld::new(seed);
        let (device, world) = (SimDevice::new(solo.world(), 1 << 20), solo.world());
        lost += solo.run(async move {
            let ended = Cell::new(false);
            let write = async {
                device.write(0, filled(1, 1)).await.0.unwrap();
                ended.set(true);
            };
            let sync = async {
                device.sync().await.unwrap();
                // Otherwise it is no wonder that the write gets lost.
                ended.get() && device.crash(&*world.random).get(0).is_none()
            };
            usize::from(join(sync, write).await.0)
        });
    }
    assert!(lost > 10, "such a write must be able to get lost: {lost}");
}

/// After a failed sync the writes it covered are still seen, and a later good sync does not bring them back.
#[test]
fn a_failed_sync_loses_for_good() {
    let lost = (0..50).any(|seed| {
        let mut solo = SoloWorld::new(seed);
        let (device, world) = (SimDevice::new(solo.world(), 1 << 20), solo.world());
        let image = solo.run(async move {
            device.fail_sync_after(1);
            device.sync().await.unwrap();
            device.write(0, filled(1, 4)).await.0.unwrap();
            assert_eq!(device.sync().await, Err(DeviceError::Sync { errno: libc::EIO }));
            let (_, seen) = device.read(0, Buffer::zeroed(4 * BLOCK)).await;
            assert_eq!(seen, filled(1, 4));
            device.sync().await.unwrap();
            device.crash(&*world.random)
        });
        (0..4).any(|block| image.get(block).is_none())
    });
    assert!(lost);
}

#[test]
fn after_a_crash_the_old_handle_is_dead() {
    let mut solo = SoloWorld::new(1);
    let (device, world) = (SimDevice::new(solo.world(), 1 << 20), solo.world());
    solo.run(async move {
        let image = device.crash(&*world.random);
        let dead = Err(DeviceError::Io { errno: libc::ENODEV, offset: 0, len: BLOCK_BYTES });
        assert_eq!(device.write(0, filled(1, 1)).await.0, dead);
        assert_eq!(device.read(0, filled(1, 1)).await.0, dead);
        assert_eq!(device.discard(0, BLOCK_BYTES).await, dead);
        assert_eq!(device.sync().await, Err(DeviceError::Sync { errno: libc::ENODEV }));
        assert_eq!(device.crash_image(&*world.random), image);
    });
}

#[test]
fn a_killed_user_loses_nothing_submitted() {
    for seed in 0..20 {
        let mut solo = SoloWorld::new(seed);
        let (device, world) = (SimDevice::new(solo.world(), 1 << 20), solo.world());
        let image = solo.run(async move {
            device.write(0, filled(1, 4)).await.0.unwrap();
            let write = device.write(2 * BLOCK_BYTES, filled(2, 4));
            futures::future::select(write, world.sleep(Duration::from_micros(1))).await;
            device.killed_image()
        });
        let values: Vec<_> = (0..6).map(|block| value(&image, block)).collect();
        assert_eq!(values, [1, 1, 2, 2, 2, 2].map(Some));
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Writes run side by side, to blocks that do not overlap.
    Write {
        blocks: Vec<u64>,
    },
    Discard {
        block: u64,
    },
    Sync,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => prop::collection::btree_set(0u64..12, 1..6).prop_map(|blocks| Step::Write { blocks: blocks.into_iter().collect() }),
        1 => (0u64..12).prop_map(|block| Step::Discard { block }),
        2 => Just(Step::Sync),
    ];
    prop::collection::vec(step, 1..30)
}

proptest! {
    /// The promise: a crash leaves in each block the last value that a good sync covered or a later one,
    /// never an older one, never a mixture; and what is there is then durable.
    #[test]
    fn a_crash_leaves_what_was_synced_or_newer(seed: u64, steps in steps()) {
        let mut solo = SoloWorld::new(seed);
        let (device, world) = (SimDevice::new(solo.world(), 12 * BLOCK_BYTES), solo.world());
        // Values a block may have after a crash: that of the last sync first, then all later ones.
        let mut possible: Vec<Vec<Option<u8>>> = vec![vec![None]; 12];
        let (image, possible) = solo.run(async move {
            for (step, version) in steps.into_iter().zip(1u8..) {
                match step {
                    Step::Write { blocks } => {
                        let writes = blocks.iter().map(|block| device.write(block * BLOCK_BYTES, filled(version, 1)));
                        for (result, _) in join_all(writes).await {
                            result.unwrap();
                        }
                        blocks.iter().for_each(|&block| possible[block as usize].push(Some(version)));
                    }
                    Step::Discard { block } => {
                        device.discard(block * BLOCK_BYTES, BLOCK_BYTES).await.unwrap();
                        possible[block as usize].push(None);
                    }
                    Step::Sync => {
                        device.sync().await.unwrap();
                        possible.iter_mut().for_each(|values| drop(values.drain(..values.len() - 1)));
                    }
                }
                let live = device.live_image();
                for (block, values) in (0..).zip(&possible) {
                    assert_eq!(value(&live, block), *values.last().unwrap());
                }
            }
            (device.crash(&*world.random), possible)
        });
        for (block, values) in (0..).zip(&possible) {
            prop_assert!(values.contains(&value(&image, block)), "block {}: {:?} of {:?}", block, value(&image, block), values);
        }
        let reopened = SimDevice::from_image(solo.world(), image.clone());
        prop_assert_eq!(reopened.crash(&*solo.world().random), image);
    }
}
