//! Changes of the stack: snapshot, rollback, deletion of a snapshot, a larger size.
//!
//! All have one shape: nobody mutates; a flush of everything commits the changed records in its batch;
//! the stack in memory changes when that batch is durable, in the flush itself, so that a caller that stops
//! waiting cannot leave memory and metadata apart. On failure nothing changed (and the volume is poisoned).
//! A volume with remote blocks is neither frozen nor brought back: they belong to the head.
//! A volume that is being received is built by the same two changes: its head is put on the layer that it stands on, filled,
//! and frozen under the name and the time of its snapshot.
//! The batch also names the operation, so that whoever was not told that it is done can ask again: a rollback that
//! happened twice would lose what was written in between.

use crate::{
    NAME_BYTES_MAX, Quiesced, StoreError, Volume,
    admission::Closed,
    flush::{Scope, Structural},
    layer::Layer,
    meta::Change,
    record::{self, SnapshotRecord, VolumeRecord},
    stack::Snapshot,
};
use drover_base::{
    LayerId, OperationId,
    ids::is_name,
    limits::{OPERATIONS_KEPT, SNAPSHOTS_MAX, VOLUME_BYTES_MAX},
    planted::{Bug, is_planted},
    units::{BLOCK_BYTES, region_count},
};
use std::rc::Rc;

/// The stack is held still while it lives.
struct Still {
    _turn: tokio::sync::OwnedMutexGuard<()>,
    _clients: Option<Closed>,
    _mutations: Option<Closed>,
}

/// What the head is frozen as. `created_ms`: not now.
struct Freezing<'a> {
    name: &'a str,
    created_ms: Option<u64>,
    operation: Option<OperationId>,
}

impl Volume {
    /// Freezes the volume's content of now under a name.
    pub async fn snapshot(&self, name: &str) -> Result<(), StoreError> {
        self.take_snapshot(name, None, || ()).await
    }

    /// The same; asked again under the same id, it is done and changes nothing.
    pub async fn snapshot_once(&self, name: &str, operation: OperationId) -> Result<(), StoreError> {
        self.take_snapshot(name, Some(operation), || ()).await
    }

    /// The same, of a volume that admits nobody already.
    pub async fn snapshot_quiesced(
        &self,
        name: &str,
        operation: OperationId,
        quiesced: &Quiesced,
    ) -> Result<(), StoreError> {
        self.freeze(Freezing { name, created_ms: None, operation: Some(operation) }, Some(quiesced), || ()).await
    }

    /// The same, under the time at which it was frozen elsewhere. What is so already stays so.
    pub async fn snapshot_as(&self, name: &str, created_ms: u64) -> Result<(), StoreError> {
        self.health.check()?;
        if self.stack.borrow().snapshots.get(name).is_some_and(|made| made.created_ms == created_ms) {
            return Ok(());
        }
        self.freeze(Freezing { name, created_ms: Some(created_ms), operation: None }, None, || ()).await
    }

    /// The same, and runs `inside` while no client request is admitted: what it starts sees exactly what
    /// comes after the snapshot.
    pub async fn snapshot_with(&self, name: &str, inside: impl FnOnce()) -> Result<(), StoreError> {
        self.take_snapshot(name, None, inside).await
    }

    async fn take_snapshot(
        &self,
        name: &str,
        operation: Option<OperationId>,
        inside: impl FnOnce(),
    ) -> Result<(), StoreError> {
        self.health.check()?;
        // While clients are served: the flush below, for which they wait, then has little to do.
        self.make_durable(Scope::All, None).await?;
        self.freeze(Freezing { name, created_ms: None, operation }, None, inside).await
    }

    async fn freeze(
        &self,
        Freezing { name, created_ms, operation }: Freezing<'_>,
        quiesced: Option<&Quiesced>,
        inside: impl FnOnce(),
    ) -> Result<(), StoreError> {
        if !is_name(name, NAME_BYTES_MAX) {
            return Err(StoreError::BadName { name: name.into() });
        }
        self.health.check()?;
        let still = Rc::new(if is_planted(Bug::SnapshotWithoutDrain) {
            Still { _turn: self.family.turn.clone().lock_owned().await, _clients: None, _mutations: None }
        } else {
            self.hold_still(quiesced).await
        });
        if operation.is_some_and(|operation| self.has_done(operation)) {
            return Ok(());
        }
        self.check_nothing_remote()?;
        let mut record = self.stack.borrow().record();
        if record.snapshots.iter().any(|snapshot| snapshot.name == name) {
            return Err(StoreError::SnapshotExists { name: name.into() });
        }
        if record.snapshots.len() >= SNAPSHOTS_MAX {
            return Err(StoreError::TooManySnapshots);
        }
        let frozen = self.stack.borrow().head().clone();
        let head = Rc::new(Layer::new(self.env.new_layer_id(), Some(frozen.id), frozen.size_bytes.get()));
        let created_ms = created_ms.unwrap_or_else(|| self.env.world.clock.wall_ms());
        record.head = head.id;
        note_done(&mut record.operations, operation);
        record.snapshots.push(SnapshotRecord { name: name.into(), layer: frozen.id, created_ms });
        let changes = vec![self.put_layer(&head), put_volume(&record)];
        let (volume, name, held) = (self.me(), name.to_string(), still.clone());
        let operations = record.operations;
        let then = Box::new(move || {
            let (mut stack, mut tree) = (volume.stack.borrow_mut(), volume.family.tree.borrow_mut());
            let id = head.id;
            tree.insert(head);
            stack.operations = operations;
            stack.snapshots.insert(name, Snapshot { layer: frozen.id, created_ms });
            stack.set_head(id, &tree);
            drop(held);
        });
        self.make_durable(Scope::All, Some(Structural { changes, then })).await?;
        inside();
        drop(still);
        Ok(())
    }

