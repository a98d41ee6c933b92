//! One node's volumes: sparse maps of 64 KiB extents in layers, slots on tiers, snapshots, an activity log,
//! and the orders of sync and commit that make what was flushed survive a crash.
//!
//! Where to begin: [`Store`] opens a shard's [`Volume`]s; `volume/` has the way of a request, `flush.rs` the
//! way to durability, `snapshot.rs` and `merge.rs` the changes of layers, `record.rs` what is stored.
//! Nothing here performs I/O but through [`drover_disk::Device`], [`meta::Meta`] and [`drover_base::World`].

mod activity;
mod admission;
pub mod checkpoint;
mod chunks;
mod discard;
mod entry;
mod env;
mod error;
mod family;
mod flush;
pub mod fsck;
mod health;
pub mod hostile;
mod inflight;
mod layer;
mod locks;
mod map;
mod merge;
pub mod meta;
mod outcome;
mod promises;
mod record;
mod recovery;
mod room;
mod slots;
mod snapshot;
mod stack;
mod store;
mod tap;
#[cfg(test)]
mod testing;
mod tree;
mod volume;

pub use activity::ActivityPin;
pub use chunks::{ChunkScope, NAMED_BYTES_MIN, chunk_digest, chunk_proof, cut, is_zero, next_stretch};
pub use discard::DiscardPace;
pub use entry::SlotAddress;
pub use error::StoreError;
pub use locks::{LockGuard, LockTicket};
pub use merge::{MergeLeft, Merged};
pub use slots::{SpaceLevel, TierClass, TierSpec, TierUsage, Tiers};
pub use store::{Store, StoreConfig, home_shard};
pub use tap::{Fence, Tap, TapChange, Unfenced};
pub use volume::{
    Access, Admitted, BlockStatus, ExtentContent, ExtentDigests, FrozenLayer, LayerMasks, Origin, Quiesced,
    SnapshotInfo, Volume, VolumeUsage, ZeroMode, zero_block_digest,
};

/// Longest name of a volume or snapshot.
pub const NAME_BYTES_MAX: usize = 63;
/// Names of snapshots that nobody made begin so: bases of migrations, and layers that others stand on.
pub const RESERVED_NAMES: &str = "drover-";
