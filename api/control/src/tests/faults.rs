//! Migrations while processes die, stop and do not reach each other.

use super::cluster::{Cluster, TTL, node};
use crate::config::GATE_DEADLINE;
use drover_sim::runtime::Generator;
use drover_types::{Action, CommitPolicy, MigrationOptions, Phase};
use std::{rc::Rc, time::Duration};

fn options() -> MigrationOptions {
    MigrationOptions { retention_ms: 300, ..MigrationOptions::default() }
}

/// Either way it ended, the holder has everything and nothing is left over.
fn check_ended(cluster: &Cluster, id: &str) {
    let migration = cluster.wait_clean(id);
    let holder = match migration.phase {
        Phase::Committed => "b",
        Phase::RolledBack => "a",
        other => panic!("seed {}: it ended {other}", cluster.sim.seed()),
    };
    cluster.check_end(holder);
}

fn one_fault(cluster: &Rc<Cluster>, chance: &mut Generator) {
    let name = *chance.pick(&["a", "b"]);
    let other = if name == "a" { "b" } else { "a" };
    let sim = &cluster.sim;
    match chance.below(9) {
        0 => cluster.restart_node(name),
        1 => {
            cluster.kill_node(name);
            sim.run_for(Duration::from_millis(chance.between(10, 14_000)));
            cluster.start_node(name);
        }
        2 => cluster.restart_control(),
        3 => {
            cluster.kill_control();
            sim.run_for(Duration::from_millis(chance.between(10, 12_000)));
            cluster.start_control();
        }
        4 => {
            sim.partition("control", name);
            sim.run_for(Duration::from_millis(chance.between(10, 14_000)));
            sim.heal("control", name);
        }
        5 => sim.reset_connections("control", name),
        6 => {
            sim.pause(name);
            sim.run_for(Duration::from_millis(chance.between(10, 14_000)));
            sim.resume(name);
        }
        7 => {
            cluster.cut.set(true);
            sim.run_for(Duration::from_millis(chance.between(10, 3_000)));
            cluster.cut.set(false);
        }
        _ => {
            // Two at once.
            sim.reset_connections("control", other);
            cluster.restart_node(name);
        }
    }
}

/// longhorn#3206, longhorn#10157, longhorn#11755: a confirmation or rollback that was wedged. longhorn#7713,
/// longhorn#8669: stuck after a node died. Here whatever fails, it ends.
#[test]
fn random_faults_lose_nothing_and_stop_nothing() {
    let rounds = std::env::var("DROVER_SOAK").ok().and_then(|value| value.parse().ok()).unwrap_or(1);
    let (mut committed, mut rolled_back) = (0, 0);
    for seed in 0..400 * rounds {
        let cluster = Cluster::new(seed);
        let mut chance = cluster.generator("faults");
        cluster.start_client();
        cluster.sim.run_for(Duration::from_millis(chance.between(1, 2_000)));
        for name in ["a", "b"] {
            cluster.set_habits(name, |habits| habits.refuses_permille = chance.below(100));
        }
        let id = cluster.start("b", MigrationOptions { retention_ms: chance.below(3_000), ..options() });
        for _ in 0..chance.between(2, 8) {
            cluster.sim.run_for(Duration::from_millis(chance.between(1, 1_500)));
            one_fault(&cluster, &mut chance);
        }
        for name in ["a", "b"] {
            cluster.set_habits(name, |habits| habits.refuses_permille = 0);
        }
        check_ended(&cluster, &id);
        match cluster.migration(&id).phase {
            Phase::Committed => committed += 1,
            _ => rolled_back += 1,
        }
    }
    assert!(committed > 10 && rolled_back > 0, "{committed} committed, {rolled_back} rolled back");
}

/// The control plane is killed around each step that it stores, again and again until every step was hit.
#[test]
fn the_control_plane_dies_around_each_step() {
    let mut steps_hit = 0;
    for step in 1.. {
        let cluster = Cluster::new(step);
        cluster.start_client();
        cluster.sim.run_for(Duration::from_millis(500));
        let id = cluster.start("b", options());
        let mut chance = cluster.generator("moment");
        let events = || cluster.look(|control| control.events(0, 1_000, Some(&id)).len() as u64).unwrap_or(0);
        let mut hit = false;
        for _ in 0..40_000 {
            cluster.sim.run_for(Duration::from_micros(500));
            if events() >= step {
                hit = true;
                break;
            }
            if cluster.migration(&id).phase.is_final() {
                break;
            }
        }
        if !hit {
            break;
        }
        steps_hit += 1;
        cluster.sim.run_for(Duration::from_micros(chance.below(4_000)));
        cluster.kill_control();
        cluster.sim.run_for(Duration::from_millis(chance.below(12_000)));
        cluster.start_control();
        cluster.wait("the nodes to return", |control| control.is_ready());
        check_ended(&cluster, &id);
    }
    assert!(steps_hit >= 9, "{steps_hit}");
}

