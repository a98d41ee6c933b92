//! Where a client's request of an exported volume goes: to this node's own volume, or to the node that holds it.
//!
//! ```text
//!   fast: this node holds the volume, its lease is valid, nothing is going on ──► the volume, nothing copied
//!   else: run ──► attempt: own volume, or gateway ──► `Retry` ──► wait a little, or for a change ──► attempt …
//! ```
//! Invariants
//! - A request is answered by an error only if its remedy is not to try again, or after `HOLD_DEADLINE`; then at the
//!   latest, also where it waits for a mirror and for the control plane. What the volume had begun to apply by then ends
//!   under its locks; what it had not never comes after what its client writes later.
//! - A write's data is kept until it is answered, unless nothing can fence it: an untimed lease without a leg. Where the
//!   other side may take over, it is kept until it is durable there (`gateway`).
//! - After a loss of what was acknowledged and not flushed here, the next flush of each connection fails. An export that
//!   was open when its gateway lost such writes fails every request from then on.
//! - Before this node's own volume serves an export, it has what the export's gateway still had to replay, and what
//!   the gateway of another node had (`writers`).

use crate::backoff::Backoff;
use crate::context::Context;
use crate::gateway::Gateway;
use crate::lease::LeaseGuard;
use crate::limiter::{Client, Limiter};
use crate::nbd::{BlockExport, BlockStatus, ExportFacts, ZeroRequest};
use crate::peer_server::cost;
use crate::seat::Seat;
use crate::writers::{Pass, Way};
use drover_base::error::Remedy;
use drover_base::limits::HOLD_DEADLINE;
use drover_base::planted::{Bug, is_planted};
use drover_base::{ByteRange, Instant, IoError, LocalFuture, SessionId, VolumeId};
use drover_disk::Buffer;
use drover_store::{Fence, ZeroMode};
use drover_wire::admin::Grant;
use drover_wire::peer::{Answer, Operation, Payload};
use drover_wire::writer_record::Writer;
use futures::future::select;
use std::{
    cell::{Cell, OnceCell, RefCell},
    pin::pin,
    rc::Rc,
};

/// This node's own seat, and the lease under which it serves.
type Local = (Rc<Seat>, Rc<LeaseGuard>);

/// The way to one volume, shared by its exports on this node.
pub(crate) struct Route {
    context: Rc<Context>,
    volume: VolumeId,
    seat: RefCell<Option<Rc<Seat>>>,
    gateway: OnceCell<Rc<Gateway>>,
    /// How often what clients here had not flushed may have been lost while they stayed connected.
    losses: Cell<u64>,
    /// The clients of this node, to whoever holds the volume.
    writer: Rc<Writer>,
    /// Connections that it has had, which are numbered.
    connections: Cell<u64>,
}

impl Route {
    pub fn new(context: Rc<Context>, volume: VolumeId, seat: Option<Rc<Seat>>) -> Rc<Self> {
        let session = SessionId(context.world.random.next_u64());
        let writer = Writer { session, node: context.address.node.clone(), instance: context.instance };
        let (seat, gateway, writer) = (RefCell::new(seat), OnceCell::new(), Rc::new(writer));
        let (losses, connections) = (Cell::new(0), Cell::new(0));
        Rc::new(Self { context, volume, seat, gateway, losses, writer, connections })
    }

    pub fn writer(&self) -> &Rc<Writer> {
        &self.writer
    }

    /// The volume came to this node, or left it.
    pub fn set_seat(&self, seat: Option<Rc<Seat>>) {
        *self.seat.borrow_mut() = seat;
    }

    /// This node's own volume is being opened again: what was not flushed may be lost.
    pub fn lost_unflushed(&self) {
        self.losses.set(self.losses.get() + 1);
        self.forget_kept();
    }

    /// No other node can take over from this one any more, or the clients are told what they lost.
    pub fn forget_kept(&self) {
        if let Some(gateway) = self.gateway.get() {
            gateway.forget_kept();
        }
    }

