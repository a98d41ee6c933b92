//! A layer: a sparse map over those below it, and the set of its blocks that are remote.
//!
//! Invariants
//! - A block is remote, or known by its entry (valid or hidden), or neither; never both.
//! - Only the head of a volume has remote blocks: no layer is put on one that has.

use crate::{
    entry::{Entry, SlotAddress},
    map::{Map, NOTHING},
    record::RegionRecord,
};
use drover_base::{
    BlockMask, BlockSet, ExtentIndex, LayerId, RegionIndex,
    planted::{Bug, is_planted},
};
use std::cell::{Cell, Ref, RefCell};

/// A layer of a volume, open in memory. Only the volume's home shard touches it.
pub struct Layer {
    pub id: LayerId,
    /// What is looked up where this layer says nothing; below the bottom layer everything is zero.
    pub parent: Cell<Option<LayerId>>,
    /// Of the volume while this is its head, of the snapshot once it is frozen. It only grows.
    pub size_bytes: Cell<u64>,
    /// No snapshot names it any more: it goes as soon as no more than one layer stands on it.
    pub deleting: Cell<bool>,
    map: RefCell<Map>,
    /// Blocks whose data is at another node.
    remote: RefCell<BlockSet>,
    slots: Cell<u64>,
    valid_blocks: Cell<u64>,
}

impl Layer {
    pub fn new(id: LayerId, parent: Option<LayerId>, size_bytes: u64) -> Self {
        Self {
            id,
            parent: Cell::new(parent),
            size_bytes: Cell::new(size_bytes),
            deleting: Cell::new(false),
            map: RefCell::default(),
            remote: RefCell::default(),
            slots: Cell::new(0),
            valid_blocks: Cell::new(0),
        }
    }

    pub fn entry(&self, extent: ExtentIndex) -> Entry {
        self.map.borrow().get(extent)
    }

    /// Sets the entry and returns the one before; the caller sees to dirty regions and freed slots.
    pub fn set(&self, extent: ExtentIndex, entry: Entry) -> Entry {
        let before = self.map.borrow_mut().set(extent, entry);
        self.count(before, entry);
        before
    }

    pub fn load(&self, region: RegionIndex, record: RegionRecord) {
        for entry in record.entries {
            self.count(Entry::NOTHING, entry);
        }
        if record.entries != NOTHING {
            self.map.borrow_mut().load(region, record.entries);
        }
        for (at, mask) in record.remote.iter().flatten().enumerate() {
            self.remote.borrow_mut().mark(region.extent(at), BlockMask(*mask));
        }
    }

    /// Says what `other`, the same layer as stored, says.
    pub fn take_over(&self, other: &Layer) {
        self.parent.set(other.parent.get());
        self.deleting.set(other.deleting.get());
        self.size_bytes.set(other.size_bytes.get());
        self.slots.set(other.slots.get());
        self.valid_blocks.set(other.valid_blocks.get());
        self.map.swap(&other.map);
        self.remote.swap(&other.remote);
    }

    /// The extent's blocks whose data is at another node.
    pub fn remote_mask(&self, extent: ExtentIndex) -> BlockMask {
        self.remote.borrow().get(extent)
    }

    /// These blocks are at another node only; the caller has taken them out of the entry.
    pub fn mark_remote(&self, extent: ExtentIndex, mask: BlockMask) {
        self.remote.borrow_mut().mark(extent, mask);
    }

    /// What the entry says of these blocks counts again. Whether one of them was remote.
    pub fn clear_remote(&self, extent: ExtentIndex, mask: BlockMask) -> bool {
        !self.remote.borrow_mut().remove(extent, mask).is_empty()
    }

    pub fn remote(&self) -> Ref<'_, BlockSet> {
        self.remote.borrow()
    }

    /// Gives the memory of a region without entries back.
    pub fn forget_region(&self, region: RegionIndex) {
        self.map.borrow_mut().forget_region(region);
    }

    fn count(&self, before: Entry, after: Entry) {
        let slots = |entry: Entry| u64::from(entry.slot_address().is_some());
        let blocks = |entry: Entry| u64::from(entry.valid().count());
        self.slots.set(self.slots.get() + slots(after) - slots(before));
        self.valid_blocks.set(self.valid_blocks.get() + blocks(after) - blocks(before));
    }

    pub fn map(&self) -> Ref<'_, Map> {
        self.map.borrow()
    }

    /// Slots that the layer's entries name.
    pub fn slots(&self) -> u64 {
        self.slots.get()
    }

    /// Blocks whose data is in the layer's slots.
    pub fn valid_blocks(&self) -> u64 {
        self.valid_blocks.get()
    }

    pub fn slot_addresses(&self) -> Vec<SlotAddress> {
        self.map.borrow().iter().filter_map(|(_, entry)| entry.slot_address()).collect()
    }
}

