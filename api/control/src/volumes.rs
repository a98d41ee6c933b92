//! Making and deleting volumes, and making them larger (`resize`): recorded first, then done at the node until it answers, also after a restart.

use crate::Control;
use crate::config::{BACKOFF_MAX, BACKOFF_MIN, LONG_WORK_DEADLINE, WORK_DEADLINE};
use crate::cordons::check_takes_new;
use crate::idempotency::{Attempt, Holding, Once};
use crate::migration::knowledge::backoff;
use crate::nodes::CallError;
use crate::queries::{Tagged, check_version, find_node, find_volume};
use crate::table::{Changes, NewEvent, Remembered, State};
use crate::tenants::check_quota;
use drover_base::ids::is_name;
use drover_base::limits::VOLUME_BYTES_MAX;
use drover_base::units::BLOCK_BYTES;
use drover_base::{Epoch, NodeId, VolumeId};
use drover_types::record::{LeaseRecord, LimitsRecord, OriginRecord, ScheduleRecord, VolumeRecord};
use drover_types::{ApiError, CloneVolume, CreateVolume, DEFAULT_TENANT, ErrorCode, Volume, VolumeState};
use drover_wire::admin::{NodeReply, NodeRequest, Refusal};
use futures::channel::oneshot;
use std::{rc::Rc, time::Duration};

/// Longest name of a volume, snapshot or export.
pub const NAME_MAX: usize = 63;

/// How long a request waits for its node before it is answered that the outcome is unknown (and goes on).
const ANSWER_WITHIN: Duration = Duration::from_secs(25);

pub(crate) fn check_name(field: &str, name: &str) -> Result<(), ApiError> {
    if is_name(name, NAME_MAX) && name.parse::<VolumeId>().is_err() {
        return Ok(());
    }
    let message =
        format!("{name:?} is not a name: 1 to {NAME_MAX} of a-z 0-9 - ., beginning and ending with a letter or digit");
    Err(ApiError::invalid(field, message))
}

pub(crate) fn check_size(size_bytes: u64) -> Result<(), ApiError> {
    if size_bytes > 0 && size_bytes <= VOLUME_BYTES_MAX && size_bytes.is_multiple_of(BLOCK_BYTES) {
        return Ok(());
    }
    let message = format!("a size is a multiple of {BLOCK_BYTES} from {BLOCK_BYTES} to {VOLUME_BYTES_MAX}");
    Err(ApiError::invalid("size_bytes", message))
}

/// The volume, if it can be changed now: neither in a migration nor being made, deleted or made larger.
pub(crate) fn find_idle<'a>(state: &'a State, name: &str) -> Result<&'a VolumeRecord, ApiError> {
    let record = find_volume(state, name)?;
    if let Some(migration) = state.active_migration(record.volume) {
        let message = format!("{} is in a migration", record.name);
        return Err(ApiError::new(ErrorCode::VolumeMigrating, message)
            .cause(format!("{} is {}", migration.migration, migration.phase()))
            .hint("wait for its end, or cancel it"));
    }
    if let Some(group) = state.groups.values().find(|kept| kept.record.volumes.contains(&record.volume)) {
        let message = format!("{} is being frozen with others", record.name);
        return Err(ApiError::new(ErrorCode::VolumeBusy, message).cause(format!("snapshot {}", group.record.name)));
    }
    let busy = |what: &str| Err(ApiError::new(ErrorCode::VolumeBusy, format!("{} is being {what}", record.name)));
    match record.state {
        VolumeState::Ready if record.resize_to.is_some() => busy("made larger"),
        VolumeState::Ready => Ok(record),
        VolumeState::Creating => busy("created"),
        VolumeState::Deleting => busy("deleted"),
    }
}

pub(crate) fn call_error(node: &NodeId, error: &CallError) -> ApiError {
    match error {
        CallError::Refused(refusal) => Control::refusal_error(node, refusal),
        CallError::Rpc(drover_wire::rpc::RpcError::Connect { .. }) | CallError::Unregistered => {
            ApiError::new(ErrorCode::NodeUnreachable, format!("{node} cannot be reached"))
                .cause(error.to_string())
                .hint("see whether the node runs: `drover node show`")
        }
        CallError::Rpc(_) | CallError::Unexpected => {
            ApiError::new(ErrorCode::OutcomeUnknown, format!("{node} did not answer")).cause(error.to_string())
        }
    }
}

