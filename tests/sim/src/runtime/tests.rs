use super::*;
use bytes::Bytes;
use drover_base::{
    World,
    world::{Connection, Message, MessageReceiver},
};
use futures::future::join_all;
use std::io::ErrorKind;

const MS: Duration = Duration::from_millis(1);

fn numbered(number: u64) -> Message {
    Message { head: Bytes::copy_from_slice(&number.to_le_bytes()), body: Bytes::new() }
}

fn number(message: &Message) -> u64 {
    u64::from_le_bytes(message.head[..].try_into().unwrap())
}

async fn next_number(receiver: &mut Box<dyn MessageReceiver>) -> u64 {
    number(&receiver.receive().await.unwrap().expect("not closed"))
}

/// Everything that arrives until the connection ends, and how it ended.
async fn drain(receiver: &mut Box<dyn MessageReceiver>) -> (Vec<u64>, Option<ErrorKind>) {
    let mut numbers = Vec::new();
    loop {
        match receiver.receive().await {
            Ok(Some(message)) => numbers.push(number(&message)),
            Ok(None) => return (numbers, None),
            Err(error) => return (numbers, Some(error.kind())),
        }
    }
}

/// A connection from `a` to `b`, both its sides.
async fn pair(a: &Process, b: &Process) -> (Connection, Connection) {
    let address = format!("{}:peer", b.name());
    let mut listener = b.world().net.listen(&address).await.unwrap();
    let (connected, accepted) = futures::join!(a.world().net.connect(&address), listener.accept());
    (connected.unwrap(), accepted.unwrap())
}

async fn echo(world: World, address: String) {
    let mut listener = world.net.listen(&address).await.unwrap();
    loop {
        let mut connection = listener.accept().await.unwrap();
        world
            .spawn(async move {
                while let Ok(Some(message)) = connection.receiver.receive().await {
                    if connection.sender.send(message).await.is_err() {
                        return;
                    }
                }
            })
            .detach();
    }
}

/// Three processes that talk through resets, a partition and a kill; the trace.
fn busy(seed: u64) -> (u64, Vec<u64>) {
    let sim = Sim::new(seed);
    sim.set_net(NetConfig { reset_ppm: 5_000, ..NetConfig::default() });
    let server = sim.process("server");
    server.spawn(echo(server.world(), "server:echo".into()));
    let clients: Vec<_> = (0..3).map(|index| sim.process(&format!("client-{index}"))).collect();
    let talks = clients.iter().map(|client| {
        let world = client.world();
        client.run(async move {
            let mut echoed = 0u64;
            while echoed < 200 {
                let Ok(mut connection) = world.net.connect("server:echo").await else {
                    world.sleep(MS * 50).await;
                    continue;
                };
                while echoed < 200 {
                    if connection.sender.send(numbered(world.random.next_u64())).await.is_err() {
                        break;
                    }
                    match world.timeout(MS * 500, connection.receiver.receive()).await {
                        Ok(Ok(Some(_))) => echoed += 1,
                        _ => break,
                    }
                }
            }
            world.random.next_u64()
        })
    });
    let faults = async {
        sim.sleep(MS * 20).await;
        sim.partition("client-0", "server");
        sim.sleep(MS * 700).await;
        sim.heal_all();
        sim.kill("server");
        sim.sleep(MS * 100).await;
        server.spawn(echo(server.world(), "server:echo".into()));
    };
    let (ends, ()) = sim.block_on(async { futures::join!(join_all(talks), faults) });
    (sim.trace_digest(), ends.into_iter().map(|end| end.unwrap()).collect())
}

#[test]
fn the_same_seed_ends_the_same() {
    for seed in 0..20 {
        assert_eq!(busy(seed), busy(seed), "seed {seed}");
    }
    assert_ne!(busy(1).0, busy(2).0);
}

#[test]
fn the_scheduler_tries_different_orders() {
    let order = |seed| {
        let sim = Sim::new(seed);
        let process = sim.process("a");
        let log = Rc::new(RefCell::new(Vec::new()));
        for index in 0..4 {
            let log = log.clone();
            process.spawn(async move { log.borrow_mut().push(index) });
        }
        sim.run_until(MS);
        log.take()
    };
    let orders: std::collections::BTreeSet<_> = (0..500).map(order).collect();
    assert_eq!(orders.len(), 24);
}

#[test]
fn timers_fire_in_order_and_time_jumps() {
    let sim = Sim::new(1);
    let world = sim.process("a").world();
    let log = Rc::new(RefCell::new(Vec::new()));
    for delay in [30, 10, 20, 86_400_000] {
        let (world, log) = (world.clone(), log.clone());
        let start = world.now();
        sim.process("a").spawn(async move {
            world.sleep(MS * delay).await;
            assert!(world.now().since(start) >= MS * delay);
            log.borrow_mut().push(delay);
        });
    }
    sim.run_until(Duration::from_secs(100_000));
    assert_eq!(*log.borrow(), [10, 20, 30, 86_400_000]);
    assert!(sim.now() >= Duration::from_secs(100_000));
}

