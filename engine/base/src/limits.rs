//! Bounds of queues, windows, retries and messages, each with its reason.

use crate::units::{EXTENT_BYTES, REGION_BYTES};
use std::time::Duration;

/// Largest client request. NBD clients cut at 32 MiB by default.
pub const REQUEST_BYTES_MAX: u64 = 32 << 20;

/// Largest volume: its map costs 128 MiB of memory a TiB, so this one costs 8 GiB when full.
pub const VOLUME_BYTES_MAX: u64 = 64 << 40;

/// Largest head of a message between processes: a node's status with its volumes is the largest.
pub const MESSAGE_HEAD_BYTES_MAX: usize = 8 << 20;

/// Largest body of a message: one client request.
pub const MESSAGE_BODY_BYTES_MAX: usize = REQUEST_BYTES_MAX as usize;

/// Bytes of client requests that one connection may have in flight. Further requests wait unread.
pub const CONNECTION_BYTES_IN_FLIGHT_MAX: u64 = 64 << 20;

/// Requests that one connection may have in flight.
pub const CONNECTION_REQUESTS_IN_FLIGHT_MAX: usize = 1024;

/// How long a client's request may be held (during a flip, a holder's restart, a partition) before it fails.
pub const HOLD_DEADLINE: Duration = Duration::from_secs(60);

/// How long a client's request may wait for data that is still at the node which the volume moved away from, before it
/// fails: two losses of the link and the reconnections after them.
pub const REMOTE_DEADLINE: Duration = Duration::from_secs(30);

/// Acknowledged, unflushed writes that a gateway keeps for replay; it flushes when the log fills.
pub const REPLAY_LOG_BYTES_MAX: u64 = 64 << 20;

/// Bytes a sender may have unacknowledged at the destination: 1 Gbit/s times 250 ms.
pub const SEND_WINDOW_BYTES: u64 = 32 << 20;

/// Regions of a frozen layer that are sent between two flushes of the destination: 256 MiB, seconds of a gigabit link. What
/// an interruption costs at most.
pub const LAYER_STRETCH_REGIONS: usize = 64;

/// Bytes of clients' writes that a sender may have unacknowledged at the destination besides: half a second of 1 Gbit/s.
pub const MIRRORED_BYTES_MAX: u64 = 64 << 20;

/// Active regions a volume may have: 16 GiB of working set; above it idle ones are flushed out.
pub const ACTIVE_REGIONS_MAX: usize = 4096;

/// Snapshots a volume may have: each costs a lookup on reads of old data.
pub const SNAPSHOTS_MAX: usize = 256;

/// Operations of a volume of which its node remembers that they are done: a repetition is told from a new request unless
/// so many others came in between. 8 bytes each in the volume's record.
pub const OPERATIONS_KEPT: usize = 64;

/// How long two processes may take to show each other that they belong to one cluster: two round trips.
pub const PREAMBLE_DEADLINE: Duration = Duration::from_secs(5);

/// What a node keeps with a volume: a handful of numbers and a node's name.
pub const NOTE_BYTES_MAX: usize = 4096;

/// Nominal life of a timed lease.
pub const LEASE_TTL: Duration = Duration::from_secs(9);

/// Stated bound on how far two nodes' clocks drift apart over one lease.
pub const LEASE_DRIFT: Duration = Duration::from_millis(500);

const _: () = assert!(MESSAGE_BODY_BYTES_MAX as u64 >= REQUEST_BYTES_MAX);
const _: () = assert!(CONNECTION_BYTES_IN_FLIGHT_MAX >= REQUEST_BYTES_MAX, "the largest request must be admitted");
const _: () = assert!(REMOTE_DEADLINE.as_secs() < HOLD_DEADLINE.as_secs(), "a gateway must hear of the failure");
const _: () = assert!(REPLAY_LOG_BYTES_MAX >= REQUEST_BYTES_MAX, "the largest write must fit the log");
const _: () = assert!(SEND_WINDOW_BYTES >= REQUEST_BYTES_MAX && SEND_WINDOW_BYTES >= EXTENT_BYTES);
const _: () = assert!(VOLUME_BYTES_MAX.is_multiple_of(REGION_BYTES));
