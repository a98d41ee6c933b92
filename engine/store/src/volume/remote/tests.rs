use super::*;
use crate::{
    BlockStatus, Store, StoreConfig, StoreError, Tap, TapChange, Tiers, Unfenced, VolumeUsage, ZeroMode,
    checkpoint::CheckpointFile,
    fsck,
    meta::memory::MemoryMeta,
    testing::{ID, Node, SIZE, bytes, read, run},
};
use drover_base::World;
use drover_base::units::EXTENT_BYTES;
use drover_disk::Device;
use futures::{FutureExt, future::join};
use std::{
    cell::{Cell, RefCell},
    time::Duration,
};

const BLOCK: usize = BLOCK_BYTES as usize;
/// What the other node has in every block.
const THERE: u8 = 7;

async fn mark(volume: &Volume, extent: u64, mask: u16) {
    let range = ByteRange { offset: extent * EXTENT_BYTES, len: EXTENT_BYTES };
    let guard = volume.enqueue(range).await;
    volume.mark_remote_locked(&guard, &Unfenced, ExtentIndex(extent), BlockMask(mask)).await.unwrap();
}

async fn fill(volume: &Volume, offset: u64, len: usize) {
    let guard = volume.enqueue(ByteRange { offset, len: len as u64 }).await;
    volume.fill_locked(&guard, &Unfenced, offset, bytes(len, THERE)).await.unwrap();
}

/// Brings what is asked for after a while.
struct Slow {
    world: World,
    volume: RefCell<std::rc::Weak<Volume>>,
    asked: Cell<u32>,
    accesses: RefCell<Vec<(u64, u64, Access)>>,
}

impl Origin for Slow {
    fn bring(&self, range: ByteRange) -> LocalFuture<'static, Result<(), IoError>> {
        self.asked.set(self.asked.get() + 1);
        let (world, volume) = (self.world.clone(), self.volume.borrow().upgrade().unwrap());
        Box::pin(async move {
            let range = range.block_aligned();
            world.sleep(Duration::from_millis(5)).await;
            fill(&volume, range.offset, range.len as usize).await;
            Ok(())
        })
    }
    fn accessed(&self, range: ByteRange, access: Access) {
        self.accesses.borrow_mut().push((range.offset, range.len, access));
    }
}

fn with_origin(node: &Node, volume: &Rc<Volume>) -> Rc<Slow> {
    let weak = RefCell::new(Rc::downgrade(volume));
    let origin =
        Rc::new(Slow { world: node.world.clone(), volume: weak, asked: Cell::new(0), accesses: RefCell::default() });
    volume.set_origin(Some(origin.clone()));
    origin
}

#[test]
fn remote_blocks_are_data_that_nobody_reads_as_zeros() {
    run(|node| async move {
        let volume = node.volume().await;
        mark(&volume, 1, 0x00f0).await;
        let extent = ByteRange { offset: EXTENT_BYTES, len: EXTENT_BYTES };
        let there = EXTENT_BYTES + 4 * BLOCK_BYTES;
        assert_eq!(volume.read(&Unfenced, there + 5, 3).await.unwrap_err(), IoError::Remote);
        assert_eq!(volume.read(&Unfenced, 0, 2 * EXTENT_BYTES).await.unwrap_err(), IoError::Remote);
        assert_eq!(read(&volume, EXTENT_BYTES, 4 * BLOCK_BYTES).await, vec![0; 4 * BLOCK], "the range alone");
        assert_eq!(volume.write(&Unfenced, there + 1, bytes(1, 1), false).await, Err(IoError::Remote));
        let guard = volume.enqueue(extent).await;
        assert_eq!(volume.read_locked(&guard, extent).await.unwrap_err(), IoError::Remote);
        let content = volume.extent_content_locked(&guard, ExtentIndex(1)).await;
        assert_eq!(content.err(), Some(IoError::Remote));
        drop(guard);
        assert_eq!(
            (volume.data_mask(ExtentIndex(1)), volume.remote_mask(ExtentIndex(1))),
            (BlockMask(0xf0), BlockMask(0xf0))
        );
        assert!(volume.region_has_data(RegionIndex(0)));
        assert_eq!(
            (volume.remote_bytes(), volume.next_remote_region(RegionIndex(0))),
            (4 * BLOCK_BYTES, Some(RegionIndex(0)))
        );
        assert_eq!(volume.next_remote_region(RegionIndex(1)), None);
        let (data, hole) = (BlockStatus::DATA, BlockStatus::HOLE);
        let status = [(there, hole), (4 * BLOCK_BYTES, data), (SIZE - there - 4 * BLOCK_BYTES, hole)];
        assert_eq!(volume.block_status(0, SIZE, 9).unwrap(), status);
        assert_eq!(volume.usage(), VolumeUsage::default(), "it takes no place here");
        let copy = VolumeUsage { used_bytes: EXTENT_BYTES, valid_bytes: 4 * BLOCK_BYTES };
        assert_eq!(volume.head_usage().await, copy, "a copy of it would");
    });
}

