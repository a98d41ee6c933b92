//! Stream sockets: TCP without Nagle's delay, with TLS where certificates are set, and unix sockets.

use crate::connection::{self, Incoming};
use crate::framing::Decoder;
use crate::tls::{DetachedTls, Dialled, Role, Tls, TlsStream, node_dns_name};
use drover_base::world::{Connection, Listener, Net};
use drover_base::{LocalFuture, NodeId};
use socket2::{SockRef, TcpKeepalive};
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// How long sent bytes may stay unacknowledged by the other machine before the connection counts as broken. Shorter
/// than half of `HOLD_DEADLINE`, so that a request can still go another way.
const USER_TIMEOUT: Duration = Duration::from_secs(15);

/// How long an idle connection may be silent before the kernel asks whether the other machine is there.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// How long showing certificates may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// A connected stream socket.
pub(crate) enum Socket {
    Tcp(TcpStream),
    Tls(Box<TlsStream>),
    Unix(UnixStream),
}

/// The same, registered nowhere: it may move to another thread.
pub(crate) enum DetachedSocket {
    Tcp(std::net::TcpStream),
    Tls(Box<DetachedTls>),
    Unix(std::os::unix::net::UnixStream),
}

impl DetachedSocket {
    /// Registers it with the runtime of the calling thread.
    pub(crate) fn attach(self) -> io::Result<Socket> {
        Ok(match self {
            Self::Tcp(stream) => Socket::Tcp(TcpStream::from_std(stream)?),
            Self::Tls(stream) => Socket::Tls(Box::new(stream.attach()?)),
            Self::Unix(stream) => Socket::Unix(UnixStream::from_std(stream)?),
        })
    }
}

impl Socket {
    /// Takes it off this thread's runtime.
    pub(crate) fn detach(self) -> io::Result<DetachedSocket> {
        Ok(match self {
            Self::Tcp(stream) => DetachedSocket::Tcp(stream.into_std()?),
            Self::Tls(stream) => DetachedSocket::Tls(Box::new(stream.detach()?)),
            Self::Unix(stream) => DetachedSocket::Unix(stream.into_std()?),
        })
    }

    pub(crate) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.readable().await,
            Self::Tls(stream) => stream.socket().readable().await,
            Self::Unix(stream) => stream.readable().await,
        }
    }

    pub(crate) async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.writable().await,
            Self::Tls(stream) => stream.socket().writable().await,
            Self::Unix(stream) => stream.writable().await,
        }
    }

    pub(crate) fn try_read_buf(&self, buffer: &mut bytes::BytesMut) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read_buf(buffer),
            Self::Tls(stream) => stream.try_read_buf(buffer),
            Self::Unix(stream) => stream.try_read_buf(buffer),
        }
    }

    pub(crate) fn try_write_vectored(&self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write_vectored(parts),
            Self::Tls(stream) => stream.try_write_vectored(parts),
            Self::Unix(stream) => stream.try_write_vectored(parts),
        }
    }

    /// Sends what was taken for sending and has not left. `WouldBlock`: some of it is left.
    pub(crate) fn try_flush(&self) -> io::Result<()> {
        match self {
            Self::Tls(stream) => stream.try_flush(),
            Self::Tcp(_) | Self::Unix(_) => Ok(()),
        }
    }

    /// What both sides have to do before messages pass.
    pub(crate) async fn handshake(&self) -> io::Result<()> {
        match self {
            Self::Tls(stream) => match tokio::time::timeout(HANDSHAKE_DEADLINE, stream.handshake()).await {
                Ok(result) => result,
                Err(_) => Err(ErrorKind::TimedOut.into()),
            },
            Self::Tcp(_) | Self::Unix(_) => Ok(()),
        }
    }

    /// Whether messages pass only after a handshake.
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Whether the other side may say that it is `node`. Without TLS everybody may.
    pub(crate) fn may_be(&self, node: &NodeId) -> bool {
        match self {
            Self::Tls(stream) => stream.shows(&node_dns_name(node)),
            Self::Tcp(_) | Self::Unix(_) => true,
        }
    }

    /// Nothing more is sent.
    pub(crate) fn end(&self) {
        if let Self::Tls(stream) = self {
            stream.end();
        }
        self.shutdown(Shutdown::Write);
    }

    /// Ends both directions at both ends, and wakes who waits. What the kernel has not sent by now it never sends,
    /// however long the file stays open.
    pub(crate) fn reset(&self) {
        let socket = match self {
            Self::Tcp(stream) => stream,
            Self::Tls(stream) => stream.socket(),
            // What a unix socket was given is with the other side already.
            Self::Unix(_) => return self.shutdown(Shutdown::Both),
        };
        // It fails only where the connection is gone already.
        let _ = rustix::net::connect_unspec(socket);
    }

    fn shutdown(&self, how: Shutdown) {
        // It fails only where the connection is gone already.
        let _ = match self {
            Self::Tcp(stream) => SockRef::from(stream).shutdown(how),
            Self::Tls(stream) => SockRef::from(stream.socket()).shutdown(how),
            Self::Unix(stream) => SockRef::from(stream).shutdown(how),
        };
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))
}

