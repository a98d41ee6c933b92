//! Which content is where on this node's devices, so that it need not be sent here again.
//!
//! ```text
//!  key     bucket:u64be                       of tenant, digest and length
//!  value   | version:u8 | tag:16 | skip:u16 | runs:u8 | runs × ( device:u8 offset:u64 len:u32 ) |   little-endian
//! ```
//! Invariants
//! - An entry is a hint. What it points at is read and hashed before it is used, under the digest that was asked for; an
//!   entry that leads nowhere is dropped then. It may be lost, stale or torn, and holds no place on a device.
//! - Key and tag come from the tenant too: what is of another is not found, nor looked for.
//! - There are as many buckets as the devices have `BUCKET_BYTES`, and a newer entry takes a bucket over: so the index is
//!   bounded by the devices, and nothing has to be collected. A full one costs 64 Mi × 60 bytes, 4 GiB, for a TiB.
//! - Nobody waits for the index for longer than `PATIENCE`: one that is stalled is as good as empty.
//! - Devices are asked directly, whichever shard the volume belongs to that wrote there: no lock of it is taken.

mod indexer;
mod stretch;
#[cfg(test)]
mod tests;

use crate::{
    Volume,
    env::Env,
    meta::{Batch, Meta},
    volume::Run,
};
use drover_base::{
    ByteRange, Instant, IoError, VolumeId, World,
    planted::{Bug, is_planted},
    units::{BLOCK_BYTES, REGION_BYTES},
};
use drover_disk::{Buffer, Device};
use fastcdc::v2020::FastCDC;
pub(crate) use indexer::{Indexed, index_idle};
use std::{cell::Cell, rc::Rc, time::Duration};
pub use stretch::{is_zero, next_stretch};

/// Smallest, usual and largest chunk. Part of what names mean: another choice finds nothing of what was indexed before.
const CHUNK_BYTES_MIN: usize = 16 << 10;
const CHUNK_BYTES_AVERAGE: usize = 64 << 10;
const CHUNK_BYTES_MAX: usize = 256 << 10;

/// Shorter pieces, which only ends of stretches are, cost more to name than to send.
pub const NAMED_BYTES_MIN: usize = 8 << 10;

/// A quarter of the usual chunk: where all of a device is indexed, one entry in nine is taken over by another.
const BUCKET_BYTES: u64 = 16 << 10;

/// Runs of an entry at most; content that lies in more is not worth looking for.
const RUNS_MAX: usize = 16;

/// How long a look-up or a change may take: many times a slow disk's read, and short for the copies that wait in order.
const PATIENCE: Duration = Duration::from_secs(1);
/// After one that took longer nothing is looked up for so long: an assembly looks up hundreds.
const STALL_PAUSE: Duration = Duration::from_secs(10);

const CONTEXT: &str = "drover 2026 chunk index, fastcdc-5 v2020 16/64/256 KiB";
const VERSION: u8 = 1;
const TAG_BYTES: usize = 16;
const HEAD_BYTES: usize = 1 + TAG_BYTES + 2 + 1;
const RUN_BYTES: usize = 1 + 8 + 4;
/// Instead of a device: zeros.
const NO_DEVICE: u8 = u8::MAX;

/// Whose content may be found: that of volumes of one tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkScope([u8; 32]);

impl ChunkScope {
    pub fn of_tenant(tenant: &str) -> Self {
        Self(blake3::derive_key(CONTEXT, tenant.as_bytes()))
    }
}

/// Cuts content where its bytes say so: the lengths of its chunks, in order.
pub fn cut(content: &[u8]) -> Vec<usize> {
    FastCDC::new(content, CHUNK_BYTES_MIN, CHUNK_BYTES_AVERAGE, CHUNK_BYTES_MAX).map(|chunk| chunk.length).collect()
}

/// What names a chunk.
pub fn chunk_digest(content: &[u8]) -> [u8; 32] {
    *blake3::hash(content).as_bytes()
}

/// What only who has the chunk can say to `nonce`.
pub fn chunk_proof(nonce: &[u8; 32], content: &[u8]) -> [u8; 32] {
    *blake3::keyed_hash(nonce, content).as_bytes()
}

