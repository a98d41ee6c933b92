//! A random writer of 50 MB/s before and during a move, on loopback; in turn with both modes of blockdev-mirror.
//!
//! One fio writes all the time and notes each request; what ended within a window is counted. So "during" is from the
//! start of a move to its commit (of a mirror: to the completion), and nothing else.

use crate::{
    Done,
    fio::{self, Load, Logged},
    mirror::Pair,
    moving::{MS, SECONDS, loopback, move_volume},
    record::{IOPS, Report, median},
    room::{MEMORY, Need},
};
use drover_e2e::Cluster;
use std::{
    error::Error,
    path::Path,
    thread,
    time::{Duration, SystemTime},
};

const BYTES: u64 = 2 << 30;
/// The volume at both sides, the mirror's two disks, logs of requests.
pub const NEED: Need = Need { folder: MEMORY, bytes: 5 * BYTES };
/// What the writer wants to write.
const WRITER_BYTES_PER_S: u64 = 50_000_000;
/// fio needs a moment until it writes evenly.
const WARM_UP: Duration = Duration::from_secs(1);
const BEFORE: Duration = Duration::from_secs(3);
/// After this time a mirror counts as never ending.
const MIRROR_LIMIT: Duration = Duration::from_secs(20);

/// The writer keeps so much of its IOPS.
const KEPT_AIM: f64 = 0.8;

/// One column of each: the writer's IOPS and p99 before and during, and how long the move took.
#[derive(Default)]
struct Series {
    before_iops: Vec<f64>,
    during_iops: Vec<f64>,
    /// The share of its IOPS that the writer kept, 0 to 1.
    kept: Vec<f64>,
    before_ms: Vec<f64>,
    during_ms: Vec<f64>,
    took_s: Vec<f64>,
    ended: usize,
}

pub fn run(report: &mut Report, rounds: usize) -> Done {
    let folder = tempfile::tempdir_in(MEMORY)?;
    let (mut ours, mut blocking, mut background) = (Series::default(), Series::default(), Series::default());
    {
        let cluster = Cluster::start(&loopback(folder.path()));
        cluster.create_volume("live", BYTES, 0);
        // Written through the endpoint where it began, whichever side holds the volume.
        let uri = cluster.uri(0, "live");
        fio::fill(&uri, BYTES)?;
        for round in 0..rounds {
            ours.measure(&uri, folder.path(), || move_volume(&cluster, "live", (round + 1) % 2).map(|_| true))?;
            for (mode, series) in [("write-blocking", &mut blocking), ("background", &mut background)] {
                let mut pair = Pair::start(folder.path(), BYTES)?;
                fio::fill(&pair.uri, BYTES)?;
                let uri = pair.uri.clone();
                series.measure(&uri, folder.path(), || pair.mirror(mode, MIRROR_LIMIT))?;
            }
        }
    }
    for (mode, peer) in [("write-blocking", &blocking), ("background", &background)] {
        let name = match peer.ended == rounds {
            true => format!("blockdev-mirror {mode}"),
            false => format!("blockdev-mirror {mode} (ended {} of {rounds} times)", peer.ended),
        };
        tell(report, &name, &ours, peer)?;
    }
    before_and_during(report, "", "ours before it", &ours)?;
    before_and_during(report, ", blockdev-mirror write-blocking", "itself before it", &blocking)?;
    before_and_during(report, ", blockdev-mirror background", "itself before it", &background)?;
    let kept = median(&ours.kept);
    report.aim(format!("50 MB/s writer keeps {kept:.2} of its IOPS, aim at least {KEPT_AIM}"), kept >= KEPT_AIM);
    let ended = ours.ended;
    report.aim(format!("50 MB/s writer: {ended} of {rounds} moves ended, aim all"), ended == rounds);
    Ok(())
}

fn tell(report: &mut Report, name: &str, ours: &Series, peer: &Series) -> Done {
    let kept = "50 MB/s writer, share of its IOPS kept during a move";
    report.compare(kept, name, ("of 1", "higher"), &ours.kept, &peer.kept)?;
    report.compare("50 MB/s writer, IOPS during a move", name, IOPS, &ours.during_iops, &peer.during_iops)?;
    report.compare("50 MB/s writer, p99 during a move", name, MS, &ours.during_ms, &peer.during_ms)?;
    report.compare("50 MB/s writer, time of a move of 2 GiB", name, SECONDS, &ours.took_s, &peer.took_s)?;
    Ok(())
}

/// What a move did to its own writer: "ours" is during, "peer" before. `whose` ends the case's name.
fn before_and_during(report: &mut Report, whose: &str, before: &str, series: &Series) -> Done {
    let Series { before_iops, during_iops, before_ms, during_ms, .. } = series;
    report.compare(format!("50 MB/s writer, IOPS during a move{whose}"), before, IOPS, during_iops, before_iops)?;
    report.compare(format!("50 MB/s writer, p99 during a move{whose}"), before, MS, during_ms, before_ms)?;
    Ok(())
}

impl Series {
    /// Runs the writer, and in its midst `moving`, which tells whether it ended.
    fn measure(
        &mut self,
        uri: &str,
        folder: &Path,
        moving: impl FnOnce() -> Result<bool, Box<dyn Error>>,
    ) -> Result<(), Box<dyn Error>> {
        let load = Load {
            rw: "randwrite",
            block_bytes: 4096,
            depth: 8,
            seconds: Some(600),
            range_bytes: BYTES,
            cpu: None,
            flush_every: 0,
            rate_bytes: WRITER_BYTES_PER_S,
        };
        let writer = Logged::start(uri, &load, folder)?;
        thread::sleep(WARM_UP);
        let begin = SystemTime::now();
        thread::sleep(BEFORE);
        let start = SystemTime::now();
        let ended = moving();
        let end = SystemTime::now();
        let requests = writer.stop()?;
        let ended = ended?;
        let (iops_before, p99_before_us) = requests.within(begin, start)?;
        let (iops_during, p99_during_us) = requests.within(start, end)?;
        self.before_iops.push(iops_before);
        self.during_iops.push(iops_during);
        self.kept.push(iops_during / iops_before);
        self.before_ms.push(p99_before_us / 1e3);
        self.during_ms.push(p99_during_us / 1e3);
        self.took_s.push(end.duration_since(start)?.as_secs_f64());
        self.ended += usize::from(ended);
        Ok(())
    }
}
