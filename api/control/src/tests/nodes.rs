//! What nodes ask of the control plane.

use super::cluster::{Cluster, node};
use super::fake_node::{SECRET, address};
use drover_base::limits::MESSAGE_HEAD_BYTES_MAX;
use drover_base::{Epoch, InstanceId, MigrationId, VolumeId};
use drover_types::{Health, Severity};
use drover_wire::admin::{ControlReply, ControlRequest, NodeRegistration, NodeReply, NodeRequest, Refusal};
use drover_wire::preamble::{Channel, Preamble};
use drover_wire::rpc::{RpcClient, RpcError};
use std::time::Duration;

fn ask_with(cluster: &Cluster, preamble: Preamble, request: ControlRequest) -> Result<ControlReply, RpcError> {
    let process = cluster.sim.process("stranger");
    let client = RpcClient::<ControlRequest, ControlReply>::new(process.world(), "control:1", preamble);
    let call = process.run(async move { client.call(&request, Duration::from_secs(5)).await });
    cluster.sim.block_on(call).unwrap()
}

fn ask(cluster: &Cluster, request: ControlRequest) -> ControlReply {
    ask_with(cluster, Preamble::new(Channel::Control, SECRET), request).unwrap()
}

fn registration(name: &str, instance: u64) -> ControlRequest {
    let node = NodeRegistration {
        address: address(&node(name)),
        admin: format!("{name}:1"),
        instance: InstanceId(instance),
        nbd_unix: None,
        nbd_tcp: None,
    };
    ControlRequest::Register { node }
}

/// longhorn#13326: anyone could speak to the control plane.
#[test]
fn a_node_shows_the_secret() {
    let cluster = Cluster::new(1);
    for other in [Preamble::new(Channel::Control, [8; 32]), Preamble::new(Channel::Admin, SECRET)] {
        let refused = ask_with(&cluster, other, registration("x", 1));
        assert!(matches!(refused, Err(RpcError::Connect { .. })), "{refused:?}");
        assert_eq!(cluster.look(|control| control.list_nodes().len()), Some(2));
    }
    assert_eq!(ask(&cluster, registration("x", 1)), ControlReply::Registered { grants: vec![] });
    assert_eq!(cluster.look(|control| control.show_node("x").unwrap().value.health), Some(Health::Up));
    cluster.sim.run_for(Duration::from_secs(15));
    assert_eq!(cluster.look(|control| control.show_node("x").unwrap().value.health), Some(Health::Down));
    cluster.run(|control| async move { control.delete_node("x", None).await }).unwrap();
    let busy = cluster.run(|control| async move { control.delete_node("a", None).await });
    assert_eq!(busy.unwrap_err().code, drover_types::ErrorCode::NodeBusy);
}

/// A node that had died was never missed by a control plane that was started after that: all was well, it said.
#[test]
fn a_node_that_does_not_return_after_a_restart_of_the_control_plane_is_down() {
    let cluster = Cluster::new(3);
    cluster.kill_node("b");
    cluster.restart_control();
    cluster.wait("the control plane", |control| control.is_ready());
    let health = |name: &str| cluster.look(|control| control.show_node(name).unwrap().value.health).unwrap();
    assert_eq!(health("b"), Health::Unknown);
    cluster.sim.run_for(Duration::from_secs(15));
    assert_eq!((health("a"), health("b")), (Health::Up, Health::Down));
    cluster.start_node("b");
    cluster.sim.run_for(Duration::from_secs(2));
    assert_eq!(health("b"), Health::Up);
}

