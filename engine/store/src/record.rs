//! What the store keeps in metadata: keys and values, little-endian but for the numbers in keys.
//!
//! ```text
//! key                                value, between a version byte and a CRC-32C
//! v volume:u64be                     head:u64 name snapshots:u16 × (name layer:u64 created_ms:u64)
//! l layer:u64be                      family:u64 parent:u64 size_bytes:u64 flags:u8
//! m layer:u64be region:u64be         64 × entry:u64; of version 2 then 64 × remote:u16, a bit per block
//! a volume:u64be region:u64be        nothing: the region is active
//! o volume:u64be                     the volume's note, as the node gave it
//! c "probe"                          nothing: written to learn whether commits work again
//!
//! value    | version:u8 | payload … | crc32c:u32 |     the checksum covers key, version and payload
//! name     | len:u8 | bytes |
//! flags    1 has a parent, 2 deleting
//! ```
//! A region's remote blocks stand in its map's value, so that a block is remote or has its place, at every crash; a region
//! without any has a value of version 1. A version that does not know them refuses version 2 rather than read zeros.
//!
//! Numbers in keys are big-endian, so that a scan yields regions in order. The checksum covers the key, so
//! that a value under another's key is found. The version comes first, so that it is read before anything
//! that depends on it. Keys that begin with `n` belong to the node.

use crate::{
    StoreError,
    entry::{BadEntry, Entry},
    map::{NOTHING, RegionEntries},
};
use drover_base::{
    BlockMask, LayerId, OperationId, RegionIndex, VolumeId,
    block_set::RegionMasks,
    limits::{NOTE_BYTES_MAX, OPERATIONS_KEPT, SNAPSHOTS_MAX},
    units::EXTENTS_PER_REGION,
};

/// Every volume record's key begins so.
pub const VOLUMES: &[u8] = b"v";
/// Every layer record's key begins so.
pub const LAYERS: &[u8] = b"l";
/// Every map region's key begins so.
pub const MAPS: &[u8] = b"m";
/// Every active region's key begins so.
pub const ACTIVITIES: &[u8] = b"a";
/// Every note's key begins so.
pub const NOTES: &[u8] = b"o";

/// Versions of the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Version {
    /// The first.
    First = 1,
    /// A map's region with the masks of its remote blocks behind the entries.
    WithRemote = 2,
}

const HAS_PARENT: u8 = 1;
const IS_DELETING: u8 = 2;

/// The volumes that share a tree of layers: a number that its first layer brought, or, in stores of before there were
/// clones, the id of the only volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FamilyId(pub u64);

/// A volume as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    pub id: VolumeId,
    pub name: String,
    pub head: LayerId,
    /// Ascending by name.
    pub snapshots: Vec<SnapshotRecord>,
    /// Snapshots and rollbacks that are done, the last at the end: stored in the batch that does them.
    pub operations: Vec<OperationId>,
}

/// A snapshot as stored: a name for a frozen layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRecord {
    pub name: String,
    pub layer: LayerId,
    pub created_ms: u64,
}

/// A layer as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerRecord {
    pub id: LayerId,
    /// The volumes that share a tree of layers.
    pub family: FamilyId,
    pub parent: Option<LayerId>,
    pub size_bytes: u64,
    pub deleting: bool,
}

fn key(kind: &[u8], numbers: &[u64]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + 8 * numbers.len());
    key.extend_from_slice(kind);
    for number in numbers {
        key.extend_from_slice(&number.to_be_bytes());
    }
    key
}

pub fn volume_key(id: VolumeId) -> Vec<u8> {
    key(VOLUMES, &[id.0])
}

pub fn layer_key(id: LayerId) -> Vec<u8> {
    key(LAYERS, &[id.0])
}

/// The keys of a layer's map begin so.
pub fn map_prefix(layer: LayerId) -> Vec<u8> {
    key(MAPS, &[layer.0])
}

pub fn map_key(layer: LayerId, region: RegionIndex) -> Vec<u8> {
    key(MAPS, &[layer.0, region.0])
}

/// The keys of a volume's active regions begin so.
pub fn activity_prefix(volume: VolumeId) -> Vec<u8> {
    key(ACTIVITIES, &[volume.0])
}

