//! Every path, by its resource.

mod events;
mod exports;
mod health;
mod leases;
mod migrations;
mod nodes;
mod schedules;
mod snapshots;
mod tenants;
mod volumes;

use crate::{answer::Failure, auth, extract::BODY_BYTES_MAX, openapi};
use axum::{Extension, Router, extract::DefaultBodyLimit, middleware};
use drover_control::{Control, ControlHandle};
use drover_types::{ApiError, ErrorCode};
use std::{rc::Rc, sync::Arc};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

/// The whole interface, and its description.
pub struct Described {
    /// Paths that only who shows the token may use.
    guarded: Router<ControlHandle>,
    open: Router<ControlHandle>,
    pub description: utoipa::openapi::OpenApi,
}

/// Every path comes with its description: there is no other way in.
pub fn described() -> Described {
    let (open, of_open) = health::open_routes().split_for_parts();
    let (guarded, mut description) = OpenApiRouter::with_openapi(openapi::Description::openapi())
        .merge(nodes::routes())
        .merge(volumes::routes())
        .merge(snapshots::routes())
        .merge(schedules::routes())
        .merge(tenants::routes())
        .merge(exports::routes())
        .merge(migrations::routes())
        .merge(leases::routes())
        .merge(events::routes())
        .merge(health::guarded_routes())
        .split_for_parts();
    description.merge(of_open);
    openapi::complete(&mut description);
    Described { guarded, open, description }
}

/// The interface as a service.
pub fn app(control: ControlHandle, token: Option<String>) -> Router {
    let Described { guarded, open, description } = described();
    let token: Option<Arc<str>> = token.map(Into::into);
    guarded
        .layer(Extension(Arc::new(description)))
        .route_layer(middleware::from_fn_with_state(token, auth::check))
        .merge(open)
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
