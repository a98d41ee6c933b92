//! Migrations that go as planned, and those that people or gates stop.

use super::cluster::Cluster;
use crate::Control;
use crate::config::GATE_DEADLINE;
use drover_types::{
    Action, CommitPolicy, CreateSnapshot, Cutover, ErrorCode, MigrationOptions, Phase, PlanRequest, TuneMigration,
    WayBack,
};
use std::{rc::Rc, time::Duration};

fn cluster() -> Rc<Cluster> {
    let cluster = Cluster::new(1);
    cluster.start_client();
    cluster.sim.run_for(Duration::from_secs(1));
    cluster
}

fn options() -> MigrationOptions {
    MigrationOptions { retention_ms: 300, ..MigrationOptions::default() }
}

fn act(cluster: &Cluster, id: &str, action: Action) -> Result<Phase, ErrorCode> {
    let id = id.to_owned();
    let done = cluster.run(|control| async move { control.act(&id, action, None, None).await });
    done.map(|tagged| tagged.value.phase).map_err(|error| error.code)
}

pub fn take_snapshot(cluster: &Cluster) {
    let request = CreateSnapshot { name: "kept".into() };
    cluster.run(|control| async move { control.create_snapshot("v", request, None).await }).unwrap();
}

/// Snapshots go where their volume goes: no warning, nobody is asked, and the receipt tells of them.
#[test]
fn snapshots_move_with_their_volume() {
    let cluster = cluster();
    take_snapshot(&cluster);
    let request =
        PlanRequest { volume: "v".into(), destination: "b".into(), options: options(), link_bytes_per_s: None };
    let plan = cluster.run(|control| async move { control.plan_migration(&request).await }).unwrap();
    assert_eq!((plan.snapshots, plan.warnings.iter().any(|warning| warning.code.contains("snapshot"))), (1, false));
    let id = cluster.start("b", MigrationOptions { commit: CommitPolicy::Auto, ..options() });
    let migration = cluster.wait_phase(&id, &[Phase::Committed]);
    assert_eq!(migration.receipt.snapshots, 1);
    cluster.wait_clean(&id);
    cluster.check_end("b");
}

/// incus#3487, drafter#63, silo#73: a second migration in a row failed or resumed stale data.
#[test]
fn there_and_back_and_there_again() {
    let cluster = cluster();
    for (destination, source) in [("b", "a"), ("a", "b"), ("b", "a")] {
        let id = cluster.start(destination, options());
        let migration = cluster.wait_phase(&id, &[Phase::Committed]);
        assert_eq!((migration.source.as_str(), migration.permille, migration.bytes_left), (source, 1000, 0));
        let receipt = &migration.receipt;
        assert!(receipt.flip_ms.is_some() && receipt.commit_ms >= receipt.flip_ms && receipt.flips == 1, "{receipt:?}");
        assert!(receipt.pause_ms_max < 100 && receipt.wire_bytes > 0 && receipt.wire_bytes < receipt.logical_bytes);
        assert_eq!(receipt.proof.as_ref().unwrap().regions_different, 0);
        // Without waiting for the clean-up: the next one waits for it by itself.
    }
    cluster.sim.run_for(Duration::from_secs(5));
    cluster.check_end("b");
    let map = cluster.look(|control| control.data_map()).unwrap();
    assert_eq!((map.places[0].holder.as_str(), map.places[0].epoch, map.places[0].copy.as_deref()), ("b", 4, None));
}