/// Each side is killed around each step, and returns or returns late.
#[test]
fn each_side_dies_around_each_step() {
    for (name, away_ms) in [("a", 50), ("a", 12_000), ("b", 50), ("b", 12_000)] {
        for step in 1..12 {
            let cluster = Cluster::new(step * 100 + away_ms);
            cluster.start_client();
            cluster.sim.run_for(Duration::from_millis(500));
            let id = cluster.start("b", options());
            let mut chance = cluster.generator("moment");
            for _ in 0..40_000 {
                cluster.sim.run_for(Duration::from_micros(500));
                let events = cluster.look(|control| control.events(0, 1_000, Some(&id)).len() as u64).unwrap_or(0);
                if events >= step || cluster.migration(&id).phase.is_final() {
                    break;
                }
            }
            cluster.sim.run_for(Duration::from_micros(chance.below(4_000)));
            cluster.kill_node(name);
            cluster.sim.run_for(Duration::from_millis(away_ms));
            cluster.start_node(name);
            check_ended(&cluster, &id);
        }
    }
}

fn settle(cluster: &Rc<Cluster>) -> String {
    cluster.start_client();
    cluster.sim.run_for(Duration::from_secs(1));
    let id = cluster.start("b", MigrationOptions { commit: CommitPolicy::Manual, ..options() });
    cluster.wait_phase(&id, &[Phase::Settling]);
    cluster.sim.run_for(Duration::from_secs(2));
    id
}

#[test]
fn the_source_takes_over_once_the_lease_has_run_out_and_not_before() {
    let cluster = Cluster::new(7);
    let id = settle(&cluster);
    cluster.kill_node("b");
    let died = cluster.sim.now();
    cluster.wait("the takeover", |control| control.show_lease("v").unwrap().holder == "a");
    let took = cluster.sim.now() - died;
    assert!(took >= TTL - Duration::from_secs(1) && took < TTL + Duration::from_secs(5), "{took:?}");
    cluster
        .wait("the source to serve", |control| control.show_migration(&id).unwrap().value.phase == Phase::RolledBack);
    let migration = cluster.migration(&id);
    assert_eq!(migration.cleanup_pending, ["b"]);
    let before = cluster.written.get();
    cluster.sim.run_for(Duration::from_secs(1));
    assert!(cluster.written.get() > before);
    // It returns with a copy that is no longer wanted, and thinks that it holds the lease.
    cluster.start_node("b");
    cluster.wait_clean(&id);
    cluster.check_end("a");
}

/// What a person is told of the migration, once it is.
fn told_of_a_lost_copy(cluster: &Cluster, id: &str) -> String {
    cluster.wait("the alarm", |control| control.show_migration(id).unwrap().value.error.is_some());
    cluster.sim.run_for(Duration::from_secs(10));
    let alarms = cluster.kinds().iter().filter(|kind| *kind == "migration.copy_lost").count();
    assert_eq!(alarms, 1, "it is told once");
    let error = cluster.migration(id).error.unwrap();
    assert!(error.message.contains("a has lost its copy of v"), "{error:?}");
    error.hint.unwrap()
}

/// The source came back without its disks, and then the destination died. The lease moved to the source, which had
/// nothing to adopt, and nobody ever served the volume again.
#[test]
fn a_source_that_lost_its_copy_does_not_take_over() {
    let cluster = Cluster::new(7);
    let id = settle(&cluster);
    cluster.kill_node("a");
    cluster.kill_node("b");
    cluster.disk(&node("a")).borrow_mut().clear();
    cluster.start_node("a");
    let hint = told_of_a_lost_copy(&cluster, &id);
    assert!(hint.contains("commit"), "{hint}");
    cluster.sim.run_for(TTL * 3);
    assert_eq!(cluster.look(|control| control.show_lease("v").unwrap().holder).unwrap(), "b");
    cluster.start_node("b");
    let before = cluster.written.get();
    cluster.wait("the destination to serve", |_| cluster.written.get() > before + 5);
    let of = id.clone();
    let asked = cluster.run(|control| async move { control.act(&of, Action::Commit, None, None).await });
    asked.unwrap();
    let migration = cluster.wait_clean(&id);
    assert_eq!((migration.phase, migration.error), (Phase::Committed, None));
    cluster.check_end("b");
}

