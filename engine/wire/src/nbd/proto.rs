//! Numbers and fixed headers of the NBD protocol, all big-endian.
//!
//! Source: `doc/proto.md` of <https://github.com/NetworkBlockDevice/nbd>; names are those without `NBD_`.

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// The port that IANA reserved for NBD.
pub const PORT: u16 = 10809;

/// Bounds that the protocol states or that we set ourselves.
pub mod bounds {
    /// Longest string of the protocol.
    pub const STRING_BYTES_MAX: usize = 4096;
    /// Longest option that is read into memory: a name and a dozen full-size queries.
    pub const OPTION_BYTES_MAX: u32 = 64 << 10;
    /// Longest option that is skipped and refused; above it the connection is closed.
    pub const OPTION_SKIP_BYTES_MAX: u32 = 1 << 20;
    /// Options a client may send before it has to choose an export; above it the connection is closed.
    pub const OPTIONS_MAX: u32 = 1024;
    /// Largest payload of a read or write, as `INFO_BLOCK_SIZE` says.
    pub const PAYLOAD_BYTES_MAX: u32 = drover_base::limits::REQUEST_BYTES_MAX as u32;
    /// Largest payload of a refused write that is skipped; above it the connection is closed.
    pub const PAYLOAD_SKIP_BYTES_MAX: u32 = 2 * PAYLOAD_BYTES_MAX;
    /// Smallest request: bytes. What is not aligned to blocks is read, changed and written.
    pub const BLOCK_BYTES_MIN: u32 = 1;
    /// What is served without reading first.
    pub const BLOCK_BYTES_PREFERRED: u32 = drover_base::units::BLOCK_BYTES as u32;
    /// Runs in one block status reply: 128 KiB. The protocol advises at most 2^20.
    pub const STATUS_RUNS_MAX: usize = 16 << 10;
    /// Longest run of a block status reply: the largest multiple of a block that 32 bits hold.
    pub const STATUS_RUN_BYTES_MAX: u64 =
        (u32::MAX as u64) / drover_base::units::BLOCK_BYTES * drover_base::units::BLOCK_BYTES;

    const _: () = assert!(OPTION_BYTES_MAX as usize > 2 * STRING_BYTES_MAX + 64, "a name and a query fit");
    const _: () = assert!(drover_base::limits::REQUEST_BYTES_MAX <= u32::MAX as u64);
    const _: () = assert!(STATUS_RUNS_MAX <= 1 << 20);
}

/// Of the greeting, by the server.
pub mod handshake_flags {
    pub const FIXED_NEWSTYLE: u16 = 1;
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Of the answer to the greeting, by the client.
pub mod client_flags {
    pub const FIXED_NEWSTYLE: u32 = 1;
    pub const NO_ZEROES: u32 = 1 << 1;
}

/// What an export can do.
pub mod transmission_flags {
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

pub mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of replies to options.
pub mod rep {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERROR: u32 = 1 << 31;
    pub const ERR_UNSUP: u32 = ERROR + 1;
    pub const ERR_POLICY: u32 = ERROR + 2;
    pub const ERR_INVALID: u32 = ERROR + 3;
    pub const ERR_TLS_REQD: u32 = ERROR + 5;
    pub const ERR_UNKNOWN: u32 = ERROR + 6;
    pub const ERR_SHUTDOWN: u32 = ERROR + 7;
    pub const ERR_TOO_BIG: u32 = ERROR + 9;
}

pub mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

pub mod command {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

pub mod command_flags {
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
}

pub mod chunk {
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    /// Set in every error's type.
    pub const IS_ERROR: u16 = 1 << 15;
    pub const ERROR: u16 = IS_ERROR + 1;
    pub const ERROR_OFFSET: u16 = IS_ERROR + 2;
    /// Flag: the last chunk of its reply.
    pub const DONE: u16 = 1;
}

/// The one metadata context that is served.
pub const CONTEXT_NAME: &str = "base:allocation";
/// Its number in block status replies.
pub const CONTEXT_ID: u32 = 1;
pub const STATE_HOLE: u32 = 1;
pub const STATE_ZERO: u32 = 1 << 1;

/// `{ NBDMAGIC, IHAVEOPT, flags }`, the server's first words.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Greeting {
    pub magic: U64,
    pub option_magic: U64,
    pub flags: U16,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct OptionHeader {
    pub magic: U64,
    pub option: U32,
    pub len: U32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct OptionReplyHeader {
    pub magic: U64,
    pub option: U32,
    pub reply: U32,
    pub len: U32,
}

/// The end of a reply to `EXPORT_NAME`, and with its type in front that of `INFO_EXPORT`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ExportSize {
    pub size_bytes: U64,
    pub flags: U16,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct InfoBlockSize {
    pub info: U16,
    pub least: U32,
    pub preferred: U32,
    pub most: U32,
}

/// 28 bytes; a write's payload follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RequestHeader {
    pub magic: U32,
    pub flags: U16,
    pub command: U16,
    pub cookie: U64,
    pub offset: U64,
    pub len: U32,
}

/// 16 bytes; a successful read's data follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SimpleReplyHeader {
    pub magic: U32,
    pub errno: U32,
    pub cookie: U64,
}

/// 20 bytes; `len` bytes follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ChunkHeader {
    pub magic: U32,
    pub flags: U16,
    pub kind: U16,
    pub cookie: U64,
    pub len: U32,
}

/// Bytes of a request's header.
pub const REQUEST_HEADER_BYTES: usize = size_of::<RequestHeader>();

const _: () = assert!(size_of::<Greeting>() == 18);
const _: () = assert!(size_of::<OptionHeader>() == 16);
const _: () = assert!(size_of::<OptionReplyHeader>() == 20);
const _: () = assert!(size_of::<ExportSize>() == 10);
const _: () = assert!(size_of::<InfoBlockSize>() == 14);
const _: () = assert!(REQUEST_HEADER_BYTES == 28);
const _: () = assert!(size_of::<SimpleReplyHeader>() == 16);
const _: () = assert!(size_of::<ChunkHeader>() == 20);