#[test]
fn clocks_drift_stop_and_jump() {
    let sim = Sim::new(1);
    let (process, world) = (sim.process("a"), sim.process("a").world());
    process.set_clock_drift(500_000);
    sim.block_on(world.sleep(MS * 300));
    assert!(sim.now() >= MS * 200 && sim.now() < MS * 201, "a fast clock ends waits early: {:?}", sim.now());

    process.set_clock_drift(0);
    process.stop_clock(true);
    let shown = world.now();
    let sleeping = world.sleep(MS * 10);
    sim.run_for(MS * 1000);
    assert_eq!(world.now(), shown);
    process.stop_clock(false);
    let before = sim.now();
    sim.block_on(sleeping);
    assert!(sim.now() >= before + MS * 10);

    let before = sim.now();
    let sleeping = world.sleep(MS * 5_000);
    process.jump_clock(4_999_000_000);
    sim.block_on(sleeping);
    assert!(sim.now() < before + MS * 2, "a jump brings deadlines near");
    assert_ne!(world.now(), sim.process("b").world().now(), "machines did not boot together");
}

#[test]
fn messages_of_a_connection_keep_their_order() {
    for seed in 0..50 {
        let sim = Sim::new(seed);
        let window_bytes = if seed % 2 == 0 { 20 } else { 1 << 20 };
        sim.set_net(NetConfig { window_bytes, spike_ppm: 300_000, ..NetConfig::default() });
        let (a, b) = (sim.process("a"), sim.process("b"));
        sim.block_on(async {
            let (from, mut to) = pair(&a, &b).await;
            // All calls are made before any future is polled: the order is that of the calls.
            let sends: Vec<_> = (0..100).map(|index| from.sender.send(numbered(index))).collect();
            let sending = async { assert!(join_all(sends).await.iter().all(Result::is_ok)) };
            let receiving = async {
                for expected in 0..100 {
                    assert_eq!(next_number(&mut to.receiver).await, expected, "seed {seed}");
                }
            };
            futures::join!(sending, receiving);
        });
    }
}

#[test]
fn a_full_window_holds_the_sender() {
    let sim = Sim::new(3);
    sim.set_net(NetConfig { window_bytes: 80, ..NetConfig::default() });
    let (a, b) = (sim.process("a"), sim.process("b"));
    sim.block_on(async {
        let (from, mut to) = pair(&a, &b).await;
        let world = a.world();
        for index in 0..10 {
            from.sender.send(numbered(index)).await.unwrap();
        }
        let eleventh = from.sender.send(numbered(10));
        assert!(world.timeout(MS * 1000, eleventh).await.is_err());
        for expected in 0..11 {
            assert_eq!(next_number(&mut to.receiver).await, expected);
        }
    });
}

#[test]
fn kill_drops_the_tasks_and_breaks_the_connections() {
    struct Noted(Rc<Cell<bool>>);
    impl Drop for Noted {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }
    let sim = Sim::new(5);
    let (a, b) = (sim.process("a"), sim.process("b"));
    let dropped = Rc::new(Cell::new(false));
    sim.block_on(async {
        let (mut here, there) = pair(&a, &b).await;
        let noted = Noted(dropped.clone());
        let old_world = b.world();
        let job = b.run(async move {
            let _kept = (noted, there);
            std::future::pending::<()>().await;
        });
        sim.sleep(MS).await;
        b.kill();
        assert!(dropped.get(), "at once");
        assert_eq!(job.await, Err(Killed));
        assert!(here.receiver.receive().await.is_err());
        assert!(here.sender.send(numbered(1)).await.is_err());
        assert!(old_world.net.listen("b:again").await.is_err(), "the old life is over");
        old_world.spawn(async { panic!("it runs no more") }).detach();
        // The address is free for the next life.
        let (again, _) = pair(&a, &b).await;
        again.sender.send(numbered(2)).await.unwrap();
    });
}

#[test]
fn a_process_may_kill_itself() {
    let sim = Sim::new(6);
    let a = sim.process("a");
    let (this, reached) = (a.clone(), Rc::new(Cell::new(false)));
    let noted = reached.clone();
    a.spawn(async move {
        this.kill();
        futures::future::poll_fn(|context| {
            context.waker().wake_by_ref();
            Poll::<()>::Pending
        })
        .await;
        noted.set(true);
    });
    sim.run_until(MS);
    assert!(!reached.get());
}

#[test]
fn a_paused_process_stands_still_and_its_messages_wait() {
    let sim = Sim::new(7);
    let (a, b) = (sim.process("a"), sim.process("b"));
    b.spawn(echo(b.world(), "b:echo".into()));
    sim.block_on(async {
        sim.sleep(MS).await;
        let world = a.world();
        let mut connection = world.net.connect("b:echo").await.unwrap();
        b.pause();
        let before = b.world().now();
        connection.sender.send(numbered(1)).await.unwrap();
        assert!(world.timeout(MS * 10_000, connection.receiver.receive()).await.is_err());
        assert!(b.world().now().since(before) >= MS * 10_000, "its clock goes on");
        b.resume();
        assert_eq!(next_number(&mut connection.receiver).await, 1);
    });
}

