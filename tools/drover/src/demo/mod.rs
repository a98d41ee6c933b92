//! `drover demo`: a live volume moves between two nodes under load, goes back without loss, and moves again; then it moves
//! hot first.
//!
//! ```text
//!  fio, prober ──unix socket──► node-1 ◄══ 1 Gbit/s ══► node-2
//!      │                           └── control plane ──────┘
//!      └ 8 GiB: | ext4 image of /usr, 6 GiB | free area: fio | … | prober's block |
//! ```
//! Everything runs as processes of its own and is gone afterwards, also when something fails or Ctrl-C is pressed.

mod hot_first;
mod image;
mod load;
mod network;
mod probe;
mod receipt;
mod sabotage;

use crate::arguments::Demo;
use crate::client::Client;
use crate::commands::{ask, block_on, create_export, create_volume, get_migration};
use crate::copy;
use crate::daemons::cluster::{Cluster, NodePlan, Plan};
use crate::daemons::{Signals, die_with_parent};
use crate::failure::{Context, Exit, Failure};
use crate::output::{Output, show_ms};
use crate::progress::Progress;
use drover_base::text::show_bytes;
use drover_node::nbd::NbdUri;
use drover_types::{Action, CommitPolicy, Migration, MigrationOptions, Phase, StartMigration, Volume, WayBack};
use image::Image;
use load::{Area, Load, Mode};
use network::{ADDRESSES, Network};
use probe::Probe;
use receipt::{Checks, Receipt};
use std::fs::DirBuilder;
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt};

const GIB: u64 = 1 << 30;
const VOLUME_BYTES: u64 = 8 * GIB;
const IMAGE_BYTES: u64 = 6 * GIB;
const TIER_BYTES: u64 = 12 * GIB;

/// Where fio writes and verifies all the time: small, so that a round takes seconds.
const LOAD_AREA: (u64, u64) = (6 * GIB, 96 << 20);
/// Where fio writes after the first flip and verifies after the rollback.
const FLIP_AREA: (u64, u64) = (7 * GIB, 64 << 20);
const PROBE_OFFSET: u64 = VOLUME_BYTES - 4096;
const LOAD_BYTES_PER_S: u64 = 20_000_000;

/// What is needed for files: the image, two copies of the volume, and a copy to check.
const DISK_BYTES: u64 = 16 * GIB;

/// How long one phase may take before the demo gives up.
const PHASE_DEADLINE: Duration = Duration::from_secs(120);

const TOOLS: [&str; 5] = ["fio", "nbdcopy", "mke2fs", "e2fsck", "ip"];

pub fn run(arguments: &Demo, output: Output) -> Result<(), Failure> {
    check_tools()?;
    let dir = Dir::make(arguments)?;
    let stop = Stop::default();
    let result = block_on(async {
        let mut signals = Signals::listen()?;
        let result = tokio::select! {
            biased;
            () = signals.stop() => Ok(None),
            receipt = demo(arguments, output, &dir.path, &stop) => receipt.map(Some),
        };
        // The runtime waits for the threads of `blocking`.
        stop.ask();
        result
    });
    // What it started has been dropped by now; its files go with this.
    drop(dir);
    match result? {
        None => std::process::exit(130),
        Some(receipt) => {
            output.show(&receipt, receipt::show)?;
            if receipt.verified { Ok(()) } else { Err(Failure::failed("the demo's data was NOT verified")) }
        }
    }
}

fn check_tools() -> Result<(), Failure> {
    let missing: Vec<&str> = TOOLS.into_iter().filter(|tool| find(tool).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::usage(format!("the demo needs {}", missing.join(", ")))
        .hint("make setup, or: apt-get install fio libnbd-bin e2fsprogs iproute2"))
}

/// Where a program lies. mke2fs and e2fsck are in folders that are not on the path of everybody.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// The demo's directory, removed when dropped unless it is to be kept.
struct Dir {
    path: PathBuf,
    keep: bool,
}

