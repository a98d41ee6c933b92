//! Forwards the I/O of this node's exports of a volume to the node that holds it.
//!
//! ```text
//!  router ──► attempt ──► link up? ──no──► find the holder, connect, replay if it says so
//!                 │ yes                         (nothing new is sent before all of the log is there again, durably)
//!                 └──► request ──► answer: a mutation that is not durable enters the log, then the client is told
//! ```
//! Invariants
//! - An acknowledged mutation that was not durable is in the log until a flush that was sent after its acknowledgement
//!   has succeeded, or the holder said that all of its term is durable (`writers`).
//! - The holder judges the log whenever a connection begins. Where it went on without what is in there, every export
//!   that was open then fails: its clients were promised what is lost.
//! - An answer counts only while the connection it came by is the current one: a mutation whose answer came by an
//!   older one is sent again, since it is not in what was replayed.
//! - Mutations that overlap are sent one after the other, so the log's order is the order of application.
//! - A read waits for mutations under way of what it reads: it never shows what a restart of the holder could still
//!   take back until the mutation is sent again.
//! - A mutation that was sent and not answered may have been applied, and seen and flushed by others: nothing older is
//!   replayed over it.
//! - A mutation that is given up takes its connection with it: the holder fences it before the session goes on.
//! - While this node holds the volume and the other side may take over, its own clients' mutations are kept the same way:
//!   the log then belongs to this node's instance, and is replayed where the volume went on without being handed over.
//! - The log is bounded; a mutation that has no room waits for a flush. Reads are never kept.

use crate::backoff::Backoff;
use crate::context::Context;
use crate::overlap::Changing;
use crate::peer_client::{ConnectError, Introduction, PeerClient};
use crate::replay_log::{Mutation, ReplayLog};
use crate::seat::Seat;
use crate::writers::Way;
use bytes::Bytes;
use drover_base::limits::{HOLD_DEADLINE, REPLAY_LOG_BYTES_MAX};
use drover_base::planted::{Bug, is_planted};
use drover_base::{ByteRange, Epoch, InstanceId, IoError, NodeId, VolumeId, error::Remedy};
use drover_store::Fence;
use drover_wire::admin::{Grant, NodeAddress};
use drover_wire::peer::{Answer, LogVerdict, Operation, Purpose};
use drover_wire::writer_record::Writer;
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};
use tokio::sync::Notify;

/// Mutations replayed at once.
const REPLAY_BATCH: usize = 64;

/// A flush begins by itself when the log is this full, so that writers seldom wait for one.
const FLUSH_EARLY_BYTES: u64 = REPLAY_LOG_BYTES_MAX / 2;

/// A lost holder is looked for without a request asking for it: what is in the log is missing there for other clients
/// too, and they wait to hear that nothing is.
const RECONNECT_PERIOD: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// For how long, where the log is empty: a holder that stays away for longer than any request waits is not waited for.
const RECONNECT_EMPTY_MAX: Duration = HOLD_DEADLINE;

/// How often a silent holder is looked at, and for how long it may be silent before the control plane is asked whether
/// the volume is elsewhere by now.
const LOOK_PERIOD: Duration = Duration::from_millis(500);
const SILENCE_MAX: Duration = Duration::from_secs(2);

const FLUSH: Operation = Operation::Flush { note: Bytes::new() };

struct Link {
    client: Rc<PeerClient>,
    epoch: Epoch,
}

/// Who is believed to hold the volume.
#[derive(Clone)]
struct Holder {
    epoch: Epoch,
    address: NodeAddress,
}

pub(crate) struct Gateway {
    context: Rc<Context>,
    volume: VolumeId,
    writer: Rc<Writer>,
    sequence: Rc<Cell<u64>>,
    link: RefCell<Option<Link>>,
    connecting: tokio::sync::Mutex<()>,
    holder: RefCell<Option<Holder>>,
    log: RefCell<ReplayLog>,
    /// What is in the log was acknowledged by this node's own volume, which holds it all.
    is_kept_here: Cell<bool>,
    /// How often what was in the log got lost.
    losses: Cell<u64>,
    /// Cost of mutations under way, which the log must have room for.
    coming_bytes: Cell<u64>,
    /// A mutation under way has ended.
    left: Notify,
    flushing: tokio::sync::Mutex<()>,
    flushing_early: Cell<bool>,
    changing: Rc<Changing>,
}

/// Room in the log, held for a mutation under way.
struct Room<'a> {
    gateway: &'a Gateway,
    cost_bytes: u64,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        let coming = &self.gateway.coming_bytes;
        coming.set(coming.get() - self.cost_bytes);
        self.gateway.left.notify_waiters();
    }
}

