//! The sending side of a migration or return mirror on a node: the sender as the volume's tap, and the connection to
//! the other side that is kept for it. After a flip that did not wait for all data, also who brings the rest over that
//! connection.
//!
//! ```text
//!   connect ──► link_up ──► broken, or silent for too long ──► link_down ──► wait ──► connect …
//!
//!   return mirror only:
//!   writes wait for the other side ──► CloseWayBack recorded ──► go alone ──► synced again ──► OpenWayBack ──► …
//! ```
//! Invariants
//! - After a flip no write is acknowledged that the other side lacks unless the control plane has durably recorded that
//!   the way back is closed. From the sending of `OpenWayBack` on the way back counts as open, whatever its outcome.
//! - Requests to change the way back are numbered, and what arrives late changes nothing: only the last that was sent
//!   counts.
//! - A connection that owes answers and is silent for `SILENCE_MAX` is broken: the other side may be stopped.

use crate::backoff::Backoff;
use crate::context::Context;
use crate::lease::{EpochFence, LeaseGuard};
use crate::peer_client::{Introduction, PeerClient};
use crate::seat::Seat;
use drover_base::limits::{LAYER_STRETCH_REGIONS, MIRRORED_BYTES_MAX, REMOTE_DEADLINE};
use drover_base::planted::{Bug, is_planted};
use drover_base::world::Task;
use drover_base::{
    Epoch, ExtentIndex, Generation, InstanceId, IoError, LocalFuture, MigrationId, RegionIndex, SessionId, VolumeId,
};
use drover_transfer::{Link, OnLinkLoss, Puller, PullerConfig, Ranking, Sender, SenderConfig, Start};
use drover_wire::admin::{NodeAddress, Position, Refusal, SendOptions, SendProgress};
use drover_wire::peer::{Answer, Operation, Purpose};
use drover_wire::seat_record::LegDirection;
use futures::future::{Either, select};
use std::{
    cell::{Cell, RefCell},
    pin::pin,
    rc::{Rc, Weak},
    time::Duration,
};
use tokio::sync::Notify;

/// How long the other side may owe an answer without a sign of life: longer than its slowest flush, shorter than the
/// patience of those whose writes wait for it.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// How long a broken link may be away before its absence is recorded, while clients wait.
const LINK_PATIENCE: Duration = Duration::from_secs(1);

/// How often that is looked at.
const LOOK_PERIOD: Duration = Duration::from_millis(500);

/// How often it is told, at most, that requests for what is at the other side have failed.
const TELL_PERIOD: Duration = Duration::from_secs(30);

/// What is sent where.
pub(crate) struct Leaving {
    pub migration: MigrationId,
    pub generation: Generation,
    pub direction: LegDirection,
    pub other: NodeAddress,
    pub options: SendOptions,
    pub start: Start,
}

/// A sender at work.
pub(crate) struct Outbound {
    context: Rc<Context>,
    seat: Weak<Seat>,
    volume: VolumeId,
    pub migration: MigrationId,
    pub generation: Generation,
    pub direction: LegDirection,
    pub epoch: Epoch,
    other: NodeAddress,
    pub sender: Rc<Sender>,
    session: SessionId,
    sequence: Rc<Cell<u64>>,
    /// The other side had everything when this began.
    is_whole: bool,
    client: RefCell<Option<Rc<PeerClient>>>,
    linked: Notify,
    connecting: RefCell<Option<Task>>,
    /// Of a return mirror: sees to what is recorded of the way back.
    watching: RefCell<Option<Task>>,
    /// Of a holder that does not have all of the volume.
    puller: RefCell<Option<Rc<Puller>>>,
    telling: RefCell<Option<Task>>,
}

