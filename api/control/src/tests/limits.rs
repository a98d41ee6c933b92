//! Limits of volumes and quotas of tenants, as they are recorded and told.

use super::cluster::{Cluster, node};
use crate::Control;
use crate::config::STATUS_EVERY;
use drover_types::{
    ApiError, ChangeTenant, ChangeVolume, CreateVolume, ErrorCode, MigrationOptions, Phase, Quota, Tenant, Volume,
    VolumeLimits,
};
use drover_wire::admin::IoLimits;
use std::{rc::Rc, time::Duration};

fn limit(cluster: &Rc<Cluster>, limits: VolumeLimits) -> Result<Volume, ApiError> {
    let change = ChangeVolume { limits: Some(limits), ..ChangeVolume::default() };
    let changed = cluster.run(|control| async move { control.change_volume("v", change, None).await });
    changed.map(|tagged| tagged.value)
}

fn known_at(cluster: &Cluster, name: &str) -> IoLimits {
    cluster.disk(&node(name)).borrow()[&cluster.volume.get()].limits
}

const LIMITS: VolumeLimits = VolumeLimits { iops: Some(500), bytes_per_s: Some(2 << 20), burst_ms: None };

#[test]
fn limits_are_checked_recorded_and_told_at_once() {
    let cluster = Cluster::new(1);
    for bad in [
        VolumeLimits { iops: Some(99), ..LIMITS },
        VolumeLimits { bytes_per_s: Some(1000), ..LIMITS },
        VolumeLimits { burst_ms: Some(3_600_001), ..LIMITS },
        VolumeLimits { burst_ms: Some(1), ..VolumeLimits::default() },
    ] {
        assert_eq!(limit(&cluster, bad).unwrap_err().code, ErrorCode::InvalidField, "{bad:?}");
    }
    let nothing = cluster.run(|control| async move { control.change_volume("v", ChangeVolume::default(), None).await });
    assert_eq!(nothing.unwrap_err().code, ErrorCode::InvalidField);
    assert_eq!(known_at(&cluster, "a"), IoLimits::default(), "nothing was done");
    assert_eq!(limit(&cluster, LIMITS).unwrap().limits, LIMITS);
    let wire = IoLimits { revision: 1, iops: Some(500), bytes_per_s: Some(2 << 20), burst_ms: 1_000 };
    assert_eq!(known_at(&cluster, "a"), wire);
    limit(&cluster, LIMITS).unwrap();
    assert_eq!(known_at(&cluster, "a"), wire, "the same again is no change");
    limit(&cluster, VolumeLimits::default()).unwrap();
    assert_eq!(known_at(&cluster, "a"), IoLimits { revision: 2, iops: None, bytes_per_s: None, burst_ms: 1_000 });
    assert_eq!(cluster.kinds().iter().filter(|kind| *kind == "volume.limited").count(), 2);
    cluster.sim.run_for(STATUS_EVERY * 3);
    let metrics = cluster.look(Control::metrics).unwrap();
    assert!(metrics.contains("drover_volume_limited_requests{volume=\"v\"} 3\n"), "{metrics}");
    assert!(metrics.contains("drover_volume_limited_milliseconds{volume=\"v\"} 7\n"), "{metrics}");
}

#[test]
fn a_holder_that_was_away_hears_of_them_later() {
    let cluster = Cluster::new(2);
    cluster.kill_node("a");
    let told = limit(&cluster, LIMITS).unwrap_err();
    assert_eq!(told.code, ErrorCode::OutcomeUnknown);
    cluster.start_node("a");
    cluster.sim.run_for(Duration::from_secs(5));
    assert_eq!(known_at(&cluster, "a").iops, Some(500));
    // One that has forgotten, or never heard, is told by what it reports.
    cluster.disk(&node("a")).borrow_mut().get_mut(&cluster.volume.get()).unwrap().limits = IoLimits::default();
    cluster.sim.run_for(STATUS_EVERY * 4);
    assert_eq!(known_at(&cluster, "a").iops, Some(500));
}

#[test]
fn limits_move_with_the_volume_and_change_while_it_moves() {
    let cluster = Cluster::new(3);
    cluster.start_client();
    limit(&cluster, LIMITS).unwrap();
    let id = cluster.start("b", MigrationOptions::default());
    cluster.wait_phase(&id, &[Phase::Settling]);
    assert_eq!(known_at(&cluster, "b").iops, Some(500));
    limit(&cluster, VolumeLimits { iops: Some(900), ..LIMITS }).unwrap();
    assert_eq!(known_at(&cluster, "b").iops, Some(900));
    cluster.wait_clean(&id);
    cluster.check_end("b");
}

