//! How hot each region and extent of a volume is: decayed counts of the blocks read and written. Arithmetic only: time is
//! an argument, nothing here performs I/O.
//!
//! ```text
//!   read, write ──► stream detector (reads only) ──► weight ─┬► cell of the region: count · 2^(−age / half-life) + weight
//!                                                            └► shares of its extents
//! ```
//!
//! Invariants
//! - Memory is bounded: 16 bytes a region, kept in pages of 256 regions, at most `PAGES_MAX` pages; the page that was
//!   touched least recently makes room, its regions then count as cold.
//! - Shares of extents are kept of at most `SHARED_REGIONS_MAX` regions, 144 bytes each; those of the page that was touched
//!   least recently make room, its regions then count as evenly used.
//! - A sequential scan that reads each block once adds `SCAN_WEIGHT` of what it read, so that a backup or a scrub does
//!   not make all of a volume look hot (what open-cas-linux#1055 tells of).
//! - The same calls give the same counts.

use drover_base::units::{BLOCK_BYTES, EXTENTS_PER_REGION, region_count};
use drover_base::{ByteRange, ExtentIndex, Instant, RegionIndex};
use std::time::Duration;

mod cell;
mod extents;
mod streams;
#[cfg(test)]
mod tests;

use cell::{Cell, Ticks};
use extents::{BLOCK_WEIGHT, Extents};
use streams::Streams;

/// A count halves in this time: long against one burst, short against a working day.
pub const HALF_LIFE: Duration = Duration::from_secs(15 * 60);

/// Regions of a page: 1 GiB of volume, 4 KiB of memory.
const PAGE_REGIONS: u64 = 256;

/// Pages a volume may have: 4 TiB of recently touched regions, 16 MiB of memory.
const PAGES_MAX: usize = 4096;

/// Regions whose extents are told apart: 128 GiB of recently touched data, 5 MiB of memory.
const SHARED_REGIONS_MAX: usize = 32_768;

/// Extents that [`Heat::hot_extents`] names: 4 GiB.
pub const HOT_EXTENTS_MAX: usize = 65_536;

/// What a block counts that a scan reads.
const SCAN_WEIGHT: f32 = 1.0 / 16.0;

const _: () = assert!(SCAN_WEIGHT * BLOCK_WEIGHT >= 1.0, "what a scan reads counts something");

/// Decayed counts of blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RegionHeat {
    pub read_blocks: f32,
    pub written_blocks: f32,
}

struct Page {
    touched: Ticks,
    cells: Box<[Cell]>,
    /// By region, empty where none is kept.
    shares: Vec<Option<Box<Extents>>>,
    shares_used: usize,
}

/// The heat of one volume.
pub struct Heat {
    began: Instant,
    regions: u64,
    pages: Vec<Option<Page>>,
    pages_used: usize,
    shares_used: usize,
    streams: Streams,
}

impl Heat {
    /// Everything cold. `now` is the earliest time it will be told.
    pub fn new(size_bytes: u64, now: Instant) -> Self {
        let regions = region_count(size_bytes);
        let mut pages = Vec::new();
        pages.resize_with(regions.div_ceil(PAGE_REGIONS) as usize, || None);
        Self { began: now, regions, pages, pages_used: 0, shares_used: 0, streams: Streams::default() }
    }

    /// The volume has become larger; what is new is cold.
    pub fn grow(&mut self, size_bytes: u64) {
        self.regions = self.regions.max(region_count(size_bytes));
        self.pages.resize_with(self.regions.div_ceil(PAGE_REGIONS) as usize, || None);
    }

    /// A client read `range`.
    pub fn read(&mut self, range: ByteRange, now: Instant) {
        let weight = if self.streams.is_scan(range) { SCAN_WEIGHT } else { 1.0 };
        self.add(range, now, weight, |cell, blocks| cell.read += blocks);
    }

