//! What share of the accesses in the first minute after a hot-first flip finds its blocks at the new holder, by which
//! extents were copied before: those that the holder's counters call hottest, against other orders and an oracle.
//!
//! A real block trace passes the same counters that a holder keeps, in the trace's own time. At moments spread over its
//! later part a flip is taken to happen with a share of the extents touched so far copied. Afterwards only what clients
//! ask for is fetched, by whole extents: nothing comes in the background, which would favour every order. A write of
//! whole blocks needs nothing from the other side. Blocks count, as in a receipt's `local_permille_60s`.

use crate::{
    Done,
    record::{Report, Unit, median},
    room::{MEMORY, Need},
};
use drover_base::{ByteRange, ExtentIndex, Instant, units::BLOCK_BYTES};
use drover_heat::Heat;
use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    path::{Path, PathBuf},
    time::Duration,
};

/// A trace in memory.
pub const NEED: Need = Need { folder: MEMORY, bytes: 64 << 20 };
const TRACES: &str = "../shared/traces";
const SHARE: Unit = ("%", "higher");
const WINDOW: Duration = Duration::from_secs(60);
/// Parts of the touched extents that are copied, in percent.
const COPIED: [usize; 2] = [10, 20];
/// What is before counts only, as a share of the trace's time.
const WARM_UP: f64 = 0.2;

const SECTOR_BYTES: u64 = 512;
const SCSI_READ: u16 = 0x28;
const SCSI_WRITE: u16 = 0x2a;

/// Bytes of a trace, unpacked, at most.
const TRACE_BYTES_MAX: usize = 64 << 20;

#[derive(Clone, Copy)]
struct Access {
    at: Instant,
    range: ByteRange,
    is_write: bool,
}

/// Before a flip: what is known of each extent by then.
#[derive(Default)]
struct Past {
    touched: BTreeSet<ExtentIndex>,
    writes: BTreeMap<ExtentIndex, u64>,
}

pub fn run(report: &mut Report, rounds: usize) -> Done {
    let folder = PathBuf::from(std::env::var_os("DROVER_TRACES").unwrap_or_else(|| TRACES.into()));
    let path = folder.join("cloudphysics-first90min.vscsi.zst");
    if !path.exists() {
        eprintln!("  {} is not there (DROVER_TRACES names the folder): nothing was measured", path.display());
        return Ok(());
    }
    let accesses = read_vscsi(&path)?;
    for copied in COPIED {
        let (mut counters, mut others) = (Vec::new(), [const { Vec::new() }; 3]);
        for flip in moments(&accesses, rounds) {
            let shares = measure(&accesses, flip, copied);
            counters.push(shares[0]);
            others.iter_mut().zip(&shares[1..]).for_each(|(all, share)| all.push(*share));
        }
        let case = format!("local in the first minute, {copied} % of the touched extents copied, {rounds} flips");
        for (name, shares) in ["an oracle", "by count of writes", "nothing copied"].into_iter().zip(&others) {
            report.compare(&case, name, SHARE, &counters, shares)?;
        }
        eprintln!("  {copied} %: the counters' share is {:.1} % at the median", median(&counters));
    }
    Ok(())
}

/// Positions in the trace of flips, evenly spread in time after the warm-up, each with a whole window after it.
fn moments(accesses: &[Access], count: usize) -> Vec<usize> {
    let span = accesses[accesses.len() - 1].at.since(accesses[0].at).saturating_sub(WINDOW);
    let first = span.mul_f64(WARM_UP);
    let step = (span - first) / count as u32;
    let times = (0..count as u32).map(|at| accesses[0].at + first + step * at);
    times.map(|time| accesses.partition_point(|access| access.at < time)).collect()
}

/// Shares in percent: by the counters, an oracle, the count of writes, nothing copied.
fn measure(accesses: &[Access], flip: usize, copied: usize) -> [f64; 4] {
    let (before, after) = accesses.split_at(flip);
    let size_bytes = accesses.iter().map(|access| access.range.end()).max().unwrap_or(0);
    let mut heat = Heat::new(size_bytes, accesses[0].at);
    let mut past = Past::default();
    for access in before {
        match access.is_write {
            true => heat.write(access.range, access.at),
            false => heat.read(access.range, access.at),
        }
        for (extent, _) in access.range.by_extent() {
            past.touched.insert(extent);
            *past.writes.entry(extent).or_default() += u64::from(access.is_write);
        }
    }
    let now = after[0].at;
    let after = &after[..after.partition_point(|access| access.at.since(now) < WINDOW)];
    let room = past.touched.len() * copied / 100;
    let hot = heat.hot_extents(now).0.into_iter().map(|(extent, _)| extent).take(room).collect();
    let mut needed = BTreeMap::<ExtentIndex, u64>::new();
    for access in after {
        needed_blocks(access, |extent, blocks| *needed.entry(extent).or_default() += blocks);
    }
    [hot, most(&needed, room), most(&past.writes, room), BTreeSet::new()].map(|copied| local_percent(after, copied))
}

