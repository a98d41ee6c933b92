//! What a layer says about one extent, in 64 bits.
//!
//! ```text
//!  63 62 | 61 … 56 | 55 ………… 16 | 15 … 0
//!  kind  | device  |    slot    |  bits, one per block
//!  0 absent: bit 1 = hidden (reads as zero, the lookup ends), 0 = look below
//!  1 slot:   bit 1 = valid here, 0 = look below
//! ```
//! Kinds 2 and 3 belong to later versions. The device and slot of an absent entry are zero, so an extent
//! that a layer knows nothing about is the number 0.

use drover_base::{
    BlockMask,
    units::{BLOCK_BYTES, EXTENT_BYTES},
};

const KIND_SHIFT: u32 = 62;
const DEVICE_SHIFT: u32 = 56;
const SLOT_SHIFT: u32 = 16;

/// Devices that the entry's six bits can name.
pub const DEVICES_MAX: usize = 1 << 6;
/// Slots of a device that the entry's forty bits can name.
pub const SLOTS_MAX: u64 = 1 << 40;

/// A place for an extent: which device of the node, and which 64 KiB of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotAddress {
    pub device: u8,
    pub slot: u64,
}

impl SlotAddress {
    /// Byte offset on the device of block `block` (0..16) of the slot.
    pub fn block_offset(self, block: u32) -> u64 {
        self.slot * EXTENT_BYTES + u64::from(block) * BLOCK_BYTES
    }
}

/// An entry taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// No data in this layer; `hidden` blocks read as zero, the others are looked up below.
    Absent { hidden: BlockMask },
    /// `valid` blocks are in the slot, the others are looked up below.
    Slot { at: SlotAddress, valid: BlockMask },
}

/// An entry as it is stored; always of a kind this version knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry(u64);

/// An entry whose kind this version does not know: a newer version wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadEntry {
    #[error("an entry of kind {kind}, written by a newer version")]
    Newer { kind: u8 },
    #[error("an absent entry that names a slot")]
    Malformed,
}

impl Entry {
    pub const NOTHING: Self = Self(0);

    pub fn absent(hidden: BlockMask) -> Self {
        Self(u64::from(hidden.0))
    }

    pub fn slot(at: SlotAddress, valid: BlockMask) -> Self {
        assert!(usize::from(at.device) < DEVICES_MAX && at.slot < SLOTS_MAX, "a slot that an entry can name");
        Self(1 << KIND_SHIFT | u64::from(at.device) << DEVICE_SHIFT | at.slot << SLOT_SHIFT | u64::from(valid.0))
    }

    pub fn decode(raw: u64) -> Result<Self, BadEntry> {
        match raw >> KIND_SHIFT {
            0 if raw >> SLOT_SHIFT != 0 => Err(BadEntry::Malformed),
            0 | 1 => Ok(Self(raw)),
            kind => Err(BadEntry::Newer { kind: kind as u8 }),
        }
    }

    pub fn raw(self) -> u64 {
        self.0
    }

    pub fn place(self) -> Place {
        let bits = BlockMask(self.0 as u16);
        if self.0 >> KIND_SHIFT == 0 {
            return Place::Absent { hidden: bits };
        }
        let device = (self.0 >> DEVICE_SHIFT) as u8 & (DEVICES_MAX as u8 - 1);
        Place::Slot { at: SlotAddress { device, slot: (self.0 >> SLOT_SHIFT) & (SLOTS_MAX - 1) }, valid: bits }
    }

    pub fn slot_address(self) -> Option<SlotAddress> {
        match self.place() {
            Place::Absent { .. } => None,
            Place::Slot { at, .. } => Some(at),
        }
    }

    /// Blocks whose data is in this layer.
    pub fn valid(self) -> BlockMask {
        match self.place() {
            Place::Absent { .. } => BlockMask::EMPTY,
            Place::Slot { valid, .. } => valid,
        }
    }

    /// The entry that says nothing of these blocks. A slot stays one, whatever is left in it.
    pub fn without(self, blocks: BlockMask) -> Self {
        match self.place() {
            Place::Absent { hidden } => Self::absent(hidden.without(blocks)),
            Place::Slot { at, valid } => Self::slot(at, valid.without(blocks)),
        }
    }

    /// Blocks that this layer makes read as zero.
    pub fn hidden(self) -> BlockMask {
        match self.place() {
            Place::Absent { hidden } => hidden,
            Place::Slot { .. } => BlockMask::EMPTY,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_read_back() {
        let at = SlotAddress { device: 63, slot: SLOTS_MAX - 1 };
        let entry = Entry::slot(at, BlockMask(0x8001));
        assert_eq!(Entry::decode(entry.raw()), Ok(entry));
        assert_eq!(entry.place(), Place::Slot { at, valid: BlockMask(0x8001) });
        let hidden = Entry::absent(BlockMask(0xf0f0));
        assert_eq!(Entry::decode(hidden.raw()).unwrap().hidden(), BlockMask(0xf0f0));
        assert_eq!(Entry::NOTHING.place(), Place::Absent { hidden: BlockMask::EMPTY });
    }

    #[test]
    fn kinds_of_later_versions_are_refused() {
        assert_eq!(Entry::decode(2 << 62), Err(BadEntry::Newer { kind: 2 }));
        assert_eq!(Entry::decode(3 << 62 | 5), Err(BadEntry::Newer { kind: 3 }));
        assert_eq!(Entry::decode(1 << 16), Err(BadEntry::Malformed));
    }
}
