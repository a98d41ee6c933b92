//! Migrations: a plan, then a resource that is watched and told what to do.

use super::ask;
use crate::answer::{Answer, Versioned, created, shown};
use crate::extract::{Asked, Body, Expected, Named, Nothing};
use crate::page::{PageQuery, Paged};
use axum::{Json, extract::State};
use drover_control::ControlHandle;
use drover_types::{
    Action, ApiError, ErrorCode, Migration, MigrationPlan, Page, PlanRequest, StartMigration, TuneMigration,
};
use serde::Deserialize;
use utoipa_axum::{router::OpenApiRouter, routes};

pub fn routes() -> OpenApiRouter<ControlHandle> {
    OpenApiRouter::new()
        .routes(routes!(list, start))
        .routes(routes!(plan))
        .routes(routes!(show, tune))
        .routes(routes!(act))
}

/// What names a migration in a path.
const NAMED: &str = "id; or a volume's name or id: its unfinished migration, else its last";

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
struct MigrationQuery {
    /// Items at most, 1 to 1,000; 100 where absent.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// `next` of the page before.
    after: Option<String>,
    /// Only those of this volume, by id or name.
    volume: Option<String>,
}

#[utoipa::path(get, path = "/v1/migrations", tag = "migrations", params(MigrationQuery),
    responses((status = 200, body = Page<Migration>), (status = 404, body = ApiError)))]
async fn list(State(control): State<ControlHandle>, Asked(query): Asked<MigrationQuery>) -> Answer<Paged<Migration>> {
    let volume = query.volume.clone();
    let migrations = ask(&control, move |control| control.list_migrations(volume.as_deref())).await?;
    let migrations = migrations.into_iter().map(|migration| migration.value).collect();
    let pages = PageQuery { limit: query.limit, after: query.after };
    let mut paged = pages.cut("/v1/migrations", migrations, |migration: &Migration| migration.id.clone())?;
    paged.query.push(("volume", query.volume));
    Ok(paged)
}

/// Begins to move a volume.
#[utoipa::path(post, path = "/v1/migrations", tag = "migrations", request_body = StartMigration,
    responses((status = 201, body = Migration), (status = 404, body = ApiError), (status = 409, body = ApiError)))]
async fn start(State(control): State<ControlHandle>, body: Body<StartMigration>) -> Answer<Versioned<Migration>> {
    let start =
        control.run(move |control| Box::pin(async move { control.start_migration(body.value, body.once).await }));
    Ok(created(start.await?))
}

/// What a move would bring and cost. Changes nothing.
#[utoipa::path(post, path = "/v1/migrations/plan", tag = "migrations", request_body = PlanRequest,
    responses((status = 200, body = MigrationPlan), (status = 404, body = ApiError), (status = 409, body = ApiError)))]
async fn plan(State(control): State<ControlHandle>, body: Body<PlanRequest>) -> Answer<Json<MigrationPlan>> {
    let plan = control.run(move |control| Box::pin(async move { control.plan_migration(&body.value).await }));
    Ok(Json(plan.await?))
}

#[utoipa::path(get, path = "/v1/migrations/{migration}", tag = "migrations", params(("migration" = String, Path, description = NAMED)),
    responses((status = 200, body = Migration), (status = 404, body = ApiError)))]
async fn show(State(control): State<ControlHandle>, Named(id): Named<String>) -> Answer<Versioned<Migration>> {
    Ok(shown(ask(&control, move |control| control.show_migration(&id)).await?))
}

/// Changes the throttle, the cutover policy or other options of a running migration.
#[utoipa::path(patch, path = "/v1/migrations/{migration}", tag = "migrations", params(("migration" = String, Path, description = NAMED)),
    request_body = TuneMigration,
    responses((status = 200, body = Migration), (status = 404, body = ApiError), (status = 409, body = ApiError),
        (status = 412, body = ApiError)))]
async fn tune(
    State(control): State<ControlHandle>,
    Named(id): Named<String>,
    Expected(expected): Expected,
    body: Body<TuneMigration>,
) -> Answer<Versioned<Migration>> {
    let tune =
        control.run(move |control| Box::pin(async move { control.tune_migration(&id, &body.value, expected).await }));
    Ok(shown(tune.await?))
}

/// Asks for `pause`, `resume`, `cutover`, `cancel`, `rollback` or `commit`. The resource shows what comes of it.
#[utoipa::path(post, path = "/v1/migrations/{migration}/{action}", tag = "migrations",
    params(("migration" = String, Path, description = NAMED), ("action" = Action, Path)),
    responses((status = 200, body = Migration), (status = 404, body = ApiError), (status = 409, body = ApiError),
        (status = 412, body = ApiError)))]
async fn act(
    State(control): State<ControlHandle>,
    Named((id, action)): Named<(String, String)>,
    Expected(expected): Expected,
    body: Body<Nothing>,
) -> Answer<Versioned<Migration>> {
    let Body { value: Nothing {}, once } = body;
    let action: Action = serde_json::from_value(action.into())
        .map_err(|_| ApiError::new(ErrorCode::RouteNotFound, "there is no such action of a migration"))?;
    let act = control.run(move |control| Box::pin(async move { control.act(&id, action, expected, once).await }));
    Ok(shown(act.await?))
}
