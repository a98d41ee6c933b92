//! CASE=migrate: moving a volume, against nbdcopy (cold) and QEMU's blockdev-mirror (live).

use crate::{
    fio::{self, Load},
    peers,
    qmp::Qmp,
    record::{Report, percentile},
};
use drover_e2e::{Cluster, Layout, Link, Prober};
use serde_json::{Value, json};
use std::{
    error::Error,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

type Done = Result<(), Box<dyn Error>>;

/// Moves of the cold case, each paired with one of nbdcopy.
const COLD_PAIRS: usize = 5;
const COLD_BYTES: u64 = 8 << 30;
const LIVE_BYTES: u64 = 2 << 30;
/// What the live writer wants to write.
const WRITER_BYTES_PER_S: u64 = 50 << 20;
/// Flips whose pauses are told as a distribution.
const FLIPS: usize = 100;
const PATIENCE: Duration = Duration::from_secs(300);

pub fn run(report: &mut Report) -> Done {
    cold(report)?;
    live(report)?;
    flips(report)
}

/// 8 GiB with real data over 1 Gbit/s: time until the volume is served at the destination, and bytes on the link.
fn cold(report: &mut Report) -> Done {
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let image = image(folder.path())?;
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
    run_to_end(Command::new("nbdcopy").arg(&image).arg(cluster.uri(0, "cold")))?;
    let (mut our_s, mut our_mb, mut peer_s, mut peer_mb) = (vec![], vec![], vec![], vec![]);
    for round in 0..COLD_PAIRS {
        let (from, to) = (round % 2, (round + 1) % 2);
        let before = link.sent_bytes(from)?;
        let migration = move_volume(&cluster, "cold", to, json!({ "retention_ms": 0 }))?;
        our_s.push(number(&migration["receipt"]["flip_ms"])? / 1e3);
        our_mb.push((link.sent_bytes(from)? - before) as f64 / 1e6);
        let before = link.sent_bytes(0)?;
        peer_s.push(nbdcopy(&link, &image, folder.path())?);
        peer_mb.push((link.sent_bytes(0)? - before) as f64 / 1e6);
    }
    report.compare("cold 8 GiB over 1 Gbit/s, time to flip", "nbdcopy", ("s", "lower"), &our_s, &peer_s)?;
    report.compare("cold 8 GiB over 1 Gbit/s, bytes", "nbdcopy", ("MB", "lower"), &our_mb, &peer_mb)?;
    Ok(())
}

/// A 50 MB/s random writer before and during a move on loopback, in the same run as blockdev-mirror's two modes.
fn live(report: &mut Report) -> Done {
    let folder = tempfile::tempdir_in("/dev/shm")?;
    let layout = loopback(folder.path());
    let cluster = Cluster::start(&layout);
    cluster.create_volume("live", LIVE_BYTES, 0);
    let uri = cluster.uri(0, "live");
    fill(&uri, LIVE_BYTES)?;
    let (mut share, mut p99_factor, mut ended) = (vec![], vec![], vec![]);
    let (mut mirror_share, mut mirror_p99) = (vec![], vec![]);
    for round in 0..5 {
        let before = fio::run(&uri, &writer(3))?;
        let during = spawn(fio::command(&uri, &writer(8)))?;
        let begin = Instant::now();
        // Written through the endpoint where it began, whichever side holds the volume.
        move_volume(&cluster, "live", (round + 1) % 2, json!({ "retention_ms": 0 }))?;
        ended.push(begin.elapsed().as_secs_f64());
        let during = fio::read(&during.wait_with_output()?.stdout)?;
        share.push(during.iops / before.iops);
        p99_factor.push(during.p99_us / before.p99_us);
        let (iops, p99) = blockdev_mirror(folder.path(), "write-blocking")?;
        mirror_share.push(iops);
        mirror_p99.push(p99);
    }
    let unit = ("x", "higher");
    report.compare(
        "50 MB/s writer, share of its IOPS during the move",
        "blockdev-mirror",
        unit,
        &share,
        &mirror_share,
    )?;
    let unit = ("x", "lower");
    report.compare("50 MB/s writer, p99 during ÷ before", "blockdev-mirror", unit, &p99_factor, &mirror_p99)?;
    report.compare("50 MB/s writer, time until committed", "limit 60 s", ("s", "lower"), &ended, &[60.0])?;
    Ok(())
}

/// The longest pause that a prober sees around each of many flips.
fn flips(report: &mut Report) -> Done {
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let layout = loopback(folder.path());
    let cluster = Cluster::start(&layout);
    const BYTES: u64 = 64 << 20;
    cluster.create_volume("flips", BYTES, 0);
    fill(&cluster.uri(0, "flips"), BYTES)?;
    let prober = Prober::start(&cluster.folder().join("node-1.sock"), "flips", BYTES - 4096)?;
    let mut windows = Vec::new();
    let mut still = Vec::new();
    for flip in 0..FLIPS {
        let from = Instant::now();
        std::thread::sleep(Duration::from_millis(300));
        still.push((from, Instant::now()));
        let from = Instant::now();
        move_volume(&cluster, "flips", (flip + 1) % 2, json!({ "retention_ms": 0 }))?;
        windows.push((from, Instant::now()));
    }
    let seen = prober.stop();
    if seen.io_errors + seen.mismatches > 0 || seen.broken.is_some() {
        return Err(format!("{} errors, {} mismatches, {:?}", seen.io_errors, seen.mismatches, seen.broken).into());
    }
    let pauses = |windows: &[(Instant, Instant)]| -> Vec<f64> {
        windows.iter().map(|(from, to)| seen.longest(*from, *to).as_secs_f64() * 1e3).collect()
    };
    let (ours, noise) = (pauses(&windows), pauses(&still));
    let mirror = mirror_pauses(folder.path())?;
    for (name, rank) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
        let (ours, mirror, noise) = (percentile(&ours, rank), percentile(&mirror, rank), percentile(&noise, rank));
        let case = format!("longest pause of a move, {FLIPS} flips, {name}");
        report.compare(case.clone(), "blockdev-mirror", ("ms", "lower"), &[ours], &[mirror])?;
        report.compare(case, "no flip (noise)", ("ms", "lower"), &[ours], &[noise])?;
    }
    Ok(())
}

