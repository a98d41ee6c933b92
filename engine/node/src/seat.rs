//! What this node is to one volume that it stores, and how clients' requests reach the volume under its lease.
//!
//! ```text
//!   Mirror(N) ──SetGrant(N+1, me)──► Holder(N+1) ──SetGrant(N+2, other side)──► Mirror(N+2)
//!                                        └────────SetGrant(N+2, anyone else)──► Fenced(N+2)
//! ```
//! Invariants
//! - The record is durable before the node acts on it or answers what asked for it.
//! - What was done under a lower epoch is fenced and drained before the record of a higher one is written.
//! - I/O of clients is served only under the guard of the present epoch; the guard is replaced, never reused.
//! - While there is a leg or the lease is timed, writes of this node's own exports keep a copy of their data: they may
//!   have to go elsewhere after the volume took the buffer.
//! - A read that began before the volume was opened again, or before a gateway has replayed, is not answered: what it has
//!   yet to replay may be missing.
//! - Changes of the seat take turns (`changing`).

use crate::context::Context;
use crate::holds::Hold;
use crate::lease::LeaseGuard;
use crate::limiter::{Limiter, Waited};
use crate::migration::Outbound;
use crate::session::Sessions;
use crate::writers::{Way, Writers};
use drover_base::limits::REQUEST_BYTES_MAX;
use drover_base::planted::{Bug, is_planted};
use drover_base::{
    ByteRange, Epoch, ExtentIndex, InstanceId, Instant, IoError, MigrationId, RegionIndex, SessionId, VolumeId,
};
use drover_disk::Buffer;
use drover_heat::Heat;
use drover_store::meta::{Batch, MetaError};
use drover_store::{Access, ChunkScope, Fence, Quiesced, Volume, ZeroMode};
use drover_transfer::Receiver;
use drover_wire::admin::{MergeStatus, Position, Role, SnapshotStatus, VolumeStatus};
use drover_wire::nbd::BlockStatus;
use drover_wire::peer::{Answer, Operation, Payload, STATUS_RUNS_MAX, StatusRun};
use drover_wire::seat_record::{LegDirection, SeatRecord};
use drover_wire::writer_record::Writer;
use std::{
    cell::{Cell, Ref, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::sync::Notify;

/// Prefix of the node's own metadata, and of seats and exports within it.
pub(crate) const SEAT_PREFIX: &[u8] = b"ns";
pub(crate) const EXPORT_PREFIX: &[u8] = b"ne";

/// Bytes that one block status looks at, at most: 65,536 entries of the map, well under a millisecond. A client asks
/// on from where the answer ended.
const STATUS_BYTES_MAX: u64 = 4 << 30;

pub(crate) fn seat_key(volume: VolumeId) -> Vec<u8> {
    [SEAT_PREFIX, &volume.0.to_be_bytes()].concat()
}

/// Who holds a volume, and since when, is what an operator asks first; tests of whole clusters check it.
fn log_role(record: &SeatRecord, volume: VolumeId) {
    tracing::info!(target: "drover::seat", %volume, epoch = %record.epoch, role = ?record.role, "in office");
}

/// The holder has stopped admitting and has drained, and the other side has everything durably: it does not go on by
/// itself any more.
pub(crate) struct Stopped {
    pub attempt: u64,
    pub position: Position,
    _quiesced: Quiesced,
}

impl Stopped {
    pub fn new(attempt: u64, position: Position, quiesced: Quiesced) -> Self {
        Self { attempt, position, _quiesced: quiesced }
    }
}

/// The stream that is applied here, or was last.
struct Inbound {
    session: SessionId,
    receiver: Rc<Receiver>,
    /// What earlier connections of the session made durable.
    durable_before: u64,
}

/// The last position of a mirror stream that this instance confirmed, and when it was first asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Confirmed {
    pub migration: MigrationId,
    pub position: Position,
    pub asked: Instant,
}

pub(crate) struct Seat {
    pub context: Rc<Context>,
    pub volume: Rc<Volume>,
    record: RefCell<SeatRecord>,
    lease: RefCell<Rc<LeaseGuard>>,
    /// Changes at each restart of the node and each reopening: what was not flushed before may be lost.
    instance: Cell<InstanceId>,
    pub changing: Arc<tokio::sync::Mutex<()>>,
    keeps_copies: Cell<bool>,
    /// The volume admits nobody for a flip, or is about to.
    quiescing: Cell<bool>,
    pub stopped: RefCell<Option<Stopped>>,
    /// It admits nobody for a snapshot of several volumes.
    pub held: RefCell<Option<Hold>>,
    /// The newest attempt at a flip within the epoch that was resumed or begun.
    pub attempt: Cell<u64>,
    /// The lease moved away from this instance after it had drained: what it acknowledged is durable at the holder.
    handed_over: Cell<bool>,
    pub outbound: RefCell<Option<Rc<Outbound>>>,
    pub sessions: Sessions,
    pub writers: Rc<Writers>,
    pub confirmed: Cell<Option<Confirmed>>,
    inbound: RefCell<Option<Inbound>>,
    /// The role is about to change: no stream is taken any more.
    changing_role: Cell<bool>,
    /// Told about every change of role, lease or admission.
    changed: Notify,
    /// Where clients' requests wait for the volume's limits.
    pub limiter: Rc<Limiter>,
    heat: RefCell<Heat>,
    read_bytes: Cell<u64>,
    written_bytes: Cell<u64>,
}

impl Inbound {
    fn durable(&self) -> u64 {
        self.durable_before.max(self.receiver.durable_position())
    }
}

impl Seat {
    /// A seat as recorded; the lease of a timed holder waits for its confirmation.
    pub fn new(context: Rc<Context>, volume: Rc<Volume>, record: SeatRecord, writers: Rc<Writers>) -> Rc<Self> {
        let lease = guard_of(&context, &record);
        let heat = Heat::new(volume.size_bytes(), context.world.now());
        let instance = context.instance;
        let keeps_copies = must_keep_copies(&record);
        let limiter = Limiter::new(context.world.clone(), record.limits);
        log_role(&record, volume.id());
        let is_known = !record.tenant.is_empty();
        volume.set_scope(is_known.then(|| ChunkScope::of_tenant(&record.tenant)));
        Rc::new(Self {
            context,
            volume,
            record: RefCell::new(record),
            lease: RefCell::new(lease),
            instance: Cell::new(instance),
            changing: Arc::default(),
            keeps_copies: Cell::new(keeps_copies),
            quiescing: Cell::new(false),
            stopped: RefCell::default(),
            held: RefCell::default(),
            attempt: Cell::new(0),
            handed_over: Cell::new(false),
            outbound: RefCell::default(),
            sessions: Sessions::default(),
            writers,
            confirmed: Cell::new(None),
            inbound: RefCell::default(),
            changing_role: Cell::new(false),
            changed: Notify::new(),
            limiter,
            heat: RefCell::new(heat),
            read_bytes: Cell::new(0),
            written_bytes: Cell::new(0),
        })
    }

    /// The volume has become larger: what is new is counted, too.
    pub fn grew(&self) {
        self.heat.borrow_mut().grow(self.volume.size_bytes());
    }

    pub fn id(&self) -> VolumeId {
        self.volume.id()
    }

    pub fn record(&self) -> SeatRecord {
        self.record.borrow().clone()
    }

    /// The record without a copy; not to be kept across a wait.
    pub fn record_view(&self) -> Ref<'_, SeatRecord> {
        self.record.borrow()
    }

    pub fn role(&self) -> Role {
        self.record.borrow().role
    }

    pub fn is_holder(&self) -> bool {
        self.role() == Role::Holder
    }

    /// The guard of the present epoch.
    pub fn lease(&self) -> Rc<LeaseGuard> {
        self.lease.borrow().clone()
    }

    /// The lease of that epoch was confirmed, in answer to what was sent at `sent`.
    pub fn renewed(&self, epoch: Epoch, sent: Instant) {
        let lease = self.lease();
        if lease.epoch() == epoch {
            let was_valid = lease.is_valid();
            lease.renewed(sent);
            if !was_valid {
                self.tell();
            }
        }
    }

    pub fn instance(&self) -> InstanceId {
        self.instance.get()
    }

    /// The volume is being opened again: what was not flushed may be lost, as after a restart.
    pub fn new_instance(&self) {
        self.instance.set(InstanceId(self.context.world.random.next_u64()));
        self.confirmed.set(None);
        self.inbound.take();
        self.handed_over.set(false);
    }

    pub fn keeps_copies(&self) -> bool {
        self.keeps_copies.get()
    }

    /// Whether the other side may take over from this holder without having been handed the lease: what it has not made
    /// durable it may have lost by then.
    pub fn may_be_superseded(&self) -> bool {
        let record = self.record.borrow();
        record.role == Role::Holder && record.direction == LegDirection::Return && record.leg.is_some()
    }

    /// Writes the record durably, then adopts it. Guards and roles in memory follow by `take_office`.
    pub async fn persist(&self, record: SeatRecord) -> Result<(), MetaError> {
        let mut batch = Batch::default();
        batch.put(seat_key(self.id()), record.encode());
        self.context.meta.commit(batch).await?;
        self.keeps_copies.set(must_keep_copies(&record));
        self.limiter.set(record.limits);
        *self.record.borrow_mut() = record;
        Ok(())
    }

    /// Replaces the guard by one of the recorded epoch; the old one is revoked.
    pub fn take_office(&self) -> Rc<LeaseGuard> {
        let lease = guard_of(&self.context, &self.record.borrow());
        let old = self.lease.replace(lease.clone());
        old.revoke();
        self.changing_role.set(false);
        self.attempt.set(0);
        if !self.is_holder() {
            self.limiter.let_all_go();
        }
        log_role(&self.record.borrow(), self.id());
        self.tell();
        lease
    }

    /// Whether the lease moved away with everything flushed.
    pub fn set_handed_over(&self, handed_over: bool) {
        self.handed_over.set(handed_over);
    }

    /// From now on no stream is taken; `take_office` ends it.
    pub fn begin_role_change(&self) {
        self.changing_role.set(true);
    }

    pub fn is_changing_role(&self) -> bool {
        self.changing_role.get()
    }

    /// The role stays what it was.
    pub fn give_up_role_change(&self) {
        self.changing_role.set(false);
    }

    /// The epoch under which frames of a stream are applied; `None`: they are not.
    pub fn mirrors_under(&self) -> Option<Epoch> {
        let record = self.record.borrow();
        (record.role == Role::Mirror && !self.changing_role.get()).then_some(record.epoch)
    }

    /// A new connection of a stream begins; those before it have drained.
    pub fn receive_by(&self, session: SessionId, receiver: Rc<Receiver>) {
        let mut inbound = self.inbound.borrow_mut();
        let durable_before = inbound.as_ref().filter(|old| old.session == session).map_or(0, Inbound::durable);
        *inbound = Some(Inbound { session, receiver, durable_before });
    }

    /// Whether this instance has applied and flushed everything of the stream up to the position.
    pub fn has_durable(&self, position: Position) -> bool {
        let inbound = self.inbound.borrow();
        inbound.as_ref().is_some_and(|it| it.session.0 == position.session && it.durable() >= position.sequence)
    }

    /// Wakes whoever waits for the seat to change.
    pub fn tell(&self) {
        self.changed.notify_waiters();
    }

    /// Completes at the next change of role, lease or admission after the call.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    pub fn set_quiescing(&self, quiescing: bool) {
        self.quiescing.set(quiescing);
        self.tell();
    }

    /// Whether requests would wait at the volume for the end of a flip.
    pub fn is_quiescing(&self) -> bool {
        self.quiescing.get()
    }

    /// Waits until requests are admitted.
    pub async fn admitted(&self) {
        loop {
            let changed = self.changed();
            if !self.quiescing.get() {
                return;
            }
            changed.await;
        }
    }

    /// Why this node does not serve the volume.
    pub fn elsewhere(&self) -> IoError {
        let record = self.record.borrow();
        if record.role == Role::Holder || self.context.is_me(&record.holder.node) {
            return IoError::Fenced { epoch: record.epoch };
        }
        let (epoch, holder) = (record.epoch, record.holder.node.clone());
        IoError::Moved { epoch, holder, flushed: self.handed_over.get() }
    }

    /// The error for whoever asked: a fence that fell because the volume moved says where to.
    pub fn told(&self, error: IoError) -> IoError {
        match error {
            IoError::Fenced { .. } if !self.is_holder() => self.elsewhere(),
            other => other,
        }
    }

    /// For an order by heat of any kind.
    pub fn heat_rank(&self, region: RegionIndex) -> u64 {
        let heat = self.heat.borrow().region(region, self.context.world.now());
        ((heat.read_blocks + heat.written_blocks) * 1024.0) as u64
    }

    /// For an order by write heat.
    pub fn write_rank(&self, region: RegionIndex) -> u64 {
        self.heat.borrow().write_rank(region, self.context.world.now())
    }

    /// The extents that are accessed most, hottest first, and what all count together.
    pub fn hot_extents(&self) -> (Vec<(ExtentIndex, f32)>, f32) {
        self.heat.borrow().hot_extents(self.context.world.now())
    }

    fn note_read(&self, offset: u64, len: u64) {
        self.read_bytes.set(self.read_bytes.get() + len);
        self.heat.borrow_mut().read(ByteRange { offset, len }, self.context.world.now());
    }

    fn note_write(&self, offset: u64, len: u64) {
        self.written_bytes.set(self.written_bytes.get() + len);
        self.heat.borrow_mut().write(ByteRange { offset, len }, self.context.world.now());
    }

    pub async fn read(&self, fence: &dyn Fence, offset: u64, len: u64) -> Result<Buffer, IoError> {
        let instance = self.instance();
        let may_lack = || !self.writers.is_settled() && !self.volume.is_poisoned();
        if may_lack() && !is_planted(Bug::ReplayNotAwaited) {
            return Err(IoError::Disconnected);
        }
        let buffer = match self.mirrors_back() {
            false => self.volume.read(fence, offset, len).await?,
            true => self.read_settled(fence, offset, len).await?,
        };
        if self.instance() != instance && !is_planted(Bug::ReplayNotAwaited) {
            // It waited at the gate, and found it open before anything was replayed.
            return Err(IoError::Disconnected);
        }
        self.note_read(offset, len);
        Ok(buffer)
    }

    /// Whether the other side may have to take over what is written here.
    fn mirrors_back(&self) -> bool {
        self.outbound.borrow().as_ref().is_some_and(|outbound| outbound.direction == LegDirection::Return)
    }

    /// Under the extents' locks, which a write keeps until the other side has it, too: what is shown here, a takeover
    /// does not undo. Not through the volume's admission: a flip that has drained waits for nobody's locks.
    async fn read_settled(&self, fence: &dyn Fence, offset: u64, len: u64) -> Result<Buffer, IoError> {
        let size = self.volume.size_bytes();
        let range = ByteRange::new(offset, len).filter(|range| range.end() <= size && len <= REQUEST_BYTES_MAX);
        let range = range.ok_or(IoError::OutOfRange { offset, len, size })?;
        let blocks = range.block_aligned();
        // Whole blocks of an unaligned request of the largest size are two requests.
        let first = ByteRange { len: blocks.len.min(REQUEST_BYTES_MAX), ..blocks };
        let rest = ByteRange { offset: first.end(), len: blocks.len - first.len };
        self.volume.tell_origin(range, Access::Read);
        let guard = loop {
            let guard = self.volume.enqueue(blocks).await;
            fence.check()?;
            if !self.volume.is_any_remote(blocks) {
                break guard;
            }
            // Who brings it needs the locks.
            drop(guard);
            self.volume.bring(fence, blocks).await?;
        };
        let mut buffer = self.volume.read_locked(&guard, first).await?;
        if !rest.is_empty() {
            buffer = Buffer::join(vec![buffer, self.volume.read_locked(&guard, rest).await?]);
        }
        drop(guard);
        fence.check()?;
        buffer.advance((offset - blocks.offset) as usize);
        buffer.truncate(len as usize);
        Ok(buffer)
    }

    pub async fn write(&self, fence: &dyn Fence, offset: u64, data: Buffer, fua: bool) -> Result<(), IoError> {
        let len = data.len() as u64;
        self.volume.write(fence, offset, data, fua).await?;
        self.note_write(offset, len);
        Ok(())
    }

    pub async fn write_zeroes(
        &self,
        fence: &dyn Fence,
        range: ByteRange,
        zero: ZeroMode,
        fua: bool,
    ) -> Result<(), IoError> {
        self.volume.write_zeroes(fence, range.offset, range.len, zero, fua).await?;
        self.note_write(range.offset, range.len);
        Ok(())
    }

    pub async fn trim(&self, fence: &dyn Fence, range: ByteRange, fua: bool) -> Result<(), IoError> {
        self.volume.trim(fence, range.offset, range.len, fua).await?;
        self.note_write(range.offset, range.len);
        Ok(())
    }

    pub async fn flush(&self, fence: &dyn Fence) -> Result<(), IoError> {
        self.volume.flush(fence).await
    }

    pub fn block_status(
        &self,
        fence: &dyn Fence,
        range: ByteRange,
        most: usize,
    ) -> Result<Vec<(u64, BlockStatus)>, IoError> {
        fence.check()?;
        let len = range.len.min(STATUS_BYTES_MAX);
        let runs = self.volume.block_status(range.offset, len, most)?;
        Ok(runs.into_iter().map(|(len, status)| (len, BlockStatus { hole: status.hole, zero: status.zero })).collect())
    }

    /// Carries out a request of a client of `who`, from wherever it came; `settled` was awaited.
    pub async fn perform(
        self: &Rc<Self>,
        who: &Rc<Writer>,
        way: Way,
        fence: &dyn Fence,
        operation: Operation,
    ) -> Result<Answer, IoError> {
        match operation {
            Operation::Read { range } => {
                let buffer = self.read(fence, range.offset, range.len).await?;
                Ok(Answer::Data(Payload::plain(buffer.into_bytes())))
            }
            Operation::Write { offset, data, fua, .. } => {
                if data.is_compressed() {
                    return Err(IoError::Corrupt);
                }
                let range = ByteRange { offset, len: data.bytes.len() as u64 };
                self.volume.bring_edges(fence, range).await?;
                let pass = self.enter(who, way).await?;
                self.write(fence, offset, Buffer::from_slice(&data.bytes), fua || pass.writes_through()).await?;
                Ok(pass.answer())
            }
            Operation::Zero { range, may_unmap, fast_only, fua, .. } => {
                self.volume.bring_edges(fence, range).await?;
                let pass = self.enter(who, way).await?;
                let zero = ZeroMode { may_unmap, fast_only };
                self.write_zeroes(fence, range, zero, fua || pass.writes_through()).await?;
                Ok(pass.answer())
            }
            Operation::Trim { range, fua, .. } => {
                let pass = self.enter(who, way).await?;
                self.trim(fence, range, fua || pass.writes_through()).await?;
                Ok(pass.answer())
            }
            Operation::Flush { .. } => {
                self.flush(fence).await?;
                Ok(Answer::Done)
            }
            Operation::BlockStatus { range } => {
                let runs = self.block_status(fence, range, STATUS_RUNS_MAX)?;
                let run = |(len, status): (u64, BlockStatus)| StatusRun { len, hole: status.hole, zero: status.zero };
                Ok(Answer::Status(runs.into_iter().map(run).collect()))
            }
            // Not for clients: the stream of a migration has its own receiver.
            Operation::Digests { .. }
            | Operation::Remote { .. }
            | Operation::Offer { .. }
            | Operation::Assemble(_)
            | Operation::Layer(_)
            | Operation::Hello(_) => Err(IoError::NotHere),
        }
    }

    pub fn status(&self) -> VolumeStatus {
        let record = self.record.borrow();
        let usage = self.volume.usage();
        let Waited { requests: limited_requests, us: limited_us } = self.limiter.waited();
        let role = match record.role {
            Role::Holder if !self.lease.borrow().is_valid() => Role::Fenced,
            role => role,
        };
        let snapshot = |info: drover_store::SnapshotInfo| SnapshotStatus {
            name: info.name,
            created_ms: info.created_ms,
            used_bytes: info.used_bytes,
        };
        VolumeStatus {
            volume: self.id(),
            name: self.volume.name(),
            size_bytes: self.volume.size_bytes(),
            used_bytes: usage.used_bytes,
            valid_bytes: usage.valid_bytes,
            shared_bytes: self.volume.shared_bytes(),
            remote_bytes: self.volume.remote_bytes(),
            epoch: record.epoch,
            role,
            poisoned: self.volume.is_poisoned(),
            snapshots: self.volume.snapshots().into_iter().map(snapshot).collect(),
            merge: self
                .volume
                .merge_left()
                .map(|drover_store::MergeLeft { layers, left_bytes }| MergeStatus { layers, left_bytes }),
            read_bytes: self.read_bytes.get(),
            written_bytes: self.written_bytes.get(),
            limits: record.limits,
            limited_requests,
            limited_us,
            indexed_bytes: self.volume.indexed_bytes(),
        }
    }
}

/// While the lease may move or run out, a write may have to be sent elsewhere after the volume took its buffer.
fn must_keep_copies(record: &SeatRecord) -> bool {
    record.leg.is_some() || record.ttl_ms.is_some()
}

/// The guard that a record calls for: a timed holder's waits for a confirmation, who is not the holder has none.
fn guard_of(context: &Context, record: &SeatRecord) -> Rc<LeaseGuard> {
    let clock = context.world.clock.clone();
    match (record.role, record.ttl_ms) {
        (Role::Holder, None) => LeaseGuard::untimed(clock, record.epoch),
        (Role::Holder, Some(ttl_ms)) => LeaseGuard::timed(clock, record.epoch, Duration::from_millis(ttl_ms)),
        (Role::Mirror | Role::Fenced, _) => LeaseGuard::none(clock, record.epoch),
    }
}
