//! fio with its NBD engine: random writes, verified.

use crate::Check;
use crate::tool::{Failure, Tool, folder};

/// How much is written, and by how many.
#[derive(Clone, Copy, Debug)]
pub struct FioVerify {
    /// Each has a part of the export to itself, so the export has to be as large as all parts.
    pub connections: u64,
    pub bytes_per_connection: u64,
    /// Goes on writing and verifying for so long; once over the part if none.
    pub seconds: Option<u64>,
}

/// Random writes of 4 KiB with CRC32C, 32 in flight a connection; every block is read again and compared.
pub fn check_fio_verify(uri: &str, verify: FioVerify) -> Check {
    let folder = folder()?;
    let mut tool = Tool::new("fio")
        .args(["--name=verify", "--ioengine=nbd", "--thread", "--rw=randwrite", "--bs=4k", "--iodepth=32"])
        .args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0", "--randseed=7"])
        .args(["--group_reporting", "--output-format=json", "--output=result.json"])
        .arg(format!("--uri={uri}"))
        .arg(format!("--numjobs={}", verify.connections))
        .arg(format!("--size={}", verify.bytes_per_connection))
        .arg(format!("--offset_increment={}", verify.bytes_per_connection));
    if let Some(seconds) = verify.seconds {
        tool = tool.args(["--time_based", "--verify_backlog=4096"]).arg(format!("--runtime={seconds}"));
    }
    tool.folder(folder.path()).run()?;
    let fail = |why: String| Failure::new("fio --verify=crc32c", why);
    let text = std::fs::read_to_string(folder.path().join("result.json")).map_err(|error| fail(error.to_string()))?;
    // Warnings may stand in front.
    let json = text.find('{').map(|start| &text[start..]).unwrap_or_default();
    let result: serde_json::Value = serde_json::from_str(json).map_err(|error| fail(error.to_string()))?;
    let job = &result["jobs"][0];
    let (written, read) = (job["write"]["io_bytes"].as_u64(), job["read"]["io_bytes"].as_u64());
    let least = verify.connections * verify.bytes_per_connection;
    let is_all = verify.seconds.is_some() || (written >= Some(least) && read >= Some(least));
    match (job["error"].as_i64(), is_all) {
        (Some(0), true) if read > Some(0) => Ok(()),
        _ => Err(fail(format!("error {}, {written:?} written, {read:?} read of {least}", job["error"]))),
    }
}