impl Dir {
    fn make(arguments: &Demo) -> Result<Self, Failure> {
        let base = arguments.dir.clone().unwrap_or_else(std::env::temp_dir);
        let path = base.join(format!("drover-demo-{}", std::process::id()));
        // A new one, for nobody else to look into or to have put something there before.
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.or_fail(|| format!("cannot make {}", path.display()))?;
        let dir = Self {
            path: path.canonicalize().or_fail(|| format!("cannot find {}", path.display()))?,
            keep: arguments.keep,
        };
        let free = free_bytes(&dir.path)?;
        if free < DISK_BYTES {
            let message =
                format!("{} has {} free, the demo needs {}", path.display(), show_bytes(free), show_bytes(DISK_BYTES));
            return Err(Failure::usage(message).hint("choose another place by --dir"));
        }
        Ok(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if self.keep {
            eprintln!("kept: {}", self.path.display());
        } else if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("{} stays behind: {error}", self.path.display());
        }
    }
}

fn free_bytes(path: &Path) -> Result<u64, Failure> {
    let output = Command::new("df").args(["--output=avail", "-B1"]).arg(path).output();
    let output = output.or_fail(|| "cannot run df".into())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().nth(1).and_then(|line| line.trim().parse().ok()).ok_or_else(|| Failure::failed("df tells nothing"))
}

/// What the parts of the demo share.
struct Stage<'a> {
    output: Output,
    dir: &'a Path,
    plan: Plan,
    client: Client,
    volume: Volume,
    uri: NbdUri,
    network: Option<Network>,
}

impl Stage<'_> {
    /// Of migrations, where there is no link of its own.
    fn throttle(&self) -> Option<u64> {
        self.network.is_none().then_some(network::RATE_BITS / 8)
    }
}

async fn demo(arguments: &Demo, output: Output, dir: &Path, stop: &Stop) -> Result<Receipt, Failure> {
    let begin = Instant::now();
    let (network, link) = link(output);
    let plan = plan(dir, network.as_ref())?;
    output.say(&format!(
        "making an ext4 image of {} from at most {} of /usr ...",
        show_bytes(IMAGE_BYTES),
        show_bytes(arguments.data_max)
    ));
    let image = image::make(dir, IMAGE_BYTES, arguments.data_max, stop).await?;
    output.say(&format!(
        "image: {} files of {}; ready after {}",
        image.files,
        show_bytes(image.data_bytes),
        since(begin)
    ));

    let mut cluster = Cluster::start(&plan).await?;
    let client = plan.client()?;
    let volume = create_volume(&client, "demo", VOLUME_BYTES, Some(plan.nodes[0].name.clone()), None).await?;
    create_export(&client, &volume, &plan.nodes[0].name, None).await?;
    let uri = endpoint(&plan.nodes[0].nbd_socket(&plan), "demo")?;
    let stage = Stage { output, dir, plan, client, volume, uri, network };
    let mut progress = Progress::new(output, "import");
    let copied = copy::file_into_nbd(&image.path, &stage.uri, &mut progress).await?;
    progress.finish();
    output.say(&format!("{} imported over NBD; after {}", show_bytes(copied.data_bytes), since(begin)));

    let acted = act(&stage, &mut cluster).await?;
    if arguments.sabotage {
        let slots = stage.plan.nodes[0].slots(&stage.plan);
        let image = image.path.clone();
        let flipped = blocking(move || sabotage::flip_a_byte(&image, &slots)).await?;
        output.say(&format!("SABOTAGE: flipped a byte of image block {} in node-1's device file", flipped));
    }
    let checked = check(&stage, image, stop).await?;
    let checks = Checks { image_digest: checked.0, file_system: checked.1, ..acted.checks };
    let receipt = Receipt::new(acted.receipt(checks), link, arguments.sabotage, begin.elapsed());
    let late = cluster.stop().await;
    if !late.is_empty() {
        output.say(&format!("killed, since they did not stop in time: {}", late.join(", ")));
    }
    Ok(receipt)
}

