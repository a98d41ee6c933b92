//! Between nodes: messages on a stream, requests and replies in them, and what a migration sends compressed.

use bytes::{Bytes, BytesMut};
use drover_base::world::Message;
use drover_base::{ByteRange, Epoch, ExtentIndex, InstanceId, IoError, NodeId, RegionIndex, SessionId, VolumeId};
use drover_runtime::framing::{self, Decoder};
use drover_transfer::Level;
use drover_wire::peer::{Answer, Hello, Operation, Payload, PeerReply, PeerRequest, Purpose};

/// Where a head has the checksum of its message's body, and how long it is.
const CHECKSUM: std::ops::Range<usize> = 64..68;
const HEAD_BYTES: usize = 72;

/// The first byte's lowest bit has the checksums made right: an attacker's are.
pub fn frames(bytes: &[u8]) {
    let Some((&mode, stream)) = bytes.split_first() else { return };
    let mut decoder = Decoder::default();
    for piece in stream.chunks(if mode & 2 != 0 { 11 } else { 4096 }) {
        decoder.space().extend_from_slice(piece);
        loop {
            match decoder.next() {
                Ok(Some(message)) => message_of(message, mode & 1 != 0),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

fn message_of(mut message: Message, is_mended: bool) {
    if is_mended && message.head.len() == HEAD_BYTES {
        let mut head = BytesMut::from(&message.head[..]);
        head[CHECKSUM].copy_from_slice(&crc32c::crc32c(&message.body).to_le_bytes());
        message.head = head.freeze();
    }
    if let Ok(request) = PeerRequest::decode(message.clone()) {
        let again = PeerRequest::decode(request.clone().encode());
        assert_eq!(again.as_ref(), Ok(&request));
    }
    if let Ok(reply) = PeerReply::decode(message) {
        let again = PeerReply::decode(reply.clone().encode());
        assert_eq!(again.as_ref(), Ok(&reply));
    }
}

/// The first four bytes say how long the rest says it is, uncompressed.
pub fn payloads(bytes: &[u8]) {
    let Some((raw_len, data)) = bytes.split_first_chunk() else { return };
    let payload = Payload { bytes: Bytes::copy_from_slice(data), raw_len: u32::from_le_bytes(*raw_len) };
    if let Ok(raw) = drover_transfer::unpack(&payload) {
        assert_eq!(raw.len(), if payload.is_compressed() { payload.raw_len as usize } else { data.len() });
        let again =
            drover_transfer::unpack(&drover_transfer::squeeze(drover_disk::Buffer::from_slice(&raw), Level::Usual));
        assert_eq!(again.as_deref(), Ok(&raw[..]));
    }
}

fn stream(messages: Vec<Message>) -> Vec<u8> {
    let mut bytes = vec![1];
    for message in messages {
        let (start, body) = framing::encode(message);
        bytes.extend_from_slice(&start);
        bytes.extend_from_slice(&body.unwrap_or_default());
    }
    bytes
}

pub fn frame_seeds() -> Vec<Vec<u8>> {
    let range = ByteRange { offset: 65536, len: 4096 };
    let hello = Hello {
        volume: VolumeId(1),
        from: NodeId::new("node-1").expect("a name"),
        instance: InstanceId(2),
        purpose: Purpose::Gateway { log: None },
    };
    let data = Payload::plain(Bytes::from_static(b"data"));
    let operations = [
        Operation::Hello(hello),
        Operation::Read { range },
        Operation::Write { offset: 8, data: data.clone(), fua: true, replay: false },
        Operation::Zero { range, may_unmap: true, fast_only: false, fua: false, replay: true },
        Operation::Trim { range, fua: false, replay: false },
        Operation::Flush { note: Bytes::from_static(b"note") },
        Operation::BlockStatus { range },
        Operation::Digests { extent: ExtentIndex(3) },
        Operation::Remote { region: RegionIndex(1), masks: Box::new([5; 64]) },
    ];
    let request = |operation| PeerRequest { session: SessionId(1), epoch: Epoch(2), sequence: 3, operation }.encode();
    let answers = [
        Ok(Answer::Data(data)),
        Ok(Answer::Done),
        Ok(Answer::Unflushed { term: 9 }),
        Ok(Answer::Status(Vec::new())),
        Err(IoError::NotHere),
        Err(IoError::Corrupt),
    ];
    let reply = |result| PeerReply { session: SessionId(1), sequence: 3, instance: InstanceId(4), result }.encode();
    let mut seeds: Vec<Vec<u8>> = operations.map(|operation| stream(vec![request(operation)])).into();
    seeds.extend(answers.map(|answer| stream(vec![reply(answer)])));
    seeds.push(
        [vec![3], stream(vec![request(Operation::Read { range }), reply(Ok(Answer::Done))])[1..].to_vec()].concat(),
    );
    seeds
}

pub fn payload_seeds() -> Vec<Vec<u8>> {
    let text: Vec<u8> = b"a volume's data ".repeat(512);
    let packed = drover_transfer::squeeze(drover_disk::Buffer::from_slice(&text), Level::Usual);
    let seed = |raw_len: u32, bytes: &[u8]| [&raw_len.to_le_bytes()[..], bytes].concat();
    vec![
        seed(packed.raw_len, &packed.bytes),
        seed(packed.raw_len - 1, &packed.bytes),
        seed(32 << 20, &packed.bytes),
        seed(u32::MAX, &packed.bytes),
        seed(4, b"data"),
    ]
}
