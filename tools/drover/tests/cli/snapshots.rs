//! Snapshots from the command line, and a volume that is opened again.

use crate::up::{Up, random_image};
use serde_json::Value;

const BYTES: usize = 2 << 20;

#[test]
fn snapshots_are_made_gone_back_to_and_deleted_and_a_volume_is_reopened() {
    let folder = tempfile::tempdir().unwrap();
    let [before, after, back] = ["before", "after", "back"].map(|name| folder.path().join(name));
    let (before_bytes, after_bytes) = (random_image(&before, BYTES, 1), random_image(&after, BYTES, 2));
    let up = Up::start(&folder.path().join("data"), 1);
    let held = || {
        up.json(&["export", "disk", back.to_str().unwrap(), "--overwrite"]);
        std::fs::read(&back).unwrap()
    };
    up.json(&["import", before.to_str().unwrap(), "disk"]);

    let made = up.json(&["snapshot", "create", "disk", "first"]);
    assert_eq!((&made["name"], made["created_ms"].as_u64().is_some()), (&"first".into(), true));
    assert_eq!(up.fails(&["snapshot", "create", "disk", "first"]).0, 5);
    assert_eq!(up.fails(&["snapshot", "create", "disk", "drover-x"]).0, 2, "those names are the migrations'");
    up.json(&["import", after.to_str().unwrap(), "disk", "--overwrite"]);
    up.json(&["snapshot", "create", "disk", "second"]);
    let listed = up.json(&["snapshot", "list", "disk"]);
    let names: Vec<&str> = listed.as_array().unwrap().iter().map(|found| found["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["first", "second"]);
    assert_eq!(listed[0]["used_bytes"], BYTES as u64);
    assert!(up.text(&["snapshot", "list", "disk"]).contains("second"));

    assert_eq!(up.fails(&["snapshot", "rollback", "disk", "first"]).0, 2, "without a terminal it must not guess");
    assert!(held() == after_bytes);
    up.json(&["snapshot", "rollback", "disk", "first", "--yes"]);
    assert!(held() == before_bytes);
    up.json(&["snapshot", "rollback", "disk", "second", "--yes"]);
    assert!(held() == after_bytes, "newer ones stay");
    assert_eq!(up.fails(&["snapshot", "rollback", "disk", "third", "--yes"]).0, 4);
    assert_eq!(up.fails(&["snapshot", "delete", "disk", "third"]).0, 4);
    for name in ["first", "second"] {
        up.json(&["snapshot", "delete", "disk", name]);
    }
    assert_eq!(up.json(&["snapshot", "list", "disk"]), Value::Array(vec![]));
    assert!(held() == after_bytes);
    // What they held merges in the background, which is told when it is over.
    let merged = |events: &[Value]| events.iter().any(|event| event["kind"] == "node.snapshots_merged");
    up.until(&["volume", "show", "disk"], |shown| shown["volume"]["merge"].is_null());
    up.until_lines(&["events", "--volume", "disk"], merged);

    // The size belongs to what is frozen, too.
    up.json(&["snapshot", "create", "disk", "small"]);
    let larger = 2 * BYTES as u64 + 4096;
    assert_eq!(up.json(&["volume", "resize", "disk", &larger.to_string()])["size_bytes"], larger);
    assert_eq!(up.fails(&["volume", "resize", "disk", "1MiB"]).0, 2, "it can only grow");
    assert_eq!(up.fails(&["volume", "resize", "disk", "5000"]).0, 2);
    let mut grown = after_bytes.clone();
    grown.resize(larger as usize, 0);
    assert!(held() == grown);
    up.json(&["snapshot", "rollback", "disk", "small", "--yes"]);
    assert_eq!(up.json(&["volume", "show", "disk"])["volume"]["size_bytes"], BYTES as u64);
    assert!(held() == after_bytes);
    up.json(&["snapshot", "delete", "disk", "small"]);

    // By the clock.
    assert_eq!(up.fails(&["snapshot", "schedule", "show", "disk"]).0, 4);
    assert_eq!(up.fails(&["snapshot", "schedule", "set", "disk", "--every", "1h", "--keep", "some"]).0, 2);
    assert_eq!(up.fails(&["snapshot", "schedule", "set", "disk", "--every", "1s", "--keep", "1"]).0, 2);
    let set = ["snapshot", "schedule", "set", "disk", "--every", "1h", "--keep", "24", "--keep", "7x1d"];
    assert_eq!(up.json(&set)["schedule"]["keep"][1]["every_s"], 86_400);
    assert_eq!(up.json(&["snapshot", "schedule", "show", "disk"])["made"], Value::Array(vec![]));
    assert!(up.text(&["snapshot", "schedule", "show", "disk"]).contains("24 of 3600 s each, 7 of 86400 s each"));
    up.json(&["snapshot", "schedule", "clear", "disk"]);

    // A volume that is sound goes through the same recovery, and keeps what was flushed.
    let reopened = up.json(&["volume", "reopen", "disk"]);
    assert_eq!((&reopened["name"], &reopened["poisoned"]), (&"disk".into(), &false.into()));
    assert!(held() == after_bytes);
    let events = up.lines(&["events", "--volume", "disk"]);
    let kinds: Vec<&str> = events.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    let count = |kind: &str| kinds.iter().filter(|known| **known == kind).count();
    let of = ["snapshot.created", "snapshot.rolled_back", "snapshot.deleted", "volume.reopened"].map(count);
    assert_eq!(of, [3, 3, 3, 1], "{kinds:?}");
    up.stop();
}
