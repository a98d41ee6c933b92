use super::*;
use crate::{
    Unfenced, fsck,
    testing::{ID, Node, SIZE, bytes, read, run_with},
};
use drover_base::{VolumeId, World, units::REGION_BYTES};
use drover_disk::sim::below;

const COPY: VolumeId = VolumeId(2);
const TIER_SLOTS: u64 = 4096;
const LARGER: u64 = SIZE + REGION_BYTES;

/// One of these does what a sender and a receiver do, without either.
async fn fill(from: &Volume, to: &Volume, extent: ExtentIndex, masks: LayerMasks, layer: Option<&FrozenLayer>) {
    for (first, count) in masks.data.runs() {
        let range = blocks(extent, first, count);
        let data = match layer {
            Some(layer) => from.read_layer(layer, range).await.unwrap(),
            None => from.read_blocks(range).await.unwrap(),
        };
        let guard = to.enqueue(range).await;
        to.write_locked(&guard, &Unfenced, range.offset, data).await.unwrap();
    }
    for (first, count) in masks.zero.runs() {
        let range = blocks(extent, first, count);
        let guard = to.enqueue(range).await;
        to.zero_locked(&guard, &Unfenced, range.offset, range.len, true).await.unwrap();
    }
}

fn blocks(extent: ExtentIndex, first: u32, count: u32) -> ByteRange {
    let offset = extent.offset() + u64::from(first) * BLOCK_BYTES;
    ByteRange { offset, len: u64::from(count) * BLOCK_BYTES }
}

/// Builds what `from` has as `to`.
async fn travel(from: &Volume, to: &Volume) {
    let layers = from.frozen_layers();
    for layer in &layers {
        to.restack(layer.on.as_deref(), layer.size_bytes).await.unwrap();
        let mut at = RegionIndex(0);
        while let Some(region) = from.layer_region(layer, at).unwrap() {
            for extent in region.extents() {
                fill(from, to, extent, from.layer_masks(layer, extent).unwrap(), Some(layer)).await;
            }
            at = RegionIndex(region.0 + 1);
        }
        to.snapshot_as(&layer.name, layer.created_ms).await.unwrap();
        to.snapshot_as(&layer.name, layer.created_ms).await.unwrap();
    }
    let on = from.head_stands_on(&layers);
    to.restack(on.map(|on| on.name.as_str()), from.size_bytes()).await.unwrap();
    let mut at = RegionIndex(0);
    while let Some(region) = from.head_region(on, at).unwrap() {
        for extent in region.extents() {
            fill(from, to, extent, from.head_masks(on, extent).unwrap(), None).await;
        }
        at = RegionIndex(region.0 + 1);
    }
    to.flush(&Unfenced).await.unwrap();
}

/// A volume with a past: writes, trims, snapshots, rollbacks, deletions, sizes.
async fn make_past(volume: &Volume, world: &World) {
    let random = |bound| below(&*world.random, bound);
    let mut names: Vec<String> = Vec::new();
    for step in 0..60 {
        let blocks_total = volume.size_bytes() / BLOCK_BYTES;
        let block = random(48) + if random(4) == 0 { blocks_total - 48 } else { 0 };
        let len = (1 + random(20)).min(blocks_total - block) * BLOCK_BYTES;
        match random(10) {
            0..4 => {
                let data = bytes(len as usize, 1 + step as u8);
                volume.write(&Unfenced, block * BLOCK_BYTES, data, false).await.unwrap();
            }
            4..6 => volume.trim(&Unfenced, block * BLOCK_BYTES, len, false).await.unwrap(),
            6..8 => {
                let name = format!("s{step}");
                volume.snapshot(&name).await.unwrap();
                names.push(name);
            }
            8 if !names.is_empty() => {
                let name = names.swap_remove(random(names.len() as u64) as usize);
                volume.delete_snapshot(&name).await.unwrap();
            }
            9 if !names.is_empty() && random(2) == 0 => {
                let name = &names[random(names.len() as u64) as usize];
                volume.rollback(name).await.unwrap();
            }
            _ if step == 40 && volume.size_bytes() < LARGER => volume.grow(LARGER).await.unwrap(),
            _ => {}
        }
    }
    volume.flush(&Unfenced).await.unwrap();
}

async fn seen_from(volume: &Volume, layer: &FrozenLayer) -> Vec<u8> {
    let mut seen = Vec::new();
    for offset in (0..layer.size_bytes).step_by(REGION_BYTES as usize) {
        let range = ByteRange { offset, len: REGION_BYTES.min(layer.size_bytes - offset) };
        seen.extend_from_slice(&volume.read_layer(layer, range).await.unwrap());
    }
    seen
}

async fn assert_same(from: &Volume, to: &Volume) {
    let (ours, theirs) = (from.frozen_layers(), to.frozen_layers());
    let told = |layers: &[FrozenLayer]| {
        let told = |l: &FrozenLayer| (l.name.clone(), l.created_ms, l.size_bytes, l.on.clone());
        let mut told: Vec<_> = layers.iter().filter(|layer| layer.is_snapshot()).map(told).collect();
        told.sort();
        told
    };
    let (snapshots, there) = (from.frozen_snapshots(), to.frozen_snapshots());
    assert_eq!(told(&snapshots), told(&there));
    for layer in &snapshots {
        let theirs = there.iter().find(|theirs| theirs.name == layer.name).unwrap();
        assert!(seen_from(from, layer).await == seen_from(to, theirs).await, "{}", layer.name);
    }
    // What a layer says of a block is the same in all three states, but that a zero over nothing need not be said.
    for layer in &ours {
        let Some(theirs) = theirs.iter().find(|theirs| theirs.name == layer.name) else { continue };
        for extent in (0..layer.size_bytes.div_ceil(EXTENT_BYTES)).map(ExtentIndex) {
            let (here, there) = (from.layer_masks(layer, extent).unwrap(), to.layer_masks(theirs, extent).unwrap());
            assert!(here.all().contains(there.all()), "{} {extent:?} {here:?} {there:?}", layer.name);
            assert!(there.all().contains(here.data), "{} {extent:?} {here:?} {there:?}", layer.name);
        }
    }
    let size = from.size_bytes();
    assert_eq!(to.size_bytes(), size);
    assert!(read(to, 0, size).await == read(from, 0, size).await, "the head");
}

