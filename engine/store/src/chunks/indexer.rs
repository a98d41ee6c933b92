//! Indexing what stands still: each region that nobody has written for a while is read once, cut, and its chunks remembered.
//!
//! Invariants
//! - One region of a shard at a time, with a pause after each: a fraction of what any device reads.
//! - That a region was done is a hint, too: it is kept with the index, and counts as long as the region is not in the
//!   activity log; in it, until it is written again.
//! - What cannot be read is not tried again before it is written, and what is partly at another node is left alone until all
//!   of it is here: else each look would read it again, and tell of it.
//! - No volume is kept by it but the one whose turn it is.

use super::{chunk_digest, cut, next_stretch};
use crate::{Volume, env::Env, merge::yield_once, meta::Batch};
use drover_base::units::{BLOCK_BYTES, EXTENTS_PER_REGION, REGION_BYTES, region_count};
use drover_base::{ByteRange, IoError, RegionIndex, VolumeId};
use drover_disk::Buffer;
use std::{
    cell::RefCell,
    collections::BTreeMap,
    rc::{Rc, Weak},
    time::Duration,
};

/// A region that was not written between two looks is idle.
const LOOK_PERIOD: Duration = Duration::from_secs(5);
/// After each region: 4 MiB in 40 ms and the time of reading them, under 100 MB/s.
const PAUSE: Duration = Duration::from_millis(40);
/// Read at once; a client waits behind that much at most.
const READ_BYTES: u64 = 256 << 10;
/// Looked at between two turns of other tasks: tens of microseconds.
const REGIONS_AT_ONCE: u64 = 64;
/// Before the volume's id: keys of eight bytes are buckets.
const DONE: &[u8] = b"done";

/// What is known of a volume's regions.
#[derive(Default)]
pub(crate) struct Indexed(RefCell<State>);

#[derive(Default)]
struct State {
    is_loaded: bool,
    /// When each was written last, as it was when it was indexed; `None`: before it was in the activity log.
    done: BTreeMap<RegionIndex, Option<u64>>,
    /// The same of those that could not be read.
    unreadable: BTreeMap<RegionIndex, Option<u64>>,
    /// The same at the last look.
    seen: BTreeMap<RegionIndex, u64>,
}

pub(super) fn done_prefix(volume: VolumeId) -> Vec<u8> {
    [DONE, &volume.0.to_be_bytes()].concat()
}

fn done_key(volume: VolumeId, region: RegionIndex) -> Vec<u8> {
    [&done_prefix(volume)[..], &region.0.to_be_bytes()].concat()
}

/// Indexes what the shard's volumes hold, for as long as the shard lives.
pub(crate) async fn index_idle(env: Weak<Env>) {
    loop {
        let Some(world) = env.upgrade().map(|env| env.world.clone()) else { return };
        world.sleep(LOOK_PERIOD).await;
        let Some(ids) = env.upgrade().map(|env| env.volumes.borrow().keys().copied().collect::<Vec<_>>()) else {
            return;
        };
        for id in ids {
            let Some(env) = env.upgrade() else { return };
            let volume = env.volumes.borrow().get(&id).cloned();
            drop(env);
            if let Some(volume) = volume {
                volume.index_idle_regions().await;
            }
        }
    }
}

impl Volume {
    /// Bytes of the regions whose content can be found.
    pub fn indexed_bytes(&self) -> u64 {
        self.indexed.0.borrow().done.len() as u64 * REGION_BYTES
    }

