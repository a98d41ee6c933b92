//! Where the control plane's state lives: a small ordered map with versions and conditional transactions.
//!
//! [`RocksMetaStore`] is the embedded default, [`MemoryMetaStore`] the simulator's. Both pass the one body of tests in
//! `tests/contract.rs`.

mod memory;
mod rocks;
mod store;

pub use memory::{MemoryDisk, MemoryMetaStore};
pub use rocks::RocksMetaStore;
pub use store::{Entry, MetaError, MetaStore, Outcome, Transaction, Version};
