//! Where a node's metadata lives: an ordered map of keys to values with atomic, durable batches.

use drover_base::LocalFuture;

pub mod memory;
pub mod rocks;

#[cfg(test)]
mod contract;

/// Why metadata could not be read or written. After a failed commit the store counts as poisoned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    #[error("the metadata store failed: {0}")]
    Backend(String),
}

/// Changes that are applied together or not at all, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub changes: Vec<Change>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Put {
        key: Vec<u8>,
        value: Vec<u8>,
    },
    Delete {
        key: Vec<u8>,
    },
    /// Deletes every key that begins with `prefix`.
    DeletePrefix {
        prefix: Vec<u8>,
    },
}

impl Batch {
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.changes.push(Change::Put { key, value });
    }
    pub fn delete(&mut self, key: Vec<u8>) {
        self.changes.push(Change::Delete { key });
    }
    pub fn delete_prefix(&mut self, prefix: Vec<u8>) {
        self.changes.push(Change::DeletePrefix { prefix });
    }
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// The pairs of a scan, in ascending order of their keys.
pub type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// An ordered map with atomic, durable batches.
pub trait Meta {
    fn get(&self, key: &[u8]) -> LocalFuture<'_, Result<Option<Vec<u8>>, MetaError>>;
    /// Every pair whose key begins with `prefix`, as of one moment.
    fn scan(&self, prefix: &[u8]) -> LocalFuture<'_, Result<Pairs, MetaError>>;
    /// Applies the batch; it is durable when this succeeds, and wholly there or wholly absent after a crash.
    fn commit(&self, batch: Batch) -> LocalFuture<'_, Result<(), MetaError>>;
}
