//! How a drain stands: what moves, what waits, and for what.

use super::review::{copies, held, keeps};
use crate::Control;
use crate::planner::Content;
use crate::queries::{Tagged, find_node};
use crate::table::State;
use drover_base::{NodeId, VolumeId};
use drover_types::record::{DrainRecord, Stage};
use drover_types::{
    ApiError, Drain, DrainMove, DrainState, DrainWaiting, ErrorCode, Health, Migration, Phase, VolumeState,
};
use std::collections::BTreeMap;

/// How a volume of the node stands.
pub enum Standing {
    /// A migration is under way that has to end first.
    Moving(Box<Migration>),
    /// A move of it may begin.
    Ready {
        failures: u32,
    },
    Waits {
        what: String,
        needs_you: bool,
    },
}

fn waits(what: impl Into<String>) -> Standing {
    Standing::Waits { what: what.into(), needs_you: false }
}

fn needs_you(what: impl Into<String>) -> Standing {
    Standing::Waits { what: what.into(), needs_you: true }
}

impl Control {
    /// Of every volume of which the node has a copy.
    pub(super) fn standings(&self, record: &DrainRecord) -> BTreeMap<VolumeId, Standing> {
        let state = self.ledger.state();
        let held = held(&state, &record.node);
        let all = held.union(&copies(&state, &record.node)).copied().collect::<Vec<_>>();
        all.into_iter().map(|volume| (volume, self.standing(&state, record, volume, held.contains(&volume)))).collect()
    }

    fn standing(&self, state: &State, record: &DrainRecord, volume: VolumeId, is_held: bool) -> Standing {
        let node = &record.node;
        let of_node = |record: &&drover_types::record::MigrationRecord| keeps(record, node);
        if let Some(active) = state.active_migration(volume).filter(of_node) {
            return Standing::Moving(Box::new(self.migration(active)));
        }
        if !is_held {
            let ended = state.migrations_of(volume).find(of_node);
            let name = ended.map_or_else(String::new, |record| record.migration.to_string());
            return waits(format!("{node} to let go of its copy, as {name} is over"));
        }
        match state.volume(volume).map(|volume| volume.state) {
            Some(VolumeState::Creating) => return waits("its creation to end"),
            Some(VolumeState::Deleting) => return waits("its deletion to end"),
            Some(VolumeState::Ready) | None => {}
        }
        let tried = record.moves.iter().find(|tried| tried.volume == volume);
        if tried.is_some_and(|tried| tried.given_up) {
            return needs_you("the drain to be asked for again: it is not tried any more");
        }
        if self.nodes.health(node) != Health::Up {
            return waits(format!("{node} to be up"));
        }
        let Some((status, ..)) = self.nodes.volume(node, volume) else {
            return waits(format!("{node} to report it"));
        };
        if status.poisoned {
            return needs_you("to be reopened: a failed sync has poisoned it");
        }
        match tried {
            Some(tried) if tried.not_before_ms > self.world.clock.wall_ms() => {
                let what = tried.problem.as_ref().map_or_else(String::new, |problem| format!(": {problem}"));
                Standing::Waits { what: format!("the next try{what}"), needs_you: tried.unplaced }
            }
            tried => Standing::Ready { failures: tried.map_or(0, |tried| tried.failures) },
        }
    }

    pub fn show_drain(&self, name: &str) -> Result<Tagged<Drain>, ApiError> {
        let state = self.ledger.state();
        let node = &find_node(&state, name)?.node;
        let kept = state.drains.get(node).ok_or_else(|| not_found(node))?;
        Ok(Tagged { version: kept.version.0, value: self.drain(&state, &kept.record) })
    }

