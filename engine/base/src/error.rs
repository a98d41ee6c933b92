//! The error of an I/O, as clients of a volume see it.

use crate::{Epoch, NodeId};
use serde::{Deserialize, Serialize};

/// Why a request to a volume was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum IoError {
    #[error("the range {offset}+{len} passes the volume's end at {size}")]
    OutOfRange { offset: u64, len: u64, size: u64 },
    #[error("a request of {len} bytes is larger than the limit of {most}")]
    TooLarge { len: u64, most: u64 },
    #[error("no tier has a free slot")]
    NoSpace,
    #[error("the volume is poisoned by a failed sync or device; reopen it")]
    Poisoned,
    #[error("a device failed the request")]
    Device,
    #[error("stored data or metadata does not match its checksum")]
    Corrupt,
    #[error("writing zeroes here would not be fast")]
    NotFast,
    /// This node may not apply or acknowledge now: its lease ran out or moved.
    #[error("the lease of epoch {epoch} is not held here now")]
    Fenced { epoch: Epoch },
    /// The lease is elsewhere. `flushed`: all that was acknowledged before is durable there.
    #[error("the volume moved to {holder} under epoch {epoch}")]
    Moved { epoch: Epoch, holder: NodeId, flushed: bool },
    #[error("the volume is not on this node")]
    NotHere,
    #[error("the request waited past its deadline")]
    TimedOut,
    #[error("the connection to the node that holds the volume broke")]
    Disconnected,
    /// This node was away for too long after the holder had restarted, and others went on.
    #[error("writes that were acknowledged are lost; what was read before may be wrong: connect again")]
    WritesLost,
    /// Served again as soon as that node is reached; the rest of the volume is served all the while.
    #[error("data of this range is still at the node that the volume moved away from, and that node is not reached")]
    Remote,
}

/// What a caller can do about an [`IoError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Find the holder again and send the request again.
    Retry,
    /// The request was wrong.
    FixInput,
    /// Reopen the volume through recovery.
    Reopen,
    /// Hand it to the client.
    Report,
}

impl IoError {
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Fenced { .. } | Self::Moved { .. } | Self::NotHere | Self::Disconnected => Remedy::Retry,
            Self::OutOfRange { .. } | Self::TooLarge { .. } | Self::NotFast => Remedy::FixInput,
            Self::Poisoned => Remedy::Reopen,
            Self::NoSpace | Self::Device | Self::Corrupt | Self::TimedOut | Self::WritesLost | Self::Remote => {
                Remedy::Report
            }
        }
    }
}
