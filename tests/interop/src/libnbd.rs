//! libnbd's own test programs, built by `scripts/libnbd-tests.sh`: eight connections, requests mixed up, every read
//! compared.

use crate::tool::{Failure, Tool, folder};
use std::path::{Path, PathBuf};

/// The size that the export has to have for [`check_aio_parallel`].
pub const AIO_PARALLEL_BYTES: u64 = 64 << 20;
/// The size that the export has to have for [`check_synch_parallel`].
pub const SYNCH_PARALLEL_BYTES: u64 = 8 << 20;

/// 64 requests in flight on each connection. `Ok(false)`: the programs cannot be built here, as after a lost
/// network; that is said on standard error.
pub fn check_aio_parallel(uri: &str) -> Result<bool, Failure> {
    check("aio-parallel", AIO_PARALLEL_BYTES, uri)
}

/// The same, one request at a time on each connection.
pub fn check_synch_parallel(uri: &str) -> Result<bool, Failure> {
    check("synch-parallel", SYNCH_PARALLEL_BYTES, uri)
}

fn check(program: &str, size_bytes: u64, uri: &str) -> Result<bool, Failure> {
    let programs = match programs() {
        Ok(programs) => programs,
        Err(failure) => {
            eprintln!("{program} was not run: {failure}");
            return Ok(false);
        }
    };
    // They expect the content of nbdkit's pattern plugin: each 8 bytes hold their own offset.
    let folder = folder()?;
    let pattern = folder.path().join("pattern");
    let bytes: Vec<u8> = (0..size_bytes).step_by(8).flat_map(u64::to_be_bytes).collect();
    std::fs::write(&pattern, bytes).map_err(|error| Failure::new("writing a file", error))?;
    Tool::new("nbdcopy").arg(&pattern).arg(uri).run()?;
    Tool::new(programs.join(program)).arg(uri).run().map(|_| true)
}

fn programs() -> Result<PathBuf, Failure> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/libnbd-tests.sh");
    let folder = Tool::new(script).run()?;
    Ok(String::from_utf8_lossy(&folder).trim().into())
}
