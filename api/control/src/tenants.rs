//! Whose volumes are, and how much of them there may be. A volume's tenant stays what it is for life.

use crate::Control;
use crate::queries::{Tagged, check_version};
use crate::table::{NewEvent, State};
use crate::volumes::check_name;
use drover_types::record::{TenantRecord, VolumeRecord};
use drover_types::{ApiError, ChangeTenant, DEFAULT_TENANT, ErrorCode, Quota, Tenant};
use std::collections::BTreeSet;

/// Tenants with quotas.
const TENANTS_MAX: usize = 10_000;

fn volumes_of<'a>(state: &'a State, tenant: &'a str) -> impl Iterator<Item = &'a VolumeRecord> {
    state.volumes.values().map(|kept| &kept.record).filter(move |record| record.tenant == tenant)
}

/// The size that the volume has or is to have.
fn provisioned(record: &VolumeRecord) -> u64 {
    record.resize_to.map_or(record.size_bytes, |size| size.max(record.size_bytes))
}

/// To be asked in the step that gives the tenant so many more bytes and volumes: two at once cannot both take the last.
pub(crate) fn check_quota(state: &State, tenant: &str, bytes: u64, volumes: u64) -> Result<(), ApiError> {
    let Some(kept) = state.tenants.get(tenant) else { return Ok(()) };
    let (has_bytes, has_volumes) = usage(state, tenant);
    kept.record.quota.check(tenant, has_bytes.saturating_add(bytes), has_volumes.saturating_add(volumes))
}

fn usage(state: &State, tenant: &str) -> (u64, u64) {
    let sum = |(bytes, count): (u64, u64), record| (provisioned(record).saturating_add(bytes), count + 1);
    volumes_of(state, tenant).fold((0, 0), sum)
}

fn shown(state: &State, name: &str) -> Tagged<Tenant> {
    let kept = state.tenants.get(name);
    let (provisioned_bytes, volumes) = usage(state, name);
    let quota = kept.map_or_else(Quota::default, |kept| kept.record.quota);
    let value = Tenant { name: name.into(), provisioned_bytes, volumes, quota };
    Tagged { version: kept.map_or(0, |kept| kept.version.0), value }
}

impl Control {
    /// Those that have volumes or quotas, and the default one.
    pub fn list_tenants(&self) -> Vec<Tenant> {
        let state = self.ledger.state();
        let with_volumes = state.volumes.values().map(|kept| kept.record.tenant.as_str());
        let with_quotas = state.tenants.keys().map(String::as_str);
        let names: BTreeSet<&str> = with_volumes.chain(with_quotas).chain([DEFAULT_TENANT]).collect();
        names.into_iter().map(|name| shown(&state, name).value).collect()
    }

    pub fn show_tenant(&self, name: &str) -> Result<Tagged<Tenant>, ApiError> {
        let state = self.ledger.state();
        let is_known = name == DEFAULT_TENANT || state.tenants.contains_key(name);
        if is_known || volumes_of(&state, name).next().is_some() {
            return Ok(shown(&state, name));
        }
        let message = format!("tenant {name:?} has neither volumes nor quotas");
        Err(ApiError::new(ErrorCode::TenantNotFound, message).hint("`drover tenant list` shows those that have"))
    }

    /// Without any quota nothing is remembered of it.
    pub async fn change_tenant(
        &self,
        name: &str,
        change: ChangeTenant,
        expected: Option<u64>,
    ) -> Result<Tagged<Tenant>, ApiError> {
        check_name("tenant", name)?;
        self.ledger
            .commit(|state, changes| {
                let known = state.tenants.get(name);
                check_version(expected, known.map_or(0, |kept| kept.version.0))?;
                let quota = change.quota;
                if known.map_or_else(Quota::default, |kept| kept.record.quota) == quota {
                    return Ok(());
                }
                if quota == Quota::default() {
                    changes.delete::<TenantRecord>(name.into());
                } else if known.is_none() && state.tenants.len() >= TENANTS_MAX {
                    return Err(ApiError::invalid("tenant", format!("at most {TENANTS_MAX} tenants have quotas")));
                } else {
                    changes.put(TenantRecord { tenant: name.into(), quota });
                }
                let text = match (quota.provisioned_bytes, quota.volumes) {
                    (Some(bytes), Some(volumes)) => {
                        format!("tenant {name} may have {volumes} volumes of {bytes} bytes in all")
                    }
                    (Some(bytes), None) => format!("tenant {name} may have volumes of {bytes} bytes in all"),
                    (None, Some(volumes)) => format!("tenant {name} may have {volumes} volumes"),
                    (None, None) => format!("tenant {name} has no quotas"),
                };
                changes.event(NewEvent::info("tenant.changed", text));
                Ok::<_, ApiError>(())
            })
            .await?;
        Ok(shown(&self.ledger.state(), name))
    }
}
