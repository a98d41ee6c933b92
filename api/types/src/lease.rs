//! Who may apply a volume's writes, and where the data is.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lease {
    pub volume: String,
    pub volume_name: String,
    /// Only grows.
    pub epoch: u64,
    pub holder: String,
    /// Time to live of a timed lease, milliseconds; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// Since the last renewal was received, or since the control plane started; for timed leases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewed_ms_ago: Option<u64>,
    /// The unfinished migration both sides take part in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<String>,
}

/// Which volume is where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DataMap {
    /// Grows with every change.
    pub version: u64,
    pub places: Vec<DataPlace>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DataPlace {
    pub volume: String,
    pub volume_name: String,
    pub holder: String,
    pub epoch: u64,
    /// The node that has, or is getting, a second copy during a migration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<String>,
}
