//! What the control plane stores: one JSON value a key.
//!
//! ```text
//!  format                         the version of all this
//!  node/<name>                    NodeRecord
//!  cordon/<name>                  CordonRecord
//!  drain/<name>                   DrainRecord
//!  volume/<volume>                VolumeRecord       name/<name> → id: a name is taken once
//!  tenant/<name>                  TenantRecord
//!  lease/<volume>                 LeaseRecord
//!  migration/<migration>          MigrationRecord
//!  export/<node>/<name>           ExportRecord
//!  event/<id, 16 hex digits>      Event
//!  idempotency/<key>              IdempotencyRecord
//!  data-map                       u64: its version
//!  link/<node>/<node>             LinkRecord
//!  group/<operation>              GroupRecord
//!  schedule/<volume>              ScheduleRecord
//! ```

use crate::{
    ApiError, DEFAULT_TENANT, DrainState, Keep, MigrationOptions, MigrationPlan, Phase, Quota, Receipt, VolumeLimits,
    VolumeState,
};
use drover_base::{Epoch, Generation, InstanceId, MigrationId, NodeId, OperationId, VolumeId};
use serde::{Deserialize, Serialize};

/// The version of the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// The first.
    V1,
}

/// A node as it last registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub node: NodeId,
    pub instance: InstanceId,
    pub admin: String,
    pub peer: String,
    pub migration: String,
    pub nbd_unix: Option<String>,
    pub nbd_tcp: Option<String>,
}

/// The node takes nothing new. It outlives what the node registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CordonRecord {
    pub node: NodeId,
    pub reason: Option<String>,
    pub since_ms: u64,
}

/// The emptying of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainRecord {
    pub node: NodeId,
    pub state: DrainState,
    /// Empty: any.
    pub to: Vec<NodeId>,
    pub parallel: u32,
    pub throttle_bytes_per_s: Option<u64>,
    /// By the wall clock.
    pub deadline_at_ms: Option<u64>,
    pub started_ms: u64,
    pub ended_ms: Option<u64>,
    pub volumes_moved: u64,
    /// Of volumes that are moving, or could not be moved; by volume.
    pub moves: Vec<MoveRecord>,
}

impl DrainRecord {
    /// What was tried with the volume; nothing yet, where it was not known.
    pub fn tried(&mut self, volume: VolumeId) -> &mut MoveRecord {
        let index = self.moves.binary_search_by_key(&volume, |tried| tried.volume).unwrap_or_else(|index| {
            let (migration, problem) = (None, None);
            let new = MoveRecord {
                volume,
                migration,
                failures: 0,
                problem,
                unplaced: false,
                not_before_ms: 0,
                given_up: false,
            };
            self.moves.insert(index, new);
            index
        });
        &mut self.moves[index]
    }
}

/// What a drain has tried with a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRecord {
    pub volume: VolumeId,
    /// Under way, as last seen.
    pub migration: Option<MigrationId>,
    pub failures: u32,
    /// Why the last one failed, or could not begin.
    pub problem: Option<ApiError>,
    /// It could not begin: no node would take it.
    pub unplaced: bool,
    /// When it is tried again, by the wall clock.
    pub not_before_ms: u64,
    /// It is not tried again before somebody asks.
    pub given_up: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    pub volume: VolumeId,
    pub name: String,
    pub size_bytes: u64,
    pub state: VolumeState,
    pub created_ms: u64,
    /// It is to become that large; its holder is asked until it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resize_to: Option<u64>,
    #[serde(default = "default_tenant")]
    pub tenant: String,
    #[serde(default)]
    pub limits: LimitsRecord,
    /// What it was made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<OriginRecord>,
}

fn default_tenant() -> String {
    DEFAULT_TENANT.into()
}

/// A volume's limits, as its holder is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsRecord {
    /// Grows with each change.
    pub revision: u64,
    pub limits: VolumeLimits,
}

/// A tenant whose quotas were set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantRecord {
    pub tenant: String,
    pub quota: Quota,
}

