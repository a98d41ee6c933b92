//! A node of several shards: volumes spread over them, and what all of them share.

use super::cluster::{Client, Cluster, each_seed};
use crate::nbd::ExportName;
use drover_base::units::EXTENT_BYTES;
use drover_base::{Epoch, Generation, IoError, MigrationId, VolumeId};
use drover_wire::admin::{Export, NodeReply, NodeRequest, Refusal};
use futures::FutureExt;

/// Some of them on each shard, however many there are.
const VOLUMES: std::ops::Range<u64> = 100..106;

async fn create(cluster: &Cluster, id: u64, size_bytes: u64) {
    let (volume, name, epoch) = (VolumeId(id), format!("v{id}"), Epoch(1));
    cluster
        .ask("a", NodeRequest::CreateVolume { volume, name: name.clone(), size_bytes, epoch, tenant: "shop".into() })
        .await;
    let export = Export { name, volume, size_bytes, workload: None };
    cluster.ask("a", NodeRequest::SetExport { export }).await;
}

async fn create_all(cluster: &Cluster) {
    for id in VOLUMES {
        create(cluster, id, 1 << 20).await;
    }
}

async fn attach(cluster: &Cluster, id: u64) -> Client {
    cluster.attach_to("a", &format!("v{id}")).await
}

/// The blocks of a volume, each full of a letter of its own.
async fn write(cluster: &Cluster, id: u64) {
    let client = attach(cluster, id).await;
    for block in 0..100 {
        client.write(block, (id + block) as u8).await.unwrap();
    }
    client.flush().await.unwrap();
}

async fn check(cluster: &Cluster, id: u64) {
    let client = attach(cluster, id).await;
    for block in 0..100 {
        assert_eq!(client.read(block).await, Ok((id + block) as u8), "volume {id}, block {block}");
    }
}

async fn all(of_each: impl AsyncFn(u64)) {
    futures::future::join_all(VOLUMES.map(|id| of_each(id))).await;
}

#[test]
fn volumes_on_all_shards_are_served_at_once_and_move_home_when_their_number_changes() {
    each_seed(0..6, async |cluster| {
        cluster.start_shards("a", 2).await;
        create_all(&cluster).await;
        all(async |id| write(&cluster, id).await).await;
        for shards in [3, 1, 5] {
            cluster.kill("a");
            cluster.start_shards("a", shards).await;
            let status = cluster.node("a").status();
            assert_eq!(status.volumes.iter().map(|it| it.volume.0).collect::<Vec<_>>(), VOLUMES.collect::<Vec<_>>());
            assert_eq!(status.exports.len(), VOLUMES.count(), "each is listed once");
            all(async |id| check(&cluster, id).await).await;
        }
        cluster.ask("a", NodeRequest::DeleteVolume { volume: VolumeId(101), epoch: Epoch(1) }).await;
        let left = cluster.node("a").status().volumes;
        assert!(left.len() == VOLUMES.count() - 1 && left.iter().all(|it| it.volume.0 != 101));
    });
}

/// Slots belong to nobody before they are used: one volume may take them all, and what it gives back is anybody's.
#[test]
fn the_whole_tier_is_open_to_each_shard() {
    each_seed(0..3, async |cluster| {
        const SLOTS: u64 = super::cluster::SLOTS;
        const BLOCKS_PER_EXTENT: u64 = EXTENT_BYTES / 4096;
        cluster.start_shards("a", 4).await;
        let size = (SLOTS + 1) * EXTENT_BYTES;
        for (id, next) in [(101, 102), (102, 103)] {
            create(&cluster, id, size).await;
            create(&cluster, next, size).await;
            let (client, other) = (attach(&cluster, id).await, attach(&cluster, next).await);
            for extent in 0..SLOTS {
                client.write(extent * BLOCKS_PER_EXTENT, 7).await.unwrap();
            }
            assert_eq!(client.write(SLOTS * BLOCKS_PER_EXTENT, 7).await, Err(IoError::NoSpace));
            assert_eq!(other.write(0, 7).await, Err(IoError::NoSpace));
            client.write(0, 8).await.unwrap();
            assert_eq!(client.read(0).await, Ok(8));
            for volume in [id, next] {
                cluster.ask("a", NodeRequest::DeleteVolume { volume: VolumeId(volume), epoch: Epoch(1) }).await;
                cluster.ask("a", NodeRequest::RemoveExport { name: format!("v{volume}") }).await;
            }
        }
    });
}

