//! Content that does not compress, so that a throttled migration takes its time.

use crate::{BLOCK, Client, Cluster, Random};

const OFFSET: u64 = 4 << 20;
const REQUEST_BLOCKS: usize = 128;

/// What was last written there.
pub struct Bulk {
    blocks: u64,
    pass: u64,
}

impl Bulk {
    pub fn write(client: &mut Client, bytes: u64) -> Self {
        let mut bulk = Self { blocks: bytes / BLOCK as u64, pass: 0 };
        bulk.rewrite(client);
        bulk
    }

    /// Writes all of it anew, every block different from before; in large requests, so that it is done several times
    /// while a throttled round lasts, even where each write waits for a flush.
    pub fn rewrite(&mut self, client: &mut Client) {
        self.pass += 1;
        for first in (0..self.blocks).step_by(REQUEST_BLOCKS) {
            let end = self.blocks.min(first + REQUEST_BLOCKS as u64);
            let data: Vec<u8> = (first..end).flat_map(|index| self.block(index)).collect();
            let error = client.write(offset(first), &data).expect("the connection lives");
            assert_eq!(error, 0, "a write of the bulk");
        }
    }

    pub fn verify(&self, cluster: &Cluster, node: usize, export: &str) {
        let mut client = Client::connect(&cluster.socket(node), export).expect("the endpoint answers");
        for index in 0..self.blocks {
            let read = client.read(offset(index)).expect("the connection lives").expect("it can be read");
            assert!(read == self.block(index), "{export}: block {index} of the bulk differs through node {node}");
        }
    }

    fn block(&self, index: u64) -> [u8; BLOCK] {
        let mut random = Random::new(self.pass << 32 | index);
        let mut block = [0; BLOCK];
        for word in block.chunks_exact_mut(4) {
            word.copy_from_slice(&(random.below(1 << 32) as u32).to_le_bytes());
        }
        block
    }
}

fn offset(index: u64) -> u64 {
    OFFSET + index * BLOCK as u64
}
