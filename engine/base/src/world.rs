//! The world as the deciding code sees it: clock, timer, chance, network, tasks.
//!
//! Production implements these over the kernel (`engine/runtime`), the simulator over a seed (`tests/sim`).
//! All of it belongs to one thread: futures are not `Send`, state is `Rc`.

use crate::{Instant, NodeId};
use bytes::Bytes;
use futures::future::{AbortHandle, Abortable, Either, select};
use std::{future::Future, io, pin::Pin, rc::Rc, time::Duration};

/// A future of this thread.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// What time it is.
pub trait Clock {
    /// Time since boot, suspends included; never goes back on a healthy machine.
    fn now(&self) -> Instant;
    /// Milliseconds since 1970, for people only; may jump.
    fn wall_ms(&self) -> u64;
}

/// Waiting.
pub trait Timer {
    /// Completes at `deadline` or later.
    fn sleep_until(&self, deadline: Instant) -> LocalFuture<'static, ()>;
}

/// Chance.
pub trait Random {
    fn next_u64(&self) -> u64;
}

/// A message between two processes: a decoded head and raw bytes that need no copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// At most `limits::MESSAGE_HEAD_BYTES_MAX` bytes.
    pub head: Bytes,
    /// At most `limits::MESSAGE_BODY_BYTES_MAX` bytes.
    pub body: Bytes,
}

/// The sending half of a connection. Messages arrive whole, once and in order, or the connection breaks.
pub trait MessageSender {
    /// Completes when the message was handed to the network (not when it arrived). Messages of
    /// concurrent calls are sent in the order of the calls.
    fn send(&self, message: Message) -> LocalFuture<'static, io::Result<()>>;
    /// Breaks the connection; both halves at both ends fail from then on.
    fn close(&self);
}

/// The receiving half of a connection.
pub trait MessageReceiver {
    /// The next message; `None` when the other side closed. Messages over the bounds are an error.
    fn receive(&mut self) -> LocalFuture<'_, io::Result<Option<Message>>>;
    /// From now on a message of more than `bytes`, head and body together, is an error of kind `InvalidData` too.
    fn limit(&mut self, bytes: usize);
    /// Whether the other side may say that it is `node`: where connections show certificates, only that node may.
    fn may_be(&self, node: &NodeId) -> bool;
}

/// Both halves of a connection.
pub struct Connection {
    pub sender: Rc<dyn MessageSender>,
    pub receiver: Box<dyn MessageReceiver>,
    /// The other side's address, for logs.
    pub peer: String,
}

/// Where connections of others arrive.
pub trait Listener {
    fn accept(&mut self) -> LocalFuture<'_, io::Result<Connection>>;
    /// The address it listens at, with the real port.
    fn address(&self) -> String;
}

/// The network. An address is `host:port` or `unix:/path`.
pub trait Net {
    fn connect(&self, address: &str) -> LocalFuture<'static, io::Result<Connection>>;
    fn listen(&self, address: &str) -> LocalFuture<'static, io::Result<Box<dyn Listener>>>;
}

/// Tasks.
pub trait Spawn {
    /// Runs the future on this thread until it ends.
    fn spawn(&self, future: LocalFuture<'static, ()>);
    /// Runs long arithmetic (hashing, compression) on a bounded pool; completes when it has run.
    fn offload(&self, work: Box<dyn FnOnce() + Send>) -> LocalFuture<'static, ()>;
}

/// All of it, in one value that components are given.
#[derive(Clone)]
pub struct World {
    pub clock: Rc<dyn Clock>,
    pub timer: Rc<dyn Timer>,
    pub random: Rc<dyn Random>,
    pub net: Rc<dyn Net>,
    pub spawn: Rc<dyn Spawn>,
}

/// The deadline passed before the future completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the deadline passed")]
pub struct Elapsed;

/// A running task. Dropping it lets the task run on.
#[derive(Clone)]
#[must_use = "keep it to abort the task, or call detach"]
pub struct Task(AbortHandle);

impl Task {
    /// Stops the task at its next suspension point.
    pub fn abort(&self) {
        self.0.abort();
    }
    pub fn detach(self) {}
}

impl World {
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    pub fn sleep(&self, duration: Duration) -> LocalFuture<'static, ()> {
        self.timer.sleep_until(self.now() + duration)
    }

    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) -> Task {
        let (handle, registration) = AbortHandle::new_pair();
        let task = Abortable::new(future, registration);
        self.spawn.spawn(Box::pin(async move {
            // An aborted task has nothing to report.
            let _ = task.await;
        }));
        Task(handle)
    }

    /// The future's output, or [`Elapsed`] when `deadline` comes first; the future is then dropped.
    pub async fn timeout_at<T>(&self, deadline: Instant, future: impl Future<Output = T>) -> Result<T, Elapsed> {
        let sleep = self.timer.sleep_until(deadline);
        match select(Box::pin(future), sleep).await {
            Either::Left((output, _)) => Ok(output),
            Either::Right(((), _)) => Err(Elapsed),
        }
    }

    pub async fn timeout<T>(&self, duration: Duration, future: impl Future<Output = T>) -> Result<T, Elapsed> {
        self.timeout_at(self.now() + duration, future).await
    }

    /// Runs `work` on the worker pool.
    pub async fn offload<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, receiver) = futures::channel::oneshot::channel();
        self.spawn
            .offload(Box::new(move || {
                // The caller may have gone; then nobody wants the result.
                let _ = sender.send(work());
            }))
            .await;
        receiver.await.expect("offloaded work ran to its end")
    }
}
