//! Moving 8 GiB of real data over a link of 1 Gbit/s, in turn with nbdcopy between two qemu-nbd over the same link.

use crate::{
    Done, image,
    mirror::Process,
    moving::{SECONDS, move_cold},
    peers,
    record::Report,
    room::{DISK, Need},
    run_to_end,
};
use drover_e2e::{Cluster, Layout, Link};
use serde_json::Value;
use std::{
    error::Error,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

/// The image while its files are gathered, the volume at both sides, nbdcopy's target.
pub const NEED: Need = Need { folder: DISK, bytes: 25_000_000_000 };
const BYTES: u64 = 8 << 30;

/// A cold move takes so much of nbdcopy's time at most.
const AIM: f64 = 0.5;

/// Time until the volume is served at the destination, and bytes on the link.
pub fn run(report: &mut Report, rounds: usize) -> Done {
    let folder = tempfile::tempdir_in(DISK)?;
    let image = image::make(folder.path(), BYTES)?;
    let link = Link::new("drvb", 31, 1000)?;
    let layout = Layout {
        nodes: 2,
        folder: folder.path(),
        tier_size: "16GiB",
        lease_ttl_ms: 9_000,
        link: Some(&link),
        cpus: &[],
        tls: None,
    };
    let cluster = Cluster::start(&layout);
    cluster.create_volume("cold", BYTES, 0);
    run_to_end(Command::new("nbdcopy").arg("--flush").arg(&image).arg(cluster.uri(0, "cold")))?;
    let (mut flip_s, mut commit_s, mut our_mb, mut peer_s, mut peer_mb) = (vec![], vec![], vec![], vec![], vec![]);
    for round in 0..rounds {
        let (from, to) = (round % 2, (round + 1) % 2);
        let before = link.sent_bytes(from)?;
        let migration = move_cold(&cluster, "cold", to)?;
        flip_s.push(number(&migration["receipt"]["flip_ms"])? / 1e3);
        commit_s.push(number(&migration["receipt"]["commit_ms"])? / 1e3);
        our_mb.push((link.sent_bytes(from)? - before) as f64 / 1e6);
        let before = link.sent_bytes(0)?;
        peer_s.push(nbdcopy(&link, &image, folder.path())?);
        peer_mb.push((link.sent_bytes(0)? - before) as f64 / 1e6);
    }
    let case = "8 GiB with up to 4 GB of /usr over 1 Gbit/s";
    let ratio = report.compare(format!("{case}, time to flip"), "nbdcopy", SECONDS, &flip_s, &peer_s)?;
    report.aim(format!("{case}, time to flip: {ratio:.2} x nbdcopy, aim at most {AIM}"), ratio <= AIM);
    report.compare(format!("{case}, time to commit, proven equal"), "nbdcopy", SECONDS, &commit_s, &peer_s)?;
    report.compare(format!("{case}, bytes sent"), "nbdcopy", ("MB", "lower"), &our_mb, &peer_mb)?;
    Ok(())
}

/// nbdcopy from host 0 to host 1 of the link, both sides behind qemu-nbd. Seconds until all is durable.
fn nbdcopy(link: &Link, image: &Path, folder: &Path) -> Result<f64, Box<dyn Error>> {
    let target = folder.join("copy.raw");
    std::fs::File::create(&target)?.set_len(BYTES)?;
    let source = peers::qemu_nbd(image, false, None)?;
    let address = link.inner_address(1);
    let mut serve = Command::new("ip");
    serve.args(["netns", "exec", &link.namespace(1), "qemu-nbd", "--persistent", "--format=raw", "--bind", &address]);
    serve.args(["--port", "10999", "--cache=writeback", "--discard=unmap", "--shared=8"]).arg(&target);
    let mut server = Process(serve.spawn()?);
    std::thread::sleep(Duration::from_millis(500));
    let begin = Instant::now();
    let mut copy = Command::new("ip");
    copy.args(["netns", "exec", &link.namespace(0), "nbdcopy", "--flush"])
        .arg(&source.uri)
        .arg(format!("nbd://{address}:10999"));
    run_to_end(&mut copy)?;
    let took = begin.elapsed().as_secs_f64();
    server.end()?;
    std::fs::remove_file(target)?;
    Ok(took)
}

pub fn number(value: &Value) -> Result<f64, Box<dyn Error>> {
    value.as_f64().ok_or_else(|| "a figure is missing in the receipt".into())
}
