//! Faults by chance: one after the other in a lane, several lanes at once, and one that is aimed at a phase: the
//! moments in which a lease moves are too short to be met by chance.

use crate::client::Clients;
use crate::met::Fault;
use crate::world::Cluster;
use drover_sim::runtime::{Generator, NetConfig};
use drover_sim::storage::End;
use drover_types::Phase;
use std::{cell::Cell, time::Duration};

/// Past a timed lease's life and its drift.
const PAST_LEASE_MS: (u64, u64) = (9_600, 14_000);

/// `count` faults, each undone before the next begins.
pub async fn lane(cluster: &Cluster, clients: &Clients, mut random: Generator, count: u64, done: &Cell<u64>) {
    for _ in 0..count {
        cluster.sim.sleep(Duration::from_millis(random.between(1, 1_500))).await;
        fault(cluster, clients, &mut random).await;
        done.set(done.get() + 1);
    }
}

/// Phases are looked at this often: a flip takes longer.
const AIM_PERIOD: Duration = Duration::from_millis(2);
/// The later ones, where most can go wrong, more often.
const AIMS: [Phase; 10] = [
    Phase::Tracking,
    Phase::Copying,
    Phase::Converging,
    Phase::Mirroring,
    Phase::Flipping,
    Phase::Flipping,
    Phase::Settling,
    Phase::Settling,
    Phase::Settling,
    Phase::RollingBack,
];
/// A migration that has not come to the phase by then is let be.
const AIM_PATIENCE: Duration = Duration::from_secs(120);

/// One fault as soon as the migration is in a phase that is drawn before; nothing where it never is.
pub async fn aimed(cluster: &Cluster, clients: &Clients, mut random: Generator, done: &Cell<u64>) {
    let sim = &cluster.sim;
    let at = *random.pick(&AIMS);
    let deadline = sim.now() + AIM_PATIENCE;
    while cluster.phase() != at {
        if sim.now() > deadline || cluster.phase().is_final() {
            return;
        }
        sim.sleep(AIM_PERIOD).await;
    }
    sim.sleep(Duration::from_micros(random.below(20_000))).await;
    cluster.tell(&format!("aimed at {at}"));
    match random.below(2) {
        0 => fault(cluster, clients, &mut random).await,
        _ => at_holder(cluster, clients, &mut random, if at > Phase::Flipping { "b" } else { "a" }).await,
    }
    done.set(done.get() + 1);
}

/// Where only the holder and the control plane know what is.
async fn at_holder(cluster: &Cluster, clients: &Clients, random: &mut Generator, holder: &'static str) {
    match random.below(4) {
        0 => {
            let lasts = Duration::from_millis(random.between(1_000, 12_000));
            cluster.tell(&format!("control and {holder} are cut for {lasts:?}"));
            cluster.note_fault(Fault::Cut);
            cluster.note_absence(holder, lasts);
            cluster.sim.partition("control", holder);
            cluster.sim.sleep(lasts).await;
            cluster.sim.heal("control", holder);
        }
        1 => gone_alone(cluster, clients, random, holder).await,
        2 => superseded(cluster, clients, random, holder).await,
        _ => absent(cluster, clients, random, holder).await,
    }
}

/// The two sides are cut, the holder serves alone for a while, then it is gone for longer than its lease.
async fn gone_alone(cluster: &Cluster, clients: &Clients, random: &mut Generator, holder: &'static str) {
    cluster.tell("the sides are cut");
    cluster.note_fault(Fault::Cut);
    cluster.sim.partition("a", "b");
    cluster.sim.sleep(Duration::from_millis(random.between(1_000, 5_000))).await;
    absent(cluster, clients, random, holder).await;
    cluster.sim.heal("a", "b");
}

/// The holder's clients write for a while; then it stands still past its lease, and the other side loses power as soon
/// as it is decided that it takes over.
async fn superseded(cluster: &Cluster, clients: &Clients, random: &mut Generator, holder: &'static str) {
    let other = if holder == "a" { "b" } else { "a" };
    cluster.sim.sleep(Duration::from_millis(random.between(1, 2_500))).await;
    let (holder, other) = (take(cluster, random, &[holder]).await, take(cluster, random, &[other]).await);
    let lasts = random.between(PAST_LEASE_MS.0, PAST_LEASE_MS.1);
    let until = cluster.sim.now() + Duration::from_millis(lasts);
    cluster.tell(&format!("{holder} is paused for {lasts} ms, and {other} is to take over"));
    cluster.note_fault(Fault::PausedPastLease);
    cluster.sim.pause(holder);
    while cluster.phase() != Phase::RollingBack && cluster.sim.now() < until {
        cluster.sim.sleep(AIM_PERIOD).await;
    }
    cluster.tell(&format!("{other} loses power"));
    cluster.note_fault(Fault::PowerLost);
    cluster.kill_node(other, End::PowerLost);
    clients.died(other);
    cluster.sim.sleep(Duration::from_millis(random.between(1, 1_000))).await;
    cluster.start_node(other).await;
    clients.attach(cluster, other).await;
    cluster.sim.sleep(until.saturating_sub(cluster.sim.now())).await;
    cluster.sim.resume(holder);
    give_back(cluster, holder);
    give_back(cluster, other);
}

