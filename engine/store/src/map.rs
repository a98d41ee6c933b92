//! A layer's map in memory: one entry per extent, allocated a region at a time.
//!
//! 512 bytes per region that has any entry: 128 MiB per TiB mapped.

use crate::entry::Entry;
use drover_base::{ExtentIndex, RegionIndex, units::EXTENTS_PER_REGION};

/// The entries of one region, by position within it.
pub type RegionEntries = [Entry; EXTENTS_PER_REGION as usize];

pub const NOTHING: RegionEntries = [Entry::NOTHING; EXTENTS_PER_REGION as usize];

/// Entries by extent. Extents never set are [`Entry::NOTHING`].
#[derive(Default)]
pub struct Map {
    regions: Vec<Option<Box<RegionEntries>>>,
}

impl Map {
    pub fn get(&self, extent: ExtentIndex) -> Entry {
        match self.regions.get(extent.region().0 as usize) {
            Some(Some(entries)) => entries[extent.in_region()],
            _ => Entry::NOTHING,
        }
    }

    /// Sets the entry and returns the one before.
    pub fn set(&mut self, extent: ExtentIndex, entry: Entry) -> Entry {
        let index = extent.region().0 as usize;
        if index >= self.regions.len() {
            if entry == Entry::NOTHING {
                return entry;
            }
            self.regions.resize_with(index + 1, || None);
        }
        let entries = self.regions[index].get_or_insert_with(|| Box::new(NOTHING));
        std::mem::replace(&mut entries[extent.in_region()], entry)
    }

    /// Puts a whole region, as read from metadata.
    pub fn load(&mut self, region: RegionIndex, entries: RegionEntries) {
        let index = region.0 as usize;
        if index >= self.regions.len() {
            self.regions.resize_with(index + 1, || None);
        }
        self.regions[index] = Some(Box::new(entries));
    }

    /// The region's entries; `None` when all are [`Entry::NOTHING`] because none was ever set.
    pub fn region(&self, region: RegionIndex) -> Option<&RegionEntries> {
        self.regions.get(region.0 as usize)?.as_deref()
    }

    /// Gives the region's memory back; it has no entry set any more.
    pub fn forget_region(&mut self, region: RegionIndex) {
        if let Some(entries) = self.regions.get_mut(region.0 as usize) {
            assert!(entries.as_deref().is_none_or(|entries| *entries == NOTHING), "a region in use is not forgotten");
            *entries = None;
        }
    }

    /// The first region at or after `from` that has an entry set.
    pub fn next_region(&self, from: RegionIndex) -> Option<RegionIndex> {
        let is_used = |entries: &Option<Box<RegionEntries>>| entries.as_deref().is_some_and(|e| *e != NOTHING);
        let first = from.0 as usize;
        let found = self.regions.get(first..)?.iter().position(is_used)?;
        Some(RegionIndex((first + found) as u64))
    }

    /// Every extent with an entry set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (ExtentIndex, Entry)> {
        let regions = self.regions.iter().enumerate();
        let used = regions.filter_map(|(index, entries)| Some((RegionIndex(index as u64), entries.as_deref()?)));
        used.flat_map(|(region, entries)| {
            let extents = entries.iter().enumerate().map(move |(at, entry)| (region.extent(at), *entry));
            extents.filter(|(_, entry)| *entry != Entry::NOTHING)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_base::BlockMask;

    #[test]
    fn only_touched_regions_cost_memory() {
        let mut map = Map::default();
        let far = ExtentIndex(1_000_000);
        assert_eq!(map.get(far), Entry::NOTHING);
        let entry = Entry::absent(BlockMask(1));
        assert_eq!(map.set(far, entry), Entry::NOTHING);
        assert_eq!(map.set(far, entry), entry);
        assert_eq!(map.next_region(RegionIndex(0)), Some(far.region()));
        assert_eq!(map.next_region(RegionIndex(far.region().0 + 1)), None);
        assert_eq!(map.iter().collect::<Vec<_>>(), [(far, entry)]);
        map.set(far, Entry::NOTHING);
        assert_eq!(map.next_region(RegionIndex(0)), None);
    }
}
