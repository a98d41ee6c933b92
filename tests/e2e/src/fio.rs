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

/// Writers of a run, each with a connection, a part of the area, and one request in flight. With more in flight fio 3.33
/// saves no more than a window of that many: a write that was overtaken by as many others it takes for written, though
/// it was never answered.
const WRITERS: u64 = 8;

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
        // Of the run before nothing is left that could be taken for this one's.
        let _ = std::fs::remove_dir_all(folder);
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
        fio.args(["--do_verify=1", "--verify_state_save=0", &format!("--rate_iops={}", writes_per_s / WRITERS)]);
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
        let bytes = self.area.blocks * BLOCK as u64 / WRITERS;
        let mut fio = Command::new("timeout");
        fio.args(["--kill-after=5", "120", "fio", "--name=verified", "--ioengine=nbd", "--thread", "--rw=randwrite"])
            .args(["--bs=4k", "--iodepth=1", "--verify=crc32c", "--verify_fatal=1", &format!("--numjobs={WRITERS}")])
            .args([format!("--uri={uri}"), format!("--randseed={}", self.seed)])
            .args([format!("--offset={}", self.area.offset), format!("--offset_increment={bytes}")])
            .arg(format!("--size={bytes}"))
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
/// answered a kill of the node must not take.
pub struct FlushingProxy {
    daemon: Daemon,
    socket: PathBuf,
    requests: PathBuf,
}

impl FlushingProxy {
    pub fn start(cluster: &Cluster, node: usize, export: &str) -> Self {
        let at = |name: &str| cluster.folder().join(name);
        let (socket, requests) = (at("nbdkit.sock"), at("nbdkit.requests"));
        let arguments = [
            "-f",
            "-U",
            &socket.display().to_string(),
            "--filter=log",
            "--filter=fua",
            "nbd",
            &format!("uri={}", cluster.uri(node, export)),
            "fuamode=force",
            &format!("logfile={}", requests.display()),
            "logappend=true",
        ];
        let mut daemon = Daemon::new("nbdkit", Path::new("nbdkit"), &arguments, &at("nbdkit.log"));
        daemon.start().expect("nbdkit starts");
        let mut proxy = Self { daemon, socket, requests };
        proxy.wait("nbdkit to listen", |proxy| proxy.socket.exists());
        proxy
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    /// Forgets the writes that have come.
    pub fn forget(&self) {
        std::fs::File::create(&self.requests).expect("the list of requests is emptied");
    }

    /// Waits until so many writes have come since they were forgotten.
    pub fn wait_writes(&mut self, count: usize) {
        let writes = |requests: &Path| std::fs::read_to_string(requests).unwrap_or_default().matches(" Write ").count();
        self.wait("writes", |proxy| writes(&proxy.requests) >= count);
    }

    fn wait(&mut self, what: &str, is_done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_done(self) {
            assert!(Instant::now() < deadline, "waiting for {what}: {}", self.daemon.log());
            assert!(self.daemon.is_running(), "nbdkit ended: {}", self.daemon.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
