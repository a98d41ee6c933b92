//! Requests that end a volume while another, given up by who asked, still makes it.

use super::cluster::{Cluster, SIZE, VOLUME, each_seed};
use super::flip::{GENERATION, MIGRATION, prepare};
use drover_base::Epoch;
use drover_wire::admin::{NodeReply, NodeRequest};
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
        let create = NodeRequest::CreateVolume { volume, name: "data".into(), size_bytes, epoch };
        let delete = NodeRequest::DeleteVolume { volume, epoch };
        assert_eq!(both(&cluster, create, delete).await, (NodeReply::Done, NodeReply::Done));
        assert!(cluster.node("b").status().volumes.is_empty());
    });
}
