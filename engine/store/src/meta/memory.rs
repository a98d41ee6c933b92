//! Metadata in memory, with the delays and crashes of a real store, driven by a seed.
//!
//! Invariants
//! - Commits are applied in the order of their calls, each wholly, between its call and its answer.
//! - What is applied is durable. A crash applies a prefix, drawn by chance, of the commits still in flight.
//! - A commit goes on when its future is dropped: what is due is applied when the store is next looked at.
//! - After a failed commit, which is applied or not by chance, every later one fails.

use super::{Batch, Change, Meta, MetaError, Pairs};
use drover_base::{Instant, LocalFuture, World, world::Random};
use drover_disk::sim::{below, delay};
use std::{
    cell::{RefCell, RefMut},
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    time::Duration,
};

/// What the store holds.
pub type MemoryImage = BTreeMap<Vec<u8>, Vec<u8>>;

// Delays of the order of a synced write to a flash drive.
const READ_NS: (u64, u64) = (5_000, 100_000);
const COMMIT_NS: (u64, u64) = (50_000, 2_000_000);

#[derive(Default)]
struct State {
    applied: MemoryImage,
    in_flight: VecDeque<(Instant, Batch)>,
    /// Good commits until the one that fails.
    commits_until_failure: Option<u64>,
    is_poisoned: bool,
    is_dead: bool,
}

/// A handle; clones share the store.
#[derive(Clone)]
pub struct MemoryMeta {
    world: World,
    state: Rc<RefCell<State>>,
}

impl MemoryMeta {
    pub fn new(world: World) -> Self {
        Self::from_image(world, MemoryImage::new())
    }

    /// A store that holds `image`, as after a restart.
    pub fn from_image(world: World, image: MemoryImage) -> Self {
        Self { world, state: Rc::new(RefCell::new(State { applied: image, ..State::default() })) }
    }

    /// What a crash at this moment could leave. The store goes on.
    pub fn crash_image(&self, random: &dyn Random) -> MemoryImage {
        let state = self.settled();
        let mut image = state.applied.clone();
        let kept = below(random, state.in_flight.len() as u64 + 1) as usize;
        state.in_flight.iter().take(kept).for_each(|(_, batch)| apply(&mut image, batch));
        image
    }

    /// The node dies: what remains. Every later request of this store and its clones fails.
    pub fn crash(&self, random: &dyn Random) -> MemoryImage {
        let image = self.crash_image(random);
        self.state.borrow_mut().is_dead = true;
        image
    }

    /// After `good` more commits one fails, and then all.
    pub fn fail_commit_after(&self, good: u64) {
        self.state.borrow_mut().commits_until_failure = Some(good);
    }

    /// The state, with everything that is due applied.
    fn settled(&self) -> RefMut<'_, State> {
        let mut state = self.state.borrow_mut();
        state.settle(self.world.now());
        state
    }

    /// Takes the batch over; its answer and when to give it.
    fn submit(&self, batch: Batch) -> (Result<(), MetaError>, Duration) {
        let duration = delay(&self.world, COMMIT_NS.0, COMMIT_NS.1);
        let arrival = self.world.now() + Duration::from_nanos(below(&*self.world.random, duration.as_nanos() as u64));
        let mut state = self.settled();
        if state.is_poisoned || state.is_dead {
            return (Err(failed("an earlier commit failed")), duration);
        }
        let fails = match state.commits_until_failure {
            Some(0) => true,
            Some(good) => {
                state.commits_until_failure = Some(good - 1);
                false
            }
            None => false,
        };
        let arrival = state.in_flight.back().map_or(arrival, |(before, _)| arrival.max(*before));
        let duration = duration.max(arrival.since(self.world.now()));
        if !fails || below(&*self.world.random, 2) == 0 {
            state.in_flight.push_back((arrival, batch));
        }
        state.is_poisoned = fails;
        (if fails { Err(failed("the commit was made to fail")) } else { Ok(()) }, duration)
    }

    async fn wait(&self, duration: Duration) -> Result<(), MetaError> {
        self.world.sleep(duration).await;
        if self.state.borrow().is_dead { Err(failed("the node is dead")) } else { Ok(()) }
    }
}

impl State {
    fn settle(&mut self, now: Instant) {
        while !self.is_dead && self.in_flight.front().is_some_and(|(arrival, _)| *arrival <= now) {
            if let Some((_, batch)) = self.in_flight.pop_front() {
                apply(&mut self.applied, &batch);
            }
        }
    }
}

fn failed(reason: &str) -> MetaError {
    MetaError::Backend(reason.into())
}

fn apply(image: &mut MemoryImage, batch: &Batch) {
    for change in &batch.changes {
        match change {
            Change::Put { key, value } => drop(image.insert(key.clone(), value.clone())),
            Change::Delete { key } => drop(image.remove(key)),
            Change::DeletePrefix { prefix } => {
                let keys: Vec<_> = with_prefix(image, prefix).map(|(key, _)| key.clone()).collect();
                keys.iter().for_each(|key| drop(image.remove(key)));
            }
        }
    }
}

