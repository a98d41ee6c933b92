//! Leases that are lost: a holder that is stopped for longer than its lease, a control plane that is away.

use super::cluster::{VOLUME, each_seed, grant};
use super::flip::{flip, mirror, prepared, until_phase};
use drover_base::IoError;
use drover_base::limits::HOLD_DEADLINE;
use drover_wire::admin::{NodeReply, SendPhase};
use std::time::Duration;

/// SIGSTOP of the holder for longer than its lease, and another takes over: never two that apply writes.
#[test]
pub fn a_stopped_holder_serves_nothing_once_its_lease_ran_out() {
    each_seed(0..10, async |cluster| {
        for name in ["a", "b", "g"] {
            cluster.start(name).await;
        }
        cluster.create("a").await;
        mirror(&cluster).await;
        flip(&cluster, "a", "b", 1, 1).await;
        until_phase(&cluster, "b", SendPhase::Synced).await;
        let (at_b, at_g) = (cluster.attach("b").await, cluster.attach("g").await);
        at_b.write(1, b'1').await.unwrap();
        at_g.write(2, b'2').await.unwrap();

        cluster.sim.pause("b");
        let stopped = at_b.clone();
        // Asked while the holder is stopped: it must not answer from what it holds no more.
        let late_write = stopped.write(1, b'L');
        let takeover = async {
            cluster.sim.sleep(Duration::from_secs(12)).await;
            let taken = grant(3, 0, "a", None);
            cluster.recorded.borrow_mut().grants.insert(VOLUME, taken.clone());
            assert_eq!(cluster.set_grant("a", taken).await, NodeReply::Done);
            assert_eq!(at_g.read(2).await, Ok(b'2'));
            assert_eq!(at_g.read(1).await, Ok(b'1'));
            at_g.write(2, b'G').await.unwrap();
            cluster.sim.resume("b");
        };
        let (late, ()) = futures::join!(late_write, takeover);
        assert_eq!(late, Ok(()), "held, then carried out by the new holder");
        let at_a = cluster.attach("a").await;
        for (block, letter) in [(1, b'L'), (2, b'G')] {
            for client in [&at_a, &at_b, &at_g] {
                assert_eq!(client.read(block).await, Ok(letter), "block {block}");
            }
        }
    });
}

/// The holder is cut off from the control plane alone, and another takes over: its clients find the new one, though
/// the old one still answers them.
#[test]
fn a_gateway_leaves_a_holder_whose_lease_ran_out() {
    each_seed(0..5, async |cluster| {
        for name in ["a", "b", "g"] {
            cluster.start(name).await;
        }
        cluster.create("a").await;
        mirror(&cluster).await;
        flip(&cluster, "a", "b", 1, 1).await;
        until_phase(&cluster, "b", SendPhase::Synced).await;
        let (at_b, at_g) = (cluster.attach("b").await, cluster.attach("g").await);
        at_g.write(1, b'1').await.unwrap();
        cluster.sim.partition("b", "control");
        cluster.sim.sleep(Duration::from_secs(12)).await;
        let taken = grant(3, 0, "a", None);
        cluster.recorded.borrow_mut().grants.insert(VOLUME, taken.clone());
        assert_eq!(cluster.set_grant("a", taken).await, NodeReply::Done);
        at_g.write(2, b'2').await.unwrap();
        assert_eq!(at_g.read(1).await, Ok(b'1'));
        // Those attached to the old holder wait until it hears of the new one.
        let (read, ()) = futures::join!(at_b.read(2), async {
            cluster.sim.sleep(Duration::from_secs(10)).await;
            cluster.sim.heal_all();
        });
        assert_eq!(read, Ok(b'2'));
    });
}

/// A write that reached only the old holder before another took over: its client is not told that it is written
/// before the new holder has it. Its node keeps no copy, because another node writes, too.
#[test]
pub fn what_only_the_old_holder_has_is_not_acknowledged() {
    each_seed(0..10, async |cluster| {
        for name in ["a", "b", "g"] {
            cluster.start(name).await;
        }
        cluster.create("a").await;
        mirror(&cluster).await;
        flip(&cluster, "a", "b", 1, 1).await;
        until_phase(&cluster, "b", SendPhase::Synced).await;
        let (at_b, at_g) = (cluster.attach("b").await, cluster.attach("g").await);
        at_b.write(1, b'1').await.unwrap();
        at_g.write(2, b'1').await.unwrap();
        cluster.sim.partition("a", "b");
        let writing = at_b.clone();
        let takeover = async {
            cluster.sim.sleep(Duration::from_millis(100)).await;
            cluster.sim.pause("b");
            cluster.sim.sleep(Duration::from_secs(12)).await;
            let taken = grant(3, 0, "a", None);
            cluster.recorded.borrow_mut().grants.insert(VOLUME, taken.clone());
            assert_eq!(cluster.set_grant("a", taken).await, NodeReply::Done);
            cluster.sim.resume("b");
            cluster.sim.sleep(Duration::from_secs(5)).await;
            cluster.sim.heal_all();
        };
        let (written, ()) = futures::join!(writing.write(1, b'2'), takeover);
        assert_eq!(written, Ok(()));
        assert_eq!(cluster.attach("a").await.read(1).await, Ok(b'2'));
    });
}

