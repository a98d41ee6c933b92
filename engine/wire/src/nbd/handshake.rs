//! The server's side of the handshake: fixed newstyle, and the older one that knows `EXPORT_NAME` only.
//!
//! ```text
//!            greeting sent                 option known, whole            answer given
//!  ClientFlags ────────────► Option ──────────────────────► Asked ──────────────────────► Option
//!      │ bad flags             │  ▲ │ EXPORT_NAME, GO accepted ────────────────────────► Served
//!      ▼                       ▼  └─┴ too big: Skip, then refused                        (leftover bytes)
//!    Closed ◄── ABORT, bad magic, far too big, too many options
//!
//!  where TLS is demanded: Option ── STARTTLS ──► StartingTls ── secured ──► Option, as after the client's flags
//! ```
//!
//! Invariants
//! - An option's bytes are consumed whole before it is answered, whatever its content, so that a wrong length
//!   inside it cannot shift the next one.
//! - At most one option is in memory: `OPTION_BYTES_MAX` and what one receive brought after it.
//! - Metadata contexts hold for the export they were set for and are forgotten when a later `SET_META_CONTEXT`
//!   fails. They need structured replies.
//! - Where TLS is demanded nothing is told of any export, and nothing agreed on, before it is there; what was agreed on
//!   without it is forgotten, and bytes that came unencrypted behind `STARTTLS` end the connection: somebody on the way
//!   may have put them there.

use super::options::{self, ContextQueries, InfoRequests};
use super::proto::{self, bounds, client_flags, handshake_flags, info, option, rep, transmission_flags};
use super::{ExportName, Terms, Violation};
use drover_base::planted::{Bug, is_planted};
use zerocopy::{FromBytes, IntoBytes};

/// An export, as the handshake tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportFacts {
    /// The name that it is listed under.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
    pub size_bytes: u64,
    pub read_only: bool,
}

/// Why an export is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("no such export")]
    Unknown,
    #[error("this client may not use the export now")]
    Policy,
    #[error("the server is shutting down")]
    Shutdown,
}

impl Refusal {
    fn reply(self) -> u32 {
        match self {
            Self::Unknown => rep::ERR_UNKNOWN,
            Self::Policy => rep::ERR_POLICY,
            Self::Shutdown => rep::ERR_SHUTDOWN,
        }
    }
}

/// What the machine wants next. Send what [`ServerHandshake::take_output`] gives before waiting for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Bytes of the client: `receive`.
    Receive,
    /// Whether this export can be served: `opened`.
    Open(ExportName),
    /// The exports, as name and description: `listed`.
    List,
    /// The handshake is over. Bytes that came after it are in `into_leftover`.
    Serve(ExportName, Terms),
    /// Send the output, then let TLS begin: `secured`.
    StartTls,
    /// Send the output, then close.
    Close,
}

/// The machine. It begins with the greeting in its output.
pub struct ServerHandshake {
    state: State,
    input: Vec<u8>,
    output: Vec<u8>,
    security: Security,
    is_fixed: bool,
    no_zeroes: bool,
    structured: bool,
    /// For which name `base:allocation` is set.
    context_for: Option<String>,
    options: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Security {
    /// TLS is not offered.
    Plain,
    /// It has to come first.
    Demanded,
    /// It is there.
    Secured,
}

enum State {
    ClientFlags,
    Option,
    Skip { option: u32, left: u32 },
    Asked(Asked),
    StartingTls,
    Served(ExportName, Terms),
    Closed,
}

enum Asked {
    List,
    Export { name: ExportName, why: Why },
}

/// For which option an export is opened.
enum Why {
    ExportName { raw: String },
    Info { is_go: bool, raw: String, requests: InfoRequests },
    ListContexts { queries: ContextQueries },
    SetContexts { raw: String, queries: ContextQueries },
}

impl Default for ServerHandshake {
    fn default() -> Self {
        Self::new(false)
    }
}

impl ServerHandshake {
    /// With `tls` a client has to ask for it first.
    pub fn new(tls: bool) -> Self {
        let greeting = proto::Greeting {
            magic: proto::NBD_MAGIC.into(),
            option_magic: proto::OPTION_MAGIC.into(),
            flags: (handshake_flags::FIXED_NEWSTYLE | handshake_flags::NO_ZEROES).into(),
        };
        Self {
            state: State::ClientFlags,
            input: Vec::new(),
            output: greeting.as_bytes().to_vec(),
            security: if tls { Security::Demanded } else { Security::Plain },
            is_fixed: false,
            no_zeroes: false,
            structured: false,
            context_for: None,
            options: 0,
        }
    }
}

impl ServerHandshake {
    /// Takes what came from the client. Give it what one receive brought, then `poll` until it wants more.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// What is to be sent now.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Bytes after the handshake's end: the first requests.
    pub fn into_leftover(self) -> Vec<u8> {
        self.input
    }

