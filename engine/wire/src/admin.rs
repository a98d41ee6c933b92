//! What the control plane asks of a node, and what a node tells the control plane.
//!
//! Each is a request with one reply over [`crate::rpc`]. Every request that changes something is idempotent under
//! (migration, generation, epoch): sent twice, it changes nothing the second time and answers the same. A request of
//! an older generation or epoch is refused and changes nothing.

use crate::rpc::Reply;
use drover_base::{Epoch, Generation, InstanceId, IoError, MigrationId, NodeId, OperationId, VolumeId};
use serde::{Deserialize, Serialize};

/// Where a node is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddress {
    pub node: NodeId,
    /// Peer connections of gateways.
    pub peer: String,
    /// Peer connections of migrations; equal to `peer` where no own address was given.
    pub migration: String,
}

/// The two sides of a migration as a holder sees them after the flip.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leg {
    pub migration: MigrationId,
    pub generation: Generation,
    /// Who mirrors to (holder) or from (the other) whom.
    pub other: NodeAddress,
    /// Whether the other side is known to have all that the holder acknowledged.
    pub way_back_open: bool,
}

/// What a volume's clients together may use of it a second. By default: as much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoLimits {
    /// Grows with each change: what is older changes nothing.
    pub revision: u64,
    /// Reads, writes, trims and zeroings; `None`: no limit.
    pub iops: Option<u64>,
    /// Read and written; `None`: no limit.
    pub bytes_per_s: Option<u64>,
    /// What was not used is kept for so long, and may then be used at once.
    pub burst_ms: u64,
}

/// Who may apply a volume's writes, as the control plane has recorded it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub volume: VolumeId,
    pub epoch: Epoch,
    /// Grows with each change within the epoch (of `ttl_ms`, `leg`): what is older by (epoch, revision) changes nothing,
    /// so a delayed copy of an earlier grant does no harm.
    pub revision: u64,
    pub holder: NodeAddress,
    /// Time to live in milliseconds of a timed lease, which lives by renewals; `None`: no limit.
    pub ttl_ms: Option<u64>,
    /// The unfinished migration both sides take part in.
    pub leg: Option<Leg>,
    /// With a revision of their own: they change without the lease.
    pub limits: IoLimits,
}

/// How a migration's data is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendOptions {
    /// Bytes a second on the wire; `None`: as fast as it goes.
    pub throttle_bytes_per_s: Option<u64>,
    /// Begin mirroring without waiting for the rounds to shrink.
    pub mirror_at_once: bool,
    /// Send what is accessed most first, and let the other side know of all else: it may flip before that has arrived.
    pub hot_first: bool,
    /// Name chunks that the other side has already instead of sending them.
    pub dedup: bool,
}

/// How far a holder has got with bringing what its flip did not wait for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullProgress {
    /// Blocks that are at the other side only.
    pub remote_bytes: u64,
    /// Brought, as they are stored and as they travelled.
    pub pulled_bytes: u64,
    pub pulled_wire_bytes: u64,
    /// Pulls that began because a client waited.
    pub demand_pulls: u64,
    /// Requests of clients that wait now, and those that failed at their deadline.
    pub demand_waits: u64,
    pub demand_failures: u64,
    /// Blocks that clients accessed in the first 60 s, of which they had to wait for the second.
    pub local_blocks_60s: u64,
    pub remote_blocks_60s: u64,
    pub paused: bool,
    /// Of the last failure; none since then if something was brought.
    pub error: Option<String>,
}

impl PullProgress {
    /// Share of the accesses of the first 60 s that were served without waiting, in thousandths; `None`: there were none.
    pub fn local_permille_60s(&self) -> Option<u32> {
        let all = self.local_blocks_60s + self.remote_blocks_60s;
        (self.local_blocks_60s * 1000).checked_div(all).map(|share| share as u32)
    }
}

