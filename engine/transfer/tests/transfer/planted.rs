//! Each planted bug of this crate is caught by a scenario that passes without it.

use crate::pair::run;
use crate::{back, chunks, copying, hot, links, proving, pulling, snapshots, thin, tuning};
use drover_base::planted::{Bug, plant};
use drover_sim::runtime::Sim;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The scenario finds a difference under one of the seeds when the bug is planted.
fn is_caught(bug: Bug, seeds: std::ops::Range<u64>, scenario: impl AsyncFn(Sim) -> Result<(), String>) {
    plant(Some(bug));
    let found = seeds.clone().find_map(|seed| match catch_unwind(AssertUnwindSafe(|| run(seed, &scenario))) {
        Ok(Ok(())) => None,
        Ok(Err(difference)) => Some(format!("seed {seed}: {difference}")),
        Err(_) => Some(format!("seed {seed}: it panicked")),
    });
    plant(None);
    let found = found.unwrap_or_else(|| panic!("{bug:?} is not caught by seeds {seeds:?}"));
    println!("{bug:?}: {found}");
}

#[test]
fn dirty_cleared_after_read_is_caught() {
    is_caught(Bug::DirtyClearedAfterRead, 100..115, copying::hot_extents);
}

#[test]
fn dirty_not_marked_is_caught() {
    is_caught(Bug::DirtyNotMarked, 0..15, copying::drained_without_mirroring);
}

#[test]
fn send_error_not_marked_is_caught() {
    is_caught(Bug::SendErrorNotMarked, 300..312, links::refused_now_and_then);
}

#[test]
fn clean_without_flush_is_caught() {
    is_caught(Bug::CleanWithoutFlush, 200..225, links::crash_of_the_destination);
}

#[test]
fn mirror_not_awaited_is_caught() {
    is_caught(Bug::MirrorNotAwaited, 0..60, back::holder_dies);
}

#[test]
fn way_back_not_recorded_is_caught() {
    is_caught(Bug::WayBackNotRecorded, 0..60, back::holder_dies);
}

#[test]
fn waiting_not_marked_is_caught() {
    is_caught(Bug::WaitingNotMarked, 800..808, tuning::more_than_there_is_room_for);
}

#[test]
fn sent_stays_announced_is_caught() {
    is_caught(Bug::SentStaysAnnounced, 400..425, hot::flipped_early);
}

#[test]
fn announced_outlives_link_is_caught() {
    is_caught(Bug::AnnouncedOutlivesLink, 700..710, hot::announcements_are_lost);
}

#[test]
fn thickness_counted_is_caught() {
    is_caught(Bug::ThicknessCounted, 0..1, thin::thicker_elsewhere);
}

#[test]
fn tracking_without_barrier_is_caught() {
    is_caught(Bug::TrackingWithoutBarrier, 0..40, copying::tracked_from_among_writes);
}

#[test]
fn digest_crossed_is_caught() {
    is_caught(Bug::DigestCrossed, 0..5, proving::proven_under_constant_writes);
}

#[test]
fn remote_read_as_zero_is_caught() {
    is_caught(Bug::RemoteReadAsZero, 0..5, pulling::under_load);
}

#[test]
fn fill_over_newer_is_caught() {
    is_caught(Bug::FillOverNewer, 0..10, pulling::under_load);
}

#[test]
fn fill_mirrored_is_caught() {
    is_caught(Bug::FillMirrored, 0..1, pulling::nothing_goes_back);
}

#[test]
fn remote_sent_as_zero_is_caught() {
    is_caught(Bug::RemoteSentAsZero, 0..10, pulling::holder_restarts);
}

#[test]
fn layer_hidden_as_below_is_caught() {
    is_caught(Bug::LayerHiddenAsBelow, 0..3, snapshots::quietly);
}

#[test]
fn layer_named_incomplete_is_caught() {
    is_caught(Bug::LayerNamedIncomplete, 0..20, snapshots::interrupted);
}

#[test]
fn layer_resumed_unflushed_is_caught() {
    is_caught(Bug::LayerResumedUnflushed, 0..40, snapshots::interrupted);
}

#[test]
fn layer_of_another_kept_is_caught() {
    is_caught(Bug::LayerOfAnotherKept, 0..1, snapshots::left_half_built);
}

#[test]
fn layers_not_awaited_is_caught() {
    is_caught(Bug::LayersNotAwaited, 0..3, snapshots::mirrored_at_once);
}

#[test]
fn layers_not_proven_is_caught() {
    is_caught(Bug::LayersNotProven, 0..1, snapshots::proven);
}

#[test]
fn lacking_not_marked_is_caught() {
    is_caught(Bug::LackingNotMarked, 0..8, chunks::index_is_stale);
}

#[test]
fn chunk_not_proven_is_caught() {
    is_caught(Bug::ChunkNotProven, 0..1, chunks::asked_without_proof);
}

#[test]
fn tenant_ignored_is_caught() {
    plant(Some(Bug::TenantIgnored));
    let found = catch_unwind(chunks::of_another_tenant);
    plant(None);
    assert!(!matches!(found, Ok(Ok(()))), "TenantIgnored is not caught");
}