    /// Goes on as far as the input reaches.
    pub fn poll(&mut self) -> Result<Step, Violation> {
        loop {
            let done = match &mut self.state {
                State::ClientFlags => self.read_client_flags()?,
                State::Option => self.read_option()?,
                State::Skip { option, left } => {
                    let count = self.input.len().min(*left as usize);
                    self.input.drain(..count);
                    *left -= count as u32;
                    let (option, is_done) = (*option, *left == 0);
                    if is_done {
                        self.state = State::Option;
                        self.refuse(option, rep::ERR_TOO_BIG, "the option is too long");
                    }
                    is_done
                }
                State::Asked(Asked::List) => return Ok(Step::List),
                State::Asked(Asked::Export { name, .. }) => return Ok(Step::Open(name.clone())),
                State::StartingTls => return Ok(Step::StartTls),
                State::Served(name, terms) => return Ok(Step::Serve(name.clone(), *terms)),
                State::Closed => return Ok(Step::Close),
            };
            if !done {
                return Ok(Step::Receive);
            }
        }
    }

    /// The answer to [`Step::StartTls`]: what comes from now on is encrypted.
    pub fn secured(&mut self) {
        if !matches!(self.state, State::StartingTls) {
            return;
        }
        self.state = State::Option;
        self.security = Security::Secured;
        self.structured = false;
        self.context_for = None;
    }

    /// The answer to [`Step::List`].
    pub fn listed(&mut self, exports: &[(String, String)]) {
        if !matches!(self.state, State::Asked(Asked::List)) {
            return;
        }
        self.state = State::Option;
        for (name, description) in exports {
            let name = clip(name);
            let description = clip(description);
            let mut data = Vec::with_capacity(4 + name.len() + description.len());
            data.extend_from_slice(&(name.len() as u32).to_be_bytes());
            data.extend_from_slice(name.as_bytes());
            data.extend_from_slice(description.as_bytes());
            self.reply(option::LIST, rep::SERVER, &data);
        }
        self.reply(option::LIST, rep::ACK, &[]);
    }

    /// The answer to [`Step::Open`].
    pub fn opened(&mut self, export: Result<ExportFacts, Refusal>) {
        match std::mem::replace(&mut self.state, State::Option) {
            State::Asked(Asked::Export { name, why }) => match export {
                Ok(facts) => self.accept(name, why, &facts),
                Err(refusal) => self.refuse_export(why, refusal),
            },
            other => self.state = other,
        }
    }

    fn accept(&mut self, name: ExportName, why: Why, facts: &ExportFacts) {
        match why {
            Why::ExportName { raw } => {
                let terms = self.terms(&raw, facts);
                self.output.extend_from_slice(export_size(&terms).as_bytes());
                if !self.no_zeroes {
                    self.output.extend_from_slice(&[0; 124]);
                }
                self.state = State::Served(name, terms);
            }
            Why::Info { is_go, raw, requests } => {
                let terms = self.terms(&raw, facts);
                let option = if is_go { option::GO } else { option::INFO };
                self.reply_infos(option, requests, facts, &terms);
                self.reply(option, rep::ACK, &[]);
                if is_go {
                    self.state = State::Served(name, terms);
                }
            }
            Why::ListContexts { queries } => {
                if queries.count == 0 || queries.exact || queries.wildcard {
                    self.reply_context(option::LIST_META_CONTEXT, 0);
                }
                self.reply(option::LIST_META_CONTEXT, rep::ACK, &[]);
            }
            Why::SetContexts { raw, queries } => {
                if queries.exact {
                    self.context_for = Some(raw);
                    self.reply_context(option::SET_META_CONTEXT, proto::CONTEXT_ID);
                }
                self.reply(option::SET_META_CONTEXT, rep::ACK, &[]);
            }
        }
    }

