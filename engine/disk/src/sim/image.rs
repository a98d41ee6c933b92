//! What a simulated device holds: blocks by number, sparse.

use drover_base::units::BLOCK_BYTES;
use std::{collections::BTreeMap, rc::Rc};

/// A block's bytes; `None` is unwritten or discarded, and reads as garbage.
pub type BlockContent = Option<Rc<[u8; BLOCK_BYTES as usize]>>;

/// The content of a device at one moment. Cloning shares the blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimImage {
    size_bytes: u64,
    blocks: BTreeMap<u64, Rc<[u8; BLOCK_BYTES as usize]>>,
}

impl SimImage {
    /// A device never written. `size_bytes` is a multiple of the block size.
    pub fn new(size_bytes: u64) -> Self {
        assert!(size_bytes.is_multiple_of(BLOCK_BYTES));
        Self { size_bytes, blocks: BTreeMap::new() }
    }

    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Numbers of the blocks that hold something, ascending.
    pub fn written(&self) -> impl Iterator<Item = u64> {
        self.blocks.keys().copied()
    }

    pub fn get(&self, block: u64) -> BlockContent {
        self.blocks.get(&block).cloned()
    }

    pub fn set(&mut self, block: u64, content: BlockContent) {
        assert!(block < self.size_bytes / BLOCK_BYTES);
        match content {
            Some(bytes) => self.blocks.insert(block, bytes),
            None => self.blocks.remove(&block),
        };
    }

    /// Flips one bit of a written block: bit rot. Whether there was such a block.
    pub fn rot(&mut self, block: u64, bit: u64) -> bool {
        let Some(bytes) = self.blocks.get_mut(&block) else { return false };
        let bit = bit % (BLOCK_BYTES * 8);
        Rc::make_mut(bytes)[(bit / 8) as usize] ^= 1 << (bit % 8);
        true
    }

    /// Copies the range that begins at `block` into `target`, whole blocks.
    pub(crate) fn read(&self, block: u64, target: &mut [u8]) {
        for (block, target) in (block..).zip(target.chunks_exact_mut(BLOCK_BYTES as usize)) {
            match self.blocks.get(&block) {
                Some(bytes) => target.copy_from_slice(&bytes[..]),
                None => fill_with_garbage(block, target),
            }
        }
    }
}

/// What a block reads as that holds nothing: never zeros, and different from block to block, so that content
/// shown by mistake is noticed.
fn fill_with_garbage(block: u64, target: &mut [u8]) {
    let pattern = block.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    for (at, byte) in target.iter_mut().enumerate() {
        *byte = 0xa5 ^ (pattern[at % 8] & 0x5a);
    }
}
