//! The requests of a connection that are being carried out.
//!
//! Invariants
//! - A slot is free or holds one request; slots and their wakers are made once and used again, so a request costs
//!   no allocation here.
//! - A wake names its slot, so only futures that were woken are polled. A late wake of a request that has ended
//!   may poll its slot's next one for nothing, which is harmless.

use drover_base::{IoError, LocalFuture};
use drover_disk::Buffer;
use drover_wire::nbd::{BlockStatus, Command};
use futures::task::AtomicWaker;
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

/// A request's future.
pub(super) enum Work {
    Read(LocalFuture<'static, Result<Buffer, IoError>>),
    Plain(LocalFuture<'static, Result<(), IoError>>),
    Status(LocalFuture<'static, Result<Vec<(u64, BlockStatus)>, IoError>>),
}

/// What it ended with.
pub(super) enum Outcome {
    Read(Buffer),
    Plain,
    Status(Vec<(u64, BlockStatus)>),
}

impl Work {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Outcome, IoError>> {
        match self {
            Self::Read(future) => future.as_mut().poll(cx).map(|result| result.map(Outcome::Read)),
            Self::Plain(future) => future.as_mut().poll(cx).map(|result| result.map(|()| Outcome::Plain)),
            Self::Status(future) => future.as_mut().poll(cx).map(|result| result.map(Outcome::Status)),
        }
    }
}

/// Which request it is.
#[derive(Clone, Copy)]
pub(super) struct Ticket {
    pub cookie: u64,
    pub command: Command,
}

/// A request that has ended.
pub(super) struct Ended {
    pub ticket: Ticket,
    pub result: Result<Outcome, IoError>,
}

struct Slot {
    request: Option<(Ticket, Work)>,
    wake: Arc<SlotWake>,
    waker: Waker,
}

struct SlotWake {
    index: usize,
    is_queued: AtomicBool,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    woken: Mutex<Vec<usize>>,
    connection: AtomicWaker,
}

impl Wake for SlotWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        if !self.is_queued.swap(true, Ordering::AcqRel) {
            self.shared.woken.lock().unwrap_or_else(PoisonError::into_inner).push(self.index);
            self.shared.connection.wake();
        }
    }
}

/// The set. Its size is bounded by who adds to it.
#[derive(Default)]
pub(super) struct Running {
    slots: Vec<Slot>,
    free: Vec<usize>,
    shared: Arc<Shared>,
    /// Swapped with the list of the woken, so that neither allocates.
    polling: Vec<usize>,
}

impl Running {
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Begins a request. One that ends at once is handed back.
    pub fn start(&mut self, ticket: Ticket, mut work: Work) -> Option<Ended> {
        let index = self.free.pop().unwrap_or_else(|| self.grow());
        let slot = &mut self.slots[index];
        match work.poll(&mut Context::from_waker(&slot.waker)) {
            Poll::Ready(result) => {
                self.free.push(index);
                Some(Ended { ticket, result })
            }
            Poll::Pending => {
                slot.request = Some((ticket, work));
                None
            }
        }
    }

    fn grow(&mut self) -> usize {
        let index = self.slots.len();
        let wake = Arc::new(SlotWake { index, is_queued: AtomicBool::new(false), shared: self.shared.clone() });
        self.slots.push(Slot { request: None, waker: wake.clone().into(), wake });
        index
    }

    /// Polls those that were woken; calls `ended` for each that has ended. Wakes of others will wake `cx`.
    pub fn poll(&mut self, cx: &Context<'_>, mut ended: impl FnMut(Ended)) {
        self.shared.connection.register(cx.waker());
        std::mem::swap(&mut self.polling, &mut *self.shared.woken.lock().unwrap_or_else(PoisonError::into_inner));
        for index in self.polling.drain(..) {
            let slot = &mut self.slots[index];
            // Before the poll: a wake during it counts.
            slot.wake.is_queued.store(false, Ordering::Release);
            let Some((ticket, work)) = &mut slot.request else { continue };
            if let Poll::Ready(result) = work.poll(&mut Context::from_waker(&slot.waker)) {
                let ticket = *ticket;
                slot.request = None;
                self.free.push(index);
                ended(Ended { ticket, result });
            }
        }
    }
}
