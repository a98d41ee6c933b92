//! A volume: its stack of layers and everything that orders the I/O on it.
//!
//! A request passes, in this order:
//! ```text
//! clients gate → extent locks → mutations gate → activity log → slots → fence → tap → device → map → fence
//! ```
//! Reads pass the clients gate and the fences only. Flushes pass the fences only. Where a request needs remote blocks it
//! leaves the gate, has them brought, and begins again.
//!
//! Invariants
//! - The map in memory names only what completed writes stored: entries change on completion.
//! - Whoever changes an entry holds its extent's lock; whoever changes the stack has the mutations gate
//!   closed and the family's turn.
//! - No borrow of a `RefCell` is held across an await.

mod digest;
mod read;
mod remote;
mod status;
mod travel;
mod write;
mod zero;

pub use digest::{ExtentContent, ExtentDigests, zero_block_digest};
pub(crate) use read::Run;
pub use remote::{Access, Origin};
pub use status::{BlockStatus, SnapshotInfo, VolumeUsage};
pub use travel::{FrozenLayer, LayerMasks};
pub use zero::ZeroMode;

use crate::{
    activity::{Activity, ActivityPin},
    admission::{Closed, Gate, Inside},
    chunks::{ChunkScope, Indexed},
    entry::{Entry, SlotAddress},
    env::Env,
    family::Family,
    flush::{Flusher, Scope},
    health::Health,
    inflight::Inflight,
    layer::Layer,
    locks::{LockGuard, LockTable, LockTicket},
    merge::Merged,
    stack::Stack,
    tap::{Fence, Tap},
};
use bytes::Bytes;
use drover_base::{
    ByteRange, ExtentIndex, IoError, RegionIndex, VolumeId,
    limits::{NOTE_BYTES_MAX, REQUEST_BYTES_MAX},
    planted::{Bug, is_planted},
    units::EXTENT_BYTES,
};
use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
};

/// A volume of this shard. Stays usable through poisoning and reopening.
pub struct Volume {
    pub(crate) id: VolumeId,
    me: Weak<Volume>,
    pub(crate) env: Rc<Env>,
    pub(crate) health: Health,
    pub(crate) stack: RefCell<Stack>,
    pub(crate) locks: Rc<LockTable>,
    /// Client requests enter here.
    pub(crate) clients: Rc<Gate>,
    /// Whatever writes to slots or changes entries enters here, clients and receivers alike.
    pub(crate) mutations: Rc<Gate>,
    /// The volumes it shares layers with.
    pub(crate) family: Rc<Family>,
    /// The family's.
    pub(crate) inflight: Rc<Inflight>,
    pub(crate) flusher: Flusher,
    pub(crate) activity: Rc<Activity>,
    pub(crate) merged: Cell<Merged>,
    tap: RefCell<Option<Rc<dyn Tap>>>,
    origin: RefCell<Option<Rc<dyn Origin>>>,
    note: RefCell<Bytes>,
    pub(crate) scope: Cell<Option<ChunkScope>>,
    pub(crate) indexed: Indexed,
}

/// A client of the volume is inside: nobody who quiesces gets on while it lives.
#[must_use = "it counts until it is dropped"]
pub struct Admitted {
    _inside: Inside,
}

/// Client requests wait while it lives; those that were running have ended.
#[must_use = "clients are admitted again when it is dropped"]
pub struct Quiesced {
    _closed: Closed,
}

impl Volume {
    pub(crate) fn new(
        env: Rc<Env>,
        family: Rc<Family>,
        stack: Stack,
        active: Vec<RegionIndex>,
        note: Bytes,
    ) -> Rc<Self> {
        let activity = Rc::new(Activity::default());
        activity.load(active);
        let tiers = env.tiers.clone();
        Rc::new_cyclic(|me| Self {
            id: stack.volume,
            me: me.clone(),
            env,
            health: Health::new(tiers),
            stack: RefCell::new(stack),
            locks: Rc::default(),
            clients: Rc::default(),
            mutations: Rc::default(),
            inflight: family.inflight.clone(),
            family,
            flusher: Flusher::default(),
            activity,
            merged: Cell::default(),
            tap: RefCell::default(),
            origin: RefCell::default(),
            note: RefCell::new(note),
            scope: Cell::default(),
            indexed: Indexed::default(),
        })
    }

    pub(crate) fn me(&self) -> Rc<Volume> {
        self.me.upgrade().expect("it is alive while it is used")
    }

    pub fn id(&self) -> VolumeId {
        self.id
    }

    pub fn name(&self) -> String {
        self.stack.borrow().name.clone()
    }

    pub fn size_bytes(&self) -> u64 {
        self.stack.borrow().head().size_bytes.get()
    }

    /// The part of `range` inside the volume; possibly none of it.
    pub fn inside(&self, range: ByteRange) -> ByteRange {
        let end = range.end().min(self.size_bytes());
        ByteRange { offset: range.offset.min(end), len: end.saturating_sub(range.offset) }
    }

    /// What exists of the extent.
    pub(crate) fn extent_range(&self, extent: ExtentIndex) -> Result<ByteRange, IoError> {
        let size = self.size_bytes();
        let offset = extent.0.saturating_mul(EXTENT_BYTES);
        if offset >= size {
            return Err(IoError::OutOfRange { offset, len: EXTENT_BYTES, size });
        }
        Ok(ByteRange { offset, len: EXTENT_BYTES.min(size - offset) })
    }

    /// Whether every I/O fails until the volume is reopened.
    pub fn is_poisoned(&self) -> bool {
        self.health.check() == Err(IoError::Poisoned)
    }