    /// This node holds the volume from now on. What is in the gateway's log is replayed at once: others wait for it.
    pub fn became_local(self: &Rc<Self>) {
        let Some(gateway) = self.gateway.get() else { return };
        gateway.became_local();
        if gateway.owes_replay() {
            let route = self.clone();
            // A flush that fails: the next request replays.
            self.context.world.spawn(async move { drop(route.run(FLUSH, None).await) }).detach();
        }
    }

    /// Whether there are writes that this node's clients were acknowledged and the volume may lack.
    pub fn owes_replay(&self) -> bool {
        self.gateway.get().is_some_and(|gateway| gateway.owes_replay())
    }

    /// Grows when acknowledged writes were lost.
    fn gateway_losses(&self) -> u64 {
        self.gateway.get().map_or(0, |gateway| gateway.losses())
    }

    /// Another node holds the volume from now on, as the control plane told this one. `has_all`: this node held it, and
    /// handed over all that it had acknowledged.
    pub fn became_remote(&self, grant: &Grant, has_all: bool) {
        self.gateway().became_remote(grant, has_all);
    }

    fn gateway(&self) -> &Rc<Gateway> {
        self.gateway.get_or_init(|| Gateway::new(self.context.clone(), self.volume, self.writer.clone()))
    }

    /// This node's own seat if requests may go there right now.
    fn local(&self) -> Option<Local> {
        let seat = self.seat.borrow().clone()?;
        let lease = seat.lease();
        let may_serve = lease.is_valid() || is_planted(Bug::EpochNotChecked) && seat.is_holder();
        let is_quiet = !seat.is_quiescing() && !self.owes_replay() && seat.writers.is_settled();
        (may_serve && is_quiet).then_some((seat, lease))
    }

    /// Waits for changes under way that a read must not show yet.
    async fn settled(&self, seat: &Seat, range: ByteRange) {
        if seat.may_be_superseded()
            && let Some(gateway) = self.gateway.get()
        {
            gateway.settled(range).await;
        }
    }

    /// Whether this node holds the volume.
    fn is_here(&self) -> bool {
        self.seat.borrow().as_ref().is_some_and(|seat| seat.is_holder() && seat.lease().is_valid())
    }

    /// Where requests wait now for the volume's limits: at its holder.
    fn limiter(&self) -> Option<Rc<Limiter>> {
        let seat = self.seat.borrow();
        let seat = seat.as_ref().filter(|seat| seat.limiter.is_on() && seat.is_holder())?;
        Some(seat.limiter.clone())
    }

    /// Carries out a request wherever the volume is, for as long as it takes up to the deadline. `client`: who has yet to
    /// wait for the volume's limits, if it is here; the deadline begins after that.
    pub async fn run(&self, operation: Operation, mut client: Option<Client>) -> Result<Answer, IoError> {
        let mut deadline = self.context.world.now() + HOLD_DEADLINE;
        let mut backoff = Backoff::of_requests();
        let mut was_sent_on = false;
        loop {
            if let (Some(of), Some(bytes), Some(limiter)) = (client, cost(&operation), self.limiter()) {
                limiter.admit(of, bytes).await;
                (client, deadline) = (None, self.context.world.now() + HOLD_DEADLINE);
            }
            match self.attempt(&operation, deadline).await {
                Err(error) if error.remedy() == Remedy::Retry => {
                    tracing::trace!(target: "drover::router", volume = %self.volume, %error, "tried again");
                    // It moved, here or to where the error says: no need to wait for that.
                    let is_known = matches!(error, IoError::Moved { .. }) || self.is_here();
                    if is_known && !std::mem::replace(&mut was_sent_on, true) {
                        continue;
                    }
                }
                done => return done,
            }
            if self.context.world.now() >= deadline {
                return Err(IoError::TimedOut);
            }
            self.wait(&mut backoff).await;
        }
    }

