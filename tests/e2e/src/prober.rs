//! A client that writes a block and reads it back every millisecond, and remembers how long each took.
//!
//! Over a unix socket, since that endpoint never changes while a volume moves.

use crate::client::{BLOCK, Client};
use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// One write and the read of it.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    pub at: Instant,
    pub took: Duration,
}

/// What was seen from start to stop.
#[derive(Default)]
pub struct Seen {
    pub probes: Vec<Probe>,
    /// Requests that the server answered with an error.
    pub io_errors: u64,
    /// Reads that did not give what was acknowledged before.
    pub mismatches: u64,
    /// Why it ended early.
    pub broken: Option<String>,
}

impl Seen {
    /// The longest probe that was under way at some time between `from` and `to`.
    pub fn longest(&self, from: Instant, to: Instant) -> Duration {
        let overlaps = |probe: &&Probe| probe.at <= to && probe.at + probe.took >= from;
        self.probes.iter().filter(overlaps).map(|probe| probe.took).max().unwrap_or_default()
    }
}

/// Runs on a thread of its own.
pub struct Prober {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

impl Prober {
    /// Probes the block at `offset` of an export; nobody else may write there.
    pub fn start(socket: &Path, export: &str, offset: u64) -> io::Result<Self> {
        let mut client = Client::connect(socket, export)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut seen = Seen::default();
            let mut sequence = 0u64;
            while !stopped.load(Ordering::Relaxed) {
                sequence += 1;
                let at = Instant::now();
                if let Err(error) = probe(&mut client, offset, sequence, &mut seen) {
                    seen.broken = Some(error.to_string());
                    break;
                }
                let took = at.elapsed();
                seen.probes.push(Probe { at, took });
                thread::sleep(Duration::from_millis(1).saturating_sub(took));
            }
            seen
        });
        Ok(Self { stop, thread })
    }

    /// Ends it and returns what it saw.
    pub fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the prober does not panic")
    }
}

fn probe(client: &mut Client, offset: u64, sequence: u64, seen: &mut Seen) -> io::Result<()> {
    let mut block = [0u8; BLOCK];
    for word in block.chunks_exact_mut(8) {
        word.copy_from_slice(&sequence.to_le_bytes());
    }
    if client.write(offset, &block)? != 0 {
        seen.io_errors += 1;
        return Ok(());
    }
    match client.read(offset)? {
        Ok(read) => seen.mismatches += u64::from(read != block),
        Err(_) => seen.io_errors += 1,
    }
    Ok(())
}
