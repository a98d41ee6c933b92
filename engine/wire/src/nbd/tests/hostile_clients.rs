//! Holes of other block servers, as regression tests of ours.

use super::*;
use crate::nbd::proto::{command, command_flags, option as opt, rep};

/// A request as any client may send it.
fn raw_request(kind: u16, flags: u16, offset: u64, len: u32) -> Vec<u8> {
    proto::RequestHeader {
        magic: proto::REQUEST_MAGIC.into(),
        flags: flags.into(),
        command: kind.into(),
        cookie: 7.into(),
        offset: offset.into(),
        len: len.into(),
    }
    .as_bytes()
    .to_vec()
}

fn parse(terms: Terms, mut stream: &[u8]) -> Result<Option<Incoming>, Violation> {
    RequestParser::new(terms).next(&mut stream)
}

fn refusal(terms: Terms, stream: &[u8]) -> Errno {
    match parse(terms, stream) {
        Ok(Some(Incoming::Refused { cookie: 7, errno, .. })) => errno,
        other => panic!("{other:?}"),
    }
}

/// CVE-2022-26495: nbd-server added to an option's declared length and allocated the wrapped result, so a name
/// of 0xffffffff bytes overflowed the heap. Here a length is compared with a bound before anything is done.
#[test]
fn the_longest_length_is_not_allocated() {
    for kind in [opt::EXPORT_NAME, opt::GO, opt::INFO, opt::SET_META_CONTEXT, opt::LIST, 4711] {
        let talk = serve(&[&fixed(), &option_claiming(kind, u32::MAX, b"vol")]);
        assert!(matches!(talk.last, Err(Violation::TooLong { .. })), "{kind}: {:?}", talk.last);
    }
}

/// CVE-2022-26496: nbd-server read a name of a declared length inside INFO and GO into a buffer of fixed size on
/// its stack. Here lengths inside a payload are bounded by the payload and by a string's bound.
#[test]
fn a_long_name_inside_an_option_is_refused() {
    let long = "v".repeat(bounds::STRING_BYTES_MAX + 1);
    let lying = [&u32::MAX.to_be_bytes()[..], b"vol", &[0, 0]].concat();
    for payload in [info_payload(&long, &[]), lying] {
        let talk = serve(&[&fixed(), &option(opt::GO, &payload), &option(opt::GO, &info_payload("vol", &[]))]);
        assert_eq!(reply_types(&talk)[0], (opt::GO, rep::ERR_INVALID));
        assert!(matches!(talk.last, Ok(Step::Serve(..))), "the next option is understood");
    }
}

/// CVE-2017-15118: qemu-nbd copied an export's name longer than its buffer while it negotiated.
#[test]
fn a_long_export_name_closes() {
    let long = vec![b'v'; bounds::STRING_BYTES_MAX + 1];
    let talk = serve(&[&fixed(), &option(opt::EXPORT_NAME, &long)]);
    assert!(matches!(talk.last, Err(Violation::TooLong { .. })));
    let longest = serve(&[&fixed(), &option(opt::EXPORT_NAME, &long[1..])]);
    assert_eq!(longest.last, Ok(Step::Close), "no such export");
}

/// CVE-2017-15119: qemu-nbd read as many option bytes as were declared, so that a client kept it busy with huge
/// options. Here what is too long is skipped up to a bound and refused once, above it the connection closes.
#[test]
fn oversized_options_are_skipped_or_close() {
    let skipped = option(opt::LIST, &vec![1; bounds::OPTION_BYTES_MAX as usize + 1]);
    let talk = serve(&[&fixed(), &skipped, &option(opt::STRUCTURED_REPLY, &[])]);
    assert_eq!(reply_types(&talk), [(opt::LIST, rep::ERR_TOO_BIG), (opt::STRUCTURED_REPLY, rep::ACK)]);
    let closing = option_claiming(opt::LIST, bounds::OPTION_SKIP_BYTES_MAX + 1, &[]);
    assert!(serve(&[&fixed(), &closing]).last.is_err());
    // Nor can small options be sent for ever.
    let many = option(opt::LIST_META_CONTEXT, &[]).repeat(bounds::OPTIONS_MAX as usize + 1);
    assert_eq!(serve(&[&fixed(), &many]).last, Err(Violation::TooManyOptions));
}