impl Outbound {
    /// Makes the sender under the lease's epoch, without starting it.
    pub fn new(seat: &Rc<Seat>, lease: &Rc<LeaseGuard>, leaving: Leaving) -> Rc<Self> {
        let context = seat.context.clone();
        let on_link_loss = match leaving.direction {
            LegDirection::Forward => OnLinkLoss::FallBack,
            LegDirection::Return => OnLinkLoss::Hold,
        };
        let config = SenderConfig {
            migration: leaving.migration,
            generation: leaving.generation,
            options: leaving.options,
            on_link_loss,
            start: leaving.start,
            ranking: Rc::new(Ranked(Rc::downgrade(seat))),
            mirrored_bytes_max: MIRRORED_BYTES_MAX,
            stretch_regions: LAYER_STRETCH_REGIONS,
        };
        let session = SessionId(context.world.random.next_u64());
        let sender =
            Sender::new(context.world.clone(), seat.volume.clone(), Rc::new(EpochFence(lease.clone())), config);
        Rc::new(Self {
            context,
            seat: Rc::downgrade(seat),
            volume: seat.id(),
            migration: leaving.migration,
            generation: leaving.generation,
            direction: leaving.direction,
            epoch: lease.epoch(),
            other: leaving.other,
            sender,
            session,
            sequence: Rc::default(),
            is_whole: leaving.start == Start::Clean,
            client: RefCell::default(),
            linked: Notify::new(),
            connecting: RefCell::default(),
            watching: RefCell::default(),
            puller: RefCell::default(),
            telling: RefCell::default(),
        })
    }

    /// Installs the sender as the volume's tap and begins to track. To be called while no client is admitted.
    pub fn install(self: &Rc<Self>, seat: &Seat) {
        seat.volume.set_tap(Some(self.sender.clone()));
        let pinned = Rc::downgrade(&self.sender);
        seat.volume.set_activity_pin(Some(Rc::new(move |region| {
            // A sender that is gone has been replaced, and the pin with it.
            pinned.upgrade().is_some_and(|sender| !sender.is_clean(region))
        })));
        self.sender.start();
        if self.direction == LegDirection::Return && seat.volume.remote_bytes() > 0 {
            self.install_puller(seat);
        }
    }

    /// The volume has blocks that are at the other side only: requests find who brings them from here on.
    fn install_puller(&self, seat: &Seat) {
        let config = PullerConfig {
            ranking: Rc::new(Ranked(self.seat.clone())),
            demand_deadline: REMOTE_DEADLINE,
            throttle_bytes_per_s: None,
            paused: false,
        };
        let fence = Rc::new(EpochFence(seat.lease()));
        let puller = Puller::new(self.context.world.clone(), seat.volume.clone(), fence, self.sender.clone(), config);
        puller.start();
        *self.puller.borrow_mut() = Some(puller);
    }

    /// Background sending, and bringing what nobody waits for.
    pub fn tune(&self, throttle_bytes_per_s: Option<u64>, paused: bool) {
        self.sender.tune(throttle_bytes_per_s, paused);
        if let Some(puller) = &*self.puller.borrow() {
            puller.tune(throttle_bytes_per_s, paused);
        }
    }

    pub fn progress(&self) -> SendProgress {
        let pull = self.puller.borrow().as_ref().map(|puller| puller.progress());
        SendProgress { pull, ..self.sender.progress() }
    }

    /// Begins to connect; in a return mirror also to watch the way back.
    pub fn run(self: &Rc<Self>) {
        let world = &self.context.world;
        *self.connecting.borrow_mut() = Some(world.spawn(self.clone().keep_connected()));
        if self.direction == LegDirection::Return {
            *self.watching.borrow_mut() = Some(world.spawn(self.clone().watch_way_back()));
        }
        if let Some(puller) = self.puller.borrow().clone() {
            *self.telling.borrow_mut() = Some(world.spawn(self.clone().tell_of(puller)));
        }
    }

    /// Ends it. Answers that wait are given: the lease is revoked before, or the leg is over.
    pub fn stop(&self, seat: &Seat) {
        for task in [self.connecting.take(), self.watching.take(), self.telling.take()].into_iter().flatten() {
            task.abort();
        }
        if let Some(puller) = &*self.puller.borrow() {
            puller.stop();
        }
        seat.volume.set_tap(None);
        seat.volume.set_activity_pin(None);
        self.sender.stop();
        if let Some(client) = self.client.take() {
            client.close();
        }
    }