/// What became of the work on a volume.
pub(crate) type Settled = Result<(), ApiError>;

impl Control {
    pub async fn create_volume(
        self: &Rc<Self>,
        request: CreateVolume,
        once: Option<Once>,
    ) -> Result<Tagged<Volume>, ApiError> {
        check_name("name", &request.name)?;
        let size_bytes = request.size_bytes;
        check_size(size_bytes)?;
        let tenant = request.tenant.clone().unwrap_or_else(|| DEFAULT_TENANT.into());
        check_name("tenant", &tenant)?;
        let holding = match self.attempt(once)? {
            Attempt::First(holding) => holding,
            Attempt::Repeated(made) => return self.show_volume(&made),
        };
        let volume = VolumeId(self.world.random.next_u64());
        self.ledger
            .commit(|state, changes| {
                let node = find_node(state, &request.node)?.node.clone();
                let new = New { volume, name: request.name.clone(), size_bytes, node, tenant, origin: None };
                new.record(state, changes, &holding)
            })
            .await?;
        self.made(volume, &holding).await
    }

    /// A volume that holds what the snapshot holds, on the same node: nothing is copied.
    pub async fn clone_volume(
        self: &Rc<Self>,
        origin: &str,
        snapshot: &str,
        request: CloneVolume,
        once: Option<Once>,
    ) -> Result<Tagged<Volume>, ApiError> {
        check_name("name", &request.name)?;
        let holding = match self.attempt(once)? {
            Attempt::First(holding) => holding,
            Attempt::Repeated(made) => return self.show_volume(&made),
        };
        let volume = self
            .ledger
            .commit(|state, changes| {
                let of = find_idle(state, origin)?;
                let lease = state.lease(of.volume).map(|lease| lease.holder.clone());
                let node = lease.ok_or_else(|| ApiError::new(ErrorCode::VolumeBusy, "the volume has no lease"))?;
                let volume = loop {
                    let volume = VolumeId::kin_of(of.volume, self.world.random.next_u64());
                    if state.volume(volume).is_none() {
                        break volume;
                    }
                };
                let (snapshot, volume_name) = (snapshot.to_owned(), of.name.clone());
                let origin = Some(OriginRecord { volume: of.volume, volume_name, snapshot });
                // Its holder says how large it is.
                let (tenant, size_bytes) = (of.tenant.clone(), of.size_bytes);
                let new = New { volume, name: request.name.clone(), size_bytes, node, tenant, origin };
                new.record(state, changes, &holding)?;
                Ok::<_, ApiError>(volume)
            })
            .await?;
        self.made(volume, &holding).await
    }

    /// Waits for a volume to be made.
    async fn made(self: &Rc<Self>, volume: VolumeId, holding: &Holding) -> Result<Tagged<Volume>, ApiError> {
        let outcome = self.wait_settled(volume, "it is being created").await;
        if let (Err(error), Some(key)) = (&outcome, holding.key())
            && error.code != ErrorCode::OutcomeUnknown
        {
            // What was refused may be tried again under the same key.
            let forget = |_: &State, changes: &mut Changes| {
                changes.delete::<Remembered>(key.into());
                Ok::<_, ApiError>(())
            };
            self.ledger.commit(forget).await?;
        }
        outcome?;
        self.show_volume(&volume.to_string())
    }

    pub async fn delete_volume(self: &Rc<Self>, name: &str, expected: Option<u64>) -> Result<(), ApiError> {
        let volume = self
            .ledger
            .commit(|state, changes| {
                let record = find_volume(state, name)?;
                check_version(expected, state.volumes[&record.volume].version.0)?;
                if record.state == VolumeState::Deleting {
                    return Ok::<_, ApiError>(record.volume);
                }
                let record = find_idle(state, name)?;
                check_unused(state, record)?;
                check_not_cloned(state, record)?;
                changes.put(VolumeRecord { state: VolumeState::Deleting, ..record.clone() });
                Ok(record.volume)
            })
            .await?;
        self.wait_settled(volume, "it is being deleted").await
    }

