//! Clones, and snapshots of several volumes at one moment.

use super::cluster::{Client, Cluster, SIZE, VOLUME, address, each_seed};
use drover_base::{Epoch, OperationId, VolumeId};
use drover_wire::admin::{Export, Grant, NodeReply, NodeRequest, Refusal};
use futures::future::join;
use std::{cell::Cell, rc::Rc, time::Duration};

const OTHER: VolumeId = VolumeId(8);
const TIME_MS: u64 = 5_000;

async fn create(cluster: &Cluster, node: &str, volume: VolumeId, export: &str) -> Client {
    let (name, epoch) = (export.to_owned(), Epoch(1));
    let grant = Grant {
        volume,
        epoch,
        revision: 0,
        holder: address(node),
        ttl_ms: None,
        leg: None,
        limits: Default::default(),
    };
    cluster.recorded.borrow_mut().grants.insert(volume, grant);
    cluster.ask(node, NodeRequest::CreateVolume { volume, name, size_bytes: SIZE, epoch, tenant: "shop".into() }).await;
    serve(cluster, node, volume, export).await
}

async fn serve(cluster: &Cluster, node: &str, volume: VolumeId, export: &str) -> Client {
    let name = export.to_owned();
    let export_of = Export { name, volume, size_bytes: SIZE, workload: None };
    cluster.ask(node, NodeRequest::SetExport { export: export_of }).await;
    cluster.attach_to(node, export).await
}

fn hold(volume: VolumeId, of: u64) -> NodeRequest {
    NodeRequest::HoldVolume { volume, hold: OperationId(of), deadline_ms: TIME_MS }
}

fn freeze(volume: VolumeId, of: u64) -> NodeRequest {
    NodeRequest::SnapshotHeld { volume, name: format!("g{of}"), hold: OperationId(of) }
}

fn release(volume: VolumeId, of: u64) -> NodeRequest {
    NodeRequest::ReleaseVolume { volume, hold: OperationId(of) }
}

async fn both(cluster: &Cluster, of: u64, request: fn(VolumeId, u64) -> NodeRequest) {
    join(cluster.ask("a", request(VOLUME, of)), cluster.ask("b", request(OTHER, of))).await;
}

async fn go_back(cluster: &Cluster, node: &str, volume: VolumeId, of: u64) {
    let (name, operation) = (format!("g{of}"), OperationId(1_000 + of));
    cluster.ask(node, NodeRequest::RollbackSnapshot { volume, name, operation }).await;
}

/// One writer writes a letter to one volume, then the same to the other, then the next. Whenever both are frozen at one
/// moment, the second shows what the first shows, or what it showed before.
#[test]
pub fn what_is_frozen_together_is_of_one_moment() {
    const LETTERS: u8 = 200;
    each_seed(0..6, async |cluster| {
        for node in ["a", "b"] {
            cluster.start(node).await;
        }
        let (first, second) = (create(&cluster, "a", VOLUME, "one").await, create(&cluster, "b", OTHER, "two").await);
        let written = Rc::new(Cell::new(0));
        let count = written.clone();
        let writing = async move {
            for letter in 1..=LETTERS {
                first.write(1, letter).await.unwrap();
                second.write(1, letter).await.unwrap();
                count.set(letter);
            }
        };
        let freezing = async {
            let mut taken = 0;
            while written.get() < LETTERS - 20 && taken < 8 {
                taken += 1;
                both(&cluster, taken, hold).await;
                both(&cluster, taken, freeze).await;
                both(&cluster, taken, release).await;
                cluster.sim.sleep(Duration::from_micros(137 * taken)).await;
            }
            taken
        };
        let (_, taken) = join(writing, freezing).await;
        assert!(taken >= 3, "{taken} were taken while it was written");
        let mut seen = Vec::new();
        for of in 1..=taken {
            go_back(&cluster, "a", VOLUME, of).await;
            go_back(&cluster, "b", OTHER, of).await;
            let first = cluster.attach_to("a", "one").await.read(1).await.unwrap();
            let second = cluster.attach_to("b", "two").await.read(1).await.unwrap();
            assert!(second == first || second + 1 == first, "snapshot {of}: {first} and {second}");
            seen.push(first);
        }
        assert!(seen.is_sorted() && seen[0] < seen[seen.len() - 1], "{seen:?}");
    });
}