    /// Brings the content and the size back to those of the snapshot. What was written since is lost; newer snapshots stay.
    pub async fn rollback(&self, name: &str) -> Result<(), StoreError> {
        self.go_back(name, None).await
    }

    /// The same; asked again under the same id, it is done and changes nothing.
    pub async fn rollback_once(&self, name: &str, operation: OperationId) -> Result<(), StoreError> {
        self.go_back(name, Some(operation)).await
    }

    /// Whether the operation is durably done.
    pub fn has_done(&self, operation: OperationId) -> bool {
        !is_planted(Bug::OperationForgotten) && self.stack.borrow().operations.contains(&operation)
    }

    async fn go_back(&self, name: &str, operation: Option<OperationId>) -> Result<(), StoreError> {
        self.health.check()?;
        let still = Rc::new(self.hold_still(None).await);
        if operation.is_some_and(|operation| self.has_done(operation)) {
            return Ok(());
        }
        self.check_nothing_remote()?;
        let frozen = self.snapshot_layer(name)?;
        self.replace_head(Some(frozen.id), frozen.size_bytes.get(), operation, &still).await?;
        drop(still);
        self.start_merging();
        Ok(())
    }

    /// Of a volume that is being received: sees to it that its head is a layer of this size on the snapshot's, or on
    /// nothing. True: it is a new one, and what the head held before is gone.
    pub async fn restack(&self, on: Option<&str>, size_bytes: u64) -> Result<bool, StoreError> {
        self.stack_on(on, size_bytes, true).await
    }

    /// The same with a new head in any case.
    pub async fn stack_anew(&self, on: Option<&str>, size_bytes: u64) -> Result<(), StoreError> {
        self.stack_on(on, size_bytes, false).await.map(drop)
    }

    async fn stack_on(&self, on: Option<&str>, size_bytes: u64, keeps: bool) -> Result<bool, StoreError> {
        check_size(size_bytes)?;
        self.health.check()?;
        let still = Rc::new(self.hold_still(None).await);
        let on = on.map(|name| self.snapshot_layer(name)).transpose()?.map(|layer| layer.id);
        let head = self.stack.borrow().head().clone();
        if keeps && head.parent.get() == on && head.size_bytes.get() == size_bytes {
            return Ok(false);
        }
        self.check_nothing_remote()?;
        self.replace_head(on, size_bytes, None, &still).await?;
        Ok(true)
    }

    /// Puts an empty head in the place of the one there is, while the stack is held still.
    async fn replace_head(
        &self,
        on: Option<LayerId>,
        size_bytes: u64,
        operation: Option<OperationId>,
        still: &Rc<Still>,
    ) -> Result<(), StoreError> {
        let old = self.stack.borrow().head().clone();
        let head = Rc::new(Layer::new(self.env.new_layer_id(), on, size_bytes));
        let mut record = self.stack.borrow().record();
        record.head = head.id;
        note_done(&mut record.operations, operation);
        let mut changes = vec![self.put_layer(&head), put_volume(&record)];
        changes.extend(forget_layer(&old));
        // The snapshot may be smaller. An activation whose write was given up may still be on its way.
        self.activations_end().await;
        let regions = region_count(size_bytes);
        let past = self.activity.past(regions).into_iter();
        changes.extend(past.map(|region| Change::Delete { key: record::activity_key(self.id, region) }));
        let (volume, held, operations) = (self.me(), still.clone(), record.operations);
        let then = Box::new(move || {
            let (mut stack, mut tree) = (volume.stack.borrow_mut(), volume.family.tree.borrow_mut());
            let id = head.id;
            tree.insert(head);
            tree.remove(old.id);
            stack.operations = operations;
            stack.set_head(id, &tree);
            drop((stack, tree));
            volume.activity.truncate(regions);
            volume.inflight.retire(old.slot_addresses());
            drop(held);
        });
        self.make_durable(Scope::All, Some(Structural { changes, then })).await?;
        Ok(())
    }

