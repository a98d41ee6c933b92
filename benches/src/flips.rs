//! The longest pause of each of many moves, in turn with QEMU's blockdev-mirror.

use crate::{
    Done,
    mirror::Pair,
    moving::{MS, PATIENCE, loopback, move_volume},
    record::{Report, percentile},
    room::{MEMORY, Need},
    stops::Stops,
};
use drover_e2e::{Cluster, Prober};
use std::{
    error::Error,
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// The volume at both sides, the mirror's two disks, metadata.
pub const NEED: Need = Need { folder: MEMORY, bytes: 1 << 30 };
const BYTES: u64 = 64 << 20;
/// A prober needs a moment until it runs evenly.
const WARM_UP: Duration = Duration::from_millis(100);

/// 99 of 100 moves have no longer pause.
const PAUSE_AIM_MS: f64 = 20.0;
/// A machine that stood still for so long has left its mark on a pause.
const STOP_MS: f64 = 5.0;

/// What was seen of one move.
#[derive(Clone, Copy)]
struct Pause {
    /// The longest that a client waited.
    ms: f64,
    /// The longest that the machine itself stood still.
    stop_ms: f64,
}

/// A pause each of every round.
#[derive(Default)]
struct Pauses {
    ours: Vec<Pause>,
    /// Ours over an equally long time without a move.
    still: Vec<Pause>,
    mirror: Vec<Pause>,
}

pub fn run(report: &mut Report, rounds: usize) -> Done {
    let stops = Stops::watch();
    let Pauses { ours, still, mirror } = measure(rounds, stops.as_ref())?;
    let case = format!("longest pause of a move, {rounds} moves");
    let waited = |pauses: &[Pause]| -> Vec<f64> { pauses.iter().map(|pause| pause.ms).collect() };
    compare_pauses(report, &case, "blockdev-mirror", &waited(&ours), &waited(&mirror))?;
    compare_pauses(report, &case, "ours without a move", &waited(&ours), &waited(&still))?;
    let p99 = percentile(&waited(&ours), 0.99);
    let aim = format!("longest pause of a move, p99 of {rounds}: {p99:.1} ms, aim below {PAUSE_AIM_MS}");
    if stops.is_none() {
        report.aim(aim, p99 < PAUSE_AIM_MS);
        return Ok(());
    }
    let stopped: Vec<f64> = ours.iter().map(|pause| pause.stop_ms).collect();
    compare_pauses(report, &case, "the machine's own stops", &waited(&ours), &stopped)?;
    let undisturbed = |pauses: &[Pause]| -> Vec<f64> {
        pauses.iter().filter(|pause| pause.stop_ms < STOP_MS).map(|pause| pause.ms).collect()
    };
    let (free, mirror) = (undisturbed(&ours), undisturbed(&mirror));
    let mut beside = String::new();
    if !free.is_empty() {
        let p99 = percentile(&free, 0.99);
        beside = format!("; {p99:.1} ms in the {} in which the machine never stood still for {STOP_MS} ms", free.len());
    }
    if !free.is_empty() && !mirror.is_empty() {
        let case = format!("the same where the machine did not stand still, {} and {} moves", free.len(), mirror.len());
        compare_pauses(report, &case, "blockdev-mirror", &free, &mirror)?;
    }
    report.aim(aim + &beside, p99 < PAUSE_AIM_MS);
    Ok(())
}

fn compare_pauses(report: &mut Report, case: &str, peer: &str, ours: &[f64], theirs: &[f64]) -> Done {
    for (name, rank) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
        let (ours, theirs) = (percentile(ours, rank), percentile(theirs, rank));
        report.compare(format!("{case}, {name}"), peer, MS, &[ours], &[theirs])?;
    }
    Ok(())
}

fn measure(rounds: usize, stops: Option<&Stops>) -> Result<Pauses, Box<dyn Error>> {
    let folder = tempfile::tempdir_in(MEMORY)?;
    let cluster = Cluster::start(&loopback(folder.path()));
    cluster.create_volume("flips", BYTES, 0);
    crate::fio::fill(&cluster.uri(0, "flips"), BYTES)?;
    let mut pauses = Pauses::default();
    for round in 0..rounds {
        let prober = Prober::start(&cluster.socket(0), "flips", BYTES - 4096)?;
        thread::sleep(WARM_UP);
        let from = Instant::now();
        move_volume(&cluster, "flips", (round + 1) % 2)?;
        let to = Instant::now();
        thread::sleep(to - from);
        let until = Instant::now();
        let seen = prober.stop();
        if seen.io_errors + seen.mismatches > 0 || seen.broken.is_some() {
            return Err(format!("{} errors, {} mismatches, {:?}", seen.io_errors, seen.mismatches, seen.broken).into());
        }
        pauses.ours.push(pause(&seen, stops, from, to));
        pauses.still.push(pause(&seen, stops, to, until));
        pauses.mirror.push(mirror_pause(folder.path(), stops)?);
    }
    Ok(pauses)
}

/// One move of blockdev-mirror in its write-blocking mode; from a fresh pair, since it has no way back.
fn mirror_pause(folder: &Path, stops: Option<&Stops>) -> Result<Pause, Box<dyn Error>> {
    let mut pair = Pair::start(folder, BYTES)?;
    crate::fio::fill(&pair.uri, BYTES)?;
    let prober = Prober::start(&pair.socket, "disk", BYTES - 4096)?;
    thread::sleep(WARM_UP);
    let from = Instant::now();
    if !pair.mirror("write-blocking", PATIENCE)? {
        return Err("blockdev-mirror did not end".into());
    }
    let to = Instant::now();
    Ok(pause(&prober.stop(), stops, from, to))
}

fn pause(seen: &drover_e2e::Seen, stops: Option<&Stops>, from: Instant, to: Instant) -> Pause {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    Pause { ms: ms(seen.longest(from, to)), stop_ms: stops.map_or(0.0, |stops| ms(stops.longest(from, to))) }
}