/// The snapshot that a clone was made of; either may be gone since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginRecord {
    pub volume: VolumeId,
    pub volume_name: String,
    pub snapshot: String,
}

/// When a volume gets snapshots, and which of them stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleRecord {
    pub volume: VolumeId,
    pub every_s: u64,
    pub at_s: u64,
    pub keep: Vec<Keep>,
    /// The last moment that was dealt with, seconds since 1970.
    pub last_s: u64,
    /// What is being taken.
    pub due: Option<DueRecord>,
    /// What it has taken and not taken away.
    pub made: Vec<MadeRecord>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DueRecord {
    pub operation: OperationId,
    pub epoch: Epoch,
    pub at_s: u64,
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeRecord {
    pub at_s: u64,
    pub name: String,
}

/// A snapshot of several volumes that is being taken. It is recorded until all have it; found later, it is undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    pub hold: OperationId,
    pub name: String,
    pub volumes: Vec<VolumeId>,
}

impl VolumeRecord {
    /// Its node has yet to do what is recorded.
    pub fn is_unsettled(&self) -> bool {
        self.state != VolumeState::Ready || self.resize_to.is_some()
    }
}

/// Who may apply a volume's writes. (epoch, revision) grows with every change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    pub volume: VolumeId,
    pub epoch: Epoch,
    pub revision: u64,
    pub holder: NodeId,
    pub ttl_ms: Option<u64>,
    pub leg: Option<LegRecord>,
}

/// The unfinished migration of a lease; `other` is the side that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegRecord {
    pub migration: MigrationId,
    pub generation: Generation,
    pub other: NodeId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportRecord {
    pub node: NodeId,
    pub name: String,
    pub volume: VolumeId,
    pub workload: Option<String>,
}

/// What was measured between two nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkRecord {
    /// The most that a migration got there; `None`: none was large enough to tell, or went as fast as it could.
    pub bytes_per_s: Option<u64>,
    /// Of the last migration.
    pub pause_ms: u64,
}

/// What a node is asked under an id of its own, and the epoch in which it was asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingOperation {
    pub operation: OperationId,
    pub epoch: Epoch,
}

/// The answer to a request that must not be carried out twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdempotencyRecord {
    /// What was asked: method, path, body.
    pub fingerprint: String,
    pub expires_ms: u64,
    /// The id of what it made; the answer is that resource.
    pub made: String,
    /// It was begun, and whether the node has done it is unknown: it is asked again under the same id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<PendingOperation>,
}

/// Where a migration stands; [`Phase`] with what the executor needs to know beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    Planned,
    Tracking,
    Copying,
    Converging,
    Mirroring,
    /// The lease may still be at the source only.
    Flipping,
    /// The lease is at the destination.
    Settling,
    Committed,
    /// After the flip: the lease is to go back to the source by another flip.
    FlippingBack,
    /// The lease is at the source again; it has to serve before the destination is let go.
    Returning,
    /// The lease is at the source for good; both sides are being told.
    CleaningUp,
    RolledBack,
    Failed,
}

impl Stage {
    pub fn phase(self) -> Phase {
        match self {
            Self::Planned => Phase::Planned,
            Self::Tracking => Phase::Tracking,
            Self::Copying => Phase::Copying,
            Self::Converging => Phase::Converging,
            Self::Mirroring => Phase::Mirroring,
            Self::Flipping => Phase::Flipping,
            Self::Settling => Phase::Settling,
            Self::Committed => Phase::Committed,
            Self::FlippingBack | Self::Returning | Self::CleaningUp => Phase::RollingBack,
            Self::RolledBack => Phase::RolledBack,
            Self::Failed => Phase::Failed,
        }
    }
    pub fn is_final(self) -> bool {
        self.phase().is_final()
    }
    /// Whether the lease has not left the source yet.
    pub fn is_before_flip(self) -> bool {
        matches!(
            self,
            Self::Planned | Self::Tracking | Self::Copying | Self::Converging | Self::Mirroring | Self::Flipping
        )
    }
}

