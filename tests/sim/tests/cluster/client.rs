//! The clients: a few workers at each node that has some, whose every read is judged.
//!
//! Those of several nodes write by turns, so that each is the only one for a while, and all at once in between.

use crate::losses::Losses;
use crate::world::{Cluster, NODES, SIZE, export_of};
use drover_base::{IoError, World};
use drover_disk::Buffer;
use drover_node::nbd::{BlockExport, BlockService, ExportName, ZeroRequest};
use drover_sim::checker::{History, Outcome};
use drover_sim::runtime::Generator;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    ops::Range,
    rc::Rc,
    time::Duration,
};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = SIZE / BLOCK;
/// Half of all requests go here, so that they meet.
const HOT_BLOCKS: u64 = 96;
const REQUEST_BLOCKS_MAX: u64 = 16;
/// What is read or written at once where all of the volume is.
const PIECE_BLOCKS: u64 = (1 << 20) / BLOCK;

/// How many workers of a node's clients run.
type Running = Rc<Cell<usize>>;

/// What the clients were told so far; shared by their workers.
#[derive(Clone)]
pub struct Clients {
    pub history: Rc<RefCell<History>>,
    /// Requests that were answered, with success or without.
    pub answered: Rc<Cell<u64>>,
    pub failed: Rc<Cell<u64>>,
    pub given_up: Rc<Cell<u64>>,
    pub stop: Rc<Cell<bool>>,
    /// The node whose clients alone write now; `None`: all do.
    turn: Rc<Cell<Option<&'static str>>>,
    /// By node; those of a node that died are forgotten.
    running: Rc<RefCell<BTreeMap<&'static str, Running>>>,
    losses: Losses,
}

fn number_of(node: &str) -> u32 {
    NODES.iter().position(|name| *name == node).expect("it is one of the nodes") as u32
}

impl Clients {
    pub fn new(losses: Losses) -> Self {
        Self {
            history: Rc::new(RefCell::new(History::new(BLOCKS, BLOCK as usize))),
            answered: Rc::default(),
            failed: Rc::default(),
            given_up: Rc::default(),
            stop: Rc::default(),
            turn: Rc::default(),
            running: Rc::default(),
            losses,
        }
    }

    /// Works in the node's process until told to stop, if it has clients.
    pub async fn attach(&self, cluster: &Cluster, node: &'static str) {
        let Some((_, workers)) = cluster.cast.clients.iter().find(|(name, _)| *name == node) else { return };
        let process = cluster.sim.process(node);
        let running = Running::default();
        self.running.borrow_mut().insert(node, running.clone());
        for number in 0..*workers {
            let worker = Worker {
                clients: self.clone(),
                node,
                exports: cluster.node(node).expect("it runs").exports(),
                export: open(cluster, node).await,
                world: process.world(),
                random: cluster.sim.generator(&format!("worker {number} at {node}")),
                seed: cluster.sim.seed(),
                running: running.clone(),
            };
            running.set(running.get() + 1);
            process.spawn(worker.work());
        }
    }

    /// The node died, and its clients with it.
    pub fn died(&self, node: &'static str) {
        self.running.borrow_mut().remove(node);
        self.history.borrow_mut().crash(|client| client == number_of(node));
    }

    /// What was given up until now is uncertain.
    fn hear_losses(&self) {
        for node in self.losses.take() {
            self.given_up.set(self.given_up.get() + 1);
            self.history.borrow_mut().crash(|client| client == number_of(&node));
        }
    }

    /// Changes who writes, until told to stop.
    pub async fn take_turns(&self, cluster: &Cluster) {
        let mut random = cluster.sim.generator("turns");
        while !self.stop.get() {
            let (node, _) = random.pick(cluster.cast.clients);
            self.turn.set((random.below(4) > 0).then_some(*node));
            cluster.sim.sleep(Duration::from_millis(random.between(100, 5_000))).await;
        }
    }