pub fn activity_key(volume: VolumeId, region: RegionIndex) -> Vec<u8> {
    key(ACTIVITIES, &[volume.0, region.0])
}

pub fn note_key(volume: VolumeId) -> Vec<u8> {
    key(NOTES, &[volume.0])
}

pub fn probe_key() -> Vec<u8> {
    b"cprobe".to_vec()
}

/// The numbers of a key of `kind` that has exactly `N` of them.
fn numbers<const N: usize>(kind: &[u8], key: &[u8]) -> Result<[u64; N], StoreError> {
    let corrupt = || StoreError::Corrupt { what: format!("key {}", show(key)) };
    let rest = key.strip_prefix(kind).filter(|rest| rest.len() == 8 * N).ok_or_else(corrupt)?;
    let mut numbers = [0; N];
    for (number, bytes) in numbers.iter_mut().zip(rest.chunks_exact(8)) {
        *number = u64::from_be_bytes(bytes.try_into().expect("a chunk of eight"));
    }
    Ok(numbers)
}

pub fn read_volume_key(key: &[u8]) -> Result<VolumeId, StoreError> {
    numbers::<1>(VOLUMES, key).map(|[id]| VolumeId(id))
}

pub fn read_map_key(key: &[u8]) -> Result<(LayerId, RegionIndex), StoreError> {
    numbers::<2>(MAPS, key).map(|[layer, region]| (LayerId(layer), RegionIndex(region)))
}

/// A key as people see it.
pub fn show(key: &[u8]) -> String {
    match key.split_first() {
        Some((kind, rest)) if kind.is_ascii_alphabetic() => {
            let hex: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{}:{hex}", char::from(*kind))
        }
        _ => format!("{key:02x?}"),
    }
}

fn seal(key: &[u8], payload: &[u8]) -> Vec<u8> {
    seal_as(Version::First, key, payload)
}

fn seal_as(version: Version, key: &[u8], payload: &[u8]) -> Vec<u8> {
    seal_raw(version as u8, key, payload)
}

/// Whatever the version and the payload are.
pub(crate) fn seal_raw(version: u8, key: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(payload.len() + 5);
    value.push(version);
    value.extend_from_slice(payload);
    let sum = crc32c::crc32c_append(crc32c::crc32c(key), &value);
    value.extend_from_slice(&sum.to_le_bytes());
    value
}

fn unseal<'a>(key: &[u8], value: &'a [u8]) -> Result<Reader<'a>, StoreError> {
    match unseal_any(key, value)? {
        (Version::First, reader) => Ok(reader),
        (version, _) => Err(StoreError::Newer { what: format!("{} has version {}", show(key), version as u8) }),
    }
}

fn unseal_any<'a>(key: &[u8], value: &'a [u8]) -> Result<(Version, Reader<'a>), StoreError> {
    let corrupt = || StoreError::Corrupt { what: format!("the checksum of {}", show(key)) };
    let (body, sum) = value.split_last_chunk::<4>().ok_or_else(corrupt)?;
    if crc32c::crc32c_append(crc32c::crc32c(key), body) != u32::from_le_bytes(*sum) {
        return Err(corrupt());
    }
    let (version, rest) = body.split_first().ok_or_else(corrupt)?;
    let reader = Reader { what: show(key), rest };
    match *version {
        1 => Ok((Version::First, reader)),
        2 => Ok((Version::WithRemote, reader)),
        version => Err(StoreError::Newer { what: format!("{} has version {version}", show(key)) }),
    }
}

/// Takes a payload apart. Ends that do not meet are errors.
struct Reader<'a> {
    what: String,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn corrupt(&self) -> StoreError {
        StoreError::Corrupt { what: format!("the payload of {}", self.what) }
    }
    fn take<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or_else(|| self.corrupt())?;
        self.rest = rest;
        Ok(*taken)
    }
    fn u8(&mut self) -> Result<u8, StoreError> {
        self.take::<1>().map(|[byte]| byte)
    }
    fn u16(&mut self) -> Result<u16, StoreError> {
        self.take().map(u16::from_le_bytes)
    }
    fn u64(&mut self) -> Result<u64, StoreError> {
        self.take().map(u64::from_le_bytes)
    }
    fn name(&mut self) -> Result<String, StoreError> {
        let len = usize::from(self.u8()?);
        if len > self.rest.len() {
            return Err(self.corrupt());
        }
        let (bytes, rest) = self.rest.split_at(len);
        self.rest = rest;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.corrupt())
    }
    fn end(self) -> Result<(), StoreError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.corrupt()) }
    }
}

