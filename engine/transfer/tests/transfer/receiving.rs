//! The receiver by itself: order, flushes, and what a peer may send wrongly.

use crate::clients::content_of;
use crate::pair::{run, run_each};
use crate::side::{Side, VOLUME_BYTES};
use bytes::Bytes;
use drover_base::units::{BLOCK_BYTES, EXTENT_BYTES, REGION_BYTES};
use drover_base::{BlockMask, ByteRange, ExtentIndex, IoError};
use drover_store::Unfenced;
use drover_transfer::Receiver;
use drover_wire::peer::{Answer, Operation, Payload};
use futures::future::join_all;
use std::rc::Rc;

fn receiver(side: &Side) -> Rc<Receiver> {
    Receiver::new(side.world.clone(), side.volume.clone(), Rc::new(Unfenced))
}

fn write(offset: u64, data: Vec<u8>) -> Operation {
    Operation::Write { offset, data: Payload::plain(data.into()), fua: false, replay: false }
}

fn zero(range: ByteRange) -> Operation {
    Operation::Zero { range, may_unmap: true, fast_only: false, fua: false, replay: false }
}

#[test]
fn operations_that_overlap_are_applied_in_stream_order() {
    run_each(0..8, async |sim| {
        let side = Side::new(&sim, "mirror").await;
        let receiver = receiver(&side);
        let mut random = sim.generator("operations");
        let mut expected = vec![0; VOLUME_BYTES as usize];
        let mut replies = Vec::new();
        for sequence in 1..300 {
            let first = random.below(60);
            let count = random.between(1, 30);
            let range = ByteRange { offset: first * BLOCK_BYTES, len: count * BLOCK_BYTES };
            let span = range.offset as usize..range.end() as usize;
            if random.below(4) == 0 {
                expected[span].fill(0);
                replies.push(receiver.handle(sequence, zero(range)));
            } else {
                let data: Vec<u8> = (0..count).flat_map(|block| content_of(sequence * 100 + block)).collect();
                expected[span].copy_from_slice(&data);
                replies.push(receiver.handle(sequence, write(range.offset, data)));
            }
        }
        assert!(join_all(replies).await.iter().all(|reply| *reply == Ok(Answer::Done)));
        if side.content().await == expected { Ok(()) } else { Err("another order".into()) }
    });
}

/// A flush that is put on the stream behind writes covers them, though none was answered when it came; and its note.
#[test]
fn a_flush_covers_what_stands_before_it_in_the_stream() {
    run_each(0..10, async |sim| {
        let mut side = Side::new(&sim, "mirror").await;
        let receiver = receiver(&side);
        let mut expected = Vec::new();
        for sequence in 1..=40 {
            let data = content_of(sequence);
            expected.extend_from_slice(&data);
            drop(receiver.handle(sequence, write((sequence - 1) * BLOCK_BYTES, data)));
        }
        let note = Bytes::from_static(b"who writes");
        assert_eq!(receiver.handle(41, Operation::Flush { note: note.clone() }).await, Ok(Answer::Done));
        assert_eq!(receiver.durable_position(), 41);
        drop(receiver);
        side.crash().await;
        assert_eq!(side.volume.note(), note);
        if side.content().await[..expected.len()] == expected[..] { Ok(()) } else { Err("not covered".into()) }
    });
}

#[test]
fn what_was_handled_ends_also_when_nobody_waits_for_it() {
    run(1, async |sim| {
        let side = Side::new(&sim, "mirror").await;
        let receiver = receiver(&side);
        for sequence in 1..=20 {
            drop(receiver.handle(sequence, write(0, content_of(sequence))));
        }
        receiver.drained().await;
        assert_eq!(side.content().await[..BLOCK_BYTES as usize], content_of(20)[..]);
        assert_eq!(receiver.durable_position(), 0);
    });
}

