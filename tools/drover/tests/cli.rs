//! The commands against a running cluster: made, shown, copied in and out, stopped, damaged, restored.

use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const DROVER: &str = env!("CARGO_BIN_EXE_drover");

/// `drover up` in a directory, stopped when dropped.
struct Up {
    child: Child,
    api: String,
    token: String,
}

impl Up {
    fn start(dir: &Path, nodes: u8) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut child = Command::new(DROVER)
            .args(["up", "--size", "1GiB", "--nodes", &nodes.to_string(), "--listen", &format!("127.0.0.1:{port}")])
            .args(["--output", "json", "--data"])
            .arg(dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It says one line, when all is up.
        let mut line = String::new();
        let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
        let said: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("up said {line:?}"));
        let token = std::fs::read_to_string(dir.join("token")).unwrap();
        Self { child, api: said["api"].as_str().unwrap().into(), token: token.trim().into() }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(DROVER);
        command.env("DROVER_API", &self.api).env("DROVER_TOKEN", &self.token).env_remove("XDG_CONFIG_HOME");
        command.env("HOME", "/nonexistent").stdin(Stdio::null()).args(arguments).output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--output", "json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    }

    fn fails(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(arguments);
        assert!(!output.status.success(), "{arguments:?} should fail");
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    fn stop(mut self) {
        signal(&self.child, "TERM");
        let begin = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(begin.elapsed() < Duration::from_secs(60), "up does not stop");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Its children die with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap().success());
}

/// A sparse image with data that differs from block to block.
fn image(path: &Path, size: u64) {
    let file = std::fs::File::create(path).unwrap();
    file.set_len(size).unwrap();
    for at in (0..size).step_by(1 << 20) {
        let block: Vec<u8> = (0..65_536u64).map(|byte| (byte * 31 + at / 4096 + 1) as u8).collect();
        file.write_all_at(&block[..block.len().min((size - at) as usize)], at).unwrap();
    }
}

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
    let (code, text) = fsck(&["--restore"]);
    assert!(code == 0 && text.contains("restored"), "{code}: {text}");

    let up = Up::start(&data, 1);
    up.json(&["export", "disk", back.to_str().unwrap()]);
    assert!(std::fs::read(&source).unwrap() == std::fs::read(&back).unwrap());
    up.stop();
}

#[test]
fn arguments_are_checked_before_anything_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let up = Up::start(&folder.path().join("data"), 1);
    for (arguments, code, part) in [
        (&["volume", "create", "Disk", "--size", "1GiB"][..], 2, "a-z"),
        (&["volume", "create", "disk", "--size", "1000"], 2, "4096"),
        (&["volume", "create", "disk", "--size", "1G"], 2, "1G"),
        (&["volume", "create", "disk", "--size", "1GiB", "--node", "nowhere"], 4, "nowhere"),
        (&["migrate", "start", "disk", "--to", "x", "--cutover", "window"], 2, "window"),
        (&["migrate", "start", "disk", "--to", "x", "--pause-max", "1"], 2, "pause"),
        (&["migrate", "start", "none", "--to", "node-1"], 4, "none"),
        (&["volume", "show", "none"], 4, "none"),
        (&["import", "/nonexistent", "disk"], 2, "/nonexistent"),
        (&["import", "/dev/zero", "disk"], 2, "block device"),
        (&["export", "disk", "nbd://127.0.0.1:1/x"], 5, "--overwrite"),
        (&["migrate", "start", "disk", "--to", "x", "--retention", "5"], 2, "10min"),
        (&["node", "forget", "node-1"], 2, "--yes"),
        (&["node", "forget", "node-1", "--yes"], 5, "it is up"),
        (&["volume", "reopen", "none"], 4, "none"),
        (&["export", "disk", "nbd://"], 2, "NBD URI"),
        (&["--token", "wrong", "status"], 1, "token"),
        (&["--api", "http://127.0.0.1:1", "status"], 3, "drover up"),
        (&["--api", "nonsense", "status"], 2, "http://"),
    ] {
        let (got, text) = up.fails(arguments);
        assert!(got == code && text.contains(part), "{arguments:?}: {got}: {text}");
        // The same for programs, with a code of its own.
        let output = up.run(&[arguments, &["--output", "json"]].concat());
        assert_eq!((output.status.code(), output.stdout.len()), (Some(code), 0), "{arguments:?}");
        let error: Value =
            serde_json::from_slice(&output.stderr).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
        let field = |name: &str| error["error"][name].as_str().is_some_and(|text| !text.is_empty());
        assert!(field("code") && field("message"), "{arguments:?}: {error}");
    }
    assert_eq!(up.json(&["volume", "list"]), Value::Array(vec![]));
    up.stop();
}

#[test]
fn a_wrong_setting_is_told_before_the_node_does_anything() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.toml");
    let meta = folder.path().display();
    let text = format!(
        "id = \"a\"\ncontrol = \"127.0.0.1:1\"\nmeta = \"{meta}\"\nmetta = 1\n\
         [listen]\nadmin = \"127.0.0.1:0\"\npeer = \"127.0.0.1:0\"\nnbd_tcp = \"127.0.0.1:0\"\n"
    );
    std::fs::write(&path, text).unwrap();
    let output = Command::new(DROVER).args(["node", "--config"]).arg(&path).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && text.contains("metta") && text.contains("`meta`"), "{text}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn completions_are_printed_for_every_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let output = Command::new(DROVER).args(["completions", shell]).output().unwrap();
        assert!(String::from_utf8(output.stdout).unwrap().contains("rollback"), "{shell}");
    }
}