/// While only one node has the data, ten minutes without a control plane stop nothing, not even across a restart.
#[test]
fn an_untimed_holder_needs_no_control_plane() {
    each_seed(0..3, async |cluster| {
        cluster.sim.set_time_limit(Duration::from_secs(3600));
        cluster.start("a").await;
        cluster.start("g").await;
        cluster.create("a").await;
        let (at_a, at_g) = (cluster.attach("a").await, cluster.attach("g").await);
        at_g.write(1, b'g').await.unwrap();
        cluster.kill_control();
        for minute in 0..10 {
            cluster.sim.sleep(Duration::from_secs(60)).await;
            at_a.write(2, b'a' + minute).await.unwrap();
            assert_eq!(at_g.read(2).await, Ok(b'a' + minute));
        }
        at_a.flush().await.unwrap();
        cluster.kill("a");
        cluster.start("a").await;
        // The gateway still knows where it was, and the holder serves at once.
        assert_eq!(at_g.read(1).await, Ok(b'g'));
        assert_eq!(cluster.attach("a").await.read(2).await, Ok(b'j'));
    });
}

/// A timed lease that is not renewed holds I/O back; renewed again, it goes on. Nothing fails.
#[test]
fn a_timed_holder_waits_for_the_control_plane() {
    each_seed(0..5, async |cluster| {
        for name in ["a", "b"] {
            cluster.start(name).await;
        }
        cluster.create("a").await;
        mirror(&cluster).await;
        let at_a = cluster.attach("a").await;
        cluster.recorded.borrow_mut().refuses_renewals = true;
        cluster.sim.sleep(Duration::from_secs(10)).await;
        let before = cluster.sim.now();
        let (written, ()) = futures::join!(at_a.write(1, b'w'), async {
            cluster.sim.sleep(Duration::from_secs(20)).await;
            cluster.recorded.borrow_mut().refuses_renewals = false;
        });
        assert_eq!(written, Ok(()));
        assert!(cluster.sim.now() - before >= Duration::from_secs(20), "it was held meanwhile");
        // A restart makes it wait for a confirmation, too.
        cluster.recorded.borrow_mut().refuses_renewals = true;
        cluster.kill("a");
        cluster.start("a").await;
        let at_a = cluster.attach("a").await;
        let before = cluster.sim.now();
        let (read, ()) = futures::join!(at_a.read(5), async {
            cluster.sim.sleep(Duration::from_secs(5)).await;
            cluster.recorded.borrow_mut().refuses_renewals = false;
        });
        assert_eq!(read, Ok(0));
        assert!(cluster.sim.now() - before >= Duration::from_secs(5));
    });
}

/// Source and control plane both stayed away: what waited for the other side, and what waited behind it, waited for ever.
/// Now clients get the error that a gateway's get. What was applied by then may be there; what was not never comes.
#[test]
pub fn nobody_waits_longer_for_the_other_side_than_a_gateway_would() {
    each_seed(0..5, async |cluster| {
        let [_, client, gateway] = prepared(&cluster).await;
        mirror(&cluster).await;
        flip(&cluster, "a", "b", 1, 1).await;
        until_phase(&cluster, "b", SendPhase::Synced).await;
        client.write(1, b'1').await.unwrap();
        client.flush().await.unwrap();
        cluster.kill("a");
        cluster.kill_control();
        let begun = cluster.sim.now();
        let late = async {
            cluster.sim.sleep(Duration::from_millis(500)).await;
            futures::join!(client.read(1), client.flush(), gateway.write(3, b'3'))
        };
        let (written, (read, flushed, sent)) = futures::join!(client.write(1, b'2'), late);
        let timed_out = Err(IoError::TimedOut);
        assert_eq!(
            (written, read, flushed, sent),
            (timed_out.clone(), Err(IoError::TimedOut), timed_out.clone(), timed_out)
        );
        assert!(cluster.sim.now() - begun < HOLD_DEADLINE + Duration::from_secs(5));
        assert_eq!(client.write(1, b'4').await, Err(IoError::TimedOut));
        cluster.start_control();
        client.write(2, b'5').await.unwrap();
        client.flush().await.unwrap();
        assert_eq!((client.read(1).await, client.read(2).await), (Ok(b'2'), Ok(b'5')));
        cluster.start("a").await;
        until_phase(&cluster, "b", SendPhase::Synced).await;
        cluster.sim.sleep(Duration::from_secs(1)).await;
        flip(&cluster, "b", "a", 2, 1).await;
        assert_eq!((client.read(1).await, client.read(2).await), (Ok(b'2'), Ok(b'5')));
    });
}
