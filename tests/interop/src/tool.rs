//! Running a program and telling what it said when it fails.

use std::{
    ffi::OsStr,
    fmt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A program that hangs is ended after this, in seconds; far more than any needs.
const HANG_S: &str = "300";

/// A check did not hold.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The command line, or the check's name.
    pub what: String,
    pub why: String,
}

impl Failure {
    pub fn new(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self { what: what.into(), why: why.to_string() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

impl std::error::Error for Failure {}

/// A command line to be run.
pub struct Tool {
    command: Command,
    shown: String,
}

impl Tool {
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", HANG_S]).arg(program.as_ref());
        Self { command, shown: program.as_ref().to_string_lossy().into_owned() }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.shown = format!("{} {}", self.shown, arg.as_ref().to_string_lossy());
        self.command.arg(arg);
        self
    }

    pub fn args(self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    /// Files it makes go there.
    pub fn folder(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// What it wrote to its standard output, if it succeeded.
    pub fn run(mut self) -> Result<Vec<u8>, Failure> {
        let output = self.command.stdin(Stdio::null()).output().map_err(|error| Failure::new(&self.shown, error))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let said = [output.stdout.as_slice(), &output.stderr].map(|text| tail(text, 4000)).join("\n");
        Err(Failure::new(self.shown, format!("{}: {said}", output.status)))
    }

    /// The same, as JSON.
    pub fn run_json(self) -> Result<serde_json::Value, Failure> {
        let shown = self.shown.clone();
        serde_json::from_slice(&self.run()?).map_err(|error| Failure::new(shown, error))
    }
}

/// The end of a text.
fn tail(text: &[u8], most: usize) -> String {
    String::from_utf8_lossy(&text[text.len().saturating_sub(most)..]).into_owned()
}

/// A folder of its own for a check's files.
pub(crate) fn folder() -> Result<tempfile::TempDir, Failure> {
    tempfile::tempdir().map_err(|error| Failure::new("making a folder", error))
}

/// Writes a file of that size with data, repetitions, runs of zeroes and holes, the same for the same seed.
pub(crate) fn sample(folder: &Path, seed: u64, size_bytes: u64) -> Result<PathBuf, Failure> {
    use std::os::unix::fs::FileExt;
    let path = folder.join(format!("sample-{seed}"));
    let fail = |error| Failure::new("writing a sample", error);
    let file = std::fs::File::create(&path).map_err(fail)?;
    file.set_len(size_bytes).map_err(fail)?;
    let mut state = seed;
    let mut next = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        state >> 24
    };
    let mut at = 0;
    while at < size_bytes {
        let len = (4096 * (1 + next() % 64)).min(size_bytes - at);
        let piece = match next() % 4 {
            0 => None,
            1 => Some(vec![0; len as usize]),
            2 => Some(vec![next() as u8; len as usize]),
            _ => Some((0..len).map(|_| next() as u8).collect()),
        };
        if let Some(piece) = piece {
            file.write_all_at(&piece, at).map_err(fail)?;
        }
        at += len;
    }
    Ok(path)
}

/// Whether two files hold the same bytes.
pub(crate) fn same(what: &str, left: &Path, right: &Path) -> Result<(), Failure> {
    Tool::new("cmp").arg(left).arg(right).run().map(drop).map_err(|failure| Failure::new(what, failure))
}
