//! A volume moves from `a` to `b` by requests sent by hand, under load, and back.

use super::cluster::{Client, Cluster, SIZE, VOLUME, address, each_seed, grant};
use drover_base::{Epoch, Generation, MigrationId};
use drover_wire::admin::{Grant, Leg, NodeReply, NodeRequest, Position, Refusal, SendOptions, SendPhase, SendProgress};
use std::{cell::Cell, time::Duration};

pub const MIGRATION: MigrationId = MigrationId(3);
pub const GENERATION: Generation = Generation(1);
pub const TTL_MS: u64 = 9_000;

fn letter(turn: u64) -> u8 {
    b'a' + (turn % 26) as u8
}

pub fn leg(other: &str) -> Option<Leg> {
    Some(Leg { migration: MIGRATION, generation: GENERATION, other: address(other), way_back_open: true })
}

/// The grant as each side is told it.
pub fn flipped(epoch: u64, holder: &str, told_other: &str) -> Grant {
    Grant { leg: leg(told_other), ..grant(epoch, 0, holder, Some(TTL_MS)) }
}

async fn progress(cluster: &Cluster, name: &str) -> SendProgress {
    match cluster.ask(name, NodeRequest::Progress { migration: MIGRATION }).await {
        NodeReply::Progress(progress) => *progress,
        other => panic!("{other:?}"),
    }
}

pub async fn until_phase(cluster: &Cluster, name: &str, phase: SendPhase) -> SendProgress {
    loop {
        let progress = progress(cluster, name).await;
        assert_eq!(progress.error, None);
        if progress.phase == phase {
            return progress;
        }
        cluster.sim.sleep(Duration::from_millis(20)).await;
    }
}

/// What `b` is asked first when the volume is to come to it from `a`.
pub fn prepare(migration: MigrationId) -> NodeRequest {
    NodeRequest::PrepareReceive {
        migration,
        generation: GENERATION,
        volume: VOLUME,
        name: "data".into(),
        size_bytes: SIZE,
        reserve_bytes: SIZE,
        epoch: Epoch(1),
        source: address("a"),
        tenant: "shop".into(),
    }
}

/// Up to the end of the copy.
pub async fn copy(cluster: &Cluster) {
    let (migration, generation, epoch) = (MIGRATION, GENERATION, Epoch(1));
    let prepare = prepare(migration);
    cluster.ask("b", prepare.clone()).await;
    cluster.ask("b", prepare).await;
    let options = SendOptions { throttle_bytes_per_s: None, mirror_at_once: false, hot_first: false, dedup: true };
    let send = NodeRequest::BeginSend {
        migration,
        generation,
        volume: VOLUME,
        epoch,
        destination: address("b"),
        base_snapshot: "drover-3".into(),
        options,
        compare: false,
    };
    cluster.ask("a", send.clone()).await;
    cluster.ask("a", send).await;
    while !progress(cluster, "a").await.ready_to_mirror {
        cluster.sim.sleep(Duration::from_millis(20)).await;
    }
}

/// Up to the state in which a flip may be tried: every write goes to both, all has arrived.
pub async fn mirror(cluster: &Cluster) {
    let (migration, generation) = (MIGRATION, GENERATION);
    copy(cluster).await;
    cluster.recorded.borrow_mut().grants.insert(VOLUME, Grant { revision: 1, ..flipped(1, "a", "b") });
    cluster.ask("a", NodeRequest::BeginMirror { migration, generation, ttl_ms: TTL_MS }).await;
    until_phase(cluster, "a", SendPhase::Synced).await;
}

pub async fn quiesce(cluster: &Cluster, name: &str, epoch: u64, attempt: u64) -> Position {
    let request = NodeRequest::Quiesce {
        migration: MIGRATION,
        generation: GENERATION,
        epoch: Epoch(epoch),
        attempt,
        deadline_ms: 5_000,
    };
    match cluster.ask(name, request).await {
        NodeReply::Drained { position, .. } => position,
        other => panic!("{other:?}"),
    }
}

pub async fn confirm(cluster: &Cluster, name: &str, position: Position) {
    let request = NodeRequest::ConfirmPosition { migration: MIGRATION, generation: GENERATION, position };
    cluster.ask(name, request).await;
}

