//! The shards of a node as threads. The first runs on the thread of the process that also accepts and registers.
//!
//! ```text
//!  first thread   listeners, membership, Shards ──┬──► shard 0's own volumes
//!                                                 │ Task (bounded queue)
//!  shard-1 …      ring, store, node ◄─────────────┘
//! ```
//! Invariants
//! - A shard's tasks are begun in the order they were queued; a connection travels as a file that is registered nowhere.
//! - A shard that has ended answers that the node is stopping; nobody waits for it.
//! - A panic on any thread ends the process: no shard serves on without the others.

use super::label::HEADER_BYTES;
use super::{DaemonError, OpenError};
use crate::nbd::{Client, Handed};
use crate::shards::{Arrivals, Arriving, stopping};
use crate::{Common, Confirmed, Exports, Held, Node, NodeSettings, NodeStorage, Shard, Shards};
use drover_base::world::Connection;
use drover_base::{LocalFuture, World};
use drover_disk::{Device, DeviceHandle, Part};
use drover_runtime::tls::Tls;
use drover_runtime::{Detached, Incoming, SocketListener, Workers};
use drover_store::checkpoint::{CheckpointFile, CheckpointPlace};
use drover_store::meta::rocks::RocksMeta;
use drover_store::{Store, StoreConfig, Unfenced, home_shard};
use drover_wire::admin::{NodeReply, NodeRequest};
use drover_wire::peer::PeerRequest;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use tokio::sync::{mpsc, oneshot};

/// Tasks that wait for a shard; more wait at whoever sends them. Each is short: requests of clients are none of them.
const TASKS_MAX: usize = 256;

/// As the first shard has it, whose thread is the process's. Only what is used of it costs memory.
const STACK_BYTES: usize = 8 << 20;

/// What each shard is started with.
#[derive(Clone)]
pub(super) struct Parts {
    pub settings: NodeSettings,
    pub meta: RocksMeta,
    /// The index of chunks, where it could be opened.
    pub chunks: Option<RocksMeta>,
    pub common: Common,
    /// In the order of the tiers.
    pub devices: Vec<DeviceHandle>,
    /// The checkpoint's file.
    pub checkpoint: Option<PathBuf>,
    pub workers: Workers,
    pub tls: Option<Arc<Tls>>,
    pub shards: u32,
}

/// A shard that runs on this thread.
pub(super) struct Started {
    pub store: Rc<Store>,
    node: Rc<Node>,
}

impl Parts {
    /// Opens the shard's volumes and takes them up, on the calling thread.
    async fn start(&self, shard: u32, world: World) -> Result<Started, DaemonError> {
        let open = |handle: &DeviceHandle| {
            Ok(Rc::new(Part::behind(Rc::new(handle.device()?), HEADER_BYTES)) as Rc<dyn Device>)
        };
        let devices: Result<Vec<_>, OpenError> = self.devices.iter().map(open).collect();
        let devices = devices.map_err(|error| DaemonError::Reopened { error })?;
        let place = |path: &PathBuf| Rc::new(CheckpointFile::new(world.clone(), path)) as Rc<dyn CheckpointPlace>;
        let checkpoint = self.checkpoint.as_ref().map(place);
        let chunks = self.chunks.as_ref().map(RocksMeta::handle);
        let config = StoreConfig { shard, shards: self.shards, checkpoint, chunks, ..StoreConfig::default() };
        let (meta, common) = (self.meta.handle(), self.common.clone());
        let store = Store::open(config, world.clone(), devices, common.tiers.clone(), meta.clone()).await?;
        tracing::info!(target: "node", shard, volumes = store.volumes().len(), "a shard is open");
        let storage = NodeStorage { store: store.clone(), meta, common };
        let node = Node::start(self.settings.clone(), world, storage).await?;
        Ok(Started { store, node })
    }
}

impl Started {
    /// Makes what clients wrote durable, whether or not they asked for it.
    async fn settle(&self) {
        for volume in self.store.volumes() {
            if let Err(error) = volume.flush(&Unfenced).await {
                tracing::warn!(target: "node", volume = %volume.id(), %error, "not flushed at the end");
            }
        }
    }
}

