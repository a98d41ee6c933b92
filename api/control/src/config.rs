//! Settings and bounds of the control plane.

use drover_base::limits::{LEASE_DRIFT, LEASE_TTL};
use std::time::Duration;

/// What an administrator decides.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// BLAKE3 of the cluster's secret, zeros where none is set: what nodes have to show.
    pub secret: [u8; 32],
    /// Time to live of timed leases.
    pub ttl: Duration,
    /// Bound on how far two clocks drift apart over one lease.
    pub drift: Duration,
    /// What a link is taken to carry where nothing was measured, bytes a second.
    pub link_bytes_per_s_assumed: u64,
    /// How long a cutover that was asked for waits for the gate before it is refused.
    pub gate_deadline: Duration,
    /// How long a rollback waits for the way back before it is given up.
    pub rollback_deadline: Duration,
    /// How long the volumes of a group admit nobody for their snapshots.
    pub hold_deadline: Duration,
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self {
            secret: [0; 32],
            ttl: LEASE_TTL,
            drift: LEASE_DRIFT,
            link_bytes_per_s_assumed: 125_000_000,
            gate_deadline: GATE_DEADLINE,
            rollback_deadline: ROLLBACK_DEADLINE,
            hold_deadline: HOLD_DEADLINE,
        }
    }
}

/// For requests that a node answers at once.
pub const RPC_DEADLINE: Duration = Duration::from_secs(2);
/// For requests that flush or write metadata.
pub const WORK_DEADLINE: Duration = Duration::from_secs(30);
/// For a snapshot of a volume under load, or for dropping a large volume.
pub const LONG_WORK_DEADLINE: Duration = Duration::from_secs(60);

/// Age at which a node's status is asked for again.
pub const STATUS_EVERY: Duration = Duration::from_secs(2);

/// Age at which a sender's progress is asked for again.
pub const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// Oldest report on which a flip or commit is decided.
pub const PROGRESS_AGE_MAX: Duration = Duration::from_secs(1);

/// Bytes not yet durable at the destination with which a flip may begin: what a link of 1 Gbit/s carries in a quarter
/// of a second.
pub const DIRTY_AT_FLIP_MAX: u64 = 32 << 20;
/// Age of the destination's last flush at which a flip may begin: the final flush has little to do then.
pub const FLUSH_AGE_AT_FLIP_MAX: Duration = Duration::from_secs(5);

/// See [`ControlConfig`]. Clients wait for a minute before they see an error; this is far from it.
pub const HOLD_DEADLINE: Duration = Duration::from_secs(5);
/// Volumes whose snapshots are taken at one moment.
pub const GROUP_VOLUMES_MAX: usize = 64;
/// See [`ControlConfig`].
pub const GATE_DEADLINE: Duration = Duration::from_secs(60);
pub const ROLLBACK_DEADLINE: Duration = Duration::from_secs(120);

/// First wait after a failed step, doubled with each failure in a row.
pub const BACKOFF_MIN: Duration = Duration::from_millis(100);
pub const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// The same for attempts at a flip, which clients feel.
pub const FLIP_BACKOFF_MIN: Duration = Duration::from_secs(1);
pub const FLIP_BACKOFF_MAX: Duration = Duration::from_secs(30);

/// How long the end of a rollback waits for a node that is away before its clean-up is left for later.
pub const CLEANUP_PATIENCE: Duration = Duration::from_secs(10);
/// Starts over in a row after a sender that failed by itself.
pub const SENDER_FAILURES_MAX: u32 = 5;

/// Between two looks at a drain.
pub const DRAIN_EVERY: Duration = Duration::from_millis(500);
/// Unfinished migrations to one node, whoever began them, with which a drain begins no other one to it.
pub const DRAIN_TARGET_MOVES_MAX: usize = 2;
/// Between two attempts to find a node for a volume that none would take.
pub const DRAIN_PLACE_EVERY_MS: u64 = 10_000;
/// First wait after a move that failed, doubled with each failure in a row.
pub const DRAIN_BACKOFF_MIN: Duration = Duration::from_secs(5);
pub const DRAIN_BACKOFF_MAX: Duration = Duration::from_secs(300);
/// Moves of one volume that fail before it waits for a person.
pub const DRAIN_FAILURES_MAX: u32 = 5;

/// Finished migrations that are kept to be looked at.
pub const FINISHED_MIGRATIONS_MAX: usize = 1_000;
/// Migrations under way at once: each is a task that asks its nodes ten times a second.
pub const ACTIVE_MIGRATIONS_MAX: usize = 100;
/// Idempotency keys that are remembered, and for how long.
pub const REMEMBERED_MAX: usize = 10_000;
pub const REMEMBERED_MS: u64 = 24 * 3600 * 1000;
