//! Whether there is room for what a part writes: told at the start, not when the disk is full an hour later.

use crate::Done;

/// Where the files of a bench lie that are to be on a disk.
pub const DISK: &str = "/var/tmp";
/// Where they lie in memory.
pub const MEMORY: &str = "/dev/shm";

/// What a part needs, at its largest.
#[derive(Clone, Copy)]
pub struct Need {
    pub folder: &'static str,
    pub bytes: u64,
}

impl Need {
    /// An error that says what is missing where. `part` is for people.
    pub fn check(&self, part: &str) -> Done {
        let Self { folder, bytes } = self;
        let stat = rustix::fs::statvfs(*folder).map_err(|error| format!("{folder}: {error}"))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free >= *bytes {
            return Ok(());
        }
        let (needed, free) = (as_gb(*bytes), as_gb(free));
        Err(format!("{part} needs {needed:.0} GB in {folder}, where {free:.1} GB are free. Nothing was measured.")
            .into())
    }
}

fn as_gb(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_room_is_told_with_figures() {
        let need = |bytes| Need { folder: "/", bytes };
        assert!(need(1).check("the part").is_ok());
        let error = need(u64::MAX).check("the part").unwrap_err().to_string();
        assert!(error.starts_with("the part needs 18446744074 GB in /, where "), "{error}");
    }
}
