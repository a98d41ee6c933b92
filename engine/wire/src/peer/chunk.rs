//! Chunks in a stream: offered by name, then named instead of sent where the receiver has them.
//!
//! ```text
//!  sender                                   receiver
//!  Offer [digest, length] …          ──►    looks its index up, under the tenant of the volume
//!                                    ◄──    Offered: a nonce, and which it thinks to hold
//!  Assemble: names with proofs, data ──►    reads its own bytes, compares digest and proof, then applies all of it
//!                                    ◄──    Done, or Lacking: nothing was applied
//! ```
//! A proof is BLAKE3 of the chunk's bytes under the receiver's nonce as key: who knows a digest only cannot make it. Names
//! are hints on both sides; what is applied was hashed on arrival.
//!
//! The body of `Assemble`, little-endian:
//! ```text
//! | parts:u32 | raw:u32 | parts, postcard … | data … |
//! ```
//! `parts` is the length of the third field, `raw` that of the data before compression.

use super::{Payload, WireError, from_bytes, to_bytes};
use bytes::Bytes;
use drover_base::ByteRange;
use drover_base::units::REGION_BYTES;
use serde::{Deserialize, Serialize};

/// Chunks of one offer or assembly: more than a region has at the smallest size there is, 16 KiB, but for last ones.
pub const CHUNKS_MAX: usize = 1024;

/// Longest encoding of that many parts.
const PARTS_BYTES_MAX: usize = 16 + CHUNKS_MAX * (32 + 5 + 1 + 32);

const LENGTHS_BYTES: usize = 8;

/// A piece of content, by what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChunkName {
    /// BLAKE3.
    pub digest: [u8; 32],
    /// Bytes; any number, at most a region's.
    pub len: u32,
}

/// The answer to an offer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offered {
    /// For proofs towards this receiver, as long as it lives.
    pub nonce: [u8; 32],
    /// Of each chunk, in their order, whether it may be named.
    pub held: Vec<bool>,
}

/// A piece of an assembly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub chunk: ChunkName,
    /// The receiver has it; the sender shows that it has it, too. `None`: it is in the data.
    pub proof: Option<[u8; 32]>,
}

/// New content of a range, in order and without gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assembly {
    pub offset: u64,
    pub parts: Vec<Part>,
    /// Of the parts without proof, one after the other.
    pub data: Payload,
}

impl Assembly {
    /// What its parts cover together.
    pub fn range(&self) -> ByteRange {
        ByteRange { offset: self.offset, len: self.parts.iter().map(|part| u64::from(part.chunk.len)).sum() }
    }

    /// Bytes of the frame's body.
    pub fn body_bytes(&self) -> u64 {
        (LENGTHS_BYTES + to_bytes(&self.parts).len() + self.data.bytes.len()) as u64
    }

    pub(super) fn to_bytes(&self) -> Bytes {
        let parts = to_bytes(&self.parts);
        let mut body = Vec::with_capacity(LENGTHS_BYTES + parts.len() + self.data.bytes.len());
        body.extend_from_slice(&(parts.len() as u32).to_le_bytes());
        body.extend_from_slice(&self.data.raw_len.to_le_bytes());
        body.extend_from_slice(&parts);
        body.extend_from_slice(&self.data.bytes);
        body.into()
    }

    pub(super) fn from_bytes(range: ByteRange, body: Payload) -> Result<Self, WireError> {
        let wrong = || WireError::Body("Assembly");
        if body.is_compressed() || range.len > REGION_BYTES {
            return Err(wrong());
        }
        let (parts_bytes, rest) = body.bytes.split_first_chunk::<4>().ok_or_else(wrong)?;
        let (raw_len, rest) = rest.split_first_chunk::<4>().ok_or_else(wrong)?;
        let (parts_bytes, raw_len) = (u32::from_le_bytes(*parts_bytes) as usize, u32::from_le_bytes(*raw_len));
        if parts_bytes > PARTS_BYTES_MAX.min(rest.len()) {
            return Err(wrong());
        }
        let parts: Vec<Part> = from_bytes(&rest[..parts_bytes], "Assembly")?;
        let data = body.bytes.slice(LENGTHS_BYTES + parts_bytes..);
        let sent = parts.iter().filter(|part| part.proof.is_none()).map(|part| u64::from(part.chunk.len)).sum::<u64>();
        let assembly = Self { offset: range.offset, parts, data: Payload { bytes: data, raw_len } };
        // No length is believed that another one contradicts.
        let is_whole = assembly.range() == range
            && assembly.parts.len() <= CHUNKS_MAX
            && sent == u64::from(raw_len)
            && assembly.data.bytes.len() <= raw_len as usize;
        if is_whole { Ok(assembly) } else { Err(wrong()) }
    }
}

pub(super) fn names(body: &[u8]) -> Result<Vec<ChunkName>, WireError> {
    let chunks: Vec<ChunkName> = from_bytes(body, "an offer")?;
    let is_bounded = chunks.len() <= CHUNKS_MAX && chunks.iter().all(|chunk| u64::from(chunk.len) <= REGION_BYTES);
    if is_bounded { Ok(chunks) } else { Err(WireError::Body("an offer of at most 1024 chunks")) }
}

pub(super) fn offered(body: &[u8]) -> Result<Offered, WireError> {
    let offered: Offered = from_bytes(body, "Offered")?;
    if offered.held.len() <= CHUNKS_MAX { Ok(offered) } else { Err(WireError::Body("at most 1024 chunks")) }
}
