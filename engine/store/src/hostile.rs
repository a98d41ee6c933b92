//! Stored values of any content, for tests: sealed as ours are, since whoever writes to a disk can count, too.

use crate::record::{self, FamilyId, LayerRecord, SnapshotRecord, VolumeRecord};
use drover_base::{LayerId, OperationId, RegionIndex, VolumeId};

/// The first byte chooses the kind, the second the version; the rest is the value's content. What is understood has to
/// encode to what decodes to the same.
pub fn value(bytes: &[u8]) {
    let Some((&[kind, version], payload)) = bytes.split_first_chunk::<2>() else { return };
    let (volume, layer, region) = (VolumeId(1), LayerId(1), RegionIndex(1));
    let sealed = |key: &[u8]| record::seal_raw(version, key, payload);
    match kind % 5 {
        0 => {
            let key = record::volume_key(volume);
            if let Ok(found) = VolumeRecord::decode(&key, &sealed(&key)) {
                let found = VolumeRecord { id: volume, ..found };
                assert_eq!(VolumeRecord::decode(&key, &found.encode()).as_ref(), Ok(&found));
            }
        }
        1 => {
            let key = record::layer_key(layer);
            if let Ok(found) = LayerRecord::decode(&key, &sealed(&key)) {
                let found = LayerRecord { id: layer, ..found };
                assert_eq!(LayerRecord::decode(&key, &found.encode()).as_ref(), Ok(&found));
            }
        }
        2 => {
            let key = record::map_key(layer, region);
            if let Ok(found) = record::decode_region(&key, &sealed(&key))
                && let Some(again) = record::encode_region(layer, region, Some(&found.entries), found.remote.as_ref())
            {
                assert_eq!(record::decode_region(&key, &again).as_ref(), Ok(&found));
            }
        }
        3 => {
            let key = record::activity_key(volume, region);
            // It has no content to encode again.
            let _ = record::decode_activity(&key, &sealed(&key));
        }
        _ => {
            let key = record::note_key(volume);
            if let Ok((of, note)) = record::decode_note(&key, &sealed(&key)) {
                assert_eq!(record::decode_note(&key, &record::encode_note(of, &note)), Ok((of, note)));
            }
        }
    }
}

/// Inputs of [`value`] made of good ones.
pub fn seeds() -> Vec<Vec<u8>> {
    let content = |kind: u8, sealed: &[u8]| [&[kind, sealed[0]][..], &sealed[1..sealed.len() - 4]].concat();
    let (volume, layer, region) = (VolumeId(1), LayerId(1), RegionIndex(1));
    let remote = [3; drover_base::units::EXTENTS_PER_REGION as usize];
    let snapshot = SnapshotRecord { name: "before".into(), layer, created_ms: 9 };
    let record = VolumeRecord {
        id: volume,
        name: "disk".into(),
        head: LayerId(3),
        snapshots: vec![snapshot],
        operations: vec![OperationId(8)],
    };
    let frozen =
        LayerRecord { id: layer, family: FamilyId(1), parent: Some(LayerId(4)), size_bytes: 1 << 30, deleting: true };
    let map = record::encode_region(layer, region, None, Some(&remote)).expect("something is said");
    vec![
        content(0, &record.encode()),
        content(1, &frozen.encode()),
        content(2, &map),
        content(3, &record::encode_activity(volume, region)),
        content(4, &record::encode_note(volume, b"a note")),
    ]
}