fn push_name(payload: &mut Vec<u8>, name: &str) {
    payload.push(u8::try_from(name.len()).expect("a name is at most 63 bytes"));
    payload.extend_from_slice(name.as_bytes());
}

impl VolumeRecord {
    /// The head and the layers that snapshots name.
    pub fn names(&self) -> impl Iterator<Item = LayerId> {
        [self.head].into_iter().chain(self.snapshots.iter().map(|snapshot| snapshot.layer))
    }

    pub fn encode(&self) -> Vec<u8> {
        assert!(self.snapshots.len() <= SNAPSHOTS_MAX && self.operations.len() <= OPERATIONS_KEPT);
        let mut payload = Vec::new();
        payload.extend_from_slice(&self.head.0.to_le_bytes());
        push_name(&mut payload, &self.name);
        payload.extend_from_slice(&(self.snapshots.len() as u16).to_le_bytes());
        for snapshot in &self.snapshots {
            push_name(&mut payload, &snapshot.name);
            payload.extend_from_slice(&snapshot.layer.0.to_le_bytes());
            payload.extend_from_slice(&snapshot.created_ms.to_le_bytes());
        }
        payload.extend_from_slice(&(self.operations.len() as u16).to_le_bytes());
        for operation in &self.operations {
            payload.extend_from_slice(&operation.0.to_le_bytes());
        }
        seal(&volume_key(self.id), &payload)
    }

    pub fn decode(key: &[u8], value: &[u8]) -> Result<Self, StoreError> {
        let id = read_volume_key(key)?;
        let mut reader = unseal(key, value)?;
        let head = LayerId(reader.u64()?);
        let name = reader.name()?;
        let count = usize::from(reader.u16()?);
        if count > SNAPSHOTS_MAX {
            return Err(reader.corrupt());
        }
        let mut snapshots = Vec::with_capacity(count);
        for _ in 0..count {
            let name = reader.name()?;
            snapshots.push(SnapshotRecord { name, layer: LayerId(reader.u64()?), created_ms: reader.u64()? });
        }
        let count = usize::from(reader.u16()?);
        if count > OPERATIONS_KEPT {
            return Err(reader.corrupt());
        }
        let operations = (0..count).map(|_| reader.u64().map(OperationId)).collect::<Result<_, _>>()?;
        reader.end()?;
        Ok(Self { id, name, head, snapshots, operations })
    }
}

impl LayerRecord {
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::with_capacity(25);
        payload.extend_from_slice(&self.family.0.to_le_bytes());
        payload.extend_from_slice(&self.parent.map_or(0, |parent| parent.0).to_le_bytes());
        payload.extend_from_slice(&self.size_bytes.to_le_bytes());
        let has_parent = if self.parent.is_some() { HAS_PARENT } else { 0 };
        payload.push(has_parent | if self.deleting { IS_DELETING } else { 0 });
        seal(&layer_key(self.id), &payload)
    }

    pub fn decode(key: &[u8], value: &[u8]) -> Result<Self, StoreError> {
        let [id] = numbers::<1>(LAYERS, key)?;
        let mut reader = unseal(key, value)?;
        let family = FamilyId(reader.u64()?);
        let parent = LayerId(reader.u64()?);
        let size_bytes = reader.u64()?;
        let flags = reader.u8()?;
        if flags & !(HAS_PARENT | IS_DELETING) != 0 {
            return Err(StoreError::Newer { what: format!("{} has flags {flags:#x}", reader.what) });
        }
        reader.end()?;
        let parent = (flags & HAS_PARENT != 0).then_some(parent);
        Ok(Self { id: LayerId(id), family, parent, size_bytes, deleting: flags & IS_DELETING != 0 })
    }
}

