//! Child processes that never outlive their parent.

#![allow(unsafe_code)] // The parent-death signal is set between fork and exec, where only libc reaches.

use crate::failure::{Context, Failure};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long a daemon may take to stop in order before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// A running child. Dropping it kills it.
pub struct Child {
    process: std::process::Child,
    pub name: String,
    pub log: PathBuf,
}

impl Child {
    /// Starts `command` with its output in the file `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self, Failure> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.or_fail(|| format!("cannot write {}", log.display()))?;
        let errors = file.try_clone().or_fail(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        die_with_parent(&mut command);
        let process = command.spawn().or_fail(|| format!("cannot start {name}"))?;
        Ok(Self { process, name: name.into(), log: log.into() })
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().ok().flatten()
    }

    /// An error if it has ended, with the end of its log.
    pub fn check(&mut self) -> Result<(), Failure> {
        match self.ended() {
            None => Ok(()),
            Some(status) => {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(12)..].join("\n    ");
                Err(Failure::failed(format!("{} ended with {status}", self.name))
                    .cause(format!("its log ends:\n    {tail}")))
            }
        }
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: the child was not waited for yet, so its id cannot belong to another process.
        let status = unsafe { libc::kill(self.process.id() as i32, signal) };
        debug_assert!(status == 0 || std::io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH));
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Asks all to stop, waits for them, and kills those that take too long. Returns the names of the killed.
pub async fn stop(children: &mut Vec<Child>) -> Vec<String> {
    for child in children.iter_mut().filter_map(|child| child.ended().is_none().then_some(child)) {
        child.signal(libc::SIGTERM);
    }
    let begin = Instant::now();
    while begin.elapsed() < STOP_DEADLINE && children.iter_mut().any(|child| child.ended().is_none()) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let late = children.iter_mut().filter_map(|child| child.ended().is_none().then(|| child.name.clone())).collect();
    children.clear();
    late
}

/// Makes the child of `command` die when the thread that starts it does.
pub fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let hook = move || {
        // SAFETY: prctl with these arguments touches no memory, and is allowed between fork and exec.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        // SAFETY: getppid has no preconditions. The parent may have died before the line above.
        if unsafe { libc::getppid() } as u32 != parent {
            return Err(std::io::ErrorKind::NotFound.into());
        }
        Ok(())
    };
    // SAFETY: the hook calls only functions that are safe after fork, and allocates nothing.
    unsafe { command.pre_exec(hook) };
    // A terminal's Ctrl-C is for the parent, which stops its children in order.
    command.process_group(0);
}

/// The requests to stop that a process gets.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// The terminal is gone. `None`: that was to be ignored from the start (nohup).
    hangup: Option<Signal>,
}

impl Signals {
    /// From now on they no longer end the process by themselves.
    pub fn listen() -> Result<Self, Failure> {
        let open = |kind| signal(kind).or_fail(|| "cannot listen for signals".into());
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let hangup = if ignores_hangup(&status) { None } else { Some(open(SignalKind::hangup())?) };
        Ok(Self { interrupt: open(SignalKind::interrupt())?, terminate: open(SignalKind::terminate())?, hangup })
    }

    pub async fn stop(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hangup => {}
        }
    }
}

/// `status` as the kernel tells it: a mask of ignored signals, the first of them the lowest bit.
fn ignores_hangup(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & 1 << (libc::SIGHUP - 1) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_ended_tells_the_end_of_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo it broke >&2; exit 3"]);
        let mut child = Child::start("it", command, &folder.path().join("log")).unwrap();
        while child.ended().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let text = child.check().unwrap_err().to_string();
        assert!(text.contains("it broke") && text.contains('3'), "{text}");
    }

    #[test]
    fn nohup_is_told_from_a_terminal() {
        assert!(ignores_hangup("SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n"));
        assert!(!ignores_hangup("SigBlk:\t0000000000000001\nSigIgn:\t0000000000001000\n"));
    }

    #[test]
    fn a_child_is_gone_when_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("600");
        let child = Child::start("it", command, &folder.path().join("log")).unwrap();
        let id = child.process.id();
        drop(child);
        assert!(!Path::new(&format!("/proc/{id}")).exists());
    }
}
