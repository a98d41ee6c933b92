//! What belongs to a volume beside its head, as it travels to another node: its frozen layers, each as what it adds to the
//! one it stands on.
//!
//! ```text
//!            ┌── b (snapshot)            goes as   x, then a on x, then b on x, then the head on a
//!    ·── x ──┤                           `·`: its blocks go with x
//!            └── a (snapshot) ── · ── head
//! ```
//! A layer travels by itself if a snapshot that somebody made names it, or if several of those that travel stand on it:
//! then it has a name of its own on the way. Whatever else lies between two of them — deleted snapshots that are
//! merging, the base of a migration, layers of a clone's origin — goes with the one above.
//!
//! Invariants
//! - Between two layers that travel only merges change anything, and a merge changes nothing of what is seen from above: so
//!   what a layer adds stays the same for as long as no snapshot is made, deleted or gone back to.
//! - Each block is looked up in one step, from the layer down to the one it stands on, that one left out.

use super::read::{Run, resolve_blocks};
use crate::{
    RESERVED_NAMES, StoreError, Volume, VolumeUsage,
    layer::{Layer, Source, resolve},
    merge::yield_once,
    volume::ExtentContent,
};
use drover_base::{
    BlockMask, ByteRange, ExtentIndex, IoError, LayerId, RegionIndex,
    limits::SNAPSHOTS_MAX,
    units::{BLOCK_BYTES, EXTENT_BYTES},
};
use drover_disk::Buffer;
use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

/// Names of layers that travel without being anybody's snapshot begin so.
const PASSING: &str = "drover-layer-";

/// Regions that are looked at before other tasks have their turn.
const REGIONS_AT_ONCE: usize = 256;

/// A layer as it travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrozenLayer {
    pub name: String,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    pub size_bytes: u64,
    /// The layer that it stands on.
    pub on: Option<String>,
    id: LayerId,
    below: Option<LayerId>,
}

/// What a layer says of an extent; of the other blocks it says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerMasks {
    pub data: BlockMask,
    /// Reads as zero, whatever stands below.
    pub zero: BlockMask,
}

impl FrozenLayer {
    /// Whether somebody made it, rather than that others stand on it.
    pub fn is_snapshot(&self) -> bool {
        !self.name.starts_with(RESERVED_NAMES)
    }
}

impl LayerMasks {
    pub fn all(self) -> BlockMask {
        self.data.with(self.zero)
    }
}

/// What travels by itself: name, creation time, layer. Parents first.
struct Named(Vec<(String, u64, LayerId)>);

impl Volume {
    /// The frozen layers that travel, those that others stand on first.
    pub fn frozen_layers(&self) -> Vec<FrozenLayer> {
        let mut named = self.snapshots_by_name();
        self.add_shared(&mut named);
        self.sorted(named)
    }

    /// The snapshots that somebody made, each as what it adds to the one it stands on, that one first.
    pub fn frozen_snapshots(&self) -> Vec<FrozenLayer> {
        self.sorted(self.snapshots_by_name())
    }

    fn snapshots_by_name(&self) -> Named {
        let stack = self.stack.borrow();
        let made = stack.snapshots.iter().filter(|(name, _)| !name.starts_with(RESERVED_NAMES));
        Named(made.map(|(name, made)| (name.clone(), made.created_ms, made.layer)).collect())
    }

    /// Adds the layers on which several of those stand that travel, or one and the head.
    fn add_shared(&self, named: &mut Named) {
        let tree = self.family.tree.borrow();
        let names: BTreeSet<LayerId> = named.0.iter().map(|(.., layer)| *layer).collect();
        let seen = tree.seen(names.iter().copied().chain([self.stack.borrow().head().id]));
        let mut children: BTreeMap<LayerId, usize> = BTreeMap::new();
        for parent in seen.iter().filter_map(|id| tree.layer(*id)?.parent.get()) {
            *children.entry(parent).or_default() += 1;
        }
        let shared = children.into_iter().filter(|(id, count)| *count > 1 && !names.contains(id));
        let shared: Vec<_> = shared.map(|(id, _)| (format!("{PASSING}{}", id.0), 0, id)).collect();
        // Too many of them: what they share is sent with each.
        if named.0.len() + shared.len() <= SNAPSHOTS_MAX {
            named.0.extend(shared);
        }
    }