    /// Until something changed here, or a little while.
    async fn wait(&self, backoff: &mut Backoff) {
        let seat = self.seat.borrow().clone();
        let pause = backoff.wait(&self.context.world);
        match &seat {
            Some(seat) => {
                select(pin!(seat.changed()), pin!(pause)).await;
            }
            None => pause.await,
        }
    }

    async fn attempt(&self, operation: &Operation, deadline: Instant) -> Result<Answer, IoError> {
        let world = &self.context.world;
        let held = || self.seat.borrow().clone().filter(|seat| seat.is_holder());
        if let Some(seat) = held().filter(|seat| seat.is_quiescing()) {
            world.timeout_at(deadline, seat.admitted()).await.map_err(|_| IoError::TimedOut)?;
        }
        // After a flip that it waited for, another node may hold the volume.
        if let Some(seat) = held() {
            return self.attempt_here(&seat, operation, deadline).await.map_err(|error| seat.told(error));
        }
        world.timeout_at(deadline, self.gateway().attempt(operation)).await.unwrap_or(Err(IoError::TimedOut))
    }

    /// At this node's own volume.
    async fn attempt_here(&self, seat: &Rc<Seat>, operation: &Operation, deadline: Instant) -> Result<Answer, IoError> {
        if let Some(gateway) = self.gateway.get().filter(|gateway| gateway.owes_replay()) {
            let (gateway, seat) = (gateway.clone(), seat.clone());
            let replay = Box::pin(async move { gateway.replay_here(&seat).await });
            self.see_through(replay, deadline, || true).await?;
        }
        let patience = Rc::new(Patience::new(seat.lease()));
        let (held, of, operation) = (seat.clone(), patience.clone(), operation.clone());
        let keeper = (seat.may_be_superseded() && !is_planted(Bug::OwnWritesNotKept)).then(|| self.gateway().clone());
        let writer = self.writer.clone();
        let work = Box::pin(async move {
            held.settled(&writer, &*of).await?;
            match keeper {
                Some(gateway) => gateway.attempt_here(&held, &operation, &*of).await,
                None => held.perform(&writer, Way::Local, &*of, operation).await,
            }
        });
        self.see_through(work, deadline, || patience.give_up()).await
    }

    /// Waits for `work` until the deadline. If it must then come to its end, it does so by itself: dropped halfway, it
    /// would let go of what orders it before later requests.
    async fn see_through<T: 'static>(
        &self,
        mut work: LocalFuture<'static, Result<T, IoError>>,
        deadline: Instant,
        must_end: impl FnOnce() -> bool,
    ) -> Result<T, IoError> {
        let world = &self.context.world;
        match world.timeout_at(deadline, &mut work).await {
            Ok(done) => done,
            Err(_) => {
                if must_end() {
                    world.spawn(async move { drop(work.await) }).detach();
                }
                Err(IoError::TimedOut)
            }
        }
    }
}

/// The fence of a request whose client waits only so long. Given up before it was applied, it never is: it might come
/// after what its client writes later. Given up after that, it ends under its locks.
struct Patience {
    lease: Rc<LeaseGuard>,
    has_passed: Cell<bool>,
    is_given_up: Cell<bool>,
}

impl Patience {
    fn new(lease: Rc<LeaseGuard>) -> Self {
        Self { lease, has_passed: Cell::new(false), is_given_up: Cell::new(false) }
    }

    /// Whether the request was let through before.
    fn give_up(&self) -> bool {
        self.is_given_up.set(!is_planted(Bug::AppliedAfterGivenUp));
        self.has_passed.get() || is_planted(Bug::AppliedAfterGivenUp)
    }
}

impl Fence for Patience {
    fn check(&self) -> Result<(), IoError> {
        if self.is_given_up.get() {
            return Err(IoError::TimedOut);
        }
        self.lease.check()?;
        self.has_passed.set(true);
        Ok(())
    }
}

/// An export as a connection of a client has it.
pub struct RoutedExport {
    route: Rc<Route>,
    facts: ExportFacts,
    /// Losses that this connection has been told of, or that were before it.
    told_losses: Cell<u64>,
    /// Losses of the gateway when this was opened.
    gateway_losses: u64,
    client: Client,
}

