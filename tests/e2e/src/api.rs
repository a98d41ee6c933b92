//! The control plane's REST API as a blocking client.

use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A client of one control plane.
pub struct Api {
    base: String,
    token: String,
    client: reqwest::Client,
    runtime: tokio::runtime::Runtime,
}

/// An answer that is not 2xx.
#[derive(Debug)]
pub struct Failure {
    pub status: u16,
    pub body: Value,
}

/// Any answer.
#[derive(Debug, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub etag: Option<String>,
    /// Null where there is none.
    pub body: Value,
}

impl Api {
    /// `base` such as `http://127.0.0.1:7070`.
    pub fn new(base: &str, token: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self { base: base.into(), token: token.into(), client: reqwest::Client::new(), runtime }
    }

    /// Where it is, and what it is shown.
    pub fn address(&self) -> (&str, &str) {
        (&self.base, &self.token)
    }

    /// The same for another thread.
    pub fn another(&self) -> Self {
        Self::new(&self.base, &self.token)
    }

    /// Sends one request; `Err(None)` when nobody answered.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Option<Failure>> {
        self.send(method, path, body, None)
    }

    /// A POST that is carried out once, however often it is sent under this key.
    pub fn request_once(&self, path: &str, body: &Value, key: &str) -> Result<Value, Option<Failure>> {
        self.send("POST", path, Some(body), Some(key))
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        once: Option<&str>,
    ) -> Result<Value, Option<Failure>> {
        let once = once.map(|key| ("Idempotency-Key", key));
        let answer = self.exchange(method, path, once.as_slice(), body).ok_or(None)?;
        let Answer { status, body, .. } = answer;
        if (200..300).contains(&status) { Ok(body) } else { Err(Some(Failure { status, body })) }
    }

    /// Sends one request with these headers beside the token; `None` when nobody answered.
    pub fn exchange(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Option<Answer> {
        let method = method.parse().expect("a method");
        let mut request = self
            .client
            .request(method, format!("{}{path}", self.base))
            .timeout(Duration::from_secs(30))
            .bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = self.runtime.block_on(async {
            let response = request.send().await?;
            let status = response.status().as_u16();
            let etag = response.headers().get("etag").map(|tag| tag.to_str().expect("an ETag is ASCII").to_owned());
            let text = response.text().await?;
            Ok::<_, reqwest::Error>(Answer { status, etag, body: serde_json::from_str(&text).unwrap_or(Value::Null) })
        });
        answer.ok()
    }

    pub fn get(&self, path: &str) -> Value {
        self.request("GET", path, None).unwrap_or_else(|error| panic!("GET {path}: {error:?}"))
    }

    pub fn post(&self, path: &str, body: Value) -> Value {
        self.request("POST", path, Some(&body)).unwrap_or_else(|error| panic!("POST {path} {body}: {error:?}"))
    }

    /// Asks `GET path` until `wanted` says yes of its answer, through times when nobody answers.
    pub fn wait_for(&self, path: &str, within: Duration, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + within;
        let mut last = Value::Null;
        loop {
            if let Ok(value) = self.request("GET", path, None) {
                if wanted(&value) {
                    return value;
                }
                last = value;
            }
            assert!(Instant::now() < deadline, "GET {path} never was as wanted; last: {last:#}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts a migration and returns its id.
    pub fn migrate(&self, volume: &str, destination: &str, options: Value) -> String {
        let body = json!({ "volume": volume, "destination": destination, "options": options });
        self.post("/v1/migrations", body)["id"].as_str().expect("a migration has an id").into()
    }

    /// Asks until it is granted, through times when nobody answers or it cannot be yet.
    pub fn insist(&self, method: &str, path: &str, body: &Value, within: Duration) -> Value {
        let deadline = Instant::now() + within;
        loop {
            match self.request(method, path, Some(body)) {
                Ok(value) => return value,
                Err(error) => assert!(Instant::now() < deadline, "{method} {path} {body}: {error:?}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the migration is in one of `phases`.
    pub fn wait_phase(&self, migration: &str, phases: &[&str], within: Duration) -> Value {
        self.wait_for(&format!("/v1/migrations/{migration}"), within, |value| {
            value["phase"].as_str().is_some_and(|phase| phases.contains(&phase))
        })
    }
}