    /// Writes all of the volume, so that there is something to move.
    pub async fn fill(&self, cluster: &Cluster) {
        let export = open(cluster, "gateway").await;
        for begin in (0..BLOCKS).step_by(PIECE_BLOCKS as usize) {
            let cells = begin..begin + PIECE_BLOCKS;
            let (id, bytes) = self.history.borrow_mut().begin_write(number_of("gateway"), cells, false);
            let request = export.clone().write(begin * BLOCK, Buffer::from_slice(&bytes), false);
            cluster.sim.process("gateway").run(request).await.expect("it lives").expect("nothing fails yet");
            self.history.borrow_mut().end_write(id, Outcome::Acknowledged);
        }
    }

    /// Writes and trims here and there, while nobody else does anything.
    pub async fn scribble(&self, cluster: &Cluster, random: &mut Generator) {
        for _ in 0..random.between(2, 12) {
            let first = random.below(BLOCKS - PIECE_BLOCKS);
            let cells = first..first + random.between(1, PIECE_BLOCKS / 4);
            if random.below(3) == 0 {
                self.trim(cluster, cells).await;
                continue;
            }
            let export = open(cluster, "gateway").await;
            let (id, bytes) = self.history.borrow_mut().begin_write(number_of("gateway"), cells, false);
            let request = export.write(first * BLOCK, Buffer::from_slice(&bytes), false);
            cluster.sim.process("gateway").run(request).await.expect("it lives").expect("nothing fails yet");
            self.history.borrow_mut().end_write(id, Outcome::Acknowledged);
        }
    }

    pub async fn trim_all(&self, cluster: &Cluster) {
        self.trim(cluster, 0..BLOCKS).await;
    }

    async fn trim(&self, cluster: &Cluster, cells: Range<u64>) {
        let export = open(cluster, "gateway").await;
        let id = self.history.borrow_mut().begin_zero(number_of("gateway"), cells.clone(), false);
        let request = export.trim(cells.start * BLOCK, (cells.end - cells.start) * BLOCK, false);
        cluster.sim.process("gateway").run(request).await.expect("it lives").expect("nothing fails yet");
        self.history.borrow_mut().end_write(id, Outcome::Acknowledged);
    }

    /// What all of the volume shows, judged by nobody.
    pub async fn content(&self, cluster: &Cluster) -> Vec<u8> {
        let export = open(cluster, "gateway").await;
        let mut content = Vec::new();
        for begin in (0..BLOCKS).step_by(PIECE_BLOCKS as usize) {
            let request = export.clone().read(begin * BLOCK, PIECE_BLOCKS * BLOCK);
            let read = cluster.sim.process("gateway").run(request).await.expect("it lives");
            content.extend_from_slice(read.expect("it can be read").as_slice());
        }
        content
    }

    pub fn is_running(&self) -> bool {
        self.running.borrow().values().any(|running| running.get() > 0)
    }

    /// Reads all of the volume, as the only one who does anything with it.
    pub async fn check_all(&self, cluster: &Cluster) {
        let export = open(cluster, "gateway").await;
        for begin in (0..BLOCKS).step_by(PIECE_BLOCKS as usize) {
            let cells = begin..begin + PIECE_BLOCKS;
            let read = self.history.borrow_mut().begin_read(cells.clone());
            let request = export.clone().read(cells.start * BLOCK, PIECE_BLOCKS * BLOCK);
            let result = cluster.sim.process("gateway").run(request).await.expect("it lives");
            let bytes = result.unwrap_or_else(|error| panic!("blocks {cells:?} cannot be read in the end: {error}"));
            self.hear_losses();
            let judged = self.history.borrow_mut().end_read(read, bytes.as_slice());
            judged.unwrap_or_else(|violation| panic!("in the end: {violation}"));
        }
    }

    /// Flushes until that succeeds.
    pub async fn flush(&self, cluster: &Cluster) {
        let export = open(cluster, "gateway").await;
        loop {
            let flush = self.history.borrow_mut().begin_flush();
            let result = cluster.sim.process("gateway").run(export.clone().flush()).await.expect("it lives");
            self.hear_losses();
            self.history.borrow_mut().end_flush(flush, result.is_ok());
            if result.is_ok() {
                break;
            }
        }
    }
}

async fn open(cluster: &Cluster, node: &str) -> Rc<dyn BlockExport> {
    let node_of_name = cluster.node(node).expect("it runs");
    let exports: Rc<dyn BlockService> = node_of_name.exports();
    for _ in 0..1000 {
        if let Some(export) = open_now(&*exports, node).await {
            return export;
        }
        cluster.sim.sleep(Duration::from_millis(10)).await;
    }
    panic!("the export does not come")
}

