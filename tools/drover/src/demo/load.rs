//! fio writes and verifies in the free area for as long as the demo lasts, through one endpoint.
//!
//! The load runs in rounds: each writes its part of the area in random order and reads it back, checking CRC-32C and
//! the round's own seed, so that data of an earlier round in its place counts as wrong.

use super::tool;
use crate::failure::{Context, Failure};
use serde_json::Value;
use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// What fio is to do in which part of the volume.
#[derive(Clone)]
pub struct Area {
    pub uri: String,
    pub offset: u64,
    pub len: u64,
    /// Bytes a second at most.
    pub rate: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    WriteAndVerify,
    WriteOnly,
    VerifyOnly,
    /// At random, for so long; what is read is not looked at.
    ReadOnly(Duration),
}

/// What fio did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    pub written_bytes: u64,
    pub read_bytes: u64,
    /// Failed requests and mismatches.
    pub errors: u64,
}

/// Runs fio once to its end.
pub async fn run(area: &Area, mode: Mode, seed: u64, log: &Path) -> Result<Done, Failure> {
    let output = tool("fio", |command| arguments(command, area, mode, seed)).await?;
    let mut done = read(&output.stdout).unwrap_or_default();
    if !output.status.success() && done.errors == 0 {
        done.errors = 1;
    }
    let mut said = output.stderr;
    if done.errors > 0 {
        // What fio said about it, for whoever looks at the log.
        said.extend_from_slice(&output.stdout);
    }
    let file = File::options().create(true).append(true).open(log);
    file.and_then(|mut file| file.write_all(&said)).or_fail(|| format!("cannot write {}", log.display()))?;
    Ok(done)
}

fn arguments<'a>(command: &'a mut Command, area: &Area, mode: Mode, seed: u64) -> &'a mut Command {
    command.args(["--name=demo", "--ioengine=nbd", "--bsrange=4k-64k", "--blockalign=4k"]);
    command.args(["--iodepth=16", "--output-format=json", "--thread=1"]);
    match mode {
        Mode::ReadOnly(time) => {
            command.args(["--rw=randread", "--time_based", &format!("--runtime={}", time.as_secs())]);
        }
        _ => {
            command.args(["--rw=randwrite", "--verify=crc32c", "--verify_fatal=0", "--verify_state_save=0"]);
        }
    }
    command.args([format!("--uri={}", area.uri), format!("--offset={}", area.offset), format!("--size={}", area.len)]);
    command.arg(format!("--randseed={seed}"));
    // Reads, then writes.
    command.arg(format!("--rate={},{}", 2 * area.rate, area.rate));
    match mode {
        Mode::WriteAndVerify => command.arg("--do_verify=1"),
        Mode::WriteOnly => command.arg("--do_verify=0"),
        Mode::VerifyOnly => command.arg("--verify_only"),
        Mode::ReadOnly(_) => command,
    }
}

fn read(stdout: &[u8]) -> Option<Done> {
    let start = stdout.iter().position(|byte| *byte == b'{')?;
    let json: Value = serde_json::from_slice(&stdout[start..]).ok()?;
    let job = &json["jobs"][0];
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    Some(Done {
        written_bytes: number(&job["write"]["io_bytes"]),
        read_bytes: number(&job["read"]["io_bytes"]),
        errors: number(&job["total_err"]).max(u64::from(number(&job["error"]) != 0)),
    })
}

/// fio in rounds, as a task of its own.
pub struct Load {
    is_last: Rc<Cell<bool>>,
    rounds: Rc<Cell<u64>>,
    task: JoinHandle<Result<Done, Failure>>,
}

impl Load {
    pub fn start(area: Area, log: PathBuf) -> Self {
        let is_last = Rc::new(Cell::new(false));
        let rounds = Rc::new(Cell::new(0));
        let (flag, count) = (is_last.clone(), rounds.clone());
        let task = tokio::task::spawn_local(async move {
            let mut sum = Done::default();
            while !flag.get() {
                count.set(count.get() + 1);
                let done = run(&area, Mode::WriteAndVerify, count.get(), &log).await?;
                sum.written_bytes += done.written_bytes;
                sum.read_bytes += done.read_bytes;
                sum.errors += done.errors;
            }
            Ok(sum)
        });
        Self { is_last, rounds, task }
    }

    /// Rounds begun.
    pub fn rounds(&self) -> u64 {
        self.rounds.get()
    }

    /// Lets the round end, its verification included.
    pub async fn finish(self) -> Result<Done, Failure> {
        self.is_last.set(true);
        self.task.await.or_fail(|| "the load's task ended".into())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_fios_json() {
        let json = br#"fio: note before
            {"jobs": [{"error": 0, "total_err": 0, "write": {"io_bytes": 8192}, "read": {"io_bytes": 4096}}]}"#;
        let done = read(json).unwrap();
        assert_eq!((done.written_bytes, done.read_bytes, done.errors), (8192, 4096, 0));
        assert_eq!(read(br#"{"jobs": [{"error": 84}]}"#).unwrap().errors, 1);
        assert!(read(b"no json").is_none());
    }
}
