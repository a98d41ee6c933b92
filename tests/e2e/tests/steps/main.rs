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
    time::{Duration, Instant},
};
use table::{Process, Run};

/// What never passes in a case.
const LONG: Duration = Duration::from_secs(120);

/// `DROVER_CASE=text`: only the cases whose line has the text in it.
fn is_chosen(line: &str) -> bool {
    std::env::var("DROVER_CASE").map_or(true, |text| line.contains(&text))
}

fn all(runs: Vec<Run>, patience: Duration) {
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
    };
    let program = Path::new(env!("CARGO_BIN_EXE_drover-stepped-control"));
    let mut cluster = Cluster::start_stepped(&layout, program, &socket, patience);
    let mut random = Random::new(1);
    for (index, run) in runs.iter().enumerate() {
        let line = format!("{}: {}", run.course.name, run.title);
        if !is_chosen(&line) {
            continue;
        }
        let begin = Instant::now();
        let mut bench = Bench { cluster: &mut cluster, steps: &steps, random: &mut random };
        let ran = std::panic::catch_unwind(AssertUnwindSafe(|| bench.run(run, &format!("v{index}"))));
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