fn move_volume(cluster: &Cluster, volume: &str, to: usize, options: Value) -> Result<Value, Box<dyn Error>> {
    let migration = cluster.api.migrate(volume, &drover_e2e::node_name(to), options);
    let ended = cluster.api.wait_phase(&migration, &["committed", "rolled_back", "failed"], PATIENCE);
    if ended["phase"] == "committed" { Ok(ended) } else { Err(format!("the move ended otherwise: {ended:#}").into()) }
}

fn number(value: &Value) -> Result<f64, Box<dyn Error>> {
    value.as_f64().ok_or_else(|| "a figure is missing in the receipt".into())
}

fn loopback(folder: &Path) -> Layout<'_> {
    Layout { nodes: 2, folder, tier_size: "6GiB", lease_ttl_ms: 9_000, link: None, cpus: &[] }
}

fn writer(seconds: u32) -> Load<'static> {
    Load {
        rw: "randwrite",
        block_bytes: 4096,
        depth: 8,
        seconds: Some(seconds),
        range_bytes: LIVE_BYTES,
        cpu: 1,
        flush_every: 0,
        rate_bytes: WRITER_BYTES_PER_S,
    }
}

fn fill(uri: &str, bytes: u64) -> Done {
    let load =
        Load { rw: "write", block_bytes: 1 << 20, seconds: None, range_bytes: bytes, rate_bytes: 0, ..writer(0) };
    fio::run(uri, &load)?;
    Ok(())
}

/// An ext4 image of 8 GiB with up to 4 GB of this machine's /usr.
fn image(folder: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let path = folder.join("usr.raw");
    std::fs::File::create(&path)?.set_len(COLD_BYTES)?;
    run_to_end(Command::new("mke2fs").args(["-q", "-t", "ext4", "-d", "/usr"]).arg(&path))?;
    Ok(path)
}

/// nbdcopy from host 0 to host 1 of the link, both sides behind qemu-nbd as `PEERS` do. Seconds.
fn nbdcopy(link: &Link, image: &Path, folder: &Path) -> Result<f64, Box<dyn Error>> {
    let target = folder.join("copy.raw");
    std::fs::File::create(&target)?.set_len(COLD_BYTES)?;
    let source = peers::qemu_nbd(image, false, 0)?;
    let address = link.inner_address(1);
    let mut serve = Command::new("ip");
    serve.args(["netns", "exec", &link.namespace(1), "qemu-nbd", "--persistent", "--format=raw", "--bind", &address]);
    serve.args(["--port", "10999", "--cache=writeback", "--discard=unmap", "--shared=8"]).arg(&target);
    let mut server = KillOnDrop(serve.spawn()?);
    std::thread::sleep(Duration::from_millis(500));
    let begin = Instant::now();
    let mut copy = Command::new("ip");
    copy.args(["netns", "exec", &link.namespace(0), "nbdcopy", "--flush"])
        .arg(&source.uri)
        .arg(format!("nbd://{address}:10999"));
    run_to_end(&mut copy)?;
    let took = begin.elapsed().as_secs_f64();
    server.kill();
    std::fs::remove_file(target)?;
    Ok(took)
}

