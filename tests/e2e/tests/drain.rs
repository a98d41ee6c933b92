//! A node is emptied while fio writes and verifies, through it and past it, and the control plane is killed in between.

use drover_e2e::{Area, Cluster, Fio, Layout, node_name};
use serde_json::{Value, json};
use std::{thread, time::Duration};

const MIB: u64 = 1 << 20;
const BLOCKS: u64 = 2_048;
const VOLUMES: usize = 3;
/// Its writes then take some ten seconds: the drain falls into them.
const WRITES_PER_S: u64 = 200;
const WITHIN: Duration = Duration::from_secs(90);

fn drained(drain: &Value) -> bool {
    drain["state"] == "drained"
}

#[test]
fn a_node_is_drained_under_fio_and_over_a_crash_of_the_control_plane() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut cluster = Cluster::start(&Layout { nodes: 3, ..Layout::two_nodes(folder.path()) });
    let names: Vec<String> = (0..VOLUMES).map(|index| format!("v{index}")).collect();
    let area = Area { offset: 0, blocks: BLOCKS };
    let mut runs = Vec::new();
    for (index, name) in names.iter().enumerate() {
        cluster.create_volume(name, 64 * MIB, 0);
        // Clients of each node: of the one that is emptied too.
        let fio = Fio::prepare(&cluster.endpoint(index), name, area, &folder.path().join(name), index as u64 + 1);
        let uri = cluster.uri(index, name);
        runs.push(thread::spawn(move || fio.write_and_verify(&uri, WRITES_PER_S)));
    }
    thread::sleep(Duration::from_secs(1));
    let begun = cluster.api.post("/v1/nodes/node-1/drain", json!({ "parallel": 2 }));
    assert_eq!((&begun["state"], &begun["volumes_left"]), (&json!("running"), &json!(VOLUMES)), "{begun:#}");
    let refused =
        cluster.api.request("POST", "/v1/volumes", Some(&json!({ "name": "w", "size_bytes": MIB, "node": "node-1" })));
    assert_eq!(refused.unwrap_err().expect("an answer").body["code"], "node_cordoned");

    cluster.api.wait_for("/v1/nodes/node-1/drain", WITHIN, |drain| !drain["moves"].as_array().unwrap().is_empty());
    cluster.control.kill();
    cluster.control.start().expect("the control plane starts");
    cluster.wait_for_nodes();
    let watched = cluster.drover(&["node", "drain", "node-1"]);
    let said = String::from_utf8_lossy(&watched.stdout).into_owned();
    assert!(watched.status.success() && said.contains("drained"), "{watched:?}");

    let drain = cluster.api.get("/v1/nodes/node-1/drain");
    assert!(drained(&drain), "{drain:#}");
    assert_eq!((&drain["volumes_moved"], &drain["volumes_left"]), (&json!(VOLUMES), &json!(0)));
    assert_eq!(drain["exports"], json!(names), "it goes on as a gateway");
    let node = cluster.api.get("/v1/nodes/node-1");
    assert_eq!((&node["volumes_held"], &node["drain"]), (&json!(0), &json!("drained")));
    for run in runs {
        run.join().expect("fio's thread").unwrap_or_else(|said| panic!("{said}"));
    }
    // What is gone is gone from the disk as well, once the node has told how it stands now.
    cluster.api.wait_for("/v1/nodes/node-1", WITHIN, |node| node["tiers"][0]["used_bytes"] == 0);
    for name in &names {
        let holder = cluster.api.get(&format!("/v1/volumes/{name}"))["holder"].clone();
        assert_ne!(holder, node_name(0));
    }
    cluster.api.post("/v1/nodes/node-1/uncordon", json!({}));
    cluster.api.post("/v1/volumes", json!({ "name": "w", "size_bytes": MIB, "node": "node-1" }));
}
