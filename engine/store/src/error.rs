//! The error of an operation on volumes other than I/O.

use crate::meta::MetaError;
use drover_base::{IoError, VolumeId};

/// Why a volume could not be opened, made, changed or deleted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("{volume} is not here")]
    NoVolume { volume: VolumeId },
    #[error("{volume} belongs to another shard")]
    OtherShard { volume: VolumeId },
    #[error("{volume} exists with another name or size")]
    VolumeExists { volume: VolumeId },
    #[error("the volume has no snapshot named {name:?}")]
    NoSnapshot { name: String },
    #[error("the volume has a snapshot named {name:?}")]
    SnapshotExists { name: String },
    #[error("{name:?} is not 1 to {most} of a-z 0-9 - ., ending in a letter or digit", most = crate::NAME_BYTES_MAX)]
    BadName { name: String },
    #[error("{size_bytes} is not a volume's size: a multiple of 4096, above 0, at most {most}",
        most = drover_base::limits::VOLUME_BYTES_MAX)]
    BadSize { size_bytes: u64 },
    #[error("the volume has {has_bytes} bytes, {size_bytes} are fewer: it can only grow")]
    Shrinks { size_bytes: u64, has_bytes: u64 },
    #[error("the volume has {most} snapshots, the most it may have", most = drover_base::limits::SNAPSHOTS_MAX)]
    TooManySnapshots,
    /// Wait until all of it is here.
    #[error("{bytes} bytes of the volume are still at the node that it moved away from")]
    Remote { bytes: u64 },
    /// Retry after reopening.
    #[error("the volume is poisoned by a failed sync or metadata; reopen it")]
    Poisoned,
    #[error("stored metadata is damaged: {what}")]
    Corrupt { what: String },
    #[error("stored metadata was written by a newer version: {what}")]
    Newer { what: String },
    #[error("the devices do not match the tiers: {what}")]
    Devices { what: String },
    #[error("the checkpoint could not be used: {what}")]
    Checkpoint { what: String },
    #[error(transparent)]
    Meta(#[from] MetaError),
    #[error(transparent)]
    Io(#[from] IoError),
}
