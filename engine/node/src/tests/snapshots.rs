//! Snapshots and rollbacks as the control plane asks for them, and what of them a migration would send.

use super::cluster::{SIZE, VOLUME, each_seed};
use drover_base::units::{BLOCK_BYTES, EXTENT_BYTES};
use drover_base::{Epoch, IoError, OperationId};
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

/// All that belongs to the volume: what was rewritten under ten snapshots is there ten times, what they share once.
#[test]
fn what_a_migration_sends_is_measured_with_snapshots() {
    each_seed(0..2, async |cluster| {
        cluster.start("a").await;
        cluster.create("a").await;
        let client = cluster.attach("a").await;
        for turn in 0..10 {
            for block in [1, 2, 40] {
                // The last is written once.
                if turn == 0 || block != 40 {
                    client.write(block, b'a' + turn).await.unwrap();
                }
            }
            let name = format!("s{turn}");
            let operation = OperationId(turn.into());
            cluster.ask("a", NodeRequest::CreateSnapshot { volume: VOLUME, name, operation }).await;
        }
        let measured = cluster.ask("a", NodeRequest::MeasureVolume { volume: VOLUME }).await;
        let (used_bytes, valid_bytes) = (11 * EXTENT_BYTES, 21 * BLOCK_BYTES);
        let all = NodeReply::Measured { used_bytes, valid_bytes, size_bytes: SIZE };
        assert_eq!(measured, all);
    });
}

/// Whoever is attached goes on; requests past the end fail until the volume is larger, and again when it went back.
#[test]
fn a_volume_is_made_larger_and_goes_back() {
    each_seed(0..3, async |cluster| {
        cluster.start("a").await;
        cluster.create("a").await;
        let client = cluster.attach("a").await;
        cluster.ask("a", take(1)).await;
        let grow = |size_bytes, epoch| NodeRequest::ResizeVolume { volume: VOLUME, size_bytes, epoch: Epoch(epoch) };
        let (past, larger) = (SIZE / BLOCK_BYTES, SIZE + 2 * EXTENT_BYTES);
        assert!(matches!(client.write(past, b'1').await, Err(IoError::OutOfRange { .. })));
        let stale = cluster.request("a", grow(larger, 2)).await;
        assert!(matches!(stale, NodeReply::Refused(Refusal::Epoch { .. })), "{stale:?}");
        let smaller = cluster.request("a", grow(SIZE - BLOCK_BYTES, 1)).await;
        assert!(matches!(smaller, NodeReply::Refused(Refusal::Invalid { .. })), "{smaller:?}");
        for _ in 0..2 {
            assert_eq!(cluster.ask("a", grow(larger, 1)).await, NodeReply::Size { size_bytes: larger });
        }
        client.write(past, b'2').await.unwrap();
        client.flush().await.unwrap();
        cluster.kill("a");
        cluster.start("a").await;
        let client = cluster.attach("a").await;
        assert_eq!(client.read(past).await, Ok(b'2'));
        assert_eq!(cluster.ask("a", go_back(3)).await, NodeReply::Size { size_bytes: SIZE });
        assert!(matches!(client.read(past).await, Err(IoError::OutOfRange { .. })));
    });
}
