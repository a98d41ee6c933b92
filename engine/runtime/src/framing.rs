//! How messages lie on a stream.
//!
//! ```text
//!  0          4          8
//!  | head_len | body_len | head … | body … |      lengths little-endian
//! ```
//! Both lengths are checked against their bounds before anything is allocated for them.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use drover_base::limits::{MESSAGE_BODY_BYTES_MAX, MESSAGE_HEAD_BYTES_MAX};
use drover_base::world::Message;
use std::io;

pub(crate) const PREFIX_BYTES: usize = 8;

/// Bytes of a stream that are made room for at once: a message of declared but unsent length costs no more memory
/// than twice what has arrived of it, or this.
const GROWTH_BYTES: usize = 256 << 10;

/// The parts of `message` as they go on the stream: prefix and head, body (absent if empty).
pub fn encode(message: Message) -> (Bytes, Option<Bytes>) {
    let Message { head, body } = message;
    assert!(head.len() <= MESSAGE_HEAD_BYTES_MAX, "heads are bounded where they are made");
    assert!(body.len() <= MESSAGE_BODY_BYTES_MAX, "bodies are bounded where they are made");
    let mut start = BytesMut::with_capacity(PREFIX_BYTES + head.len());
    start.put_u32_le(head.len() as u32);
    start.put_u32_le(body.len() as u32);
    start.put_slice(&head);
    (start.freeze(), (!body.is_empty()).then_some(body))
}

/// Cuts a stream into messages.
pub struct Decoder {
    buffer: BytesMut,
    /// Bytes that a message may have, beside the bounds of all messages.
    pub(crate) limit: usize,
    /// Lengths of head and body of the message that is arriving.
    lengths: Option<(usize, usize)>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { buffer: BytesMut::new(), limit: usize::MAX, lengths: None }
    }
}

impl Decoder {
    /// The next whole message, if it has arrived. An error means that the stream cannot be read any further.
    #[allow(clippy::should_implement_trait)] // It ends by an error, and goes on when more has arrived.
    pub fn next(&mut self) -> io::Result<Option<Message>> {
        let (head, body) = match self.lengths {
            Some(lengths) => lengths,
            None if self.buffer.len() < PREFIX_BYTES => return Ok(None),
            None => {
                let lengths = (self.buffer.get_u32_le() as usize, self.buffer.get_u32_le() as usize);
                let is_over = lengths.0 > MESSAGE_HEAD_BYTES_MAX || lengths.1 > MESSAGE_BODY_BYTES_MAX;
                if is_over || lengths.0 + lengths.1 > self.limit {
                    let text = format!("a message of {} and {} bytes passes the bounds", lengths.0, lengths.1);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
                *self.lengths.insert(lengths)
            }
        };
        if self.buffer.len() < head + body {
            return Ok(None);
        }
        self.lengths = None;
        let head = self.buffer.split_to(head).freeze();
        let body = self.buffer.split_to(body).freeze();
        Ok(Some(Message { head, body }))
    }

    /// Where to put what arrives next; has room.
    pub fn space(&mut self) -> &mut BytesMut {
        let missing = match self.lengths {
            Some((head, body)) => (head + body).saturating_sub(self.buffer.len()) + PREFIX_BYTES,
            None => PREFIX_BYTES,
        };
        let spare = self.buffer.capacity() - self.buffer.len();
        if spare < missing.min(GROWTH_BYTES / 4) {
            self.buffer.reserve(missing.clamp(GROWTH_BYTES / 4, GROWTH_BYTES));
        }
        &mut self.buffer
    }

    /// Whether the stream may end here: no message is half arrived.
    pub(crate) fn is_between_messages(&self) -> bool {
        self.lengths.is_none() && self.buffer.is_empty()
    }
}
