//! The contract.

use drover_base::LocalFuture;

/// When a key was last written: the number of the transaction. Transactions are numbered upwards from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Vec<u8>,
    pub version: Version,
}

/// Changes that are applied together, if every expectation holds, or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// Keys and the version each must have; `None`: it must not exist.
    pub expect: Vec<(String, Option<Version>)>,
    /// Keys are distinct among `puts` and `deletes`.
    pub puts: Vec<(String, Vec<u8>)>,
    pub deletes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Durable; what was put has this version.
    Committed(Version),
    /// Nothing was changed; this key was not as expected.
    Conflict(String),
}

/// The store failed. Whether a transaction was applied is then unknown: read again before relying on anything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    #[error("the control plane's store failed: {0}")]
    Backend(String),
    #[error("the value stored under {0:?} is not one of this store's")]
    Corrupt(String),
}

/// An ordered map of texts to bytes.
///
/// - A committed transaction is durable, whole, and seen by every read that begins after it was answered.
/// - Of a transaction that was not answered, all or nothing was applied.
/// - A dropped future does not undo its request.
pub trait MetaStore {
    fn get(&self, key: &str) -> LocalFuture<'_, Result<Option<Entry>, MetaError>>;
    /// Every entry whose key begins with `prefix`, in the order of the keys, as of one moment.
    fn scan(&self, prefix: &str) -> LocalFuture<'_, Result<Vec<Entry>, MetaError>>;
    fn commit(&self, transaction: Transaction) -> LocalFuture<'_, Result<Outcome, MetaError>>;
}