/// Where each block of an extent is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Zero,
    Slot(SlotAddress),
    /// At another node.
    Remote,
}

/// Looks `want` up from the top of `chain` down and reports each group of blocks with where it is. Every
/// block of `want` is reported once; blocks that no layer has are zero.
pub fn resolve<'a>(
    chain: impl Iterator<Item = &'a Layer>,
    extent: ExtentIndex,
    want: BlockMask,
    mut found: impl FnMut(BlockMask, Source),
) {
    let mut rest = want;
    for layer in chain {
        let remote = layer.remote_mask(extent).and(rest);
        if !remote.is_empty() {
            found(remote, if is_planted(Bug::RemoteReadAsZero) { Source::Zero } else { Source::Remote });
            rest = rest.without(remote);
            if rest.is_empty() {
                return;
            }
        }
        let entry = layer.entry(extent);
        let (here, source) = match entry.slot_address() {
            Some(at) => (entry.valid().and(rest), Source::Slot(at)),
            None => (entry.hidden().and(rest), Source::Zero),
        };
        if !here.is_empty() {
            found(here, source);
            rest = rest.without(here);
            if rest.is_empty() {
                return;
            }
        }
    }
    if !rest.is_empty() {
        found(rest, Source::Zero);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(slot: u64, valid: u16) -> Entry {
        Entry::slot(SlotAddress { device: 0, slot }, BlockMask(valid))
    }

    #[test]
    fn a_lookup_ends_at_data_and_at_hidden_blocks() {
        let extent = ExtentIndex(3);
        let bottom = Layer::new(LayerId(1), None, 0);
        let middle = Layer::new(LayerId(2), Some(LayerId(1)), 0);
        let top = Layer::new(LayerId(3), Some(LayerId(2)), 0);
        bottom.set(extent, slot(7, 0x00ff));
        middle.set(extent, Entry::absent(BlockMask(0x000f)));
        top.set(extent, slot(9, 0x0001));
        let mut seen = Vec::new();
        resolve([&top, &middle, &bottom].into_iter(), extent, BlockMask(0x01ff), |mask, source| {
            seen.push((mask.0, source));
        });
        let at = |slot| Source::Slot(SlotAddress { device: 0, slot });
        assert_eq!(seen, [(0x0001, at(9)), (0x000e, Source::Zero), (0x00f0, at(7)), (0x0100, Source::Zero)]);
    }

    #[test]
    fn a_lookup_ends_at_remote_blocks() {
        let extent = ExtentIndex(3);
        let bottom = Layer::new(LayerId(1), None, 0);
        let top = Layer::new(LayerId(2), Some(LayerId(1)), 0);
        bottom.set(extent, slot(7, 0x00ff));
        top.set(extent, slot(9, 0x0001));
        top.mark_remote(extent, BlockMask(0x0106));
        let mut seen = Vec::new();
        resolve([&top, &bottom].into_iter(), extent, BlockMask(0x010f), |mask, source| seen.push((mask.0, source)));
        let at = |slot| Source::Slot(SlotAddress { device: 0, slot });
        assert_eq!(seen, [(0x0106, Source::Remote), (0x0001, at(9)), (0x0008, at(7))]);
        assert!(top.clear_remote(extent, BlockMask(2)) && !top.clear_remote(extent, BlockMask(2)));
        assert_eq!(top.remote_mask(extent), BlockMask(0x0104));
    }

    #[test]
    fn usage_follows_the_entries() {
        let layer = Layer::new(LayerId(1), None, 0);
        layer.set(ExtentIndex(0), slot(1, 0x0f));
        layer.set(ExtentIndex(0), slot(1, 0xff));
        layer.set(ExtentIndex(1), slot(2, 0x01));
        assert_eq!((layer.slots(), layer.valid_blocks()), (2, 9));
        layer.set(ExtentIndex(0), Entry::absent(BlockMask(0xff)));
        assert_eq!((layer.slots(), layer.valid_blocks()), (1, 1));
    }
}
