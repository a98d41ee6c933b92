use super::*;
use crate::connection::TURN_BYTES;
use crate::framing::Decoder;
use crate::net::Socket;
use crate::tls::Role;
use bytes::{BufMut, BytesMut};
use drover_base::limits::{MESSAGE_BODY_BYTES_MAX, MESSAGE_HEAD_BYTES_MAX};
use drover_base::world::{Connection, Message};
use std::cell::Cell;
use std::future::poll_fn;
use std::io::{ErrorKind, Read, Write};
use std::task::Poll;
use std::time::Duration;

fn run<T>(test: impl AsyncFnOnce(World) -> T) -> T {
    let workers = Workers::start(2).unwrap();
    block_on(async { test(world(&workers, None)).await }).unwrap()
}

async fn pair(world: &World, address: &str) -> (Connection, Connection) {
    let mut listener = world.net.listen(address).await.unwrap();
    let address = listener.address();
    let (accepted, connected) = tokio::join!(listener.accept(), world.net.connect(&address));
    (accepted.unwrap(), connected.unwrap())
}

fn message(head: usize, body: usize) -> Message {
    let fill = |len: usize| (0..len).map(|at| (at * 7 + len) as u8).collect::<Vec<u8>>().into();
    Message { head: fill(head), body: fill(body) }
}

const SIZES: [(usize, usize); 8] =
    [(0, 0), (1, 0), (0, 1), (72, 4096), (72, 0), (300_000, 5), (9, 3 << 20), (72, 65_536)];

async fn round_trip(world: World, address: &str) {
    let (mut one, two) = pair(&world, address).await;
    // Sent without waiting in between: all of it must come, in order.
    let sends: Vec<_> = SIZES.iter().map(|&(head, body)| two.sender.send(message(head, body))).collect();
    for (head, body) in SIZES {
        assert_eq!(one.receiver.receive().await.unwrap(), Some(message(head, body)), "{head} and {body} bytes");
    }
    for send in sends {
        send.await.unwrap();
    }
    // And back on the same connection.
    let mut two_receiver = two.receiver;
    one.sender.send(message(8, 8)).await.unwrap();
    assert_eq!(two_receiver.receive().await.unwrap(), Some(message(8, 8)));
}

#[test]
fn messages_cross_tcp_whole_and_in_order() {
    run(async |world| round_trip(world, "127.0.0.1:0").await);
}

#[test]
fn messages_cross_a_unix_socket_whole_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let address = format!("unix:{}", folder.path().join("socket").display());
    run(async |world| round_trip(world, &address).await);
}

/// A connection moves to another thread after its first message; what the other side sent behind that goes along.
#[test]
fn a_connection_moves_to_another_thread_with_what_has_arrived() {
    let folder = tempfile::tempdir().unwrap();
    for address in ["127.0.0.1:0".to_owned(), format!("unix:{}", folder.path().join("socket").display())] {
        let (sender, receiver) = std::sync::mpsc::channel::<Detached>();
        let home = std::thread::spawn(move || {
            let detached = receiver.recv().unwrap();
            run(async |_| {
                let mut connection = detached.open().unwrap();
                for size in 1..10 {
                    assert_eq!(connection.receiver.receive().await.unwrap(), Some(message(size, size)));
                }
                connection.sender.send(message(3, 3)).await.unwrap();
                assert_eq!(connection.receiver.receive().await.unwrap(), None);
            })
        });
        run(async |world| {
            let listener = SocketListener::bind(&address, None, Role::Node).await.unwrap();
            let address = drover_base::world::Listener::address(&listener);
            let (arrived, other) = tokio::join!(listener.incoming(), world.net.connect(&address));
            let (mut arrived, mut other) = (arrived.unwrap(), other.unwrap());
            for size in 0..9 {
                other.sender.send(message(size, size)).await.unwrap();
            }
            world.sleep(Duration::from_millis(10)).await;
            let early = arrived.connection.receiver.receive().await.unwrap();
            assert_eq!(early, Some(message(0, 0)));
            arrived.connection.sender.send(message(1, 2)).await.unwrap();
            assert_eq!(other.receiver.receive().await.unwrap(), Some(message(1, 2)));
            sender.send(arrived.detach().unwrap()).unwrap();
            other.sender.send(message(9, 9)).await.unwrap();
            assert_eq!(other.receiver.receive().await.unwrap(), Some(message(3, 3)));
        });
        home.join().unwrap();
    }
}

