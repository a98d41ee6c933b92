//! Sockets that carry NBD.

use drover_runtime::tls::{DetachedTls, Dialled, Role, Tls, TlsStream};
use drover_wire::nbd::NbdAddress;
use std::{
    io,
    os::unix::{fs::FileTypeExt, net::UnixStream as StdUnixStream},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// A connection of any kind, registered with the runtime of its thread.
#[derive(Debug)]
pub enum NbdStream {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream>),
}

/// The same, registered nowhere: it may move to another thread.
#[derive(Debug)]
pub enum DetachedStream {
    Unix(StdUnixStream),
    Tcp(std::net::TcpStream),
    Tls(Box<DetachedTls>),
}

impl NbdStream {
    /// Connects to a server.
    pub async fn connect(address: &NbdAddress) -> io::Result<Self> {
        match address {
            NbdAddress::Unix(path) => Ok(Self::Unix(UnixStream::connect(path).await?)),
            NbdAddress::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
        }
    }

    /// Takes it off this thread's runtime.
    pub fn detach(self) -> io::Result<DetachedStream> {
        Ok(match self {
            Self::Unix(stream) => DetachedStream::Unix(stream.into_std()?),
            Self::Tcp(stream) => DetachedStream::Tcp(stream.into_std()?),
            Self::Tls(stream) => DetachedStream::Tls(Box::new(stream.detach()?)),
        })
    }

    /// From here on encrypted, with a client that has a certificate.
    pub(super) async fn accept_tls(self, tls: &Tls) -> io::Result<Self> {
        let Self::Tcp(stream) = self else { return Err(io::ErrorKind::InvalidInput.into()) };
        let stream = tls.accepted(stream, Role::Client)?;
        stream.handshake().await?;
        Ok(Self::Tls(Box::new(stream)))
    }

    /// From here on encrypted, with the server at `host`.
    pub(super) async fn connect_tls(self, tls: &Tls, host: &str) -> io::Result<Self> {
        let Self::Tcp(stream) = self else { return Err(io::ErrorKind::InvalidInput.into()) };
        let stream = tls.connected(stream, host, Dialled::Any)?;
        stream.handshake().await?;
        Ok(Self::Tls(Box::new(stream)))
    }
}

impl DetachedStream {
    /// Registers it with the runtime of the calling thread.
    pub fn attach(self) -> io::Result<NbdStream> {
        Ok(match self {
            Self::Unix(stream) => NbdStream::Unix(UnixStream::from_std(stream)?),
            Self::Tcp(stream) => NbdStream::Tcp(TcpStream::from_std(stream)?),
            Self::Tls(stream) => NbdStream::Tls(Box::new(stream.attach()?)),
        })
    }
}

impl AsyncRead for NbdStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for NbdStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
        }
    }
}

/// Where clients connect. A Unix socket's file goes when the listener is dropped.
#[derive(Debug)]
pub enum NbdListener {
    Unix(UnixListener, SocketFile),
    /// With certificates a client has to ask for TLS before anything else.
    Tcp(TcpListener, Option<Arc<Tls>>),
}

/// A socket's file that we made.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone with its folder already.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl NbdListener {
    /// Listens. Port 0 takes a free one. A socket's file that nobody listens at any more is replaced. TLS is for TCP.
    pub async fn bind(address: &NbdAddress, tls: Option<Arc<Tls>>) -> io::Result<Self> {
        match address {
            NbdAddress::Unix(path) => {
                let listener = match UnixListener::bind(path) {
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path) => {
                        std::fs::remove_file(path)?;
                        UnixListener::bind(path)?
                    }
                    bound => bound?,
                };
                Ok(Self::Unix(listener, SocketFile(path.clone())))
            }
            NbdAddress::Tcp { host, port } => Ok(Self::Tcp(TcpListener::bind((host.as_str(), *port)).await?, tls)),
        }
    }

    /// Where it listens, with the real port.
    pub fn address(&self) -> io::Result<NbdAddress> {
        Ok(match self {
            Self::Unix(_, SocketFile(path)) => NbdAddress::Unix(path.clone()),
            Self::Tcp(listener, _) => {
                let address = listener.local_addr()?;
                NbdAddress::Tcp { host: address.ip().to_string(), port: address.port() }
            }
        })
    }

    /// What connections to here have to be encrypted with.
    pub(super) fn tls(&self) -> Option<Arc<Tls>> {
        match self {
            Self::Unix(..) => None,
            Self::Tcp(_, tls) => tls.clone(),
        }
    }

    /// The next connection.
    pub async fn accept(&self) -> io::Result<NbdStream> {
        Ok(match self {
            Self::Unix(listener, _) => NbdStream::Unix(listener.accept().await?.0),
            Self::Tcp(listener, _) => {
                let stream = listener.accept().await?.0;
                stream.set_nodelay(true)?;
                NbdStream::Tcp(stream)
            }
        })
    }
}

/// Whether a socket's file is left over from a process that is gone.
fn is_stale(path: &Path) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    is_socket && StdUnixStream::connect(path).err().is_some_and(refused)
}
