//! A volume's snapshots move with it, by requests sent by hand.

use super::cluster::{Client, Cluster, VOLUME, each_seed};
use super::flip::{GENERATION, MIGRATION, commit, copy, flip, mirror, until_phase};
use super::snapshots::{go_back, take};
use drover_base::OperationId;
use drover_wire::admin::{NodeReply, NodeRequest, Refusal, SendPhase, SnapshotStatus};

fn named(name: &str, operation: u64) -> NodeRequest {
    NodeRequest::CreateSnapshot { volume: VOLUME, name: name.into(), operation: OperationId(operation) }
}

/// As the node tells of them: what nobody made, too.
fn snapshots(cluster: &Cluster, node: &str) -> Vec<SnapshotStatus> {
    let status = cluster.node(node).status();
    status.volumes.into_iter().find(|volume| volume.volume == VOLUME).map(|volume| volume.snapshots).unwrap_or_default()
}

fn told(snapshots: &[SnapshotStatus]) -> Vec<(String, u64)> {
    let made = snapshots.iter().filter(|snapshot| !snapshot.name.starts_with("drover-"));
    made.map(|snapshot| (snapshot.name.clone(), snapshot.created_ms)).collect()
}

/// `s` and `t` stand on `r`, which is gone: a layer that both share and nobody names.
async fn with_branches(cluster: &Cluster) -> Client {
    for name in ["a", "b", "g"] {
        cluster.start(name).await;
    }
    cluster.create("a").await;
    let client = cluster.attach("g").await;
    for block in 0..40 {
        client.write(block, b'r').await.unwrap();
    }
    cluster.ask("a", named("r", 1)).await;
    client.write(1, b's').await.unwrap();
    cluster.ask("a", take(2)).await;
    let back = NodeRequest::RollbackSnapshot { volume: VOLUME, name: "r".into(), operation: OperationId(3) };
    cluster.ask("a", back).await;
    client.write(2, b't').await.unwrap();
    cluster.ask("a", named("t", 4)).await;
    cluster.ask("a", NodeRequest::DeleteSnapshot { volume: VOLUME, name: "r".into() }).await;
    client.write(3, b'h').await.unwrap();
    client.flush().await.unwrap();
    client
}

#[test]
fn snapshots_move_with_their_volume_and_back_with_it() {
    each_seed(0..4, async |cluster| {
        let client = with_branches(&cluster).await;
        let before = told(&snapshots(&cluster, "a"));
        assert_eq!(before.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["s", "t"]);
        mirror(&cluster).await;
        let refused = cluster.request("a", named("no", 5)).await;
        assert!(matches!(refused, NodeReply::Refused(Refusal::Conflict { .. })), "{refused:?}");
        flip(&cluster, "a", "b", 1, 1).await;
        until_phase(&cluster, "b", SendPhase::Synced).await;
        let delete = NodeRequest::DeleteSnapshot { volume: VOLUME, name: "s".into() };
        let refused = cluster.request("b", delete.clone()).await;
        assert!(matches!(refused, NodeReply::Refused(Refusal::Conflict { .. })), "{refused:?}");
        flip(&cluster, "b", "a", 2, 1).await;
        until_phase(&cluster, "a", SendPhase::Synced).await;
        flip(&cluster, "a", "b", 3, 1).await;
        until_phase(&cluster, "b", SendPhase::Synced).await;
        assert_eq!(
            (told(&snapshots(&cluster, "a")), told(&snapshots(&cluster, "b"))),
            (before.clone(), before.clone())
        );
        cluster.ask("b", NodeRequest::BeginProof { migration: MIGRATION, generation: GENERATION }).await;
        let proof = until_phase(&cluster, "b", SendPhase::Proven).await.proof.unwrap();
        assert_eq!((proof.regions_equal, proof.regions_different), (proof.regions_total, 0));
        commit(&cluster).await;
        // What was named only to travel is nobody's any more.
        let left = snapshots(&cluster, "b");
        assert_eq!((left.len(), told(&left)), (2, before));
        cluster.ask("b", go_back(6)).await;
        let seen = [client.read(1).await, client.read(2).await, client.read(3).await, client.read(4).await];
        assert_eq!(seen, [Ok(b's'), Ok(b'r'), Ok(b'r'), Ok(b'r')]);
        let back = NodeRequest::RollbackSnapshot { volume: VOLUME, name: "t".into(), operation: OperationId(7) };
        cluster.ask("b", back).await;
        let seen = [client.read(1).await, client.read(2).await, client.read(3).await, client.read(4).await];
        assert_eq!(seen, [Ok(b'r'), Ok(b't'), Ok(b'r'), Ok(b'r')]);
        cluster.ask("b", delete).await;
        assert_eq!(client.read(39).await, Ok(b'r'));
    });
}

/// A copy that is not complete has nobody's snapshots to show, and goes with them.
#[test]
fn what_has_come_goes_when_the_move_is_given_up() {
    each_seed(0..3, async |cluster| {
        let client = with_branches(&cluster).await;
        let before = told(&snapshots(&cluster, "a"));
        copy(&cluster).await;
        assert_eq!(told(&snapshots(&cluster, "b")), before);
        let end = |drop_volume| NodeRequest::EndMigration {
            migration: MIGRATION,
            generation: GENERATION,
            volume: VOLUME,
            epoch: drover_base::Epoch(1),
            drop_volume,
        };
        cluster.ask("a", end(false)).await;
        cluster.ask("b", end(true)).await;
        assert!(cluster.node("b").status().volumes.is_empty());
        let left = snapshots(&cluster, "a");
        assert_eq!((left.len(), told(&left)), (2, before));
        cluster.ask("a", go_back(6)).await;
        assert_eq!(client.read(1).await, Ok(b's'));
    });
}
