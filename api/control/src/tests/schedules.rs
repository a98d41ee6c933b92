//! Snapshots by the clock, in simulated time.

use super::cluster::{Cluster, node};
use drover_types::{CreateSnapshot, Cutover, ErrorCode, Keep, MigrationOptions, Schedule};
use std::{collections::BTreeSet, rc::Rc, time::Duration};

const MINUTE: u64 = 60;

fn every_minute(keep: &[(u64, u64)]) -> Schedule {
    let keep = keep.iter().map(|(every_s, count)| Keep { every_s: *every_s, count: *count }).collect();
    Schedule { every_s: MINUTE, at_s: 0, keep }
}

fn set(cluster: &Rc<Cluster>, schedule: Schedule) -> Result<(), ErrorCode> {
    let set = cluster.run(|control| async move { control.set_schedule("v", schedule).await });
    set.map(drop).map_err(|error| error.code)
}

fn at_node(cluster: &Rc<Cluster>, name: &str) -> BTreeSet<String> {
    let disk = cluster.disk(&node(name));
    disk.borrow().values().flat_map(|seat| seat.snapshots.keys().cloned()).collect()
}

fn run(cluster: &Rc<Cluster>, minutes: u64) {
    cluster.sim.run_for(Duration::from_secs(minutes * MINUTE));
}

fn count(cluster: &Rc<Cluster>, kind: &str) -> usize {
    cluster.kinds().iter().filter(|known| *known == kind).count()
}

#[test]
fn a_schedule_takes_and_prunes_what_it_took_itself() {
    let cluster = Cluster::new(1);
    let mine = CreateSnapshot { name: "auto-mine".into() };
    cluster.run(|control| async move { control.create_snapshot("v", mine, None).await }).unwrap();
    set(&cluster, every_minute(&[(MINUTE, 3), (10 * MINUTE, 2)])).unwrap();
    assert_eq!(at_node(&cluster, "a").len(), 1, "the first is due at the next moment");
    run(&cluster, 2);
    assert_eq!(at_node(&cluster, "a").len(), 1 + 2);
    run(&cluster, 60);
    let names = at_node(&cluster, "a");
    // The newest three, and the newest of the ten minutes before, where the newest of these is one of the three.
    assert!(names.contains("auto-mine") && (1 + 3..=1 + 4).contains(&names.len()), "{names:?}");
    assert!((60..=62).contains(&(count(&cluster, "snapshot.created") - 1)), "one a minute");
    let shown = cluster.look(|control| control.show_schedule("v").unwrap()).unwrap();
    let made: BTreeSet<String> = shown.made.into_iter().collect();
    assert!(made.iter().all(|name| name.starts_with("auto-20") && names.contains(name)), "{made:?}");
    cluster.run(|control| async move { control.delete_schedule("v").await }).unwrap();
    run(&cluster, 5);
    assert_eq!(at_node(&cluster, "a"), names, "what it took stays");
    let gone = cluster.look(|control| control.show_schedule("v").unwrap_err().code).unwrap();
    assert_eq!(gone, ErrorCode::ScheduleNotFound);
}

/// Neither a second one of the same moment, nor one for each moment that passed.
#[test]
fn restarts_take_none_twice_and_make_up_for_none() {
    for seed in 0..6 {
        let cluster = Cluster::new(seed);
        set(&cluster, every_minute(&[(MINUTE, 100)])).unwrap();
        // The answers come late: many a restart falls between asking and hearing.
        cluster.set_habits("a", |habits| habits.snapshots_take = Duration::from_secs(7));
        for _ in 0..10 {
            cluster.sim.run_for(Duration::from_secs(31));
            cluster.restart_control();
        }
        let names = at_node(&cluster, "a").len();
        assert!((4..=6).contains(&names), "seed {seed}: {names} in 310 s");
        cluster.set_habits("a", |habits| habits.snapshots_take = Duration::ZERO);
        cluster.sim.run_for(Duration::from_secs(90));
        let (before, taken) = (at_node(&cluster, "a").len(), count(&cluster, "snapshot.created"));
        assert_eq!(before, taken, "each is told once");
        cluster.kill_control();
        run(&cluster, 60);
        cluster.start_control();
        cluster.sim.run_for(Duration::from_secs(20));
        let after = at_node(&cluster, "a").len();
        assert!((before + 1..=before + 2).contains(&after), "seed {seed}: {before}, then {after} after an hour");
    }
}

#[test]
fn moments_pass_while_the_volume_migrates() {
    let cluster = Cluster::new(3);
    set(&cluster, every_minute(&[(MINUTE, 100)])).unwrap();
    run(&cluster, 2);
    let before = at_node(&cluster, "a");
    let options = MigrationOptions { cutover: Cutover::Manual, ..MigrationOptions::default() };
    let id = cluster.start("b", options);
    run(&cluster, 3);
    let names: BTreeSet<String> = at_node(&cluster, "a").into_iter().filter(|name| name.starts_with("auto-")).collect();
    assert_eq!(names, before);
    assert!((2..=4).contains(&count(&cluster, "schedule.skipped")));
    cluster.run(|control| async move {
        control.act(&id, drover_types::Action::Cancel, None, None).await.map(drop).unwrap();
    });
    run(&cluster, 3);
    assert!(at_node(&cluster, "a").len() > before.len());
}

#[test]
fn a_schedule_is_wholly_checked_and_goes_with_its_volume() {
    let cluster = Cluster::new(4);
    let good = every_minute(&[(MINUTE, 1)]);
    let bad = [
        Schedule { every_s: 59, ..good.clone() },
        Schedule { at_s: MINUTE, ..good.clone() },
        every_minute(&[]),
        every_minute(&[(MINUTE, 0)]),
        every_minute(&[(30, 1)]),
        every_minute(&[(MINUTE, u64::MAX), (MINUTE, u64::MAX)]),
    ];
    for schedule in bad {
        assert_eq!(set(&cluster, schedule.clone()), Err(ErrorCode::InvalidField), "{schedule:?}");
    }
    set(&cluster, good).unwrap();
    cluster.run(|control| async move { control.delete_volume("v", None).await }).unwrap();
    assert_eq!(cluster.look(|control| control.ledger.state().schedules.len()), Some(0));
}
