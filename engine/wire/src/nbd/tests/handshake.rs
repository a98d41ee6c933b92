//! The handshake, both sides.

use super::*;
use crate::nbd::proto::{info, option as opt, rep, transmission_flags};

fn joined(parts: &[Vec<u8>]) -> Vec<u8> {
    parts.concat()
}

#[test]
fn go_tells_the_export_and_serves_it() {
    let go = option(opt::GO, &info_payload("vol@web", &[info::NAME, info::DESCRIPTION, info::BLOCK_SIZE, 77]));
    let talk = serve(&[&joined(&[fixed(), go, b"request".to_vec()])]);
    let terms = Terms { size_bytes: SIZE_BYTES, read_only: false, structured: false, block_status: false };
    let name = ExportName { export: "vol".into(), workload: Some("web".into()) };
    assert_eq!(talk.last, Ok(Step::Serve(name, terms)));
    assert_eq!(talk.leftover, b"request");
    let replies = replies(&talk);
    assert!(replies.iter().all(|reply| reply.0 == opt::GO));
    let data = |index: usize| replies[index].2.as_slice();
    assert_eq!(data(0)[..10], [&[0, 0][..], &SIZE_BYTES.to_be_bytes()[..]].concat());
    assert_eq!(data(1), [&[0, 1][..], b"vol"].concat());
    assert_eq!(data(2), [&[0, 2][..], b"a disk"].concat());
    assert_eq!(data(3), [0, 3, 0, 0, 0, 1, 0, 0, 16, 0, 2, 0, 0, 0]);
    assert_eq!(replies[4], (opt::GO, rep::ACK, vec![]));
    assert_eq!(replies.len(), 5);
}

fn flags_of(export: &str, structured: bool) -> u16 {
    let first = if structured { option(opt::STRUCTURED_REPLY, &[]) } else { vec![] };
    let talk = serve(&[&joined(&[fixed(), first, option(opt::INFO, &info_payload(export, &[]))])]);
    let info = replies(&talk).into_iter().find(|reply| reply.1 == rep::INFO).unwrap().2;
    u16::from_be_bytes([info[10], info[11]])
}

#[test]
fn flags_say_what_is_offered() {
    use transmission_flags::*;
    let writable = flags_of("vol", false);
    let always = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | SEND_CACHE;
    assert_eq!(writable, always | SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO);
    assert_eq!(flags_of("vol", true), writable | SEND_DF);
    assert_eq!(flags_of("rom", false), always | READ_ONLY);
}

#[test]
fn options_in_any_order_are_answered() {
    let stream = joined(&[
        fixed(),
        option(opt::LIST, &[]),
        option(opt::EXTENDED_HEADERS, &[]),
        option(opt::STARTTLS, &[]),
        option(4711, b"whatever"),
        option(opt::INFO, &info_payload("nothing", &[])),
        option(opt::SET_META_CONTEXT, &context_payload("vol", &[proto::CONTEXT_NAME])),
        option(opt::STRUCTURED_REPLY, &[]),
        option(opt::LIST_META_CONTEXT, &context_payload("vol", &[])),
        option(opt::LIST_META_CONTEXT, &context_payload("vol", &["base:"])),
        option(opt::LIST_META_CONTEXT, &context_payload("vol", &["qemu:dirty-bitmap:x"])),
        option(opt::SET_META_CONTEXT, &context_payload("vol", &["base:", proto::CONTEXT_NAME])),
        option(opt::INFO, &info_payload("closing", &[])),
        option(opt::GO, &info_payload("vol", &[])),
    ]);
    let talk = serve(&[&stream]);
    assert_eq!(talk.last, Ok(Step::Serve("vol".parse().unwrap(), terms())));
    let expected = [
        (opt::LIST, rep::SERVER),
        (opt::LIST, rep::SERVER),
        (opt::LIST, rep::ACK),
        (opt::EXTENDED_HEADERS, rep::ERR_UNSUP),
        (opt::STARTTLS, rep::ERR_UNSUP),
        (4711, rep::ERR_UNSUP),
        (opt::INFO, rep::ERR_UNKNOWN),
        (opt::SET_META_CONTEXT, rep::ERR_INVALID),
        (opt::STRUCTURED_REPLY, rep::ACK),
        (opt::LIST_META_CONTEXT, rep::META_CONTEXT),
        (opt::LIST_META_CONTEXT, rep::ACK),
        (opt::LIST_META_CONTEXT, rep::META_CONTEXT),
        (opt::LIST_META_CONTEXT, rep::ACK),
        (opt::LIST_META_CONTEXT, rep::ACK),
        (opt::SET_META_CONTEXT, rep::META_CONTEXT),
        (opt::SET_META_CONTEXT, rep::ACK),
        (opt::INFO, rep::ERR_SHUTDOWN),
        (opt::GO, rep::INFO),
        (opt::GO, rep::ACK),
    ];
    assert_eq!(reply_types(&talk), expected);
}

#[test]
fn a_context_holds_for_its_export_and_the_last_choice() {
    let served = |options: &[Vec<u8>]| {
        let first = [fixed(), option(opt::STRUCTURED_REPLY, &[])];
        let talk = serve(&[&joined(&first), &joined(options), &option(opt::GO, &info_payload("vol", &[]))]);
        match talk.last {
            Ok(Step::Serve(_, terms)) => terms.block_status,
            other => panic!("{other:?}"),
        }
    };
    let set = |name: &str, queries: &[&str]| option(opt::SET_META_CONTEXT, &context_payload(name, queries));
    let context = proto::CONTEXT_NAME;
    assert!(served(&[set("vol", &[context])]));
    assert!(!served(&[]));
    assert!(!served(&[set("rom", &[context])]));
    assert!(!served(&[set("vol", &[context]), set("vol", &[])]));
    assert!(!served(&[set("vol", &[context]), set("nothing", &[context])]));
    assert!(!served(&[set("vol", &["base:"])]), "a wildcard chooses nothing");
}