/// The kernel tells one caller that a sync failed; every volume with unsynced writes on the device is concerned.
#[test]
fn a_failed_sync_poisons_across_shards() {
    each_seed(0..6, async |cluster| {
        cluster.start_shards("a", 3).await;
        create_all(&cluster).await;
        all(async |id| write(&cluster, id).await).await;
        let wrote = [attach(&cluster, 100).await, attach(&cluster, 101).await, attach(&cluster, 103).await];
        for client in &wrote {
            client.write(0, 1).await.unwrap();
        }
        cluster.fail_sync("a");
        assert!(wrote[0].flush().await.is_err());
        for client in &wrote {
            assert_eq!(client.read(0).await, Err(IoError::Poisoned));
            assert_eq!(client.flush().await, Err(IoError::Poisoned));
        }
        // Those who had flushed lost nothing.
        check(&cluster, 102).await;
        check(&cluster, 104).await;
        let poisoned = cluster.node("a").status().volumes.into_iter().filter(|it| it.poisoned).map(|it| it.volume.0);
        assert_eq!(poisoned.collect::<Vec<_>>(), [100, 101, 103]);
        for volume in [100, 101, 103] {
            cluster.ask("a", NodeRequest::Reopen { volume: VolumeId(volume) }).await;
            let client = attach(&cluster, volume).await;
            client.write(0, 2).await.unwrap();
            client.flush().await.unwrap();
            assert_eq!((client.read(0).await, client.read(1).await), (Ok(2), Ok((volume + 1) as u8)));
        }
    });
}

#[test]
fn a_name_is_one_export_whichever_shards_are_concerned() {
    each_seed(0..1, async |cluster| {
        cluster.start_shards("a", 3).await;
        create_all(&cluster).await;
        let taken = Export { name: "v100".into(), volume: VolumeId(101), size_bytes: 1 << 20, workload: None };
        let reply = cluster.request("a", NodeRequest::SetExport { export: taken }).await;
        assert!(matches!(reply, NodeReply::Refused(Refusal::Conflict { .. })), "{reply:?}");
    });
}

#[test]
fn a_migration_that_no_shard_has_part_in_is_not_found() {
    each_seed(0..1, async |cluster| {
        cluster.start_shards("a", 3).await;
        create_all(&cluster).await;
        let (migration, generation) = (MigrationId(9), Generation(1));
        let reply = cluster.request("a", NodeRequest::BeginProof { migration, generation }).await;
        assert!(matches!(reply, NodeReply::Refused(Refusal::NotFound { .. })), "{reply:?}");
    });
}

/// An export that goes, or becomes another volume's, is withdrawn from whoever has it open; one that is told again is not.
#[test]
fn a_withdrawn_export_lets_its_clients_go() {
    each_seed(0..2, async |cluster| {
        cluster.start_shards("a", 3).await;
        create(&cluster, 100, 1 << 20).await;
        let exports = cluster.node("a").exports();
        let name = ExportName { export: "v100".into(), workload: None };
        let mut withdrawn = exports.open(&name).await.expect("it is exported").withdrawn;
        let export = Export { name: "v100".into(), volume: VolumeId(100), size_bytes: 1 << 20, workload: None };
        cluster.ask("a", NodeRequest::SetExport { export }).await;
        assert_eq!((&mut withdrawn).now_or_never(), None, "it is the same");
        cluster.ask("a", NodeRequest::RemoveExport { name: "v100".into() }).await;
        assert_eq!(withdrawn.now_or_never(), Some(()));
        assert!(exports.open(&name).await.is_err());
    });
}
