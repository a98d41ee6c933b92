use super::*;
use drover_base::units::REGION_BYTES;

const MIB: u64 = 1 << 20;

fn at(seconds: u64) -> Instant {
    Instant(7_000_000_000) + Duration::from_secs(seconds)
}

fn heat(size_bytes: u64) -> Heat {
    Heat::new(size_bytes, at(0))
}

fn range(offset: u64, len: u64) -> ByteRange {
    ByteRange { offset, len }
}

fn about(got: f32, expected: f32) {
    assert!((got - expected).abs() <= expected.abs() * 0.01 + 0.01, "{got} is not about {expected}");
}

#[test]
fn counts_halve_in_a_half_life() {
    let mut heat = heat(64 * MIB);
    heat.write(range(0, MIB), at(1));
    about(heat.region(RegionIndex(0), at(1)).written_blocks, 256.0);
    about(heat.region(RegionIndex(0), at(1 + 900)).written_blocks, 128.0);
    about(heat.region(RegionIndex(0), at(1 + 2700)).written_blocks, 32.0);
    assert_eq!(heat.region(RegionIndex(0), at(1)).read_blocks, 0.0);
    assert_eq!(heat.region(RegionIndex(1), at(1)), RegionHeat::default());
}

#[test]
fn a_range_counts_in_each_region_it_touches() {
    let mut heat = heat(64 * MIB);
    heat.write(range(REGION_BYTES - 4096, 8192), at(0));
    about(heat.region(RegionIndex(0), at(0)).written_blocks, 1.0);
    about(heat.region(RegionIndex(1), at(0)).written_blocks, 1.0);
}

#[test]
fn late_writes_outrank_many_old_ones() {
    let mut heat = heat(64 * MIB);
    for _ in 0..20 {
        heat.write(range(0, 4096), at(0));
    }
    for _ in 0..3 {
        heat.write(range(REGION_BYTES, 4096), at(7200));
    }
    let now = at(7201);
    assert!(heat.write_rank(RegionIndex(1), now) > heat.write_rank(RegionIndex(0), now));
    assert!(heat.write_rank(RegionIndex(0), now) > heat.write_rank(RegionIndex(2), now));
}

#[test]
fn a_scan_hardly_counts_and_a_hot_spot_within_it_does() {
    let mut heat = heat(256 * MIB);
    for block in 0..2048 {
        heat.read(range(block * 65_536, 65_536), at(1));
        if block % 8 == 0 {
            // The hot spot: read again and again while the scan passes.
            heat.read(range(200 * MIB, 4096), at(1));
        }
    }
    let scanned = heat.region(RegionIndex(10), at(1)).read_blocks;
    about(scanned, 1024.0 / 16.0);
    about(heat.region(RegionIndex(50), at(1)).read_blocks, 256.0);
}

#[test]
fn random_reads_count_fully() {
    let mut heat = heat(1024 * MIB);
    for turn in 0..64u64 {
        heat.read(range((turn * 7919 % 250) * 4 * MIB, 4096), at(1));
    }
    let sum: f32 = (0..256).map(|region| heat.region(RegionIndex(region), at(1)).read_blocks).sum();
    about(sum, 64.0);
}

#[test]
fn memory_is_bounded_and_the_oldest_goes() {
    let page_bytes = PAGE_REGIONS * REGION_BYTES;
    let mut heat = heat((PAGES_MAX as u64 + 10) * page_bytes);
    for page in 0..PAGES_MAX as u64 + 10 {
        heat.write(range(page * page_bytes, 4096), at(page));
    }
    assert_eq!(heat.pages_used, PAGES_MAX);
    let now = at(PAGES_MAX as u64 + 10);
    assert_eq!(heat.region(RegionIndex(0), now), RegionHeat::default());
    assert!(heat.region(RegionIndex(20 * PAGE_REGIONS), now).written_blocks > 0.0);
}

#[test]
fn ranges_past_the_end_and_clocks_that_go_back_do_no_harm() {
    let mut heat = heat(5 * MIB);
    heat.write(range(4 * MIB, 64 * MIB), at(10));
    heat.write(range(0, 4096), at(0));
    about(heat.region(RegionIndex(1), at(0)).written_blocks, 1024.0);
    assert_eq!(heat.region(RegionIndex(9), at(10)), RegionHeat::default());
}

#[test]
fn a_volume_that_grows_is_counted_to_its_new_end() {
    let mut heat = heat(64 * MIB);
    heat.write(range(0, MIB), at(0));
    heat.grow(4096 * MIB);
    heat.write(range(4095 * MIB, MIB), at(0));
    about(heat.region(RegionIndex(0), at(0)).written_blocks, 256.0);
    about(heat.region(RegionIndex::containing(4095 * MIB), at(0)).written_blocks, 256.0);
}

#[test]
fn extents_are_told_apart_and_the_hottest_come_first() {
    let mut heat = heat(64 * MIB);
    heat.read(range(5 * 65_536, 4096), at(1));
    for _ in 0..3 {
        heat.write(range(REGION_BYTES + 65_536, 4096), at(1));
    }
    heat.write(range(2 * 65_536 - 4096, 8192), at(1));
    let (hot, total) = heat.hot_extents(at(1));
    let extents: Vec<_> = hot.iter().map(|(extent, _)| extent.0).collect();
    assert_eq!(extents, [65, 1, 2, 5]);
    about(hot[0].1, 3.0);
    about(hot[3].1, 1.0);
    about(total, 6.0);
}

#[test]
fn shares_are_bounded_and_the_regions_that_lose_them_count_evenly() {
    let regions = SHARED_REGIONS_MAX as u64 + 1;
    let mut heat = heat(regions * REGION_BYTES);
    for region in 0..regions {
        heat.write(range(region * REGION_BYTES, 4096), at(region));
    }
    assert_eq!(heat.shares_used, SHARED_REGIONS_MAX + 1 - PAGE_REGIONS as usize);
    let now = at(regions);
    let (hot, _) = heat.hot_extents(now);
    assert_eq!(hot.len(), HOT_EXTENTS_MAX.min(SHARED_REGIONS_MAX + 1 - PAGE_REGIONS as usize + 256 * 64));
    about(heat.region(RegionIndex(regions - 1), now).written_blocks, 1.0);
}
