//! Storage nodes and their tiers.

use crate::DrainState;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It spoke to the control plane a moment ago.
    Up,
    /// It has not spoken since the control plane started, which was a moment ago.
    Unknown,
    /// It has not spoken for a while, or not since the control plane started a while ago.
    Down,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    pub name: String,
    pub health: Health,
    /// Since its last word, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contact_ms_ago: Option<u64>,
    /// Which start of the node it is.
    pub instance: String,
    pub admin_address: String,
    pub peer_address: String,
    pub migration_address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbd_unix: Option<String>,
    /// With `tls:` before it where clients have to use TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbd_tcp: Option<String>,
    /// As last reported; `status_ms_ago` says when. Empty before the first report.
    pub tiers: Vec<Tier>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_ms_ago: Option<u64>,
    /// Volumes whose lease it holds.
    pub volumes_held: u64,
    /// It takes no new volumes and no new migrations; absent where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cordon: Option<Cordon>,
    /// How far it is with being emptied; see `/v1/nodes/{node}/drain`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainState>,
}

/// Since when a node takes nothing new, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cordon {
    pub since_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What it holds, and unfinished migrations to it, go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CordonNode {
    /// For whoever is refused later.
    #[schema(min_length = 1, max_length = 200)]
    pub reason: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tier {
    pub node: String,
    pub name: String,
    /// `nvme`, `ssd` or `hdd`.
    pub class: String,
    pub total_bytes: u64,
    pub used_bytes: u64,
    /// Freed, usable after the next checkpoint.
    pub held_bytes: u64,
    /// Kept for migrations under way.
    pub reserved_bytes: u64,
    /// A sync failed: everything on it fails until it is reopened.
    pub poisoned: bool,
}
