//! For those who watch the daemon: `/healthz`, `/readyz`, `/metrics`; and for programs: what the interface is.

use super::ask;
use crate::answer::{Answer, Failure};
use axum::{Extension, Json, extract::State, http::header::CONTENT_TYPE, response::IntoResponse};
use drover_control::ControlHandle;
use drover_types::{ApiError, ErrorCode};
use std::sync::Arc;
use utoipa::openapi::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

/// They say nothing worth a token.
pub fn open_routes() -> OpenApiRouter<ControlHandle> {
    OpenApiRouter::new().routes(routes!(alive)).routes(routes!(ready))
}

pub fn guarded_routes() -> OpenApiRouter<ControlHandle> {
    OpenApiRouter::new().routes(routes!(metrics)).routes(routes!(description))
}

/// Whether the process answers.
#[utoipa::path(get, path = "/healthz", tag = "service", responses((status = 200, body = String, content_type = "text/plain")))]
async fn alive() -> &'static str {
    "ok\n"
}

/// Whether the control plane can do its work.
#[utoipa::path(get, path = "/readyz", tag = "service", responses(
    (status = 200, body = String, content_type = "text/plain"),
    (status = 503, body = ApiError, description = "it cannot reach its own store")))]
async fn ready(State(control): State<ControlHandle>) -> Answer<&'static str> {
    if ask(&control, |control| Ok(control.is_ready())).await? {
        Ok("ready\n")
    } else {
        Err(Failure(ApiError::new(ErrorCode::Unavailable, "the control plane cannot reach its own store")))
    }
}

/// Figures of nodes, tiers, volumes and migrations, as Prometheus reads them.
#[utoipa::path(get, path = "/metrics", tag = "service", responses((status = 200, body = String, content_type = "text/plain")))]
async fn metrics(State(control): State<ControlHandle>) -> Answer<impl IntoResponse> {
    let text = ask(&control, |control| Ok(control.metrics())).await?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4")], text))
}

/// This description.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "service",
    responses((status = 200, body = Object, description = "OpenAPI 3.1")))]
async fn description(Extension(description): Extension<Arc<OpenApi>>) -> Json<OpenApi> {
    Json(description.as_ref().clone())
}
