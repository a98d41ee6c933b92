//! CASE=nbd: serving blocks, against qemu-nbd and nbdkit.
//!
//! Servers share one processor, fio has the other; both servers are up all the time; windows of one second in the
//! order A B B A, so that drift of the machine falls on both alike.

use crate::{
    fio::{self, Load},
    peers::{self, Server},
    record::Report,
};
use drover_e2e::{Cluster, Layout};
use std::{error::Error, fs::File, path::Path};

type Done = Result<(), Box<dyn Error>>;

/// What a volume and a peer's image hold, all of it written once before anything is measured.
const BYTES: u64 = 512 << 20;
/// ABBA blocks: two windows of each server.
const BLOCKS: usize = 4;
const SERVER_CPU: usize = 0;
const CLIENT_CPU: usize = 1;

pub fn run(report: &mut Report) -> Done {
    on_tmpfs(report)?;
    on_disk(report)?;
    after_snapshot(report)
}

fn on_tmpfs(report: &mut Report) -> Done {
    let folder = tempfile::tempdir_in("/dev/shm")?;
    let (cluster, ours) = our_server(folder.path())?;
    for peer in [peers::qemu_nbd, |image: &Path, _, cpu| peers::nbdkit_file(image, cpu)] {
        let peer = peer(&image(folder.path())?, false, SERVER_CPU)?;
        fill(&peer.uri)?;
        for (rw, depth) in [("randread", 1), ("randread", 32), ("randwrite", 1), ("randwrite", 32)] {
            let load = Load { rw, depth, ..window() };
            compare(report, &format!("tmpfs {rw} 4k QD{depth}"), (&ours, cluster.nodes[0].pid()), &peer, &load)?;
        }
    }
    Ok(())
}

fn on_disk(report: &mut Report) -> Done {
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let (cluster, ours) = our_server(folder.path())?;
    let peer = peers::qemu_nbd(&image(folder.path())?, true, SERVER_CPU)?;
    fill(&peer.uri)?;
    for rw in ["randread", "randwrite"] {
        let load = Load { rw, depth: 32, flush_every: if rw == "randwrite" { 32 } else { 0 }, ..window() };
        compare(report, &format!("disk {rw} 4k QD32, O_DIRECT"), (&ours, cluster.nodes[0].pid()), &peer, &load)?;
    }
    Ok(())
}

/// Random writes to a volume right after a snapshot, against the same writes where all is allocated.
fn after_snapshot(report: &mut Report) -> Done {
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let (cluster, uri) = our_server(folder.path())?;
    let load = Load { rw: "randwrite", depth: 32, ..window() };
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for round in 0..6 {
        before.push(fio::run(&uri, &load)?.iops);
        let name = format!("s{round}");
        cluster.api.post("/v1/volumes/bench/snapshots", serde_json::json!({ "name": name }));
        after.push(fio::run(&uri, &load)?.iops);
        // Back to a fully allocated head: the snapshot merges away before the next round.
        cluster
            .api
            .request("DELETE", &format!("/v1/volumes/bench/snapshots/{name}"), None)
            .map_err(|e| format!("{e:?}"))?;
        fill(&uri)?;
    }
    report.compare("disk randwrite 4k QD32 after a snapshot", "ours before it", ("IOPS", "higher"), &after, &before)?;
    Ok(())
}

fn window() -> Load<'static> {
    Load {
        rw: "randread",
        block_bytes: 4096,
        depth: 32,
        seconds: Some(1),
        range_bytes: BYTES,
        cpu: CLIENT_CPU,
        flush_every: 0,
        rate_bytes: 0,
    }
}

fn our_server(folder: &Path) -> Result<(Cluster, String), Box<dyn Error>> {
    let cpu = SERVER_CPU.to_string();
    let layout = Layout { nodes: 1, folder, tier_size: "4GiB", lease_ttl_ms: 9_000, link: None, cpus: &[cpu.as_str()] };
    let cluster = Cluster::start(&layout);
    cluster.create_volume("bench", BYTES, 0);
    let uri = cluster.uri(0, "bench");
    fill(&uri)?;
    Ok((cluster, uri))
}

fn image(folder: &Path) -> Result<std::path::PathBuf, Box<dyn Error>> {
    let path = folder.join("peer.raw");
    File::create(&path)?.set_len(BYTES)?;
    Ok(path)
}

fn fill(uri: &str) -> Done {
    fio::run(uri, &Load { rw: "write", block_bytes: 1 << 20, depth: 8, seconds: None, ..window() })?;
    Ok(())
}

/// Both servers in turn; a row of IOPS and one of the servers' CPU time an I/O.
fn compare(report: &mut Report, case: &str, ours: (&str, u32), peer: &Server, load: &Load) -> Done {
    let (mut our_iops, mut peer_iops, mut our_cpu, mut peer_cpu) = (vec![], vec![], vec![], vec![]);
    for _ in 0..BLOCKS {
        for is_ours in [true, false, false, true] {
            let cpu_s = || if is_ours { peers::cpu_s(ours.1) } else { peer.cpu_s() };
            let before = cpu_s()?;
            let seen = fio::run(if is_ours { ours.0 } else { &peer.uri }, load)?;
            // The ramp's I/O is served but not counted by fio: 0.3 s beside the window's 1 s.
            let served = seen.ios * 1.3;
            let cpu_us = (cpu_s()? - before) * 1e6 / served;
            let (iops, cpu) = if is_ours { (&mut our_iops, &mut our_cpu) } else { (&mut peer_iops, &mut peer_cpu) };
            iops.push(seen.iops);
            cpu.push(cpu_us);
        }
    }
    report.compare(case, peer.name, ("IOPS", "higher"), &our_iops, &peer_iops)?;
    report.compare(format!("{case}, server CPU"), peer.name, ("us/IO", "lower"), &our_cpu, &peer_cpu)?;
    Ok(())
}
