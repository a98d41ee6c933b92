//! What requests do.

use super::*;
use drover_base::limits::REQUEST_BYTES_MAX;
use drover_wire::nbd::Errno;
use futures::future::join_all;

const SIZE: u64 = 4 << 20;

/// Random requests, many at once, against a plain model; the ranges of a batch do not overlap.
#[test]
fn an_export_holds_what_was_written() {
    run_test(async {
        let service = service(&MemoryExport::new("vol", SIZE));
        let client = client(&service, "vol").await;
        let mut model = vec![0u8; SIZE as usize];
        let mut dice = Dice(1);
        for _ in 0..60 {
            let mut batch: Vec<LocalFuture<'_, ()>> = Vec::new();
            for part in 0..8 {
                let base = part * SIZE / 8;
                let offset = base + dice.roll(SIZE / 16);
                let most = if dice.roll(4) == 0 { SIZE / 16 } else { 9000 };
                let len = 1 + dice.roll(most);
                let range = offset as usize..(offset + len) as usize;
                match dice.roll(4) {
                    0 => {
                        model[range].fill(0);
                        let may_unmap = dice.roll(2) == 0;
                        let client = &client;
                        batch.push(Box::pin(async move {
                            client.write_zeroes(offset, len, may_unmap, false, false).await.unwrap();
                        }));
                    }
                    1 => {
                        let expected = model[range].to_vec();
                        let client = &client;
                        batch.push(Box::pin(async move {
                            assert!(client.read(offset, len).await.unwrap() == expected, "{offset}+{len}");
                        }));
                    }
                    _ => {
                        let byte = dice.roll(256) as u8;
                        model[range].fill(byte);
                        let client = &client;
                        batch.push(Box::pin(async move {
                            client.write(offset, vec![byte; len as usize].into(), false).await.unwrap();
                        }));
                    }
                }
            }
            join_all(batch).await;
        }
        assert!(client.read(0, SIZE).await.unwrap() == model);
    });
}

#[test]
fn the_largest_requests_arrive_whole() {
    run_test(async {
        let service = service(&MemoryExport::new("vol", REQUEST_BYTES_MAX + 1));
        let client = client(&service, "vol").await;
        let data: Bytes = (0..REQUEST_BYTES_MAX).map(|at| (at / 4093) as u8).collect::<Vec<_>>().into();
        client.write(1, data.clone(), false).await.unwrap();
        assert!(client.read(1, REQUEST_BYTES_MAX).await.unwrap() == data);
        assert_eq!(
            client.read(0, REQUEST_BYTES_MAX + 1).await,
            Err(ClientError::TooLarge { len: REQUEST_BYTES_MAX + 1, most: REQUEST_BYTES_MAX })
        );
    });
}

#[test]
fn sparse_reads_and_block_status_agree() {
    run_test(async {
        let service = service(&MemoryExport::new("vol", SIZE));
        let client = client(&service, "vol").await;
        client.write(100_000, vec![7; 200_000].into(), false).await.unwrap();
        let runs = client.block_status(0, SIZE).await.unwrap();
        let (hole, data) = (BlockStatus { hole: true, zero: true }, BlockStatus::default());
        assert_eq!(runs, [(98304, hole), (204_800, data), (SIZE - 303_104, hole)]);
        let mut expected = vec![0; SIZE as usize];
        expected[100_000..300_000].fill(7);
        assert!(client.read(0, SIZE).await.unwrap() == expected);
        client.trim(0, SIZE, false).await.unwrap();
        assert_eq!(client.block_status(0, SIZE).await.unwrap(), [(SIZE, hole)]);
    });
}

#[test]
fn fua_and_flush_reach_the_export() {
    run_test(async {
        let export = MemoryExport::new("vol", SIZE);
        let client = client(&service(&export), "vol").await;
        client.write(0, vec![1; 10].into(), false).await.unwrap();
        assert_eq!(export.flushes(), 0);
        client.write(0, vec![1; 10].into(), true).await.unwrap();
        client.trim(0, 10, true).await.unwrap();
        client.write_zeroes(0, 10, true, false, true).await.unwrap();
        client.flush().await.unwrap();
        assert_eq!(export.flushes(), 4);
    });
}