    fn refuse_export(&mut self, why: Why, refusal: Refusal) {
        let option = match why {
            // There is no reply that says no.
            Why::ExportName { .. } => {
                self.state = State::Closed;
                return;
            }
            Why::Info { is_go: true, .. } => option::GO,
            Why::Info { is_go: false, .. } => option::INFO,
            Why::ListContexts { .. } => option::LIST_META_CONTEXT,
            Why::SetContexts { .. } => option::SET_META_CONTEXT,
        };
        self.refuse(option, refusal.reply(), &refusal.to_string());
    }

    /// The first `len` bytes of the input, once they are there.
    fn head<T: FromBytes>(&self) -> Option<T> {
        T::read_from_prefix(&self.input).ok().map(|(head, _)| head)
    }

    fn read_client_flags(&mut self) -> Result<bool, Violation> {
        let Some(flags) = self.head::<zerocopy::big_endian::U32>() else { return Ok(false) };
        let flags = flags.get();
        if flags & !(client_flags::FIXED_NEWSTYLE | client_flags::NO_ZEROES) != 0 {
            return Err(Violation::Flags(flags));
        }
        self.input.drain(..4);
        self.is_fixed = flags & client_flags::FIXED_NEWSTYLE != 0;
        self.no_zeroes = flags & client_flags::NO_ZEROES != 0;
        self.state = State::Option;
        Ok(true)
    }

    fn read_option(&mut self) -> Result<bool, Violation> {
        let Some(header) = self.head::<proto::OptionHeader>() else { return Ok(false) };
        let (option, len) = (header.option.get(), header.len.get());
        if header.magic.get() != proto::OPTION_MAGIC {
            return Err(Violation::Magic("an option"));
        }
        let most = if option == option::EXPORT_NAME || !self.is_fixed {
            bounds::STRING_BYTES_MAX as u32
        } else {
            bounds::OPTION_SKIP_BYTES_MAX
        };
        if len > most {
            return Err(Violation::TooLong { what: "an option", len: len.into(), most: most.into() });
        }
        let whole = size_of::<proto::OptionHeader>() + len as usize;
        let is_skipped = len > bounds::OPTION_BYTES_MAX;
        if !is_skipped && self.input.len() < whole {
            return Ok(false);
        }
        self.options += 1;
        if self.options > bounds::OPTIONS_MAX {
            return Err(Violation::TooManyOptions);
        }
        if is_skipped {
            self.input.drain(..size_of::<proto::OptionHeader>());
            self.state = State::Skip { option, left: len };
            return Ok(true);
        }
        let payload: Vec<u8> = self.input.drain(..whole).skip(size_of::<proto::OptionHeader>()).collect();
        self.take_option(option, &payload)?;
        Ok(true)
    }

    fn take_option(&mut self, option: u32, payload: &[u8]) -> Result<(), Violation> {
        if !self.is_fixed && option != option::EXPORT_NAME {
            return Err(Violation::Form("an option of a client that does not know the fixed newstyle"));
        }
        if self.security == Security::Demanded && !matches!(option, option::STARTTLS | option::ABORT) {
            if option == option::EXPORT_NAME {
                // There is no reply that says no.
                self.state = State::Closed;
            } else {
                self.refuse(option, rep::ERR_TLS_REQD, "this server is used by TLS only");
            }
            return Ok(());
        }
        match option {
            option::EXPORT_NAME => {
                let raw = options::text(payload).map_err(|_| Violation::Form("an export's name"))?;
                self.open(raw, Why::ExportName { raw: raw.into() });
            }
            option::ABORT => {
                self.reply(option, rep::ACK, &[]);
                self.state = State::Closed;
            }
            option::STARTTLS if self.security != Security::Plain => self.start_tls(payload)?,
            option::LIST if payload.is_empty() => self.state = State::Asked(Asked::List),
            option::STRUCTURED_REPLY if payload.is_empty() => {
                self.structured = true;
                self.reply(option, rep::ACK, &[]);
            }
            option::LIST | option::STRUCTURED_REPLY => {
                self.refuse(option, rep::ERR_INVALID, "the option has no payload");
            }
            option::INFO | option::GO => match options::parse_info(payload) {
                Ok((raw, requests)) => {
                    self.open(raw, Why::Info { is_go: option == option::GO, raw: raw.into(), requests });
                }
                Err(options::Malformed) => self.refuse(option, rep::ERR_INVALID, "the payload is malformed"),
            },
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.take_contexts(option, payload),
            _ => self.refuse(option, rep::ERR_UNSUP, "the option is not supported"),
        }
        Ok(())
    }

