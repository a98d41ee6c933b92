//! What the control plane asks of this node. Each request is idempotent under (migration, generation, epoch).
//!
//! | request | is refused when |
//! |---|---|
//! | of a migration | its generation is older than the known one (`Generation`), it was not begun here (`NotFound`) |
//! | of a snapshot, delete | a migration has the volume, or this node does not hold it (`Conflict`) |
//! | with an epoch | the seat's is newer (`Epoch`) |

use crate::grants::not_durable;
use crate::migration::Outbound;
use crate::node::Node;
use crate::seat::{EXPORT_PREFIX, Seat, seat_key};
use crate::session::SessionKey;
use drover_base::planted::{Bug, is_planted};
use drover_base::{Epoch, Generation, IoError, MigrationId, VolumeId};
use drover_store::meta::Batch;
use drover_store::{StoreError, Volume, VolumeUsage};
use drover_wire::admin::{Export, IoLimits, NodeReply, NodeRequest, Refusal, Role};
use drover_wire::seat_record::{LegDirection, SeatRecord, encode_export};
use drover_wire::writer_record::WriterRecord;
use std::{rc::Rc, time::Duration};
use tokio::sync::OwnedMutexGuard;

pub(crate) type Outcome = Result<NodeReply, Refusal>;

/// The refusal that a failed operation on the store is.
pub(crate) fn refusal_of(error: StoreError) -> Refusal {
    let reason = error.to_string();
    match error {
        StoreError::NoVolume { volume } => Refusal::NotFound { what: volume.to_string() },
        StoreError::NoSnapshot { name } => Refusal::NotFound { what: format!("snapshot {name:?}") },
        StoreError::VolumeExists { .. } | StoreError::SnapshotExists { .. } => Refusal::Conflict { reason },
        StoreError::TooManySnapshots | StoreError::Remote { .. } => Refusal::Conflict { reason },
        StoreError::OtherShard { .. }
        | StoreError::BadName { .. }
        | StoreError::BadSize { .. }
        | StoreError::Shrinks { .. } => Refusal::Invalid { reason },
        StoreError::Poisoned => Refusal::Io(IoError::Poisoned),
        StoreError::Io(error) => Refusal::Io(error),
        _ => Refusal::Failed { reason },
    }
}

/// Refuses what was asked for an older attempt at the migration.
pub(crate) fn check_generation(asked: Generation, known: Generation) -> Result<(), Refusal> {
    if asked < known && !is_planted(Bug::StaleProgressAccepted) {
        return Err(Refusal::Generation { asked, known });
    }
    Ok(())
}

pub(crate) fn check_epoch(asked: Epoch, known: Epoch) -> Result<(), Refusal> {
    if asked == known { Ok(()) } else { Err(Refusal::Epoch { asked, known }) }
}

impl Node {
    /// Carries out one request.
    pub async fn handle(self: &Rc<Self>, request: NodeRequest) -> NodeReply {
        self.dispatch(request).await.unwrap_or_else(NodeReply::Refused)
    }

    async fn dispatch(self: &Rc<Self>, request: NodeRequest) -> Outcome {
        use NodeRequest as Ask;
        match request {
            Ask::Status => Ok(NodeReply::Status(Box::new(self.status()))),
            Ask::CreateVolume { volume, name, size_bytes, epoch, tenant } => {
                self.create_volume(volume, &name, size_bytes, epoch, tenant).await
            }
            Ask::CloneVolume { volume, name, origin, snapshot, epoch } => {
                self.clone_volume(volume, &name, origin, &snapshot, epoch).await
            }
            Ask::HoldVolume { volume, hold, deadline_ms } => {
                self.hold_volume(volume, hold, Duration::from_millis(deadline_ms)).await
            }
            Ask::SnapshotHeld { volume, name, hold } => self.snapshot_held(volume, &name, hold).await,
            Ask::ReleaseVolume { volume, hold } => self.release_volume(volume, hold),
            Ask::UndoSnapshot { volume, name, hold } => self.undo_snapshot(volume, &name, hold).await,
            Ask::ResizeVolume { volume, size_bytes, epoch } => self.resize_volume(volume, size_bytes, epoch).await,
            Ask::DeleteVolume { volume, epoch } => self.delete_volume(volume, epoch).await,
            Ask::CreateSnapshot { volume, name, operation } => {
                let (seat, _turn) = self.free_holder(volume).await?;
                seat.whole().await.map_err(Refusal::Io)?;
                seat.volume.snapshot_once(&name, operation).await.map_err(refusal_of)?;
                Ok(NodeReply::Done)
            }
            Ask::RollbackSnapshot { volume, name, operation } => {
                let (seat, _turn) = self.free_holder(volume).await?;
                if !seat.volume.has_done(operation) {
                    // What gateways keep is of the content that is given up.
                    seat.end_term(seat.volume.rollback_once(&name, operation)).await.map_err(refusal_of)?;
                }
                Ok(NodeReply::Size { size_bytes: seat.volume.size_bytes() })
            }
            Ask::MeasureVolume { volume } => {
                let seat = self.seat(volume).ok_or_else(|| not_here(volume))?;
                let VolumeUsage { used_bytes, valid_bytes } = seat.volume.travel_usage().await;
                Ok(NodeReply::Measured { used_bytes, valid_bytes, size_bytes: seat.volume.size_bytes() })
            }
            Ask::DeleteSnapshot { volume, name } => {
                let (seat, _turn) = self.free_holder(volume).await?;
                seat.volume.delete_snapshot(&name).await.map_err(refusal_of)?;
                Ok(NodeReply::Done)
            }
            Ask::SetExport { export } => self.set_export(export).await,
            Ask::RemoveExport { name } => self.remove_export(&name).await,
            Ask::Reopen { volume } => self.reopen(volume).await,
            Ask::SetGrant { grant } => self.adopt(grant).await.map(|()| NodeReply::Done),
            of_migration => self.migrate(of_migration).await,
        }
    }

