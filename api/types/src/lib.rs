//! What the REST interface says, and what the control plane remembers.
//!
//! The modules named after resources hold the types of the interface; [`record`] holds what the control plane stores.
//! Ids are text here (`vol-…`, `mig-…`): a 64-bit number does not survive every JSON reader.

pub mod drain;
pub mod error;
pub mod event;
pub mod lease;
pub mod migration;
pub mod node;
pub mod page;
pub mod record;
pub mod schedule;
pub mod tenant;
pub mod volume;

pub use drain::{Drain, DrainMove, DrainNode, DrainState, DrainWaiting};
pub use error::{ApiError, ErrorCode};
pub use event::{Event, Severity};
pub use lease::{DataMap, DataPlace, Lease};
pub use migration::{
    Action, CommitPolicy, Cutover, Migration, MigrationOptions, MigrationPlan, Phase, PlanRequest, ProofResult,
    RateSource, Receipt, Slowed, StartMigration, TuneMigration, Warning, WayBack, Window,
};
pub use node::{Cordon, CordonNode, Health, Node, Tier};
pub use page::Page;
pub use schedule::{Keep, Schedule, VolumeSchedule, utc};
pub use tenant::{ChangeTenant, DEFAULT_TENANT, Quota, Tenant};
pub use volume::{
    ChangeVolume, CloneVolume, CreateExport, CreateGroupSnapshot, CreateSnapshot, CreateVolume, Export, GroupSnapshot,
    Merge, Origin, Snapshot, Volume, VolumeLimits, VolumeRole, VolumeState, WorkloadUsage,
};
