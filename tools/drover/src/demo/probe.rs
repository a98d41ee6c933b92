//! How long a client waits: every millisecond one small write and read in a block of its own, on a thread of its own.

use crate::copy::connect;
use crate::failure::{Context, Failure};
use bytes::Bytes;
use drover_node::nbd::NbdUri;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_millis(1);
const BLOCK_BYTES: usize = 4096;

/// What the prober saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub requests: u64,
    /// Failed requests, and reads that did not give what was written.
    pub errors: u64,
    pub longest: Duration,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// The longest wait since it was last taken, microseconds.
    longest_us: AtomicU64,
}

pub struct Probe {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<Seen, Failure>>>,
}

impl Probe {
    /// Uses the block at `offset`.
    pub fn start(uri: NbdUri, offset: u64) -> Result<Self, Failure> {
        let shared = Arc::new(Shared::default());
        let own = shared.clone();
        let thread = std::thread::Builder::new().name("probe".into()).spawn(move || {
            drover_runtime::block_on(probe(&uri, offset, &own)).or_fail(|| "cannot start the runtime".into())?
        });
        Ok(Self { shared, thread: Some(thread.or_fail(|| "cannot start a thread".into())?) })
    }

    /// The longest wait since this was last asked.
    pub fn take_longest(&self) -> Duration {
        Duration::from_micros(self.shared.longest_us.swap(0, Ordering::Relaxed))
    }

    pub fn finish(mut self) -> Result<Seen, Failure> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("finish takes the probe");
        thread.join().unwrap_or_else(|_| Err(Failure::failed("the prober's thread panicked")))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

async fn probe(uri: &NbdUri, offset: u64, shared: &Shared) -> Result<Seen, Failure> {
    let client = connect(uri).await?;
    let mut seen = Seen::default();
    let mut due = Instant::now();
    while !shared.stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        if now < due {
            // tokio's timers are coarser than that, and nothing else runs here.
            std::thread::sleep(due - now);
        }
        let begin = Instant::now();
        due = begin.max(due + EVERY);
        let mut block = vec![0u8; BLOCK_BYTES];
        block[..8].copy_from_slice(&seen.requests.to_le_bytes());
        let written = client.write(offset, Bytes::from(block.clone()), false).await;
        longest(&mut seen, shared, begin);
        let begin = Instant::now();
        let read = client.read(offset, BLOCK_BYTES as u64).await;
        longest(&mut seen, shared, begin);
        seen.requests += 2;
        if written.is_err() || !read.is_ok_and(|read| read == block) {
            seen.errors += 1;
        }
    }
    Ok(seen)
}

fn longest(seen: &mut Seen, shared: &Shared, begin: Instant) {
    let waited = begin.elapsed();
    seen.longest = seen.longest.max(waited);
    shared.longest_us.fetch_max(waited.as_micros() as u64, Ordering::Relaxed);
}
