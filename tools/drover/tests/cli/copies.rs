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

/// CVE-2024-32498: an image that was uploaded named another file as its backing, and gave the server's content away. Here a
/// file is its bytes, whatever it looks like.
#[test]
fn an_imported_image_is_never_followed_to_another_file() {
    let folder = tempfile::tempdir().unwrap();
    let [secret, overlay, back] = ["secret", "overlay", "back"].map(|name| folder.path().join(name));
    random_image(&secret, 1 << 20, 5);
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .args([&secret, &overlay])
        .status()
        .unwrap();
    assert!(made.success());
    std::fs::File::options().write(true).open(&overlay).unwrap().set_len(1 << 20).unwrap();
    let bytes = std::fs::read(&overlay).unwrap();
    assert!(bytes.starts_with(b"QFI"));
    let up = Up::start(&folder.path().join("data"), 1);
    up.json(&["import", overlay.to_str().unwrap(), "disk"]);
    up.json(&["export", "disk", back.to_str().unwrap()]);
    assert!(std::fs::read(&back).unwrap() == bytes);
    up.stop();
}

/// Neither what people are shown nor the logs hold the token or the cluster's secret.
#[test]
fn secrets_are_told_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let up = Up::start(&data, 1);
    let secrets = ["token", "secret"].map(|name| std::fs::read_to_string(data.join(name)).unwrap().trim().to_owned());
    let mut shown = vec![up.text(&["volume", "create", "disk", "--size", "1MiB"])];
    let commands = [&["status"][..], &["node", "show", "node-1"], &["events"], &["volume", "attach", "disk"]];
    for command in commands {
        shown.push(up.text(command));
        shown.push(up.text(&[command, &["--output", "json"]].concat()));
    }
    up.stop();
    for log in ["control.log", "node-1.log"] {
        shown.push(std::fs::read_to_string(data.join(log)).unwrap());
    }
    for (text, secret) in shown.iter().flat_map(|text| secrets.iter().map(move |secret| (text, secret))) {
        assert!(secret.len() >= 32 && !text.contains(secret.as_str()), "{text}");
    }
}
