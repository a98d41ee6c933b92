//! Just enough QMP to drive qemu-storage-daemon: one command, its answer; one event waited for.

use serde_json::{Value, json};
use std::{
    error::Error,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

/// How long a command may take.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

pub struct Qmp {
    write: UnixStream,
    read: BufReader<UnixStream>,
    events: Vec<Value>,
}

impl Qmp {
    /// Waits up to ten seconds for the socket.
    pub fn connect(socket: &Path) -> Result<Self, Box<dyn Error>> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let write = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        write.set_read_timeout(Some(ANSWER_DEADLINE))?;
        let read = BufReader::new(write.try_clone()?);
        let mut qmp = Self { write, read, events: Vec::new() };
        qmp.line()?;
        qmp.run("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    pub fn run(&mut self, command: &str, arguments: Value) -> Result<Value, Box<dyn Error>> {
        let mut text = json!({ "execute": command, "arguments": arguments }).to_string();
        text.push('\n');
        self.write.write_all(text.as_bytes())?;
        loop {
            let answer = self.line()?;
            if let Some(result) = answer.get("return") {
                return Ok(result.clone());
            }
            if let Some(error) = answer.get("error") {
                return Err(format!("{command}: {error}").into());
            }
            self.events.push(answer);
        }
    }

    /// The next event of this name, those before it forgotten. `None`: it did not come before the deadline.
    pub fn wait(&mut self, name: &str, deadline: Instant) -> Result<Option<Value>, Box<dyn Error>> {
        while !self.events.is_empty() {
            let event = self.events.remove(0);
            if event["event"] == name {
                return Ok(Some(event));
            }
        }
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            self.read.get_ref().set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let event = match self.line() {
                Err(_) if Instant::now() >= deadline => return Ok(None),
                line => line?,
            };
            if event["event"] == name {
                self.read.get_ref().set_read_timeout(Some(ANSWER_DEADLINE))?;
                return Ok(Some(event));
            }
        }
    }

    fn line(&mut self) -> Result<Value, Box<dyn Error>> {
        let mut line = String::new();
        if self.read.read_line(&mut line)? == 0 {
            return Err("QMP closed its connection".into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}
