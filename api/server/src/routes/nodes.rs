//! Storage nodes and their tiers.

use super::ask;
use crate::answer::{Answer, Versioned, shown};
use crate::extract::{Asked, Expected, Named};
use crate::page::{PageQuery, Paged};
use axum::{extract::State, http::StatusCode};
use drover_control::ControlHandle;
use drover_types::{ApiError, Node, Page, Tier};
use utoipa_axum::{router::OpenApiRouter, routes};

pub fn routes() -> OpenApiRouter<ControlHandle> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show, forget)).routes(routes!(tiers))
}

/// Nodes that have registered.
#[utoipa::path(get, path = "/v1/nodes", tag = "nodes", params(PageQuery), responses((status = 200, body = Page<Node>)))]
async fn list(State(control): State<ControlHandle>, Asked(query): Asked<PageQuery>) -> Answer<Paged<Node>> {
    let nodes = ask(&control, |control| Ok(control.list_nodes())).await?;
    let nodes = nodes.into_iter().map(|node| node.value).collect();
    Ok(query.cut("/v1/nodes", nodes, |node: &Node| node.name.clone())?)
}

#[utoipa::path(get, path = "/v1/nodes/{node}", tag = "nodes", params(("node" = String, Path)),
    responses((status = 200, body = Node), (status = 404, body = ApiError)))]
async fn show(State(control): State<ControlHandle>, Named(node): Named<String>) -> Answer<Versioned<Node>> {
    Ok(shown(ask(&control, move |control| control.show_node(&node)).await?))
}

/// Forgets a node that is gone for good.
#[utoipa::path(delete, path = "/v1/nodes/{node}", tag = "nodes", params(("node" = String, Path)),
    responses((status = 204), (status = 404, body = ApiError), (status = 409, body = ApiError), (status = 412, body = ApiError)))]
async fn forget(
    State(control): State<ControlHandle>,
    Named(node): Named<String>,
    Expected(expected): Expected,
) -> Answer<StatusCode> {
    control.run(move |control| Box::pin(async move { control.delete_node(&node, expected).await })).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tiers of all nodes.
#[utoipa::path(get, path = "/v1/tiers", tag = "nodes", params(PageQuery), responses((status = 200, body = Page<Tier>)))]
async fn tiers(State(control): State<ControlHandle>, Asked(query): Asked<PageQuery>) -> Answer<Paged<Tier>> {
    let tiers = ask(&control, |control| Ok(control.list_tiers())).await?;
    Ok(query.cut("/v1/tiers", tiers, |tier| format!("{}/{}", tier.node, tier.name))?)
}