async fn open_now(exports: &dyn BlockService, node: &str) -> Option<Rc<dyn BlockExport>> {
    exports.open(&ExportName { export: export_of(node), workload: None }).await.ok().map(|opened| opened.export)
}

struct Worker {
    clients: Clients,
    node: &'static str,
    exports: Rc<dyn BlockService>,
    export: Rc<dyn BlockExport>,
    world: World,
    random: Generator,
    seed: u64,
    running: Running,
}

impl Worker {
    async fn work(mut self) {
        while !self.clients.stop.get() {
            let result = self.one().await;
            self.clients.answered.set(self.clients.answered.get() + 1);
            match result {
                Ok(()) => {}
                // Told that writes were given up, which takes a gateway that was away: connect again.
                Err(IoError::WritesLost) => {
                    let opened = open_now(&*self.exports, self.node).await;
                    self.export = opened.expect("it was open before");
                }
                // Held for longer than any request may be: its outcome is unknown. Nothing else may come of these faults.
                Err(error) => {
                    assert_eq!(error, IoError::TimedOut, "seed {}", self.seed);
                    self.clients.failed.set(self.clients.failed.get() + 1);
                }
            }
            let pause = Duration::from_micros(self.random.between(100, 60_000));
            self.world.sleep(pause).await;
        }
        self.running.set(self.running.get() - 1);
    }

    fn cells(&mut self) -> Range<u64> {
        let space = if self.random.below(2) == 0 { HOT_BLOCKS } else { BLOCKS };
        let len = self.random.between(1, REQUEST_BLOCKS_MAX);
        let begin = self.random.below(space - len + 1);
        begin..begin + len
    }

    async fn one(&mut self) -> Result<(), IoError> {
        let cells = self.cells();
        let (offset, len) = (cells.start * BLOCK, (cells.end - cells.start) * BLOCK);
        let fua = self.random.below(8) == 0;
        let export = self.export.clone();
        let writes = self.clients.turn.get().is_none_or(|node| node == self.node);
        let client = number_of(self.node);
        match self.random.below(20) {
            1.. if !writes => self.read(cells).await,
            0 => {
                let flush = self.clients.history.borrow_mut().begin_flush();
                let result = export.flush().await;
                self.clients.hear_losses();
                self.clients.history.borrow_mut().end_flush(flush, result.is_ok());
                result
            }
            1 => {
                let id = self.clients.history.borrow_mut().begin_zero(client, cells, fua);
                let zero = ZeroRequest { may_unmap: self.random.below(2) == 0, fast_only: false, fua };
                let result = export.write_zeroes(offset, len, zero).await;
                self.end(id, result)
            }
            2 => {
                let id = self.clients.history.borrow_mut().begin_zero(client, cells, fua);
                let result = export.trim(offset, len, fua).await;
                self.end(id, result)
            }
            3..11 => self.read(cells).await,
            _ => {
                let (id, bytes) = self.clients.history.borrow_mut().begin_write(client, cells, fua);
                let result = export.write(offset, Buffer::from_slice(&bytes), fua).await;
                self.end(id, result)
            }
        }
    }

    async fn read(&self, cells: Range<u64>) -> Result<(), IoError> {
        let (offset, len) = (cells.start * BLOCK, (cells.end - cells.start) * BLOCK);
        let read = self.clients.history.borrow_mut().begin_read(cells);
        let result = self.export.clone().read(offset, len).await;
        self.clients.hear_losses();
        let mut history = self.clients.history.borrow_mut();
        match result {
            Ok(bytes) => {
                let judged = history.end_read(read, bytes.as_slice());
                judged.unwrap_or_else(|violation| panic!("seed {} at {}: {violation}", self.seed, self.node));
                Ok(())
            }
            Err(error) => {
                history.abandon_read(read);
                Err(error)
            }
        }
    }

    fn end(&self, id: drover_sim::checker::WriteId, result: Result<(), IoError>) -> Result<(), IoError> {
        let outcome = if result.is_ok() { Outcome::Acknowledged } else { Outcome::Unknown };
        self.clients.history.borrow_mut().end_write(id, outcome);
        result
    }
}