/// It loses power, and comes back past its lease.
async fn absent(cluster: &Cluster, clients: &Clients, random: &mut Generator, name: &'static str) {
    let name = take(cluster, random, &[name]).await;
    let lasts = Duration::from_millis(random.between(PAST_LEASE_MS.0, PAST_LEASE_MS.1));
    cluster.tell(&format!("{name} loses power for {lasts:?}"));
    cluster.note_fault(Fault::PowerLost);
    cluster.note_absence(name, lasts);
    cluster.kill_node(name, End::PowerLost);
    clients.died(name);
    cluster.sim.sleep(lasts).await;
    cluster.start_node(name).await;
    clients.attach(cluster, name).await;
    give_back(cluster, name);
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

async fn fault(cluster: &Cluster, clients: &Clients, random: &mut Generator) {
    let sim = &cluster.sim;
    let lasts = Duration::from_millis(random.between(1, 4_000));
    match random.below(8) {
        0 | 1 => {
            let name = match cluster.cast.nodes.contains(&"far") {
                true => take(cluster, random, &["a", "a", "b", "b", "far"]).await,
                false => take(cluster, random, &["a", "b"]).await,
            };
            let end = if random.below(4) == 0 { End::Killed } else { End::PowerLost };
            cluster.tell(&format!("{name} dies for {lasts:?}: {end:?}"));
            cluster.note_fault(if end == End::Killed { Fault::Killed } else { Fault::PowerLost });
            cluster.note_absence(name, lasts);
            cluster.kill_node(name, end);
            clients.died(name);
            sim.sleep(lasts).await;
            cluster.start_node(name).await;
            clients.attach(cluster, name).await;
            cluster.tell(&format!("{name} is up"));
            give_back(cluster, name);
        }
        2 => {
            take(cluster, random, &["control"]).await;
            cluster.tell(&format!("control dies for {lasts:?}"));
            cluster.note_fault(Fault::ControlKilled);
            cluster.kill_control();
            sim.sleep(lasts).await;
            cluster.start_control().await;
            give_back(cluster, "control");
        }
        3 => {
            let name = take(cluster, random, cluster.cast.processes).await;
            let lasts = if matches!(name, "gateway" | "far") || random.below(3) == 0 {
                lasts
            } else {
                Duration::from_millis(random.between(PAST_LEASE_MS.0, PAST_LEASE_MS.1))
            };
            cluster.tell(&format!("{name} is paused for {lasts:?}"));
            cluster.note_absence(name, lasts);
            let is_long = lasts >= Duration::from_millis(PAST_LEASE_MS.0);
            cluster.note_fault(if is_long { Fault::PausedPastLease } else { Fault::Paused });
            sim.pause(name);
            sim.sleep(lasts).await;
            sim.resume(name);
            give_back(cluster, name);
        }
        4 | 5 => cut(cluster, random).await,
        6 => {
            let (one, other) = two(cluster, random);
            cluster.tell(&format!("connections of {one} and {other} are dropped"));
            cluster.note_fault(Fault::ConnectionsReset);
            sim.reset_connections(one, other);
        }
        _ => {
            cluster.tell(&format!("the network is slow and drops connections for {lasts:?}"));
            cluster.note_fault(Fault::SlowNetwork);
            let most = Duration::from_millis(random.between(2, 80));
            let reset_ppm = random.below(3_000);
            sim.set_net(NetConfig { delay: (Duration::from_millis(1), most), reset_ppm, ..NetConfig::default() });
            sim.sleep(lasts).await;
            sim.set_net(NetConfig::default());
        }
    }
}

fn two(cluster: &Cluster, random: &mut Generator) -> (&'static str, &'static str) {
    let one = *random.pick(cluster.cast.processes);
    loop {
        let other = *random.pick(cluster.cast.processes);
        if other != one {
            return (one, other);
        }
    }
}

async fn cut(cluster: &Cluster, random: &mut Generator) {
    let (one, other) = two(cluster, random);
    let one_way = random.below(3) == 0;
    let lasts = Duration::from_millis(random.between(1, 12_000));
    cluster.tell(&format!("{one} and {other} are cut for {lasts:?}, one way: {one_way}"));
    match (one, other) {
        ("control", name) | (name, "control") => cluster.note_absence(name, lasts),
        _ => {}
    }
    cluster.note_fault(if one_way { Fault::CutOneWay } else { Fault::Cut });
    match one_way {
        true => cluster.sim.partition_one_way(one, other),
        false => cluster.sim.partition(one, other),
    }
    cluster.sim.sleep(lasts).await;
    cluster.sim.heal(one, other);
}