/// A region of a layer as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionRecord {
    pub entries: RegionEntries,
    /// Blocks whose data is at another node; none of them is valid or hidden.
    pub remote: Option<RegionMasks>,
}

/// A region of a layer's map. `None`: nothing is said of any of its blocks, so the key is deleted.
pub fn encode_region(
    layer: LayerId,
    region: RegionIndex,
    entries: Option<&RegionEntries>,
    remote: Option<&RegionMasks>,
) -> Option<Vec<u8>> {
    let entries = entries.filter(|entries| entries.iter().any(|entry| *entry != Entry::NOTHING));
    if entries.is_none() && remote.is_none() {
        return None;
    }
    let entries = entries.unwrap_or(&NOTHING);
    let mut payload: Vec<u8> = entries.iter().flat_map(|entry| entry.raw().to_le_bytes()).collect();
    let Some(remote) = remote else { return Some(seal(&map_key(layer, region), &payload)) };
    for (entry, mask) in entries.iter().zip(remote) {
        assert!(!is_known(*entry, *mask), "a remote block of {layer}, {region:?} has its place here");
    }
    payload.extend(remote.iter().flat_map(|mask| mask.to_le_bytes()));
    Some(seal_as(Version::WithRemote, &map_key(layer, region), &payload))
}

/// Whether the entry says something of a block of `mask`.
fn is_known(entry: Entry, mask: u16) -> bool {
    entry.valid().with(entry.hidden()).intersects(BlockMask(mask))
}

pub fn decode_region(key: &[u8], value: &[u8]) -> Result<RegionRecord, StoreError> {
    let (version, mut reader) = unseal_any(key, value)?;
    let mut entries = NOTHING;
    for entry in &mut entries {
        *entry = Entry::decode(reader.u64()?).map_err(|bad| {
            let what = format!("{}: {bad}", show(key));
            match bad {
                BadEntry::Newer { .. } => StoreError::Newer { what },
                BadEntry::Malformed => StoreError::Corrupt { what },
            }
        })?;
    }
    let mut remote = None;
    if version == Version::WithRemote {
        let masks = remote.insert([0; EXTENTS_PER_REGION as usize]);
        for (mask, entry) in masks.iter_mut().zip(&entries) {
            *mask = reader.u16()?;
            if is_known(*entry, *mask) {
                return Err(StoreError::Corrupt { what: format!("{}: a remote block has its place here", show(key)) });
            }
        }
    }
    reader.end()?;
    Ok(RegionRecord { entries, remote })
}

pub fn encode_activity(volume: VolumeId, region: RegionIndex) -> Vec<u8> {
    seal(&activity_key(volume, region), &[])
}

pub fn decode_activity(key: &[u8], value: &[u8]) -> Result<(VolumeId, RegionIndex), StoreError> {
    let [volume, region] = numbers::<2>(ACTIVITIES, key)?;
    unseal(key, value)?.end()?;
    Ok((VolumeId(volume), RegionIndex(region)))
}

pub fn encode_note(volume: VolumeId, note: &[u8]) -> Vec<u8> {
    seal(&note_key(volume), note)
}

pub fn decode_note(key: &[u8], value: &[u8]) -> Result<(VolumeId, Vec<u8>), StoreError> {
    let [volume] = numbers::<1>(NOTES, key)?;
    let reader = unseal(key, value)?;
    if reader.rest.len() > NOTE_BYTES_MAX {
        return Err(reader.corrupt());
    }
    Ok((VolumeId(volume), reader.rest.to_vec()))
}

