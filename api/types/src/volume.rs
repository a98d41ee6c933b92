//! Volumes, their snapshots, and where clients reach them.

use crate::ApiError;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// Recorded, not yet on its node. It is tried until it succeeds or is refused.
    Creating,
    Ready,
    /// To be removed from its node; it is tried until it succeeds.
    Deleting,
}

/// What the holder says it is to the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeRole {
    Holder,
    Mirror,
    Fenced,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    pub id: String,
    pub name: String,
    pub size_bytes: u64,
    pub state: VolumeState,
    /// The node that may apply its writes.
    pub holder: String,
    pub epoch: u64,
    pub created_ms: u64,
    /// Slots times 64 KiB, as the holder last reported; absent before its first report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// Blocks that hold data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_bytes: Option<u64>,
    /// Of what is used, what clones of it or the volume it is a clone of use, too: it stays when this one goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_bytes: Option<u64>,
    /// Blocks that the holder has yet to fetch from the node that the volume moved from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_bytes: Option<u64>,
    /// What it is a clone of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<VolumeRole>,
    /// A sync failed: every I/O fails until it is reopened.
    #[serde(default)]
    pub poisoned: bool,
    /// Age of the reported figures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_ms_ago: Option<u64>,
    /// Bytes a second that clients wrote between the last two reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_bytes_per_s: Option<u64>,
    /// The unfinished migration it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<String>,
    /// Deleted snapshots whose space is yet to come back; absent where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge: Option<Merge>,
    /// Whose it is; it stays that for life.
    pub tenant: String,
    /// What its clients together may use a second.
    pub limits: VolumeLimits,
    /// Requests that had to wait for the limits, and the sum of their waits, milliseconds, since its holder's start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limited_requests: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limited_ms: Option<u64>,
    /// Regions of 4 MiB with data whose content its node can find by digest: a volume of the tenant that moves there need not
    /// bring it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub indexed_bytes: Option<u64>,
}

/// What a volume's clients together, wherever they are attached, may use of it a second; absent: as much as there is.
/// What exceeds it waits. Migrations do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VolumeLimits {
    /// Requests that read, write, trim or write zeroes.
    #[schema(minimum = 100, maximum = 100_000_000)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops: Option<u64>,
    /// Bytes read and written.
    #[schema(minimum = 1_048_576, maximum = 1_099_511_627_776_u64)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_s: Option<u64>,
    /// For how long what is not used is saved, to be used at once later; 1,000 where absent.
    #[schema(maximum = 3_600_000)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst_ms: Option<u64>,
}

impl VolumeLimits {
    pub fn check(&self) -> Result<(), ApiError> {
        if self.iops.is_some_and(|iops| !(100..=100_000_000).contains(&iops)) {
            return Err(ApiError::invalid("limits.iops", "a limit is 100 to 100,000,000 requests a second"));
        }
        if self.bytes_per_s.is_some_and(|bytes| !(1 << 20..=1 << 40).contains(&bytes)) {
            return Err(ApiError::invalid("limits.bytes_per_s", "a limit is 1 MiB to 1 TiB a second"));
        }
        if self.burst_ms.is_some_and(|burst| burst > 3_600_000) {
            return Err(ApiError::invalid("limits.burst_ms", "a burst is of at most one hour"));
        }
        if self.burst_ms.is_some() && self.iops.is_none() && self.bytes_per_s.is_none() {
            return Err(ApiError::invalid("limits.burst_ms", "a burst goes with a limit"));
        }
        Ok(())
    }
}

/// What deleted snapshots still hold. It merges in the background into what stands on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Merge {
    /// How many of them.
    pub snapshots: u64,
    /// Slots times 64 KiB.
    pub bytes_left: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// 1 to 63 of `a-z 0-9 - .`, beginning and ending with a letter or digit, and not of the form of an id.
    #[schema(min_length = 1, max_length = 63, pattern = "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
    pub name: String,
    /// A multiple of 4,096, at most 64 TiB.
    #[schema(minimum = 4096, maximum = 70_368_744_177_664_u64, multiple_of = 4096)]
    pub size_bytes: u64,
    pub node: String,
    /// Whose it is to be, for life; as a volume's name. `default` where none is given.
    #[schema(min_length = 1, max_length = 63, pattern = "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
}

/// The snapshot that a clone was made of; either may be gone since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Origin {
    pub volume: String,
    pub volume_name: String,
    pub snapshot: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CloneVolume {
    /// As a volume's name.
    #[schema(min_length = 1, max_length = 63, pattern = "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
    pub name: String,
}

/// Snapshots of several volumes at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateGroupSnapshot {
    /// Each of them gets this name.
    #[schema(min_length = 1, max_length = 63, pattern = "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
    pub name: String,
    /// Ids or names, 1 to 64.
    #[schema(min_items = 1, max_items = 64)]
    pub volumes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupSnapshot {
    pub name: String,
    /// In the order in which the volumes were named.
    pub snapshots: Vec<Snapshot>,
}

/// What is to be another of a volume; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeVolume {
    /// Larger than now; a multiple of 4,096, at most 64 TiB.
    #[schema(minimum = 4096, maximum = 70_368_744_177_664_u64, multiple_of = 4096)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// In the place of those it has, at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<VolumeLimits>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    pub volume: String,
    pub name: String,
    pub created_ms: u64,
    pub used_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// As a volume's name; those that begin with `drover-` are the migrations'.
    #[schema(min_length = 1, max_length = 63, pattern = "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
    pub name: String,
}

/// A volume under a name on a node, whichever node holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Export {
    pub node: String,
    pub name: String,
    pub volume: String,
    pub volume_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// NBD URIs of it.
    pub uris: Vec<String>,
    /// What its clients were served, by workload, as its node last reported; since that start of the node.
    pub usage: Vec<WorkloadUsage>,
}

/// What the clients of an export that are one workload were served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkloadUsage {
    /// As the connection or the export names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Open connections.
    pub connections: u64,
    pub read_requests: u64,
    pub read_bytes: u64,
    /// Writes of data and of zeroes.
    pub write_requests: u64,
    pub written_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateExport {
    /// Id or name.
    pub volume: String,
    pub node: String,
    /// As a volume's name; the volume's own where none is given.
    #[schema(min_length = 1, max_length = 63, pattern = "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
    #[serde(default)]
    pub name: Option<String>,
    /// What uses it, for accounting.
    #[schema(min_length = 1, max_length = 128)]
    #[serde(default)]
    pub workload: Option<String>,
}
