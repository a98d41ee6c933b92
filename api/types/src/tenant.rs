//! Whose volumes are, and how much of them there may be.

use crate::ApiError;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whose a volume is where nobody says.
pub const DEFAULT_TENANT: &str = "default";

/// Who volumes belong to: a name, with quotas where they were set. It gives no access: the token is for all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tenant {
    pub name: String,
    /// Sizes of its volumes, whatever of them is written.
    pub provisioned_bytes: u64,
    pub volumes: u64,
    pub quota: Quota,
}

/// The most that a tenant may have; absent: no limit. Below what it has, it takes nothing away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Quota {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provisioned_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<u64>,
}

/// What a tenant's quotas are to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeTenant {
    /// In the place of those it has.
    pub quota: Quota,
}

impl Quota {
    /// Whether a tenant that would have so much may get more of it.
    pub fn check(&self, tenant: &str, bytes: u64, volumes: u64) -> Result<(), ApiError> {
        let exceeded = |what: &str, most: u64, wanted: u64| {
            let message = format!("the quota of tenant {tenant} is {most} {what}: with this it would have {wanted}");
            ApiError::new(crate::ErrorCode::QuotaExceeded, message)
                .hint("delete volumes of it, or have the quota raised")
        };
        match *self {
            Self { volumes: Some(most), .. } if volumes > most => Err(exceeded("volumes", most, volumes)),
            Self { provisioned_bytes: Some(most), .. } if bytes > most => Err(exceeded("bytes", most, bytes)),
            _ => Ok(()),
        }
    }
}
