//! The receiving side of a migration or mirror: applies one session's stream.
//!
//! ```text
//!  handle(n) ── place in the lock queues of its extents ──┬── unpack ── lock ── apply ── answer
//!  handle(n+1) ── place …                                 └── (several at once)
//! ```
//!
//! Invariants
//! - Places are taken in stream order, at the call. So operations of one extent are applied in stream order,
//!   whatever else runs at once.
//! - What was handled runs to its end, also when nobody waits for its answer any more: no half of it can come
//!   after the next connection's first operation, which waits for [`Receiver::drained`].
//! - A flush begins when every operation before it has ended, and takes over the sender's note with them. `durable` is
//!   the last flush that succeeded.

mod assemble;
mod layers;

pub(crate) use layers::{spec_of, specs_of};

use crate::compress::{POOL_BYTES_MIN, squeeze, unpack};
use crate::level::Level;
use bytes::Bytes;
use drover_base::limits::REQUEST_BYTES_MAX;
use drover_base::units::{BLOCK_BYTES, EXTENT_BYTES, REGION_BYTES};
use drover_base::{BlockMask, ByteRange, ExtentIndex, IoError, LocalFuture, RegionIndex, RegionMasks, World};
use drover_store::{Fence, LockGuard, LockTicket, Volume};
use drover_wire::peer::{Answer, ExtentDigests, Operation, Payload, STATUS_RUNS_MAX, StatusRun};
use futures::channel::oneshot;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    future::Future,
    rc::Rc,
};
use tokio::sync::Notify;

/// Applies the stream of one session to a volume.
pub struct Receiver {
    world: World,
    volume: Rc<Volume>,
    fence: Rc<dyn Fence>,
    state: RefCell<State>,
    /// Told when an operation ends.
    ended: Notify,
    /// What proofs of possession towards this receiver are made with.
    nonce: [u8; 32],
    /// Assemblies whose chunks are being indexed.
    indexing: Cell<usize>,
}

#[derive(Default)]
struct State {
    /// Operations that were handled and have not ended.
    running: BTreeSet<u64>,
    durable: u64,
}

/// Takes an operation out of `running` when it ends, however it ends.
struct Running {
    receiver: Rc<Receiver>,
    sequence: u64,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.receiver.state.borrow_mut().running.remove(&self.sequence);
        self.receiver.ended.notify_waiters();
    }
}

impl Receiver {
    pub fn new(world: World, volume: Rc<Volume>, fence: Rc<dyn Fence>) -> Rc<Receiver> {
        let words: Vec<[u8; 8]> = (0..4).map(|_| world.random.next_u64().to_le_bytes()).collect();
        let nonce = words.as_flattened().try_into().expect("four words");
        Rc::new(Self {
            world,
            volume,
            fence,
            state: RefCell::default(),
            ended: Notify::new(),
            nonce,
            indexing: Cell::new(0),
        })
    }

