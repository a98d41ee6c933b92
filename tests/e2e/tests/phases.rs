//! The kill table: source, destination and control plane killed in every phase of a migration that can be held still.
//!
//! A case whose phase was not observed fails. After each kill the process comes back, the migration has to end, and
//! a client of an endpoint that lives on must have seen neither an error nor anything but what was acknowledged.

use drover_e2e::{Area, Cluster, Layout, OnLoss, Writer};
use serde_json::{Value, json};
use std::{
    thread,
    time::{Duration, Instant},
};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 32 * MIB;
/// Generous: a phase takes less than a second, a lease two.
const SOON: Duration = Duration::from_secs(30);
const END: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Source,
    Destination,
    Control,
}

/// What is done to be killed in a phase.
struct Case {
    phase: &'static str,
    /// The options that hold the migration there.
    options: fn() -> Value,
}

const CASES: [Case; 4] = [
    Case { phase: "copying", options: || json!({ "throttle_bytes_per_s": MIB, "cutover": "manual" }) },
    Case { phase: "mirroring", options: || json!({ "cutover": "manual" }) },
    // Asked to flip while the destination stands still.
    Case { phase: "flipping", options: || json!({ "cutover": "manual", "pause_ms_max": 30_000 }) },
    Case { phase: "settling", options: || json!({ "commit": "manual" }) },
];

/// What all cases let go in the end.
fn released() -> Value {
    json!({ "throttle_bytes_per_s": 0, "cutover": "auto", "commit": "auto", "retention_ms": 500 })
}

impl Victim {
    fn kill(self, cluster: &mut Cluster) {
        self.of(cluster).kill();
    }

    fn start(self, cluster: &mut Cluster) {
        self.of(cluster).start().expect("it starts again");
    }

    fn of(self, cluster: &mut Cluster) -> &mut drover_e2e::Daemon {
        match self {
            Self::Source => &mut cluster.nodes[0],
            Self::Destination => &mut cluster.nodes[1],
            Self::Control => &mut cluster.control,
        }
    }
}

fn run(victim: Victim) {
    let folder = tempfile::tempdir().expect("a folder");
    let layout =
        Layout { nodes: 2, folder: folder.path(), tier_size: "1GiB", lease_ttl_ms: 2000, link: None, cpus: &[] };
    let mut cluster = Cluster::start(&layout);
    for case in &CASES {
        let begin = Instant::now();
        let outcome = run_case(&mut cluster, victim, case);
        println!("{victim:?} killed in {}: {outcome} after {} ms", case.phase, begin.elapsed().as_millis());
    }
}

fn run_case(cluster: &mut Cluster, victim: Victim, case: &Case) -> String {
    let volume = case.phase;
    cluster.create_volume(volume, SIZE, 0);
    let old = filled(cluster, volume);
    let survivor = usize::from(victim == Victim::Source);
    let area = Area { offset: 0, blocks: 256 };
    let writer = Writer::start(&cluster.socket(survivor), volume, area, OnLoss::Fail, 2);
    writer.wait_flushes(3);

    let migration = cluster.api.migrate(volume, "node-2", (case.options)());
    let path = format!("/v1/migrations/{migration}");
    if case.phase == "flipping" {
        wait_synced(cluster, &path);
        cluster.nodes[1].pause();
        cluster.api.insist("POST", &format!("{path}/cutover"), &json!({}), SOON);
    }
    cluster.api.wait_phase(&migration, &[case.phase], SOON);
    victim.kill(cluster);
    if case.phase == "flipping" && victim != Victim::Destination {
        cluster.nodes[1].resume();
    }
    thread::sleep(Duration::from_millis(300));
    victim.start(cluster);
    cluster.wait_for_nodes();

    // Refused only once it has ended by itself, as after a takeover.
    let ends = ["committed", "rolled_back"];
    let now = cluster.api.wait_for(&path, SOON, |_| true);
    let has_ended = ends.map(Value::from).contains(&now["phase"]);
    if !has_ended && let Err(failure) = cluster.api.request("PATCH", &path, Some(&released())) {
        println!("{victim:?} {}: not released: {failure:?}", case.phase);
    }
    let ended = cluster.api.wait_phase(&migration, &ends, END);
    writer.wait_flushes(3);
    let written = writer.stop();
    for node in 0..2 {
        written.verify(&cluster.socket(node), volume);
        old.verify(&cluster.socket(node), volume);
    }
    let phase = ended["phase"].as_str().expect("a phase").to_owned();
    let holder = if phase == "committed" { "node-2" } else { "node-1" };
    let lease = cluster.api.get(&format!("/v1/leases/{volume}"));
    assert_eq!(lease["holder"], holder, "{victim:?} {}: {lease:#}", case.phase);
    phase
}

/// Content beside what the writer writes, more than a throttled migration can copy in the time that a kill takes.
fn filled(cluster: &Cluster, volume: &str) -> drover_e2e::Written {
    let area = Area { offset: 4 * MIB, blocks: (SIZE - 4 * MIB) / 4096 };
    let writer = Writer::start(&cluster.socket(0), volume, area, OnLoss::Fail, 1);
    writer.wait_flushes(500);
    writer.stop()
}

/// Waits until nothing but the word to flip is missing.
fn wait_synced(cluster: &Cluster, path: &str) {
    cluster.api.wait_for(path, SOON, |migration| {
        migration["phase"] == "mirroring"
            && migration["waits_for"].as_str().is_some_and(|what| what.contains("cutover"))
    });
}

#[test]
fn the_source_is_killed() {
    run(Victim::Source);
}

#[test]
fn the_destination_is_killed() {
    run(Victim::Destination);
}

#[test]
fn the_control_plane_is_killed() {
    run(Victim::Control);
}
