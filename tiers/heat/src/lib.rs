//! How hot each region of a volume is: decayed counts of the blocks read and written. Arithmetic only: time is an
//! argument, nothing here performs I/O.
//!
//! ```text
//!   read, write ──► stream detector (reads only) ──► weight ──► cell of the region: count · 2^(−age / half-life) + weight
//! ```
//!
//! Invariants
//! - Memory is bounded: 16 bytes a region, kept in pages of 256 regions, at most `PAGES_MAX` pages; the page that was
//!   touched least recently makes room, its regions then count as cold.
//! - A sequential scan that reads each block once adds `SCAN_WEIGHT` of what it read, so that a backup or a scrub does
//!   not make all of a volume look hot (what open-cas-linux#1055 tells of).
//! - The same calls give the same counts.

use drover_base::units::{BLOCK_BYTES, region_count};
use drover_base::{ByteRange, Instant, RegionIndex};
use std::time::Duration;

mod cell;
mod streams;
#[cfg(test)]
mod tests;

use cell::{Cell, Ticks};
use streams::Streams;

/// A count halves in this time: long against one burst, short against a working day.
pub const HALF_LIFE: Duration = Duration::from_secs(15 * 60);

/// Regions of a page: 1 GiB of volume, 4 KiB of memory.
const PAGE_REGIONS: u64 = 256;

/// Pages a volume may have: 4 TiB of recently touched regions, 16 MiB of memory.
const PAGES_MAX: usize = 4096;

/// What a block counts that a scan reads.
const SCAN_WEIGHT: f32 = 1.0 / 16.0;

/// Decayed counts of blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RegionHeat {
    pub read_blocks: f32,
    pub written_blocks: f32,
}

struct Page {
    touched: Ticks,
    cells: Box<[Cell]>,
}

/// The heat of one volume.
pub struct Heat {
    began: Instant,
    regions: u64,
    pages: Vec<Option<Page>>,
    pages_used: usize,
    streams: Streams,
}

impl Heat {
    /// Everything cold. `now` is the earliest time it will be told.
    pub fn new(size_bytes: u64, now: Instant) -> Self {
        let regions = region_count(size_bytes);
        let mut pages = Vec::new();
        pages.resize_with(regions.div_ceil(PAGE_REGIONS) as usize, || None);
        Self { began: now, regions, pages, pages_used: 0, streams: Streams::default() }
    }

    /// The volume has become larger; what is new is cold.
    pub fn grow(&mut self, size_bytes: u64) {
        self.regions = self.regions.max(region_count(size_bytes));
        self.pages.resize_with(self.regions.div_ceil(PAGE_REGIONS) as usize, || None);
    }

    /// A client read `range`.
    pub fn read(&mut self, range: ByteRange, now: Instant) {
        let weight = if self.streams.is_scan(range) { SCAN_WEIGHT } else { 1.0 };
        self.add(range, now, |cell, blocks| cell.read += blocks * weight);
    }

    /// A client changed `range`: data, zeroes or a trim.
    pub fn write(&mut self, range: ByteRange, now: Instant) {
        self.add(range, now, |cell, blocks| cell.written += blocks);
    }

    /// What the region's counts have decayed to.
    pub fn region(&self, region: RegionIndex, now: Instant) -> RegionHeat {
        let page = self.pages.get((region.0 / PAGE_REGIONS) as usize).and_then(Option::as_ref);
        let Some(page) = page else { return RegionHeat::default() };
        let cell = page.cells[(region.0 % PAGE_REGIONS) as usize].decayed(self.ticks(now));
        RegionHeat { read_blocks: cell.read, written_blocks: cell.written }
    }

    /// For an order by write heat: smaller is colder. What is written soon is better sent late.
    pub fn write_rank(&self, region: RegionIndex, now: Instant) -> u64 {
        (self.region(region, now).written_blocks * 1024.0) as u64
    }

    fn ticks(&self, now: Instant) -> Ticks {
        Ticks::of(now.since(self.began))
    }

    fn add(&mut self, range: ByteRange, now: Instant, add: impl Fn(&mut Cell, f32)) {
        let ticks = self.ticks(now);
        for (region, part) in range.by_region() {
            if region.0 >= self.regions {
                return;
            }
            let page = self.page(region.0 / PAGE_REGIONS, ticks);
            let cell = &mut page.cells[(region.0 % PAGE_REGIONS) as usize];
            *cell = cell.decayed(ticks);
            add(cell, part.len as f32 / BLOCK_BYTES as f32);
        }
    }

    fn page(&mut self, index: u64, ticks: Ticks) -> &mut Page {
        let index = index as usize;
        if self.pages[index].is_none() {
            if self.pages_used == PAGES_MAX {
                self.drop_coldest();
            }
            self.pages_used += 1;
        }
        let page = self.pages[index]
            .get_or_insert_with(|| Page { touched: ticks, cells: vec![Cell::default(); PAGE_REGIONS as usize].into() });
        page.touched = ticks;
        page
    }

    fn drop_coldest(&mut self) {
        let used = self.pages.iter().enumerate().filter_map(|(at, page)| Some((page.as_ref()?.touched, at)));
        if let Some((_, at)) = used.min() {
            self.pages[at] = None;
            self.pages_used -= 1;
        }
    }
}
