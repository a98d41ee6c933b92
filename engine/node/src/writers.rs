//! Who writes to a volume, so that what a gateway replays never lies over what others have written since.
//!
//! ```text
//!                 ┌── a gateway has been the only writer for `ALONE_MIN`; its name is durable ──┐
//!                 │                                                                             ▼
//!   nobody's term t: gateways' writes are durable                      one writer's term t+1: its gateway keeps
//!   before they are acknowledged, nothing is kept                      what is not flushed, for replay
//!                 ▲                                                                             │
//!                 └── another writes: writes drain, a flush bears the record of term t+2 ───────┘
//!
//!   after a restart (not settled): all but the writer wait ──► it has replayed and flushed, or owes nothing
//!                                                         └──► it stayed away for `WRITER_PATIENCE`, or came to no end
//!                                                              within `REPLAY_MAX`: term given up
//! ```
//! A writer is a node: all its clients write under one session, whether they are forwarded or the node holds the volume
//! itself. So a flip to or from the clients' own node changes nothing here.
//!
//! Invariants
//! - The record is the volume's note: it is durable, here and where the volume is mirrored to, with everything that
//!   was written in the terms before. A term is used only once its record is.
//! - Only the recorded writer is acknowledged anything that is neither durable nor lost with the node it wrote to.
//! - What is replayed is of the recorded term and comes before anybody's reads or new writes: of a gateway's log of an
//!   older term everything is durable or given up, and it is told which.
//! - Whether the writer's replay is still awaited is part of the note: a flip takes the waiting along.
//! - While a turn takes place no write is under way that it concerns; it counts as a client's request, so no flip
//!   drains beside it. A turn that failed leaves the record unknown: nobody writes before another turn has succeeded.

use crate::context::Context;
use crate::router::Route;
use crate::seat::Seat;
use drover_base::planted::{Bug, is_planted};
use drover_base::{Instant, IoError, SessionId};
use drover_store::Fence;
use drover_wire::peer::{Answer, LogOrigin, LogVerdict};
use drover_wire::writer_record::{Writer, WriterRecord};
use futures::channel::oneshot;
use std::{
    cell::{Cell, Ref, RefCell},
    rc::Rc,
    time::Duration,
};
use tokio::sync::Notify;

/// How long a gateway must have been the only one that writes before its writes need no flush each: a change back
/// drains and flushes for everybody, so it must be rare against the writes between.
const ALONE_MIN: Duration = Duration::from_secs(1);

/// How long the others wait for the recorded writer's replay after a restart: longer than a gateway takes to find a
/// holder that came back (a second), and well below `HOLD_DEADLINE`, so that those who wait see a pause only.
pub(crate) const WRITER_PATIENCE: Duration = Duration::from_secs(10);

/// How long they wait in all for one that comes again and again, and whose replay comes to no end: its network breaks,
/// or what it has finds no space any more.
pub(crate) const REPLAY_MAX: Duration = Duration::from_secs(3 * WRITER_PATIENCE.as_secs());

/// Who looks later than this after the time has run out is the first to look: the process stood still (stopped, suspended,
/// overloaded), or nobody waited. That is not the writer's absence.
const STANDSTILL: Duration = Duration::from_secs(1);

const _: () = assert!(REPLAY_MAX.as_secs() < drover_base::limits::HOLD_DEADLINE.as_secs());

/// How a change comes to the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From a client of this node, which holds the volume until it hands it over: the client goes down with what it was
    /// acknowledged.
    Local,
    /// Whoever has the change can replay it: a gateway, or this node, where another may take over from it.
    Kept,
    /// From a gateway, acknowledged by an instance that is gone.
    Replay,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    None,
    /// This writer's name is being recorded; the others wait.
    Naming(SessionId),
    /// Everybody waits.
    Closed,
}

/// Who is the only one to write in nobody's term, and since when; `None`: nobody else has written in this instance.
#[derive(Clone, Copy)]
struct Alone {
    session: SessionId,
    since: Option<Instant>,
}