#[test]
fn a_volume_is_built_of_its_layers() {
    for seed in 1..=24 {
        run_with(seed, TIER_SLOTS, |node: Node| async move {
            let store = node.open().await;
            let from = store.create_volume(ID, "web", SIZE).await.unwrap();
            make_past(&from, &node.world).await;
            let before = node.used();
            let expected = from.travel_usage().await;
            let to = store.create_volume(COPY, "copy", SIZE).await.unwrap();
            travel(&from, &to).await;
            assert_same(&from, &to).await;
            // What several layers share is there once.
            assert!(to.usage().used_bytes <= expected.used_bytes, "{:?} {expected:?}", to.usage());
            assert!(expected.used_bytes / EXTENT_BYTES <= before);
            let node = node.crashed();
            let store = node.open().await;
            let (from, to) = (store.volume(ID).unwrap(), store.volume(COPY).unwrap());
            assert_same(&from, &to).await;
            to.forget_passing().await.unwrap();
            assert!(to.frozen_snapshots().len() == to.snapshots().len());
            // Each can be gone back to, and deleted.
            for layer in from.frozen_snapshots() {
                to.rollback(&layer.name).await.unwrap();
                assert_eq!(to.size_bytes(), layer.size_bytes);
                assert!(read(&to, 0, layer.size_bytes).await == seen_from(&from, &layer).await, "{}", layer.name);
            }
            for layer in from.frozen_snapshots() {
                to.delete_snapshot(&layer.name).await.unwrap();
            }
            to.flush(&Unfenced).await.unwrap();
            assert_eq!(fsck::check(&node.meta, &[TIER_SLOTS]).await.unwrap().problems, []);
        });
    }
}

/// Deleted, it is the only thing that both snapshots stand on: sent with each, it would be there twice.
#[test]
fn what_two_snapshots_share_without_a_name_travels_once() {
    run_with(1, TIER_SLOTS, |node: Node| async move {
        let store = node.open().await;
        let from = store.create_volume(ID, "web", SIZE).await.unwrap();
        from.write(&Unfenced, 0, bytes(1 << 20, 1), false).await.unwrap();
        from.snapshot("root").await.unwrap();
        from.write(&Unfenced, 0, bytes(4096, 2), false).await.unwrap();
        from.snapshot("left").await.unwrap();
        from.rollback("root").await.unwrap();
        from.delete_snapshot("root").await.unwrap();
        from.write(&Unfenced, 65536, bytes(4096, 3), false).await.unwrap();
        let layers = from.frozen_layers();
        assert_eq!(layers.iter().map(FrozenLayer::is_snapshot).collect::<Vec<_>>(), [false, true]);
        assert_eq!(from.travel_usage().await.used_bytes, (16 + 1 + 1) * EXTENT_BYTES);
        let to = store.create_volume(COPY, "copy", SIZE).await.unwrap();
        travel(&from, &to).await;
        assert_eq!(to.usage().used_bytes, (16 + 1 + 1) * EXTENT_BYTES);
        assert_same(&from, &to).await;
        to.forget_passing().await.unwrap();
        to.delete_snapshot("left").await.unwrap();
        assert!(read(&to, 0, SIZE).await == read(&from, 0, SIZE).await);
    });
}

/// Half a layer is kept for as long as it can be what is being built, and goes when another is.
#[test]
fn what_was_begun_goes_on() {
    run_with(1, TIER_SLOTS, |node: Node| async move {
        let volume = node.volume().await;
        assert_eq!(volume.restack(None, SIZE).await, Ok(false));
        volume.write(&Unfenced, 0, bytes(4096, 1), false).await.unwrap();
        volume.snapshot_as("one", 7).await.unwrap();
        assert_eq!(volume.restack(Some("one"), SIZE).await, Ok(false));
        volume.write(&Unfenced, 0, bytes(4096, 2), true).await.unwrap();
        let node = node.crashed();
        let volume = node.open().await.volume(ID).unwrap();
        assert_eq!(volume.restack(Some("one"), SIZE).await, Ok(false));
        assert_eq!(read(&volume, 0, 4096).await, [2; 4096]);
        assert_eq!(volume.restack(None, SIZE).await, Ok(true));
        assert_eq!(read(&volume, 0, 4096).await, [0; 4096]);
        assert_eq!(volume.restack(Some("one"), 2 * SIZE).await, Ok(true));
        assert_eq!((volume.size_bytes(), read(&volume, 0, 4096).await), (2 * SIZE, vec![1; 4096]));
        let missing = StoreError::NoSnapshot { name: "two".into() };
        assert_eq!(volume.restack(Some("two"), SIZE).await, Err(missing));
        assert_eq!(volume.snapshots()[0].created_ms, 7);
        assert_eq!(volume.snapshot_as("one", 8).await, Err(StoreError::SnapshotExists { name: "one".into() }));
    });
}
