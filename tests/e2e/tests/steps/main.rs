//! The kill table: source, destination and control plane are killed before and after every step that a migration
//! persists (`every.rs` sees to it), in every course that it can take, and the holder sleeps through its timed lease.
//!
//! The control plane is the real one over a store that holds each step until this test lets it go on; so every case
//! hits its step exactly, and one whose step is not observed fails. Afterwards: the migration has ended, nothing
//! flushed is lost, nothing acknowledged is lost where the client's connection survived, and no two nodes ever held
//! the volume under one epoch.

mod every;
mod run;
mod table;

use drover_e2e::{Cluster, Layout, Random, Steps, assert_one_holder_per_epoch};
use run::{Bench, LEASE_TTL_MS};
use std::{
    panic::AssertUnwindSafe,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};
use table::{Process, Run};

/// Beside as many tests as there are processors.
const LANES: u64 = 2;

/// What never passes in a case.
const LONG: Duration = Duration::from_secs(120);

/// `DROVER_CASE=text`: only the cases whose line has the text in it.
fn is_chosen(line: &str) -> bool {
    std::env::var("DROVER_CASE").map_or(true, |text| line.contains(&text))
}

/// Runs them, a few at once, each lane with processes of its own: they mostly wait.
fn all(mut runs: Vec<Run>, patience: Duration) {
    runs.retain(|run| is_chosen(&line(run)));
    let next = AtomicUsize::new(0);
    let take = || {
        let index = next.fetch_add(1, Relaxed);
        runs.get(index).map(|run| (format!("v{index}"), run))
    };
    thread::scope(|scope| {
        for seed in 1..=LANES {
            scope.spawn(move || lane(take, patience, seed));
        }
    });
}

fn lane<'a>(take: impl Fn() -> Option<(String, &'a Run)>, patience: Duration, seed: u64) {
    let Some(first) = take() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("steps.sock");
    let steps = Steps::listen(&socket);
    let layout = Layout {
        nodes: 3,
        folder: folder.path(),
        tier_size: "1GiB",
        lease_ttl_ms: LEASE_TTL_MS,
        link: None,
        cpus: &[],
        tls: None,
    };
    let program = Path::new(env!("CARGO_BIN_EXE_drover-stepped-control"));
    let mut cluster = Cluster::start_stepped(&layout, program, &socket, patience);
    let mut random = Random::new(seed);
    for (volume, run) in std::iter::successors(Some(first), |_| take()) {
        let line = line(run);
        let begin = Instant::now();
        let mut bench = Bench { cluster: &mut cluster, steps: &steps, random: &mut random };
        let ran = std::panic::catch_unwind(AssertUnwindSafe(|| bench.run(run, &volume)));
        match ran {
            Ok(phase) => println!("{line}: {phase} after {} ms", begin.elapsed().as_millis()),
            Err(panic) => {
                // The folder outlives the test, with the logs of what went wrong.
                eprintln!("{line} failed; DROVER_CASE='{line}' runs it alone. Logs: {}", folder.keep().display());
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert_one_holder_per_epoch(&cluster);
}

fn line(run: &Run) -> String {
    format!("{}: {}", run.course.name, run.title)
}

#[test]
fn the_source_is_killed_at_every_step() {
    all(table::killed(Process::Source), LONG);
}

#[test]
fn the_destination_is_killed_at_every_step() {
    all(table::killed(Process::Destination), LONG);
}

#[test]
fn the_control_plane_is_killed_at_every_step() {
    all(table::killed(Process::Control), LONG);
}

#[test]
fn the_holder_sleeps_through_its_lease() {
    all(table::sleeps(), LONG);
}

#[test]
fn everybody_is_killed_when_the_patience_ends() {
    all(table::late(), Duration::from_secs(3));
}
