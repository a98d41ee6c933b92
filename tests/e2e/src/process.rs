//! A daemon under test: started, killed, stopped, continued, and always gone at the end.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// A process of ours with its log in a file.
pub struct Daemon {
    pub name: String,
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    /// A network namespace it runs in.
    namespace: Option<String>,
    /// Processors it is pinned to, as taskset names them.
    cpus: Option<String>,
    child: Option<Child>,
}

impl Daemon {
    /// Not started yet.
    pub fn new(name: &str, program: &Path, arguments: &[&str], log: &Path) -> Self {
        Self {
            name: name.into(),
            program: program.into(),
            arguments: arguments.iter().map(|&text| text.into()).collect(),
            log: log.into(),
            namespace: None,
            cpus: None,
            child: None,
        }
    }

    pub fn in_namespace(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    pub fn pinned(mut self, cpus: &str) -> Self {
        self.cpus = Some(cpus.into());
        self
    }

    /// Starts it, adding to its log.
    pub fn start(&mut self) -> io::Result<()> {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut words = Vec::new();
        if let Some(namespace) = &self.namespace {
            words.extend(["ip", "netns", "exec", namespace].map(String::from));
        }
        if let Some(cpus) = &self.cpus {
            words.extend(["taskset", "-c", cpus].map(String::from));
        }
        words.push(self.program.display().to_string());
        words.extend(self.arguments.iter().cloned());
        let child = Command::new(&words[0])
            .args(&words[1..])
            .env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.child = Some(child);
        Ok(())
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// `ip netns exec` and `taskset` replace themselves by the program, so this is its own id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it was started").id()
    }

    /// kill -9, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and waits until it has ended.
    pub fn terminate(&mut self) -> io::Result<std::process::ExitStatus> {
        self.signal("TERM");
        self.child.take().expect("it was started").wait()
    }

    /// SIGSTOP: it stands still as a whole.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// SIGCONT; one that was never stopped does not notice.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// What it has logged, all starts together.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([format!("-{name}"), self.pid().to_string()]).status();
        assert!(status.is_ok_and(|status| status.success()), "cannot send SIG{name} to {}", self.name);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}
