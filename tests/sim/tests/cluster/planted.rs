//! Bugs planted into the real parts are caught within a few seeds of the whole cluster.

use crate::run::run;
use drover_base::planted::{Bug, plant};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Seeds tried for each bug.
const SEEDS_MOST: u64 = 20;

const CAUGHT: &[Bug] = &[Bug::DirtyNotMarked, Bug::SendErrorNotMarked];

#[test]
fn planted_bugs_are_caught() {
    let mut missed = Vec::new();
    for bug in CAUGHT {
        plant(Some(*bug));
        let caught = (1..=SEEDS_MOST).find(|seed| catch_unwind(AssertUnwindSafe(|| run(*seed, false))).is_err());
        plant(None);
        match caught {
            Some(seed) => println!("{bug:?}: seed {seed}"),
            None => missed.push(*bug),
        }
    }
    assert_eq!(missed, [], "not caught in {SEEDS_MOST} seeds");
}
