//! The REST interface: axum under `/v1`, with its OpenAPI description.
//!
//! Decides nothing: every request becomes a command to the control plane's thread. Invariants:
//! - all but `/healthz` and `/readyz` is answered only to who shows the token, where one is set;
//! - an address beyond this machine is listened at only with a token;
//! - every answer that is not 2xx is an `ApiError`, also those of the framework.

mod answer;
mod auth;
mod extract;
mod openapi;
mod page;
mod routes;

pub use openapi::openapi;

use drover_control::ControlHandle;
use std::{future::Future, io, net::SocketAddr};
use tokio::net::TcpListener;

/// Where the interface listens, and who may use it.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    pub listen: SocketAddr,
    /// The static bearer token; needed where `listen` is not a loopback address.
    pub token: Option<String>,
}

/// A socket that listens, not served yet.
pub struct Bound {
    listener: TcpListener,
    token: Option<String>,
}

/// Listens; refuses an address that others can reach where no token is set.
pub async fn bind(config: ServerConfig) -> io::Result<Bound> {
    if !config.listen.ip().is_loopback() && config.token.is_none() {
        let reason = format!("{} can be reached from other machines and no token is set", config.listen);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    Ok(Bound { listener: TcpListener::bind(config.listen).await?, token: config.token })
}

impl Bound {
    /// The address with its real port.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` completes; requests under way are answered first.
    pub async fn serve(
        self,
        control: ControlHandle,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        axum::serve(self.listener, routes::app(control, self.token)).with_graceful_shutdown(stop).await
    }
}
