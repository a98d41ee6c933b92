//! Frames between nodes: forwarded I/O of gateways and the stream of a migration or mirror.
//!
//! One connection carries one session about one volume. After the [`crate::preamble`] it begins with `Hello`; requests follow, each answered
//! by one reply of the same sequence, in any order. A frame's head is fixed, its body is raw bytes:
//!
//! ```text
//!  0        4       6      8       12       16        24      32        40       48      56         64      68     72
//!  | magic  |version| kind | flags | status | session | epoch | sequence| offset | length| instance | crc   | raw  |
//! ```
//! All little-endian. Data comes first where it is hot: one cache line holds all that routes a frame.
//! `offset` of a reply is the term of `Unflushed`.
//! `crc` is CRC-32C of the body as sent; `raw` the body's length before compression (equal: not compressed).

use crate::WireError;
use crate::layer::{LayerAnswer, LayerRequest};
use bytes::Bytes;
use drover_base::limits::{MESSAGE_BODY_BYTES_MAX, NOTE_BYTES_MAX, REQUEST_BYTES_MAX};
use drover_base::world::Message;
use drover_base::{
    BlockMask, ByteRange, Epoch, ExtentIndex, Generation, InstanceId, IoError, MigrationId, NodeId, RegionIndex,
    RegionMasks, SessionId, VolumeId,
};
use serde::{Deserialize, Serialize};
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `DRVP`.
const MAGIC: u32 = 0x5056_5244;

/// Version 1: the first. Version 2: acknowledgements name the writer's term, `Hello` and `Welcome` speak about the
/// gateway's log, a stream's flush bears the volume's note. Version 3: a stream names blocks that stay behind. Version 4: a stream brings frozen layers.
/// Version 5: a stream offers chunks by digest, and names those that the receiver has instead of sending them.
const VERSION: u16 = 5;

/// Runs of a block status reply at most.
pub const STATUS_RUNS_MAX: usize = 4096;

mod chunk;

pub use chunk::{Assembly, CHUNKS_MAX, ChunkName, Offered, Part};

mod flag {
    pub const FUA: u32 = 1;
    pub const MAY_UNMAP: u32 = 2;
    pub const FAST_ONLY: u32 = 4;
    pub const REPLAY: u32 = 8;
}

mod kind {
    pub const HELLO: u16 = 1;
    pub const READ: u16 = 2;
    pub const WRITE: u16 = 3;
    pub const ZERO: u16 = 4;
    pub const TRIM: u16 = 5;
    pub const FLUSH: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
    pub const DIGESTS: u16 = 8;
    pub const REMOTE: u16 = 9;
    pub const LAYER: u16 = 10;
    pub const OFFER: u16 = 11;
    pub const ASSEMBLE: u16 = 12;
    pub const REPLY_HELLO: u16 = 101;
    pub const REPLY_DATA: u16 = 102;
    pub const REPLY_DONE: u16 = 103;
    pub const REPLY_STATUS: u16 = 104;
    pub const REPLY_DIGESTS: u16 = 105;
    pub const REPLY_ERROR: u16 = 106;
    pub const REPLY_UNFLUSHED: u16 = 107;
    pub const REPLY_LAYER: u16 = 108;
    pub const REPLY_OFFERED: u16 = 109;
    pub const REPLY_LACKING: u16 = 110;
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Head {
    magic: U32,
    version: U16,
    kind: U16,
    flags: U32,
    reserved: U32,
    session: U64,
    epoch: U64,
    sequence: U64,
    offset: U64,
    length: U64,
    instance: U64,
    body_crc: U32,
    body_raw: U32,
}

const HEAD_BYTES: usize = size_of::<Head>();
const _: () = assert!(HEAD_BYTES == 72);

/// Bytes as they travel, compressed where that paid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// As sent. At most `MESSAGE_BODY_BYTES_MAX`.
    pub bytes: Bytes,
    /// Length once decompressed; equal to `bytes.len()` where the payload is not compressed. At most `REQUEST_BYTES_MAX`.
    pub raw_len: u32,
}