/// It died behind a cut link, with something on its way: whoever waits for an answer must not do so for ever.
#[test]
fn that_the_other_side_has_died_is_learned_when_the_link_is_healed() {
    for seed in 0..20 {
        let sim = Sim::new(seed);
        let (a, b) = (sim.process("a"), sim.process("b"));
        sim.block_on(async {
            let (mut waiting, dying) = pair(&a, &b).await;
            sim.partition("a", "b");
            dying.sender.send(numbered(1)).await.unwrap();
            sim.sleep(MS * 100).await;
            sim.kill("b");
            sim.sleep(NetConfig::default().give_up.1 * 2).await;
            sim.heal("a", "b");
            let (_, end) = a.world().timeout(MS * 1000, drain(&mut waiting.receiver)).await.expect("it learns");
            assert!(end.is_some(), "seed {seed}: the last message was lost, so it is no orderly end");
        });
    }
}

#[test]
fn a_partition_loses_nothing_inside_a_living_connection() {
    let (mut delivered, mut broke) = (0, 0);
    for seed in 0..60 {
        let sim = Sim::new(seed);
        let (a, b) = (sim.process("a"), sim.process("b"));
        sim.block_on(async {
            let (from, mut to) = pair(&a, &b).await;
            from.sender.send(numbered(0)).await.unwrap();
            assert_eq!(next_number(&mut to.receiver).await, 0);
            sim.partition("a", "b");
            for index in 1..5 {
                from.sender.send(numbered(index)).await.unwrap();
            }
            assert!(b.world().timeout(MS * 1000, to.receiver.receive()).await.is_err(), "nothing passes");
            let connecting = a.world().net.connect("b:peer").await;
            assert_eq!(connecting.err().unwrap().kind(), ErrorKind::ConnectionRefused, "nobody listens");
            sim.heal("a", "b");
            // Enough to notice that the connection broke, if it did.
            sim.sleep(MS * 100).await;
            let last = from.sender.send(numbered(5)).await;
            sim.sleep(MS * 100).await;
            from.sender.close();
            let (numbers, end) = drain(&mut to.receiver).await;
            assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "in order, no gap: {numbers:?}");
            match last {
                Ok(()) if numbers.len() == 5 => delivered += 1,
                Ok(()) => assert!(end.is_some(), "a close may reset, then unread messages are lost"),
                Err(_) => broke += 1,
            }
        });
    }
    assert!(delivered > 10 && broke > 5, "both happen: {delivered} {broke}");
}

#[test]
fn a_long_partition_breaks_the_connection_for_the_sender() {
    let sim = Sim::new(8);
    let (a, b) = (sim.process("a"), sim.process("b"));
    sim.block_on(async {
        let (mut here, mut there) = pair(&a, &b).await;
        sim.partition_one_way("a", "b");
        there.sender.send(numbered(7)).await.unwrap();
        assert_eq!(next_number(&mut here.receiver).await, 7, "the other direction works");
        here.sender.send(numbered(1)).await.unwrap();
        assert!(here.receiver.receive().await.is_err(), "the sender gives up");
        assert!(sim.now() > Duration::from_secs(4));
        sim.heal_all();
        assert_eq!(drain(&mut there.receiver).await.0, []);
    });
}

#[test]
fn dropping_both_halves_closes_and_listeners_free_their_address() {
    let sim = Sim::new(9);
    let (a, b) = (sim.process("a"), sim.process("b"));
    sim.block_on(async {
        let (here, mut there) = pair(&a, &b).await;
        here.sender.send(numbered(1)).await.unwrap();
        drop(here);
        assert_eq!(drain(&mut there.receiver).await, (vec![1], None), "what was sent arrives first");
        let listener = b.world().net.listen("b:0").await.unwrap();
        let address = listener.address();
        assert_ne!(address, "b:0");
        assert_eq!(b.world().net.listen(&address).await.err().unwrap().kind(), ErrorKind::AddrInUse);
        drop(listener);
        assert!(b.world().net.listen(&address).await.is_ok());
    });
}

#[test]
fn offloaded_work_runs_and_takes_time() {
    let sim = Sim::new(10);
    let world = sim.process("a").world();
    assert_eq!(sim.block_on(async { world.offload(|| 6 * 7).await }), 42);
}

#[test]
#[should_panic(expected = "seed 11: deadlock")]
fn a_deadlock_is_found() {
    Sim::new(11).block_on(std::future::pending::<()>());
}

#[test]
#[should_panic(expected = "seed 12: hung")]
fn a_hang_is_found() {
    let sim = Sim::new(12);
    let world = sim.process("a").world();
    sim.process("a").spawn(async move {
        loop {
            world.sleep(Duration::from_secs(1)).await;
        }
    });
    sim.block_on(std::future::pending::<()>());
}
