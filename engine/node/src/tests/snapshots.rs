//! Snapshots and rollbacks as the control plane asks for them, and what of them a migration would send.

use super::cluster::{VOLUME, each_seed};
use drover_base::OperationId;
use drover_base::units::{BLOCK_BYTES, EXTENT_BYTES};
use drover_wire::admin::{NodeReply, NodeRequest, Refusal};

pub fn take(operation: u64) -> NodeRequest {
    NodeRequest::CreateSnapshot { volume: VOLUME, name: "s".into(), operation: OperationId(operation) }
}

pub fn go_back(operation: u64) -> NodeRequest {
    NodeRequest::RollbackSnapshot { volume: VOLUME, name: "s".into(), operation: OperationId(operation) }
}

/// Whoever was not told that it had been done asked again, and lost what was written in between. The node knows it also
/// after a restart: it is stored with the rollback itself.
#[test]
pub fn a_rollback_that_is_asked_again_is_done_once() {
    each_seed(0..5, async |cluster| {
        cluster.start("a").await;
        cluster.create("a").await;
        let client = cluster.attach("a").await;
        client.write(1, b'1').await.unwrap();
        cluster.ask("a", take(1)).await;
        cluster.ask("a", take(1)).await;
        let other = cluster.request("a", take(2)).await;
        assert!(matches!(other, NodeReply::Refused(Refusal::Conflict { .. })), "{other:?}");
        client.write(1, b'2').await.unwrap();
        cluster.ask("a", go_back(3)).await;
        assert_eq!(client.read(1).await, Ok(b'1'));
        client.write(1, b'3').await.unwrap();
        client.flush().await.unwrap();
        cluster.ask("a", go_back(3)).await;
        cluster.kill("a");
        cluster.start("a").await;
        let client = cluster.attach("a").await;
        cluster.ask("a", go_back(3)).await;
        assert_eq!(client.read(1).await, Ok(b'3'));
        cluster.ask("a", go_back(4)).await;
        assert_eq!(client.read(1).await, Ok(b'1'));
    });
}

/// A volume that was rewritten under ten snapshots was planned as eleven.
#[test]
fn what_a_migration_sends_is_measured_without_snapshots() {
    each_seed(0..2, async |cluster| {
        cluster.start("a").await;
        cluster.create("a").await;
        let client = cluster.attach("a").await;
        for turn in 0..10 {
            for block in [1, 2, 40] {
                client.write(block, b'a' + turn).await.unwrap();
            }
            let name = format!("s{turn}");
            let operation = OperationId(turn.into());
            cluster.ask("a", NodeRequest::CreateSnapshot { volume: VOLUME, name, operation }).await;
        }
        let measured = cluster.ask("a", NodeRequest::MeasureVolume { volume: VOLUME }).await;
        let head = NodeReply::Measured { used_bytes: 2 * EXTENT_BYTES, valid_bytes: 3 * BLOCK_BYTES };
        assert_eq!(measured, head);
    });
}
