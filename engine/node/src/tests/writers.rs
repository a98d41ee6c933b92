//! Clients of several nodes write to one volume, and its holder dies: what a gateway kept must neither be lost nor lie
//! over what others have written since.

use super::cluster::{Client, Cluster, VOLUME, each_seed};
use super::flip;
use super::snapshots::{go_back, take};
use crate::writers::{REPLAY_MAX, WRITER_PATIENCE, Way};
use drover_base::{Epoch, IoError, MigrationId, SessionId};
use drover_wire::admin::NodeRequest;
use drover_wire::writer_record::Writer;
use futures::future::{Either, select};
use futures::poll;
use std::{pin::pin, rc::Rc, task::Poll, time::Duration};

/// The holder `a`, and gateways `g` and `h`.
async fn start(cluster: &Cluster) -> [Client; 3] {
    for name in ["a", "g", "h"] {
        cluster.start(name).await;
    }
    cluster.create("a").await;
    [cluster.attach("a").await, cluster.attach("g").await, cluster.attach("h").await]
}

async fn restart(cluster: &Cluster) {
    cluster.kill("a");
    cluster.start("a").await;
}

/// Writes until the client's node keeps what it is acknowledged, and flushes none of it by itself.
pub async fn become_the_writer(cluster: &Cluster, client: &Client) {
    client.write(100, b'-').await.unwrap();
    cluster.sim.sleep(Duration::from_millis(1_100)).await;
    client.write(100, b'.').await.unwrap();
    cluster.sim.sleep(Duration::from_millis(100)).await;
}

/// `g` is the recorded writer and keeps block 1 = '1'; the holder has restarted, and `g` cannot reach it. `h` can.
async fn left_behind(cluster: &Cluster) -> [Client; 2] {
    let [_, g, h] = start(cluster).await;
    become_the_writer(cluster, &g).await;
    g.write(1, b'1').await.unwrap();
    cluster.sim.partition("a", "g");
    restart(cluster).await;
    [g, h]
}

/// The bug: `g` was acknowledged X = 1, which it keeps; then a client elsewhere was acknowledged X = 2 and flushed it. The
/// holder died, and `g` put its 1 over the flushed 2.
#[test]
pub fn what_others_have_flushed_is_not_replayed_over() {
    each_seed(0..20, async |cluster| {
        let [at_holder, g, h] = start(&cluster).await;
        for other in [&at_holder, &h] {
            become_the_writer(&cluster, &g).await;
            g.write(1, b'1').await.unwrap();
            g.write(2, b'3').await.unwrap();
            other.write(1, b'2').await.unwrap();
            other.flush().await.unwrap();
            restart(&cluster).await;
            let again = cluster.attach("a").await;
            for client in [&g, &h, &again] {
                assert_eq!(client.read(1).await, Ok(b'2'));
                assert_eq!(client.read(2).await, Ok(b'3'));
            }
            // Whoever was at the holder is a new client.
            if std::ptr::eq(other, &at_holder) {
                again.write(1, b'-').await.unwrap();
            }
        }
    });
}

/// A write was applied and never answered, and its client got an error. Others read it and flushed; then the holder died,
/// and the gateway put what it had been acknowledged before over it.
#[test]
pub fn what_was_given_up_and_flushed_by_others_is_not_replayed_over() {
    each_seed(0..5, async |cluster| {
        let [_, g, h] = start(&cluster).await;
        become_the_writer(&cluster, &g).await;
        for block in 1..4 {
            g.write(block, b'1').await.unwrap();
        }
        // What it asks arrives, the answers do not.
        cluster.sim.partition_one_way("a", "g");
        let answers = futures::join!(g.write(1, b'2'), g.zero(2), g.write(4, b'2'));
        assert_eq!(answers, (Err(IoError::TimedOut), Err(IoError::TimedOut), Err(IoError::TimedOut)));
        let seen = (h.read(1).await, h.read(2).await, h.read(3).await, h.read(4).await);
        assert_eq!(seen, (Ok(b'2'), Ok(0), Ok(b'1'), Ok(b'2')));
        h.flush().await.unwrap();
        cluster.kill("a");
        cluster.sim.heal("a", "g");
        cluster.start("a").await;
        assert_eq!((h.read(1).await, h.read(2).await, h.read(3).await, h.read(4).await), seen);
        assert_eq!(g.flush().await, Ok(()));
    });
}

