//! Each bug that can be planted in the store is caught by its checker within a few seeds.
#![cfg(feature = "planted")]

use drover_base::planted::{Bug, plant};
use drover_crash::{Finding, checks::crash_run, clones, directed, life::Conduct, remote::remote_run, shards};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Seeds tried for each bug. All are caught in far fewer.
const SEEDS_MOST: u64 = 60;

type Checker = fn(u64) -> Result<(), Finding>;

fn crashes(seed: u64) -> Result<(), Finding> {
    crash_run(seed, 2, Conduct { rounds: 20, looks_percent: 25 }).map(|_| ())
}

fn remote(seed: u64) -> Result<(), Finding> {
    remote_run(seed).map(|_| ())
}

fn families(seed: u64) -> Result<(), Finding> {
    clones::clones_share_layers(seed).map(|_| ())
}

/// Who catches what.
const CAUGHT_BY: &[(Bug, Checker)] = &[
    (Bug::FlushSkipsSync, crashes),
    (Bug::FlushCommitsCurrent, crashes),
    (Bug::SlotReusedBeforeDurable, crashes),
    (Bug::SlotReusedBeforeDurable, shards::shards_share_their_tiers),
    (Bug::SyncFailureForgotten, shards::shards_share_their_tiers),
    (Bug::SlotLeaked, crashes),
    (Bug::SlotReusedUnderRead, directed::slow_reads_keep_their_slots),
    (Bug::DiscardedBeforeDurable, directed::discards_touch_only_what_is_free),
    (Bug::ReusedWhileDiscarded, directed::discards_touch_only_what_is_free),
    (Bug::ValidOnSubmission, crashes),
    (Bug::SnapshotWithoutDrain, crashes),
    (Bug::HiddenNotZeroed, crashes),
    (Bug::MergeIgnoresHidden, crashes),
    (Bug::CloneWithoutFlush, families),
    (Bug::SharedMergedBeforeDurable, families),
    (Bug::GhostNotKept, families),
    (Bug::ActivationNotAwaited, crashes),
    (Bug::SyncFailureForgotten, directed::a_failed_sync_is_never_forgotten),
    (Bug::EpochNotChecked, directed::nothing_passes_an_ended_lease),
    (Bug::RemoteForgotten, remote),
    (Bug::RemoteReadAsZero, remote),
    (Bug::FillOverNewer, remote),
    (Bug::FlushCommitsCurrent, remote),
    (Bug::ValidOnSubmission, remote),
    (Bug::AckNotFenced, directed::nothing_passes_an_ended_lease),
];

/// The first seed that catches what is planted, and how. A panic counts: the engine's own assertions.
fn first_catch(checker: Checker) -> Option<(u64, String)> {
    (1..=SEEDS_MOST).find_map(|seed| match catch_unwind(AssertUnwindSafe(|| checker(seed))) {
        Ok(Ok(())) => None,
        Ok(Err(finding)) => Some((seed, finding.to_string())),
        Err(_) => Some((seed, "a panic".into())),
    })
}

#[test]
fn planted_bugs_are_caught() {
    let mut missed = Vec::new();
    for (bug, checker) in CAUGHT_BY {
        plant(Some(*bug));
        let caught = first_catch(*checker);
        plant(None);
        match caught {
            Some((seed, how)) => println!("{bug:?}: seed {seed}: {}", how.lines().next().unwrap_or_default()),
            None => missed.push(*bug),
        }
    }
    assert_eq!(missed, [], "not caught in {SEEDS_MOST} seeds");
}

/// The checkers find nothing where nothing is planted.
#[test]
fn nothing_planted_nothing_caught() {
    plant(None);
    for (bug, checker) in CAUGHT_BY {
        for seed in 1..=3 {
            checker(seed).unwrap_or_else(|finding| panic!("the checker of {bug:?}: {finding}"));
        }
    }
}
