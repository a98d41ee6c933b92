//! A flip that did not wait for all data: the new holder serves what it has not got, and gets it.

use super::cluster::{Client, Cluster, VOLUME, each_seed, grant};
use super::flip::{GENERATION, MIGRATION, confirm, flip, flipped, mirror, prepared, quiesce, until_phase};
use drover_base::limits::REMOTE_DEADLINE;
use drover_base::units::EXTENT_BYTES;
use drover_base::{ByteRange, Epoch, ExtentIndex, IoError, OperationId};
use drover_store::{Unfenced, Volume};
use drover_wire::admin::{Grant, NodeReply, NodeRequest, PullProgress, Refusal, SendPhase};
use std::{cell::Cell, rc::Rc, time::Duration};

/// A block that the source filled before the flip and the holder has not got.
const REMOTE: u64 = 1007;
/// One that it has.
const LOCAL: u64 = 3;

fn tune(paused: bool) -> NodeRequest {
    NodeRequest::Tune { migration: MIGRATION, generation: GENERATION, throttle_bytes_per_s: None, paused }
}

fn volume_of(cluster: &Cluster, name: &str) -> Rc<Volume> {
    cluster.node(name).home(VOLUME).seat(VOLUME).expect("it is there").volume.clone()
}

/// What `b` has from block 64 on counts no more.
async fn forget_most(cluster: &Cluster) {
    let volume = volume_of(cluster, "b");
    let marking = async move {
        for extent in (4..volume.size_bytes() / EXTENT_BYTES).map(ExtentIndex) {
            let data = volume.data_mask(extent);
            let guard = volume.enqueue(ByteRange { offset: extent.offset(), len: EXTENT_BYTES }).await;
            volume.mark_remote_locked(&guard, &Unfenced, extent, data).await.unwrap();
        }
        volume.flush(&Unfenced).await.unwrap();
        volume.remote_bytes()
    };
    let bytes = cluster.sim.process("b").run(marking).await.expect("it lives");
    assert!(bytes > 50 * 4096, "{bytes}");
}

/// A flip from `a` to `b`, which has next to nothing and brings nothing by itself.
async fn flipped_early(cluster: &Cluster) -> [Client; 3] {
    let clients = prepared(cluster).await;
    clients[0].write(LOCAL, b'L').await.unwrap();
    mirror(cluster).await;
    let position = quiesce(cluster, "a", 1, 1).await;
    forget_most(cluster).await;
    confirm(cluster, "b", position).await;
    cluster.recorded.borrow_mut().grants.insert(VOLUME, flipped(2, "b", "a"));
    cluster.set_grant("b", flipped(2, "b", "a")).await;
    cluster.ask("b", tune(true)).await;
    cluster.set_grant("a", flipped(2, "b", "b")).await;
    until_phase(cluster, "b", SendPhase::Synced).await;
    clients
}

async fn pull(cluster: &Cluster) -> PullProgress {
    match cluster.ask("b", NodeRequest::Progress { migration: MIGRATION }).await {
        NodeReply::Progress(progress) => progress.pull.expect("something was remote"),
        other => panic!("{other:?}"),
    }
}

async fn until_all_is_here(cluster: &Cluster) -> PullProgress {
    cluster.ask("b", tune(false)).await;
    loop {
        let pull = pull(cluster).await;
        if pull.remote_bytes == 0 {
            return pull;
        }
        cluster.sim.sleep(Duration::from_millis(20)).await;
    }
}

async fn reads_what_was_written(clients: &[Client]) {
    for client in clients {
        for block in (1000..1400).step_by(7) {
            assert_eq!(client.read(block).await, Ok(b'D'), "block {block}");
            assert_eq!(client.read(block + 1).await, Ok(0));
        }
        assert_eq!(client.read(LOCAL).await, Ok(b'L'));
    }
}

async fn conflicts(cluster: &Cluster, request: NodeRequest) {
    let reply = cluster.request("b", request).await;
    assert!(matches!(reply, NodeReply::Refused(Refusal::Conflict { .. })), "{reply:?}");
}

