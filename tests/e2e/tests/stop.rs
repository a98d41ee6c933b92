//! The holder stands still for longer than its timed lease, is taken over, and wakes up believing that it holds.

use drover_e2e::{Area, BLOCK, Client, Cluster, Layout, OnLoss, Writer};
use serde_json::json;
use std::{thread, time::Duration};

const SOON: Duration = Duration::from_secs(60);
/// A block beside the writer's, for the client of the node that wakes up.
const SLEEPERS: u64 = 48 << 20;

/// longhorn#6642: two active engines. What the gateway's client was answered is there afterwards, through both nodes. What
/// the sleeper's client sent meanwhile goes to the new holder when the sleeper wakes: it is there for both, not at the
/// sleeper alone.
#[test]
fn a_holder_that_slept_through_its_lease_is_no_second_writer() {
    let folder = tempfile::tempdir().expect("a folder");
    let layout = Layout { lease_ttl_ms: 1000, ..Layout::two_nodes(folder.path()) };
    let cluster = Cluster::start(&layout);
    cluster.create_volume("v", 64 << 20, 0);
    let area = Area { offset: 0, blocks: 256 };
    let writer = Writer::start(&cluster.socket(0), "v", area, OnLoss::Fail, 1);
    writer.wait_flushes(5);
    let migration = cluster.api.migrate("v", "node-2", json!({ "commit": "manual" }));
    cluster.api.wait_phase(&migration, &["settling"], SOON);
    cluster.api.wait_for(&format!("/v1/migrations/{migration}"), SOON, |shown| shown["way_back"] == "open");
    let mut sleepers = Client::connect(&cluster.socket(1), "v").expect("the holder answers");
    assert_eq!(sleepers.write(SLEEPERS, &[1; BLOCK]).expect("it lives"), 0);
    writer.wait_flushes(5);
    let epoch = cluster.api.get("/v1/leases/v")["epoch"].as_u64().expect("an epoch");

    cluster.nodes[1].pause();
    // Lies in the holder's socket until it wakes.
    let asked = thread::spawn(move || {
        let error = sleepers.write(SLEEPERS, &[2; BLOCK]).expect("the sleeper's connection lives");
        (error, sleepers)
    });
    let lease = cluster.api.wait_for("/v1/leases/v", SOON, |lease| lease["holder"] == "node-1");
    assert!(lease["epoch"].as_u64() > Some(epoch), "{lease}");
    // The old holder still sleeps: the new one serves without it.
    writer.wait_flushes(20);
    cluster.nodes[1].resume();

    let (error, mut sleepers) = asked.join().expect("no panic");
    cluster.api.wait_phase(&migration, &["rolled_back"], SOON);
    writer.wait_flushes(20);
    let written = writer.stop();
    assert_eq!(error, 0, "a request that waits is held, and answered by the new holder");
    let read = sleepers.read(SLEEPERS).expect("the sleeper's connection lives").expect("no error");
    assert!(read == [2; BLOCK], "through the old holder: {:?}", &read[..8]);
    let mut other = Client::connect(&cluster.socket(0), "v").expect("the new holder answers");
    let read = other.read(SLEEPERS).expect("it lives").expect("no error");
    assert!(read == [2; BLOCK], "at the new holder: {:?}", &read[..8]);
    for node in 0..2 {
        written.verify(&cluster.socket(node), "v");
    }
}
