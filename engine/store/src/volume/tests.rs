use super::*;
use crate::{
    BlockStatus, MergeLeft, Merged, Store, StoreConfig, StoreError, TapChange, Unfenced, ZeroMode,
    testing::{ID, Node, SIZE, SLOTS, bytes, read, run, run_with},
    zero_block_digest,
};
use drover_base::{
    BlockMask, Epoch, LocalFuture,
    limits::REQUEST_BYTES_MAX,
    units::{BLOCK_BYTES, EXTENT_BYTES},
};
use drover_disk::Buffer;
use drover_disk::fault::{FailNth, Operation};
use futures::{
    FutureExt,
    channel::oneshot,
    future::{Shared, join},
};
use std::{cell::Cell, time::Duration};

/// As the operating system numbers it.
const ENOSPC: i32 = 28;

const UNMAP: ZeroMode = ZeroMode { may_unmap: true, fast_only: false };
const NO_HOLE: ZeroMode = ZeroMode { may_unmap: false, fast_only: false };
const FAST: ZeroMode = ZeroMode { may_unmap: true, fast_only: true };

#[test]
fn trims_give_slots_back_when_flushed() {
    run(|node| async move {
        let volume = node.volume().await;
        volume.write(&Unfenced, 0, bytes(3 * 65_536, 1), false).await.unwrap();
        assert_eq!(volume.usage(), VolumeUsage { used_bytes: 3 * 65_536, valid_bytes: 3 * 65_536 });
        volume.trim(&Unfenced, 1, 2 * 65_536, false).await.unwrap();
        assert_eq!(volume.usage(), VolumeUsage { used_bytes: 2 * 65_536, valid_bytes: 17 * 4096 });
        assert_eq!(node.used(), 3, "the durable map may name it");
        volume.flush(&Unfenced).await.unwrap();
        assert_eq!(node.used(), 2);
        assert_eq!(read(&volume, 0, 4096).await, vec![1; 4096], "a partial block stays");
        assert_eq!(read(&volume, 4096, 2 * 65_536 - 4096).await, vec![0; 2 * 65_536 - 4096]);
    });
}

#[test]
fn status_tells_data_from_holes() {
    run(|node| async move {
        let volume = node.volume().await;
        volume.write(&Unfenced, 8192, bytes(4096, 1), false).await.unwrap();
        volume.write(&Unfenced, 5 << 20, bytes(4096, 1), false).await.unwrap();
        let (data, hole) = (BlockStatus::DATA, BlockStatus::HOLE);
        let all =
            [(8192, hole), (4096, data), ((5 << 20) - 12_288, hole), (4096, data), (SIZE - (5 << 20) - 4096, hole)];
        assert_eq!(volume.block_status(0, SIZE, 100).unwrap(), all);
        assert_eq!(volume.block_status(0, SIZE, 2).unwrap(), all[..2]);
        assert_eq!(volume.block_status(8193, 10, 5).unwrap(), [(10, data)]);
        assert_eq!(volume.block_status(0, 0, 5).unwrap(), []);
        assert!(volume.block_status(SIZE, 1, 5).is_err());
        assert!(volume.region_has_data(RegionIndex(1)) && !volume.region_has_data(RegionIndex(2)));
    });
}

#[test]
fn zeroes_without_holes_take_slots_and_fast_ones_write_nothing() {
    run(|node| async move {
        let volume = node.volume().await;
        volume.write_zeroes(&Unfenced, 0, 65_536, NO_HOLE, false).await.unwrap();
        assert_eq!(volume.usage().used_bytes, 65_536);
        assert_eq!(volume.block_status(0, 4096, 1).unwrap(), [(4096, BlockStatus::DATA)]);
        let slow = ZeroMode { may_unmap: false, fast_only: true };
        assert_eq!(volume.write_zeroes(&Unfenced, 0, 4096, slow, false).await, Err(IoError::NotFast));
        assert_eq!(volume.write_zeroes(&Unfenced, 1, 4096, FAST, false).await, Err(IoError::NotFast));
        volume.write_zeroes(&Unfenced, 0, 4096, FAST, false).await.unwrap();
        volume.snapshot("s").await.unwrap();
        volume.write(&Unfenced, 8192, bytes(4096, 1), false).await.unwrap();
        // The extent keeps the write, so what is below must be covered with stored zeros.
        assert_eq!(volume.write_zeroes(&Unfenced, 4096, 4096, FAST, false).await, Err(IoError::NotFast));
        volume.write_zeroes(&Unfenced, 4096, 4096, UNMAP, false).await.unwrap();
        assert_eq!(volume.usage().valid_bytes, (15 + 2) * 4096);
    });
}

