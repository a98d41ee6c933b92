//! Replies of the transmission phase, as a server writes them.

use super::proto::{self, ChunkHeader, SimpleReplyHeader, bounds, chunk};
use super::{BlockStatus, Errno};
use zerocopy::IntoBytes;

fn simple(out: &mut Vec<u8>, cookie: u64, errno: u32) {
    let header =
        SimpleReplyHeader { magic: proto::SIMPLE_REPLY_MAGIC.into(), errno: errno.into(), cookie: cookie.into() };
    out.extend_from_slice(header.as_bytes());
}

fn chunk(out: &mut Vec<u8>, cookie: u64, kind: u16, is_last: bool, len: u32) {
    let header = ChunkHeader {
        magic: proto::CHUNK_MAGIC.into(),
        flags: if is_last { chunk::DONE } else { 0 }.into(),
        kind: kind.into(),
        cookie: cookie.into(),
        len: len.into(),
    };
    out.extend_from_slice(header.as_bytes());
}

/// Success of a request whose reply carries nothing. A simple reply is right for it in either mode.
pub fn done(out: &mut Vec<u8>, cookie: u64) {
    simple(out, cookie, 0);
}

/// Failure. `why` is for people and travels in structured replies only.
pub fn failed(out: &mut Vec<u8>, structured: bool, cookie: u64, errno: Errno, why: &str) {
    if !structured {
        return simple(out, cookie, errno.to_wire());
    }
    let why = &why[..why.floor_char_boundary(bounds::STRING_BYTES_MAX)];
    chunk(out, cookie, chunk::ERROR, true, 6 + why.len() as u32);
    out.extend_from_slice(&errno.to_wire().to_be_bytes());
    out.extend_from_slice(&(why.len() as u16).to_be_bytes());
    out.extend_from_slice(why.as_bytes());
}

/// What comes before a successful read's data, all of it or (structured) a piece.
pub fn data_header(out: &mut Vec<u8>, structured: bool, cookie: u64, offset: u64, len: u32, is_last: bool) {
    if !structured {
        return simple(out, cookie, 0);
    }
    debug_assert!(len > 0, "a chunk describes at least one byte");
    chunk(out, cookie, chunk::OFFSET_DATA, is_last, len + 8);
    out.extend_from_slice(&offset.to_be_bytes());
}

/// A piece of a successful read that is all zeroes; structured replies only.
pub fn hole(out: &mut Vec<u8>, cookie: u64, offset: u64, len: u32, is_last: bool) {
    debug_assert!(len > 0, "a chunk describes at least one byte");
    chunk(out, cookie, chunk::OFFSET_HOLE, is_last, 12);
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
}

/// The end of a successful structured read of no bytes.
pub fn empty(out: &mut Vec<u8>, cookie: u64) {
    chunk(out, cookie, chunk::NONE, true, 0);
}

/// A block status of `base:allocation`: consecutive runs from the request's offset.
///
/// At most `STATUS_RUNS_MAX` runs go out, one if `one`; together they cover at most `len` bytes, and each is cut
/// so that 32 bits hold its length. False, and nothing written, when there is no run of at least a byte.
pub fn block_status(out: &mut Vec<u8>, cookie: u64, len: u32, one: bool, runs: &[(u64, BlockStatus)]) -> bool {
    let start = out.len();
    chunk(out, cookie, chunk::BLOCK_STATUS, true, 0);
    out.extend_from_slice(&proto::CONTEXT_ID.to_be_bytes());
    let first = out.len();
    let most = if one { 1 } else { bounds::STATUS_RUNS_MAX };
    let mut left = u64::from(len);
    for (bytes, status) in runs.iter().filter(|run| run.0 > 0).take(most) {
        let told = (*bytes).min(left).min(bounds::STATUS_RUN_BYTES_MAX);
        let flags = if status.hole { proto::STATE_HOLE } else { 0 } | if status.zero { proto::STATE_ZERO } else { 0 };
        out.extend_from_slice(&(told as u32).to_be_bytes());
        out.extend_from_slice(&flags.to_be_bytes());
        left -= told;
        if left == 0 || told < *bytes {
            break;
        }
    }
    if out.len() == first {
        out.truncate(start);
        return false;
    }
    let payload_bytes = (out.len() - first + 4) as u32;
    let len_at = start + std::mem::offset_of!(ChunkHeader, len);
    out[len_at..len_at + 4].copy_from_slice(&payload_bytes.to_be_bytes());
    true
}
