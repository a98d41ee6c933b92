//! What requests carry: a JSON body, an Idempotency-Key, an If-Match, a query. What does not fit is an `ApiError`.

use crate::answer::Failure;
use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{HeaderMap, header::IF_MATCH, request::Parts},
};
use drover_control::Once;
use drover_types::{ApiError, ErrorCode};
use serde::de::DeserializeOwned;

/// Largest body of a request: an export with the longest names has some hundred bytes.
pub const BODY_BYTES_MAX: usize = 64 << 10;

/// A JSON body, and the key under which its sender knows the request.
pub struct Body<T> {
    pub value: T,
    pub once: Option<Once>,
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let path = request.uri().path().to_owned();
        let key = idempotency_key(request.headers())?;
        let bytes = Bytes::from_request(request, state).await.map_err(|_| {
            let message = format!("a request's body has at most {BODY_BYTES_MAX} bytes");
            Failure(ApiError::new(ErrorCode::BodyTooLarge, message))
        })?;
        let once = key.map(|key| {
            let asked = [path.as_bytes(), b"\n", &bytes].concat();
            Once { key, fingerprint: blake3::hash(&asked).to_hex().to_string() }
        });
        // An action without parameters may come without a body.
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        let value = serde_json::from_slice(text).map_err(|error| {
            let failure = ApiError::new(ErrorCode::MalformedRequest, "the body is not what this path takes");
            failure.cause(error.to_string()).hint("/v1/openapi.json describes every path")
        })?;
        Ok(Self { value, once })
    }
}

/// The body of an action without parameters.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Failure> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    match value.to_str() {
        Ok(key) => Ok(Some(key.to_owned())),
        Err(_) => Err(Failure(ApiError::invalid("Idempotency-Key", "it is not printable ASCII"))),
    }
}

/// The version that the resource must still have, by its ETag.
pub struct Expected(pub Option<u64>);

impl<S: Send + Sync> FromRequestParts<S> for Expected {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Failure> {
        let Some(value) = parts.headers.get(IF_MATCH) else { return Ok(Self(None)) };
        let text = value.to_str().unwrap_or_default().trim();
        if text == "*" {
            return Ok(Self(None));
        }
        let version = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).and_then(|text| text.parse().ok());
        match version {
            Some(version) => Ok(Self(Some(version))),
            None => Err(Failure(ApiError::invalid("If-Match", "it is not one ETag as answered before"))),
        }
    }
}

/// The parameters of a query.
pub struct Asked<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let rejected = |error: axum::extract::rejection::QueryRejection| {
            let failure = ApiError::new(ErrorCode::MalformedRequest, "the query is not what this path takes");
            Failure(failure.cause(error.body_text()))
        };
        let Query(value) = Query::from_request_parts(parts, state).await.map_err(rejected)?;
        Ok(Self(value))
    }
}

/// The parts of a path.
pub struct Named<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Named<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let rejected = |error: axum::extract::rejection::PathRejection| {
            let failure = ApiError::new(ErrorCode::MalformedRequest, "the path is not readable");
            Failure(failure.cause(error.body_text()))
        };
        let path = <Path<T> as FromRequestParts<S>>::from_request_parts(parts, state).await;
        let Path(value) = path.map_err(rejected)?;
        Ok(Self(value))
    }
}

/// The id of the last event a client has seen, when it connects again.
pub struct LastEvent(pub Option<u64>);

impl<S: Send + Sync> FromRequestParts<S> for LastEvent {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Failure> {
        let Some(value) = parts.headers.get("last-event-id") else { return Ok(Self(None)) };
        match value.to_str().ok().and_then(|text| text.parse().ok()) {
            Some(id) => Ok(Self(Some(id))),
            None => Err(Failure(ApiError::invalid("Last-Event-ID", "it is not an event's id"))),
        }
    }
}