pub(crate) struct Writers {
    record: RefCell<WriterRecord>,
    /// The record is durable.
    is_known: Cell<bool>,
    /// All that the recorded writer was acknowledged is here.
    settled: Cell<bool>,
    /// Since when others wait for it without a sign of it.
    waiting_since: Cell<Option<Instant>>,
    /// Since when they wait at all.
    waiting_from: Cell<Option<Instant>>,
    /// Changes under way.
    inside: Cell<usize>,
    /// Of them: not by the one who is alone.
    strangers: Cell<usize>,
    alone: Cell<Option<Alone>>,
    /// Grows when `alone` changes.
    shift: Cell<u64>,
    turn: Cell<Turn>,
    changed: Notify,
}

/// A change under way.
#[must_use = "the change counts as under way until this is dropped"]
pub(crate) struct Pass {
    writers: Rc<Writers>,
    shift: u64,
    way: Way,
    /// Of the gateway that keeps the change for replay.
    term: Option<u64>,
}

impl Pass {
    /// Whether the change must be durable before it is acknowledged.
    pub fn writes_through(&self) -> bool {
        self.way == Way::Kept && self.term.is_none()
    }

    pub fn answer(&self) -> Answer {
        self.term.map_or(Answer::Done, |term| Answer::Unflushed { term })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let writers = &self.writers;
        writers.inside.set(writers.inside.get() - 1);
        if self.shift != writers.shift.get() {
            writers.strangers.set(writers.strangers.get() - 1);
        }
        if writers.turn.get() != Turn::None {
            writers.changed.notify_waiters();
        }
    }
}

enum Admission {
    Passed(Pass),
    /// For a turn to end.
    Wait,
    /// A turn is needed first.
    Turn,
}

/// Ends the turn when dropped.
pub(crate) struct Turning(Rc<Writers>);

impl Drop for Turning {
    fn drop(&mut self) {
        self.0.turn.set(Turn::None);
        self.0.changed.notify_waiters();
    }
}

impl Writers {
    /// `owes`: the recorded writer may have been acknowledged what is not here.
    pub fn new(record: WriterRecord, owes: bool) -> Rc<Self> {
        Rc::new(Self {
            record: RefCell::new(record),
            is_known: Cell::new(true),
            settled: Cell::new(!owes),
            waiting_since: Cell::new(None),
            waiting_from: Cell::new(None),
            inside: Cell::new(0),
            strangers: Cell::new(0),
            alone: Cell::new(None),
            shift: Cell::new(0),
            turn: Cell::new(Turn::None),
            changed: Notify::new(),
        })
    }

    /// The volume was opened, or its lease taken, with this record as its durable note. No change is under way that
    /// will be acknowledged.
    pub fn load(&self, record: WriterRecord, owes: bool) {
        *self.record.borrow_mut() = record;
        self.is_known.set(true);
        self.settled.set(!owes);
        self.waiting_since.set(None);
        self.waiting_from.set(None);
        self.alone.set(None);
        self.shift.set(self.shift.get() + 1);
        self.strangers.set(self.inside.get());
        self.changed.notify_waiters();
    }