#[test]
fn a_write_after_a_snapshot_takes_only_its_blocks() {
    run(|node| async move {
        let volume = node.volume().await;
        volume.write(&Unfenced, 0, bytes(65_536, 1), false).await.unwrap();
        volume.snapshot("before").await.unwrap();
        volume.write(&Unfenced, 4000, bytes(200, 2), false).await.unwrap();
        assert_eq!(volume.usage().valid_bytes, (16 + 2) * 4096);
        volume.trim(&Unfenced, 8192, 4096, false).await.unwrap();
        let now = [vec![1; 4000], vec![2; 200], vec![1; 8192 - 4200], vec![0; 4096], vec![1; 100]].concat();
        assert_eq!(read(&volume, 0, 12_388).await, now);
        volume.snapshot("after").await.unwrap();
        volume.rollback("before").await.unwrap();
        assert_eq!(read(&volume, 0, 65_536).await, vec![1; 65_536]);
        assert_eq!(volume.snapshots().len(), 2, "newer snapshots stay");
        volume.rollback("after").await.unwrap();
        assert_eq!(read(&volume, 0, 12_388).await, now);
        volume.delete_snapshot("before").await.unwrap();
        volume.merges_done().await;
        assert_eq!(read(&volume, 0, 12_388).await, now);
        volume.delete_snapshot("after").await.unwrap();
        volume.merges_done().await;
        assert_eq!(read(&volume, 0, 12_388).await, now);
        assert_eq!((volume.snapshots().len(), node.used()), (0, 1));
    });
}

/// Zeros that a frozen layer stores over data are no data that the other side should have.
#[test]
fn stored_zeros_of_a_snapshot_are_told_from_data() {
    run(|node| async move {
        let volume = node.volume().await;
        volume.write(&Unfenced, 0, bytes(8192, 1), false).await.unwrap();
        volume.snapshot("below").await.unwrap();
        volume.write(&Unfenced, 0, bytes(4096, 2), false).await.unwrap();
        volume.write_zeroes(&Unfenced, 4096, 4096, UNMAP, false).await.unwrap();
        volume.write(&Unfenced, 8192, bytes(4096, 3), false).await.unwrap();
        for name in ["zeros", "over"] {
            assert_eq!(volume.shadowing_mask(ExtentIndex(0)), BlockMask::span(0, 2), "before {name}");
            volume.snapshot(name).await.unwrap();
        }
        volume.trim(&Unfenced, 0, 4096, false).await.unwrap();
        assert_eq!(volume.shadowing_mask(ExtentIndex(0)), BlockMask::span(1, 1));
    });
}

/// Who deletes a snapshot wants to know when its space is back.
#[test]
fn a_merge_can_be_watched_to_its_end() {
    run(|node| async move {
        let volume = node.volume().await;
        for region in 0..4 {
            volume.write(&Unfenced, region << 22, bytes(65_536, 1), false).await.unwrap();
        }
        volume.snapshot("s").await.unwrap();
        for region in 0..2 {
            volume.write(&Unfenced, region << 22, bytes(65_536, 2), false).await.unwrap();
        }
        assert_eq!((volume.merge_left(), volume.merged()), (None, Merged::default()));
        volume.delete_snapshot("s").await.unwrap();
        let mut left = volume.merge_left().unwrap();
        assert_eq!(left, MergeLeft { layers: 1, left_bytes: 4 * EXTENT_BYTES });
        while let Some(now) = volume.merge_left() {
            assert!(now.layers == 1 && now.left_bytes <= left.left_bytes, "{left:?}, then {now:?}");
            left = now;
            node.world.sleep(Duration::from_micros(10)).await;
        }
        assert_eq!(volume.merged(), Merged { layers: 1, freed_bytes: 2 * EXTENT_BYTES });
        assert_eq!(volume.usage().used_bytes, 4 * EXTENT_BYTES);
    });
}