    /// The range, if it is inside the volume.
    fn range(&self, offset: u64, len: u64) -> Result<ByteRange, IoError> {
        let size = self.size_bytes();
        match ByteRange::new(offset, len) {
            Some(range) if range.end() <= size => Ok(range),
            _ => Err(IoError::OutOfRange { offset, len, size }),
        }
    }

    /// The range, if it is inside the volume and no larger than a request.
    fn request_range(&self, offset: u64, len: u64) -> Result<ByteRange, IoError> {
        if len > REQUEST_BYTES_MAX {
            return Err(IoError::TooLarge { len, most: REQUEST_BYTES_MAX });
        }
        self.range(offset, len)
    }

    /// Asked before submission, with the locks held.
    fn may_apply(&self, fence: &dyn Fence) -> Result<(), IoError> {
        self.health.check()?;
        if is_planted(Bug::EpochNotChecked) {
            return Ok(());
        }
        fence.check()
    }

    /// Asked before the answer.
    fn may_answer(&self, fence: &dyn Fence) -> Result<(), IoError> {
        self.health.check()?;
        if is_planted(Bug::AckNotFenced) {
            return Ok(());
        }
        fence.check()
    }

    /// Makes everything that was answered before this call durable, here and where the tap mirrors to.
    pub async fn flush(&self, fence: &dyn Fence) -> Result<(), IoError> {
        self.may_apply(fence)?;
        self.flush_both(Scope::All).await?;
        self.may_answer(fence)
    }

    /// The same for the maps of the range's regions; data of all devices.
    async fn flush_range(&self, range: ByteRange) -> Result<(), IoError> {
        self.flush_both(Scope::Regions(range.by_region().map(|(region, _)| region).collect())).await
    }

    async fn flush_both(&self, scope: Scope) -> Result<(), IoError> {
        let mirrored = self.tap().and_then(|tap| tap.flush());
        let local = self.make_durable(scope, None);
        match mirrored {
            None => local.await,
            Some(mirrored) => {
                let (local, mirrored) = futures::future::join(local, mirrored).await;
                local.and(mirrored)
            }
        }
    }

    /// Takes a place in the lock queues of the range's extents, now. For a receiver: changes applied under
    /// tickets taken in stream order are applied in stream order, extent by extent.
    pub fn enqueue(&self, range: ByteRange) -> LockTicket {
        self.locks.enqueue(range)
    }

    /// The locks of the range's extents, if nobody holds or awaits any of them now.
    pub fn try_lock(&self, range: ByteRange) -> Option<LockGuard> {
        self.locks.try_lock(range)
    }

    fn assert_locked(&self, guard: &LockGuard, range: ByteRange) {
        assert!(guard.covers(&self.locks, range), "{range:?} of {} is not under the guard", self.id);
    }

    /// Admits no client request, waits for those that run, runs `inside`, admits again.
    pub async fn barrier<T>(&self, inside: impl FnOnce() -> T) -> T {
        if is_planted(Bug::TrackingWithoutBarrier) {
            return inside();
        }
        let _closed = self.clients.close().await;
        inside()
    }

    /// Admits no client request and waits for those that run; the others wait until the result is dropped.
    pub async fn quiesce(&self) -> Quiesced {
        Quiesced { _closed: self.clients.close().await }
    }

    /// Waits until client requests are admitted, and counts as one until the result is dropped.
    pub async fn admit(&self) -> Admitted {
        Admitted { _inside: self.clients.enter().await }
    }

    /// What the node keeps with the volume: as last given, or as last flushed before the volume was opened.
    pub fn note(&self) -> Bytes {
        self.note.borrow().clone()
    }

    /// Gives the volume another note; the next flush makes it durable, with everything that completed before.
    pub fn set_note(&self, note: Bytes) {
        assert!(note.len() <= NOTE_BYTES_MAX, "notes are bounded where they are made");
        *self.note.borrow_mut() = note;
        self.flusher.note_changed();
    }

    pub(crate) fn load_note(&self, note: Bytes) {
        *self.note.borrow_mut() = note;
    }

    /// Installs or removes the tap. Requests that run keep the one they began with: do it in a barrier.
    pub fn set_tap(&self, tap: Option<Rc<dyn Tap>>) {
        *self.tap.borrow_mut() = tap;
    }

    fn tap(&self) -> Option<Rc<dyn Tap>> {
        self.tap.borrow().clone()
    }

    /// Regions that may differ from what was last flushed, or that a migration has not got clean.
    pub fn active_regions(&self) -> Vec<RegionIndex> {
        self.activity.regions()
    }

    /// While the pin says true of a region, it does not leave the activity log.
    pub fn set_activity_pin(&self, pin: Option<ActivityPin>) {
        self.activity.set_pin(pin);
    }

    /// Changes an entry of a layer, to be committed with the region's next batch. The caller holds the lock.
    pub(crate) fn change_entry(&self, layer: &Layer, extent: ExtentIndex, entry: Entry) {
        if layer.set(extent, entry) != entry {
            self.flusher.changed(extent.region(), layer.id);
        }
    }

    /// Gives up a slot that no entry in memory names any more.
    pub(crate) fn release(&self, extent: ExtentIndex, slot: SlotAddress) {
        if is_planted(Bug::SlotLeaked) {
            return;
        }
        if is_planted(Bug::SlotReusedBeforeDurable) {
            self.env.tiers.free(&[slot]);
            return;
        }
        if is_planted(Bug::DiscardedBeforeDurable) {
            let device = self.env.devices[usize::from(slot.device)].clone();
            let discard = async move { drop(device.discard(slot.block_offset(0), EXTENT_BYTES).await) };
            self.env.world.spawn(discard).detach();
        }
        self.flusher.freed(extent.region(), slot);
    }
}

#[cfg(test)]
mod tests;
