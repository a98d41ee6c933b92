//! The interface over real HTTP, with a control plane that no node has registered at.

use drover_control::{Control, ControlConfig};
use drover_meta::RocksMetaStore;
use drover_server::{ServerConfig, bind};
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};
use std::{future::Future, path::Path, rc::Rc};

const TOKEN: &str = "a-token-of-this-test";

struct Rest {
    base: String,
    client: Client,
}

impl Rest {
    async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Option<Value>) -> Response {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        request.send().await.unwrap()
    }

    /// With the token.
    async fn get(&self, path: &str) -> Response {
        self.send(Method::GET, path, &[("authorization", &format!("Bearer {TOKEN}"))], None).await
    }

    async fn post(&self, path: &str, body: Value) -> Response {
        self.send(Method::POST, path, &[("authorization", &format!("Bearer {TOKEN}"))], Some(body)).await
    }
}

fn check<F: Future<Output = ()>>(test: impl FnOnce(Rest) -> F) {
    check_in(tempfile::tempdir().unwrap().path(), test);
}

/// With a control plane that starts on what an earlier one left in the folder.
fn check_in<F: Future<Output = ()>>(folder: &Path, test: impl FnOnce(Rest) -> F) {
    let run = async {
        let world = drover_runtime::world(&drover_runtime::Workers::start(1).unwrap(), None);
        let store = RocksMetaStore::open(&folder.join("meta")).unwrap();
        let control = Control::start(ControlConfig::default(), world, Rc::new(store)).await.unwrap();
        let config = ServerConfig { listen: "127.0.0.1:0".parse().unwrap(), token: Some(TOKEN.into()) };
        let bound = bind(config).await.unwrap();
        let base = format!("http://{}", bound.address().unwrap());
        let serve = bound.serve(control.handle(), std::future::pending());
        let client = Client::builder().no_proxy().build().unwrap();
        tokio::select! {
            biased;
            () = test(Rest { base, client }) => {}
            served = serve => panic!("the server ended: {served:?}"),
        }
    };
    drover_runtime::block_on(run).unwrap();
}

/// What a stream sends up to the end of its first event.
async fn first_sent(mut stream: Response) -> String {
    let mut text = String::new();
    while !text.contains("\n\n") {
        text.push_str(std::str::from_utf8(&stream.chunk().await.unwrap().unwrap()).unwrap());
    }
    text
}

async fn fails(response: Response, status: u16, code: &str) -> Value {
    assert_eq!(response.status().as_u16(), status);
    let error: Value = response.json().await.unwrap();
    assert_eq!(error["code"], code, "{error:#}");
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()));
    error
}

#[test]
fn without_the_token_nothing_is_told() {
    check(|rest| async move {
        let described = drover_server::openapi();
        let guarded = described.paths.paths.keys().filter(|path| !["/healthz", "/readyz"].contains(&path.as_str()));
        assert!(guarded.clone().count() >= 22);
        for path in guarded {
            let path = path.replace(['{', '}'], "");
            let path = path.as_str();
            let answer = rest.send(Method::GET, path, &[], None).await;
            // Whether a path takes GET is told to everybody.
            if answer.status() == 405 {
                fails(rest.send(Method::POST, path, &[], None).await, 401, "unauthorized").await;
                continue;
            }
            assert_eq!(answer.headers()["www-authenticate"], "Bearer", "{path}");
            fails(answer, 401, "unauthorized").await;
            let wrong = rest.send(Method::GET, path, &[("authorization", "Bearer a-token-of-this-tesT")], None).await;
            fails(wrong, 401, "unauthorized").await;
        }
        for path in ["/healthz", "/readyz"] {
            assert!(rest.send(Method::GET, path, &[], None).await.status().is_success(), "{path}");
        }
    });
}