/// What a shard on another thread is asked to do.
enum Task {
    Ask(Box<NodeRequest>, oneshot::Sender<NodeReply>),
    Held(oneshot::Sender<Held>),
    Confirm(Confirmed),
    Peer(Box<PeerRequest>, Detached),
    Client(Client<Handed>),
    /// Make durable what clients wrote, and end.
    Stop,
}

/// A shard on another thread.
struct Thread(mpsc::Sender<Task>);

impl Thread {
    /// Starts it; completes when its volumes are taken up.
    fn start(parts: Parts, shard: u32) -> Result<Starting, DaemonError> {
        let (tasks, queue) = mpsc::channel(TASKS_MAX);
        let (told, ready) = oneshot::channel();
        let run = move || {
            let mut told = Some(told);
            let ran = drover_disk::run(async {
                let world = drover_runtime::world(&parts.workers, parts.tls.clone());
                let started = parts.start(shard, world).await;
                let told = told.take().expect("it is told once");
                match started {
                    Ok(started) => {
                        // Nobody hears it where another shard has failed; then the queue is closed, too.
                        let _ = told.send(Ok(()));
                        work(started, queue).await;
                    }
                    Err(error) => drop(told.send(Err(error))),
                }
            });
            if let (Err(error), Some(told)) = (ran, told) {
                let _ = told.send(Err(error.into()));
            }
        };
        let thread = thread::Builder::new().name(format!("shard-{shard}")).stack_size(STACK_BYTES).spawn(run);
        let thread = thread.map_err(|error| DaemonError::Thread { shard, error })?;
        Ok(Starting { shard, ready, thread: Rc::new(Thread(tasks)), ends: thread })
    }

    async fn send(&self, task: Task) {
        // It has ended: whoever waits for an answer is told by the answer's sender, which is dropped.
        let _ = self.0.send(task).await;
    }
}

struct Starting {
    shard: u32,
    ready: oneshot::Receiver<Result<(), DaemonError>>,
    thread: Rc<Thread>,
    ends: JoinHandle<()>,
}

async fn work(started: Started, mut queue: mpsc::Receiver<Task>) {
    let node = &started.node;
    while let Some(task) = queue.recv().await {
        match task {
            Task::Ask(request, answer) => {
                let node = node.clone();
                tokio::task::spawn_local(async move {
                    // Whoever asked may have gone.
                    let _ = answer.send(node.handle(*request).await);
                });
            }
            Task::Held(answer) => drop(answer.send(node.held_leases())),
            Task::Confirm(confirmed) => node.note(confirmed),
            Task::Peer(hello, connection) => match connection.open() {
                Ok(connection) => Shard::serve_peer(node.clone(), *hello, connection).await,
                Err(error) => lost(&error),
            },
            Task::Client(client) => match client.attach() {
                Ok(client) => drop(tokio::task::spawn_local(client.serve(node.exports()))),
                Err(error) => lost(&error),
            },
            Task::Stop => {
                started.settle().await;
                return;
            }
        }
    }
}

fn lost(error: &io::Error) {
    tracing::warn!(target: "node", %error, "a connection was lost on its way to its shard");
}

impl Arriving for Incoming {
    fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    fn into_connection(self) -> Connection {
        self.connection
    }
}

impl Arrivals<Incoming> for SocketListener {
    async fn next(&mut self) -> io::Result<Incoming> {
        self.incoming().await
    }
}

impl Shard<Incoming> for Thread {
    fn ask(self: Rc<Self>, request: NodeRequest) -> LocalFuture<'static, NodeReply> {
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            self.send(Task::Ask(Box::new(request), answer)).await;
            answered.await.unwrap_or_else(|_| stopping())
        })
    }

    fn held(self: Rc<Self>) -> LocalFuture<'static, Held> {
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            self.send(Task::Held(answer)).await;
            answered.await.unwrap_or_default()
        })
    }

    fn confirm(self: Rc<Self>, confirmed: Confirmed) -> LocalFuture<'static, ()> {
        Box::pin(async move { self.send(Task::Confirm(confirmed)).await })
    }

    fn serve_peer(self: Rc<Self>, hello: PeerRequest, connection: Incoming) -> LocalFuture<'static, ()> {
        Box::pin(async move {
            match connection.detach() {
                Ok(connection) => self.send(Task::Peer(Box::new(hello), connection)).await,
                Err(error) => lost(&error),
            }
        })
    }
}

