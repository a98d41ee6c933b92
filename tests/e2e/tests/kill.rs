//! `kill -9` of the holder at random moments, under fio and under our own writers. Nothing flushed is lost for a client
//! of its own; nothing acknowledged is lost for a client whose connection, to a gateway, survives.
//!
//! 50 moments, times `DROVER_SOAK`; `DROVER_SEED` says which.

use drover_e2e::{Area, Cluster, Ends, Fio, FlushingProxy, Layout, OnLoss, Random, Writer, number};
use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

const MIB: u64 = 1 << 20;
const ROUNDS: u64 = 50;

/// Our own writers check every block at every reconnection; fio checks with code that is not ours.
const DIRECT: Area = Area { offset: 0, blocks: 512 };
const GATEWAY: Area = Area { offset: 32 * MIB, blocks: 512 };
const FIO_GATEWAY: Area = Area { offset: 48 * MIB, blocks: 1024 };
/// More than it can write, each block durably, until it is cut off.
const FIO_DIRECT: Area = Area { offset: 64 * MIB, blocks: 4096 };

/// A run of fio at the gateway takes about a second, so kills fall in its writing and in its reading.
const GATEWAY_WRITES_PER_S: u64 = 1_500;

#[test]
fn nothing_is_lost_when_the_holder_is_killed() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut cluster = Cluster::start(&Layout::two_nodes(folder.path()));
    cluster.create_volume("v", 96 * MIB, 0);
    let (rounds, seed) = (ROUNDS * number("DROVER_SOAK", 1), number("DROVER_SEED", 1));
    println!("seed {seed}, {rounds} rounds");
    let mut random = Random::new(seed);
    let direct = Writer::start(&cluster.socket(0), "v", DIRECT, OnLoss::Reconnect, seed);
    let gateway = Writer::start(&cluster.socket(1), "v", GATEWAY, OnLoss::Fail, seed + 1);
    let mut flushing = FlushingProxy::start(&cluster, 0, "v");
    let (fios, is_over) = (folder.path().join("fio"), AtomicBool::new(false));
    let endpoint = cluster.endpoint(1);
    let (mut cut_off, mut verified) = (0, 0);
    thread::scope(|scope| {
        let through_gateway = scope.spawn(|| {
            let mut runs = 0;
            while !is_over.load(Relaxed) {
                runs += 1;
                let fio = Fio::prepare(&endpoint, "v", FIO_GATEWAY, &fios.join("gateway"), seed + runs);
                fio.write_and_verify(&endpoint.uri("v"), GATEWAY_WRITES_PER_S)
                    .unwrap_or_else(|error| panic!("fio, run {runs} through the gateway: {error}"));
            }
            runs
        });
        let ends = Ends(&is_over);
        for round in 1..=rounds {
            direct.wait_flushes(5);
            gateway.wait_flushes(5);
            let fio = Fio::prepare(&cluster.endpoint(0), "v", FIO_DIRECT, &fios.join("direct"), seed + round);
            flushing.forget();
            let running = fio.start_writing(&flushing.uri());
            flushing.wait_writes(16);
            thread::sleep(Duration::from_micros(random.below(300_000)));
            cluster.nodes[0].kill();
            cut_off += u64::from(running.was_cut_off());
            thread::sleep(Duration::from_millis(random.below(100)));
            cluster.nodes[0].start().expect("the holder starts");
            direct.wait_checks(round);
            // Through whom does not matter.
            let node = random.below(2) as usize;
            fio.verify_saved(&cluster.uri(node, "v"))
                .unwrap_or_else(|error| panic!("round {round}: fio was answered what is not there: {error}"));
            assert!(!through_gateway.is_finished(), "fio at the gateway failed");
        }
        drop(ends);
        verified = through_gateway.join().expect("fio at the gateway sees nothing wrong");
    });
    gateway.wait_flushes(5);
    let (direct, gateway) = (direct.stop(), gateway.stop());
    println!("direct: {} writes; gateway: {} writes; fio: {verified} runs verified", direct.writes, gateway.writes);
    println!("fio: {cut_off} runs cut off and verified");
    assert!(cut_off * 10 >= rounds * 9, "fio mostly ended before the kill");
    for node in 0..2 {
        direct.verify(&cluster.socket(node), "v");
        gateway.verify(&cluster.socket(node), "v");
    }
}