/// Closes the connection unless the mutation was answered: applied later, it would undo what was written since.
struct GivenUp<'a>(Option<&'a PeerClient>);

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        if let Some(client) = self.0 {
            client.close();
        }
    }
}

/// A mutation under way, until it is known what became of it.
struct Doubt<'a> {
    gateway: &'a Gateway,
    mutation: Option<&'a Mutation>,
}

impl<'a> Doubt<'a> {
    fn about(gateway: &'a Gateway, mutation: &'a Mutation) -> Self {
        Self { gateway, mutation: Some(mutation) }
    }

    /// What an answer leaves of it: an error after which nothing is asked again is known, unless it is that of a client
    /// that has stopped waiting.
    fn answered<T>(mut self, answer: Result<T, IoError>) -> Result<T, IoError> {
        let is_unknown = |error: &IoError| error.remedy() == Remedy::Retry || *error == IoError::TimedOut;
        if !answer.as_ref().err().is_some_and(is_unknown) {
            self.mutation = None;
        }
        answer
    }
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if let Some(mutation) = self.mutation.filter(|_| !is_planted(Bug::DoubtForgotten)) {
            self.gateway.log.borrow_mut().doubt(mutation);
        }
    }
}

impl Gateway {
    pub fn new(context: Rc<Context>, volume: VolumeId, writer: Rc<Writer>) -> Rc<Self> {
        Rc::new(Self {
            context,
            volume,
            writer,
            sequence: Rc::default(),
            link: RefCell::default(),
            connecting: tokio::sync::Mutex::new(()),
            holder: RefCell::default(),
            log: RefCell::default(),
            is_kept_here: Cell::new(false),
            losses: Cell::new(0),
            coming_bytes: Cell::new(0),
            left: Notify::new(),
            flushing: tokio::sync::Mutex::new(()),
            flushing_early: Cell::new(false),
            changing: Rc::default(),
        })
    }

    /// One try at a request of a client. An error whose remedy is `Retry` means: ask again, perhaps elsewhere.
    /// Dropping the future gives the request up.
    pub async fn attempt(self: &Rc<Self>, operation: &Operation) -> Result<Answer, IoError> {
        match mutation(operation) {
            Some((mutation, durable)) => self.mutate(operation, mutation, durable).await,
            None if matches!(operation, Operation::Flush { .. }) => self.flush().await.map(|()| Answer::Done),
            None => {
                if let Operation::Read { range } = operation {
                    self.settled(*range).await;
                }
                self.exchange(operation).await.map(|(answer, _)| answer)
            }
        }
    }

    /// Waits for mutations under way of what is to be read.
    pub async fn settled(&self, range: ByteRange) {
        self.changing.settled(range).await;
    }

    /// The volume is served by this node itself from now on. What is in the log is replayed there first, if it may be
    /// missing there: after a flip it is not.
    pub fn became_local(&self) {
        self.close();
        self.holder.take();
    }

    /// Another node holds the volume from now on: clients that waited for that need not wait for a look-up, too.
    /// `has_all`: it was handed all that was acknowledged here.
    pub fn became_remote(self: &Rc<Self>, grant: &Grant, has_all: bool) {
        let holder = Holder { epoch: grant.epoch, address: grant.holder.clone() };
        *self.holder.borrow_mut() = Some(holder);
        if has_all {
            self.forget_kept();
        } else if self.is_kept_here.take() && self.owes_replay() {
            // Others wait for it.
            let gateway = self.clone();
            self.context.world.spawn(async move { gateway.reconnect().await }).detach();
        }
    }

    /// What was acknowledged by this node's own volume will not be missing anywhere, or its loss was told.
    pub fn forget_kept(&self) {
        if self.is_kept_here.take() {
            self.log.borrow_mut().clear();
        }
    }

    /// Whether this node's own volume must be given the log before it serves this gateway's clients.
    pub fn owes_replay(&self) -> bool {
        !self.is_kept_here.get() && !self.log.borrow().is_empty()
    }

