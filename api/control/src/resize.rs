//! How large a volume is. Its holder decides: a rollback brings the snapshot's size back, so the record follows.
//!
//! A larger size is recorded as intended first, then asked of the node until it answers, also after a restart; meanwhile
//! the volume counts as busy, so that no migration begins with a size that is about to change.

use crate::Control;
use crate::config::RPC_DEADLINE;
use crate::limits::limited;
use crate::queries::{Tagged, check_version, find_volume};
use crate::table::{Changes, NewEvent, State};
use crate::tenants::check_quota;
use crate::volumes::{Settled, check_size, find_idle};
use drover_base::{NodeId, VolumeId};
use drover_types::record::{LeaseRecord, VolumeRecord};
use drover_types::{ApiError, ChangeVolume, Volume, VolumeState};
use drover_wire::admin::{NodeRequest, Refusal};
use std::rc::Rc;

impl Control {
    /// Asked again, it is done already.
    pub async fn change_volume(
        self: &Rc<Self>,
        name: &str,
        change: ChangeVolume,
        expected: Option<u64>,
    ) -> Result<Tagged<Volume>, ApiError> {
        let ChangeVolume { size_bytes, limits } = change;
        if size_bytes.is_none() && limits.is_none() {
            return Err(ApiError::invalid("size_bytes", "nothing is to be changed"));
        }
        size_bytes.map_or(Ok(()), check_size)?;
        limits.map_or(Ok(()), |limits| limits.check())?;
        let volume = self
            .ledger
            .commit(|state, changes| {
                let record = find_volume(state, name)?;
                check_version(expected, state.volumes[&record.volume].version.0)?;
                let mut next = limits.map_or_else(|| record.clone(), |limits| limited(record, limits, changes));
                if let Some(size_bytes) = size_bytes.filter(|size_bytes| record.resize_to != Some(*size_bytes)) {
                    let record = find_idle(state, name)?;
                    if size_bytes < record.size_bytes {
                        let message = format!("{} has {} bytes: it can only grow", record.name, record.size_bytes);
                        return Err(ApiError::invalid("size_bytes", message));
                    }
                    check_quota(state, &record.tenant, size_bytes - record.size_bytes, 0)?;
                    // Also where it has that size by the record: its holder is asked, and knows.
                    next.resize_to = Some(size_bytes);
                }
                if next != *record {
                    changes.put(next);
                }
                Ok::<_, ApiError>(record.volume)
            })
            .await?;
        if limits.is_some() {
            self.tell_limits(volume).await?;
        }
        if size_bytes.is_some() {
            self.wait_settled(volume, "it is being made larger").await?;
        }
        self.show_volume(&volume.to_string())
    }

    pub(crate) async fn resized(&self, record: &VolumeRecord, lease: &LeaseRecord, size_bytes: u64) -> Settled {
        self.ledger
            .commit(|state, changes| {
                // Other things about it may have changed while the holder was asked.
                if let Some(now) = state.volume(record.volume) {
                    put_size(changes, now, &lease.holder, size_bytes);
                }
                Ok::<_, ApiError>(())
            })
            .await?;
        self.tell_exports_size(record.volume).await;
        Ok(())
    }

    pub(crate) async fn not_resized(&self, record: &VolumeRecord, lease: &LeaseRecord, refusal: &Refusal) -> Settled {
        self.ledger
            .commit(|state, changes| {
                if let Some(now) = state.volume(record.volume) {
                    changes.put(VolumeRecord { resize_to: None, ..now.clone() });
                }
                Ok::<_, ApiError>(())
            })
            .await?;
        Err(Self::refusal_error(&lease.holder, refusal))
    }

    /// The holder said how large the volume is. Where the record says otherwise, an answer was lost.
    pub(crate) async fn learn_size(&self, volume: VolumeId, holder: &NodeId, size_bytes: u64) -> Result<(), ApiError> {
        if differs(&self.ledger.state(), volume, holder, size_bytes).is_none() {
            return Ok(());
        }
        let learnt = self
            .ledger
            .commit(|state, changes| {
                let Some(record) = differs(state, volume, holder, size_bytes) else { return Ok(false) };
                put_size(changes, record, holder, size_bytes);
                Ok::<_, ApiError>(true)
            })
            .await?;
        if learnt {
            self.tell_exports_size(volume).await;
        }
        Ok(())
    }

    /// Nodes tell new clients of an export how large it is. One that is away is told when it registers.
    async fn tell_exports_size(&self, volume: VolumeId) {
        let asks: Vec<_> = {
            let state = self.ledger.state();
            let exports = state.exports.values().map(|kept| &kept.record).filter(|export| export.volume == volume);
            let told = |record| {
                let export = crate::exports::wire_export(&state, record)?;
                Some((record.node.clone(), state.node(&record.node)?.admin.clone(), NodeRequest::SetExport { export }))
            };
            exports.filter_map(told).collect()
        };
        for (node, admin, asked) in asks {
            if let Err(error) = self.nodes.call(&node, &admin, &asked, RPC_DEADLINE).await {
                tracing::warn!(%node, %volume, %error, "an export has its former size until the node registers again");
            }
        }
    }
}

/// The volume has that size, as its holder says.
fn put_size(changes: &mut Changes, record: &VolumeRecord, holder: &NodeId, size_bytes: u64) {
    if size_bytes != record.size_bytes {
        let text = format!("{} has {size_bytes} bytes now, {} before", record.name, record.size_bytes);
        changes.event(NewEvent::info("volume.resized", text).node(holder).volume(record.volume));
    }
    changes.put(VolumeRecord { resize_to: None, size_bytes, ..record.clone() });
}

/// The record of a volume at rest, if it says another size than its holder.
fn differs<'a>(state: &'a State, volume: VolumeId, holder: &NodeId, size_bytes: u64) -> Option<&'a VolumeRecord> {
    let record = state.volume(volume)?;
    let is_at_rest = record.state == VolumeState::Ready
        && record.resize_to.is_none()
        && state.active_migration(volume).is_none()
        && state.lease(volume).is_some_and(|lease| lease.holder == *holder);
    (is_at_rest && record.size_bytes != size_bytes).then_some(record)
}
