//! Replies of the transmission phase, as a client reads them from a server it does not trust.
//!
//! Invariants
//! - Memory for a read is what the request asked for, never what a reply says; other payloads have bounds of
//!   their own and grow with what arrived.
//! - A read succeeds only when every byte of its range was told exactly once and no chunk of its reply was an
//!   error; nothing of a failed read is handed out.
//! - A reply belongs to a request that is outstanding, and to one only.

use super::proto::{self, ChunkHeader, SimpleReplyHeader, bounds, chunk};
use super::{BlockStatus, Errno, Violation};
use std::collections::BTreeMap;
use zerocopy::FromBytes;

/// Longest error chunk: its message and numbers.
const ERROR_BYTES_MAX: u32 = bounds::STRING_BYTES_MAX as u32 + 64;
/// Longest block status chunk: as many runs as the protocol advises servers to send at most.
const STATUS_BYTES_MAX: u32 = 4 + (8 << 20);
/// Servers should cut reads at multiples of this; a reply of more chunks than that gives is refused.
const CHUNK_BYTES_MIN: u32 = 512;

/// What a reply to an outstanding request may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Read { offset: u64, len: u32 },
    Status { len: u32 },
    Plain,
}

/// What a successful reply carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    Nothing,
    /// All of the range.
    Data(Vec<u8>),
    /// Consecutive runs from the request's offset; at least one, of at least a byte.
    Status(Vec<(u64, BlockStatus)>),
}

/// The end of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub cookie: u64,
    /// On failure the server's message, which may be empty.
    pub result: Result<Payload, (Errno, String)>,
}

struct Pending {
    expected: Expected,
    payload: Payload,
    /// Parts of a read that were told, relative to its offset, ascending, merged.
    told: Vec<(u32, u32)>,
    chunks: u32,
    error: Option<(Errno, String)>,
}

enum State {
    Header,
    /// Bytes of a read's data, going to `at` in its buffer.
    Data {
        cookie: u64,
        at: usize,
        left: usize,
        is_last: bool,
    },
    /// The payload of another chunk, once it is there wholly.
    Whole {
        header: ChunkHeader,
        bytes: Vec<u8>,
    },
}

/// Reads replies from a stream.
pub struct ReplyParser {
    structured: bool,
    context: Option<u32>,
    pending: BTreeMap<u64, Pending>,
    state: State,
}

impl ReplyParser {
    pub fn new(structured: bool, context: Option<u32>) -> Self {
        Self { structured, context, pending: BTreeMap::new(), state: State::Header }
    }

    /// A request was sent. Its cookie must not be outstanding.
    pub fn expect(&mut self, cookie: u64, expected: Expected) {
        let pending = Pending { expected, payload: Payload::Nothing, told: Vec::new(), chunks: 0, error: None };
        let earlier = self.pending.insert(cookie, pending);
        assert!(earlier.is_none(), "a cookie names one request");
    }

