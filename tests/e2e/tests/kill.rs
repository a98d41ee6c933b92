//! `kill -9` of the holder at random moments. Nothing flushed is lost for a client of its own; nothing acknowledged is
//! lost for a client whose connection, to a gateway, survives.
//!
//! `DROVER_KILL_ROUNDS` says how often (default 50); `DROVER_SEED` which moments.

use drover_e2e::{Area, Cluster, Layout, OnLoss, Random, Writer};
use std::time::Duration;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

#[test]
fn nothing_is_lost_when_the_holder_is_killed() {
    let folder = tempfile::tempdir().expect("a folder");
    let layout =
        Layout { nodes: 2, folder: folder.path(), tier_size: "1GiB", lease_ttl_ms: 2000, link: None, cpus: &[] };
    let mut cluster = Cluster::start(&layout);
    cluster.create_volume("v", 64 << 20, 0);
    let (rounds, seed) = (number("DROVER_KILL_ROUNDS", 50), number("DROVER_SEED", 1));
    println!("seed {seed}, {rounds} rounds");
    let mut random = Random::new(seed);
    let direct_area = Area { offset: 0, blocks: 512 };
    let gateway_area = Area { offset: 32 << 20, blocks: 512 };
    let direct = Writer::start(&cluster.socket(0), "v", direct_area, OnLoss::Reconnect, seed);
    let gateway = Writer::start(&cluster.socket(1), "v", gateway_area, OnLoss::Fail, seed + 1);
    for round in 1..=rounds {
        direct.wait_flushes(5);
        gateway.wait_flushes(5);
        std::thread::sleep(Duration::from_micros(random.below(100_000)));
        cluster.nodes[0].kill();
        std::thread::sleep(Duration::from_millis(random.below(100)));
        cluster.nodes[0].start().expect("the holder starts");
        direct.wait_checks(round);
    }
    gateway.wait_flushes(5);
    let (direct, gateway) = (direct.stop(), gateway.stop());
    println!("direct: {} writes; gateway: {} writes", direct.writes, gateway.writes);
    for node in 0..2 {
        direct.verify(&cluster.socket(node), "v");
        gateway.verify(&cluster.socket(node), "v");
    }
}
