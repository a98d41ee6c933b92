//! Timed leases: when each was last renewed, and when it has certainly run out.
//!
//! Invariants:
//! - a holder counts its lease from the *sending* of the renewal and stops at 2/3 of the time to live; here it counts
//!   from the *receipt*, and runs out after the whole time to live plus the stated drift: later by any clock;
//! - what was before the control plane's start is unknown: every lease counts as renewed at the start;
//! - time that this process did not live through does not count: renewals may be waiting unread.

use crate::limits::wire_limits;
use crate::lived::Lived;
use crate::table::State;
use drover_base::{NodeId, VolumeId};
use drover_types::record::{CleanupTask, MigrationRecord};
use drover_wire::admin::{Grant, IoLimits, Leg, NodeAddress};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

pub struct Renewals {
    lived: Rc<Lived>,
    /// When each was last renewed, in time lived through.
    received: RefCell<BTreeMap<VolumeId, Duration>>,
}

impl Renewals {
    pub fn new(lived: Rc<Lived>) -> Self {
        Self { lived, received: RefCell::default() }
    }

    /// The volume's lease was renewed just now.
    pub fn renewed(&self, volume: VolumeId) {
        let now = self.lived.now();
        self.received.borrow_mut().insert(volume, now);
    }

    /// Since the last renewal, or since the start.
    pub fn age(&self, volume: VolumeId) -> Duration {
        let now = self.lived.now();
        now.saturating_sub(self.received.borrow().get(&volume).copied().unwrap_or_default())
    }

    pub fn forget(&self, volume: VolumeId) {
        self.received.borrow_mut().remove(&volume);
    }
}

pub fn address(state: &State, node: &NodeId) -> Option<NodeAddress> {
    let record = state.node(node)?;
    Some(NodeAddress { node: node.clone(), peer: record.peer.clone(), migration: record.migration.clone() })
}

/// The volume's lease as `node` is to know it. `None`: no such volume, or its holder was never seen.
pub fn grant(state: &State, volume: VolumeId, node: &NodeId) -> Option<Grant> {
    let lease = state.lease(volume)?;
    let holder = address(state, &lease.holder)?;
    let leg = match &lease.leg {
        Some(leg) if *node == leg.other || *node == lease.holder => {
            let other = if *node == lease.holder { address(state, &leg.other)? } else { holder.clone() };
            let way_back_open = state.migration(leg.migration).is_some_and(|record| record.way_back_open);
            Some(Leg { migration: leg.migration, generation: leg.generation, other, way_back_open })
        }
        _ => state.migrations_of(volume).find(|record| *node != lease.holder && has_to_drop(record, node)).map(
            |record| Leg {
                migration: record.migration,
                generation: record.generation,
                other: holder.clone(),
                way_back_open: false,
            },
        ),
    };
    let limits = state.volume(volume).map_or_else(IoLimits::default, wire_limits);
    Some(Grant { volume, epoch: lease.epoch, revision: lease.revision, holder, ttl_ms: lease.ttl_ms, leg, limits })
}

fn has_to_drop(record: &MigrationRecord, node: &NodeId) -> bool {
    let drop = CleanupTask::End { drop_volume: true };
    record.cleanup.iter().any(|cleanup| cleanup.node == *node && cleanup.task == drop)
}

/// Every volume the node has to do with: it holds it, takes part in its migration, has yet to be told of a
/// migration's end, or exports it.
pub fn volumes_of(state: &State, node: &NodeId) -> BTreeSet<VolumeId> {
    let leases = state.leases.values().map(|kept| &kept.record);
    let of_lease = leases
        .filter(|lease| lease.holder == *node || lease.leg.as_ref().is_some_and(|leg| leg.other == *node))
        .map(|lease| lease.volume);
    let migrations = state.migrations.values().map(|kept| &kept.record);
    let of_cleanup = migrations
        .filter(|record| record.cleanup.iter().any(|cleanup| cleanup.node == *node))
        .map(|record| record.volume);
    let exports = state.exports.values().map(|kept| &kept.record);
    let of_export = exports.filter(|export| export.node == *node).map(|export| export.volume);
    of_lease.chain(of_cleanup).chain(of_export).collect()
}

/// What [`volumes_of`] names, as grants.
pub fn grants_of(state: &State, node: &NodeId) -> Vec<Grant> {
    volumes_of(state, node).into_iter().filter_map(|volume| grant(state, volume, node)).collect()
}
