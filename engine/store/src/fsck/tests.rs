use super::*;
use crate::{
    entry::Entry,
    meta::{Batch, memory::MemoryMeta},
    record::SnapshotRecord,
};
use drover_base::{BlockMask, RegionIndex};
use drover_disk::sim::SoloWorld;

const ID: VolumeId = VolumeId(1);

fn layer(id: u64, parent: Option<u64>) -> LayerRecord {
    LayerRecord {
        id: LayerId(id),
        family: FamilyId(1),
        parent: parent.map(LayerId),
        size_bytes: 8 << 20,
        deleting: false,
    }
}

/// A sound volume: a snapshot's layer with two slots, and the head on it.
fn sound() -> Batch {
    let mut batch = Batch::default();
    let snapshots = vec![SnapshotRecord { name: "s".into(), layer: LayerId(1), created_ms: 0 }];
    let volume = VolumeRecord { id: ID, name: "web".into(), head: LayerId(2), snapshots, operations: Vec::new() };
    batch.put(record::volume_key(ID), volume.encode());
    put_layer(&mut batch, layer(1, None));
    put_layer(&mut batch, layer(2, Some(1)));
    put_slots(&mut batch, 1, 1, &[(0, 3), (1, 0)]);
    batch.put(record::activity_key(ID, RegionIndex(1)), record::encode_activity(ID, RegionIndex(1)));
    batch
}

fn put_layer(batch: &mut Batch, layer: LayerRecord) {
    batch.put(record::layer_key(layer.id), layer.encode());
}

fn put_slots(batch: &mut Batch, layer: u64, region: u64, slots: &[(u8, u64)]) {
    let mut entries = [Entry::NOTHING; 64];
    for (entry, (device, slot)) in entries.iter_mut().zip(slots) {
        *entry = Entry::slot(SlotAddress { device: *device, slot: *slot }, BlockMask(0xff));
    }
    let (layer, region) = (LayerId(layer), RegionIndex(region));
    batch.put(record::map_key(layer, region), record::encode_region(layer, region, Some(&entries), None).unwrap());
}

/// All blocks of one extent are remote, and nothing else is said of the region.
fn put_remote(batch: &mut Batch, layer: u64, region: u64, extent: usize) -> Vec<u8> {
    let mut masks = [0; 64];
    masks[extent] = u16::MAX;
    let (layer, region) = (LayerId(layer), RegionIndex(region));
    let value = record::encode_region(layer, region, None, Some(&masks)).unwrap();
    batch.put(record::map_key(layer, region), value.clone());
    value
}

fn report(change: impl FnOnce(&mut Batch)) -> Report {
    let mut batch = sound();
    change(&mut batch);
    let mut solo = SoloWorld::new(1);
    let meta = MemoryMeta::new(solo.world());
    solo.run(async move {
        meta.commit(batch).await.unwrap();
        check(&meta, &[4, 1]).await.unwrap()
    })
}

#[track_caller]
fn finds(expected: &str, change: impl FnOnce(&mut Batch)) {
    let problems = report(change).problems;
    let is_told = problems.iter().any(|problem| problem.what.contains(expected));
    assert!(is_told, "{expected:?} is not among {problems:?}");
}

#[test]
fn sound_metadata_has_no_problems() {
    let report = report(|_| ());
    assert_eq!(report.problems, []);
    assert_eq!((report.volumes, report.layers, report.regions, report.valid_blocks), (1, 2, 1, 16));
    assert_eq!(report.slots_used, [1, 1]);
}

#[test]
fn remote_blocks_of_a_head_are_sound_and_counted() {
    let report = report(|batch| {
        put_remote(batch, 2, 1, 63);
    });
    assert_eq!(report.problems, []);
    assert_eq!((report.regions, report.valid_blocks, report.remote_blocks), (2, 16, 16));
}

/// The note was left behind: a copy of the volume that came later would have begun with it.
#[test]
fn nothing_is_left_of_a_forgotten_volume() {
    let mut solo = SoloWorld::new(1);
    let meta = MemoryMeta::new(solo.world());
    solo.run(async move {
        let mut batch = sound();
        batch.put(record::note_key(ID), record::encode_note(ID, b"a note"));
        meta.commit(batch).await.unwrap();
        forget_volume(&meta, ID).await.unwrap();
        assert_eq!(meta.scan(&[]).await.unwrap(), []);
    });
}

