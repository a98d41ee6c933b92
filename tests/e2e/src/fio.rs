//! fio as the client: what it was answered it verifies itself, in the same run or by a state that it saved when its
//! server was killed.
//!
//! A block of an earlier run would pass for one of this: so every run begins on zeroes that were flushed.

use crate::{
    client::{BLOCK, Client},
    cluster::{Cluster, Endpoint},
    process::Daemon,
    writer::Area,
};
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// A run of fio over an area of an export, in a folder that keeps its state.
pub struct Fio {
    area: Area,
    folder: PathBuf,
    seed: u64,
}

/// A run that is under way.
pub struct Running(Child);

impl Fio {
    /// Writes zeroes all over the area, through that endpoint, and flushes them.
    pub fn prepare(endpoint: &Endpoint, export: &str, area: Area, folder: &Path, seed: u64) -> Self {
        std::fs::create_dir_all(folder).expect("a folder for fio");
        let mut client = Client::connect(&endpoint.socket, export).expect("the endpoint answers");
        for index in 0..area.blocks {
            let error = client.write(area.offset + index * BLOCK as u64, &[0; BLOCK]).expect("the connection lives");
            assert_eq!(error, 0, "a zero of {export}");
        }
        assert_eq!(client.flush().expect("the connection lives"), 0, "the flush of the zeroes of {export}");
        Self { area, folder: folder.into(), seed }
    }

    /// Writes each block once, in random order, then reads and compares all; what fio said if something is wrong.
    pub fn write_and_verify(&self, uri: &str, writes_per_s: u64) -> Result<(), String> {
        let mut fio = self.command(uri);
        fio.args(["--do_verify=1", "--verify_state_save=0", &format!("--rate_iops={writes_per_s}")]);
        succeeded(&fio.output().expect("fio runs"))
    }

    /// Writes each block once; when its server dies it fails, and has saved what it was answered.
    pub fn start_writing(&self, uri: &str) -> Running {
        let mut fio = self.command(uri);
        fio.args(["--do_verify=0", "--verify_state_save=1"]).stdout(Stdio::null()).stderr(Stdio::null());
        Running(fio.spawn().expect("fio runs"))
    }

    /// Reads and compares every block of which the run before was answered that it is written.
    pub fn verify_saved(&self, uri: &str) -> Result<(), String> {
        let mut fio = self.command(uri);
        fio.args(["--verify_only", "--verify_state_load=1", "--verify_state_save=0"]);
        succeeded(&fio.output().expect("fio runs"))
    }

    fn command(&self, uri: &str) -> Command {
        let mut fio = Command::new("timeout");
        fio.args(["--kill-after=5", "120", "fio", "--name=verified", "--ioengine=nbd", "--thread", "--rw=randwrite"])
            .args(["--bs=4k", "--iodepth=8", "--verify=crc32c", "--verify_fatal=1"])
            .args([format!("--uri={uri}"), format!("--randseed={}", self.seed)])
            .args([format!("--offset={}", self.area.offset), format!("--size={}", self.area.blocks * BLOCK as u64)])
            .current_dir(&self.folder)
            .stdin(Stdio::null());
        fio
    }
}

impl Running {
    /// Waits for its end; whether it ended because its connection was lost.
    pub fn was_cut_off(mut self) -> bool {
        !self.0.wait().expect("fio ends").success()
    }
}

fn succeeded(output: &Output) -> Result<(), String> {
    let said = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned()).concat();
    if output.status.success() { Ok(()) } else { Err(format!("{}: {said}", output.status)) }
}

/// nbdkit before a node's export, which makes every write durable before it is answered (FUA): what its client is
/// answered a kill of the node must not take. Its URI comes with it.
pub fn flushing_proxy(cluster: &Cluster, node: usize, export: &str) -> (Daemon, String) {
    let socket = cluster.folder().join("flushing.sock");
    let uri = format!("uri={}", cluster.uri(node, export));
    let arguments =
        ["-f", "-U", &socket.display().to_string(), "--filter=fua", "nbd", &uri, "fuamode=force"].map(String::from);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let log = cluster.folder().join("nbdkit.log");
    let mut proxy = Daemon::new("nbdkit", Path::new("nbdkit"), &arguments, &log);
    proxy.start().expect("nbdkit starts");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !socket.exists() {
        assert!(proxy.is_running() && Instant::now() < deadline, "nbdkit: {}", proxy.log());
        std::thread::sleep(Duration::from_millis(5));
    }
    (proxy, format!("nbd+unix:///?socket={}", socket.display()))
}
