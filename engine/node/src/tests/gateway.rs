//! Clients attached to a node that does not hold the volume.

use super::cluster::{Cluster, SECRET, each_seed};
use std::time::Duration;

async fn gateway_and_holder(cluster: &Cluster) {
    cluster.start("a").await;
    cluster.start("g").await;
    cluster.create("a").await;
}

fn letter(turn: u64) -> u8 {
    b'a' + (turn % 26) as u8
}

/// The holder loses power: what it had acknowledged and not flushed comes back from the gateway.
#[test]
pub fn acknowledged_writes_survive_the_holder_s_death() {
    each_seed(0..20, async |cluster| {
        gateway_and_holder(&cluster).await;
        let client = cluster.attach("g").await;
        for turn in 0..60 {
            client.write(turn * 31 % 200, letter(turn)).await.unwrap();
            if turn == 20 {
                client.flush().await.unwrap();
            }
        }
        // Written over: the replay must end with the newer one.
        client.write(31, b'X').await.unwrap();
        cluster.kill("a");
        cluster.sim.sleep(Duration::from_millis(300)).await;
        cluster.start("a").await;
        assert_eq!(client.read(31).await, Ok(b'X'));
        for turn in (0..60).filter(|turn| *turn != 1) {
            assert_eq!(client.read(turn * 31 % 200).await, Ok(letter(turn)), "turn {turn}");
        }
        // And again, so that what was replayed is itself still in the log.
        cluster.kill("a");
        cluster.start("a").await;
        assert_eq!(client.read(31).await, Ok(b'X'));
        client.flush().await.unwrap();
        cluster.kill("a");
        cluster.start("a").await;
        assert_eq!(client.read(31).await, Ok(b'X'));
    });
}

/// A failed sync poisons the volume: everyone is told. Opened again, it gets from the gateway what it lost.
#[test]
fn a_reopened_volume_gets_the_gateway_s_writes_again() {
    each_seed(0..10, async |cluster| {
        gateway_and_holder(&cluster).await;
        let client = cluster.attach("g").await;
        client.write(1, b'1').await.unwrap();
        client.flush().await.unwrap();
        for block in 2..40 {
            client.write(block, letter(block)).await.unwrap();
        }
        cluster.fail_sync("a");
        assert!(client.flush().await.is_err());
        assert_eq!(client.read(1).await, Err(drover_base::IoError::Poisoned));
        cluster.ask("a", drover_wire::admin::NodeRequest::Reopen { volume: super::cluster::VOLUME }).await;
        assert_eq!(client.read(1).await, Ok(b'1'));
        for block in 2..40 {
            assert_eq!(client.read(block).await, Ok(letter(block)), "block {block}");
        }
        client.flush().await.unwrap();
    });
}

/// A request that waits while the holder is away is carried out when it is back, not failed.
#[test]
fn requests_are_held_while_the_holder_is_away() {
    each_seed(0..5, async |cluster| {
        gateway_and_holder(&cluster).await;
        let client = cluster.attach("g").await;
        client.write(1, b'a').await.unwrap();
        cluster.kill("a");
        let late = client.clone();
        let (write, ()) = futures::join!(late.write(2, b'b'), async {
            cluster.sim.sleep(Duration::from_secs(20)).await;
            cluster.start("a").await;
        });
        assert_eq!(write, Ok(()));
        assert_eq!((client.read(1).await, client.read(2).await), (Ok(b'a'), Ok(b'b')));
    });
}

/// silo#48: a read waited for ever for the other side.
#[test]
fn a_request_fails_once_its_deadline_has_passed() {
    each_seed(0..2, async |cluster| {
        gateway_and_holder(&cluster).await;
        let client = cluster.attach("g").await;
        client.write(1, b'a').await.unwrap();
        cluster.kill("a");
        let before = cluster.sim.now();
        assert_eq!(client.write(1, b'b').await, Err(drover_base::IoError::TimedOut));
        let waited = cluster.sim.now() - before;
        assert!((60..63).contains(&waited.as_secs()), "{waited:?}");
        assert_eq!(client.read(1).await, Err(drover_base::IoError::TimedOut));
    });
}