/// QEMU work item 4843: an option's declared length larger than what its handler consumed left the rest in the
/// stream, to be taken for the next option, or stopped the server by an assertion.
#[test]
fn a_payload_of_the_wrong_length_does_not_shift_the_next_option() {
    let mut long = info_payload("vol", &[]);
    long.push(0);
    let mut more_contexts = context_payload("vol", &[proto::CONTEXT_NAME]);
    more_contexts.extend_from_slice(b"more");
    let short_contexts = [&text("vol")[..], &9u32.to_be_bytes()].concat();
    let wrong = [
        (opt::GO, long.clone()),
        (opt::INFO, info_payload("vol", &[3])[..8].to_vec()),
        (opt::GO, vec![]),
        (opt::LIST, b"x".to_vec()),
        (opt::STRUCTURED_REPLY, b"x".to_vec()),
        (opt::SET_META_CONTEXT, more_contexts.clone()),
        (opt::LIST_META_CONTEXT, short_contexts),
        (opt::SET_META_CONTEXT, context_payload("vol", &[])[..5].to_vec()),
    ];
    for (kind, payload) in wrong {
        let structured = option(opt::STRUCTURED_REPLY, &[]);
        let last = option(opt::INFO, &info_payload("vol", &[]));
        let talk = serve(&[&fixed(), &structured, &option(kind, &payload), &last]);
        let types = reply_types(&talk);
        assert_eq!(types[1], (kind, rep::ERR_INVALID), "{kind} with {payload:?}");
        assert_eq!(types[2..], [(opt::INFO, rep::INFO), (opt::INFO, rep::ACK)]);
    }
}

/// CVE-2017-7539 and CVE-2017-9524: qemu-nbd stopped by an assertion when a client left in the middle of the
/// negotiation, or before it began. Here every prefix of a talk leaves the machine waiting.
#[test]
fn a_client_may_leave_at_any_byte() {
    let set = option(opt::SET_META_CONTEXT, &context_payload("vol", &[proto::CONTEXT_NAME]));
    let structured = option(opt::STRUCTURED_REPLY, &[]);
    let go = option(opt::GO, &info_payload("vol", &[3]));
    let stream = [fixed(), option(opt::LIST, &[]), structured, set, go].concat();
    for len in 0..stream.len() {
        assert_eq!(serve(&[&stream[..len]]).last, Ok(Step::Receive), "after {len} bytes");
    }
}

/// CVE-2019-14850: nbdkit opened its plugin before the client had said anything, so a client that did nothing but
/// connect made it work. Here an export is asked for only when a client has named it.
#[test]
fn connecting_opens_nothing() {
    let mut machine = ServerHandshake::default();
    assert_eq!(machine.poll(), Ok(Step::Receive));
    machine.receive(&fixed());
    assert_eq!(machine.poll(), Ok(Step::Receive));
}

/// CVE-2019-14851: INFO followed by another option than GO stopped nbdkit by an assertion, since the export was
/// open already.
#[test]
fn an_export_may_be_asked_about_repeatedly() {
    let info = |name: &str| option(opt::INFO, &info_payload(name, &[]));
    let stream = [fixed(), info("vol"), info("rom"), option(opt::LIST, &[]), info("vol")].concat();
    let talk = serve(&[&stream, &option(opt::GO, &info_payload("rom", &[]))]);
    assert!(matches!(talk.last, Ok(Step::Serve(name, terms)) if name.export == "rom" && terms.read_only));
}