/// An extent's lock may be held for as long as a slow mirror takes to answer.
#[test]
fn a_merge_that_waits_for_a_lock_keeps_nobody_waiting() {
    run(|node| async move {
        let volume = node.volume().await;
        for letter in 1..3 {
            volume.write(&Unfenced, 0, bytes(2 * 65_536, letter), false).await.unwrap();
            if letter == 1 {
                volume.snapshot("s").await.unwrap();
            }
        }
        let guard = volume.enqueue(ByteRange { offset: 0, len: 4096 }).await;
        volume.delete_snapshot("s").await.unwrap();
        let a_while = Duration::from_secs(1);
        node.world.sleep(a_while).await;
        assert_eq!(
            volume.merge_left(),
            Some(MergeLeft { layers: 1, left_bytes: EXTENT_BYTES }),
            "the other one is merged"
        );
        node.world.timeout(a_while, volume.snapshot("t")).await.expect("it does not wait for the merge").unwrap();
        drop(guard);
        volume.merges_done().await;
        assert_eq!((volume.merge_left(), volume.merged().layers), (None, 1));
        assert_eq!(read(&volume, 0, 2 * 65_536).await, vec![2; 2 * 65_536]);
    });
}

#[test]
fn a_deleted_snapshot_that_others_stand_on_waits_and_is_no_merge() {
    run(|node| async move {
        let volume = node.volume().await;
        volume.write(&Unfenced, 0, bytes(65_536, 1), false).await.unwrap();
        volume.snapshot("below").await.unwrap();
        volume.write(&Unfenced, 0, bytes(65_536, 2), false).await.unwrap();
        volume.snapshot("beside").await.unwrap();
        volume.rollback("below").await.unwrap();
        volume.delete_snapshot("below").await.unwrap();
        assert_eq!(volume.merge_left(), None, "the head and another snapshot stand on it");
        volume.delete_snapshot("beside").await.unwrap();
        assert!(volume.merge_left().is_some());
        volume.merges_done().await;
        assert_eq!((volume.merge_left(), volume.merged().layers), (None, 2));
        assert_eq!(volume.merged().freed_bytes, EXTENT_BYTES);
        assert_eq!(read(&volume, 0, 4096).await, vec![1; 4096]);
    });
}

#[test]
fn snapshots_are_named_once() {
    run(|node| async move {
        let volume = node.volume().await;
        volume.snapshot("s").await.unwrap();
        assert_eq!(volume.snapshot("s").await, Err(StoreError::SnapshotExists { name: "s".into() }));
        assert_eq!(volume.snapshot("S").await, Err(StoreError::BadName { name: "S".into() }));
        assert_eq!(volume.rollback("t").await, Err(StoreError::NoSnapshot { name: "t".into() }));
        assert_eq!(volume.delete_snapshot("t").await, Err(StoreError::NoSnapshot { name: "t".into() }));
        let inside = Rc::new(Cell::new(false));
        let ran = inside.clone();
        volume.snapshot_with("u", move || ran.set(true)).await.unwrap();
        assert!(inside.get());
    });
}

/// mayastor#1883: there was no way to free a full pool. Here a full tier refuses what needs space and nothing else.
#[test]
fn a_full_node_still_reads_overwrites_and_deletes() {
    run(|node| async move {
        let volume = node.volume().await;
        let all = SLOTS * EXTENT_BYTES;
        volume.write(&Unfenced, 0, bytes(all as usize, 1), false).await.unwrap();
        assert_eq!(volume.write(&Unfenced, all, bytes(1, 1), false).await, Err(IoError::NoSpace));
        assert_eq!(volume.write(&Unfenced, all - 4096, bytes(8192, 2), false).await, Err(IoError::NoSpace));
        assert_eq!(read(&volume, all - 4096, 4096).await, vec![1; 4096], "refused as a whole");
        volume.write(&Unfenced, 0, bytes(8192, 2), true).await.unwrap();
        assert_eq!(read(&volume, 0, 8193).await, [vec![2; 8192], vec![1]].concat());
        volume.trim(&Unfenced, 0, EXTENT_BYTES, true).await.unwrap();
        volume.write(&Unfenced, all, bytes(1, 1), false).await.unwrap();
    });
}