#[test]
fn clients_wait_for_what_is_brought_and_for_nothing_else() {
    run(|node| async move {
        let volume = node.volume().await;
        for extent in 0..3 {
            mark(&volume, extent, 0xffff).await;
        }
        let origin = with_origin(&node, &volume);
        let began = node.world.now();
        volume.write(&Unfenced, EXTENT_BYTES, bytes(2 * BLOCK, 1), false).await.unwrap();
        volume.trim(&Unfenced, EXTENT_BYTES + 2 * BLOCK_BYTES, 2 * BLOCK_BYTES, false).await.unwrap();
        assert_eq!(
            read(&volume, EXTENT_BYTES, 4 * BLOCK_BYTES).await,
            [vec![1; 2 * BLOCK], vec![0; 2 * BLOCK]].concat()
        );
        assert_eq!(origin.asked.get(), 0);
        assert!(node.world.now().since(began) < Duration::from_millis(5));
        assert_eq!(read(&volume, 10, 5000).await, vec![THERE; 5000]);
        volume.write(&Unfenced, 3 * BLOCK_BYTES - 1, bytes(2, 2), false).await.unwrap();
        let around = [vec![THERE], vec![2; 2], vec![THERE]].concat();
        assert_eq!(read(&volume, 3 * BLOCK_BYTES - 2, 4).await, around);
        let zero = ZeroMode { may_unmap: true, fast_only: false };
        let at = 2 * EXTENT_BYTES + 1;
        volume.write_zeroes(&Unfenced, at, 3 * BLOCK_BYTES, zero, false).await.unwrap();
        assert_eq!(read(&volume, at - 1, 3).await, [THERE, 0, 0]);
        assert_eq!(read(&volume, at + 3 * BLOCK_BYTES - 1, 2).await, [0, THERE]);
        let (read, change, block) = (Access::Read, Access::Change, BLOCK_BYTES);
        assert_eq!(
            origin.accesses.borrow()[..3],
            [
                (EXTENT_BYTES, 2 * block, change),
                (EXTENT_BYTES + 2 * block, 2 * block, change),
                (EXTENT_BYTES, 4 * block, read)
            ]
        );
        // 4 of extent 0, two edges and the block between of extent 2, four of extent 1 by changes.
        assert_eq!(volume.remote_bytes(), (48 - 4 - 4 - 4) * BLOCK_BYTES);
    });
}

#[test]
fn a_fill_stores_what_is_still_remote_and_nothing_over_it() {
    run(|node| async move {
        let volume = node.volume().await;
        mark(&volume, 0, 0xffff).await;
        volume.write(&Unfenced, 2 * BLOCK_BYTES, bytes(BLOCK, 1), false).await.unwrap();
        volume.trim(&Unfenced, 4 * BLOCK_BYTES, BLOCK_BYTES, false).await.unwrap();
        fill(&volume, BLOCK_BYTES, 5 * BLOCK).await;
        let expected = [1, 2, 3, 4, 5].map(|block| match block {
            2 => vec![1; BLOCK],
            4 => vec![0; BLOCK],
            _ => vec![THERE; BLOCK],
        });
        assert_eq!(read(&volume, BLOCK_BYTES, 5 * BLOCK_BYTES).await, expected.concat());
        assert_eq!(volume.remote_mask(ExtentIndex(0)), BlockMask(0xffc1));
    });
}

#[test]
fn a_fill_of_zeros_takes_no_place() {
    run(|node| async move {
        let volume = node.volume().await;
        volume.write(&Unfenced, EXTENT_BYTES, bytes(BLOCK, 1), false).await.unwrap();
        volume.snapshot("below").await.unwrap();
        mark(&volume, 0, 0x00ff).await;
        mark(&volume, 1, 0x00ff).await;
        let data = [vec![0; 3 * BLOCK], vec![THERE; BLOCK], vec![0; 4 * BLOCK]].concat();
        for extent in [0, 1] {
            let range = ByteRange { offset: extent * EXTENT_BYTES, len: 8 * BLOCK_BYTES };
            let guard = volume.enqueue(range).await;
            volume.fill_locked(&guard, &Unfenced, range.offset, Buffer::from_slice(&data)).await.unwrap();
            drop(guard);
            assert_eq!(read(&volume, range.offset, range.len).await, data, "also over what is below");
        }
        assert_eq!((volume.remote_bytes(), volume.data_mask(ExtentIndex(0))), (0, BlockMask(8)));
    });
}