    /// Opens a poisoned volume again through recovery. What was not flushed may be lost, so its version changes.
    pub async fn reopen_volume(
        &self,
        name: &str,
        expected: Option<u64>,
        once: Option<Once>,
    ) -> Result<Tagged<Volume>, ApiError> {
        let holding = match self.attempt(once)? {
            Attempt::First(holding) => holding,
            Attempt::Repeated(_) => return self.show_volume(name),
        };
        self.check_volume_version(name, expected)?;
        let (volume, node, admin) = self.holder_of(name)?;
        let request = NodeRequest::Reopen { volume };
        self.nodes
            .call(&node, &admin, &request, LONG_WORK_DEADLINE)
            .await
            .map_err(|error| call_error(&node, &error))?;
        let told = NewEvent::info("volume.reopened", format!("{name} was opened again")).node(&node).volume(volume);
        self.tell_changed(&holding, volume, name, told).await?;
        // Its state is shown as of the next report, if this one fails.
        let _ = self.nodes.poll(&node, &admin).await;
        self.show_volume(name)
    }

    pub(crate) fn check_volume_version(&self, name: &str, expected: Option<u64>) -> Result<(), ApiError> {
        let state = self.ledger.state();
        let volume = find_volume(&state, name)?.volume;
        check_version(expected, state.volumes[&volume].version.0)
    }

    /// Records that what the volume holds has become another by a request: whoever decided by its former version is
    /// told so.
    pub(crate) async fn tell_changed(
        &self,
        holding: &Holding,
        volume: VolumeId,
        made: &str,
        told: NewEvent,
    ) -> Result<(), ApiError> {
        self.ledger
            .commit(|state, changes| {
                holding.remember(state, changes, made);
                if let Some(record) = state.volume(volume) {
                    changes.put(record.clone());
                }
                changes.event(told);
                Ok(())
            })
            .await
    }

    /// The volume's id, its holder, and the holder's admin address.
    pub(crate) fn holder_of(&self, name: &str) -> Result<(VolumeId, NodeId, String), ApiError> {
        let state = self.ledger.state();
        let record = find_volume(&state, name)?;
        let holder = state.lease(record.volume).and_then(|lease| state.node(&lease.holder));
        let holder =
            holder.ok_or_else(|| ApiError::new(ErrorCode::NodeNotFound, "the volume's holder is not known"))?;
        Ok((record.volume, holder.node.clone(), holder.admin.clone()))
    }

