//! What the control plane answers without changing anything.

use crate::Control;
use crate::table::State;
use drover_base::{MigrationId, NodeId, VolumeId};
use drover_types::record::{CleanupTask, ExportRecord, LeaseRecord, MigrationRecord, NodeRecord, VolumeRecord};
use drover_types::{
    ApiError, Cordon, DataMap, DataPlace, ErrorCode, Event, Export, Lease, Merge, Migration, Node, Origin, Tier,
    Volume, VolumeRole,
};
use drover_wire::admin::{Role, TierStatus};
use std::time::Duration;

/// A resource and the version of its record: its ETag. Figures that nodes report change without a new version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tagged<T> {
    pub version: u64,
    pub value: T,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Fails where the resource's version is not the expected one.
pub(crate) fn check_version(expected: Option<u64>, version: u64) -> Result<(), ApiError> {
    match expected {
        Some(expected) if expected != version => {
            let message = "the resource has changed since its ETag was read";
            Err(ApiError::new(ErrorCode::PreconditionFailed, message).hint("read it again, then decide again"))
        }
        _ => Ok(()),
    }
}

pub(crate) fn find_node<'a>(state: &'a State, name: &str) -> Result<&'a NodeRecord, ApiError> {
    let found = NodeId::new(name).ok().and_then(|node| state.node(&node));
    found.ok_or_else(|| {
        ApiError::new(ErrorCode::NodeNotFound, format!("there is no node {name:?}"))
            .cause("no node of this name has registered")
            .hint("`drover node list` shows those that have")
    })
}

/// By id or name; names win, as an id is not a name.
pub(crate) fn find_volume<'a>(state: &'a State, name: &str) -> Result<&'a VolumeRecord, ApiError> {
    let by_id = || name.parse::<VolumeId>().ok().and_then(|volume| state.volume(volume));
    state.volume_named(name).or_else(by_id).ok_or_else(|| {
        ApiError::new(ErrorCode::VolumeNotFound, format!("there is no volume {name:?}"))
            .hint("`drover volume list` shows those there are")
    })
}

/// By its id, or by its volume's name or id: the volume's unfinished migration, else its last.
pub(crate) fn find_migration<'a>(state: &'a State, name: &str) -> Result<&'a MigrationRecord, ApiError> {
    if let Some(found) = name.parse::<MigrationId>().ok().and_then(|id| state.migration(id)) {
        return Ok(found);
    }
    let Ok(volume) = find_volume(state, name) else {
        let message = format!("there is no migration {name:?}, and no volume of that name");
        return Err(ApiError::new(ErrorCode::MigrationNotFound, message));
    };
    let last = || state.migrations_of(volume.volume).max_by_key(|record| (record.created_ms, record.migration));
    state.active_migration(volume.volume).or_else(last).ok_or_else(|| {
        ApiError::new(ErrorCode::MigrationNotFound, format!("{} has no migration", volume.name))
            .cause("it is in none, and none of it is remembered")
    })
}

impl Control {
    pub fn list_nodes(&self) -> Vec<Tagged<Node>> {
        let state = self.ledger.state();
        state
            .nodes
            .values()
            .map(|kept| Tagged { version: kept.version.0, value: self.node(&state, &kept.record) })
            .collect()
    }

    pub fn show_node(&self, name: &str) -> Result<Tagged<Node>, ApiError> {
        let state = self.ledger.state();
        let record = find_node(&state, name)?;
        let version = state.nodes[&record.node].version.0;
        Ok(Tagged { version, value: self.node(&state, record) })
    }

    fn node(&self, state: &State, record: &NodeRecord) -> Node {
        let report = self.nodes.report(&record.node);
        let tiers = report.as_ref().map_or_else(Vec::new, |report| {
            report.status.tiers.iter().map(|tier| self::tier(&record.node, tier)).collect()
        });
        Node {
            name: record.node.to_string(),
            health: self.nodes.health(&record.node),
            contact_ms_ago: self.nodes.silence(&record.node).map(millis),
            instance: record.instance.to_string(),
            admin_address: record.admin.clone(),
            peer_address: record.peer.clone(),
            migration_address: record.migration.clone(),
            nbd_unix: record.nbd_unix.clone(),
            nbd_tcp: record.nbd_tcp.clone(),
            tiers,
            status_ms_ago: report.map(|report| millis(self.world.now().since(report.at))),
            volumes_held: state.leases.values().filter(|kept| kept.record.holder == record.node).count() as u64,
            cordon: state
                .cordon(&record.node)
                .map(|cordon| Cordon { since_ms: cordon.since_ms, reason: cordon.reason.clone() }),
            drain: state.drain(&record.node).map(|drain| drain.state),
        }
    }

    pub fn list_tiers(&self) -> Vec<Tier> {
        self.list_nodes().into_iter().flat_map(|node| node.value.tiers).collect()
    }

