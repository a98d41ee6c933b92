//! The static bearer token.

use crate::answer::Failure;
use axum::{
    extract::{Request, State},
    http::header::AUTHORIZATION,
    middleware::Next,
    response::{IntoResponse, Response},
};
use drover_types::{ApiError, ErrorCode};
use std::sync::Arc;

/// Lets a request through that shows the token, or every one where none is set.
pub async fn check(State(token): State<Option<Arc<str>>>, request: Request, next: Next) -> Response {
    let Some(token) = token else { return next.run(request).await };
    let shown = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    match shown.and_then(|value| value.strip_prefix("Bearer ")) {
        Some(shown) if is_same(shown.trim(), &token) => next.run(request).await,
        Some(_) => refuse("the bearer token is wrong"),
        None => refuse("a bearer token is needed"),
    }
}

fn refuse(message: &str) -> Response {
    let error = ApiError::new(ErrorCode::Unauthorized, message);
    Failure(error.hint("send `Authorization: Bearer TOKEN` with the control plane's token")).into_response()
}

/// Digests are compared, so the time this takes tells nothing of how much of the token was right.
fn is_same(shown: &str, token: &str) -> bool {
    blake3::hash(shown.as_bytes()) == blake3::hash(token.as_bytes())
}