/// A chunk's key and tag in the index.
struct Name {
    key: Vec<u8>,
    tag: [u8; TAG_BYTES],
}

/// Where a chunk may be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// Bytes before it in the first block.
    skip: u16,
    runs: Vec<Run>,
}

impl Place {
    fn encode(&self, tag: &[u8; TAG_BYTES]) -> Vec<u8> {
        let mut value = Vec::with_capacity(HEAD_BYTES + self.runs.len() * RUN_BYTES);
        value.push(VERSION);
        value.extend_from_slice(tag);
        value.extend_from_slice(&self.skip.to_le_bytes());
        value.push(self.runs.len() as u8);
        for run in &self.runs {
            let (device, offset) = run.at.unwrap_or((NO_DEVICE, 0));
            value.push(device);
            value.extend_from_slice(&offset.to_le_bytes());
            value.extend_from_slice(&(run.len as u32).to_le_bytes());
        }
        value
    }

    /// `None`: of another chunk, or not understood.
    fn decode(value: &[u8], tag: &[u8; TAG_BYTES], devices: usize) -> Option<Self> {
        let (head, runs) = value.split_first_chunk::<HEAD_BYTES>()?;
        let (runs, []) = runs.as_chunks::<RUN_BYTES>() else { return None };
        let is_this = head[0] == VERSION && head[1..1 + TAG_BYTES] == *tag;
        if !is_this || runs.len() != usize::from(head[HEAD_BYTES - 1]) || runs.len() > RUNS_MAX {
            return None;
        }
        let skip = u16::from_le_bytes([head[1 + TAG_BYTES], head[2 + TAG_BYTES]]);
        let run = |bytes: &[u8; RUN_BYTES]| {
            let offset = u64::from_le_bytes(bytes[1..9].try_into().expect("eight bytes"));
            let len = u64::from(u32::from_le_bytes(bytes[9..].try_into().expect("four bytes")));
            let at = Some((bytes[0], offset)).filter(|(device, _)| *device != NO_DEVICE);
            // A hint of another time: the devices may have become others.
            let is_sound = offset.is_multiple_of(BLOCK_BYTES)
                && len.is_multiple_of(BLOCK_BYTES)
                && len <= REGION_BYTES
                && at.is_none_or(|(device, _)| usize::from(device) < devices);
            is_sound.then_some(Run { at, len })
        };
        Some(Self { skip, runs: runs.iter().map(run).collect::<Option<_>>()? })
    }

    fn bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.len).sum()
    }
}

/// The index, as the shard's volumes share it.
pub(crate) struct ChunkIndex {
    world: World,
    hints: Rc<dyn Meta>,
    buckets: u64,
    /// Nothing is looked up before.
    stalled_until: Cell<Instant>,
}

impl ChunkIndex {
    pub fn new(world: World, hints: Rc<dyn Meta>, devices: &[Rc<dyn Device>]) -> Self {
        let bytes: u64 = devices.iter().map(|device| device.size_bytes()).sum();
        let stalled_until = Cell::new(world.now());
        Self { world, hints, buckets: (bytes / BUCKET_BYTES).max(1), stalled_until }
    }

    fn name(&self, scope: &ChunkScope, digest: &[u8; 32], len: u32) -> Name {
        let scope = if is_planted(Bug::TenantIgnored) { &ChunkScope([0; 32]) } else { scope };
        let mut hasher = blake3::Hasher::new_keyed(&scope.0);
        hasher.update(digest).update(&len.to_le_bytes());
        let hash = *hasher.finalize().as_bytes();
        let (number, rest) = hash.split_first_chunk::<8>().expect("thirty-two bytes");
        let bucket = u64::from_le_bytes(*number) % self.buckets;
        Name { key: bucket.to_be_bytes().to_vec(), tag: rest[..TAG_BYTES].try_into().expect("sixteen bytes") }
    }

