//! A move is rolled back before its flip, by the command line, while clients write: the source goes on as if nothing had
//! been, and nothing is left of it anywhere.

use drover_e2e::{Area, Bulk, Client, Cluster, Layout, OnLoss, Writer};
use serde_json::{Value, json};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_move_is_rolled_back_while_it_copies_and_while_it_mirrors() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::start(&Layout::two_nodes(folder.path()));
    cluster.create_volume("v", 16 * MIB, 0);
    let mut client = Client::connect(&cluster.socket(0), "v").expect("the holder answers");
    let bulk = Bulk::write(&mut client, 12 * MIB);
    let writers: Vec<Writer> = (0..2)
        .map(|node| {
            let area = Area { offset: node * MIB, blocks: 64 };
            Writer::start(&cluster.socket(node as usize), "v", area, OnLoss::Fail, node + 1)
        })
        .collect();
    let epoch = cluster.api.get("/v1/leases/v")["epoch"].clone();
    // Throttled, the copy would take twelve seconds.
    for (options, phase) in
        [(json!({ "throttle_bytes_per_s": MIB }), "copying"), (json!({ "cutover": "manual" }), "mirroring")]
    {
        let id = cluster.api.migrate("v", "node-2", options);
        let path = format!("/v1/migrations/{id}");
        cluster.api.wait_for(&path, SOON, |shown| shown["phase"] == phase && shown["bytes_done"] != 0);
        writers.iter().for_each(|writer| writer.wait_flushes(3));
        let asked = cluster.drover(&["migrate", "rollback", &id, "--output", "json"]);
        assert!(asked.status.success(), "while {phase}: {asked:?}");
        let is_over = |shown: &Value| shown["phase"] == "rolled_back" && shown["cleanup_pending"] == json!([]);
        let over = cluster.api.wait_for(&path, SOON, is_over);
        let receipt = &over["receipt"];
        assert_eq!((&receipt["rolled_back"], &receipt["flips"]), (&json!(true), &json!(0)), "{over:#}");
        assert_eq!((&over["error"], &over["way_back"]), (&Value::Null, &json!("none")), "{over:#}");
        let again = cluster.drover(&["migrate", "rollback", &id]);
        assert_eq!(again.status.code(), Some(5), "what is over is not rolled back again: {again:?}");
        check_source_alone(&cluster, &epoch);
        writers.iter().for_each(|writer| writer.wait_flushes(3));
    }
    let id = cluster.api.migrate("v", "node-2", json!({ "retention_ms": 100 }));
    cluster.api.wait_phase(&id, &["committed"], SOON);
    writers.iter().for_each(|writer| writer.wait_flushes(3));
    let written: Vec<_> = writers.into_iter().map(Writer::stop).collect();
    for node in 0..2 {
        written.iter().for_each(|written| written.verify(&cluster.socket(node), "v"));
        bulk.verify(&cluster, node, "v");
    }
}

/// The lease is as before, the base snapshot is gone, and the destination has let its copy go.
fn check_source_alone(cluster: &Cluster, epoch: &Value) {
    let lease = cluster.api.get("/v1/leases/v");
    assert_eq!((&lease["holder"], &lease["epoch"], &lease["ttl_ms"]), (&json!("node-1"), epoch, &Value::Null));
    let has_none = |shown: &Value| shown["items"] == json!([]);
    cluster.api.wait_for("/v1/volumes/v/snapshots", SOON, has_none);
    cluster.api.wait_for("/v1/nodes/node-2", SOON, |node| node["tiers"][0]["used_bytes"] == 0);
}
