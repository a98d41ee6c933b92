//! Content in stretches of zeros and of anything else. Whoever cuts chunks does it within stretches, here and at the other
//! side alike: else no chunk beside zeros would be the same.

use drover_base::units::BLOCK_BYTES;

/// Zeros inside data are told apart from this many blocks on; fewer cost less as compressed data than as a
/// frame that cuts another one in two.
const ZERO_BLOCKS_MIN: usize = 4;

/// How far the data goes on as zeros (at least `ZERO_BLOCKS_MIN` of them, or all of it) or as anything else.
pub fn next_stretch(data: &[u8]) -> (bool, usize) {
    let block = BLOCK_BYTES as usize;
    let mut zeros_from = None;
    for (index, bytes) in data.chunks(block).enumerate() {
        let at = index * block;
        if !is_zero(bytes) {
            match zeros_from.take() {
                Some(0) if index >= ZERO_BLOCKS_MIN => return (true, at),
                Some(from) if (at - from) / block >= ZERO_BLOCKS_MIN => return (false, from),
                _ => {}
            }
        } else if zeros_from.is_none() {
            zeros_from = Some(at);
        }
    }
    match zeros_from {
        Some(0) => (true, data.len()),
        Some(from) if (data.len() - from).div_ceil(block) >= ZERO_BLOCKS_MIN => (false, from),
        _ => (false, data.len()),
    }
}

pub fn is_zero(bytes: &[u8]) -> bool {
    // Most data shows in its first block; within a block without branches, so that it becomes vector instructions.
    bytes.chunks(BLOCK_BYTES as usize).all(|block| {
        let words = block.chunks_exact(16);
        let rest = words.remainder().iter().fold(0, |all, byte| all | byte);
        let sum = words.fold(0u128, |all, word| all | u128::from_ne_bytes(word.try_into().expect("sixteen bytes")));
        sum == 0 && rest == 0
    })
}