/// A guest that fills its disk, discards everything and writes again without a flush in between got ENOSPC for ever:
/// nothing made durable that the slots are free.
#[test]
fn a_full_volume_that_is_trimmed_is_written_again_without_a_flush() {
    run(|node| async move {
        let store = node.open().await;
        let volume = store.create_volume(ID, "web", SIZE).await.unwrap();
        let other = store.create_volume(VolumeId(2), "db", SIZE).await.unwrap();
        let all = (SLOTS - 1) * EXTENT_BYTES;
        other.write(&Unfenced, 0, bytes(4096, 9), true).await.unwrap();
        for turn in 1..=4u8 {
            volume.write(&Unfenced, 0, bytes(all as usize, turn), false).await.unwrap();
            assert_eq!(volume.write(&Unfenced, all, bytes(1, 1), false).await, Err(IoError::NoSpace), "it is full");
            volume.trim(&Unfenced, 0, all, false).await.unwrap();
            assert_eq!(node.used(), SLOTS, "nothing was flushed");
        }
        // What another volume of the node gave up counts as well.
        other.write(&Unfenced, 0, bytes(all as usize, 8), false).await.unwrap();
        assert_eq!(read(&volume, 0, all).await, vec![0; all as usize]);
        let store = node.crashed().open().await;
        let volume = store.volume(ID).unwrap();
        assert_eq!(read(&volume, 0, all).await, vec![0; all as usize], "its slots are the other's now");
    });
}

/// A volume of one shard was full of what it had discarded, and a write of another shard's got ENOSPC until somebody
/// flushed the first.
#[test]
fn what_another_shard_has_freed_makes_room() {
    run(|node| async move {
        Store::scan_slots(&node.meta, &node.tiers).await.unwrap();
        let config = |shard| StoreConfig { shard, shards: 2, ..StoreConfig::default() };
        let [first, second] = [node.open_shard(config(0)).await.unwrap(), node.open_shard(config(1)).await.unwrap()];
        let volume = first.create_volume(VolumeId(2), "db", SIZE).await.unwrap();
        let other = second.create_volume(ID, "web", SIZE).await.unwrap();
        let all = SLOTS * EXTENT_BYTES;
        for turn in 1..=3 {
            for (one, two) in [(&volume, &other), (&other, &volume)] {
                one.write(&Unfenced, 0, bytes(all as usize, turn), false).await.unwrap();
                assert_eq!(two.write(&Unfenced, 0, bytes(1, 1), false).await, Err(IoError::NoSpace), "it is full");
                one.trim(&Unfenced, 0, all, false).await.unwrap();
            }
        }
        // A shard that is gone is not waited for.
        volume.write(&Unfenced, 0, bytes(all as usize, 7), false).await.unwrap();
        drop((other, second));
        assert_eq!(volume.write(&Unfenced, all, bytes(1, 1), false).await, Err(IoError::NoSpace));
    });
}

/// The file system under a sparse device file was full, and clients got EIO: most of them take the disk for broken then.
#[test]
fn a_full_file_system_is_no_space_and_no_failure() {
    run(|node| async move {
        let device = Rc::new(FailNth::new(Rc::new(node.device.clone())));
        let (world, tiers, meta) = (node.world.clone(), node.tiers.clone(), Rc::new(node.meta.clone()));
        let opened = Store::open(StoreConfig::default(), world, vec![device.clone()], tiers, meta);
        let volume = opened.await.unwrap().create_volume(ID, "web", SIZE).await.unwrap();
        volume.write(&Unfenced, 0, bytes(65_536, 1), true).await.unwrap();
        device.arm_with(Operation::Write, 0, ENOSPC);
        assert_eq!(volume.write(&Unfenced, 65_536, bytes(65_536, 2), false).await, Err(IoError::NoSpace));
        assert_eq!((node.used(), node.tiers.usage()[0].refused_writes), (1, 1));
        assert_eq!(volume.flush(&Unfenced).await, Ok(()), "what was stored before is not in danger");
        assert_eq!(read(&volume, 65_536, 65_536).await, vec![0; 65_536]);
        volume.write(&Unfenced, 65_536, bytes(65_536, 3), true).await.unwrap();
        assert_eq!(read(&volume, 0, 131_072).await, [vec![1; 65_536], vec![3; 65_536]].concat());
    });
}