/// A clone stands on the snapshot: what it needs of a forgotten volume stays, and nothing else.
#[test]
fn what_a_clone_stands_on_stays() {
    let mut solo = SoloWorld::new(1);
    let meta = MemoryMeta::new(solo.world());
    solo.run(async move {
        let mut batch = sound();
        put_clone(&mut batch, 1 << 32 | 1, 3);
        meta.commit(batch).await.unwrap();
        assert_eq!(check(&meta, &[4, 1]).await.unwrap().problems, []);
        forget_volume(&meta, ID).await.unwrap();
        let report = check(&meta, &[4, 1]).await.unwrap();
        assert_eq!((report.problems.len(), report.volumes, report.layers), (0, 1, 2));
        assert_eq!(report.slots_used, [1, 1]);
        forget_volume(&meta, VolumeId(1 << 32 | 1)).await.unwrap();
        assert_eq!(meta.scan(&[]).await.unwrap(), []);
    });
}

/// A clone of the snapshot with this head.
fn put_clone(batch: &mut Batch, id: u64, head: u64) {
    let (id, head) = (VolumeId(id), LayerId(head));
    let volume = VolumeRecord { id, name: "copy".into(), head, snapshots: Vec::new(), operations: Vec::new() };
    batch.put(record::volume_key(id), volume.encode());
    put_layer(batch, layer(head.0, Some(1)));
}

#[test]
fn every_kind_of_problem_is_told() {
    finds("is the head of another", |batch| put_clone(batch, 1 << 32 | 1, 2));
    finds("has another home", |batch| put_clone(batch, 2, 3));
    finds("as one of", |batch| put_slots(batch, 2, 0, &[(0, 3)]));
    finds("does not exist", |batch| put_slots(batch, 2, 0, &[(0, 4)]));
    finds("does not exist", |batch| put_slots(batch, 2, 0, &[(2, 0)]));
    finds("past the end", |batch| put_slots(batch, 2, 2, &[(0, 0)]));
    finds("which is missing", |batch| put_slots(batch, 9, 0, &[(0, 0)]));
    finds("nothing names it", |batch| put_layer(batch, layer(5, Some(1))));
    finds("being deleted but named", |batch| put_layer(batch, LayerRecord { deleting: true, ..layer(1, None) }));
    finds("is missing", |batch| put_layer(batch, layer(2, Some(7))));
    finds("stands on itself", |batch| put_layer(batch, layer(1, Some(1))));
    finds("stands on the head", |batch| put_layer(batch, LayerRecord { deleting: true, ..layer(5, Some(2)) }));
    finds("its size is 5", |batch| put_layer(batch, LayerRecord { size_bytes: 5, ..layer(1, None) }));
    finds("nothing names it", |batch| put_layer(batch, LayerRecord { family: FamilyId(9), ..layer(5, None) }));
    finds("past the end", |batch| {
        batch.put(record::activity_key(ID, RegionIndex(2)), record::encode_activity(ID, RegionIndex(2)));
    });
    finds("checksum", |batch| batch.put(record::volume_key(ID), vec![1; 40]));
    finds("checksum", |batch| batch.put(record::map_key(LayerId(2), RegionIndex(0)), vec![1; 517]));
    finds("is no head", |batch| drop(put_remote(batch, 1, 0, 0)));
    finds("extent 127 has remote blocks past its end", |batch| {
        put_layer(batch, LayerRecord { size_bytes: (8 << 20) - 4096, ..layer(2, Some(1)) });
        put_remote(batch, 2, 1, 63);
    });
    finds("has its place", |batch| {
        let key = record::map_key(LayerId(2), RegionIndex(0));
        let mut value = put_remote(batch, 2, 0, 0);
        value.truncate(value.len() - 4);
        value[8] = 0x40;
        value[1] = 1;
        let sum = crc32c::crc32c_append(crc32c::crc32c(&key), &value);
        value.extend_from_slice(&sum.to_le_bytes());
        batch.put(key, value);
    });
    finds("the head", |batch| batch.delete(record::layer_key(LayerId(2))));
}
