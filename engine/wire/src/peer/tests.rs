use super::*;
use crate::layer::LayerSpec;
use drover_base::BlockMask;
use drover_base::limits::MESSAGE_HEAD_BYTES_MAX;

fn request(operation: Operation) -> PeerRequest {
    PeerRequest { session: SessionId(7), epoch: Epoch(3), sequence: 11, operation }
}

fn spec(name: &str, on: Option<&str>) -> LayerSpec {
    LayerSpec { name: name.into(), created_ms: 5, size_bytes: 1 << 20, on: on.map(Into::into) }
}

/// A name is no path and no key of anything, and there are no more digests than were told.
#[test]
fn what_is_said_of_layers_is_checked() {
    for name in ["", "../a", "A", &"a".repeat(64)] {
        for said in [
            LayerRequest::Begin { layer: spec(name, None), resumes: false },
            LayerRequest::Freeze(spec("a", Some(name))),
            LayerRequest::Head { on: Some(name.into()), size_bytes: 4096 },
            LayerRequest::Next { name: name.into(), from: RegionIndex(0) },
            LayerRequest::Digests { name: name.into(), region: RegionIndex(0), extents: 1 },
        ] {
            let sent = request(Operation::Layer(Box::new(said))).encode();
            assert!(matches!(PeerRequest::decode(sent), Err(WireError::Body(_))), "{name:?}");
        }
    }
    for answer in [
        LayerAnswer::Digests { extents: 1, digests: vec![[0; 32]; 2] },
        LayerAnswer::Snapshots(vec![spec("..", None)]),
        LayerAnswer::Snapshots(vec![spec("a", None); 257]),
    ] {
        let result = Ok(Answer::Layer(Box::new(answer)));
        let sent = PeerReply { session: SessionId(1), sequence: 2, instance: InstanceId(3), result };
        assert!(matches!(PeerReply::decode(sent.encode()), Err(WireError::Body(_))));
    }
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
        Operation::Layer(Box::new(LayerRequest::Begin { layer: spec("b", Some("a")), resumes: true })),
        Operation::Layer(Box::new(LayerRequest::Freeze(spec("a", None)))),
        Operation::Layer(Box::new(LayerRequest::Head { on: Some("b".into()), size_bytes: 4096 })),
        Operation::Layer(Box::new(LayerRequest::List)),
        Operation::Layer(Box::new(LayerRequest::Next { name: "a".into(), from: RegionIndex(7) })),
        Operation::Layer(Box::new(LayerRequest::Digests { name: "a".into(), region: RegionIndex(7), extents: 5 })),
        Operation::Offer { chunks: vec![ChunkName { digest: [7; 32], len: 70_000 }; CHUNKS_MAX] },
        Operation::Assemble(Box::new(assembly())),
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
        Ok(Answer::Layer(Box::new(LayerAnswer::Have))),
        Ok(Answer::Layer(Box::new(LayerAnswer::Begun { is_new: true }))),
        Ok(Answer::Layer(Box::new(LayerAnswer::Snapshots(vec![spec("a", None), spec("b", Some("a"))])))),
        Ok(Answer::Layer(Box::new(LayerAnswer::Region(Some(RegionIndex(3)))))),
        Ok(Answer::Layer(Box::new(LayerAnswer::Digests { extents: 9, digests: vec![[1; 32], [2; 32]] }))),
        Ok(Answer::Offered(Offered { nonce: [9; 32], held: vec![true, false, true] })),
        Ok(Answer::Lacking),
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

/// A chunk that is sent, one that is named, and one that is sent.
fn assembly() -> Assembly {
    let part = |len, proof| Part { chunk: ChunkName { digest: [len as u8; 32], len }, proof };
    let data = Payload { bytes: Bytes::from_static(b"zstd"), raw_len: 4000 };
    Assembly { offset: 8192, parts: vec![part(3000, None), part(60_000, Some([3; 32])), part(1000, None)], data }
}

/// None of an assembly's lengths is believed that does not fit the others.
#[test]
fn an_assembly_whose_lengths_contradict_each_other_is_refused() {
    let refused = |what: &str, sent: Message| {
        assert!(matches!(PeerRequest::decode(sent), Err(WireError::Body(_))), "{what}");
    };
    let encoded = |change: fn(&mut Assembly)| {
        let mut assembly = assembly();
        change(&mut assembly);
        request(Operation::Assemble(Box::new(assembly))).encode()
    };
    assert!(PeerRequest::decode(encoded(|_| ())).is_ok());
    refused("data", encoded(|assembly| assembly.data.raw_len = 4001));
    refused("more than it was", encoded(|assembly| assembly.data.bytes = vec![0; 4001].into()));
    refused("a region", encoded(|assembly| assembly.parts[1].chunk.len = 4 << 20));
    refused(
        "parts",
        encoded(|assembly| {
            let named = assembly.parts[1];
            assembly
                .parts
                .extend(std::iter::repeat_n(Part { chunk: ChunkName { len: 1, ..named.chunk }, ..named }, CHUNKS_MAX));
        }),
    );
    let of_body = |body: Vec<u8>| {
        let mut sent = encoded(|_| ());
        let mut head = Head::read_from_bytes(&sent.head).unwrap();
        head.body_crc = crc32c::crc32c(&body).into();
        head.body_raw = (body.len() as u32).into();
        (sent.head, sent.body) = (Bytes::copy_from_slice(head.as_bytes()), body.into());
        sent
    };
    let whole = encoded(|_| ()).body.to_vec();
    // Data that was cut is found where it is unpacked.
    for len in 0..whole.len() - assembly().data.bytes.len() {
        refused("cut", of_body(whole[..len].to_vec()));
    }
    refused("the length of the parts", of_body([&u32::MAX.to_le_bytes(), &whole[4..]].concat()));
    let many = vec![ChunkName { digest: [7; 32], len: 1 }; CHUNKS_MAX + 1];
    refused("an offer", request(Operation::Offer { chunks: many }).encode());
    let long = vec![ChunkName { digest: [7; 32], len: (4 << 20) + 1 }];
    refused("a long chunk", request(Operation::Offer { chunks: long }).encode());
}