    pub fn record(&self) -> Ref<'_, WriterRecord> {
        self.record.borrow()
    }

    pub fn is_settled(&self) -> bool {
        self.settled.get()
    }

    fn is_named(&self, who: &Writer) -> bool {
        self.record.borrow().writer.as_ref().is_some_and(|writer| writer.session == who.session)
    }

    fn pass(self: &Rc<Self>, way: Way, term: Option<u64>) -> Admission {
        self.inside.set(self.inside.get() + 1);
        Admission::Passed(Pass { writers: self.clone(), shift: self.shift.get(), way, term })
    }

    fn admit(self: &Rc<Self>, who: &Writer, way: Way, now: impl FnOnce() -> Instant) -> Result<Admission, IoError> {
        match self.turn.get() {
            Turn::Naming(session) if session == who.session => {}
            Turn::None => {}
            Turn::Naming(_) | Turn::Closed => return Ok(Admission::Wait),
        }
        let (is_named, term) = (self.is_named(who), self.record.borrow().term);
        if way == Way::Replay {
            let is_wanted = is_named && self.is_known.get() && !self.settled.get();
            if !is_wanted && !is_planted(Bug::ReplayOverNewer) {
                return Err(IoError::Disconnected);
            }
            self.waiting_since.set(Some(now()));
            return Ok(self.pass(way, Some(term)));
        }
        if !self.is_known.get() {
            return Ok(Admission::Turn);
        }
        if is_named {
            return Ok(self.pass(way, (way == Way::Kept).then_some(term)));
        }
        if self.record.borrow().writer.is_some() {
            if is_planted(Bug::SecondWriterNotTold) {
                return Ok(self.pass(Way::Local, None));
            }
            return Ok(Admission::Turn);
        }
        if self.alone.get().is_none_or(|alone| alone.session != who.session) {
            let since = self.alone.get().map(|_| now());
            self.alone.set(Some(Alone { session: who.session, since }));
            self.shift.set(self.shift.get() + 1);
            self.strangers.set(self.inside.get());
        }
        Ok(self.pass(way, None))
    }

    /// Whether `who`, who is writing in nobody's term, has been the only one for long enough.
    fn may_be_named(&self, who: &Writer, now: impl FnOnce() -> Instant) -> bool {
        let is_alone = |alone: Alone| {
            alone.session == who.session && alone.since.is_none_or(|since| now().since(since) >= ALONE_MIN)
        };
        let is_nobodys = self.turn.get() == Turn::None && self.record.borrow().writer.is_none();
        is_nobodys && self.strangers.get() == 0 && self.alone.get().is_some_and(is_alone)
    }

    /// Completes when no turn takes place.
    async fn turned(&self) {
        loop {
            let changed = self.changed.notified();
            if self.turn.get() == Turn::None {
                return;
            }
            changed.await;
        }
    }

    /// Until the result is dropped nobody changes the volume, and its content counts as not being what the clients were
    /// told.
    pub async fn hold(self: &Rc<Self>) -> Turning {
        self.turned().await;
        self.turn.set(Turn::Closed);
        let turning = Turning(self.clone());
        self.settled.set(false);
        self.drained().await;
        turning
    }

    async fn drained(&self) {
        loop {
            let changed = self.changed.notified();
            if self.inside.get() == 0 {
                return;
            }
            changed.await;
        }
    }

    /// What becomes of a log.
    fn verdict(&self, who: &Writer, log: LogOrigin, instance: drover_base::InstanceId) -> LogVerdict {
        let record = self.record.borrow();
        if log.instance == instance {
            return LogVerdict::Applied;
        }
        if is_planted(Bug::ReplayOverNewer) {
            return LogVerdict::Wanted;
        }
        if log.term == record.term && self.is_named(who) {
            return if self.settled.get() { LogVerdict::Applied } else { LogVerdict::Wanted };
        }
        // A term that was never recorded is of a past that was undone: a restored checkpoint.
        match log.term < record.term && !record.is_lost(log.term) {
            true => LogVerdict::Durable,
            false => LogVerdict::Lost,
        }
    }
}

/// Whether the recorded writer may have been acknowledged what the volume lacks, if that was not here all the time: what
/// this node's own clients were, their route knows; and what those of an earlier start were is gone with it.
pub(crate) fn writer_may_owe(context: &Context, route: Option<&Route>, record: &WriterRecord) -> bool {
    let Some(writer) = &record.writer else { return false };
    if !context.is_me(&writer.node) {
        return true;
    }
    writer.instance == context.instance && route.is_some_and(|route| route.owes_replay())
}

impl Seat {
    /// This node holds the volume, with this record as the volume's note; see [`Writers::load`].
    pub fn load_writers(&self, record: WriterRecord, owes: bool) {
        self.writers.load(record, owes);
        self.note_owed(owes);
    }

    fn settle(&self) {
        self.note_owed(false);
        self.writers.waiting_from.set(None);
        self.writers.settled.set(true);
        self.writers.changed.notify_waiters();
    }