/// Share of the writer's IOPS and factor of its p99 while qemu-storage-daemon mirrors its disk.
fn blockdev_mirror(folder: &Path, mode: &str) -> Result<(f64, f64), Box<dyn Error>> {
    let mut pair = MirrorPair::start(folder, LIVE_BYTES)?;
    fill(&pair.uri, LIVE_BYTES)?;
    let before = fio::run(&pair.uri, &writer(3))?;
    let during = spawn(fio::command(&pair.uri, &writer(8)))?;
    pair.mirror(mode)?;
    let during = fio::read(&during.wait_with_output()?.stdout)?;
    Ok((during.iops / before.iops, during.p99_us / before.p99_us))
}

/// Longest pauses that the prober sees around completions of blockdev-mirror, milliseconds.
fn mirror_pauses(folder: &Path) -> Result<Vec<f64>, Box<dyn Error>> {
    const BYTES: u64 = 64 << 20;
    let mut pauses = Vec::new();
    for _ in 0..FLIPS / 5 {
        let mut pair = MirrorPair::start(folder, BYTES)?;
        fill(&pair.uri, BYTES)?;
        let prober = Prober::start(&pair.socket, "disk", BYTES - 4096)?;
        let from = Instant::now();
        pair.mirror("write-blocking")?;
        let to = Instant::now();
        let seen = prober.stop();
        pauses.push(seen.longest(from, to).as_secs_f64() * 1e3);
    }
    Ok(pauses)
}

/// A storage daemon that serves a disk, and one that it can be mirrored to.
struct MirrorPair {
    _source: KillOnDrop,
    _target: KillOnDrop,
    qmp: Qmp,
    socket: PathBuf,
    target_socket: PathBuf,
    uri: String,
}

impl MirrorPair {
    fn start(folder: &Path, bytes: u64) -> Result<Self, Box<dyn Error>> {
        let (socket, target_socket) = (folder.join("qsd-a.sock"), folder.join("qsd-b.sock"));
        let qmp_socket = folder.join("qsd-a.qmp");
        for path in [&socket, &target_socket, &qmp_socket] {
            // Left by the pair before.
            let _ = std::fs::remove_file(path);
        }
        let source = storage_daemon(&folder.join("qsd-a.raw"), bytes, &socket, Some(&qmp_socket))?;
        let target = storage_daemon(&folder.join("qsd-b.raw"), bytes, &target_socket, None)?;
        let qmp = Qmp::connect(&qmp_socket)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while !(socket.exists() && target_socket.exists()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let uri = format!("nbd+unix:///disk?socket={}", socket.display());
        Ok(Self { _source: source, _target: target, qmp, socket, target_socket, uri })
    }

    /// Mirrors until both are equal, then completes: the export goes on from the target.
    fn mirror(&mut self, mode: &str) -> Done {
        let target = json!({ "driver": "nbd", "node-name": "target", "export": "disk",
            "server": { "type": "unix", "path": self.target_socket } });
        self.qmp.run("blockdev-add", target)?;
        let job = json!({ "job-id": "m", "device": "disk", "target": "target", "sync": "full", "copy-mode": mode });
        self.qmp.run("blockdev-mirror", job)?;
        self.qmp.wait("BLOCK_JOB_READY")?;
        self.qmp.run("job-complete", json!({ "id": "m" }))?;
        self.qmp.wait("BLOCK_JOB_COMPLETED")?;
        Ok(())
    }
}

fn storage_daemon(image: &Path, bytes: u64, socket: &Path, qmp: Option<&Path>) -> Result<KillOnDrop, Box<dyn Error>> {
    std::fs::File::create(image)?.set_len(bytes)?;
    let mut command = Command::new("qemu-storage-daemon");
    command.args(["--object", "iothread,id=io"]);
    command
        .arg("--blockdev")
        .arg(format!("driver=file,node-name=file,filename={},aio=io_uring,discard=unmap", image.display()));
    command.args(["--blockdev", "driver=raw,node-name=disk,file=file,discard=unmap"]);
    command.arg("--nbd-server").arg(format!("addr.type=unix,addr.path={},max-connections=8", socket.display()));
    command
        .args(["--export", "type=nbd,id=export,node-name=disk,name=disk,writable=on,iothread=io,fixed-iothread=off"]);
    if let Some(qmp) = qmp {
        command.arg("--chardev").arg(format!("socket,id=qmp,path={},server=on,wait=off", qmp.display()));
        command.args(["--monitor", "chardev=qmp"]);
    }
    Ok(KillOnDrop(command.stdin(Stdio::null()).spawn()?))
}

struct KillOnDrop(Child);

impl KillOnDrop {
    fn kill(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(mut command: Command) -> std::io::Result<Child> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
}

fn run_to_end(command: &mut Command) -> Done {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}
