//! Faults by chance: one after the other in a lane, several lanes at once.

use crate::world::Cluster;
use drover_sim::runtime::{Generator, NetConfig};
use drover_sim::storage::End;
use std::{cell::Cell, time::Duration};

const PROCESSES: [&str; 4] = ["a", "b", "gateway", "control"];

/// Past a timed lease's life and its drift.
const PAST_LEASE_MS: (u64, u64) = (9_600, 14_000);

/// `count` faults, each undone before the next begins.
pub async fn lane(cluster: &Cluster, mut random: Generator, count: u64, done: &Cell<u64>) {
    for _ in 0..count {
        cluster.sim.sleep(Duration::from_millis(random.between(1, 1_500))).await;
        fault(cluster, &mut random).await;
        done.set(done.get() + 1);
    }
}

/// One of `among` that no fault has down or paused, held for the caller; waits until there is one.
async fn take(cluster: &Cluster, random: &mut Generator, among: &[&'static str]) -> &'static str {
    loop {
        let name = *random.pick(among);
        if cluster.busy.borrow_mut().insert(name.into()) {
            return name;
        }
        cluster.sim.sleep(Duration::from_millis(50)).await;
    }
}

fn give_back(cluster: &Cluster, name: &str) {
    cluster.busy.borrow_mut().remove(name);
}

async fn fault(cluster: &Cluster, random: &mut Generator) {
    let sim = &cluster.sim;
    let lasts = Duration::from_millis(random.between(1, 4_000));
    match random.below(8) {
        0 | 1 => {
            let name = take(cluster, random, &["a", "b"]).await;
            let end = if random.below(4) == 0 { End::Killed } else { End::PowerLost };
            cluster.tell(&format!("{name} dies for {lasts:?}: {end:?}"));
            cluster.kill_node(name, end);
            sim.sleep(lasts).await;
            cluster.start_node(name).await;
            cluster.tell(&format!("{name} is up"));
            give_back(cluster, name);
        }
        2 => {
            take(cluster, random, &["control"]).await;
            cluster.tell(&format!("control dies for {lasts:?}"));
            cluster.kill_control();
            sim.sleep(lasts).await;
            cluster.start_control().await;
            give_back(cluster, "control");
        }
        3 => {
            let name = take(cluster, random, &PROCESSES).await;
            let lasts = if name == "gateway" || random.below(3) == 0 {
                lasts
            } else {
                Duration::from_millis(random.between(PAST_LEASE_MS.0, PAST_LEASE_MS.1))
            };
            cluster.tell(&format!("{name} is paused for {lasts:?}"));
            sim.pause(name);
            sim.sleep(lasts).await;
            sim.resume(name);
            give_back(cluster, name);
        }
        4 | 5 => cut(cluster, random).await,
        6 => {
            let (one, other) = two(random);
            cluster.tell(&format!("connections of {one} and {other} are dropped"));
            sim.reset_connections(one, other);
        }
        _ => {
            cluster.tell(&format!("the network is slow and drops connections for {lasts:?}"));
            let most = Duration::from_millis(random.between(2, 80));
            let reset_ppm = random.below(3_000);
            sim.set_net(NetConfig { delay: (Duration::from_millis(1), most), reset_ppm, ..NetConfig::default() });
            sim.sleep(lasts).await;
            sim.set_net(NetConfig::default());
        }
    }
}

fn two(random: &mut Generator) -> (&'static str, &'static str) {
    let one = *random.pick(&PROCESSES);
    loop {
        let other = *random.pick(&PROCESSES);
        if other != one {
            return (one, other);
        }
    }
}

async fn cut(cluster: &Cluster, random: &mut Generator) {
    let (one, other) = two(random);
    let one_way = random.below(3) == 0;
    let lasts = Duration::from_millis(random.between(1, 12_000));
    cluster.tell(&format!("{one} and {other} are cut for {lasts:?}, one way: {one_way}"));
    match one_way {
        true => cluster.sim.partition_one_way(one, other),
        false => cluster.sim.partition(one, other),
    }
    cluster.sim.sleep(lasts).await;
    cluster.sim.heal(one, other);
}
