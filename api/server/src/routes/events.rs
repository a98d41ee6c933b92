//! The event log, by pages and as server-sent events.

use super::ask;
use crate::answer::Answer;
use crate::extract::{Asked, LastEvent};
use crate::page::{Paged, limit};
use axum::{
    extract::State,
    response::sse::{self, KeepAlive, Sse},
};
use drover_control::ControlHandle;
use drover_types::{ApiError, Event, Page};
use futures::{Stream, stream};
use serde::Deserialize;
use std::convert::Infallible;
use utoipa_axum::{router::OpenApiRouter, routes};

/// Events that one look brings to a stream.
const BATCH: usize = 256;

pub fn routes() -> OpenApiRouter<ControlHandle> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(follow))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
struct EventQuery {
    /// Items at most, 1 to 1,000; 100 where absent.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Only events after the one with this id.
    after: Option<u64>,
    /// Only those of this migration, by its id, or by its volume's name: the unfinished one, else the last.
    migration: Option<String>,
    /// Only those of this volume, by name, or by id also when it is gone.
    volume: Option<String>,
}

#[utoipa::path(get, path = "/v1/events", tag = "events", params(EventQuery),
    responses((status = 200, body = Page<Event>), (status = 404, body = ApiError)))]
async fn list(State(control): State<ControlHandle>, Asked(query): Asked<EventQuery>) -> Answer<Paged<Event>> {
    let limit = limit(query.limit)?;
    let again = vec![
        ("limit", query.limit.map(|limit| limit.to_string())),
        ("migration", query.migration.clone()),
        ("volume", query.volume.clone()),
    ];
    let found = ask(&control, move |control| {
        let volume = query.volume.map(|name| control.volume_id(&name)).transpose()?;
        let migration = query.migration.map(|name| control.migration_id(&name)).transpose()?;
        let all = control.events(query.after.unwrap_or(0), usize::MAX, migration.as_deref());
        let of_volume = |event: &Event| volume.is_none() || event.volume == volume;
        Ok(all.into_iter().filter(of_volume).take(limit + 1).collect::<Vec<Event>>())
    });
    let mut items = found.await?;
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(|event| event.id.to_string());
    Ok(Paged { page: Page { items, next }, path: "/v1/events".into(), query: again })
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
struct FollowQuery {
    /// Only events after the one with this id; the header Last-Event-ID goes before it.
    after: Option<u64>,
}

/// Events as they happen, each with its id, so that a client that connects again misses none.
#[utoipa::path(get, path = "/v1/events/stream", tag = "events", 
    params(FollowQuery, ("Last-Event-ID" = Option<u64>, Header, description = "goes before `after`")),
    responses((status = 200, description = "server-sent events; data is an Event", content_type = "text/event-stream")))]
async fn follow(
    State(control): State<ControlHandle>,
    LastEvent(last): LastEvent,
    Asked(query): Asked<FollowQuery>,
) -> Sse<impl Stream<Item = Result<sse::Event, Infallible>>> {
    let seen = last.or(query.after).unwrap_or(0);
    let news = control.last_event();
    let batches = stream::unfold((control, news, seen), |(control, mut news, seen)| async move {
        loop {
            let newest = *news.borrow_and_update();
            if newest > seen {
                let events = ask(&control, move |control| Ok(control.events(seen, BATCH, None))).await.ok()?;
                // The newest may have been forgotten already; then the log was emptied up to it.
                let seen = events.last().map_or(newest, |event| event.id);
                return Some((stream::iter(events.into_iter().map(|event| Ok(sent(&event)))), (control, news, seen)));
            }
            // The control plane stops: so does the stream.
            news.changed().await.ok()?;
        }
    });
    Sse::new(futures::StreamExt::flatten(batches)).keep_alive(KeepAlive::default())
}

fn sent(event: &Event) -> sse::Event {
    let data = serde_json::to_string(event).expect("plain data always encodes");
    sse::Event::default().id(event.id.to_string()).event(&event.kind).data(data)
}
