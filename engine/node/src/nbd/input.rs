//! Bytes of a client that were received and not yet understood.

use super::stream::NbdStream;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, ReadBuf};

/// Room for what one receive brings: 32 writes of 4 KiB with their headers fit.
const INPUT_BYTES: usize = 160 << 10;

/// Room for what one receive brings after a large write: little, so that the payload of the next one goes
/// straight to its own buffer.
const INPUT_BYTES_BEFORE_LARGE: usize = 4 << 10;

/// A window of received bytes.
pub(super) struct Input {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Input {
    /// Begins with what came with the handshake.
    pub fn new(leftover: &[u8]) -> Self {
        let mut bytes = vec![0; INPUT_BYTES.max(leftover.len())].into_boxed_slice();
        bytes[..leftover.len()].copy_from_slice(leftover);
        Self { bytes, start: 0, end: leftover.len() }
    }

    pub fn pending(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// The first `count` bytes were understood.
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.end - self.start);
        self.start += count;
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Receives once. Ready with 0: the client has closed. `before_large`: a large payload is likely to come.
    pub fn poll_receive(
        &mut self,
        stream: &mut NbdStream,
        cx: &mut Context<'_>,
        before_large: bool,
    ) -> Poll<io::Result<usize>> {
        // What is left is less than a header wherever this is called, so moving it costs nothing.
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let most = if before_large { INPUT_BYTES_BEFORE_LARGE } else { self.bytes.len() };
        let received = poll_read(stream, cx, &mut self.bytes[self.end..most]);
        if let Poll::Ready(Ok(count)) = received {
            self.end += count;
        }
        received
    }
}

/// One receive into `room`, which must not be empty.
pub(super) fn poll_read(stream: &mut NbdStream, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
    let mut buf = ReadBuf::new(room);
    Pin::new(stream).poll_read(cx, &mut buf).map_ok(|()| buf.filled().len())
}
