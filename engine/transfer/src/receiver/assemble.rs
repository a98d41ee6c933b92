//! Chunks that are named instead of sent: which of them are here, and content made of them.
//!
//! Invariants
//! - Every byte that is applied was hashed here: what was sent under the digest it was sent with, what was found here under the
//!   digest that was asked for.
//! - Of what is here nothing is applied that the sender has not shown to have: it answers the receiver's nonce with a keyed
//!   hash over the bytes. So a digest gives no content, and no more is learned of it than its tenant may know.
//! - Content is found, checked and put together while the assembly waits for its locks, from what nobody else changes;
//!   under them it is one write. It takes its place in stream order like any other.

use super::Receiver;
use crate::compress::unpack;
use drover_base::IoError;
use drover_base::planted::{Bug, is_planted};
use drover_disk::Buffer;
use drover_store::{LockTicket, chunk_digest, chunk_proof};
use drover_wire::peer::{Answer, Assembly, ChunkName, Offered, Part};
use futures::{StreamExt, stream};
use std::rc::Rc;

/// Chunks that are read at once for one assembly.
const READS_AT_ONCE: usize = 16;
/// Chunks that are looked up at once for one offer.
const LOOK_UPS_AT_ONCE: usize = 32;
/// Assemblies whose chunks are being indexed; those of more are not. The index may be slow, and who sends does not wait.
const INDEXING_MAX: usize = 64;

/// What became of putting an assembly together.
enum Made {
    Whole(Buffer),
    /// A chunk is not here, or was not proven.
    Lacking,
    /// What was sent is not what it was said to be.
    Corrupt,
}

impl Receiver {
    /// Only hints are looked at: what is said to be here may still be missing when it counts.
    pub(super) async fn offered(self: Rc<Self>, chunks: Vec<ChunkName>) -> Result<Answer, IoError> {
        self.fence.check()?;
        let volume = &self.volume;
        let look_up = async |chunk: ChunkName| volume.may_hold_chunk(&chunk.digest, chunk.len).await;
        let held = stream::iter(chunks).map(look_up).buffered(LOOK_UPS_AT_ONCE).collect().await;
        Ok(Answer::Offered(Offered { nonce: self.nonce, held }))
    }

    pub(super) async fn assemble(self: Rc<Self>, ticket: LockTicket, assembly: Assembly) -> Result<Answer, IoError> {
        let (offset, parts) = (assembly.offset, assembly.parts.clone());
        let found: Vec<Option<Vec<u8>>> =
            stream::iter(assembly.parts.clone()).map(|part| self.find(part)).buffered(READS_AT_ONCE).collect().await;
        let nonce = self.nonce;
        match self.world.offload(move || put_together(&assembly, found, &nonce)).await {
            Made::Lacking => Ok(Answer::Lacking),
            Made::Corrupt => Err(IoError::Corrupt),
            Made::Whole(whole) => {
                let guard = ticket.await;
                self.volume.write_locked(&guard, &*self.fence, offset, whole).await?;
                let done = self.done(guard, false).await?;
                self.index(offset, &parts);
                Ok(done)
            }
        }
    }

    /// The part's content, if it is to be found here and is.
    async fn find(&self, part: Part) -> Option<Vec<u8>> {
        part.proof?;
        self.volume.fetch_chunk(part.chunk.digest, part.chunk.len).await
    }

    /// What was sent need not be sent again from now on.
    fn index(self: &Rc<Self>, offset: u64, parts: &[Part]) {
        if self.indexing.get() >= INDEXING_MAX {
            return;
        }
        let mut at = offset;
        let mut chunks = Vec::new();
        for Part { chunk, proof } in parts {
            if proof.is_none() {
                chunks.push((at, chunk.digest, chunk.len));
            }
            at += u64::from(chunk.len);
        }
        self.indexing.update(|count| count + 1);
        let me = self.clone();
        let indexed = async move {
            me.volume.index_chunks(chunks).await;
            me.indexing.update(|count| count - 1);
        };
        self.world.spawn(indexed).detach();
    }
}

/// Arithmetic for the worker pool.
fn put_together(assembly: &Assembly, found: Vec<Option<Vec<u8>>>, nonce: &[u8; 32]) -> Made {
    let Ok(sent) = unpack(&assembly.data) else { return Made::Corrupt };
    let mut whole = Buffer::for_read(assembly.range().len as usize);
    let (mut at, mut taken) = (0, 0);
    for (part, found) in assembly.parts.iter().zip(found) {
        let len = part.chunk.len as usize;
        let content = match (&part.proof, &found) {
            (None, _) => {
                let content = &sent[taken..taken + len];
                taken += len;
                if chunk_digest(content) != part.chunk.digest {
                    return Made::Corrupt;
                }
                content
            }
            (Some(proof), Some(content)) => {
                // Compared as BLAKE3 compares its hashes: in a time that tells nothing.
                let is_proven = blake3::Hash::from(chunk_proof(nonce, content)) == blake3::Hash::from(*proof);
                if !is_proven && !is_planted(Bug::ChunkNotProven) {
                    return Made::Lacking;
                }
                content
            }
            (Some(_), None) => return Made::Lacking,
        };
        whole[at..at + len].copy_from_slice(content);
        at += len;
    }
    Made::Whole(whole)
}
