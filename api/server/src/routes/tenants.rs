//! Whose volumes are, and how much of them there may be.

use super::ask;
use crate::answer::{Answer, Versioned, shown};
use crate::extract::{Asked, Body, Expected, Named};
use crate::page::{PageQuery, Paged};
use axum::extract::State;
use drover_control::ControlHandle;
use drover_types::{ApiError, ChangeTenant, Page, Tenant};
use utoipa_axum::{router::OpenApiRouter, routes};

pub fn routes() -> OpenApiRouter<ControlHandle> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show, change))
}

/// Tenants that have volumes or quotas.
#[utoipa::path(get, path = "/v1/tenants", tag = "tenants", params(PageQuery),
    responses((status = 200, body = Page<Tenant>)))]
async fn list(State(control): State<ControlHandle>, Asked(query): Asked<PageQuery>) -> Answer<Paged<Tenant>> {
    let tenants = ask(&control, |control| Ok(control.list_tenants())).await?;
    Ok(query.cut("/v1/tenants", tenants, |tenant| tenant.name.clone())?)
}

#[utoipa::path(get, path = "/v1/tenants/{tenant}", tag = "tenants", params(("tenant" = String, Path)),
    responses((status = 200, body = Tenant), (status = 404, body = ApiError)))]
async fn show(State(control): State<ControlHandle>, Named(tenant): Named<String>) -> Answer<Versioned<Tenant>> {
    Ok(shown(ask(&control, move |control| control.show_tenant(&tenant)).await?))
}

/// Sets a tenant's quotas. What it has by then it keeps.
#[utoipa::path(patch, path = "/v1/tenants/{tenant}", tag = "tenants", params(("tenant" = String, Path)),
    request_body = ChangeTenant, responses((status = 200, body = Tenant), (status = 412, body = ApiError)))]
async fn change(
    State(control): State<ControlHandle>,
    Named(tenant): Named<String>,
    Expected(expected): Expected,
    body: Body<ChangeTenant>,
) -> Answer<Versioned<Tenant>> {
    let change =
        control.run(move |control| Box::pin(async move { control.change_tenant(&tenant, body.value, expected).await }));
    Ok(shown(change.await?))
}
