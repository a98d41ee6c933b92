//! Where a volume of a node that is being emptied goes.

use crate::Control;
use crate::config::DRAIN_TARGET_MOVES_MAX;
use crate::drain::view::Standing;
use crate::planner::Content;
use crate::table::State;
use drover_base::{MigrationId, NodeId, VolumeId};
use drover_types::record::{DrainRecord, MigrationRecord, Stage};
use drover_types::{ApiError, ErrorCode, Health, MigrationOptions, StartMigration};
use std::{cmp::Reverse, rc::Rc};

/// How good a target is: the least is taken. Ties are broken by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    /// Unfinished migrations to it: moves are spread.
    moves_there: usize,
    /// How full it will be, in tenths: room is worth more than a quiet node, but not every gigabyte of it.
    full_tenths: u64,
    /// What clients write to the volumes it holds.
    write_bytes_per_s: u64,
    node: NodeId,
}

/// What may take a volume now.
enum Targets {
    /// Best first.
    Some(Vec<Score>),
    /// One could, were it not busy with other moves.
    Busy,
    None(ApiError),
}

/// What came of an attempt to begin a move.
pub enum Placed {
    Begun(MigrationId),
    /// Not now, and that is no fault: what it waits for ends by itself.
    NotYet,
    Refused(ApiError),
}

/// Unfinished migrations to the node, and the space that those of them need which have not reserved it yet.
fn coming(state: &State, node: &NodeId) -> (usize, u64) {
    let records = state.migrations.values().map(|kept| &kept.record);
    let to_it: Vec<&MigrationRecord> =
        records.filter(|record| record.destination == *node && !record.stage.is_final()).collect();
    let unreserved = to_it.iter().filter(|record| matches!(record.stage, Stage::Planned | Stage::Tracking));
    let needed = unreserved.map(|record| record.plan.space_needed_bytes).fold(0, u64::saturating_add);
    (to_it.len(), needed)
}

impl Control {
    /// The volumes whose turn it is, in order: those that failed least, then the largest, as it is harder to place.
    pub(super) fn turns(&self, record: &DrainRecord) -> Vec<VolumeId> {
        let standings = self.standings(record);
        let mut turns: Vec<_> = standings
            .into_iter()
            .filter_map(|(volume, standing)| match standing {
                Standing::Ready { failures } => {
                    Some((failures, Reverse(self.used_bytes(&record.node, volume)), volume))
                }
                Standing::Moving { .. } | Standing::Waits { .. } => None,
            })
            .collect();
        turns.sort();
        turns.into_iter().map(|(.., volume)| volume).collect()
    }

    fn used_bytes(&self, node: &NodeId, volume: VolumeId) -> u64 {
        self.nodes.volume(node, volume).map_or(0, |(status, ..)| Content::at_most(&status).used_bytes)
    }

    fn targets(&self, record: &DrainRecord, volume: VolumeId) -> Targets {
        let state = self.ledger.state();
        let needed = self.used_bytes(&record.node, volume);
        let (mut scores, mut is_busy, mut small) = (Vec::new(), false, Vec::new());
        for node in state.nodes.keys() {
            let is_meant = record.to.is_empty() || record.to.contains(node);
            let is_able = state.cordon(node).is_none() && self.nodes.health(node) == Health::Up;
            if *node == record.node || !is_meant || !is_able {
                continue;
            }
            let Some((total, free)) = self.room(node) else {
                // It is there and will say in a moment what room it has.
                is_busy = true;
                continue;
            };
            if total == 0 {
                continue;
            }
            let (moves_there, unreserved) = coming(&state, node);
            if free < needed {
                small.push(format!("{node} has {free} bytes free"));
            } else if moves_there >= DRAIN_TARGET_MOVES_MAX || free - needed < unreserved {
                is_busy = true;
            } else {
                let taken = u128::from(total - free.min(total)) + u128::from(unreserved) + u128::from(needed);
                let full_tenths = u64::try_from(taken * 10 / u128::from(total)).unwrap_or(u64::MAX);
                let write_bytes_per_s = self.nodes.write_bytes_per_s(node);
                scores.push(Score { moves_there, full_tenths, write_bytes_per_s, node: node.clone() });
            }
        }
        scores.sort();
        match (scores.is_empty(), is_busy) {
            (false, _) => Targets::Some(scores),
            (true, true) => Targets::Busy,
            (true, false) => Targets::None(no_target(record, needed, &small)),
        }
    }

    /// Bytes of all its tiers, and those that are free. `None`: it has not reported.
    fn room(&self, node: &NodeId) -> Option<(u64, u64)> {
        let report = self.nodes.report(node)?;
        let total = report.status.tiers.iter().map(|tier| tier.total_bytes).fold(0, u64::saturating_add);
        Some((total, self.nodes.free_bytes(node)?))
    }

    /// Begins to move the volume to the best node that takes it.
    pub(super) async fn place(self: &Rc<Self>, record: &DrainRecord, volume: VolumeId) -> Placed {
        let scores = match self.targets(record, volume) {
            Targets::Some(scores) => scores,
            Targets::Busy => return Placed::NotYet,
            Targets::None(error) => return Placed::Refused(error),
        };
        let options =
            MigrationOptions { throttle_bytes_per_s: record.throttle_bytes_per_s, ..MigrationOptions::default() };
        let mut refused = None;
        for Score { node, .. } in scores {
            let request =
                StartMigration { volume: volume.to_string(), destination: node.to_string(), options: options.clone() };
            match self.start_migration(request, None).await {
                Ok(begun) => return begun.value.id.parse().map_or(Placed::NotYet, Placed::Begun),
                // The next may have room, or take it.
                Err(error) if matches!(error.code, ErrorCode::NoSpace | ErrorCode::NodeCordoned) => {
                    refused = Some(error);
                }
                // It is gone, or does something else by now.
                Err(error)
                    if matches!(
                        error.code,
                        ErrorCode::VolumeNotFound
                            | ErrorCode::VolumeBusy
                            | ErrorCode::VolumeMigrating
                            | ErrorCode::NodeNotFound
                            | ErrorCode::NodeBusy
                            | ErrorCode::Unavailable
                    ) =>
                {
                    return Placed::NotYet;
                }
                Err(error) => return Placed::Refused(error),
            }
        }
        refused.map_or(Placed::NotYet, Placed::Refused)
    }
}

fn no_target(record: &DrainRecord, needed: u64, small: &[String]) -> ApiError {
    let asked = if record.to.is_empty() { "node" } else { "node that was named" };
    if small.is_empty() {
        let message = format!("no other {asked} is up, has tiers, and is not cordoned");
        return ApiError::new(ErrorCode::NodeUnreachable, message).hint("bring one up, or uncordon one");
    }
    ApiError::new(ErrorCode::NoSpace, format!("no other {asked} has {needed} bytes free"))
        .cause(small.join("; "))
        .hint("make room there, or add a node")
}
