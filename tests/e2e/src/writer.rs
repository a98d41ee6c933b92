//! A client that writes, flushes and reads, and knows what each block may hold, also after its connection was lost.
//!
//! A block holds its index and the sequence number of its write in turns, so that torn, misplaced and stale blocks
//! are all seen. Invariants:
//! - `current[i]` is what a read of block i must give while the connection lives;
//! - `flushed[i]` is the newest write of block i covered by a flush that was answered;
//! - `since[i]` are the writes of block i sent after it. After a loss the block holds one of them or `flushed[i]`.

use crate::{
    Random,
    client::{BLOCK, Client},
};
use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long a lost connection is tried again: a restart takes much less.
const RECONNECT: Duration = Duration::from_secs(60);

/// Blocks of an export that the writer has to itself.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    /// Bytes.
    pub offset: u64,
    pub blocks: u64,
}

/// What a lost connection means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLoss {
    /// The endpoint was to survive.
    Fail,
    /// Connect again, check every block, go on.
    Reconnect,
}

/// What it did and saw.
#[derive(Debug)]
pub struct Written {
    pub writes: u64,
    pub flushes: u64,
    /// Each a sentence: errors answered, wrong content, a connection that should have lived.
    pub faults: Vec<String>,
    area: Area,
    current: Vec<u64>,
}

impl Written {
    /// Reads every block through an endpoint; panics with what is wrong, also of what was seen before.
    pub fn verify(&self, socket: &Path, export: &str) {
        assert!(self.faults.is_empty(), "{export}: {:#?}", self.faults);
        assert!(self.writes > 0 && self.flushes > 0, "{export}: nothing was written");
        let mut client = Client::connect(socket, export).expect("the endpoint answers");
        for (index, &sequence) in self.current.iter().enumerate() {
            let read = client.read(self.area.offset + (index * BLOCK) as u64).expect("the connection lives");
            assert_eq!(read.map(|block| decode(index, &block)), Ok(Ok(sequence)), "{export}: block {index}");
        }
    }
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    flushes: AtomicU64,
    checks: AtomicU64,
    ended: AtomicBool,
}

/// Runs on a thread of its own.
pub struct Writer {
    shared: Arc<Shared>,
    thread: JoinHandle<Written>,
}

impl Writer {
    pub fn start(socket: &Path, export: &str, area: Area, on_loss: OnLoss, seed: u64) -> Self {
        let shared = Arc::<Shared>::default();
        let blocks = area.blocks as usize;
        let work = Work {
            shared: shared.clone(),
            client: Client::connect(socket, export).expect("the endpoint answers"),
            socket: socket.into(),
            export: export.into(),
            random: Random::new(seed),
            sequence: 0,
            flushed: vec![0; blocks],
            since: vec![Vec::new(); blocks],
            written: Written { writes: 0, flushes: 0, faults: Vec::new(), area, current: vec![0; blocks] },
        };
        Self { shared, thread: thread::spawn(move || work.run(on_loss)) }
    }

    /// Flushes answered until now.
    pub fn flushes(&self) -> u64 {
        self.shared.flushes.load(Relaxed)
    }

    /// Reconnects after which every block was checked.
    pub fn checks(&self) -> u64 {
        self.shared.checks.load(Relaxed)
    }

    /// Waits until `count` more flushes were answered. Returns early if the writer has ended; its faults say why.
    pub fn wait_flushes(&self, count: u64) {
        let from = self.flushes();
        self.wait("flushes", || self.flushes() >= from + count);
    }

    /// Waits until every block was checked after `count` reconnects in all.
    pub fn wait_checks(&self, count: u64) {
        self.wait("checks", || self.checks() >= count);
    }

