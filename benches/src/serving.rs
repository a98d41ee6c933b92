//! CASE=nbd: serving blocks, against qemu-nbd and nbdkit.
//!
//! The servers share one processor, fio has the other; both servers are up all the time; windows of one second in the
//! order A B B A, so that drift of the machine falls on both alike.

use crate::{
    Done, Part,
    fio::{self, Load},
    peers::{self, Server},
    pin::Processor,
    record::{IOPS, Report, Unit},
    room::{DISK, MEMORY, Need},
    run_to_end,
};
use drover_e2e::{Cluster, Layout};
use std::{error::Error, fs::File, path::Path, process::Command};

pub const PARTS: &[Part] = &[
    // Ours and one peer's, metadata.
    Part { name: "tmpfs", rounds: 5, need: Need { folder: MEMORY, bytes: 4 * BYTES }, measure: on_tmpfs },
    Part { name: "disk", rounds: 5, need: Need { folder: DISK, bytes: 4 * BYTES }, measure: on_disk },
    // Each twice: what the snapshot keeps, and what was written since.
    Part {
        name: "snapshot",
        rounds: 5,
        need: Need { folder: DISK, bytes: 5 * SNAPSHOT_BYTES },
        measure: after_snapshot,
    },
];

/// What a volume and a peer's image hold, all of it written once before anything is measured.
const BYTES: u64 = 512 << 20;
/// The same where a snapshot is taken: large enough that most writes of a window are the first to their extent after it.
const SNAPSHOT_BYTES: u64 = 2 << 30;
const SERVER_CPU: usize = 0;
const CLIENT_CPU: usize = 1;

const CPU: Unit = ("us/IO", "lower");

/// At queue depth 32 ours serves so many times what qemu-nbd does.
const QD32_AIM: f64 = 1.2;
/// So much of the random writes is left after a snapshot.
const SNAPSHOT_AIM: f64 = 0.8;

fn on_tmpfs(report: &mut Report, rounds: usize) -> Done {
    let folder = tempfile::tempdir_in(MEMORY)?;
    let processor = Processor::new(SERVER_CPU);
    let ours = Ours::start(folder.path(), &processor)?;
    for peer in [peers::qemu_nbd, |image: &Path, _, cpu| peers::nbdkit_file(image, cpu)] {
        let image = image(folder.path())?;
        let peer = processor.start(|| peer(&image, false, Some(SERVER_CPU)))??;
        fio::fill(&peer.uri, BYTES)?;
        for (rw, depth) in [("randread", 1), ("randwrite", 1), ("randread", 32), ("randwrite", 32)] {
            let load = Load { rw, depth, ..window() };
            let case = format!("tmpfs, {rw} 4k QD{depth}");
            let ratio = compare(report, &case, &ours, &peer, &load, rounds)?;
            if depth == 32 && peer.name == "qemu-nbd" {
                let what = format!("{case}: {ratio:.2} x {}, aim at least {QD32_AIM}", peer.name);
                report.aim(what, ratio >= QD32_AIM);
            }
        }
    }
    Ok(())
}

fn on_disk(report: &mut Report, rounds: usize) -> Done {
    let folder = tempfile::tempdir_in(DISK)?;
    let processor = Processor::new(SERVER_CPU);
    let ours = Ours::start(folder.path(), &processor)?;
    let image = image(folder.path())?;
    let peer = processor.start(|| peers::qemu_nbd(&image, true, Some(SERVER_CPU)))??;
    fio::fill(&peer.uri, BYTES)?;
    let cases = [("randread", 0, ""), ("randwrite", 0, ""), ("randwrite", 32, ", flush every 32")];
    for (rw, flush_every, told) in cases {
        let load = Load { rw, depth: 32, flush_every, ..window() };
        let case = format!("disk O_DIRECT, {rw} 4k QD32{told}");
        let ratio = compare(report, &case, &ours, &peer, &load, rounds)?;
        report.aim(format!("{case}: {ratio:.2} x {}, aim at least {QD32_AIM}", peer.name), ratio >= QD32_AIM);
    }
    Ok(())
}

/// Random writes right after a snapshot, against the same writes before it, where all is allocated; ours and qcow2's.
fn after_snapshot(report: &mut Report, rounds: usize) -> Done {
    let folder = tempfile::tempdir_in(DISK)?;
    let processor = Processor::new(SERVER_CPU);
    let ours = Ours::start(folder.path(), &processor)?;
    let load = Load { rw: "randwrite", depth: 32, range_bytes: SNAPSHOT_BYTES, ..window() };
    let (mut before, mut after, mut kept, mut peer_after, mut peer_kept) = (vec![], vec![], vec![], vec![], vec![]);
    for round in 0..rounds {
        // A volume of its own each time: all of it allocated before the snapshot, nothing after it.
        let name = format!("round-{round}");
        let uri = ours.volume(&name, SNAPSHOT_BYTES)?;
        let iops = fio::run(&uri, &load)?.iops;
        ours.cluster.api.post(&format!("/v1/volumes/{name}/snapshots"), serde_json::json!({ "name": "one" }));
        let left = fio::run(&uri, &load)?.iops;
        ours.delete(&name)?;
        let (peer_iops, peer_left) = qcow2_snapshot(folder.path(), &processor, &load)?;
        before.push(iops);
        after.push(left);
        kept.push(left / iops);
        peer_after.push(peer_left);
        peer_kept.push(peer_left / peer_iops);
    }
    let case = "disk O_DIRECT, randwrite 4k QD32 after a snapshot";
    let ratio = report.compare(case, "ours before it", IOPS, &after, &before)?;
    report.aim(format!("{case}: {ratio:.2} of before, aim at least {SNAPSHOT_AIM}"), ratio >= SNAPSHOT_AIM);
    report.compare(case, "qemu-nbd, qcow2", IOPS, &after, &peer_after)?;
    report.compare(format!("{case}, share kept"), "qemu-nbd, qcow2", ("of 1", "higher"), &kept, &peer_kept)?;
    Ok(())
}