/// From `from`, which holds under `epoch`, to `to`.
pub async fn flip(cluster: &Cluster, from: &str, to: &str, epoch: u64, attempt: u64) {
    let position = quiesce(cluster, from, epoch, attempt).await;
    confirm(cluster, to, position).await;
    let limits = cluster.recorded.borrow().grants[&VOLUME].limits;
    let told = |other| Grant { limits, ..flipped(epoch + 1, to, other) };
    cluster.recorded.borrow_mut().grants.insert(VOLUME, told(from));
    cluster.set_grant(to, told(from)).await;
    cluster.set_grant(from, told(to)).await;
}

/// Writes rounds of letters to its own blocks until told to stop, checking what it reads; says how many writes.
async fn load(cluster: &Cluster, client: &Client, first: u64, stop: &Cell<bool>) -> u64 {
    let mut turn = 0;
    while !stop.get() {
        let block = first + turn % 20;
        client.write(block, letter(turn)).await.unwrap();
        if turn % 13 == 0 {
            client.flush().await.unwrap();
        }
        assert_eq!(client.read(block).await, Ok(letter(turn)), "turn {turn} of block {block}");
        turn += 1;
        cluster.sim.sleep(Duration::from_millis(1)).await;
    }
    for back in 1..=20.min(turn) {
        let turn = turn - back;
        assert_eq!(client.read(first + turn % 20).await, Ok(letter(turn)));
    }
    turn
}

/// Three nodes with clients at each; the volume at `a` with some data.
pub async fn prepared(cluster: &Cluster) -> [Client; 3] {
    for name in ["a", "b", "g"] {
        cluster.start(name).await;
    }
    cluster.create("a").await;
    let clients = [cluster.attach("a").await, cluster.attach("b").await, cluster.attach("g").await];
    for block in (1000..1400).step_by(7) {
        clients[0].write(block, b'D').await.unwrap();
    }
    clients
}

#[test]
pub fn a_volume_moves_under_load_back_and_forth_and_is_released() {
    each_seed(0..6, async |cluster| {
        let clients = prepared(&cluster).await;
        let stop = Cell::new(false);
        let loads = async {
            let [a, b, g] = &clients;
            let loads = (load(&cluster, a, 0, &stop), load(&cluster, b, 100, &stop), load(&cluster, g, 200, &stop));
            futures::join!(loads.0, loads.1, loads.2)
        };
        let moves = async {
            mirror(&cluster).await;
            flip(&cluster, "a", "b", 1, 1).await;
            until_phase(&cluster, "b", SendPhase::Synced).await;
            flip(&cluster, "b", "a", 2, 1).await;
            until_phase(&cluster, "a", SendPhase::Synced).await;
            flip(&cluster, "a", "b", 3, 1).await;
            until_phase(&cluster, "b", SendPhase::Synced).await;
            let proof = NodeRequest::BeginProof { migration: MIGRATION, generation: GENERATION };
            cluster.ask("b", proof).await;
            let proof = until_phase(&cluster, "b", SendPhase::Proven).await.proof.unwrap();
            assert_eq!((proof.regions_equal, proof.regions_different), (proof.regions_total, 0));
            commit(&cluster).await;
            cluster.sim.sleep(Duration::from_millis(100)).await;
            stop.set(true);
        };
        let (counts, ()) = futures::join!(loads, moves);
        assert!(counts.0 > 30 && counts.1 > 30 && counts.2 > 30, "{counts:?}");
        assert!(cluster.node("a").status().volumes.is_empty(), "the source was released");
        for client in &clients {
            assert_eq!(client.read(1000).await, Ok(b'D'));
            assert_eq!(client.read(1001).await, Ok(0));
        }
        assert!(cluster.recorded.borrow().way_back.is_empty(), "the way back was never closed");
    });
}

pub async fn commit(cluster: &Cluster) {
    let committed = grant(4, 1, "b", None);
    cluster.recorded.borrow_mut().grants.insert(VOLUME, committed.clone());
    assert_eq!(cluster.set_grant("b", committed).await, NodeReply::Done);
    let end = |drop_volume| NodeRequest::EndMigration {
        migration: MIGRATION,
        generation: GENERATION,
        volume: VOLUME,
        epoch: Epoch(4),
        drop_volume,
    };
    cluster.ask("b", end(false)).await;
    cluster.ask("a", end(true)).await;
    cluster.ask("a", end(true)).await;
    // A late copy for the side that holds now changes nothing.
    let late = cluster.request("b", end(true)).await;
    assert_eq!(late, NodeReply::Done);
    assert_eq!(cluster.node("b").status().volumes.len(), 1);
}

