//! The client's side of the handshake.
//!
//! ```text
//! Greeting ─► (StartTls ─► StartingTls ─►) StructuredReply ─► SetContext ─► Go ─► Done
//!    │ not fixed     └─ refused ───────────────►│
//!    └────────────────────────► ExportName ◄────┘ unsupported: an old server
//! ```
//!
//! Invariants
//! - One option is outstanding at a time; a reply to any other is a violation.
//! - A reply is at most `REPLY_BYTES_MAX` long and an option has at most `REPLIES_MAX` of them, whatever the
//!   server says.
//! - Where TLS is wanted nothing is asked for, and nothing taken, without it: a server that does not offer it is left, and
//!   so is one that sends more unencrypted behind its consent.

use super::proto::{self, bounds, client_flags, handshake_flags, info, option, rep};
use super::{Errno, ExportName, Violation};
use zerocopy::{FromBytes, IntoBytes};

/// Longest reply to an option: a string of the protocol and what comes before it.
const REPLY_BYTES_MAX: u32 = bounds::STRING_BYTES_MAX as u32 + 64;
/// Most replies to one option; we ask for three things at most.
const REPLIES_MAX: u32 = 64;

/// What the server offers, as agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerTerms {
    pub size_bytes: u64,
    /// Of [`proto::transmission_flags`]; zero from a server that does not know them.
    pub flags: u16,
    pub structured: bool,
    /// The number of `base:allocation` in block status replies.
    pub context: Option<u32>,
    /// Requests have to be multiples of it; a power of two.
    pub block_bytes_min: u32,
    /// Largest payload of a request.
    pub payload_bytes_max: u32,
}

impl ServerTerms {
    /// Whether all of `flags` are offered.
    pub fn offers(&self, flags: u16) -> bool {
        self.flags & flags == flags
    }
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The server's own words, which may be empty.
    #[error("the server refused: {errno}: {message}")]
    Refused { errno: Errno, message: String },
}

/// What the machine wants next, once its output was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientStep {
    Receive,
    /// Let TLS begin: `secured`.
    StartTls,
    /// Requests may be sent. Bytes of the server after the handshake are in `into_leftover`.
    Serve(ServerTerms),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting,
    StartTls,
    StartingTls,
    StructuredReply,
    SetContext,
    Go,
    ExportName,
    Done,
}

/// The machine.
pub struct ClientHandshake {
    state: State,
    name: String,
    input: Vec<u8>,
    output: Vec<u8>,
    no_zeroes: bool,
    wants_tls: bool,
    replies: u32,
    has_size: bool,
    terms: ServerTerms,
}

impl ClientHandshake {
    pub fn new(name: &ExportName, wants_tls: bool) -> Self {
        let terms = ServerTerms {
            size_bytes: 0,
            flags: 0,
            structured: false,
            context: None,
            block_bytes_min: 1,
            payload_bytes_max: bounds::PAYLOAD_BYTES_MAX,
        };
        Self {
            state: State::Greeting,
            name: name.to_string(),
            input: Vec::new(),
            output: Vec::new(),
            no_zeroes: false,
            wants_tls,
            replies: 0,
            has_size: false,
            terms,
        }
    }

    /// Takes what came from the server. Give it what one receive brought, then `poll`.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// The answer to [`ClientStep::StartTls`]: what comes from now on is encrypted.
    pub fn secured(&mut self) {
        if self.state == State::StartingTls {
            self.ask(State::StructuredReply);
        }
    }

    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    pub fn into_leftover(self) -> Vec<u8> {
        self.input
    }

    pub fn poll(&mut self) -> Result<ClientStep, HandshakeError> {
        loop {
            let done = match self.state {
                State::Greeting => self.read_greeting()?,
                State::StartingTls => return Ok(ClientStep::StartTls),
                State::StartTls | State::StructuredReply | State::SetContext | State::Go => self.read_reply()?,
                State::ExportName => self.read_export()?,
                State::Done => return Ok(ClientStep::Serve(self.terms)),
            };
            if !done {
                return Ok(ClientStep::Receive);
            }
        }
    }