/// The same where the source loses its disks after it has taken over and before it has heard of it: what was not adopted
/// counted as done, and the destination was told to drop the only copy.
#[test]
fn no_copy_is_dropped_before_the_new_holder_has_adopted_its_own() {
    let cluster = Cluster::new(7);
    let id = settle(&cluster);
    cluster.kill_node("b");
    cluster.sim.run_for(TTL - Duration::from_secs(2));
    cluster.kill_node("a");
    cluster.disk(&node("a")).borrow_mut().clear();
    cluster.wait("the takeover", |control| control.show_lease("v").unwrap().holder == "a");
    cluster.start_node("a");
    let hint = told_of_a_lost_copy(&cluster, &id);
    assert!(hint.contains("give a the disks"), "{hint}");
    cluster.start_node("b");
    cluster.sim.run_for(Duration::from_secs(60));
    assert_eq!(cluster.migration(&id).phase, Phase::RollingBack);
    let violations = cluster.checker.violations.borrow();
    assert!(violations.is_empty(), "{violations:#?}");
    assert!(cluster.disk(&node("b")).borrow().contains_key(&cluster.volume.get()), "the only copy was dropped");
}

/// longhorn#6642: two active engines.
#[test]
fn a_holder_that_was_stopped_finds_its_lease_gone() {
    for seed in 0..10 {
        let cluster = Cluster::new(seed);
        let id = settle(&cluster);
        cluster.sim.pause("b");
        cluster.sim.run_for(TTL + Duration::from_secs(4));
        cluster.sim.resume("b");
        cluster.wait_clean(&id);
        cluster.check_end("a");
        assert!(cluster.kinds().contains(&"migration.taken_over".to_owned()));
    }
}

/// Stopped after the lease moved and before it heard of it: the grant that waits unread must not start a lease.
#[test]
fn a_destination_stopped_between_the_lease_and_its_grant() {
    for seed in 0..20 {
        let cluster = Cluster::new(seed);
        cluster.start_client();
        cluster.sim.run_for(Duration::from_secs(1));
        let id = cluster.start("b", MigrationOptions { commit: CommitPolicy::Manual, ..options() });
        while cluster.look(|control| control.show_lease("v").unwrap().epoch) == Some(1) {
            cluster.sim.run_for(Duration::from_micros(100));
        }
        cluster.sim.pause("b");
        cluster.sim.run_for(TTL + Duration::from_secs(5));
        cluster.sim.resume("b");
        cluster.sim.run_for(Duration::from_secs(5));
        if !cluster.migration(&id).phase.is_final() {
            let of = id.clone();
            let rolled = cluster.run(|control| async move { control.act(&of, Action::Rollback, None, None).await });
            rolled.unwrap();
        }
        cluster.wait_clean(&id);
        cluster.check_end("a");
    }
}

#[test]
fn while_the_way_back_is_closed_nobody_takes_over() {
    let cluster = Cluster::new(3);
    let id = settle(&cluster);
    cluster.cut.set(true);
    cluster.wait("the way back to close", |control| {
        control.show_migration(&id).unwrap().value.way_back == drover_types::WayBack::Closed
    });
    let before = cluster.written.get();
    cluster.sim.run_for(Duration::from_secs(2));
    assert!(cluster.written.get() > before, "it goes on alone");
    let of = id.clone();
    let refused = cluster.run(|control| async move { control.act(&of, Action::Rollback, None, None).await });
    assert_eq!(refused.unwrap_err().code, drover_types::ErrorCode::WayBackClosed);
    cluster.kill_node("b");
    cluster.sim.run_for(TTL * 4);
    assert_eq!(cluster.look(|control| control.show_lease("v").unwrap().holder), Some("b".into()));
    cluster.start_node("b");
    cluster.cut.set(false);
    cluster.wait("the way back to open", |control| {
        control.show_migration(&id).unwrap().value.way_back == drover_types::WayBack::Open
    });
    let of = id.clone();
    cluster.run(|control| async move { control.act(&of, Action::Rollback, None, None).await }).unwrap();
    cluster.wait_phase(&id, &[Phase::RolledBack]);
    cluster.wait_clean(&id);
    cluster.check_end("a");
}