/// Control plane → node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeRequest {
    Status,
    /// Makes an empty volume whose lease this node holds from the start.
    CreateVolume {
        volume: VolumeId,
        name: String,
        size_bytes: u64,
        epoch: Epoch,
        tenant: String,
    },
    /// What a copy of the volume takes, its snapshots with it: what a migration sends.
    MeasureVolume {
        volume: VolumeId,
    },
    /// Makes a volume that holds what the snapshot of another of this node holds. Its lease this node holds from the
    /// start. Answers `Size`.
    CloneVolume {
        volume: VolumeId,
        name: String,
        origin: VolumeId,
        snapshot: String,
        epoch: Epoch,
    },
    /// Makes the volume larger; nothing to do if it is. Answers `Size`.
    ResizeVolume {
        volume: VolumeId,
        size_bytes: u64,
        epoch: Epoch,
    },
    /// Refused with `Conflict` while a migration runs.
    DeleteVolume {
        volume: VolumeId,
        epoch: Epoch,
    },
    /// Done once under an `operation`, however often it is asked: whoever was not answered asks again.
    CreateSnapshot {
        volume: VolumeId,
        name: String,
        operation: OperationId,
    },
    /// The same. Answers `Size`: the volume is as large again as it was.
    RollbackSnapshot {
        volume: VolumeId,
        name: String,
        operation: OperationId,
    },
    DeleteSnapshot {
        volume: VolumeId,
        name: String,
    },
    /// Admits no client of the volume from now on, until `ReleaseVolume` or until so much time has passed since the
    /// request came. Answers when those that were admitted have ended.
    HoldVolume {
        volume: VolumeId,
        hold: OperationId,
        deadline_ms: u64,
    },
    /// Takes the snapshot of what the volume held when it was held; refused with `Conflict` if the hold is over.
    SnapshotHeld {
        volume: VolumeId,
        name: String,
        hold: OperationId,
    },
    ReleaseVolume {
        volume: VolumeId,
        hold: OperationId,
    },
    /// Deletes the snapshot if it was taken under that hold.
    UndoSnapshot {
        volume: VolumeId,
        name: String,
        hold: OperationId,
    },
    /// Serves the volume under `export.name`, whoever holds it.
    SetExport {
        export: Export,
    },
    RemoveExport {
        name: String,
    },
    /// Opens a poisoned volume again through recovery.
    Reopen {
        volume: VolumeId,
    },
    /// Destination: an empty volume that applies only the migration's stream; its space is reserved.
    PrepareReceive {
        migration: MigrationId,
        generation: Generation,
        volume: VolumeId,
        name: String,
        size_bytes: u64,
        reserve_bytes: u64,
        epoch: Epoch,
        source: NodeAddress,
        tenant: String,
    },
    /// Source: freezes the base snapshot, tracks, copies, then goes through dirty rounds. With `compare`, the
    /// destination may already hold some of it: regions are compared and only what differs travels.
    BeginSend {
        migration: MigrationId,
        generation: Generation,
        volume: VolumeId,
        epoch: Epoch,
        destination: NodeAddress,
        base_snapshot: String,
        options: SendOptions,
        compare: bool,
    },
    /// Source: from now on every write goes to both sides; the lease is timed.
    BeginMirror {
        migration: MigrationId,
        generation: Generation,
        ttl_ms: u64,
    },
    /// Sender: changes the throttle, pauses or resumes background sending.
    Tune {
        migration: MigrationId,
        generation: Generation,
        throttle_bytes_per_s: Option<u64>,
        paused: bool,
    },
    /// Holder: stops admitting, drains, sends its last, waits for the other side's flush. Answers `Drained`.
    /// When that is not reached by the deadline the holder resumes and answers an error.
    Quiesce {
        migration: MigrationId,
        generation: Generation,
        epoch: Epoch,
        /// Which attempt at the flip, growing within the epoch. The same attempt again answers the same `Drained`;
        /// one that was resumed, or is older than the last seen, is refused with `Conflict`.
        attempt: u64,
        deadline_ms: u64,
    },
    /// The other side: has it applied and flushed everything up to `position`? Answers `Done` or `Conflict`.
    ConfirmPosition {
        migration: MigrationId,
        generation: Generation,
        position: Position,
    },
    /// Holder that quiesced: the flip was given up before the lease moved; go on under the same epoch. Ends this
    /// `attempt` and all before it, also where its `Quiesce` arrives later; a newer attempt's quiesce stays.
    ResumeHolder {
        migration: MigrationId,
        generation: Generation,
        epoch: Epoch,
        attempt: u64,
    },
    /// Adopt what is recorded: become holder, become the other side, or just know who holds.
    SetGrant {
        grant: Grant,
    },
    /// Sender: compare every region's digests with the other side. Progress by `Progress`.
    BeginProof {
        migration: MigrationId,
        generation: Generation,
    },
    Progress {
        migration: MigrationId,
    },
    /// The migration is over for this node: forget it, and drop the volume if `drop_volume`.
    EndMigration {
        migration: MigrationId,
        generation: Generation,
        volume: VolumeId,
        epoch: Epoch,
        drop_volume: bool,
    },
}

/// A place in a mirror stream: all requests of the session up to the sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    pub session: u64,
    pub sequence: u64,
}

/// Where clients reach a volume on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    pub name: String,
    pub volume: VolumeId,
    pub size_bytes: u64,
    pub workload: Option<String>,
}

/// Node → control plane, in answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeReply {
    Done,
    Status(Box<NodeStatus>),
    Drained {
        position: Position,
        /// For so long of the request clients were still admitted, milliseconds: the pause began after them.
        admitted_ms: u64,
    },
    Progress(Box<SendProgress>),
    /// Of [`NodeRequest::MeasureVolume`]: extents with data × 64 KiB, blocks with data × 4 KiB, and the volume's size.
    Measured {
        used_bytes: u64,
        valid_bytes: u64,
        size_bytes: u64,
    },
    /// How large the volume is now.
    Size {
        size_bytes: u64,
    },
    Refused(Refusal),
}

