//! What happened, with its reason.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Info,
    /// Something did not go as it should, and is being dealt with.
    Warning,
    /// Needs a person.
    Error,
}

/// One step of something. Ids only grow; the oldest events are forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    pub id: u64,
    /// Milliseconds since 1970 by the control plane's wall clock.
    pub at_ms: u64,
    pub severity: Severity,
    /// Whose it is and what happened, such as `migration.mirroring` or `node.registered`.
    pub kind: String,
    pub text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<String>,
}