/// A migration to `b` that mirrors under load and waits there for a cutover that nobody asks for.
pub fn mirroring(seed: u64, peer_deadline_ms: u64) -> (Rc<Cluster>, String) {
    let cluster = Cluster::new(seed);
    cluster.start_client();
    cluster.sim.run_for(Duration::from_secs(1));
    let options = MigrationOptions { peer_deadline_ms, cutover: drover_types::Cutover::Manual, ..options() };
    let id = cluster.start("b", options);
    cluster.wait_phase(&id, &[Phase::Mirroring]);
    (cluster, id)
}

/// kubevirt#14367: cancelled by a timeout and retried for ever. Here the deadline is the user's, and the end is an end.
#[test]
fn a_destination_that_stays_away_ends_the_migration() {
    let (cluster, id) = mirroring(4, 20_000);
    cluster.kill_node("b");
    let migration = cluster.wait_phase(&id, &[Phase::RolledBack]);
    assert!(migration.error.unwrap().message.contains("away"));
    cluster.start_node("b");
    cluster.wait_clean(&id);
    cluster.check_end("a");
}

/// A control plane that stood still (stopped, its machine suspended) took its own absence for the nodes', and gave up
/// healthy migrations the moment it woke.
#[test]
fn a_standstill_of_the_control_plane_is_nobody_s_silence() {
    for seed in 0..10 {
        let (cluster, id) = mirroring(seed, 20_000);
        cluster.sim.pause("control");
        for _ in 0..600 {
            cluster.sim.run_for(Duration::from_millis(100));
            // That somebody looks makes no difference.
            assert_eq!(cluster.migration(&id).phase, Phase::Mirroring, "seed {seed}");
        }
        cluster.sim.resume("control");
        cluster.sim.run_for(Duration::from_secs(5));
        assert_eq!(cluster.migration(&id).phase, Phase::Mirroring, "seed {seed}");
        let of = id.clone();
        cluster.run(|control| async move { control.act(&of, Action::Cutover, None, None).await }).unwrap();
        cluster.wait_phase(&id, &[Phase::Committed]);
        cluster.wait_clean(&id);
        cluster.check_end("b");
    }
}

/// The same of a rollback whose way back is cut: it waits as long as the control plane lives through.
#[test]
fn a_rollback_does_not_wait_less_for_a_standstill() {
    for seed in 0..10 {
        let cluster = Cluster::new(seed);
        let id = settle(&cluster);
        let of = id.clone();
        cluster.sim.pause("a");
        cluster.run(|control| async move { control.act(&of, Action::Rollback, None, None).await }).unwrap();
        cluster.sim.run_for(Duration::from_secs(1));
        cluster.sim.pause("control");
        cluster.sim.resume("a");
        cluster.sim.run_for(Duration::from_secs(200));
        cluster.sim.resume("control");
        cluster.wait_phase(&id, &[Phase::RolledBack]);
        assert!(!cluster.kinds().contains(&"migration.rollback_given_up".to_owned()), "seed {seed}");
        cluster.wait_clean(&id);
        cluster.check_end("a");
    }
}

/// Whether a cutover that waits for the other side was refused once the control plane woke from a long standstill.
pub fn a_standstill_refuses_a_cutover(seed: u64) -> bool {
    let (cluster, id) = mirroring(seed, 600_000);
    for action in [Action::Pause, Action::Cutover] {
        let of = id.clone();
        cluster.run(|control| async move { control.act(&of, action, None, None).await }).unwrap();
    }
    cluster.sim.pause("control");
    cluster.sim.run_for(2 * GATE_DEADLINE);
    cluster.sim.resume("control");
    cluster.sim.run_for(Duration::from_secs(5));
    cluster.kinds().contains(&"migration.cutover_refused".to_owned())
}

/// The same of a cutover: it was dropped as late the moment the control plane woke.
#[test]
fn a_cutover_does_not_wait_less_for_a_standstill() {
    for seed in 0..10 {
        assert!(!a_standstill_refuses_a_cutover(seed), "seed {seed}");
    }
}

/// The destination had let its copy go, as told: that counted as both sides being gone, and the migration had failed,
/// though the source came back with all that it ever had.
#[test]
fn a_source_that_stays_away_during_a_rollback_has_rolled_back() {
    let (cluster, id) = mirroring(5, 5_000);
    cluster.kill_node("a");
    cluster.wait("the end", |control| control.show_migration(&id).unwrap().value.phase.is_final());
    assert_eq!(cluster.migration(&id).phase, Phase::RolledBack);
    assert_eq!(cluster.migration(&id).cleanup_pending, ["a"]);
    cluster.start_node("a");
    cluster.wait_clean(&id);
    cluster.check_end("a");
}

