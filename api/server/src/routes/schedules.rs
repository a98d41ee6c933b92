//! Snapshots by the clock.

use super::ask;
use crate::answer::Answer;
use crate::extract::{Body, Named};
use axum::{Json, extract::State, http::StatusCode};
use drover_control::ControlHandle;
use drover_types::{ApiError, Schedule, VolumeSchedule};
use utoipa_axum::{router::OpenApiRouter, routes};

pub fn routes() -> OpenApiRouter<ControlHandle> {
    OpenApiRouter::new().routes(routes!(show_schedule, set_schedule, delete_schedule))
}

#[utoipa::path(get, path = "/v1/volumes/{volume}/schedule", tag = "snapshots", params(("volume" = String, Path)),
    responses((status = 200, body = VolumeSchedule), (status = 404, body = ApiError)))]
async fn show_schedule(
    State(control): State<ControlHandle>,
    Named(volume): Named<String>,
) -> Answer<Json<VolumeSchedule>> {
    Ok(Json(ask(&control, move |control| control.show_schedule(&volume)).await?))
}

/// Gives the volume snapshots by the clock, and takes away again what no rule keeps of them; never those that people made.
/// While the volume is in a migration moments pass without one, which an event tells.
#[utoipa::path(put, path = "/v1/volumes/{volume}/schedule", tag = "snapshots", params(("volume" = String, Path)),
    request_body = Schedule, responses((status = 200, body = VolumeSchedule), (status = 404, body = ApiError)))]
async fn set_schedule(
    State(control): State<ControlHandle>,
    Named(volume): Named<String>,
    body: Body<Schedule>,
) -> Answer<Json<VolumeSchedule>> {
    let set = control.run(move |control| Box::pin(async move { control.set_schedule(&volume, body.value).await }));
    Ok(Json(set.await?))
}

/// No more snapshots by the clock. Those that were taken stay.
#[utoipa::path(delete, path = "/v1/volumes/{volume}/schedule", tag = "snapshots", params(("volume" = String, Path)),
    responses((status = 204), (status = 404, body = ApiError)))]
async fn delete_schedule(State(control): State<ControlHandle>, Named(volume): Named<String>) -> Answer<StatusCode> {
    control.run(move |control| Box::pin(async move { control.delete_schedule(&volume).await })).await?;
    Ok(StatusCode::NO_CONTENT)
}