    /// Durable, here and where the volume is mirrored to, with the next flush: one comes before every flip.
    fn note_owed(&self, owed: bool) {
        let mut record = self.writers.record.borrow_mut();
        if record.owed != owed {
            record.owed = owed;
            self.volume.set_note(record.encode().into());
        }
    }

    /// Admits a change of the volume by `who`, who has waited for `settled`. `Disconnected`: that has to be waited for
    /// again, because the volume was opened again meanwhile.
    pub async fn enter(self: &Rc<Self>, who: &Rc<Writer>, way: Way) -> Result<Pass, IoError> {
        let now = || self.context.world.now();
        loop {
            let changed = self.writers.changed.notified();
            if way != Way::Replay && !self.writers.is_settled() && !self.volume.is_poisoned() {
                return Err(IoError::Disconnected);
            }
            match self.writers.admit(who, way, now)? {
                Admission::Wait => changed.await,
                Admission::Turn => self.turn(false).await?,
                Admission::Passed(pass) => {
                    if pass.writes_through() && self.writers.may_be_named(who, now) {
                        self.name(who);
                    }
                    return Ok(pass);
                }
            }
        }
    }

    /// Makes the node whose clients are the only ones that write the recorded writer: where the volume moves on, its
    /// writes need no flush each from the first on.
    pub fn name_if_alone(self: &Rc<Self>, who: &Rc<Writer>) {
        if self.writers.may_be_named(who, || self.context.world.now()) {
            self.name(who);
        }
    }

    /// Waits until the volume is as the clients were told: what the recorded writer was acknowledged is here, or it
    /// stayed away for too long. That `who` asks for anything but a replay says that its own is done.
    pub async fn settled(self: &Rc<Self>, who: &Writer, fence: &dyn Fence) -> Result<(), IoError> {
        let (writers, world) = (&self.writers, &self.context.world);
        loop {
            let changed = writers.changed.notified();
            if writers.is_settled() || is_planted(Bug::ReplayNotAwaited) {
                return Ok(());
            }
            if writers.turn.get() != Turn::None {
                changed.await;
                continue;
            }
            if writers.record().writer.is_none() || writers.is_named(who) {
                self.settle();
                return Ok(());
            }
            // Nobody is waited for while nobody could be served.
            fence.check()?;
            if self.volume.is_poisoned() {
                return Ok(());
            }
            let now = world.now();
            let since = writers.waiting_since.get().unwrap_or(now);
            writers.waiting_since.set(Some(since));
            let from = writers.waiting_from.get().unwrap_or(now);
            writers.waiting_from.set(Some(from));
            let until = (since + WRITER_PATIENCE).min(from + REPLAY_MAX);
            let late = now.since(until);
            if now < until {
                // Either way it is looked at again.
                let _ = world.timeout_at(until, changed).await;
            } else if late > STANDSTILL && !is_planted(Bug::StandstillCounts) {
                // Nobody looked when its time ran out, because nobody waited, or nothing ran here: what came meanwhile is
                // still to be read, its replay too.
                writers.waiting_since.set(Some(now));
                writers.waiting_from.set(Some(from + late + WRITER_PATIENCE));
            } else {
                self.turn(true).await?;
            }
        }
    }

    /// Waits until the volume has what was acknowledged to anybody, on behalf of nobody who writes.
    pub async fn whole(self: &Rc<Self>) -> Result<(), IoError> {
        let (session, node) = (SessionId(0), self.context.address.node.clone());
        self.settled(&Writer { session, node, instance: self.context.instance }, &*self.lease()).await
    }

    /// A gateway connects, with what is in its log; those before it of its session have drained.
    pub async fn greet(self: &Rc<Self>, who: &Writer, log: Option<LogOrigin>) -> Result<LogVerdict, IoError> {
        let writers = &self.writers;
        loop {
            writers.turned().await;
            if writers.is_known.get() {
                break;
            }
            self.turn(false).await?;
        }
        let verdict = log.map_or(LogVerdict::Applied, |log| writers.verdict(who, log, self.instance()));
        let has_died = |writer: &Writer| writer.node == who.node && writer.instance != who.instance;
        if verdict == LogVerdict::Wanted {
            writers.waiting_since.set(Some(self.context.world.now()));
        } else if writers.is_named(who) || writers.record().writer.as_ref().is_some_and(has_died) {
            self.settle();
        }
        Ok(verdict)
    }