/// The limited link, and how it is limited. Without the rights for one, migrations are throttled instead.
fn link(output: Output) -> (Option<Network>, &'static str) {
    match Network::create() {
        Ok(network) => (Some(network), "network namespaces, veth limited to 1 Gbit/s by tbf"),
        Err(failure) => {
            output.say(&format!(
                "no network namespaces here ({}): the migration is throttled to 1 Gbit/s instead",
                failure.cause.unwrap_or(failure.message)
            ));
            (None, "loopback, migrations throttled to 1 Gbit/s")
        }
    }
}

fn plan(dir: &Path, network: Option<&Network>) -> Result<Plan, Failure> {
    // Free at this moment; nobody else is likely to take it in the next.
    let rest = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let rest = rest.or_fail(|| "cannot find a free port".into())?;
    let node = |side: usize| NodePlan {
        name: format!("node-{}", side + 1),
        netns: network.map(|network| network.name(side).into()),
        peer: network.map(|_| format!("{}:7612", ADDRESSES[side])),
        tier_bytes: TIER_BYTES,
    };
    Ok(Plan { dir: dir.into(), rest: rest.to_string(), nodes: vec![node(0), node(1)] })
}

fn endpoint(socket: &Path, export: &str) -> Result<NbdUri, Failure> {
    let text = format!("nbd+unix:///{export}?socket={}", socket.display());
    text.parse().or_fail(|| format!("{text} is not an NBD URI"))
}

fn since(begin: Instant) -> String {
    show_ms(begin.elapsed().as_millis() as u64)
}

/// What happened on stage.
struct Acted {
    first: Migration,
    second: Migration,
    hot: Migration,
    load: load::Done,
    probe: probe::Seen,
    waits: Vec<(String, Duration)>,
    link_bytes: Option<u64>,
    checks: Checks,
}

impl Acted {
    fn receipt(self, checks: Checks) -> receipt::Story {
        receipt::Story {
            first: self.first,
            second: self.second,
            hot: self.hot,
            load: self.load,
            probe: self.probe,
            waits: self.waits,
            link_bytes: self.link_bytes,
            checks,
        }
    }
}

async fn act(stage: &Stage<'_>, cluster: &mut Cluster) -> Result<Acted, Failure> {
    let log = stage.dir.join("fio.log");
    let area = |(offset, len)| Area { uri: stage.uri.to_string(), offset, len, rate: LOAD_BYTES_PER_S };
    let probe = Probe::start(stage.uri.clone(), PROBE_OFFSET)?;
    let load = Load::start(area(LOAD_AREA), log.clone());
    let mut watch = Watch { stage, cluster, probe: &probe, waits: Vec::new() };
    tokio::time::sleep(Duration::from_secs(1)).await;
    watch.note("before");

    let first = start(stage, CommitPolicy::Manual).await?;
    let is_mirrored_back = |seen: &Migration| seen.phase == Phase::Settling && seen.way_back == WayBack::Open;
    watch.reach("there", &first.id, is_mirrored_back).await?;
    let flip_area = area(FLIP_AREA);
    stage.output.say("fio writes after the flip ...");
    let written = load::run(&flip_area, Mode::WriteOnly, 77, &log).await?;
    stage.output.say("... and the volume goes back");
    ask(&stage.client, &first.id, Action::Rollback).await?;
    let first = watch.reach("back", &first.id, |seen| seen.phase == Phase::RolledBack).await?;
    let verified = load::run(&flip_area, Mode::VerifyOnly, 77, &log).await?;
    stage.output.say(&format!(
        "{} written after the flip verified after the rollback: {} errors",
        show_bytes(verified.read_bytes),
        verified.errors
    ));

    let sent = |side: usize| stage.network.as_ref().and_then(|network| network.sent_bytes(side));
    let before = sent(0);
    let second = start(stage, CommitPolicy::Auto).await?;
    watch.reach("again", &second.id, |seen| seen.phase == Phase::Settling || seen.phase.is_final()).await?;
    let link_bytes = sent(0).zip(before).map(|(after, before)| after - before);
    let second = watch.reach("again", &second.id, |seen| seen.phase == Phase::Committed).await?;
    let (hot, image_read) = hot_first::act(stage, &mut watch).await?;
    let waits = watch.waits;
    stage.output.say("committed; fio ends its round and verifies ...");
    let rounds = load.rounds();
    let mut load = load.finish().await?;
    let probe = blocking(move || probe.finish()).await?;
    stage.output.say(&format!("{rounds} rounds of fio, {} errors", load.errors));
    load.written_bytes += written.written_bytes;
    load.read_bytes += verified.read_bytes;
    load.errors += written.errors + verified.errors + image_read.errors;
    let checks = Checks {
        fio: load.errors == 0 && load.read_bytes > 0,
        after_rollback: verified.errors == 0 && verified.read_bytes >= FLIP_AREA.1,
        prober: probe.errors == 0,
        mostly_remote: hot_first::was_mostly_remote(&hot),
        ..Checks::default()
    };
    Ok(Acted { first, second, hot, load, probe, waits, link_bytes, checks })
}