    async fn create_volume(
        self: &Rc<Self>,
        volume: VolumeId,
        name: &str,
        size_bytes: u64,
        epoch: Epoch,
        tenant: String,
    ) -> Outcome {
        let _turn = self.making.lock().await;
        if let Some(seat) = self.seat(volume) {
            let same = seat.volume.name() == name && seat.volume.size_bytes() == size_bytes;
            let reason = || format!("{volume} exists with another name, size or epoch");
            return match same && seat.record_view().epoch == epoch {
                true => Ok(NodeReply::Done),
                false => Err(Refusal::Conflict { reason: reason() }),
            };
        }
        if !self.has_tiers() {
            return Err(Refusal::NoTiers);
        }
        let made = self.context.store.create_volume(volume, name, size_bytes).await.map_err(refusal_of)?;
        self.take_new(made, epoch, tenant).await?;
        Ok(NodeReply::Done)
    }

    async fn clone_volume(
        self: &Rc<Self>,
        volume: VolumeId,
        name: &str,
        origin: VolumeId,
        snapshot: &str,
        epoch: Epoch,
    ) -> Outcome {
        let _turn = self.making.lock().await;
        if let Some(seat) = self.seat(volume) {
            let size_bytes = seat.volume.size_bytes();
            return match seat.volume.name() == name && seat.record_view().epoch == epoch {
                true => Ok(NodeReply::Size { size_bytes }),
                false => Err(Refusal::Conflict { reason: format!("{volume} exists with another name or epoch") }),
            };
        }
        let (of, _its_turn) = self.free_holder(origin).await?;
        let tenant = of.record_view().tenant.clone();
        let made = self.context.store.clone_volume(origin, snapshot, volume, name).await.map_err(refusal_of)?;
        let size_bytes = made.size_bytes();
        self.take_new(made, epoch, tenant).await?;
        Ok(NodeReply::Size { size_bytes })
    }

    /// Holds a volume that was made here.
    async fn take_new(self: &Rc<Self>, made: Rc<Volume>, epoch: Epoch, tenant: String) -> Result<(), Refusal> {
        let record = SeatRecord {
            epoch,
            revision: 0,
            holder: self.context.address.clone(),
            role: Role::Holder,
            ttl_ms: None,
            leg: None,
            direction: LegDirection::Forward,
            base_snapshot: None,
            reserve_bytes: 0,
            ended: None,
            limits: IoLimits::default(),
            tenant,
        };
        // Not served before the record is durable: a crash in between leaves a volume that nobody holds.
        self.write_record(made.id(), &record).await?;
        self.seat_volume(made, record, WriterRecord::default());
        Ok(())
    }

    async fn resize_volume(self: &Rc<Self>, volume: VolumeId, size_bytes: u64, epoch: Epoch) -> Outcome {
        let (seat, _turn) = self.free_holder(volume).await?;
        check_epoch(epoch, seat.record_view().epoch)?;
        seat.volume.grow(size_bytes).await.map_err(refusal_of)?;
        seat.grew();
        Ok(NodeReply::Size { size_bytes })
    }

