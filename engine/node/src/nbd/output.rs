//! Replies on their way out.
//!
//! Invariant: the stream is `segments` in order, then `tail`; `sent` bytes of the first of them have gone. Small
//! replies are copied together in `tail`; a large read's buffer becomes a segment of its own, uncopied.

use super::stream::NbdStream;
use drover_disk::Buffer;
use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::AsyncWrite;

/// From this size on a read's data is sent from its own buffer: below it copying is cheaper than another piece
/// of a vectored send.
const UNCOPIED_BYTES_MIN: usize = 32 << 10;
/// Pieces of one vectored send.
const SLICES_MAX: usize = 64;
/// A spare tail larger than this is given back.
const TAIL_BYTES_KEPT: usize = 512 << 10;

enum Segment {
    Copied(Vec<u8>),
    Data(Buffer),
}

impl AsRef<[u8]> for Segment {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Copied(bytes) => bytes,
            Self::Data(buffer) => buffer,
        }
    }
}

#[derive(Default)]
pub(super) struct Output {
    segments: VecDeque<Segment>,
    tail: Vec<u8>,
    sent: usize,
    len: usize,
}

impl Output {
    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends what `write` writes.
    pub fn append<T>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let before = self.tail.len();
        let result = write(&mut self.tail);
        self.len += self.tail.len() - before;
        result
    }

    /// Appends a read's data.
    pub fn append_data(&mut self, data: Buffer) {
        self.len += data.len();
        if data.len() < UNCOPIED_BYTES_MIN {
            self.tail.extend_from_slice(&data);
            return;
        }
        if !self.tail.is_empty() {
            self.segments.push_back(Segment::Copied(std::mem::take(&mut self.tail)));
        }
        self.segments.push_back(Segment::Data(data));
    }

    /// Forgets all of it: nobody will read it.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Sends until all has gone or the socket is full.
    pub fn poll_send(&mut self, stream: &mut NbdStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.len > 0 {
            let count = if self.segments.is_empty() {
                ready!(Pin::new(&mut *stream).poll_write(cx, &self.tail[self.sent..]))?
            } else {
                ready!(self.poll_send_vectored(stream, cx))?
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.take_off(count);
        }
        // A TLS session may hold some of it yet.
        Pin::new(stream).poll_flush(cx)
    }

    fn poll_send_vectored(&self, stream: &mut NbdStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut count = 0;
        let pieces = self.segments.iter().map(AsRef::as_ref).chain([self.tail.as_slice()]);
        for (slice, (index, piece)) in slices.iter_mut().zip(pieces.enumerate()) {
            *slice = IoSlice::new(if index == 0 { &piece[self.sent..] } else { piece });
            count += 1;
        }
        Pin::new(stream).poll_write_vectored(cx, &slices[..count])
    }

    fn take_off(&mut self, count: usize) {
        self.len -= count;
        self.sent += count;
        while let Some(first) = self.segments.front() {
            let len = first.as_ref().len();
            if self.sent < len {
                return;
            }
            self.sent -= len;
            self.segments.pop_front();
        }
        if self.sent == self.tail.len() {
            self.sent = 0;
            self.tail.clear();
            if self.tail.capacity() > TAIL_BYTES_KEPT {
                self.tail = Vec::new();
            }
        }
    }
}
