//! Holes of other clients, as regression tests of ours: a server may say anything.

use super::*;
use crate::nbd::proto::{chunk, info, option as opt, rep};

fn greeting() -> Vec<u8> {
    ServerHandshake::default().take_output()
}

fn reply_claiming(option: u32, kind: u32, len: u32, data: &[u8]) -> Vec<u8> {
    let header = proto::OptionReplyHeader {
        magic: proto::OPTION_REPLY_MAGIC.into(),
        option: option.into(),
        reply: kind.into(),
        len: len.into(),
    };
    [header.as_bytes(), data].concat()
}

fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    reply_claiming(option, kind, data.len() as u32, data)
}

/// What the client makes of a server that says this.
fn connect(stream: &[u8]) -> Result<ClientStep, HandshakeError> {
    let mut client = ClientHandshake::new(&"vol".parse().unwrap(), false);
    client.receive(stream);
    client.poll()
}

fn is_violation(result: Result<ClientStep, HandshakeError>) -> bool {
    matches!(result, Err(HandshakeError::Violation(_)))
}

/// CVE-2017-2630: qemu-nbd's client read as many bytes of a reply as the server declared into a buffer on its
/// stack. Here a reply's length has a bound.
#[test]
fn a_reply_to_an_option_is_bounded() {
    for kind in [rep::ACK, rep::ERR_UNSUP, rep::INFO, 77] {
        let stream = [greeting(), reply_claiming(opt::STRUCTURED_REPLY, kind, u32::MAX, &[])].concat();
        assert!(is_violation(connect(&stream)), "{kind}");
    }
    let many = option_reply(opt::SET_META_CONTEXT, rep::META_CONTEXT, &[0; 8]).repeat(1000);
    let stream = [greeting(), option_reply(opt::STRUCTURED_REPLY, rep::ACK, &[]), many].concat();
    assert!(is_violation(connect(&stream)), "replies without end");
}

