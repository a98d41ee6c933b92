//! What users of others suffered from and no smaller test shows.

use drover_e2e::{Area, BLOCK, Client, Cluster, Layout, OnLoss, Writer};
use serde_json::{Value, json};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);

/// Beside the writer's blocks.
const KEPT: u64 = 8 * MIB;

fn snapshots(cluster: &Cluster) -> Vec<Value> {
    let shown = cluster.api.get("/v1/volumes/v/snapshots");
    shown["items"].as_array().expect("a page").iter().map(|item| item["name"].clone()).collect()
}

/// OpenNebula#5444: a migration that failed deleted the image that others shared. Here the snapshot that a volume
/// stands on outlives a move that is cancelled and one that is rolled back after its flip, with its content; and what
/// the moves froze themselves is gone.
#[test]
fn what_the_volume_stands_on_outlives_a_failed_move() {
    let folder = tempfile::tempdir().expect("a folder");
    let layout = Layout { tier_size: "256MiB", ..Layout::two_nodes(folder.path()) };
    let cluster = Cluster::start(&layout);
    cluster.create_volume("v", 16 * MIB, 0);
    let mut client = Client::connect(&cluster.socket(0), "v").expect("the holder answers");
    assert_eq!(client.write(KEPT, &[1; BLOCK]).expect("it lives"), 0);
    cluster.api.post("/v1/volumes/v/snapshots", json!({ "name": "kept" }));
    assert_eq!(client.write(KEPT, &[2; BLOCK]).expect("it lives"), 0);
    let area = Area { offset: 0, blocks: 256 };
    let writer = Writer::start(&cluster.socket(1), "v", area, OnLoss::Fail, 1);
    for (options, held_in, action) in [
        (json!({ "cutover": "manual" }), "mirroring", "cancel"),
        (json!({ "commit": "manual" }), "settling", "rollback"),
    ] {
        let migration = cluster.api.migrate("v", "node-2", options);
        cluster.api.wait_phase(&migration, &[held_in], SOON);
        writer.wait_flushes(3);
        cluster.api.insist("POST", &format!("/v1/migrations/{migration}/{action}"), &json!({}), SOON);
        cluster.api.wait_phase(&migration, &["rolled_back"], SOON);
        cluster.api.wait_for("/v1/volumes/v/snapshots", SOON, |shown| {
            shown["items"].as_array().is_some_and(|items| items.len() == 1)
        });
        assert_eq!(snapshots(&cluster), ["kept"], "after {action}");
        assert_eq!(client.read(KEPT).expect("it lives"), Ok([2; BLOCK]), "after {action}");
    }
    writer.wait_flushes(3);
    writer.stop().verify(&cluster.socket(0), "v");
    drop(client);
    cluster.api.insist("POST", "/v1/volumes/v/snapshots/kept/rollback", &json!({}), SOON);
    let mut client = Client::connect(&cluster.socket(0), "v").expect("the holder answers");
    assert_eq!(client.read(KEPT).expect("it lives"), Ok([1; BLOCK]), "the snapshot's content");
}