    async fn find(&self, env: &Env, name: &Name, len: u32) -> Option<Place> {
        if self.world.now() < self.stalled_until.get() {
            return None;
        }
        let Ok(found) = self.world.timeout(PATIENCE, self.hints.get(&name.key)).await else {
            self.stalled_until.set(self.world.now() + STALL_PAUSE);
            tracing::debug!("the index of chunks is stalled");
            return None;
        };
        let value = found.ok()??;
        let place = Place::decode(&value, &name.tag, env.devices.len())?;
        (place.bytes() >= u64::from(place.skip) + u64::from(len)).then_some(place)
    }

    /// Hints that cannot be stored are only missed.
    async fn commit(&self, batch: Batch) {
        match self.world.timeout(PATIENCE, self.hints.commit(batch)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "chunks were not indexed"),
            Err(_) => tracing::debug!("the index of chunks is stalled"),
        }
    }
}

impl Env {
    /// The volume is gone: that its regions were indexed says nothing any more. What its chunks' entries say is found out
    /// when they are used.
    pub async fn forget_indexed(&self, volume: VolumeId) {
        if let Some(index) = &self.chunks {
            let mut batch = Batch::default();
            batch.delete_prefix(indexer::done_prefix(volume));
            index.commit(batch).await;
        }
    }
}

impl Volume {
    /// Whose content this volume's is; `None`: unknown, so nothing is found for it, nor of it.
    pub fn set_scope(&self, scope: Option<ChunkScope>) {
        self.scope.set(scope);
    }

    fn chunk_index(&self) -> Option<(&ChunkIndex, ChunkScope)> {
        Some((self.env.chunks.as_ref()?, self.scope.get()?))
    }

    /// Whether the index knows a place of such a chunk. It may be mistaken.
    pub async fn may_hold_chunk(&self, digest: &[u8; 32], len: u32) -> bool {
        let Some((index, scope)) = self.chunk_index() else { return false };
        index.find(&self.env, &index.name(&scope, digest, len), len).await.is_some()
    }

    /// The chunk's bytes, if some volume of the tenant on this node has them: those that were read are of that digest.
    pub async fn fetch_chunk(&self, digest: [u8; 32], len: u32) -> Option<Vec<u8>> {
        let (index, scope) = self.chunk_index()?;
        let name = index.name(&scope, &digest, len);
        let place = index.find(&self.env, &name, len).await?;
        // Not as the volume's own reads, whose failures are told under its name: it may be another's content.
        let reads = place.runs.iter().map(|run| self.env.read_run(*run, Buffer::for_read(run.len as usize)));
        let read = futures::future::try_join_all(reads).await;
        let (from, len) = (usize::from(place.skip), len as usize);
        let check = move |pieces: Vec<Buffer>| {
            let content = Buffer::join(pieces)[from..from + len].to_vec();
            (chunk_digest(&content) == digest).then_some(content)
        };
        let found = match read {
            Ok(pieces) => self.env.world.offload(move || check(pieces)).await,
            Err(_) => None,
        };
        if found.is_none() {
            let mut batch = Batch::default();
            batch.delete(name.key);
            index.commit(batch).await;
        }
        found
    }

    /// Remembers where these chunks are: each by its offset in the volume, digest and length. Whoever writes there
    /// meanwhile makes a wrong hint of it.
    pub async fn index_chunks(&self, chunks: Vec<(u64, [u8; 32], u32)>) {
        let Some((index, scope)) = self.chunk_index() else { return };
        let mut batch = Batch::default();
        for (offset, digest, len) in chunks {
            if (len as usize) < NAMED_BYTES_MIN {
                continue;
            }
            if let Some(place) = self.place_of(ByteRange { offset, len: u64::from(len) }) {
                let name = index.name(&scope, &digest, len);
                batch.put(name.key, place.encode(&name.tag));
            }
        }
        if !batch.is_empty() {
            index.commit(batch).await;
        }
    }

    fn place_of(&self, range: ByteRange) -> Option<Place> {
        let aligned = range.block_aligned();
        let runs = if aligned.end() <= self.size_bytes() { self.resolve_range(aligned) } else { Err(IoError::Remote) };
        let runs = runs.ok().filter(|runs| runs.len() <= RUNS_MAX)?;
        Some(Place { skip: (range.offset - aligned.offset) as u16, runs })
    }
}
