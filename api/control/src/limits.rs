//! What a volume's clients may use a second: recorded here, kept to by its holder, which hears of it with its grants.

use crate::Control;
use crate::config::RPC_DEADLINE;
use crate::leases::grant;
use crate::table::{Changes, NewEvent};
use drover_base::{NodeId, VolumeId};
use drover_types::record::{LimitsRecord, VolumeRecord};
use drover_types::{ApiError, ErrorCode, VolumeLimits};
use drover_wire::admin::{IoLimits, NodeRequest};

/// Where nobody says.
const BURST_MS: u64 = 1_000;

/// As nodes are told.
pub(crate) fn wire_limits(record: &VolumeRecord) -> IoLimits {
    let LimitsRecord { revision, limits } = record.limits;
    let VolumeLimits { iops, bytes_per_s, burst_ms } = limits;
    IoLimits { revision, iops, bytes_per_s, burst_ms: burst_ms.unwrap_or(BURST_MS) }
}

/// The volume with these limits, told as an event where they are others.
pub(crate) fn limited(record: &VolumeRecord, limits: VolumeLimits, changes: &mut Changes) -> VolumeRecord {
    if record.limits.limits == limits {
        return record.clone();
    }
    let name = &record.name;
    let text = match (limits.iops, limits.bytes_per_s) {
        (None, None) => format!("{name} has no limits"),
        (Some(iops), None) => format!("{name} is limited to {iops} requests a second"),
        (None, Some(bytes)) => format!("{name} is limited to {bytes} bytes a second"),
        (Some(iops), Some(bytes)) => format!("{name} is limited to {iops} requests and {bytes} bytes a second"),
    };
    changes.event(NewEvent::info("volume.limited", text).volume(record.volume));
    let revision = record.limits.revision + 1;
    VolumeRecord { limits: LimitsRecord { revision, limits }, ..record.clone() }
}

impl Control {
    /// Tells the holder of what is recorded.
    pub(crate) async fn tell_limits(&self, volume: VolumeId) -> Result<(), ApiError> {
        let found = {
            let state = self.ledger.state();
            let holder = state.lease(volume).and_then(|lease| state.node(&lease.holder));
            holder.and_then(|node| Some((node.node.clone(), node.admin.clone(), grant(&state, volume, &node.node)?)))
        };
        let Some((node, admin, grant)) = found else { return Ok(()) };
        let told = self.nodes.call(&node, &admin, &NodeRequest::SetGrant { grant }, RPC_DEADLINE).await;
        told.map(|_| ()).map_err(|error| {
            ApiError::new(ErrorCode::OutcomeUnknown, "the limits are recorded; the volume's holder has not answered")
                .cause(error.to_string())
                .hint("it is told again by itself")
        })
    }

    /// Tells those holders again that have reported other limits than are recorded.
    pub(crate) async fn settle_limits(&self) {
        let behind: Vec<VolumeId> = {
            let state = self.ledger.state();
            let leases = state.leases.values().map(|kept| &kept.record);
            leases.filter(|lease| self.is_behind(&lease.holder, lease.volume)).map(|lease| lease.volume).collect()
        };
        for volume in behind {
            if let Err(error) = self.tell_limits(volume).await {
                tracing::debug!(%volume, %error, "the holder does not know the volume's limits yet");
            }
        }
    }

    fn is_behind(&self, holder: &NodeId, volume: VolumeId) -> bool {
        let recorded = self.ledger.state().volume(volume).map_or(0, |record| record.limits.revision);
        recorded > 0 && self.nodes.volume(holder, volume).is_some_and(|(status, ..)| status.limits.revision < recorded)
    }
}