impl RoutedExport {
    pub(crate) fn new(route: Rc<Route>, facts: ExportFacts) -> Rc<Self> {
        let (told_losses, gateway_losses) = (Cell::new(route.losses.get()), route.gateway_losses());
        route.connections.set(route.connections.get() + 1);
        let client = Client::Here(route.connections.get());
        Rc::new(Self { route, facts, told_losses, gateway_losses, client })
    }

    /// Asked before a flush is answered. The volume's own I/O goes on once it was opened again, and whoever asked for
    /// nothing meanwhile has seen no error: so each connection gets one.
    fn nothing_lost(&self) -> Result<(), IoError> {
        let losses = self.route.losses.get();
        if self.told_losses.replace(losses) == losses { Ok(()) } else { Err(IoError::Poisoned) }
    }

    /// This node's own seat if requests may go there right now.
    fn local(&self) -> Result<Option<Local>, IoError> {
        self.is_whole().map(|()| self.route.local())
    }

    /// The same for a change that is admitted there and need not be kept; `None`: it has to go the long way.
    async fn enter(&self) -> Result<Option<(Rc<Seat>, Rc<LeaseGuard>, Pass)>, IoError> {
        let Some((seat, lease)) = self.local()?.filter(|(seat, _)| !seat.keeps_copies()) else { return Ok(None) };
        let pass = match seat.enter(&self.route.writer, Way::Local).await {
            Ok(pass) => pass,
            Err(error) if error.remedy() == Remedy::Retry => return Ok(None),
            Err(error) => return Err(error),
        };
        // It may have waited for others, and the volume may be about to move by now.
        let still = self.route.local().is_some_and(|(seat, now)| Rc::ptr_eq(&now, &lease) && !seat.keeps_copies());
        Ok(still.then_some((seat, lease, pass)))
    }

    /// Where the other side may have to take over, behind writes that wait for it: no longer than they do.
    async fn read_here(&self, seat: &Seat, lease: &LeaseGuard, range: ByteRange) -> Result<Buffer, IoError> {
        if !seat.keeps_copies() {
            return seat.read(lease, range.offset, range.len).await;
        }
        let read = async {
            self.route.settled(seat, range).await;
            seat.read(lease, range.offset, range.len).await
        };
        let world = &self.route.context.world;
        world.timeout(HOLD_DEADLINE, read).await.unwrap_or(Err(IoError::TimedOut))
    }

    /// Waits for the volume's limits, if it is here. Returns who has yet to: whoever it is elsewhere.
    async fn wait_for_limits(&self, bytes: u64) -> Option<Client> {
        let Some(limiter) = self.route.limiter() else { return Some(self.client) };
        limiter.admit(self.client, bytes).await;
        None
    }

    /// Carries out a request wherever the volume is.
    async fn run(&self, operation: Operation, client: Option<Client>) -> Result<Answer, IoError> {
        let answer = self.route.run(operation, client).await?;
        // It may have been found out on the way, and a flush would have told otherwise.
        self.is_whole()?;
        Ok(answer)
    }

    async fn change(&self, operation: Operation, client: Option<Client>) -> Result<(), IoError> {
        self.run(operation, client).await.map(|_| ())
    }

    /// Whether all that clients of this export were acknowledged is still there.
    fn is_whole(&self) -> Result<(), IoError> {
        if self.gateway_losses == self.route.gateway_losses() { Ok(()) } else { Err(IoError::WritesLost) }
    }
}

const FLUSH: Operation = Operation::Flush { note: bytes::Bytes::new() };

/// Whether the fast path's answer stands.
fn is_final<T>(result: &Result<T, IoError>) -> bool {
    result.as_ref().err().is_none_or(|error| error.remedy() != Remedy::Retry)
}

impl BlockExport for RoutedExport {
    fn facts(&self) -> ExportFacts {
        self.facts.clone()
    }

