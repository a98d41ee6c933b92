//! The deterministic world: everything that a cluster needs to run on one thread from one seed.
//!
//! - [`runtime`]: virtual time, a seeded scheduler, processes that can be killed or paused, and a
//!   network that can be cut; implements the traits of `drover_base::world`.
//! - [`checker`]: what a read of a volume may return, judged by what its clients were told.
//! - [`model`]: the durability and lease protocol: its rules, and a search of all its states.
//! - `storage` (feature `storage`): devices and metadata that outlive a node's process.
//!
//! `tests/cluster` puts the real nodes and control plane into it, with a client and faults by chance;
//! `scripts/sim.sh SEED` runs one of its seeds again.

pub mod checker;
pub mod model;
pub mod runtime;
#[cfg(feature = "storage")]
pub mod storage;
