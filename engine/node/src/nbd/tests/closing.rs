//! How connections end.

use super::*;
use drover_wire::nbd::{Errno, encode_disconnect};
use std::time::Duration;

const SIZE: u64 = 1 << 20;

/// CVE-2024-7409: qemu's NBD server crashed when it was stopped while clients were still connecting or attached.
/// Here closing finishes and answers what is in flight, refuses the rest, and then closes.
#[test]
fn closing_with_clients_attached_answers_them() {
    run_test(async {
        let probe = Probe::new(SIZE, false);
        let mut attached = attach(&service(&probe));
        enter_simple(&mut attached.stream, "probe").await;
        let write = Command::Write { offset: 0, len: 100_000, fua: false };
        // One in flight, one whose payload does not come.
        let requests = [encode_request(1, &Command::Flush), encode_request(2, &write)].concat();
        attached.stream.write_all(&requests).await.unwrap();
        settle().await;
        attached.closing.send_replace(true);
        settle().await;
        assert_eq!(simple_reply(&mut attached.stream).await, (Errno::Shutdown.to_wire(), 2));
        assert!(!attached.served.is_finished(), "a request is in flight");
        probe.open_gate();
        assert_eq!(simple_reply(&mut attached.stream).await, (0, 1));
        assert_eq!(attached.stream.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(attached.served.await.unwrap().unwrap(), End::Closing);
    });
}

/// An export that is withdrawn has no clients any more, as the REST interface promises of a deleted one.
#[test]
fn withdrawing_an_export_sends_its_clients_away() {
    run_test(async {
        let probe = Probe::new(SIZE, false);
        let service = service(&probe);
        let mut attached = attach(&service);
        enter_simple(&mut attached.stream, "probe").await;
        attached.stream.write_all(&encode_request(1, &Command::Flush)).await.unwrap();
        settle().await;
        service.withdraw("probe");
        settle().await;
        assert!(!attached.served.is_finished(), "a request is in flight");
        probe.open_gate();
        assert_eq!(simple_reply(&mut attached.stream).await, (0, 1));
        assert_eq!(attached.stream.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(attached.served.await.unwrap().unwrap(), End::Closing);
    });
}

/// The same for a listener: clients in the middle of the handshake, idle ones and busy ones.
#[test]
fn a_listener_closes_with_clients_in_every_state() {
    run_test(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nbd");
        let listener = NbdListener::bind(&NbdAddress::Unix(path.clone()), None).await.unwrap();
        let service = service(&MemoryExport::new("vol", SIZE));
        let (closing, closed) = watch::channel(false);
        let running =
            spawn_local(run(listener, service.clone(), closed, ServerSettings::default(), serve_here(service.clone())));
        let mut silent = UnixStream::connect(&path).await.unwrap();
        let mut entering = UnixStream::connect(&path).await.unwrap();
        entering.write_all(&3u32.to_be_bytes()).await.unwrap();
        let mut idle = UnixStream::connect(&path).await.unwrap();
        enter_simple(&mut idle, "vol").await;
        let uri = format!("nbd+unix:///vol?socket={}", path.display());
        let (busy, driver) = NbdClient::connect(&uri.parse().unwrap()).await.unwrap();
        let driver = spawn_local(driver.run());
        busy.write(0, vec![1; 4096].into(), false).await.unwrap();
        settle().await;
        closing.send_replace(true);
        running.await.unwrap();
        assert!(!path.exists(), "the socket's file is gone");
        for stream in [&mut silent, &mut entering, &mut idle] {
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
        }
        assert!(driver.await.unwrap().is_err());
        assert!(matches!(busy.flush().await, Err(ClientError::Ended(_))));
    });
}

/// A client that takes no replies, whether it still sends or not, cannot keep the server from closing.
#[test]
fn a_client_that_takes_nothing_does_not_hold_up_closing() {
    run_test(async {
        for leaves_first in [false, true] {
            let mut attached = attach(&service(&Probe::new(SIZE, true)));
            enter_simple(&mut attached.stream, "probe").await;
            let read = encode_request(1, &Command::Read { offset: 0, len: SIZE as u32, in_one: false });
            attached.stream.write_all(&read.repeat(3)).await.unwrap();
            if leaves_first {
                attached.stream.write_all(&encode_disconnect()).await.unwrap();
            }
            settle().await;
            assert!(!attached.served.is_finished());
            attached.closing.send_replace(true);
            let end = attached.served.await.unwrap().unwrap();
            assert_eq!(end, if leaves_first { End::Client } else { End::Closing });
        }
    });
}

#[test]
fn a_disconnect_waits_for_what_is_in_flight() {
    run_test(async {
        let probe = Probe::new(SIZE, false);
        let mut attached = attach(&service(&probe));
        enter_simple(&mut attached.stream, "probe").await;
        let requests = [encode_request(1, &Command::Flush), encode_disconnect()].concat();
        attached.stream.write_all(&requests).await.unwrap();
        settle().await;
        assert!(!attached.served.is_finished());
        probe.open_gate();
        assert_eq!(simple_reply(&mut attached.stream).await, (0, 1));
        assert_eq!(attached.stream.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(attached.served.await.unwrap().unwrap(), End::Client);
    });
}

/// A client that goes without a word leaves nothing behind, and what it had sent wholly is carried out.
#[test]
fn a_client_may_vanish_at_any_byte() {
    run_test(async {
        let write = Command::Write { offset: 0, len: 64, fua: false };
        let mut stream = encode_request(1, &write).to_vec();
        stream.extend_from_slice(&[7; 64]);
        stream.extend_from_slice(&encode_request(2, &Command::Flush));
        for len in 0..=stream.len() {
            let probe = Probe::new(SIZE, false);
            let mut attached = attach(&service(&probe));
            enter_simple(&mut attached.stream, "probe").await;
            attached.stream.write_all(&stream[..len]).await.unwrap();
            drop(attached.stream);
            for _ in 0..20 {
                yield_now().await;
            }
            probe.open_gate();
            // Its end may be an error, as the replies find nobody.
            let _ = attached.served.await.unwrap();
            let whole = usize::from(len >= 92) + usize::from(len == stream.len());
            assert_eq!(probe.finished.get(), whole, "after {len} bytes");
        }
    });
}

#[test]
fn a_handshake_has_a_deadline_and_connections_a_bound() {
    run_test(async {
        let address = NbdAddress::Tcp { host: "127.0.0.1".into(), port: 0 };
        let listener = NbdListener::bind(&address, None).await.unwrap();
        let name: ExportName = "vol".parse().unwrap();
        let uri = NbdUri { address: listener.address().unwrap(), name, tls: None };
        let service = service(&MemoryExport::new("vol", SIZE));
        let (closing, closed) = watch::channel(false);
        let settings = ServerSettings { connections_max: 1, handshake_deadline: Duration::from_millis(50) };
        let running = spawn_local(run(listener, service.clone(), closed, settings, serve_here(service)));
        // It takes the only place, until its deadline frees it for the next.
        let NbdStream::Tcp(mut silent) = NbdStream::connect(&uri.address).await.unwrap() else { panic!() };
        let (client, driver) = NbdClient::connect(&uri).await.unwrap();
        spawn_local(driver.run());
        assert_eq!(client.size_bytes(), SIZE);
        let mut greeting = Vec::new();
        silent.read_to_end(&mut greeting).await.unwrap();
        assert_eq!(greeting.len(), 18);
        drop(client);
        closing.send_replace(true);
        running.await.unwrap();
    });
}

/// A connection moves to the thread of its volume after the handshake; what its client sent early goes along.
#[test]
fn a_connection_moves_to_another_thread() {
    let (sender, receiver) = std::sync::mpsc::channel::<Handed>();
    let home = std::thread::spawn(move || {
        let handed = receiver.recv().unwrap();
        run_test(async move {
            let export = MemoryExport::new("vol", SIZE);
            let negotiated = handed.attach().unwrap();
            assert_eq!(negotiated.name().to_string(), "vol@w");
            serve(negotiated, &*service(&export), Box::pin(std::future::pending())).await.unwrap();
            assert_eq!(export.flushes(), 2);
        });
    });
    run_test(async {
        let (server, mut stream) = UnixStream::pair().unwrap();
        let elsewhere = service(&MemoryExport::new("vol", SIZE));
        let shaking = spawn_local(async move { handshake(NbdStream::Unix(server), &*elsewhere, None).await });
        // The first request right behind the handshake.
        let mut early = 3u32.to_be_bytes().to_vec();
        early.extend_from_slice(&proto::OPTION_MAGIC.to_be_bytes());
        early.extend_from_slice(&option::EXPORT_NAME.to_be_bytes());
        early.extend_from_slice(&[0, 0, 0, 5]);
        early.extend_from_slice(b"vol@w");
        early.extend_from_slice(&encode_request(1, &Command::Flush));
        stream.write_all(&early).await.unwrap();
        let negotiated = shaking.await.unwrap().unwrap().unwrap();
        sender.send(negotiated.detach().unwrap()).unwrap();
        stream.read_exact(&mut [0; 28]).await.unwrap();
        assert_eq!(simple_reply(&mut stream).await, (0, 1));
        stream.write_all(&encode_request(2, &Command::Flush)).await.unwrap();
        assert_eq!(simple_reply(&mut stream).await, (0, 2));
    });
    home.join().unwrap();
}

/// Where the export shrank or became read-only on the way, the connection is not served.
#[test]
fn a_moved_connection_finds_what_it_was_told() {
    run_test(async {
        for other in [MemoryExport::new("vol", SIZE - 1), MemoryExport::read_only("vol", SIZE)] {
            let (server, mut stream) = UnixStream::pair().unwrap();
            let first = service(&MemoryExport::new("vol", SIZE));
            let shaking = spawn_local(async move { handshake(NbdStream::Unix(server), &*first, None).await });
            enter_simple(&mut stream, "vol").await;
            let handed = shaking.await.unwrap().unwrap().unwrap().detach().unwrap();
            let service = service(&other);
            let served = serve(handed.attach().unwrap(), &*service, Box::pin(std::future::pending())).await;
            assert!(matches!(served, Err(SessionError::Refused(_))));
        }
    });
}

/// The client's requests end with an error when the server goes, at any byte of its replies.
#[test]
fn a_server_may_vanish_at_any_byte() {
    run_test(async {
        // What a server says up to two replies.
        let attached = attach(&service(&MemoryExport::new("vol", SIZE)));
        let (client, said, driver) = {
            let (near, far) = UnixStream::pair().unwrap();
            let said = Rc::new(RefCell::new(Vec::new()));
            let (mut far_read, mut far_write) = far.into_split();
            let noted = said.clone();
            let (mut server_read, mut server_write) = attached.stream.into_split();
            spawn_local(async move { tokio::io::copy(&mut far_read, &mut server_write).await });
            spawn_local(async move {
                let mut piece = [0; 4096];
                while let Ok(count @ 1..) = server_read.read(&mut piece).await {
                    noted.borrow_mut().extend_from_slice(&piece[..count]);
                    far_write.write_all(&piece[..count]).await.unwrap();
                }
            });
            let (client, driver) = NbdClient::over(NbdStream::Unix(near), &"vol".parse().unwrap()).await.unwrap();
            (client, said, driver)
        };
        spawn_local(driver.run());
        client.write(0, vec![1; 100].into(), false).await.unwrap();
        client.read(0, 100).await.unwrap();
        let said = said.borrow().clone();
        attached.served.abort();
        for len in (0..said.len()).step_by(7) {
            let (near, mut far) = UnixStream::pair().unwrap();
            far.write_all(&said[..len]).await.unwrap();
            far.shutdown().await.unwrap();
            let Ok((client, driver)) = NbdClient::over(NbdStream::Unix(near), &"vol".parse().unwrap()).await else {
                continue;
            };
            let driver = spawn_local(driver.run());
            let written = client.write(0, vec![1; 100].into(), false).await;
            let read = client.read(0, 100).await;
            assert!(written.is_err() || read.is_err(), "after {len} bytes of {}", said.len());
            assert!(driver.await.unwrap().is_err());
        }
    });
}
