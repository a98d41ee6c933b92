//! Opening what is stored: records and maps are read, checked and turned into volumes in memory.
//!
//! Nothing is repaired here: every batch is whole or absent, so what is stored is consistent, and what
//! is not is damage and refused. A layer found `deleting` is merged on.

use crate::{
    StoreError,
    env::Env,
    layer::Layer,
    meta::Meta,
    record::{self, FamilyId, LayerRecord, RegionRecord, VolumeRecord},
    slots::Tiers,
    tree::{check_family, seen_by},
};
use bytes::Bytes;
use drover_base::{
    IoError, LayerId, RegionIndex, VolumeId,
    units::{BLOCK_BYTES, region_count},
};
use drover_disk::Buffer;
use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

/// What is stored of a volume beside its layers.
pub struct Loaded {
    /// Active regions: after a crash they may differ from what was last flushed.
    pub active: Vec<RegionIndex>,
    pub note: Bytes,
}

/// All volume records, ascending.
pub async fn volume_records(meta: &dyn Meta) -> Result<Vec<VolumeRecord>, StoreError> {
    let pairs = meta.scan(record::VOLUMES).await?;
    pairs.iter().map(|(key, value)| VolumeRecord::decode(key, value)).collect()
}

/// All layer records, by family.
pub async fn layer_records(meta: &dyn Meta) -> Result<BTreeMap<FamilyId, Vec<LayerRecord>>, StoreError> {
    let mut layers: BTreeMap<FamilyId, Vec<LayerRecord>> = BTreeMap::new();
    for (key, value) in meta.scan(record::LAYERS).await? {
        let layer = LayerRecord::decode(&key, &value)?;
        layers.entry(layer.family).or_default().push(layer);
    }
    Ok(layers)
}

/// A family as stored.
pub struct StoredFamily {
    pub id: FamilyId,
    /// Ascending by id; at least one.
    pub volumes: Vec<VolumeRecord>,
    pub layers: Vec<LayerRecord>,
}

impl StoredFamily {
    /// What any volume but this one sees.
    pub fn seen_by_others(&self, id: VolumeId) -> BTreeSet<LayerId> {
        self.volumes.iter().filter(|other| other.id != id).flat_map(|other| seen_by(other, &self.layers)).collect()
    }

    /// What is left nameless where this volume goes: others stand on it, and no snapshot of theirs names it.
    pub fn nameless_without(&self, id: VolumeId) -> Vec<LayerRecord> {
        let others = self.volumes.iter().filter(|other| other.id != id);
        let named: BTreeSet<LayerId> = others.flat_map(VolumeRecord::names).collect();
        let seen = self.seen_by_others(id);
        self.layers.iter().filter(|layer| seen.contains(&layer.id) && !named.contains(&layer.id)).copied().collect()
    }

    pub fn volume(&self, id: VolumeId) -> Option<&VolumeRecord> {
        self.volumes.iter().find(|volume| volume.id == id)
    }

    pub fn seen_by(&self, volume: &VolumeRecord) -> BTreeSet<LayerId> {
        seen_by(volume, &self.layers)
    }
}

/// The families of all volumes, each checked to be one.
pub async fn families(meta: &dyn Meta) -> Result<Vec<StoredFamily>, StoreError> {
    let layers = layer_records(meta).await?;
    let of_layer: BTreeMap<LayerId, FamilyId> =
        layers.values().flatten().map(|layer| (layer.id, layer.family)).collect();
    let mut volumes: BTreeMap<FamilyId, Vec<VolumeRecord>> = BTreeMap::new();
    for volume in volume_records(meta).await? {
        let missing = || StoreError::Corrupt { what: format!("{}: the head {} is missing", volume.id, volume.head) };
        let family = *of_layer.get(&volume.head).ok_or_else(missing)?;
        volumes.entry(family).or_default().push(volume);
    }
    let mut layers = layers;
    let mut families = Vec::new();
    for (id, volumes) in volumes {
        let layers = layers.remove(&id).unwrap_or_default();
        check_family(&volumes, &layers)?;
        families.push(StoredFamily { id, volumes, layers });
    }
    Ok(families)
}

/// One family, if there are volumes of it.
pub async fn family(meta: &dyn Meta, id: FamilyId) -> Result<Option<StoredFamily>, StoreError> {
    Ok(families(meta).await?.into_iter().find(|family| family.id == id))
}

/// The family of a volume, if that is there.
pub async fn family_of(meta: &dyn Meta, id: VolumeId) -> Result<Option<StoredFamily>, StoreError> {
    Ok(families(meta).await?.into_iter().find(|family| family.volume(id).is_some()))
}