#[test]
fn a_handshake_that_does_not_fit_is_a_violation() {
    let sr = |kind| option_reply(opt::STRUCTURED_REPLY, kind, &[]);
    let go = |kind, data: &[u8]| option_reply(opt::GO, kind, data);
    let sizes = |least: u32, preferred: u32, most: u32| {
        let mut data = info::BLOCK_SIZE.to_be_bytes().to_vec();
        [least, preferred, most].iter().for_each(|size| data.extend_from_slice(&size.to_be_bytes()));
        go(rep::INFO, &data)
    };
    let cases = [
        vec![vec![0; 18]],
        vec![b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53".repeat(2)],
        vec![greeting(), vec![0; 20]],
        vec![greeting(), option_reply(opt::GO, rep::ACK, &[])],
        vec![greeting(), sr(rep::SERVER)],
        vec![greeting(), sr(rep::ERR_UNSUP), go(rep::ACK, &[])],
        vec![greeting(), sr(rep::ERR_UNSUP), go(rep::INFO, &[0])],
        vec![greeting(), sr(rep::ERR_UNSUP), go(rep::INFO, &[0; 11])],
        vec![greeting(), sr(rep::ERR_UNSUP), go(rep::INFO, &[0, 3, 1])],
        vec![greeting(), sr(rep::ERR_UNSUP), sizes(0, 4096, 1 << 20)],
        vec![greeting(), sr(rep::ERR_UNSUP), sizes(3, 4096, 1 << 20)],
        vec![greeting(), sr(rep::ERR_UNSUP), sizes(4096, 512, 1 << 20)],
        vec![greeting(), sr(rep::ERR_UNSUP), sizes(4096, 4096, 0)],
        vec![greeting(), sr(rep::ERR_UNSUP), sizes(1 << 20, 1 << 20, 1 << 20)],
        vec![greeting(), sr(rep::ACK), option_reply(opt::SET_META_CONTEXT, rep::META_CONTEXT, &[1])],
    ];
    for case in cases {
        assert!(is_violation(connect(&case.concat())), "{case:?}");
    }
}

#[test]
fn an_old_server_is_understood() {
    let mut old = greeting();
    let last = old.len() - 1;
    old[last] = 0;
    let export = [&SIZE_BYTES.to_be_bytes()[..], &[0, 3], &[0; 124]].concat();
    let Ok(ClientStep::Serve(terms)) = connect(&[old, export.clone()].concat()) else { panic!() };
    assert_eq!((terms.size_bytes, terms.flags, terms.structured), (SIZE_BYTES, 3, false));
    // One that is fixed but does not know GO.
    let unsupported = [
        greeting(),
        option_reply(opt::STRUCTURED_REPLY, rep::ERR_UNSUP, &[]),
        option_reply(opt::GO, rep::ERR_UNSUP, &[]),
        export[..10].to_vec(),
    ];
    assert!(matches!(connect(&unsupported.concat()), Ok(ClientStep::Serve(_))));
}

/// A chunk with any header.
fn chunk_claiming(cookie: u64, kind: u16, is_last: bool, len: u32, payload: &[u8]) -> Vec<u8> {
    let header = proto::ChunkHeader {
        magic: proto::CHUNK_MAGIC.into(),
        flags: u16::from(is_last).into(),
        kind: kind.into(),
        cookie: cookie.into(),
        len: len.into(),
    };
    [header.as_bytes(), payload].concat()
}

fn a_chunk(cookie: u64, kind: u16, is_last: bool, payload: &[u8]) -> Vec<u8> {
    chunk_claiming(cookie, kind, is_last, payload.len() as u32, payload)
}

fn data(offset: u64, bytes: &[u8], is_last: bool) -> Vec<u8> {
    a_chunk(7, chunk::OFFSET_DATA, is_last, &[&offset.to_be_bytes()[..], bytes].concat())
}

fn hole(offset: u64, len: u32, is_last: bool) -> Vec<u8> {
    a_chunk(7, chunk::OFFSET_HOLE, is_last, &[&offset.to_be_bytes()[..], &len.to_be_bytes()].concat())
}

fn error(errno: u32, message: &[u8], is_last: bool) -> Vec<u8> {
    let len = (message.len() as u16).to_be_bytes();
    a_chunk(7, chunk::ERROR, is_last, &[&errno.to_be_bytes()[..], &len, message].concat())
}

/// The answer to a read of 4096+1024 with cookie 7.
fn answer(stream: &[u8]) -> Result<Option<Answer>, Violation> {
    answer_to(Expected::Read { offset: 4096, len: 1024 }, stream)
}

fn answer_to(expected: Expected, mut stream: &[u8]) -> Result<Option<Answer>, Violation> {
    let mut parser = ReplyParser::new(true, Some(1));
    parser.expect(7, expected);
    parser.next(&mut stream)
}

/// CVE-2023-5215: a size or block status from a server that did not fit stopped libnbd's user by an assertion.
/// Such a reply ends the connection here, and nothing else.
#[test]
fn replies_that_do_not_fit_end_the_connection() {
    let status = |id: u32, rest: &[u8]| a_chunk(7, chunk::BLOCK_STATUS, true, &[&id.to_be_bytes()[..], rest].concat());
    let expected = Expected::Status { len: 4096 };
    for wrong in [
        status(1, &[]),
        status(1, &[0; 8]),
        status(1, &[1; 9]),
        status(2, &[1; 8]),
        [status(1, &[1; 8])[..3].to_vec(), a_chunk(7, chunk::NONE, true, &[])].concat(),
        a_chunk(7, chunk::NONE, true, &[]),
        chunk_claiming(7, chunk::BLOCK_STATUS, true, u32::MAX - 3, &[]),
        data(4096, &[1; 8], true),
    ] {
        assert!(answer_to(expected, &wrong).is_err(), "{wrong:?}");
    }
    let twice = a_chunk(7, chunk::BLOCK_STATUS, false, &[0, 0, 0, 1, 0, 0, 16, 0, 0, 0, 0, 0]).repeat(2);
    assert!(answer_to(expected, &twice).is_err());
    for wrong in [data(4096, &[1; 8], true), hole(4096, 8, true), status(1, &[1; 8])] {
        assert!(answer_to(Expected::Plain, &wrong).is_err(), "{wrong:?}");
    }
}

/// A read's memory is what was asked for; a server cannot write outside it, leave holes in it, or tell a part
/// twice.
#[test]
fn a_read_is_told_wholly_and_once() {
    for wrong in [
        data(4095, &[1; 1024], true),
        data(4096, &[1; 1025], true),
        data(4097, &[1; 1024], true),
        data(u64::MAX, &[1; 8], true),
        hole(4096, 0, true),
        hole(4096, u32::MAX, true),
        hole(0, 1024, true),
        data(4096, &[1; 1023], true),
        [data(4096, &[1; 1024], false), data(4096, &[1; 1], true)].concat(),
        [data(4096, &[1; 512], false), hole(4600, 520, true)].concat(),
        [data(4096, &[1; 512], false), a_chunk(7, chunk::NONE, true, &[])].concat(),
        data(4096, &[1], false).repeat(2),
        a_chunk(7, chunk::OFFSET_DATA, true, &[0; 8]),
        a_chunk(7, chunk::OFFSET_HOLE, true, &[0; 13]),
        a_chunk(7, chunk::NONE, false, &[]),
        a_chunk(7, 3, true, &[0; 12]),
        a_chunk(8, chunk::NONE, true, &[]),
        chunk_claiming(7, chunk::OFFSET_DATA, true, u32::MAX, &[0; 8]),
        chunk_claiming(7, chunk::ERROR, true, u32::MAX, &[]),
        [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7].to_vec(),
    ] {
        assert!(answer(&wrong).is_err(), "{wrong:?}");
    }
    // As many tiny chunks as bytes would make the bookkeeping larger than the data.
    let tiny: Vec<u8> = (0..512).flat_map(|at| data(4096 + 2 * at, &[1], false)).collect();
    assert!(answer(&tiny).is_err());
    let right = [data(4608, &[2; 512], false), hole(4096, 512, true)].concat();
    let read = answer(&right).unwrap().unwrap().result.unwrap();
    assert_eq!(read, Payload::Data([[0; 512], [2; 512]].concat()));
}

/// CVE-2022-0485: nbdcopy took the data of a read that had failed for good and copied it. Here nothing of a read
/// is handed out once any chunk of its reply was an error, whichever came first.
#[test]
fn a_failed_read_hands_out_no_data() {
    let with_offset = [&5u32.to_be_bytes()[..], &[0, 0], &4200u64.to_be_bytes()].concat();
    for stream in [
        [data(4096, &[1; 1024], false), error(5, b"bad sector", true)].concat(),
        [error(5, b"bad sector", false), data(4096, &[1; 1024], true)].concat(),
        [data(4096, &[1; 1024], false), a_chunk(7, chunk::ERROR_OFFSET, true, &with_offset)].concat(),
        [error(5, b"", false), a_chunk(7, chunk::NONE, true, &[])].concat(),
        a_chunk(7, chunk::IS_ERROR + 99, true, &[0, 0, 0, 5, 0, 0]),
    ] {
        let answer = answer(&stream).unwrap().unwrap();
        assert!(matches!(answer.result, Err((Errno::Io, _))), "{answer:?}");
    }
    let Err((errno, message)) = answer(&error(1234, b"a\x1b[2Jb", true)).unwrap().unwrap().result else { panic!() };
    assert_eq!((errno, message.as_str()), (Errno::Invalid, "a[2Jb"));
    for wrong in [error(0, b"", true), a_chunk(7, chunk::ERROR, true, &[0, 0, 0, 5, 0, 9, 1])] {
        assert!(answer(&wrong).is_err(), "{wrong:?}");
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_bytes_are_survived(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        kind in prop_oneof![0u16..8, 0x8000u16..0x8004],
        len in prop_oneof![0u32..64, any::<u32>()],
        is_greeted in any::<bool>(),
    ) {
        let _ = connect(&if is_greeted { [greeting(), bytes.clone()].concat() } else { bytes.clone() });
        let _ = connect(&[greeting(), option_reply(opt::STRUCTURED_REPLY, rep::ACK, &bytes), bytes.clone()].concat());
        let _ = answer(&bytes);
        for expected in [Expected::Plain, Expected::Status { len: 9 }, Expected::Read { offset: 0, len: 100 }] {
            let _ = answer_to(expected, &chunk_claiming(7, kind, true, len, &bytes));
        }
    }
}