    /// To be called in stream order, `sequence` growing. Its place in the lock queues is taken when this returns;
    /// the result only waits for the answer.
    pub fn handle(
        self: &Rc<Self>,
        sequence: u64,
        operation: Operation,
    ) -> LocalFuture<'static, Result<Answer, IoError>> {
        let me = self.clone();
        match operation {
            Operation::Write { offset, data, fua, .. } => {
                let range = ByteRange { offset, len: u64::from(data.raw_len) };
                match self.place(range) {
                    Ok(ticket) => self.run(sequence, me.write(ticket, range, data, fua)),
                    Err(error) => refuse(error),
                }
            }
            Operation::Zero { range, may_unmap, fua, .. } => match self.place(range) {
                Ok(ticket) => self.run(sequence, me.zero(ticket, range, may_unmap, fua)),
                Err(error) => refuse(error),
            },
            Operation::Digests { extent } => {
                let range = self.extent_range(extent);
                match self.place(range) {
                    Ok(ticket) if range.len > 0 => self.run(sequence, me.digests(ticket, extent)),
                    Ok(_) => refuse(self.out_of_range(range)),
                    Err(error) => refuse(error),
                }
            }
            Operation::BlockStatus { range } if range.len > REGION_BYTES => refuse(self.out_of_range(range)),
            Operation::BlockStatus { range } => match self.place(range) {
                Ok(ticket) => self.run(sequence, me.status(ticket, range)),
                Err(error) => refuse(error),
            },
            // Of the holder: what it has not got yet, as it is at this place of the stream.
            Operation::Read { range } => match self.place(range) {
                Ok(_) if range.len > REQUEST_BYTES_MAX => {
                    refuse(IoError::TooLarge { len: range.len, most: REQUEST_BYTES_MAX })
                }
                Ok(ticket) => self.run(sequence, me.read(ticket, range)),
                Err(error) => refuse(error),
            },
            Operation::Remote { region, masks } => {
                let range = self.region_range(region);
                match self.place(range) {
                    Ok(ticket) if range.len > 0 => self.run(sequence, me.mark_remote(ticket, range, masks)),
                    Ok(_) => refuse(self.out_of_range(range)),
                    Err(error) => refuse(error),
                }
            }
            Operation::Layer(request) => self.run(sequence, me.layer(sequence, *request)),
            Operation::Offer { chunks } => self.run(sequence, me.offered(chunks)),
            Operation::Assemble(assembly) => match self.place(assembly.range()) {
                Ok(ticket) => self.run(sequence, me.assemble(ticket, *assembly)),
                Err(error) => refuse(error),
            },
            Operation::Flush { note } => self.run(sequence, me.flush(sequence, note)),
            // A mirror serves nobody else.
            Operation::Hello(_) | Operation::Trim { .. } => refuse(IoError::NotHere),
        }
    }

    /// The sequence of the last flush that succeeded: everything up to it has ended and is durable. Zero: none.
    pub fn durable_position(&self) -> u64 {
        self.state.borrow().durable
    }

    /// Waits until every operation handled so far, and any that comes meanwhile, has ended.
    pub async fn drained(&self) {
        self.ended_before(u64::MAX).await;
    }

    fn run(
        self: &Rc<Self>,
        sequence: u64,
        work: impl Future<Output = Result<Answer, IoError>> + 'static,
    ) -> LocalFuture<'static, Result<Answer, IoError>> {
        let running = Running { receiver: self.clone(), sequence };
        self.state.borrow_mut().running.insert(sequence);
        let (tell, told) = oneshot::channel();
        let task = async move {
            let result = work.await;
            drop(running);
            // The connection may be gone.
            let _ = tell.send(result);
        };
        self.world.spawn(task).detach();
        // The task is dropped only with the node.
        Box::pin(async move { told.await.unwrap_or(Err(IoError::Disconnected)) })
    }

    fn place(&self, range: ByteRange) -> Result<LockTicket, IoError> {
        let size = self.volume.size_bytes();
        let is_whole = range.offset.is_multiple_of(BLOCK_BYTES)
            && (range.len.is_multiple_of(BLOCK_BYTES) || range.offset.checked_add(range.len) == Some(size));
        match range.offset.checked_add(range.len) {
            Some(end) if end <= size && is_whole => Ok(self.volume.enqueue(range)),
            _ => Err(self.out_of_range(range)),
        }
    }

    fn out_of_range(&self, range: ByteRange) -> IoError {
        IoError::OutOfRange { offset: range.offset, len: range.len, size: self.volume.size_bytes() }
    }

    /// The part of the extent inside the volume; empty for an extent that it does not have.
    fn extent_range(&self, extent: ExtentIndex) -> ByteRange {
        self.inside(extent.0, EXTENT_BYTES)
    }

    /// The same for a region.
    fn region_range(&self, region: RegionIndex) -> ByteRange {
        self.inside(region.0, REGION_BYTES)
    }

    fn inside(&self, index: u64, unit_bytes: u64) -> ByteRange {
        let size = self.volume.size_bytes();
        let offset = index.saturating_mul(unit_bytes).min(size);
        ByteRange { offset, len: (size - offset).min(unit_bytes) }
    }

    /// Digests of an extent some of which is not here: no block of the other side's has one of zeros, so all are sent.
    fn unlike_any(&self, extent: ExtentIndex) -> ExtentDigests {
        let blocks = self.extent_range(extent).len.div_ceil(BLOCK_BYTES) as usize;
        ExtentDigests { extent: [0; 32], blocks: vec![[0; 16]; blocks], held: self.volume.data_mask(extent) }
    }

    async fn write(
        self: Rc<Self>,
        ticket: LockTicket,
        range: ByteRange,
        payload: Payload,
        fua: bool,
    ) -> Result<Answer, IoError> {
        // While it waits for the locks, not under them.
        let data = if payload.is_compressed() && payload.raw_len as usize >= POOL_BYTES_MIN {
            self.world.offload(move || unpack(&payload)).await?
        } else {
            unpack(&payload)?
        };
        let guard = ticket.await;
        self.volume.write_locked(&guard, &*self.fence, range.offset, data).await?;
        self.done(guard, fua).await
    }

    async fn zero(
        self: Rc<Self>,
        ticket: LockTicket,
        range: ByteRange,
        may_unmap: bool,
        fua: bool,
    ) -> Result<Answer, IoError> {
        let guard = ticket.await;
        self.volume.zero_locked(&guard, &*self.fence, range.offset, range.len, may_unmap).await?;
        self.done(guard, fua).await
    }

    /// Blocks that this side does not have either are an error, never data.
    async fn read(self: Rc<Self>, ticket: LockTicket, range: ByteRange) -> Result<Answer, IoError> {
        let guard = ticket.await;
        self.fence.check()?;
        let data = self.volume.read_locked(&guard, range).await?;
        drop(guard);
        let squeezing = move || squeeze(data, Level::Usual);
        let payload = if range.len < POOL_BYTES_MIN as u64 { squeezing() } else { self.world.offload(squeezing).await };
        self.fence.check()?;
        Ok(Answer::Data(payload))
    }

    async fn done(&self, guard: LockGuard, fua: bool) -> Result<Answer, IoError> {
        drop(guard);
        if fua {
            self.volume.flush(&*self.fence).await?;
        }
        self.fence.check()?;
        Ok(Answer::Done)
    }

    /// These blocks stay at the sender if this side takes over.
    async fn mark_remote(
        self: Rc<Self>,
        ticket: LockTicket,
        range: ByteRange,
        masks: Box<RegionMasks>,
    ) -> Result<Answer, IoError> {
        let guard = ticket.await;
        // Not what the volume has grown by since the place was taken.
        let extents = range.by_extent().map(|(extent, _)| extent);
        for (extent, mask) in extents.zip(*masks).filter(|(_, mask)| *mask != 0) {
            self.volume.mark_remote_locked(&guard, &*self.fence, extent, BlockMask(mask)).await?;
        }
        self.done(guard, false).await
    }

    /// Under the lock the content is only read: who comes after it in the stream waits for one extent's read.
    async fn digests(self: Rc<Self>, ticket: LockTicket, extent: ExtentIndex) -> Result<Answer, IoError> {
        let guard = ticket.await;
        self.fence.check()?;
        if !self.volume.remote_mask(extent).is_empty() {
            return Ok(Answer::Digests(self.unlike_any(extent)));
        }
        let content = self.volume.extent_content_locked(&guard, extent).await?;
        drop(guard);
        let (held, has_data) = (content.held(), content.has_data());
        let hash = move || content.digests();
        let digests = if has_data { self.world.offload(hash).await } else { hash() };
        let blocks = digests.blocks.iter().map(|digest| digest[..16].try_into().expect("a prefix")).collect();
        Ok(Answer::Digests(ExtentDigests { extent: digests.extent, blocks, held }))
    }

    async fn status(self: Rc<Self>, ticket: LockTicket, range: ByteRange) -> Result<Answer, IoError> {
        let guard = ticket.await;
        self.fence.check()?;
        let runs = self.volume.block_status(range.offset, range.len, STATUS_RUNS_MAX)?;
        drop(guard);
        Ok(Answer::Status(
            runs.into_iter().map(|(len, status)| StatusRun { len, hole: status.hole, zero: status.zero }).collect(),
        ))
    }

    async fn flush(self: Rc<Self>, sequence: u64, note: Bytes) -> Result<Answer, IoError> {
        self.ended_before(sequence).await;
        self.fence.check()?;
        if self.volume.note() != note {
            self.volume.set_note(note);
        }
        self.volume.flush(&*self.fence).await?;
        self.fence.check()?;
        let mut state = self.state.borrow_mut();
        state.durable = state.durable.max(sequence);
        Ok(Answer::Done)
    }

    /// Waits until no operation with a smaller sequence runs.
    async fn ended_before(&self, sequence: u64) {
        loop {
            let ended = self.ended.notified();
            if self.state.borrow().running.first().is_none_or(|first| *first >= sequence) {
                return;
            }
            ended.await;
        }
    }
}

fn refuse(error: IoError) -> LocalFuture<'static, Result<Answer, IoError>> {
    Box::pin(std::future::ready(Err(error)))
}
