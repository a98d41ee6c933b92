//! The client: a few workers at the gateway, whose every read is judged.

use crate::world::{Cluster, EXPORT, SIZE};
use drover_base::{IoError, World};
use drover_disk::Buffer;
use drover_node::nbd::{BlockExport, BlockService, ExportName, ZeroRequest};
use drover_sim::checker::{History, Outcome};
use drover_sim::runtime::Generator;
use std::{
    cell::{Cell, RefCell},
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
const CLIENT: u32 = 1;

/// What the client was told so far; shared by its workers.
#[derive(Clone)]
pub struct Client {
    pub history: Rc<RefCell<History>>,
    /// Requests that were answered, with success or without.
    pub answered: Rc<Cell<u64>>,
    pub failed: Rc<Cell<u64>>,
    pub stop: Rc<Cell<bool>>,
    running: Rc<Cell<usize>>,
}

impl Client {
    pub fn new() -> Self {
        Self {
            history: Rc::new(RefCell::new(History::new(BLOCKS, BLOCK as usize))),
            answered: Rc::default(),
            failed: Rc::default(),
            stop: Rc::default(),
            running: Rc::default(),
        }
    }

    /// Works in the gateway's process until told to stop.
    pub async fn attach(&self, cluster: &Cluster, workers: usize) {
        let process = cluster.sim.process("gateway");
        for worker in 0..workers {
            let worker = Worker {
                client: self.clone(),
                export: open(cluster).await,
                world: process.world(),
                random: cluster.sim.generator(&format!("worker {worker}")),
                seed: cluster.sim.seed(),
            };
            self.running.set(self.running.get() + 1);
            process.spawn(worker.work());
        }
    }

    /// Writes all of the volume, so that there is something to move.
    pub async fn fill(&self, cluster: &Cluster) {
        let export = open(cluster).await;
        for begin in (0..BLOCKS).step_by(PIECE_BLOCKS as usize) {
            let cells = begin..begin + PIECE_BLOCKS;
            let (id, bytes) = self.history.borrow_mut().begin_write(CLIENT, cells, false);
            let request = export.clone().write(begin * BLOCK, Buffer::from_slice(&bytes), false);
            cluster.sim.process("gateway").run(request).await.expect("it lives").expect("nothing fails yet");
            self.history.borrow_mut().end_write(id, Outcome::Acknowledged);
        }
    }

    pub fn is_running(&self) -> bool {
        self.running.get() > 0
    }

    /// Reads all of the volume, as the only one who does anything with it.
    pub async fn check_all(&self, cluster: &Cluster) {
        let export = open(cluster).await;
        for begin in (0..BLOCKS).step_by(PIECE_BLOCKS as usize) {
            let cells = begin..begin + PIECE_BLOCKS;
            let read = self.history.borrow_mut().begin_read(cells.clone());
            let request = export.clone().read(cells.start * BLOCK, PIECE_BLOCKS * BLOCK);
            let result = cluster.sim.process("gateway").run(request).await.expect("it lives");
            let bytes = result.unwrap_or_else(|error| panic!("blocks {cells:?} cannot be read in the end: {error}"));
            let judged = self.history.borrow_mut().end_read(read, bytes.as_slice());
            judged.unwrap_or_else(|violation| panic!("in the end: {violation}"));
        }
    }

    /// Flushes until that succeeds.
    pub async fn flush(&self, cluster: &Cluster) {
        let export = open(cluster).await;
        loop {
            let flush = self.history.borrow_mut().begin_flush();
            let result = cluster.sim.process("gateway").run(export.clone().flush()).await.expect("it lives");
            self.history.borrow_mut().end_flush(flush, result.is_ok());
            if result.is_ok() {
                break;
            }
        }
    }
}

async fn open(cluster: &Cluster) -> Rc<dyn BlockExport> {
    let node = cluster.node("gateway").expect("it runs");
    let exports: Rc<dyn BlockService> = node.exports();
    let name = ExportName { export: EXPORT.into(), workload: None };
    for _ in 0..1000 {
        if let Ok(export) = exports.open(&name).await {
            return export;
        }
        cluster.sim.sleep(Duration::from_millis(10)).await;
    }
    panic!("the export does not come")
}

struct Worker {
    client: Client,
    export: Rc<dyn BlockExport>,
    world: World,
    random: Generator,
    seed: u64,
}

impl Worker {
    async fn work(mut self) {
        while !self.client.stop.get() {
            let result = self.one().await;
            self.client.answered.set(self.client.answered.get() + 1);
            if let Err(error) = result {
                // Held for longer than any request may be: its outcome is unknown. Nothing else may come of these faults.
                assert_eq!(error, IoError::TimedOut, "seed {}", self.seed);
                self.client.failed.set(self.client.failed.get() + 1);
            }
            let pause = Duration::from_micros(self.random.between(100, 60_000));
            self.world.sleep(pause).await;
        }
        self.client.running.set(self.client.running.get() - 1);
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
        match self.random.below(20) {
            0 => {
                let flush = self.client.history.borrow_mut().begin_flush();
                let result = export.flush().await;
                self.client.history.borrow_mut().end_flush(flush, result.is_ok());
                result
            }
            1 => {
                let id = self.client.history.borrow_mut().begin_zero(CLIENT, cells, fua);
                let zero = ZeroRequest { may_unmap: self.random.below(2) == 0, fast_only: false, fua };
                let result = export.write_zeroes(offset, len, zero).await;
                self.end(id, result)
            }
            2 => {
                let id = self.client.history.borrow_mut().begin_zero(CLIENT, cells, fua);
                let result = export.trim(offset, len, fua).await;
                self.end(id, result)
            }
            3..11 => {
                let read = self.client.history.borrow_mut().begin_read(cells);
                let result = export.read(offset, len).await;
                let mut history = self.client.history.borrow_mut();
                match result {
                    Ok(bytes) => {
                        let judged = history.end_read(read, bytes.as_slice());
                        judged.unwrap_or_else(|violation| panic!("seed {}: {violation}", self.seed));
                        Ok(())
                    }
                    Err(error) => {
                        history.abandon_read(read);
                        Err(error)
                    }
                }
            }
            _ => {
                let (id, bytes) = self.client.history.borrow_mut().begin_write(CLIENT, cells, fua);
                let result = export.write(offset, Buffer::from_slice(&bytes), fua).await;
                self.end(id, result)
            }
        }
    }

    fn end(&self, id: drover_sim::checker::WriteId, result: Result<(), IoError>) -> Result<(), IoError> {
        let outcome = if result.is_ok() { Outcome::Acknowledged } else { Outcome::Unknown };
        self.client.history.borrow_mut().end_write(id, outcome);
        result
    }
}
