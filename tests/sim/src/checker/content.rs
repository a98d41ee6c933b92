//! What a cell's bytes tell.
//!
//! ```text
//! a cell: lines of 16 bytes, all equal: | tag, 8 bytes | number of the cell, 8 bytes |   little-endian
//!         or all zeros
//! ```

use super::ZERO;
use std::fmt;

pub(super) const LINE_BYTES: usize = 16;

/// A whole cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Zeros,
    Tag(u64),
}

impl Content {
    pub fn tag(self) -> u64 {
        match self {
            Self::Zeros => ZERO,
            Self::Tag(tag) => tag,
        }
    }
}

/// Bytes that no single write has put there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Parts of two contents; the first differing line.
    Torn { line: usize },
    /// Content of another cell.
    Misplaced { of: u64, tag: u64 },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Torn { line } => write!(f, "torn or garbage from line {line}"),
            Self::Misplaced { of, tag } => write!(f, "tag {tag} of cell {of}"),
        }
    }
}

fn line(cell: u64, tag: u64) -> [u8; LINE_BYTES] {
    (u128::from(tag) | u128::from(cell) << 64).to_le_bytes()
}

/// Writes a cell's content.
pub fn fill(bytes: &mut [u8], cell: u64, tag: u64) {
    assert!(tag != ZERO, "tag 0 means zeros");
    bytes.as_chunks_mut().0.fill(line(cell, tag));
}

/// Reads a cell's content back.
pub fn inspect(bytes: &[u8], cell: u64) -> Result<Content, Damage> {
    let (lines, _) = bytes.as_chunks::<LINE_BYTES>();
    let first = lines[0];
    if let Some(line) = lines.iter().position(|line| *line != first) {
        return Err(Damage::Torn { line });
    }
    let first = u128::from_le_bytes(first);
    let (tag, of) = (first as u64, (first >> 64) as u64);
    match first {
        0 => Ok(Content::Zeros),
        // A tag is never zero: garbage that is the same in each line.
        _ if tag == ZERO => Err(Damage::Torn { line: 0 }),
        _ if of != cell => Err(Damage::Misplaced { of, tag }),
        _ => Ok(Content::Tag(tag)),
    }
}