#[test]
pub fn what_the_flip_did_not_wait_for_is_served_brought_and_proven() {
    each_seed(0..6, async |cluster| {
        let clients = flipped_early(&cluster).await;
        let before = pull(&cluster).await;
        assert!(before.remote_bytes > 0 && before.paused && before.pulled_bytes == 0, "{before:?}");
        assert_eq!(cluster.node("b").status().volumes[0].remote_bytes, before.remote_bytes);
        assert_eq!(clients[2].read(REMOTE).await, Ok(b'D'), "through a gateway");
        clients[1].write(REMOTE + 1, b'n').await.unwrap();
        assert_eq!(clients[0].read(REMOTE + 1).await, Ok(b'n'));
        clients[0].zero(REMOTE + 1).await.unwrap();
        let now = pull(&cluster).await;
        assert!(now.remote_bytes < before.remote_bytes && now.remote_bytes > 0 && now.demand_pulls > 0, "{now:?}");
        assert!(now.local_permille_60s().is_some_and(|share| (1..1000).contains(&share)), "{now:?}");
        let proof = NodeRequest::BeginProof { migration: MIGRATION, generation: GENERATION };
        conflicts(&cluster, proof.clone()).await;
        let snapshot = NodeRequest::CreateSnapshot { volume: VOLUME, name: "s".into(), operation: OperationId(1) };
        conflicts(&cluster, snapshot).await;
        let pull = until_all_is_here(&cluster).await;
        assert_eq!((pull.demand_failures, pull.error), (0, None));
        reads_what_was_written(&clients).await;
        until_phase(&cluster, "b", SendPhase::Synced).await;
        cluster.ask("b", proof).await;
        let proof = until_phase(&cluster, "b", SendPhase::Proven).await.proof.unwrap();
        assert_eq!((proof.regions_equal, proof.regions_thicker), (proof.regions_total, 0));
        let committed = grant(2, 1, "b", None);
        cluster.recorded.borrow_mut().grants.insert(VOLUME, committed.clone());
        assert_eq!(cluster.set_grant("b", committed).await, NodeReply::Done);
        cluster.kill("a");
        reads_what_was_written(&clients[1..]).await;
        // Nobody has flushed since it was brought, and there is nobody any more to bring it again.
        cluster.kill("b");
        cluster.start("b").await;
        reads_what_was_written(&[cluster.attach("b").await]).await;
    });
}

#[test]
fn a_restarted_holder_finds_what_it_has_not_got() {
    each_seed(0..6, async |cluster| {
        let clients = flipped_early(&cluster).await;
        let [_, _, gateway] = &clients;
        gateway.write(REMOTE, b'w').await.unwrap();
        gateway.flush().await.unwrap();
        gateway.write(REMOTE + 1, b'x').await.unwrap();
        // It is bringing when it dies.
        cluster.ask("b", tune(false)).await;
        cluster.sim.sleep(Duration::from_micros(cluster.sim.seed() * 300)).await;
        cluster.kill("b");
        cluster.start("b").await;
        assert_eq!((gateway.read(REMOTE).await, gateway.read(REMOTE + 1).await), (Ok(b'w'), Ok(b'x')));
        assert_eq!(gateway.read(1393).await, Ok(0));
        assert_eq!(gateway.read(1392).await, Ok(b'D'));
        gateway.write(REMOTE, b'D').await.unwrap();
        gateway.zero(REMOTE + 1).await.unwrap();
        let other = cluster.attach("b").await;
        loop {
            if volume_of(&cluster, "b").remote_bytes() == 0 {
                break;
            }
            cluster.sim.sleep(Duration::from_millis(20)).await;
        }
        reads_what_was_written(&[gateway.clone(), other]).await;
        until_phase(&cluster, "b", SendPhase::Synced).await;
        cluster.ask("b", NodeRequest::BeginProof { migration: MIGRATION, generation: GENERATION }).await;
        until_phase(&cluster, "b", SendPhase::Proven).await;
    });
}

#[test]
fn without_the_source_a_range_alone_fails_and_is_served_again() {
    each_seed(0..4, async |cluster| {
        let [_, client, _] = flipped_early(&cluster).await;
        cluster.kill("a");
        let began = cluster.sim.now();
        assert_eq!(client.read(LOCAL).await, Ok(b'L'));
        client.write(LOCAL, b'M').await.unwrap();
        let (failed, read) = futures::join!(client.read(REMOTE), async {
            cluster.sim.sleep(Duration::from_secs(20)).await;
            client.read(LOCAL).await
        });
        assert_eq!((failed, read), (Err(IoError::Remote), Ok(b'M')));
        assert!(cluster.sim.now() - began < REMOTE_DEADLINE + Duration::from_secs(15));
        assert_eq!(pull(&cluster).await.demand_failures, 1);
        // One that waits when it is back is served.
        let (read, ()) = futures::join!(client.read(REMOTE), async {
            cluster.sim.sleep(Duration::from_secs(3)).await;
            cluster.start("a").await;
        });
        assert_eq!(read, Ok(b'D'));
        until_all_is_here(&cluster).await;
        client.write(LOCAL, b'L').await.unwrap();
        reads_what_was_written(&[client]).await;
    });
}

