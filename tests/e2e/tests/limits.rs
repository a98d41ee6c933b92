//! A volume's limit as fio sees it: at its holder, through another node, and after a move.

use drover_e2e::{Area, Cluster, Fio, Layout};
use serde_json::json;
use std::time::{Duration, Instant};

const BLOCKS: u64 = 2_048;
const IOPS: u64 = 1_000;
const BURST_MS: u64 = 100;

/// fio writes each block and reads it again, and takes no less time than the limit asks for: a slow machine takes more.
fn check(cluster: &Cluster, fio: &Fio, node: usize) {
    let waited = |volume: &serde_json::Value| volume["limited_requests"].as_u64().unwrap_or(0);
    let path = "/v1/volumes/v";
    let before = waited(&cluster.api.get(path));
    let began = Instant::now();
    fio.write_and_verify(&cluster.uri(node, "v"), 1_000_000).unwrap_or_else(|said| panic!("{said}"));
    let took = began.elapsed();
    let requests = 2 * BLOCKS;
    let least = Duration::from_millis((requests - 1) * 1_000 / IOPS - BURST_MS);
    assert!(took >= least, "{requests} requests took {took:?}, at {IOPS} a second it is {least:?}");
    eprintln!("node {node}: {:.2} of the limit", requests as f64 / took.as_secs_f64() / IOPS as f64);
    cluster.api.wait_for(path, Duration::from_secs(30), |volume| waited(volume) > before);
}

#[test]
fn fio_gets_what_the_limit_allows_wherever_the_volume_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::start(&Layout::two_nodes(folder.path()));
    cluster.create_volume("v", 64 << 20, 0);
    let area = Area { offset: 0, blocks: BLOCKS };
    let fio = Fio::prepare(&cluster.endpoint(0), "v", area, &folder.path().join("fio"), 1);
    let limits = json!({ "limits": { "iops": IOPS, "burst_ms": BURST_MS } });
    let changed = cluster.api.request("PATCH", "/v1/volumes/v", Some(&limits)).expect("it is limited");
    assert_eq!(changed["limits"], limits["limits"]);
    check(&cluster, &fio, 0);
    check(&cluster, &fio, 1);
    let migration = cluster.api.migrate("v", "node-2", json!({ "retention_ms": 0 }));
    cluster.api.wait_phase(&migration, &["committed"], Duration::from_secs(60));
    check(&cluster, &fio, 0);
    check(&cluster, &fio, 1);
}
