//! Accepting connections, where a node does not distribute them itself.

use super::connection::{End, SessionError, serve};
use super::handshake::handshake;
use super::service::BlockService;
use super::stream::{NbdListener, NbdStream};
use drover_base::LocalFuture;
use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use std::{rc::Rc, time::Duration};
use tokio::sync::watch;

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

/// Serves every connection of `listener` on the calling thread, until `closing` holds true and the connections
/// have finished what was in flight. Needs a `LocalSet` or a tokio-uring runtime around it.
pub async fn run(
    listener: NbdListener,
    service: Rc<dyn BlockService>,
    mut closing: watch::Receiver<bool>,
    settings: ServerSettings,
) {
    let mut connections = FuturesUnordered::new();
    loop {
        let has_room = connections.len() < settings.connections_max;
        let accept = async {
            match listener.accept().await {
                Ok(stream) => Some(stream),
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
            Some(_) = connections.next(), if !connections.is_empty() => {}
            accepted = accept, if has_room => {
                if let Some(stream) = accepted {
                    // A task of its own, so that a wake of one connection polls only that one.
                    let connection = connection(stream, service.clone(), closing.clone(), settings);
                    connections.push(tokio::task::spawn_local(connection));
                }
            }
        }
    }
    drop(listener);
    while connections.next().await.is_some() {}
}

/// Completes when `closing` holds true, or nobody can make it any more.
async fn closed(closing: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone: then there is nobody left to serve for.
    let _ = closing.wait_for(|is_closing| *is_closing).await;
}

async fn connection(
    stream: NbdStream,
    service: Rc<dyn BlockService>,
    mut closing: watch::Receiver<bool>,
    settings: ServerSettings,
) {
    let negotiated = {
        let shaking = tokio::time::timeout(settings.handshake_deadline, handshake(stream, &*service));
        let mut closed_now = closing.clone();
        tokio::select! {
            biased;
            () = closed(&mut closed_now) => return,
            shaken = shaking => shaken,
        }
    };
    let negotiated = match negotiated {
        Ok(Ok(Some(negotiated))) => negotiated,
        Ok(Ok(None)) => return,
        Ok(Err(error)) => return report(&error),
        Err(_) => return tracing::info!(target: "nbd", "a client took too long to choose an export"),
    };
    let name = negotiated.name().clone();
    let closing: LocalFuture<'static, ()> = async move { closed(&mut closing).await }.boxed_local();
    tracing::debug!(target: "nbd", %name, "a client attached");
    match serve(negotiated, closing).await {
        Ok(End::Client) => tracing::debug!(target: "nbd", %name, "a client left"),
        Ok(End::Closing) => tracing::debug!(target: "nbd", %name, "a client was sent away"),
        Err(error) => report(&error),
    }
}

fn report(error: &SessionError) {
    tracing::info!(target: "nbd", %error, "a connection ended early");
}