    fn start_tls(&mut self, payload: &[u8]) -> Result<(), Violation> {
        if self.security == Security::Secured || !payload.is_empty() {
            self.refuse(option::STARTTLS, rep::ERR_INVALID, "the option has no payload and comes once");
            return Ok(());
        }
        if !self.input.is_empty() && !is_planted(Bug::PlaintextBehindStartTls) {
            return Err(Violation::Form("bytes sent unencrypted behind STARTTLS"));
        }
        self.reply(option::STARTTLS, rep::ACK, &[]);
        self.state = State::StartingTls;
        Ok(())
    }

    fn take_contexts(&mut self, option: u32, payload: &[u8]) {
        let is_set = option == option::SET_META_CONTEXT;
        if is_set {
            self.context_for = None;
        }
        if !self.structured {
            return self.refuse(option, rep::ERR_INVALID, "structured replies have to be negotiated first");
        }
        match options::parse_contexts(payload) {
            Ok((raw, queries)) if is_set => self.open(raw, Why::SetContexts { raw: raw.into(), queries }),
            Ok((raw, queries)) => self.open(raw, Why::ListContexts { queries }),
            Err(options::Malformed) => self.refuse(option, rep::ERR_INVALID, "the payload is malformed"),
        }
    }

    fn open(&mut self, raw: &str, why: Why) {
        match raw.parse() {
            Ok(name) => self.state = State::Asked(Asked::Export { name, why }),
            Err(_) => self.refuse_export(why, Refusal::Unknown),
        }
    }

    fn terms(&self, raw: &str, facts: &ExportFacts) -> Terms {
        Terms {
            size_bytes: facts.size_bytes,
            read_only: facts.read_only,
            structured: self.structured,
            block_status: self.structured && self.context_for.as_deref() == Some(raw),
        }
    }

    fn reply_infos(&mut self, option: u32, requests: InfoRequests, facts: &ExportFacts, terms: &Terms) {
        let mut data = info::EXPORT.to_be_bytes().to_vec();
        data.extend_from_slice(export_size(terms).as_bytes());
        self.reply(option, rep::INFO, &data);
        let texts = [
            (requests.name, info::NAME, &facts.name),
            (requests.description && !facts.description.is_empty(), info::DESCRIPTION, &facts.description),
        ];
        for (is_asked, info, text) in texts {
            if is_asked {
                let mut data = info.to_be_bytes().to_vec();
                data.extend_from_slice(clip(text).as_bytes());
                self.reply(option, rep::INFO, &data);
            }
        }
        if requests.block_size {
            let sizes = proto::InfoBlockSize {
                info: info::BLOCK_SIZE.into(),
                least: bounds::BLOCK_BYTES_MIN.into(),
                preferred: bounds::BLOCK_BYTES_PREFERRED.into(),
                most: bounds::PAYLOAD_BYTES_MAX.into(),
            };
            self.reply(option, rep::INFO, sizes.as_bytes());
        }
    }

    fn reply_context(&mut self, option: u32, id: u32) {
        let mut data = id.to_be_bytes().to_vec();
        data.extend_from_slice(proto::CONTEXT_NAME.as_bytes());
        self.reply(option, rep::META_CONTEXT, &data);
    }

    fn refuse(&mut self, option: u32, reply: u32, message: &str) {
        self.reply(option, reply, message.as_bytes());
    }

    fn reply(&mut self, option: u32, reply: u32, data: &[u8]) {
        let header = proto::OptionReplyHeader {
            magic: proto::OPTION_REPLY_MAGIC.into(),
            option: option.into(),
            reply: reply.into(),
            len: (data.len() as u32).into(),
        };
        self.output.extend_from_slice(header.as_bytes());
        self.output.extend_from_slice(data);
    }
}

/// The longest beginning of `text` that a string of the protocol holds.
fn clip(text: &str) -> &str {
    &text[..text.floor_char_boundary(bounds::STRING_BYTES_MAX)]
}

fn export_size(terms: &Terms) -> proto::ExportSize {
    proto::ExportSize { size_bytes: terms.size_bytes.into(), flags: transmission_flags_of(terms).into() }
}

/// What is offered under `terms`. Every connection sees every write that any of them had answered, and a flush
/// covers them all, so several connections may share an export.
fn transmission_flags_of(terms: &Terms) -> u16 {
    use transmission_flags::*;
    let mut flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | SEND_CACHE;
    if terms.structured {
        flags |= SEND_DF;
    }
    if terms.read_only {
        flags |= READ_ONLY;
    } else {
        flags |= SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO;
    }
    flags
}
