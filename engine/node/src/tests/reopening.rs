//! A poisoned volume is opened again through recovery: what that loses, nobody takes for durable.

use super::cluster::{SIZE, VOLUME, each_seed};
use super::flip::{GENERATION, MIGRATION, copy, flip, mirror, quiesce, until_phase};
use super::writers::become_the_writer;
use drover_base::{Epoch, IoError};
use drover_wire::admin::{NodeReply, NodeRequest, Refusal, SendPhase};
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

/// A sending that was begun, and ended as the volume was opened again, was begun anew as if the other side were still
/// empty: what it had got, and what was discarded here since, stayed there.
#[test]
pub fn a_sending_that_begins_again_compares() {
    each_seed(0..6, async |cluster| {
        cluster.start("a").await;
        cluster.start("b").await;
        cluster.create("a").await;
        let client = cluster.attach("a").await;
        for block in [1, 40] {
            client.write(block, b'1').await.unwrap();
        }
        client.flush().await.unwrap();
        copy(&cluster).await;
        cluster.ask("a", REOPEN).await;
        client.zero(1).await.unwrap();
        mirror(&cluster).await;
        flip(&cluster, "a", "b", 1, 1).await;
        assert_eq!((client.read(1).await, client.read(40).await), (Ok(0), Ok(b'1')));
    });
}

/// A client of the holder read while the volume was closed, for a change that failed; it was opened again before the read
/// went on, which then showed what was there before a gateway had brought back what its clients had been acknowledged.
#[test]
pub fn a_read_that_waited_for_the_opening_waits_for_the_replay() {
    each_seed(0..40, async |cluster| {
        cluster.start("a").await;
        cluster.start("g").await;
        cluster.create("a").await;
        let [at_holder, client] = [cluster.attach("a").await, cluster.attach("g").await];
        become_the_writer(&cluster, &client).await;
        client.flush().await.unwrap();
        client.write(1, b'1').await.unwrap();
        let seat = cluster.node("a").home(VOLUME).seat(VOLUME).unwrap();
        let closed = seat.volume.quiesce().await;
        let read = at_holder.read(1);
        let reopened = async {
            cluster.sim.sleep(Duration::from_millis(1)).await;
            let reopen = cluster.ask("a", REOPEN);
            let opens = async {
                cluster.sim.sleep(Duration::from_millis(20)).await;
                drop(closed);
            };
            futures::join!(reopen, opens);
        };
        let (read, ()) = futures::join!(read, reopened);
        assert!(matches!(read, Ok(b'1') | Err(IoError::Poisoned)), "{read:?}");
        assert_eq!(at_holder.read(1).await, Ok(b'1'));
    });
}

/// The new holder of a volume asked that the way back be recorded as open, in vain at first. Then its volume was opened
/// again, for which the way back was recorded as closed; and what had asked before went on to ask and had it opened,
/// though the other side now had what the volume had lost and what clients were no longer shown.
#[test]
pub fn a_way_back_that_a_reopening_closed_stays_closed_until_all_was_compared() {
    each_seed(0..20, async |cluster| {
        for name in ["a", "b", "g"] {
            cluster.start(name).await;
        }
        cluster.create("a").await;
        let client = cluster.attach("g").await;
        client.write(1, b'1').await.unwrap();
        mirror(&cluster).await;
        flip(&cluster, "a", "b", 1, 1).await;
        until_phase(&cluster, "b", SendPhase::Synced).await;
        cluster.kill("a");
        client.write(1, b'2').await.unwrap();
        let is_open = || cluster.recorded.borrow().way_back.last().map(|last| last.0);
        assert_eq!(is_open(), Some(false));
        cluster.sim.partition("b", "control");
        cluster.start("a").await;
        until_phase(&cluster, "b", SendPhase::Synced).await;
        let seat = cluster.node("b").home(VOLUME).seat(VOLUME).unwrap();
        let before = seat.instance();
        // A request that is under way for a while: the reopening waits for it.
        cluster.sim.pause("a");
        let reopened = async {
            cluster.sim.sleep(Duration::from_millis(20)).await;
            let heals = async {
                cluster.sim.sleep(Duration::from_millis(100)).await;
                cluster.sim.heal("b", "control");
                cluster.sim.sleep(Duration::from_millis(100 + 30 * cluster.sim.seed())).await;
                cluster.sim.resume("a");
            };
            let looks = async {
                while seat.instance() == before {
                    cluster.sim.sleep(Duration::from_micros(50)).await;
                }
                assert_eq!(is_open(), Some(false), "{:?}", cluster.recorded.borrow().way_back);
            };
            futures::join!(cluster.ask("b", REOPEN), heals, looks);
        };
        let (written, ()) = futures::join!(client.write(2, b'3'), reopened);
        assert_eq!(written, Ok(()));
        cluster.sim.sleep(Duration::from_secs(10)).await;
        assert_eq!(is_open(), Some(true));
        assert_eq!((client.read(1).await, client.read(2).await), (Ok(b'2'), Ok(b'3')));
    });
}