    /// Carries out a request at this node's own volume. Where another node may take over from it, what is acknowledged
    /// and not durable there is kept, as if it had been sent there.
    pub async fn attempt_here(
        self: &Rc<Self>,
        seat: &Rc<Seat>,
        operation: &Operation,
        fence: &dyn Fence,
    ) -> Result<Answer, IoError> {
        match mutation(operation) {
            Some((mutation, durable)) => {
                let _change = self.changing.begin(mutation.range()).await;
                let _room = self.room(mutation.cost_bytes(), async || self.flush_here(seat).await).await?;
                let doubt = Doubt::about(self, &mutation);
                let answer = doubt.answered(seat.perform(&self.writer, Way::Kept, fence, operation.clone()).await)?;
                // The last that could have taken over may be gone by now.
                if let Answer::Unflushed { term } = answer
                    && seat.may_be_superseded()
                {
                    let mut log = self.log.borrow_mut();
                    log.push(term, mutation, durable);
                    log.belongs_to(seat.instance());
                    drop(log);
                    self.is_kept_here.set(true);
                    let (gateway, seat) = (self.clone(), seat.clone());
                    self.flush_early(async move || gateway.flush_here(&seat).await);
                }
                Ok(Answer::Done)
            }
            None if matches!(operation, Operation::Flush { .. }) => self.flush_here(seat).await.map(|()| Answer::Done),
            None => {
                if let Operation::Read { range } = operation {
                    self.settled(*range).await;
                }
                seat.perform(&self.writer, Way::Kept, fence, operation.clone()).await
            }
        }
    }

    /// Makes what was written at this node's own volume durable, here and at the other side.
    async fn flush_here(&self, seat: &Rc<Seat>) -> Result<(), IoError> {
        let mark = self.log.borrow().mark();
        seat.flush(&*seat.lease()).await?;
        if self.is_kept_here.get() {
            self.log.borrow_mut().release(mark);
        }
        Ok(())
    }

    /// Replays the log into the volume of this node, which holds it now.
    pub async fn replay_here(&self, seat: &Rc<Seat>) -> Result<(), IoError> {
        let _one = self.connecting.lock().await;
        self.close();
        let Some(origin) = self.log.borrow().origin() else { return Ok(()) };
        let lease = seat.lease();
        match seat.greet(&self.writer, Some(origin)).await? {
            LogVerdict::Wanted => {
                let entries = self.log.borrow().newest();
                for batch in entries.chunks(REPLAY_BATCH) {
                    let performed =
                        batch.iter().map(|entry| seat.perform(&self.writer, Way::Replay, &*lease, entry.replay()));
                    for answer in futures::future::join_all(performed).await {
                        answer?;
                    }
                }
            }
            LogVerdict::Lost => self.lose(),
            LogVerdict::Applied | LogVerdict::Durable => {}
        }
        if seat.may_be_superseded() {
            // Who takes over has it, then, and need not ask for it again.
            seat.settled(&self.writer, &*lease).await?;
            seat.flush(&*lease).await?;
        }
        // From now on these clients go down with the volume's holder, or what they write is kept.
        self.log.borrow_mut().clear();
        Ok(())
    }

    /// Grows when acknowledged writes were lost.
    pub fn losses(&self) -> u64 {
        self.losses.get()
    }

    fn lose(&self) {
        self.log.borrow_mut().clear();
        self.losses.set(self.losses.get() + 1);
        let text =
            "the holder went on without what this gateway's clients were acknowledged: they have to connect again";
        self.context.control.event("writes_lost", Some(self.volume), text);
    }

    /// Breaks the connection; the next request connects again.
    pub fn close(&self) {
        if let Some(link) = self.link.take() {
            link.client.close();
        }
    }

    async fn mutate(
        self: &Rc<Self>,
        operation: &Operation,
        mutation: Mutation,
        durable: bool,
    ) -> Result<Answer, IoError> {
        let _change = self.changing.begin(mutation.range()).await;
        let _room = self.room(mutation.cost_bytes(), async || self.flush().await).await?;
        let (client, epoch) = self.connected().await?;
        let doubt = Doubt::about(self, &mutation);
        let answer = self.answered(&client, epoch, operation.clone()).await;
        let answer = doubt.answered(answer.and_then(|answer| self.still_current(&client).map(|()| answer)))?;
        if let Answer::Unflushed { term } = answer {
            self.log.borrow_mut().push(term, mutation, durable);
            let gateway = self.clone();
            self.flush_early(async move || gateway.flush().await);
        }
        Ok(Answer::Done)
    }