/// A request without payload may cover 4 GiB; the export gets it in pieces, and one flush for its FUA.
#[test]
fn long_trims_and_zeroes_come_in_pieces() {
    run_test(async {
        let probe = Probe::new(1 << 40, true);
        let client = client(&service(&probe), "probe").await;
        let piece = REQUEST_BYTES_MAX;
        client.trim(piece - 5, 2 * piece, true).await.unwrap();
        let trims = [
            format!("trim {}+5 false", piece - 5),
            format!("trim {piece}+{piece} false"),
            format!("trim {}+{} false", 2 * piece, piece - 5),
            "flush".to_string(),
        ];
        assert_eq!(*probe.calls.borrow(), trims);
        probe.calls.borrow_mut().clear();
        client.write_zeroes(0, u32::MAX.into(), false, true, false).await.unwrap();
        assert_eq!(probe.calls.borrow().len(), 128);
        assert_eq!(probe.calls.borrow()[0], format!("zero 0+{piece} false true false"));
        assert_eq!(probe.calls.borrow()[127], format!("zero {}+{} false true false", 127 * piece, piece - 1));
        probe.calls.borrow_mut().clear();
        // Short ones come as they are, and a hint is cut.
        client.trim(0, piece, true).await.unwrap();
        client.write_zeroes(0, 1, true, false, true).await.unwrap();
        client.cache(7, u32::MAX.into()).await.unwrap();
        let calls = [format!("trim 0+{piece} true"), "zero 0+1 true false true".into(), format!("cache 7+{piece}")];
        assert_eq!(*probe.calls.borrow(), calls);
    });
}

#[test]
fn errors_have_the_numbers_of_the_protocol() {
    run_test(async {
        let export = MemoryExport::new("vol", SIZE);
        let client = client(&service(&export), "vol").await;
        let epoch = drover_base::Epoch(3);
        for (fault, errno) in [
            (IoError::NoSpace, Errno::NoSpace),
            (IoError::OutOfRange { offset: 0, len: 1, size: 0 }, Errno::NoSpace),
            (IoError::TooLarge { len: 9, most: 8 }, Errno::Overflow),
            (IoError::NotFast, Errno::NotSupported),
            (IoError::Poisoned, Errno::Io),
            (IoError::Device, Errno::Io),
            (IoError::Corrupt, Errno::Io),
            (IoError::TimedOut, Errno::Io),
            (IoError::Remote, Errno::Io),
            (IoError::Fenced { epoch }, Errno::Io),
        ] {
            export.set_fault(Some(fault.clone()));
            let failed = client.write(0, vec![1].into(), false).await;
            assert_eq!(failed, Err(ClientError::Server { errno, message: fault.to_string() }));
        }
        export.set_fault(Some(IoError::OutOfRange { offset: 0, len: 1, size: 0 }));
        assert!(matches!(client.read(0, 1).await, Err(ClientError::Server { errno: Errno::Invalid, .. })));
        export.set_fault(None);
        assert_eq!(client.read(0, 1).await, Ok(vec![0]), "an error ends its request only");
        assert!(matches!(
            client.write_zeroes(0, 1, false, true, false).await,
            Err(ClientError::Server { errno: Errno::NotSupported, .. })
        ));
    });
}

#[test]
fn a_read_only_export_refuses_writes() {
    run_test(async {
        let service = service(&MemoryExport::read_only("vol", SIZE));
        let client = client(&service, "vol").await;
        assert!(client.read_only());
        let refused = client.write(0, vec![1].into(), false).await;
        assert!(matches!(refused, Err(ClientError::Server { errno: Errno::Perm, .. })), "{refused:?}");
        assert_eq!(client.trim(0, 1, false).await, Err(ClientError::NotOffered("trim")));
    });
}

