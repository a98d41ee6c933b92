//! The REST interface of a running cluster: versions and what is carried out once.

use drover_e2e::{Answer, Api, Cluster, Layout};
use serde_json::{Value, json};
use std::time::Duration;

fn send(api: &Api, method: &str, path: &str, header: Option<(&str, &str)>, body: Option<Value>) -> Answer {
    api.exchange(method, path, header.as_slice(), body.as_ref()).expect("the control plane answers")
}

fn etag(api: &Api, path: &str) -> String {
    let answer = send(api, "GET", path, None, None);
    assert_eq!(answer.status, 200);
    answer.etag.unwrap_or_else(|| panic!("{path} has no ETag"))
}

/// A change with a stale ETag is refused and changes nothing; with the one just read, and with `*`, it is made. Each
/// change gives the resource another ETag.
fn check_versions(api: &Api, resource: &str, mut change: impl FnMut(Option<(&str, &str)>) -> Answer) {
    let first = etag(api, resource);
    assert_eq!(etag(api, resource), first, "what nobody changes keeps its version");
    let done = change(Some(("If-Match", &first)));
    assert_eq!(done.status, 200, "{resource}: {done:?}");
    let second = etag(api, resource);
    assert_ne!(second, first, "{resource}");
    assert_eq!(done.etag.as_ref(), Some(&second), "{resource}: the answer to a change has the new version");

    // What nodes tell of themselves comes when they are asked, at any time.
    let events = || {
        let mut events = send(api, "GET", "/v1/events?limit=1000", None, None).body["items"].take();
        let all = events.as_array_mut().expect("a list");
        all.retain(|event| !event["kind"].as_str().expect("an event has a kind").starts_with("node."));
        events
    };
    let before = events();
    for stale in [first.as_str(), "\"99999999\""] {
        let refused = change(Some(("If-Match", stale)));
        assert_eq!((refused.status, &refused.body["code"]), (412, &"precondition_failed".into()), "{resource}");
    }
    let unreadable = change(Some(("If-Match", "first")));
    assert_eq!((unreadable.status, &unreadable.body["field"]), (400, &"If-Match".into()));
    assert_eq!((etag(api, resource), events()), (second, before), "{resource}: what is refused changes nothing");
    for any in [Some(("If-Match", "*")), None] {
        let done = change(any);
        assert_eq!(done.status, 200, "{resource}: {any:?}: {done:?}");
    }
}

#[test]
fn a_change_is_made_only_to_what_its_sender_has_seen() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(&Layout::two_nodes(folder.path()));
    let api = &cluster.api;
    api.post("/v1/volumes", json!({ "name": "disk", "size_bytes": 64 << 20, "node": "node-1" }));
    api.post("/v1/volumes/disk/snapshots", json!({ "name": "first" }));
    check_versions(api, "/v1/volumes/disk", |header| {
        send(api, "POST", "/v1/volumes/disk/snapshots/first/rollback", header, Some(json!({})))
    });
    check_versions(api, "/v1/volumes/disk", |header| {
        send(api, "POST", "/v1/volumes/disk/reopen", header, Some(json!({})))
    });

    // A migration that waits to be told to flip changes only as it is asked to.
    let id = api.migrate("disk", "node-2", json!({ "cutover": "manual", "commit": "manual" }));
    let path = format!("/v1/migrations/{id}");
    api.wait_for(&path, Duration::from_secs(30), |seen| seen["phase"] == "mirroring" && seen["waits_for"].is_string());
    let mut retention_ms = 0;
    check_versions(api, &path, |header| {
        retention_ms += 1000;
        send(api, "PATCH", &path, header, Some(json!({ "retention_ms": retention_ms })))
    });
    assert_eq!(api.get(&path)["options"]["retention_ms"], retention_ms);
    let mut paused = false;
    check_versions(api, &path, |header| {
        let action = if api.get(&path)["paused"] == true { "resume" } else { "pause" };
        let answer = send(api, "POST", &format!("{path}/{action}"), header, Some(json!({})));
        if answer.status == 200 {
            paused = !paused;
        }
        answer
    });
    assert_eq!(api.get(&path)["paused"], paused, "only what was answered 200 was done");
    api.post(&format!("{path}/cancel"), json!({}));
    api.wait_for(&path, Duration::from_secs(30), |seen| {
        seen["phase"] == "rolled_back" && seen["cleanup_pending"] == json!([])
    });

    // What is deleted was the version that was seen.
    api.post("/v1/exports", json!({ "volume": "disk", "node": "node-1" }));
    for path in ["/v1/exports/node-1/disk", "/v1/volumes/disk"] {
        let seen = etag(api, path);
        let refused = send(api, "DELETE", path, Some(("If-Match", "\"1\"")), None);
        assert_eq!((refused.status, etag(api, path)), (412, seen.clone()), "{path}");
        assert_eq!(send(api, "DELETE", path, Some(("If-Match", &seen)), None).status, 204, "{path}");
        assert_eq!(send(api, "GET", path, None, None).status, 404, "{path}");
    }
    assert!(etag(api, "/v1/nodes/node-1").starts_with('"'));
}