/// What waits for a node that is away keeps the next connection of its gateway from nothing.
#[test]
fn a_connection_does_not_wait_for_what_an_older_one_waited_for() {
    each_seed(0..12, async |cluster| {
        let [_, _, gateway] = flipped_early(&cluster).await;
        cluster.kill("a");
        let others = async {
            cluster.sim.sleep(Duration::from_secs(1)).await;
            cluster.sim.partition("b", "g");
            let healed = async {
                cluster.sim.sleep(Duration::from_secs(1)).await;
                // It goes on, or breaks.
                cluster.sim.heal("b", "g");
                cluster.sim.now()
            };
            let (read, healed) = futures::join!(gateway.read(LOCAL), healed);
            assert_eq!(read, Ok(b'L'));
            assert!(cluster.sim.now() - healed < REMOTE_DEADLINE / 2, "seed {}", cluster.sim.seed());
        };
        let (read, ()) = futures::join!(gateway.read(REMOTE), others);
        assert_eq!(read, Err(IoError::Remote));
    });
}

/// A write of parts of blocks waits for both of them at once, and no other writer waits for it.
#[test]
fn another_writer_does_not_wait_for_what_a_write_waits_for() {
    each_seed(0..4, async |cluster| {
        let [_, local, gateway] = flipped_early(&cluster).await;
        cluster.kill("a");
        // Until it is the recorded writer, whose writes all others' wait for.
        for _ in 0..30 {
            gateway.write(LOCAL, b'M').await.unwrap();
            cluster.sim.sleep(Duration::from_millis(100)).await;
        }
        let began = cluster.sim.now();
        let other = async {
            cluster.sim.sleep(Duration::from_secs(1)).await;
            local.write(LOCAL, b'N').await.unwrap();
            assert!(cluster.sim.now() - began < REMOTE_DEADLINE / 2, "seed {}", cluster.sim.seed());
        };
        let (written, ()) = futures::join!(gateway.write_bytes(REMOTE * 4096 + 512, &[1; 8 * 4096]), other);
        assert_eq!(written, Err(IoError::Remote));
        assert!(cluster.sim.now() - began < REMOTE_DEADLINE + Duration::from_secs(5));
    });
}

/// Going back loses nothing, and keeps nobody who waits for what was brought.
#[test]
fn going_back_forgets_what_was_remote() {
    each_seed(0..6, async |cluster| {
        let clients = flipped_early(&cluster).await;
        clients[1].write(REMOTE + 1, b'n').await.unwrap();
        let stop = Cell::new(false);
        let reading = async {
            let mut block = 1000;
            while !stop.get() {
                assert_eq!(clients[1].read(block).await, Ok(b'D'), "block {block}");
                block = if block + 7 < 1400 { block + 7 } else { 1000 };
                cluster.sim.sleep(Duration::from_millis(1)).await;
            }
        };
        let going_back = async {
            cluster.sim.sleep(Duration::from_millis(3)).await;
            flip(&cluster, "b", "a", 2, 1).await;
            until_phase(&cluster, "a", SendPhase::Synced).await;
            cluster.sim.sleep(Duration::from_millis(50)).await;
            stop.set(true);
        };
        futures::join!(reading, going_back);
        assert_eq!(clients[0].read(REMOTE + 1).await, Ok(b'n'));
        clients[0].zero(REMOTE + 1).await.unwrap();
        reads_what_was_written(&clients).await;
        // The copy goes with all that was said of it.
        let ended = Grant { revision: 1, ..grant(3, 1, "a", None) };
        cluster.recorded.borrow_mut().grants.insert(VOLUME, ended.clone());
        cluster.set_grant("a", ended).await;
        let end = NodeRequest::EndMigration {
            migration: MIGRATION,
            generation: GENERATION,
            volume: VOLUME,
            epoch: Epoch(3),
            drop_volume: true,
        };
        cluster.ask("b", end).await;
        assert!(cluster.node("b").status().volumes.is_empty());
        reads_what_was_written(&clients).await;
    });
}

#[test]
fn a_reopened_holder_goes_on_bringing() {
    each_seed(0..6, async |cluster| {
        let [_, client, gateway] = flipped_early(&cluster).await;
        assert_eq!(client.read(REMOTE).await, Ok(b'D'));
        client.write(REMOTE, b'w').await.unwrap();
        cluster.ask("b", NodeRequest::Reopen { volume: VOLUME }).await;
        let late = cluster.attach("b").await;
        let read = late.read(REMOTE).await;
        assert!(matches!(read, Ok(b'D' | b'w')), "it was not flushed: {read:?}");
        late.write(REMOTE, b'D').await.unwrap();
        until_all_is_here(&cluster).await;
        reads_what_was_written(&[late, gateway]).await;
        until_phase(&cluster, "b", SendPhase::Synced).await;
        cluster.ask("b", NodeRequest::BeginProof { migration: MIGRATION, generation: GENERATION }).await;
        until_phase(&cluster, "b", SendPhase::Proven).await;
    });
}