    fn head<T: FromBytes>(&self) -> Option<T> {
        T::read_from_prefix(&self.input).ok().map(|(head, _)| head)
    }

    fn read_greeting(&mut self) -> Result<bool, HandshakeError> {
        let Some(greeting) = self.head::<proto::Greeting>() else { return Ok(false) };
        if greeting.magic.get() != proto::NBD_MAGIC || greeting.option_magic.get() != proto::OPTION_MAGIC {
            return Err(Violation::Magic("the greeting").into());
        }
        self.input.drain(..size_of::<proto::Greeting>());
        let offered = greeting.flags.get();
        self.no_zeroes = offered & handshake_flags::NO_ZEROES != 0;
        let is_fixed = offered & handshake_flags::FIXED_NEWSTYLE != 0;
        let mut flags = if is_fixed { client_flags::FIXED_NEWSTYLE } else { 0 };
        if self.no_zeroes {
            flags |= client_flags::NO_ZEROES;
        }
        self.output.extend_from_slice(&flags.to_be_bytes());
        self.ask(match (self.wants_tls, is_fixed) {
            (true, true) => State::StartTls,
            (true, false) => return Err(refused_tls("it knows no options")),
            (false, true) => State::StructuredReply,
            (false, false) => State::ExportName,
        });
        Ok(true)
    }

    /// Sends the option that belongs to `state`.
    fn ask(&mut self, state: State) {
        self.state = state;
        self.replies = 0;
        let name = self.name.as_bytes();
        let prefixed = |len: usize| (len as u32).to_be_bytes();
        let mut payload = Vec::new();
        let option = match state {
            State::StartTls => option::STARTTLS,
            State::StructuredReply => option::STRUCTURED_REPLY,
            State::SetContext => {
                payload.extend_from_slice(&prefixed(name.len()));
                payload.extend_from_slice(name);
                payload.extend_from_slice(&1u32.to_be_bytes());
                payload.extend_from_slice(&prefixed(proto::CONTEXT_NAME.len()));
                payload.extend_from_slice(proto::CONTEXT_NAME.as_bytes());
                option::SET_META_CONTEXT
            }
            State::Go => {
                payload.extend_from_slice(&prefixed(name.len()));
                payload.extend_from_slice(name);
                payload.extend_from_slice(&1u16.to_be_bytes());
                payload.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
                option::GO
            }
            State::ExportName => {
                payload.extend_from_slice(name);
                option::EXPORT_NAME
            }
            State::Greeting | State::StartingTls | State::Done => return,
        };
        let len = payload.len() as u32;
        let header = proto::OptionHeader { magic: proto::OPTION_MAGIC.into(), option: option.into(), len: len.into() };
        self.output.extend_from_slice(header.as_bytes());
        self.output.extend_from_slice(&payload);
    }

    fn read_reply(&mut self) -> Result<bool, HandshakeError> {
        let Some(header) = self.head::<proto::OptionReplyHeader>() else { return Ok(false) };
        let (reply, len) = (header.reply.get(), header.len.get());
        if header.magic.get() != proto::OPTION_REPLY_MAGIC {
            return Err(Violation::Magic("a reply to an option").into());
        }
        let asked = match self.state {
            State::StartTls => option::STARTTLS,
            State::StructuredReply => option::STRUCTURED_REPLY,
            State::SetContext => option::SET_META_CONTEXT,
            _ => option::GO,
        };
        if header.option.get() != asked {
            return Err(Violation::Unasked.into());
        }
        if len > REPLY_BYTES_MAX {
            let most = REPLY_BYTES_MAX.into();
            return Err(Violation::TooLong { what: "a reply to an option", len: len.into(), most }.into());
        }
        let whole = size_of::<proto::OptionReplyHeader>() + len as usize;
        if self.input.len() < whole {
            return Ok(false);
        }
        self.replies += 1;
        if self.replies > REPLIES_MAX {
            return Err(Violation::TooManyOptions.into());
        }
        let payload: Vec<u8> = self.input.drain(..whole).skip(size_of::<proto::OptionReplyHeader>()).collect();
        self.take_reply(reply, &payload)?;
        Ok(true)
    }

