//! A connection of messages over a socket.
//!
//! Invariants
//! - A message is queued by the call of `send`, so messages leave in the order of the calls, also when the futures are
//!   awaited in another order or not at all.
//! - One task writes. It takes all that is queued into one vectored write, so messages sent together travel together.
//! - The queue is bounded in bytes: a `send` over [`QUEUE_BYTES_SOFT`] completes only when the queue has shrunk; a
//!   caller that does not wait for that meets [`QUEUE_BYTES_HARD`], where the connection breaks.
//! - Both directions let the other tasks of the thread go first after [`TURN_BYTES`]: a stream that always has more, such
//!   as a migration's, would otherwise keep the thread, and with it every client, as long as its window lasts.
//! - With TLS the writing task leads the handshake; nothing is read or written before it is done.
//! - After a failure or `close` nothing more is written or delivered, and every waiting `send` fails. Nor does the kernel
//!   go on sending what it had taken: a request that was given up would be carried out later.

use crate::framing::{self, Decoder};
use crate::net::{DetachedSocket, Socket};
use bytes::{Buf, Bytes};
use drover_base::limits::{MESSAGE_BODY_BYTES_MAX, MESSAGE_HEAD_BYTES_MAX, MIRRORED_BYTES_MAX, SEND_WINDOW_BYTES};
use drover_base::world::{Connection, Message, MessageReceiver, MessageSender};
use drover_base::{LocalFuture, NodeId};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};
use std::rc::Rc;
use tokio::sync::Notify;

/// Queued bytes above which `send` waits: keeps a fast link busy while the writer is scheduled.
const QUEUE_BYTES_SOFT: usize = 4 << 20;

/// Queued bytes at which the connection breaks. A sender of a migration may have its window queued.
const QUEUE_BYTES_HARD: usize = 256 << 20;

/// Bytes received or written in one go: some 100 µs of copying, checking and handing on.
pub(crate) const TURN_BYTES: usize = 256 << 10;

/// Parts given to one write; the kernel takes at most 1,024.
const PARTS_PER_WRITE: usize = 64;

const SENDER_BYTES_MAX: u64 = SEND_WINDOW_BYTES + MIRRORED_BYTES_MAX;
const _: () = assert!(QUEUE_BYTES_HARD > SENDER_BYTES_MAX as usize + MESSAGE_HEAD_BYTES_MAX + MESSAGE_BODY_BYTES_MAX);

#[derive(Default)]
struct Queue {
    parts: VecDeque<Bytes>,
    bytes: usize,
    broken: Option<ErrorKind>,
    /// Why the handshake failed.
    reason: Option<String>,
    /// No handle is left that could send more.
    ended: bool,
}

pub(crate) struct Shared {
    /// `None` once broken: the file is closed as soon as nobody waits on it, so that the other side is told even if
    /// it neither reads nor has room to write.
    socket: RefCell<Option<Rc<Socket>>>,
    queue: RefCell<Queue>,
    decoder: RefCell<Decoder>,
    /// The handshake is over.
    is_open: Cell<bool>,
    opened: Notify,
    /// Something to write, or an end.
    filled: Notify,
    /// The queue shrank, or broke.
    drained: Notify,
}

impl Shared {
    fn break_off(&self, kind: ErrorKind) {
        let mut queue = self.queue.borrow_mut();
        if queue.broken.is_none() {
            queue.broken = Some(kind);
            queue.parts.clear();
            queue.bytes = 0;
            if let Some(socket) = self.socket.take() {
                socket.reset();
            }
        }
        self.filled.notify_one();
        self.drained.notify_waiters();
        self.opened.notify_waiters();
    }

    /// What a call on a broken connection answers.
    fn broken(&self) -> Option<io::Error> {
        let queue = self.queue.borrow();
        let kind = queue.broken?;
        Some(match &queue.reason {
            Some(reason) => io::Error::new(kind, reason.clone()),
            None => kind.into(),
        })
    }

    /// Completes when messages may pass.
    async fn open(&self) -> io::Result<()> {
        loop {
            let opened = self.opened.notified();
            if let Some(error) = self.broken() {
                return Err(error);
            }
            if self.is_open.get() {
                return Ok(());
            }
            opened.await;
        }
    }

    fn socket(&self) -> io::Result<Rc<Socket>> {
        self.socket.borrow().clone().ok_or_else(|| ErrorKind::ConnectionAborted.into())
    }