impl Payload {
    pub fn plain(bytes: Bytes) -> Self {
        let raw_len = bytes.len() as u32;
        Self { bytes, raw_len }
    }
    /// zstd, if shorter than it was.
    pub fn is_compressed(&self) -> bool {
        self.bytes.len() != self.raw_len as usize
    }
}

/// The first request of every connection, after the preamble.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub volume: VolumeId,
    pub from: NodeId,
    /// The sender's start: of two of one node only the newer lives.
    pub instance: InstanceId,
    pub purpose: Purpose,
}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// Requests of clients that are attached elsewhere. Concurrent requests have no order. `log`: what was acknowledged
    /// to the session and is not known to be durable; `None`: nothing.
    Gateway { log: Option<LogOrigin> },
    /// Data of a migration. Requests of one extent are applied in the order of their sequence.
    Mirror { migration: MigrationId, generation: Generation },
}

/// Whose acknowledgements a gateway's log holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogOrigin {
    pub instance: InstanceId,
    /// As told by [`Answer::Unflushed`].
    pub term: u64,
}

/// What the holder says of a gateway's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogVerdict {
    /// This instance has applied all of it: the log goes on.
    Applied,
    /// It may be missing here: to be replayed before anything else.
    Wanted,
    /// It is durable, and may have been overwritten since.
    Durable,
    /// Others went on without it: it must not be replayed any more.
    Lost,
}

/// The answer to [`Hello`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    pub size_bytes: u64,
    pub epoch: Epoch,
    /// Of the log that `Hello` told of; where it told of none, and of streams: `Applied`.
    pub log: LogVerdict,
}

/// What a frame asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    Hello(Hello),
    Read {
        range: ByteRange,
    },
    /// `replay`: was acknowledged by an instance that is gone.
    Write {
        offset: u64,
        data: Payload,
        fua: bool,
        replay: bool,
    },
    Zero {
        range: ByteRange,
        may_unmap: bool,
        fast_only: bool,
        fua: bool,
        replay: bool,
    },
    Trim {
        range: ByteRange,
        fua: bool,
        replay: bool,
    },
    /// `note`: of a stream, the note of the sender's volume, durable with the flush; otherwise empty.
    Flush {
        note: Bytes,
    },
    BlockStatus {
        range: ByteRange,
    },
    /// Digests of an extent at this place in the stream.
    Digests {
        extent: ExtentIndex,
    },
    /// Of a stream: these blocks of the region are the sender's only, to be asked for after a flip. What the receiver
    /// holds of them does not count any more.
    Remote {
        region: RegionIndex,
        masks: Box<RegionMasks>,
    },
    /// Of a stream: about the volume's frozen layers.
    Layer(Box<LayerRequest>),
    /// Of a stream: which of these chunks does the receiver think to hold? Changes nothing, and waits for nothing. At most
    /// `CHUNKS_MAX`.
    Offer {
        chunks: Vec<ChunkName>,
    },
    /// Of a stream: the range's new content, some of it by name. All of it is applied, or nothing.
    Assemble(Box<Assembly>),
}

/// A request between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRequest {
    pub session: SessionId,
    /// The epoch under which the sender believes the receiver (gateway) or itself (mirror) to hold the lease.
    pub epoch: Epoch,
    /// Grows by one a request within a session.
    pub sequence: u64,
    pub operation: Operation,
}

/// What an extent holds, told by digests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtentDigests {
    /// BLAKE3 of the BLAKE3 digests of its blocks as a client reads them, ascending.
    pub extent: [u8; 32],
    /// First 16 bytes of BLAKE3 of each block, ascending; at most 16.
    pub blocks: Vec<[u8; 16]>,
    /// Which blocks hold data rather than being holes.
    pub held: BlockMask,
}

/// One run of a block status reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusRun {
    pub len: u64,
    pub hole: bool,
    pub zero: bool,
}

