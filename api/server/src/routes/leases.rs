//! Who may apply a volume's writes, and where the data is. Read only.

use super::ask;
use crate::answer::Answer;
use crate::extract::{Asked, Named};
use crate::page::{PageQuery, Paged};
use axum::{Json, extract::State};
use drover_control::ControlHandle;
use drover_types::{ApiError, DataMap, Lease, Page};
use utoipa_axum::{router::OpenApiRouter, routes};

pub fn routes() -> OpenApiRouter<ControlHandle> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show)).routes(routes!(map))
}

#[utoipa::path(get, path = "/v1/leases", tag = "leases", params(PageQuery),
    responses((status = 200, body = Page<Lease>)))]
async fn list(State(control): State<ControlHandle>, Asked(query): Asked<PageQuery>) -> Answer<Paged<Lease>> {
    let leases = ask(&control, |control| Ok(control.list_leases())).await?;
    Ok(query.cut("/v1/leases", leases, |lease| lease.volume.clone())?)
}

#[utoipa::path(get, path = "/v1/leases/{volume}", tag = "leases", params(("volume" = String, Path, description = "id or name")),
    responses((status = 200, body = Lease), (status = 404, body = ApiError)))]
async fn show(State(control): State<ControlHandle>, Named(volume): Named<String>) -> Answer<Json<Lease>> {
    Ok(Json(ask(&control, move |control| control.show_lease(&volume)).await?))
}

/// Which volume is where, as one versioned document.
#[utoipa::path(get, path = "/v1/map", tag = "leases", responses((status = 200, body = DataMap)))]
async fn map(State(control): State<ControlHandle>) -> Answer<Json<DataMap>> {
    Ok(Json(ask(&control, |control| Ok(control.data_map())).await?))
}
