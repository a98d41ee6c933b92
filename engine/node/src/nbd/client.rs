//! A client of NBD servers: what import and export read and write through, and what our tests drive servers with.
//!
//! [`NbdClient::connect`] returns the client and a driver. The driver moves bytes while it is polled: spawn it, or
//! poll it beside the requests. Requests of clones of the client run concurrently on one connection.
//!
//! Invariant: each request is answered once, by the server or with an error when the connection ends.

use super::stream::NbdStream;
use bytes::Bytes;
use drover_base::limits::CONNECTION_REQUESTS_IN_FLIGHT_MAX;
use drover_runtime::tls::{Tls, TlsFiles};
use drover_wire::nbd::proto::transmission_flags as flags;
use drover_wire::nbd::{
    BlockStatus, ClientHandshake, ClientStep, Command, Errno, Expected, ExportName, HandshakeError, NbdAddress, NbdUri,
    Payload, ReplyParser, ServerTerms, Violation, encode_disconnect, encode_request,
};
use futures::future::{Either, select};
use std::{
    collections::BTreeMap,
    io,
    path::Path,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};

/// Bytes of one receive.
const RECEIVE_BYTES: usize = 256 << 10;
/// Requests that wait to be sent, before the next one waits to be made.
const QUEUE_MAX: usize = 64;

/// Why a request of the client failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    #[error("the connection to the server failed: {0}")]
    Connect(String),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The server's message may be empty.
    #[error("the server answered: {errno} {message}")]
    Server { errno: Errno, message: String },
    #[error("the connection to the server ended: {0}")]
    Ended(String),
    #[error("a request of {len} bytes is larger than the server's limit of {most}")]
    TooLarge { len: u64, most: u64 },
    #[error("the range {offset}+{len} passes the export's end at {size}")]
    OutOfRange { offset: u64, len: u64, size: u64 },
    #[error("the server does not offer {0}")]
    NotOffered(&'static str),
}

type Reply = oneshot::Sender<Result<Payload, ClientError>>;

struct Call {
    command: Command,
    payload: Bytes,
    reply: Reply,
}

/// Requests to one export over one connection.
#[derive(Clone)]
pub struct NbdClient {
    calls: mpsc::Sender<Call>,
    terms: ServerTerms,
}

/// Moves the bytes of a client's connection.
pub struct NbdDriver {
    stream: NbdStream,
    leftover: Vec<u8>,
    calls: mpsc::Receiver<Call>,
    terms: ServerTerms,
}

impl NbdClient {
    pub async fn connect(uri: &NbdUri) -> Result<(Self, NbdDriver), ClientError> {
        let security = match (&uri.tls, &uri.address) {
            (Some(folder), NbdAddress::Tcp { host, .. }) => Some((certificates(folder)?, host.as_str())),
            _ => None,
        };
        let stream = NbdStream::connect(&uri.address).await.map_err(|error| ClientError::Connect(error.to_string()))?;
        Self::begin(stream, &uri.name, security).await
    }

    /// Leads the handshake over a connected socket.
    pub async fn over(stream: NbdStream, name: &ExportName) -> Result<(Self, NbdDriver), ClientError> {
        Self::begin(stream, name, None).await
    }

    /// With certificates: over TLS only, and only to the host.
    async fn begin(
        mut stream: NbdStream,
        name: &ExportName,
        security: Option<(Arc<Tls>, &str)>,
    ) -> Result<(Self, NbdDriver), ClientError> {
        let ended = |error: io::Error| ClientError::Connect(error.to_string());
        let mut machine = ClientHandshake::new(name, security.is_some());
        let mut received = [0; 4096];
        let terms = loop {
            let step = machine.poll()?;
            stream.write_all(&machine.take_output()).await.map_err(ended)?;
            stream.flush().await.map_err(ended)?;
            match step {
                ClientStep::Serve(terms) => break terms,
                ClientStep::StartTls => {
                    let (tls, host) = security.as_ref().expect("it is asked for where it is wanted");
                    stream = stream.connect_tls(tls, host).await.map_err(ended)?;
                    machine.secured();
                }
                ClientStep::Receive => match stream.read(&mut received).await.map_err(ended)? {
                    0 => return Err(ended(io::ErrorKind::UnexpectedEof.into())),
                    count => machine.receive(&received[..count]),
                },
            }
        };
        let (calls, receiver) = mpsc::channel(QUEUE_MAX);
        let driver = NbdDriver { stream, leftover: machine.into_leftover(), calls: receiver, terms };
        Ok((Self { calls, terms }, driver))
    }

