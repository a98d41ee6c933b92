//! Other people's servers, started as their users would.

use std::{
    error::Error,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// A server process that ends when dropped.
pub struct Server {
    child: Child,
    pub uri: String,
    pub name: &'static str,
}

impl Server {
    /// CPU time the process has used, seconds.
    pub fn cpu_s(&self) -> Result<f64, Box<dyn Error>> {
        cpu_s(self.child.id())
    }
}

/// CPU time of a process and its threads so far, seconds.
pub fn cpu_s(pid: u32) -> Result<f64, Box<dyn Error>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().ok_or("no fields")?.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok()).ok_or("no CPU time");
    // Fields 14 and 15 of proc(5), in hundredths of a second.
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `qemu-nbd` of a raw image over io_uring; `direct` bypasses the page cache.
pub fn qemu_nbd(image: &Path, direct: bool, cpu: Option<usize>) -> Result<Server, Box<dyn Error>> {
    serve_by_qemu(image, "raw", direct, cpu)
}

/// The same of a qcow2 image, past the page cache.
pub fn qemu_nbd_qcow2(image: &Path, cpu: Option<usize>) -> Result<Server, Box<dyn Error>> {
    serve_by_qemu(image, "qcow2", true, cpu)
}

fn serve_by_qemu(image: &Path, format: &str, direct: bool, cpu: Option<usize>) -> Result<Server, Box<dyn Error>> {
    let socket = image.with_extension("qemu-nbd.sock");
    // Left by the server before.
    let _ = std::fs::remove_file(&socket);
    let mut command = pinned("qemu-nbd", cpu);
    command.args(["--persistent", "--shared=8", "--format", format, "--aio=io_uring", "--discard=unmap"]);
    command.arg(if direct { "--cache=none" } else { "--cache=writeback" });
    command.arg("--socket").arg(&socket).arg(image);
    start(command, "qemu-nbd", socket)
}

/// `nbdkit file`.
pub fn nbdkit_file(image: &Path, cpu: Option<usize>) -> Result<Server, Box<dyn Error>> {
    let socket = image.with_extension("nbdkit.sock");
    let mut command = pinned("nbdkit", cpu);
    command.args(["--foreground", "--exit-with-parent", "--unix"]).arg(&socket).arg("file").arg(image);
    start(command, "nbdkit file", socket)
}

fn pinned(program: &str, cpu: Option<usize>) -> Command {
    let Some(cpu) = cpu else { return Command::new(program) };
    let mut command = Command::new("taskset");
    command.args(["-c", &cpu.to_string(), program]);
    command
}

fn start(mut command: Command, name: &'static str, socket: PathBuf) -> Result<Server, Box<dyn Error>> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn()?;
    let server = Server { child, uri: format!("nbd+unix:///?socket={}", socket.display()), name };
    let deadline = Instant::now() + Duration::from_secs(10);
    while !socket.exists() {
        if Instant::now() > deadline {
            return Err(format!("{name} did not open {}", socket.display()).into());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(server)
}
