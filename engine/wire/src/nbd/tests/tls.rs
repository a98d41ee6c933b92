//! `STARTTLS`: what is told before it, and what is left of that after it.

use super::*;
use crate::nbd::proto::{option as opt, rep};

/// A server that demands TLS, and the types of its replies to these options.
fn demanding(pieces: &[Vec<u8>]) -> (ServerHandshake, Result<Step, Violation>, Vec<(u32, u32)>) {
    let mut machine = ServerHandshake::new(true);
    machine.receive(&[fixed(), pieces.concat()].concat());
    let last = machine.poll();
    let talk = Talk { sent: machine.take_output(), last: last.clone(), leftover: Vec::new() };
    (machine, last, reply_types(&talk))
}

/// CVE-2019-14842 and its like: a client that was refused TLS went on without it, or a server told of its exports first.
#[test]
fn nothing_but_starttls_and_abort_is_answered_without_tls() {
    let strange = [0, 4, 11, 12, 0xdead];
    let known = [opt::LIST, opt::INFO, opt::GO, opt::STRUCTURED_REPLY, opt::LIST_META_CONTEXT, opt::SET_META_CONTEXT];
    for kind in strange.into_iter().chain(known) {
        for payload in [Vec::new(), info_payload("vol", &[]), context_payload("vol", &["base:allocation"])] {
            let (_, last, replies) = demanding(&[option(kind, &payload)]);
            assert_eq!((last, replies), (Ok(Step::Receive), vec![(kind, rep::ERR_TLS_REQD)]), "{kind}");
        }
    }
    let (_, last, replies) = demanding(&[option(opt::EXPORT_NAME, b"vol")]);
    assert_eq!((last, replies), (Ok(Step::Close), vec![]), "it has no reply that says no");
    let (_, last, replies) = demanding(&[option(opt::ABORT, &[])]);
    assert_eq!((last, replies), (Ok(Step::Close), vec![(opt::ABORT, rep::ACK)]));
    // A client of the older newstyle cannot ask for TLS.
    let mut machine = ServerHandshake::new(true);
    machine.receive(&[0u32.to_be_bytes().to_vec(), option(opt::EXPORT_NAME, b"vol")].concat());
    assert_eq!(machine.poll(), Ok(Step::Close));
    assert_eq!(machine.take_output().len(), size_of::<proto::Greeting>());
}

/// CVE-2021-3716: what somebody on the way sent unencrypted behind `STARTTLS` was taken for the client's, encrypted.
#[test]
fn bytes_behind_starttls_end_the_connection() {
    for behind in [vec![0], option(opt::LIST, &[]), option(opt::STRUCTURED_REPLY, &[])] {
        let (_, last, replies) = demanding(&[option(opt::STARTTLS, &[]), behind]);
        assert!(last.is_err() && replies.is_empty(), "{last:?} {replies:?}");
    }
}

#[test]
fn starttls_forgets_what_was_agreed_on_before_and_comes_once() {
    let (mut machine, last, replies) = demanding(&[option(opt::STARTTLS, &[])]);
    assert_eq!((last, replies), (Ok(Step::StartTls), vec![(opt::STARTTLS, rep::ACK)]));
    machine.secured();
    let set = option(opt::SET_META_CONTEXT, &context_payload("vol", &["base:allocation"]));
    machine.receive(&[set, option(opt::STARTTLS, &[]), option(opt::LIST, &[])].concat());
    assert_eq!(machine.poll(), Ok(Step::List));
    machine.listed(&[]);
    assert_eq!(machine.poll(), Ok(Step::Receive));
    let sent = [vec![0; size_of::<proto::Greeting>()], machine.take_output()].concat();
    let replies = reply_types(&Talk { sent, last: Ok(Step::Receive), leftover: Vec::new() });
    let expected = [
        (opt::SET_META_CONTEXT, rep::ERR_INVALID), // structured replies were not negotiated within TLS
        (opt::STARTTLS, rep::ERR_INVALID),
        (opt::LIST, rep::ACK),
    ];
    assert_eq!(replies, expected);
}

#[test]
fn starttls_is_refused_with_a_payload_and_where_there_is_none() {
    let (_, last, replies) = demanding(&[option(opt::STARTTLS, b"x")]);
    assert_eq!((last, replies), (Ok(Step::Receive), vec![(opt::STARTTLS, rep::ERR_INVALID)]));
    let talk = serve(&[&fixed(), &option(opt::STARTTLS, &[])]);
    assert_eq!(reply_types(&talk), [(opt::STARTTLS, rep::ERR_UNSUP)]);
}

/// Our client where it wants TLS, before a server that says this.
fn wanting(said: &[Vec<u8>]) -> (ClientHandshake, Result<ClientStep, HandshakeError>) {
    let mut client = ClientHandshake::new(&"vol".parse().unwrap(), true);
    client.receive(&[vec![ServerHandshake::default().take_output()], said.to_vec()].concat().concat());
    let step = client.poll();
    (client, step)
}

fn reply(option: u32, kind: u32) -> Vec<u8> {
    let header = proto::OptionReplyHeader {
        magic: proto::OPTION_REPLY_MAGIC.into(),
        option: option.into(),
        reply: kind.into(),
        len: 0.into(),
    };
    header.as_bytes().to_vec()
}

#[test]
fn our_client_goes_on_only_with_tls() {
    let flags_and_option = 4 + size_of::<proto::OptionHeader>();
    let (mut client, step) = wanting(&[]);
    assert_eq!(
        (step, client.take_output().len()),
        (Ok(ClientStep::Receive), flags_and_option),
        "nothing else is asked"
    );
    for kind in [rep::ERR_UNSUP, rep::ERR_POLICY, rep::ERR_INVALID] {
        let (_, step) = wanting(&[reply(opt::STARTTLS, kind)]);
        assert!(matches!(step, Err(HandshakeError::Refused { .. })), "{kind}: {step:?}");
    }
    let (_, step) = wanting(&[reply(opt::STARTTLS, rep::ACK), reply(opt::STRUCTURED_REPLY, rep::ACK)]);
    assert!(matches!(step, Err(HandshakeError::Violation(_))), "said unencrypted: {step:?}");
    let (mut client, step) = wanting(&[reply(opt::STARTTLS, rep::ACK)]);
    assert_eq!((step, client.take_output().len()), (Ok(ClientStep::StartTls), flags_and_option));
    client.secured();
    assert!(client.take_output().len() > size_of::<proto::OptionHeader>() - 1, "the first option within TLS");
    let mut old = ClientHandshake::new(&"vol".parse().unwrap(), true);
    old.receive(b"NBDMAGICIHAVEOPT\x00\x00");
    assert!(matches!(old.poll(), Err(HandshakeError::Refused { .. })));
}
