//! Where clients reach volumes.

use super::ask;
use crate::answer::{Answer, Versioned, created, shown};
use crate::extract::{Asked, Body, Expected, Named};
use crate::page::{PageQuery, Paged};
use axum::{extract::State, http::StatusCode};
use drover_control::ControlHandle;
use drover_types::{ApiError, CreateExport, Export, Page};
use utoipa_axum::{router::OpenApiRouter, routes};

pub fn routes() -> OpenApiRouter<ControlHandle> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(show, delete))
}

#[utoipa::path(get, path = "/v1/exports", tag = "exports", params(PageQuery),
    responses((status = 200, body = Page<Export>)))]
async fn list(State(control): State<ControlHandle>, Asked(query): Asked<PageQuery>) -> Answer<Paged<Export>> {
    let exports = ask(&control, |control| Ok(control.list_exports())).await?;
    let exports = exports.into_iter().map(|export| export.value).collect();
    Ok(query.cut("/v1/exports", exports, |export: &Export| format!("{}/{}", export.node, export.name))?)
}

/// Serves a volume on a node, whichever node holds it. The same again changes nothing.
#[utoipa::path(post, path = "/v1/exports", tag = "exports", request_body = CreateExport,
    responses((status = 201, body = Export), (status = 404, body = ApiError), (status = 409, body = ApiError)))]
async fn create(State(control): State<ControlHandle>, body: Body<CreateExport>) -> Answer<Versioned<Export>> {
    let make = control.run(move |control| Box::pin(async move { control.create_export(body.value, body.once).await }));
    Ok(created(make.await?))
}

#[utoipa::path(get, path = "/v1/exports/{node}/{export}", tag = "exports",
    params(("node" = String, Path), ("export" = String, Path)),
    responses((status = 200, body = Export), (status = 404, body = ApiError)))]
async fn show(
    State(control): State<ControlHandle>,
    Named((node, export)): Named<(String, String)>,
) -> Answer<Versioned<Export>> {
    Ok(shown(ask(&control, move |control| control.show_export(&node, &export)).await?))
}

/// Stops serving it there; connected clients are disconnected.
#[utoipa::path(delete, path = "/v1/exports/{node}/{export}", tag = "exports",
    params(("node" = String, Path), ("export" = String, Path)),
    responses((status = 204), (status = 404, body = ApiError), (status = 412, body = ApiError)))]
async fn delete(
    State(control): State<ControlHandle>,
    Named((node, export)): Named<(String, String)>,
    Expected(expected): Expected,
) -> Answer<StatusCode> {
    control.run(move |control| Box::pin(async move { control.delete_export(&node, &export, expected).await })).await?;
    Ok(StatusCode::NO_CONTENT)
}