/// What an operation that succeeded answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Welcome(Welcome),
    Data(Payload),
    Done,
    /// A change was made that the end of this instance may undo: the gateway keeps it for replay, within this term.
    Unflushed {
        term: u64,
    },
    Status(Vec<StatusRun>),
    Digests(ExtentDigests),
    Layer(Box<LayerAnswer>),
    Offered(Offered),
    /// Of [`Operation::Assemble`]: a chunk was not found, or not proven. Nothing was applied.
    Lacking,
}

/// A reply between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerReply {
    pub session: SessionId,
    pub sequence: u64,
    /// Which start of the node answers: when it changed, what was not flushed may be lost.
    pub instance: InstanceId,
    pub result: Result<Answer, IoError>,
}

impl PeerRequest {
    pub fn encode(self) -> Message {
        let mut head = empty_head(self.session, self.sequence);
        head.epoch = self.epoch.0.into();
        let mut body = Payload::plain(Bytes::new());
        let mut flags = 0;
        let mut set = |flag: u32, on: bool| flags |= if on { flag } else { 0 };
        let (kind, range) = match self.operation {
            Operation::Hello(hello) => {
                body = Payload::plain(to_bytes(&hello));
                (kind::HELLO, NO_RANGE)
            }
            Operation::Read { range } => (kind::READ, range),
            Operation::Write { offset, data, fua, replay } => {
                set(flag::FUA, fua);
                set(flag::REPLAY, replay);
                let range = ByteRange { offset, len: u64::from(data.raw_len) };
                body = data;
                (kind::WRITE, range)
            }
            Operation::Zero { range, may_unmap, fast_only, fua, replay } => {
                set(flag::MAY_UNMAP, may_unmap);
                set(flag::FAST_ONLY, fast_only);
                set(flag::FUA, fua);
                set(flag::REPLAY, replay);
                (kind::ZERO, range)
            }
            Operation::Trim { range, fua, replay } => {
                set(flag::FUA, fua);
                set(flag::REPLAY, replay);
                (kind::TRIM, range)
            }
            Operation::Flush { note } => {
                body = Payload::plain(note);
                (kind::FLUSH, NO_RANGE)
            }
            Operation::BlockStatus { range } => (kind::BLOCK_STATUS, range),
            Operation::Digests { extent } => (kind::DIGESTS, ByteRange { offset: extent.0, len: 0 }),
            Operation::Remote { region, masks } => {
                body = Payload::plain(masks.iter().flat_map(|mask| mask.to_le_bytes()).collect());
                (kind::REMOTE, ByteRange { offset: region.0, len: 0 })
            }
            Operation::Layer(request) => {
                body = Payload::plain(to_bytes(&*request));
                (kind::LAYER, NO_RANGE)
            }
            Operation::Offer { chunks } => {
                body = Payload::plain(to_bytes(&chunks));
                (kind::OFFER, NO_RANGE)
            }
            Operation::Assemble(assembly) => {
                let range = assembly.range();
                body = Payload::plain(assembly.to_bytes());
                (kind::ASSEMBLE, range)
            }
        };
        head.flags = flags.into();
        finish(head, kind, range, body)
    }

