//! Crashes at every sync and every commit, and what is there afterwards.

use drover_crash::{checks::crash_run, life::Conduct};

/// Every moment is looked at, in few runs.
#[test]
fn every_sync_and_commit_can_be_the_last() {
    let mut looked = 0;
    for seed in 1..=3 {
        looked += crash_run(seed, 2, Conduct { rounds: 20, looks_percent: 100 })
            .unwrap_or_else(|finding| panic!("{finding}"));
    }
    assert!(looked > 200, "only {looked} crash points");
}

/// Some moments are looked at, in many runs.
#[test]
fn what_was_flushed_survives_and_snapshots_are_exact() {
    let mut looked = 0;
    for seed in 100..140 {
        looked +=
            crash_run(seed, 3, Conduct { rounds: 20, looks_percent: 8 }).unwrap_or_else(|finding| panic!("{finding}"));
    }
    assert!(looked > 500, "only {looked} crash points");
}