    fn read(self: Rc<Self>, offset: u64, len: u64) -> LocalFuture<'static, Result<Buffer, IoError>> {
        Box::pin(async move {
            let client = self.wait_for_limits(len).await;
            if let Some((seat, lease)) = self.local()? {
                let read = self.read_here(&seat, &lease, ByteRange { offset, len }).await;
                if is_final(&read) {
                    return read;
                }
            }
            match self.run(Operation::Read { range: ByteRange { offset, len } }, client).await? {
                Answer::Data(data) if data.bytes.len() as u64 == len => Ok(Buffer::from_slice(&data.bytes)),
                _ => Err(IoError::Corrupt),
            }
        })
    }

    fn write(self: Rc<Self>, offset: u64, data: Buffer, fua: bool) -> LocalFuture<'static, Result<(), IoError>> {
        Box::pin(async move {
            let client = self.wait_for_limits(data.len() as u64).await;
            if let Some((seat, lease, _pass)) = self.enter().await? {
                return seat.write(&*lease, offset, data, fua).await;
            }
            let data = Payload::plain(data.into_bytes());
            self.change(Operation::Write { offset, data, fua, replay: false }, client).await
        })
    }

    fn write_zeroes(
        self: Rc<Self>,
        offset: u64,
        len: u64,
        zero: ZeroRequest,
    ) -> LocalFuture<'static, Result<(), IoError>> {
        Box::pin(async move {
            let range = ByteRange { offset, len };
            let ZeroRequest { may_unmap, fast_only, fua } = zero;
            let client = self.wait_for_limits(0).await;
            if let Some((seat, lease, _pass)) = self.enter().await? {
                let zeroed = seat.write_zeroes(&*lease, range, ZeroMode { may_unmap, fast_only }, fua).await;
                if is_final(&zeroed) {
                    return zeroed;
                }
            }
            self.change(Operation::Zero { range, may_unmap, fast_only, fua, replay: false }, client).await
        })
    }

    fn trim(self: Rc<Self>, offset: u64, len: u64, fua: bool) -> LocalFuture<'static, Result<(), IoError>> {
        Box::pin(async move {
            let range = ByteRange { offset, len };
            let client = self.wait_for_limits(0).await;
            if let Some((seat, lease, _pass)) = self.enter().await? {
                let trimmed = seat.trim(&*lease, range, fua).await;
                if is_final(&trimmed) {
                    return trimmed;
                }
            }
            self.change(Operation::Trim { range, fua, replay: false }, client).await
        })
    }

    fn flush(self: Rc<Self>) -> LocalFuture<'static, Result<(), IoError>> {
        Box::pin(async move {
            if let Some((seat, lease)) = self.local()?.filter(|(seat, _)| !seat.keeps_copies()) {
                let flushed = seat.flush(&*lease).await;
                if is_final(&flushed) {
                    return flushed.and_then(|()| self.nothing_lost());
                }
            }
            self.change(FLUSH, None).await?;
            self.nothing_lost()
        })
    }

    /// Nothing is kept ahead of reads yet, so the hint changes nothing.
    fn cache(self: Rc<Self>, _offset: u64, _len: u64) -> LocalFuture<'static, Result<(), IoError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn block_status(
        self: Rc<Self>,
        offset: u64,
        len: u64,
        most: usize,
    ) -> LocalFuture<'static, Result<Vec<(u64, BlockStatus)>, IoError>> {
        Box::pin(async move {
            let range = ByteRange { offset, len };
            if let Some((seat, lease)) = self.local()? {
                let runs = seat.block_status(&*lease, range, most);
                if is_final(&runs) {
                    return runs;
                }
            }
            match self.run(Operation::BlockStatus { range }, None).await? {
                Answer::Status(runs) if !runs.is_empty() => {
                    let runs = runs.into_iter().take(most);
                    Ok(runs.map(|run| (run.len, BlockStatus { hole: run.hole, zero: run.zero })).collect())
                }
                _ => Err(IoError::Corrupt),
            }
        })
    }
}
