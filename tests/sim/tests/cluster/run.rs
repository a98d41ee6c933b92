//! One seed from its start to its end.

use crate::client::Clients;
use crate::faults;
use crate::losses::Losses;
use crate::met::Met;
use crate::migration::{self, Wishes};
use crate::snapshots::Snapshots;
use crate::world::{self, Cluster};
use drover_sim::runtime::Sim;
use drover_sim::storage::End;
use drover_types::Phase;
use std::{cell::Cell, collections::BTreeMap, rc::Rc, time::Duration};

const REQUESTS_MIN: u64 = 2_000;
const FAULTS_MIN: u64 = 5;

/// What a seed came to; equal for two runs of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub trace: u64,
    pub committed: bool,
    pub flips: u32,
    /// At the first flip some of it was at the source only.
    pub was_remote: bool,
    /// Snapshots that the volume had, each compared in the end.
    pub snapshots: usize,
    pub faults: u64,
    /// Of the faults: before the migration was over.
    pub faults_in_time: u64,
    pub met: Met,
    pub requests: u64,
    /// Of the requests: held past their deadline.
    pub timed_out: u64,
    /// Times that a gateway's unflushed writes were given up.
    pub given_up: u64,
    pub virtual_time: Duration,
}

/// Ends the simulation when dropped, also by a panic: hundreds run in one process.
struct Ends(Sim);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.end();
    }
}

pub fn run(seed: u64, tells: bool) -> Ended {
    let sim = Sim::new(seed);
    let _ends = Ends(sim.clone());
    sim.set_time_limit(Duration::from_secs(4 * 3600));
    let losses = Losses::default();
    let _listening = losses.listen();
    sim.clone().block_on(async move {
        let cast = if sim.generator("cast").below(2) == 0 { world::ONE } else { world::MANY };
        let cluster = Cluster::start(sim.clone(), cast, tells).await;
        let clients = Clients::new(losses);
        let mut random = sim.generator("run");
        if random.below(4) > 0 {
            clients.fill(&cluster).await;
        }
        let snapshots = Snapshots::take(&cluster, &clients, sim.generator("snapshots")).await;
        for (node, _) in cluster.cast.clients {
            clients.attach(&cluster, node).await;
        }
        sim.sleep(Duration::from_millis(random.between(100, 3_000))).await;
        let wishes = Wishes::draw(sim.generator("wishes"));
        let id = migration::start(&cluster, &wishes).await;
        cluster.follow(&id);
        cluster.tell("the migration is started");
        let (faults_done, calm_since) = (Cell::new(0), Cell::new(None));
        let (first, second) = (random.between(FAULTS_MIN, FAULTS_MIN + 5), random.below(5));
        let rage = async {
            futures::join!(
                faults::lane(&cluster, &clients, sim.generator("faults"), first, &faults_done),
                faults::lane(&cluster, &clients, sim.generator("more faults"), second, &faults_done),
                faults::aimed(&cluster, &clients, sim.generator("aim"), &faults_done),
            );
            sim.heal_all();
            cluster.tell("nothing fails any more");
            calm_since.set(Some(sim.now()));
        };
        let over = Cell::new(false);
        let see_through = async {
            let ended = migration::see_through(&cluster, &id, &wishes, || calm_since.get()).await;
            over.set(true);
            (ended, faults_done.get())
        };
        let work = async {
            let ((ended, faults_in_time), (), ()) = futures::join!(see_through, rage, one_holder(&cluster, &over));
            while clients.answered.get() < REQUESTS_MIN {
                sim.sleep(Duration::from_millis(50)).await;
            }
            clients.stop.set(true);
            while clients.is_running() {
                sim.sleep(Duration::from_millis(50)).await;
            }
            (ended, faults_in_time)
        };
        let ((ended, faults_in_time), ()) = futures::join!(work, clients.take_turns(&cluster));
        clients.check_all(&cluster).await;
        lose_power(&cluster, &clients).await;
        let committed = match ended.phase {
            Phase::Committed => true,
            // Judged where it was seen first.
            Phase::RolledBack | Phase::Failed => false,
            other => panic!("seed {seed}: it ended {other}\n{}", cluster.told()),
        };
        check_lease(&cluster, if committed { "b" } else { "a" }).await;
        snapshots.check(&cluster, &clients).await;
        cluster.cast.nodes.iter().for_each(|name| cluster.kill_node(name, End::Killed));
        Ended {
            trace: sim.trace_digest(),
            committed,
            flips: ended.receipt.flips,
            snapshots: snapshots.count(),
            was_remote: ended.receipt.remote_bytes_at_flip > 0,
            faults: faults_done.get(),
            faults_in_time,
            met: cluster.met.take(),
            requests: clients.answered.get(),
            timed_out: clients.failed.get(),
            given_up: clients.given_up.get(),
            virtual_time: sim.now(),
        }
    })
}

/// What was flushed is there after everything lost power at once, the gateways' logs included.
async fn lose_power(cluster: &Rc<Cluster>, clients: &Clients) {
    clients.flush(cluster).await;
    for name in cluster.cast.nodes {
        cluster.kill_node(name, End::PowerLost);
        clients.died(name);
    }
    for name in cluster.cast.nodes {
        cluster.start_node(name).await;
    }
    clients.check_all(cluster).await;
}

/// No two nodes ever hold the volume under one epoch; and a takeover finds the old holder's lease run out. (In a flip
/// the old holder, which has drained, believes in its lease for a moment longer.)
async fn one_holder(cluster: &Cluster, over: &Cell<bool>) {
    let mut seen = BTreeMap::new();
    while !over.get() {
        let holders = cluster.holders();
        let seed = cluster.sim.seed();
        assert!(holders.len() < 2 || !cluster.is_taken_over(), "seed {seed}: taken over too early: {holders:?}");
        for (name, volume, epoch) in holders {
            let first = seen.entry((volume, epoch)).or_insert_with(|| name.clone());
            assert_eq!(*first, name, "seed {seed}: two nodes hold {volume} under epoch {epoch}");
        }
        cluster.sim.sleep(Duration::from_millis(25)).await;
    }
}

/// The lease is where the migration ended, for ever, and the other node has nothing of the volume any more.
async fn check_lease(cluster: &Cluster, holder: &str) {
    let holders: Vec<String> = cluster.holders().into_iter().map(|(name, ..)| name).collect();
    assert_eq!(holders, [holder], "seed {}\n{}", cluster.sim.seed(), cluster.told());
    let lease = cluster.command(|control| async move { control.show_lease(crate::world::VOLUME_NAME) }).await;
    let lease = lease.expect("it lives").expect("the volume has one");
    assert_eq!((lease.holder.as_str(), lease.ttl_ms, lease.migration), (holder, None, None));
    let other = if holder == "a" { "b" } else { "a" };
    let left = cluster.node(other).expect("it runs").status().volumes;
    assert!(left.is_empty(), "seed {}: {other} still has {left:?}", cluster.sim.seed());
}
