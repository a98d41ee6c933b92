//! A node whose metadata was lost and restored from a checkpoint.

use super::cluster::{Cluster, SIZE, VOLUME, address, each_seed, grant};
use super::flip::mirror;
use drover_base::{Epoch, Generation, MigrationId};
use drover_wire::admin::{NodeReply, NodeRequest, Role};
use futures::future::{Either, select};
use std::{pin::pin, time::Duration};

async fn written(cluster: &Cluster) -> super::cluster::Client {
    cluster.start("a").await;
    cluster.start("b").await;
    cluster.create("a").await;
    let client = cluster.attach("a").await;
    client.write(1, b'1').await.unwrap();
    client.flush().await.unwrap();
    client
}

/// The volume had moved since the checkpoint. The restored node took itself for the holder, without a time limit, and
/// acknowledged writes beside the one that was.
#[test]
pub fn a_restored_holder_serves_nothing_before_it_is_told_to() {
    each_seed(0..3, async |cluster| {
        written(&cluster).await;
        cluster.kill("a");
        cluster.kill_control();
        cluster.start_restored("a").await;
        let client = cluster.attach("a").await;
        let patience = cluster.sim.sleep(Duration::from_secs(10));
        let is_held = matches!(select(pin!(client.write(2, b'2')), pin!(patience)).await, Either::Right(_));
        assert!(is_held, "it was acknowledged");
        cluster.start_control();
        assert_eq!(client.read(1).await, Ok(b'1'));
        client.write(1, b'3').await.unwrap();
    });
}

/// It moved away: what is restored stays fenced.
#[test]
fn a_restored_holder_of_before_stays_fenced() {
    each_seed(0..3, async |cluster| {
        written(&cluster).await;
        cluster.kill("a");
        cluster.recorded.borrow_mut().grants.insert(VOLUME, grant(2, 0, "b", None));
        cluster.start_restored("a").await;
        cluster.sim.sleep(Duration::from_secs(3)).await;
        let status = cluster.node("a").status();
        assert!(status.volumes.iter().all(|volume| volume.role != Role::Holder), "{status:?}");
    });
}

/// What is restored stays fenced, and the volume could never be moved back to that node: it was there already.
#[test]
fn a_volume_moves_back_to_a_node_that_kept_an_old_copy() {
    each_seed(0..3, async |cluster| {
        written(&cluster).await;
        cluster.kill("a");
        cluster.recorded.borrow_mut().grants.insert(VOLUME, grant(2, 0, "b", None));
        cluster.start_restored("a").await;
        let prepare = |migration, epoch| NodeRequest::PrepareReceive {
            migration: MigrationId(migration),
            generation: Generation(0),
            volume: VOLUME,
            name: "data".into(),
            size_bytes: SIZE,
            reserve_bytes: SIZE,
            epoch: Epoch(epoch),
            source: address("b"),
            tenant: "shop".into(),
        };
        let before = cluster.node("a").status().volumes[0].clone();
        assert_eq!((before.role, before.valid_bytes), (Role::Fenced, 4096));
        // A request from before the lease moved is about the copy that is here.
        assert!(matches!(cluster.request("a", prepare(7, before.epoch.0)).await, NodeReply::Refused(_)));
        assert_eq!(cluster.node("a").status().volumes[0], before);
        cluster.ask("a", prepare(8, 2)).await;
        cluster.ask("a", prepare(8, 2)).await;
        let after = cluster.node("a").status().volumes[0].clone();
        assert_eq!((after.role, after.epoch, after.valid_bytes), (Role::Mirror, Epoch(2), 0), "it begins anew");
        // A mirror of a migration is no old copy.
        assert!(matches!(cluster.request("a", prepare(9, 3)).await, NodeReply::Refused(_)));
        assert_eq!(cluster.node("a").status().volumes[0], after);
        cluster.kill("a");
        cluster.start("a").await;
        assert_eq!(cluster.node("a").status().volumes[0].role, Role::Mirror);
    });
}

/// The copy had confirmed writes as durable that a restore does not bring back, and the sender would not send them
/// again: it is not taken for a copy any more.
#[test]
pub fn a_restored_mirror_is_no_copy() {
    each_seed(0..3, async |cluster| {
        written(&cluster).await;
        mirror(&cluster).await;
        cluster.kill("b");
        cluster.start_restored("b").await;
        assert!(cluster.node("b").status().volumes.is_empty());
    });
}
