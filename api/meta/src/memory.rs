//! The store in memory, for simulations and tests.
//!
//! Invariants: transactions are applied in the order of the calls; one that is under way when the process is killed was
//! applied or not, by chance, as its moment of application had come or not.

use crate::{Entry, MetaError, MetaStore, Outcome, Transaction, Version};
use drover_base::{LocalFuture, World};
use futures::channel::oneshot;
use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};

#[derive(Default)]
struct Content {
    version: u64,
    entries: BTreeMap<String, (Version, Vec<u8>)>,
    /// Commits that are yet to fail, for tests: whether each is applied nevertheless.
    failures: Vec<bool>,
}

/// What survives a crash. Clones are the same disk.
#[derive(Clone, Default)]
pub struct MemoryDisk(Rc<RefCell<Content>>);

impl MemoryDisk {
    /// Lets the next commit fail; `applied`: it takes effect nevertheless.
    pub fn fail_next_commit(&self, applied: bool) {
        self.0.borrow_mut().failures.push(applied);
    }

    fn apply(&self, transaction: Transaction) -> Result<Outcome, MetaError> {
        let mut content = self.0.borrow_mut();
        let failure = content.failures.pop();
        if failure == Some(false) {
            return Err(MetaError::Backend("told to fail".into()));
        }
        for (key, expected) in &transaction.expect {
            if content.entries.get(key).map(|(version, _)| *version) != *expected {
                return Ok(Outcome::Conflict(key.clone()));
            }
        }
        content.version += 1;
        let version = Version(content.version);
        for key in &transaction.deletes {
            content.entries.remove(key);
        }
        for (key, value) in transaction.puts {
            content.entries.insert(key, (version, value));
        }
        match failure {
            None => Ok(Outcome::Committed(version)),
            Some(_) => Err(MetaError::Backend("told to fail".into())),
        }
    }
}

/// What a commit takes at most, half of it before it is applied: a disk's sync and its tail.
const COMMIT_NANOS_MAX: u64 = 2_000_000;

/// A [`MemoryDisk`] as one life of a process sees it.
pub struct MemoryMetaStore {
    world: World,
    disk: MemoryDisk,
    order: Rc<tokio::sync::Mutex<()>>,
}

impl MemoryMetaStore {
    pub fn open(world: World, disk: MemoryDisk) -> Self {
        Self { world, disk, order: Rc::default() }
    }

    fn delay(&self) -> Duration {
        Duration::from_nanos(self.world.random.next_u64() % (COMMIT_NANOS_MAX / 2))
    }
}

impl MetaStore for MemoryMetaStore {
    fn get(&self, key: &str) -> LocalFuture<'_, Result<Option<Entry>, MetaError>> {
        let key = key.to_owned();
        Box::pin(async move {
            let content = self.disk.0.borrow();
            let found = content.entries.get(&key);
            Ok(found.map(|(version, value)| Entry { key: key.clone(), value: value.clone(), version: *version }))
        })
    }

    fn scan(&self, prefix: &str) -> LocalFuture<'_, Result<Vec<Entry>, MetaError>> {
        let prefix = prefix.to_owned();
        Box::pin(async move {
            let content = self.disk.0.borrow();
            let entries = content.entries.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
            Ok(entries
                .map(|(key, (version, value))| Entry { key: key.clone(), value: value.clone(), version: *version })
                .collect())
        })
    }

    fn commit(&self, transaction: Transaction) -> LocalFuture<'_, Result<Outcome, MetaError>> {
        let (before, after) = (self.delay(), self.delay());
        let (world, disk, order) = (self.world.clone(), self.disk.clone(), self.order.clone());
        let (sender, receiver) = oneshot::channel();
        let run = async move {
            let _turn = order.lock().await;
            world.sleep(before).await;
            let outcome = disk.apply(transaction);
            world.sleep(after).await;
            // The caller may have gone; the commit stays.
            let _ = sender.send(outcome);
        };
        self.world.spawn(run).detach();
        Box::pin(async move { receiver.await.unwrap_or_else(|_| Err(MetaError::Backend("the process ended".into()))) })
    }
}
