//! What travels through a copy.

use super::is_zero;
use crate::failure::Failure;
use bytes::Bytes;
use drover_base::units::EXTENT_BYTES;
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

/// What was read at `offset`, with every extent of zeros as a hole: it then costs the target nothing.
pub fn split(offset: u64, mut data: Bytes) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut at = offset;
    while !data.is_empty() {
        let is_hole = is_zero(&data[..extent_len(at, data.len())]);
        let mut len = 0;
        while len < data.len() {
            let next = extent_len(at + len as u64, data.len() - len);
            if is_zero(&data[len..len + next]) != is_hole {
                break;
            }
            len += next;
        }
        let part = data.split_to(len);
        pieces.push(match is_hole {
            true => Piece::Zero { offset: at, len: len as u64 },
            false => Piece::Data { offset: at, data: part },
        });
        at += len as u64;
    }
    pieces
}

/// Bytes until the next extent begins, at most `most`.
fn extent_len(at: u64, most: usize) -> usize {
    ((EXTENT_BYTES - at % EXTENT_BYTES) as usize).min(most)
}

pub type Pieces = LocalBoxStream<'static, Result<Piece, Failure>>;

/// What a copy moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Copied {
    pub size_bytes: u64,
    /// Of it, what was not zero.
    pub data_bytes: u64,
}
