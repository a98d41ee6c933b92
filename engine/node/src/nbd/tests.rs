//! Connections over socket pairs.

mod bounds;
mod closing;
mod requests;

use super::*;
use bytes::Bytes;
use drover_base::{IoError, LocalFuture};
use drover_disk::Buffer;
use drover_wire::nbd::proto::{self, command, option};
use drover_wire::nbd::{Command, encode_request};
use futures::FutureExt;
use std::{
    cell::{Cell, RefCell},
    future::Future,
    rc::Rc,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_local, yield_now};

/// Runs a test on one thread with a `LocalSet`.
fn run_test(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

/// Lets every task run until none has anything to do. Tasks here wait for sockets of this process and for each
/// other only, so a bounded number of turns is enough.
async fn settle() {
    for _ in 0..2000 {
        yield_now().await;
    }
}

/// A server's connection and the other end of its socket.
struct Attached {
    stream: UnixStream,
    closing: watch::Sender<bool>,
    served: JoinHandle<Result<End, SessionError>>,
}

/// Serves one connection as a node does.
fn attach(service: &Rc<MemoryService>) -> Attached {
    let (server, stream) = UnixStream::pair().unwrap();
    let (closing, mut closed) = watch::channel(false);
    let service = service.clone();
    let served = spawn_local(async move {
        let closed = async move {
            // A test that drops the sender never closes.
            if closed.wait_for(|closing| *closing).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        match handshake(NbdStream::Unix(server), &*service, None).await? {
            Some(negotiated) => serve(negotiated, &*service, closed.boxed_local()).await,
            None => Ok(End::Client),
        }
    });
    Attached { stream, closing, served }
}

/// The same with our client at the other end.
async fn client(service: &Rc<MemoryService>, name: &str) -> NbdClient {
    let (client, driver) =
        NbdClient::over(NbdStream::Unix(attach(service).stream), &name.parse().unwrap()).await.unwrap();
    spawn_local(driver.run());
    client
}

fn service(export: &Rc<impl BlockExport + 'static>) -> Rc<MemoryService> {
    MemoryService::new([export.clone() as Rc<dyn BlockExport>])
}

/// An old client's way into transmission, with simple replies only.
async fn enter_simple(stream: &mut UnixStream, name: &str) {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).await.unwrap();
    let mut said = 3u32.to_be_bytes().to_vec();
    said.extend_from_slice(&proto::OPTION_MAGIC.to_be_bytes());
    said.extend_from_slice(&option::EXPORT_NAME.to_be_bytes());
    said.extend_from_slice(&(name.len() as u32).to_be_bytes());
    said.extend_from_slice(name.as_bytes());
    stream.write_all(&said).await.unwrap();
    stream.read_exact(&mut [0; 10]).await.unwrap();
}

/// A simple reply's error and cookie.
async fn simple_reply(stream: &mut UnixStream) -> (u32, u64) {
    let mut header = [0; 16];
    stream.read_exact(&mut header).await.unwrap();
    let (magic, rest) = header.split_at(4);
    let (errno, cookie) = rest.split_at(4);
    assert_eq!(magic, proto::SIMPLE_REPLY_MAGIC.to_be_bytes());
    (u32::from_be_bytes(errno.try_into().unwrap()), u64::from_be_bytes(cookie.try_into().unwrap()))
}

/// Deterministic chance.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % sides
    }
}

/// An export of any size that stores nothing, notes what it is asked, and answers when its gate opens.
struct Probe {
    size_bytes: u64,
    calls: RefCell<Vec<String>>,
    finished: Cell<usize>,
    gate: watch::Sender<bool>,
}

impl Probe {
    fn new(size_bytes: u64, is_open: bool) -> Rc<Self> {
        let (gate, _) = watch::channel(is_open);
        Rc::new(Self { size_bytes, calls: RefCell::default(), finished: Cell::new(0), gate })
    }

    fn open_gate(&self) {
        self.gate.send_replace(true);
    }

    fn calls(&self) -> usize {
        self.calls.borrow().len()
    }

    fn then<T: 'static>(self: Rc<Self>, call: String, result: T) -> LocalFuture<'static, Result<T, IoError>> {
        self.calls.borrow_mut().push(call);
        let mut gate = self.gate.subscribe();
        Box::pin(async move {
            gate.wait_for(|is_open| *is_open).await.map_err(|_| IoError::Disconnected)?;
            self.finished.update(|count| count + 1);
            Ok(result)
        })
    }
}

impl BlockExport for Probe {
    fn facts(&self) -> ExportFacts {
        let (name, description) = ("probe".into(), String::new());
        ExportFacts { name, description, size_bytes: self.size_bytes, read_only: false }
    }
    fn read(self: Rc<Self>, offset: u64, len: u64) -> LocalFuture<'static, Result<Buffer, IoError>> {
        let mut data = Buffer::for_read(len as usize);
        data.fill(0xcd);
        self.then(format!("read {offset}+{len}"), data)
    }
    fn write(self: Rc<Self>, offset: u64, data: Buffer, fua: bool) -> LocalFuture<'static, Result<(), IoError>> {
        self.then(format!("write {offset}+{} {fua}", data.len()), ())
    }
    fn write_zeroes(self: Rc<Self>, at: u64, len: u64, zero: ZeroRequest) -> LocalFuture<'static, Result<(), IoError>> {
        self.then(format!("zero {at}+{len} {} {} {}", zero.may_unmap, zero.fast_only, zero.fua), ())
    }
    fn trim(self: Rc<Self>, offset: u64, len: u64, fua: bool) -> LocalFuture<'static, Result<(), IoError>> {
        self.then(format!("trim {offset}+{len} {fua}"), ())
    }
    fn flush(self: Rc<Self>) -> LocalFuture<'static, Result<(), IoError>> {
        self.then("flush".into(), ())
    }
    fn cache(self: Rc<Self>, offset: u64, len: u64) -> LocalFuture<'static, Result<(), IoError>> {
        self.then(format!("cache {offset}+{len}"), ())
    }
    fn block_status(
        self: Rc<Self>,
        offset: u64,
        len: u64,
        most: usize,
    ) -> LocalFuture<'static, Result<Vec<(u64, BlockStatus)>, IoError>> {
        self.then(format!("status {offset}+{len} {most}"), vec![(u64::MAX, BlockStatus::default())])
    }
}