    pub fn decode(message: Message) -> Result<Self, WireError> {
        let (head, body) = open(message)?;
        let range = range_of(&head)?;
        let flags = head.flags.get();
        let has = |flag: u32| flags & flag != 0;
        let operation = match head.kind.get() {
            kind::HELLO => Operation::Hello(from_bytes(&body.bytes, "Hello")?),
            kind::READ => Operation::Read { range: bounded(range)? },
            kind::WRITE => {
                if range.len != u64::from(body.raw_len) {
                    return Err(WireError::Range { offset: range.offset, len: range.len });
                }
                Operation::Write { offset: range.offset, data: body, fua: has(flag::FUA), replay: has(flag::REPLAY) }
            }
            kind::ZERO => Operation::Zero {
                range,
                may_unmap: has(flag::MAY_UNMAP),
                fast_only: has(flag::FAST_ONLY),
                fua: has(flag::FUA),
                replay: has(flag::REPLAY),
            },
            kind::TRIM => Operation::Trim { range, fua: has(flag::FUA), replay: has(flag::REPLAY) },
            kind::FLUSH if body.bytes.len() > NOTE_BYTES_MAX || body.is_compressed() => {
                return Err(WireError::Body("a note"));
            }
            kind::FLUSH => Operation::Flush { note: body.bytes },
            kind::BLOCK_STATUS => Operation::BlockStatus { range },
            kind::DIGESTS => Operation::Digests { extent: ExtentIndex(range.offset) },
            kind::REMOTE => Operation::Remote { region: RegionIndex(range.offset), masks: region_masks(&body.bytes)? },
            kind::LAYER => {
                let request: LayerRequest = from_bytes(&body.bytes, "LayerRequest")?;
                Operation::Layer(Box::new(request.checked()?))
            }
            kind::OFFER => Operation::Offer { chunks: chunk::names(&body.bytes)? },
            kind::ASSEMBLE => Operation::Assemble(Box::new(Assembly::from_bytes(range, body)?)),
            other => return Err(WireError::Kind(other)),
        };
        Ok(Self {
            session: SessionId(head.session.get()),
            epoch: Epoch(head.epoch.get()),
            sequence: head.sequence.get(),
            operation,
        })
    }
}

impl PeerReply {
    pub fn encode(self) -> Message {
        let mut head = empty_head(self.session, self.sequence);
        head.instance = self.instance.0.into();
        let mut range = NO_RANGE;
        let (kind, body) = match self.result {
            Ok(Answer::Welcome(welcome)) => (kind::REPLY_HELLO, Payload::plain(to_bytes(&welcome))),
            Ok(Answer::Data(data)) => (kind::REPLY_DATA, data),
            Ok(Answer::Done) => (kind::REPLY_DONE, Payload::plain(Bytes::new())),
            Ok(Answer::Unflushed { term }) => {
                range.offset = term;
                (kind::REPLY_UNFLUSHED, Payload::plain(Bytes::new()))
            }
            Ok(Answer::Status(runs)) => (kind::REPLY_STATUS, Payload::plain(to_bytes(&runs))),
            Ok(Answer::Digests(digests)) => (kind::REPLY_DIGESTS, Payload::plain(to_bytes(&digests))),
            Ok(Answer::Layer(answer)) => (kind::REPLY_LAYER, Payload::plain(to_bytes(&*answer))),
            Ok(Answer::Offered(offered)) => (kind::REPLY_OFFERED, Payload::plain(to_bytes(&offered))),
            Ok(Answer::Lacking) => (kind::REPLY_LACKING, Payload::plain(Bytes::new())),
            Err(error) => (kind::REPLY_ERROR, Payload::plain(to_bytes(&error))),
        };
        finish(head, kind, range, body)
    }

    pub fn decode(message: Message) -> Result<Self, WireError> {
        let (head, body) = open(message)?;
        let result = match head.kind.get() {
            kind::REPLY_HELLO => Ok(Answer::Welcome(from_bytes(&body.bytes, "Welcome")?)),
            kind::REPLY_DATA => Ok(Answer::Data(body)),
            kind::REPLY_DONE => Ok(Answer::Done),
            kind::REPLY_UNFLUSHED => Ok(Answer::Unflushed { term: head.offset.get() }),
            kind::REPLY_STATUS => {
                let runs: Vec<StatusRun> = from_bytes(&body.bytes, "StatusRun")?;
                if runs.len() > STATUS_RUNS_MAX {
                    return Err(WireError::Body("at most 4096 runs"));
                }
                Ok(Answer::Status(runs))
            }
            kind::REPLY_DIGESTS => Ok(Answer::Digests(from_bytes(&body.bytes, "ExtentDigests")?)),
            kind::REPLY_LAYER => {
                let answer: LayerAnswer = from_bytes(&body.bytes, "LayerAnswer")?;
                Ok(Answer::Layer(Box::new(answer.checked()?)))
            }
            kind::REPLY_OFFERED => Ok(Answer::Offered(chunk::offered(&body.bytes)?)),
            kind::REPLY_LACKING => Ok(Answer::Lacking),
            kind::REPLY_ERROR => Err(from_bytes(&body.bytes, "IoError")?),
            other => return Err(WireError::Kind(other)),
        };
        Ok(Self {
            session: SessionId(head.session.get()),
            sequence: head.sequence.get(),
            instance: InstanceId(head.instance.get()),
            result,
        })
    }
}