/// The same without a flush: both were acknowledged to clients that survived, so the newer one stays.
#[test]
fn the_newer_of_two_unflushed_writes_stays() {
    each_seed(0..20, async |cluster| {
        let [_, g, h] = start(&cluster).await;
        become_the_writer(&cluster, &g).await;
        for turn in 0..10 {
            for (block, (one, other)) in [(&g, &h), (&h, &g)].into_iter().enumerate() {
                one.write(block as u64, b'a' + turn).await.unwrap();
                other.write(block as u64, b'A' + turn).await.unwrap();
            }
            if turn % 3 == 0 {
                restart(&cluster).await;
            }
            for client in [&g, &h] {
                assert_eq!(client.read(0).await, Ok(b'A' + turn), "turn {turn}");
                assert_eq!(client.read(1).await, Ok(b'A' + turn), "turn {turn}");
            }
        }
    });
}

/// After a restart everybody waits for the one whose writes may be missing; what they write then is newer.
#[test]
pub fn others_wait_for_a_gateway_that_comes_late() {
    each_seed(0..10, async |cluster| {
        let [_, g, h] = start(&cluster).await;
        become_the_writer(&cluster, &g).await;
        for block in 0..40 {
            g.write(block, b'1').await.unwrap();
        }
        cluster.sim.partition("a", "g");
        restart(&cluster).await;
        let at_holder = cluster.attach("a").await;
        let heal = async {
            cluster.sim.sleep(WRITER_PATIENCE / 2).await;
            cluster.sim.heal("a", "g");
        };
        let written = async { (h.write(1, b'2').await, h.read(2).await) };
        let ((), written, read) = futures::join!(heal, written, at_holder.read(3));
        assert_eq!((written, read), ((Ok(()), Ok(b'1')), Ok(b'1')));
        assert_eq!(g.read(1).await, Ok(b'2'), "the replay came before");
        assert_eq!(g.read(39).await, Ok(b'1'));
    });
}

/// The holder had restarted, was stopped before the gateway could replay, and gave it up the moment it woke, with the replay
/// before its door.
#[test]
pub fn a_standstill_of_the_holder_is_not_the_gateway_s_absence() {
    each_seed(0..10, async |cluster| {
        let [g, h] = left_behind(&cluster).await;
        let stands_still = async {
            cluster.sim.sleep(WRITER_PATIENCE / 2).await;
            cluster.sim.pause("a");
            cluster.sim.heal("a", "g");
            cluster.sim.sleep(WRITER_PATIENCE).await;
            cluster.sim.resume("a");
        };
        let ((), read) = futures::join!(stands_still, h.read(1));
        assert_eq!((read, g.read(1).await), (Ok(b'1'), Ok(b'1')));
    });
}

/// The time for it ran out while nobody looked: what came meanwhile, its replay too, was still to be read when a client
/// asked.
#[test]
pub fn a_gateway_is_not_given_up_by_who_comes_long_after_its_time() {
    each_seed(0..5, async |cluster| {
        let [g, h] = left_behind(&cluster).await;
        let goes_away = cluster.sim.sleep(WRITER_PATIENCE / 2);
        assert!(matches!(select(pin!(h.read(1)), pin!(goes_away)).await, Either::Right(_)));
        cluster.kill("h");
        cluster.sim.sleep(WRITER_PATIENCE * 2).await;
        cluster.sim.heal("a", "g");
        cluster.start("h").await;
        let h = cluster.attach("h").await;
        assert_eq!(h.write(1, b'2').await, Ok(()));
        assert_eq!((g.read(1).await, h.read(1).await), (Ok(b'2'), Ok(b'2')));
    });
}