/// The holder asks for what it has not got: it must see what it mirrored before, and nothing that is not here.
#[test]
fn a_read_sees_what_came_before_it_on_the_stream() {
    run(3, async |sim| {
        let side = Side::new(&sim, "mirror").await;
        let receiver = receiver(&side);
        let range = ByteRange { offset: 0, len: EXTENT_BYTES };
        drop(receiver.handle(1, write(0, content_of(3))));
        let read = receiver.handle(2, Operation::Read { range });
        drop(receiver.handle(3, write(0, content_of(4))));
        let Ok(Answer::Data(payload)) = read.await else { panic!("it is read") };
        assert_eq!(payload.raw_len, EXTENT_BYTES as u32);
        assert!(payload.is_compressed(), "it is one block of noise and zeros");
        receiver.drained().await;
        let guard = side.volume.enqueue(range).await;
        side.volume.mark_remote_locked(&guard, &Unfenced, ExtentIndex(0), BlockMask(2)).await.unwrap();
        drop(guard);
        assert_eq!(receiver.handle(4, Operation::Read { range }).await, Err(IoError::Remote));
        let digests = receiver.handle(5, Operation::Digests { extent: ExtentIndex(0) }).await;
        let Ok(Answer::Digests(digests)) = digests else { panic!("{digests:?}") };
        assert!(digests.blocks.len() == 16 && digests.blocks.iter().all(|digest| *digest == [0; 16]), "like nobody's");
        let other = ByteRange { offset: EXTENT_BYTES, len: BLOCK_BYTES };
        assert!(receiver.handle(6, Operation::Read { range: other }).await.is_ok());
    });
}

#[test]
fn wrong_requests_are_refused_and_change_nothing() {
    run(2, async |sim| {
        let side = Side::new(&sim, "mirror").await;
        let receiver = receiver(&side);
        let block = || content_of(1);
        let payload = |raw_len| Payload { bytes: Bytes::from_static(b"no such frame"), raw_len };
        let bomb = Operation::Write { offset: 0, data: payload(64 << 10), fua: false, replay: false };
        let wrong = [
            (write(VOLUME_BYTES, block()), "end"),
            (write(u64::MAX - 100, block()), "end"),
            (write(1, block()), "end"),
            (write(0, vec![1; 100]), "end"),
            (zero(ByteRange { offset: 0, len: VOLUME_BYTES + BLOCK_BYTES }), "end"),
            (zero(ByteRange { offset: 512, len: BLOCK_BYTES }), "end"),
            (Operation::Digests { extent: ExtentIndex(VOLUME_BYTES.div_ceil(EXTENT_BYTES)) }, "end"),
            (Operation::Digests { extent: ExtentIndex(u64::MAX) }, "end"),
            (Operation::BlockStatus { range: ByteRange { offset: 0, len: REGION_BYTES + BLOCK_BYTES } }, "end"),
            (Operation::BlockStatus { range: ByteRange { offset: VOLUME_BYTES, len: BLOCK_BYTES } }, "end"),
            (bomb, "checksum"),
            (Operation::Read { range: ByteRange { offset: VOLUME_BYTES, len: BLOCK_BYTES } }, "end"),
            (Operation::Read { range: ByteRange { offset: 512, len: BLOCK_BYTES } }, "end"),
            (Operation::Read { range: ByteRange { offset: u64::MAX, len: u64::MAX } }, "end"),
            (
                Operation::Trim { range: ByteRange { offset: 0, len: BLOCK_BYTES }, fua: false, replay: false },
                "not on this node",
            ),
        ];
        for (sequence, (operation, why)) in (1..).zip(wrong) {
            let what = format!("{operation:?}");
            let error: IoError = receiver.handle(sequence, operation).await.unwrap_err();
            assert!(error.to_string().contains(why), "{what:.60}: {error}");
        }
        receiver.drained().await;
        assert!(side.content().await.iter().all(|byte| *byte == 0));
    });
}