/// Why a node did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    #[error("{what} is not on this node")]
    NotFound { what: String },
    #[error("{reason}")]
    Conflict { reason: String },
    #[error("epoch {asked} is not {known}, which this node knows")]
    Epoch { asked: Epoch, known: Epoch },
    #[error("generation {asked:?} is older than {known:?}")]
    Generation { asked: Generation, known: Generation },
    #[error("{needed} bytes are needed, {free} are free")]
    NoSpace { needed: u64, free: u64 },
    #[error("{reason}")]
    Invalid { reason: String },
    #[error("the deadline passed: {reason}")]
    Deadline { reason: String },
    #[error("{0}")]
    Io(IoError),
    #[error("{reason}")]
    Failed { reason: String },
    #[error("it has no tiers: it is a gateway")]
    NoTiers,
    /// Another process is the node of that name, and alive.
    #[error("{node} is up at {admin} as {instance}: two nodes cannot have one name")]
    Taken { node: NodeId, admin: String, instance: InstanceId },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub node: NodeId,
    pub instance: InstanceId,
    pub tiers: Vec<TierStatus>,
    pub volumes: Vec<VolumeStatus>,
    pub exports: Vec<Export>,
    pub usage: Vec<WorkloadUsage>,
}

/// What the clients of an export that are one workload were served since this instance of the node began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadUsage {
    pub export: String,
    pub volume: VolumeId,
    /// As the connection or the export names it; `None`: neither does.
    pub workload: Option<String>,
    /// Open now.
    pub connections: u64,
    pub read_requests: u64,
    pub read_bytes: u64,
    /// Of data and of zeroes.
    pub write_requests: u64,
    pub written_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierStatus {
    pub name: String,
    /// `nvme`, `ssd` or `hdd`.
    pub class: String,
    pub total_bytes: u64,
    pub used_bytes: u64,
    /// Freed but not reused before the next checkpoint of the maps.
    pub held_bytes: u64,
    pub reserved_bytes: u64,
    pub poisoned: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    pub volume: VolumeId,
    pub name: String,
    pub size_bytes: u64,
    pub used_bytes: u64,
    pub valid_bytes: u64,
    /// Of what is used, what other volumes use, too: clones.
    pub shared_bytes: u64,
    /// Blocks that are at the node it moved from only.
    pub remote_bytes: u64,
    pub epoch: Epoch,
    pub role: Role,
    pub poisoned: bool,
    pub snapshots: Vec<SnapshotStatus>,
    /// Deleted snapshots whose space is yet to come back; `None`: none.
    pub merge: Option<MergeStatus>,
    /// Client bytes since this instance began.
    pub read_bytes: u64,
    pub written_bytes: u64,
    /// The limits that this node knows.
    pub limits: IoLimits,
    /// What they made clients wait since this instance began: requests, and the sum of their waits.
    pub limited_requests: u64,
    pub limited_us: u64,
    /// Of its regions with data, those whose chunks are indexed: a volume that moves here need not bring them.
    pub indexed_bytes: u64,
}

/// What a node is to a volume it stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// It may apply clients' writes.
    Holder,
    /// It applies only the stream of a migration.
    Mirror,
    /// It stores the volume but does neither: its lease moved away or was not renewed.
    Fenced,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotStatus {
    pub name: String,
    pub created_ms: u64,
    pub used_bytes: u64,
}

/// What deleted snapshots still hold, which merges into what stands on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergeStatus {
    pub layers: u64,
    pub left_bytes: u64,
}

/// What a sender does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SendPhase {
    /// Not connected to the other side (yet, or again).
    Connecting,
    /// Comparing digests of regions that the other side may have.
    Comparing,
    Copying,
    Converging,
    /// Every write goes to both sides; what was left is still being sent.
    Mirroring,
    /// Every write goes to both sides and all else has arrived and is durable there.
    Synced,
    /// Stopped admitting, drained, and the other side confirmed.
    Drained,
    Proving,
    /// All digests were equal, and nothing is stored here that the other side has as a hole.
    Proven,
    /// Cannot go on; see `error`.
    Failed,
}