    /// Flushes until the log has room for a mutation, and holds the room.
    async fn room(&self, cost_bytes: u64, flush: impl AsyncFn() -> Result<(), IoError>) -> Result<Room<'_>, IoError> {
        let has_room = || self.log.borrow().has_room(self.coming_bytes.get() + cost_bytes);
        loop {
            let left = self.left.notified();
            if has_room() {
                break;
            }
            if self.log.borrow().is_empty() {
                // Those under way have taken it all; each gives it back, or puts into the log what can be flushed.
                left.await;
                continue;
            }
            let _one = self.flushing.lock().await;
            if !has_room() {
                flush().await?;
            }
        }
        self.coming_bytes.set(self.coming_bytes.get() + cost_bytes);
        Ok(Room { gateway: self, cost_bytes })
    }

    fn flush_early(self: &Rc<Self>, flush: impl AsyncFnOnce() -> Result<(), IoError> + 'static) {
        if self.log.borrow().bytes() < FLUSH_EARLY_BYTES || self.flushing_early.replace(true) {
            return;
        }
        let gateway = self.clone();
        let flush = async move {
            // A flush that fails leaves the log as it is; the client's own flush will tell the client.
            let _ = flush().await;
            gateway.flushing_early.set(false);
        };
        self.context.world.spawn(flush).detach();
    }

    async fn flush(self: &Rc<Self>) -> Result<(), IoError> {
        // Taken once the link is up, right before the request is sent: what is in the log then was acknowledged by
        // the instance that is asked to flush.
        let (client, epoch) = self.connected().await?;
        let mark = self.log.borrow().mark();
        self.answered(&client, epoch, FLUSH).await?;
        self.still_current(&client)?;
        self.log.borrow_mut().release(mark);
        Ok(())
    }

    async fn exchange(self: &Rc<Self>, operation: &Operation) -> Result<(Answer, Rc<PeerClient>), IoError> {
        let (client, epoch) = self.connected().await?;
        let answer = self.answered(&client, epoch, operation.clone()).await?;
        if let Answer::Data(data) = &answer
            && data.is_compressed()
        {
            client.close();
            return Err(IoError::Disconnected);
        }
        Ok((answer, client))
    }

    async fn answered(&self, client: &PeerClient, epoch: Epoch, operation: Operation) -> Result<Answer, IoError> {
        // A read that is given up harms nobody.
        let mut given_up = GivenUp(mutation(&operation).is_some().then_some(client));
        let answer = client.request(epoch, operation).await;
        given_up.0 = None;
        match answer {
            Err(IoError::Moved { epoch, holder, flushed }) => {
                self.moved(client.instance(), epoch, &holder, flushed);
                self.leave(client);
                Err(IoError::Moved { epoch, holder, flushed })
            }
            Err(error) if error.remedy() == Remedy::Retry => {
                // Its lease may have run out because it is cut off, and another may hold by now: ask who.
                self.holder.take();
                self.leave(client);
                Err(error)
            }
            other => other,
        }
    }

    fn still_current(&self, client: &PeerClient) -> Result<(), IoError> {
        let link = self.link.borrow();
        let current = link.as_ref().is_some_and(|link| std::ptr::eq(&*link.client, client) && !client.is_broken());
        if current { Ok(()) } else { Err(IoError::Disconnected) }
    }

    /// Another node holds the volume since `epoch`. `instance` says so, and what it acknowledged is durable there if
    /// `flushed`.
    fn moved(&self, instance: InstanceId, epoch: Epoch, holder: &NodeId, flushed: bool) {
        let mut log = self.log.borrow_mut();
        if flushed && log.origin().is_some_and(|origin| origin.instance == instance) {
            log.clear();
        }
        let known = self.context.control.known_grant(self.volume);
        *self.holder.borrow_mut() = known
            .filter(|grant| grant.epoch >= epoch && grant.holder.node == *holder && !self.context.is_me(holder))
            .map(|grant| Holder { epoch: grant.epoch, address: grant.holder });
    }

    /// Gives up the connection, if it is still the current one.
    fn leave(&self, client: &PeerClient) {
        client.close();
        let current = self.link.borrow().as_ref().is_some_and(|link| std::ptr::eq(&*link.client, client));
        if current {
            self.link.take();
        }
    }

    fn live_link(&self) -> Option<(Rc<PeerClient>, Epoch)> {
        let link = self.link.borrow();
        link.as_ref().filter(|link| !link.client.is_broken()).map(|link| (link.client.clone(), link.epoch))
    }

    /// The connection to the holder, which has all of the log.
    async fn connected(self: &Rc<Self>) -> Result<(Rc<PeerClient>, Epoch), IoError> {
        if let Some(link) = self.live_link() {
            return Ok(link);
        }
        let _one = self.connecting.lock().await;
        if let Some(link) = self.live_link() {
            return Ok(link);
        }
        self.close();
        let holder = self.find_holder().await?;
        let log = self.log.borrow().origin();
        let to = Introduction {
            address: &holder.address.peer,
            volume: self.volume,
            purpose: Purpose::Gateway { log },
            session: self.writer.session,
            epoch: holder.epoch,
            sequence: self.sequence.clone(),
        };
        let client = PeerClient::connect(&self.context, to).await.map_err(|error| self.no_connection(error))?;
        let epoch = client.welcome().epoch;
        match client.welcome().log {
            LogVerdict::Wanted => self.replay(&client, epoch).await?,
            LogVerdict::Durable => self.log.borrow_mut().clear(),
            LogVerdict::Lost => self.lose(),
            LogVerdict::Applied => {}
        }
        self.log.borrow_mut().belongs_to(client.instance());
        *self.link.borrow_mut() = Some(Link { client: client.clone(), epoch });
        self.watch(&client, epoch);
        Ok((client, epoch))
    }

    fn no_connection(&self, error: ConnectError) -> IoError {
        tracing::debug!(target: "drover::gateway", volume = %self.volume, %error, "no connection to the holder");
        // Whoever was believed to hold it is asked for again.
        self.holder.take();
        match error {
            ConnectError::Unreachable { .. } => IoError::Disconnected,
            ConnectError::Refused { instance, error, .. } => {
                if let IoError::Moved { epoch, holder, flushed } = &error {
                    self.moved(instance, *epoch, holder, *flushed);
                }
                error
            }
        }
    }

    async fn find_holder(&self) -> Result<Holder, IoError> {
        if let Some(holder) = self.holder.borrow().clone() {
            return Ok(holder);
        }
        let grant = self.context.control.lookup(self.volume).await.ok_or(IoError::Disconnected)?;
        if self.context.is_me(&grant.holder.node) {
            // The grant itself is on its way to this node.
            return Err(IoError::Fenced { epoch: grant.epoch });
        }
        let holder = Holder { epoch: grant.epoch, address: grant.holder };
        *self.holder.borrow_mut() = Some(holder.clone());
        Ok(holder)
    }

    /// Brings all of the log to the holder, durably.
    async fn replay(&self, client: &Rc<PeerClient>, epoch: Epoch) -> Result<(), IoError> {
        if is_planted(Bug::ReplayForgotten) {
            self.log.borrow_mut().clear();
        }
        let entries = self.log.borrow().newest();
        tracing::info!(target: "drover::gateway", volume = %self.volume, entries = entries.len(),
            instance = %client.instance(), "the holder's instance changed: unflushed writes are replayed");
        for batch in entries.chunks(REPLAY_BATCH) {
            let sent = batch.iter().map(|entry| self.answered(client, epoch, entry.replay()));
            for answer in futures::future::join_all(sent).await {
                answer?;
            }
        }
        // It also tells that the replay is done.
        self.answered(client, epoch, FLUSH).await?;
        self.log.borrow_mut().clear();
        Ok(())
    }

    /// A holder that was stopped or cut off keeps its connections: when it owes answers and is silent, and the volume
    /// is held elsewhere by now, the connection is given up.
    fn watch(self: &Rc<Self>, client: &Rc<PeerClient>, epoch: Epoch) {
        let (gateway, client) = (Rc::downgrade(self), Rc::downgrade(client));
        let world = self.context.world.clone();
        let look = async move {
            loop {
                world.sleep(LOOK_PERIOD).await;
                let Some(gateway) = gateway.upgrade() else { return };
                let Some(client) = client.upgrade().filter(|client| !client.is_broken()) else {
                    return gateway.reconnect().await;
                };
                let silent = client.silent_since().map(|since| world.now().since(since));
                if silent.is_none_or(|silence| silence < SILENCE_MAX) {
                    continue;
                }
                if gateway.context.control.lookup(gateway.volume).await.is_some_and(|grant| grant.epoch > epoch) {
                    client.close();
                }
            }
        };
        self.context.world.spawn(look).detach();
    }

    async fn reconnect(self: &Rc<Self>) {
        let mut backoff = Backoff::new(RECONNECT_PERIOD.0, RECONNECT_PERIOD.1);
        let until = self.context.world.now() + RECONNECT_EMPTY_MAX;
        let is_needed = || self.owes_replay() || self.context.world.now() < until;
        while self.live_link().is_none() && is_needed() {
            // A connection that is made watches itself.
            let _ = self.connected().await;
            backoff.wait(&self.context.world).await;
        }
    }
}

/// What the operation changes, and whether it is durable once answered.
fn mutation(operation: &Operation) -> Option<(Mutation, bool)> {
    match operation {
        Operation::Write { offset, data, fua, .. } => {
            Some((Mutation::Write { offset: *offset, data: data.bytes.clone() }, *fua))
        }
        Operation::Zero { range, may_unmap, fua, .. } => {
            Some((Mutation::Zero { range: *range, may_unmap: *may_unmap }, *fua))
        }
        Operation::Trim { range, fua, .. } => Some((Mutation::Trim { range: *range }, *fua)),
        _ => None,
    }
}
