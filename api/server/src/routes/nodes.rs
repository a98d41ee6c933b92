//! Storage nodes and their tiers.

use super::ask;
use crate::answer::{Answer, Versioned, shown};
use crate::extract::{Asked, Body, Expected, Named, Nothing};
use crate::page::{PageQuery, Paged};
use axum::{extract::State, http::StatusCode};
use drover_control::ControlHandle;
use drover_types::{ApiError, CordonNode, Drain, DrainNode, Node, Page, Tier};
use utoipa_axum::{router::OpenApiRouter, routes};

pub fn routes() -> OpenApiRouter<ControlHandle> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show, forget))
        .routes(routes!(cordon))
        .routes(routes!(uncordon))
        .routes(routes!(show_drain, drain))
        .routes(routes!(cancel_drain))
        .routes(routes!(tiers))
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

/// Lets a node take no new volumes and no new migrations; what it holds, and migrations under way to it, go on.
#[utoipa::path(post, path = "/v1/nodes/{node}/cordon", tag = "nodes", params(("node" = String, Path)),
    request_body = CordonNode,
    responses((status = 200, body = Node), (status = 404, body = ApiError), (status = 412, body = ApiError)))]
async fn cordon(
    State(control): State<ControlHandle>,
    Named(node): Named<String>,
    Expected(expected): Expected,
    body: Body<CordonNode>,
) -> Answer<Versioned<Node>> {
    let Body { value, once } = body;
    let cordon =
        control.run(move |control| Box::pin(async move { control.cordon_node(&node, value, expected, once).await }));
    Ok(shown(cordon.await?))
}

/// Lets a node take volumes and migrations again.
#[utoipa::path(post, path = "/v1/nodes/{node}/uncordon", tag = "nodes", params(("node" = String, Path)),
    responses((status = 200, body = Node), (status = 404, body = ApiError), (status = 412, body = ApiError)))]
async fn uncordon(
    State(control): State<ControlHandle>,
    Named(node): Named<String>,
    Expected(expected): Expected,
    body: Body<Nothing>,
) -> Answer<Versioned<Node>> {
    let once = body.once;
    let uncordon =
        control.run(move |control| Box::pin(async move { control.uncordon_node(&node, expected, once).await }));
    Ok(shown(uncordon.await?))
}

/// How far a node is with being emptied.
#[utoipa::path(get, path = "/v1/nodes/{node}/drain", tag = "nodes", params(("node" = String, Path)),
    responses((status = 200, body = Drain), (status = 404, body = ApiError)))]
async fn show_drain(State(control): State<ControlHandle>, Named(node): Named<String>) -> Answer<Versioned<Drain>> {
    Ok(shown(ask(&control, move |control| control.show_drain(&node)).await?))
}

/// Cordons a node and moves every volume it holds to others; or goes on with that. The resource shows what comes of it.
#[utoipa::path(post, path = "/v1/nodes/{node}/drain", tag = "nodes", params(("node" = String, Path)),
    request_body = DrainNode,
    responses((status = 200, body = Drain), (status = 404, body = ApiError), (status = 409, body = ApiError),
        (status = 412, body = ApiError)))]
async fn drain(
    State(control): State<ControlHandle>,
    Named(node): Named<String>,
    Expected(expected): Expected,
    body: Body<DrainNode>,
) -> Answer<Versioned<Drain>> {
    let Body { value, once } = body;
    let drain =
        control.run(move |control| Box::pin(async move { control.drain_node(&node, value, expected, once).await }));
    Ok(shown(drain.await?))
}

/// Ends a drain: no further move begins, those under way go on, and the node stays cordoned.
#[utoipa::path(post, path = "/v1/nodes/{node}/drain/cancel", tag = "nodes", params(("node" = String, Path)),
    responses((status = 200, body = Drain), (status = 404, body = ApiError), (status = 412, body = ApiError)))]
async fn cancel_drain(
    State(control): State<ControlHandle>,
    Named(node): Named<String>,
    Expected(expected): Expected,
    body: Body<Nothing>,
) -> Answer<Versioned<Drain>> {
    let once = body.once;
    let cancel = control.run(move |control| Box::pin(async move { control.cancel_drain(&node, expected, once).await }));
    Ok(shown(cancel.await?))
}

/// Tiers of all nodes.
#[utoipa::path(get, path = "/v1/tiers", tag = "nodes", params(PageQuery), responses((status = 200, body = Page<Tier>)))]
async fn tiers(State(control): State<ControlHandle>, Asked(query): Asked<PageQuery>) -> Answer<Paged<Tier>> {
    let tiers = ask(&control, |control| Ok(control.list_tiers())).await?;
    Ok(query.cut("/v1/tiers", tiers, |tier| format!("{}/{}", tier.node, tier.name))?)
}
