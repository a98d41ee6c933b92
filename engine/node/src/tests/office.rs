//! Who may serve under a node's name.

use super::cluster::{Cluster, each_seed};
use crate::Office;
use drover_base::{InstanceId, NodeId};
use drover_wire::admin::Refusal;
use std::time::Duration;

fn taken() -> Refusal {
    Refusal::Taken { node: NodeId::new("a").unwrap(), admin: "elsewhere:1".into(), instance: InstanceId(99) }
}

/// Its connections break, so that nodes register again.
fn restart_control(cluster: &Cluster) {
    cluster.kill_control();
    cluster.start_control();
}

async fn after(cluster: &Cluster, seconds: u64) -> Office {
    cluster.sim.sleep(Duration::from_secs(seconds)).await;
    cluster.node("a").office()
}

#[test]
fn a_start_whose_name_is_taken_waits_and_ends_unless_the_other_is_gone() {
    each_seed(0..4, async |cluster| {
        cluster.recorded.borrow_mut().refusal = Some(taken());
        cluster.start("a").await;
        assert_eq!(after(&cluster, 10).await, Office::Awaited);
        if cluster.sim.seed() % 2 == 0 {
            cluster.recorded.borrow_mut().refusal = None;
            assert_eq!(after(&cluster, 15).await, Office::Serves);
        } else {
            assert_eq!(after(&cluster, 15).await, Office::Taken(taken().to_string()));
        }
    });
}

/// A control plane that is away says nothing against it; told that its name is taken, it does not fall back on that.
#[test]
fn without_a_control_plane_a_node_serves_unless_its_name_was_taken() {
    each_seed(0..2, async |cluster| {
        cluster.kill_control();
        cluster.start("a").await;
        assert_eq!(after(&cluster, 3).await, Office::Serves);
        cluster.kill("a");
        cluster.recorded.borrow_mut().refusal = Some(taken());
        cluster.start_control();
        cluster.start("a").await;
        assert_eq!(after(&cluster, 3).await, Office::Awaited);
        cluster.kill_control();
        assert_eq!(after(&cluster, 5).await, Office::Awaited);
    });
}

/// A node that had moved while the control plane was away was ended by it as it came back, before it could have heard of
/// anybody else of that name.
#[test]
fn a_node_that_serves_ends_only_when_its_name_is_certainly_taken() {
    each_seed(0..4, async |cluster| {
        cluster.start("a").await;
        assert_eq!(after(&cluster, 1).await, Office::Serves);
        cluster.recorded.borrow_mut().refusal = Some(Refusal::Conflict { reason: "it may yet be heard of".into() });
        restart_control(&cluster);
        assert_eq!(after(&cluster, 9).await, Office::Serves);
        cluster.recorded.borrow_mut().refusal = Some(taken());
        assert_eq!(after(&cluster, 3).await, Office::Taken(taken().to_string()));
    });
}