/// Something a node has yet to be told about a migration that is over or ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleanup {
    pub node: NodeId,
    pub task: CleanupTask,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CleanupTask {
    /// An attempt at a flip was under way: go on.
    Resume { attempt: u64 },
    /// Adopt the lease as recorded.
    Grant,
    /// Forget the migration.
    End { drop_volume: bool },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationRecord {
    pub migration: MigrationId,
    pub volume: VolumeId,
    pub volume_name: String,
    pub size_bytes: u64,
    pub source: NodeId,
    pub destination: NodeId,
    pub stage: Stage,
    /// Grows with every start over; reports of an older one change nothing.
    pub generation: Generation,
    pub options: MigrationOptions,
    pub paused: bool,
    pub cutover_requested: bool,
    pub commit_requested: bool,
    /// The source has lost its copy, and people were told: a commit that is asked for later is meant so.
    #[serde(default)]
    pub copy_lost: bool,
    /// Whether the side that does not hold has all that was acknowledged. Meaningful after the flip.
    pub way_back_open: bool,
    /// The last word about the way back: the holder's instance and its count. An older one changes nothing.
    pub way_back_change: Option<(InstanceId, u64)>,
    /// Both sides were proven equal, and have been mirrored since.
    pub proven: bool,
    /// The proof found a difference: nothing is released until someone asks again.
    pub proof_failed: bool,
    /// The last attempt at a flip, and the one under way.
    pub attempts: u64,
    pub attempt: Option<u64>,
    /// When the last attempt began, by the wall clock: measures the pause where the control plane restarted in it.
    pub attempt_began_ms: u64,
    /// The lease moved; how long the pause was is recorded when the new holder answers.
    pub pause_pending: bool,
    /// An attempt that was given up and whose holder has yet to confirm that it goes on.
    pub resume: Option<u64>,
    pub plan: MigrationPlan,
    pub receipt: Receipt,
    /// Figures of generations that ended.
    pub earlier: Sent,
    /// The most that was ever shown as progress, so that it never falls.
    pub shown: Shown,
    /// Clients are slowed to the link.
    #[serde(default)]
    pub slowed: Option<SlowedRecord>,
    pub error: Option<ApiError>,
    pub created_ms: u64,
    pub ended_ms: Option<u64>,
    pub cleanup: Vec<Cleanup>,
}

/// A spell in which a migration slows clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowedRecord {
    pub since_ms: u64,
    /// What they wrote a second before it.
    pub free_bytes_per_s: u64,
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    pub logical_bytes: u64,
    pub wire_bytes: u64,
    #[serde(default)]
    pub deduplicated_bytes: u64,
    pub rounds: u32,
}

impl Sent {
    pub fn add(&mut self, logical_bytes: u64, wire_bytes: u64, deduplicated_bytes: u64, rounds: u32) {
        self.logical_bytes += logical_bytes;
        self.wire_bytes += wire_bytes;
        self.deduplicated_bytes += deduplicated_bytes;
        self.rounds += rounds;
    }
}

impl Receipt {
    pub fn take_sent(&mut self, sent: Sent) {
        self.logical_bytes = sent.logical_bytes;
        self.wire_bytes = sent.wire_bytes;
        self.deduplicated_bytes = sent.deduplicated_bytes;
        self.rounds = sent.rounds;
    }
}

/// What a migration has shown as its progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    pub bytes_total: u64,
    pub bytes_done: u64,
    pub permille: u32,
}

impl MigrationRecord {
    pub fn phase(&self) -> Phase {
        self.stage.phase()
    }

    /// The side that holds the lease, and the other.
    pub fn sides(&self) -> (&NodeId, &NodeId) {
        match self.stage {
            Stage::Settling | Stage::FlippingBack | Stage::Committed => (&self.destination, &self.source),
            _ => (&self.source, &self.destination),
        }
    }
}
