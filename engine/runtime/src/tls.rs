//! TLS of connections between machines: who may be at the other side, and the certificates for it.
//!
//! Invariants
//! - Version 1.3 only; both sides show a certificate of the one authority that the settings name, valid now.
//! - A certificate says for which role it was made, by a DNS name in it that no machine has: `node.drover.internal`,
//!   `control.drover.internal` or `client.drover.internal`. A listener names the role it serves, so that what was made
//!   for a client of a volume opens no connection between nodes, nor the other way round.
//! - A member's certificate also carries its own name, `NAME.node.drover.internal`, which is compared with who it then
//!   says it is, and the addresses it is reached at, which are compared with the one that was dialled.
//! - No session is resumed and no early data is taken: each connection has its certificates checked.
//! - Files that change are read again for the next connection; while what they hold cannot be used, what was read
//!   before is used on.

mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod verify;

pub use stream::{DetachedTls, TlsStream};

use drover_base::NodeId;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use tokio::net::TcpStream;
use verify::{Clients, Servers};

/// What a certificate was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A storage node or gateway.
    Node,
    /// The control plane.
    Control,
    /// What uses volumes over NBD.
    Client,
}

impl Role {
    /// The DNS name that every certificate of the role carries.
    pub fn dns_name(self) -> &'static str {
        match self {
            Self::Node => "node.drover.internal",
            Self::Control => "control.drover.internal",
            Self::Client => "client.drover.internal",
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Control => "control",
            Self::Client => "client",
        })
    }
}

/// The DNS name that a node's certificate carries.
pub fn node_dns_name(node: &NodeId) -> String {
    format!("{node}.{}", Role::Node.dns_name())
}

/// Where the certificates are: PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Our certificate, and after it those between it and the authority's.
    pub cert: PathBuf,
    pub key: PathBuf,
    /// The authority's certificate.
    pub ca: PathBuf,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path}: {error}")]
    File { path: PathBuf, error: io::Error },
    #[error("{path}: no {what} in it: {error}")]
    Pem { path: PathBuf, what: &'static str, error: PemError },
    #[error("the certificates cannot be used: {0}")]
    Rustls(#[from] rustls::Error),
    #[error("the authority's certificate cannot be used: {0}")]
    Authority(#[from] rustls::server::VerifierBuilderError),
}

/// Whom the dialled side has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialled {
    /// A node or the control plane.
    Member,
    /// Any server of the authority: not all that speak NBD are ours.
    Any,
}

/// What one reading of the files gave.
struct Loaded {
    stamp: Stamp,
    /// By the role that a listener serves.
    servers: [Arc<ServerConfig>; 3],
    members: Arc<ClientConfig>,
    any: Arc<ClientConfig>,
}

/// Length and change of each file.
type Stamp = [Option<(u64, SystemTime)>; 3];

/// Certificates for new connections; for every thread of a process.
pub struct Tls {
    files: TlsFiles,
    loaded: Mutex<Arc<Loaded>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads and checks the files.
    pub fn load(files: TlsFiles) -> Result<Arc<Self>, TlsError> {
        let loaded = Mutex::new(Arc::new(load(&files)?));
        Ok(Arc::new(Self { files, loaded }))
    }

    /// TLS on a connection that arrived, from whoever has a certificate of `role`. The handshake is yet to come.
    pub fn accepted(&self, stream: TcpStream, role: Role) -> io::Result<TlsStream> {
        let config = self.current().servers[role.index()].clone();
        let session = ServerConnection::new(config).map_err(io::Error::other)?;
        Ok(TlsStream::new(stream, session.into()))
    }

    /// TLS on a connection that was made to `host`. The handshake is yet to come.
    pub fn connected(&self, stream: TcpStream, host: &str, to: Dialled) -> io::Result<TlsStream> {
        let loaded = self.current();
        let config = match to {
            Dialled::Member => &loaded.members,
            Dialled::Any => &loaded.any,
        };
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(io::Error::other)?;
        let session = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
        Ok(TlsStream::new(stream, session.into()))
    }

    fn current(&self) -> Arc<Loaded> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if stamp(&self.files) != loaded.stamp {
            match load(&self.files) {
                Ok(new) => *loaded = Arc::new(new),
                Err(error) => tracing::warn!(target: "drover::tls", %error, "the certificates read before are used on"),
            }
        }
        loaded.clone()
    }
}

fn stamp(files: &TlsFiles) -> Stamp {
    [&files.cert, &files.key, &files.ca].map(|path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.len(), metadata.modified().ok()?))
    })
}

fn load(files: &TlsFiles) -> Result<Loaded, TlsError> {
    // Before the files are read: where they change meanwhile, they are read again.
    let stamp = stamp(files);
    let chain = certificates(&files.cert)?;
    let key = PrivateKeyDer::from_pem_slice(&bytes(&files.key)?);
    let key = key.map_err(|error| TlsError::Pem { path: files.key.clone(), what: "private key", error })?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&files.ca)? {
        roots.add(certificate)?;
    }
    let roots = Arc::new(roots);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = |role| server(&provider, &roots, role, &chain, &key);
    let client = |roles| client(&provider, &roots, roles, &chain, &key);
    Ok(Loaded {
        stamp,
        servers: [server(Role::Node)?, server(Role::Control)?, server(Role::Client)?],
        members: client(&[Role::Node, Role::Control])?,
        any: client(&[])?,
    })
}

fn server(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    role: Role,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(Clients::new(provider, roots, role)?))
        .with_single_cert(chain.to_vec(), key.clone_key())?;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(config))
}

fn client(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    roles: &'static [Role],
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Servers::new(provider, roots, roles)?))
        .with_client_auth_cert(chain.to_vec(), key.clone_key())?;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

fn bytes(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| TlsError::File { path: path.into(), error })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bad = |error| TlsError::Pem { path: path.into(), what: "certificate", error };
    let found: Vec<_> = CertificateDer::pem_slice_iter(&bytes(path)?).collect::<Result<_, _>>().map_err(bad)?;
    if found.is_empty() { Err(bad(PemError::NoItemsFound)) } else { Ok(found) }
}