#[test]
fn a_write_under_way_is_not_filled_over() {
    run(|node| async move {
        let volume = node.volume().await;
        mark(&volume, 0, 0xffff).await;
        let write = volume.write(&Unfenced, 0, bytes(BLOCK, 1), false);
        join(write.map(Result::unwrap), fill(&volume, 0, 2 * BLOCK)).await;
        assert_eq!(read(&volume, 0, 2 * BLOCK_BYTES).await, [vec![1; BLOCK], vec![THERE; BLOCK]].concat());
    });
}

#[test]
fn what_is_marked_counts_no_more_here() {
    run(|node| async move {
        let volume = node.volume().await;
        volume.write(&Unfenced, 0, bytes(2 * EXTENT_BYTES as usize, 1), true).await.unwrap();
        mark(&volume, 0, 0x000f).await;
        mark(&volume, 1, 0xffff).await;
        assert_eq!(volume.usage(), VolumeUsage { used_bytes: EXTENT_BYTES, valid_bytes: 12 * BLOCK_BYTES });
        assert_eq!(node.used(), 2, "the durable map may name it");
        volume.flush(&Unfenced).await.unwrap();
        assert_eq!(node.used(), 1);
        assert_eq!(volume.read(&Unfenced, 0, 1).await.unwrap_err(), IoError::Remote);
        assert_eq!(read(&volume, 4 * BLOCK_BYTES, 12 * BLOCK_BYTES).await, vec![1; 12 * BLOCK]);
        fill(&volume, 0, 2 * EXTENT_BYTES as usize).await;
        assert_eq!(
            read(&volume, 3 * BLOCK_BYTES, 2 * BLOCK_BYTES).await,
            [vec![THERE; BLOCK], vec![1; BLOCK]].concat()
        );
        assert_eq!((volume.remote_bytes(), volume.usage().used_bytes), (0, 2 * EXTENT_BYTES));
        let guard = volume.enqueue(ByteRange { offset: SIZE - BLOCK_BYTES, len: BLOCK_BYTES }).await;
        let past = volume.mark_remote_locked(&guard, &Unfenced, ExtentIndex(SIZE / EXTENT_BYTES), BlockMask(1)).await;
        assert!(matches!(past, Err(IoError::OutOfRange { .. })));
    });
}

#[test]
fn blocks_past_the_end_are_not_marked() {
    run(|node| async move {
        let store = node.open().await;
        let volume = store.create_volume(ID, "web", EXTENT_BYTES + 2 * BLOCK_BYTES).await.unwrap();
        let guard = volume.enqueue(ByteRange { offset: EXTENT_BYTES, len: 2 * BLOCK_BYTES }).await;
        volume.mark_remote_locked(&guard, &Unfenced, ExtentIndex(1), BlockMask::FULL).await.unwrap();
        assert_eq!(volume.remote_mask(ExtentIndex(1)), BlockMask(3));
    });
}

#[test]
fn what_is_flushed_is_remote_or_here_after_a_crash() {
    run(|node| async move {
        let volume = node.volume().await;
        mark(&volume, 0, 0x00ff).await;
        mark(&volume, 64, 0x0001).await;
        volume.flush(&Unfenced).await.unwrap();
        fill(&volume, 0, 2 * BLOCK).await;
        volume.write(&Unfenced, 2 * BLOCK_BYTES, bytes(BLOCK, 1), true).await.unwrap();
        fill(&volume, 3 * BLOCK_BYTES, BLOCK).await;
        volume.trim(&Unfenced, 4 * BLOCK_BYTES, BLOCK_BYTES, false).await.unwrap();
        let node = node.crashed();
        let volume = node.open().await.volume(ID).unwrap();
        assert_eq!(volume.remote_mask(ExtentIndex(0)), BlockMask(0xf8));
        assert_eq!(volume.remote_bytes(), 6 * BLOCK_BYTES);
        assert_eq!(read(&volume, 0, 3 * BLOCK_BYTES).await, [vec![THERE; 2 * BLOCK], vec![1; BLOCK]].concat());
        fill(&volume, 0, EXTENT_BYTES as usize).await;
        volume.trim(&Unfenced, 64 * EXTENT_BYTES, BLOCK_BYTES, false).await.unwrap();
        volume.flush(&Unfenced).await.unwrap();
        let node = node.crashed();
        let volume = node.open().await.volume(ID).unwrap();
        assert_eq!((volume.remote_bytes(), volume.next_remote_region(RegionIndex(0))), (0, None));
        assert_eq!(
            read(&volume, 7 * BLOCK_BYTES, 2 * BLOCK_BYTES).await,
            [vec![THERE; BLOCK], vec![0; BLOCK]].concat()
        );
        assert_eq!(read(&volume, 64 * EXTENT_BYTES, BLOCK_BYTES).await, vec![0; BLOCK]);
    });
}

