//! Requests of the transmission phase: read by a server, written by a client.

use super::proto::{self, REQUEST_HEADER_BYTES, RequestHeader, bounds, command, command_flags as flag};
use super::{Errno, Violation};
use zerocopy::FromBytes;

/// What a connection agreed on in its handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    pub size_bytes: u64,
    pub read_only: bool,
    pub structured: bool,
    /// `base:allocation` is set for the export.
    pub block_status: bool,
}

/// A request, checked against the terms: its range lies within the export, its flags fit its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// At most `PAYLOAD_BYTES_MAX` bytes. `in_one`: the client wants the data in one piece.
    Read {
        offset: u64,
        len: u32,
        in_one: bool,
    },
    /// At most `PAYLOAD_BYTES_MAX` bytes, which follow.
    Write {
        offset: u64,
        len: u32,
        fua: bool,
    },
    Flush,
    /// Any length.
    Trim {
        offset: u64,
        len: u32,
        fua: bool,
    },
    Cache {
        offset: u64,
        len: u32,
    },
    /// Any length.
    WriteZeroes {
        offset: u64,
        len: u32,
        may_unmap: bool,
        fast_only: bool,
        fua: bool,
    },
    /// `one`: the reply has one run, no longer than `len`.
    BlockStatus {
        offset: u64,
        len: u32,
        one: bool,
    },
}

impl Command {
    /// Bytes that the request or its reply carries.
    pub fn payload_bytes(&self) -> u32 {
        match self {
            Self::Read { len, .. } | Self::Write { len, .. } => *len,
            Self::BlockStatus { one: false, .. } => (bounds::STATUS_RUNS_MAX * 8) as u32,
            _ => 0,
        }
    }

    /// Whether it is about no bytes at all, so that nothing has to be done for it.
    pub fn is_empty(&self) -> bool {
        let (kind, _, _, len) = self.header();
        len == 0 && kind != command::FLUSH
    }

    /// Whether it may change the export.
    pub fn writes(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Trim { .. } | Self::WriteZeroes { .. })
    }

    /// Type, flags, offset and length of its header.
    fn header(&self) -> (u16, u16, u64, u32) {
        let when = |condition: bool, flag: u16| if condition { flag } else { 0 };
        match *self {
            Self::Read { offset, len, in_one } => (command::READ, when(in_one, flag::DF), offset, len),
            Self::Write { offset, len, fua } => (command::WRITE, when(fua, flag::FUA), offset, len),
            Self::Flush => (command::FLUSH, 0, 0, 0),
            Self::Trim { offset, len, fua } => (command::TRIM, when(fua, flag::FUA), offset, len),
            Self::Cache { offset, len } => (command::CACHE, 0, offset, len),
            Self::WriteZeroes { offset, len, may_unmap, fast_only, fua } => {
                let flags = when(!may_unmap, flag::NO_HOLE) | when(fast_only, flag::FAST_ZERO) | when(fua, flag::FUA);
                (command::WRITE_ZEROES, flags, offset, len)
            }
            Self::BlockStatus { offset, len, one } => (command::BLOCK_STATUS, when(one, flag::REQ_ONE), offset, len),
        }
    }
}

/// The header of a request; a write's payload has to follow it.
pub fn encode_request(cookie: u64, command: &Command) -> [u8; REQUEST_HEADER_BYTES] {
    let (kind, flags, offset, len) = command.header();
    encode(kind, flags, cookie, offset, len)
}

/// The header that ends a connection; it has no reply.
pub fn encode_disconnect() -> [u8; REQUEST_HEADER_BYTES] {
    encode(command::DISC, 0, 0, 0, 0)
}