impl Shard<Incoming> for Started {
    fn ask(self: Rc<Self>, request: NodeRequest) -> LocalFuture<'static, NodeReply> {
        self.node.clone().ask(request)
    }

    fn held(self: Rc<Self>) -> LocalFuture<'static, Held> {
        self.node.clone().held()
    }

    fn confirm(self: Rc<Self>, confirmed: Confirmed) -> LocalFuture<'static, ()> {
        self.node.clone().confirm(confirmed)
    }

    fn serve_peer(self: Rc<Self>, hello: PeerRequest, connection: Incoming) -> LocalFuture<'static, ()> {
        Shard::serve_peer(self.node.clone(), hello, connection.connection)
    }
}

/// All shards of the node.
pub(super) struct Running {
    shards: Rc<Shards<Incoming>>,
    first: Rc<Started>,
    threads: Vec<Rc<Thread>>,
    ends: Vec<JoinHandle<()>>,
}

impl Running {
    /// Starts every shard; the first on the calling thread. Where one fails the others end.
    pub async fn start(parts: &Parts, world: World) -> Result<Self, DaemonError> {
        let starting: Result<Vec<_>, _> = (1..parts.shards).map(|shard| Thread::start(parts.clone(), shard)).collect();
        let mut failure = None;
        let (mut threads, mut ends) = (Vec::new(), Vec::new());
        let first = parts.start(0, world).await;
        for Starting { shard, ready, thread, ends: end } in starting? {
            match ready.await {
                Ok(Ok(())) => threads.push(thread),
                Ok(Err(error)) => failure = Some(DaemonError::Shard { shard, error: Box::new(error) }),
                Err(_) => unreachable!("a panic ends the process"),
            }
            ends.push(end);
        }
        let first = match (first, failure) {
            (Ok(first), None) => Rc::new(first),
            (Err(error), _) | (Ok(_), Some(error)) => {
                drop(threads);
                join(ends);
                return Err(error);
            }
        };
        let others = threads.iter().map(|thread| thread.clone() as Rc<dyn Shard<Incoming>>);
        let all = std::iter::once(first.clone() as Rc<dyn Shard<Incoming>>).chain(others);
        let shards = Shards::new(all.collect(), parts.settings.secret);
        Ok(Self { shards, first, threads, ends })
    }

    pub fn shards(&self) -> Rc<Shards<Incoming>> {
        self.shards.clone()
    }

    pub fn first(&self) -> &Started {
        &self.first
    }

    /// What gives NBD clients to the shards of the volumes they have chosen.
    pub fn serve_clients(&self, exports: Exports) -> Rc<dyn Fn(Client)> {
        let (first, threads) = (self.first.clone(), self.threads.clone());
        Rc::new(move |client| {
            // Removed since: the client finds out by the end of its connection.
            let Some(export) = exports.get(&client.name().export) else { return };
            match home_shard(export.volume, threads.len() as u32 + 1) {
                0 => drop(tokio::task::spawn_local(client.serve(first.node.exports()))),
                other => {
                    let thread = threads[other as usize - 1].clone();
                    match client.detach() {
                        Ok(client) => {
                            drop(tokio::task::spawn_local(async move { thread.send(Task::Client(client)).await }));
                        }
                        Err(error) => lost(&error),
                    }
                }
            }
        })
    }

    /// Makes durable what clients wrote, and ends the other threads.
    pub async fn stop(self) {
        let others = self.threads.iter().map(|thread| thread.send(Task::Stop));
        futures::future::join_all(others).await;
        self.first.settle().await;
        join(self.ends);
    }
}

fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        // A panic ends the process, so it has ended well.
        let _ = thread.join();
    }
}
