//! What has become of a drain's moves: decided from what is recorded alone.

use crate::config::{DRAIN_BACKOFF_MAX, DRAIN_BACKOFF_MIN, DRAIN_FAILURES_MAX};
use crate::migration::knowledge::backoff;
use crate::table::{Changes, NewEvent, State};
use drover_base::planted::{Bug, is_planted};
use drover_base::{NodeId, VolumeId};
use drover_types::record::{DrainRecord, MigrationRecord, MoveRecord, Stage};
use drover_types::{ApiError, DrainState, ErrorCode};
use std::collections::BTreeSet;

/// Volumes whose lease the node holds.
pub fn held(state: &State, node: &NodeId) -> BTreeSet<VolumeId> {
    let leases = state.leases.values().map(|kept| &kept.record);
    leases.filter(|lease| lease.holder == *node).map(|lease| lease.volume).collect()
}

/// Volumes of which it has a copy, or may get one: it is a side of an unfinished migration, or has yet to be told of the
/// end of one.
pub fn copies(state: &State, node: &NodeId) -> BTreeSet<VolumeId> {
    let records = state.migrations.values().map(|kept| &kept.record);
    records.filter(|record| keeps(record, node)).map(|record| record.volume).collect()
}

/// Whether the migration has to come to its end before the node is empty.
pub fn keeps(record: &MigrationRecord, node: &NodeId) -> bool {
    let is_side = record.source == *node || record.destination == *node;
    (is_side && !record.stage.is_final()) || record.cleanup.iter().any(|cleanup| cleanup.node == *node)
}

/// Takes what has happened into the record. Stores and tells what is new.
pub fn review(state: &State, changes: &mut Changes, node: &NodeId) -> Option<DrainRecord> {
    let known = state.drain(node)?;
    let mut record = known.clone();
    let held = held(state, node);
    adopt(state, &mut record);
    let now = changes.wall_ms();
    let mut kept = Vec::new();
    for tried in std::mem::take(&mut record.moves) {
        match ended(state, &tried) {
            None if tried.migration.is_some() => kept.push(tried),
            // Deleted, or moved while nobody looked.
            None if !held.contains(&tried.volume) => {}
            None => kept.push(tried),
            Some(Some(ended)) if ended.stage == Stage::Committed && !held.contains(&tried.volume) => {
                record.volumes_moved += 1;
            }
            Some(_) if !held.contains(&tried.volume) => {}
            Some(ended) => {
                let failed = fail(tried, ended, now);
                tell_failure(state, changes, node, &failed);
                kept.push(failed);
            }
        }
    }
    record.moves = kept;
    let mut left = held.clone();
    if !is_planted(Bug::DrainedTooEarly) {
        left.extend(copies(state, node));
    }
    end(changes, &mut record, &left);
    if record != *known {
        if record.state != known.state
            && let Some(node) = state.node(node)
        {
            // The resource that shows it has changed.
            changes.put(node.clone());
        }
        changes.put(record.clone());
    }
    Some(record)
}

/// Unfinished migrations away from the node are the drain's moves, whoever began them.
fn adopt(state: &State, record: &mut DrainRecord) {
    for active in state.migrations.values().map(|kept| &kept.record) {
        if active.source == record.node && !active.stage.is_final() {
            let tried = record.tried(active.volume);
            (tried.migration, tried.unplaced) = (Some(active.migration), false);
        }
    }
}

/// The move that was under way and is no more; `Some(None)`: it is not even remembered.
fn ended<'a>(state: &'a State, tried: &MoveRecord) -> Option<Option<&'a MigrationRecord>> {
    match state.migration(tried.migration?) {
        Some(record) if !record.stage.is_final() => None,
        found => Some(found),
    }
}

fn fail(tried: MoveRecord, ended: Option<&MigrationRecord>, now: u64) -> MoveRecord {
    let failures = tried.failures + 1;
    let lost = || {
        let message = ended.map_or_else(
            || "the migration is not remembered any more".into(),
            |ended| format!("{} was lost, and {} took over", ended.destination, ended.source),
        );
        ApiError::new(ErrorCode::NodeUnreachable, message)
    };
    // What a person gave up is not begun again by itself.
    let problem = if tried.given_up {
        ApiError::new(ErrorCode::PhaseConflict, "the move was taken back by somebody")
    } else {
        ended.and_then(|ended| ended.error.clone()).unwrap_or_else(lost)
    };
    let wait = backoff(DRAIN_BACKOFF_MIN, DRAIN_BACKOFF_MAX, failures);
    MoveRecord {
        migration: None,
        failures,
        problem: Some(problem),
        unplaced: false,
        not_before_ms: now.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
        given_up: tried.given_up || failures >= DRAIN_FAILURES_MAX,
        volume: tried.volume,
    }
}

fn tell_failure(state: &State, changes: &mut Changes, node: &NodeId, failed: &MoveRecord) {
    let name = state.volume(failed.volume).map_or_else(|| failed.volume.to_string(), |volume| volume.name.clone());
    let why = failed.problem.as_ref().map_or_else(String::new, |problem| format!(": {problem}"));
    let event = if failed.given_up {
        NewEvent::error(
            "node.drain_given_up",
            format!("{name} stays at {node} until the drain is asked for again{why}"),
        )
    } else {
        NewEvent::warning("node.drain_failed", format!("{name} stays at {node} for now, and is tried again{why}"))
    };
    changes.event(event.node(node).volume(failed.volume));
}

fn end(changes: &mut Changes, record: &mut DrainRecord, left: &BTreeSet<VolumeId>) {
    let node = record.node.clone();
    if left.is_empty() {
        if record.state != DrainState::Drained {
            record.state = DrainState::Drained;
            record.ended_ms = Some(changes.wall_ms());
            let text = format!("{node} is drained: it holds no volume, {} were moved", record.volumes_moved);
            changes.event(NewEvent::info("node.drained", text).node(&node));
        }
        return;
    }
    let is_late = record.deadline_at_ms.is_some_and(|deadline| deadline <= changes.wall_ms());
    if record.state == DrainState::Running && is_late {
        record.state = DrainState::DeadlinePassed;
        record.ended_ms = Some(changes.wall_ms());
        let text = format!(
            "the deadline of {node}'s drain passed with {} volumes left: no further move begins, those under way go on",
            left.len()
        );
        changes.event(NewEvent::warning("node.drain_deadline", text).node(&node));
    }
}

/// Somebody takes this migration back: a drain that it is a move of does not begin it again by itself.
pub(crate) fn give_up(state: &State, changes: &mut Changes, migration: &MigrationRecord) {
    let Some(drain) = state.drain(&migration.source) else { return };
    let mut drain = drain.clone();
    let tried = drain.tried(migration.volume);
    (tried.migration, tried.given_up) = (Some(migration.migration), true);
    changes.put(drain);
}