/// A stream that always has more must not keep the thread from its other tasks.
#[test]
fn a_full_stream_lets_others_have_their_turn() {
    run(async |_| {
        let (one, _two) = tokio::net::UnixStream::pair().unwrap();
        let (mut decoder, count) = (Decoder::default(), 8 * TURN_BYTES / 65_536);
        for _ in 0..count {
            let (start, body) = framing::encode(message(72, 65_536));
            let space = decoder.space();
            space.extend_from_slice(&start);
            space.extend_from_slice(&body.unwrap());
        }
        let (mut connection, _) = connection::open(Socket::Unix(one), decoder, "all has arrived".into());
        let turns = std::rc::Rc::new(Cell::new(0));
        let counted = turns.clone();
        let other = tokio::task::spawn_local(async move {
            loop {
                tokio::task::yield_now().await;
                counted.set(counted.get() + 1);
            }
        });
        for _ in 0..count {
            assert_eq!(connection.receiver.receive().await.unwrap(), Some(message(72, 65_536)));
        }
        assert!(turns.get() >= 6, "{} turns of others while eight were received", turns.get());
        other.abort();
    });
}

#[test]
fn what_was_sent_arrives_after_the_sender_is_dropped_then_the_end() {
    run(async |world| {
        let (mut one, two) = pair(&world, "127.0.0.1:0").await;
        for _ in 0..100 {
            drop(two.sender.send(message(16, 100_000)));
        }
        drop(two);
        for _ in 0..100 {
            assert_eq!(one.receiver.receive().await.unwrap(), Some(message(16, 100_000)));
        }
        assert_eq!(one.receiver.receive().await.unwrap(), None);
    });
}

#[test]
fn close_fails_both_halves_at_both_ends() {
    run(async |world| {
        let (mut one, mut two) = pair(&world, "127.0.0.1:0").await;
        let sender = two.sender.clone();
        let waiting = async { two.receiver.receive().await };
        let closing = async {
            tokio::task::yield_now().await;
            sender.close();
        };
        let (received, ()) = tokio::join!(waiting, closing);
        assert!(received.is_err(), "the half that waited here must fail, not hang");
        assert!(two.sender.send(message(1, 1)).await.is_err());
        // The other end sees its end or a reset, and then cannot send for long either.
        assert!(!matches!(one.receiver.receive().await, Ok(Some(_))));
        one.sender.close();
        assert!(one.sender.send(message(1, 1)).await.is_err());
    });
}