#[test]
fn export_name_is_the_old_way_in() {
    let terms = Terms { size_bytes: SIZE_BYTES, read_only: true, structured: false, block_status: false };
    for (flags, zeroes) in [(0u32, 124), (proto::client_flags::NO_ZEROES, 0)] {
        let talk = serve(&[&flags.to_be_bytes(), &option(opt::EXPORT_NAME, b"rom")]);
        assert_eq!(talk.last, Ok(Step::Serve("rom".parse().unwrap(), terms)));
        assert_eq!(talk.sent.len(), size_of::<proto::Greeting>() + 10 + zeroes);
    }
    let refused = serve(&[&fixed(), &option(opt::EXPORT_NAME, b"nothing")]);
    assert_eq!(refused.last, Ok(Step::Close));
    // A client of the older newstyle knows no other option.
    let lost = serve(&[&0u32.to_be_bytes(), &option(opt::LIST, b"")]);
    assert!(lost.last.is_err());
}

#[test]
fn abort_is_acknowledged_and_closes() {
    let talk = serve(&[&fixed(), &option(opt::ABORT, b"bye"), &option(opt::LIST, &[])]);
    assert_eq!(talk.last, Ok(Step::Close));
    assert_eq!(reply_types(&talk), [(opt::ABORT, rep::ACK)]);
}

/// Leads the handshake of our client with our server, `grain` bytes at a time.
fn meet(name: &str, grain: usize) -> Result<(ServerTerms, Terms), HandshakeError> {
    let mut said = Vec::new();
    loop {
        // Both are deterministic: each round begins anew with all that the client has said by now.
        let pieces: Vec<&[u8]> = said.chunks(grain).collect();
        let talk = serve(&pieces);
        let mut client = ClientHandshake::new(&name.parse().unwrap(), false);
        let mut output = Vec::new();
        for piece in talk.sent.chunks(grain) {
            client.receive(piece);
            if let ClientStep::Serve(terms) = client.poll()? {
                let Ok(Step::Serve(_, server)) = talk.last else { panic!("{talk:?}") };
                assert!(client.into_leftover().is_empty());
                return Ok((terms, server));
            }
            output.extend(client.take_output());
        }
        assert!(output.len() > said.len(), "both sides wait: {talk:?}");
        said = output;
    }
}

#[test]
fn our_client_and_our_server_agree() {
    for grain in [1, 3, 4096] {
        let (client, server) = meet("vol@web", grain).unwrap();
        assert_eq!(server, terms());
        assert_eq!(client.size_bytes, SIZE_BYTES);
        assert!(client.structured && client.offers(transmission_flags::SEND_DF));
        assert_eq!(client.context, Some(proto::CONTEXT_ID));
        assert_eq!(client.payload_bytes_max, bounds::PAYLOAD_BYTES_MAX);
        let refused = meet("nothing", grain).unwrap_err();
        assert!(matches!(refused, HandshakeError::Refused { errno: Errno::Invalid, .. }), "{refused}");
    }
}

/// Options that are right, wrong or strange.
fn any_option() -> impl Strategy<Value = Vec<u8>> {
    let name = prop::sample::select(vec!["vol", "rom", "closing", "x", "vol@w", "vol@", ""]);
    let context = prop::sample::select(vec!["base:", "base:allocation", "x-a:b", "none"]);
    let infos = prop::collection::vec(0u16..6, 0..4);
    prop_oneof![
        (name.clone(), infos, prop::bool::weighted(0.2))
            .prop_map(|(name, infos, go)| option(if go { opt::GO } else { opt::INFO }, &info_payload(name, &infos))),
        (name.clone(), prop::collection::vec(context, 0..4), any::<bool>()).prop_map(|(name, queries, set)| option(
            if set { opt::SET_META_CONTEXT } else { opt::LIST_META_CONTEXT },
            &context_payload(name, &queries)
        )),
        (0u32..14, prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(kind, payload)| option(kind, &payload)),
        (2u32..14).prop_map(|kind| option(kind, &[])),
        Just(option(opt::INFO, &vec![0; bounds::OPTION_BYTES_MAX as usize + 1])),
    ]
}

proptest! {
    #![proptest_config(config())]

    /// However a stream is cut, it is understood the same way.
    #[test]
    fn splits_do_not_matter(options in prop::collection::vec(any_option(), 0..8), cuts in cuts()) {
        let stream = [fixed(), options.concat()].concat();
        prop_assert_eq!(serve(&cut(&stream, &cuts)), serve(&[&stream]));
    }

    /// Every option is answered by its own reply, whatever is in the others, so none shifts the next.
    #[test]
    fn each_option_is_answered(options in prop::collection::vec(any_option(), 0..8)) {
        let stream = [fixed(), options.concat(), option(0xdead, &[])].concat();
        let talk = serve(&[&stream]);
        if talk.last == Ok(Step::Receive) {
            prop_assert_eq!(*reply_types(&talk).last().unwrap(), (0xdead, rep::ERR_UNSUP));
        }
    }

    #[test]
    fn any_bytes_are_survived(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        is_fixed in any::<bool>(),
        has_header in any::<bool>(),
        kind in 0u32..14,
    ) {
        let stream = match (is_fixed, has_header) {
            (true, true) => [fixed(), option(kind, &bytes)].concat(),
            (true, false) => [fixed(), bytes].concat(),
            _ => bytes,
        };
        serve(&[&stream]);
    }
}