/// A node with very many snapshots had a status larger than a message, and ended itself at each question.
#[test]
fn an_answer_that_is_too_long_is_refused() {
    let cluster = Cluster::new(1);
    let preamble = Preamble::new(Channel::Admin, SECRET);
    let world = cluster.sim.process("talker").world();
    cluster.sim.process("talker").spawn(async move {
        let connection = world.net.listen("talker:1").await.unwrap().accept().await.unwrap();
        let answer = |_: NodeRequest| async {
            NodeReply::Refused(Refusal::Failed { reason: "x".repeat(MESSAGE_HEAD_BYTES_MAX) })
        };
        drover_wire::rpc::serve(world.clone(), preamble, connection, |_| None, answer).await;
    });
    let process = cluster.sim.process("stranger");
    let client = RpcClient::<NodeRequest, NodeReply>::new(process.world(), "talker:1", preamble);
    let call = process.run(async move { client.call(&NodeRequest::Status, Duration::from_secs(5)).await });
    match cluster.sim.block_on(call).unwrap() {
        Ok(NodeReply::Refused(Refusal::Failed { reason })) => assert!(reason.contains("8388"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

/// What a lease's renewal needs: the holder, its epoch, its registered start.
#[test]
fn only_the_holder_renews_and_only_its_epoch() {
    let cluster = Cluster::new(2);
    let volume = cluster.volume.get();
    let instance = cluster.look(|control| control.show_node("a").unwrap().value.instance.parse().unwrap()).unwrap();
    let renew = |name: &str, instance, epoch| ControlRequest::Renew {
        node: node(name),
        instance,
        leases: vec![(volume, Epoch(epoch)), (VolumeId(9), Epoch(1))],
    };
    match ask(&cluster, renew("a", instance, 1)) {
        ControlReply::Renewed { renewed, changed } => assert_eq!((renewed, changed), (vec![volume], vec![])),
        other => panic!("{other:?}"),
    }
    assert_eq!(renewed_under_another_epoch(&cluster), 0);
    match ask(&cluster, renew("a", instance, 0)) {
        ControlReply::Renewed { renewed, changed } => {
            assert_eq!((renewed, changed.len(), changed[0].epoch), (vec![], 1, Epoch(1)));
        }
        other => panic!("{other:?}"),
    }
    let stale = ask(&cluster, renew("a", InstanceId(5), 1));
    assert!(matches!(stale, ControlReply::Refused(Refusal::Conflict { .. })), "{stale:?}");
    let stranger = ask(&cluster, renew("z", instance, 1));
    assert!(matches!(stranger, ControlReply::Refused(Refusal::Conflict { .. })), "{stranger:?}");
    assert!(
        matches!(ask(&cluster, ControlRequest::Lookup { volume }), ControlReply::Grant(grant) if grant.holder.node == node("a"))
    );
    let nothing = ask(&cluster, ControlRequest::Lookup { volume: VolumeId(9) });
    assert!(matches!(nothing, ControlReply::Refused(Refusal::NotFound { .. })), "{nothing:?}");
}

/// A word about the way back that is late, of another epoch, or of no migration changes nothing.
#[test]
fn late_words_about_the_way_back_are_refused() {
    let cluster = Cluster::new(3);
    cluster.start_client();
    cluster.sim.run_for(Duration::from_secs(1));
    let options = drover_types::MigrationOptions { commit: drover_types::CommitPolicy::Manual, ..Default::default() };
    let id = cluster.start("b", options);
    cluster.wait_phase(&id, &[drover_types::Phase::Settling]);
    cluster.sim.run_for(Duration::from_secs(2));
    let volume = cluster.volume.get();
    let migration: MigrationId = id.parse().unwrap();
    let holder = cluster.look(|control| control.show_node("b").unwrap().value.instance.parse().unwrap()).unwrap();
    let close = |epoch, instance, change| ControlRequest::CloseWayBack {
        volume,
        migration,
        epoch: Epoch(epoch),
        instance,
        change,
    };
    let open = |epoch, instance, change| ControlRequest::OpenWayBack {
        volume,
        migration,
        epoch: Epoch(epoch),
        instance,
        change,
    };
    let way_back = || cluster.migration(&id).way_back;
    use drover_types::WayBack::{Closed, Open};

    assert!(matches!(ask(&cluster, close(1, holder, 100)), ControlReply::Refused(Refusal::Epoch { .. })));
    assert!(matches!(ask(&cluster, close(2, InstanceId(1), 100)), ControlReply::Refused(Refusal::Conflict { .. })));
    assert_eq!(way_back(), Open);
    assert_eq!(ask(&cluster, close(2, holder, 100)), ControlReply::Done);
    assert_eq!(way_back(), Closed);
    assert_eq!(ask(&cluster, close(2, holder, 100)), ControlReply::Done, "the same word again");
    // An open that was sent before the close and arrives after it.
    assert!(matches!(ask(&cluster, open(2, holder, 99)), ControlReply::Refused(Refusal::Conflict { .. })));
    assert!(matches!(ask(&cluster, open(2, holder, 100)), ControlReply::Refused(Refusal::Conflict { .. })));
    assert_eq!(way_back(), Closed);
    assert_eq!(ask(&cluster, open(2, holder, 101)), ControlReply::Done);
    assert_eq!(way_back(), Open);
}

/// How many leases are renewed though the epoch that is named is not theirs.
pub fn renewed_under_another_epoch(cluster: &Cluster) -> usize {
    let instance = cluster.look(|control| control.show_node("a").unwrap().value.instance.parse().unwrap()).unwrap();
    let leases = vec![(cluster.volume.get(), Epoch(7))];
    match ask(cluster, ControlRequest::Renew { node: node("a"), instance, leases }) {
        ControlReply::Renewed { renewed, .. } => renewed.len(),
        other => panic!("{other:?}"),
    }
}

/// A copy of a node's data was started beside it: both were let in in turn, and both served what the node held.
#[test]
fn a_name_belongs_to_one_live_process() {
    let cluster = Cluster::new(1);
    let elsewhere = |instance| {
        let ControlRequest::Register { mut node } = registration("a", instance) else { unreachable!() };
        node.admin = "elsewhere:1".into();
        ControlRequest::Register { node }
    };
    let shown = || cluster.look(|control| control.show_node("a").unwrap().value).unwrap();
    let before = shown().instance;
    assert!(matches!(ask(&cluster, elsewhere(7)), ControlReply::Refused(Refusal::Taken { .. })));
    // A control plane that has only just started has heard of nobody.
    cluster.kill_node("a");
    cluster.restart_control();
    cluster.wait("the control plane", |_| true);
    let refused = ask(&cluster, elsewhere(7));
    assert!(matches!(refused, ControlReply::Refused(Refusal::Conflict { .. })), "nothing is certain yet: {refused:?}");
    assert_eq!(shown().instance, before);
    // Where it was it may start again at once, elsewhere once it has fallen silent.
    assert!(matches!(ask(&cluster, registration("a", 8)), ControlReply::Registered { .. }));
    assert!(matches!(ask(&cluster, elsewhere(9)), ControlReply::Refused(Refusal::Taken { .. })));
    cluster.sim.run_for(Duration::from_secs(15));
    assert!(matches!(ask(&cluster, elsewhere(9)), ControlReply::Registered { .. }));
}

/// Lost writes stood among the news of every day, and nobody could tell what they had to do with.
#[test]
fn what_nodes_tell_has_its_weight_and_its_migration() {
    let cluster = Cluster::new(1);
    let options = drover_types::MigrationOptions { commit: drover_types::CommitPolicy::Manual, ..Default::default() };
    let id = cluster.start("b", options);
    let volume = Some(cluster.volume.get());
    for (kind, severity) in
        [("writes_lost", Severity::Error), ("link_silent", Severity::Warning), ("snapshots_merged", Severity::Info)]
    {
        let text = "it happened".to_owned();
        let told = ControlRequest::Event { node: node("a"), kind: kind.into(), volume, text };
        assert_eq!(ask(&cluster, told), ControlReply::Done);
        let events = cluster.look(|control| control.events(0, 10_000, None)).unwrap();
        let event = events.iter().find(|event| event.kind == format!("node.{kind}")).expect("it was told");
        assert_eq!((event.severity, event.migration.as_deref()), (severity, Some(id.as_str())));
    }
}
