//! A connection after its handshake: one future that receives, carries out, answers and sends.
//!
//! ```text
//!          ┌────────── receive: parse all that came, start each request at once ◄── socket
//!  poll ──►│           complete: poll what was woken, append replies
//!          └────────── send: all replies in one go ──► socket
//! ```
//!
//! Invariants
//! - Bytes of requests in flight and of replies not yet sent are at most `CONNECTION_BYTES_IN_FLIGHT_MAX`, and
//!   requests at most `CONNECTION_REQUESTS_IN_FLIGHT_MAX`; above it the client's next request stays unread.
//!   A request alone is always admitted.
//! - A write's memory is taken after it was admitted, and it is started only when its payload is there wholly.
//! - Every admitted request is carried out to its end, also when its client has gone.
//! - Each request that was started is answered exactly once, unless the connection broke.

use super::answer::{answer, answer_empty};
use super::handshake::Negotiated;
use super::input::{Input, poll_read};
use super::output::Output;
use super::running::{Ended, Running, Ticket, Work};
use super::service::{BlockExport, BlockService, Opened};
use super::stream::NbdStream;
use super::work;
use drover_base::LocalFuture;
use drover_base::limits::{CONNECTION_BYTES_IN_FLIGHT_MAX, CONNECTION_REQUESTS_IN_FLIGHT_MAX};
use drover_disk::Buffer;
use drover_wire::nbd::{Command, Errno, Incoming, Refusal, RequestParser, Violation, reply};
use futures::future::{self, FutureExt};
use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::io::AsyncWrite;

/// Replies of so many bytes are sent before more requests are received.
const SEND_AT_BYTES: usize = 256 << 10;
/// From this size on a write's payload is worth a receive of its own, which saves copying it.
const LARGE_BYTES: usize = 32 << 10;
/// Rounds of a connection before the other tasks of its thread have their turn.
const ROUNDS_MAX: u32 = 16;
/// How long a client may take to receive the last replies when the server closes.
const GRACE: Duration = Duration::from_secs(2);

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client said so, or closed.
    Client,
    /// The server was asked to close, or to withdraw the export.
    Closing,
}

/// Why a connection broke.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("the client broke the protocol: {0}")]
    Violation(#[from] Violation),
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("the export is not served: {0}")]
    Refused(Refusal),
}

/// Serves a connection until its client leaves, its export is withdrawn or `closing` completes; then what is in flight is
/// finished and answered first.
pub async fn serve(
    negotiated: Negotiated,
    service: &dyn BlockService,
    closing: LocalFuture<'static, ()>,
) -> Result<End, SessionError> {
    let Opened { export, withdrawn } = negotiated.open(service).await?;
    let closing = future::select(closing, withdrawn).map(drop).boxed_local();
    let Negotiated { stream, leftover, terms, .. } = negotiated;
    let mut connection = Connection {
        stream,
        export,
        parser: RequestParser::new(terms),
        input: Input::new(&leftover),
        running: Running::default(),
        replies: Replies::new(terms.structured),
        waiting: None,
        filling: None,
        is_receiving: true,
        was_large: false,
        end: Ok(End::Client),
        is_closing: false,
        closing,
        grace: None,
    };
    poll_fn(|cx| connection.poll(cx)).await;
    let Connection { mut stream, end, .. } = connection;
    // The client may be gone already, or read no more: over TLS the end has to be written, too.
    let _ = tokio::time::timeout(GRACE, poll_fn(|cx| Pin::new(&mut stream).poll_shutdown(cx))).await;
    end
}

/// A write whose payload is arriving.
struct Filling {
    ticket: Ticket,
    buffer: Buffer,
    filled: usize,
}

/// What was admitted and what is to be sent for it.
struct Replies {
    output: Output,
    structured: bool,
    /// Payload of the requests that were admitted and not answered.
    bytes_in_flight: u64,
    /// Nobody receives them any more.
    is_broken: bool,
}

impl Replies {
    fn new(structured: bool) -> Self {
        Self { output: Output::default(), structured, bytes_in_flight: 0, is_broken: false }
    }

