//! What travels through a copy.

use crate::failure::Failure;
use bytes::Bytes;
use futures::stream::LocalBoxStream;
use serde::Serialize;

/// Bytes of a data piece at most: large enough that a request costs little, small enough that many are under way.
pub const PIECE_BYTES: u64 = 1 << 20;

/// Pieces under way at once.
pub const IN_FLIGHT: usize = 16;

/// A part of the source. Pieces come in ascending order and cover it without gaps.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    Data { offset: u64, data: Bytes },
    Zero { offset: u64, len: u64 },
}

impl Piece {
    pub fn len(&self) -> u64 {
        match self {
            Self::Data { data, .. } => data.len() as u64,
            Self::Zero { len, .. } => *len,
        }
    }
}

pub type Pieces = LocalBoxStream<'static, Result<Piece, Failure>>;

/// What a copy moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Copied {
    pub size_bytes: u64,
    /// Of it, what was not zero.
    pub data_bytes: u64,
}