/// Requests that were given up stayed with the kernel, which delivered them when the other side read again.
#[test]
fn what_has_not_left_when_a_connection_is_closed_never_leaves() {
    run(async |world| {
        let (mut one, two) = pair(&world, "127.0.0.1:0").await;
        // More than the kernel takes; nobody reads.
        let most = 64;
        for _ in 0..most {
            drop(two.sender.send(message(0, 1 << 20)));
        }
        world.sleep(Duration::from_millis(100)).await;
        // Who waits for the other side keeps the file open, until it runs again.
        let mut receiver = two.receiver;
        let mut waiting = receiver.receive();
        let has_come = poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_ready())).await;
        assert!(!has_come);
        two.sender.close();
        let mut count = 0;
        let ended = loop {
            match one.receiver.receive().await {
                Ok(Some(_)) => count += 1,
                ended => break ended,
            }
        };
        assert!(count < most, "{count} came");
        assert_eq!(ended.expect_err("not an orderly end").kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_sender_waits_for_a_slow_receiver_and_fails_when_it_leaves() {
    run(async |world| {
        let (one, two) = pair(&world, "127.0.0.1:0").await;
        let sent = Rc::new(Cell::new(0));
        let count = sent.clone();
        let flood = tokio::task::spawn_local(async move {
            loop {
                if two.sender.send(message(0, 1 << 20)).await.is_err() {
                    return;
                }
                count.set(count.get() + 1);
            }
        });
        let mut before = usize::MAX;
        while before != sent.get() {
            before = sent.get();
            world.sleep(Duration::from_millis(50)).await;
        }
        assert!((1..100).contains(&sent.get()), "{} MiB were taken although nobody reads", sent.get());
        one.sender.close();
        flood.await.unwrap();
    });
}

/// CVE-2022-26495 and its like: lengths trusted before allocation.
#[test]
fn lengths_over_the_bounds_end_the_connection() {
    for (head, body) in [(MESSAGE_HEAD_BYTES_MAX + 1, 0), (0, MESSAGE_BODY_BYTES_MAX + 1), (u32::MAX as usize, 1)] {
        run(async |world| {
            let mut listener = world.net.listen("127.0.0.1:0").await.unwrap();
            let mut stream = std::net::TcpStream::connect(listener.address()).unwrap();
            let mut prefix = BytesMut::new();
            prefix.put_u32_le(head as u32);
            prefix.put_u32_le(body as u32);
            stream.write_all(&prefix).unwrap();
            let mut connection = listener.accept().await.unwrap();
            let error = connection.receiver.receive().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{head} and {body}");
            let mut rest = Vec::new();
            let closed = stream.read_to_end(&mut rest);
            assert!(closed.is_err() || rest.is_empty());
        });
    }
}

#[test]
fn a_receiver_s_limit_holds_until_it_is_lifted() {
    run(async |world| {
        let (mut one, two) = pair(&world, "127.0.0.1:0").await;
        one.receiver.limit(10);
        for sent in [message(10, 0), message(4, 6), message(6, 6)] {
            drop(two.sender.send(sent));
        }
        assert_eq!(one.receiver.receive().await.unwrap(), Some(message(10, 0)));
        assert_eq!(one.receiver.receive().await.unwrap(), Some(message(4, 6)));
        one.receiver.limit(usize::MAX);
        assert_eq!(one.receiver.receive().await.unwrap(), Some(message(6, 6)));
        one.receiver.limit(10);
        drop(two.sender.send(message(11, 0)));
        assert_eq!(one.receiver.receive().await.unwrap_err().kind(), ErrorKind::InvalidData);
        assert!(one.sender.send(message(1, 0)).await.is_err(), "the connection is over");
    });
}

#[test]
fn a_message_of_great_declared_length_costs_what_arrived_of_it() {
    let mut decoder = framing::Decoder::default();
    let space = decoder.space();
    space.put_u32_le(0);
    space.put_u32_le(MESSAGE_BODY_BYTES_MAX as u32);
    assert!(decoder.next().unwrap().is_none());
    assert!(decoder.space().capacity() < 1 << 20, "room was made for bytes nobody has sent");
}

#[test]
fn a_stream_that_ends_within_a_message_is_an_error() {
    for cut in [1, 7, 8, 12] {
        run(async |world| {
            let mut listener = world.net.listen("127.0.0.1:0").await.unwrap();
            let mut stream = std::net::TcpStream::connect(listener.address()).unwrap();
            let (start, _) = framing::encode(message(10, 0));
            stream.write_all(&start[..cut]).unwrap();
            drop(stream);
            let mut connection = listener.accept().await.unwrap();
            assert_eq!(connection.receiver.receive().await.unwrap_err().kind(), ErrorKind::UnexpectedEof, "{cut}");
        });
    }
}

#[test]
fn a_socket_file_left_behind_is_replaced_and_one_in_use_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    run(async |_| {
        drop(bind_unix(&path).unwrap());
        let live = bind_unix(&path).unwrap();
        assert_eq!(bind_unix(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(live);
    });
}

#[test]
fn offloaded_work_runs_on_the_pool_and_a_panic_there_leaves_the_pool_whole() {
    run(async |world| {
        for _ in 0..4 {
            world.spawn.offload(Box::new(|| panic!("planned by the test"))).await;
        }
        let names: Vec<u64> = (0..100).collect();
        let mut sum = 0;
        for number in names {
            let thread = std::thread::current().id();
            sum += world
                .offload(move || {
                    assert_ne!(thread, std::thread::current().id());
                    number
                })
                .await;
        }
        assert_eq!(sum, 4950);
    });
}

#[test]
fn time_and_chance_move() {
    run(async |world| {
        let begin = world.now();
        world.sleep(Duration::from_millis(5)).await;
        assert!(world.now().since(begin) >= Duration::from_millis(5));
        let numbers: std::collections::BTreeSet<u64> = (0..1000).map(|_| world.random.next_u64()).collect();
        assert_eq!(numbers.len(), 1000);
    });
}
