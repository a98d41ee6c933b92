//! When the machine itself stood still: a virtual one whose host gives its processors to others for a while adds that
//! to every pause, whatever serves.
//!
//! A thread on each processor, before all others there, does nothing but sleep for a millisecond. Where it comes back
//! late, nothing else could run on that processor either.

use std::{
    error::Error,
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError, Weak, mpsc},
    thread,
    time::{Duration, Instant},
};

const NAP: Duration = Duration::from_millis(1);
/// Later than this is not the timer's doing.
const NOTED: Duration = Duration::from_millis(3);

/// The sleeps that took too long: when they began, and how long they were.
type Log = Mutex<Vec<(Instant, Duration)>>;

/// Watches all processors while it lives.
pub struct Stops {
    log: Arc<Log>,
}

impl Stops {
    /// `None`, and says so, where that is not allowed.
    pub fn watch() -> Option<Self> {
        let log = Arc::new(Log::default());
        let count = thread::available_parallelism().ok()?.get();
        let watched: Vec<bool> = (0..count)
            .map(|cpu| {
                let (tell, told) = mpsc::channel();
                let log = Arc::downgrade(&log);
                thread::spawn(move || {
                    let taken = take(cpu).is_ok();
                    // Whoever started it waits for this.
                    let _ = tell.send(taken);
                    if taken {
                        note_stops(&log);
                    }
                });
                told.recv().unwrap_or(false)
            })
            .collect();
        if watched.contains(&false) {
            eprintln!("  no real-time threads (chrt, taskset, root): what the machine itself adds stays unknown");
            return None;
        }
        Some(Self { log })
    }

    /// The longest time in which a processor ran nothing although it should have, between `from` and `to`.
    pub fn longest(&self, from: Instant, to: Instant) -> Duration {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let overlaps = |(at, took): &&(Instant, Duration)| *at <= to && *at + *took >= from;
        log.iter().filter(overlaps).map(|(_, took)| *took).max().unwrap_or_default()
    }
}

/// Until nobody wants to know any more.
fn note_stops(log: &Weak<Log>) {
    loop {
        let at = Instant::now();
        thread::sleep(NAP);
        let took = at.elapsed();
        let Some(log) = log.upgrade() else { return };
        if took > NOTED {
            log.lock().unwrap_or_else(PoisonError::into_inner).push((at, took));
        }
    }
}

/// Puts the calling thread on a processor, before all others there.
fn take(cpu: usize) -> Result<(), Box<dyn Error>> {
    let path = std::fs::read_link("/proc/thread-self")?;
    let id = path.file_name().and_then(|name| name.to_str()).ok_or("a thread has a number")?;
    let cpu = cpu.to_string();
    for words in [["taskset", "-p", "-c", &cpu, id], ["chrt", "-f", "-p", "1", id]] {
        let mut command = Command::new(words[0]);
        if !command.args(&words[1..]).stdout(Stdio::null()).stderr(Stdio::null()).status()?.success() {
            return Err(format!("{words:?} failed").into());
        }
    }
    Ok(())
}
