//! The handshake over a socket, and moving a connection to another thread after it.

use super::SessionError;
use super::service::{BlockService, Catalog, Opened};
use super::stream::{DetachedStream, NbdStream};
use drover_runtime::tls::Tls;
use drover_wire::nbd::{ExportName, Refusal, ServerHandshake, Step, Terms};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Bytes of one receive: any option but one with many queries.
const RECEIVE_BYTES: usize = 4096;

/// A connection whose client has chosen an export. `S` is [`NbdStream`], or [`DetachedStream`] on its way to another
/// thread.
pub struct Negotiated<S = NbdStream> {
    pub(super) stream: S,
    /// What the client sent already: its first requests.
    pub(super) leftover: Vec<u8>,
    pub(super) name: ExportName,
    pub(super) terms: Terms,
}

/// The same on its way to another thread.
pub type Handed = Negotiated<DetachedStream>;

impl<S> Negotiated<S> {
    /// The export that was chosen, and by which workload.
    pub fn name(&self) -> &ExportName {
        &self.name
    }

    fn with<T>(self, other: impl FnOnce(S) -> io::Result<T>) -> io::Result<Negotiated<T>> {
        let Self { stream, leftover, name, terms } = self;
        Ok(Negotiated { stream: other(stream)?, leftover, name, terms })
    }
}

impl Negotiated {
    /// Takes it off this thread.
    pub fn detach(self) -> io::Result<Handed> {
        self.with(NbdStream::detach)
    }

    /// What it is to be served from. Refused when the export is no longer what the client was told.
    pub(super) async fn open(&self, service: &dyn BlockService) -> Result<Opened, SessionError> {
        let opened = service.open(&self.name).await.map_err(SessionError::Refused)?;
        let facts = opened.export.facts();
        if facts.size_bytes < self.terms.size_bytes || (facts.read_only && !self.terms.read_only) {
            return Err(SessionError::Refused(Refusal::Policy));
        }
        Ok(opened)
    }
}

impl Handed {
    /// Goes on on the calling thread.
    pub fn attach(self) -> io::Result<Negotiated> {
        self.with(DetachedStream::attach)
    }
}

/// Leads the handshake. `Ok(None)`: the client ended it without choosing an export. With `tls` nothing but asking for it
/// is answered before the connection is encrypted.
///
/// It has no deadline of its own: the caller sets one.
pub async fn handshake(
    mut stream: NbdStream,
    catalog: &dyn Catalog,
    tls: Option<&Tls>,
) -> Result<Option<Negotiated>, SessionError> {
    let mut machine = ServerHandshake::new(tls.is_some());
    let mut received = [0; RECEIVE_BYTES];
    loop {
        let step = machine.poll()?;
        if matches!(step, Step::Receive | Step::Serve(..) | Step::Close | Step::StartTls) {
            let output = machine.take_output();
            // The client may not read the answer to its ABORT.
            match send(&mut stream, &output).await {
                Err(_) if step == Step::Close => return Ok(None),
                sent => sent?,
            }
        }
        match step {
            Step::Receive => {
                let count = stream.read(&mut received).await?;
                if count == 0 {
                    return Ok(None);
                }
                machine.receive(&received[..count]);
            }
            Step::StartTls => {
                stream = stream.accept_tls(tls.expect("it is asked for where it was offered")).await?;
                machine.secured();
            }
            Step::List => machine.listed(&catalog.list()),
            Step::Open(name) => machine.opened(catalog.facts(&name)),
            Step::Serve(name, terms) => {
                return Ok(Some(Negotiated { stream, leftover: machine.into_leftover(), name, terms }));
            }
            Step::Close => return Ok(None),
        }
    }
}

async fn send(stream: &mut NbdStream, output: &[u8]) -> io::Result<()> {
    stream.write_all(output).await?;
    stream.flush().await
}