/// Nobody waits for ever. What the late one had is lost, its clients are told, and it changes nothing any more.
#[test]
fn a_gateway_that_stays_away_is_given_up() {
    each_seed(0..10, async |cluster| {
        let [g, h] = left_behind(&cluster).await;
        let before = cluster.sim.now();
        h.write(1, b'2').await.unwrap();
        let waited = cluster.sim.now() - before;
        assert!(waited >= WRITER_PATIENCE && waited < WRITER_PATIENCE * 2, "{waited:?}");
        h.flush().await.unwrap();
        cluster.sim.heal("a", "g");
        // Not even a flush that was under way all the time says that all is well.
        assert_eq!(g.flush().await, Err(IoError::WritesLost));
        assert_eq!(g.read(1).await, Err(IoError::WritesLost));
        let again = cluster.attach("g").await;
        assert_eq!(again.read(1).await, Ok(b'2'));
        again.write(1, b'3').await.unwrap();
        restart(&cluster).await;
        assert_eq!((again.read(1).await, h.read(1).await), (Ok(b'3'), Ok(b'3')));
    });
}

/// It comes again and again, and each time its connection breaks before it has replayed.
#[test]
fn a_gateway_whose_replay_comes_to_no_end_is_given_up() {
    each_seed(0..3, async |cluster| {
        let [_, g, h] = start(&cluster).await;
        become_the_writer(&cluster, &g).await;
        for block in 0..100 {
            g.write(block, b'1').await.unwrap();
        }
        restart(&cluster).await;
        let before = cluster.sim.now();
        let breaks = async {
            while cluster.sim.now() - before < REPLAY_MAX * 3 / 2 {
                cluster.sim.sleep(Duration::from_millis(2)).await;
                cluster.sim.reset_connections("a", "g");
            }
        };
        let written = match select(pin!(h.write(1, b'2')), pin!(breaks)).await {
            Either::Left((written, _)) => written,
            Either::Right(_) => panic!("it waits on"),
        };
        assert_eq!(written, Ok(()));
        assert_eq!(g.read(1).await, Err(IoError::WritesLost));
        assert_eq!(h.read(1).await, Ok(b'2'));
    });
}

/// The gateway's machine died with the holder: nobody has its writes, so nobody is waited for once it is up again.
#[test]
fn a_gateway_that_died_is_not_waited_for() {
    each_seed(0..10, async |cluster| {
        let [_, g, h] = start(&cluster).await;
        become_the_writer(&cluster, &g).await;
        g.write(1, b'1').await.unwrap();
        cluster.kill("g");
        cluster.kill("a");
        cluster.start("g").await;
        cluster.start("a").await;
        let before = cluster.sim.now();
        let again = cluster.attach("g").await;
        let (old, new) = futures::join!(h.read(1), again.read(1));
        assert_eq!(old, new);
        assert!(cluster.sim.now() - before < WRITER_PATIENCE);
        // It is another writer than before.
        h.write(1, b'2').await.unwrap();
        again.write(1, b'3').await.unwrap();
        restart(&cluster).await;
        assert_eq!(h.read(1).await, Ok(b'3'));
    });
}

/// A failed sync, and the volume opened again: as after a restart, for those who write elsewhere, too.
#[test]
fn a_reopened_volume_waits_for_the_replay() {
    each_seed(0..10, async |cluster| {
        let [at_holder, g, h] = start(&cluster).await;
        become_the_writer(&cluster, &g).await;
        g.flush().await.unwrap();
        g.write(1, b'1').await.unwrap();
        g.write(2, b'1').await.unwrap();
        cluster.fail_sync("a");
        assert!(h.flush().await.is_err());
        let reopen = async {
            cluster.ask("a", NodeRequest::Reopen { volume: VOLUME }).await;
        };
        let late = async {
            while at_holder.write(1, b'2').await.is_err() {
                cluster.sim.sleep(Duration::from_millis(1)).await;
            }
        };
        futures::join!(reopen, late);
        for client in [&at_holder, &g, &h] {
            assert_eq!((client.read(1).await, client.read(2).await), (Ok(b'2'), Ok(b'1')));
        }
    });
}