/// The network, with our certificates where TCP is to be TLS.
pub(crate) struct SocketNet {
    pub tls: Option<Arc<Tls>>,
}

impl Net for SocketNet {
    fn connect(&self, address: &str) -> LocalFuture<'static, io::Result<Connection>> {
        let (address, tls) = (address.to_owned(), self.tls.clone());
        Box::pin(async move {
            let socket = match address.strip_prefix("unix:") {
                Some(path) => Socket::Unix(UnixStream::connect(path).await?),
                None => {
                    let stream = TcpStream::connect(&address).await?;
                    prepare(&stream)?;
                    let host = address.rsplit_once(':').map_or(&*address, |(host, _)| host);
                    match tls {
                        Some(tls) => Socket::Tls(Box::new(tls.connected(stream, host, Dialled::Member)?)),
                        None => Socket::Tcp(stream),
                    }
                }
            };
            Ok(connection::open(socket, Decoder::default(), address).0)
        })
    }

    /// Nodes may connect.
    fn listen(&self, address: &str) -> LocalFuture<'static, io::Result<Box<dyn Listener>>> {
        let (address, tls) = (address.to_owned(), self.tls.clone());
        Box::pin(
            async move { Ok(Box::new(SocketListener::bind(&address, tls, Role::Node).await?) as Box<dyn Listener>) },
        )
    }
}

/// Where connections arrive that may be served by other threads.
pub struct SocketListener {
    bound: Bound,
    address: String,
    tls: Option<Arc<Tls>>,
    from: Role,
}

enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl SocketListener {
    /// An address is `host:port` or `unix:/path`. With `tls` only who has a certificate of the role `from` is heard at
    /// the former; the latter is reached by this machine only, and its file's permissions say by whom.
    pub async fn bind(address: &str, tls: Option<Arc<Tls>>, from: Role) -> io::Result<Self> {
        let (bound, address) = match address.strip_prefix("unix:") {
            Some(path) => (Bound::Unix(bind_unix(Path::new(path))?), address.into()),
            None => {
                let listener = TcpListener::bind(address).await?;
                let address = listener.local_addr()?.to_string();
                (Bound::Tcp(listener), address)
            }
        };
        Ok(Self { bound, address, tls, from })
    }

    /// The next connection, which may move to another thread.
    pub async fn incoming(&self) -> io::Result<Incoming> {
        Ok(match &self.bound {
            Bound::Tcp(listener) => {
                let (stream, from) = listener.accept().await?;
                prepare(&stream)?;
                let socket = match &self.tls {
                    Some(tls) => Socket::Tls(Box::new(tls.accepted(stream, self.from)?)),
                    None => Socket::Tcp(stream),
                };
                Incoming::new(socket, from.to_string())
            }
            Bound::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Incoming::new(Socket::Unix(stream), self.address.clone())
            }
        })
    }
}

impl Listener for SocketListener {
    fn accept(&mut self) -> LocalFuture<'_, io::Result<Connection>> {
        Box::pin(async move { Ok(self.incoming().await?.connection) })
    }

    fn address(&self) -> String {
        self.address.clone()
    }
}

/// Listens at a socket file. One left by a process that is gone is replaced; one in use is an error.
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            match std::os::unix::net::UnixStream::connect(path) {
                Err(refused) if refused.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
                _ => return Err(error),
            }
            UnixListener::bind(path)
        }
        result => result,
    }
}
