//! What every device must do: one body for all implementations.

use crate::{Buffer, Device, DeviceError};
use drover_base::units::BLOCK_BYTES;
use futures::future::join_all;
use std::rc::Rc;

/// Size of the device that `check` wants.
pub const SIZE_BYTES: u64 = 8 << 20;
const BLOCK: usize = BLOCK_BYTES as usize;
const BLOCKS: u64 = SIZE_BYTES / BLOCK_BYTES;

/// Content that tells its block and its version.
fn content(block: u64, count: usize, version: u8) -> Buffer {
    let mut buffer = Buffer::for_read(count * BLOCK);
    for (block, bytes) in (block..).zip(buffer.chunks_exact_mut(BLOCK)) {
        bytes.fill(version ^ (block * 7) as u8);
        bytes[..8].copy_from_slice(&block.to_le_bytes());
    }
    buffer
}

async fn write(device: &dyn Device, block: u64, buffer: Buffer) {
    let len = buffer.len();
    let (result, buffer) = device.write(block * BLOCK_BYTES, buffer).await;
    assert_eq!(result, Ok(()));
    assert_eq!(buffer.len(), len, "the buffer comes back whole");
}

async fn read(device: &dyn Device, block: u64, count: usize) -> Buffer {
    let (result, buffer) = device.read(block * BLOCK_BYTES, Buffer::for_read(count * BLOCK)).await;
    assert_eq!(result, Ok(()));
    assert_eq!(buffer.len(), count * BLOCK);
    buffer
}

/// Runs every check on a device of `SIZE_BYTES`, whose content does not matter.
pub async fn check(device: Rc<dyn Device>) {
    assert_eq!(device.size_bytes(), SIZE_BYTES);
    what_was_written_is_read(&*device).await;
    a_range_past_the_end_is_refused(&*device).await;
    memory_need_not_be_aligned(&*device).await;
    requests_run_side_by_side(&*device).await;
    a_discarded_range_can_be_written_again(&*device).await;
    a_dropped_request_harms_no_other(&*device).await;
    matches_a_model(&*device).await;
}

async fn what_was_written_is_read(device: &dyn Device) {
    for (block, count) in [(0, 1), (BLOCKS - 1, 1), (5, 16), (100, 256), (0, BLOCKS as usize)] {
        for version in [1, 2] {
            write(device, block, content(block, count, version)).await;
            assert_eq!(read(device, block, count).await, content(block, count, version));
        }
    }
    write(device, 3, Buffer::zeroed(0)).await;
    assert_eq!(read(device, 3, 2).await, content(3, 2, 2));
    assert_eq!(device.sync().await, Ok(()));
}

async fn a_range_past_the_end_is_refused(device: &dyn Device) {
    for (offset, count) in [(SIZE_BYTES, 1), (SIZE_BYTES - BLOCK_BYTES, 2), (u64::MAX - (BLOCK_BYTES - 1), 2)] {
        let len = (count * BLOCK) as u64;
        let refused = Err(DeviceError::OutOfRange { offset, len, size: SIZE_BYTES });
        let (result, buffer) = device.read(offset, Buffer::for_read(count * BLOCK)).await;
        assert_eq!((&result, buffer.len()), (&refused, count * BLOCK));
        let (result, buffer) = device.write(offset, Buffer::zeroed(count * BLOCK)).await;
        assert_eq!((&result, buffer.len()), (&refused, count * BLOCK));
        assert_eq!(device.discard(offset, len).await, refused);
    }
    assert_eq!(read(device, BLOCKS - 1, 1).await, content(BLOCKS - 1, 1, 2), "a refused write stores nothing");
}

async fn memory_need_not_be_aligned(device: &dyn Device) {
    let mut buffer = Buffer::zeroed(8 * BLOCK);
    buffer.advance(513);
    buffer.truncate(4 * BLOCK);
    buffer.copy_from_slice(&content(40, 4, 3));
    write(device, 40, buffer).await;
    let mut target = Buffer::zeroed(8 * BLOCK);
    target.advance(28);
    target.truncate(4 * BLOCK);
    let (result, target) = device.read(40 * BLOCK_BYTES, target).await;
    assert_eq!(result, Ok(()));
    assert_eq!(target, content(40, 4, 3));
}

async fn requests_run_side_by_side(device: &dyn Device) {
    join_all((0..256).map(|block| write(device, block * 3, content(block * 3, 2, 4)))).await;
    let syncs = join_all((0..4).map(|_| device.sync())).await;
    assert!(syncs.iter().all(Result::is_ok));
    let read = join_all((0..256).map(|block| read(device, block * 3, 2))).await;
    for (block, read) in (0..).zip(read) {
        assert_eq!(read, content(block * 3, 2, 4));
    }
}

async fn a_discarded_range_can_be_written_again(device: &dyn Device) {
    write(device, 60, content(60, 20, 5)).await;
    assert_eq!(device.discard(64 * BLOCK_BYTES, 8 * BLOCK_BYTES).await, Ok(()));
    assert_eq!(device.discard(0, 0).await, Ok(()));
    read(device, 60, 20).await;
    assert_eq!(read(device, 60, 4).await, content(60, 4, 5));
    assert_eq!(read(device, 72, 8).await, content(72, 8, 5));
    write(device, 66, content(66, 2, 6)).await;
    assert_eq!(read(device, 66, 2).await, content(66, 2, 6));
    write(device, 64, content(64, 8, 6)).await;
}

async fn a_dropped_request_harms_no_other(device: &dyn Device) {
    use futures::future::{Either, select};
    for round in 0..32u8 {
        let dropped = device.read(0, Buffer::for_read(64 * BLOCK));
        let other = Box::pin(write(device, 200, content(200, 1, round)));
        // Whichever ends first, the write is awaited.
        match select(dropped, other).await {
            Either::Left((_, other)) => other.await,
            Either::Right(_) => {}
        }
        drop(device.write(300 * BLOCK_BYTES, content(300, 1, round)));
        assert_eq!(read(device, 200, 1).await, content(200, 1, round));
    }
}

async fn matches_a_model(device: &dyn Device) {
    let mut model = vec![0u8; BLOCKS as usize];
    write(device, 0, content(0, BLOCKS as usize, 0)).await;
    let mut state = 1u64;
    let mut next = |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    for step in 0..500u32 {
        let block = next(BLOCKS);
        let count = (1 + next(40)).min(BLOCKS - block) as usize;
        let version = step as u8;
        if next(2) == 0 {
            write(device, block, content(block, count, version)).await;
            model[block as usize..block as usize + count].fill(version);
        } else {
            let read = read(device, block, count).await;
            for (block, bytes) in (block..).zip(read.chunks_exact(BLOCK)) {
                assert_eq!(bytes, &content(block, 1, model[block as usize])[..], "block {block} at step {step}");
            }
        }
    }
}
