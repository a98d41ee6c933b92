//! A poisoned volume is opened again through recovery: what that loses, nobody takes for durable.

use super::cluster::{SIZE, VOLUME, each_seed};
use super::flip::{GENERATION, MIGRATION, mirror, quiesce};
use drover_base::{Epoch, IoError};
use drover_wire::admin::{NodeReply, NodeRequest, Refusal};
use std::{cell::Cell, time::Duration};

const REOPEN: NodeRequest = NodeRequest::Reopen { volume: VOLUME };

fn letter(turn: u64) -> u8 {
    b'a' + (turn % 26) as u8
}

/// A client wrote, another one's flush failed, and the volume was opened again before the first one asked for
/// anything: its flush succeeded, though what it had been told is written was gone.
#[test]
pub fn a_client_of_the_holder_is_told_once_that_its_writes_may_be_lost() {
    each_seed(0..10, async |cluster| {
        cluster.start("a").await;
        cluster.create("a").await;
        let [client, other] = [cluster.attach("a").await, cluster.attach("a").await];
        client.write(1, b'1').await.unwrap();
        client.flush().await.unwrap();
        client.write(20, b'2').await.unwrap();
        cluster.fail_sync("a");
        assert!(other.flush().await.is_err());
        cluster.ask("a", REOPEN).await;
        assert_eq!(client.read(20).await, Ok(0), "it was not flushed");
        let late = cluster.attach("a").await;
        assert_eq!(late.flush().await, Ok(()), "whoever comes later has lost nothing");
        assert_eq!(client.flush().await, Err(IoError::Poisoned));
        assert_eq!(client.flush().await, Ok(()));
        assert_eq!(other.flush().await, Err(IoError::Poisoned));
        client.write(20, b'3').await.unwrap();
        assert_eq!((other.flush().await, client.flush().await), (Ok(()), Ok(())));
        assert_eq!((other.read(1).await, other.read(20).await), (Ok(b'1'), Ok(b'3')));
    });
}

/// A gateway that connected while the volume was being opened was told the instance of before, replayed nothing, and
/// its next flush let go of writes that were lost.
#[test]
pub fn a_gateway_that_connects_meanwhile_replays_too() {
    each_seed(0..20, async |cluster| {
        cluster.start("a").await;
        cluster.start("g").await;
        cluster.create("a").await;
        let client = cluster.attach("g").await;
        // In as many extents as there are, each with something durable, so that opening takes a while.
        let blocks = || (2..SIZE / 4096).step_by(16);
        for block in blocks() {
            client.write(block - 1, b'D').await.unwrap();
        }
        client.flush().await.unwrap();
        for block in blocks() {
            client.write(block, letter(block)).await.unwrap();
        }
        cluster.fail_sync("a");
        assert!(client.flush().await.is_err());
        let is_open = Cell::new(false);
        let reopen = async {
            cluster.ask("a", REOPEN).await;
            is_open.set(true);
        };
        let asks = async {
            while !is_open.get() {
                // Refused or answered: it only has to keep the gateway connected.
                let _ = client.read(1).await;
                cluster.sim.sleep(Duration::from_micros(50)).await;
            }
        };
        futures::join!(reopen, asks);
        for block in blocks() {
            assert_eq!(client.read(block).await, Ok(letter(block)), "block {block}");
        }
        client.flush().await.unwrap();
        cluster.kill("a");
        cluster.start("a").await;
        for block in blocks() {
            assert_eq!(client.read(block).await, Ok(letter(block)), "block {block}");
        }
    });
}

/// A holder that has drained admits nobody, so opening its volume again waited for ever, and with it every change of
/// the seat and of other volumes.
#[test]
fn a_holder_that_drained_for_a_flip_is_not_reopened() {
    each_seed(0..3, async |cluster| {
        cluster.start("a").await;
        cluster.start("b").await;
        cluster.create("a").await;
        let client = cluster.attach("a").await;
        client.write(1, b'1').await.unwrap();
        mirror(&cluster).await;
        quiesce(&cluster, "a", 1, 1).await;
        let reply = cluster.request("a", REOPEN).await;
        assert!(matches!(reply, NodeReply::Refused(Refusal::Conflict { .. })), "{reply:?}");
        let (migration, generation) = (MIGRATION, GENERATION);
        cluster.ask("a", NodeRequest::ResumeHolder { migration, generation, epoch: Epoch(1), attempt: 1 }).await;
        assert_eq!(client.read(1).await, Ok(b'1'));
    });
}
