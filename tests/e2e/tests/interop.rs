//! Other people's clients against real nodes: directly, through a gateway, and while the volume moves.

use drover_e2e::{Cluster, Layout, node_name};
use drover_interop::{Check, FioVerify};
use serde_json::json;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;

fn start(folder: &std::path::Path) -> Cluster {
    let cluster = Cluster::start(&Layout::two_nodes(folder));
    cluster.create_volume("v", SIZE, 0);
    cluster
}

fn check_all(uri: &str) {
    type Named = (&'static str, fn(&str) -> Check);
    let checks: [Named; 5] = [
        ("nbdinfo", drover_interop::check_nbdinfo),
        ("nbdcopy", drover_interop::check_nbdcopy),
        ("qemu-io", drover_interop::check_qemu_io),
        ("qemu-img", drover_interop::check_qemu_img),
        ("fio", |uri| {
            let verify = FioVerify { connections: 4, bytes_per_connection: 8 * MIB, seconds: None };
            drover_interop::check_fio_verify(uri, verify)
        }),
    ];
    for (name, check) in checks {
        check(uri).unwrap_or_else(|failure| panic!("{name}: {failure}"));
    }
    assert_eq!(SIZE, drover_interop::AIO_PARALLEL_BYTES, "aio-parallel needs an export of its size");
    drover_interop::check_aio_parallel(uri).unwrap_or_else(|failure| panic!("aio-parallel: {failure}"));
}

#[test]
fn clients_on_the_holder_and_through_a_gateway() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = start(folder.path());
    check_all(&cluster.uri(0, "v"));
    check_all(&cluster.uri(1, "v"));
}

/// As clients on other machines attach; each connection goes to the thread of its volume's shard.
#[test]
fn clients_over_tcp() {
    let folder = tempfile::tempdir().expect("a folder");
    let set = |settings: String| settings.replace("nbd_unix", "nbd_tcp = \"127.0.0.1:0\"\nnbd_unix");
    let cluster = Cluster::start_set(&Layout::two_nodes(folder.path()), set);
    cluster.create_volume("v", SIZE, 0);
    for node in 0..2 {
        let export = cluster.api.get(&format!("/v1/exports/{}/v", node_name(node)));
        let uris = export["uris"].as_array().expect("addresses");
        let tcp = uris.iter().filter_map(|uri| uri.as_str()).find(|uri| uri.starts_with("nbd://127.0.0.1:"));
        check_all(tcp.unwrap_or_else(|| panic!("no TCP address: {export:#}")));
    }
}

/// Each check runs in one migration's copying or mirroring at least; then the volume moves on under the last of them.
#[test]
fn clients_while_the_volume_moves() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = start(folder.path());
    drover_interop::check_nbdcopy(&cluster.uri(0, "v")).expect("the volume is filled");
    let options = json!({ "throttle_bytes_per_s": 4 * MIB, "retention_ms": 1000, "cutover": "manual" });
    let migration = cluster.api.migrate("v", "node-2", options);
    cluster.api.wait_phase(&migration, &["copying"], Duration::from_secs(30));
    check_all(&cluster.uri(0, "v"));
    let path = format!("/v1/migrations/{migration}");
    let phase = cluster.api.get(&path)["phase"].clone();
    assert!(["copying", "converging", "mirroring"].map(Into::into).contains(&phase), "it is in {phase}");
    let tuned = json!({ "throttle_bytes_per_s": 0, "cutover": "auto" });
    cluster.api.insist("PATCH", &path, &tuned, Duration::from_secs(10));
    // The flip happens under these; through the old holder, then a gateway.
    check_all(&cluster.uri(0, "v"));
    cluster.api.wait_phase(&migration, &["committed"], Duration::from_secs(60));
    check_all(&cluster.uri(0, "v"));
    check_all(&cluster.uri(1, "v"));
}
