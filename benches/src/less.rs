//! Less to send: the same image over 1 Gbit/s to a node that has nothing, against what borg makes of it, and to a node that has
//! another volume of the same image, at other offsets; and over loopback.

use crate::{
    Done,
    cold::number,
    image,
    moving::{PATIENCE, SECONDS, loopback, move_cold, move_volume},
    record::Report,
    room::{DISK, Need},
    run_to_end,
};
use drover_e2e::{Cluster, Layout, Link};
use serde_json::Value;
use std::{error::Error, path::Path, process::Command};

/// The image while its files are gathered, two volumes of it at one side, one at the other, borg's repository.
pub const NEED: Need = Need { folder: DISK, bytes: 24_000_000_000 };
const BYTES: u64 = 8 << 30;
/// Where the image begins in the volume that the destination has: no multiple of a block, as in a partition of another table.
const SHIFT_BYTES: u64 = (1 << 20) + 63 * 512;
const LINE_BYTES_PER_S: f64 = 125e6;

/// Of the line rate, heads of TCP and below not counted as ours.
const LINE_AIM: f64 = 0.95;
const BORG_AIM: f64 = 1.02;
const GOLDEN_AIM: f64 = 0.25;
const LOOPBACK_AIM_BYTES_PER_S: f64 = 1e9;

pub fn run(report: &mut Report, rounds: usize) -> Done {
    let folder = tempfile::tempdir_in(DISK)?;
    let image = image::make(folder.path(), BYTES)?;
    over_link(report, rounds, folder.path(), &image)?;
    over_loopback(report, rounds, folder.path(), &image)
}

fn over_link(report: &mut Report, rounds: usize, folder: &Path, image: &Path) -> Done {
    let link = Link::new("drvb", 31, 1000)?;
    let layout =
        Layout { nodes: 2, folder, tier_size: "16GiB", lease_ttl_ms: 9_000, link: Some(&link), cpus: &[], tls: None };
    let cluster = Cluster::start(&layout);
    cluster.create_volume("golden", BYTES + (1 << 30), 1);
    fill(&cluster, "golden", 1, image, SHIFT_BYTES)?;
    let is_indexed = |volume: &Value| {
        let bytes = |key: &str| volume[key].as_u64().unwrap_or(0);
        bytes("valid_bytes") > 0 && bytes("indexed_bytes") >= bytes("used_bytes")
    };
    cluster.api.wait_for("/v1/volumes/golden", PATIENCE, is_indexed);
    cluster.create_volume("cold", BYTES, 0);
    fill(&cluster, "cold", 0, image, 0)?;
    let (mut golden_mb, mut cold_mb, mut cold_s, mut golden_s, mut line) = (vec![], vec![], vec![], vec![], vec![]);
    for _ in 0..rounds {
        let before = link.sent_bytes(0)?;
        let moved = move_volume(&cluster, "cold", 1)?;
        golden_mb.push((link.sent_bytes(0)? - before) as f64 / 1e6);
        golden_s.push(number(&moved["receipt"]["flip_ms"])? / 1e3);
        // Back to a node that had it, as if it had not.
        let before = link.sent_bytes(1)?;
        let moved = move_cold(&cluster, "cold", 0)?;
        let (seconds, sent) = (number(&moved["receipt"]["flip_ms"])? / 1e3, (link.sent_bytes(1)? - before) as f64);
        cold_s.push(seconds);
        cold_mb.push(sent / 1e6);
        line.push(number(&moved["receipt"]["wire_bytes"])? / seconds / LINE_BYTES_PER_S);
    }
    let borg_mb = [borg_bytes(folder, image)? as f64 / 1e6];
    let case = "8 GiB with up to 4 GB of /usr over 1 Gbit/s";
    let ratio = report.compare(format!("{case}, cold, bytes"), "borg zstd,1", ("MB", "lower"), &cold_mb, &borg_mb)?;
    report.aim(format!("{case}, cold, bytes: {ratio:.3} x borg's, aim at most {BORG_AIM}"), ratio <= BORG_AIM);
    let share = crate::record::median(&line);
    report.aim(format!("{case}, cold: {share:.2} of the line rate, aim at least {LINE_AIM}"), share >= LINE_AIM);
    let of = "the cold move";
    let ratio = report.compare(
        format!("{case}, the image at other offsets there, bytes"),
        of,
        ("MB", "lower"),
        &golden_mb,
        &cold_mb,
    )?;
    let told =
        format!("{case}, the image at other offsets there: {ratio:.2} x the cold bytes, aim at most {GOLDEN_AIM}");
    report.aim(told, ratio <= GOLDEN_AIM);
    report.compare(
        format!("{case}, the image at other offsets there, time to flip"),
        of,
        SECONDS,
        &golden_s,
        &cold_s,
    )?;
    Ok(())
}

fn over_loopback(report: &mut Report, rounds: usize, folder: &Path, image: &Path) -> Done {
    let cluster = Cluster::start(&Layout { tier_size: "10GiB", ..loopback(folder) });
    cluster.create_volume("fast", BYTES, 0);
    fill(&cluster, "fast", 0, image, 0)?;
    let mut rate = vec![];
    for round in 0..rounds {
        let moved = move_cold(&cluster, "fast", (round + 1) % 2)?;
        let receipt = &moved["receipt"];
        rate.push(number(&receipt["logical_bytes"])? / (number(&receipt["flip_ms"])? / 1e3));
    }
    let rate = crate::record::median(&rate);
    let told = format!("loopback, both nodes and their disk on one machine: {:.2} GB/s, aim at least 1", rate / 1e9);
    report.aim(told, rate >= LOOPBACK_AIM_BYTES_PER_S);
    Ok(())
}

/// Puts the image into a volume, `at` bytes from its beginning.
fn fill(cluster: &Cluster, volume: &str, node: usize, image: &Path, at: u64) -> Done {
    let mut copy = Command::new("nbdcopy");
    copy.arg("--flush");
    if at == 0 {
        return run_to_end(copy.arg(image).arg(cluster.uri(node, volume)));
    }
    let shifted = image.with_extension("shifted");
    let mut dd = Command::new("dd");
    dd.args(["bs=1M", "conv=sparse", "oflag=seek_bytes", "status=none"]);
    run_to_end(
        dd.arg(format!("if={}", image.display())).arg(format!("of={}", shifted.display())).arg(format!("seek={at}")),
    )?;
    // The volume ends behind it.
    std::fs::File::options().write(true).open(&shifted)?.set_len(BYTES + (1 << 30))?;
    run_to_end(copy.arg(&shifted).arg(cluster.uri(node, volume)))?;
    Ok(std::fs::remove_file(shifted)?)
}

/// What borg's repository takes of the image, with its usual chunks.
fn borg_bytes(folder: &Path, image: &Path) -> Result<u64, Box<dyn Error>> {
    let repository = folder.join("borg");
    let borg = |words: &[&str]| {
        let mut borg = Command::new("borg");
        borg.env("BORG_BASE_DIR", folder).env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes").args(words);
        borg
    };
    let (place, archive) = (repository.display().to_string(), format!("{}::image", repository.display()));
    run_to_end(&mut borg(&["init", "--encryption", "none", &place]))?;
    let chunks = "--chunker-params=buzhash,14,18,16,4095";
    let mut create = borg(&["create", "--compression", "zstd,1", "--sparse", chunks, &archive]);
    run_to_end(create.arg(image))?;
    let bytes = folder_bytes(&repository.join("data"))?;
    std::fs::remove_dir_all(repository)?;
    Ok(bytes)
}

fn folder_bytes(folder: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { folder_bytes(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}
