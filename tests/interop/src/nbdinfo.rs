//! libnbd's tools: `nbdinfo` and `nbdcopy`.

use crate::Check;
use crate::tool::{Failure, Tool, folder, same, sample};
use serde_json::Value;
use std::path::Path;

fn describe(uri: &str) -> Result<Value, Failure> {
    let told = Tool::new("nbdinfo").arg("--json").arg(uri).run_json()?;
    Ok(told["exports"][0].clone())
}

pub(crate) fn size_bytes(uri: &str) -> Result<u64, Failure> {
    describe(uri)?["export-size"].as_u64().ok_or_else(|| Failure::new("nbdinfo", "it tells no size"))
}

/// What the export offers, that it is listed, and that its map covers it without gap or overlap.
pub fn check_nbdinfo(uri: &str) -> Check {
    let export = describe(uri)?;
    let fail = |why: String| Failure::new(format!("nbdinfo --json {uri}"), why);
    for offered in
        ["can_cache", "can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"]
    {
        if export[offered] != Value::Bool(true) {
            return Err(fail(format!("{offered} is {}", export[offered])));
        }
    }
    if export["is_read_only"] != Value::Bool(false) || export["is_rotational"] != Value::Bool(false) {
        return Err(fail(format!("read-only or rotational: {export}")));
    }
    if export["contexts"] != serde_json::json!(["base:allocation"]) {
        return Err(fail(format!("contexts are {}", export["contexts"])));
    }
    let sizes = ["block_size_minimum", "block_size_preferred", "block_size_maximum"].map(|size| export[size].as_u64());
    if sizes != [Some(1), Some(4096), Some(32 << 20)] {
        return Err(fail(format!("block sizes are {sizes:?}")));
    }
    let listed = Tool::new("nbdinfo").arg("--json").arg("--list").arg(uri).run_json()?;
    let names = listed["exports"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !names.iter().any(|listed| listed["export-name"] == export["export-name"]) {
        return Err(fail(format!("{} is not among those listed: {listed}", export["export-name"])));
    }
    let size = export["export-size"].as_u64().ok_or_else(|| fail("it tells no size".into()))?;
    check_map(uri, size)
}

fn check_map(uri: &str, size: u64) -> Check {
    let map = Tool::new("nbdinfo").args(["--json", "--map"]).arg(uri).run_json()?;
    let mut end = 0;
    for run in map.as_array().map(Vec::as_slice).unwrap_or_default() {
        let (offset, len) = (run["offset"].as_u64(), run["length"].as_u64());
        match (offset, len) {
            (Some(offset), Some(len)) if offset == end && len > 0 => end += len,
            _ => return Err(Failure::new("nbdinfo --map", format!("a run at {end} is {run}"))),
        }
    }
    if end == size { Ok(()) } else { Err(Failure::new("nbdinfo --map", format!("it ends at {end} of {size}"))) }
}

/// A file with data and holes goes in and comes out the same, by several connections and through a pipe.
pub fn check_nbdcopy(uri: &str) -> Check {
    let folder = folder()?;
    let sample = sample(folder.path(), 11, size_bytes(uri)?)?;
    Tool::new("nbdcopy").args(["--flush", "--connections=4"]).arg(&sample).arg(uri).run()?;
    let back = folder.path().join("back");
    Tool::new("nbdcopy").arg("--connections=4").arg(uri).arg(&back).run()?;
    same("nbdcopy there and back", &sample, &back)?;
    let piped = folder.path().join("piped");
    read_whole(uri, &piped)?;
    same("nbdcopy through a pipe", &sample, &piped)
}

/// Writes the export's whole content to a file, by one synchronous connection.
pub fn read_whole(uri: &str, to: &Path) -> Check {
    let content = Tool::new("nbdcopy").arg("--synchronous").arg(uri).arg("-").run()?;
    std::fs::write(to, content).map_err(|error| Failure::new("writing a file", error))
}