/// The slot of a discarded extent is still being read when the flush that frees it is done: who needs it waits for that.
#[test]
fn a_write_waits_for_the_read_of_the_last_slot() {
    run(|node| async move {
        let store = node.open().await;
        let volume = store.create_volume(ID, "web", SIZE).await.unwrap();
        let all = SLOTS * EXTENT_BYTES;
        volume.write(&Unfenced, 0, bytes(all as usize, 1), true).await.unwrap();
        let read = volume.read(&Unfenced, 0, EXTENT_BYTES);
        let reuse = async {
            volume.trim(&Unfenced, 0, EXTENT_BYTES, false).await.unwrap();
            volume.write(&Unfenced, all, bytes(EXTENT_BYTES as usize, 2), false).await
        };
        let (read, reused) = join(read, reuse).await;
        assert_eq!(reused, Ok(()));
        assert_eq!(read.unwrap()[..], [1; EXTENT_BYTES as usize], "it resolved before the discard");
    });
}

/// A mirror that stands still until told to go on.
struct Still(Shared<oneshot::Receiver<()>>);

impl Tap for Still {
    fn change(&self, _change: &TapChange) -> Option<LocalFuture<'static, Result<(), IoError>>> {
        let gone_on = self.0.clone();
        Some(Box::pin(async move { gone_on.await.map_err(|_| IoError::Disconnected) }))
    }
    fn failed(&self, _range: ByteRange) {}
    fn flush(&self) -> Option<LocalFuture<'static, Result<(), IoError>>> {
        None
    }
}

/// A volume whose mirror stood still kept what it had freed, and every write of another volume that needed room waited
/// for as long.
#[test]
fn a_volume_that_stands_still_keeps_nobody_waiting_for_room() {
    run(|node| async move {
        let store = node.open().await;
        let still = store.create_volume(ID, "web", SIZE).await.unwrap();
        let other = store.create_volume(VolumeId(2), "db", SIZE).await.unwrap();
        still.write(&Unfenced, 0, bytes((SLOTS * EXTENT_BYTES) as usize, 1), false).await.unwrap();
        still.trim(&Unfenced, 0, EXTENT_BYTES, false).await.unwrap();
        let (go_on, gone_on) = oneshot::channel();
        still.set_tap(Some(Rc::new(Still(gone_on.shared()))));
        let needs_room = async {
            node.world.sleep(Duration::from_millis(50)).await;
            assert_eq!(other.write(&Unfenced, 0, bytes(1, 1), false).await, Err(IoError::NoSpace));
            go_on.send(()).unwrap();
        };
        let (written, ()) = join(still.write(&Unfenced, EXTENT_BYTES, bytes(4096, 2), false), needs_room).await;
        assert_eq!(written, Ok(()));
        other.write(&Unfenced, 0, bytes(1, 1), false).await.unwrap();
    });
}

/// A tap that keeps what it saw; its mirrored writes take a while.
struct Recorder {
    node: Node,
    changes: RefCell<Vec<TapChange>>,
    failed: RefCell<Vec<ByteRange>>,
    mirrored: Rc<Cell<u32>>,
    flushes: Cell<u32>,
}

impl Recorder {
    fn new(node: &Node) -> Rc<Self> {
        Rc::new(Self {
            node: node.clone(),
            changes: RefCell::default(),
            failed: RefCell::default(),
            mirrored: Rc::default(),
            flushes: Cell::new(0),
        })
    }
}

impl Tap for Recorder {
    fn change(&self, change: &TapChange) -> Option<LocalFuture<'static, Result<(), IoError>>> {
        self.changes.borrow_mut().push(change.clone());
        let sleep = self.node.world.sleep(Duration::from_millis(50));
        let mirrored = self.mirrored.clone();
        Some(Box::pin(async move {
            sleep.await;
            mirrored.set(mirrored.get() + 1);
            Ok(())
        }))
    }
    fn failed(&self, range: ByteRange) {
        self.failed.borrow_mut().push(range);
    }
    fn flush(&self) -> Option<LocalFuture<'static, Result<(), IoError>>> {
        self.flushes.set(self.flushes.get() + 1);
        None
    }
}

#[test]
fn the_tap_sees_whole_blocks_and_is_waited_for() {
    run(|node| async move {
        let volume = node.volume().await;
        volume.write(&Unfenced, 0, bytes(4096, 1), false).await.unwrap();
        let tap = Recorder::new(&node);
        volume.barrier(|| volume.set_tap(Some(tap.clone()))).await;
        volume.write(&Unfenced, 4000, bytes(100, 2), true).await.unwrap();
        let data = [vec![1; 4000], vec![2; 100], vec![0; 4092]].concat();
        let expected = TapChange::Write { offset: 0, data: data.into() };
        assert_eq!(tap.changes.take(), [expected]);
        assert_eq!((tap.mirrored.get(), tap.flushes.get()), (1, 1));
        volume.trim(&Unfenced, 100, 9000, false).await.unwrap();
        assert_eq!(tap.changes.take(), [TapChange::Zero { offset: 4096, len: 4096, may_unmap: true }]);
        volume.set_tap(None);
        volume.write(&Unfenced, 0, bytes(1, 2), false).await.unwrap();
        assert!(tap.changes.take().is_empty() && tap.failed.take().is_empty());
    });
}