fn with_prefix<'a>(image: &'a MemoryImage, prefix: &'a [u8]) -> impl Iterator<Item = (&'a Vec<u8>, &'a Vec<u8>)> {
    image.range(prefix.to_vec()..).take_while(move |(key, _)| key.starts_with(prefix))
}

impl Meta for MemoryMeta {
    fn get(&self, key: &[u8]) -> LocalFuture<'_, Result<Option<Vec<u8>>, MetaError>> {
        let key = key.to_vec();
        let duration = delay(&self.world, READ_NS.0, READ_NS.1);
        Box::pin(async move {
            self.wait(duration).await?;
            Ok(self.settled().applied.get(&key).cloned())
        })
    }

    fn scan(&self, prefix: &[u8]) -> LocalFuture<'_, Result<Pairs, MetaError>> {
        let prefix = prefix.to_vec();
        let duration = delay(&self.world, READ_NS.0, READ_NS.1);
        Box::pin(async move {
            self.wait(duration).await?;
            let state = self.settled();
            Ok(with_prefix(&state.applied, &prefix).map(|(key, value)| (key.clone(), value.clone())).collect())
        })
    }

    fn commit(&self, batch: Batch) -> LocalFuture<'_, Result<(), MetaError>> {
        let (result, duration) = self.submit(batch);
        Box::pin(async move {
            self.wait(duration).await?;
            result
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::contract;
    use drover_disk::sim::SoloWorld;
    use futures::future::{join_all, select};

    fn put(key: &[u8], value: u8) -> Batch {
        let mut batch = Batch::default();
        batch.put(key.to_vec(), vec![value]);
        batch
    }

    #[test]
    fn it_is_a_metadata_store() {
        for seed in 0..20 {
            let mut solo = SoloWorld::new(seed);
            let meta = MemoryMeta::new(solo.world());
            solo.run(async move { contract::check(&meta).await });
        }
    }

    /// Commits in flight at a crash are kept as a prefix, each whole; every prefix can occur.
    #[test]
    fn a_crash_keeps_a_prefix_of_whole_commits() {
        let mut seen = [0; 4];
        for seed in 0..200 {
            let mut solo = SoloWorld::new(seed);
            let (meta, world) = (MemoryMeta::new(solo.world()), solo.world());
            let image = solo.run(async move {
                let commits = join_all((0..3u8).map(|number| {
                    let mut batch = put(b"last", number);
                    batch.put(vec![number], vec![number]);
                    meta.commit(batch)
                }));
                let moment = Duration::from_nanos(below(&*world.random, 2_000_000));
                select(commits, world.sleep(moment)).await;
                meta.crash(&*world.random)
            });
            let kept = (0..3u8).take_while(|number| image.contains_key(&vec![*number])).count();
            assert_eq!(image.len(), if kept == 0 { 0 } else { kept + 1 });
            assert_eq!(image.get(&b"last"[..]).map(|value| value[0] as usize + 1).unwrap_or(0), kept);
            seen[kept] += 1;
        }
        assert!(seen.iter().all(|&count| count > 5), "{seen:?}");
    }

    #[test]
    fn an_answered_commit_survives_every_crash() {
        for seed in 0..100 {
            let mut solo = SoloWorld::new(seed);
            let (meta, world) = (MemoryMeta::new(solo.world()), solo.world());
            let image = solo.run(async move {
                let unanswered = meta.commit(put(b"a", 1));
                meta.commit(put(b"b", 2)).await.unwrap();
                drop(unanswered);
                meta.crash(&*world.random)
            });
            assert_eq!(image.len(), 2, "the earlier commit is there too, though nobody waited for it");
        }
    }

    #[test]
    fn a_failed_commit_poisons_and_its_outcome_is_open() {
        let mut applied = 0;
        for seed in 0..50 {
            let mut solo = SoloWorld::new(seed);
            let (meta, world) = (MemoryMeta::new(solo.world()), solo.world());
            let image = solo.run(async move {
                meta.fail_commit_after(1);
                meta.commit(put(b"a", 1)).await.unwrap();
                meta.commit(put(b"b", 2)).await.unwrap_err();
                meta.commit(put(b"c", 3)).await.unwrap_err();
                assert_eq!(meta.get(b"a").await.unwrap(), Some(vec![1]));
                let image = meta.crash(&*world.random);
                meta.get(b"a").await.unwrap_err();
                image
            });
            assert!(image.contains_key(&b"a"[..]) && !image.contains_key(&b"c"[..]));
            applied += usize::from(image.contains_key(&b"b"[..]));
        }
        assert!((5..45).contains(&applied), "{applied}");
    }
}