/// CVE-2019-14842 and CVE-2021-3716: state that was negotiated in plain text, or a refused STARTTLS, let someone
/// in the middle downgrade the connection. Here STARTTLS is refused and changes nothing.
#[test]
fn starttls_is_refused_without_effect() {
    let structured = option(opt::STRUCTURED_REPLY, &[]);
    let go = option(opt::GO, &info_payload("vol", &[]));
    let talk = serve(&[&fixed(), &structured, &option(opt::STARTTLS, &[]), &go]);
    assert_eq!(reply_types(&talk)[1], (opt::STARTTLS, rep::ERR_UNSUP));
    assert!(matches!(talk.last, Ok(Step::Serve(_, terms)) if terms.structured));
}

/// CVE-2025-47711: a block status whose run reached 2^32 bytes stopped nbdkit by an assertion. Here runs are cut
/// to what was asked and to what 32 bits hold.
#[test]
fn the_largest_block_status_is_cut() {
    let largest = Terms { size_bytes: u64::MAX, ..terms() };
    let request = raw_request(command::BLOCK_STATUS, 0, 0, u32::MAX);
    assert!(matches!(parse(largest, &request), Ok(Some(Incoming::Request { .. }))));
    let hole = BlockStatus { hole: true, zero: true };
    let data = BlockStatus::default();
    for (len, one, runs, told) in [
        (u32::MAX, false, vec![(u64::MAX, hole)], vec![bounds::STATUS_RUN_BYTES_MAX]),
        (u32::MAX, false, vec![(1 << 32, hole), (1, data)], vec![bounds::STATUS_RUN_BYTES_MAX]),
        (u32::MAX, true, vec![(4096, hole), (4096, data)], vec![4096]),
        (1, true, vec![(1 << 20, data)], vec![1]),
        (8192, false, vec![(4096, hole), (0, data), (1 << 40, data)], vec![4096, 4096]),
    ] {
        let mut out = Vec::new();
        assert!(reply::block_status(&mut out, 7, len, one, &runs));
        let mut parser = ReplyParser::new(true, Some(proto::CONTEXT_ID));
        parser.expect(7, Expected::Status { len });
        let answer = parser.next(&mut out.as_slice()).unwrap().unwrap();
        let Ok(Payload::Status(runs)) = answer.result else { panic!("{answer:?}") };
        assert_eq!(runs.iter().map(|run| run.0).collect::<Vec<_>>(), told);
    }
    let many = vec![(4096, data); bounds::STATUS_RUNS_MAX + 1];
    let mut out = Vec::new();
    assert!(reply::block_status(&mut out, 7, u32::MAX, false, &many));
    assert_eq!(out.len(), 20 + 4 + 8 * bounds::STATUS_RUNS_MAX);
    assert!(!reply::block_status(&mut out, 7, 1, false, &[]), "no run is no reply");
}

/// A request's length is no reason to allocate or to wait for ever: a write that is refused has its payload
/// skipped, one that is larger than any client sends closes the connection.
#[test]
fn oversized_requests_are_refused() {
    let over = bounds::PAYLOAD_BYTES_MAX + 1;
    let large = Terms { size_bytes: 1 << 40, ..terms() };
    assert_eq!(refusal(large, &raw_request(command::READ, 0, 0, over)), Errno::Overflow);
    let simple = Terms { structured: false, ..large };
    assert_eq!(refusal(simple, &raw_request(command::READ, 0, 0, over)), Errno::Invalid);
    let huge = raw_request(command::WRITE, 0, 0, bounds::PAYLOAD_SKIP_BYTES_MAX + 1);
    assert!(matches!(parse(large, &huge), Err(Violation::TooLong { .. })));
    // Without payload any length is fine.
    for kind in [command::TRIM, command::WRITE_ZEROES, command::CACHE, command::BLOCK_STATUS] {
        let request = raw_request(kind, 0, 0, u32::MAX);
        assert!(matches!(parse(large, &request), Ok(Some(Incoming::Request { .. }))), "{kind}");
    }
}