/// What a gateway kept is of the content that a rollback gave up.
#[test]
fn a_rolled_back_volume_gets_no_replay() {
    each_seed(0..10, async |cluster| {
        let [_, g, _] = start(&cluster).await;
        become_the_writer(&cluster, &g).await;
        g.write(1, b'1').await.unwrap();
        cluster.ask("a", take(1)).await;
        g.write(1, b'2').await.unwrap();
        cluster.ask("a", go_back(2)).await;
        assert_eq!(g.read(1).await, Ok(b'1'));
        restart(&cluster).await;
        assert_eq!(g.read(1).await, Ok(b'1'));
    });
}

/// Flips keep the writer's term: nobody waits, and a log that is brought late to the new holder changes nothing there.
/// Then the new holder dies for good, and the side that takes over gets what it may lack.
#[test]
fn a_log_survives_a_flip_and_a_takeover() {
    each_seed(0..10, async |cluster| {
        let [_, g, h] = start(&cluster).await;
        cluster.start("b").await;
        flip::mirror(&cluster).await;
        become_the_writer(&cluster, &g).await;
        g.write(1, b'1').await.unwrap();
        // It does not learn of the flip before others have written there.
        cluster.sim.partition("a", "g");
        cluster.sim.partition("b", "g");
        flip::flip(&cluster, "a", "b", 1, 1).await;
        let before = cluster.sim.now();
        h.write(1, b'2').await.unwrap();
        h.flush().await.unwrap();
        assert!(cluster.sim.now() - before < Duration::from_secs(2), "nobody is waited for");
        cluster.sim.heal_all();
        assert_eq!(g.read(1).await, Ok(b'2'));
        become_the_writer(&cluster, &g).await;
        g.write(3, b'3').await.unwrap();
        g.write(1, b'4').await.unwrap();
        // Both lose power; `b` stays down, and `a`, which may have lost what was mirrored, takes over.
        cluster.kill("b");
        cluster.kill("a");
        cluster.recorded.borrow_mut().grants.insert(VOLUME, flip::flipped(3, "a", "b"));
        cluster.start("a").await;
        let at_holder = cluster.attach("a").await;
        for client in [&h, &g, &at_holder] {
            assert_eq!((client.read(1).await, client.read(3).await), (Ok(b'4'), Ok(b'3')));
        }
    });
}

/// The holder restarted, and its volume moved on before the gateway came: the waiting moves with it.
#[test]
pub fn a_replay_that_is_awaited_is_awaited_beyond_a_flip() {
    each_seed(0..10, async |cluster| {
        let [_, g, h] = start(&cluster).await;
        cluster.start("b").await;
        become_the_writer(&cluster, &g).await;
        g.write(1, b'1').await.unwrap();
        cluster.sim.partition("a", "g");
        cluster.sim.partition("b", "g");
        restart(&cluster).await;
        flip::mirror(&cluster).await;
        flip::flip(&cluster, "a", "b", 1, 1).await;
        let heal = async {
            cluster.sim.sleep(WRITER_PATIENCE / 2).await;
            cluster.sim.heal_all();
        };
        let ((), read) = futures::join!(heal, h.read(1));
        assert_eq!((read, g.read(1).await), (Ok(b'1'), Ok(b'1')));
    });
}

