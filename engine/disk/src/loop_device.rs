//! A block device over a file, for tests: the kernel's loop driver.

use std::{
    fs::{File, OpenOptions},
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
};

/// A block device. It is gone when this is dropped and nobody else has it open, also when the process is killed.
pub struct LoopDevice {
    path: PathBuf,
    /// The kernel detaches the device when the last open file of it is closed.
    _keeps: File,
}

/// Whether there can be block devices here: the loop driver is there, for root. Says so where not.
pub fn has_loop_devices() -> bool {
    match OpenOptions::new().read(true).write(true).open("/dev/loop-control") {
        Ok(_) => true,
        Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::NotFound) => {
            eprintln!("SKIPPED: block devices are not tested: /dev/loop-control: {error}; be root, with a loop driver");
            false
        }
        Err(error) => panic!("/dev/loop-control: {error}"),
    }
}

impl LoopDevice {
    /// Over the file, which stays; `arguments` of `losetup` say how. An error is the kernel's refusal.
    pub fn over(file: &Path, arguments: &[&str]) -> Result<Self, String> {
        let mut command = Command::new("losetup");
        command.args(["--find", "--show"]).args(arguments).arg(file);
        let path = PathBuf::from(run(&mut command)?.trim());
        let keeps = File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        // In use as it is, it only goes once it is closed.
        run(Command::new("losetup").arg("--detach").arg(&path))?;
        Ok(Self { path, _keeps: keeps })
    }

    /// Over a new sparse file.
    pub fn make(file: &Path, size_bytes: u64, sector_bytes: u32) -> Self {
        let made = File::create(file).and_then(|made| made.set_len(size_bytes));
        made.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        Self::over(file, &["--sector-size", &sector_bytes.to_string()]).expect("a block device")
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Makes a file system.
pub fn format(device: &Path) {
    run(Command::new("mkfs.ext4").arg("-q").arg("-F").arg(device)).expect("a file system");
}

/// A file system that is mounted until this is dropped.
pub struct Mounted(PathBuf);

impl Mounted {
    /// An error is the kernel's refusal.
    pub fn at(folder: &Path, device: &Path) -> Result<Self, String> {
        run(Command::new("mount").arg(device).arg(folder)).map(|_| Self(folder.into()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily, so that it goes whatever else happens there.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}
