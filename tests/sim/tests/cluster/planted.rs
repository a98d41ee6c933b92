//! Bugs planted into the real parts are caught within a few seeds of the whole cluster.
//!
//! Those that are not here need what the cluster's course does not have, and are caught elsewhere, by the tests named
//! `planted` of `tests/crash`, `engine/transfer`, `engine/node` and `api/control`.

use crate::run::run;
use drover_base::planted::{Bug, plant};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Seeds tried for each bug, many times what the rarest takes: it has to survive that every change of the code shifts
/// what the seeds meet.
const SEEDS_MOST: u64 = 300;

const CAUGHT: &[Bug] = &[
    Bug::FlipWithoutDrain,
    Bug::TakeoverWithoutWait,
    Bug::WayBackNotRecorded,
    Bug::FlushSkipsSync,
    Bug::HiddenNotZeroed,
    Bug::MergeIgnoresHidden,
    Bug::DirtyClearedAfterRead,
    Bug::DirtyNotMarked,
    Bug::SendErrorNotMarked,
    Bug::CleanWithoutFlush,
    Bug::EpochNotChecked,
    Bug::ReplayForgotten,
    Bug::ReplayOverNewer,
    Bug::SecondWriterNotTold,
];

/// The lowest seed that catches it.
fn first_catch(bug: Bug) -> Option<u64> {
    let (next, caught) = (AtomicU64::new(1), AtomicU64::new(u64::MAX));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                // For this thread only.
                plant(Some(bug));
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed > SEEDS_MOST.min(caught.load(Relaxed)) {
                        break;
                    }
                    if catch_unwind(AssertUnwindSafe(|| run(seed, false))).is_err() {
                        caught.fetch_min(seed, Relaxed);
                    }
                }
            });
        }
    });
    Some(caught.into_inner()).filter(|seed| *seed <= SEEDS_MOST)
}

#[test]
fn planted_bugs_are_caught() {
    let mut missed = Vec::new();
    for bug in CAUGHT {
        match first_catch(*bug) {
            Some(seed) => println!("{bug:?}: seed {seed}"),
            None => missed.push(*bug),
        }
    }
    assert_eq!(missed, [], "not caught in {SEEDS_MOST} seeds");
}