fn region_masks(body: &[u8]) -> Result<Box<RegionMasks>, WireError> {
    let wrong = || WireError::Body("masks of a region");
    let (masks, []) = body.as_chunks::<2>() else { return Err(wrong()) };
    let masks: Box<[u16]> = masks.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect();
    masks.try_into().map_err(|_| wrong())
}

const NO_RANGE: ByteRange = ByteRange { offset: 0, len: 0 };

fn empty_head(session: SessionId, sequence: u64) -> Head {
    Head {
        magic: MAGIC.into(),
        version: VERSION.into(),
        session: session.0.into(),
        sequence: sequence.into(),
        ..Head::new_zeroed_head()
    }
}

impl Head {
    fn new_zeroed_head() -> Self {
        zerocopy::FromZeros::new_zeroed()
    }
}

fn finish(mut head: Head, kind: u16, range: ByteRange, body: Payload) -> Message {
    assert!(body.bytes.len() <= MESSAGE_BODY_BYTES_MAX, "bodies are bounded where they are made");
    head.kind = kind.into();
    head.offset = range.offset.into();
    head.length = range.len.into();
    head.body_crc = crc32c::crc32c(&body.bytes).into();
    head.body_raw = body.raw_len.into();
    Message { head: Bytes::copy_from_slice(head.as_bytes()), body: body.bytes }
}

fn open(message: Message) -> Result<(Head, Payload), WireError> {
    let head = Head::read_from_bytes(&message.head)
        .map_err(|_| WireError::HeadLength { expected: HEAD_BYTES, got: message.head.len() })?;
    if head.magic.get() != MAGIC {
        return Err(WireError::Magic { expected: MAGIC, got: head.magic.get() });
    }
    if head.version.get() != VERSION {
        return Err(WireError::Version { expected: VERSION, got: head.version.get() });
    }
    let raw_len = head.body_raw.get();
    if u64::from(raw_len) > REQUEST_BYTES_MAX || message.body.len() > raw_len as usize {
        return Err(WireError::BodyTooLarge { len: u64::from(raw_len), most: REQUEST_BYTES_MAX });
    }
    let crc = crc32c::crc32c(&message.body);
    if crc != head.body_crc.get() {
        return Err(WireError::Checksum { expected: head.body_crc.get(), got: crc });
    }
    Ok((head, Payload { bytes: message.body, raw_len }))
}

fn range_of(head: &Head) -> Result<ByteRange, WireError> {
    let (offset, len) = (head.offset.get(), head.length.get());
    ByteRange::new(offset, len).ok_or(WireError::Range { offset, len })
}

fn bounded(range: ByteRange) -> Result<ByteRange, WireError> {
    if range.len > REQUEST_BYTES_MAX {
        return Err(WireError::BodyTooLarge { len: range.len, most: REQUEST_BYTES_MAX });
    }
    Ok(range)
}

fn to_bytes<T: Serialize>(value: &T) -> Bytes {
    postcard::to_stdvec(value).expect("plain data always encodes").into()
}

fn from_bytes<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &'static str) -> Result<T, WireError> {
    postcard::from_bytes(bytes).map_err(|_| WireError::Body(what))
}

#[cfg(test)]
mod tests;
