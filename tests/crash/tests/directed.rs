//! One promise each.

use drover_crash::{Finding, clones, directed, shards};

fn each(check: fn(u64) -> Result<(), Finding>) {
    seeds(30, check);
}

fn seeds(count: u64, check: fn(u64) -> Result<(), Finding>) {
    (1..=count).for_each(|seed| check(seed).unwrap_or_else(|finding| panic!("{finding}")));
}

#[test]
fn slow_reads_keep_their_slots() {
    each(directed::slow_reads_keep_their_slots);
}

#[test]
fn discards_touch_only_what_is_free() {
    seeds(100, directed::discards_touch_only_what_is_free);
}

#[test]
fn nothing_passes_an_ended_lease() {
    each(directed::nothing_passes_an_ended_lease);
}

#[test]
fn a_failed_sync_is_never_forgotten() {
    each(directed::a_failed_sync_is_never_forgotten);
}

#[test]
fn a_checkpoint_brings_volumes_back() {
    each(directed::a_checkpoint_brings_volumes_back);
}

#[test]
fn shards_share_their_tiers() {
    seeds(300, shards::shards_share_their_tiers);
}

/// 150 families, times `DROVER_SOAK`.
#[test]
fn clones_share_layers() {
    let seeds = 150 * std::env::var("DROVER_SOAK").map_or(1, |times| times.parse::<u64>().expect("a number"));
    let look = |seed| clones::clones_share_layers(seed).unwrap_or_else(|finding| panic!("{finding}"));
    let looked: usize = (1..=seeds).map(look).sum();
    assert!(looked as u64 > 20 * seeds, "only {looked} crash points");
}
