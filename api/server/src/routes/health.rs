//! For those who watch the daemon: `/healthz`, `/readyz`, `/metrics`.

use super::ask;
use crate::answer::{Answer, Failure};
use crate::auth;
use axum::{Router, extract::State, http::header::CONTENT_TYPE, middleware, response::IntoResponse, routing::get};
use drover_control::ControlHandle;
use drover_types::{ApiError, ErrorCode};
use std::sync::Arc;

/// The first two say nothing worth a token.
pub fn routes(token: Option<Arc<str>>) -> Router<ControlHandle> {
    Router::new()
        .route("/metrics", get(metrics))
        .route_layer(middleware::from_fn_with_state(token, auth::check))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
}

async fn ready(State(control): State<ControlHandle>) -> Answer<&'static str> {
    if ask(&control, |control| Ok(control.is_ready())).await? {
        Ok("ready\n")
    } else {
        Err(Failure(ApiError::new(ErrorCode::Unavailable, "the control plane cannot reach its own store")))
    }
}

async fn metrics(State(control): State<ControlHandle>) -> Answer<impl IntoResponse> {
    let text = ask(&control, |control| Ok(control.metrics())).await?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4")], text))
}
