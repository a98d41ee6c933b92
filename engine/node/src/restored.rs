//! What a node may believe of itself after its metadata was restored from a checkpoint.
//!
//! The checkpoint is older than what was lost. Since then leases may have moved, and other nodes may count on writes
//! that are gone.
//! - Who held a volume then does not hold it before the control plane says so again: its seat goes back below the epoch
//!   that it knew, so that any grant is news.
//! - A copy that a migration keeps for another holder is forgotten: it lacks what it had confirmed as durable, and
//!   nobody would compare it again. Its migration finds that it is gone.

use crate::seat::{SEAT_PREFIX, seat_key};
use drover_base::planted::{Bug, is_planted};
use drover_base::{Epoch, VolumeId};
use drover_store::meta::{Batch, Meta, MetaError};
use drover_store::{StoreError, fsck};
use drover_wire::WireError;
use drover_wire::admin::Role;
use drover_wire::seat_record::{LegDirection, SeatRecord};

/// Why the seats could not be set back.
#[derive(Debug, thiserror::Error)]
pub enum RestoredError {
    #[error(transparent)]
    Meta(#[from] MetaError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the record of a seat is damaged: {0}")]
    Record(#[from] WireError),
}

/// Sets back what the restored metadata says of leases. Again: changes nothing more that matters.
pub async fn distrust_seats(meta: &dyn Meta) -> Result<(), RestoredError> {
    if is_planted(Bug::RestoredLeaseTrusted) {
        return Ok(());
    }
    for (key, value) in meta.scan(SEAT_PREFIX).await? {
        let id = key[SEAT_PREFIX.len()..].try_into().map_err(|_| WireError::Body("seat key"))?;
        let id = VolumeId(u64::from_be_bytes(id));
        let record = SeatRecord::decode(&value)?;
        match record.role {
            Role::Holder => {
                let mut batch = Batch::default();
                batch.put(seat_key(id), set_back(record).encode());
                meta.commit(batch).await?;
            }
            Role::Mirror => {
                fsck::forget_volume(meta, id).await?;
                let mut batch = Batch::default();
                batch.delete(key);
                meta.commit(batch).await?;
            }
            Role::Fenced => {}
        }
    }
    Ok(())
}

fn set_back(record: SeatRecord) -> SeatRecord {
    SeatRecord {
        epoch: Epoch(record.epoch.0.saturating_sub(1)),
        revision: 0,
        role: Role::Fenced,
        ttl_ms: None,
        leg: None,
        direction: LegDirection::Forward,
        ..record
    }
}
