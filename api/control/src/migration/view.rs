//! A migration as people see it.

use super::knowledge::Knowledge;
use super::machine::{Wait, remote_bytes};
use drover_types::record::{MigrationRecord, Shown, SlowedRecord, Stage};
use drover_types::{Action, Migration, Slowed, WayBack};
use drover_wire::admin::SendProgress;

/// What share of the whole, in thousandths, each part is taken for.
const COPY_PERMILLE: u64 = 900;
const FLIPPED_PERMILLE: u64 = 950;
const PROVEN_PERMILLE: u64 = 995;

/// Takes a report into what is shown, which never falls: a start over compares, and what was found equal counts as done.
pub fn show(record: &MigrationRecord, progress: &SendProgress, shown: &mut Shown) {
    if record.stage.is_before_flip() {
        shown.bytes_total = shown.bytes_total.max(progress.total_bytes);
        shown.bytes_done = shown.bytes_done.max(progress.done_bytes).min(shown.bytes_total);
    } else if record.stage == Stage::Settling && progress.pull.is_some() {
        let arrived = shown.bytes_total.saturating_sub(remote_bytes(progress));
        shown.bytes_done = shown.bytes_done.max(arrived);
    }
    let permille = match record.stage {
        Stage::Planned | Stage::Tracking => 0,
        Stage::Copying | Stage::Converging => share(COPY_PERMILLE, shown.bytes_done, shown.bytes_total),
        Stage::Mirroring | Stage::Flipping if record.options.hot_first => {
            share(COPY_PERMILLE, shown.bytes_done, shown.bytes_total)
        }
        Stage::Mirroring | Stage::Flipping => COPY_PERMILLE,
        Stage::Settling if remote_bytes(progress) > 0 => share(COPY_PERMILLE, shown.bytes_done, shown.bytes_total),
        Stage::Settling if record.proven => PROVEN_PERMILLE,
        Stage::Settling => {
            let proof = progress.proof.clone().unwrap_or_default();
            FLIPPED_PERMILLE + share(PROVEN_PERMILLE - FLIPPED_PERMILLE, proof.regions_equal, proof.regions_total)
        }
        _ => 0,
    };
    shown.permille = shown.permille.max(u32::try_from(permille).unwrap_or(1000));
}

fn share(of: u64, part: u64, whole: u64) -> u64 {
    if whole == 0 {
        return 0;
    }
    u64::try_from(u128::from(of) * u128::from(part.min(whole)) / u128::from(whole)).unwrap_or(of)
}

/// What may be asked of it now.
pub fn actions(record: &MigrationRecord) -> Vec<Action> {
    let mut actions = Vec::new();
    let before = record.stage.is_before_flip();
    if before || record.stage == Stage::Settling {
        actions.push(if record.paused { Action::Resume } else { Action::Pause });
    }
    if before && !record.cutover_requested {
        actions.push(Action::Cutover);
    }
    if before {
        actions.push(Action::Cancel);
    }
    if before || (record.stage == Stage::Settling && record.way_back_open) {
        actions.push(Action::Rollback);
    }
    if record.stage == Stage::Settling {
        actions.push(Action::Commit);
    }
    actions
}

fn way_back(record: &MigrationRecord) -> WayBack {
    match record.stage {
        stage if stage.is_final() => WayBack::None,
        Stage::Settling | Stage::FlippingBack if record.way_back_open => WayBack::Open,
        Stage::Settling | Stage::FlippingBack => WayBack::Closed,
        _ => WayBack::Source,
    }
}

/// The migration with what was learned of it, where an executor runs.
pub fn view(record: &MigrationRecord, knowledge: Option<&Knowledge>, waits: Option<Wait>) -> Migration {
    let report = knowledge.and_then(|knowledge| knowledge.report.as_ref()).map(|report| &report.progress);
    let mut shown = knowledge.map_or(record.shown, |knowledge| knowledge.shown);
    let mut receipt = record.receipt.clone();
    let mut left = report.map_or(shown.bytes_total - shown.bytes_done, |progress| {
        progress.dirty_bytes + progress.remote_bytes + remote_bytes(progress)
    });
    if record.stage.is_before_flip() {
        let mut sent = record.earlier;
        if let Some(progress) = report {
            sent.add(progress.logical_bytes, progress.wire_bytes, progress.deduplicated_bytes, progress.rounds);
        }
        receipt.take_sent(sent);
    }
    if record.stage.is_final() {
        left = 0;
    }
    if record.stage == Stage::Committed {
        shown = Shown { bytes_done: shown.bytes_total, permille: 1000, ..shown };
    }
    let rate = if record.stage.is_final() { 0 } else { knowledge.map_or(0, |knowledge| knowledge.rate_bytes_per_s) };
    let is_hot = record.options.hot_first && !record.stage.is_final();
    let mut cleanup_pending: Vec<String> = Vec::new();
    if record.stage.is_final() {
        cleanup_pending = record.cleanup.iter().map(|cleanup| cleanup.node.to_string()).collect();
        cleanup_pending.dedup();
    }
    Migration {
        id: record.migration.to_string(),
        volume: record.volume.to_string(),
        volume_name: record.volume_name.clone(),
        source: record.source.to_string(),
        destination: record.destination.to_string(),
        phase: record.phase(),
        paused: record.paused && !record.stage.is_final(),
        needs_you: waits.as_ref().is_some_and(|wait| wait.needs_person),
        waits_for: waits.map(|wait| wait.what),
        bytes_total: shown.bytes_total,
        bytes_done: shown.bytes_done,
        bytes_left: left,
        remote_bytes: report.filter(|_| is_hot).map(|progress| progress.remote_bytes + remote_bytes(progress)),
        coverage_permille: report.filter(|_| is_hot).and_then(|progress| progress.coverage_permille),
        permille: shown.permille,
        rate_bytes_per_s: rate,
        eta_s: eta(record, report, left, rate),
        slowed: record.slowed.map(|SlowedRecord { since_ms, free_bytes_per_s }| Slowed {
            since_ms,
            free_bytes_per_s,
            bytes_per_s: report.map_or(0, |progress| progress.client_write_bytes_per_s),
        }),
        generation: record.generation.0,
        options: record.options.clone(),
        way_back: way_back(record),
        actions: actions(record),
        plan: record.plan.clone(),
        receipt,
        error: record.error.clone(),
        created_ms: record.created_ms,
        ended_ms: record.ended_ms,
        cleanup_pending,
        events: format!("/v1/events?migration={}", record.migration),
    }
}

/// Seconds until everything has arrived, at the present rates; `None` where nothing is sent, or writers outrun it.
fn eta(record: &MigrationRecord, report: Option<&SendProgress>, left: u64, rate: u64) -> Option<u64> {
    if !record.stage.is_before_flip() || record.paused {
        return None;
    }
    let writes = report.map_or(0, |progress| progress.client_write_bytes_per_s);
    let gain = rate.checked_sub(writes).filter(|gain| *gain > 0)?;
    Some(left.div_ceil(gain))
}