    /// A client changed `range`: data, zeroes or a trim.
    pub fn write(&mut self, range: ByteRange, now: Instant) {
        self.add(range, now, 1.0, |cell, blocks| cell.written += blocks);
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

    /// The extents with the most accesses, hottest first, each with its blocks read and written, decayed. At most
    /// `HOT_EXTENTS_MAX`; and what all extents of the volume count together.
    pub fn hot_extents(&self, now: Instant) -> (Vec<(ExtentIndex, f32)>, f32) {
        let ticks = self.ticks(now);
        let (mut hot, mut total) = (Vec::new(), 0.0);
        let pages = self.pages.iter().enumerate().filter_map(|(at, page)| Some((at as u64, page.as_ref()?)));
        for (first, page) in pages.map(|(at, page)| (at * PAGE_REGIONS, page)) {
            for (at, cell) in page.cells.iter().enumerate() {
                let cell = cell.decayed(ticks);
                let blocks = cell.read + cell.written;
                if blocks == 0.0 {
                    continue;
                }
                total += blocks;
                let shares = page.shares.get(at).and_then(Option::as_ref);
                let shares = shares.map_or([1.0 / EXTENTS_PER_REGION as f32; _], |extents| extents.shares());
                let extents = RegionIndex(first + at as u64).extents().zip(shares);
                hot.extend(extents.filter(|(_, share)| *share > 0.0).map(|(extent, share)| (extent, share * blocks)));
            }
        }
        let hotter = |a: &(ExtentIndex, f32), b: &(ExtentIndex, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if hot.len() > HOT_EXTENTS_MAX {
            hot.select_nth_unstable_by(HOT_EXTENTS_MAX, hotter);
            hot.truncate(HOT_EXTENTS_MAX);
        }
        hot.sort_unstable_by(hotter);
        (hot, total)
    }

    fn ticks(&self, now: Instant) -> Ticks {
        Ticks::of(now.since(self.began))
    }

    fn add(&mut self, range: ByteRange, now: Instant, weight: f32, add: impl Fn(&mut Cell, f32)) {
        let ticks = self.ticks(now);
        for (region, part) in range.by_region() {
            if region.0 >= self.regions {
                return;
            }
            let at = (region.0 % PAGE_REGIONS) as usize;
            let page = self.page(region.0 / PAGE_REGIONS, ticks);
            let cell = &mut page.cells[at];
            *cell = cell.decayed(ticks);
            add(cell, blocks(part) * weight);
            let extents = self.shares(region, ticks);
            for (extent, part) in part.by_extent() {
                extents.add(extent.in_region(), blocks(part) * weight * BLOCK_WEIGHT, ticks);
            }
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
        let page = self.pages[index].get_or_insert_with(|| Page {
            touched: ticks,
            cells: vec![Cell::default(); PAGE_REGIONS as usize].into(),
            shares: Vec::new(),
            shares_used: 0,
        });
        page.touched = ticks;
        page
    }

    /// Of a region whose page is there.
    fn shares(&mut self, region: RegionIndex, ticks: Ticks) -> &mut Extents {
        let (index, at) = ((region.0 / PAGE_REGIONS) as usize, (region.0 % PAGE_REGIONS) as usize);
        let is_known = |page: &Page| page.shares.get(at).is_some_and(Option::is_some);
        if !self.pages[index].as_ref().is_some_and(is_known) {
            if self.shares_used == SHARED_REGIONS_MAX {
                self.drop_oldest_shares();
            }
            self.shares_used += 1;
        }
        let page = self.pages[index].as_mut().expect("it was touched");
        if page.shares.is_empty() {
            page.shares.resize_with(PAGE_REGIONS as usize, || None);
        }
        page.shares_used += usize::from(page.shares[at].is_none());
        page.shares[at].get_or_insert_with(|| Box::new(Extents::new(ticks)))
    }

    fn oldest(&self, is_meant: impl Fn(&Page) -> bool) -> Option<usize> {
        let used = self.pages.iter().enumerate().filter_map(|(at, page)| Some((page.as_ref()?, at)));
        used.filter(|(page, _)| is_meant(page)).map(|(page, at)| (page.touched, at)).min().map(|(_, at)| at)
    }

    fn drop_coldest(&mut self) {
        if let Some(page) = self.oldest(|_| true).and_then(|at| self.pages[at].take()) {
            self.pages_used -= 1;
            self.shares_used -= page.shares_used;
        }
    }

    fn drop_oldest_shares(&mut self) {
        if let Some(page) = self.oldest(|page| page.shares_used > 0).and_then(|at| self.pages[at].as_mut()) {
            self.shares_used -= std::mem::take(&mut page.shares_used);
            page.shares = Vec::new();
        }
    }
}

fn blocks(range: ByteRange) -> f32 {
    range.len as f32 / BLOCK_BYTES as f32
}
