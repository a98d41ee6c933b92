//! The REST interface, as the commands call it.

use crate::failure::{Exit, Failure};
use drover_types::{ApiError, Page};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::{Serialize, de::DeserializeOwned};
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

/// Longest that the control plane may take over one request; long work is a resource that is watched instead.
const DEADLINE: Duration = Duration::from_secs(60);

/// Where the REST interface is by default.
pub const DEFAULT_API: &str = "http://127.0.0.1:7600";

/// Items asked for in one page.
const PAGE_ITEMS: usize = 500;

#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
}

/// What `~/.config/drover/client.toml` may hold.
#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    api: Option<String>,
    token: Option<String>,
    token_file: Option<PathBuf>,
}

fn settings() -> Result<Settings, Failure> {
    let folder = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")));
    let Some(path) = folder.map(|folder| folder.join("drover/client.toml")) else { return Ok(Settings::default()) };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Settings::default()),
        Err(error) => return Err(Failure::usage(format!("cannot read {}", path.display())).cause(error)),
    };
    toml::from_str(&text).map_err(|error| {
        Failure::usage(format!("{} cannot be used", path.display()))
            .cause(error)
            .hint("it may hold api, token, token_file")
    })
}

impl Client {
    /// By arguments or environment, else by the settings file, else the default address without a token.
    pub fn new(api: Option<&str>, token: Option<&str>) -> Result<Self, Failure> {
        let settings = settings()?;
        let base = api.or(settings.api.as_deref()).unwrap_or(DEFAULT_API).trim_end_matches('/').to_owned();
        if !base.starts_with("http://") {
            return Err(Failure::usage(format!("{base:?} is not an address of the REST interface"))
                .hint("write http://host:port"));
        }
        let token = match (token, settings.token, settings.token_file) {
            (Some(token), ..) => Some(token.to_owned()),
            (None, Some(token), _) => Some(token),
            (None, None, Some(path)) => Some(std::fs::read_to_string(&path).map_err(|error| {
                Failure::usage(format!("cannot read the token file {}", path.display())).cause(error)
            })?),
            (None, None, None) => None,
        };
        // No proxy of the environment: it is no place to send the token to.
        let http = reqwest::Client::builder().no_proxy().connect_timeout(Duration::from_secs(5)).build();
        let http = http.map_err(|error| Failure::failed("cannot make an HTTP client").cause(error))?;
        Ok(Self { http, base, token: token.map(|token| token.trim().to_owned()) })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<reqwest::Response, Failure> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = response.bytes().await.unwrap_or_default();
        let mut failure = match serde_json::from_slice::<ApiError>(&body) {
            Ok(error) => Failure::from(error),
            Err(_) => Failure::failed(format!("{} answered {status}", self.base))
                .hint("is this the address of a Drover control plane?"),
        };
        if status == StatusCode::UNAUTHORIZED && failure.hint.is_none() {
            failure.hint = Some("give the token by --token, DROVER_TOKEN or ~/.config/drover/client.toml".into());
        }
        Err(failure)
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let mut cause = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(inner) = source {
            cause = inner.to_string();
            source = inner.source();
        }
        if error.is_timeout() && !error.is_connect() {
            return Failure::new(Exit::Unknown, format!("{} did not answer in time", self.base)).cause(cause);
        }
        Failure::new(Exit::Unreachable, format!("the control plane at {} cannot be reached", self.base))
            .cause(cause)
            .hint("start one with `drover up`, or give its address by --api or DROVER_API")
    }

    async fn decoded<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Failure> {
        let response = self.send(request.timeout(DEADLINE)).await?;
        let body = response.bytes().await.map_err(|error| self.unreachable(&error))?;
        let body = if body.is_empty() { b"null" } else { &body[..] };
        serde_json::from_slice(body).map_err(|error| {
            Failure::failed(format!("{} answered what this version does not know", self.base)).cause(error)
        })
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.decoded(self.request(Method::GET, path)).await
    }

    /// Every page of a list.
    pub async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, Failure> {
        self.list_after(path, None).await
    }

    /// As [`Self::list`], from after that item on.
    pub async fn list_after<T: DeserializeOwned>(&self, path: &str, after: Option<String>) -> Result<Vec<T>, Failure> {
        let mut items = Vec::new();
        let mut after = after;
        loop {
            let mut query = vec![("limit", PAGE_ITEMS.to_string())];
            query.extend(after.take().map(|after| ("after", after)));
            let pairs: Vec<String> = query.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect();
            let joint = if path.contains('?') { '&' } else { '?' };
            let page: Page<T> = self.get(&format!("{path}{joint}{}", pairs.join("&"))).await?;
            items.extend(page.items);
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(items),
            }
        }
    }

    /// Sent under a key of its own, so that a repetition on the way is not carried out twice.
    pub async fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, Failure> {
        let request = self.request(Method::POST, path).header("Idempotency-Key", key()?).json(body);
        self.decoded(request).await
    }

    pub async fn patch<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, Failure> {
        self.decoded(self.request(Method::PATCH, path).json(body)).await
    }

    pub async fn put<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, Failure> {
        self.decoded(self.request(Method::PUT, path).json(body)).await
    }

    pub async fn delete(&self, path: &str) -> Result<(), Failure> {
        self.send(self.request(Method::DELETE, path).timeout(DEADLINE)).await.map(drop)
    }

    /// An open stream of events, after the one of that id.
    pub async fn stream(&self, path: &str, after: Option<u64>) -> Result<reqwest::Response, Failure> {
        let mut request = self.request(Method::GET, path).header("Accept", "text/event-stream");
        if let Some(after) = after {
            request = request.header("Last-Event-ID", after.to_string());
        }
        self.send(request).await
    }
}

fn key() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| Failure::failed("cannot make a random key").cause(error))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A part of a path or query, with what is special in URLs escaped.
pub fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}
