//! CASE=migrate: moving a volume, against nbdcopy (cold) and QEMU's blockdev-mirror (flips; under load: `live`).

use crate::{
    Done, Part, image, live,
    mirror::{Pair, Process},
    peers,
    record::{Report, Unit, percentile},
    room::{DISK, MEMORY, Need},
    stops::Stops,
};
use drover_e2e::{Cluster, Layout, Link, Prober};
use serde_json::{Value, json};
use std::{
    error::Error,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

pub const PARTS: &[Part] = &[
    // The image while its files are gathered, the volume at both sides, nbdcopy's target.
    Part { name: "cold", rounds: 3, need: Need { folder: DISK, bytes: 25_000_000_000 }, measure: cold },
    Part { name: "live", rounds: 5, need: live::NEED, measure: live::run },
    // The volume at both sides, the mirror's two disks, metadata.
    Part { name: "flips", rounds: 100, need: Need { folder: MEMORY, bytes: 1 << 30 }, measure: flips },
];

const COLD_BYTES: u64 = 8 << 30;
/// How long a move may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// What the flips' volume holds.
const FLIP_BYTES: u64 = 64 << 20;

pub const SECONDS: Unit = ("s", "lower");

/// A cold move takes so much of nbdcopy's time at most.
const COLD_AIM: f64 = 0.5;
/// 99 of 100 flips have no longer pause.
const PAUSE_AIM_MS: f64 = 20.0;
/// A machine that stood still for so long has left its mark on a pause.
const STOP_MS: f64 = 5.0;

/// 8 GiB with real data over 1 Gbit/s: time until the volume is served at the destination, and bytes on the link.
fn cold(report: &mut Report, rounds: usize) -> Done {
    let folder = tempfile::tempdir_in(DISK)?;
    let image = image::make(folder.path(), COLD_BYTES)?;
    let link = Link::new("drvb", 31, 1000)?;
    let layout = Layout {
        nodes: 2,
        folder: folder.path(),
        tier_size: "16GiB",
        lease_ttl_ms: 9_000,
        link: Some(&link),
        cpus: &[],
    };
    let cluster = Cluster::start(&layout);
    cluster.create_volume("cold", COLD_BYTES, 0);
    run_to_end(Command::new("nbdcopy").arg("--flush").arg(&image).arg(cluster.uri(0, "cold")))?;
    let (mut flip_s, mut commit_s, mut our_mb, mut peer_s, mut peer_mb) = (vec![], vec![], vec![], vec![], vec![]);
    for round in 0..rounds {
        let (from, to) = (round % 2, (round + 1) % 2);
        let before = link.sent_bytes(from)?;
        let migration = move_volume(&cluster, "cold", to)?;
        flip_s.push(number(&migration["receipt"]["flip_ms"])? / 1e3);
        commit_s.push(number(&migration["receipt"]["commit_ms"])? / 1e3);
        our_mb.push((link.sent_bytes(from)? - before) as f64 / 1e6);
        let before = link.sent_bytes(0)?;
        peer_s.push(nbdcopy(&link, &image, folder.path())?);
        peer_mb.push((link.sent_bytes(0)? - before) as f64 / 1e6);
    }
    let case = "8 GiB with up to 4 GB of /usr over 1 Gbit/s";
    let ratio = report.compare(format!("{case}, time to flip"), "nbdcopy", SECONDS, &flip_s, &peer_s)?;
    report.aim(format!("{case}, time to flip: {ratio:.2} x nbdcopy, aim at most {COLD_AIM}"), ratio <= COLD_AIM);
    report.compare(format!("{case}, time to commit, proven equal"), "nbdcopy", SECONDS, &commit_s, &peer_s)?;
    report.compare(format!("{case}, bytes sent"), "nbdcopy", ("MB", "lower"), &our_mb, &peer_mb)?;
    Ok(())
}

/// nbdcopy from host 0 to host 1 of the link, both sides behind qemu-nbd. Seconds until all is durable.
fn nbdcopy(link: &Link, image: &Path, folder: &Path) -> Result<f64, Box<dyn Error>> {
    let target = folder.join("copy.raw");
    std::fs::File::create(&target)?.set_len(COLD_BYTES)?;
    let source = peers::qemu_nbd(image, false, None)?;
    let address = link.inner_address(1);
    let mut serve = Command::new("ip");
    serve.args(["netns", "exec", &link.namespace(1), "qemu-nbd", "--persistent", "--format=raw", "--bind", &address]);
    serve.args(["--port", "10999", "--cache=writeback", "--discard=unmap", "--shared=8"]).arg(&target);
    let mut server = Process(serve.spawn()?);
    std::thread::sleep(Duration::from_millis(500));
    let begin = Instant::now();
    let mut copy = Command::new("ip");
    copy.args(["netns", "exec", &link.namespace(0), "nbdcopy", "--flush"])
        .arg(&source.uri)
        .arg(format!("nbd://{address}:10999"));
    run_to_end(&mut copy)?;
    let took = begin.elapsed().as_secs_f64();
    server.end()?;
    std::fs::remove_file(target)?;
    Ok(took)
}

/// What was seen of one move.
#[derive(Clone, Copy)]
struct Pause {
    /// The longest that a client waited.
    ms: f64,
    /// The longest that the machine itself stood still.
    stop_ms: f64,
}

/// The longest pause that a prober sees around each of many moves.
fn flips(report: &mut Report, rounds: usize) -> Done {
    let folder = tempfile::tempdir_in(MEMORY)?;
    let stops = Stops::watch();
    let (ours, still) = our_pauses(folder.path(), rounds, stops.as_ref())?;
    let mirror = mirror_pauses(folder.path(), rounds, stops.as_ref())?;
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
        report.compare(format!("{case}, {name}"), peer, ("ms", "lower"), &[ours], &[theirs])?;
    }
    Ok(())
}

