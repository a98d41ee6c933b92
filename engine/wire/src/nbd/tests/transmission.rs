//! Requests and replies, there and back.

use super::*;

fn any_command() -> impl Strategy<Value = Command> {
    let range = || (0..SIZE_BYTES, 0..65536u32).prop_map(|(at, len)| (at, len.min((SIZE_BYTES - at) as u32)));
    prop_oneof![
        (range(), any::<bool>()).prop_map(|((offset, len), in_one)| Command::Read { offset, len, in_one }),
        (range(), any::<bool>()).prop_map(|((offset, len), fua)| Command::Write { offset, len: len % 300, fua }),
        Just(Command::Flush),
        (range(), any::<bool>()).prop_map(|((offset, len), fua)| Command::Trim { offset, len, fua }),
        range().prop_map(|(offset, len)| Command::Cache { offset, len }),
        (range(), any::<[bool; 3]>()).prop_map(|((offset, len), [may_unmap, fast_only, fua])| {
            Command::WriteZeroes { offset, len, may_unmap, fast_only, fua }
        }),
        (range(), any::<bool>()).prop_map(|((offset, len), one)| Command::BlockStatus {
            offset,
            len: len.max(1).min((SIZE_BYTES - offset) as u32),
            one
        }),
    ]
}

/// What a server reads from a stream that comes in pieces; a write's payload is checked and left out.
fn read_requests(pieces: &[&[u8]]) -> Vec<Incoming> {
    let mut parser = RequestParser::new(terms());
    let mut held: Vec<u8> = Vec::new();
    let mut payload_left = 0;
    let mut seen = Vec::new();
    for piece in pieces {
        held.extend_from_slice(piece);
        let mut rest = held.as_slice();
        loop {
            let count = rest.len().min(payload_left);
            assert!(rest[..count].iter().all(|byte| *byte == 0xee));
            rest = &rest[count..];
            payload_left -= count;
            if payload_left > 0 {
                break;
            }
            let Some(incoming) = parser.next(&mut rest).unwrap() else { break };
            if let Incoming::Request { command: Command::Write { len, .. }, .. } = incoming {
                payload_left = len as usize;
            }
            seen.push(incoming);
        }
        held = rest.to_vec();
    }
    assert!(held.is_empty() && payload_left == 0);
    seen
}

/// A reply as a server may write it, and what a client has to make of it.
#[derive(Clone, Debug)]
enum Scripted {
    Done,
    Failed(Errno, String),
    Data(Vec<u8>, Vec<usize>),
    Status(Vec<(u64, BlockStatus)>),
}

fn any_reply() -> impl Strategy<Value = Scripted> {
    let errno = prop::sample::select(vec![Errno::Io, Errno::NoSpace, Errno::Shutdown, Errno::Perm]);
    let run = (1u64..1 << 33, any::<[bool; 2]>()).prop_map(|(len, [hole, zero])| (len, BlockStatus { hole, zero }));
    prop_oneof![
        Just(Scripted::Done),
        (errno, "[a-z ]{0,20}").prop_map(|(errno, why)| Scripted::Failed(errno, why)),
        (prop::collection::vec(any::<u8>(), 1..5000), prop::collection::vec(any::<usize>(), 0..4))
            .prop_map(|(data, cuts)| Scripted::Data(data, cuts)),
        prop::collection::vec(run, 1..20).prop_map(Scripted::Status),
    ]
}

impl Scripted {
    fn expected(&self) -> Expected {
        match self {
            Self::Done | Self::Failed(..) => Expected::Plain,
            Self::Data(data, _) => Expected::Read { offset: 512, len: data.len() as u32 },
            Self::Status(_) => Expected::Status { len: u32::MAX },
        }
    }

