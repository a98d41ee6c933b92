//! The whole cluster in one simulation: the real node and control plane, a client, and faults by chance.
//!
//! Each seed is a world of its own: a migration of a small volume from `a` to `b` under load, with at least five faults,
//! which has to end. Clients of all four nodes read and write it; every read is judged by the history of what they were
//! told.
//!
//! `scripts/sim.sh SEED` runs one seed again and tells what happened in it. `DROVER_SIM_SEEDS` sets how many run.

mod client;
mod faults;
mod losses;
mod met;
mod migration;
#[cfg(feature = "planted")]
mod planted;
mod run;
mod snapshots;
mod world;

use met::Met;
use run::{Ended, run};
use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

const SEEDS: u64 = 50;
/// With so many every fault has met every phase.
const SEEDS_ALL: u64 = 1000;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{variable}={value}: no number")))
}

/// Runs the seed; where it fails, tells how to run it again.
fn run_seed(seed: u64, tells: bool) -> Ended {
    catch_unwind(AssertUnwindSafe(|| run(seed, tells))).unwrap_or_else(|panic| {
        eprintln!("seed {seed} failed; to run it again: scripts/sim.sh {seed}");
        resume_unwind(panic)
    })
}

#[test]
fn migrations_lose_nothing_and_end() {
    let seeds = number("DROVER_SIM_SEEDS").unwrap_or_else(|| SEEDS * number("DROVER_SOAK").unwrap_or(1));
    let next = AtomicU64::new(1);
    let ended = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > seeds {
                        break;
                    }
                    let end = run_seed(seed, false);
                    ended.lock().expect("no thread panics here").push(end);
                }
            });
        }
    });
    let ended = ended.into_inner().expect("no thread panics here");
    let count = |wanted: fn(&Ended) -> bool| ended.iter().filter(|end| wanted(end)).count();
    let (committed, flipped_back) = (count(|end| end.committed), count(|end| !end.committed && end.flips > 0));
    let in_time: u64 = ended.iter().map(|end| end.faults_in_time).sum();
    let timed_out: u64 = ended.iter().map(|end| end.timed_out).sum();
    let given_up: u64 = ended.iter().map(|end| end.given_up).sum();
    let (early, early_back) =
        (count(|end| end.was_remote && end.committed), count(|end| end.was_remote && !end.committed));
    println!("{seeds} seeds: {committed} committed, {flipped_back} rolled back after a flip; {in_time} faults hit");
    println!("flipped before all had come: {early} of the committed, {early_back} of those that went back");
    let (kept, kept_back) =
        (count(|end| end.snapshots > 0 && end.committed), count(|end| end.snapshots > 0 && !end.committed));
    println!("with snapshots: {kept} of the committed, {kept_back} of those that went back");
    println!("{timed_out} requests passed their deadline, {given_up} times a gateway was given up");
    let mut met = Met::default();
    ended.iter().for_each(|end| met.add(&end.met));
    println!("{met}");
    assert_eq!(ended.len() as u64, seeds);
    if seeds >= SEEDS {
        assert!(committed >= 10 && flipped_back >= 3, "the seeds no longer reach both ends");
        assert!(early >= 2 && early_back >= 1, "the seeds no longer flip before all has come");
        assert!(kept >= 5 && kept_back >= 3, "the seeds no longer move snapshots");
        assert!(in_time >= 5 * seeds, "most faults come when the migration is over");
    }
    if seeds >= SEEDS_ALL {
        assert_eq!(met.missing(), [], "never met");
    }
}

#[test]
fn a_seed_gives_the_same_run_again() {
    for seed in [1, 2] {
        assert_eq!(run_seed(seed, false), run_seed(seed, false), "seed {seed}");
    }
}

/// The seed that `SEED` names, and what happened in it.
#[test]
fn one_seed() {
    let seed = number("SEED").unwrap_or(1);
    println!("{:#?}", run_seed(seed, true));
}