/// Of a flip of two milliseconds clients felt twenty: what had waited at its own node waited once more before it was sent
/// on, then asked the node that had held the volume before, then the control plane.
#[test]
fn clients_that_waited_for_a_flip_are_sent_on_at_once() {
    each_seed(0..6, async |cluster| {
        let [client, ..] = prepared(&cluster).await;
        mirror(&cluster).await;
        for (from, to, epoch) in [("a", "b", 1), ("b", "a", 2), ("a", "b", 3)] {
            let position = quiesce(&cluster, from, epoch, 1).await;
            let lookups = cluster.recorded.borrow().lookups;
            let flip = async {
                cluster.sim.sleep(Duration::from_millis(50)).await;
                confirm(&cluster, to, position).await;
                cluster.recorded.borrow_mut().grants.insert(VOLUME, flipped(epoch + 1, to, from));
                cluster.set_grant(to, flipped(epoch + 1, to, from)).await;
                cluster.set_grant(from, flipped(epoch + 1, to, to)).await;
            };
            let (written, ()) = futures::join!(client.write(epoch, letter(epoch)), flip);
            assert_eq!(written, Ok(()));
            assert_eq!(cluster.recorded.borrow().lookups, lookups, "{from} to {to}");
            until_phase(&cluster, to, SendPhase::Synced).await;
        }
    });
}

/// A destination that had just restarted took the lease over before the control plane had heard of its start. That
/// closed the way back afterwards, and nobody opened it again: the migration never ended.
#[test]
fn a_start_that_is_not_registered_confirms_no_position() {
    each_seed(0..5, async |cluster| {
        let [client, ..] = prepared(&cluster).await;
        mirror(&cluster).await;
        cluster.recorded.borrow_mut().refuses_renewals = true;
        cluster.kill("b");
        cluster.start("b").await;
        client.write(1, b'1').await.unwrap();
        until_phase(&cluster, "a", SendPhase::Synced).await;
        let position = quiesce(&cluster, "a", 1, 1).await;
        let request = NodeRequest::ConfirmPosition { migration: MIGRATION, generation: GENERATION, position };
        let reply = cluster.request("b", request).await;
        assert!(matches!(reply, NodeReply::Refused(Refusal::Conflict { .. })), "{reply:?}");
        cluster.recorded.borrow_mut().refuses_renewals = false;
        cluster.sim.sleep(Duration::from_secs(3)).await;
        confirm(&cluster, "b", position).await;
    });
}

/// propolis#230: after a failed migration nothing could be activated without a new generation. Here the holder goes on
/// under its epoch, and copies of requests that arrive late change nothing.
#[test]
fn a_flip_that_is_given_up_leaves_the_holder_serving() {
    each_seed(0..6, async |cluster| {
        let [client, _, gateway] = prepared(&cluster).await;
        mirror(&cluster).await;
        let position = quiesce(&cluster, "a", 1, 1).await;
        assert_eq!(quiesce(&cluster, "a", 1, 1).await, position, "asked again, answered the same");
        let resume = |attempt| NodeRequest::ResumeHolder {
            migration: MIGRATION,
            generation: GENERATION,
            epoch: Epoch(1),
            attempt,
        };
        let held = gateway.clone();
        let (written, _) = futures::join!(held.write(5, b'x'), async {
            cluster.sim.sleep(Duration::from_secs(1)).await;
            cluster.ask("a", resume(1)).await
        });
        assert_eq!(written, Ok(()));
        client.write(6, b'y').await.unwrap();
        let late = NodeRequest::Quiesce {
            migration: MIGRATION,
            generation: GENERATION,
            epoch: Epoch(1),
            attempt: 1,
            deadline_ms: 5_000,
        };
        assert!(matches!(cluster.request("a", late).await, NodeReply::Refused(Refusal::Conflict { .. })));
        until_phase(&cluster, "a", SendPhase::Synced).await;
        let position = quiesce(&cluster, "a", 1, 2).await;
        // The first attempt's resume arrives once more: the second one stays drained.
        cluster.ask("a", resume(1)).await;
        assert_eq!(quiesce(&cluster, "a", 1, 2).await, position);
        confirm(&cluster, "b", position).await;
        cluster.recorded.borrow_mut().grants.insert(VOLUME, flipped(2, "b", "a"));
        cluster.set_grant("b", flipped(2, "b", "a")).await;
        cluster.set_grant("a", flipped(2, "b", "b")).await;
        assert_eq!((client.read(5).await, gateway.read(6).await), (Ok(b'x'), Ok(b'y')));
        let older = cluster.set_grant("a", grant(1, 9, "a", None)).await;
        assert!(matches!(older, NodeReply::Refused(Refusal::Epoch { .. })));
    });
}

