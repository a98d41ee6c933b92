//! Nodes from the command line.

use crate::up::Up;

#[test]
fn nodes_are_listed_shown_and_forgotten_when_they_are_gone_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let up = Up::start(&data, 2);
    let nodes = up.json(&["node", "list"]);
    let names: Vec<&str> = nodes.as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["node-1", "node-2"]);
    assert!(nodes.as_array().unwrap().iter().all(|node| node["health"] == "up"), "{nodes:#}");
    let shown = up.until(&["node", "show", "node-2"], |node| node["tiers"][0].is_object());
    let tier = &shown["tiers"][0];
    assert_eq!(
        (&tier["name"], &tier["total_bytes"], &tier["poisoned"]),
        (&"fast".into(), &(1u64 << 30).into(), &false.into())
    );
    assert!(up.text(&["node", "show", "node-2"]).contains("fast"));
    assert_eq!(up.fails(&["node", "show", "node-3"]).0, 4);
    up.json(&["node", "cordon", "node-2", "--reason", "new disks"]);
    let shown = up.json(&["node", "show", "node-2"]);
    assert_eq!(shown["cordon"]["reason"], "new disks", "{shown:#}");
    assert!(up.text(&["node", "show", "node-2"]).contains("new disks"));
    assert!(up.text(&["node", "list"]).contains("up, cordoned") && up.text(&["status"]).contains("up, cordoned"));
    let (code, text) = up.fails(&["volume", "create", "disk", "--size", "1MiB", "--node", "node-2"]);
    assert!(code == 5 && text.contains("cordoned") && text.contains("new disks"), "{code}: {text}");
    let elsewhere = up.json(&["volume", "create", "elsewhere", "--size", "1MiB"]);
    assert_eq!(elsewhere["holder"], "node-1", "it is where one may be");
    assert_eq!(up.fails(&["node", "cordon", "node-3"]).0, 4);
    assert_eq!(up.fails(&["node", "cordon", "node-2", "--reason", ""]).0, 2);
    let shown = up.json(&["node", "uncordon", "node-2"]);
    assert!(shown["cordon"].is_null(), "{shown:#}");
    drained_and_back(&up);
    up.json(&["volume", "create", "disk", "--size", "1MiB", "--node", "node-2"]);
    up.json(&["volume", "create", "kept", "--size", "1MiB", "--node", "node-1"]);
    up.json(&["volume", "attach", "kept", "--node", "node-2"]);
    up.stop();

    // The second node does not come back.
    let up = Up::start(&data, 1);
    up.until(&["node", "show", "node-2"], |node| node["health"] == "down");
    let needs = up.json(&["status"])["needs_you"].clone();
    assert_eq!(needs[0]["command"], "drover node show node-2");
    let (code, text) = up.fails(&["node", "forget", "node-2", "--yes"]);
    assert!(code == 5 && text.contains("it holds"), "{code}: {text}");
    assert_eq!(up.fails(&["node", "forget", "node-3", "--yes"]).0, 4);
    up.stop();

    // Once more, so that what it holds can be deleted.
    let up = Up::start(&data, 2);
    up.json(&["volume", "delete", "disk", "--yes"]);
    up.stop();
    let up = Up::start(&data, 1);
    up.json(&["node", "forget", "node-2", "--yes"]);
    assert_eq!(up.json(&["node", "list"]).as_array().unwrap().len(), 1);
    assert_eq!(up.fails(&["node", "show", "node-2"]).0, 4);
    assert_eq!(up.json(&["volume", "show", "kept"])["exports"], serde_json::json!([]), "what it served is gone");
    let events = up.lines(&["events"]);
    assert!(events.iter().any(|event| event["kind"] == "node.forgotten" && event["node"] == "node-2"), "{events:?}");
    up.stop();
}

/// What is on the first node goes to the second, with its snapshots.
fn drained_and_back(up: &Up) {
    up.json(&["volume", "create", "moved", "--size", "1MiB", "--node", "node-1"]);
    up.json(&["volume", "create", "kept-too", "--size", "1MiB", "--node", "node-1"]);
    up.json(&["volume", "delete", "elsewhere", "--yes"]);
    up.json(&["snapshot", "create", "kept-too", "now"]);
    assert_eq!(up.fails(&["node", "drain", "node-1", "--to", "node-1"]).0, 5);
    assert_eq!(up.fails(&["node", "drain", "node-1", "--parallel", "0"]).0, 2);
    assert_eq!(up.fails(&["node", "drain", "node-1", "--cancel"]).0, 4);
    let seen = up.lines(&["node", "drain", "node-1", "--to", "node-2", "--parallel", "1"]);
    let last = seen.last().unwrap();
    assert_eq!((&last["state"], &last["volumes_moved"]), (&"drained".into(), &2.into()), "{seen:#?}");
    assert!(up.text(&["node", "list"]).contains("up, drained"));
    let drained = up.json(&["node", "drain", "node-1", "--no-wait"]);
    assert_eq!(drained["volumes_left"], 0, "{drained:#}");
    let snapshots = up.json(&["snapshot", "list", "kept-too"]);
    assert_eq!(snapshots[0]["name"], "now", "{snapshots:#}");
    up.json(&["node", "uncordon", "node-1"]);
    for name in ["moved", "kept-too"] {
        up.json(&["volume", "delete", name, "--yes"]);
    }
}
