//! Requests that end a volume while another, given up by who asked, still makes it.

use super::cluster::{Cluster, SIZE, SLOTS, VOLUME, each_seed};
use super::flip::{GENERATION, MIGRATION, mirror, prepare};
use drover_base::units::{BLOCK_BYTES, EXTENT_BYTES};
use drover_base::{Epoch, IoError, VolumeId};
use drover_wire::admin::{Export, NodeReply, NodeRequest};
use futures::future::join;

/// Both at once, in this order, as they come over one connection.
async fn both(cluster: &Cluster, first: NodeRequest, second: NodeRequest) -> (NodeReply, NodeReply) {
    let node = cluster.node("b").home(VOLUME).clone();
    let asked = async move { join(node.handle(first), node.handle(second)).await };
    cluster.sim.process("b").run(asked).await.expect("it lives")
}

/// The control plane waited in vain for a mirror to be made, cancelled the migration and was told that nothing of it is
/// there; then the mirror was made, and with what it had reserved stayed for ever.
#[test]
pub fn a_mirror_that_is_being_made_is_dropped_with_its_migration() {
    each_seed(0..5, async |cluster| {
        cluster.start("b").await;
        let (migration, generation, volume, epoch) = (MIGRATION, GENERATION, VOLUME, Epoch(1));
        let end = NodeRequest::EndMigration { migration, generation, volume, epoch, drop_volume: true };
        assert_eq!(both(&cluster, prepare(migration), end).await, (NodeReply::Done, NodeReply::Done));
        let status = cluster.node("b").status();
        assert_eq!((status.volumes.len(), status.tiers[0].reserved_bytes), (0, 0));
    });
}

/// The same of a volume that is deleted while it is being made.
#[test]
fn a_volume_that_is_being_made_is_deleted() {
    each_seed(0..5, async |cluster| {
        cluster.start("b").await;
        let (volume, size_bytes, epoch) = (VOLUME, SIZE, Epoch(1));
        let create =
            NodeRequest::CreateVolume { volume, name: "data".into(), size_bytes, epoch, tenant: "shop".into() };
        let delete = NodeRequest::DeleteVolume { volume, epoch };
        assert_eq!(both(&cluster, create, delete).await, (NodeReply::Done, NodeReply::Done));
        assert!(cluster.node("b").status().volumes.is_empty());
    });
}

/// What was reserved for a migration was reserved against other migrations only: a local writer took it, and the copy
/// failed. Now the writer gets ENOSPC; the copy takes its promise, which is over with the migration.
#[test]
pub fn what_is_promised_to_a_copy_is_not_for_others() {
    for takes_place in [false, true] {
        each_seed(0..2, async |cluster| {
            for name in ["a", "b"] {
                cluster.start(name).await;
            }
            cluster.create("a").await;
            let at_a = cluster.attach("a").await;
            for block in (0..SIZE / BLOCK_BYTES).step_by(16) {
                at_a.write(block, b'1').await.unwrap();
            }
            let volume = VolumeId(8);
            let size_bytes = SLOTS * EXTENT_BYTES;
            cluster
                .ask(
                    "b",
                    NodeRequest::CreateVolume {
                        volume,
                        name: "local".into(),
                        size_bytes,
                        epoch: Epoch(1),
                        tenant: "shop".into(),
                    },
                )
                .await;
            let export = Export { name: "local".into(), volume, size_bytes, workload: None };
            cluster.ask("b", NodeRequest::SetExport { export }).await;
            let local = cluster.attach_to("b", "local").await;
            cluster.ask("b", prepare(MIGRATION)).await;
            let free = (size_bytes - SIZE) / EXTENT_BYTES;
            for extent in 0..free {
                local.write(extent * 16, b'2').await.unwrap();
            }
            assert_eq!(local.write(free * 16, b'3').await, Err(IoError::NoSpace));
            local.write(0, b'4').await.unwrap();
            local.flush().await.unwrap();
            cluster.kill("b");
            cluster.start("b").await;
            let local = cluster.attach_to("b", "local").await;
            assert_eq!(local.write(free * 16, b'3').await, Err(IoError::NoSpace), "after a restart");
            let reserved = || cluster.node("b").status().tiers[0].reserved_bytes;
            assert_eq!(reserved(), SIZE);
            if takes_place {
                mirror(&cluster).await;
                assert_eq!((reserved(), local.write(free * 16, b'3').await), (0, Err(IoError::NoSpace)));
            }
            let (migration, generation, volume, epoch) = (MIGRATION, GENERATION, VOLUME, Epoch(1));
            let end = NodeRequest::EndMigration { migration, generation, volume, epoch, drop_volume: true };
            cluster.ask("b", end).await;
            assert_eq!(reserved(), 0);
            local.write(free * 16, b'3').await.unwrap();
        });
    }
}
