//! Clones from the command line: they share, move, and keep what they need; and snapshots of several volumes.

use crate::up::{Up, random_image};

const BYTES: usize = 4 << 20;

#[test]
fn clones_share_move_and_outlive_their_origin() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second, back] = ["first", "second", "back"].map(|name| folder.path().join(name));
    let (first_bytes, second_bytes) = (random_image(&first, BYTES, 1), random_image(&second, BYTES, 2));
    let up = Up::start(&folder.path().join("data"), 2);
    let held = |volume: &str| {
        up.json(&["export", volume, back.to_str().unwrap(), "--overwrite"]);
        std::fs::read(&back).unwrap()
    };
    up.json(&["import", first.to_str().unwrap(), "golden", "--node", "node-1"]);
    up.json(&["snapshot", "create", "golden", "s"]);
    assert_eq!(up.fails(&["volume", "clone", "golden", "one"]).0, 2, "it names no snapshot");
    assert_eq!(up.fails(&["volume", "clone", "golden@t", "one"]).0, 4);
    for name in ["one", "two"] {
        let made = up.json(&["volume", "clone", "golden@s", name]);
        assert_eq!((&made["holder"], &made["origin"]["snapshot"]), (&"node-1".into(), &"s".into()));
        assert!(held(name) == first_bytes);
    }
    let shown = up.until(&["volume", "show", "one"], |shown| shown["volume"]["shared_bytes"].is_u64());
    assert_eq!(shown["volume"]["shared_bytes"], BYTES as u64, "nothing was copied");
    assert!(up.text(&["volume", "show", "one"]).contains("clone    of golden@s"));
    up.json(&["import", second.to_str().unwrap(), "one", "--overwrite"]);
    assert!(held("one") == second_bytes && held("two") == first_bytes && held("golden") == first_bytes);

    // The origin moves away, with nothing of what its clones stand on.
    up.json(&["snapshot", "delete", "golden", "s"]);
    for volume in ["golden", "two"] {
        let moved = up.run(&["migrate", "start", volume, "--to", "node-2", "--retention", "0", "--watch"]);
        assert!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stderr));
        assert_eq!(up.json(&["volume", "show", volume])["volume"]["holder"], "node-2");
        assert!(held("one") == second_bytes && held("two") == first_bytes && held("golden") == first_bytes);
    }
    up.json(&["volume", "delete", "golden", "--yes"]);
    assert!(held("one") == second_bytes && held("two") == first_bytes);

    // Both at one moment, on two nodes.
    let made = up.json(&["snapshot", "group", "both", "one", "two"]);
    assert_eq!(made["snapshots"].as_array().unwrap().len(), 2);
    assert_eq!(up.fails(&["snapshot", "group", "both", "one", "two"]).0, 5);
    assert_eq!(up.fails(&["snapshot", "group", "more", "one", "three"]).0, 4);
    up.json(&["import", first.to_str().unwrap(), "one", "--overwrite"]);
    up.json(&["snapshot", "rollback", "one", "both", "--yes"]);
    assert!(held("one") == second_bytes);
    let names = up.json(&["snapshot", "list", "two"]);
    assert_eq!((names[0]["name"].as_str(), names.as_array().unwrap().len()), (Some("both"), 1));
    up.stop();
}