fn pause(seen: &drover_e2e::Seen, stops: Option<&Stops>, from: Instant, to: Instant) -> Pause {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    Pause { ms: ms(seen.longest(from, to)), stop_ms: stops.map_or(0.0, |stops| ms(stops.longest(from, to))) }
}

/// Longest pauses of moves there and back, and of equally long times without one.
fn our_pauses(folder: &Path, rounds: usize, stops: Option<&Stops>) -> Result<(Vec<Pause>, Vec<Pause>), Box<dyn Error>> {
    let cluster = Cluster::start(&loopback(folder));
    cluster.create_volume("flips", FLIP_BYTES, 0);
    crate::fio::fill(&cluster.uri(0, "flips"), FLIP_BYTES)?;
    let prober = Prober::start(&cluster.socket(0), "flips", FLIP_BYTES - 4096)?;
    let (mut moving, mut still) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let from = Instant::now();
        move_volume(&cluster, "flips", (round + 1) % 2)?;
        let to = Instant::now();
        moving.push((from, to));
        std::thread::sleep(to - from);
        still.push((to, Instant::now()));
    }
    let seen = prober.stop();
    if seen.io_errors + seen.mismatches > 0 || seen.broken.is_some() {
        return Err(format!("{} errors, {} mismatches, {:?}", seen.io_errors, seen.mismatches, seen.broken).into());
    }
    let pauses = |windows: &[(Instant, Instant)]| -> Vec<Pause> {
        windows.iter().map(|(from, to)| pause(&seen, stops, *from, *to)).collect()
    };
    Ok((pauses(&moving), pauses(&still)))
}

/// The same of blockdev-mirror in its write-blocking mode; each from a fresh pair, since it has no way back.
fn mirror_pauses(folder: &Path, rounds: usize, stops: Option<&Stops>) -> Result<Vec<Pause>, Box<dyn Error>> {
    let mut pauses = Vec::new();
    for _ in 0..rounds {
        let mut pair = Pair::start(folder, FLIP_BYTES)?;
        crate::fio::fill(&pair.uri, FLIP_BYTES)?;
        let prober = Prober::start(&pair.socket, "disk", FLIP_BYTES - 4096)?;
        // Until it runs evenly, as ours does all the time.
        std::thread::sleep(Duration::from_millis(100));
        let from = Instant::now();
        if !pair.mirror("write-blocking", PATIENCE)? {
            return Err("blockdev-mirror did not end".into());
        }
        let to = Instant::now();
        let seen = prober.stop();
        pauses.push(pause(&seen, stops, from, to));
    }
    Ok(pauses)
}

/// Moves a volume to a node and commits.
pub fn move_volume(cluster: &Cluster, volume: &str, to: usize) -> Result<Value, Box<dyn Error>> {
    let migration = cluster.api.migrate(volume, &drover_e2e::node_name(to), json!({ "retention_ms": 0 }));
    let ended = cluster.api.wait_phase(&migration, &["committed", "rolled_back", "failed"], PATIENCE);
    if ended["phase"] == "committed" { Ok(ended) } else { Err(format!("the move ended otherwise: {ended:#}").into()) }
}

pub fn number(value: &Value) -> Result<f64, Box<dyn Error>> {
    value.as_f64().ok_or_else(|| "a figure is missing in the receipt".into())
}

/// Two nodes that reach each other without limit.
pub fn loopback(folder: &Path) -> Layout<'_> {
    Layout { nodes: 2, folder, tier_size: "6GiB", lease_ttl_ms: 9_000, link: None, cpus: &[] }
}

pub fn run_to_end(command: &mut Command) -> Done {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}
