//! fio as the client of every server, ours and peers'.

use serde_json::Value;
use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// What fio does to an export.
#[derive(Clone, Copy)]
pub struct Load<'a> {
    /// fio's `rw`.
    pub rw: &'a str,
    pub block_bytes: u64,
    pub depth: u32,
    /// Length of the measured window; `None`: the whole range once.
    pub seconds: Option<u32>,
    /// The range of the volume that is used, bytes from its start.
    pub range_bytes: u64,
    /// The processor fio is pinned to.
    pub cpu: Option<usize>,
    /// A flush after this many writes; 0: none.
    pub flush_every: u32,
    /// Bytes a second at most; 0: no limit.
    pub rate_bytes: u64,
}

/// What fio saw.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub iops: f64,
    pub ios: f64,
}

/// Runs fio against `uri` to its end.
pub fn run(uri: &str, load: &Load) -> Result<Seen, Box<dyn Error>> {
    let output = command(uri, load).arg("--output-format=json").output()?;
    if !output.status.success() {
        return Err(format!("fio failed: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    read(&output.stdout)
}

/// Writes the whole range once with data of which half is compressible.
pub fn fill(uri: &str, range_bytes: u64) -> Result<(), Box<dyn Error>> {
    let load = Load {
        rw: "write",
        block_bytes: 1 << 20,
        depth: 8,
        seconds: None,
        range_bytes,
        cpu: None,
        flush_every: 0,
        rate_bytes: 0,
    };
    run(uri, &load).map(|_| ())
}

fn command(uri: &str, load: &Load) -> Command {
    let mut command = match load.cpu {
        Some(cpu) => {
            let mut command = Command::new("taskset");
            command.args(["-c", &cpu.to_string(), "fio"]);
            command
        }
        None => Command::new("fio"),
    };
    command.args(["--name=load", "--ioengine=nbd", "--randrepeat=0", "--norandommap", "--refill_buffers=0"]);
    command.args([format!("--uri={uri}"), format!("--rw={}", load.rw), format!("--bs={}", load.block_bytes)]);
    command.args([format!("--iodepth={}", load.depth), format!("--size={}", load.range_bytes)]);
    command.arg("--buffer_compress_percentage=50");
    if let Some(seconds) = load.seconds {
        command.args(["--time_based".to_string(), format!("--runtime={seconds}")]);
    }
    if load.flush_every > 0 {
        command.arg(format!("--fsync={}", load.flush_every));
    }
    if load.rate_bytes > 0 {
        command.arg(format!("--rate={}", load.rate_bytes));
    }
    command
}

/// Reads fio's JSON.
fn read(output: &[u8]) -> Result<Seen, Box<dyn Error>> {
    let start = output.iter().position(|&byte| byte == b'{').ok_or("fio printed no JSON")?;
    let json: Value = serde_json::from_slice(&output[start..])?;
    let job = &json["jobs"][0];
    let side = if job["read"]["total_ios"].as_f64() > Some(0.0) { &job["read"] } else { &job["write"] };
    let number = |value: &Value| value.as_f64().ok_or("fio's JSON lacks a figure");
    Ok(Seen { iops: number(&side["iops"])?, ios: number(&side["total_ios"])? })
}

/// A fio that runs beside something else and notes each of its requests.
pub struct Logged {
    child: Child,
    log: PathBuf,
}

impl Logged {
    /// Its log lies in `folder`.
    pub fn start(uri: &str, load: &Load, folder: &Path) -> Result<Self, Box<dyn Error>> {
        let prefix = folder.join("fio");
        let log = folder.join("fio_clat.1.log");
        // What a run before left would be taken for this one's.
        let _ = fs::remove_file(&log);
        let mut command = command(uri, load);
        command.args(["--disable_slat=1", "--disable_lat=1", "--log_unix_epoch=1"]);
        command.arg(format!("--write_lat_log={}", prefix.display()));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        Ok(Self { child, log })
    }

    /// Ends it and reads what it noted.
    pub fn stop(self) -> Result<Requests, Box<dyn Error>> {
        // fio ends a run in good order on SIGINT, and says by its exit status that it was told to.
        Command::new("kill").args(["-INT", &self.child.id().to_string()]).status()?;
        let output = self.child.wait_with_output()?;
        let text = fs::read_to_string(&self.log)
            .map_err(|error| format!("fio left no log ({error}): {}", String::from_utf8_lossy(&output.stderr)))?;
        let mut requests = Vec::new();
        for line in text.lines() {
            // Milliseconds since 1970, latency in nanoseconds, direction, size, offset, priority.
            let mut fields = line.split(',').map(|field| field.trim().parse::<u64>());
            let (Some(Ok(at_ms)), Some(Ok(latency_ns))) = (fields.next(), fields.next()) else {
                return Err(format!("a line of fio's log is not understood: {line:?}").into());
            };
            requests.push((at_ms, latency_ns as f64 / 1e3));
        }
        Ok(Requests(requests))
    }
}

/// When requests ended, milliseconds since 1970, and their latencies in microseconds.
pub struct Requests(Vec<(u64, f64)>);

impl Requests {
    /// IOPS and 99th percentile of latency of what ended within the window.
    pub fn within(&self, from: SystemTime, to: SystemTime) -> Result<(f64, f64), Box<dyn Error>> {
        let (from_ms, to_ms) = (since_1970(from)?.as_millis() as u64, since_1970(to)?.as_millis() as u64);
        let inside = self.0.iter().filter(|(at_ms, _)| (from_ms..to_ms).contains(at_ms));
        let latencies: Vec<f64> = inside.map(|(_, latency_us)| *latency_us).collect();
        if latencies.is_empty() || to_ms == from_ms {
            return Err("no request of the writer ended within the window".into());
        }
        let iops = latencies.len() as f64 / ((to_ms - from_ms) as f64 / 1e3);
        Ok((iops, crate::record::percentile(&latencies, 0.99)))
    }
}

fn since_1970(at: SystemTime) -> Result<Duration, Box<dyn Error>> {
    Ok(at.duration_since(UNIX_EPOCH)?)
}
