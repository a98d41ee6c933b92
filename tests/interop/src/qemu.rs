//! QEMU's tools: `qemu-io` and `qemu-img`.

use crate::Check;
use crate::nbdinfo::size_bytes;
use crate::tool::{Failure, Tool, folder, same, sample};

/// Patterns at aligned and odd places, zeroes with and without unmapping, discards, flushes, several at once.
///
/// The export has to be 8 MiB or larger.
pub fn check_qemu_io(uri: &str) -> Check {
    let commands = [
        "write -P 0xab 0 64k",
        "read -P 0xab 0 64k",
        // Odd places and lengths; the neighbours stay.
        "write -P 0x11 513 9999",
        "read -P 0xab 0 513",
        "read -P 0x11 513 9999",
        "read -P 0xab 10512 55024",
        // Across extents and regions.
        "write -P 0x22 4190208 8192",
        "read -P 0x22 4190208 8192",
        "write -f -P 0x33 1M 1M",
        "read -P 0x33 1M 1M",
        // Zeroes: may unmap, must not, and not aligned.
        "write -z -u 1M 64k",
        "read -P 0 1M 64k",
        "write -z 1114112 64k",
        "read -P 0 1114112 64k",
        "write -z -u 1572865 100001",
        "read -P 0x33 1572864 1",
        "read -P 0 1572865 100001",
        "read -P 0x33 1672866 4096",
        "discard 0 64k",
        "discard 5M 3M",
        "flush",
        // Several at once.
        "aio_write -P 0x44 2M 128k",
        "aio_write -P 0x55 2228224 128k",
        "aio_write -z -u 3M 64k",
        "aio_flush",
        "aio_read -P 0x44 2M 128k",
        "aio_read -P 0x55 2228224 128k",
        "aio_read -P 0 3M 64k",
        "aio_flush",
    ];
    let mut tool = Tool::new("qemu-io").args(["-f", "raw"]);
    for command in commands {
        tool = tool.args(["-c", command]);
    }
    let said = String::from_utf8_lossy(&tool.arg(uri).run()?).into_owned();
    // It succeeds although a pattern was wrong.
    match said.lines().find(|line| line.contains("Pattern verification failed") || line.contains("failed:")) {
        Some(line) => Err(Failure::new("qemu-io", line)),
        None => Ok(()),
    }
}

/// A raw file and a qcow2 one converted into the export, compared, converted back; and a difference is seen.
pub fn check_qemu_img(uri: &str) -> Check {
    let folder = folder()?;
    let raw = sample(folder.path(), 12, size_bytes(uri)?)?;
    let img = |args: &[&str]| Tool::new("qemu-img").args(args).folder(folder.path());
    img(&["convert", "-n", "-f", "raw", "-O", "raw"]).arg(&raw).arg(uri).run()?;
    img(&["compare", "-f", "raw", "-F", "raw"]).arg(&raw).arg(uri).run()?;

    let other = sample(folder.path(), 13, size_bytes(uri)?)?;
    if img(&["compare", "-f", "raw", "-F", "raw"]).arg(&other).arg(uri).run().is_ok() {
        return Err(Failure::new("qemu-img compare", "it takes another file for the export's content"));
    }
    img(&["convert", "-f", "raw", "-O", "qcow2"]).arg(&other).arg("other.qcow2").run()?;
    img(&["convert", "-n", "-m", "16", "-W", "-f", "qcow2", "-O", "raw", "other.qcow2"]).arg(uri).run()?;
    img(&["convert", "-f", "raw", "-O", "raw"]).arg(uri).arg("back").run()?;
    same("qemu-img there and back", &other, &folder.path().join("back"))?;
    img(&["map", "-f", "raw", "--output=json"]).arg(uri).run_json().map(drop)
}
