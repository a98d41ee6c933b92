//! Crashes at every sync and every commit, and what is there afterwards.

use drover_crash::{
    checks::crash_run,
    life::{Conduct, lead},
    model::Model,
    node::{EAGER, Images, Setup},
    remote::remote_run,
};

/// Every moment is looked at, in few runs.
#[test]
fn every_sync_and_commit_can_be_the_last() {
    let conduct = Conduct { rounds: 20, looks_percent: 100 };
    let looked: usize = (1..=6).map(|seed| look(seed, 2, conduct)).sum();
    assert!(looked > 400, "only {looked} crash points");
}

/// Some moments are looked at, in many runs: 60, times `DROVER_SOAK`.
#[test]
fn what_was_flushed_survives_and_snapshots_are_exact() {
    let runs = 60 * std::env::var("DROVER_SOAK").map_or(1, |times| times.parse::<u64>().expect("a number"));
    let conduct = Conduct { rounds: 20, looks_percent: 8 };
    let looked: usize = (100..100 + runs).map(|seed| look(seed, 3, conduct)).sum();
    assert!(looked as u64 > 10 * runs, "only {looked} crash points");
}

fn look(seed: u64, lives: u64, conduct: Conduct) -> usize {
    crash_run(seed, lives, conduct).unwrap_or_else(|finding| panic!("{finding}"))
}

/// Blocks that are at another node: 60 runs, times `DROVER_SOAK`.
#[test]
fn a_block_is_remote_or_holds_what_it_should() {
    let runs = 60 * std::env::var("DROVER_SOAK").map_or(1, |times| times.parse::<u64>().expect("a number"));
    let looked: usize = (1..=runs).map(|seed| remote_run(seed).unwrap_or_else(|finding| panic!("{finding}"))).sum();
    assert!(looked as u64 > 10 * runs, "only {looked} crash points");
}

/// Without crashes, long: after every round of concurrent requests the volume reads like the plain model.
#[test]
fn a_volume_reads_like_its_model() {
    let conduct = Conduct { rounds: 60, looks_percent: 0 };
    (1000..1040).for_each(|seed| {
        look(seed, 1, conduct);
    });
}

/// A life is a function of its seed: the same crash points, byte for byte.
#[test]
fn the_same_seed_ends_the_same() {
    let conduct = Conduct { rounds: 15, looks_percent: 20 };
    let images = |seed| {
        let setup = Setup { slots: [20, 20], active_regions_max: 2, has_checkpoint: false, discard_pace: EAGER };
        let points = lead(seed, 0, &setup, &Images::new(setup.slots), Model::default(), conduct);
        let points = points.unwrap_or_else(|finding| panic!("{finding}"));
        points.into_iter().map(|point| (point.label, point.images)).collect::<Vec<_>>()
    };
    for seed in 1..=5 {
        let (once, again) = (images(seed), images(seed));
        assert!(!once.is_empty());
        assert_eq!(once, again, "seed {seed}");
    }
}