/// The map of a layer, region by region, each checked against the layer's size and the devices' slots.
pub async fn layer_map(
    meta: &dyn Meta,
    layer: &LayerRecord,
    slots: &[u64],
) -> Result<Vec<(RegionIndex, RegionRecord)>, StoreError> {
    let regions = region_count(layer.size_bytes);
    let mut map = Vec::new();
    for (key, value) in meta.scan(&record::map_prefix(layer.id)).await? {
        let (_, region) = record::read_map_key(&key)?;
        let corrupt = |what: String| StoreError::Corrupt { what: format!("{}: {what}", record::show(&key)) };
        if region.0 >= regions {
            return Err(corrupt(format!("region {} of {regions}", region.0)));
        }
        let record = record::decode_region(&key, &value)?;
        for at in record.entries.iter().filter_map(|entry| entry.slot_address()) {
            if slots.get(usize::from(at.device)).is_none_or(|count| at.slot >= *count) {
                return Err(corrupt(format!("slot {} of device {} does not exist", at.slot, at.device)));
            }
        }
        map.push((region, record));
    }
    Ok(map)
}

/// Loads layers with their maps. Heads alone may have remote blocks.
pub async fn load_layers(
    meta: &dyn Meta,
    family: &StoredFamily,
    tiers: &Tiers,
) -> Result<BTreeMap<LayerId, Rc<Layer>>, StoreError> {
    let device_slots = tiers.slots();
    let heads: BTreeSet<LayerId> = family.volumes.iter().map(|volume| volume.head).collect();
    let mut layers = BTreeMap::new();
    let mut slots = Vec::new();
    for record in &family.layers {
        let layer = Layer::new(record.id, record.parent, record.size_bytes);
        layer.deleting.set(record.deleting);
        for (region, stored) in layer_map(meta, record, &device_slots).await? {
            slots.extend(stored.entries.iter().filter_map(|entry| entry.slot_address()));
            layer.load(region, stored);
        }
        if !heads.contains(&record.id) && !layer.remote().is_empty() {
            return Err(StoreError::Corrupt { what: format!("remote blocks in {}, which is no head", layer.id) });
        }
        layers.insert(layer.id, Rc::new(layer));
    }
    slots.sort_unstable();
    if let Some(pair) = slots.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(StoreError::Corrupt { what: format!("{} names {:?} twice", family.volumes[0].id, pair[0]) });
    }
    Ok(layers)
}

/// Loads what is stored of a volume, which has `size_bytes`, beside its layers.
pub async fn load_volume(meta: &dyn Meta, id: VolumeId, size_bytes: u64) -> Result<Loaded, StoreError> {
    let regions = region_count(size_bytes);
    let mut active = Vec::new();
    for (key, value) in meta.scan(&record::activity_prefix(id)).await? {
        let (_, region) = record::decode_activity(&key, &value)?;
        if region.0 >= regions {
            return Err(StoreError::Corrupt { what: format!("{}: past the volume's end", record::show(&key)) });
        }
        active.push(region);
    }
    let note = match meta.get(&record::note_key(id)).await? {
        Some(value) => record::decode_note(&record::note_key(id), &value)?.1.into(),
        None => Bytes::new(),
    };
    Ok(Loaded { active, note })
}

/// Writes the data of regions again that were written since the last good flush, and syncs. After a failed
/// sync a device may show such data and yet never make it durable; once written again, the next sync tells
/// the truth about it. Slots of any layer can be concerned: a merge that was not committed had given the head
/// a slot of the layer below, and a write went to it in place.
pub async fn store_again(env: &Env, layers: &[Rc<Layer>], regions: &[RegionIndex]) -> Result<(), StoreError> {
    let mut devices: BTreeSet<u8> = (0..env.devices.len() as u8).filter(|d| env.tiers.is_poisoned(*d)).collect();
    let extents = regions.iter().flat_map(|region| region.extents());
    for (extent, layer) in extents.flat_map(|extent| layers.iter().map(move |layer| (extent, layer))) {
        let entry = layer.entry(extent);
        let Some(at) = entry.slot_address() else { continue };
        let device = &env.devices[usize::from(at.device)];
        for (first, count) in entry.valid().runs() {
            let buffer = Buffer::for_read(count as usize * BLOCK_BYTES as usize);
            let (read, buffer) = device.read(at.block_offset(first), buffer).await;
            read.map_err(|_| IoError::Device)?;
            let (written, _) = device.write(at.block_offset(first), buffer).await;
            written.map_err(|_| IoError::Device)?;
        }
        devices.insert(at.device);
    }
    for device in devices {
        let failures = env.tiers.sync_failures(device);
        if env.devices[usize::from(device)].sync().await.is_err() {
            env.tiers.sync_failed(device);
            return Err(StoreError::Poisoned);
        }
        env.tiers.mend(device, failures);
    }
    Ok(())
}

/// Takes every slot that a stored map names as used.
pub async fn scan_slots(meta: &dyn Meta, tiers: &Tiers) -> Result<(), StoreError> {
    let device_slots = tiers.slots();
    for layer in layer_records(meta).await?.values().flatten() {
        for (_, record) in layer_map(meta, layer, &device_slots).await? {
            for at in record.entries.iter().filter_map(|entry| entry.slot_address()) {
                tiers.mark(at).map_err(|bad| StoreError::Corrupt { what: bad.to_string() })?;
            }
        }
    }
    Ok(())
}