fn create(cluster: &Rc<Cluster>, name: &str, tenant: &str, size_bytes: u64) -> Result<Volume, ApiError> {
    let request = CreateVolume { name: name.into(), size_bytes, node: "a".into(), tenant: Some(tenant.into()) };
    cluster.run(|control| async move { control.create_volume(request, None).await }).map(|tagged| tagged.value)
}

fn set(cluster: &Rc<Cluster>, name: &'static str, provisioned_bytes: Option<u64>, volumes: Option<u64>) -> Tenant {
    let change = ChangeTenant { quota: Quota { provisioned_bytes, volumes } };
    cluster.run(|control| async move { control.change_tenant(name, change, None).await }).unwrap().value
}

#[test]
fn a_tenant_has_no_more_than_its_quotas() {
    let cluster = Cluster::new(4);
    assert_eq!(
        cluster.look(|control| control.show_tenant("red").map(|_| ())).unwrap().unwrap_err().code,
        ErrorCode::TenantNotFound
    );
    set(&cluster, "red", Some(3 << 20), Some(2));
    assert_eq!(create(&cluster, "x", "No", 1 << 20).unwrap_err().code, ErrorCode::InvalidField);
    assert_eq!(create(&cluster, "r1", "red", 1 << 20).unwrap().tenant, "red");
    let refused = create(&cluster, "r2", "red", 4 << 20).unwrap_err();
    assert_eq!(refused.code, ErrorCode::QuotaExceeded);
    assert!(refused.message.contains("3145728 bytes") && refused.message.contains("5242880"), "{refused:?}");
    create(&cluster, "r2", "red", 1 << 20).unwrap();
    assert_eq!(create(&cluster, "r3", "red", 4096).unwrap_err().code, ErrorCode::QuotaExceeded);
    create(&cluster, "other", "default", 64 << 20).unwrap();
    let grow = |size_bytes| {
        let change = ChangeVolume { size_bytes: Some(size_bytes), ..ChangeVolume::default() };
        cluster.run(|control| async move { control.change_volume("r1", change, None).await }).map(|_| ())
    };
    assert_eq!(grow(3 << 20).unwrap_err().code, ErrorCode::QuotaExceeded);
    grow(2 << 20).unwrap();
    let shown = cluster.look(|control| control.show_tenant("red").unwrap().value).unwrap();
    assert_eq!((shown.provisioned_bytes, shown.volumes), (3 << 20, 2));
    // Below what it has: nothing is taken away, and nothing is given.
    set(&cluster, "red", Some(4096), None);
    assert_eq!(create(&cluster, "r3", "red", 4096).unwrap_err().code, ErrorCode::QuotaExceeded);
    cluster.run(|control| async move { control.delete_volume("r2", None).await }).unwrap();
    set(&cluster, "red", Some(3 << 20), None);
    create(&cluster, "r3", "red", 1 << 20).unwrap();
    cluster.restart_control();
    cluster.wait("the control plane", |control| control.show_tenant("red").is_ok());
    assert_eq!(create(&cluster, "r4", "red", 4096).unwrap_err().code, ErrorCode::QuotaExceeded, "also after a restart");
    let of_red = cluster.look(|control| control.list_volumes(Some("red")).len()).unwrap();
    assert_eq!(of_red, 2);
    let names: Vec<String> =
        cluster.look(|control| control.list_tenants().into_iter().map(|tenant| tenant.name).collect()).unwrap();
    assert_eq!(names, ["default", "red"]);
    let metrics = cluster.look(Control::metrics).unwrap();
    assert!(metrics.contains("drover_tenant_provisioned_bytes{tenant=\"red\"} 3145728\n"), "{metrics}");
    assert!(metrics.contains("drover_tenant_quota_bytes{tenant=\"red\"} 3145728\n"), "{metrics}");
    assert_eq!(set(&cluster, "red", None, None).quota, Quota::default());
    create(&cluster, "r4", "red", 64 << 20).unwrap();
}

/// Each of several requests at once saw room for itself.
#[test]
fn requests_at_once_do_not_exceed_a_quota_together() {
    for seed in 0..10 {
        let cluster = Cluster::new(seed);
        set(&cluster, "red", Some(3 << 20), None);
        let made = cluster.run(|control| async move {
            let asked = (0..8).map(|index| {
                let (name, tenant) = (format!("r{index}"), Some("red".into()));
                control.create_volume(CreateVolume { name, size_bytes: 1 << 20, node: "a".into(), tenant }, None)
            });
            futures::future::join_all(asked).await
        });
        assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 3, "seed {seed}");
    }
}
