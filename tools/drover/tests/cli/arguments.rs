//! Arguments and settings that are wrong, and completions.

use crate::up::{DROVER, Up};
use serde_json::Value;
use std::process::Command;

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

/// `up` wrote its settings over those of whoever had a directory of that name.
#[test]
fn up_takes_no_directory_that_it_did_not_make() {
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("control.toml");
    std::fs::write(&settings, "mine").unwrap();
    let mut up = Command::new(DROVER);
    let output = up.args(["up", "--listen", "127.0.0.1:0", "--data"]).arg(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(std::fs::read_to_string(settings).unwrap(), "mine");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
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
