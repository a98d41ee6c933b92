//! What people ask beside migrations.

use super::cluster::{Cluster, node};
use super::fake_node::WRITE_BYTES;
use crate::config::{LONG_WORK_DEADLINE, STATUS_EVERY};
use crate::{Control, Once};
use drover_types::{
    ApiError, CreateExport, CreateSnapshot, CreateVolume, Cutover, ErrorCode, Health, Merge, MigrationOptions,
    PlanRequest, StartMigration, Volume, VolumeState,
};
use drover_wire::admin::MergeStatus;
use std::{rc::Rc, time::Duration};

fn create(name: &str) -> CreateVolume {
    CreateVolume { name: name.into(), size_bytes: 1 << 20, node: "a".into(), tenant: None }
}

fn once(key: &str, what: &str) -> Option<Once> {
    Some(Once { key: key.into(), fingerprint: what.into() })
}

async fn made(control: Rc<Control>, request: CreateVolume, once: Option<Once>) -> Result<Volume, ApiError> {
    control.create_volume(request, once).await.map(|tagged| tagged.value)
}

#[test]
fn volumes_are_made_once_and_checked_first() {
    let cluster = Cluster::new(1);
    let bad = [
        (CreateVolume { name: "No".into(), ..create("x") }, ErrorCode::InvalidField),
        (CreateVolume { size_bytes: 0, ..create("x") }, ErrorCode::InvalidField),
        (CreateVolume { size_bytes: 4097, ..create("x") }, ErrorCode::InvalidField),
        (CreateVolume { size_bytes: u64::MAX - 4095, ..create("x") }, ErrorCode::InvalidField),
        (CreateVolume { node: "z".into(), ..create("x") }, ErrorCode::NodeNotFound),
        (create("v"), ErrorCode::VolumeExists),
    ];
    for (request, code) in bad {
        let answer = cluster.run(|control| made(control, request, None));
        assert_eq!(answer.unwrap_err().code, code);
    }
    let first = cluster.run(|control| made(control, create("w"), once("k1", "w"))).unwrap();
    assert_eq!((first.state, first.holder.as_str(), first.epoch), (VolumeState::Ready, "a", 1));
    let again = cluster.run(|control| made(control, create("w"), once("k1", "w"))).unwrap();
    assert_eq!(again.id, first.id);
    cluster.restart_control();
    cluster.wait("the control plane", Control::is_ready);
    let again = cluster.run(|control| made(control, create("w"), once("k1", "w"))).unwrap();
    assert_eq!(again.id, first.id, "also after a restart");
    let other = cluster.run(|control| made(control, create("u"), once("k1", "u")));
    assert_eq!(other.unwrap_err().code, ErrorCode::IdempotencyConflict);
    let bad_key = cluster.run(|control| made(control, create("u"), once("a key", "u")));
    assert_eq!(bad_key.unwrap_err().code, ErrorCode::InvalidField);
}

#[test]
fn a_volume_that_its_node_refuses_is_not_there() {
    let cluster = Cluster::new(2);
    cluster.set_habits("a", |habits| habits.free_bytes = 0);
    let answer = cluster.run(|control| made(control, create("w"), once("k", "w")));
    assert_eq!(answer.unwrap_err().code, ErrorCode::NoSpace);
    assert_eq!(cluster.look(|control| control.list_volumes(None).len()), Some(1));
    cluster.set_habits("a", |habits| habits.free_bytes = 1 << 30);
    // What was refused may be tried again under the same key.
    cluster.run(|control| made(control, create("w"), once("k", "w"))).unwrap();
}

#[test]
fn what_was_begun_is_ended_after_a_restart() {
    for seed in 0..10 {
        let cluster = Cluster::new(seed);
        cluster.kill_node("a");
        let control = cluster.look(|_| ()).map(|()| cluster.clone()).unwrap();
        cluster.sim.process("caller").spawn(async move {
            let _ = control.command(|control| made(control, create("w"), None)).await;
        });
        cluster.sim.run_for(Duration::from_millis(seed * 20));
        cluster.restart_control();
        cluster.start_node("a");
        cluster.sim.run_for(Duration::from_secs(20));
        let state = cluster.look(|control| control.show_volume("w").map(|tagged| tagged.value.state)).unwrap();
        assert!(matches!(&state, Ok(VolumeState::Ready)) || state.is_err(), "seed {seed}: {state:?}");
        cluster.kill_node("a");
        let (caller, ready) = (cluster.clone(), state.is_ok());
        cluster.sim.process("caller").spawn(async move {
            let _ = caller.command(|control| async move { control.delete_volume("w", None).await }).await;
        });
        cluster.sim.run_for(Duration::from_millis(seed * 20 + 10));
        cluster.restart_control();
        cluster.start_node("a");
        if ready {
            cluster.wait("the volume to be gone", |control| control.show_volume("w").is_err());
        }
        assert_eq!(cluster.disk(&node("a")).borrow().len(), 1);
    }
}

