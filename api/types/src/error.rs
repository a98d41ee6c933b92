//! What a request that was not carried out is answered.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $status:literal),* $(,)?) => {
        /// Why a request was not carried out. The names are stable: programs may rely on them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum ErrorCode { $($(#[$doc])* $name),* }

        impl ErrorCode {
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name),*];

            /// The HTTP status it is answered with.
            pub fn status(self) -> u16 {
                match self { $(Self::$name => $status),* }
            }
        }

        impl std::fmt::Display for ErrorCode {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.serialize(f)
            }
        }
    };
}

codes! {
    /// The request is not what this path takes.
    MalformedRequest = 400,
    /// A field has a value it cannot have; `field` names it.
    InvalidField = 400,
    /// The bearer token is missing or wrong.
    Unauthorized = 401,
    RouteNotFound = 404,
    NodeNotFound = 404,
    VolumeNotFound = 404,
    SnapshotNotFound = 404,
    ExportNotFound = 404,
    ScheduleNotFound = 404,
    MigrationNotFound = 404,
    TenantNotFound = 404,
    /// The node is not being drained, and was not.
    DrainNotFound = 404,
    MethodNotAllowed = 405,
    VolumeExists = 409,
    SnapshotExists = 409,
    ExportExists = 409,
    /// The volume is in a migration, which excludes this.
    VolumeMigrating = 409,
    /// The volume is being created or deleted, or has exports.
    VolumeBusy = 409,
    /// The migration's phase excludes this.
    PhaseConflict = 409,
    /// The other side lacks writes: going back would lose them.
    WayBackClosed = 409,
    /// Source and destination are the same node.
    SameNode = 409,
    NoSpace = 409,
    /// Its tenant may not have more.
    QuotaExceeded = 409,
    /// The node still holds volumes or takes part in something.
    NodeBusy = 409,
    /// The node takes no new volumes and no new migrations.
    NodeCordoned = 409,
    /// The same Idempotency-Key came with another request.
    IdempotencyConflict = 409,
    /// A request with this Idempotency-Key is being carried out.
    IdempotencyInProgress = 409,
    /// The resource changed since its ETag was read.
    PreconditionFailed = 412,
    BodyTooLarge = 413,
    Internal = 500,
    /// A node refused for a reason of its own.
    NodeFailed = 502,
    NodeUnreachable = 503,
    /// The control plane cannot reach its own store, or is stopping.
    Unavailable = 503,
    /// A node did not answer in time: whether it carried the request out is unknown. It goes on by itself.
    OutcomeUnknown = 504,
}

/// An error as answered: what happened, why, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub code: ErrorCode,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The field at fault, for `invalid_field`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

impl ApiError {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), cause: None, hint: None, field: None }
    }
    pub fn invalid(field: &str, message: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..Self::new(ErrorCode::InvalidField, message) }
    }
    #[must_use]
    pub fn cause(mut self, cause: impl Into<String>) -> Self {
        self.cause = Some(cause.into());
        self
    }
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_say_who_is_at_fault() {
        let names: std::collections::BTreeSet<String> =
            ErrorCode::ALL.iter().map(|code| serde_json::to_string(code).unwrap()).collect();
        assert_eq!(names.len(), ErrorCode::ALL.len());
        for code in ErrorCode::ALL {
            assert!((400..600).contains(&code.status()), "{code:?}");
        }
    }
}
