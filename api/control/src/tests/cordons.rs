//! Nodes that take nothing new, and migrations that are named by their volumes.

use super::cluster::Cluster;
use crate::{Control, Once};
use drover_types::{
    CommitPolicy, CordonNode, CreateVolume, ErrorCode, MigrationOptions, Node, Phase, PlanRequest, Severity,
};
use std::rc::Rc;

fn cordon(cluster: &Rc<Cluster>, name: &'static str, reason: Option<&str>) -> Node {
    let request = CordonNode { reason: reason.map(Into::into) };
    cluster.run(|control| async move { control.cordon_node(name, request, None, None).await }).unwrap().value
}

fn uncordon(cluster: &Rc<Cluster>, name: &'static str) -> Node {
    cluster.run(|control| async move { control.uncordon_node(name, None, None).await }).unwrap().value
}

fn create(cluster: &Rc<Cluster>, name: &str, node: &str) -> Result<(), ErrorCode> {
    let request = CreateVolume { name: name.into(), size_bytes: 1 << 20, node: node.into(), tenant: None };
    let made = cluster.run(|control| async move { control.create_volume(request, None).await });
    made.map(|_| ()).map_err(|error| error.code)
}

#[test]
fn a_cordoned_node_takes_nothing_new_also_after_restarts() {
    let cluster = Cluster::new(1);
    let before = cluster.look(|control| control.show_node("b").unwrap().version).unwrap();
    let shown = cordon(&cluster, "b", Some("new disks"));
    assert_eq!(shown.cordon.unwrap().reason.as_deref(), Some("new disks"));
    let after = cluster.look(|control| control.show_node("b").unwrap().version).unwrap();
    assert!(after > before, "whoever decided by what was shown before is told so");
    for round in 0..2 {
        assert_eq!(create(&cluster, "w", "b"), Err(ErrorCode::NodeCordoned));
        let refused = cluster.try_start("b", MigrationOptions::default()).unwrap_err();
        assert_eq!((refused.code, refused.cause.as_deref()), (ErrorCode::NodeCordoned, Some("new disks")));
        let asked = PlanRequest {
            volume: "v".into(),
            destination: "b".into(),
            options: MigrationOptions::default(),
            link_bytes_per_s: None,
        };
        let plan = cluster.run(|control| async move { control.plan_migration(&asked).await }).unwrap();
        assert!(plan.warnings.iter().any(|warning| warning.code == "destination_cordoned"), "{plan:?}");
        if round == 0 {
            cluster.restart_control();
            cluster.restart_node("b");
            cluster.wait("both", |control| control.list_nodes().iter().all(|node| node.value.contact_ms_ago.is_some()));
        }
    }
    assert_eq!(create(&cluster, "w", "a"), Ok(()));
    assert!(uncordon(&cluster, "b").cordon.is_none());
    assert_eq!(create(&cluster, "x", "b"), Ok(()));
    let kinds = cluster.kinds();
    assert_eq!(kinds.iter().filter(|kind| *kind == "node.cordoned").count(), 1);
    assert_eq!(kinds.iter().filter(|kind| *kind == "node.uncordoned").count(), 1);
}

/// What is on its way when the node is cordoned was promised before.
#[test]
fn a_migration_under_way_to_a_cordoned_node_goes_on() {
    let cluster = Cluster::new(2);
    cluster.start_client();
    let id = cluster.start("b", MigrationOptions::default());
    cordon(&cluster, "b", None);
    cluster.restart_control();
    cluster.wait_phase(&id, &[Phase::Committed]);
    cluster.wait_clean(&id);
    cluster.check_end("b");
}

#[test]
fn cordoning_is_asked_once_checked_and_told_with_figures() {
    let cluster = Cluster::new(3);
    let ask = |reason: Option<&str>, expected, key: Option<&str>| {
        let request = CordonNode { reason: reason.map(Into::into) };
        let once = key.map(|key| Once { key: key.into(), fingerprint: "f".into() });
        cluster.run(|control| async move { control.cordon_node("a", request, expected, once).await })
    };
    for bad in ["", "two\nlines", &"x".repeat(201)] {
        assert_eq!(ask(Some(bad), None, None).unwrap_err().code, ErrorCode::InvalidField, "{bad:?}");
    }
    assert_eq!(ask(None, Some(9_999), None).unwrap_err().code, ErrorCode::PreconditionFailed);
    ask(Some("one"), None, Some("k")).unwrap();
    uncordon(&cluster, "a");
    let again = ask(Some("one"), None, Some("k")).unwrap();
    assert!(again.value.cordon.is_none(), "the same request is not carried out again");
    ask(None, None, None).unwrap();
    let since = ask(Some("two"), None, None).unwrap().value.cordon.unwrap();
    assert_eq!(since.reason.as_deref(), Some("two"));
    assert_eq!(ask(None, None, None).unwrap().value.cordon, Some(since), "what is known stays");
    let metrics = cluster.look(Control::metrics).unwrap();
    assert!(metrics.contains("drover_node_cordoned{node=\"a\"} 1\n"), "{metrics}");
    let events = cluster.look(|control| control.events(0, 1_000, None)).unwrap();
    assert!(events.iter().any(|event| event.kind == "node.cordoned" && event.severity == Severity::Info));
    let unknown = cluster.run(|control| async move { control.uncordon_node("z", None, None).await });
    assert_eq!(unknown.unwrap_err().code, ErrorCode::NodeNotFound);
}

#[test]
fn a_forgotten_node_leaves_no_cordon_behind() {
    let cluster = Cluster::new(4);
    cordon(&cluster, "b", None);
    cluster.kill_node("b");
    cluster.wait("b to be down", |control| control.show_node("b").unwrap().value.health == drover_types::Health::Down);
    cluster.run(|control| async move { control.delete_node("b", None).await }).unwrap();
    cluster.start_node("b");
    cluster.wait("b", |control| control.show_node("b").is_ok());
    assert!(cluster.look(|control| control.show_node("b").unwrap().value.cordon).unwrap().is_none());
}

#[test]
fn a_volume_names_its_unfinished_migration_or_its_last() {
    let cluster = Cluster::new(5);
    let show = |name: &str| cluster.look(|control| control.show_migration(name).map(|shown| shown.value.id)).unwrap();
    assert_eq!(show("v").unwrap_err().code, ErrorCode::MigrationNotFound);
    assert_eq!(show("nothing").unwrap_err().code, ErrorCode::MigrationNotFound);
    let first = cluster.start("b", MigrationOptions { commit: CommitPolicy::Manual, ..Default::default() });
    assert_eq!(show("v"), Ok(first.clone()));
    let volume = cluster.volume.get().to_string();
    assert_eq!(show(&volume), Ok(first.clone()), "or by its id");
    cluster.wait_phase(&first, &[Phase::Settling]);
    let key = Once { key: "k".into(), fingerprint: "rollback".into() };
    let back = |once| {
        use drover_types::Action::Rollback;
        cluster.run(|control| async move { control.act("v", Rollback, None, Some(once)).await }).unwrap().value.id
    };
    cluster.wait("the way back", |control| {
        control.show_migration("v").unwrap().value.actions.contains(&drover_types::Action::Rollback)
    });
    assert_eq!(back(key.clone()), first);
    cluster.wait_clean(&first);
    assert_eq!(show("v"), Ok(first.clone()), "the last, where none is under way");
    let second = cluster.start("b", MigrationOptions::default());
    assert_eq!(show("v"), Ok(second.clone()));
    assert_eq!(back(key), first, "a repetition is about what it was about at first");
    cluster.wait_clean(&second);
    assert_eq!(show("v"), Ok(second));
}