    /// The volume's seat and the turn to change it. While others had theirs, the seat may have gone, or another have
    /// come in its place.
    pub(crate) async fn seat_in_turn(&self, volume: VolumeId) -> Option<(Rc<Seat>, OwnedMutexGuard<()>)> {
        loop {
            let seat = self.seat(volume)?;
            let turn = seat.changing.clone().lock_owned().await;
            let is_there = self.seat(volume).is_some_and(|now| Rc::ptr_eq(&now, &seat));
            if is_there {
                return Some((seat, turn));
            }
        }
    }

    /// The same for who is about to end it: what is being made at the moment, maybe in an old copy's place, is awaited, or
    /// it would be there after its end.
    pub(crate) async fn seat_once_made(&self, volume: VolumeId) -> Option<(Rc<Seat>, OwnedMutexGuard<()>)> {
        loop {
            if let Some(found) = self.seat_in_turn(volume).await {
                return Some(found);
            }
            if !is_planted(Bug::MakingNotAwaited) {
                drop(self.making.lock().await);
            }
            self.seat(volume)?;
        }
    }

    async fn delete_volume(self: &Rc<Self>, volume: VolumeId, epoch: Epoch) -> Outcome {
        if let Some((seat, _turn)) = self.seat_once_made(volume).await {
            let record = seat.record();
            if let Some(leg) = &record.leg {
                return Err(Refusal::Conflict { reason: format!("migration {} has the volume", leg.migration) });
            }
            if epoch < record.epoch {
                return Err(Refusal::Epoch { asked: epoch, known: record.epoch });
            }
            return self.drop_seat(&seat).await;
        }
        self.drop_volume(volume).await
    }

    /// Ends the seat and deletes its volume. The caller has the seat's turn.
    pub(crate) async fn drop_seat(self: &Rc<Self>, seat: &Rc<Seat>) -> Outcome {
        seat.begin_role_change();
        seat.lease().revoke();
        crate::grants::stop_sending(seat);
        crate::grants::open_admission(seat);
        let all = |_: SessionKey| true;
        seat.sessions.close(all);
        seat.sessions.drained(all).await;
        self.unseat(seat.id());
        let dropped = self.drop_volume(seat.id()).await;
        if dropped.is_err() {
            // Still here, but nothing serves it; asked again, the rest is done.
            self.reseat(seat.clone());
        }
        dropped
    }

    /// Deletes a volume that no seat serves, then its record.
    pub(crate) async fn drop_volume(&self, volume: VolumeId) -> Outcome {
        self.context.store.delete_volume(volume).await.map_err(refusal_of)?;
        let mut batch = Batch::default();
        batch.delete(seat_key(volume));
        self.context.meta.commit(batch).await.map_err(not_durable)?;
        self.forget_orphan(volume);
        self.tiers.end_promise(volume);
        Ok(NodeReply::Done)
    }

    pub(crate) async fn write_record(&self, volume: VolumeId, record: &SeatRecord) -> Result<(), Refusal> {
        let mut batch = Batch::default();
        batch.put(seat_key(volume), record.encode());
        self.context.meta.commit(batch).await.map_err(not_durable)
    }

    async fn set_export(self: &Rc<Self>, export: Export) -> Outcome {
        if let Some(other) = self.export(&export.name).filter(|other| other.volume != export.volume) {
            return Err(Refusal::Conflict { reason: format!("{:?} is an export of {}", export.name, other.volume) });
        }
        let mut batch = Batch::default();
        batch.put(export_key(&export.name), encode_export(&export));
        self.context.meta.commit(batch).await.map_err(not_durable)?;
        self.add_export(export);
        Ok(NodeReply::Done)
    }

    async fn remove_export(&self, name: &str) -> Outcome {
        if self.export(name).is_some() {
            let mut batch = Batch::default();
            batch.delete(export_key(name));
            self.context.meta.commit(batch).await.map_err(not_durable)?;
            self.drop_export(name);
        }
        Ok(NodeReply::Done)
    }

