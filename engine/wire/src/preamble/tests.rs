use super::*;
use drover_sim::runtime::Sim;
use std::time::Duration;

const RIGHT: [u8; 32] = [1; 32];
const WRONG: [u8; 32] = [2; 32];

fn peer(secret: [u8; 32]) -> Preamble {
    Preamble::new(Channel::Peer, secret)
}

/// Runs what listens against what connects; what came of both.
fn meet<L: 'static, C: 'static>(
    listens: impl AsyncFnOnce(&World, &mut Connection) -> L + 'static,
    connects: impl AsyncFnOnce(&World, &mut Connection) -> C + 'static,
) -> (L, C) {
    meet_by(5, listens, connects)
}

/// The same where chance, and with it each nonce, is drawn by `seed`.
fn meet_by<L: 'static, C: 'static>(
    seed: u64,
    listens: impl AsyncFnOnce(&World, &mut Connection) -> L + 'static,
    connects: impl AsyncFnOnce(&World, &mut Connection) -> C + 'static,
) -> (L, C) {
    let sim = Sim::new(seed);
    let (listening, connecting) = (sim.process("listening"), sim.process("connecting"));
    let (here, there) = (listening.world(), connecting.world());
    let listened = listening.run(async move {
        let mut listener = here.net.listen("l:1").await.unwrap();
        let mut connection = listener.accept().await.unwrap();
        listens(&here, &mut connection).await
    });
    let connected = connecting.run(async move {
        there.sleep(Duration::from_millis(10)).await;
        let mut connection = there.net.connect("l:1").await.unwrap();
        connects(&there, &mut connection).await
    });
    sim.block_on(async { (listened.await.unwrap(), connected.await.unwrap()) })
}

/// What a listener of the right secret makes of a stranger.
fn listened(stranger: impl AsyncFnOnce(&World, &mut Connection) + 'static) -> Result<(), PreambleError> {
    meet(async |world, connection| peer(RIGHT).answer(world, connection).await, stranger).0
}

#[test]
fn members_meet_and_then_send_what_they_like() {
    let large = || Message { head: Bytes::from_static(&[7; 100_000]), body: Bytes::from_static(b"body") };
    let (listened, connected) = meet(
        async move |world, connection| {
            peer(RIGHT).answer(world, connection).await.unwrap();
            connection.receiver.receive().await.unwrap() == Some(large())
        },
        async move |world, connection| {
            peer(RIGHT).open(world, connection).await.unwrap();
            connection.sender.send(large()).await.unwrap();
            // Nothing comes: the connection stays until the other side has read.
            connection.receiver.receive().await.unwrap_or(None)
        },
    );
    assert!(listened);
    assert_eq!(connected, None);
}

#[test]
fn another_secret_is_found_by_who_connects_and_nothing_is_proven_to_it() {
    for (here, there) in [(RIGHT, WRONG), (WRONG, RIGHT), (RIGHT, [0; 32])] {
        let (listened, connected) = meet(
            async move |world, connection| peer(here).answer(world, connection).await,
            async move |world, connection| peer(there).open(world, connection).await,
        );
        assert_eq!(connected, Err(PreambleError::Secret));
        assert_eq!(listened, Err(PreambleError::Closed));
    }
}

#[test]
fn a_wrong_proof_is_found_by_who_listens() {
    let result = listened(async |world, connection| {
        // Does not look at the listener's proof.
        let (preamble, own) = (peer(WRONG), nonce(world));
        preamble.send(connection, Step::Opening, own, [0; 32]).await.unwrap();
        let challenge = preamble.receive(connection, Step::Challenge).await.unwrap();
        let proof = preamble.proof(Step::Answer, &own, &challenge.nonce);
        preamble.send(connection, Step::Answer, [0; 32], proof).await.unwrap();
        let _ = connection.receiver.receive().await;
    });
    assert_eq!(result, Err(PreambleError::Secret));
}

#[test]
fn another_channel_is_refused() {
    let result = listened(async |world, connection| {
        let opened = Preamble::new(Channel::Admin, RIGHT).open(world, connection).await;
        assert_eq!(opened, Err(PreambleError::Closed));
    });
    assert!(matches!(result, Err(PreambleError::Wire(WireError::Kind(_)))), "{result:?}");
}

/// A stranger sends back what it was sent, with both nonces equal: the listener's own proof is not its answer.
#[test]
fn a_reflected_challenge_proves_nothing() {
    let result = listened(async |world, connection| {
        let preamble = peer(WRONG);
        preamble.send(connection, Step::Opening, nonce(world), [0; 32]).await.unwrap();
        let challenge = preamble.receive(connection, Step::Challenge).await.unwrap();
        preamble.send(connection, Step::Answer, challenge.nonce, challenge.proof).await.unwrap();
        let _ = connection.receiver.receive().await;
    });
    assert_eq!(result, Err(PreambleError::Secret));
    // The whole step sent back is not even the step that is due.
    let result = listened(async |world, connection| {
        peer(WRONG).send(connection, Step::Opening, nonce(world), [0; 32]).await.unwrap();
        let challenge = connection.receiver.receive().await.unwrap().unwrap();
        connection.sender.send(challenge).await.unwrap();
        let _ = connection.receiver.receive().await;
    });
    assert!(matches!(result, Err(PreambleError::Wire(WireError::Kind(_)))), "{result:?}");
    // Nor does who connects take its own opening, or a proof of its own step, for a challenge.
    let (_, connected) = meet(
        async |_, connection| {
            let opening = connection.receiver.receive().await.unwrap().unwrap();
            connection.sender.send(opening).await.unwrap();
            let _ = connection.receiver.receive().await;
        },
        async |world, connection| peer(RIGHT).open(world, connection).await,
    );
    assert!(matches!(connected, Err(PreambleError::Wire(WireError::Kind(_)))), "{connected:?}");
}