#[test]
fn exports_come_back_with_their_node_and_keep_their_volume() {
    let cluster = Cluster::new(3);
    let request = CreateExport { volume: "v".into(), node: "b".into(), name: None, workload: Some("db".into()) };
    let twice = request.clone();
    let export = cluster.run(|control| async move { control.create_export(request, None).await }).unwrap();
    assert_eq!(export.value.uris, ["nbd+unix:///v?socket=/run/b.sock"]);
    let same = cluster.run(|control| async move { control.create_export(twice, None).await }).unwrap();
    assert_eq!(same, export);
    cluster.sim.run_for(STATUS_EVERY * 3);
    let shown = cluster.look(|control| (control.show_export("b", "v").unwrap(), control.metrics()));
    let (shown, metrics) = shown.unwrap();
    let usage = &shown.value.usage[..];
    assert!(
        matches!(usage, [used] if used.workload.as_deref() == Some("db\"1") && used.written_bytes == 12_288),
        "{usage:?}"
    );
    let line = "drover_export_read_bytes{node=\"b\",export=\"v\",volume=\"v\",workload=\"db\\\"1\"} 4096\n";
    assert!(metrics.contains(line), "{metrics}");
    let other = CreateExport { volume: "v".into(), node: "b".into(), name: Some("v".into()), workload: None };
    let answer = cluster.run(|control| async move { control.create_export(other, None).await });
    assert_eq!(answer.unwrap_err().code, ErrorCode::ExportExists);
    let in_use = cluster.run(|control| async move { control.delete_volume("v", None).await });
    assert_eq!(in_use.unwrap_err().code, ErrorCode::VolumeBusy);
    cluster.restart_node("b");
    let restarted = cluster.reachable(&node("a"), &node("b")).unwrap();
    // As of a node that was forgotten and comes back.
    restarted.exports.borrow_mut().insert("forgotten".into());
    cluster.sim.run_for(Duration::from_secs(2));
    assert_eq!(restarted.exports.borrow().iter().collect::<Vec<_>>(), ["v"], "what is recorded, and nothing else");
    cluster.run(|control| async move { control.delete_export("b", "v", None).await }).unwrap();
    cluster.run(|control| async move { control.delete_volume("v", None).await }).unwrap();
    assert_eq!(cluster.look(|control| control.list_volumes(None).len()), Some(0));
    assert!(cluster.disk(&node("a")).borrow().is_empty());
}

#[test]
fn snapshots_are_the_holders() {
    let cluster = Cluster::new(4);
    let take = |name: &str| {
        let request = CreateSnapshot { name: name.into() };
        cluster.run(|control| async move { control.create_snapshot("v", request, None).await })
    };
    assert_eq!(take("s1").unwrap().name, "s1");
    assert_eq!(take("s1").unwrap_err().code, ErrorCode::SnapshotExists);
    assert_eq!(take("drover-x").unwrap_err().code, ErrorCode::InvalidField);
    cluster.run(|control| async move { control.rollback_to_snapshot("v", "s1", None, None).await }).unwrap();
    let answer = cluster.run(|control| async move { control.rollback_to_snapshot("v", "s2", None, None).await });
    assert_eq!(answer.unwrap_err().code, ErrorCode::SnapshotNotFound);
    let options = MigrationOptions { cutover: Cutover::Manual, ..MigrationOptions::default() };
    cluster.start("b", options);
    for answer in [
        take("s3").map(|_| ()),
        cluster.run(|control| async move { control.rollback_to_snapshot("v", "s1", None, None).await }).map(|_| ()),
        cluster.run(|control| async move { control.delete_snapshot("v", "s1").await }),
        cluster.run(|control| async move { control.delete_volume("v", None).await }),
    ] {
        assert_eq!(answer.unwrap_err().code, ErrorCode::VolumeMigrating);
    }
}