    pub(crate) async fn wait_settled(self: &Rc<Self>, volume: VolumeId, what: &str) -> Settled {
        let unknown = || {
            ApiError::new(ErrorCode::OutcomeUnknown, format!("{what}; its node has not answered yet"))
                .hint("it goes on by itself; ask for the volume later")
        };
        let Some(settled) = self.settle_volume(volume) else { return Err(unknown()) };
        match self.world.timeout(ANSWER_WITHIN, settled).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => Err(unknown()),
        }
    }

    /// Works on a volume that is being made, deleted or made larger until it is not. `None`: someone does so already.
    pub(crate) fn settle_volume(self: &Rc<Self>, volume: VolumeId) -> Option<oneshot::Receiver<Settled>> {
        if !self.volume_tasks.borrow_mut().insert(volume) {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        let this = self.clone();
        self.world
            .spawn(async move {
                let outcome = this.settle_until_done(volume).await;
                this.volume_tasks.borrow_mut().remove(&volume);
                // The caller may have stopped waiting.
                let _ = sender.send(outcome);
            })
            .detach();
        Some(receiver)
    }

    async fn settle_until_done(self: &Rc<Self>, volume: VolumeId) -> Settled {
        for failures in 1u32.. {
            let Some((record, lease, admin)) = self.unsettled(volume) else { return Ok(()) };
            let (request, deadline) = request(&record, &lease);
            let answer = match &admin {
                Some(admin) => self.nodes.call(&lease.holder, admin, &request, deadline).await,
                None => Err(CallError::Unregistered),
            };
            let outcome = match (record.state, answer) {
                (VolumeState::Creating, Ok(NodeReply::Done)) => self.created(&record, &lease).await,
                (VolumeState::Creating, Ok(NodeReply::Size { size_bytes })) => {
                    self.created(&VolumeRecord { size_bytes, ..record }, &lease).await
                }
                (VolumeState::Deleting, Ok(NodeReply::Done) | Err(CallError::Refused(Refusal::NotFound { .. }))) => {
                    self.deleted(&record).await
                }
                (VolumeState::Creating, Err(CallError::Refused(refusal))) => {
                    self.not_created(&record, &lease, &refusal).await
                }
                (VolumeState::Ready, Ok(NodeReply::Size { size_bytes })) => {
                    self.resized(&record, &lease, size_bytes).await
                }
                (VolumeState::Ready, Err(CallError::Refused(refusal))) => {
                    self.not_resized(&record, &lease, &refusal).await
                }
                (VolumeState::Deleting, Err(CallError::Refused(refusal @ Refusal::Conflict { .. }))) => {
                    self.not_deleted(&record, &lease, &refusal).await
                }
                (_, answer) => {
                    tracing::info!(%volume, ?answer, "a volume is not settled yet");
                    self.world.sleep(backoff(BACKOFF_MIN, BACKOFF_MAX, failures)).await;
                    continue;
                }
            };
            match outcome {
                Err(error) if error.code == ErrorCode::Unavailable => self.world.sleep(BACKOFF_MAX).await,
                outcome => return outcome,
            }
        }
        Ok(())
    }

    fn unsettled(&self, volume: VolumeId) -> Option<(VolumeRecord, LeaseRecord, Option<String>)> {
        let state = self.ledger.state();
        let record = state.volume(volume).filter(|record| record.is_unsettled())?;
        let lease = state.lease(volume)?;
        let admin = state.node(&lease.holder).map(|node| node.admin.clone());
        Some((record.clone(), lease.clone(), admin))
    }

    async fn created(&self, record: &VolumeRecord, lease: &LeaseRecord) -> Settled {
        let of = record.origin.as_ref().map(|of| format!(" of snapshot {} of {}", of.snapshot, of.volume_name));
        let text = format!("{} was created{}, {} bytes", record.name, of.unwrap_or_default(), record.size_bytes);
        self.ledger
            .commit(|state, changes| {
                if let Some(now) = state.volume(record.volume) {
                    let (state, size_bytes) = (VolumeState::Ready, record.size_bytes);
                    changes.put(VolumeRecord { state, size_bytes, ..now.clone() });
                }
                changes.event(NewEvent::info("volume.created", text).node(&lease.holder).volume(record.volume));
                Ok(())
            })
            .await
    }

    async fn not_created(&self, record: &VolumeRecord, lease: &LeaseRecord, refusal: &Refusal) -> Settled {
        self.forget(record, None).await?;
        let error = Self::refusal_error(&lease.holder, refusal);
        match (&record.origin, refusal) {
            (Some(of), Refusal::NotFound { .. }) => {
                let message = format!("{} has no snapshot {:?}", of.volume_name, of.snapshot);
                Err(ApiError { code: ErrorCode::SnapshotNotFound, message, ..error })
            }
            _ => Err(error),
        }
    }

    async fn deleted(&self, record: &VolumeRecord) -> Settled {
        let told = NewEvent::info("volume.deleted", format!("{} was deleted", record.name)).volume(record.volume);
        self.forget(record, Some(told)).await
    }

    async fn not_deleted(&self, record: &VolumeRecord, lease: &LeaseRecord, refusal: &Refusal) -> Settled {
        self.ledger
            .commit(|state, changes| {
                if let Some(now) = state.volume(record.volume) {
                    changes.put(VolumeRecord { state: VolumeState::Ready, ..now.clone() });
                }
                Ok::<_, ApiError>(())
            })
            .await?;
        let error = Self::refusal_error(&lease.holder, refusal);
        Err(ApiError { code: ErrorCode::VolumeBusy, ..error })
    }

    async fn forget(&self, record: &VolumeRecord, told: Option<NewEvent>) -> Settled {
        self.ledger
            .commit(|state, changes| {
                changes.delete::<VolumeRecord>(record.volume);
                changes.delete::<LeaseRecord>(record.volume);
                if state.schedules.contains_key(&record.volume) {
                    changes.delete::<ScheduleRecord>(record.volume);
                }
                changes.moves_data();
                if let Some(told) = told {
                    changes.event(told);
                }
                Ok::<_, ApiError>(())
            })
            .await?;
        self.renewals.forget(record.volume);
        Ok(())
    }
}