/// The old holder dies after the flip: its absence is recorded before the new one goes on alone, and it is taken in
/// again when it is back.
#[test]
pub fn the_way_back_closes_and_opens_again() {
    each_seed(0..6, async |cluster| {
        let [_, client, gateway] = prepared(&cluster).await;
        mirror(&cluster).await;
        flip(&cluster, "a", "b", 1, 1).await;
        until_phase(&cluster, "b", SendPhase::Synced).await;
        client.write(1, b'1').await.unwrap();
        cluster.kill("a");
        for block in 0..30 {
            gateway.write(block, b'2').await.unwrap();
        }
        assert_eq!(cluster.recorded.borrow().way_back.last().map(|last| last.0), Some(false));
        cluster.start("a").await;
        until_phase(&cluster, "b", SendPhase::Synced).await;
        cluster.sim.sleep(Duration::from_secs(1)).await;
        assert_eq!(cluster.recorded.borrow().way_back.last().map(|last| last.0), Some(true));
        flip(&cluster, "b", "a", 2, 1).await;
        for block in 0..30 {
            assert_eq!(client.read(block).await, Ok(b'2'), "block {block}");
        }
    });
}

/// While the holder asks that the way back be recorded as open again, its link breaks for a moment under a write, and the
/// control plane is away: in the end it is recorded.
#[test]
fn an_interrupted_opening_of_the_way_back_is_asked_for_again() {
    each_seed(0..20, async |cluster| {
        let [_, client, _] = prepared(&cluster).await;
        mirror(&cluster).await;
        flip(&cluster, "a", "b", 1, 1).await;
        until_phase(&cluster, "b", SendPhase::Synced).await;
        cluster.kill("a");
        client.write(1, b'1').await.unwrap();
        let is_open = || cluster.recorded.borrow().way_back.last().map(|last| last.0);
        assert_eq!(is_open(), Some(false));
        cluster.sim.partition("b", "control");
        cluster.start("a").await;
        until_phase(&cluster, "b", SendPhase::Synced).await;
        let (written, ()) = futures::join!(client.write(2, b'2'), async {
            cluster.sim.sleep(Duration::from_micros(100 * cluster.sim.seed())).await;
            cluster.sim.reset_connections("a", "b");
        });
        assert_eq!((written, is_open()), (Ok(()), Some(false)));
        cluster.sim.heal("b", "control");
        cluster.sim.sleep(Duration::from_secs(10)).await;
        assert_eq!(is_open(), Some(true));
    });
}

/// The holder is lost for good while settling, without a flush: what it acknowledged is at the other side.
#[test]
pub fn what_was_acknowledged_is_at_both_sides() {
    each_seed(0..10, async |cluster| {
        let [_, at_b, _] = prepared(&cluster).await;
        mirror(&cluster).await;
        flip(&cluster, "a", "b", 1, 1).await;
        until_phase(&cluster, "b", SendPhase::Synced).await;
        super::writers::become_the_writer(&cluster, &at_b).await;
        for turn in 0..200 {
            at_b.write(turn % 20, letter(turn)).await.unwrap();
        }
        cluster.kill("b");
        let taken = grant(3, 0, "a", None);
        cluster.recorded.borrow_mut().grants.insert(VOLUME, taken.clone());
        assert_eq!(cluster.set_grant("a", taken).await, NodeReply::Done);
        let at_a = cluster.attach("a").await;
        for turn in 180..200 {
            assert_eq!(at_a.read(turn % 20).await, Ok(letter(turn)), "turn {turn}");
        }
    });
}