#[test]
fn a_reopened_volume_has_the_remote_blocks_of_its_last_flush() {
    run(|node| async move {
        let store = node.open().await;
        let volume = store.create_volume(ID, "web", SIZE).await.unwrap();
        mark(&volume, 0, 0x000f).await;
        volume.flush(&Unfenced).await.unwrap();
        fill(&volume, 0, BLOCK).await;
        store.reopen(ID).await.unwrap();
        assert_eq!(volume.remote_mask(ExtentIndex(0)), BlockMask(0x000f));
        store.delete_volume(ID).await.unwrap();
        let volume = store.create_volume(ID, "web", SIZE).await.unwrap();
        assert_eq!((volume.remote_bytes(), read(&volume, 0, 4096).await), (0, vec![0; 4096]));
    });
}

/// A restore that forgot them would read zeros where data is.
#[test]
fn a_restored_checkpoint_knows_them() {
    run(|node| async move {
        let folder = tempfile::tempdir().unwrap();
        let place = Rc::new(CheckpointFile::new(node.world.clone(), folder.path().join("checkpoint")));
        Store::scan_slots(&node.meta, &node.tiers).await.unwrap();
        let config = || StoreConfig { checkpoint: Some(place.clone()), ..StoreConfig::default() };
        let store = node.open_shard(config()).await.unwrap();
        let volume = store.create_volume(ID, "web", SIZE).await.unwrap();
        mark(&volume, 0, 0x000f).await;
        volume.flush(&Unfenced).await.unwrap();
        store.checkpoint().await.unwrap();
        let meta = MemoryMeta::new(node.world.clone());
        let report = fsck::restore(&meta, &*place, &[crate::testing::SLOTS]).await.unwrap();
        assert_eq!((report.problems, report.remote_blocks), (Vec::new(), 4));
        let devices: Vec<Rc<dyn Device>> = vec![Rc::new(node.device.clone())];
        let (world, tiers): (_, Tiers) = (node.world.clone(), node.tiers.clone());
        let store = Store::open(StoreConfig::default(), world, devices, tiers, Rc::new(meta)).await.unwrap();
        assert_eq!(store.volume(ID).unwrap().read(&Unfenced, 0, 1).await.unwrap_err(), IoError::Remote);
    });
}

#[test]
fn a_volume_with_remote_blocks_is_not_frozen_nor_brought_back() {
    run(|node| async move {
        let volume = node.volume().await;
        volume.snapshot("before").await.unwrap();
        mark(&volume, 0, 1).await;
        let refused = Err(StoreError::Remote { bytes: BLOCK_BYTES });
        assert_eq!(volume.snapshot("s").await, refused);
        assert_eq!(volume.rollback("before").await, refused);
        assert_eq!(volume.snapshots().len(), 1);
        fill(&volume, 0, BLOCK).await;
        volume.snapshot("s").await.unwrap();
    });
}