    fn write(&self, out: &mut Vec<u8>, structured: bool, cookie: u64) {
        match self {
            Self::Done => reply::done(out, cookie),
            Self::Failed(errno, why) => reply::failed(out, structured, cookie, *errno, why),
            Self::Status(runs) => assert!(reply::block_status(out, cookie, u32::MAX, false, runs)),
            Self::Data(data, _) if !structured => {
                reply::data_header(out, false, cookie, 512, data.len() as u32, true);
                out.extend_from_slice(data);
            }
            Self::Data(data, cuts) => {
                let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % data.len()).filter(|at| *at > 0).collect();
                ends.push(data.len());
                ends.sort_unstable();
                ends.dedup();
                let mut start = 0;
                for end in ends {
                    let (offset, len, is_last) = (512 + start as u64, (end - start) as u32, end == data.len());
                    if data[start..end].iter().all(|byte| *byte == 0) {
                        reply::hole(out, cookie, offset, len, is_last);
                    } else {
                        reply::data_header(out, true, cookie, offset, len, is_last);
                        out.extend_from_slice(&data[start..end]);
                    }
                    start = end;
                }
            }
        }
    }

    fn check(&self, structured: bool, result: Result<Payload, (Errno, String)>) {
        match (self, result) {
            (Self::Done, Ok(Payload::Nothing)) => {}
            (Self::Failed(errno, why), Err((got, message))) => {
                assert_eq!(got, *errno);
                assert_eq!(message, if structured { why.as_str() } else { "" });
            }
            (Self::Data(data, _), Ok(Payload::Data(got))) => assert_eq!(got, *data),
            (Self::Status(runs), Ok(Payload::Status(got))) => {
                let mut left = u64::from(u32::MAX);
                for (sent, got) in runs.iter().zip(&got) {
                    assert_eq!(sent.1, got.1);
                    assert_eq!(got.0, sent.0.min(left).min(bounds::STATUS_RUN_BYTES_MAX));
                    left -= got.0;
                }
            }
            (sent, got) => panic!("{sent:?} became {got:?}"),
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn requests_read_back(commands in prop::collection::vec(any_command(), 0..20), cuts in cuts()) {
        let mut stream = Vec::new();
        for (cookie, command) in commands.iter().enumerate() {
            stream.extend_from_slice(&encode_request(cookie as u64, command));
            if let Command::Write { len, .. } = command {
                stream.resize(stream.len() + *len as usize, 0xee);
            }
        }
        stream.extend_from_slice(&encode_disconnect());
        let mut expected: Vec<Incoming> = (0..).zip(&commands)
            .map(|(cookie, command)| Incoming::Request { cookie, command: *command })
            .collect();
        expected.push(Incoming::Disconnect);
        prop_assert_eq!(read_requests(&cut(&stream, &cuts)), expected);
    }

    #[test]
    fn replies_read_back(
        replies in prop::collection::vec(any_reply(), 0..8),
        structured in any::<bool>(),
        cuts in cuts(),
    ) {
        let told = |reply: &&Scripted| structured || !matches!(reply, Scripted::Status(_));
        let replies: Vec<&Scripted> = replies.iter().filter(told).collect();
        let mut parser = ReplyParser::new(structured, structured.then_some(proto::CONTEXT_ID));
        let mut stream = Vec::new();
        for (cookie, reply) in (0..).zip(&replies) {
            parser.expect(cookie, reply.expected());
            reply.write(&mut stream, structured, cookie);
        }
        let mut held: Vec<u8> = Vec::new();
        let mut answers = 0;
        for piece in cut(&stream, &cuts) {
            held.extend_from_slice(piece);
            let mut rest = held.as_slice();
            while let Some(answer) = parser.next(&mut rest).unwrap() {
                prop_assert_eq!(answer.cookie, answers);
                replies[answers as usize].check(structured, answer.result);
                answers += 1;
            }
            held = rest.to_vec();
        }
        prop_assert_eq!(answers as usize, replies.len());
        prop_assert!(held.is_empty());
    }

    /// Whatever comes, the parser answers or waits, and a request it accepts lies within the export.
    #[test]
    fn any_request_is_checked(
        kind in 0u16..12,
        flags in prop_oneof![0u16..64, any::<u16>()],
        offset in prop_oneof![0..2 * SIZE_BYTES, any::<u64>()],
        len in prop_oneof![0u32..1 << 21, any::<u32>()],
        read_only in any::<bool>(),
        structured in any::<bool>(),
    ) {
        let header = proto::RequestHeader {
            magic: proto::REQUEST_MAGIC.into(),
            flags: flags.into(),
            command: kind.into(),
            cookie: 1.into(),
            offset: offset.into(),
            len: len.into(),
        };
        let terms = Terms { read_only, structured, block_status: structured, ..terms() };
        let mut stream = header.as_bytes();
        if let Ok(Some(Incoming::Request { command, .. })) = RequestParser::new(terms).next(&mut stream) {
            prop_assert!(u128::from(offset) + u128::from(len) <= u128::from(SIZE_BYTES));
            prop_assert!(!(read_only && command.writes()));
            prop_assert!(command.payload_bytes() <= bounds::PAYLOAD_BYTES_MAX);
        }
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = RequestParser::new(terms()).next(&mut bytes.as_slice());
    }
}