fn request(record: &VolumeRecord, lease: &LeaseRecord) -> (NodeRequest, Duration) {
    let (volume, epoch) = (record.volume, lease.epoch);
    match record.state {
        VolumeState::Deleting => (NodeRequest::DeleteVolume { volume, epoch }, LONG_WORK_DEADLINE),
        VolumeState::Ready => {
            let size_bytes = record.resize_to.unwrap_or(record.size_bytes);
            (NodeRequest::ResizeVolume { volume, size_bytes, epoch }, LONG_WORK_DEADLINE)
        }
        VolumeState::Creating if let Some(of) = &record.origin => {
            let (name, origin, snapshot) = (record.name.clone(), of.volume, of.snapshot.clone());
            (NodeRequest::CloneVolume { volume, name, origin, snapshot, epoch }, WORK_DEADLINE)
        }
        VolumeState::Creating => {
            let (name, size_bytes, tenant) = (record.name.clone(), record.size_bytes, record.tenant.clone());
            (NodeRequest::CreateVolume { volume, name, size_bytes, epoch, tenant }, WORK_DEADLINE)
        }
    }
}

/// A volume that is to be made.
struct New {
    volume: VolumeId,
    name: String,
    size_bytes: u64,
    node: NodeId,
    tenant: String,
    origin: Option<OriginRecord>,
}

impl New {
    fn record(self, state: &State, changes: &mut Changes, holding: &Holding) -> Result<(), ApiError> {
        let Self { volume, name, size_bytes, node, tenant, origin } = self;
        check_takes_new(state, &node)?;
        if let Some(other) = state.volume_named(&name) {
            let message = format!("there is a volume {name} already");
            return Err(ApiError::new(ErrorCode::VolumeExists, message).cause(format!("it is {}", other.volume)));
        }
        check_quota(state, &tenant, size_bytes, 1)?;
        changes.put(VolumeRecord {
            volume,
            name,
            size_bytes,
            state: VolumeState::Creating,
            created_ms: changes.wall_ms(),
            resize_to: None,
            tenant,
            limits: LimitsRecord::default(),
            origin,
        });
        let (epoch, revision) = (Epoch(1), 0);
        changes.put(LeaseRecord { volume, epoch, revision, holder: node, ttl_ms: None, leg: None });
        changes.moves_data();
        holding.remember(state, changes, &volume.to_string());
        Ok(())
    }
}

/// A volume of which a clone is being made stays where it is.
pub(crate) fn check_not_cloned(state: &State, record: &VolumeRecord) -> Result<(), ApiError> {
    let is_made_of = |other: &VolumeRecord| {
        other.state == VolumeState::Creating && other.origin.as_ref().is_some_and(|of| of.volume == record.volume)
    };
    match state.volumes.values().find(|kept| is_made_of(&kept.record)) {
        Some(clone) => Err(ApiError::new(ErrorCode::VolumeBusy, format!("{} is being cloned", record.name))
            .cause(format!("{} is being made of it", clone.record.name))),
        None => Ok(()),
    }
}

/// A volume that is exported, or that a node has yet to let go of, is not deleted.
fn check_unused(state: &State, record: &VolumeRecord) -> Result<(), ApiError> {
    let busy = |cause: String, hint: &str| {
        Err(ApiError::new(ErrorCode::VolumeBusy, format!("{} is in use", record.name)).cause(cause).hint(hint))
    };
    if let Some(kept) = state.exports.values().find(|kept| kept.record.volume == record.volume) {
        let cause = format!("{} exports it as {}", kept.record.node, kept.record.name);
        return busy(cause, "remove its exports first");
    }
    let pending = state.migrations_of(record.volume).flat_map(|migration| &migration.cleanup).next();
    match pending {
        Some(cleanup) => {
            busy(format!("{} has yet to let its old copy go", cleanup.node), "wait for the node, or forget it")
        }
        None => Ok(()),
    }
}