#[test]
fn what_deleted_snapshots_still_hold_is_shown_until_it_is_merged() {
    let cluster = Cluster::new(9);
    let look = || {
        cluster.sim.run_for(STATUS_EVERY * 3);
        cluster.look(|control| (control.show_volume("v").unwrap().value.merge, control.metrics())).unwrap()
    };
    cluster.set_habits("a", |habits| habits.merge = Some(MergeStatus { layers: 2, left_bytes: 131_072 }));
    let (merge, metrics) = look();
    assert_eq!(merge, Some(Merge { snapshots: 2, bytes_left: 131_072 }));
    assert!(metrics.contains("drover_volume_merge_left_bytes{volume=\"v\"} 131072\n"), "{metrics}");
    cluster.set_habits("a", |habits| habits.merge = None);
    let (merge, metrics) = look();
    assert_eq!(merge, None);
    assert!(metrics.contains("drover_volume_merge_left_bytes{volume=\"v\"} 0\n"), "{metrics}");
}

/// Sent again because its answer was lost, a rollback must not take what was written since.
#[test]
fn a_rollback_under_a_key_happens_once() {
    let cluster = Cluster::new(6);
    let request = CreateSnapshot { name: "s".into() };
    cluster.run(|control| async move { control.create_snapshot("v", request, None).await }).unwrap();
    let back = |key: &str| {
        let once = once(key, "s");
        cluster.run(|control| async move { control.rollback_to_snapshot("v", "s", None, once).await }).unwrap()
    };
    let rollbacks = || cluster.kinds().iter().filter(|kind| *kind == "snapshot.rolled_back").count();
    back("k");
    back("k");
    assert_eq!(rollbacks(), 1);
    back("l");
    assert_eq!(rollbacks(), 2);
}

/// Two people look at the same volume and decide to go back: the second would take what was written after the first.
#[test]
fn going_back_and_reopening_are_refused_to_whoever_saw_an_earlier_version() {
    let cluster = Cluster::new(8);
    let request = CreateSnapshot { name: "s".into() };
    cluster.run(|control| async move { control.create_snapshot("v", request, None).await }).unwrap();
    let version = || cluster.look(|control| control.show_volume("v").unwrap().version).unwrap();
    let back = |expected| {
        let answer =
            cluster.run(|control| async move { control.rollback_to_snapshot("v", "s", Some(expected), None).await });
        answer.map(|volume| volume.version)
    };
    let reopen = |expected| {
        let answer = cluster.run(|control| async move { control.reopen_volume("v", Some(expected), None).await });
        answer.map(|volume| volume.version)
    };
    let seen = version();
    let after = back(seen).unwrap();
    assert!(after != seen && after == version());
    let reopened = reopen(after).unwrap();
    assert!(reopened != after && reopened == version());
    let kinds = cluster.kinds();
    for stale in [seen, after] {
        assert_eq!(back(stale).unwrap_err().code, ErrorCode::PreconditionFailed);
        assert_eq!(reopen(stale).unwrap_err().code, ErrorCode::PreconditionFailed);
    }
    assert_eq!((cluster.kinds(), version()), (kinds, reopened), "nothing was done");
}

/// The node had gone back; the control plane gave up waiting for its answer, or died before it came. Asked again under
/// the same key, it went back a second time, and what was written in between was lost.
#[test]
fn a_rollback_of_which_nobody_heard_happens_once() {
    for dies in [false, true] {
        let cluster = Cluster::new(8);
        let take = |control: Rc<Control>| async move {
            let request = CreateSnapshot { name: "s".into() };
            control.create_snapshot("v", request, once("t", "s")).await.map(|_| ())
        };
        let back = |control: Rc<Control>| async move {
            control.rollback_to_snapshot("v", "s", None, once("k", "s")).await.map(|_| ())
        };
        asked_unheard(&cluster, take, dies);
        asked_unheard(&cluster, back, dies);
        let disk = cluster.disk(&node("a"));
        let rollbacks: u64 = disk.borrow().values().map(|seat| seat.rollbacks).sum();
        assert_eq!(rollbacks, 1, "the control plane {}", if dies { "died" } else { "gave up" });
    }
}

