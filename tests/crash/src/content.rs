//! Content of blocks that tells which write it came from.

use drover_base::units::BLOCK_BYTES;
use std::{fmt, rc::Rc};

/// The bytes of one block.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Content(Rc<[u8]>);

impl Content {
    pub fn zero() -> Self {
        thread_local!(static ZERO: Content = Content(vec![0; BLOCK_BYTES as usize].into()));
        ZERO.with(Clone::clone)
    }

    pub fn from_bytes(bytes: &[u8]) -> Self {
        assert_eq!(bytes.len() as u64, BLOCK_BYTES);
        if bytes.iter().all(|byte| *byte == 0) { Self::zero() } else { Self(bytes.into()) }
    }

    /// The content after `bytes` were written at `at`.
    pub fn overwritten(&self, at: usize, bytes: &[u8]) -> Self {
        let mut all = self.0.to_vec();
        all[at..at + bytes.len()].copy_from_slice(bytes);
        Self::from_bytes(&all)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The bytes of write number `serial` at offset `offset..offset + len`: each eight of them name both.
pub fn pattern(serial: u64, offset: u64, len: u64) -> Vec<u8> {
    let word = |at: u64| (serial << 40 | 1 << 39 | (at / 8) & ((1 << 39) - 1)).to_le_bytes()[(at % 8) as usize];
    (offset..offset + len).map(word).collect()
}

impl fmt::Debug for Content {
    /// Each run of bytes with where it came from.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self.0.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
        let origins: Vec<String> = words
            .map(|word| match (word, word >> 39 & 1) {
                (0, _) => "zero".into(),
                (_, 1) if word >> 40 < 1 << 23 => format!("write {}", word >> 40),
                _ => "mixed".into(),
            })
            .collect();
        let mut at = 0;
        let runs = origins.chunk_by(|a, b| a == b).map(|run| {
            at += run.len() * 8;
            format!("{} to {at}", run[0])
        });
        write!(f, "[{}]", runs.collect::<Vec<_>>().join(", "))
    }
}