/// cloudstack#9779, harvester#8285, kubevirt#17544, longhorn#12949: progress that was false, absent, or over 100 %. Here
/// it never falls, ends at the whole, and every step is told in its order, with its reason.
#[test]
fn phases_come_in_order_and_progress_never_falls() {
    let cluster = cluster();
    let id = cluster.start("b", options());
    let (mut permille, mut done, mut phases) = (0, 0, Vec::new());
    for _ in 0..3000 {
        let migration = cluster.migration(&id);
        assert!(migration.permille >= permille && migration.permille <= 1000);
        assert!(migration.bytes_done >= done && migration.bytes_done <= migration.bytes_total);
        (permille, done) = (migration.permille, migration.bytes_done);
        if phases.last() != Some(&migration.phase) {
            phases.push(migration.phase);
        }
        if migration.phase.is_final() {
            break;
        }
        cluster.sim.run_for(Duration::from_millis(5));
    }
    assert!(phases.is_sorted() && phases.last() == Some(&Phase::Committed), "{phases:?}");
    let events = cluster.look(|control| control.events(0, 1000, Some(&id))).unwrap();
    let kinds: Vec<&str> = events.iter().map(|event| event.kind.trim_start_matches("migration.")).collect();
    let main =
        ["planned", "tracking", "copying", "mirroring", "flipping", "settling", "flipped", "proven", "committed"];
    let told: Vec<&str> = kinds.iter().copied().filter(|kind| main.contains(kind)).collect();
    assert_eq!(told, main);
    assert!(events.is_sorted_by_key(|event| event.id) && events.iter().all(|event| !event.text.is_empty()));
}

/// ceph/ceph#36471: data was lost on abort. Here an abort leaves the source as if nothing had been, in each phase.
#[test]
fn cancelled_in_each_phase_before_the_flip() {
    for phase in [Phase::Tracking, Phase::Copying, Phase::Converging, Phase::Mirroring, Phase::Flipping] {
        let cluster = cluster();
        if phase == Phase::Flipping {
            cluster.set_habits("a", |habits| habits.drain = Duration::from_millis(600));
        }
        let id = cluster.start("b", MigrationOptions { cutover: Cutover::Manual, ..options() });
        if phase == Phase::Flipping {
            cluster.wait_phase(&id, &[Phase::Mirroring]);
            act(&cluster, &id, Action::Cutover).unwrap();
        }
        cluster.wait(&phase.to_string(), |control| control.show_migration(&id).unwrap().value.phase >= phase);
        assert_eq!(act(&cluster, &id, Action::Cancel), Ok(Phase::RollingBack), "{phase}");
        let migration = cluster.wait_phase(&id, &[Phase::RolledBack]);
        assert!(migration.receipt.rolled_back && migration.error.is_none());
        cluster.wait_clean(&id);
        cluster.check_end("a");
        assert_eq!(act(&cluster, &id, Action::Cancel), Err(ErrorCode::PhaseConflict));
    }
}

#[test]
fn rolled_back_after_the_flip_with_all_that_was_written_since() {
    let cluster = cluster();
    let id = cluster.start("b", MigrationOptions { commit: CommitPolicy::Manual, ..options() });
    let migration = cluster.wait_phase(&id, &[Phase::Settling]);
    assert_eq!(migration.way_back, WayBack::Open);
    assert_eq!(act(&cluster, &id, Action::Cancel), Err(ErrorCode::PhaseConflict));
    cluster.sim.run_for(Duration::from_secs(20));
    assert_eq!(cluster.migration(&id).waits_for.as_deref(), Some("the commit"));
    let before = cluster.written.get();
    act(&cluster, &id, Action::Rollback).unwrap();
    let migration = cluster.wait_phase(&id, &[Phase::RolledBack]);
    assert_eq!((migration.receipt.flips, migration.receipt.rolled_back), (2, true));
    assert!(cluster.written.get() >= before);
    cluster.wait_clean(&id);
    cluster.check_end("a");
    assert_eq!(cluster.look(|control| control.show_lease("v").unwrap().epoch), Some(3));
    let id = cluster.start("b", options());
    cluster.wait_phase(&id, &[Phase::Committed]);
    cluster.wait_clean(&id);
    cluster.check_end("b");
}