    async fn keep_connected(self: Rc<Self>) {
        let mut backoff = Backoff::of_connections();
        loop {
            let to = Introduction {
                address: &self.other.migration,
                volume: self.volume,
                purpose: Purpose::Mirror { migration: self.migration, generation: self.generation },
                session: self.session,
                epoch: self.epoch,
                sequence: self.sequence.clone(),
            };
            match PeerClient::connect(&self.context, to).await {
                Ok(client) => {
                    backoff.reset();
                    self.serve_link(client).await;
                }
                Err(error) => {
                    tracing::debug!(target: "drover::migration", migration = %self.migration, %error, "no link");
                }
            }
            backoff.wait(&self.context.world).await;
        }
    }

    async fn serve_link(&self, client: Rc<PeerClient>) {
        *self.client.borrow_mut() = Some(client.clone());
        self.linked.notify_waiters();
        self.sender.link_up(Rc::new(Mirrored {
            client: client.clone(),
            epoch: self.epoch,
            session: self.session,
            sequence: self.sequence.clone(),
        }));
        self.broken_or_silent(&client).await;
        client.close();
        self.sender.link_down();
        self.client.take();
    }

    async fn broken_or_silent(&self, client: &PeerClient) {
        let world = &self.context.world;
        let mut broken = pin!(client.broken());
        loop {
            match select(broken.as_mut(), world.sleep(LOOK_PERIOD)).await {
                Either::Left(_) => return,
                Either::Right(_) => {
                    let silent = client.silent_since().map(|since| world.now().since(since));
                    if silent.is_some_and(|silence| silence >= SILENCE_MAX) {
                        self.context.control.event(
                            "link_silent",
                            Some(self.volume),
                            format!("{} has not answered for {SILENCE_MAX:?}: the link is given up", self.other.node),
                        );
                        return;
                    }
                }
            }
        }
    }

    /// Tells when clients could not be served, and when nothing is missing any more.
    async fn tell_of(self: Rc<Self>, puller: Rc<Puller>) {
        let (mut told, control) = (0, &self.context.control);
        while puller.progress().remote_bytes > 0 {
            select(pin!(puller.done()), self.context.world.sleep(TELL_PERIOD)).await;
            let failures = puller.progress().demand_failures;
            if failures > told {
                let text = format!("{} requests for data that is still at {} failed", failures - told, self.other.node);
                control.event("remote_unreadable", Some(self.volume), text);
                told = failures;
            }
        }
        let bytes = puller.progress().pulled_bytes;
        control.event("all_here", Some(self.volume), format!("{bytes} bytes were brought from {}", self.other.node));
    }

    async fn watch_way_back(self: Rc<Self>) {
        // A holder that restarted may lack what the other side has: nothing goes back before all was compared.
        let (mut counts_as_open, mut is_recorded) = (self.is_whole, self.is_whole);
        loop {
            if counts_as_open {
                let lost = self.sender.link_lost_with_writes_waiting();
                if is_recorded {
                    lost.await;
                } else if let Either::Left(_) = select(pin!(self.open_way_back()), pin!(lost)).await {
                    is_recorded = true;
                    continue;
                }
                // An opening that was interrupted may be recorded or not: it is asked for again.
                if self.link_came().await {
                    continue;
                }
            }
            if !self.close_way_back().await {
                // The lease or the leg is over; what follows from it comes by a grant.
                return;
            }
            self.sender.go_alone();
            self.sender.synced_again().await;
            (counts_as_open, is_recorded) = (true, false);
        }
    }

