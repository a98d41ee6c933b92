use super::*;
use drover_base::BlockMask;
use drover_base::limits::MESSAGE_HEAD_BYTES_MAX;

fn request(operation: Operation) -> PeerRequest {
    PeerRequest { session: SessionId(7), epoch: Epoch(3), sequence: 11, operation }
}

#[test]
fn requests_read_back() {
    let range = ByteRange { offset: 4096, len: 8192 };
    let hello = Hello {
        volume: VolumeId(5),
        from: NodeId::new("a").unwrap(),
        instance: InstanceId(6),
        purpose: Purpose::Mirror { migration: MigrationId(9), generation: Generation(2) },
    };
    let log = Some(LogOrigin { instance: InstanceId(8), term: 3 });
    let of_gateway = Hello { purpose: Purpose::Gateway { log }, ..hello.clone() };
    let data = Payload::plain(Bytes::from_static(b"some bytes"));
    for operation in [
        Operation::Hello(hello),
        Operation::Hello(of_gateway),
        Operation::Read { range },
        Operation::Write { offset: 12, data, fua: true, replay: false },
        Operation::Zero { range, may_unmap: true, fast_only: false, fua: false, replay: true },
        Operation::Trim { range, fua: true, replay: true },
        Operation::Flush { note: Bytes::new() },
        Operation::Flush { note: Bytes::from_static(&[7; NOTE_BYTES_MAX]) },
        Operation::BlockStatus { range },
        Operation::Digests { extent: ExtentIndex(4) },
        Operation::Remote { region: RegionIndex(3), masks: Box::new(std::array::from_fn(|at| at as u16 * 1025)) },
    ] {
        let sent = request(operation);
        assert_eq!(PeerRequest::decode(sent.clone().encode()), Ok(sent));
    }
}

#[test]
fn replies_read_back() {
    for result in [
        Ok(Answer::Welcome(Welcome { size_bytes: 1 << 30, epoch: Epoch(4), log: LogVerdict::Wanted })),
        Ok(Answer::Unflushed { term: u64::MAX }),
        Ok(Answer::Data(Payload { bytes: Bytes::from_static(b"zstd"), raw_len: 4096 })),
        Ok(Answer::Done),
        Ok(Answer::Status(vec![StatusRun { len: 4096, hole: true, zero: true }])),
        Ok(Answer::Digests(ExtentDigests { extent: [3; 32], blocks: vec![[1; 16]; 16], held: BlockMask(5) })),
        Err(IoError::Moved { epoch: Epoch(5), holder: NodeId::new("b").unwrap(), flushed: true }),
    ] {
        let sent = PeerReply { session: SessionId(1), sequence: 2, instance: InstanceId(3), result };
        assert_eq!(PeerReply::decode(sent.clone().encode()), Ok(sent));
    }
}

#[test]
fn a_flipped_bit_is_an_error_or_another_field_never_a_panic() {
    let data = Payload::plain(Bytes::from_static(&[5; 300]));
    let sent = request(Operation::Write { offset: 0, data, fua: false, replay: false }).encode();
    for bit in 0..sent.body.len() * 8 {
        let mut body = sent.body.to_vec();
        body[bit / 8] ^= 1 << (bit % 8);
        let broken = Message { head: sent.head.clone(), body: body.into() };
        assert!(matches!(PeerRequest::decode(broken), Err(WireError::Checksum { .. })));
    }
    for bit in 0..sent.head.len() * 8 {
        let mut head = sent.head.to_vec();
        head[bit / 8] ^= 1 << (bit % 8);
        let _ = PeerRequest::decode(Message { head: head.into(), body: sent.body.clone() });
    }
}

/// A declared length is bounded before anything is allocated by it.
#[test]
fn declared_lengths_are_bounded() {
    let sent = request(Operation::Read { range: ByteRange { offset: 0, len: REQUEST_BYTES_MAX + 1 } }).encode();
    assert!(matches!(PeerRequest::decode(sent), Err(WireError::BodyTooLarge { .. })));
    let sent = request(Operation::Flush { note: Bytes::from_static(&[7; NOTE_BYTES_MAX + 1]) }).encode();
    assert!(matches!(PeerRequest::decode(sent), Err(WireError::Body(_))));
    for len in [0, 1, 127, 129, 130] {
        let mut sent = request(Operation::Remote { region: RegionIndex(0), masks: Box::new([0; _]) }).encode();
        sent.body = vec![1; len].into();
        let mut head = Head::read_from_bytes(&sent.head).unwrap();
        head.body_crc = crc32c::crc32c(&sent.body).into();
        head.body_raw = (len as u32).into();
        sent.head = Bytes::copy_from_slice(head.as_bytes());
        assert!(matches!(PeerRequest::decode(sent), Err(WireError::Body(_))), "{len}");
    }
    let payload = Payload { bytes: Bytes::from_static(b"x"), raw_len: u32::MAX };
    let reply =
        PeerReply { session: SessionId(1), sequence: 1, instance: InstanceId(1), result: Ok(Answer::Data(payload)) };
    assert!(matches!(PeerReply::decode(reply.encode()), Err(WireError::BodyTooLarge { .. })));
    const { assert!(HEAD_BYTES < MESSAGE_HEAD_BYTES_MAX) };
}