/// How far a sender is. Cumulative figures only grow within a generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendProgress {
    pub migration: MigrationId,
    pub generation: Generation,
    pub phase: SendPhase,
    pub paused: bool,
    /// Bytes of blocks to send at the start, and those of them that were sent or found equal.
    pub total_bytes: u64,
    pub done_bytes: u64,
    /// Snapshots that travel with the volume.
    pub snapshots: u64,
    /// Bytes of blocks that still differ or are not yet durable at the other side.
    pub dirty_bytes: u64,
    /// Bytes of blocks that stay behind if the volume flips now, as the other side knows.
    pub remote_bytes: u64,
    /// Of a sender that goes hot first: share of the accesses, by their decayed counts, whose blocks the other side has, in
    /// thousandths. Where hardly any were counted: share of the bytes.
    pub coverage_permille: Option<u32>,
    /// Bytes of blocks sent, resends included, before and after compression, heads of frames included in `wire_bytes`.
    pub logical_bytes: u64,
    pub wire_bytes: u64,
    /// Of `logical_bytes`: what the other side had already and was only named.
    pub deduplicated_bytes: u64,
    pub rounds: u32,
    /// Rounds stopped shrinking, or one ended with little left: mirroring may begin.
    pub ready_to_mirror: bool,
    /// The link to the other side stands and mirrors (return mirror: the way back is whole).
    pub link_up: bool,
    /// When the other side last confirmed a flush, milliseconds ago; `None`: never.
    pub last_flush_ms_ago: Option<u64>,
    /// Client writes a second since the migration began, bytes.
    pub client_write_bytes_per_s: u64,
    /// The same when they last did not wait for the other side.
    pub free_write_bytes_per_s: u64,
    /// In the last second there always was a mirrored write that the other side had not answered.
    pub writes_wait: bool,
    pub proof: Option<Proof>,
    /// Of a holder after a hot-first flip.
    pub pull: Option<PullProgress>,
    pub error: Option<String>,
}

impl SendProgress {
    /// Bytes of blocks that have moved so far: sent, or fetched after a hot-first flip.
    pub fn moved_bytes(&self) -> u64 {
        self.logical_bytes + self.pull.as_ref().map_or(0, |pull| pull.pulled_bytes)
    }
}

/// What comparing both sides has shown so far: regions of the volume, and of each of its snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    pub regions_total: u64,
    pub regions_equal: u64,
    pub regions_different: u64,
    /// Regions where the holder has more allocated than the other side: thin became thick.
    pub regions_thicker: u64,
}

/// Node → control plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlRequest {
    /// First, after every start and every loss of the connection.
    Register {
        node: NodeRegistration,
    },
    /// Every third of the shortest time to live, and at least every few seconds.
    Renew {
        node: NodeId,
        instance: InstanceId,
        leases: Vec<(VolumeId, Epoch)>,
    },
    /// Who holds this volume?
    Lookup {
        volume: VolumeId,
    },
    /// The holder wants to acknowledge writes the other side lacks: record durably that the way back is closed.
    ///
    /// `change` counts these and the next kind of request within the holder's instance: a copy that arrives late, with
    /// another instance than the registered one or a `change` below the last seen, is refused and changes nothing. Else
    /// a delayed *open* could undo the *close* on which acknowledged writes rely.
    CloseWayBack {
        volume: VolumeId,
        migration: MigrationId,
        epoch: Epoch,
        instance: InstanceId,
        change: u64,
    },
    /// The other side has everything again, durably.
    OpenWayBack {
        volume: VolumeId,
        migration: MigrationId,
        epoch: Epoch,
        instance: InstanceId,
        change: u64,
    },
    Event {
        node: NodeId,
        kind: String,
        volume: Option<VolumeId>,
        text: String,
    },
}

impl ControlRequest {
    /// Who asks, where the request says so.
    pub fn asker(&self) -> Option<&NodeId> {
        match self {
            Self::Register { node } => Some(&node.address.node),
            Self::Renew { node, .. } | Self::Event { node, .. } => Some(node),
            Self::Lookup { .. } | Self::CloseWayBack { .. } | Self::OpenWayBack { .. } => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRegistration {
    pub address: NodeAddress,
    pub admin: String,
    pub instance: InstanceId,
    /// Where clients reach its exports: unix socket path, TCP address.
    pub nbd_unix: Option<String>,
    /// `tls:` before it: by TLS only.
    pub nbd_tcp: Option<String>,
}

/// Control plane → node, in answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlReply {
    Done,
    /// Grants of every volume the node has to do with; those it stores but the control plane does not know are not named.
    Registered {
        grants: Vec<Grant>,
    },
    /// Volumes whose lease was renewed; the others were not: their grant as recorded now.
    Renewed {
        renewed: Vec<VolumeId>,
        changed: Vec<Grant>,
    },
    Grant(Box<Grant>),
    Refused(Refusal),
}

impl Reply for NodeReply {
    fn too_long(bytes: usize) -> Self {
        Self::Refused(too_long(bytes))
    }
}

impl Reply for ControlReply {
    fn too_long(bytes: usize) -> Self {
        Self::Refused(too_long(bytes))
    }
}

fn too_long(bytes: usize) -> Refusal {
    Refusal::Failed { reason: format!("the answer has {bytes} bytes, more than a message carries") }
}