    fn take_reply(&mut self, reply: u32, payload: &[u8]) -> Result<(), HandshakeError> {
        let is_error = reply & rep::ERROR != 0;
        match (self.state, reply) {
            (State::StartTls, rep::ACK) if !self.input.is_empty() => {
                return Err(Violation::Form("bytes sent unencrypted behind the consent to TLS").into());
            }
            (State::StartTls, rep::ACK) => self.state = State::StartingTls,
            (State::StartTls, _) if is_error => return Err(refused_tls("it does not offer TLS")),
            (State::StructuredReply, rep::ACK) => {
                self.terms.structured = true;
                self.ask(State::SetContext);
            }
            (State::StructuredReply, _) if is_error => self.ask(State::Go),
            (State::SetContext, rep::META_CONTEXT) => {
                let (id, name) = payload.split_first_chunk().ok_or(Violation::Form("a metadata context"))?;
                if name == proto::CONTEXT_NAME.as_bytes() {
                    self.terms.context = Some(u32::from_be_bytes(*id));
                }
            }
            (State::SetContext, rep::ACK) => self.ask(State::Go),
            (State::SetContext, _) if is_error => {
                self.terms.context = None;
                self.ask(State::Go);
            }
            (State::Go, rep::INFO) => self.take_info(payload)?,
            (State::Go, rep::ACK) if self.has_size => self.state = State::Done,
            (State::Go, rep::ERR_UNSUP) => self.ask(State::ExportName),
            (State::Go, _) if is_error => {
                let errno = match reply {
                    rep::ERR_POLICY => Errno::Perm,
                    rep::ERR_SHUTDOWN => Errno::Shutdown,
                    _ => Errno::Invalid,
                };
                let message = String::from_utf8_lossy(payload);
                let message = message.chars().filter(|char| !char.is_control()).collect();
                return Err(HandshakeError::Refused { errno, message });
            }
            _ => return Err(Violation::Form("a reply to an option").into()),
        }
        Ok(())
    }

    fn take_info(&mut self, payload: &[u8]) -> Result<(), Violation> {
        let (kind, rest) = payload.split_first_chunk().ok_or(Violation::Form("an info"))?;
        match u16::from_be_bytes(*kind) {
            info::EXPORT => {
                let size = proto::ExportSize::read_from_bytes(rest).map_err(|_| Violation::Form("an export's size"))?;
                self.take_size(&size);
            }
            info::BLOCK_SIZE => {
                let sizes =
                    proto::InfoBlockSize::read_from_bytes(payload).map_err(|_| Violation::Form("block sizes"))?;
                let (least, preferred, most) = (sizes.least.get(), sizes.preferred.get(), sizes.most.get());
                if !least.is_power_of_two() || least > 64 << 10 || preferred < least || most < least {
                    return Err(Violation::Form("block sizes"));
                }
                self.terms.block_bytes_min = least;
                self.terms.payload_bytes_max = (most.min(bounds::PAYLOAD_BYTES_MAX)) / least * least;
            }
            _ => {}
        }
        Ok(())
    }

    fn read_export(&mut self) -> Result<bool, HandshakeError> {
        let whole = size_of::<proto::ExportSize>() + if self.no_zeroes { 0 } else { 124 };
        let Some(size) = self.head::<proto::ExportSize>().filter(|_| self.input.len() >= whole) else {
            return Ok(false);
        };
        self.input.drain(..whole);
        self.take_size(&size);
        self.state = State::Done;
        Ok(true)
    }

    fn take_size(&mut self, size: &proto::ExportSize) {
        self.has_size = true;
        self.terms.size_bytes = size.size_bytes.get();
        let flags = size.flags.get();
        self.terms.flags = if flags & proto::transmission_flags::HAS_FLAGS != 0 { flags } else { 0 };
    }
}

/// The server cannot be used as it was asked for.
fn refused_tls(why: &str) -> HandshakeError {
    HandshakeError::Refused { errno: Errno::Perm, message: format!("TLS is wanted, and {why}") }
}
