//! While only the holder has the data, a control plane that is away stops no I/O, restarts of the holder included.
//!
//! The holder has no timer on the control plane then, so a short time shows what a long one would.

use drover_e2e::{Area, Cluster, Layout, OnLoss, Writer};
use std::time::{Duration, Instant};

const AWAY: Duration = Duration::from_secs(10);

#[test]
fn io_goes_on_without_the_control_plane() {
    let folder = tempfile::tempdir().expect("a folder");
    // Were the lease timed, it would have ended several times over.
    let layout = Layout { lease_ttl_ms: 1000, ..Layout::two_nodes(folder.path()) };
    let mut cluster = Cluster::start(&layout);
    cluster.create_volume("v", 64 << 20, 0);
    let direct = Writer::start(&cluster.socket(0), "v", Area { offset: 0, blocks: 256 }, OnLoss::Reconnect, 1);
    let gateway = Writer::start(&cluster.socket(1), "v", Area { offset: 32 << 20, blocks: 256 }, OnLoss::Fail, 2);
    direct.wait_flushes(5);
    gateway.wait_flushes(5);

    cluster.control.kill();
    let away = Instant::now();
    while away.elapsed() < AWAY / 2 {
        direct.wait_flushes(5);
        gateway.wait_flushes(5);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(direct.checks(), 0, "the holder closed a connection");
    cluster.nodes[0].kill();
    cluster.nodes[0].start().expect("the holder starts");
    direct.wait_checks(1);
    while away.elapsed() < AWAY {
        direct.wait_flushes(5);
        gateway.wait_flushes(5);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(direct.checks(), 1, "the holder closed a connection");
    assert!(!cluster.control.is_running());

    cluster.control.start().expect("the control plane starts");
    cluster.wait_for_nodes();
    let (direct, gateway) = (direct.stop(), gateway.stop());
    for node in 0..2 {
        direct.verify(&cluster.socket(node), "v");
        gateway.verify(&cluster.socket(node), "v");
    }
}
