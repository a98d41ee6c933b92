//! Faults by chance while a flipped volume settles: a client at a third node that survives them sees all it was told.

use super::cluster::{Client, Cluster, each_seed};
use super::flip::{GENERATION, MIGRATION, flip, mirror, until_phase};
use drover_sim::runtime::Generator;
use drover_wire::admin::{NodeRequest, SendPhase};
use std::{cell::Cell, time::Duration};

const BLOCKS: u64 = 300;

/// Writes at random, flushes now and then, and checks what it reads, until told to stop. Returns what is written.
async fn load(client: &Client, mut random: Generator, stop: &Cell<bool>) -> (Vec<u8>, u64) {
    let mut written = vec![0; BLOCKS as usize];
    let mut turn = 0u64;
    while !stop.get() {
        let block = random.below(BLOCKS);
        turn += 1;
        match random.below(20) {
            0 => client.flush().await.unwrap(),
            1..8 => {
                assert_eq!(client.read(block).await, Ok(written[block as usize]), "block {block}, turn {turn}");
            }
            _ => {
                let letter = b'a' + (turn % 26) as u8;
                client.write(block, letter).await.unwrap();
                written[block as usize] = letter;
            }
        }
    }
    (written, turn)
}

async fn fault(cluster: &Cluster, random: &mut Generator, mortal: &[&str]) {
    let sim = &cluster.sim;
    let links = [("a", "b"), ("b", "g"), ("b", "control"), ("a", "control"), ("g", "control")];
    let (one, other) = links[random.below(5) as usize];
    let node = ["a", "b"][random.below(2) as usize];
    let lasts = Duration::from_millis(random.between(1, 4_000));
    match random.below(5) {
        0 => {
            let node = mortal[random.below(mortal.len() as u64) as usize];
            cluster.kill(node);
            sim.sleep(lasts).await;
            cluster.start(node).await;
        }
        1 => {
            sim.partition(one, other);
            sim.sleep(lasts).await;
            sim.heal(one, other);
        }
        2 => {
            sim.partition_one_way(one, other);
            sim.sleep(lasts * 2).await;
            sim.heal(one, other);
        }
        3 => {
            sim.pause(node);
            sim.sleep(lasts * 2).await;
            sim.resume(node);
        }
        _ => sim.reset_connections(one, other),
    }
}

/// Before the flip: the destination dies and is cut off, and has everything when the flip comes.
#[test]
fn a_volume_is_mirrored_through_faults() {
    each_seed(0..4, async |cluster| {
        for name in ["a", "b", "g"] {
            cluster.start(name).await;
        }
        cluster.create("a").await;
        mirror(&cluster).await;
        let client = cluster.attach("g").await;
        let stop = Cell::new(false);
        let faults = async {
            let mut random = cluster.sim.generator("faults");
            for _ in 0..12 {
                cluster.sim.sleep(Duration::from_millis(random.between(1, 1_500))).await;
                fault(&cluster, &mut random, &["b"]).await;
            }
            until_phase(&cluster, "a", SendPhase::Synced).await;
            flip(&cluster, "a", "b", 1, 1).await;
            cluster.sim.sleep(Duration::from_millis(500)).await;
            stop.set(true);
        };
        let ((written, turns), ()) = futures::join!(load(&client, cluster.sim.generator("load"), &stop), faults);
        assert!(turns > 500, "only {turns} requests were carried out");
        cluster.kill("a");
        for block in 0..BLOCKS {
            assert_eq!(client.read(block).await, Ok(written[block as usize]), "block {block}");
        }
    });
}

#[test]
fn a_volume_settles_through_faults() {
    each_seed(0..4, async |cluster| {
        for name in ["a", "b", "g"] {
            cluster.start(name).await;
        }
        cluster.create("a").await;
        mirror(&cluster).await;
        flip(&cluster, "a", "b", 1, 1).await;
        let client = cluster.attach("g").await;
        let stop = Cell::new(false);
        let faults = async {
            let mut random = cluster.sim.generator("faults");
            for _ in 0..12 {
                cluster.sim.sleep(Duration::from_millis(random.between(1, 1_500))).await;
                fault(&cluster, &mut random, &["a", "b"]).await;
            }
            stop.set(true);
        };
        let ((written, turns), ()) = futures::join!(load(&client, cluster.sim.generator("load"), &stop), faults);
        assert!(turns > 500, "only {turns} requests were carried out");
        until_phase(&cluster, "b", SendPhase::Synced).await;
        let proof = NodeRequest::BeginProof { migration: MIGRATION, generation: GENERATION };
        cluster.ask("b", proof).await;
        let proof = until_phase(&cluster, "b", SendPhase::Proven).await.proof.unwrap();
        assert_eq!((proof.regions_equal, proof.regions_different), (proof.regions_total, 0));
        flip(&cluster, "b", "a", 2, 1).await;
        cluster.kill("b");
        for block in 0..BLOCKS {
            assert_eq!(client.read(block).await, Ok(written[block as usize]), "block {block}");
        }
    });
}