    /// Ends the present term while `inside`, which flushes, changes the volume: nothing acknowledged before is replayed
    /// after it.
    pub async fn end_term<T, E>(&self, inside: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let writers = &self.writers;
        let _held = writers.hold().await;
        let next = writers.record().next(None);
        self.volume.set_note(next.encode().into());
        *writers.record.borrow_mut() = next;
        writers.is_known.set(false);
        let done = inside.await?;
        writers.is_known.set(true);
        self.settle();
        Ok(done)
    }

    /// Begins nobody's term. `gives_up`: the recorded writer is waited for no longer. Only while no turn takes place.
    async fn turn(self: &Rc<Self>, gives_up: bool) -> Result<(), IoError> {
        assert!(self.writers.turn.replace(Turn::Closed) == Turn::None, "turns take turns");
        let turning = Turning(self.writers.clone());
        let (seat, (tell, told)) = (self.clone(), oneshot::channel());
        // A task of its own: a caller that goes away must not leave the record half changed.
        let turn = async move {
            let result = seat.run_turn(gives_up).await;
            drop(turning);
            // The caller may have gone.
            let _ = tell.send(result);
        };
        self.context.world.spawn(turn).detach();
        told.await.unwrap_or(Err(IoError::Disconnected))
    }

    async fn run_turn(&self, gives_up: bool) -> Result<(), IoError> {
        let writers = &self.writers;
        if gives_up && let Some(writer) = &writers.record().writer {
            let session = writer.session;
            self.sessions.close(|key| key == crate::session::SessionKey::Gateway(session));
        }
        writers.drained().await;
        let _admitted = self.volume.admit().await;
        let lease = self.lease();
        lease.check()?;
        if gives_up && writers.is_settled() {
            return Ok(());
        }
        let next = if gives_up { writers.record().given_up() } else { writers.record().next(None) };
        let before = writers.record.replace(next.clone());
        if gives_up && let Some(writer) = &before.writer {
            let text = format!("{} stayed away or came to no end: what it did not flush is lost", writer.node);
            self.context.control.event("writes_lost", Some(self.id()), text);
        }
        writers.is_known.set(false);
        self.volume.set_note(next.encode().into());
        self.volume.flush(&*lease).await?;
        writers.is_known.set(true);
        // Whoever comes now has just been one of two.
        let session = before.writer.map_or(SessionId(0), |writer| writer.session);
        writers.alone.set(Some(Alone { session, since: Some(self.context.world.now()) }));
        self.settle();
        Ok(())
    }

    fn name(self: &Rc<Self>, who: &Rc<Writer>) {
        self.writers.turn.set(Turn::Naming(who.session));
        let (turning, seat, who) = (Turning(self.writers.clone()), self.clone(), who.clone());
        let naming = async move {
            if let Err(error) = seat.run_naming(&who).await {
                tracing::debug!(target: "drover::writers", volume = %seat.id(), %error, "the writer is not recorded");
            }
            drop(turning);
        };
        self.context.world.spawn(naming).detach();
    }

    /// Its own changes go on meanwhile, each made durable.
    async fn run_naming(&self, who: &Writer) -> Result<(), IoError> {
        let writers = &self.writers;
        let _admitted = self.volume.admit().await;
        let lease = self.lease();
        lease.check()?;
        if !writers.is_known.get() || writers.record().writer.is_some() {
            return Ok(());
        }
        let next = writers.record().next(Some(who.clone()));
        // Used up, whatever becomes of it.
        writers.record.borrow_mut().term = next.term;
        self.volume.set_note(next.encode().into());
        let flushed = self.volume.flush(&*lease).await;
        match &flushed {
            Ok(()) => *writers.record.borrow_mut() = next,
            Err(_) => writers.is_known.set(false),
        }
        flushed
    }
}