    /// Whether a link that is away comes (back) soon: right after a flip the other side is not told yet, and a
    /// connection that broke is made again. Closing the way back costs a resync, so it is worth a little patience.
    async fn link_came(&self) -> bool {
        if self.client.borrow().is_some() {
            // It stands, but does not get on.
            return false;
        }
        let came = async {
            loop {
                let linked = self.linked.notified();
                if self.client.borrow().is_some() {
                    return;
                }
                linked.await;
            }
        };
        self.context.world.timeout(LINK_PATIENCE, came).await.is_ok()
    }

    /// Closes the way back before the volume is opened again: from here on this sender opens it no more, so that the
    /// next one finds it closed until it has compared. False as for `close_way_back`.
    pub async fn close_way_back_for_good(&self) -> bool {
        if let Some(watching) = self.watching.take().filter(|_| !is_planted(Bug::WayBackOpenedLate)) {
            watching.abort();
        }
        let is_closed = self.close_way_back().await;
        if is_closed {
            // Nobody else would let them go.
            self.sender.go_alone();
        }
        is_closed
    }

    /// Until it is recorded as closed. False: the control plane says that this is not the holder's to say any more.
    async fn close_way_back(&self) -> bool {
        if is_planted(Bug::WayBackNotRecorded) {
            return true;
        }
        let control = &self.context.control;
        let mut backoff = Backoff::of_connections();
        loop {
            let change = control.next_way_back_change();
            let answer = control.record_way_back(self.volume, self.migration, self.epoch, false, change).await;
            match answer {
                Ok(None) => {
                    control.event("way_back_closed", Some(self.volume), format!("{} is away", self.other.node));
                    return true;
                }
                Ok(Some(Refusal::Epoch { .. } | Refusal::Conflict { .. } | Refusal::NotFound { .. })) => {
                    tracing::info!(target: "drover::migration", ?answer, "the way back is not this node's to close");
                    self.context.control.renew_now();
                    // Not registered yet after the control plane's restart is a conflict, too: ask again.
                    backoff.wait(&self.context.world).await;
                    if !self.is_still_mine().await {
                        return false;
                    }
                }
                _ => backoff.wait(&self.context.world).await,
            }
        }
    }

    async fn is_still_mine(&self) -> bool {
        let Some(grant) = self.context.control.lookup(self.volume).await else { return true };
        let leg = grant.leg.as_ref().map(|leg| leg.migration);
        grant.epoch <= self.epoch && leg == Some(self.migration)
    }

    /// Until it is recorded as open.
    async fn open_way_back(&self) {
        let control = &self.context.control;
        let mut backoff = Backoff::of_connections();
        loop {
            let change = control.next_way_back_change();
            let answer = control.record_way_back(self.volume, self.migration, self.epoch, true, change).await;
            if let Ok(None) = answer {
                control.event("way_back_open", Some(self.volume), format!("{} is whole again", self.other.node));
                return;
            }
            backoff.wait(&self.context.world).await;
        }
    }
}

/// A seat's heat, as long as the seat is there.
struct Ranked(Weak<Seat>);

impl Ranking for Ranked {
    fn write_rank(&self, region: RegionIndex) -> u64 {
        self.0.upgrade().map_or(0, |seat| seat.write_rank(region))
    }
    fn heat_rank(&self, region: RegionIndex) -> u64 {
        self.0.upgrade().map_or(0, |seat| seat.heat_rank(region))
    }
    fn hot_extents(&self) -> (Vec<(ExtentIndex, f32)>, f32) {
        self.0.upgrade().map_or((Vec::new(), 0.0), |seat| seat.hot_extents())
    }
}

/// One connection as the sender's stream.
struct Mirrored {
    client: Rc<PeerClient>,
    epoch: Epoch,
    session: SessionId,
    sequence: Rc<Cell<u64>>,
}

impl Link for Mirrored {
    fn send(&self, operation: Operation) -> LocalFuture<'static, Result<Answer, IoError>> {
        self.client.request(self.epoch, operation)
    }
    fn instance(&self) -> InstanceId {
        self.client.instance()
    }
    fn position(&self) -> Position {
        Position { session: self.session.0, sequence: self.sequence.get() }
    }
}