/// The largest request at an odd offset concerns a block more than a message can carry, and ended the node that mirrored.
#[test]
fn the_tap_sees_no_change_larger_than_a_request() {
    const LARGE: u64 = 2 * REQUEST_BYTES_MAX;
    run_with(1, LARGE / EXTENT_BYTES, |node| async move {
        let volume = node.open().await.create_volume(ID, "web", LARGE).await.unwrap();
        let tap = Recorder::new(&node);
        volume.set_tap(Some(tap.clone()));
        for offset in [512, 0, 4096] {
            let data = bytes(REQUEST_BYTES_MAX as usize, offset as u8 + 1);
            volume.write(&Unfenced, offset, Buffer::from_slice(&data), false).await.unwrap();
            assert_eq!(read(&volume, offset, REQUEST_BYTES_MAX).await, *data);
            let len = |change: TapChange| match change {
                TapChange::Write { data, .. } => data.len() as u64,
                TapChange::Zero { len, .. } => len,
            };
            let lens: Vec<u64> = tap.changes.take().into_iter().map(len).collect();
            assert!(lens.iter().all(|len| *len <= REQUEST_BYTES_MAX), "{lens:?}");
            assert_eq!(lens.iter().sum::<u64>(), REQUEST_BYTES_MAX + if offset == 512 { BLOCK_BYTES } else { 0 });
        }
    });
}

/// The caller of a write goes away while it runs: what was begun ends under its locks, mirrored write and all.
#[test]
fn an_abandoned_write_keeps_its_locks_until_it_is_done() {
    run(|node| async move {
        let volume = node.volume().await;
        volume.write(&Unfenced, 0, bytes(65_536, 1), false).await.unwrap();
        let tap = Recorder::new(&node);
        volume.set_tap(Some(tap.clone()));
        let write = volume.write(&Unfenced, 0, bytes(65_536, 2), false);
        let gave_up = node.world.timeout(Duration::from_micros(700), write).await;
        assert!(gave_up.is_err());
        if tap.changes.borrow().is_empty() {
            return; // It waited for its activation still.
        }
        assert_eq!(tap.mirrored.get(), 0);
        let guard = volume.enqueue(ByteRange { offset: 0, len: 1 }).await;
        assert_eq!(tap.mirrored.get(), 1);
        assert_eq!(volume.read_locked(&guard, ByteRange { offset: 0, len: 4096 }).await.unwrap()[0], 2);
        let quiesced = volume.quiesce().await;
        drop(quiesced);
    });
}

#[test]
fn a_quiesced_volume_holds_clients_and_lets_receivers_pass() {
    run(|node| async move {
        let volume = node.volume().await;
        let quiesced = volume.quiesce().await;
        let mut write = Box::pin(volume.write(&Unfenced, 0, bytes(4096, 1), false));
        let mut reading = Box::pin(volume.read(&Unfenced, 0, 4096));
        assert!((&mut write).now_or_never().is_none() && (&mut reading).now_or_never().is_none());
        let range = ByteRange { offset: 0, len: 65_536 };
        let guard = volume.enqueue(range).await;
        volume.write_locked(&guard, &Unfenced, 0, bytes(65_536, 9)).await.unwrap();
        volume.zero_locked(&guard, &Unfenced, 4096, 4096, true).await.unwrap();
        volume.flush(&Unfenced).await.unwrap();
        drop(guard);
        drop(quiesced);
        assert_eq!(reading.await.unwrap()[0], 9);
        write.await.unwrap();
        assert_eq!(read(&volume, 0, 12_288).await, [vec![1; 4096], vec![0; 4096], vec![9; 4096]].concat());
    });
}

