//! Every path, by its resource.

mod events;
mod exports;
mod health;
mod leases;
mod migrations;
mod nodes;
mod snapshots;
mod volumes;

use crate::{answer::Failure, auth, extract::BODY_BYTES_MAX, openapi::Description};
use axum::{Json, Router, extract::DefaultBodyLimit, middleware, routing::get};
use drover_control::{Control, ControlHandle};
use drover_types::{ApiError, ErrorCode};
use std::{rc::Rc, sync::Arc};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

/// All paths under `/v1`, and their description.
pub fn described() -> (Router<ControlHandle>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(Description::openapi())
        .merge(nodes::routes())
        .merge(volumes::routes())
        .merge(snapshots::routes())
        .merge(exports::routes())
        .merge(migrations::routes())
        .merge(leases::routes())
        .merge(events::routes())
        .split_for_parts()
}

/// The whole interface.
pub fn app(control: ControlHandle, token: Option<String>) -> Router {
    let (paths, description) = described();
    let token: Option<Arc<str>> = token.map(Into::into);
    paths
        .route("/v1/openapi.json", get(|| async { Json(description) }))
        .route_layer(middleware::from_fn_with_state(token.clone(), auth::check))
        .merge(health::routes(token))
        .fallback(|| async { Failure(ApiError::new(ErrorCode::RouteNotFound, "there is no such path")) })
        .method_not_allowed_fallback(|| async {
            Failure(ApiError::new(ErrorCode::MethodNotAllowed, "this path does not take this method"))
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(control)
}

/// Runs what needs no waiting on the control plane's thread.
async fn ask<T: Send + 'static>(
    control: &ControlHandle,
    question: impl FnOnce(&Rc<Control>) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    control.run(move |control| Box::pin(async move { question(&control) })).await
}