/// The new holder restarts while settling: what it serves then is compared and goes to the other side again.
#[test]
fn a_holder_that_restarts_while_settling_resumes_its_mirror() {
    each_seed(0..6, async |cluster| {
        let [_, _, gateway] = prepared(&cluster).await;
        mirror(&cluster).await;
        flip(&cluster, "a", "b", 1, 1).await;
        for block in 0..30 {
            gateway.write(block, b'3').await.unwrap();
        }
        cluster.kill("b");
        cluster.start("b").await;
        for block in 0..30 {
            assert_eq!(gateway.read(block).await, Ok(b'3'), "block {block}");
        }
        until_phase(&cluster, "b", SendPhase::Synced).await;
        let proof = NodeRequest::BeginProof { migration: MIGRATION, generation: GENERATION };
        cluster.ask("b", proof).await;
        let proof = until_phase(&cluster, "b", SendPhase::Proven).await.proof.unwrap();
        assert_eq!((proof.regions_equal, proof.regions_different), (proof.regions_total, 0));
    });
}

#[test]
pub fn requests_that_do_not_fit_are_refused() {
    each_seed(0..2, async |cluster| {
        let _clients = prepared(&cluster).await;
        mirror(&cluster).await;
        let delete = NodeRequest::DeleteVolume { volume: VOLUME, epoch: Epoch(1) };
        let snapshot = super::snapshots::take(1);
        for request in [delete, snapshot] {
            let reply = cluster.request("a", request).await;
            assert!(matches!(reply, NodeReply::Refused(Refusal::Conflict { .. })), "{reply:?}");
        }
        let stale = NodeRequest::Tune {
            migration: MIGRATION,
            generation: Generation(0),
            throttle_bytes_per_s: None,
            paused: true,
        };
        let reply = cluster.request("a", stale).await;
        assert!(matches!(reply, NodeReply::Refused(Refusal::Generation { .. })), "{reply:?}");
        let too_large = NodeRequest::PrepareReceive {
            migration: MigrationId(9),
            generation: GENERATION,
            volume: drover_base::VolumeId(8),
            name: "other".into(),
            size_bytes: 1 << 30,
            reserve_bytes: 1 << 30,
            epoch: Epoch(1),
            source: address("a"),
            tenant: "shop".into(),
        };
        let reply = cluster.request("b", too_large).await;
        assert!(matches!(reply, NodeReply::Refused(Refusal::NoSpace { .. })), "{reply:?}");
        let position = Position { session: 1, sequence: 1 };
        let confirm = NodeRequest::ConfirmPosition { migration: MIGRATION, generation: GENERATION, position };
        let reply = cluster.request("b", confirm).await;
        assert!(matches!(reply, NodeReply::Refused(Refusal::Conflict { .. })), "{reply:?}");
    });
}

/// The holder had drained, the flip was given up and the migration rolled back while it was cut off, and it learned of
/// that when it registered again, before it was told to resume: its sender was gone then, and it admitted nobody any more.
#[test]
fn a_drained_holder_that_learns_of_the_end_by_its_lease_goes_on() {
    each_seed(0..5, async |cluster| {
        cluster.start("a").await;
        cluster.start("b").await;
        cluster.create("a").await;
        let client = cluster.attach("a").await;
        mirror(&cluster).await;
        quiesce(&cluster, "a", 1, 1).await;
        cluster.recorded.borrow_mut().grants.insert(VOLUME, grant(1, 2, "a", None));
        cluster.set_grant("a", grant(1, 2, "a", None)).await;
        let (migration, generation, epoch) = (MIGRATION, GENERATION, Epoch(1));
        cluster.request("a", NodeRequest::ResumeHolder { migration, generation, epoch, attempt: 1 }).await;
        let end = NodeRequest::EndMigration { migration, generation, volume: VOLUME, epoch, drop_volume: false };
        cluster.ask("a", end).await;
        client.write(1, b'1').await.unwrap();
        assert_eq!(client.read(1).await, Ok(b'1'));
    });
}
