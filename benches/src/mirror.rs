//! QEMU's blockdev-mirror: two storage daemons, the disk of one mirrored to the other.

use crate::{Done, qmp::Qmp};
use serde_json::json;
use std::{
    error::Error,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Both daemons, gone when dropped.
pub struct Pair {
    _source: Process,
    _target: Process,
    qmp: Qmp,
    pub socket: PathBuf,
    target_socket: PathBuf,
    pub uri: String,
}

impl Pair {
    /// Serves an empty disk of `bytes` in `folder`.
    pub fn start(folder: &Path, bytes: u64) -> Result<Self, Box<dyn Error>> {
        let (socket, target_socket) = (folder.join("qsd-a.sock"), folder.join("qsd-b.sock"));
        let qmp_socket = folder.join("qsd-a.qmp");
        for path in [&socket, &target_socket, &qmp_socket] {
            // Left by the pair before.
            let _ = std::fs::remove_file(path);
        }
        let source = daemon(&folder.join("qsd-a.raw"), bytes, &socket, Some(&qmp_socket))?;
        let target = daemon(&folder.join("qsd-b.raw"), bytes, &target_socket, None)?;
        let qmp = Qmp::connect(&qmp_socket)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while !(socket.exists() && target_socket.exists()) {
            if Instant::now() > deadline {
                return Err("qemu-storage-daemon did not open its sockets".into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let uri = format!("nbd+unix:///disk?socket={}", socket.display());
        Ok(Self { _source: source, _target: target, qmp, socket, target_socket, uri })
    }

    /// Mirrors until both are equal, then completes: the export goes on from the target. False: the writer was faster
    /// than the mirror for all the `limit`.
    pub fn mirror(&mut self, mode: &str, limit: Duration) -> Result<bool, Box<dyn Error>> {
        let target = json!({ "driver": "nbd", "node-name": "target", "export": "disk",
            "server": { "type": "unix", "path": self.target_socket } });
        self.qmp.run("blockdev-add", target)?;
        let job = json!({ "job-id": "m", "device": "disk", "target": "target", "sync": "full", "copy-mode": mode });
        self.qmp.run("blockdev-mirror", job)?;
        let deadline = Instant::now() + limit;
        // READY is told once; whether what is written meanwhile can be caught up with shows at the completion.
        if self.qmp.wait("BLOCK_JOB_READY", deadline)?.is_none() {
            return Ok(false);
        }
        self.qmp.run("job-complete", json!({ "id": "m" }))?;
        match self.qmp.wait("BLOCK_JOB_COMPLETED", deadline)? {
            Some(event) if !event["data"]["error"].is_null() => Err(format!("the mirror failed: {event}").into()),
            completed => Ok(completed.is_some()),
        }
    }
}

fn daemon(image: &Path, bytes: u64, socket: &Path, qmp: Option<&Path>) -> Result<Process, Box<dyn Error>> {
    File::create(image)?.set_len(bytes)?;
    let file = format!("driver=file,node-name=file,filename={},aio=io_uring,discard=unmap", image.display());
    let server = format!("addr.type=unix,addr.path={},max-connections=8", socket.display());
    let export = "type=nbd,id=export,node-name=disk,name=disk,writable=on,iothread=io,fixed-iothread=off";
    let mut command = Command::new("qemu-storage-daemon");
    command.args(["--object", "iothread,id=io", "--blockdev", &file]);
    command.args(["--blockdev", "driver=raw,node-name=disk,file=file,discard=unmap"]);
    command.args(["--nbd-server", &server, "--export", export]);
    if let Some(qmp) = qmp {
        command.arg("--chardev").arg(format!("socket,id=qmp,path={},server=on,wait=off", qmp.display()));
        command.args(["--monitor", "chardev=qmp"]);
    }
    Ok(Process(command.stdin(Stdio::null()).spawn()?))
}

/// A process that ends when dropped.
pub struct Process(pub Child);

impl Process {
    pub fn end(&mut self) -> Done {
        // It may have ended already.
        let _ = self.0.kill();
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing is left to be done about it.
        let _ = self.end();
    }
}
