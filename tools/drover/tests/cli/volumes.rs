//! A volume's whole life, a volume opened again, and a node's metadata lost and restored.

use crate::up::{DROVER, Up, image};
use std::path::{Path, PathBuf};
use std::process::Command;

fn paths(folder: &Path) -> (PathBuf, PathBuf) {
    (folder.join("image"), folder.join("back"))
}

#[test]
fn a_volume_is_imported_shown_served_moved_exported_and_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let (source, back) = paths(folder.path());
    image(&source, 32 << 20);
    let up = Up::start(&folder.path().join("data"), 2);
    let status = up.json(&["status"]);
    assert_eq!((status["healthy"].clone(), status["nodes"].as_array().unwrap().len()), (true.into(), 2));

    up.json(&["import", source.to_str().unwrap(), "disk", "--node", "node-1"]);
    let (code, text) = up.fails(&["import", source.to_str().unwrap(), "disk"]);
    assert!(code == 5 && text.contains("--overwrite"), "{code}: {text}");
    assert_eq!(up.json(&["volume", "show", "disk"])["volume"]["size_bytes"], 32 << 20);
    let attached = up.json(&["volume", "attach", "disk", "--node", "node-2"]);
    assert!(attached["uris"][0].as_str().unwrap().contains("node-2"));
    let (code, text) = up.fails(&["volume", "attach", "disk", "--node", "node-2", "--workload", "db"]);
    assert!(code == 5 && text.contains("detach"), "a workload is not dropped silently: {code}: {text}");

    limited_and_counted(&up);
    up.json(&["snapshot", "create", "disk", "first"]);
    assert_eq!(up.json(&["snapshot", "list", "disk"])[0]["name"], "first");
    up.json(&["snapshot", "delete", "disk", "first"]);

    assert_eq!(up.json(&["migrate", "plan", "disk", "--to", "node-2"])["fits"], true);
    let moved = up.run(&["migrate", "start", "disk", "--to", "node-2", "--retention", "0", "--watch"]);
    assert!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stderr));
    assert_eq!(up.json(&["volume", "show", "disk"])["volume"]["holder"], "node-2");
    assert_eq!(up.json(&["migrate", "list", "--all"])[0]["phase"], "committed");

    up.json(&["export", "disk", back.to_str().unwrap()]);
    assert!(std::fs::read(&source).unwrap() == std::fs::read(&back).unwrap());
    // A smaller source over it: nothing of what the volume held stays.
    let mut content = vec![7; 5_000];
    std::fs::write(&source, &content).unwrap();
    up.json(&["import", source.to_str().unwrap(), "disk", "--overwrite"]);
    up.json(&["export", "disk", back.to_str().unwrap(), "--overwrite"]);
    content.resize(32 << 20, 0);
    assert!(std::fs::read(&back).unwrap() == content);
    let (code, text) = up.fails(&["volume", "delete", "disk"]);
    assert!(code == 2 && text.contains("--yes"), "without a terminal it must not guess: {code}: {text}");
    up.json(&["volume", "detach", "disk"]);
    up.json(&["volume", "delete", "disk", "--yes"]);
    assert_eq!(up.fails(&["volume", "show", "disk"]).0, 4);
    let events = up.run(&["events", "--output", "json"]);
    let kinds = String::from_utf8(events.stdout).unwrap();
    assert!(kinds.contains("migration.committed") && kinds.contains("volume.deleted"), "{kinds}");
    up.stop();
}

/// Limits are shown as they were set; a tenant gets no more than its quotas.
fn limited_and_counted(up: &Up) {
    assert_eq!(up.fails(&["volume", "limit", "disk"]).0, 2, "a limit, or --none");
    assert_eq!(up.fails(&["volume", "limit", "disk", "--iops", "1"]).0, 2);
    assert_eq!(up.fails(&["volume", "limit", "nothing", "--iops", "1000"]).0, 4);
    up.json(&["volume", "limit", "disk", "--iops", "1000", "--bandwidth", "64MiB", "--burst", "2s"]);
    let limits = up.json(&["volume", "show", "disk"])["volume"]["limits"].clone();
    assert_eq!(limits, serde_json::json!({ "iops": 1000, "bytes_per_s": 64 << 20, "burst_ms": 2000 }));
    assert!(up.text(&["volume", "show", "disk"]).contains("at most 1000 requests a second"));
    let free = up.json(&["volume", "limit", "disk", "--none"]);
    assert_eq!(free["limits"], serde_json::json!({}));

    up.json(&["tenant", "set", "red", "--bytes", "3MiB", "--volumes", "1"]);
    let (code, text) = up.fails(&["volume", "create", "large", "--size", "4MiB", "--tenant", "red"]);
    assert!(code == 5 && text.contains("quota"), "{code}: {text}");
    up.json(&["volume", "create", "small", "--size", "1MiB", "--tenant", "red"]);
    assert_eq!(up.fails(&["volume", "create", "second", "--size", "1MiB", "--tenant", "red"]).0, 5);
    assert_eq!(up.fails(&["volume", "resize", "small", "4MiB"]).0, 5);
    let red = up.json(&["tenant", "show", "red"]);
    assert_eq!((&red["volumes"], &red["provisioned_bytes"]), (&1.into(), &(1 << 20).into()), "{red:#}");
    let names =
        |list: serde_json::Value| list.as_array().unwrap().iter().map(|it| it["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names(up.json(&["volume", "list", "--tenant", "red"])), ["small"]);
    assert_eq!(names(up.json(&["tenant", "list"])), ["default", "red"]);
    up.json(&["tenant", "set", "red", "--none"]);
    up.json(&["volume", "delete", "small", "--yes"]);
    assert_eq!(up.fails(&["tenant", "show", "red"]).0, 4);
}

/// A node's RocksDB is lost: its volumes come back from the checkpoint, and a start without it is refused, since it
/// would write over them.
#[test]
fn a_node_without_its_metadata_is_restored_from_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let (source, back) = paths(folder.path());
    image(&source, 16 << 20);
    let data = folder.path().join("data");
    let up = Up::start(&data, 1);
    up.json(&["import", source.to_str().unwrap(), "disk"]);
    let config = data.join("node-1.toml");
    let config = config.to_str().unwrap();
    let (code, text) = up.fails(&["fsck", "--config", config]);
    assert!(code == 5 && text.contains("stop the node"), "a running node is left alone: {code}: {text}");
    up.stop();

    let fsck = |arguments: &[&str]| {
        let output = Command::new(DROVER).args(["fsck", "--config", config]).args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap(), text)
    };
    let (code, text) = fsck(&[]);
    assert!(code == 0 && text.contains("sound: 1 volumes"), "{code}: {text}");
    let (code, text) = fsck(&["--restore"]);
    assert!(code == 5 && text.contains("sound"), "sound metadata is not replaced: {code}: {text}");

    std::fs::remove_dir_all(data.join("node-1/meta")).unwrap();
    let started = Command::new(DROVER).args(["node", "--config", config]).output().unwrap();
    let text = String::from_utf8_lossy(&started.stderr).into_owned();
    assert!(!started.status.success() && text.contains("--restore"), "{text}");
    let (code, text) = fsck(&[]);
    assert!(
        code == 4 && text.contains("--restore"),
        "what the refused start has made is empty, not sound: {code}: {text}"
    );
    let (code, text) = fsck(&["--restore"]);
    assert!(code == 0 && text.contains("restored"), "{code}: {text}");

    let up = Up::start(&data, 1);
    up.json(&["export", "disk", back.to_str().unwrap()]);
    assert!(std::fs::read(&source).unwrap() == std::fs::read(&back).unwrap());
    up.stop();
}