#[test]
fn what_is_over_takes_no_more_orders_and_says_so() {
    let cluster = cluster();
    let id = cluster.start("b", MigrationOptions { commit: CommitPolicy::Manual, ..options() });
    cluster.wait_phase(&id, &[Phase::Settling]);
    cluster.sim.run_for(Duration::from_secs(20));
    act(&cluster, &id, Action::Pause).unwrap();
    act(&cluster, &id, Action::Commit).unwrap();
    let migration = cluster.wait_phase(&id, &[Phase::Committed]);
    assert!(!migration.paused && migration.actions.is_empty(), "{migration:?}");
    use Action::{Cancel, Commit, Cutover, Pause, Resume, Rollback};
    for action in [Pause, Resume, Cutover, Cancel, Rollback, Commit] {
        let of = id.clone();
        let answer = cluster.run(|control| async move { control.act(&of, action, None, None).await });
        let error = answer.unwrap_err();
        assert!(error.code == ErrorCode::PhaseConflict && error.message.ends_with("it is over"), "{action:?}: {error}");
    }
}

#[test]
fn the_cutover_waits_for_a_word_or_its_window() {
    let cluster = cluster();
    let id = cluster.start("b", MigrationOptions { cutover: Cutover::Manual, ..options() });
    cluster.wait_phase(&id, &[Phase::Mirroring]);
    cluster.sim.run_for(Duration::from_secs(30));
    let migration = cluster.migration(&id);
    assert_eq!((migration.phase, migration.waits_for.as_deref()), (Phase::Mirroring, Some("the cutover")));
    act(&cluster, &id, Action::Cutover).unwrap();
    cluster.wait_phase(&id, &[Phase::Committed]);

    let wall_ms = cluster.run(|control| async move { control.world().clock.wall_ms() });
    let minutes = wall_ms / 60_000 + 3;
    let clock = |minutes: u64| format!("{:02}:{:02}", minutes / 60 % 24, minutes % 60);
    let window = format!("{}-{}", clock(minutes), clock(minutes + 60)).parse().unwrap();
    let id = cluster.start("a", MigrationOptions { cutover: Cutover::Window, window: Some(window), ..options() });
    cluster.wait_phase(&id, &[Phase::Mirroring]);
    cluster.sim.run_for(Duration::from_secs(30));
    assert_eq!(cluster.migration(&id).waits_for, Some(format!("its window, {window} UTC")));
    cluster.wait_phase(&id, &[Phase::Settling]);
    let now = cluster.run(|control| async move { control.world().clock.wall_ms() });
    assert!(now / 60_000 >= minutes && now < minutes * 60_000 + 10_000, "flipped when the window opened");
    cluster.wait_clean(&id);
    cluster.check_end("a");
}

/// propolis#230: after a failed migration nothing could be activated without a new generation. Here the holder goes on
/// under the epoch it has, and the flip is tried again.
#[test]
fn a_flip_that_would_take_too_long_is_given_up_and_tried_again() {
    let cluster = cluster();
    cluster.set_habits("a", |habits| habits.drain = Duration::from_secs(3));
    let id = cluster.start("b", MigrationOptions { pause_ms_max: 200, ..options() });
    cluster.wait("given up twice", |control| control.show_migration(&id).unwrap().value.receipt.flips_given_up >= 2);
    assert!(cluster.kinds().contains(&"migration.flip_given_up".to_owned()));
    let before = cluster.written.get();
    cluster.sim.run_for(Duration::from_secs(1));
    assert!(cluster.written.get() > before, "the holder goes on in between");
    cluster.set_habits("a", |habits| habits.drain = Duration::ZERO);
    let migration = cluster.wait_phase(&id, &[Phase::Committed]);
    assert!(migration.receipt.flips == 1 && migration.receipt.pause_ms_max < 250);
    cluster.wait_clean(&id);
    cluster.check_end("b");
}

