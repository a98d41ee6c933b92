//! Every step that a migration can persist is in the kill table, or it is told here why it is not.

use crate::table::{AT_ONCE, LATE, ONE_BY_ONE};
use drover_control::migration::transition::Transition;
use drover_types::record::{Cleanup, CleanupTask};
use std::collections::BTreeSet;

/// What each transition is persisted as. One that is added to the control plane does not compile before it stands here,
/// and then has to be hit.
macro_rules! persisted {
    ($($transition:pat => $($step:literal),+;)+) => {
        const _: fn(&Transition) = |transition| match transition { $($transition => (),)+ };
        const PERSISTED: &[&str] = &[$($($step),+),+];
    };
}

persisted! {
    Transition::StartTracking => "tracking";
    Transition::Began => "copying";
    Transition::Converge => "converging";
    Transition::BeginMirroring => "mirroring";
    Transition::StartOver { .. } => "start_over";
    Transition::BeginFlip => "flipping", "flip_back_began";
    Transition::GiveUpFlip { .. } => "flip_given_up", "flip_back_given_up";
    Transition::Resumed { .. } => "resumed";
    Transition::Slowed { .. } => "slowed";
    Transition::Freed { .. } => "freed";
    Transition::RefuseCutover { .. } => "cutover_refused";
    Transition::MoveLease { .. } => "settling", "returning";
    Transition::Flipped { .. } => "flipped", "flipped_back";
    Transition::Proven { .. } => "proven";
    Transition::ProofFailed { .. } => "proof_failed";
    Transition::Commit => "committed";
    Transition::CopyLost => "copy_lost";
    Transition::CommitAlone => "committed_alone";
    Transition::RollBack { .. } => "never_begun", "cancelled", "flipping_back";
    Transition::StayAtDestination { .. } => "rollback_given_up";
    Transition::TakeOver => "taken_over";
    Transition::Returned => "returned";
    Transition::CleanedUp { cleanup: Cleanup { task: CleanupTask::Resume { .. }, .. } } => "cleaned_up node-1 resume";
    Transition::CleanedUp { cleanup: Cleanup { task: CleanupTask::Grant, .. } } =>
        "cleaned_up node-1 grant", "cleaned_up node-2 grant";
    Transition::CleanedUp { cleanup: Cleanup { task: CleanupTask::End { .. }, .. } } =>
        "cleaned_up node-1 end", "cleaned_up node-2 end";
    Transition::RolledBack => "rolled_back";
    Transition::Fail { .. } => "failed";
    Transition::Pause { paused: true } => "paused";
    Transition::Pause { paused: false } => "unpaused";
    Transition::RequestCutover => "cutover";
    Transition::RequestCommit => "commit";
    Transition::Tune { .. } => "tuned";
}

/// What is persisted of a migration beside its transitions: that it is there, what the holder says of the way back, and
/// that a side has restarted (`Control` in `migrations.rs` and `rpc.rs`).
const BESIDE: &[&str] = &["planned", "way_back_closed", "way_back_opened", "proof_forgotten", "noted"];

/// Steps that no course hits, and why.
const EXEMPT: &[(&str, &str)] = &[
    (
        "never_begun",
        "nothing was asked of a node yet, and nothing is; it takes a cancel while an earlier migration's clean-up waits \
         for a node",
    ),
    (
        "proof_forgotten",
        "it takes a source that restarts while nobody writes: here writers write, and the way back closes first",
    ),
    ("slowed", "nothing is decided by it, and it takes a writer that outruns the link for seconds"),
    ("freed", "the same"),
    ("noted", "nothing that a decision rests on has changed: the same word or request again"),
];

#[test]
fn every_step_is_hit_or_exempt() {
    let all: BTreeSet<&str> = PERSISTED.iter().chain(BESIDE).copied().collect();
    let steps = ONE_BY_ONE.iter().chain(AT_ONCE).chain(LATE).flat_map(|course| course.steps);
    let hit: BTreeSet<&str> = steps.filter(|expected| expected.is_hit).map(|expected| expected.step).collect();
    let exempt: BTreeSet<&str> = EXEMPT.iter().map(|(step, _)| *step).collect();
    assert_eq!(all, hit.union(&exempt).copied().collect(), "left: what can be persisted; right: what is hit or exempt");
    assert!(hit.is_disjoint(&exempt), "exempt, and hit all the same");
}
