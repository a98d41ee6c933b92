//! A client that writes a block and reads it back every millisecond, and remembers how long each took.
//!
//! Speaks just enough NBD by itself (export name handshake, simple replies), so that what it sees does not depend on
//! the code under test. Over a unix socket, since that endpoint never changes while a volume moves.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const BLOCK: usize = 4096;
const READ: u16 = 0;
const WRITE: u16 = 1;

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
        let mut stream = connect(socket, export)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut seen = Seen::default();
            let mut sequence = 0u64;
            while !stopped.load(Ordering::Relaxed) {
                sequence += 1;
                let at = Instant::now();
                if let Err(error) = probe(&mut stream, offset, sequence, &mut seen) {
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

fn probe(stream: &mut UnixStream, offset: u64, sequence: u64, seen: &mut Seen) -> io::Result<()> {
    let mut block = [0u8; BLOCK];
    for word in block.chunks_exact_mut(8) {
        word.copy_from_slice(&sequence.to_le_bytes());
    }
    let request = [&request(WRITE, sequence * 2, offset)[..], &block].concat();
    stream.write_all(&request)?;
    if answer(stream, sequence * 2)? != 0 {
        seen.io_errors += 1;
        return Ok(());
    }
    stream.write_all(&self::request(READ, sequence * 2 + 1, offset))?;
    if answer(stream, sequence * 2 + 1)? != 0 {
        seen.io_errors += 1;
        return Ok(());
    }
    let mut read = [0u8; BLOCK];
    stream.read_exact(&mut read)?;
    seen.mismatches += u64::from(read != block);
    Ok(())
}

fn request(command: u16, cookie: u64, offset: u64) -> [u8; 28] {
    let mut bytes = [0; 28];
    bytes[0..4].copy_from_slice(&0x2560_9513u32.to_be_bytes());
    bytes[6..8].copy_from_slice(&command.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..28].copy_from_slice(&(BLOCK as u32).to_be_bytes());
    bytes
}

/// The error number of a simple reply.
fn answer(stream: &mut UnixStream, cookie: u64) -> io::Result<u32> {
    let mut reply = [0; 16];
    stream.read_exact(&mut reply)?;
    let field = |at: usize| u32::from_be_bytes(reply[at..at + 4].try_into().expect("four bytes"));
    let got = u64::from_be_bytes(reply[8..16].try_into().expect("eight bytes"));
    if field(0) != 0x6744_6698 || got != cookie {
        return Err(io::Error::other("what came is not the reply"));
    }
    Ok(field(4))
}

fn connect(socket: &Path, export: &str) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    if &greeting[..16] != b"NBDMAGICIHAVEOPT" {
        return Err(io::Error::other("the server is not a newstyle NBD server"));
    }
    // Client flags: fixed newstyle, no zeroes.
    stream.write_all(&3u32.to_be_bytes())?;
    let mut option = b"IHAVEOPT".to_vec();
    option.extend(1u32.to_be_bytes());
    option.extend((export.len() as u32).to_be_bytes());
    option.extend(export.as_bytes());
    stream.write_all(&option)?;
    let mut terms = [0; 10];
    stream.read_exact(&mut terms)?;
    Ok(stream)
}
