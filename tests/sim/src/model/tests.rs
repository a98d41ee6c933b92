use super::*;

/// States that a search may visit: what fits the time of a test.
const STATES_MAX: usize = 6_000_000;

fn assert_sound(writes: u8, faults: u8) {
    let outcome = search(&Protocol { slip: None, writes, faults, garbage: false }, STATES_MAX);
    println!("{writes} writes, {faults} faults: {} states", outcome.states);
    if let Some(Failure { what, trace }) = outcome.failure {
        panic!("{what}\n{}", trace.join("\n"));
    }
}

/// Leaving the rule out must show, and as `what`.
fn assert_caught(slip: Slip, writes: u8, faults: u8, what: &str) {
    let protocol = Protocol { slip: Some(slip), writes, faults, garbage: slip == Slip::ProofSkipped };
    let outcome = search(&protocol, STATES_MAX);
    let Failure { what: found, trace } = outcome.failure.unwrap_or_else(|| panic!("{slip:?} was not caught"));
    assert_eq!(found, what, "{slip:?}\n{}", trace.join("\n"));
    println!("{slip:?}: {found} after {} steps, {} states", trace.len() - 1, outcome.states);
}

const TWO: &str = "two nodes serve at once";
const READ: &str = "a read returns what it must not";
const DIFFERENT: &str = "committed although the contents differ";

#[test]
fn the_protocol_holds() {
    assert_sound(2, 2);
}

#[test]
fn the_proof_finds_garbage() {
    let outcome = search(&Protocol { slip: None, writes: 2, faults: 1, garbage: true }, STATES_MAX);
    assert!(outcome.failure.is_none(), "{:?}", outcome.failure);
}

/// With one more fault it cannot: the destination restarts while settling, and the comparison that its mirror begins
/// with carries the garbage to the source. So it compares only what was active (M8).
#[test]
fn a_comparison_after_a_restart_hides_garbage_from_the_proof() {
    let outcome = search(&Protocol { slip: None, writes: 1, faults: 2, garbage: true }, STATES_MAX);
    let failure = outcome.failure.expect("found");
    assert_eq!(failure.what, DIFFERENT);
    assert!(failure.trace.iter().any(|step| step == "Crashes(1)"), "{:?}", failure.trace);
}

/// Each way a migration can end is among the states: the model does not hold because nothing happens in it.
#[test]
fn every_end_is_reached() {
    struct Reaches(Protocol, fn(&State) -> bool);
    impl Model for Reaches {
        type State = State;
        type Action = Action;
        fn start(&self) -> State {
            self.0.start()
        }
        fn steps(&self, state: &State, add: &mut dyn FnMut(Step<Action, State>)) {
            self.0.steps(state, add);
        }
        fn broken(&self, state: &State) -> Option<&'static str> {
            (self.1)(state).then_some("reached")
        }
        fn is_end(&self, state: &State) -> bool {
            self.0.is_end(state)
        }
    }
    let ends: [fn(&State) -> bool; 6] = [
        |s| s.control.phase == Phase::Committed && s.client.writes == 2 && s.client.log.is_none(),
        |s| s.control.phase == Phase::RolledBack && s.control.epoch == 1,
        |s| s.control.phase == Phase::RolledBack && s.control.epoch == 3 && s.client.writes == 2,
        |s| s.control.phase == Phase::FlippingBack && s.control.confirmed,
        |s| s.control.phase == Phase::Settling && !s.control.way_back_open && s.nodes[DESTINATION].sender.alone,
        |s| s.control.phase == Phase::Settling && s.nodes[DESTINATION].registered && s.client.replayed.is_some(),
    ];
    for (index, end) in ends.into_iter().enumerate() {
        let protocol = Protocol { slip: None, writes: 2, faults: 1, garbage: false };
        let found = search(&Reaches(protocol, end), STATES_MAX).failure.map(|failure| failure.what);
        assert_eq!(found, Some("reached"), "end {index}");
    }
}

#[test]
fn two_writers_are_caught() {
    assert_caught(Slip::FlipWithoutDrain, 1, 0, TWO);
    assert_caught(Slip::TakeoverWithoutWait, 1, 0, TWO);
    assert_caught(Slip::EpochNotChecked, 1, 0, TWO);
    assert_caught(Slip::GrantStartsClock, 1, 1, TWO);
    assert_caught(Slip::RestartKeepsAttempt, 1, 1, TWO);
}

#[test]
fn lost_writes_are_caught() {
    assert_caught(Slip::WayBackNotRecorded, 1, 0, READ);
    assert_caught(Slip::MirrorNotAwaited, 1, 0, READ);
    assert_caught(Slip::CleanWithoutFlush, 1, 1, READ);
    assert_caught(Slip::AckNotFenced, 1, 1, READ);
    assert_caught(Slip::SessionNotFenced, 1, 1, READ);
    assert_caught(Slip::ReplayForgotten, 1, 1, READ);
    assert_caught(Slip::DrainWithoutOwnFlush, 1, 2, READ);
    assert_caught(Slip::WayBackNotNumbered, 1, 2, READ);
    assert_caught(Slip::ResumeWithoutEpoch, 2, 1, READ);
    assert_caught(Slip::ReadNotHeld, 1, 2, READ);
    assert_caught(Slip::RestartKeepsWayBack, 1, 3, READ);
}

#[test]
fn a_commit_without_proof_is_caught() {
    assert_caught(Slip::ProofSkipped, 1, 1, DIFFERENT);
}
