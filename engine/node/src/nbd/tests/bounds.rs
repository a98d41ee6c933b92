//! What a client can make the server hold.

use super::*;
use drover_base::limits::{CONNECTION_BYTES_IN_FLIGHT_MAX, CONNECTION_REQUESTS_IN_FLIGHT_MAX, REQUEST_BYTES_MAX};

async fn attach_to(probe: &Rc<Probe>) -> Attached {
    let mut attached = attach(&service(probe));
    enter_simple(&mut attached.stream, "probe").await;
    attached
}

#[test]
fn requests_in_flight_are_bounded_by_number() {
    run_test(async {
        let probe = Probe::new(1 << 40, false);
        let mut attached = attach_to(&probe).await;
        let most = CONNECTION_REQUESTS_IN_FLIGHT_MAX;
        let count = most as u64 + 100;
        let requests: Vec<u8> = (0..count).flat_map(|cookie| encode_request(cookie, &Command::Flush)).collect();
        attached.stream.write_all(&requests).await.unwrap();
        settle().await;
        assert_eq!(probe.calls(), most);
        probe.open_gate();
        for _ in 0..count {
            assert_eq!(simple_reply(&mut attached.stream).await.0, 0);
        }
        assert_eq!(probe.finished.get(), most + 100);
    });
}

#[test]
fn requests_in_flight_are_bounded_by_bytes() {
    run_test(async {
        let probe = Probe::new(1 << 40, false);
        let mut attached = attach_to(&probe).await;
        let len = REQUEST_BYTES_MAX as u32;
        let read = |cookie| encode_request(cookie, &Command::Read { offset: 0, len, in_one: false });
        attached.stream.write_all(&(0..5).flat_map(read).collect::<Vec<u8>>()).await.unwrap();
        settle().await;
        let most = (CONNECTION_BYTES_IN_FLIGHT_MAX / REQUEST_BYTES_MAX) as usize;
        assert_eq!(probe.calls(), most);
        // Replies that the client does not take count as well.
        probe.open_gate();
        settle().await;
        assert_eq!(probe.calls(), most, "unsent replies are in flight");
        let mut data = vec![0; REQUEST_BYTES_MAX as usize];
        for _ in 0..5 {
            assert_eq!(simple_reply(&mut attached.stream).await.0, 0);
            attached.stream.read_exact(&mut data).await.unwrap();
            assert!(data.iter().all(|byte| *byte == 0xcd));
        }
        assert_eq!(probe.calls(), 5);
    });
}

/// A client that sends refused requests and takes no replies is no longer listened to.
#[test]
fn replies_to_refused_requests_are_bounded() {
    run_test(async {
        let probe = Probe::new(1, true);
        let mut attached = attach_to(&probe).await;
        let wrong = encode_request(0, &Command::Read { offset: 9, len: 1, in_one: false }).repeat(4096);
        let mut sent = 0;
        loop {
            settle().await;
            match attached.stream.try_write(&wrong) {
                Ok(count) => sent += count,
                Err(error) => break assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
            assert!(sent < 64 << 20, "the server goes on receiving");
        }
        // It is not stuck either.
        for _ in 0..sent / 28 {
            assert_eq!(simple_reply(&mut attached.stream).await.0, 22);
        }
    });
}

/// A write that is larger than any client sends is not received, let alone allocated.
#[test]
fn an_oversized_write_ends_the_connection() {
    run_test(async {
        let probe = Probe::new(1 << 40, true);
        let mut attached = attach_to(&probe).await;
        let write = encode_request(1, &Command::Write { offset: 0, len: u32::MAX, fua: false });
        let flush = encode_request(0, &Command::Flush);
        attached.stream.write_all(&[flush, write].concat()).await.unwrap();
        assert_eq!(simple_reply(&mut attached.stream).await, (0, 0), "what came before is answered");
        assert_eq!(attached.stream.read(&mut [0]).await.unwrap(), 0);
        assert!(matches!(attached.served.await.unwrap(), Err(SessionError::Violation(_))));
        assert_eq!(probe.calls(), 1);
    });
}

/// Bytes that are no request end the connection, and only it.
#[test]
fn garbage_ends_the_connection() {
    run_test(async {
        let probe = Probe::new(1 << 20, true);
        let service = service(&probe);
        let mut attached = attach(&service);
        enter_simple(&mut attached.stream, "probe").await;
        let other = client(&service, "probe").await;
        attached.stream.write_all(&[command::FLUSH as u8; 500]).await.unwrap();
        assert!(attached.served.await.unwrap().is_err());
        other.flush().await.unwrap();
    });
}