/// Whoever held the volume is gone: its clients go on when the time is over, and nothing is frozen then.
#[test]
fn a_hold_ends_by_itself() {
    each_seed(0..3, async |cluster| {
        cluster.start("a").await;
        let client = create(&cluster, "a", VOLUME, "one").await;
        let begin = cluster.sim.now();
        cluster.ask("a", hold(VOLUME, 1)).await;
        let again = cluster.request("a", hold(VOLUME, 2)).await;
        assert!(matches!(again, NodeReply::Refused(Refusal::Conflict { .. })), "{again:?}");
        client.write(1, b'1').await.unwrap();
        let waited = cluster.sim.now() - begin;
        assert!(
            waited >= Duration::from_millis(TIME_MS) && waited < Duration::from_millis(TIME_MS + 100),
            "{waited:?}"
        );
        let late = cluster.request("a", freeze(VOLUME, 1)).await;
        assert!(matches!(late, NodeReply::Refused(Refusal::Conflict { .. })), "{late:?}");
    });
}

/// What some of a group got is taken back; a snapshot that somebody made under that name stays.
#[test]
fn only_what_a_hold_froze_is_undone() {
    each_seed(0..3, async |cluster| {
        cluster.start("a").await;
        create(&cluster, "a", VOLUME, "one").await;
        let names = || {
            let status = cluster.node("a").status();
            status.volumes[0].snapshots.iter().map(|snapshot| snapshot.name.clone()).collect::<Vec<_>>()
        };
        let undo = |of| NodeRequest::UndoSnapshot { volume: VOLUME, name: "g1".into(), hold: OperationId(of) };
        for request in [hold(VOLUME, 1), freeze(VOLUME, 1), release(VOLUME, 1), undo(2)] {
            cluster.ask("a", request).await;
        }
        assert_eq!(names(), ["g1"]);
        for _ in 0..2 {
            cluster.ask("a", undo(1)).await;
            assert!(names().is_empty());
        }
    });
}

/// A clone is there at once and goes its own way; what it needs of its origin stays when that is deleted, also through a
/// restart with another number of shards.
#[test]
pub fn a_clone_keeps_what_it_needs_of_its_origin() {
    each_seed(0..6, async |cluster| {
        cluster.start("a").await;
        cluster.create("a").await;
        let client = cluster.attach("a").await;
        client.write(1, b'1').await.unwrap();
        let (name, operation) = (String::from("s"), OperationId(1));
        cluster.ask("a", NodeRequest::CreateSnapshot { volume: VOLUME, name, operation }).await;
        client.write(1, b'2').await.unwrap();
        let copy = VolumeId::kin_of(VOLUME, 5);
        let clone = |snapshot: &str| NodeRequest::CloneVolume {
            volume: copy,
            name: "copy".into(),
            origin: VOLUME,
            snapshot: snapshot.into(),
            epoch: Epoch(1),
        };
        let missing = cluster.request("a", clone("t")).await;
        assert!(matches!(missing, NodeReply::Refused(Refusal::NotFound { .. })), "{missing:?}");
        for _ in 0..2 {
            assert_eq!(cluster.ask("a", clone("s")).await, NodeReply::Size { size_bytes: SIZE });
        }
        let grant = Grant {
            volume: copy,
            epoch: Epoch(1),
            revision: 0,
            holder: address("a"),
            ttl_ms: None,
            leg: None,
            limits: Default::default(),
        };
        cluster.recorded.borrow_mut().grants.insert(copy, grant);
        let of_copy = serve(&cluster, "a", copy, "copy").await;
        assert_eq!(of_copy.read(1).await, Ok(b'1'));
        of_copy.write(2, b'3').await.unwrap();
        of_copy.flush().await.unwrap();
        assert_eq!((client.read(1).await, client.read(2).await), (Ok(b'2'), Ok(0)));
        let shared =
            |node: &str| cluster.node(node).status().volumes.iter().map(|v| v.shared_bytes).collect::<Vec<_>>();
        assert_eq!(shared("a"), [65_536, 65_536]);
        let epoch = Epoch(1);
        cluster.ask("a", NodeRequest::DeleteVolume { volume: VOLUME, epoch }).await;
        cluster.recorded.borrow_mut().grants.remove(&VOLUME);
        assert_eq!((of_copy.read(1).await, of_copy.read(2).await), (Ok(b'1'), Ok(b'3')));
        cluster.kill("a");
        cluster.start("a").await;
        let of_copy = cluster.attach_to("a", "copy").await;
        assert_eq!((of_copy.read(1).await, of_copy.read(2).await), (Ok(b'1'), Ok(b'3')));
        cluster.ask("a", NodeRequest::DeleteVolume { volume: copy, epoch }).await;
        assert_eq!(cluster.node("a").status().tiers[0].used_bytes, 0);
    });
}
