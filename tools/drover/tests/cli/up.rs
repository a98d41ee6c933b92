//! `drover up` in a directory, and commands against it.

use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub const DROVER: &str = env!("CARGO_BIN_EXE_drover");

/// What something may take before a test gives it up: a machine under load is slow, nothing here takes long.
const DEADLINE: Duration = Duration::from_secs(60);

/// A control plane and nodes, stopped when dropped.
pub struct Up {
    child: Child,
    api: String,
    token: String,
}

impl Up {
    pub fn start(dir: &Path, nodes: u8) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut child = Command::new(DROVER)
            .args(["up", "--size", "1GiB", "--nodes", &nodes.to_string(), "--listen", &format!("127.0.0.1:{port}")])
            .args(["--output", "json", "--data"])
            .arg(dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It says one line, when all is up.
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("up said {line:?}"));
        let token = std::fs::read_to_string(dir.join("token")).unwrap();
        Self { child, api: said["api"].as_str().unwrap().into(), token: token.trim().into() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(DROVER);
        command.env("DROVER_API", &self.api).env("DROVER_TOKEN", &self.token).env_remove("XDG_CONFIG_HOME");
        command.env("HOME", "/nonexistent").stdin(Stdio::null()).args(arguments);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// The one JSON value that a command prints.
    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.text(&[arguments, &["--output", "json"]].concat()))
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    }

    /// What a command prints that must succeed.
    pub fn text(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The values that a command prints, one a line.
    pub fn lines(&self, arguments: &[&str]) -> Vec<Value> {
        let text = self.text(&[arguments, &["--output", "json"]].concat());
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub fn fails(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(arguments);
        assert!(!output.status.success(), "{arguments:?} should fail");
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    /// Asks again until the answer is as wanted.
    pub fn until(&self, arguments: &[&str], is_wanted: impl Fn(&Value) -> bool) -> Value {
        until(arguments, || self.json(arguments), is_wanted)
    }

    /// The same with a value a line.
    pub fn until_lines(&self, arguments: &[&str], is_wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        until(arguments, || self.lines(arguments), |lines| is_wanted(lines))
    }

    /// A command that goes on, printing a value a line.
    pub fn begin(&self, arguments: &[&str]) -> Running {
        let mut command = self.command(&[arguments, &["--output", "json"]].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Running { child, stdout }
    }

    pub fn stop(mut self) {
        signal(&self.child, "TERM");
        let begin = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(begin.elapsed() < DEADLINE, "up does not stop");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn until<T: std::fmt::Debug>(what: &[&str], ask: impl Fn() -> T, is_wanted: impl Fn(&T) -> bool) -> T {
    let begin = Instant::now();
    loop {
        let answer = ask();
        if is_wanted(&answer) {
            return answer;
        }
        assert!(begin.elapsed() < DEADLINE, "{what:?} stays at {answer:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Its children die with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command that goes on; killed when dropped.
pub struct Running {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Running {
    /// The next value, or `None` at the end.
    pub fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        (self.stdout.read_line(&mut line).unwrap() > 0).then(|| serde_json::from_str(&line).unwrap())
    }

    /// The exit code and what it printed from here on.
    pub fn end(mut self) -> (i32, Vec<Value>) {
        let values = std::iter::from_fn(|| self.next()).collect();
        (self.child.wait().unwrap().code().unwrap(), values)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap().success());
}

/// A sparse image with data that differs from block to block.
pub fn image(path: &Path, size: u64) {
    let file = std::fs::File::create(path).unwrap();
    file.set_len(size).unwrap();
    for at in (0..size).step_by(1 << 20) {
        let block: Vec<u8> = (0..65_536u64).map(|byte| (byte * 31 + at / 4096 + 1) as u8).collect();
        file.write_all_at(&block[..block.len().min((size - at) as usize)], at).unwrap();
    }
}

/// An image without holes that no compression makes smaller; another one for every seed.
pub fn random_image(path: &Path, size: usize, seed: u64) -> Vec<u8> {
    // The high half of a multiplicative generator, Knuth's MMIX constants.
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let content: Vec<u8> = (0..size).map(|_| next()).collect();
    std::fs::write(path, &content).unwrap();
    content
}
