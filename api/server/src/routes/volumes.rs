//! Volumes.

use super::ask;
use crate::answer::{Answer, Versioned, created, shown};
use crate::extract::{Asked, Body, Expected, Named, Nothing};
use crate::page::{PageQuery, Paged};
use axum::{extract::State, http::StatusCode};
use drover_control::ControlHandle;
use drover_types::{ApiError, ChangeVolume, CreateVolume, Page, Volume};
use serde::Deserialize;
use utoipa_axum::{router::OpenApiRouter, routes};

pub fn routes() -> OpenApiRouter<ControlHandle> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(show, change, delete)).routes(routes!(reopen))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
struct VolumeQuery {
    /// Items at most, 1 to 1,000; 100 where absent.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// `next` of the page before.
    after: Option<String>,
    /// Only those of this tenant.
    tenant: Option<String>,
}

#[utoipa::path(get, path = "/v1/volumes", tag = "volumes", params(VolumeQuery),
    responses((status = 200, body = Page<Volume>)))]
async fn list(State(control): State<ControlHandle>, Asked(query): Asked<VolumeQuery>) -> Answer<Paged<Volume>> {
    let tenant = query.tenant.clone();
    let volumes = ask(&control, move |control| Ok(control.list_volumes(tenant.as_deref()))).await?;
    let volumes = volumes.into_iter().map(|volume| volume.value).collect();
    let pages = PageQuery { limit: query.limit, after: query.after };
    let mut paged = pages.cut("/v1/volumes", volumes, |volume: &Volume| volume.id.clone())?;
    paged.query.push(("tenant", query.tenant));
    Ok(paged)
}

/// Makes an empty volume on a node.
#[utoipa::path(post, path = "/v1/volumes", tag = "volumes", request_body = CreateVolume,
    responses((status = 201, body = Volume), (status = 404, body = ApiError), (status = 409, body = ApiError)))]
async fn create(State(control): State<ControlHandle>, body: Body<CreateVolume>) -> Answer<Versioned<Volume>> {
    let make = control.run(move |control| Box::pin(async move { control.create_volume(body.value, body.once).await }));
    Ok(created(make.await?))
}

#[utoipa::path(get, path = "/v1/volumes/{volume}", tag = "volumes", params(("volume" = String, Path, description = "id or name")),
    responses((status = 200, body = Volume), (status = 404, body = ApiError)))]
async fn show(State(control): State<ControlHandle>, Named(volume): Named<String>) -> Answer<Versioned<Volume>> {
    Ok(shown(ask(&control, move |control| control.show_volume(&volume)).await?))
}

/// Makes a volume larger. Clients that are attached see it when they connect again; snapshots keep their size, and a
/// rollback brings it back. Refused while the volume is in a migration.
#[utoipa::path(patch, path = "/v1/volumes/{volume}", tag = "volumes", params(("volume" = String, Path, description = "id or name")),
    request_body = ChangeVolume, responses((status = 200, body = Volume), (status = 404, body = ApiError),
        (status = 409, body = ApiError), (status = 412, body = ApiError)))]
async fn change(
    State(control): State<ControlHandle>,
    Named(volume): Named<String>,
    Expected(expected): Expected,
    body: Body<ChangeVolume>,
) -> Answer<Versioned<Volume>> {
    let change =
        control.run(move |control| Box::pin(async move { control.change_volume(&volume, body.value, expected).await }));
    Ok(shown(change.await?))
}

/// Deletes a volume and all its snapshots. Refused while it is in a migration or exported.
#[utoipa::path(delete, path = "/v1/volumes/{volume}", tag = "volumes", params(("volume" = String, Path, description = "id or name")),
    responses((status = 204), (status = 404, body = ApiError), (status = 409, body = ApiError), (status = 412, body = ApiError)))]
async fn delete(
    State(control): State<ControlHandle>,
    Named(volume): Named<String>,
    Expected(expected): Expected,
) -> Answer<StatusCode> {
    control.run(move |control| Box::pin(async move { control.delete_volume(&volume, expected).await })).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Opens a poisoned volume again, through recovery; what was not flushed may be lost, and its ETag changes.
#[utoipa::path(post, path = "/v1/volumes/{volume}/reopen", tag = "volumes", params(("volume" = String, Path, description = "id or name")),
    responses((status = 200, body = Volume), (status = 404, body = ApiError), (status = 412, body = ApiError),
        (status = 502, body = ApiError)))]
async fn reopen(
    State(control): State<ControlHandle>,
    Named(volume): Named<String>,
    Expected(expected): Expected,
    body: Body<Nothing>,
) -> Answer<Versioned<Volume>> {
    let once = body.once;
    let reopen =
        control.run(move |control| Box::pin(async move { control.reopen_volume(&volume, expected, once).await }));
    Ok(shown(reopen.await?))
}