    pub fn terms(&self) -> &ServerTerms {
        &self.terms
    }

    pub fn size_bytes(&self) -> u64 {
        self.terms.size_bytes
    }

    pub fn read_only(&self) -> bool {
        self.terms.offers(flags::READ_ONLY)
    }

    /// Largest length of a read or write.
    pub fn payload_bytes_max(&self) -> u64 {
        self.terms.payload_bytes_max.into()
    }

    /// All of the range, or an error: never a part.
    pub async fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, ClientError> {
        let len = self.checked(offset, len, self.payload_bytes_max())?;
        match self.call(Command::Read { offset, len, in_one: false }, Bytes::new()).await? {
            Payload::Data(data) => Ok(data),
            _ => Err(ClientError::Ended(Violation::Unfitting.to_string())),
        }
    }

    pub async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), ClientError> {
        let len = self.checked(offset, data.len() as u64, self.payload_bytes_max())?;
        self.offered(flags::SEND_FUA, fua, "FUA")?;
        self.call(Command::Write { offset, len, fua }, data).await.map(drop)
    }

    /// `fast_only` fails with `NotSupported` where it would be as slow as writing.
    pub async fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        may_unmap: bool,
        fast_only: bool,
        fua: bool,
    ) -> Result<(), ClientError> {
        let len = self.checked(offset, len, u32::MAX.into())?;
        self.offered(flags::SEND_WRITE_ZEROES, true, "write zeroes")?;
        self.offered(flags::SEND_FAST_ZERO, fast_only, "fast zero")?;
        self.offered(flags::SEND_FUA, fua, "FUA")?;
        self.call(Command::WriteZeroes { offset, len, may_unmap, fast_only, fua }, Bytes::new()).await.map(drop)
    }

    pub async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), ClientError> {
        let len = self.checked(offset, len, u32::MAX.into())?;
        self.offered(flags::SEND_TRIM, true, "trim")?;
        self.offered(flags::SEND_FUA, fua, "FUA")?;
        self.call(Command::Trim { offset, len, fua }, Bytes::new()).await.map(drop)
    }

    pub async fn flush(&self) -> Result<(), ClientError> {
        self.offered(flags::SEND_FLUSH, true, "flush")?;
        self.call(Command::Flush, Bytes::new()).await.map(drop)
    }

    pub async fn cache(&self, offset: u64, len: u64) -> Result<(), ClientError> {
        let len = self.checked(offset, len, u32::MAX.into())?;
        self.offered(flags::SEND_CACHE, true, "cache")?;
        self.call(Command::Cache { offset, len }, Bytes::new()).await.map(drop)
    }

    /// Whether [`Self::block_status`] can be asked.
    pub fn has_block_status(&self) -> bool {
        self.terms.structured && self.terms.context.is_some()
    }

    /// Consecutive runs from `offset`, at least one; together they may end before or after `offset + len`.
    pub async fn block_status(&self, offset: u64, len: u64) -> Result<Vec<(u64, BlockStatus)>, ClientError> {
        let len = self.checked(offset, len, u32::MAX.into())?;
        if !self.has_block_status() {
            return Err(ClientError::NotOffered("base:allocation"));
        }
        match self.call(Command::BlockStatus { offset, len, one: false }, Bytes::new()).await? {
            Payload::Status(runs) => Ok(runs),
            _ => Err(ClientError::Ended(Violation::Unfitting.to_string())),
        }
    }

    fn checked(&self, offset: u64, len: u64, most: u64) -> Result<u32, ClientError> {
        let size = self.terms.size_bytes;
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(ClientError::OutOfRange { offset, len, size });
        }
        u32::try_from(len).ok().filter(|_| len <= most).ok_or(ClientError::TooLarge { len, most })
    }

    fn offered(&self, flags: u16, is_needed: bool, what: &'static str) -> Result<(), ClientError> {
        if is_needed && !self.terms.offers(flags) { Err(ClientError::NotOffered(what)) } else { Ok(()) }
    }

    async fn call(&self, command: Command, payload: Bytes) -> Result<Payload, ClientError> {
        let (reply, answer) = oneshot::channel();
        let gone = || ClientError::Ended("it was closed".into());
        self.calls.send(Call { command, payload, reply }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// A client's certificates, in files of the names that libnbd and QEMU expect.
fn certificates(folder: &Path) -> Result<Arc<Tls>, ClientError> {
    let file = |name: &str| folder.join(name);
    let files = TlsFiles { cert: file("client-cert.pem"), key: file("client-key.pem"), ca: file("ca-cert.pem") };
    Tls::load(files).map_err(|error| ClientError::Connect(error.to_string()))
}

/// Both halves see the outstanding requests.
struct Outstanding {
    parser: ReplyParser,
    replies: BTreeMap<u64, Reply>,
}

/// Requests outstanding at the server are bounded by permits.
struct Shared {
    outstanding: Mutex<Outstanding>,
    permits: tokio::sync::Semaphore,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Outstanding> {
        self.outstanding.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NbdDriver {
    /// Runs until every clone of the client is dropped and its requests are answered, then disconnects; or until
    /// the connection breaks, which fails the outstanding requests.
    pub async fn run(self) -> Result<(), ClientError> {
        let Self { stream, leftover, calls, terms } = self;
        let parser = ReplyParser::new(terms.structured, terms.context);
        let shared = Arc::new(Shared {
            outstanding: Mutex::new(Outstanding { parser, replies: BTreeMap::new() }),
            permits: tokio::sync::Semaphore::new(CONNECTION_REQUESTS_IN_FLIGHT_MAX),
        });
        let (reader, writer) = tokio::io::split(stream);
        let sending = pin!(send(writer, calls, &shared));
        let receiving = pin!(receive(reader, leftover, &shared));
        let ended = match select(sending, receiving).await {
            // Everything was sent and answered.
            Either::Left((Ok(()), _)) => return Ok(()),
            Either::Left((Err(error), _)) => error.to_string(),
            Either::Right((error, _)) => error,
        };
        let error = ClientError::Ended(ended);
        for reply in std::mem::take(&mut shared.lock().replies).into_values() {
            // Whoever does not wait any more does not need to know.
            let _ = reply.send(Err(error.clone()));
        }
        Err(error)
    }
}

async fn send(mut writer: WriteHalf<NbdStream>, mut calls: mpsc::Receiver<Call>, shared: &Shared) -> io::Result<()> {
    let mut cookie = 0;
    let closed = |_| io::Error::from(io::ErrorKind::NotConnected);
    while let Some(Call { command, payload, reply }) = calls.recv().await {
        shared.permits.acquire().await.map_err(closed)?.forget();
        cookie += 1;
        let expected = match command {
            Command::Read { offset, len, .. } => Expected::Read { offset, len },
            Command::BlockStatus { len, .. } => Expected::Status { len },
            _ => Expected::Plain,
        };
        {
            let mut outstanding = shared.lock();
            outstanding.parser.expect(cookie, expected);
            outstanding.replies.insert(cookie, reply);
        }
        let header = encode_request(cookie, &command);
        writer.write_all_buf(&mut bytes::Buf::chain(&header[..], payload)).await?;
        writer.flush().await?;
    }
    // All permits are back when all requests are answered.
    let all = shared.permits.acquire_many(CONNECTION_REQUESTS_IN_FLIGHT_MAX as u32).await.map_err(closed)?;
    drop(all);
    writer.write_all(&encode_disconnect()).await?;
    writer.shutdown().await
}

/// Returns why it ended.
async fn receive(mut reader: ReadHalf<NbdStream>, leftover: Vec<u8>, shared: &Shared) -> String {
    let mut end = leftover.len();
    let mut bytes = leftover;
    bytes.resize(end + RECEIVE_BYTES, 0);
    loop {
        let start = match dispatch(&bytes[..end], shared) {
            Ok(used) => used,
            Err(violation) => return violation.to_string(),
        };
        // What is left is part of a header.
        bytes.copy_within(start..end, 0);
        end -= start;
        match reader.read(&mut bytes[end..]).await {
            Ok(0) => return "the server closed it".into(),
            Ok(count) => end += count,
            Err(error) => return error.to_string(),
        }
    }
}

/// Hands out the answers in `bytes`; how many of them were used.
fn dispatch(bytes: &[u8], shared: &Shared) -> Result<usize, Violation> {
    let mut rest = bytes;
    let mut outstanding = shared.lock();
    while let Some(answer) = outstanding.parser.next(&mut rest)? {
        shared.permits.add_permits(1);
        let result = answer.result.map_err(|(errno, message)| ClientError::Server { errno, message });
        if let Some(reply) = outstanding.replies.remove(&answer.cookie) {
            // Whoever does not wait any more does not need to know.
            let _ = reply.send(result);
        }
    }
    Ok(bytes.len() - rest.len())
}