    fn wait(&self, what: &str, is_done: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !is_done() && !self.shared.ended.load(Relaxed) {
            assert!(Instant::now() < deadline, "waiting for {what}: the writer stands");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends it and returns what it saw.
    pub fn stop(self) -> Written {
        self.shared.stop.store(true, Relaxed);
        self.thread.join().expect("the writer does not panic")
    }
}

struct Work {
    shared: Arc<Shared>,
    client: Client,
    socket: PathBuf,
    export: String,
    random: Random,
    sequence: u64,
    flushed: Vec<u64>,
    since: Vec<Vec<u64>>,
    written: Written,
}

impl Work {
    fn run(mut self, on_loss: OnLoss) -> Written {
        while !self.shared.stop.load(Relaxed) && self.written.faults.is_empty() {
            let Err(error) = self.step() else { continue };
            if on_loss == OnLoss::Fail {
                self.fault(format!("the connection was lost: {error}"));
            } else if let Err(error) = self.reconnect() {
                self.fault(format!("it could not connect again: {error}"));
            } else {
                self.shared.checks.fetch_add(1, Relaxed);
            }
        }
        self.shared.ended.store(true, Relaxed);
        self.written
    }

    fn fault(&mut self, what: String) {
        self.written.faults.push(format!("{} after {} writes: {what}", self.export, self.written.writes));
    }

    fn offset(&self, index: usize) -> u64 {
        self.written.area.offset + (index * BLOCK) as u64
    }

    /// One request. An error is the connection's.
    fn step(&mut self) -> io::Result<()> {
        let index = self.random.below(self.written.area.blocks) as usize;
        let error = match self.random.below(20) {
            0 => {
                let error = self.client.flush()?;
                if error == 0 {
                    self.flushed.clone_from(&self.written.current);
                    self.since.iter_mut().for_each(Vec::clear);
                    self.written.flushes += 1;
                    self.shared.flushes.fetch_add(1, Relaxed);
                }
                error
            }
            1..5 => match self.client.read(self.offset(index))? {
                Ok(block) => {
                    let (wanted, got) = (self.written.current[index], decode(index, &block));
                    if got != Ok(wanted) {
                        self.fault(format!("block {index} gives {got:?}, write {wanted} was answered"));
                    }
                    0
                }
                Err(error) => error,
            },
            _ => {
                self.sequence += 1;
                self.since[index].push(self.sequence);
                let error = self.client.write(self.offset(index), &encode(index, self.sequence))?;
                self.written.current[index] = self.sequence;
                self.written.writes += 1;
                error
            }
        };
        if error != 0 {
            self.fault(format!("a request was answered with error {error}"));
        }
        Ok(())
    }

    /// Connects again and checks every block; again and again while the connection is lost on the way.
    fn reconnect(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + RECONNECT;
        loop {
            match self.check_all() {
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(10)),
                Ok(()) => return Ok(()),
            }
        }
    }

    fn check_all(&mut self) -> io::Result<()> {
        self.client = Client::connect(&self.socket, &self.export)?;
        for index in 0..self.flushed.len() {
            let got = match self.client.read(self.offset(index))? {
                Ok(block) => decode(index, &block),
                Err(error) => Err(format!("error {error}")),
            };
            match got {
                Ok(found) if found == self.flushed[index] || self.since[index].contains(&found) => {
                    // It stays what it is now: a later read may not tell otherwise.
                    self.written.current[index] = found;
                }
                got => {
                    let (flushed, since) = (self.flushed[index], self.since[index].clone());
                    self.fault(format!("block {index} gives {got:?}; {flushed} was flushed, {since:?} came later"));
                }
            }
        }
        Ok(())
    }
}

fn encode(index: usize, sequence: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    for (at, word) in block.chunks_exact_mut(8).enumerate() {
        let value = if at % 2 == 0 { index as u64 } else { sequence };
        word.copy_from_slice(&value.to_le_bytes());
    }
    block
}

/// The sequence number of the write that the block holds, 0 for none, or what is wrong with it.
fn decode(index: usize, block: &[u8; BLOCK]) -> Result<u64, String> {
    let sequence = u64::from_le_bytes(block[8..16].try_into().expect("eight bytes"));
    if sequence == 0 && block.iter().all(|&byte| byte == 0) || *block == encode(index, sequence) {
        return Ok(sequence);
    }
    let word = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().expect("eight bytes"));
    Err(format!("no whole write of this block: it begins {} {} and ends {}", word(0), word(8), word(BLOCK - 8)))
}
