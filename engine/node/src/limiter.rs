//! What clients may use of a volume a second: two token buckets, one of requests and one of bytes, and who waits there.
//!
//! Invariants
//! - Nobody fails for a limit: a request waits. Whoever is let go of because the volume leaves goes on elsewhere.
//! - A request passes while both buckets hold something, and takes what it costs, also below nothing: the largest passes,
//!   and what comes after it waits the longer. Over any time, no more passes than the rate, the burst and one request.
//! - Who waits is served in turn, client by client: one that asks for much does not starve one that asks for little. A
//!   client's own requests pass in their order.
//! - A change counts at once, also for those that wait.
//! - Without limits nothing is counted and nobody waits.

use drover_base::planted::{Bug, is_planted};
use drover_base::{Instant, SessionId, World};
use drover_wire::admin::IoLimits;
use futures::channel::oneshot;
use futures::future::select;
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    pin::pin,
    rc::Rc,
    time::Duration,
};
use tokio::sync::Notify;

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Client {
    /// A connection to an export of this node, by its number.
    Here(u64),
    /// All clients of another node.
    Gateway(SessionId),
}

/// Fills at its rate up to what its burst holds. Amounts are in billionths, which one nanosecond fills by the rate.
struct Bucket {
    rate_per_s: u64,
    most: i128,
    level: i128,
    at: Instant,
}

const BILLION: i128 = 1_000_000_000;

impl Bucket {
    /// Of the new rate, with what the one before held; full, where there was none.
    fn changed(before: Option<Self>, rate_per_s: u64, burst_ms: u64, now: Instant) -> Self {
        let rate_per_s = rate_per_s.max(1);
        let most = (i128::from(rate_per_s) * i128::from(burst_ms) * (BILLION / 1_000)).max(BILLION);
        let level = before.map_or(most, |mut bucket| {
            bucket.refill(now);
            bucket.level.min(most)
        });
        Self { rate_per_s, most, level, at: now }
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = i128::try_from(now.since(self.at).as_nanos()).unwrap_or(i128::MAX / BILLION);
        let gained = elapsed.saturating_mul(i128::from(self.rate_per_s));
        self.level = self.level.saturating_add(gained).min(self.most);
        self.at = now;
    }

    /// Until it holds something.
    fn wait(&self) -> Duration {
        if self.level > 0 {
            return Duration::ZERO;
        }
        let nanos = -self.level / i128::from(self.rate_per_s) + 1;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn take(&mut self, amount: u64) {
        self.level -= i128::from(amount) * BILLION;
    }
}

struct Waiter {
    bytes: u64,
    since: Instant,
    go: oneshot::Sender<()>,
}

#[derive(Default)]
struct State {
    requests: Option<Bucket>,
    bytes: Option<Bucket>,
    /// None of them is empty.
    waiting: BTreeMap<Client, VecDeque<Waiter>>,
    last: Option<Client>,
    is_served: bool,
}

impl State {
    /// Until a request may pass.
    fn wait(&mut self, now: Instant) -> Duration {
        let buckets = self.requests.iter_mut().chain(&mut self.bytes);
        let wait = buckets.map(|bucket| {
            bucket.refill(now);
            bucket.wait()
        });
        wait.max().unwrap_or_default()
    }

    fn take(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.requests {
            bucket.take(1);
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.take(bytes);
        }
    }

    /// The first of the next client.
    fn next(&mut self) -> Option<Waiter> {
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.waiting.range((after, Bound::Unbounded)).next().or_else(|| self.waiting.iter().next());
        let client = match self.last {
            Some(last) if is_planted(Bug::LimitStarves) && self.waiting.contains_key(&last) => last,
            _ => *next?.0,
        };
        let queue = self.waiting.get_mut(&client)?;
        let waiter = queue.pop_front();
        if queue.is_empty() {
            self.waiting.remove(&client);
        }
        self.last = Some(client);
        waiter
    }
}

/// What clients were made to wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Waited {
    pub requests: u64,
    pub us: u64,
}

pub(crate) struct Limiter {
    world: World,
    limits: Cell<IoLimits>,
    /// Looked at for each request.
    is_on: Cell<bool>,
    state: RefCell<State>,
    changed: Notify,
    waited: Cell<Waited>,
}

impl Limiter {
    pub fn new(world: World, limits: IoLimits) -> Rc<Self> {
        let limiter = Rc::new(Self {
            world,
            limits: Cell::default(),
            is_on: Cell::default(),
            state: RefCell::default(),
            changed: Notify::new(),
            waited: Cell::default(),
        });
        limiter.set(limits);
        limiter
    }

    /// Whether requests may have to wait.
    pub fn is_on(&self) -> bool {
        self.is_on.get()
    }

    pub fn waited(&self) -> Waited {
        self.waited.get()
    }

    pub fn set(&self, limits: IoLimits) {
        if self.limits.replace(limits) == limits {
            return;
        }
        let now = self.world.now();
        let state = &mut *self.state.borrow_mut();
        let changed = |before, rate: Option<u64>| rate.map(|rate| Bucket::changed(before, rate, limits.burst_ms, now));
        state.requests = changed(state.requests.take(), limits.iops);
        state.bytes = changed(state.bytes.take(), limits.bytes_per_s);
        self.is_on.set(state.requests.is_some() || state.bytes.is_some());
        self.changed.notify_one();
    }

    /// Nobody waits here any more: the volume is not served here.
    pub fn let_all_go(&self) {
        self.state.borrow_mut().waiting.clear();
    }

    /// Waits until the client may carry out a request of so many bytes.
    pub async fn admit(self: &Rc<Self>, client: Client, bytes: u64) {
        if !self.is_on.get() {
            return;
        }
        let admitted = {
            let state = &mut *self.state.borrow_mut();
            let now = self.world.now();
            if state.waiting.is_empty() && state.wait(now).is_zero() {
                state.take(bytes);
                return;
            }
            let (go, admitted) = oneshot::channel();
            state.waiting.entry(client).or_default().push_back(Waiter { bytes, since: now, go });
            if !std::mem::replace(&mut state.is_served, true) {
                self.world.spawn(self.clone().serve()).detach();
            }
            admitted
        };
        // An error: it is let go of.
        let _ = admitted.await;
    }

    /// Lets those that wait pass, until there are none.
    async fn serve(self: Rc<Self>) {
        loop {
            let changed = self.changed.notified();
            let Some(wait) = self.let_pass() else { return };
            select(pin!(changed), self.world.sleep(wait)).await;
        }
    }

    /// Lets pass who may; how long the next has to wait. `None`: there is none.
    fn let_pass(&self) -> Option<Duration> {
        let state = &mut *self.state.borrow_mut();
        let now = self.world.now();
        loop {
            let wait = state.wait(now);
            if !wait.is_zero() && !state.waiting.is_empty() {
                return Some(wait);
            }
            let Some(Waiter { bytes, since, go }) = state.next() else {
                state.is_served = false;
                return None;
            };
            // Who has gone takes nothing.
            if go.send(()).is_ok() {
                state.take(bytes);
                let Waited { requests, us } = self.waited.get();
                let waited_us = u64::try_from(now.since(since).as_micros()).unwrap_or(u64::MAX);
                self.waited.set(Waited { requests: requests + 1, us: us.saturating_add(waited_us) });
            }
        }
    }
}

#[cfg(test)]
mod tests;
