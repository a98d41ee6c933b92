//! What people ask of drains.

use super::view::not_found;
use crate::Control;
use crate::cordons::{check_takes_new, cordon};
use crate::idempotency::{Attempt, Once};
use crate::queries::{Tagged, check_version, find_node};
use crate::table::{NewEvent, State};
use drover_base::NodeId;
use drover_types::record::DrainRecord;
use drover_types::{ApiError, Drain, DrainNode, DrainState, ErrorCode, MigrationOptions};
use std::rc::Rc;

/// Moves at once where nobody says how many.
const PARALLEL: u32 = 2;
const PARALLEL_MAX: u32 = 16;
const DEADLINE_MS: std::ops::RangeInclusive<u64> = 1_000..=30 * 24 * 3600 * 1000;
/// Targets that may be named.
const TARGETS_MAX: usize = 1_024;

/// What can be said of a request without looking at the cluster.
fn check(request: &DrainNode) -> Result<(), ApiError> {
    if request.parallel.is_some_and(|parallel| !(1..=PARALLEL_MAX).contains(&parallel)) {
        return Err(ApiError::invalid("parallel", format!("1 to {PARALLEL_MAX} moves go on at once")));
    }
    if request.deadline_ms.is_some_and(|deadline| !DEADLINE_MS.contains(&deadline)) {
        return Err(ApiError::invalid("deadline_ms", "a deadline is 1 second to 30 days from now"));
    }
    if request.to.as_ref().is_some_and(|to| to.is_empty() || to.len() > TARGETS_MAX) {
        return Err(ApiError::invalid("to", format!("1 to {TARGETS_MAX} nodes are named, or none at all")));
    }
    let throttle_bytes_per_s = request.throttle_bytes_per_s.filter(|throttle| *throttle > 0);
    MigrationOptions { throttle_bytes_per_s, ..MigrationOptions::default() }.check()
}

/// The nodes that were named, each of which could take something now.
fn targets(state: &State, node: &NodeId, names: &[String]) -> Result<Vec<NodeId>, ApiError> {
    let mut targets = Vec::new();
    for name in names {
        let target = &find_node(state, name)?.node;
        if target == node {
            return Err(ApiError::new(ErrorCode::SameNode, format!("{node} cannot take what is to leave it")));
        }
        check_takes_new(state, target)?;
        if !targets.contains(target) {
            targets.push(target.clone());
        }
    }
    Ok(targets)
}

/// The record as asked: what is absent stays as it was, unless that drain came to its end.
fn asked(state: &State, node: &NodeId, request: &DrainNode, now: u64) -> Result<DrainRecord, ApiError> {
    let known = state.drain(node).filter(|known| known.state != DrainState::Drained);
    let mut record = known.cloned().unwrap_or(DrainRecord {
        node: node.clone(),
        state: DrainState::Running,
        to: Vec::new(),
        parallel: PARALLEL,
        throttle_bytes_per_s: None,
        deadline_at_ms: None,
        started_ms: now,
        ended_ms: None,
        volumes_moved: 0,
        moves: Vec::new(),
    });
    if let Some(to) = &request.to {
        record.to = targets(state, node, to)?;
    }
    record.parallel = request.parallel.unwrap_or(record.parallel);
    if let Some(throttle) = request.throttle_bytes_per_s {
        record.throttle_bytes_per_s = Some(throttle).filter(|throttle| *throttle > 0);
    }
    match request.deadline_ms {
        Some(deadline) => record.deadline_at_ms = Some(now.saturating_add(deadline)),
        // The deadline that has passed was of the drain that ended by it.
        None if record.state == DrainState::DeadlinePassed => record.deadline_at_ms = None,
        None => {}
    }
    (record.state, record.ended_ms) = (DrainState::Running, None);
    // Whoever asks again wants another try, of everything and at once.
    for tried in &mut record.moves {
        (tried.failures, tried.not_before_ms, tried.given_up) = (0, 0, false);
        (tried.problem, tried.unplaced) = (None, false);
    }
    Ok(record)
}

fn check_drain_version(state: &State, node: &NodeId, expected: Option<u64>) -> Result<(), ApiError> {
    let version = state.drains.get(node).map_or(0, |kept| kept.version.0);
    check_version(expected, version)
}

impl Control {
    /// Begins to empty the node, or goes on with it.
    pub async fn drain_node(
        self: &Rc<Self>,
        name: &str,
        request: DrainNode,
        expected: Option<u64>,
        once: Option<Once>,
    ) -> Result<Tagged<Drain>, ApiError> {
        check(&request)?;
        let holding = match self.attempt(once)? {
            Attempt::First(holding) => holding,
            Attempt::Repeated(_) => return self.show_drain(name),
        };
        // What it holds now, not as of its last report: a snapshot that was in the way may have been deleted just now.
        let asked_of = find_node(&self.ledger.state(), name).map(|node| (node.node.clone(), node.admin.clone()))?;
        if let Err(error) = self.nodes.poll(&asked_of.0, &asked_of.1).await {
            tracing::info!(%error, "a drain rests on an older report");
        }
        let node = self
            .ledger
            .commit(|state, changes| {
                let node = find_node(state, name)?;
                check_drain_version(state, &node.node, expected)?;
                let record = asked(state, &node.node, &request, changes.wall_ms())?;
                holding.remember(state, changes, name);
                let known = state.drain(&node.node);
                if known == Some(&record) {
                    return Ok::<_, ApiError>(node.node.clone());
                }
                cordon(state, changes, node, None);
                if known.is_none_or(|known| known.state != DrainState::Running) {
                    let to = match record.to.as_slice() {
                        [] => "other nodes".into(),
                        to => to.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", "),
                    };
                    let text = format!("{name} is drained: its volumes move to {to}, {} at once", record.parallel);
                    changes.event(NewEvent::info("node.drain_started", text).node(&node.node));
                }
                // The resource that shows it has changed.
                changes.put(node.clone());
                changes.put(record);
                Ok(node.node.clone())
            })
            .await?;
        self.carry_out_drain(node);
        self.show_drain(name)
    }

    /// No further move begins. Those under way go on, and the node stays cordoned.
    pub async fn cancel_drain(
        &self,
        name: &str,
        expected: Option<u64>,
        once: Option<Once>,
    ) -> Result<Tagged<Drain>, ApiError> {
        let holding = match self.attempt(once)? {
            Attempt::First(holding) => holding,
            Attempt::Repeated(_) => return self.show_drain(name),
        };
        self.ledger
            .commit(|state, changes| {
                let node = find_node(state, name)?;
                let known = state.drain(&node.node).ok_or_else(|| not_found(&node.node))?;
                check_drain_version(state, &node.node, expected)?;
                holding.remember(state, changes, name);
                if known.state == DrainState::Running {
                    let (state, ended_ms) = (DrainState::Cancelled, Some(changes.wall_ms()));
                    changes.put(DrainRecord { state, ended_ms, ..known.clone() });
                    changes.put(node.clone());
                    let text =
                        format!("the drain of {name} was cancelled: no further move begins, those under way go on");
                    changes.event(NewEvent::info("node.drain_cancelled", text).node(&node.node));
                }
                Ok::<_, ApiError>(())
            })
            .await?;
        self.show_drain(name)
    }
}
