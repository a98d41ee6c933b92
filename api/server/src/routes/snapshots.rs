//! Snapshots of a volume.

use crate::answer::{Answer, Versioned, created, shown};
use crate::extract::{Asked, Body, Expected, Named, Nothing};
use crate::page::{PageQuery, Paged, escaped};
use axum::{Json, extract::State, http::StatusCode};
use drover_control::ControlHandle;
use drover_types::{ApiError, CloneVolume, CreateGroupSnapshot, CreateSnapshot, GroupSnapshot, Page, Snapshot, Volume};
use utoipa_axum::{router::OpenApiRouter, routes};

pub fn routes() -> OpenApiRouter<ControlHandle> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, delete))
        .routes(routes!(rollback))
        .routes(routes!(clone))
        .routes(routes!(create_group))
}

#[utoipa::path(get, path = "/v1/volumes/{volume}/snapshots", tag = "snapshots", params(PageQuery, ("volume" = String, Path)),
    responses((status = 200, body = Page<Snapshot>), (status = 404, body = ApiError)))]
async fn list(
    State(control): State<ControlHandle>,
    Named(volume): Named<String>,
    Asked(query): Asked<PageQuery>,
) -> Answer<Paged<Snapshot>> {
    let path = format!("/v1/volumes/{}/snapshots", escaped(&volume));
    let list = control.run(move |control| Box::pin(async move { control.list_snapshots(&volume).await }));
    Ok(query.cut(&path, list.await?, |snapshot| snapshot.name.clone())?)
}

/// Freezes what the volume holds now under a name. Refused while it is in a migration.
#[utoipa::path(post, path = "/v1/volumes/{volume}/snapshots", tag = "snapshots", params(("volume" = String, Path)),
    request_body = CreateSnapshot, responses((status = 201, body = Snapshot), (status = 404, body = ApiError), (status = 409, body = ApiError)))]
async fn create(
    State(control): State<ControlHandle>,
    Named(volume): Named<String>,
    body: Body<CreateSnapshot>,
) -> Answer<(StatusCode, Json<Snapshot>)> {
    let make = control
        .run(move |control| Box::pin(async move { control.create_snapshot(&volume, body.value, body.once).await }));
    Ok((StatusCode::CREATED, Json(make.await?)))
}

#[utoipa::path(get, path = "/v1/volumes/{volume}/snapshots/{snapshot}", tag = "snapshots",
    params(("volume" = String, Path), ("snapshot" = String, Path)),
    responses((status = 200, body = Snapshot), (status = 404, body = ApiError)))]
async fn show(
    State(control): State<ControlHandle>,
    Named((volume, snapshot)): Named<(String, String)>,
) -> Answer<Json<Snapshot>> {
    let show = control.run(move |control| Box::pin(async move { control.show_snapshot(&volume, &snapshot).await }));
    Ok(Json(show.await?))
}

/// Deletes a snapshot; what only it held comes free in the background.
#[utoipa::path(delete, path = "/v1/volumes/{volume}/snapshots/{snapshot}", tag = "snapshots",
    params(("volume" = String, Path), ("snapshot" = String, Path)),
    responses((status = 204), (status = 404, body = ApiError), (status = 409, body = ApiError)))]
async fn delete(
    State(control): State<ControlHandle>,
    Named((volume, snapshot)): Named<(String, String)>,
) -> Answer<StatusCode> {
    control.run(move |control| Box::pin(async move { control.delete_snapshot(&volume, &snapshot).await })).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Puts the volume back to what the snapshot holds; what was written since is lost, newer snapshots stay. `If-Match`
/// takes the volume's ETag, and what is answered has another one.
#[utoipa::path(post, path = "/v1/volumes/{volume}/snapshots/{snapshot}/rollback", tag = "snapshots",
    params(("volume" = String, Path), ("snapshot" = String, Path)),
    responses((status = 200, body = Volume), (status = 404, body = ApiError), (status = 409, body = ApiError),
        (status = 412, body = ApiError)))]
async fn rollback(
    State(control): State<ControlHandle>,
    Named((volume, snapshot)): Named<(String, String)>,
    Expected(expected): Expected,
    body: Body<Nothing>,
) -> Answer<Versioned<Volume>> {
    let once = body.once;
    let back = control.run(move |control| {
        Box::pin(async move { control.rollback_to_snapshot(&volume, &snapshot, expected, once).await })
    });
    Ok(shown(back.await?))
}

/// Makes a volume that holds what the snapshot holds, on the same node. It shares what neither has written since: nothing
/// is copied, and what it needs stays when the snapshot or its volume is deleted.
#[utoipa::path(post, path = "/v1/volumes/{volume}/snapshots/{snapshot}/clone", tag = "snapshots",
    params(("volume" = String, Path), ("snapshot" = String, Path)), request_body = CloneVolume,
    responses((status = 201, body = Volume), (status = 404, body = ApiError), (status = 409, body = ApiError)))]
async fn clone(
    State(control): State<ControlHandle>,
    Named((volume, snapshot)): Named<(String, String)>,
    body: Body<CloneVolume>,
) -> Answer<Versioned<Volume>> {
    let make = control.run(move |control| {
        Box::pin(async move { control.clone_volume(&volume, &snapshot, body.value, body.once).await })
    });
    Ok(created(make.await?))
}

/// Freezes several volumes at one moment, whichever nodes hold them: all have the snapshot, or none. Their clients wait
/// meanwhile, for 5 seconds at most.
#[utoipa::path(post, path = "/v1/snapshots", tag = "snapshots", request_body = CreateGroupSnapshot,
    responses((status = 201, body = GroupSnapshot), (status = 404, body = ApiError), (status = 409, body = ApiError)))]
async fn create_group(
    State(control): State<ControlHandle>,
    body: Body<CreateGroupSnapshot>,
) -> Answer<(StatusCode, Json<GroupSnapshot>)> {
    let make =
        control.run(move |control| Box::pin(async move { control.create_group_snapshot(body.value, body.once).await }));
    Ok((StatusCode::CREATED, Json(make.await?)))
}