fn most(counts: &BTreeMap<ExtentIndex, u64>, room: usize) -> BTreeSet<ExtentIndex> {
    let mut extents: Vec<_> = counts.iter().filter(|(_, count)| **count > 0).collect();
    extents.sort_by_key(|(extent, count)| (std::cmp::Reverse(**count), **extent));
    extents.into_iter().take(room).map(|(extent, _)| *extent).collect()
}

/// The blocks that the access needs the content of, by extent: of a write those that it changes in part.
fn needed_blocks(access: &Access, mut needs: impl FnMut(ExtentIndex, u64)) {
    for (extent, part) in access.range.block_aligned().by_extent() {
        let blocks = (part.offset..part.end()).step_by(BLOCK_BYTES as usize);
        let is_whole = |offset: u64| offset >= access.range.offset && offset + BLOCK_BYTES <= access.range.end();
        let needed = blocks.filter(|offset| !access.is_write || !is_whole(*offset)).count() as u64;
        if needed > 0 {
            needs(extent, needed);
        }
    }
}

/// The share of accessed blocks that waited for nothing, where `local` was there at the flip.
fn local_percent(after: &[Access], mut local: BTreeSet<ExtentIndex>) -> f64 {
    let mut written = BTreeSet::new();
    let (mut all, mut waited) = (0, 0);
    for access in after {
        all += access.range.block_aligned().len / BLOCK_BYTES;
        needed_blocks(access, |extent, blocks| {
            if !local.contains(&extent) && !is_written(&written, access.range, extent) {
                waited += blocks;
                local.insert(extent);
            }
        });
        if access.is_write {
            let aligned = access.range.block_aligned();
            written.extend((aligned.offset..aligned.end()).step_by(BLOCK_BYTES as usize));
        }
    }
    if all == 0 { 100.0 } else { 100.0 - waited as f64 * 100.0 / all as f64 }
}

/// Whether all that the range touches of the extent was written since the flip.
fn is_written(written: &BTreeSet<u64>, range: ByteRange, extent: ExtentIndex) -> bool {
    let mut parts = range.block_aligned().by_extent().filter(|(of, _)| *of == extent);
    parts.all(|(_, part)| (part.offset..part.end()).step_by(BLOCK_BYTES as usize).all(|at| written.contains(&at)))
}

/// Records of 32 bytes, little-endian: u32 serial, u32 length in bytes, u32 segments, u16 SCSI opcode, u16 version, u64
/// block of 512 bytes, u64 time in µs.
fn read_vscsi(path: &Path) -> Result<Vec<Access>, Box<dyn Error>> {
    let bytes = zstd::bulk::decompress(&std::fs::read(path)?, TRACE_BYTES_MAX)?;
    let mut accesses = Vec::new();
    for record in bytes.chunks_exact(32) {
        let number = |from: usize, to: usize| {
            record[from..to].iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let opcode = number(12, 14) as u16;
        if number(4, 8) == 0 || (opcode != SCSI_READ && opcode != SCSI_WRITE) {
            continue;
        }
        accesses.push(Access {
            at: Instant(0) + Duration::from_micros(number(24, 32)),
            range: ByteRange { offset: number(16, 24) * SECTOR_BYTES, len: number(4, 8) },
            is_write: opcode == SCSI_WRITE,
        });
    }
    accesses.sort_by_key(|access| access.at);
    if accesses.is_empty() { Err(format!("{}: no accesses", path.display()).into()) } else { Ok(accesses) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(second: u64, offset: u64, len: u64, is_write: bool) -> Access {
        Access { at: Instant(0) + Duration::from_secs(second), range: ByteRange { offset, len }, is_write }
    }

    #[test]
    fn a_block_waits_once_and_one_that_was_written_whole_never() {
        let after = [
            access(0, 0, 8192, false),
            access(1, 4096, 4096, false),
            access(2, 1 << 20, 4096, true),
            access(3, 1 << 20, 4096, false),
            access(4, (2 << 20) + 512, 512, true),
        ];
        // 6 blocks: two of the first and the partly written one waited.
        assert_eq!(local_percent(&after, BTreeSet::new()), 50.0);
        assert_eq!(local_percent(&after, BTreeSet::from([ExtentIndex(0), ExtentIndex(32)])), 100.0);
    }
}
