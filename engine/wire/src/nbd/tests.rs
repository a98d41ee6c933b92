//! The codec against random streams, and against what has broken other block servers and their clients.

mod handshake;
mod hostile_clients;
mod hostile_servers;
mod tls;
mod transmission;

use super::proto::{self, bounds};
use super::*;
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

const SIZE_BYTES: u64 = 8 << 20;

/// The same cases in every run; `PROPTEST_CASES` asks for more of them.
fn config() -> ProptestConfig {
    ProptestConfig { rng_seed: prop::test_runner::RngSeed::Fixed(2), failure_persistence: None, ..Default::default() }
}

/// An option as a client sends it.
fn option(option: u32, payload: &[u8]) -> Vec<u8> {
    option_claiming(option, payload.len() as u32, payload)
}

/// An option whose header says another length than it has.
fn option_claiming(option: u32, len: u32, payload: &[u8]) -> Vec<u8> {
    let header = proto::OptionHeader { magic: proto::OPTION_MAGIC.into(), option: option.into(), len: len.into() };
    [header.as_bytes(), payload].concat()
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

/// The payload of INFO and GO.
fn info_payload(name: &str, requests: &[u16]) -> Vec<u8> {
    let mut payload = text(name);
    payload.extend_from_slice(&(requests.len() as u16).to_be_bytes());
    requests.iter().for_each(|request| payload.extend_from_slice(&request.to_be_bytes()));
    payload
}

/// The payload of both options about metadata contexts.
fn context_payload(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut payload = text(name);
    payload.extend_from_slice(&(queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| payload.extend_from_slice(&text(query)));
    payload
}

/// The client's flags of the fixed newstyle.
fn fixed() -> Vec<u8> {
    (proto::client_flags::FIXED_NEWSTYLE | proto::client_flags::NO_ZEROES).to_be_bytes().to_vec()
}

/// What a server did with a stream.
#[derive(Debug, PartialEq, Eq)]
struct Talk {
    sent: Vec<u8>,
    /// Only a step that waits for the client, or ends.
    last: Result<Step, Violation>,
    leftover: Vec<u8>,
}

/// Serves `vol` and, read-only, `rom` to a client that sends these pieces.
fn serve(pieces: &[&[u8]]) -> Talk {
    let mut machine = ServerHandshake::default();
    let mut sent = Vec::new();
    let mut advance = |machine: &mut ServerHandshake| loop {
        let step = machine.poll();
        sent.extend_from_slice(&machine.take_output());
        match step {
            Ok(Step::List) => machine.listed(&[("vol".into(), "a disk".into()), ("rom".into(), String::new())]),
            Ok(Step::Open(name)) => {
                let facts = |read_only| ExportFacts {
                    name: name.export.clone(),
                    description: "a disk".into(),
                    size_bytes: SIZE_BYTES,
                    read_only,
                };
                machine.opened(match name.export.as_str() {
                    "vol" => Ok(facts(false)),
                    "rom" => Ok(facts(true)),
                    "closing" => Err(Refusal::Shutdown),
                    _ => Err(Refusal::Unknown),
                });
            }
            other => return other,
        }
    };
    let mut last = advance(&mut machine);
    for piece in pieces {
        machine.receive(piece);
        if last == Ok(Step::Receive) {
            last = advance(&mut machine);
        }
    }
    Talk { sent, last, leftover: machine.into_leftover() }
}

/// Option, type and data of each reply after the greeting.
fn replies(talk: &Talk) -> Vec<(u32, u32, Vec<u8>)> {
    let mut rest = &talk.sent[size_of::<proto::Greeting>()..];
    let mut replies = Vec::new();
    while let Ok((header, after)) = proto::OptionReplyHeader::read_from_prefix(rest) {
        assert_eq!(header.magic.get(), proto::OPTION_REPLY_MAGIC);
        let (data, after) = after.split_at(header.len.get() as usize);
        replies.push((header.option.get(), header.reply.get(), data.to_vec()));
        rest = after;
    }
    assert!(rest.is_empty(), "{} bytes after the replies", rest.len());
    replies
}

/// Option and type of each reply.
fn reply_types(talk: &Talk) -> Vec<(u32, u32)> {
    replies(talk).into_iter().map(|(option, reply, _)| (option, reply)).collect()
}

/// `stream` in pieces, cut at the given places modulo its length.
fn cut<'a>(stream: &'a [u8], at: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut ends: Vec<usize> = at.iter().map(|index| index.index(stream.len() + 1)).collect();
    ends.push(stream.len());
    ends.sort_unstable();
    let mut start = 0;
    let mut pieces = Vec::new();
    for end in ends {
        pieces.push(&stream[start..end]);
        start = end;
    }
    pieces
}

fn cuts() -> impl Strategy<Value = Vec<prop::sample::Index>> {
    prop::collection::vec(any::<prop::sample::Index>(), 0..12)
}

fn terms() -> Terms {
    Terms { size_bytes: SIZE_BYTES, read_only: false, structured: true, block_status: true }
}