/// A cutover that was asked for during the copy was dropped as late when the copy took longer than its deadline.
#[test]
fn a_cutover_that_is_asked_for_early_waits_for_the_copy() {
    let cluster = cluster();
    let id = cluster.start("b", MigrationOptions { cutover: Cutover::Manual, ..options() });
    act(&cluster, &id, Action::Pause).unwrap();
    act(&cluster, &id, Action::Cutover).unwrap();
    cluster.sim.run_for(2 * GATE_DEADLINE);
    assert!(cluster.migration(&id).phase < Phase::Mirroring, "{}", cluster.migration(&id).phase);
    act(&cluster, &id, Action::Resume).unwrap();
    cluster.wait_phase(&id, &[Phase::Committed]);
    assert!(!cluster.kinds().contains(&"migration.cutover_refused".to_owned()));
}

#[test]
fn a_cutover_that_cannot_be_is_refused_after_its_deadline() {
    let cluster = cluster();
    let id = cluster.start("b", MigrationOptions { cutover: Cutover::Manual, ..options() });
    cluster.wait_phase(&id, &[Phase::Mirroring]);
    act(&cluster, &id, Action::Pause).unwrap();
    act(&cluster, &id, Action::Cutover).unwrap();
    cluster.sim.run_for(GATE_DEADLINE - Duration::from_secs(10));
    assert!(!cluster.kinds().contains(&"migration.cutover_refused".to_owned()));
    cluster.sim.run_for(Duration::from_secs(20));
    assert!(cluster.kinds().contains(&"migration.cutover_refused".to_owned()));
    act(&cluster, &id, Action::Resume).unwrap();
    cluster.sim.run_for(Duration::from_secs(30));
    let migration = cluster.migration(&id);
    assert_eq!((migration.receipt.flips, migration.waits_for.as_deref()), (0, Some("the cutover")));
    act(&cluster, &id, Action::Cutover).unwrap();
    cluster.wait_phase(&id, &[Phase::Committed]);
}

#[test]
fn paused_and_tuned_while_it_runs() {
    let cluster = cluster();
    let id = cluster.start("b", MigrationOptions { cutover: Cutover::Manual, ..options() });
    cluster.wait_phase(&id, &[Phase::Copying, Phase::Converging, Phase::Mirroring]);
    act(&cluster, &id, Action::Pause).unwrap();
    act(&cluster, &id, Action::Cutover).unwrap();
    cluster.sim.run_for(Duration::from_secs(20));
    let migration = cluster.migration(&id);
    assert!(migration.paused && !migration.phase.is_final() && migration.receipt.flips == 0);
    assert!(migration.actions.contains(&Action::Resume) && !migration.actions.contains(&Action::Pause));
    let tune = TuneMigration { throttle_bytes_per_s: Some(1 << 20), ..TuneMigration::default() };
    let (tuned, of) = (tune.clone(), id.clone());
    let tagged = cluster.run(|control| async move { control.tune_migration(&of, &tuned, None).await }).unwrap();
    assert_eq!(tagged.value.options.throttle_bytes_per_s, Some(1 << 20));
    let of = id.clone();
    let stale =
        cluster.run(|control| async move { control.tune_migration(&of, &tune, Some(tagged.version - 1)).await });
    assert_eq!(stale.unwrap_err().code, ErrorCode::PreconditionFailed);
    act(&cluster, &id, Action::Resume).unwrap();
    cluster.wait_phase(&id, &[Phase::Committed]);
    cluster.wait_clean(&id);
    cluster.check_end("b");
}

/// Each was applied to the options that it had read before the other was stored, and the later one undid the earlier.
#[test]
fn two_who_tune_at_once_both_have_their_way() {
    let cluster = cluster();
    let id = cluster.start("b", MigrationOptions { cutover: Cutover::Manual, ..options() });
    let throttle = TuneMigration { throttle_bytes_per_s: Some(1 << 20), ..TuneMigration::default() };
    let pause = TuneMigration { pause_ms_max: Some(77), ..TuneMigration::default() };
    let both = |control: Rc<Control>| async move {
        futures::join!(control.tune_migration(&id, &throttle, None), control.tune_migration(&id, &pause, None))
    };
    let (first, second) = cluster.run(both);
    first.unwrap();
    let options = second.unwrap().value.options;
    assert_eq!((options.throttle_bytes_per_s, options.pause_ms_max), (Some(1 << 20), 77));
}