async fn start(stage: &Stage<'_>, commit: CommitPolicy) -> Result<Migration, Failure> {
    let throttle_bytes_per_s = stage.throttle();
    let options = MigrationOptions { commit, retention_ms: 1_000, throttle_bytes_per_s, ..MigrationOptions::default() };
    start_move(stage, 1, options).await
}

/// Moves the volume to the node of this place in the plan.
async fn start_move(stage: &Stage<'_>, to: usize, options: MigrationOptions) -> Result<Migration, Failure> {
    let destination = stage.plan.nodes[to].name.clone();
    let request = StartMigration { volume: stage.volume.id.clone(), destination, options };
    stage.client.post("/v1/migrations", &request).await
}

/// Follows migrations, and tells how long the prober waited in each of their phases.
struct Watch<'a> {
    stage: &'a Stage<'a>,
    cluster: &'a mut Cluster,
    probe: &'a Probe,
    /// The prober's longest wait in each part, in order.
    waits: Vec<(String, Duration)>,
}

impl Watch<'_> {
    /// What the prober waited since the last note was in this part.
    fn note(&mut self, part: &str) {
        let longest = self.probe.take_longest();
        match self.waits.last_mut() {
            Some((last, before)) if last == part => *before = longest.max(*before),
            _ => self.waits.push((part.into(), longest)),
        }
    }

    /// Follows a migration until it is where it should be.
    async fn reach(
        &mut self,
        way: &str,
        id: &str,
        is_there: impl Fn(&Migration) -> bool,
    ) -> Result<Migration, Failure> {
        let begin = Instant::now();
        let mut progress = Progress::new(self.stage.output, "migrate");
        let mut phase: Option<Phase> = None;
        loop {
            self.cluster.check()?;
            let seen = get_migration(&self.stage.client, id).await?;
            self.note(&format!("{way}, {}", phase.unwrap_or(seen.phase)));
            if phase != Some(seen.phase) {
                progress.say(&format!("{:>8}  {}", since(begin), seen.phase));
                phase = Some(seen.phase);
            }
            progress.set(seen.bytes_done, seen.bytes_total, &format!("{}/s", show_bytes(seen.rate_bytes_per_s)));
            if is_there(&seen) {
                progress.finish();
                return Ok(seen);
            }
            let failed = || Failure::failed(format!("the migration is {}", seen.phase));
            if let Some(error) = &seen.error {
                return Err(failed().cause(error.cause.clone().unwrap_or(error.message.clone())));
            }
            if seen.phase.is_final() || begin.elapsed() > PHASE_DEADLINE {
                return Err(failed().cause(seen.waits_for.unwrap_or_else(|| "it does not go on".into())));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Copies the volume from its new home with another program: does the image have its digest, and is the file system
/// clean?
async fn check(stage: &Stage<'_>, image: Image, stop: &Stop) -> Result<(bool, bool), Failure> {
    stage.output.say("copying the volume from node-1 with nbdcopy, to compare and to e2fsck ...");
    let node = &stage.plan.nodes[0];
    create_export(&stage.client, &stage.volume, &node.name, Some("check")).await?;
    let uri = endpoint(&node.nbd_socket(&stage.plan), "check")?.to_string();
    let copy = stage.dir.join("copy.ext4");
    if !tool("nbdcopy", |command| command.arg(&uri).arg(&copy)).await?.status.success() {
        return Ok((false, false));
    }
    let (place, own) = (copy.clone(), stop.clone());
    let is_equal = blocking(move || Ok(image::digest(&place, IMAGE_BYTES, &own)? == image.digest)).await?;
    let file = std::fs::File::options().write(true).open(&copy).or_fail(|| "cannot open the copy".into())?;
    file.set_len(IMAGE_BYTES).or_fail(|| "cannot shorten the copy".into())?;
    let fsck = tool("e2fsck", |command| command.args(["-f", "-n"]).arg(&copy)).await?;
    Ok((is_equal, fsck.status.success()))
}

/// Runs another program to its end. It is gone where nobody waits for it any more: the demo was stopped.
async fn tool(
    name: &str,
    arguments: impl FnOnce(&mut Command) -> &mut Command,
) -> Result<std::process::Output, Failure> {
    let mut command = Command::new(find(name).unwrap_or_else(|| name.into()));
    arguments(&mut command).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    die_with_parent(&mut command);
    let child = tokio::process::Command::from(command).spawn();
    let mut child = Running(child.or_fail(|| format!("cannot run {name}"))?);
    let (stdout, stderr) = (child.0.stdout.take(), child.0.stderr.take());
    let (status, stdout, stderr) = tokio::join!(child.0.wait(), read_all(stdout), read_all(stderr));
    let failed = || format!("cannot run {name}");
    Ok(std::process::Output {
        status: status.or_fail(failed)?,
        stdout: stdout.or_fail(failed)?,
        stderr: stderr.or_fail(failed)?,
    })
}

async fn read_all(pipe: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        pipe.read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// Another program. Dropped, it is killed and waited for: what it has open is removed next.
struct Running(tokio::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It fails where the program has ended.
        let _ = self.0.start_kill();
        while matches!(self.0.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Tells threads that the demo was stopped.
#[derive(Clone, Default)]
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
    /// An error once it was asked for.
    fn check(&self) -> Result<(), Failure> {
        if self.0.load(Ordering::Relaxed) { Err(Failure::failed("the demo was stopped")) } else { Ok(()) }
    }
}

/// Runs on a thread of its own what would hold up the signals.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Failure::new(Exit::Failed, "a part of the demo panicked").cause(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// mke2fs was killed with the demo, but went on to write for as long as it took to die, into what was being removed.
    #[test]
    fn a_program_that_nobody_waits_for_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let script = format!("echo $$ > {}; exec sleep 600", pid.display());
        block_on(async {
            let running = tool("sh", |command| command.args(["-c", &script]));
            let started = async {
                while std::fs::read_to_string(&pid).map_or(true, |text| text.trim().is_empty()) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::select! {
                biased;
                _ = running => panic!("it sleeps for long"),
                () = started => Ok(()),
            }
        })
        .unwrap();
        let id = std::fs::read_to_string(&pid).unwrap();
        assert!(!Path::new("/proc").join(id.trim()).exists());
    }

    #[test]
    fn what_a_program_says_is_read_to_its_end() {
        let script = "head -c 300000 /dev/zero; echo sorry >&2; exit 3";
        let output = block_on(tool("sh", |command| command.args(["-c", script]))).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(3), 300_000));
        assert_eq!(output.stderr, b"sorry\n");
    }
}