pub fn encode_probe() -> Vec<u8> {
    seal(&probe_key(), &[])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::SlotAddress;
    use drover_base::BlockMask;

    fn volume() -> VolumeRecord {
        let snapshot = |name: &str, layer| SnapshotRecord { name: name.into(), layer: LayerId(layer), created_ms: 9 };
        VolumeRecord {
            id: VolumeId(7),
            name: "web-1".into(),
            head: LayerId(3),
            snapshots: vec![snapshot("a", 1), snapshot("b", 2)],
            operations: vec![OperationId(8), OperationId(5)],
        }
    }

    #[test]
    fn records_read_back() {
        let record = volume();
        assert_eq!(VolumeRecord::decode(&volume_key(record.id), &record.encode()), Ok(record));
        for parent in [None, Some(LayerId(4))] {
            let layer =
                LayerRecord { id: LayerId(5), family: FamilyId(7), parent, size_bytes: 1 << 30, deleting: true };
            assert_eq!(LayerRecord::decode(&layer_key(layer.id), &layer.encode()), Ok(layer));
        }
        let (id, region) = (VolumeId(7), RegionIndex(1 << 40));
        assert_eq!(decode_activity(&activity_key(id, region), &encode_activity(id, region)), Ok((id, region)));
        let note = vec![3; NOTE_BYTES_MAX];
        assert_eq!(decode_note(&note_key(id), &encode_note(id, &note)), Ok((id, note)));
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let record = volume();
        let (key, value) = (volume_key(record.id), record.encode());
        for bit in 0..value.len() * 8 {
            let mut bad = value.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(VolumeRecord::decode(&key, &bad), Err(StoreError::Corrupt { .. })), "bit {bit}");
        }
        assert!(VolumeRecord::decode(&volume_key(VolumeId(8)), &value).is_err(), "under another volume's key");
        for len in 0..value.len() {
            assert!(VolumeRecord::decode(&key, &value[..len]).is_err(), "{len} bytes of it");
        }
    }

    #[test]
    fn a_region_of_nothing_has_no_value() {
        let mut entries = NOTHING;
        let (layer, region) = (LayerId(1), RegionIndex(2));
        assert_eq!(encode_region(layer, region, Some(&entries), None), None);
        assert_eq!(encode_region(layer, region, None, None), None);
        entries[63] = Entry::slot(SlotAddress { device: 1, slot: 77 }, BlockMask(3));
        let value = encode_region(layer, region, Some(&entries), None).unwrap();
        assert_eq!(decode_region(&map_key(layer, region), &value), Ok(RegionRecord { entries, remote: None }));
    }

    #[test]
    fn remote_blocks_are_stored_with_their_region_and_refused_by_the_version_before() {
        let (layer, region) = (LayerId(1), RegionIndex(2));
        let key = map_key(layer, region);
        let mut masks = [0; 64];
        masks[63] = 0xfffc;
        let value = encode_region(layer, region, None, Some(&masks)).unwrap();
        let record = RegionRecord { entries: NOTHING, remote: Some(masks) };
        assert_eq!(decode_region(&key, &value), Ok(record));
        assert!(matches!(unseal(&key, &value), Err(StoreError::Newer { .. })), "as the first version reads it");
        let mut entries = NOTHING;
        entries[63] = Entry::slot(SlotAddress { device: 1, slot: 77 }, BlockMask(3));
        let value = encode_region(layer, region, Some(&entries), Some(&masks)).unwrap();
        assert_eq!(decode_region(&key, &value), Ok(RegionRecord { entries, remote: Some(masks) }));
        for (entry, is_sound) in [(3, true), (4, false)] {
            let mut payload = vec![0; 640];
            payload[511] = 0x40;
            payload[504] = entry;
            payload[638..].copy_from_slice(&masks[63].to_le_bytes());
            let value = seal_as(Version::WithRemote, &key, &payload);
            assert_eq!(decode_region(&key, &value).is_ok(), is_sound, "valid blocks {entry:#x}");
        }
    }

    #[test]
    fn what_a_newer_version_wrote_is_refused_as_such() {
        let key = map_key(LayerId(1), RegionIndex(2));
        let mut payload = vec![0; 512];
        payload[7] = 0b1000_0000;
        assert!(matches!(decode_region(&key, &seal(&key, &payload)), Err(StoreError::Newer { .. })));
        let mut value = volume().encode();
        value.truncate(value.len() - 4);
        value[0] = 2;
        let key = volume_key(VolumeId(7));
        let sum = crc32c::crc32c_append(crc32c::crc32c(&key), &value);
        value.extend_from_slice(&sum.to_le_bytes());
        assert!(matches!(VolumeRecord::decode(&key, &value), Err(StoreError::Newer { .. })));
    }
}