#[test]
fn every_error_is_one_of_ours() {
    check(|rest| async move {
        fails(rest.get("/v1/nothing").await, 404, "route_not_found").await;
        fails(rest.get("/v1/volumes/none").await, 404, "volume_not_found").await;
        fails(rest.post("/v1/leases", json!({})).await, 405, "method_not_allowed").await;
        fails(rest.get("/v1/nodes?limit=0").await, 400, "invalid_field").await;
        fails(rest.get("/v1/nodes?size=3").await, 400, "malformed_request").await;
        fails(rest.get("/v1/events?after=x").await, 400, "malformed_request").await;
        fails(rest.post("/v1/volumes", json!({ "name": "a" })).await, 400, "malformed_request").await;
        let volume = json!({ "name": "a", "size_bytes": 1 << 30, "node": "nowhere" });
        fails(rest.post("/v1/volumes", volume.clone()).await, 404, "node_not_found").await;
        let mut more = volume.clone();
        more["colour"] = "red".into();
        fails(rest.post("/v1/volumes", more).await, 400, "malformed_request").await;
        fails(rest.post("/v1/migrations/mig-0000000000000001/dance", json!({})).await, 404, "route_not_found").await;
        let bearer = format!("Bearer {TOKEN}");
        let headers = [("authorization", bearer.as_str()), ("if-match", "five")];
        fails(rest.send(Method::DELETE, "/v1/nodes/a", &headers, None).await, 400, "invalid_field").await;
        let large = json!({ "name": "a".repeat(100_000) });
        fails(rest.post("/v1/volumes", large).await, 413, "body_too_large").await;
    });
}

#[test]
fn lists_are_paged_and_described() {
    check(|rest| async move {
        let nodes: Value = rest.get("/v1/nodes").await.json().await.unwrap();
        assert_eq!(nodes, json!({ "items": [] }));
        let description: Value = rest.get("/v1/openapi.json").await.json().await.unwrap();
        assert!(description["openapi"].as_str().unwrap().starts_with("3.1"));
        assert_eq!(
            description,
            serde_json::to_value(drover_server::openapi()).unwrap(),
            "what is checked in is served"
        );
        for path in ["/v1/volumes", "/v1/migrations/{migration}/{action}", "/v1/map", "/v1/events/stream", "/readyz"] {
            assert!(description["paths"][path].is_object(), "{path} is not described");
        }
        let events = rest.get("/v1/events?limit=1&volume=vol-0000000000000001").await;
        assert!(events.status().is_success(), "events of a volume that is gone are asked for by its id");
        fails(rest.get("/v1/events?volume=gone").await, 404, "volume_not_found").await;
        let metrics = rest.get("/metrics").await.text().await.unwrap();
        assert!(metrics.contains("drover_control_ready 1"), "{metrics}");
    });
}

#[test]
fn events_come_as_they_happen_and_from_where_one_stopped() {
    check(|rest| async move {
        let events: Value = rest.get("/v1/events").await.json().await.unwrap();
        let first = &events["items"][0];
        assert_eq!(first["kind"], "control.started");
        let stream = rest.get("/v1/events/stream").await;
        assert_eq!(stream.headers()["content-type"], "text/event-stream");
        let text = first_sent(stream).await;
        assert!(text.contains(&format!("id: {}", first["id"])), "{text}");
        assert!(text.contains("event: control.started"), "{text}");
        let after = format!("/v1/events?after={}", first["id"]);
        let later: Value = rest.get(&after).await.json().await.unwrap();
        assert_eq!(later["items"], json!([]));
    });
}

/// A browser's EventSource names the last event it has seen when it connects again, here to a control plane that
/// restarted meanwhile; the address it connects to still has the `after` of its beginning.
#[test]
fn a_stream_goes_on_after_the_last_event_that_its_client_has_seen() {
    let folder = tempfile::tempdir().unwrap();
    let follow = async |rest: Rest, path: &str, seen: &str| {
        let headers = [("authorization", &*format!("Bearer {TOKEN}")), ("last-event-id", seen)];
        rest.send(Method::GET, path, &headers, None).await
    };
    check_in(folder.path(), |rest| async move {
        let text = first_sent(follow(rest, "/v1/events/stream", "0").await).await;
        assert!(text.contains("id: 1\n"), "{text}");
    });
    check_in(folder.path(), |rest| async move {
        let text = first_sent(follow(rest, "/v1/events/stream?after=0", "1").await).await;
        assert!(text.contains("id: 2\n") && !text.contains("id: 1\n"), "{text}");
    });
    check_in(folder.path(), |rest| async move {
        fails(follow(rest, "/v1/events/stream", "newest").await, 400, "invalid_field").await;
    });
}

/// longhorn#13326: an engine's API could be used by whoever reached it.
#[test]
fn other_machines_are_not_served_without_a_token() {
    let run = async {
        let config = ServerConfig { listen: "0.0.0.0:0".parse().unwrap(), token: None };
        assert!(bind(config).await.is_err());
    };
    drover_runtime::block_on(run).unwrap();
}