/// Asks for something whose answer comes too late, then asks again, twice.
fn asked_unheard<F>(cluster: &Rc<Cluster>, command: impl Fn(Rc<Control>) -> F + Copy + 'static, dies: bool)
where
    F: Future<Output = Result<(), ApiError>> + 'static,
{
    cluster.set_habits("a", |habits| habits.snapshots_take = LONG_WORK_DEADLINE + Duration::from_secs(1));
    if dies {
        let this = cluster.clone();
        cluster.sim.process("people").spawn(async move { drop(this.command(command).await) });
        cluster.sim.run_for(Duration::from_secs(5));
        cluster.restart_control();
        cluster.wait("the node to register", |control| {
            control.list_nodes().iter().all(|node| node.value.health == Health::Up)
        });
    } else {
        assert_eq!(cluster.run(command).unwrap_err().code, ErrorCode::OutcomeUnknown);
    }
    cluster.set_habits("a", |habits| habits.snapshots_take = Duration::ZERO);
    cluster.run(command).unwrap();
    cluster.run(command).unwrap();
}

/// Where the volume is now nobody knows what was done where it was: a rollback that may be a repetition is refused.
#[test]
fn a_rollback_of_which_nobody_heard_is_not_begun_elsewhere() {
    let cluster = Cluster::new(9);
    let back = |once| cluster.run(|control| async move { control.rollback_to_snapshot("v", "s", None, once).await });
    assert_eq!(back(once("k", "s")).unwrap_err().code, ErrorCode::SnapshotNotFound);
    let id = cluster.start("b", MigrationOptions::default());
    cluster.wait_clean(&id);
    let request = CreateSnapshot { name: "s".into() };
    cluster.run(|control| async move { control.create_snapshot("v", request, None).await }).unwrap();
    assert_eq!(back(once("k", "s")).unwrap_err().code, ErrorCode::IdempotencyConflict);
    back(once("l", "s")).unwrap();
}

/// What is reserved at the destination is what a plan says: it must not rest on a report from before the last writes.
#[test]
fn a_plan_counts_what_was_written_just_now() {
    let cluster = Cluster::new(7);
    cluster.start_client();
    cluster.sim.run_for(Duration::from_secs(5));
    for _ in 0..5 {
        cluster.sim.run_for(Duration::from_millis(150));
        let written = cluster.disk(&node("a")).borrow().values().map(|seat| seat.content.len() as u64).sum::<u64>();
        let asked = PlanRequest {
            volume: "v".into(),
            destination: "b".into(),
            options: MigrationOptions::default(),
            link_bytes_per_s: None,
        };
        let plan = cluster.run(|control| async move { control.plan_migration(&asked).await }).unwrap();
        assert!(plan.bytes_to_send >= written * WRITE_BYTES, "{plan:?}: {written} blocks were there before");
        assert!(plan.write_bytes_per_s > 0, "{plan:?}");
    }
}

#[test]
fn a_plan_changes_nothing_and_a_start_is_made_once() {
    let cluster = Cluster::new(5);
    cluster.start_client();
    cluster.sim.run_for(Duration::from_secs(5));
    let asked = PlanRequest {
        volume: "v".into(),
        destination: "b".into(),
        options: MigrationOptions::default(),
        link_bytes_per_s: Some(1_000_000),
    };
    let plan = cluster.run(|control| async move { control.plan_migration(&asked).await }).unwrap();
    assert!(plan.fits && plan.bytes_to_send > 0 && plan.write_bytes_per_s > 100_000, "{plan:?}");
    assert_eq!(cluster.look(|control| control.list_migrations(None).unwrap().len()), Some(0));
    let start = || StartMigration { volume: "v".into(), destination: "b".into(), options: MigrationOptions::default() };
    let go = |request, once| cluster.run(|control| async move { control.start_migration(request, once).await });
    let first = go(start(), once("m", "m")).unwrap();
    let again = go(start(), once("m", "m")).unwrap();
    assert_eq!(first.value.id, again.value.id);
    cluster.wait_clean(&first.value.id);
    assert_eq!(go(start(), once("m", "m")).unwrap().value.id, first.value.id, "also when it is over");
    let measured = PlanRequest {
        volume: "v".into(),
        destination: "a".into(),
        options: MigrationOptions::default(),
        link_bytes_per_s: None,
    };
    let plan = cluster.run(|control| async move { control.plan_migration(&measured).await }).unwrap();
    assert_eq!(plan.link_rate, drover_types::RateSource::Assumed, "nothing went this way yet");
    let metrics = cluster.look(|control| control.metrics()).unwrap();
    for line in [
        "drover_node_up{node=\"a\"} 1",
        "drover_migration_count{phase=\"committed\"} 1",
        "drover_lease_epoch{volume=\"v\",holder=\"b\"} 2",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}