    fn drain(&self, state: &State, record: &DrainRecord) -> Drain {
        let (mut moves, mut waiting, mut bytes_left, mut rate) = (Vec::new(), Vec::new(), 0u64, 0u64);
        for (volume, standing) in self.standings(record) {
            match standing {
                Standing::Moving(migration) => {
                    bytes_left = bytes_left.saturating_add(leaving_bytes(&migration, record));
                    rate = rate.saturating_add(migration.rate_bytes_per_s);
                    moves.push(shown_move(*migration));
                }
                Standing::Ready { .. } => {
                    bytes_left = bytes_left.saturating_add(self.valid_bytes(&record.node, volume));
                    let what = if record.state == DrainState::Running { "its turn" } else { "the drain to go on" };
                    waiting.push(shown_waiting(state, record, volume, what.into(), false));
                }
                Standing::Waits { what, needs_you } => {
                    bytes_left = bytes_left.saturating_add(self.valid_bytes(&record.node, volume));
                    waiting.push(shown_waiting(state, record, volume, what, needs_you));
                }
            }
        }
        let needs_you = moves.iter().any(|moving: &DrainMove| moving.needs_you)
            || waiting.iter().any(|waiting: &DrainWaiting| waiting.needs_you);
        let exports = state.exports.values().map(|kept| &kept.record).filter(|export| export.node == record.node);
        Drain {
            node: record.node.to_string(),
            state: record.state,
            to: record.to.iter().map(ToString::to_string).collect(),
            parallel: record.parallel,
            throttle_bytes_per_s: record.throttle_bytes_per_s,
            deadline_at_ms: record.deadline_at_ms,
            started_ms: record.started_ms,
            ended_ms: record.ended_ms,
            volumes_moved: record.volumes_moved + just_moved(state, record),
            volumes_left: (moves.len() + waiting.len()) as u64,
            bytes_left,
            rate_bytes_per_s: rate,
            eta_s: Some(bytes_left.checked_div(rate).unwrap_or(0))
                .filter(|_| rate > 0 && bytes_left > 0 && !needs_you && record.state == DrainState::Running),
            moves,
            waiting,
            needs_you,
            exports: exports.map(|export| export.name.clone()).collect(),
        }
    }

    fn valid_bytes(&self, node: &NodeId, volume: VolumeId) -> u64 {
        self.nodes.volume(node, volume).map_or(0, |(status, ..)| Content::at_most(&status).valid_bytes)
    }
}

/// Moves that have ended well since the task looked last.
fn just_moved(state: &State, record: &DrainRecord) -> u64 {
    let ids = record.moves.iter().filter_map(|tried| tried.migration);
    ids.filter(|id| state.migration(*id).is_some_and(|record| record.stage == Stage::Committed)).count() as u64
}

/// What has yet to leave the node: after the flip nothing, and what comes to it is counted once it is held.
fn leaving_bytes(migration: &Migration, record: &DrainRecord) -> u64 {
    let is_at_source = !matches!(migration.phase, Phase::Settling | Phase::Committed);
    if is_at_source && migration.source == record.node.as_str() { migration.bytes_left } else { 0 }
}

pub(super) fn not_found(node: &NodeId) -> ApiError {
    ApiError::new(ErrorCode::DrainNotFound, format!("{node} is not being drained"))
        .hint(format!("`drover node drain {node}` begins it"))
}

fn shown_move(migration: Migration) -> DrainMove {
    DrainMove {
        volume: migration.volume,
        volume_name: migration.volume_name,
        migration: migration.id,
        source: migration.source,
        destination: migration.destination,
        phase: migration.phase,
        permille: migration.permille,
        bytes_left: migration.bytes_left,
        waits_for: migration.waits_for,
        needs_you: migration.needs_you,
    }
}

fn shown_waiting(
    state: &State,
    record: &DrainRecord,
    volume: VolumeId,
    waits_for: String,
    needs_you: bool,
) -> DrainWaiting {
    let tried = record.moves.iter().find(|tried| tried.volume == volume);
    DrainWaiting {
        volume: volume.to_string(),
        volume_name: state.volume(volume).map_or_else(String::new, |volume| volume.name.clone()),
        waits_for,
        needs_you,
        failures: tried.map_or(0, |tried| tried.failures),
        error: tried.and_then(|tried| tried.problem.clone()),
        next_try_ms: tried.filter(|tried| tried.problem.is_some() && !tried.given_up).map(|tried| tried.not_before_ms),
    }
}