    fn sorted(&self, Named(mut named): Named) -> Vec<FrozenLayer> {
        let tree = self.family.tree.borrow();
        named.sort_by_cached_key(|(name, _, layer)| (tree.chain(*layer).len(), *layer, name.clone()));
        let mut last_of: BTreeMap<LayerId, String> = BTreeMap::new();
        let mut layers = Vec::with_capacity(named.len());
        for (name, created_ms, id) in named {
            // A second name of a layer stands on the first, and adds nothing.
            let below = tree.chain(id).iter().map(|layer| layer.id).find(|id| last_of.contains_key(id));
            let on = below.map(|below| last_of[&below].clone());
            let size_bytes = tree.layer(id).map_or(0, |layer| layer.size_bytes.get());
            last_of.insert(id, name.clone());
            layers.push(FrozenLayer { name, created_ms, size_bytes, on, id, below });
        }
        layers
    }

    /// Which of the layers the head stands on: the nearest.
    pub fn head_stands_on<'a>(&self, layers: &'a [FrozenLayer]) -> Option<&'a FrozenLayer> {
        let stack = self.stack.borrow();
        let mut below = stack.below();
        below.find_map(|layer| layers.iter().rev().find(|frozen| frozen.id == layer.id))
    }

    /// The layers from one down to another, without that one. An error where they are not here (any more).
    fn between(&self, from: LayerId, below: Option<LayerId>) -> Result<Vec<Rc<Layer>>, IoError> {
        let mut chain = self.family.tree.borrow().chain(from);
        let end = match below {
            None => chain.len(),
            Some(below) => chain.iter().position(|layer| layer.id == below).ok_or(IoError::Corrupt)?,
        };
        if chain.is_empty() {
            return Err(IoError::Corrupt);
        }
        chain.truncate(end);
        Ok(chain)
    }

    /// What the layer adds to the one it stands on.
    pub fn layer_masks(&self, layer: &FrozenLayer, extent: ExtentIndex) -> Result<LayerMasks, IoError> {
        Ok(masks(&self.between(layer.id, layer.below)?, extent))
    }

    /// What the head adds to the layer it stands on; remote blocks count as data.
    pub fn head_masks(&self, on: Option<&FrozenLayer>, extent: ExtentIndex) -> Result<LayerMasks, IoError> {
        let head = self.stack.borrow().head().id;
        Ok(masks(&self.between(head, on.map(|on| on.id))?, extent))
    }

    /// The next region, from `from` on, of which the layer says anything.
    pub fn layer_region(&self, layer: &FrozenLayer, from: RegionIndex) -> Result<Option<RegionIndex>, IoError> {
        Ok(next_region(&self.between(layer.id, layer.below)?, from))
    }

    /// The same of the head, over the layer it stands on.
    pub fn head_region(&self, on: Option<&FrozenLayer>, from: RegionIndex) -> Result<Option<RegionIndex>, IoError> {
        let head = self.stack.borrow().head().id;
        Ok(next_region(&self.between(head, on.map(|on| on.id))?, from))
    }

    /// What exists of the extent in the layer.
    pub fn layer_range(&self, layer: &FrozenLayer, extent: ExtentIndex) -> Result<ByteRange, IoError> {
        let (offset, size) = (extent.0.saturating_mul(EXTENT_BYTES), layer.size_bytes);
        if offset >= size {
            return Err(IoError::OutOfRange { offset, len: EXTENT_BYTES, size });
        }
        Ok(ByteRange { offset, len: EXTENT_BYTES.min(size - offset) })
    }

    /// Reads whole blocks as they are seen from the layer.
    pub async fn read_layer(&self, layer: &FrozenLayer, range: ByteRange) -> Result<Buffer, IoError> {
        self.health.check()?;
        self.read_resolved(range, |volume| volume.resolve_from(layer.id, range)).await
    }

    fn resolve_from(&self, id: LayerId, range: ByteRange) -> Result<Vec<Run>, IoError> {
        let chain = self.between(id, None)?;
        let mut runs = Vec::new();
        for (extent, part) in range.by_extent() {
            resolve_blocks(chain.iter().map(|layer| &**layer), extent, part.block_mask(), &mut runs)?;
        }
        Ok(runs)
    }

    /// What is seen of the extent from the layer. Frozen, it needs no lock.
    pub async fn layer_content(&self, layer: &FrozenLayer, extent: ExtentIndex) -> Result<ExtentContent, IoError> {
        let range = self.layer_range(layer, extent)?;
        let held = masks(&self.between(layer.id, None)?, extent).data;
        let data = if held.is_empty() { None } else { Some(self.read_layer(layer, range).await?) };
        Ok(ExtentContent::new(held, (range.len / BLOCK_BYTES) as usize, data))
    }

    /// What a copy of the volume takes, its snapshots with it: what layers share counts once.
    pub async fn travel_usage(&self) -> VolumeUsage {
        let layers = self.frozen_layers();
        let mut usage = match self.head_stands_on(&layers) {
            None => self.head_usage().await,
            Some(on) => {
                let head = self.stack.borrow().head().id;
                self.usage_between(head, Some(on.id)).await
            }
        };
        for layer in &layers {
            let own = self.usage_between(layer.id, layer.below).await;
            usage.used_bytes += own.used_bytes;
            usage.valid_bytes += own.valid_bytes;
        }
        usage
    }

    async fn usage_between(&self, from: LayerId, below: Option<LayerId>) -> VolumeUsage {
        let mut usage = VolumeUsage::default();
        let mut next = Some(RegionIndex(0));
        let mut looked_at = 0;
        while let Some(from_region) = next {
            // Gone meanwhile: then it takes nothing any more.
            let Ok(chain) = self.between(from, below) else { return usage };
            let Some(region) = next_region(&chain, from_region) else { return usage };
            if let ([layer], true) = (chain.as_slice(), looked_at == 0)
                && layer.remote().is_empty()
            {
                let (used_bytes, valid_bytes) = (layer.slots() * EXTENT_BYTES, layer.valid_blocks() * BLOCK_BYTES);
                return VolumeUsage { used_bytes, valid_bytes };
            }
            for data in region.extents().map(|extent| masks(&chain, extent).data).filter(|data| !data.is_empty()) {
                usage.used_bytes += EXTENT_BYTES;
                usage.valid_bytes += u64::from(data.count()) * BLOCK_BYTES;
            }
            looked_at += 1;
            if looked_at % REGIONS_AT_ONCE == 0 {
                yield_once().await;
            }
            next = Some(RegionIndex(region.0 + 1));
        }
        usage
    }

    /// Of a volume that is being received: the layer of this name, if it is there, whoever made it.
    pub fn built_layer(&self, name: &str) -> Option<FrozenLayer> {
        let (stack, tree) = (self.stack.borrow(), self.family.tree.borrow());
        let built = stack.snapshots.get(name)?;
        let layer = tree.layer(built.layer)?;
        let below = layer.parent.get();
        let on = stack.snapshots.iter().find(|(_, other)| Some(other.layer) == below).map(|(name, _)| name.clone());
        let size_bytes = layer.size_bytes.get();
        Some(FrozenLayer { name: name.into(), created_ms: built.created_ms, size_bytes, on, id: layer.id, below })
    }

    /// Whether the head is a layer of this size on the snapshot's, or on nothing.
    pub fn is_stacked(&self, on: Option<&str>, size_bytes: u64) -> bool {
        let stack = self.stack.borrow();
        let on = on.map(|name| stack.snapshots.get(name).map(|made| made.layer));
        let head = stack.head();
        let stands_there = on.is_none_or(|on| on.is_some()) && head.parent.get() == on.flatten();
        stands_there && head.size_bytes.get() == size_bytes
    }

    /// Blocks with data that a layer adds × 4 KiB.
    pub async fn layer_bytes(&self, layer: &FrozenLayer) -> u64 {
        self.usage_between(layer.id, layer.below).await.valid_bytes
    }

    /// Lets layers go that were named only to travel: they stay for as long as others stand on them.
    pub async fn forget_passing(&self) -> Result<(), StoreError> {
        let names: Vec<String> =
            self.stack.borrow().snapshots.keys().filter(|name| name.starts_with(PASSING)).cloned().collect();
        for name in names {
            match self.delete_snapshot(&name).await {
                Ok(()) | Err(StoreError::NoSnapshot { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn masks(chain: &[Rc<Layer>], extent: ExtentIndex) -> LayerMasks {
    let mut masks = LayerMasks::default();
    let known = chain.iter().fold(BlockMask::EMPTY, |known, layer| {
        let entry = layer.entry(extent);
        let here = if entry.slot_address().is_some() { entry.valid() } else { entry.hidden() };
        known.with(here).with(layer.remote_mask(extent))
    });
    resolve(chain.iter().map(|layer| &**layer), extent, known, |found, source| match source {
        Source::Zero => masks.zero = masks.zero.with(found),
        Source::Slot(_) | Source::Remote => masks.data = masks.data.with(found),
    });
    masks
}

fn next_region(chain: &[Rc<Layer>], from: RegionIndex) -> Option<RegionIndex> {
    let of = |layer: &Rc<Layer>| {
        let mapped = layer.map().next_region(from);
        let remote = layer.remote().regions_from(from).next();
        mapped.into_iter().chain(remote).min()
    };
    chain.iter().filter_map(of).min()
}

#[cfg(test)]
mod tests;