    async fn index_idle_regions(self: Rc<Self>) {
        if self.chunk_index().is_none() || self.is_poisoned() {
            return;
        }
        self.load_indexed().await;
        for region in (0..region_count(self.size_bytes())).map(RegionIndex) {
            if region.0.is_multiple_of(REGIONS_AT_ONCE) {
                yield_once().await;
            }
            if self.is_poisoned() || !self.env.volumes.borrow().contains_key(&self.id) {
                return;
            }
            if !self.is_to_be_indexed(region) {
                continue;
            }
            let last = self.activity.last_write(region);
            let result = self.index_region(region).await;
            if result == Err(IoError::Device) {
                self.indexed.0.borrow_mut().unreadable.insert(region, last);
            }
            if result.is_ok() && self.activity.last_write(region) == last {
                self.indexed.0.borrow_mut().done.insert(region, last);
                let Some((index, _)) = self.chunk_index() else { return };
                let mut batch = Batch::default();
                batch.put(done_key(self.id, region), Vec::new());
                index.commit(batch).await;
            }
            self.env.world.sleep(PAUSE).await;
        }
    }

    async fn load_indexed(&self) {
        let Some((index, _)) = self.chunk_index().filter(|_| !self.indexed.0.borrow().is_loaded) else { return };
        let (prefix, mut done) = (done_prefix(self.id), BTreeMap::new());
        for (key, _) in index.hints.scan(&prefix).await.unwrap_or_default() {
            if let Ok(region) = key[prefix.len()..].try_into() {
                done.insert(RegionIndex(u64::from_be_bytes(region)), None);
            }
        }
        let mut state = self.indexed.0.borrow_mut();
        (state.done, state.is_loaded) = (done, true);
    }

    /// It holds data, all of it here, was not done as it is, and was not written since the last look.
    fn is_to_be_indexed(&self, region: RegionIndex) -> bool {
        let is_partly_remote = || self.next_remote_region(region) == Some(region);
        if !self.region_has_data(region) || is_partly_remote() {
            return false;
        }
        let last = self.activity.last_write(region);
        let mut state = self.indexed.0.borrow_mut();
        // One that left the activity log after it was done has not been written since, or is done too early once.
        let is_as_it_was = |then: &Option<u64>| last.is_none() || *then == last;
        let was_tried = state.done.get(&region).into_iter().chain(state.unreadable.get(&region)).any(is_as_it_was);
        if was_tried {
            return false;
        }
        match last {
            None => true,
            Some(last) => state.seen.insert(region, last) == Some(last),
        }
    }

    /// Reads, cuts and remembers.
    async fn index_region(&self, region: RegionIndex) -> Result<(), IoError> {
        for range in self.data_ranges(region) {
            let mut pieces = Vec::new();
            let mut at = range.offset;
            while at < range.end() {
                let len = READ_BYTES.min(range.end() - at);
                pieces.push(self.read_blocks(ByteRange { offset: at, len }).await?);
                at += len;
            }
            let chunks = self.env.world.offload(move || named(range.offset, &Buffer::join(pieces))).await;
            self.index_chunks(chunks).await;
        }
        Ok(())
    }

    /// Neighbouring blocks of a region that hold data.
    fn data_ranges(&self, region: RegionIndex) -> Vec<ByteRange> {
        let mut ranges: Vec<ByteRange> = Vec::new();
        for extent in (0..EXTENTS_PER_REGION as usize).map(|at| region.extent(at)) {
            for (first, count) in self.data_mask(extent).runs() {
                let (offset, len) = (extent.offset() + u64::from(first) * BLOCK_BYTES, u64::from(count) * BLOCK_BYTES);
                match ranges.last_mut() {
                    Some(last) if last.end() == offset => last.len += len,
                    _ => ranges.push(ByteRange { offset, len }),
                }
            }
        }
        let size = self.size_bytes();
        ranges.retain(|range| range.end() <= size);
        ranges
    }
}

/// The chunks of content that stands at `offset`.
fn named(offset: u64, content: &[u8]) -> Vec<(u64, [u8; 32], u32)> {
    let mut chunks = Vec::new();
    let mut at = 0;
    while at < content.len() {
        let (is_zero, len) = next_stretch(&content[at..]);
        let lens = if is_zero { Vec::new() } else { cut(&content[at..at + len]) };
        let mut from = at;
        for len in lens {
            chunks.push((offset + from as u64, chunk_digest(&content[from..from + len]), len as u32));
            from += len;
        }
        at += len;
    }
    chunks
}
