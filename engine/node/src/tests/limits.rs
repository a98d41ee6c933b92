//! What a volume's clients may use a second: together, wherever they are attached, over restarts and moves.

use super::cluster::{Client, Cluster, VOLUME, each_seed, grant};
use super::flip::{flip, mirror};
use drover_base::Epoch;
use drover_wire::admin::{Grant, IoLimits, NodeReply, NodeRequest, VolumeStatus};
use std::time::Duration;

/// Requests that each client has under way.
const DEPTH: usize = 4;
const SPAN: Duration = Duration::from_secs(5);
const IOPS: u64 = 200;

fn limits(revision: u64, iops: Option<u64>) -> IoLimits {
    IoLimits { revision, iops, bytes_per_s: None, burst_ms: 0 }
}

/// Writes that each client gets done.
async fn done(cluster: &Cluster, clients: &[&Client]) -> Vec<u64> {
    let until = cluster.sim.now() + SPAN;
    let one = async |client: &Client, block: u64| {
        let mut count = 0;
        while cluster.sim.now() < until {
            client.write(block, b'x').await.unwrap();
            count += 1;
        }
        count
    };
    let all = clients.iter().enumerate().map(|(index, client)| {
        let blocks = (0..DEPTH as u64).map(move |at| index as u64 * 100 + at);
        futures::future::join_all(blocks.map(|block| one(client, block)))
    });
    futures::future::join_all(all).await.into_iter().map(|counts| counts.iter().sum()).collect()
}

/// What was under way when the span began and when it ended does not count exactly.
#[track_caller]
fn is_limited(counts: &[u64]) {
    let (sum, wanted) = (counts.iter().sum::<u64>(), IOPS * SPAN.as_secs());
    let slack = 2 * DEPTH as u64 * counts.len() as u64;
    assert!(sum.abs_diff(wanted) <= slack, "{counts:?}: {sum} instead of {wanted}");
}

/// Records and tells what the volume's limits are, without another word about the lease.
async fn limit(cluster: &Cluster, name: &str, limits: IoLimits) {
    let grant = {
        let mut recorded = cluster.recorded.borrow_mut();
        let grant = recorded.grants.get_mut(&VOLUME).expect("it is recorded");
        grant.limits = limits;
        grant.clone()
    };
    assert_eq!(cluster.set_grant(name, grant).await, NodeReply::Done);
}

async fn status(cluster: &Cluster, name: &str) -> VolumeStatus {
    match cluster.ask(name, NodeRequest::Status).await {
        NodeReply::Status(status) => status.volumes.into_iter().find(|volume| volume.volume == VOLUME).expect("there"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn all_clients_share_the_limit_and_each_gets_its_part() {
    each_seed(0..4, async |cluster| {
        for name in ["a", "g"] {
            cluster.start(name).await;
        }
        cluster.create("a").await;
        let (here, beyond) = (cluster.attach("a").await, cluster.attach("g").await);
        let free = done(&cluster, &[&here, &beyond]).await;
        assert!(free.iter().sum::<u64>() > 4 * IOPS * SPAN.as_secs(), "{free:?}");
        limit(&cluster, "a", limits(1, Some(IOPS))).await;
        let both = done(&cluster, &[&here, &beyond]).await;
        is_limited(&both);
        assert!(both[0].abs_diff(both[1]) <= 2 * DEPTH as u64, "{both:?}");
        is_limited(&done(&cluster, &[&beyond]).await);
        let told = status(&cluster, "a").await;
        assert_eq!(told.limits, limits(1, Some(IOPS)));
        assert!(told.limited_requests > 0 && told.limited_us > 1_000_000, "{told:?}");
        // An older word changes nothing, a newer one at once.
        assert_eq!(
            cluster.set_grant("a", Grant { limits: limits(0, None), ..grant(1, 0, "a", None) }).await,
            NodeReply::Done
        );
        is_limited(&done(&cluster, &[&here]).await);
        limit(&cluster, "a", limits(2, None)).await;
        let free = done(&cluster, &[&here, &beyond]).await;
        assert!(free.iter().sum::<u64>() > 4 * IOPS * SPAN.as_secs(), "{free:?}");
    });
}

#[test]
fn a_node_that_starts_without_a_control_plane_keeps_to_what_it_knew() {
    each_seed(0..4, async |cluster| {
        cluster.start("a").await;
        cluster.create("a").await;
        limit(&cluster, "a", limits(1, Some(IOPS))).await;
        cluster.kill_control();
        cluster.kill("a");
        cluster.start("a").await;
        let client = cluster.attach("a").await;
        is_limited(&done(&cluster, &[&client]).await);
    });
}

#[test]
pub fn a_destination_keeps_to_the_limits_from_its_first_request_on() {
    each_seed(0..3, async |cluster| {
        for name in ["a", "b"] {
            cluster.start(name).await;
        }
        cluster.create("a").await;
        let clients = [cluster.attach("a").await, cluster.attach("b").await];
        mirror(&cluster).await;
        limit(&cluster, "a", limits(1, Some(IOPS))).await;
        flip(&cluster, "a", "b", 1, 1).await;
        assert_eq!(status(&cluster, "b").await.epoch, Epoch(2));
        is_limited(&done(&cluster, &[&clients[0], &clients[1]]).await);
        assert_eq!(status(&cluster, "a").await.limited_requests, 0, "nobody waits where it no longer is");
    });
}
