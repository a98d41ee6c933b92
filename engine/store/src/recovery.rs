//! Opening what is stored: records and maps are read, checked and turned into volumes in memory.
//!
//! Nothing is repaired here: every batch is whole or absent, so what is stored is consistent, and what
//! is not is damage and refused. A layer found `deleting` is merged on.

use crate::{
    StoreError,
    entry::SlotAddress,
    env::Env,
    meta::Meta,
    record::{self, LayerRecord, RegionRecord, VolumeRecord},
    slots::Tiers,
    stack::Stack,
};
use bytes::Bytes;
use drover_base::{
    IoError, RegionIndex, VolumeId,
    units::{BLOCK_BYTES, region_count},
};
use drover_disk::Buffer;
use std::collections::{BTreeMap, BTreeSet};

/// A volume as read from metadata.
pub struct Loaded {
    pub stack: Stack,
    /// Every slot that its maps name.
    pub slots: Vec<SlotAddress>,
    /// Active regions: after a crash they may differ from what was last flushed.
    pub active: Vec<RegionIndex>,
    pub note: Bytes,
}

/// All volume records, ascending.
pub async fn volume_records(meta: &dyn Meta) -> Result<Vec<VolumeRecord>, StoreError> {
    let pairs = meta.scan(record::VOLUMES).await?;
    pairs.iter().map(|(key, value)| VolumeRecord::decode(key, value)).collect()
}

/// All layer records, by the volume they belong to.
pub async fn layer_records(meta: &dyn Meta) -> Result<BTreeMap<VolumeId, Vec<LayerRecord>>, StoreError> {
    let mut layers: BTreeMap<VolumeId, Vec<LayerRecord>> = BTreeMap::new();
    for (key, value) in meta.scan(record::LAYERS).await? {
        let layer = LayerRecord::decode(&key, &value)?;
        layers.entry(layer.volume).or_default().push(layer);
    }
    Ok(layers)
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

/// Loads one volume with its maps.
pub async fn load_volume(
    meta: &dyn Meta,
    volume: VolumeRecord,
    layers: &[LayerRecord],
    tiers: &Tiers,
) -> Result<Loaded, StoreError> {
    let id = volume.id;
    let stack = Stack::load(volume, layers)?;
    let device_slots = tiers.slots();
    let mut slots = Vec::new();
    for record in layers {
        let layer = stack.layer(record.id).expect("the stack has each of its layers").clone();
        for (region, stored) in layer_map(meta, record, &device_slots).await? {
            slots.extend(stored.entries.iter().filter_map(|entry| entry.slot_address()));
            layer.load(region, stored);
        }
        if layer.id != stack.head().id && !layer.remote().is_empty() {
            return Err(StoreError::Corrupt { what: format!("{}: remote blocks in {}, under the head", id, layer.id) });
        }
    }
    slots.sort_unstable();
    if let Some(pair) = slots.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(StoreError::Corrupt { what: format!("{id} names {:?} twice", pair[0]) });
    }
    let regions = region_count(stack.head().size_bytes.get());
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
    Ok(Loaded { stack, slots, active, note })
}

/// Writes the data of regions again that were written since the last good flush, and syncs. After a failed
/// sync a device may show such data and yet never make it durable; once written again, the next sync tells
/// the truth about it. Slots of any layer can be concerned: a merge that was not committed had given the head
/// a slot of the layer below, and a write went to it in place.
pub async fn store_again(env: &Env, stack: &Stack, regions: &[RegionIndex]) -> Result<(), StoreError> {
    let mut devices: BTreeSet<u8> = (0..env.devices.len() as u8).filter(|d| env.tiers.is_poisoned(*d)).collect();
    let extents = regions.iter().flat_map(|region| region.extents());
    for (extent, layer) in extents.flat_map(|extent| stack.layers().map(move |layer| (extent, layer))) {
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