    /// Forgets a node that is gone, with the clean-up that it was to be told.
    pub async fn delete_node(&self, name: &str, expected: Option<u64>) -> Result<(), ApiError> {
        let node = self
            .ledger
            .commit(|state, changes| {
                let record = find_node(state, name)?;
                check_version(expected, state.nodes[&record.node].version.0)?;
                let busy = |why: String| {
                    Err(ApiError::new(ErrorCode::NodeBusy, format!("{name} cannot be forgotten")).cause(why))
                };
                if self.nodes.health(&record.node) == drover_types::Health::Up {
                    return busy("it is up".into());
                }
                if let Some(kept) = state.leases.values().find(|kept| kept.record.holder == record.node) {
                    return busy(format!("it holds {}", kept.record.volume));
                }
                let active = state.migrations.values().map(|kept| &kept.record).find(|migration| {
                    !migration.stage.is_final()
                        && (migration.source == record.node || migration.destination == record.node)
                });
                if let Some(migration) = active {
                    return busy(format!("it takes part in {}", migration.migration));
                }
                for migration in state.migrations.values().map(|kept| &kept.record) {
                    if migration.cleanup.iter().any(|cleanup| cleanup.node == record.node) {
                        let mut migration = migration.clone();
                        migration.cleanup.retain(|cleanup| cleanup.node != record.node);
                        changes.put(migration);
                    }
                }
                for export in state.exports.values().filter(|kept| kept.record.node == record.node) {
                    changes.delete::<ExportRecord>((export.record.node.clone(), export.record.name.clone()));
                }
                changes.delete::<NodeRecord>(record.node.clone());
                crate::cordons::lift(state, changes, &record.node);
                let text = format!("{name} was forgotten");
                changes.event(crate::table::NewEvent::info("node.forgotten", text).node(&record.node));
                Ok(record.node.clone())
            })
            .await?;
        self.nodes.forget(&node);
        self.wake_executors();
        Ok(())
    }

    /// Of one tenant, where one is named.
    pub fn list_volumes(&self, tenant: Option<&str>) -> Vec<Tagged<Volume>> {
        let state = self.ledger.state();
        let of_tenant = |record: &VolumeRecord| tenant.is_none_or(|tenant| record.tenant == tenant);
        let volumes = state.volumes.values().filter(|kept| of_tenant(&kept.record));
        volumes.map(|kept| Tagged { version: kept.version.0, value: self.volume(&state, &kept.record) }).collect()
    }

    pub fn show_volume(&self, name: &str) -> Result<Tagged<Volume>, ApiError> {
        let state = self.ledger.state();
        let record = find_volume(&state, name)?;
        let version = state.volumes[&record.volume].version.0;
        Ok(Tagged { version, value: self.volume(&state, record) })
    }

    /// A volume's id by its name. An id stays one: events of a volume that was deleted are still there.
    pub fn volume_id(&self, name: &str) -> Result<String, ApiError> {
        if name.parse::<VolumeId>().is_ok() {
            return Ok(name.into());
        }
        Ok(find_volume(&self.ledger.state(), name)?.volume.to_string())
    }

    fn volume(&self, state: &State, record: &VolumeRecord) -> Volume {
        let lease = state.lease(record.volume);
        let reported = lease.and_then(|lease| self.nodes.volume(&lease.holder, record.volume));
        let status = reported.as_ref().map(|(status, ..)| status);
        Volume {
            id: record.volume.to_string(),
            name: record.name.clone(),
            size_bytes: record.size_bytes,
            state: record.state,
            holder: lease.map_or_else(String::new, |lease| lease.holder.to_string()),
            epoch: state.epoch(record.volume).0,
            created_ms: record.created_ms,
            used_bytes: status.map(|status| status.used_bytes),
            valid_bytes: status.map(|status| status.valid_bytes),
            shared_bytes: status.map(|status| status.shared_bytes).filter(|shared| *shared > 0),
            remote_bytes: status.map(|status| status.remote_bytes).filter(|remote| *remote > 0),
            origin: record.origin.as_ref().map(|of| Origin {
                volume: of.volume.to_string(),
                volume_name: of.volume_name.clone(),
                snapshot: of.snapshot.clone(),
            }),
            role: status.map(|status| match status.role {
                Role::Holder => VolumeRole::Holder,
                Role::Mirror => VolumeRole::Mirror,
                Role::Fenced => VolumeRole::Fenced,
            }),
            poisoned: status.is_some_and(|status| status.poisoned),
            status_ms_ago: reported.as_ref().map(|(_, age, _)| millis(*age)),
            write_bytes_per_s: reported.as_ref().and_then(|(.., rate)| *rate),
            migration: state.active_migration(record.volume).map(|migration| migration.migration.to_string()),
            merge: status
                .and_then(|status| status.merge)
                .map(|merge| Merge { snapshots: merge.layers, bytes_left: merge.left_bytes }),
            tenant: record.tenant.clone(),
            limits: record.limits.limits,
            limited_requests: status.map(|status| status.limited_requests),
            limited_ms: status.map(|status| status.limited_us / 1_000),
            indexed_bytes: status.map(|status| status.indexed_bytes),
        }
    }