/// Sent again under its key a request makes nothing new, and answers with what it made; also by another life of the
/// control plane. The key belongs to that request alone.
#[test]
fn what_is_sent_again_under_its_key_is_made_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(&Layout::two_nodes(folder.path()));
    let volume = |name: &str| json!({ "name": name, "size_bytes": 64 << 20, "node": "node-1" });
    let export = json!({ "volume": "disk", "node": "node-2", "name": "there" });
    let snapshot = json!({ "name": "first" });
    let migration = json!({ "volume": "disk", "destination": "node-2", "options": { "cutover": "manual" } });
    let asked = [
        ("/v1/volumes", "key-volume", volume("disk"), volume("other"), "id"),
        ("/v1/exports", "key-export", export, json!({ "volume": "disk", "node": "node-1" }), "name"),
        ("/v1/volumes/disk/snapshots", "key-snapshot", snapshot, json!({ "name": "second" }), "created_ms"),
        ("/v1/migrations", "key-migration", migration, json!({ "volume": "disk", "destination": "node-1" }), "id"),
    ];
    let post = |api: &Api, path: &str, key: &str, body: &Value| {
        send(api, "POST", path, Some(("Idempotency-Key", key)), Some(body.clone()))
    };
    let mut made = Vec::new();
    for (path, key, body, other, id) in &asked {
        let first = post(&cluster.api, path, key, body);
        assert_eq!(first.status, 201, "{path}: {first:?}");
        let again = post(&cluster.api, path, key, body);
        assert_eq!((again.status, &again.body[id]), (201, &first.body[id]), "{path}: {again:?}");
        let conflict = post(&cluster.api, path, key, other);
        assert_eq!((conflict.status, &conflict.body["code"]), (409, &"idempotency_conflict".into()), "{path}");
        made.push(first.body[id].clone());
    }
    for key in ["", "with space", &"k".repeat(256)] {
        let refused = post(&cluster.api, "/v1/volumes", key, &volume("other"));
        assert_eq!((refused.status, &refused.body["field"]), (400, &"Idempotency-Key".into()), "{key:?}");
    }
    let counts = |api: &Api| {
        ["/v1/volumes", "/v1/exports", "/v1/volumes/disk/snapshots", "/v1/migrations"].map(|path| {
            let listed = api.get(path);
            let people = listed["items"].as_array().unwrap().iter().filter(|item| {
                // A migration freezes a snapshot of its own.
                !item["name"].as_str().is_some_and(|name| name.starts_with("drover-"))
            });
            people.count()
        })
    };
    assert_eq!(counts(&cluster.api), [1, 1, 1, 1]);

    assert!(cluster.control.terminate().expect("it ends").success());
    cluster.control.start().expect("the control plane starts");
    cluster.wait_for_nodes();
    for ((path, key, body, other, id), made) in asked.iter().zip(&made) {
        let again = post(&cluster.api, path, key, body);
        assert_eq!((again.status, &again.body[id]), (201, made), "{path} after a restart: {again:?}");
        let conflict = post(&cluster.api, path, key, other);
        assert_eq!((conflict.status, &conflict.body["code"]), (409, &"idempotency_conflict".into()), "{path}");
    }
    assert_eq!(counts(&cluster.api), [1, 1, 1, 1]);
    // Without the key it is another request.
    let twice = send(&cluster.api, "POST", "/v1/volumes", None, Some(volume("disk")));
    assert_eq!((twice.status, &twice.body["code"]), (409, &"volume_exists".into()));
}