/// What is below a remote block must not come up in its place.
#[test]
fn layers_below_merge_around_remote_blocks() {
    run(|node| async move {
        let volume = node.volume().await;
        volume.write(&Unfenced, 0, bytes(3 * EXTENT_BYTES as usize, 1), false).await.unwrap();
        volume.snapshot("s").await.unwrap();
        volume.write(&Unfenced, 0, bytes(BLOCK, 2), false).await.unwrap();
        mark(&volume, 0, 0x0002).await;
        mark(&volume, 1, 0x0002).await;
        mark(&volume, 2, 0xffff).await;
        // A change in place of the remote block still covers what is below.
        volume.trim(&Unfenced, 2 * EXTENT_BYTES, BLOCK_BYTES, false).await.unwrap();
        volume.delete_snapshot("s").await.unwrap();
        volume.merges_done().await;
        for extent in 0..3 {
            let at = extent * EXTENT_BYTES + BLOCK_BYTES;
            assert_eq!(volume.read(&Unfenced, at, 1).await.unwrap_err(), IoError::Remote, "extent {extent}");
        }
        volume.flush(&Unfenced).await.unwrap();
        fill(&volume, 0, 3 * EXTENT_BYTES as usize).await;
        assert_eq!(
            read(&volume, 0, 3 * BLOCK_BYTES).await,
            [vec![2; BLOCK], vec![THERE; BLOCK], vec![1; BLOCK]].concat()
        );
        let second = [vec![1; BLOCK], vec![THERE; BLOCK], vec![1; BLOCK]].concat();
        assert_eq!(read(&volume, EXTENT_BYTES, 3 * BLOCK_BYTES).await, second);
        assert_eq!(
            read(&volume, 2 * EXTENT_BYTES, 2 * BLOCK_BYTES).await,
            [vec![0; BLOCK], vec![THERE; BLOCK]].concat()
        );
        volume.flush(&Unfenced).await.unwrap();
        assert_eq!(node.used(), 3);
    });
}

/// Counts what it is told.
#[derive(Default)]
struct Counting(Cell<u32>);

impl Tap for Counting {
    fn change(&self, _change: &TapChange) -> Option<LocalFuture<'static, Result<(), IoError>>> {
        self.0.set(self.0.get() + 1);
        None
    }
    fn failed(&self, _range: ByteRange) {}
    fn flush(&self) -> Option<LocalFuture<'static, Result<(), IoError>>> {
        None
    }
}

/// The other node has it: sent back, it could go over what a later change stored there.
#[test]
fn a_fill_is_no_change_of_a_client() {
    run(|node| async move {
        let volume = node.volume().await;
        mark(&volume, 0, 0x000f).await;
        let tap = Rc::new(Counting::default());
        volume.set_tap(Some(tap.clone()));
        fill(&volume, 0, 4 * BLOCK).await;
        assert_eq!(tap.0.get(), 0);
        volume.write(&Unfenced, 0, bytes(BLOCK, 1), false).await.unwrap();
        assert_eq!(tap.0.get(), 1);
    });
}

/// A flip back quiesces while a client waits for the node that the volume goes back to.
#[test]
fn who_waits_for_another_node_keeps_nobody_from_quiescing() {
    run(|node| async move {
        let volume = node.volume().await;
        mark(&volume, 0, 0xffff).await;
        with_origin(&node, &volume);
        let began = node.world.now();
        let mut waiting = Box::pin(volume.read(&Unfenced, 0, 1));
        assert!((&mut waiting).now_or_never().is_none());
        let quiesced = volume.quiesce().await;
        assert!(node.world.now().since(began) < Duration::from_millis(5));
        drop(quiesced);
        assert_eq!(waiting.await.unwrap()[..], [THERE]);
    });
}

/// A write of a part of a block waited for the node that held the volume again when it went on: its client got an error
/// instead of being told where to go.
#[test]
fn a_write_that_waited_for_another_node_is_told_that_the_volume_has_moved() {
    run(|node| async move {
        let volume = node.volume().await;
        mark(&volume, 0, 0xffff).await;
        volume.set_origin(Some(Rc::new(Stopping(node.world.clone()))));
        let fence = Rc::new(Falling::default());
        let mut waiting = Box::pin(volume.write(&*fence, 1, bytes(10, 1), false));
        assert!((&mut waiting).now_or_never().is_none());
        fence.0.set(true);
        volume.set_origin(None);
        assert!(matches!(waiting.await, Err(IoError::Fenced { .. })));
    });
}

/// Stops to bring anything while it is asked.
struct Stopping(drover_base::World);

impl Origin for Stopping {
    fn bring(&self, _: ByteRange) -> LocalFuture<'static, Result<(), IoError>> {
        let world = self.0.clone();
        Box::pin(async move {
            world.sleep(Duration::from_millis(1)).await;
            Ok(())
        })
    }
    fn accessed(&self, _: ByteRange, _: Access) {}
}

#[derive(Default)]
struct Falling(std::cell::Cell<bool>);

impl crate::Fence for Falling {
    fn check(&self) -> Result<(), IoError> {
        if self.0.get() { Err(IoError::Fenced { epoch: drover_base::Epoch(1) }) } else { Ok(()) }
    }
}