fn encode(kind: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> [u8; REQUEST_HEADER_BYTES] {
    let header = RequestHeader {
        magic: proto::REQUEST_MAGIC.into(),
        flags: flags.into(),
        command: kind.into(),
        cookie: cookie.into(),
        offset: offset.into(),
        len: len.into(),
    };
    zerocopy::transmute!(header)
}

/// What came from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// To be carried out. The `len` bytes after a write's header are the caller's to take from the stream
    /// before it calls the parser again.
    Request { cookie: u64, command: Command },
    /// To be answered with the error; a payload was skipped.
    Refused { cookie: u64, errno: Errno, why: &'static str },
    /// The client goes: carry out what is in flight, then close.
    Disconnect,
}

/// Reads requests from a stream.
///
/// Invariant: a refused write's payload is skipped before the refusal is handed out, so the next bytes are
/// always a header.
pub struct RequestParser {
    terms: Terms,
    skip: Option<(u32, Incoming)>,
}

impl RequestParser {
    pub fn new(terms: Terms) -> Self {
        Self { terms, skip: None }
    }

    /// The next request, its bytes taken off the front of `input`; `None` while it is not there wholly.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Incoming>, Violation> {
        if self.skip.is_none() {
            let Ok((header, rest)) = RequestHeader::read_from_prefix(input) else { return Ok(None) };
            *input = rest;
            if header.magic.get() != proto::REQUEST_MAGIC {
                return Err(Violation::Magic("a request"));
            }
            let incoming = self.check(&header)?;
            let is_refused_write =
                header.command.get() == command::WRITE && matches!(incoming, Incoming::Refused { .. });
            if !is_refused_write {
                return Ok(Some(incoming));
            }
            self.skip = Some((header.len.get(), incoming));
        }
        if let Some((left, _)) = &mut self.skip {
            let count = input.len().min(*left as usize);
            *input = &input[count..];
            *left -= count as u32;
        }
        Ok(self.skip.take_if(|(left, _)| *left == 0).map(|(_, refused)| refused))
    }

    fn check(&self, header: &RequestHeader) -> Result<Incoming, Violation> {
        let (kind, len) = (header.command.get(), header.len.get());
        if kind == command::WRITE && len > bounds::PAYLOAD_SKIP_BYTES_MAX {
            let most = bounds::PAYLOAD_SKIP_BYTES_MAX.into();
            return Err(Violation::TooLong { what: "a write", len: len.into(), most });
        }
        if kind == command::DISC {
            return Ok(Incoming::Disconnect);
        }
        let cookie = header.cookie.get();
        Ok(match self.command(kind, header.flags.get(), header.offset.get(), len) {
            Ok(command) => Incoming::Request { cookie, command },
            Err((errno, why)) => Incoming::Refused { cookie, errno, why },
        })
    }

    fn command(&self, kind: u16, flags: u16, offset: u64, len: u32) -> Result<Command, (Errno, &'static str)> {
        let is = |bit: u16| flags & bit != 0;
        // The protocol asks to accept FUA on every request.
        let fua = is(flag::FUA);
        let (command, fitting) = match kind {
            command::READ => {
                let df = if self.terms.structured { flag::DF } else { 0 };
                (Command::Read { offset, len, in_one: is(flag::DF) }, df)
            }
            command::WRITE => (Command::Write { offset, len, fua }, 0),
            command::FLUSH => (Command::Flush, 0),
            command::TRIM => (Command::Trim { offset, len, fua }, 0),
            command::CACHE => (Command::Cache { offset, len }, 0),
            command::WRITE_ZEROES => {
                let (may_unmap, fast_only) = (!is(flag::NO_HOLE), is(flag::FAST_ZERO));
                let command = Command::WriteZeroes { offset, len, may_unmap, fast_only, fua };
                (command, flag::NO_HOLE | flag::FAST_ZERO)
            }
            command::BLOCK_STATUS => (Command::BlockStatus { offset, len, one: is(flag::REQ_ONE) }, flag::REQ_ONE),
            _ => return Err((Errno::Invalid, "unknown command")),
        };
        if flags & !(fitting | flag::FUA) != 0 {
            return Err((Errno::Invalid, "a flag that does not fit the command"));
        }
        self.check_range(&command, offset, len)?;
        Ok(command)
    }

    fn check_range(&self, command: &Command, offset: u64, len: u32) -> Result<(), (Errno, &'static str)> {
        if command.writes() && self.terms.read_only {
            return Err((Errno::Perm, "the export is read-only"));
        }
        match command {
            Command::Flush if offset != 0 || len != 0 => {
                return Err((Errno::Invalid, "a flush has no range"));
            }
            Command::BlockStatus { .. } if !self.terms.block_status => {
                return Err((Errno::Invalid, "no metadata context was set"));
            }
            Command::BlockStatus { .. } if len == 0 => return Err((Errno::Invalid, "the range is empty")),
            // Only these may be told so, says the protocol.
            Command::Read { .. } if len > bounds::PAYLOAD_BYTES_MAX && self.terms.structured => {
                return Err((Errno::Overflow, "the read is larger than the maximum payload"));
            }
            Command::Read { .. } | Command::Write { .. } if len > bounds::PAYLOAD_BYTES_MAX => {
                return Err((Errno::Invalid, "the request is larger than the maximum payload"));
            }
            _ => {}
        }
        let fits = offset.checked_add(len.into()).is_some_and(|end| end <= self.terms.size_bytes);
        match command {
            _ if fits => Ok(()),
            Command::Write { .. } | Command::WriteZeroes { .. } => {
                Err((Errno::NoSpace, "the range passes the export's end"))
            }
            _ => Err((Errno::Invalid, "the range passes the export's end")),
        }
    }
}
