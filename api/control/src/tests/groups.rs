//! Clones, and snapshots of several volumes: all have it, or none.

use super::cluster::{Cluster, node};
use crate::{Control, Once};
use drover_types::{
    ApiError, CloneVolume, CreateGroupSnapshot, CreateSnapshot, CreateVolume, ErrorCode, GroupSnapshot, StartMigration,
    Volume,
};
use std::{collections::BTreeMap, rc::Rc, time::Duration};

/// A volume `w` at b beside `v` at a.
fn two(seed: u64) -> Rc<Cluster> {
    let cluster = Cluster::new(seed);
    let request = CreateVolume { name: "w".into(), size_bytes: 1 << 20, node: "b".into(), tenant: None };
    cluster.run(|control| async move { control.create_volume(request, None).await }).unwrap();
    cluster
}

fn group(name: &str) -> CreateGroupSnapshot {
    CreateGroupSnapshot { name: name.into(), volumes: vec!["v".into(), "w".into()] }
}

async fn frozen(control: Rc<Control>, request: CreateGroupSnapshot) -> Result<GroupSnapshot, ApiError> {
    control.create_group_snapshot(request, None).await
}

fn at_nodes(cluster: &Rc<Cluster>) -> Vec<String> {
    let of = |name| {
        let disk = cluster.disk(&node(name));
        let names: Vec<String> = disk.borrow().values().flat_map(|seat| seat.snapshots.keys().cloned()).collect();
        names
    };
    [of("a"), of("b")].concat()
}

#[test]
fn a_group_is_frozen_on_all_nodes_once() {
    let cluster = two(1);
    let once = |key: &str| Some(Once { key: key.into(), fingerprint: "g".into() });
    for _ in 0..2 {
        let (request, once) = (group("g"), once("k"));
        let made = cluster.run(|control| async move { control.create_group_snapshot(request, once).await }).unwrap();
        assert_eq!(made.snapshots.iter().map(|snapshot| snapshot.name.as_str()).collect::<Vec<_>>(), ["g", "g"]);
    }
    assert_eq!(at_nodes(&cluster), ["g", "g"]);
    assert_eq!(cluster.kinds().iter().filter(|kind| *kind == "snapshot.created").count(), 2, "one for each volume");
    let bad = [
        (CreateGroupSnapshot { volumes: vec![], ..group("h") }, ErrorCode::InvalidField),
        (CreateGroupSnapshot { volumes: vec!["v".into(); 2], ..group("h") }, ErrorCode::InvalidField),
        (CreateGroupSnapshot { volumes: vec!["v".into(), "x".into()], ..group("h") }, ErrorCode::VolumeNotFound),
        (group("drover-h"), ErrorCode::InvalidField),
    ];
    for (request, code) in bad {
        assert_eq!(cluster.run(|control| frozen(control, request)).unwrap_err().code, code);
    }
    assert_eq!(at_nodes(&cluster), ["g", "g"]);
}

/// One of them has a snapshot of that name, does not answer in time, or is down.
#[test]
fn where_one_fails_none_has_the_snapshot() {
    let cluster = two(2);
    let request = CreateSnapshot { name: "g".into() };
    cluster.run(|control| async move { control.create_snapshot("w", request, None).await }).unwrap();
    let exists = cluster.run(|control| frozen(control, group("g")));
    assert_eq!(exists.unwrap_err().code, ErrorCode::SnapshotExists);
    assert_eq!(at_nodes(&cluster), ["g"], "what somebody had made is there");
    cluster.set_habits("b", |habits| habits.holds_take = Duration::from_secs(6));
    let late = cluster.run(|control| frozen(control, group("h")));
    assert_eq!(late.unwrap_err().code, ErrorCode::NodeFailed);
    cluster.set_habits("b", |habits| habits.holds_take = Duration::ZERO);
    cluster.kill_node("b");
    let down = cluster.run(|control| frozen(control, group("i")));
    assert!(matches!(down.unwrap_err().code, ErrorCode::NodeUnreachable | ErrorCode::OutcomeUnknown));
    assert_eq!(at_nodes(&cluster), ["g"]);
    // The other one need not wait until that is back.
    let request = CreateSnapshot { name: "j".into() };
    cluster.run(|control| async move { control.create_snapshot("v", request, None).await }).unwrap();
    cluster.start_node("b");
    cluster.sim.run_for(Duration::from_secs(30));
    cluster.run(|control| frozen(control, group("i"))).unwrap();
    assert_eq!(at_nodes(&cluster), ["i", "j", "g", "i"]);
}