    fn queue(&self, message: Message) -> io::Result<usize> {
        let mut queue = self.queue.borrow_mut();
        if let Some(kind) = queue.broken {
            return Err(kind.into());
        }
        let (start, body) = framing::encode(message);
        for part in [Some(start), body].into_iter().flatten() {
            queue.bytes += part.len();
            queue.parts.push_back(part);
        }
        let bytes = queue.bytes;
        drop(queue);
        if bytes > QUEUE_BYTES_HARD {
            self.break_off(ErrorKind::OutOfMemory);
            return Err(ErrorKind::OutOfMemory.into());
        }
        self.filled.notify_one();
        Ok(bytes)
    }

    async fn has_room(&self) -> io::Result<()> {
        loop {
            let drained = self.drained.notified();
            {
                let queue = self.queue.borrow();
                if let Some(kind) = queue.broken {
                    return Err(kind.into());
                }
                if queue.bytes <= QUEUE_BYTES_SOFT {
                    return Ok(());
                }
            }
            drained.await;
        }
    }

    /// One write of what is queued. `WouldBlock` when the socket takes nothing now.
    fn write_some(&self, socket: &Socket) -> io::Result<()> {
        let mut queue = self.queue.borrow_mut();
        let written = {
            let mut slices = [IoSlice::new(&[]); PARTS_PER_WRITE];
            let (mut count, mut bytes) = (0, 0);
            for (slice, part) in slices.iter_mut().zip(&queue.parts) {
                *slice = IoSlice::new(&part[..part.len().min(TURN_BYTES - bytes)]);
                (count, bytes) = (count + 1, bytes + slice.len());
                if bytes == TURN_BYTES {
                    break;
                }
            }
            socket.try_write_vectored(&slices[..count])?
        };
        if written == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
        queue.bytes -= written;
        let mut left = written;
        while left > 0 {
            let front = queue.parts.front_mut().expect("no more was written than was queued");
            let step = left.min(front.len());
            front.advance(step);
            left -= step;
            if front.is_empty() {
                queue.parts.pop_front();
            }
        }
        if queue.bytes <= QUEUE_BYTES_SOFT {
            self.drained.notify_waiters();
        }
        Ok(())
    }
}

/// Leads the handshake, if there is one.
async fn shake_hands(shared: &Shared, peer: &str) {
    let Ok(socket) = shared.socket() else { return };
    match socket.handshake().await {
        Ok(()) => {
            shared.is_open.set(true);
            shared.opened.notify_waiters();
        }
        Err(error) => {
            tracing::warn!(target: "drover::tls", peer, %error, "no TLS connection");
            let mut queue = shared.queue.borrow_mut();
            queue.reason.get_or_insert_with(|| error.to_string());
            drop(queue);
            shared.break_off(error.kind());
        }
    }
}

async fn write_all(shared: Rc<Shared>, peer: String) {
    if !shared.is_open.get() {
        shake_hands(&shared, &peer).await;
    }
    loop {
        let (is_empty, is_ended) = {
            let queue = shared.queue.borrow();
            (queue.parts.is_empty(), queue.ended)
        };
        let Ok(socket) = shared.socket() else { return };
        let flushed = if is_empty { socket.try_flush() } else { Ok(()) };
        if is_empty && flushed.is_ok() {
            if is_ended {
                socket.end();
                return;
            }
            drop(socket);
            shared.filled.notified().await;
            continue;
        }
        let written = if is_empty { flushed } else { shared.write_some(&socket) };
        let result = match written {
            Err(error) if error.kind() == ErrorKind::WouldBlock => socket.writable().await,
            Ok(()) => {
                if !shared.queue.borrow().parts.is_empty() {
                    tokio::task::yield_now().await;
                }
                Ok(())
            }
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            shared.break_off(error.kind());
        }
    }
}

struct Sender {
    shared: Rc<Shared>,
}

