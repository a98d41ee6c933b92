//! The servers' processor. taskset alone does not do: the kernel's workers of an io_uring, which carry out what would
//! block, are bound by the control group only. So where that can be had, servers start in a group of one processor.

use crate::Done;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Where the kernel shows control groups: version 2, or version 1 with a hierarchy for processors.
const ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/cpuset"];
const NAME: &str = "drover-bench";

/// A group of one processor; gone when dropped, if what was started in it has ended.
pub struct Processor {
    group: Option<PathBuf>,
}

impl Processor {
    pub fn new(cpu: usize) -> Self {
        let made = ROOTS.iter().find_map(|root| make(Path::new(root), cpu).ok());
        if made.is_none() {
            eprintln!(
                "  no control group for processors (root is needed): kernel workers are not pinned, figures vary more"
            );
        }
        Self { group: made }
    }

    /// Starts something in the group: this process joins it meanwhile.
    pub fn start<T>(&self, start: impl FnOnce() -> T) -> Result<T, Box<dyn std::error::Error>> {
        let Some(group) = &self.group else { return Ok(start()) };
        let root = group.parent().ok_or("a group has a parent")?;
        join(group)?;
        let started = start();
        join(root)?;
        Ok(started)
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        if let Some(group) = &self.group {
            // It stays, empty and harmless, where the kernel still sees a process in it.
            let _ = fs::remove_dir(group);
        }
    }
}

fn make(root: &Path, cpu: usize) -> io::Result<PathBuf> {
    let group = root.join(NAME);
    if root.join("cgroup.controllers").exists() {
        fs::write(root.join("cgroup.subtree_control"), "+cpuset")?;
    } else if !root.join("cpuset.cpus").exists() {
        return Err(io::ErrorKind::NotFound.into());
    }
    match fs::create_dir(&group) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    // In version 1 a group without memory takes no process; in version 2 it has its parent's.
    if root.join("cpuset.mems").exists() {
        fs::write(group.join("cpuset.mems"), fs::read(root.join("cpuset.mems"))?)?;
    }
    fs::write(group.join("cpuset.cpus"), cpu.to_string())?;
    Ok(group)
}

/// All of this process.
fn join(group: &Path) -> Done {
    let path = group.join("cgroup.procs");
    fs::write(&path, std::process::id().to_string()).map_err(|error| format!("{}: {error}", path.display()).into())
}
