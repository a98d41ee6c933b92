//! Images in and out over NBD.

use crate::up::{Up, image, random_image};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// qemu-nbd serving a raw file, gone when dropped.
struct Served {
    child: Child,
    uri: String,
}

impl Served {
    fn start(file: &Path) -> Self {
        let socket = file.with_extension("sock");
        let child = Command::new("qemu-nbd")
            .args(["--format", "raw", "--persistent", "--export-name", "image", "--socket"])
            .args([&socket, file])
            .spawn()
            .unwrap();
        let served = Self { child, uri: format!("nbd+unix:///image?socket={}", socket.display()) };
        let begin = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(begin.elapsed() < Duration::from_secs(20), "qemu-nbd does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        served
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn images_are_copied_from_and_to_other_nbd_servers() {
    const BYTES: u64 = 8 << 20;
    let folder = tempfile::tempdir().unwrap();
    let [source, target] = ["source", "target"].map(|name| folder.path().join(name));
    image(&source, BYTES);
    let old = random_image(&target, BYTES as usize, 3);
    let up = Up::start(&folder.path().join("data"), 1);

    let from = Served::start(&source);
    let copied = up.json(&["import", &from.uri, "disk"]);
    assert_eq!((&copied["volume"]["name"], &copied["copied"]["size_bytes"]), (&"disk".into(), &BYTES.into()));
    let data_bytes = copied["copied"]["data_bytes"].as_u64().unwrap();
    assert!(data_bytes > 0 && data_bytes < BYTES, "holes stay holes: {copied:#}");
    assert_eq!(up.fails(&["import", &from.uri, "disk"]).0, 5);
    let none = from.uri.replace("image", "none");
    assert_ne!(up.fails(&["import", &none, "other"]).0, 0);
    assert_eq!(up.fails(&["volume", "show", "other"]).0, 4, "what cannot be read makes no volume");

    // Out to another server, over what it holds.
    let to = Served::start(&target);
    assert_eq!(up.fails(&["export", "disk", &to.uri]).0, 5);
    assert!(std::fs::read(&target).unwrap() == old, "nothing was overwritten");
    up.json(&["export", "disk", &to.uri, "--overwrite"]);
    drop(to);
    assert!(std::fs::read(&source).unwrap() == std::fs::read(&target).unwrap());

    // From one volume into another, by an export of ours.
    let attached = up.json(&["volume", "attach", "disk"]);
    up.json(&["import", attached["uris"][0].as_str().unwrap(), "twin"]);
    up.json(&["export", "twin", target.to_str().unwrap(), "--overwrite"]);
    assert!(std::fs::read(&source).unwrap() == std::fs::read(&target).unwrap());
    let exports = up.json(&["volume", "show", "twin"])["exports"].clone();
    assert_eq!(exports, serde_json::json!([]), "what was made for a copy is gone after it");
    up.stop();
}