/// An old connection's copy of a write that was sent again must not land over a later one.
#[test]
pub fn a_new_connection_fences_the_old_one() {
    each_seed(0..20, async |cluster| {
        gateway_and_holder(&cluster).await;
        let client = cluster.attach("g").await;
        let breaks = async {
            for _ in 0..40 {
                cluster.sim.sleep(Duration::from_millis(7)).await;
                cluster.sim.reset_connections("a", "g");
            }
        };
        let writes = async {
            for turn in 0..150 {
                client.write(turn % 3, letter(turn)).await.unwrap();
                assert_eq!(client.read(turn % 3).await, Ok(letter(turn)), "turn {turn}");
            }
        };
        futures::join!(breaks, writes);
    });
}

/// More is written than the log holds, without a flush of the client.
#[test]
fn a_full_log_is_flushed() {
    each_seed(0..1, async |cluster| {
        gateway_and_holder(&cluster).await;
        let client = cluster.attach("g").await;
        let blocks = super::cluster::SIZE / 4096;
        // Five times around the volume: more than `REPLAY_LOG_BYTES_MAX`.
        for turn in 0..5 * blocks / 16 {
            let many = (0..16).map(|lane| client.write((turn * 16 + lane) % blocks, letter(turn)));
            for written in futures::future::join_all(many).await {
                written.unwrap();
            }
        }
        cluster.kill("a");
        cluster.start("a").await;
        for turn in 4 * blocks / 16..5 * blocks / 16 {
            assert_eq!(client.read(turn * 16 % blocks).await, Ok(letter(turn)));
        }
    });
}

/// At the node a client is attached to, wherever the volume is.
#[test]
fn what_a_client_used_is_charged_to_its_workload() {
    use drover_wire::admin::{NodeReply, NodeRequest};
    each_seed(0..3, async |cluster| {
        gateway_and_holder(&cluster).await;
        for (name, other) in [("a", "g"), ("g", "a")] {
            let client = cluster.attach_as(name, "web").await;
            let unnamed = cluster.attach(name).await;
            for block in 0..5 {
                client.write(block, b'w').await.unwrap();
            }
            assert_eq!(client.read(3).await, Ok(b'w'));
            assert_eq!(unnamed.read(4).await, Ok(b'w'));
            assert!(client.read(super::cluster::SIZE / 4096).await.is_err(), "past the end");
            let NodeReply::Status(status) = cluster.ask(name, NodeRequest::Status).await else { panic!("no status") };
            let used: Vec<_> = status
                .usage
                .iter()
                .map(|used| (used.workload.as_deref(), used.connections, used.read_bytes, used.written_bytes))
                .collect();
            assert_eq!(used, [(None, 1, 4096, 0), (Some("web"), 1, 4096, 5 * 4096)], "{name}");
            drop((client, unnamed));
            let NodeReply::Status(status) = cluster.ask(other, NodeRequest::Status).await else { panic!("no status") };
            let open: u64 = status.usage.iter().map(|used| used.connections).sum();
            assert_eq!(open, 0, "nobody is attached to {other}");
        }
    });
}

/// CVE-2021-36779, CVE-2021-36780 and CVE-2023-28432: others left their internal ports open to everybody. Who does not know
/// the secret is served nothing by either listener, and changes nothing.
#[test]
pub fn strangers_are_not_served() {
    use drover_wire::admin::{NodeReply, NodeRequest};
    use drover_wire::preamble::{Channel, Preamble};
    use drover_wire::rpc::{RpcClient, RpcError};

    each_seed(0..2, async |cluster| {
        gateway_and_holder(&cluster).await;
        let process = cluster.sim.process("stranger");
        let world = process.world();
        let strangers = process.run(async move {
            let opened = async |address: &str, channel| {
                let mut connection = world.net.connect(address).await.unwrap();
                let preamble = Preamble::new(channel, [6; 32]);
                assert!(preamble.open(&world, &mut connection).await.is_err(), "{address} took another secret");
            };
            opened("a:peer", Channel::Peer).await;
            opened("a:admin", Channel::Admin).await;
            let delete = NodeRequest::DeleteVolume { volume: super::cluster::VOLUME, epoch: drover_base::Epoch(9) };
            // Not even with the right secret from one who wants a peer.
            for preamble in [Preamble::new(Channel::Admin, [6; 32]), Preamble::new(Channel::Peer, SECRET)] {
                let client = RpcClient::<NodeRequest, NodeReply>::new(world.clone(), "a:admin", preamble);
                let asked = client.call(&delete, Duration::from_secs(20)).await;
                assert!(matches!(asked, Err(RpcError::Connect { .. })), "{asked:?}");
            }
        });
        strangers.await.unwrap();
        assert!(cluster.node("a").status().volumes.iter().any(|it| it.volume == super::cluster::VOLUME));
    });
}