#[test]
fn a_proof_holds_for_one_step_one_channel_and_one_pair_of_nonces() {
    let (a, b) = ([3; 32], [4; 32]);
    let proofs = [
        peer(RIGHT).proof(Step::Challenge, &a, &b),
        peer(RIGHT).proof(Step::Answer, &a, &b),
        peer(RIGHT).proof(Step::Answer, &b, &a),
        Preamble::new(Channel::Admin, RIGHT).proof(Step::Answer, &a, &b),
        Preamble::new(Channel::Control, RIGHT).proof(Step::Answer, &a, &b),
        peer(WRONG).proof(Step::Answer, &a, &b),
    ];
    for (at, proof) in proofs.iter().enumerate() {
        assert!(!proofs[..at].contains(proof), "proof {at} is one of those before it");
    }
}

/// Somebody on the way keeps what a member sent and sends it again.
#[test]
fn a_replayed_transcript_proves_nothing() {
    let (steps, _) = meet_by(
        6,
        async |world, connection| {
            // A member, whose steps are overheard.
            let opening = connection.receiver.receive().await.unwrap().unwrap();
            let preamble = peer(RIGHT);
            let (own, theirs) = (nonce(world), preamble.decode(&opening, Step::Opening).unwrap().nonce);
            let proof = preamble.proof(Step::Challenge, &theirs, &own);
            preamble.send(connection, Step::Challenge, own, proof).await.unwrap();
            let answer = connection.receiver.receive().await.unwrap().unwrap();
            let expected = preamble.proof(Step::Answer, &theirs, &own);
            assert_eq!(preamble.decode(&answer, Step::Answer).unwrap().proof, expected, "the overheard run was good");
            [opening, answer]
        },
        async |world, connection| {
            peer(RIGHT).open(world, connection).await.unwrap();
            let _ = connection.receiver.receive().await;
        },
    );
    let [opening, answer] = steps;
    let result = listened(async move |_, connection| {
        connection.sender.send(opening).await.unwrap();
        connection.receiver.receive().await.unwrap().unwrap();
        connection.sender.send(answer).await.unwrap();
        let _ = connection.receiver.receive().await;
    });
    assert_eq!(result, Err(PreambleError::Secret));
}

#[test]
fn closed_early_is_an_error_at_each_step() {
    let at_once = listened(async |_, connection| connection.sender.close());
    assert_eq!(at_once, Err(PreambleError::Closed));
    let before_the_answer = listened(async |world, connection| {
        peer(RIGHT).send(connection, Step::Opening, nonce(world), [0; 32]).await.unwrap();
        connection.receiver.receive().await.unwrap().unwrap();
        connection.sender.close();
    });
    assert_eq!(before_the_answer, Err(PreambleError::Closed));
    let (_, connected) = meet(
        async |_, connection| {
            connection.receiver.receive().await.unwrap().unwrap();
            connection.sender.close();
        },
        async |world, connection| peer(RIGHT).open(world, connection).await,
    );
    assert_eq!(connected, Err(PreambleError::Closed));
}

#[test]
fn what_is_too_long_or_too_short_is_refused() {
    let sends = |head: &'static [u8], body: &'static [u8]| {
        listened(async move |_, connection| {
            let message = Message { head: Bytes::from_static(head), body: Bytes::from_static(body) };
            connection.sender.send(message).await.unwrap();
            let _ = connection.receiver.receive().await;
        })
    };
    assert_eq!(sends(&[0; 100_000], b""), Err(PreambleError::TooLong));
    assert_eq!(sends(&[0; FRAME_BYTES], b"x"), Err(PreambleError::TooLong));
    for (head, body) in [(&[0; FRAME_BYTES - 1][..], &b""[..]), (&[0; FRAME_BYTES - 1], b"x"), (b"", b"")] {
        let refused = sends(head, body);
        assert!(matches!(refused, Err(PreambleError::Wire(WireError::HeadLength { .. }))), "{refused:?}");
    }
    // A request of a version before the preamble, which came first on its connection.
    let refused = sends(&[0; FRAME_BYTES], b"");
    assert!(matches!(refused, Err(PreambleError::Wire(WireError::Magic { .. }))), "{refused:?}");
}

#[test]
fn another_version_is_told_apart() {
    let result = listened(async |world, connection| {
        let mut kind = peer(RIGHT).kind(Step::Opening);
        kind.version = (VERSION + 1).into();
        let frame = Frame { kind, nonce: nonce(world), proof: [0; 32] };
        let head = Bytes::copy_from_slice(frame.as_bytes());
        connection.sender.send(Message { head, body: Bytes::new() }).await.unwrap();
        let _ = connection.receiver.receive().await;
    });
    assert_eq!(result, Err(WireError::Version { expected: VERSION, got: VERSION + 1 }.into()));
}

#[test]
fn silence_ends_by_the_deadline_at_both_sides() {
    let result = listened(async |world, connection| {
        world.sleep(PREAMBLE_DEADLINE / 2).await;
        peer(RIGHT).send(connection, Step::Opening, nonce(world), [0; 32]).await.unwrap();
        world.sleep(PREAMBLE_DEADLINE).await;
    });
    assert_eq!(result, Err(PreambleError::Deadline));
    let (_, connected) = meet(
        async |world, _| world.sleep(PREAMBLE_DEADLINE * 2).await,
        async |world, connection| peer(RIGHT).open(world, connection).await,
    );
    assert_eq!(connected, Err(PreambleError::Deadline));
}
