//! What happens at which virtual time.

use super::{Inner, ProcessIndex, net::NetEvent};
use std::{
    cell::{Cell, RefCell},
    cmp::Reverse,
    collections::BinaryHeap,
    future::Future,
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
};

/// Someone's wait. Dropping the future that holds it cancels it.
pub(crate) struct Sleep {
    /// Whose clock counts, and the deadline by that clock in nanoseconds; `None`: virtual time itself.
    clock: Option<(ProcessIndex, u64)>,
    done: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

pub(crate) enum Event {
    Sleep(Rc<Sleep>),
    Net(NetEvent),
}

enum Entry {
    Sleep(Weak<Sleep>),
    Net(NetEvent),
}

/// A heap by time, then by order of setting.
#[derive(Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<Timed>>,
    next: u64,
    /// Waits by processes' clocks, set again when a clock changes.
    by_clock: Vec<Weak<Sleep>>,
    prune_at: usize,
}

struct Timed {
    at: u64,
    number: u64,
    entry: Entry,
}

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Timed {}
impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Timed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl Timers {
    fn push(&mut self, at: u64, entry: Entry) {
        self.heap.push(Reverse(Timed { at, number: self.next, entry }));
        self.next += 1;
    }

    pub fn set_net(&mut self, at: u64, event: NetEvent) {
        self.push(at, Entry::Net(event));
    }

    /// The earliest event due by `until`; cancelled waits are passed over and move no time.
    pub fn pop_due(&mut self, until: u64) -> Option<(u64, u64, Event)> {
        while self.heap.peek().is_some_and(|Reverse(timed)| timed.at <= until || timed.is_stale()) {
            let Reverse(timed) = self.heap.pop().expect("peeked");
            let event = match timed.entry {
                Entry::Net(event) => Event::Net(event),
                Entry::Sleep(sleep) => match sleep.upgrade() {
                    Some(sleep) if !sleep.done.get() => Event::Sleep(sleep),
                    _ => continue,
                },
            };
            return Some((timed.at, timed.number, event));
        }
        None
    }

    fn track(&mut self, sleep: &Rc<Sleep>) {
        if self.by_clock.len() >= self.prune_at {
            self.by_clock.retain(|sleep| sleep.upgrade().is_some_and(|sleep| !sleep.done.get()));
            self.prune_at = (self.by_clock.len() * 2).max(64);
        }
        self.by_clock.push(Rc::downgrade(sleep));
    }
}

impl Timed {
    fn is_stale(&self) -> bool {
        match &self.entry {
            Entry::Sleep(sleep) => sleep.upgrade().is_none_or(|sleep| sleep.done.get()),
            Entry::Net(_) => false,
        }
    }
}

impl Inner {
    /// Completes when virtual time is `deadline`.
    pub fn sleep_global(&self, deadline: u64) -> SleepFuture {
        let sleep = Rc::new(Sleep { clock: None, done: Cell::new(false), waker: RefCell::default() });
        self.timers.borrow_mut().push(deadline, Entry::Sleep(Rc::downgrade(&sleep)));
        SleepFuture(sleep)
    }

    /// Completes when the process's clock shows `deadline`.
    pub fn sleep_by_clock(&self, process: ProcessIndex, deadline: u64) -> SleepFuture {
        let sleep =
            Rc::new(Sleep { clock: Some((process, deadline)), done: Cell::new(false), waker: RefCell::default() });
        self.timers.borrow_mut().track(&sleep);
        self.arm(&sleep);
        SleepFuture(sleep)
    }

    fn arm(&self, sleep: &Rc<Sleep>) {
        let Some((process, deadline)) = sleep.clock else { return };
        let at = self.processes.borrow()[process].clock.when(deadline, self.now_nanos());
        // A stopped clock never gets there; a change of the clock arms again.
        if let Some(at) = at {
            self.timers.borrow_mut().push(at.max(self.now_nanos()), Entry::Sleep(Rc::downgrade(sleep)));
        }
    }

    /// The process's clock was changed: its waits end at other times now.
    pub fn clock_changed(&self, process: ProcessIndex) {
        let sleeps: Vec<_> = self.timers.borrow().by_clock.iter().filter_map(Weak::upgrade).collect();
        for sleep in sleeps {
            if !sleep.done.get() && sleep.clock.is_some_and(|(of, _)| of == process) {
                self.arm(&sleep);
            }
        }
    }

    pub fn sleep_due(&self, sleep: &Rc<Sleep>) {
        if let Some((process, deadline)) = sleep.clock
            && self.processes.borrow()[process].clock.read(self.now_nanos()) < deadline
        {
            // The clock was set back since; `clock_changed` has set the right time.
            return;
        }
        sleep.done.set(true);
        if let Some(waker) = sleep.waker.take() {
            waker.wake();
        }
    }
}

pub(crate) struct SleepFuture(Rc<Sleep>);

impl Future for SleepFuture {
    type Output = ();
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.0.done.get() {
            return Poll::Ready(());
        }
        self.0.waker.replace(Some(context.waker().clone()));
        Poll::Pending
    }
}