    pub fn list_exports(&self) -> Vec<Tagged<Export>> {
        let state = self.ledger.state();
        let exports = state.exports.values();
        exports
            .map(|kept| Tagged {
                version: kept.version.0,
                value: crate::exports::export(&state, &self.nodes, &kept.record),
            })
            .collect()
    }

    pub fn show_export(&self, node: &str, name: &str) -> Result<Tagged<Export>, ApiError> {
        let state = self.ledger.state();
        let kept = crate::exports::find(&state, node, name)?;
        Ok(Tagged { version: kept.version.0, value: crate::exports::export(&state, &self.nodes, &kept.record) })
    }

    /// Of one volume, where one is named; in the order of their ids.
    pub fn list_migrations(&self, volume: Option<&str>) -> Result<Vec<Tagged<Migration>>, ApiError> {
        let state = self.ledger.state();
        let volume = volume.map(|name| find_volume(&state, name).map(|record| record.volume)).transpose()?;
        let of_volume = |record: &MigrationRecord| volume.is_none_or(|volume| record.volume == volume);
        let kept = state.migrations.values().filter(|kept| of_volume(&kept.record));
        Ok(kept.map(|kept| Tagged { version: kept.version.0, value: self.migration(&kept.record) }).collect())
    }

    /// A migration's id by its volume's name. An id stays one: events of a migration that is forgotten are still there.
    pub fn migration_id(&self, name: &str) -> Result<String, ApiError> {
        if name.parse::<MigrationId>().is_ok() {
            return Ok(name.into());
        }
        Ok(find_migration(&self.ledger.state(), name)?.migration.to_string())
    }

    /// By its id, or by its volume: see [`find_migration`].
    pub fn show_migration(&self, name: &str) -> Result<Tagged<Migration>, ApiError> {
        let state = self.ledger.state();
        let record = find_migration(&state, name)?;
        let version = state.migrations[&record.migration].version.0;
        Ok(Tagged { version, value: self.migration(record) })
    }

    pub(crate) fn migration(&self, record: &MigrationRecord) -> Migration {
        let running = self.executor(record.migration).and_then(|executor| executor.view());
        running.unwrap_or_else(|| crate::migration::view::view(record, None, None))
    }

    pub fn list_leases(&self) -> Vec<Lease> {
        let state = self.ledger.state();
        state.leases.values().map(|kept| self.lease(&state, &kept.record)).collect()
    }

    pub fn show_lease(&self, volume: &str) -> Result<Lease, ApiError> {
        let state = self.ledger.state();
        let volume = find_volume(&state, volume)?;
        let lease = state
            .lease(volume.volume)
            .ok_or_else(|| ApiError::new(ErrorCode::VolumeNotFound, format!("{} has no lease", volume.name)))?;
        Ok(self.lease(&state, lease))
    }

    fn lease(&self, state: &State, lease: &LeaseRecord) -> Lease {
        Lease {
            volume: lease.volume.to_string(),
            volume_name: state.volume(lease.volume).map_or_else(String::new, |volume| volume.name.clone()),
            epoch: lease.epoch.0,
            holder: lease.holder.to_string(),
            ttl_ms: lease.ttl_ms,
            renewed_ms_ago: lease.ttl_ms.map(|_| millis(self.renewals.age(lease.volume))),
            migration: lease.leg.as_ref().map(|leg| leg.migration.to_string()),
        }
    }

    pub fn data_map(&self) -> DataMap {
        let state = self.ledger.state();
        let place = |lease: &LeaseRecord| {
            let drops = |record: &MigrationRecord| {
                record
                    .cleanup
                    .iter()
                    .find(|cleanup| cleanup.task == CleanupTask::End { drop_volume: true })
                    .map(|cleanup| cleanup.node.clone())
            };
            let leaving = state.migrations_of(lease.volume).find_map(drops);
            DataPlace {
                volume: lease.volume.to_string(),
                volume_name: state.volume(lease.volume).map_or_else(String::new, |volume| volume.name.clone()),
                holder: lease.holder.to_string(),
                epoch: lease.epoch.0,
                copy: lease.leg.as_ref().map(|leg| leg.other.clone()).or(leaving).map(|node| node.to_string()),
            }
        };
        DataMap { version: state.data_map, places: state.leases.values().map(|kept| place(&kept.record)).collect() }
    }

    /// Events after `after`, at most `limit`, of one migration where one is given.
    pub fn events(&self, after: u64, limit: usize, migration: Option<&str>) -> Vec<Event> {
        let state = self.ledger.state();
        let later = state.events.range(after.saturating_add(1)..).map(|(_, kept)| &kept.record);
        later
            .filter(|event| migration.is_none() || event.migration.as_deref() == migration)
            .take(limit)
            .cloned()
            .collect()
    }
}

fn tier(node: &NodeId, tier: &TierStatus) -> Tier {
    Tier {
        node: node.to_string(),
        name: tier.name.clone(),
        class: tier.class.clone(),
        total_bytes: tier.total_bytes,
        used_bytes: tier.used_bytes,
        held_bytes: tier.held_bytes,
        reserved_bytes: tier.reserved_bytes,
        poisoned: tier.poisoned,
    }
}