/// IOPS of a qcow2 image before and after an internal snapshot, which qemu-img takes while nobody serves it.
fn qcow2_snapshot(folder: &Path, processor: &Processor, load: &Load) -> Result<(f64, f64), Box<dyn Error>> {
    let image = folder.join("peer.qcow2");
    run_to_end(
        Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&image).arg(SNAPSHOT_BYTES.to_string()),
    )?;
    let before = {
        let server = processor.start(|| peers::qemu_nbd_qcow2(&image, Some(SERVER_CPU)))??;
        fio::fill(&server.uri, SNAPSHOT_BYTES)?;
        fio::run(&server.uri, load)?.iops
    };
    run_to_end(Command::new("qemu-img").args(["snapshot", "-c", "one"]).arg(&image))?;
    let server = processor.start(|| peers::qemu_nbd_qcow2(&image, Some(SERVER_CPU)))??;
    let after = fio::run(&server.uri, load)?.iops;
    Ok((before, after))
}

fn window() -> Load<'static> {
    Load {
        rw: "randread",
        block_bytes: 4096,
        depth: 32,
        seconds: Some(1),
        range_bytes: BYTES,
        cpu: Some(CLIENT_CPU),
        flush_every: 0,
        rate_bytes: 0,
    }
}

/// A control plane and one node on the servers' processor.
struct Ours {
    cluster: Cluster,
    uri: String,
}

impl Ours {
    fn start(folder: &Path, processor: &Processor) -> Result<Self, Box<dyn Error>> {
        let cpu = SERVER_CPU.to_string();
        let (cpus, tier_size) = (&[cpu.as_str()], "16GiB");
        let layout = Layout { nodes: 1, folder, tier_size, lease_ttl_ms: 9_000, link: None, cpus, tls: None };
        let cluster = processor.start(|| Cluster::start(&layout))?;
        let mut ours = Self { cluster, uri: String::new() };
        ours.uri = ours.volume("bench", BYTES)?;
        Ok(ours)
    }

    /// A new volume, all of it written.
    fn volume(&self, name: &str, bytes: u64) -> Result<String, Box<dyn Error>> {
        self.cluster.create_volume(name, bytes, 0);
        let uri = self.cluster.uri(0, name);
        fio::fill(&uri, bytes)?;
        Ok(uri)
    }

    fn delete(&self, name: &str) -> Done {
        let paths = [format!("/v1/exports/{}/{name}", drover_e2e::node_name(0)), format!("/v1/volumes/{name}")];
        for path in paths {
            let deleted = self.cluster.api.request("DELETE", &path, None);
            deleted.map_err(|error| format!("DELETE {path}: {error:?}"))?;
        }
        Ok(())
    }
}

fn image(folder: &Path) -> Result<std::path::PathBuf, Box<dyn Error>> {
    let path = folder.join("peer.raw");
    File::create(&path)?.set_len(BYTES)?;
    Ok(path)
}

/// Both servers in turn; a row of IOPS, whose ratio is returned, and one of the servers' CPU time an I/O.
fn compare(
    report: &mut Report,
    case: &str,
    ours: &Ours,
    peer: &Server,
    load: &Load,
    rounds: usize,
) -> Result<f64, Box<dyn Error>> {
    let (mut our_iops, mut peer_iops, mut our_cpu, mut peer_cpu) = (vec![], vec![], vec![], vec![]);
    let node = ours.cluster.nodes[0].pid();
    for _ in 0..rounds {
        for is_ours in [true, false, false, true] {
            let cpu_s = || if is_ours { peers::cpu_s(node) } else { peer.cpu_s() };
            let before = cpu_s()?;
            let seen = fio::run(if is_ours { &ours.uri } else { &peer.uri }, load)?;
            let cpu_us = (cpu_s()? - before) * 1e6 / seen.ios;
            let (iops, cpu) = if is_ours { (&mut our_iops, &mut our_cpu) } else { (&mut peer_iops, &mut peer_cpu) };
            iops.push(seen.iops);
            cpu.push(cpu_us);
        }
    }
    let ratio = report.compare(case, peer.name, IOPS, &our_iops, &peer_iops)?;
    report.compare(format!("{case}, server CPU"), peer.name, CPU, &our_cpu, &peer_cpu)?;
    Ok(ratio)
}
