//! A volume with a past moves between real processes: back after a flip, and for good. Each of its snapshots is, wherever
//! it is, what it was when it was taken.

use drover_e2e::{Area, BLOCK, Client, Cluster, Fio, Layout, OnLoss, Writer};
use serde_json::{Value, json};
use std::{path::Path, time::Duration};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);
const SIZE: u64 = 16 * MIB;
/// Beyond it a writer works all the while; snapshots are compared up to here.
const STILL: u64 = 12 * MIB;

fn content(socket: &Path, export: &str) -> Vec<u8> {
    let mut client = Client::connect(socket, export).expect("the export answers");
    let blocks = 0..STILL / BLOCK as u64;
    blocks.flat_map(|at| client.read(at * BLOCK as u64).expect("it lives").expect("it can be read")).collect()
}

/// Names and creation times.
fn listed(cluster: &Cluster) -> Vec<(Value, Value)> {
    let shown = cluster.api.get("/v1/volumes/v/snapshots");
    let items = shown["items"].as_array().expect("a page").iter();
    let made = items.filter(|item| !item["name"].as_str().is_some_and(|name| name.starts_with("drover-")));
    made.map(|item| (item["name"].clone(), item["created_ms"].clone())).collect()
}

/// fio writes part of the volume, some of it is trimmed, and a snapshot is taken; what it shows.
fn one_more(cluster: &Cluster, folder: &Path, number: u64) -> (String, Vec<u8>) {
    let area = Area { offset: number * 2 * MIB, blocks: 3 * MIB / BLOCK as u64 };
    let fio = Fio::prepare(&cluster.endpoint(0), "v", area, folder, number);
    fio.write_and_verify(&cluster.uri(0, "v"), 1_000_000).unwrap_or_else(|said| panic!("{said}"));
    let mut client = Client::connect(&cluster.socket(0), "v").expect("the holder answers");
    let trimmed = (number * 2 * MIB + 100 * BLOCK as u64, 33 * BLOCK as u32);
    assert_eq!(client.trim(trimmed.0, trimmed.1).expect("it lives"), 0);
    let name = format!("s{number}");
    cluster.api.post("/v1/volumes/v/snapshots", json!({ "name": name }));
    (name, content(&cluster.socket(0), "v"))
}

#[test]
fn snapshots_go_where_their_volume_goes() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::start(&Layout { tier_size: "256MiB", ..Layout::two_nodes(folder.path()) });
    cluster.create_volume("v", SIZE, 0);
    let taken: Vec<_> = (0..3).map(|number| one_more(&cluster, &folder.path().join("fio"), number)).collect();
    let before = listed(&cluster);
    assert_eq!(before.len(), 3);
    let writer = Writer::start(&cluster.socket(0), "v", Area { offset: STILL, blocks: 256 }, OnLoss::Fail, 1);

    let plan = cluster.drover(&["migrate", "plan", "v", "--to", "node-2", "--output", "json"]);
    let plan: Value = serde_json::from_slice(&plan.stdout).expect("one value");
    assert_eq!(plan["snapshots"], 3, "{plan:#}");
    let back = cluster.api.migrate("v", "node-2", json!({ "commit": "manual" }));
    cluster.api.wait_phase(&back, &["settling"], SOON);
    assert_eq!(listed(&cluster), before, "at the destination, before the commit");
    cluster.api.insist("POST", &format!("/v1/migrations/{back}/rollback"), &json!({}), SOON);
    cluster.api.wait_phase(&back, &["rolled_back"], SOON);
    cluster.api.wait_for("/v1/nodes/node-2", SOON, |node| node["tiers"][0]["used_bytes"] == 0);
    assert_eq!(listed(&cluster), before, "after the way back");

    let there = cluster.api.migrate("v", "node-2", json!({ "retention_ms": 0 }));
    let ended = cluster.api.wait_phase(&there, &["committed"], SOON);
    assert_eq!(ended["receipt"]["snapshots"], 3, "{ended:#}");
    cluster.api.wait_for("/v1/nodes/node-1", SOON, |node| node["tiers"][0]["used_bytes"] == 0);
    cluster.api.wait_for("/v1/volumes/v/snapshots", SOON, |shown| {
        shown["items"].as_array().is_some_and(|items| items.len() == 3)
    });
    assert_eq!(listed(&cluster), before, "after the commit");
    writer.wait_flushes(3);
    writer.stop().verify(&cluster.socket(1), "v");

    for (name, shown) in &taken {
        let copy = format!("c{name}");
        cluster.api.post(&format!("/v1/volumes/v/snapshots/{name}/clone"), json!({ "name": copy }));
        cluster.api.post("/v1/exports", json!({ "volume": copy, "node": "node-2", "name": copy }));
        assert!(content(&cluster.socket(1), &copy) == *shown, "the clone of {name}");
    }
    for (name, shown) in &taken {
        cluster.api.insist("POST", &format!("/v1/volumes/v/snapshots/{name}/rollback"), &json!({}), SOON);
        assert!(content(&cluster.socket(1), "v") == *shown, "{name}, gone back to");
    }
    for (name, _) in &taken {
        cluster.api.insist("DELETE", &format!("/v1/volumes/v/snapshots/{name}"), &json!({}), SOON);
    }
    assert_eq!(listed(&cluster), []);
    for (name, shown) in &taken {
        assert!(content(&cluster.socket(1), &format!("c{name}")) == *shown, "the clone of {name} stays");
    }
}