/// Stream order is the order of asking, whatever each write has to wait for.
#[test]
fn tickets_apply_in_the_order_they_were_taken() {
    run(|node| async move {
        let volume = node.volume().await;
        let apply = |byte: u8| {
            let ticket = volume.enqueue(ByteRange { offset: 0, len: 65_536 });
            let volume = volume.clone();
            async move {
                let guard = ticket.await;
                volume.write_locked(&guard, &Unfenced, 0, bytes(65_536, byte)).await.unwrap();
            }
        };
        let (first, second) = (apply(1), apply(2));
        join(second, first).await;
        assert_eq!(read(&volume, 0, 65_536).await, vec![2; 65_536]);
    });
}

struct Closed;

impl Fence for Closed {
    fn check(&self) -> Result<(), IoError> {
        Err(IoError::Fenced { epoch: Epoch(3) })
    }
}

#[test]
fn a_closed_fence_lets_nothing_pass() {
    run(|node| async move {
        let volume = node.volume().await;
        let fenced = IoError::Fenced { epoch: Epoch(3) };
        assert_eq!(volume.write(&Closed, 0, bytes(1, 1), false).await, Err(fenced.clone()));
        assert_eq!(volume.trim(&Closed, 0, 4096, false).await, Err(fenced.clone()));
        assert_eq!(volume.flush(&Closed).await, Err(fenced.clone()));
        assert_eq!(volume.read(&Closed, 0, 1).await, Err(fenced));
        assert_eq!(volume.usage(), VolumeUsage::default());
        assert_eq!(node.used(), 0, "what was taken for it is free again");
    });
}

#[test]
fn digests_depend_on_content_alone() {
    run(|node| async move {
        let store = node.open().await;
        let one = store.create_volume(ID, "one", (6 << 20) + 8192).await.unwrap();
        let two = store.create_volume(VolumeId(2), "two", (6 << 20) + 8192).await.unwrap();
        for volume in [&one, &two] {
            volume.write(&Unfenced, 5 << 20, bytes(10_000, 3), false).await.unwrap();
        }
        // The same content by another way: zeros that are stored, data from two layers.
        two.write(&Unfenced, 5 << 20, bytes(65_536, 9), false).await.unwrap();
        two.snapshot("s").await.unwrap();
        two.write(&Unfenced, 5 << 20, bytes(10_000, 3), false).await.unwrap();
        two.write_zeroes(&Unfenced, (5 << 20) + 10_000, 55_536, NO_HOLE, false).await.unwrap();
        // An extent of holes, the one that was written, and the last one, which is cut short.
        for (extent, blocks, has_data) in [(7, 16, false), (80, 16, true), (96, 2, false)] {
            for volume in [&one, &two] {
                let range = ByteRange { offset: extent << 16, len: blocks << 12 };
                let guard = volume.enqueue(range).await;
                let whole = read(volume, range.offset, range.len).await;
                let content = volume.extent_content_locked(&guard, ExtentIndex(extent)).await.unwrap();
                let blocks: Vec<_> = whole.chunks(4096).map(|block| *blake3::hash(block).as_bytes()).collect();
                assert_eq!(content.has_data(), has_data);
                let digests = content.digests();
                assert_eq!(digests.extent, *blake3::hash(blocks.as_flattened()).as_bytes());
                assert_eq!(digests.blocks, blocks);
                assert_eq!(digests.blocks[0] == zero_block_digest(), !has_data);
            }
        }
    });
}

#[test]
fn pinned_regions_stay_active() {
    run(|node| async move {
        let config = crate::StoreConfig { active_regions_max: 1, ..Default::default() };
        let store = node.open_shard(config).await.unwrap();
        let volume = store.create_volume(ID, "web", SIZE).await.unwrap();
        let regions = |volume: &Volume| volume.active_regions().iter().map(|region| region.0).collect::<Vec<_>>();
        volume.set_activity_pin(Some(Rc::new(|region| region == RegionIndex(0))));
        for region in [0, 1, 2] {
            volume.write(&Unfenced, region << 22, bytes(1, 1), false).await.unwrap();
        }
        assert_eq!(regions(&volume), [0, 2], "the first is pinned, the last in use");
        volume.set_activity_pin(None);
        volume.write(&Unfenced, 3 << 22, bytes(1, 1), false).await.unwrap();
        assert_eq!(regions(&volume), [3]);
        let volume = node.crashed().open().await.volume(ID).unwrap();
        assert_eq!(regions(&volume), [3], "the log is durable");
    });
}