/// A refused write's payload is not taken for requests.
#[test]
fn refused_writes_are_skipped() {
    let write = raw_request(command::WRITE, 0, SIZE_BYTES, 100);
    // The payload looks like requests.
    let payload = raw_request(command::FLUSH, 0, 0, 0).repeat(4)[..100].to_vec();
    let stream = [write, payload, raw_request(command::READ, 0, 0, 1)].concat();
    let mut parser = RequestParser::new(terms());
    for grain in [1, 7, stream.len()] {
        let mut seen = Vec::new();
        let mut held: Vec<u8> = Vec::new();
        for piece in stream.chunks(grain) {
            held.extend_from_slice(piece);
            let mut rest = held.as_slice();
            while let Some(incoming) = parser.next(&mut rest).unwrap() {
                seen.push(incoming);
            }
            held = rest.to_vec();
        }
        assert!(matches!(seen[0], Incoming::Refused { cookie: 7, errno: Errno::NoSpace, .. }), "{seen:?}");
        assert!(matches!(seen[1], Incoming::Request { command: Command::Read { .. }, .. }), "{seen:?}");
        assert_eq!(seen.len(), 2);
    }
}

/// The error that the protocol asks for, for each way a request can be wrong.
#[test]
fn wrong_requests_get_the_error_of_the_protocol() {
    let read_only = Terms { read_only: true, ..terms() };
    let no_status = Terms { block_status: false, ..terms() };
    let simple = Terms { structured: false, block_status: false, ..terms() };
    let (end, max) = (SIZE_BYTES, u64::MAX);
    let cases = [
        (terms(), command::READ, 0, end, 1, Errno::Invalid),
        (terms(), command::READ, 0, max, 2, Errno::Invalid),
        (terms(), command::TRIM, 0, end - 1, 2, Errno::Invalid),
        (terms(), command::CACHE, 0, end, 1, Errno::Invalid),
        (terms(), command::BLOCK_STATUS, 0, end, 1, Errno::Invalid),
        (terms(), command::BLOCK_STATUS, 0, 0, 0, Errno::Invalid),
        (terms(), command::WRITE_ZEROES, 0, max, 2, Errno::NoSpace),
        (terms(), command::FLUSH, 0, 0, 1, Errno::Invalid),
        (terms(), 99, 0, 0, 1, Errno::Invalid),
        (terms(), command::READ, 1 << 9, 0, 1, Errno::Invalid),
        (terms(), command::READ, command_flags::FAST_ZERO, 0, 1, Errno::Invalid),
        (terms(), command::TRIM, command_flags::NO_HOLE, 0, 1, Errno::Invalid),
        (terms(), command::CACHE, command_flags::DF, 0, 1, Errno::Invalid),
        (simple, command::READ, command_flags::DF, 0, 1, Errno::Invalid),
        (no_status, command::BLOCK_STATUS, 0, 0, 1, Errno::Invalid),
        (read_only, command::TRIM, 0, 0, 1, Errno::Perm),
        (read_only, command::WRITE_ZEROES, 0, 0, 1, Errno::Perm),
    ];
    for (terms, kind, flags, offset, len, errno) in cases {
        let request = raw_request(kind, flags, offset, len);
        assert_eq!(refusal(terms, &request), errno, "command {kind} flags {flags} {offset}+{len}");
    }
    // FUA is right on any of them.
    for kind in [command::READ, command::FLUSH, command::TRIM, command::CACHE, command::BLOCK_STATUS] {
        let request = raw_request(kind, command_flags::FUA, 0, u32::from(kind != command::FLUSH));
        assert!(matches!(parse(terms(), &request), Ok(Some(Incoming::Request { .. }))), "{kind}");
    }
    assert!(matches!(parse(terms(), &[0; 28]), Err(Violation::Magic(_))));
}