    /// Forgets the snapshot. Returns when that is durable; its layer merges into the one above in the background.
    pub async fn delete_snapshot(&self, name: &str) -> Result<(), StoreError> {
        self.health.check()?;
        let turn = self.family.turn.clone().lock_owned().await;
        let frozen = self.snapshot_layer(name)?;
        let mut record = self.stack.borrow().record();
        record.snapshots.retain(|snapshot| snapshot.name != name);
        let is_named = record.snapshots.iter().any(|snapshot| snapshot.layer == frozen.id);
        let mut changes = vec![put_volume(&record)];
        if !is_named {
            let mut layer = self.family.record(&frozen);
            layer.deleting = true;
            changes.push(Change::Put { key: record::layer_key(layer.id), value: layer.encode() });
        }
        let (volume, name) = (self.me(), name.to_string());
        let then = Box::new(move || {
            volume.stack.borrow_mut().snapshots.remove(&name);
            frozen.deleting.set(!is_named);
            drop(turn);
        });
        self.make_durable(Scope::All, Some(Structural { changes, then })).await?;
        self.start_merging();
        Ok(())
    }

    fn check_nothing_remote(&self) -> Result<(), StoreError> {
        match self.remote_bytes() {
            0 => Ok(()),
            bytes => Err(StoreError::Remote { bytes }),
        }
    }

    /// Makes the volume larger; what is new reads as zero. Snapshots keep the size they have. Nothing to do if it is
    /// that large already; smaller it never becomes, but by a rollback.
    pub async fn grow(&self, size_bytes: u64) -> Result<(), StoreError> {
        check_size(size_bytes)?;
        self.health.check()?;
        let turn = self.family.turn.clone().lock_owned().await;
        let head = self.stack.borrow().head().clone();
        if size_bytes == head.size_bytes.get() {
            return Ok(());
        }
        if size_bytes < head.size_bytes.get() {
            return Err(StoreError::Shrinks { size_bytes, has_bytes: head.size_bytes.get() });
        }
        let mut record = self.family.record(&head);
        record.size_bytes = size_bytes;
        let changes = vec![Change::Put { key: record::layer_key(head.id), value: record.encode() }];
        // Before it is durable nobody may write there: after a crash the map would go past the end.
        let then = Box::new(move || {
            head.size_bytes.set(size_bytes);
            drop(turn);
        });
        self.make_durable(Scope::All, Some(Structural { changes, then })).await?;
        Ok(())
    }

    pub(crate) fn snapshot_layer(&self, name: &str) -> Result<Rc<Layer>, StoreError> {
        let stack = self.stack.borrow();
        let snapshot = stack.snapshots.get(name).ok_or_else(|| StoreError::NoSnapshot { name: name.into() })?;
        Ok(self.family.layer(snapshot.layer).expect("a snapshot's layer is in the tree"))
    }

    /// Waits until no client request and no other mutation runs, and keeps it so. Clients drain first: they
    /// need the mutations gate to finish. Then the turn, since a merge holds it while it waits for locks.
    async fn hold_still(&self, quiesced: Option<&Quiesced>) -> Still {
        let are_outside = quiesced.is_some() || is_planted(Bug::TrackingWithoutBarrier);
        let clients = if are_outside { None } else { Some(self.clients.close().await) };
        let turn = self.family.turn.clone().lock_owned().await;
        let mutations = self.mutations.close().await;
        Still { _turn: turn, _clients: clients, _mutations: Some(mutations) }
    }

    pub(crate) fn put_layer(&self, layer: &Layer) -> Change {
        Change::Put { key: record::layer_key(layer.id), value: self.family.record(layer).encode() }
    }
}

/// Refuses what is no size of a volume.
pub(crate) fn check_size(size_bytes: u64) -> Result<(), StoreError> {
    if size_bytes == 0 || !size_bytes.is_multiple_of(BLOCK_BYTES) || size_bytes > VOLUME_BYTES_MAX {
        return Err(StoreError::BadSize { size_bytes });
    }
    Ok(())
}

/// Adds an operation to those that are done; the oldest of too many is forgotten.
fn note_done(operations: &mut Vec<OperationId>, operation: Option<OperationId>) {
    operations.extend(operation);
    let excess = operations.len().saturating_sub(OPERATIONS_KEPT);
    operations.drain(..excess);
}

pub(crate) fn put_volume(record: &VolumeRecord) -> Change {
    Change::Put { key: record::volume_key(record.id), value: record.encode() }
}

/// Deletes a layer's record and its map.
pub(crate) fn forget_layer(layer: &Layer) -> [Change; 2] {
    [Change::Delete { key: record::layer_key(layer.id) }, Change::DeletePrefix { prefix: record::map_prefix(layer.id) }]
}

#[cfg(test)]
mod tests;