/// Clients of the holder are the writer beyond a flip as well: at first they need no gateway, then they have one.
#[test]
fn a_flip_away_from_its_clients_leaves_them_the_writer() {
    each_seed(0..10, async |cluster| {
        let [at_source, _, h] = start(&cluster).await;
        cluster.start("b").await;
        at_source.write(1, b'1').await.unwrap();
        flip::mirror(&cluster).await;
        flip::flip(&cluster, "a", "b", 1, 1).await;
        at_source.write(1, b'2').await.unwrap();
        let seat = cluster.node("b").home(VOLUME).seat(VOLUME).unwrap();
        let named = seat.writers.record().writer.as_ref().map(|writer| writer.node.clone());
        assert_eq!(named, Some(super::cluster::address("a").node));
        assert_eq!(seat.writers.record().term, 1, "since before the flip");
        h.write(1, b'3').await.unwrap();
        assert_eq!(at_source.read(1).await, Ok(b'3'));
    });
}

/// The bug: a client at the holder was acknowledged a write that the other side had not made durable. The holder stood
/// still, the other side died, came back and took over; the client went on without an error, and its write was gone.
#[test]
pub fn what_the_holder_s_own_client_was_acknowledged_survives_a_takeover() {
    each_seed(0..20, async |cluster| {
        let [_, g, h] = start(&cluster).await;
        cluster.start("b").await;
        let client = cluster.attach("b").await;
        client.write(100, b'-').await.unwrap();
        flip::mirror(&cluster).await;
        flip::flip(&cluster, "a", "b", 1, 1).await;
        let is_shared = cluster.sim.seed() % 2 == 0;
        for turn in 0..3 {
            if is_shared {
                g.write(50, b'a' + turn).await.unwrap();
            }
            for block in 0..20 {
                client.write(block, b'a' + turn).await.unwrap();
            }
            client.zero(20).await.unwrap();
            if turn == 1 {
                client.flush().await.unwrap();
            }
        }
        cluster.sim.pause("b");
        cluster.sim.sleep(Duration::from_millis(flip::TTL_MS * 11 / 10)).await;
        cluster.kill("a");
        cluster.recorded.borrow_mut().grants.insert(VOLUME, flip::flipped(3, "a", "b"));
        cluster.start("a").await;
        cluster.sim.resume("b");
        let at_new_holder = cluster.attach("a").await;
        for reader in [&h, &client, &at_new_holder] {
            for block in 0..20 {
                assert_eq!(reader.read(block).await, Ok(b'c'), "block {block}, shared: {is_shared}");
            }
            assert_eq!(reader.read(20).await, Ok(0));
        }
        assert_eq!(client.flush().await, Ok(()));
    });
}

/// A client at the holder was acknowledged writes, and the other side took over and gave the volume back before this
/// node's clients came to it: what the content was in between counts, not which instance holds.
#[test]
pub fn an_instance_that_was_superseded_is_another_when_it_holds_again() {
    each_seed(0..10, async |cluster| {
        let [_, g, h] = start(&cluster).await;
        cluster.start("b").await;
        flip::mirror(&cluster).await;
        flip::flip(&cluster, "a", "b", 1, 1).await;
        become_the_writer(&cluster, &g).await;
        g.write(1, b'1').await.unwrap();
        // Nobody hears of `g` until the volume has come back to `b`.
        cluster.sim.partition("a", "g");
        cluster.sim.partition("b", "g");
        cluster.sim.pause("b");
        cluster.sim.sleep(Duration::from_millis(flip::TTL_MS * 11 / 10)).await;
        cluster.kill("a");
        cluster.recorded.borrow_mut().grants.insert(VOLUME, flip::flipped(3, "a", "b"));
        cluster.start("a").await;
        cluster.sim.resume("b");
        // `g` is given up, and its write is newer than what the volume has.
        h.write(1, b'2').await.unwrap();
        h.flush().await.unwrap();
        flip::until_phase(&cluster, "a", drover_wire::admin::SendPhase::Synced).await;
        flip::flip(&cluster, "a", "b", 3, 1).await;
        cluster.sim.heal_all();
        assert_eq!(g.read(1).await, Err(IoError::WritesLost));
        assert_eq!(h.read(1).await, Ok(b'2'));
    });
}