    /// The next request that ended; takes bytes off the front of `input`. `None`: more bytes are needed.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Answer>, Violation> {
        loop {
            let ended = match &mut self.state {
                State::Header => match self.read_header(input)? {
                    None => return Ok(None),
                    Some(ended) => ended,
                },
                State::Data { cookie, at, left, is_last } => {
                    let (cookie, is_last) = (*cookie, *is_last);
                    let count = input.len().min(*left);
                    let Some(Pending { payload: Payload::Data(data), .. }) = self.pending.get_mut(&cookie) else {
                        return Err(Violation::Unasked);
                    };
                    data[*at..*at + count].copy_from_slice(&input[..count]);
                    *input = &input[count..];
                    *at += count;
                    *left -= count;
                    if *left > 0 {
                        return Ok(None);
                    }
                    self.state = State::Header;
                    is_last.then_some(cookie)
                }
                State::Whole { header, bytes } => {
                    let count = input.len().min(header.len.get() as usize - bytes.len());
                    bytes.extend_from_slice(&input[..count]);
                    *input = &input[count..];
                    if bytes.len() < header.len.get() as usize {
                        return Ok(None);
                    }
                    let (header, bytes) = (*header, std::mem::take(bytes));
                    self.state = State::Header;
                    self.take_chunk(&header, &bytes)?;
                    (header.flags.get() & chunk::DONE != 0).then_some(header.cookie.get())
                }
            };
            if let Some(cookie) = ended {
                return self.end(cookie).map(Some);
            }
        }
    }

    /// `None`: incomplete. Otherwise the cookie of the request that this ended, if it did.
    fn read_header(&mut self, input: &mut &[u8]) -> Result<Option<Option<u64>>, Violation> {
        let Some((magic, _)) = input.split_first_chunk() else { return Ok(None) };
        match u32::from_be_bytes(*magic) {
            proto::SIMPLE_REPLY_MAGIC => {
                let Ok((header, rest)) = SimpleReplyHeader::read_from_prefix(input) else { return Ok(None) };
                *input = rest;
                self.take_simple(&header).map(Some)
            }
            proto::CHUNK_MAGIC if self.structured => {
                let Ok((header, rest)) = ChunkHeader::read_from_prefix(input) else { return Ok(None) };
                // The offset in front of data is read with the header.
                if header.kind.get() == chunk::OFFSET_DATA && header.len.get() > 8 {
                    let Some((offset, rest)) = rest.split_first_chunk() else { return Ok(None) };
                    *input = rest;
                    self.take_data(&header, u64::from_be_bytes(*offset))?;
                    return Ok(Some(None));
                }
                *input = rest;
                self.check_chunk(&header)?;
                self.state = State::Whole { header, bytes: Vec::new() };
                Ok(Some(None))
            }
            _ => Err(Violation::Magic("a reply")),
        }
    }

    fn take_simple(&mut self, header: &SimpleReplyHeader) -> Result<Option<u64>, Violation> {
        let (cookie, errno) = (header.cookie.get(), header.errno.get());
        let pending = self.pending.get_mut(&cookie).ok_or(Violation::Unasked)?;
        if pending.chunks > 0 {
            return Err(Violation::Unfitting);
        }
        if errno != 0 {
            pending.error = Some((Errno::from_wire(errno), String::new()));
            return Ok(Some(cookie));
        }
        match pending.expected {
            Expected::Plain => Ok(Some(cookie)),
            Expected::Read { len, .. } if !self.structured => {
                pending.payload = Payload::Data(vec![0; len as usize]);
                pending.tell(0, len)?;
                self.state = State::Data { cookie, at: 0, left: len as usize, is_last: true };
                Ok(None)
            }
            _ => Err(Violation::Unfitting),
        }
    }

    fn take_data(&mut self, header: &ChunkHeader, offset: u64) -> Result<(), Violation> {
        let (cookie, len) = (header.cookie.get(), header.len.get() - 8);
        let pending = self.pending.get_mut(&cookie).ok_or(Violation::Unasked)?;
        let at = pending.content(offset, len)?;
        let is_last = header.flags.get() & chunk::DONE != 0;
        self.state = State::Data { cookie, at, left: len as usize, is_last };
        Ok(())
    }

    /// Whether a chunk that is not data may come, and be of that length.
    fn check_chunk(&self, header: &ChunkHeader) -> Result<(), Violation> {
        if !self.pending.contains_key(&header.cookie.get()) {
            return Err(Violation::Unasked);
        }
        let len = header.len.get();
        let (least, most) = match header.kind.get() {
            chunk::NONE => (0, 0),
            chunk::OFFSET_HOLE => (12, 12),
            chunk::BLOCK_STATUS => (12, STATUS_BYTES_MAX),
            kind if kind & chunk::IS_ERROR != 0 => (6, ERROR_BYTES_MAX),
            _ => return Err(Violation::Form("a chunk's type")),
        };
        if len < least {
            return Err(Violation::Form("a chunk's length"));
        }
        if len > most {
            return Err(Violation::TooLong { what: "a chunk", len: len.into(), most: most.into() });
        }
        Ok(())
    }

    fn take_chunk(&mut self, header: &ChunkHeader, bytes: &[u8]) -> Result<(), Violation> {
        let pending = self.pending.get_mut(&header.cookie.get()).ok_or(Violation::Unasked)?;
        let form = Violation::Form("a chunk");
        match header.kind.get() {
            chunk::NONE if header.flags.get() & chunk::DONE == 0 => Err(form),
            chunk::NONE => Ok(()),
            chunk::OFFSET_HOLE => {
                let (offset, len) = bytes.split_first_chunk().ok_or(form)?;
                let len = u32::from_be_bytes(len.try_into().map_err(|_| form)?);
                // The buffer is made of zeroes.
                pending.content(u64::from_be_bytes(*offset), len).map(|_| ())
            }
            chunk::BLOCK_STATUS => pending.status(bytes, self.context.ok_or(Violation::Unasked)?),
            _ => {
                let (errno, rest) = bytes.split_first_chunk().ok_or(form)?;
                let (len, rest) = rest.split_first_chunk().ok_or(form)?;
                let message = rest.get(..u16::from_be_bytes(*len) as usize).ok_or(form)?;
                let errno = u32::from_be_bytes(*errno);
                if errno == 0 {
                    return Err(form);
                }
                let message = String::from_utf8_lossy(message).chars().filter(|char| !char.is_control()).collect();
                pending.chunk()?;
                pending.error.get_or_insert((Errno::from_wire(errno), message));
                Ok(())
            }
        }
    }

    fn end(&mut self, cookie: u64) -> Result<Answer, Violation> {
        let pending = self.pending.remove(&cookie).ok_or(Violation::Unasked)?;
        if let Some(error) = pending.error {
            return Ok(Answer { cookie, result: Err(error) });
        }
        let payload = match (pending.expected, pending.payload) {
            (Expected::Read { len: 0, .. }, _) => Payload::Data(Vec::new()),
            (Expected::Read { len, .. }, data) if pending.told == [(0, len)] => data,
            (Expected::Status { .. }, Payload::Status(runs)) => Payload::Status(runs),
            (Expected::Plain, Payload::Nothing) => Payload::Nothing,
            _ => return Err(Violation::Unfitting),
        };
        Ok(Answer { cookie, result: Ok(payload) })
    }
}

