//! Clients that a migration slows to the link, so that it ends: since when, why, and until when.
//!
//! Every write goes to both sides from Mirroring on, and waits for both. Whether writers wait, and what they wrote before
//! they had to, the sender measures; here it becomes a spell, told once when it begins and once when it ends. A spell
//! goes through a flip: after it the same writes wait for the source.

use super::knowledge::Knowledge;
use super::transition::Transition;
use drover_base::Instant;
use drover_types::record::{MigrationRecord, Stage};
use drover_wire::admin::{SendPhase, SendProgress};
use std::time::Duration;

/// Share of what clients wrote before, in percent, below which a spell begins, and from which on it has ended.
const BEGINS_BELOW_PERCENT: u64 = 80;
const ENDS_FROM_PERCENT: u64 = 90;

/// How long reports must agree. A flip, or a moment without writes, is no end; a burst is no spell.
const SURE_AFTER: Duration = Duration::from_secs(2);

const _: () = assert!(BEGINS_BELOW_PERCENT < ENDS_FROM_PERCENT);

/// Whether clients are slowed, by the sender's report and what is recorded.
pub fn is_slowed(record: &MigrationRecord, progress: &SendProgress) -> bool {
    let mirrors = matches!(
        progress.phase,
        SendPhase::Mirroring | SendPhase::Synced | SendPhase::Drained | SendPhase::Proving | SendPhase::Proven
    );
    let (free_bytes_per_s, percent) = match &record.slowed {
        Some(slowed) => (slowed.free_bytes_per_s, ENDS_FROM_PERCENT),
        None => (progress.free_write_bytes_per_s, BEGINS_BELOW_PERCENT),
    };
    let is_slower =
        u128::from(progress.client_write_bytes_per_s) * 100 < u128::from(free_bytes_per_s) * u128::from(percent);
    mirrors && progress.link_up && progress.writes_wait && is_slower
}

/// What is to be recorded, once reports have said otherwise than the record for long enough.
pub fn decide(record: &MigrationRecord, knowledge: &Knowledge, now: Instant) -> Option<Transition> {
    let watched = matches!(record.stage, Stage::Mirroring | Stage::Settling);
    let differs_since = knowledge.slowed_differs_since?;
    if !watched || now.since(differs_since) < SURE_AFTER {
        return None;
    }
    let progress = &knowledge.report.as_ref()?.progress;
    let bytes_per_s = progress.client_write_bytes_per_s;
    Some(match record.slowed {
        Some(_) => Transition::Freed { bytes_per_s },
        None => Transition::Slowed { free_bytes_per_s: progress.free_write_bytes_per_s, bytes_per_s },
    })
}