/// The same where the copy was dropped and made anew, while the node went on: it was the instance of before.
#[test]
fn a_copy_that_is_made_anew_is_another_instance() {
    each_seed(0..3, async |cluster| {
        let _clients = start(&cluster).await;
        cluster.start("b").await;
        flip::mirror(&cluster).await;
        let instance = || cluster.node("b").home(VOLUME).seat(VOLUME).unwrap().instance();
        let before = instance();
        let (generation, epoch) = (flip::GENERATION, Epoch(1));
        let end = NodeRequest::EndMigration {
            migration: flip::MIGRATION,
            generation,
            volume: VOLUME,
            epoch,
            drop_volume: true,
        };
        cluster.ask("b", end).await;
        cluster.ask("b", flip::prepare(MigrationId(4))).await;
        assert_ne!(instance(), before);
    });
}

/// It waited for a gateway's writes to end, and the volume moved meanwhile: the client got an error instead of a pause.
#[test]
fn a_change_that_waits_for_a_turn_survives_a_flip() {
    each_seed(0..80, async |cluster| {
        let [at_source, g, _] = start(&cluster).await;
        cluster.start("b").await;
        flip::mirror(&cluster).await;
        become_the_writer(&cluster, &g).await;
        let writing = async {
            for turn in 0..40 {
                let writes = (0..4).map(|block| g.write(4 * (turn % 8) + block, b'w'));
                assert!(futures::future::join_all(writes).await.iter().all(Result::is_ok));
            }
        };
        let zeroing = async {
            cluster.sim.sleep(Duration::from_micros(100 * cluster.sim.seed())).await;
            at_source.zero(100).await
        };
        let ((), (), zeroed) = futures::join!(flip::flip(&cluster, "a", "b", 1, 1), writing, zeroing);
        assert_eq!((zeroed, g.read(100).await), (Ok(()), Ok(0)), "seed {}", cluster.sim.seed());
    });
}

/// A client was acknowledged a write, then a snapshot was made; the holder had restarted in between, and the snapshot
/// lacked the write.
#[test]
pub fn a_snapshot_waits_for_the_replay() {
    each_seed(0..10, async |cluster| {
        let [_, g, h] = start(&cluster).await;
        become_the_writer(&cluster, &g).await;
        g.flush().await.unwrap();
        g.write(1, b'1').await.unwrap();
        cluster.sim.partition("a", "g");
        restart(&cluster).await;
        let heal = async {
            cluster.sim.sleep(WRITER_PATIENCE / 2).await;
            cluster.sim.heal_all();
        };
        futures::join!(heal, cluster.ask("a", take(1)));
        g.write(1, b'2').await.unwrap();
        cluster.ask("a", go_back(2)).await;
        assert_eq!((g.read(1).await, h.read(1).await), (Ok(b'1'), Ok(b'1')));
    });
}

/// A change was about to be admitted when the volume was opened again: what others have to replay comes first.
#[test]
fn a_change_that_waited_while_the_volume_was_opened_again_waits_for_the_replay() {
    each_seed(0..3, async |cluster| {
        let [_, g, _] = start(&cluster).await;
        become_the_writer(&cluster, &g).await;
        g.write(1, b'1').await.unwrap();
        let seat = cluster.node("a").home(VOLUME).seat(VOLUME).unwrap();
        let record = seat.writers.record().clone();
        let other = Rc::new(Writer { session: SessionId(1), ..record.writer.clone().unwrap() });
        let held = seat.writers.hold().await;
        let mut entering = pin!(seat.enter(&other, Way::Local));
        let early = poll!(entering.as_mut());
        seat.load_writers(record.clone(), true);
        let fence = seat.lease();
        assert_eq!(seat.read(&*fence, 4096, 4096).await.err(), Some(IoError::Disconnected), "nor a read");
        drop(held);
        let refused = match early {
            Poll::Ready(refused) => refused,
            Poll::Pending => entering.await,
        };
        assert_eq!(refused.err(), Some(IoError::Disconnected));
        let after = seat.writers.record().clone();
        assert_eq!((after.term, after.writer), (record.term, record.writer));
    });
}
