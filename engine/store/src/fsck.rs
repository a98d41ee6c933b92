//! Offline check of a node's metadata: every problem is found and told, nothing is changed.
//!
//! Checked: keys and checksums of all records; that the layers of each family form a forest, with the heads of its volumes
//! as leaves and snapshots on frozen layers; sizes; that entries are of known kinds and inside their devices; that
//! no slot is named twice; that only a head has remote blocks, inside the volume; that active regions and the volumes of notes exist.

use crate::{
    StoreError,
    checkpoint::{self, CheckpointPlace},
    entry::SlotAddress,
    meta::{Batch, Meta, MetaError},
    record::{self, FamilyId, LayerRecord, RegionRecord, VolumeRecord},
    recovery,
    tree::check_family,
};
use drover_base::{
    BlockMask, LayerId, RegionIndex, VolumeId,
    block_set::RegionMasks,
    limits::VOLUME_BYTES_MAX,
    units::{BLOCK_BYTES, EXTENT_BYTES, region_count},
};
use std::collections::{BTreeMap, BTreeSet};

/// Something that should not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The volume, layer or key it was found at.
    pub subject: String,
    pub what: String,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub volumes: u64,
    pub layers: u64,
    /// Map regions of all layers.
    pub regions: u64,
    /// Slots that maps name, by device.
    pub slots_used: Vec<u64>,
    /// Blocks whose data is stored.
    pub valid_blocks: u64,
    /// Blocks whose data is still at another node.
    pub remote_blocks: u64,
    /// In the order they were found.
    pub problems: Vec<Problem>,
}

struct Check<'a> {
    device_slots: &'a [u64],
    report: Report,
    volumes: BTreeMap<VolumeId, VolumeRecord>,
    layers: BTreeMap<LayerId, LayerRecord>,
    slots: BTreeMap<SlotAddress, LayerId>,
}

/// Checks everything in `meta` against devices of so many slots each. An error means that it could not be read.
pub async fn check(meta: &dyn Meta, device_slots: &[u64]) -> Result<Report, MetaError> {
    let report = Report { slots_used: vec![0; device_slots.len()], ..Report::default() };
    let (volumes, layers, slots) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut check = Check { device_slots, report, volumes, layers, slots };
    for (key, value) in meta.scan(record::VOLUMES).await? {
        check.volume(&key, &value);
    }
    for (key, value) in meta.scan(record::LAYERS).await? {
        check.layer(&key, &value);
    }
    check.trees();
    for (key, value) in meta.scan(record::MAPS).await? {
        check.region(&key, &value);
    }
    for (key, value) in meta.scan(record::ACTIVITIES).await? {
        check.activity(&key, &value);
    }
    for (key, value) in meta.scan(record::NOTES).await? {
        check.note(&key, &value);
    }
    Ok(check.report)
}

/// Loads the checkpoint into an empty `meta` and checks what came out of it. Volumes are then as of the
/// checkpoint; what was written in place since is there too, so each block is as of then or later.
pub async fn restore(meta: &dyn Meta, place: &dyn CheckpointPlace, device_slots: &[u64]) -> Result<Report, StoreError> {
    checkpoint::restore(meta, place).await?;
    Ok(check(meta, device_slots).await?)
}

/// Takes a volume out of the metadata of a node that does not run. Nothing to do if it is not there.
pub async fn forget_volume(meta: &dyn Meta, id: VolumeId) -> Result<(), StoreError> {
    let mut batch = Batch::default();
    batch.delete(record::volume_key(id));
    batch.delete_prefix(record::activity_prefix(id));
    batch.delete(record::note_key(id));
    if let Some(family) = recovery::family_of(meta, id).await? {
        let seen = family.seen_by_others(id);
        for layer in family.layers.iter().filter(|layer| !seen.contains(&layer.id)) {
            batch.delete(record::layer_key(layer.id));
            batch.delete_prefix(record::map_prefix(layer.id));
        }
        // What clones stand on stays for them.
        for layer in family.nameless_without(id) {
            batch.put(record::layer_key(layer.id), LayerRecord { deleting: true, ..layer }.encode());
        }
    }
    Ok(meta.commit(batch).await?)
}