/// Whatever some had got by then is taken back.
#[test]
fn a_group_that_was_under_way_is_undone_after_a_restart() {
    let mut ends: BTreeMap<usize, u64> = BTreeMap::new();
    for seed in 0..40 {
        let cluster = two(seed);
        let caller = cluster.clone();
        cluster.sim.process("caller").spawn(async move {
            drop(caller.command(|control| frozen(control, group("g"))).await);
        });
        cluster.sim.run_for(Duration::from_micros(100 + seed * 250));
        let before = at_nodes(&cluster).len();
        cluster.restart_control();
        cluster.sim.run_for(Duration::from_secs(30));
        let after = at_nodes(&cluster).len();
        assert!(after == 0 || after == 2 && before == 2, "seed {seed}: {before} before, {after} after");
        *ends.entry(after).or_default() += 1;
        cluster.run(|control| frozen(control, group("next"))).unwrap();
    }
    assert_eq!(ends.len(), 2, "some were undone, some were done: {ends:?}");
}

fn cloned(cluster: &Rc<Cluster>, snapshot: &str, name: &str) -> Result<Volume, ApiError> {
    let (snapshot, request) = (snapshot.to_owned(), CloneVolume { name: name.into() });
    let made = cluster.run(|control| async move { control.clone_volume("v", &snapshot, request, None).await });
    made.map(|volume| volume.value)
}

#[test]
fn a_clone_is_made_where_its_origin_is() {
    let cluster = two(3);
    assert_eq!(cloned(&cluster, "s", "copy").unwrap_err().code, ErrorCode::SnapshotNotFound);
    assert_eq!(cluster.look(|control| control.list_volumes(None).len()), Some(2), "nothing is left of it");
    let request = CreateSnapshot { name: "s".into() };
    cluster.run(|control| async move { control.create_snapshot("v", request, None).await }).unwrap();
    assert_eq!(cloned(&cluster, "s", "w").unwrap_err().code, ErrorCode::VolumeExists);
    assert_eq!(cloned(&cluster, "s", "No").unwrap_err().code, ErrorCode::InvalidField);
    let copy = cloned(&cluster, "s", "copy").unwrap();
    let origin = copy.origin.unwrap();
    assert_eq!((copy.holder.as_str(), copy.size_bytes), ("a", 1 << 30));
    assert_eq!((origin.volume_name.as_str(), origin.snapshot.as_str()), ("v", "s"));
    let kin = |id: &str| id.parse::<drover_base::VolumeId>().unwrap();
    assert!(kin(&copy.id).is_kin_of(cluster.volume.get()) && kin(&copy.id) != cluster.volume.get());
}

/// The volume that a clone is being made of neither moves nor goes; the clone is made also after a restart.
#[test]
fn an_origin_stays_until_its_clone_is_made() {
    let cluster = two(4);
    let request = CreateSnapshot { name: "s".into() };
    cluster.run(|control| async move { control.create_snapshot("v", request, None).await }).unwrap();
    cluster.kill_node("a");
    let caller = cluster.clone();
    cluster.sim.process("caller").spawn(async move {
        let request = CloneVolume { name: "copy".into() };
        drop(caller.command(|control| async move { control.clone_volume("v", "s", request, None).await }).await);
    });
    cluster.sim.run_for(Duration::from_millis(200));
    let start = StartMigration { volume: "v".into(), destination: "b".into(), options: Default::default() };
    let moved = cluster.run(|control| async move { control.start_migration(start, None).await });
    assert_eq!(moved.unwrap_err().code, ErrorCode::VolumeBusy);
    let deleted = cluster.run(|control| async move { control.delete_volume("v", None).await });
    assert_eq!(deleted.unwrap_err().code, ErrorCode::VolumeBusy);
    cluster.restart_control();
    cluster.start_node("a");
    cluster.wait("the clone", |control| {
        control.show_volume("copy").is_ok_and(|copy| copy.value.state == drover_types::VolumeState::Ready)
    });
    assert_eq!(cluster.disk(&node("a")).borrow().len(), 2);
}
