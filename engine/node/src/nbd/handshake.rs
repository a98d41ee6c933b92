//! The handshake over a socket, and moving a connection to another thread after it.

use super::SessionError;
use super::service::{BlockExport, BlockService};
use super::stream::{DetachedStream, NbdStream};
use drover_wire::nbd::{ExportName, Refusal, ServerHandshake, Step, Terms};
use std::{io, rc::Rc};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Bytes of one receive: any option but one with many queries.
const RECEIVE_BYTES: usize = 4096;

/// A connection whose client has chosen an export.
pub struct Negotiated {
    pub(super) stream: NbdStream,
    /// What the client sent already: its first requests.
    pub(super) leftover: Vec<u8>,
    pub(super) name: ExportName,
    pub(super) terms: Terms,
    pub(super) export: Rc<dyn BlockExport>,
}

/// The same on its way to another thread, where its export is opened again.
pub struct Handed {
    stream: DetachedStream,
    leftover: Vec<u8>,
    name: ExportName,
    terms: Terms,
}

impl Negotiated {
    /// The export that was chosen, and by which workload.
    pub fn name(&self) -> &ExportName {
        &self.name
    }

    /// Takes it off this thread.
    pub fn detach(self) -> io::Result<Handed> {
        Ok(Handed { stream: self.stream.detach()?, leftover: self.leftover, name: self.name, terms: self.terms })
    }
}

impl Handed {
    pub fn name(&self) -> &ExportName {
        &self.name
    }

    /// Goes on on the calling thread. Refused as well when the export is no longer what the client was told.
    pub async fn attach(self, service: &dyn BlockService) -> Result<Negotiated, SessionError> {
        let export = service.open(&self.name).await.map_err(SessionError::Refused)?;
        let facts = export.facts();
        if facts.size_bytes < self.terms.size_bytes || (facts.read_only && !self.terms.read_only) {
            return Err(SessionError::Refused(Refusal::Policy));
        }
        let stream = self.stream.attach()?;
        Ok(Negotiated { stream, leftover: self.leftover, name: self.name, terms: self.terms, export })
    }
}

/// Leads the handshake. `Ok(None)`: the client ended it without choosing an export.
///
/// It has no deadline of its own: the caller sets one.
pub async fn handshake(mut stream: NbdStream, service: &dyn BlockService) -> Result<Option<Negotiated>, SessionError> {
    let mut machine = ServerHandshake::default();
    let mut received = [0; RECEIVE_BYTES];
    let mut opened = None;
    loop {
        let step = machine.poll()?;
        if matches!(step, Step::Receive | Step::Serve(..) | Step::Close) {
            let output = machine.take_output();
            // The client may not read the answer to its ABORT.
            match stream.write_all(&output).await {
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
            Step::List => machine.listed(&service.list()),
            Step::Open(name) => {
                let export = service.open(&name).await;
                machine.opened(export.as_ref().map(|export| export.facts()).map_err(|refusal| *refusal));
                opened = export.ok();
            }
            Step::Serve(name, terms) => {
                let export = opened.ok_or(SessionError::Refused(Refusal::Unknown))?;
                return Ok(Some(Negotiated { stream, leftover: machine.into_leftover(), name, terms, export }));
            }
            Step::Close => return Ok(None),
        }
    }
}