/// project-pegaprox#561: success was reported and the disk dropped. drbd#107: a corrupt destination.
#[test]
fn a_damaged_copy_is_never_committed() {
    let cluster = cluster();
    cluster.set_habits("b", |habits| habits.rots = true);
    let id = cluster.start("b", options());
    cluster.wait("the proof to fail", |control| control.show_migration(&id).unwrap().value.error.is_some());
    cluster.sim.run_for(Duration::from_secs(60));
    let migration = cluster.migration(&id);
    assert_eq!((migration.phase, migration.receipt.proof.unwrap().regions_different), (Phase::Settling, 1));
    assert_eq!(act(&cluster, &id, Action::Commit), Ok(Phase::Settling));
    cluster.sim.run_for(Duration::from_secs(10));
    assert!(cluster.migration(&id).error.is_some(), "asked again, it failed again");
    act(&cluster, &id, Action::Rollback).unwrap();
    cluster.wait_phase(&id, &[Phase::RolledBack]);
    cluster.wait_clean(&id);
    cluster.check_end("a");
}

/// Every byte is equal, but the destination stores what the source does not: thin has become thick.
#[test]
fn a_copy_that_is_thicker_is_not_committed() {
    let cluster = cluster();
    cluster.set_habits("b", |habits| habits.thickens = true);
    let id = cluster.start("b", options());
    cluster.wait("the proof to fail", |control| control.show_migration(&id).unwrap().value.error.is_some());
    cluster.sim.run_for(Duration::from_secs(60));
    let migration = cluster.migration(&id);
    let proof = migration.receipt.proof.unwrap();
    assert_eq!((migration.phase, proof.regions_different, proof.regions_thicker), (Phase::Settling, 0, 1));
    cluster.set_habits("b", |habits| habits.thickens = false);
    assert_eq!(act(&cluster, &id, Action::Commit), Ok(Phase::Settling));
    cluster.wait_phase(&id, &[Phase::Committed]);
    cluster.wait_clean(&id);
    cluster.check_end("b");
}

#[test]
fn what_does_not_fit_is_not_begun() {
    let cluster = cluster();
    cluster.set_habits("b", |habits| habits.free_bytes = 100);
    cluster.sim.run_for(Duration::from_secs(5));
    assert_eq!(cluster.try_start("b", options()).unwrap_err().code, ErrorCode::NoSpace);
    // The report is older than what happened since: the destination itself refuses.
    cluster.set_habits("b", |habits| habits.free_bytes = 1 << 30);
    cluster.sim.run_for(Duration::from_secs(5));
    let id = {
        let id = cluster.start("b", options());
        cluster.set_habits("b", |habits| habits.free_bytes = 100);
        id
    };
    let migration = cluster.wait_phase(&id, &[Phase::RolledBack]);
    assert_eq!(migration.error.unwrap().code, ErrorCode::NoSpace);
    cluster.wait_clean(&id);
    cluster.check_end("a");
}

#[test]
fn one_at_a_time_and_not_to_itself() {
    let cluster = cluster();
    assert_eq!(cluster.try_start("a", options()).unwrap_err().code, ErrorCode::SameNode);
    assert_eq!(cluster.try_start("z", options()).unwrap_err().code, ErrorCode::NodeNotFound);
    let id = cluster.start("b", MigrationOptions { cutover: Cutover::Manual, ..options() });
    assert_eq!(cluster.try_start("b", options()).unwrap_err().code, ErrorCode::VolumeMigrating);
    act(&cluster, &id, Action::Cancel).unwrap();
    cluster.wait_clean(&id);
}
