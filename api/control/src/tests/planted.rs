//! Bugs, planted one by one: each must be caught by what the tests check.

use super::cluster::{Cluster, TTL, node};
use super::faults::{a_standstill_refuses_a_cutover, mirroring};
use super::migrations::take_snapshot;
use crate::migration::tests::stale_report_is_passed_over;
use drover_base::planted::{Bug, plant};
use drover_types::{CommitPolicy, MigrationOptions, Phase};
use std::{rc::Rc, time::Duration};

fn options(commit: CommitPolicy) -> MigrationOptions {
    MigrationOptions { retention_ms: 100, commit, ..MigrationOptions::default() }
}

fn started(seed: u64, commit: CommitPolicy, prepare: impl FnOnce(&Cluster)) -> (Rc<Cluster>, String) {
    let cluster = Cluster::new(seed);
    prepare(&cluster);
    cluster.start_client();
    cluster.sim.run_for(Duration::from_secs(1));
    let id = cluster.start("b", options(commit));
    (cluster, id)
}

fn settled(seed: u64) -> Rc<Cluster> {
    let (cluster, id) = started(seed, CommitPolicy::Manual, |_| {});
    cluster.wait_phase(&id, &[Phase::Settling]);
    cluster.sim.run_for(Duration::from_secs(2));
    cluster
}

/// The scenario finds nothing in the sound code and something, within a few seeds, with the bug.
fn is_caught(bug: Bug, scenario: impl Fn(u64) -> usize) {
    for seed in 0..3 {
        assert_eq!(scenario(seed), 0, "seed {seed}: found without the bug");
    }
    plant(Some(bug));
    let caught = (0..20).any(|seed| scenario(seed) > 0);
    plant(None);
    assert!(caught, "{bug:?} is not caught");
}

fn violations(cluster: &Cluster) -> usize {
    cluster.checker.violations.borrow().len()
}

#[test]
fn drained_too_early() {
    is_caught(Bug::DrainedTooEarly, |seed| usize::from(super::drains::is_drained_with_copies(seed)));
}

#[test]
fn flip_without_drain() {
    is_caught(Bug::FlipWithoutDrain, |seed| {
        let (cluster, _) = started(seed, CommitPolicy::Manual, |_| {});
        cluster.sim.run_for(Duration::from_secs(5));
        violations(&cluster)
    });
}

#[test]
fn a_standstill_that_counts() {
    is_caught(Bug::StandstillCounts, |seed| {
        let (cluster, id) = mirroring(seed, 20_000);
        cluster.sim.pause("control");
        cluster.sim.run_for(Duration::from_secs(60));
        cluster.sim.resume("control");
        cluster.sim.run_for(Duration::from_secs(5));
        usize::from(cluster.migration(&id).phase != Phase::Mirroring)
    });
    is_caught(Bug::StandstillCounts, |seed| usize::from(a_standstill_refuses_a_cutover(seed)));
}

#[test]
fn takeover_without_wait() {
    is_caught(Bug::TakeoverWithoutWait, |seed| {
        let cluster = settled(seed);
        cluster.sim.partition("control", "b");
        cluster.sim.run_for(TTL * 2);
        cluster.sim.heal_all();
        cluster.sim.run_for(Duration::from_secs(10));
        violations(&cluster)
    });
}

#[test]
fn takeover_without_copy() {
    is_caught(Bug::TakeoverWithoutCopy, |seed| {
        let cluster = settled(seed);
        cluster.kill_node("a");
        cluster.kill_node("b");
        cluster.disk(&node("a")).borrow_mut().clear();
        cluster.start_node("a");
        cluster.sim.run_for(TTL * 2);
        usize::from(cluster.look(|control| control.show_lease("v").unwrap().holder).unwrap() == "a")
    });
}

#[test]
fn way_back_not_recorded() {
    is_caught(Bug::WayBackNotRecorded, |seed| {
        let cluster = settled(seed);
        cluster.cut.set(true);
        cluster.sim.run_for(Duration::from_secs(2));
        cluster.kill_node("b");
        cluster.sim.run_for(TTL * 2);
        violations(&cluster)
    });
}

#[test]
fn proof_skipped() {
    is_caught(Bug::ProofSkipped, |seed| {
        let (cluster, _) =
            started(seed, CommitPolicy::Auto, |cluster| cluster.set_habits("b", |habits| habits.rots = true));
        cluster.sim.run_for(Duration::from_secs(20));
        violations(&cluster)
    });
}

#[test]
fn stale_progress_accepted() {
    is_caught(Bug::StaleProgressAccepted, |_| usize::from(!stale_report_is_passed_over()));
}

#[test]
fn epoch_not_checked() {
    is_caught(Bug::EpochNotChecked, |seed| super::nodes::renewed_under_another_epoch(&Cluster::new(seed)));
}