#[test]
fn a_workload_is_told_to_the_service() {
    run_test(async {
        let service = service(&MemoryExport::new("vol", SIZE));
        client(&service, "vol@web-7").await;
        let asked = service.asked();
        assert!(!asked.is_empty() && asked.iter().all(|name| name.workload.as_deref() == Some("web-7")));
        let stream = NbdStream::Unix(attach(&service).stream);
        let refused = NbdClient::over(stream, &"other".parse().unwrap()).await.err();
        assert!(matches!(refused, Some(ClientError::Handshake(_))), "{refused:?}");
    });
}

/// A slow request does not hold up those after it.
#[test]
fn requests_overtake_each_other() {
    run_test(async {
        let slow = Probe::new(SIZE, false);
        let mut attached = attach(&service(&slow));
        enter_simple(&mut attached.stream, "probe").await;
        let read = encode_request(1, &Command::Read { offset: 0, len: 8, in_one: false });
        // Of no bytes, so nothing to wait for.
        let write = encode_request(2, &Command::Write { offset: 0, len: 0, fua: false });
        attached.stream.write_all(&[read, write].concat()).await.unwrap();
        assert_eq!(simple_reply(&mut attached.stream).await, (0, 2));
        slow.open_gate();
        assert_eq!(simple_reply(&mut attached.stream).await, (0, 1));
        let mut data = [0; 8];
        attached.stream.read_exact(&mut data).await.unwrap();
        assert_eq!(data, [0xcd; 8]);
    });
}

/// Replies of requests that end together are there together.
#[test]
fn replies_go_out_in_one_send() {
    run_test(async {
        let probe = Probe::new(SIZE, false);
        let mut attached = attach(&service(&probe));
        enter_simple(&mut attached.stream, "probe").await;
        let requests: Vec<u8> = (0..50).flat_map(|cookie| encode_request(cookie, &Command::Flush)).collect();
        attached.stream.write_all(&requests).await.unwrap();
        settle().await;
        assert_eq!(probe.calls(), 50);
        probe.open_gate();
        let mut replies = [0; 4096];
        assert_eq!(attached.stream.read(&mut replies).await.unwrap(), 50 * 16);
    });
}

/// However a client's bytes are cut, the same requests are carried out and the same replies come back.
#[test]
fn splits_do_not_matter() {
    run_test(async {
        let mut dice = Dice(3);
        let mut stream = Vec::new();
        for cookie in 0..60 {
            let (offset, len) = (dice.roll(SIZE - 70_000), 1 + dice.roll(70_000) as u32);
            let command = match dice.roll(3) {
                0 => Command::Read { offset, len, in_one: false },
                1 => Command::Write { offset, len, fua: false },
                // Refused, its payload skipped.
                _ => Command::Write { offset: SIZE, len, fua: false },
            };
            stream.extend_from_slice(&encode_request(cookie, &command));
            if command.writes() {
                stream.resize(stream.len() + len as usize, cookie as u8);
            }
        }
        let mut results = Vec::new();
        for grain in [usize::MAX, 17, 28, 4096, 100_000] {
            let mut attached = attach(&service(&MemoryExport::new("vol", SIZE)));
            enter_simple(&mut attached.stream, "vol").await;
            let (mut reader, mut writer) = attached.stream.into_split();
            let stream = stream.clone();
            spawn_local(async move {
                for piece in stream.chunks(grain.min(stream.len())) {
                    writer.write_all(piece).await.unwrap();
                    yield_now().await;
                }
                writer.shutdown().await.unwrap();
            });
            let mut replies = Vec::new();
            reader.read_to_end(&mut replies).await.unwrap();
            assert_eq!(attached.served.await.unwrap().unwrap(), End::Client);
            results.push(replies);
        }
        assert!(results[0].len() > 60 * 16);
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    });
}