    fn answer(&mut self, ended: Ended) {
        self.bytes_in_flight -= u64::from(ended.ticket.command.payload_bytes());
        if !self.is_broken {
            answer(&mut self.output, self.structured, ended);
        }
    }

    fn refuse(&mut self, cookie: u64, errno: Errno, why: &str) {
        let structured = self.structured;
        self.output.append(|out| reply::failed(out, structured, cookie, errno, why));
    }
}

/// Why receiving stopped.
#[derive(PartialEq, Eq)]
enum Received {
    /// There is nothing more for now, or for ever.
    All,
    /// There may be more, but no room for it before replies were sent or requests ended.
    Full,
}

struct Connection {
    stream: NbdStream,
    export: Rc<dyn BlockExport>,
    parser: RequestParser,
    input: Input,
    running: Running,
    replies: Replies,
    /// Parsed, not admitted yet.
    waiting: Option<Ticket>,
    /// Admitted, not started yet.
    filling: Option<Filling>,
    is_receiving: bool,
    /// The last write was large.
    was_large: bool,
    end: Result<End, SessionError>,
    is_closing: bool,
    closing: LocalFuture<'static, ()>,
    grace: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Connection {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_closing && self.closing.as_mut().poll(cx).is_ready() {
            self.is_closing = true;
            self.close();
        }
        for _ in 0..ROUNDS_MAX {
            let received = self.receive(cx);
            let Self { running, replies, .. } = self;
            running.poll(cx, |ended| replies.answer(ended));
            self.send(cx);
            if !self.is_receiving && self.running.is_empty() && self.replies.output.is_empty() {
                return Poll::Ready(());
            }
            if received == Received::All || !self.has_room() {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn send(&mut self, cx: &mut Context<'_>) {
        match self.replies.output.poll_send(&mut self.stream, cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => self.break_off(error.into()),
            Poll::Pending if self.is_closing && self.running.is_empty() => {
                let grace = self.grace.get_or_insert_with(|| Box::pin(tokio::time::sleep(GRACE)));
                if grace.as_mut().poll(cx).is_ready() {
                    self.break_off(io::Error::from(io::ErrorKind::TimedOut).into());
                }
            }
            Poll::Pending => {}
        }
    }

    /// Whether more may be received, or what waits be admitted.
    fn has_room(&self) -> bool {
        match &self.waiting {
            Some(ticket) => self.admits(ticket),
            None => self.replies.output.len() < SEND_AT_BYTES,
        }
    }

    fn admits(&self, ticket: &Ticket) -> bool {
        let busy_bytes = self.replies.bytes_in_flight + self.replies.output.len() as u64;
        let is_alone = busy_bytes == 0 && self.running.is_empty();
        let fits_bytes = busy_bytes + u64::from(ticket.command.payload_bytes()) <= CONNECTION_BYTES_IN_FLIGHT_MAX;
        is_alone || (fits_bytes && self.running.len() < CONNECTION_REQUESTS_IN_FLIGHT_MAX)
    }

    fn receive(&mut self, cx: &mut Context<'_>) -> Received {
        while self.is_receiving {
            let received = if let Some(Filling { buffer, filled, .. }) = &mut self.filling {
                let received = poll_read(&mut self.stream, cx, &mut buffer[*filled..]);
                if let Poll::Ready(Ok(count)) = received {
                    *filled += count;
                    self.start_filled();
                }
                received
            } else {
                match self.parse() {
                    Ok(Received::Full) => return Received::Full,
                    Ok(Received::All) if self.filling.is_some() || !self.is_receiving => continue,
                    Ok(Received::All) if self.replies.output.len() >= SEND_AT_BYTES => return Received::Full,
                    Ok(Received::All) => self.input.poll_receive(&mut self.stream, cx, self.was_large),
                    Err(violation) => {
                        self.is_receiving = false;
                        self.end = Err(violation.into());
                        break;
                    }
                }
            };
            match received {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => self.is_receiving = false,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => self.break_off(error.into()),
            }
        }
        Received::All
    }

    /// Starts what the input holds wholly. `All`: more has to be received, unless the client said it goes.
    fn parse(&mut self) -> Result<Received, Violation> {
        loop {
            if let Some(ticket) = self.waiting {
                if !self.admits(&ticket) {
                    return Ok(Received::Full);
                }
                self.waiting = None;
                self.begin(ticket);
                if self.filling.is_some() {
                    return Ok(Received::All);
                }
            }
            match self.next()? {
                None => return Ok(Received::All),
                Some(Incoming::Request { cookie, command }) => self.waiting = Some(Ticket { cookie, command }),
                Some(Incoming::Refused { cookie, errno, why }) => self.replies.refuse(cookie, errno, why),
                Some(Incoming::Disconnect) => {
                    self.is_receiving = false;
                    return Ok(Received::All);
                }
            }
        }
    }

    fn next(&mut self) -> Result<Option<Incoming>, Violation> {
        let mut rest = self.input.pending();
        let before = rest.len();
        let incoming = self.parser.next(&mut rest)?;
        let used = before - rest.len();
        self.input.consume(used);
        Ok(incoming)
    }

    /// Starts an admitted request, or begins to take a write's payload.
    fn begin(&mut self, ticket: Ticket) {
        if ticket.command.is_empty() {
            return answer_empty(&mut self.replies.output, self.replies.structured, ticket);
        }
        self.replies.bytes_in_flight += u64::from(ticket.command.payload_bytes());
        let Command::Write { offset, len, fua } = ticket.command else {
            self.was_large = false;
            let work = work::begin(&self.export, ticket.command);
            return self.start(ticket, work);
        };
        let (pending, len) = (self.input.pending(), len as usize);
        self.was_large = len >= LARGE_BYTES;
        if let Some(payload) = pending.get(..len) {
            let work = work::write(&self.export, offset, Buffer::from_slice(payload), fua);
            self.input.consume(len);
            return self.start(ticket, work);
        }
        let mut buffer = Buffer::for_read(len);
        let filled = pending.len();
        buffer[..filled].copy_from_slice(pending);
        self.input.consume(filled);
        self.filling = Some(Filling { ticket, buffer, filled });
    }

    /// Starts the write whose payload was arriving, if it is there now.
    fn start_filled(&mut self) {
        let Some(Filling { ticket, buffer, .. }) = self.filling.take_if(|it| it.filled == it.buffer.len()) else {
            return;
        };
        if let Command::Write { offset, fua, .. } = ticket.command {
            let work = work::write(&self.export, offset, buffer, fua);
            self.start(ticket, work);
        }
    }

    fn start(&mut self, ticket: Ticket, work: Work) {
        if let Some(ended) = self.running.start(ticket, work) {
            self.replies.answer(ended);
        }
    }

    /// Refuses what was not started and receives no more. What runs is answered as usual.
    fn close(&mut self) {
        if !self.is_receiving {
            return;
        }
        self.is_receiving = false;
        self.end = Ok(End::Closing);
        let filling = self.filling.take().map(|filling| filling.ticket);
        if let Some(ticket) = filling {
            self.replies.bytes_in_flight -= u64::from(ticket.command.payload_bytes());
        }
        let mut unstarted = filling.or(self.waiting.take());
        while let Some(ticket) = unstarted {
            self.replies.refuse(ticket.cookie, Errno::Shutdown, "the export is being closed");
            if let Command::Write { len, .. } = ticket.command {
                let payload = self.input.pending().len().min(len as usize);
                self.input.consume(payload);
            }
            unstarted = match self.next() {
                Ok(Some(Incoming::Request { cookie, command })) => Some(Ticket { cookie, command }),
                _ => None,
            };
        }
    }

    /// The other side receives nothing any more.
    fn break_off(&mut self, error: SessionError) {
        if self.is_receiving {
            self.end = Err(error);
        }
        self.is_receiving = false;
        self.replies.is_broken = true;
        self.replies.output.clear();
    }
}