/// What an earlier migration left at a node that is away comes first; until then nothing of the next has begun, and that
/// is recorded when it is cancelled, also around a death of the control plane.
#[test]
fn a_move_waits_for_what_an_earlier_one_left() {
    for kills in [false, true] {
        let (cluster, earlier) = mirroring(9, 600_000);
        cluster.kill_node("b");
        let act = |id: &str, action| {
            let of = id.to_owned();
            cluster.run(|control| async move { control.act(&of, action, None, None).await }).map(|_| ())
        };
        act(&earlier, Action::Cancel).unwrap();
        cluster.wait_phase(&earlier, &[Phase::RolledBack]);
        assert_eq!(cluster.migration(&earlier).cleanup_pending, ["b"]);
        let id = cluster.start("b", options());
        cluster.sim.run_for(Duration::from_secs(5));
        let waiting = cluster.migration(&id);
        let told = Some("the clean-up of an earlier migration");
        assert_eq!((waiting.phase, waiting.waits_for.as_deref()), (Phase::Planned, told));
        if kills {
            cluster.restart_control();
        }
        act(&id, Action::Cancel).unwrap();
        if kills {
            cluster.restart_control();
        }
        cluster.wait_phase(&id, &[Phase::RolledBack]);
        cluster.start_node("b");
        cluster.wait_clean(&earlier);
        cluster.wait_clean(&id);
        cluster.check_end("a");
    }
}

/// The lease stayed timed though nobody but the source had everything: without a control plane its I/O stopped while
/// both sides were compared again.
#[test]
fn a_source_that_starts_over_needs_no_control_plane() {
    let (cluster, id) = mirroring(7, 600_000);
    cluster.cut.set(true);
    cluster.restart_node("a");
    cluster.wait("the start over", |control| control.show_migration(&id).unwrap().value.receipt.restarts > 0);
    cluster.sim.run_for(TTL / 2);
    cluster.kill_control();
    cluster.sim.run_for(2 * TTL);
    let before = cluster.written.get();
    cluster.sim.run_for(Duration::from_secs(1));
    assert!(cluster.written.get() > before, "clients stand still");
    cluster.cut.set(false);
    cluster.start_control();
    let of = id.clone();
    cluster.run(|control| async move { control.act(&of, Action::Cancel, None, None).await }).unwrap();
    check_ended(&cluster, &id);
}

/// Only where both are gone is it not known whether anything is left.
#[test]
fn where_both_sides_are_gone_it_failed() {
    let (cluster, id) = mirroring(6, 5_000);
    cluster.kill_node("a");
    cluster.kill_node("b");
    cluster.wait("the end", |control| control.show_migration(&id).unwrap().value.phase.is_final());
    assert_eq!(cluster.migration(&id).phase, Phase::Failed);
    cluster.start_node("a");
    cluster.start_node("b");
    cluster.wait_clean(&id);
    cluster.check_end("a");
}

#[test]
fn a_store_that_fails_is_read_again_before_anything_is_decided() {
    for (seed, applied) in [(0, true), (1, false), (2, true), (3, false)] {
        let cluster = Cluster::new(seed);
        cluster.start_client();
        let id = cluster.start("b", options());
        for _ in 0..6 {
            cluster.sim.run_for(Duration::from_millis(150));
            cluster.store.fail_next_commit(applied);
        }
        check_ended(&cluster, &id);
    }
}

/// The control plane reads no clock and no chance but the world's: one seed, one course.
#[test]
fn the_same_seed_takes_the_same_course() {
    let course = |seed| {
        let cluster = Cluster::new(seed);
        let mut chance = cluster.generator("faults");
        cluster.start_client();
        let id = cluster.start("b", options());
        for _ in 0..4 {
            cluster.sim.run_for(Duration::from_millis(chance.between(1, 800)));
            one_fault(&cluster, &mut chance);
        }
        check_ended(&cluster, &id);
        (cluster.sim.trace_digest(), cluster.kinds())
    };
    for seed in 0..5 {
        assert_eq!(course(seed), course(seed), "seed {seed}");
    }
    assert_ne!(course(1).0, course(2).0);
}