    /// Opens a poisoned volume through recovery. Whoever is connected learns that unflushed writes may be lost: other
    /// nodes by the instance, in the moment before anything is answered again; own clients by the next flush.
    async fn reopen(self: &Rc<Self>, volume: VolumeId) -> Outcome {
        let (seat, _turn) = self.seat_in_turn(volume).await.ok_or_else(|| not_here(volume))?;
        if seat.stopped.borrow().is_some() {
            // It admits nobody, so nothing of it can end; all that it had is durable at the other side.
            return Err(Refusal::Conflict { reason: "the holder has drained for a flip".into() });
        }
        let outbound = seat.outbound.borrow().clone();
        if let Some(outbound) = &outbound
            && outbound.direction == LegDirection::Return
            && !outbound.close_way_back_for_good().await
        {
            return Err(Refusal::Conflict { reason: "the lease or the migration is over".into() });
        }
        let all = |_: SessionKey| true;
        seat.sessions.close(all);
        seat.sessions.drained(all).await;
        // While the volume is poisoned every answer is an error: those that waited for the other side, too.
        crate::grants::stop_sending(&seat);
        let held = seat.writers.hold().await;
        let (reopened, route) = (seat.clone(), self.known_route(volume));
        let lose = move || {
            if is_planted(Bug::LossNotTold) {
                return;
            }
            // A note that cannot be read leaves the volume to nobody.
            if let Ok(writers) = WriterRecord::decode(&reopened.volume.note()) {
                let owes = crate::writers::writer_may_owe(&reopened.context, route.as_deref(), &writers);
                reopened.load_writers(writers, owes);
            }
            reopened.new_instance();
            // Those that came meanwhile were told the instance of before.
            reopened.sessions.close(all);
            if let Some(route) = route.filter(|_| reopened.is_holder()) {
                route.lost_unflushed();
            }
        };
        self.context.store.reopen_with(volume, lose).await.map_err(refusal_of)?;
        self.resume_return_mirror(&seat);
        // After it: who waits may need what only the other side has.
        drop(held);
        self.context.control.event("reopened", Some(volume), "opened through recovery; unflushed writes may be lost");
        Ok(NodeReply::Done)
    }

    /// The seat as holder of a volume that no migration has, and the turn to change it.
    pub(crate) async fn free_holder(&self, volume: VolumeId) -> Result<(Rc<Seat>, OwnedMutexGuard<()>), Refusal> {
        let (seat, turn) = self.seat_in_turn(volume).await.ok_or_else(|| not_here(volume))?;
        if let Some(leg) = &seat.record_view().leg {
            return Err(Refusal::Conflict { reason: format!("migration {} has the volume", leg.migration) });
        }
        if !seat.is_holder() {
            return Err(Refusal::Conflict { reason: "this node does not hold the volume".into() });
        }
        Ok((seat, turn))
    }

    /// The seat and the sender of a migration that is sent from here.
    pub(crate) fn sending(&self, migration: MigrationId) -> Result<(Rc<Seat>, Rc<Outbound>), Refusal> {
        let of = |seat: &Rc<Seat>| {
            let outbound = seat.outbound.borrow().clone().filter(|outbound| outbound.migration == migration)?;
            Some((seat.clone(), outbound))
        };
        self.seats().iter().find_map(of).ok_or_else(|| Refusal::NotFound { what: format!("a sender of {migration}") })
    }
}

pub(crate) fn not_here(volume: VolumeId) -> Refusal {
    Refusal::NotFound { what: volume.to_string() }
}

pub(crate) fn export_key(name: &str) -> Vec<u8> {
    [EXPORT_PREFIX, name.as_bytes()].concat()
}

pub(crate) fn request_name(request: &NodeRequest) -> &'static str {
    use NodeRequest as Ask;
    match request {
        Ask::Status => "Status",
        Ask::CreateVolume { .. } => "CreateVolume",
        Ask::CloneVolume { .. } => "CloneVolume",
        Ask::HoldVolume { .. } => "HoldVolume",
        Ask::SnapshotHeld { .. } => "SnapshotHeld",
        Ask::ReleaseVolume { .. } => "ReleaseVolume",
        Ask::UndoSnapshot { .. } => "UndoSnapshot",
        Ask::ResizeVolume { .. } => "ResizeVolume",
        Ask::DeleteVolume { .. } => "DeleteVolume",
        Ask::MeasureVolume { .. } => "MeasureVolume",
        Ask::CreateSnapshot { .. } => "CreateSnapshot",
        Ask::RollbackSnapshot { .. } => "RollbackSnapshot",
        Ask::DeleteSnapshot { .. } => "DeleteSnapshot",
        Ask::SetExport { .. } => "SetExport",
        Ask::RemoveExport { .. } => "RemoveExport",
        Ask::Reopen { .. } => "Reopen",
        Ask::PrepareReceive { .. } => "PrepareReceive",
        Ask::BeginSend { .. } => "BeginSend",
        Ask::BeginMirror { .. } => "BeginMirror",
        Ask::Tune { .. } => "Tune",
        Ask::Quiesce { .. } => "Quiesce",
        Ask::ConfirmPosition { .. } => "ConfirmPosition",
        Ask::ResumeHolder { .. } => "ResumeHolder",
        Ask::SetGrant { .. } => "SetGrant",
        Ask::BeginProof { .. } => "BeginProof",
        Ask::Progress { .. } => "Progress",
        Ask::EndMigration { .. } => "EndMigration",
    }
}
