use super::*;
use crate::{
    Store, StoreConfig, Unfenced,
    meta::{MetaError, Pairs, memory::MemoryMeta},
    testing::{ID, Node, SIZE, bytes, run_with},
};
use drover_base::{BlockMask, ExtentIndex, LocalFuture, units::EXTENT_BYTES};
use drover_disk::fault::{FailNth, Operation};
use std::future::pending;

/// Bytes by a generator that no crate changes.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Cut points have drifted between versions of the crate: then nothing that was indexed before is found.
#[test]
fn cut_points_stay_where_they_are() {
    assert_eq!(cut(&noise(1 << 20)), GOLDEN);
}

#[test]
fn cuts_follow_the_content() {
    let content = noise(2 << 20);
    let ends = |from: usize| {
        let mut at = from;
        cut(&content[from..])
            .into_iter()
            .map(|len| {
                at += len;
                at
            })
            .collect::<Vec<_>>()
    };
    let (whole, shifted) = (ends(0), ends(5000));
    let shared = whole.iter().filter(|end| shifted.contains(end)).count();
    assert!(shared * 10 >= whole.len() * 8, "{shared} of {}", whole.len());
    assert!(cut(&content).iter().all(|len| *len <= CHUNK_BYTES_MAX));
}

#[test]
fn places_read_back_and_what_is_not_understood_is_no_place() {
    let runs = vec![Run { at: Some((0, 8192)), len: 65_536 }, Run { at: None, len: 4096 }];
    let place = Place { skip: 700, runs };
    let (tag, value) = ([3; TAG_BYTES], place.encode(&[3; TAG_BYTES]));
    assert_eq!(Place::decode(&value, &tag, 1), Some(place.clone()));
    assert_eq!(Place::decode(&value, &[4; TAG_BYTES], 1), None);
    assert_eq!(Place::decode(&value, &tag, 0), None, "a device that is gone");
    for len in 0..value.len() {
        assert_eq!(Place::decode(&value[..len], &tag, 1), None);
    }
    let odd = Place { runs: vec![Run { at: Some((0, 100)), len: 4096 }], ..place };
    assert_eq!(Place::decode(&odd.encode(&tag), &tag, 1), None);
}

/// Answers nothing while it is stalled.
struct Hints {
    meta: MemoryMeta,
    is_stalled: Cell<bool>,
}

impl Hints {
    async fn unless_stalled<T>(&self, answer: LocalFuture<'_, T>) -> T {
        if self.is_stalled.get() { pending().await } else { answer.await }
    }
}

impl Meta for Hints {
    fn get(&self, key: &[u8]) -> LocalFuture<'_, Result<Option<Vec<u8>>, MetaError>> {
        Box::pin(self.unless_stalled(self.meta.get(key)))
    }
    fn scan(&self, prefix: &[u8]) -> LocalFuture<'_, Result<Pairs, MetaError>> {
        Box::pin(self.unless_stalled(self.meta.scan(prefix)))
    }
    fn commit(&self, batch: Batch) -> LocalFuture<'_, Result<(), MetaError>> {
        Box::pin(self.unless_stalled(self.meta.commit(batch)))
    }
}

struct Indexing {
    world: World,
    store: Rc<Store>,
    volume: Rc<Volume>,
    hints: Rc<Hints>,
    device: Rc<FailNth>,
}

impl Indexing {
    /// With a volume whose first region was just written.
    async fn new(node: &Node) -> Self {
        let world = node.world.clone();
        let hints = Rc::new(Hints { meta: MemoryMeta::new(world.clone()), is_stalled: Cell::new(false) });
        let device = Rc::new(FailNth::new(Rc::new(node.device.clone())));
        Store::scan_slots(&node.meta, &node.tiers).await.unwrap();
        let config = StoreConfig { chunks: Some(hints.clone()), ..StoreConfig::default() };
        let (devices, meta) = (vec![device.clone() as Rc<dyn Device>], Rc::new(node.meta.clone()));
        let store = Store::open(config, world.clone(), devices, node.tiers.clone(), meta).await.unwrap();
        let volume = store.create_volume(ID, "web", SIZE).await.unwrap();
        volume.set_scope(Some(ChunkScope::of_tenant("tenant")));
        volume.write(&Unfenced, 0, Buffer::from_slice(&noise(1 << 20)), false).await.unwrap();
        Self { world, store, volume, hints, device }
    }

    async fn indexed_bytes_later(&self) -> u64 {
        self.world.sleep(Duration::from_secs(30)).await;
        self.volume.indexed_bytes()
    }
}

#[test]
fn nobody_waits_for_a_stalled_index() {
    run_with(1, 64, async |node| {
        let with = Indexing::new(&node).await;
        assert_eq!(with.indexed_bytes_later().await, REGION_BYTES);
        let content = noise(1 << 20);
        let len = cut(&content)[0];
        let digest = chunk_digest(&content[..len]);
        assert!(with.volume.may_hold_chunk(&digest, len as u32).await);
        assert_eq!(with.volume.fetch_chunk(digest, len as u32).await.as_deref(), Some(&content[..len]));
        with.hints.is_stalled.set(true);
        let began = with.world.now();
        for _ in 0..100 {
            assert!(!with.volume.may_hold_chunk(&digest, len as u32).await);
            assert_eq!(with.volume.fetch_chunk(digest, len as u32).await, None);
        }
        assert!(with.world.now().since(began) < PATIENCE * 2);
        let changed = async {
            with.store.delete_volume(ID).await.unwrap();
            with.store.create_volume(ID, "web", SIZE).await.unwrap();
        };
        with.world.timeout(PATIENCE / 2, changed).await.expect("who deletes and creates does not wait for hints");
    });
}

#[test]
fn what_cannot_be_read_is_tried_again_when_it_was_written() {
    run_with(1, 64, async |node| {
        let with = Indexing::new(&node).await;
        with.device.arm(Operation::Read, 0);
        assert_eq!(with.indexed_bytes_later().await, 0);
        with.volume.write(&Unfenced, 0, bytes(4096, 1), false).await.unwrap();
        assert_eq!(with.indexed_bytes_later().await, REGION_BYTES);
    });
}

#[test]
fn what_is_partly_at_another_node_is_left_alone() {
    run_with(1, 64, async |node| {
        let with = Indexing::new(&node).await;
        let first = ByteRange { offset: 0, len: EXTENT_BYTES };
        let guard = with.volume.enqueue(first).await;
        with.volume.mark_remote_locked(&guard, &Unfenced, ExtentIndex(0), BlockMask(1)).await.unwrap();
        drop(guard);
        with.device.arm(Operation::Read, 0);
        assert_eq!(with.indexed_bytes_later().await, 0);
        assert!(with.volume.read(&Unfenced, EXTENT_BYTES, 4096).await.is_err(), "nothing was read before");
        let guard = with.volume.enqueue(first).await;
        with.volume.fill_locked(&guard, &Unfenced, 0, bytes(4096, 7)).await.unwrap();
        drop(guard);
        assert_eq!(with.indexed_bytes_later().await, REGION_BYTES);
    });
}

const GOLDEN: &[usize] =
    &[71_088, 66_480, 100_652, 128_639, 102_442, 92_174, 121_669, 113_315, 77_339, 74_154, 100_624];
