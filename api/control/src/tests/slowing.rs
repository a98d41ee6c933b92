//! Clients that are slowed to the link while their volume migrates: told once when it begins and once when it ends.

use super::cluster::Cluster;
use drover_types::{Action, CommitPolicy, Cutover, Event, MigrationOptions, Phase, Severity};
use std::{rc::Rc, time::Duration};

/// A migration that mirrors and waits to be told to flip.
fn mirroring() -> (Rc<Cluster>, String) {
    let cluster = Cluster::new(1);
    cluster.start_client();
    cluster.sim.run_for(Duration::from_secs(1));
    let steered =
        MigrationOptions { cutover: Cutover::Manual, commit: CommitPolicy::Manual, ..MigrationOptions::default() };
    let id = cluster.start("b", steered);
    cluster.wait("to be told", |control| {
        let migration = control.show_migration(&id).unwrap().value;
        migration.phase == Phase::Mirroring && migration.waits_for.as_deref() == Some("the cutover")
    });
    (cluster, id)
}

fn slows(cluster: &Cluster, slows: bool) {
    for node in ["a", "b"] {
        cluster.set_habits(node, |habits| habits.slows = slows);
    }
}

fn act(cluster: &Cluster, id: &str, action: Action) {
    let of = id.to_owned();
    cluster.run(|control| async move { control.act(&of, action, None, None).await }).unwrap();
}

/// What the log tells of it, oldest first.
fn told(cluster: &Cluster, id: &str) -> Vec<Event> {
    let mut events = cluster.look(|control| control.events(0, 10_000, Some(id))).unwrap();
    events.retain(|event| event.kind.starts_with("migration.writers_"));
    events
}

fn kinds(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.kind.trim_start_matches("migration.writers_")).collect()
}

#[test]
fn a_spell_is_told_once_through_restarts_and_flips() {
    let (cluster, id) = mirroring();
    cluster.sim.run_for(Duration::from_secs(20));
    assert!(told(&cluster, &id).is_empty(), "writers as fast as before are not slowed");
    assert_eq!(cluster.migration(&id).slowed, None);

    let before_ms = cluster.look(|control| control.world().clock.wall_ms()).unwrap();
    slows(&cluster, true);
    cluster.sim.run_for(Duration::from_secs(20));
    let events = told(&cluster, &id);
    assert_eq!((kinds(&events), events[0].severity), (vec!["slowed"], Severity::Warning));
    assert!(events[0].text.contains("1000 B/s, before it was 2.0 KiB/s"), "{}", events[0].text);
    let slowed = cluster.migration(&id).slowed.unwrap();
    assert_eq!((slowed.since_ms, slowed.free_bytes_per_s, slowed.bytes_per_s), (events[0].at_ms, 2000, 1000));
    assert!((2_000..4_000).contains(&(slowed.since_ms - before_ms)), "{slowed:?}, from {before_ms}");

    // Another life of the control plane, and the flip: it is the same spell.
    cluster.restart_control();
    cluster.sim.run_for(Duration::from_secs(20));
    act(&cluster, &id, Action::Cutover);
    cluster.wait("the way back", |control| {
        let migration = control.show_migration(&id).unwrap().value;
        migration.phase == Phase::Settling && migration.way_back == drover_types::WayBack::Open
    });
    cluster.sim.run_for(Duration::from_secs(20));
    assert_eq!(kinds(&told(&cluster, &id)), ["slowed"]);
    assert_eq!(cluster.migration(&id).slowed.map(|now| now.since_ms), Some(slowed.since_ms));

    slows(&cluster, false);
    cluster.sim.run_for(Duration::from_secs(20));
    let events = told(&cluster, &id);
    assert_eq!((kinds(&events), cluster.migration(&id).slowed), (vec!["slowed", "freed"], None));
    let lasted_ms = events[1].at_ms - events[0].at_ms;
    assert_eq!(cluster.migration(&id).receipt.slowed_ms, lasted_ms);

    // A second spell lasts until the end.
    slows(&cluster, true);
    cluster.sim.run_for(Duration::from_secs(20));
    act(&cluster, &id, Action::Commit);
    let migration = cluster.wait_phase(&id, &[Phase::Committed]);
    let events = told(&cluster, &id);
    assert_eq!(kinds(&events), ["slowed", "freed", "slowed", "freed"]);
    assert!(events[3].text.contains("the migration is over"), "{}", events[3].text);
    assert!(migration.slowed.is_none() && migration.receipt.slowed_ms > lasted_ms, "{:?}", migration.receipt);
    cluster.wait_clean(&id);
    cluster.check_end("b");
}

#[test]
fn a_moment_is_no_spell_and_ends_none() {
    let (cluster, id) = mirroring();
    for _ in 0..10 {
        slows(&cluster, true);
        cluster.sim.run_for(Duration::from_millis(1_000));
        slows(&cluster, false);
        cluster.sim.run_for(Duration::from_millis(1_000));
    }
    assert!(told(&cluster, &id).is_empty());
    slows(&cluster, true);
    cluster.sim.run_for(Duration::from_secs(5));
    for _ in 0..10 {
        slows(&cluster, false);
        cluster.sim.run_for(Duration::from_millis(1_000));
        slows(&cluster, true);
        cluster.sim.run_for(Duration::from_millis(1_000));
    }
    assert_eq!(kinds(&told(&cluster, &id)), ["slowed"]);
    // Given up, it slows nobody.
    act(&cluster, &id, Action::Cancel);
    cluster.wait_phase(&id, &[Phase::RolledBack]);
    assert_eq!(kinds(&told(&cluster, &id)), ["slowed", "freed"]);
    cluster.wait_clean(&id);
    cluster.check_end("a");
}
