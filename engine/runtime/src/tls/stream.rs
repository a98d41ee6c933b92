//! A TLS session on a TCP connection.
//!
//! Invariants
//! - Nothing of a request is taken or given before the handshake is done: [`TlsStream::handshake`] comes first.
//! - Bytes are read from the socket only when every decrypted byte was handed out, and taken for sending only when every
//!   encrypted byte but those of the last call has left: what it holds of either direction is bounded.
//! - An end without TLS's own end is an error: somebody on the way may have cut the connection.
//! - After a failed record the session gives nothing more.

use super::verify::carries;
use bytes::BytesMut;
use rustls::Connection as Session;
use std::cell::RefCell;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes of one receive from the socket: four records.
const RECEIVE_BYTES: usize = 64 << 10;

/// Receives in a row without content: a record takes a few.
const RECEIVES_MAX: usize = 256;

/// Bytes taken for sending at once.
const SEND_BYTES: usize = 128 << 10;

/// A TCP connection, encrypted.
#[derive(Debug)]
pub struct TlsStream {
    stream: TcpStream,
    state: RefCell<State>,
}

/// The same, registered nowhere: it may move to another thread.
#[derive(Debug)]
pub struct DetachedTls {
    stream: std::net::TcpStream,
    state: State,
}

#[derive(Debug)]
struct State {
    session: Session,
    /// Received and not decrypted: `start..end`.
    received: Box<[u8]>,
    start: usize,
    end: usize,
    failed: bool,
}

/// A socket as the session writes to it.
struct Outlet<'a>(&'a TcpStream);

impl Write for Outlet<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl State {
    /// Sends what is encrypted. `WouldBlock`: some of it is left.
    fn flush(&mut self, stream: &TcpStream) -> io::Result<()> {
        while self.session.wants_write() {
            if self.session.write_tls(&mut Outlet(stream))? == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }

    /// Takes more of what the other side encrypted. `Ok(false)`: it has closed the connection.
    fn receive(&mut self, stream: &TcpStream) -> io::Result<bool> {
        if self.failed {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        if self.start == self.end {
            (self.start, self.end) = (0, stream.try_read(&mut self.received)?);
        }
        let is_end = self.start == self.end;
        self.start += self.session.read_tls(&mut &self.received[self.start..self.end])?;
        if let Err(error) = self.session.process_new_packets() {
            self.failed = true;
            // Tells the other side why; it may have gone.
            let _ = self.flush(stream);
            return Err(io::Error::new(ErrorKind::InvalidData, error));
        }
        // What is left is sent by the next write.
        match self.flush(stream) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(!is_end),
        }
    }

    /// Decrypted bytes. 0: the other side has ended, by TLS.
    fn read(&mut self, stream: &TcpStream, room: &mut [u8]) -> io::Result<usize> {
        for _ in 0..RECEIVES_MAX {
            match self.session.reader().read(room) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return result,
            }
            self.receive(stream)?;
        }
        // Records without content, one after the other: they would keep the thread.
        Err(ErrorKind::InvalidData.into())
    }

    fn write(&mut self, stream: &TcpStream, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.flush(stream)?;
        let mut taken = 0;
        for part in parts {
            let count = self.session.writer().write(&part[..part.len().min(SEND_BYTES - taken)])?;
            taken += count;
            if count < part.len() || taken == SEND_BYTES {
                break;
            }
        }
        match self.flush(stream) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(taken),
        }
    }
}

impl TlsStream {
    pub(super) fn new(stream: TcpStream, mut session: Session) -> Self {
        session.set_buffer_limit(Some(2 * SEND_BYTES));
        let received = vec![0; RECEIVE_BYTES].into_boxed_slice();
        let state = State { session, received, start: 0, end: 0, failed: false };
        Self { stream, state: RefCell::new(state) }
    }

    /// Both sides show their certificates. It has no deadline of its own.
    pub async fn handshake(&self) -> io::Result<()> {
        loop {
            let flushed = self.state.borrow_mut().flush(&self.stream);
            match flushed {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.stream.writable().await?;
                    continue;
                }
                result => result?,
            }
            if !self.state.borrow().session.is_handshaking() {
                return Ok(());
            }
            let received = self.state.borrow_mut().receive(&self.stream);
            match received {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.stream.readable().await?,
                Ok(false) => return Err(ErrorKind::UnexpectedEof.into()),
                result => drop(result?),
            }
        }
    }

    /// Whether the other side's certificate carries the DNS name.
    pub fn shows(&self, name: &str) -> bool {
        let state = self.state.borrow();
        let shown = state.session.peer_certificates().and_then(<[_]>::first);
        shown.is_some_and(|certificate| carries(certificate, name))
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        &self.stream
    }

    pub(crate) fn try_read_buf(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        let begin = buffer.len();
        // The caller has made room; it is handed out as zeros so that it can be read into.
        let room = buffer.capacity() - begin;
        buffer.resize(begin + room.min(RECEIVE_BYTES), 0);
        let read = self.state.borrow_mut().read(&self.stream, &mut buffer[begin..]);
        buffer.truncate(begin + read.as_ref().map_or(0, |count| *count));
        read
    }

    pub(crate) fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.state.borrow_mut().write(&self.stream, parts)
    }

    /// Sends what was taken. `WouldBlock`: some of it is left.
    pub(crate) fn try_flush(&self) -> io::Result<()> {
        self.state.borrow_mut().flush(&self.stream)
    }

    /// Tells the other side that nothing follows.
    pub(crate) fn end(&self) {
        let mut state = self.state.borrow_mut();
        state.session.send_close_notify();
        // Where there is no room for it, or the other side has gone, it finds the end cut off.
        let _ = state.flush(&self.stream);
    }

    /// Takes it off this thread's runtime.
    pub fn detach(self) -> io::Result<DetachedTls> {
        Ok(DetachedTls { stream: self.stream.into_std()?, state: self.state.into_inner() })
    }

    fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.state.get_mut().flush(&self.stream) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready!(self.stream.poll_write_ready(cx))?,
                result => return Poll::Ready(result),
            }
        }
    }
}

impl DetachedTls {
    /// Registers it with the runtime of the calling thread.
    pub fn attach(self) -> io::Result<TlsStream> {
        Ok(TlsStream { stream: TcpStream::from_std(self.stream)?, state: RefCell::new(self.state) })
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match this.state.get_mut().read(&this.stream, buf.initialize_unfilled()) {
                Ok(count) => {
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready!(this.stream.poll_read_ready(cx))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_flushed(cx))?;
        Poll::Ready(this.state.get_mut().write(&this.stream, parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_flushed(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.state.get_mut().session.send_close_notify();
        ready!(this.poll_flushed(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
