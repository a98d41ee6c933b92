//! fio as the client of every server, ours and peers'.

use serde_json::Value;
use std::{error::Error, process::Command};

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
    pub cpu: usize,
    /// A flush after this many writes; 0: none.
    pub flush_every: u32,
    /// Bytes a second at most; 0: no limit.
    pub rate_bytes: u64,
}

/// What fio saw.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub iops: f64,
    /// 99th percentile of completion latency, microseconds.
    pub p99_us: f64,
    pub ios: f64,
}

/// Runs fio against `uri` to its end.
pub fn run(uri: &str, load: &Load) -> Result<Seen, Box<dyn Error>> {
    let output = command(uri, load).output()?;
    if !output.status.success() {
        return Err(format!("fio failed: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    read(&output.stdout)
}

/// The command that [`run`] runs, with JSON on standard output.
pub fn command(uri: &str, load: &Load) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", &load.cpu.to_string(), "fio", "--name=load", "--ioengine=nbd", "--output-format=json"]);
    command.args([format!("--uri={uri}"), format!("--rw={}", load.rw), format!("--bs={}", load.block_bytes)]);
    command.args([format!("--iodepth={}", load.depth), format!("--size={}", load.range_bytes)]);
    command.args(["--randrepeat=0", "--norandommap", "--buffer_compress_percentage=50", "--refill_buffers=0"]);
    if let Some(seconds) = load.seconds {
        command.args(["--time_based".to_string(), format!("--runtime={seconds}"), "--ramp_time=300ms".into()]);
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
pub fn read(output: &[u8]) -> Result<Seen, Box<dyn Error>> {
    let start = output.iter().position(|&byte| byte == b'{').ok_or("fio printed no JSON")?;
    let json: Value = serde_json::from_slice(&output[start..])?;
    let job = &json["jobs"][0];
    let side = if job["read"]["total_ios"].as_f64() > Some(0.0) { &job["read"] } else { &job["write"] };
    let number = |value: &Value| value.as_f64().ok_or("fio's JSON lacks a figure");
    Ok(Seen {
        iops: number(&side["iops"])?,
        p99_us: number(&side["clat_ns"]["percentile"]["99.000000"])? / 1e3,
        ios: number(&side["total_ios"])?,
    })
}
