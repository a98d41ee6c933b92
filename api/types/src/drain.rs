//! Emptying a node: every volume it holds moves to others.

use crate::{ApiError, Phase};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DrainState {
    Running,
    /// The node holds no volume and no copy of one.
    Drained,
    /// Somebody ended it: no further move begins; those under way go on, and the node stays cordoned.
    Cancelled,
    /// The same, since its deadline passed.
    DeadlinePassed,
}

impl DrainState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Drained => "drained",
            Self::Cancelled => "cancelled",
            Self::DeadlinePassed => "deadline passed",
        }
    }
}

/// Begins to empty a node, or goes on with it: what is absent stays as it was asked before. It is cordoned first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DrainNode {
    /// Nodes that may take its volumes; where it was never given, any that is up, not cordoned, and has tiers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1, max_items = 1024)]
    pub to: Option<Vec<String>>,
    /// Moves at once; 2 where it was never given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 16)]
    pub parallel: Option<u32>,
    /// For how long from now further moves may begin.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1_000, maximum = 2_592_000_000_u64)]
    pub deadline_ms: Option<u64>,
    /// Of each move: at least 65,536 bytes a second, or 0 for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttle_bytes_per_s: Option<u64>,
}

/// The emptying of a node. It goes on by itself, also over restarts of the control plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Drain {
    pub node: String,
    pub state: DrainState,
    /// Empty: any node.
    pub to: Vec<String>,
    pub parallel: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle_bytes_per_s: Option<u64>,
    /// From when on no further move begins, milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_at_ms: Option<u64>,
    pub started_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// Volumes that it moved away for good.
    pub volumes_moved: u64,
    /// Volumes of which the node holds the lease or a copy.
    pub volumes_left: u64,
    /// Bytes of blocks of them that have yet to arrive elsewhere, as last reported.
    pub bytes_left: u64,
    pub rate_bytes_per_s: u64,
    /// As measured; absent while nothing is, and where something waits for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_s: Option<u64>,
    /// Migrations under way that have to end before the node is empty.
    pub moves: Vec<DrainMove>,
    /// Volumes that are not moving.
    pub waiting: Vec<DrainWaiting>,
    /// Something of it goes on only when a person does something.
    pub needs_you: bool,
    /// What the node serves. It goes on with that as a gateway, until it is detached.
    pub exports: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrainMove {
    pub volume: String,
    pub volume_name: String,
    pub migration: String,
    pub source: String,
    pub destination: String,
    pub phase: Phase,
    pub permille: u32,
    pub bytes_left: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    pub needs_you: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrainWaiting {
    pub volume: String,
    pub volume_name: String,
    pub waits_for: String,
    pub needs_you: bool,
    /// Moves of it that failed.
    pub failures: u32,
    /// Why the last one failed, or could not begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
    /// When it is tried again, milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try_ms: Option<u64>,
}
