//! Stream sockets: TCP without Nagle's delay, and unix sockets.

use crate::connection;
use drover_base::LocalFuture;
use drover_base::world::{Connection, Listener, Net};
use socket2::{SockRef, TcpKeepalive};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// How long sent bytes may stay unacknowledged by the other machine before the connection counts as broken. Shorter
/// than half of `HOLD_DEADLINE`, so that a request can still go another way.
const USER_TIMEOUT: Duration = Duration::from_secs(15);

/// How long an idle connection may be silent before the kernel asks whether the other machine is there.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// A connected stream socket.
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    pub(crate) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.readable().await,
            Self::Unix(stream) => stream.readable().await,
        }
    }

    pub(crate) async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.writable().await,
            Self::Unix(stream) => stream.writable().await,
        }
    }

    pub(crate) fn try_read_buf(&self, buffer: &mut bytes::BytesMut) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read_buf(buffer),
            Self::Unix(stream) => stream.try_read_buf(buffer),
        }
    }

    pub(crate) fn try_write_vectored(&self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write_vectored(parts),
            Self::Unix(stream) => stream.try_write_vectored(parts),
        }
    }

    /// Wakes and fails both directions at both ends.
    pub(crate) fn shutdown(&self, how: std::net::Shutdown) {
        // It fails only where the connection is gone already.
        let _ = match self {
            Self::Tcp(stream) => SockRef::from(stream).shutdown(how),
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

pub(crate) struct SocketNet;

impl Net for SocketNet {
    fn connect(&self, address: &str) -> LocalFuture<'static, io::Result<Connection>> {
        let address = address.to_owned();
        Box::pin(async move {
            let socket = match address.strip_prefix("unix:") {
                Some(path) => Socket::Unix(UnixStream::connect(path).await?),
                None => {
                    let stream = TcpStream::connect(&address).await?;
                    prepare(&stream)?;
                    Socket::Tcp(stream)
                }
            };
            Ok(connection::open(socket, address))
        })
    }

    fn listen(&self, address: &str) -> LocalFuture<'static, io::Result<Box<dyn Listener>>> {
        let address = address.to_owned();
        Box::pin(async move {
            let listener: Box<dyn Listener> = match address.strip_prefix("unix:") {
                Some(path) => Box::new(Unix { listener: bind_unix(Path::new(path))?, address }),
                None => {
                    let listener = TcpListener::bind(&address).await?;
                    let address = listener.local_addr()?.to_string();
                    Box::new(Tcp { listener, address })
                }
            };
            Ok(listener)
        })
    }
}

struct Tcp {
    listener: TcpListener,
    address: String,
}

impl Listener for Tcp {
    fn accept(&mut self) -> LocalFuture<'_, io::Result<Connection>> {
        Box::pin(async move {
            let (stream, from) = self.listener.accept().await?;
            prepare(&stream)?;
            Ok(connection::open(Socket::Tcp(stream), from.to_string()))
        })
    }

    fn address(&self) -> String {
        self.address.clone()
    }
}

struct Unix {
    listener: UnixListener,
    address: String,
}

impl Listener for Unix {
    fn accept(&mut self) -> LocalFuture<'_, io::Result<Connection>> {
        Box::pin(async move {
            let (stream, _) = self.listener.accept().await?;
            Ok(connection::open(Socket::Unix(stream), self.address.clone()))
        })
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
