//! A node of several shards as a process: each has a thread, a volume's connections reach the one of its home, and the
//! number of shards may change whenever the node starts.

use drover_e2e::{Area, Cluster, Layout, OnLoss, Random, Writer};
use std::{collections::BTreeSet, fs, time::Duration};

const VOLUMES: u64 = 6;
const MIB: u64 = 1 << 20;

/// Sets the number of shards with which the node starts next.
fn set_shards(cluster: &Cluster, node: &str, shards: usize) {
    let path = cluster.folder().join(format!("{node}.toml"));
    let text = fs::read_to_string(&path).expect("a node's settings");
    let others = text.lines().filter(|line| !line.starts_with("shards")).map(|line| format!("{line}\n"));
    fs::write(&path, format!("shards = {shards}\n{}", others.collect::<String>())).expect("a node's settings");
}

/// Shards of a process: by the names of their threads, which a thread that a shard has just made shares for a moment;
/// the first is the thread of the process.
fn shards_of(pid: u32) -> usize {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let name = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
    let names: BTreeSet<String> = threads.map(|thread| name(thread.expect("a thread"))).collect();
    1 + names.iter().filter(|name| name.starts_with("shard-")).count()
}

#[test]
fn volumes_of_all_shards_survive_kills_and_other_numbers_of_shards() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut cluster = Cluster::start(&Layout::two_nodes(folder.path()));
    for volume in 0..VOLUMES {
        cluster.create_volume(&format!("v{volume}"), 8 * MIB, 0);
    }
    let area = Area { offset: 0, blocks: 256 };
    // Half of them through a gateway, which has shards of its own.
    let endpoint = |volume: u64| cluster.socket(volume as usize % 2);
    let start = |volume| {
        let on_loss = if volume % 2 == 0 { OnLoss::Reconnect } else { OnLoss::Fail };
        Writer::start(&endpoint(volume), &format!("v{volume}"), area, on_loss, volume + 1)
    };
    let writers: Vec<Writer> = (0..VOLUMES).map(start).collect();
    let mut random = Random::new(7);
    for (round, shards) in [3, 2, 5, 1, 4].into_iter().enumerate() {
        for writer in &writers {
            writer.wait_flushes(3);
        }
        std::thread::sleep(Duration::from_micros(random.below(50_000)));
        set_shards(&cluster, "node-1", shards);
        cluster.nodes[0].kill();
        cluster.nodes[0].start().expect("the node starts");
        for writer in writers.iter().step_by(2) {
            writer.wait_checks(round as u64 + 1);
        }
        assert_eq!(shards_of(cluster.nodes[0].pid()), shards);
    }
    for writer in &writers {
        writer.wait_flushes(3);
    }
    let written: Vec<_> = writers.into_iter().map(Writer::stop).collect();
    // An orderly end makes durable what was not flushed, on every shard.
    set_shards(&cluster, "node-1", 2);
    cluster.restart(0);
    for (volume, written) in written.iter().enumerate() {
        for node in 0..2 {
            written.verify(&cluster.socket(node), &format!("v{volume}"));
        }
    }
}

/// Volumes leave one node of several shards for another, all at once, while they are written.
#[test]
fn volumes_move_between_nodes_of_different_numbers_of_shards() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut cluster = Cluster::start(&Layout::two_nodes(folder.path()));
    for (index, shards) in [3, 2].into_iter().enumerate() {
        set_shards(&cluster, &format!("node-{}", index + 1), shards);
        cluster.restart(index);
    }
    let area = Area { offset: 0, blocks: 512 };
    let start = |volume: u64| {
        let name = format!("v{volume}");
        cluster.create_volume(&name, 8 * MIB, 0);
        Writer::start(&cluster.socket(0), &name, area, OnLoss::Fail, volume + 1)
    };
    let writers: Vec<Writer> = (0..4).map(start).collect();
    let begin = |volume| {
        let options = serde_json::json!({ "retention_ms": 100 });
        cluster.api.migrate(&format!("v{volume}"), "node-2", options)
    };
    let migrations: Vec<String> = (0..4).map(begin).collect();
    for migration in &migrations {
        cluster.api.wait_phase(migration, &["committed"], Duration::from_secs(60));
    }
    for (volume, writer) in writers.into_iter().enumerate() {
        writer.wait_flushes(3);
        writer.stop().verify(&cluster.socket(1), &format!("v{volume}"));
    }
}