impl MessageSender for Sender {
    fn send(&self, message: Message) -> LocalFuture<'static, io::Result<()>> {
        match self.shared.queue(message) {
            Ok(bytes) if bytes <= QUEUE_BYTES_SOFT => Box::pin(std::future::ready(Ok(()))),
            Ok(_) => {
                let shared = self.shared.clone();
                Box::pin(async move { shared.has_room().await })
            }
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn close(&self) {
        self.shared.break_off(ErrorKind::ConnectionAborted);
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.shared.queue.borrow_mut().ended = true;
        self.shared.filled.notify_one();
    }
}

struct Receiver {
    shared: Rc<Shared>,
    /// Bytes that were handed on since others had their turn.
    turn: usize,
}

impl Receiver {
    async fn next(&mut self) -> io::Result<Option<Message>> {
        if !self.shared.is_open.get() {
            self.shared.open().await?;
        }
        loop {
            if self.turn >= TURN_BYTES {
                self.turn = 0;
                tokio::task::yield_now().await;
            }
            if let Some(error) = self.shared.broken() {
                return Err(error);
            }
            if let Some(message) = self.shared.decoder.borrow_mut().next()? {
                self.turn += message.head.len() + message.body.len();
                return Ok(Some(message));
            }
            let socket = self.shared.socket()?;
            let read = socket.try_read_buf(self.shared.decoder.borrow_mut().space());
            match read {
                Ok(0) if self.shared.queue.borrow().broken.is_some() => {}
                Ok(0) if self.shared.decoder.borrow().is_between_messages() => return Ok(None),
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => socket.readable().await?,
                Err(error) => return Err(error),
            }
        }
    }
}

impl MessageReceiver for Receiver {
    fn receive(&mut self) -> LocalFuture<'_, io::Result<Option<Message>>> {
        Box::pin(async move {
            let result = self.next().await;
            if let Err(error) = &result {
                self.shared.break_off(error.kind());
            }
            result
        })
    }

    fn limit(&mut self, bytes: usize) {
        self.shared.decoder.borrow_mut().limit = bytes;
    }

    fn may_be(&self, node: &NodeId) -> bool {
        // A connection that is over proves nothing.
        self.shared.socket().is_ok_and(|socket| socket.may_be(node))
    }
}

/// A connection that was accepted and may still move to another thread, once its first messages have told to which.
pub struct Incoming {
    /// As this thread has it.
    pub connection: Connection,
    shared: Rc<Shared>,
}

/// The same on its way to another thread, with what has arrived already.
pub struct Detached {
    socket: DetachedSocket,
    decoder: Decoder,
    peer: String,
}

impl Incoming {
    pub(crate) fn new(socket: Socket, peer: String) -> Self {
        let (connection, shared) = open(socket, Decoder::default(), peer);
        Self { connection, shared }
    }

    /// Takes it off this thread. Fails, and ends it, where something that was sent has not left yet.
    pub fn detach(self) -> io::Result<Detached> {
        let Self { connection: Connection { peer, .. }, shared } = self;
        let mut queue = shared.queue.borrow_mut();
        let broken = queue.broken.replace(ErrorKind::ConnectionAborted);
        let socket = shared.socket.take().and_then(Rc::into_inner);
        let is_sent = queue.parts.is_empty() && shared.is_open.get();
        drop(queue);
        // The writing task finds that there is no socket, and ends.
        shared.filled.notify_one();
        match (broken, socket) {
            (None, Some(socket)) if is_sent => {
                Ok(Detached { socket: socket.detach()?, decoder: shared.decoder.take(), peer })
            }
            (kind, _) => Err(kind.unwrap_or(ErrorKind::WouldBlock).into()),
        }
    }
}

impl Detached {
    /// Goes on on the calling thread.
    pub fn open(self) -> io::Result<Connection> {
        Ok(start(self.socket.attach()?, self.decoder, self.peer, true).0)
    }
}

/// Starts the writing task of a new connection on this thread.
pub(crate) fn open(socket: Socket, decoder: Decoder, peer: String) -> (Connection, Rc<Shared>) {
    start(socket, decoder, peer, false)
}

fn start(socket: Socket, decoder: Decoder, peer: String, is_shaken: bool) -> (Connection, Rc<Shared>) {
    let is_open = Cell::new(!socket.is_tls() || is_shaken);
    let shared = Rc::new(Shared {
        socket: RefCell::new(Some(Rc::new(socket))),
        queue: RefCell::default(),
        decoder: RefCell::new(decoder),
        is_open,
        opened: Notify::new(),
        filled: Notify::new(),
        drained: Notify::new(),
    });
    tokio::task::spawn_local(write_all(shared.clone(), peer.clone()));
    let connection = Connection {
        sender: Rc::new(Sender { shared: shared.clone() }),
        receiver: Box::new(Receiver { shared: shared.clone(), turn: 0 }),
        peer,
    };
    (connection, shared)
}