impl Check<'_> {
    fn problem(&mut self, subject: impl ToString, what: impl ToString) {
        self.report.problems.push(Problem { subject: subject.to_string(), what: what.to_string() });
    }

    fn volume(&mut self, key: &[u8], value: &[u8]) {
        match VolumeRecord::decode(key, value) {
            Ok(volume) => {
                self.report.volumes += 1;
                self.volumes.insert(volume.id, volume);
            }
            Err(error) => self.problem(record::show(key), error),
        }
    }

    fn layer(&mut self, key: &[u8], value: &[u8]) {
        let layer = match LayerRecord::decode(key, value) {
            Ok(layer) => layer,
            Err(error) => return self.problem(record::show(key), error),
        };
        self.report.layers += 1;
        let size = layer.size_bytes;
        if size == 0 || !size.is_multiple_of(BLOCK_BYTES) || size > VOLUME_BYTES_MAX {
            self.problem(layer.id, format!("its size is {size}"));
        }
        self.layers.insert(layer.id, layer);
    }

    fn trees(&mut self) {
        let mut families: BTreeMap<FamilyId, (Vec<VolumeRecord>, Vec<LayerRecord>)> = BTreeMap::new();
        for layer in self.layers.values() {
            families.entry(layer.family).or_default().1.push(*layer);
        }
        for volume in self.volumes.clone().into_values() {
            match self.layers.get(&volume.head).and_then(|head| families.get_mut(&head.family)) {
                Some((volumes, _)) => volumes.push(volume),
                None => self.problem(volume.id, format!("the head {} is missing", volume.head)),
            }
        }
        for (volumes, layers) in families.into_values() {
            if let Err(error) = check_family(&volumes, &layers) {
                self.problem(volumes.first().map_or_else(|| layers[0].id.to_string(), |v| v.id.to_string()), error);
                continue;
            }
            let named: BTreeSet<LayerId> = volumes.iter().flat_map(VolumeRecord::names).collect();
            for layer in layers {
                if layer.deleting == named.contains(&layer.id) {
                    let what = if layer.deleting { "it is being deleted but named" } else { "nothing names it" };
                    self.problem(layer.id, what);
                }
            }
        }
    }

    fn region(&mut self, key: &[u8], value: &[u8]) {
        let (id, region) = match record::read_map_key(key) {
            Ok(read) => read,
            Err(error) => return self.problem(record::show(key), error),
        };
        let Some(layer) = self.layers.get(&id) else {
            return self.problem(record::show(key), format!("a map of {id}, which is missing"));
        };
        if region.0 >= region_count(layer.size_bytes) {
            self.problem(record::show(key), format!("region {} is past the end of {id}", region.0));
        }
        let RegionRecord { entries, remote } = match record::decode_region(key, value) {
            Ok(record) => record,
            Err(error) => return self.problem(record::show(key), error),
        };
        self.report.regions += 1;
        for (at, entry) in entries.iter().enumerate() {
            self.report.valid_blocks += u64::from(entry.valid().count());
            if let Some(slot) = entry.slot_address() {
                self.slot(slot, id, region.extent(at).0);
            }
        }
        if let Some(masks) = remote {
            self.remote(id, region, &masks);
        }
    }

    fn remote(&mut self, id: LayerId, region: RegionIndex, masks: &RegionMasks) {
        let layer = &self.layers[&id];
        let (size, is_head) = (layer.size_bytes, self.volumes.values().any(|volume| volume.head == id));
        if !is_head {
            self.problem(id, format!("region {} has remote blocks, and it is no head", region.0));
        }
        for (at, mask) in masks.iter().enumerate() {
            let blocks = size.saturating_sub(region.extent(at).offset()).min(EXTENT_BYTES) / BLOCK_BYTES;
            self.report.remote_blocks += u64::from(mask.count_ones());
            if !BlockMask::span(0, blocks as u32).contains(BlockMask(*mask)) {
                self.problem(id, format!("extent {} has remote blocks past its end", region.extent(at).0));
            }
        }
    }

    fn slot(&mut self, at: SlotAddress, layer: LayerId, extent: u64) {
        let device = usize::from(at.device);
        if self.device_slots.get(device).is_none_or(|count| at.slot >= *count) {
            let what = format!("extent {extent} is in slot {} of device {device}, which does not exist", at.slot);
            return self.problem(layer, what);
        }
        self.report.slots_used[device] += 1;
        if let Some(other) = self.slots.insert(at, layer) {
            let what = format!("extent {extent} is in slot {} of device {device}, as one of {other}", at.slot);
            self.problem(layer, what);
        }
    }

    fn activity(&mut self, key: &[u8], value: &[u8]) {
        let (id, region) = match record::decode_activity(key, value) {
            Ok(read) => read,
            Err(error) => return self.problem(record::show(key), error),
        };
        let Some(volume) = self.volumes.get(&id) else {
            return self.problem(record::show(key), format!("{id} is missing"));
        };
        let size = self.layers.get(&volume.head).map_or(0, |head| head.size_bytes);
        if region.0 >= region_count(size) {
            self.problem(record::show(key), format!("region {} is past the end of {id}", region.0));
        }
    }

    fn note(&mut self, key: &[u8], value: &[u8]) {
        match record::decode_note(key, value) {
            Ok((id, _)) if self.volumes.contains_key(&id) => {}
            Ok((id, _)) => self.problem(record::show(key), format!("{id} is missing")),
            Err(error) => self.problem(record::show(key), error),
        }
    }
}

#[cfg(test)]
mod tests;
