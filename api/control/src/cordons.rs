//! Nodes that take nothing new: no volumes, no migrations. What they hold, and what is on its way to them, goes on.

use crate::Control;
use crate::idempotency::{Attempt, Once};
use crate::queries::{Tagged, check_version, find_node};
use crate::table::{Changes, NewEvent, State};
use drover_base::NodeId;
use drover_types::record::{CordonRecord, DrainRecord, NodeRecord};
use drover_types::{ApiError, CordonNode, ErrorCode, Node};

/// Longest reason.
const REASON_MAX: usize = 200;

/// To be asked in the step that gives the node something new.
pub(crate) fn check_takes_new(state: &State, node: &NodeId) -> Result<(), ApiError> {
    let Some(cordon) = state.cordon(node) else { return Ok(()) };
    let error = ApiError::new(ErrorCode::NodeCordoned, format!("{node} is cordoned: it takes nothing new"))
        .hint(format!("choose another node, or `drover node uncordon {node}`"));
    Err(match &cordon.reason {
        Some(reason) => error.cause(reason.clone()),
        None => error,
    })
}

fn check_reason(reason: Option<&str>) -> Result<(), ApiError> {
    let is_good = |text: &str| !text.is_empty() && text.len() <= REASON_MAX && !text.chars().any(char::is_control);
    if reason.is_none_or(is_good) {
        return Ok(());
    }
    Err(ApiError::invalid("reason", format!("a reason has 1 to {REASON_MAX} bytes, and is one line")))
}

/// Cordons the node where it is not; a reason that is given becomes the reason.
pub(crate) fn cordon(state: &State, changes: &mut Changes, node: &NodeRecord, reason: Option<String>) {
    let name = &node.node;
    let known = state.cordon(name);
    if known.is_some_and(|known| reason.is_none() || known.reason == reason) {
        return;
    }
    let why = reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
    let text = format!("{name} takes no new volumes and no new migrations{why}");
    changes.event(NewEvent::info("node.cordoned", text).node(name));
    let since_ms = known.map_or(changes.wall_ms(), |known| known.since_ms);
    changes.put(CordonRecord { node: name.clone(), reason, since_ms });
    // The resource that shows it has changed.
    changes.put(node.clone());
}

/// Forgets the cordon, and with it the drain; whether there was a cordon.
pub(crate) fn lift(state: &State, changes: &mut Changes, node: &NodeId) -> bool {
    if state.drain(node).is_some() {
        changes.delete::<DrainRecord>(node.clone());
    }
    let was_there = state.cordon(node).is_some();
    if was_there {
        changes.delete::<CordonRecord>(node.clone());
    }
    was_there
}

impl Control {
    pub async fn cordon_node(
        &self,
        name: &str,
        request: CordonNode,
        expected: Option<u64>,
        once: Option<Once>,
    ) -> Result<Tagged<Node>, ApiError> {
        check_reason(request.reason.as_deref())?;
        let holding = match self.attempt(once)? {
            Attempt::First(holding) => holding,
            Attempt::Repeated(_) => return self.show_node(name),
        };
        self.ledger
            .commit(|state, changes| {
                let node = find_node(state, name)?;
                check_version(expected, state.nodes[&node.node].version.0)?;
                cordon(state, changes, node, request.reason);
                holding.remember(state, changes, name);
                Ok::<_, ApiError>(())
            })
            .await?;
        self.show_node(name)
    }

    /// Also the end of a drain: no further move begins, those under way go on.
    pub async fn uncordon_node(
        &self,
        name: &str,
        expected: Option<u64>,
        once: Option<Once>,
    ) -> Result<Tagged<Node>, ApiError> {
        let holding = match self.attempt(once)? {
            Attempt::First(holding) => holding,
            Attempt::Repeated(_) => return self.show_node(name),
        };
        self.ledger
            .commit(|state, changes| {
                let node = find_node(state, name)?;
                check_version(expected, state.nodes[&node.node].version.0)?;
                holding.remember(state, changes, name);
                if lift(state, changes, &node.node) {
                    changes.put(node.clone());
                    let text = format!("{name} takes volumes and migrations again");
                    changes.event(NewEvent::info("node.uncordoned", text).node(&node.node));
                }
                Ok::<_, ApiError>(())
            })
            .await?;
        self.show_node(name)
    }
}