impl Pending {
    fn chunk(&mut self) -> Result<(), Violation> {
        self.chunks += 1;
        let len = match self.expected {
            Expected::Read { len, .. } => len,
            Expected::Status { .. } | Expected::Plain => 0,
        };
        if self.chunks > len / CHUNK_BYTES_MIN + 4 { Err(Violation::Unfitting) } else { Ok(()) }
    }

    /// A read's data or hole arrives; where it goes in the buffer.
    fn content(&mut self, offset: u64, len: u32) -> Result<usize, Violation> {
        let Expected::Read { offset: start, len: asked } = self.expected else { return Err(Violation::Unfitting) };
        self.chunk()?;
        let at = offset.checked_sub(start).filter(|at| *at <= asked.into()).ok_or(Violation::Unfitting)? as u32;
        if len == 0 || len > asked - at {
            return Err(Violation::Unfitting);
        }
        self.tell(at, at + len)?;
        if self.payload == Payload::Nothing {
            self.payload = Payload::Data(vec![0; asked as usize]);
        }
        Ok(at as usize)
    }

    /// Marks a part as told, which must not be already.
    fn tell(&mut self, start: u32, end: u32) -> Result<(), Violation> {
        let next = self.told.partition_point(|part| part.1 <= start);
        if self.told.get(next).is_some_and(|part| part.0 < end) {
            return Err(Violation::Unfitting);
        }
        let joins_next = self.told.get(next).is_some_and(|part| part.0 == end);
        let joins_previous = next > 0 && self.told[next - 1].1 == start;
        match (joins_previous, joins_next) {
            (true, true) => {
                self.told[next - 1].1 = self.told[next].1;
                self.told.remove(next);
            }
            (true, false) => self.told[next - 1].1 = end,
            (false, true) => self.told[next].0 = start,
            (false, false) => self.told.insert(next, (start, end)),
        }
        Ok(())
    }

    fn status(&mut self, bytes: &[u8], context: u32) -> Result<(), Violation> {
        let form = Violation::Form("a block status");
        if !matches!((self.expected, &self.payload), (Expected::Status { .. }, Payload::Nothing)) {
            return Err(Violation::Unfitting);
        }
        let (id, rest) = bytes.split_first_chunk().ok_or(form)?;
        let (runs, rest) = rest.as_chunks::<8>();
        if u32::from_be_bytes(*id) != context || !rest.is_empty() || runs.is_empty() {
            return Err(form);
        }
        let mut told = Vec::with_capacity(runs.len());
        for run in runs {
            let [a, b, c, d, e, f, g, h] = *run;
            let (len, flags) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
            if len == 0 {
                return Err(form);
            }
            let (hole, zero) = (flags & proto::STATE_HOLE != 0, flags & proto::STATE_ZERO != 0);
            told.push((len.into(), BlockStatus { hole, zero }));
        }
        self.payload = Payload::Status(told);
        Ok(())
    }
}
