//! Words, units, limits and the world: what every crate of the engine agrees on.
//!
//! Nothing here performs I/O. [`world`] holds the traits through which the deciding code sees time,
//! chance, the network and tasks, so that the same code runs in production and in the simulator.

pub mod block_set;
pub mod error;
pub mod ids;
pub mod limits;
pub mod planted;
pub mod text;
pub mod time;
pub mod units;
pub mod world;

pub use block_set::{BlockSet, RegionMasks};
pub use error::IoError;
pub use ids::{Epoch, Generation, InstanceId, LayerId, MigrationId, NodeId, OperationId, SessionId, VolumeId};
pub use time::Instant;
pub use units::{BlockMask, ByteRange, ExtentIndex, RegionIndex};
pub use world::{LocalFuture, World};
