//! Accepting connections, and giving each to the thread that serves it.
//!
//! Invariants
//! - Each connection has one of its listener's places from its accept to its end, on whichever thread it ends.
//! - A listener that was told to close is done when every place is free again.

use super::connection::{End, SessionError, serve};
use super::handshake::{Handed, Negotiated, handshake};
use super::service::{BlockService, Catalog};
use super::stream::{NbdListener, NbdStream};
use drover_base::LocalFuture;
use drover_runtime::tls::Tls;
use drover_wire::nbd::ExportName;
use futures::FutureExt;
use std::{io, rc::Rc, sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Bounds of a listener.
#[derive(Clone, Copy, Debug)]
pub struct ServerSettings {
    /// Connections at once; more wait in the kernel's queue.
    pub connections_max: usize,
    /// How long a client may take to choose its export.
    pub handshake_deadline: Duration,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self { connections_max: 256, handshake_deadline: Duration::from_secs(10) }
    }
}

/// Pause after a failed accept: it fails when descriptors run out, and again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A client that has chosen its export, to be served on this thread or, as `Client<Handed>`, on another.
pub struct Client<C = Negotiated> {
    connection: C,
    closing: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
}

impl Client {
    /// The export that was chosen.
    pub fn name(&self) -> &ExportName {
        self.connection.name()
    }

    /// Takes it off this thread.
    pub fn detach(self) -> io::Result<Client<Handed>> {
        let Self { connection, closing, _place } = self;
        Ok(Client { connection: connection.detach()?, closing, _place })
    }

    /// Serves it until it leaves or the listener closes.
    pub async fn serve(self, service: Rc<dyn BlockService>) {
        let Self { connection, mut closing, _place } = self;
        let name = connection.name().clone();
        let closing: LocalFuture<'static, ()> = async move { closed(&mut closing).await }.boxed_local();
        tracing::debug!(target: "nbd", %name, "a client attached");
        match serve(connection, &*service, closing).await {
            Ok(End::Client) => tracing::debug!(target: "nbd", %name, "a client left"),
            Ok(End::Closing) => tracing::debug!(target: "nbd", %name, "a client was sent away"),
            Err(error) => report(&error),
        }
    }
}

impl Client<Handed> {
    /// Goes on on the calling thread.
    pub fn attach(self) -> io::Result<Client> {
        let Self { connection, closing, _place } = self;
        Ok(Client { connection: connection.attach()?, closing, _place })
    }
}

/// For [`run`]: every connection is served on the calling thread.
pub fn serve_here(service: Rc<dyn BlockService>) -> Rc<dyn Fn(Client)> {
    Rc::new(move |client| {
        tokio::task::spawn_local(client.serve(service.clone()));
    })
}

/// Accepts the connections of `listener` and gives each that has chosen an export of the catalog to `serve`, until
/// `closing` holds true and the connections have finished what was in flight. Needs a `LocalSet` or a tokio-uring
/// runtime around it.
pub async fn run(
    listener: NbdListener,
    catalog: Rc<dyn Catalog>,
    mut closing: watch::Receiver<bool>,
    settings: ServerSettings,
    serve: Rc<dyn Fn(Client)>,
) {
    let places = Arc::new(Semaphore::new(settings.connections_max));
    let tls = listener.tls();
    loop {
        let accept = async {
            let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
            match listener.accept().await {
                Ok(stream) => Some((stream, place)),
                Err(error) => {
                    tracing::warn!(target: "nbd", %error, "accepting a connection failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    None
                }
            }
        };
        tokio::select! {
            biased;
            () = closed(&mut closing) => break,
            accepted = accept => {
                if let Some((stream, place)) = accepted {
                    // A task of its own, so that a wake of one connection polls only that one.
                    let (catalog, serve, closing) = (catalog.clone(), serve.clone(), closing.clone());
                    let tls = tls.clone();
                    tokio::task::spawn_local(async move {
                        if let Some(connection) = choose(stream, &*catalog, tls, closing.clone(), settings).await {
                            serve(Client { connection, closing, _place: place });
                        }
                    });
                }
            }
        }
    }
    drop(listener);
    // An error means that the semaphore is closed, which nobody does.
    let _ = places.acquire_many(settings.connections_max as u32).await;
}

/// Completes when `closing` holds true, or nobody can make it any more.
async fn closed(closing: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone: then there is nobody left to serve for.
    let _ = closing.wait_for(|is_closing| *is_closing).await;
}

/// The client chooses an export; `None` where it does not, or not in time.
async fn choose(
    stream: NbdStream,
    catalog: &dyn Catalog,
    tls: Option<Arc<Tls>>,
    mut closing: watch::Receiver<bool>,
    settings: ServerSettings,
) -> Option<Negotiated> {
    let shaking = tokio::time::timeout(settings.handshake_deadline, handshake(stream, catalog, tls.as_deref()));
    let shaken = tokio::select! {
        biased;
        () = closed(&mut closing) => return None,
        shaken = shaking => shaken,
    };
    match shaken {
        Ok(Ok(negotiated)) => return negotiated,
        Ok(Err(error)) => report(&error),
        Err(_) => tracing::info!(target: "nbd", "a client took too long to choose an export"),
    }
    None
}

fn report(error: &SessionError) {
    tracing::info!(target: "nbd", %error, "a connection ended early");
}
