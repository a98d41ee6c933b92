//! Volumes that become larger, and as large again as they were.

use super::cluster::{Cluster, node};
use crate::{Control, Once};
use drover_types::{
    ApiError, ChangeVolume, CreateSnapshot, Cutover, ErrorCode, MigrationOptions, PlanRequest, StartMigration,
    VolumeLimits,
};
use std::{rc::Rc, time::Duration};

const SIZE: u64 = 1 << 30;

fn resize(cluster: &Rc<Cluster>, size_bytes: u64) -> Result<u64, ApiError> {
    let change = ChangeVolume { size_bytes: Some(size_bytes), ..ChangeVolume::default() };
    let changed = cluster.run(|control| async move { control.change_volume("v", change, None).await });
    changed.map(|volume| volume.value.size_bytes)
}

fn shown(cluster: &Rc<Cluster>) -> u64 {
    cluster.look(|control| control.show_volume("v").unwrap().value.size_bytes).unwrap()
}

fn at_node(cluster: &Rc<Cluster>, name: &str) -> u64 {
    cluster.disk(&node(name)).borrow()[&cluster.volume.get()].size_bytes
}

#[test]
fn a_volume_grows_where_it_is_held() {
    let cluster = Cluster::new(1);
    for bad in [0, SIZE + 1, SIZE - 4096, u64::MAX - 4095] {
        assert_eq!(resize(&cluster, bad).unwrap_err().code, ErrorCode::InvalidField);
    }
    let nothing = cluster.run(|control| async move { control.change_volume("v", Default::default(), None).await });
    assert_eq!(nothing.unwrap_err().code, ErrorCode::InvalidField);
    assert_eq!((shown(&cluster), at_node(&cluster, "a")), (SIZE, SIZE), "nothing was done");
    for _ in 0..2 {
        assert_eq!(resize(&cluster, 2 * SIZE).unwrap(), 2 * SIZE);
    }
    assert_eq!(at_node(&cluster, "a"), 2 * SIZE);
    assert_eq!(cluster.kinds().iter().filter(|kind| *kind == "volume.resized").count(), 1);
    let stale = ChangeVolume { size_bytes: Some(3 * SIZE), ..ChangeVolume::default() };
    let stale = cluster.run(|control| async move { control.change_volume("v", stale, Some(1)).await });
    assert_eq!(stale.unwrap_err().code, ErrorCode::PreconditionFailed);
    let options = MigrationOptions { cutover: Cutover::Manual, ..MigrationOptions::default() };
    cluster.start("b", options);
    assert_eq!(resize(&cluster, 3 * SIZE).unwrap_err().code, ErrorCode::VolumeMigrating);
    cluster.wait("the destination", |_| cluster.disk(&node("b")).borrow().contains_key(&cluster.volume.get()));
    assert_eq!(at_node(&cluster, "b"), 2 * SIZE);
}

/// It was recorded and not yet done when the control plane died, or the node.
#[test]
fn what_was_begun_is_done_after_a_restart() {
    for seed in 0..10 {
        let cluster = Cluster::new(seed);
        cluster.kill_node("a");
        let caller = cluster.clone();
        cluster.sim.process("caller").spawn(async move {
            let change = ChangeVolume { size_bytes: Some(2 * SIZE), ..ChangeVolume::default() };
            drop(caller.command(|control| async move { control.change_volume("v", change, None).await }).await);
        });
        cluster.sim.run_for(Duration::from_millis(100 + seed * 50));
        let busy = StartMigration { volume: "v".into(), destination: "b".into(), options: Default::default() };
        let busy = cluster.run(|control| async move { control.start_migration(busy, None).await });
        assert_eq!(busy.unwrap_err().code, ErrorCode::VolumeBusy, "no migration begins with a size that changes");
        cluster.restart_control();
        cluster.start_node("a");
        cluster.wait("the size", |control| control.show_volume("v").unwrap().value.size_bytes == 2 * SIZE);
        assert_eq!(at_node(&cluster, "a"), 2 * SIZE);
    }
}

/// The size is the snapshot's again, and the record follows; also where nobody heard of the rollback, before a migration
/// makes a destination of that size.
#[test]
fn a_rollback_brings_the_size_back() {
    for is_heard in [true, false] {
        let cluster = Cluster::new(2);
        let request = CreateSnapshot { name: "s".into() };
        cluster.run(|control| async move { control.create_snapshot("v", request, None).await }).unwrap();
        resize(&cluster, 2 * SIZE).unwrap();
        if !is_heard {
            cluster.set_habits("a", |habits| habits.snapshots_take = Duration::from_secs(90));
        }
        let once = Some(Once { key: "k".into(), fingerprint: "s".into() });
        let back = |control: Rc<Control>| async move { control.rollback_to_snapshot("v", "s", None, once).await };
        assert_eq!(cluster.run(back).is_ok(), is_heard);
        assert_eq!(at_node(&cluster, "a"), SIZE);
        if !is_heard {
            let options = MigrationOptions::default();
            let asked = PlanRequest { volume: "v".into(), destination: "b".into(), options, link_bytes_per_s: None };
            cluster.run(|control| async move { control.plan_migration(&asked).await }).unwrap();
        }
        assert_eq!(shown(&cluster), SIZE);
    }
}

/// What was recorded of a volume while its holder was asked for a size was written over with what had been known before.
#[test]
fn limits_that_are_set_while_it_grows_stay() {
    for seed in 0..40 {
        let cluster = Cluster::new(seed);
        let caller = cluster.clone();
        cluster.sim.process("caller").spawn(async move {
            let change = ChangeVolume { size_bytes: Some(2 * SIZE), ..ChangeVolume::default() };
            drop(caller.command(|control| async move { control.change_volume("v", change, None).await }).await);
        });
        cluster.sim.run_for(Duration::from_micros(seed * 150));
        let limits = VolumeLimits { iops: Some(500), ..VolumeLimits::default() };
        let change = ChangeVolume { limits: Some(limits), ..ChangeVolume::default() };
        cluster.run(|control| async move { control.change_volume("v", change, None).await }).unwrap();
        cluster.sim.run_for(Duration::from_secs(5));
        let shown = cluster.look(|control| control.show_volume("v").unwrap().value).unwrap();
        assert_eq!((shown.size_bytes, shown.limits), (2 * SIZE, limits), "seed {seed}");
    }
}
