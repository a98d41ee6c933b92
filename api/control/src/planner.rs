//! What a migration is expected to bring and cost.

use drover_types::{MigrationPlan, RateSource, Warning};
use drover_wire::admin::VolumeStatus;

/// What a flip took where none was measured: two round trips, a flush and two small durable writes.
const PAUSE_MS_ASSUMED: u64 = 20;

/// Share of a destination, in percent, above which it is nearly full.
const NEARLY_FULL_PERCENT: u128 = 90;

/// What of a volume travels: what it shows, and what its snapshots keep beside that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Extents with data × 64 KiB: the slots that a copy takes.
    pub used_bytes: u64,
    /// Blocks with data × 4 KiB.
    pub valid_bytes: u64,
}

impl Content {
    /// From what all layers of the volume take together, deleted ones that have yet to merge included.
    pub fn at_most(status: &VolumeStatus) -> Self {
        Self { used_bytes: status.used_bytes, valid_bytes: status.valid_bytes }
    }
}

/// What is known of the two nodes, the volume and the link.
#[derive(Clone, Debug)]
pub struct Estimate {
    pub volume: String,
    pub source: String,
    pub destination: String,
    /// `None`: never reported.
    pub content: Option<Content>,
    pub size_bytes: u64,
    /// Snapshots that people made of it.
    pub snapshots: usize,
    pub free_bytes: Option<u64>,
    pub total_bytes: Option<u64>,
    pub destination_is_cordoned: bool,
    pub destination_is_down: bool,
    pub link_bytes_per_s: u64,
    pub link_rate: RateSource,
    pub throttle_bytes_per_s: Option<u64>,
    pub write_bytes_per_s: u64,
    pub pause_ms_measured: Option<u64>,
    pub pause_ms_max: u64,
}

/// Plans. Duration: bytes ÷ (link − writes), as each byte written meanwhile is sent too; with a writer at or above
/// the link half of the link is left for the copy, since mirroring makes the writer share it.
pub fn plan(estimate: &Estimate) -> MigrationPlan {
    let bytes_to_send = estimate.content.map_or(estimate.size_bytes, |content| content.valid_bytes);
    let space_needed_bytes = estimate.content.map_or(estimate.size_bytes, |content| content.used_bytes);
    let link = estimate.throttle_bytes_per_s.unwrap_or(u64::MAX).min(estimate.link_bytes_per_s).max(1);
    let for_copy = match link.checked_sub(estimate.write_bytes_per_s) {
        Some(rest) if rest > link / 2 => rest,
        _ => (link / 2).max(1),
    };
    let millis = u128::from(bytes_to_send) * 1000 / u128::from(for_copy);
    let free = estimate.free_bytes.unwrap_or(0);
    MigrationPlan {
        volume: estimate.volume.clone(),
        source: estimate.source.clone(),
        destination: estimate.destination.clone(),
        bytes_to_send,
        snapshots: estimate.snapshots as u64,
        link_bytes_per_s: estimate.link_bytes_per_s,
        link_rate: estimate.link_rate,
        write_bytes_per_s: estimate.write_bytes_per_s,
        duration_ms_expected: u64::try_from(millis).unwrap_or(u64::MAX),
        pause_ms_expected: estimate.pause_ms_measured.unwrap_or(PAUSE_MS_ASSUMED),
        destination_free_bytes: free,
        space_needed_bytes,
        fits: estimate.free_bytes.is_some_and(|free| space_needed_bytes <= free) && estimate.total_bytes != Some(0),
        warnings: warnings(estimate, link, space_needed_bytes),
    }
}

fn warnings(estimate: &Estimate, link: u64, needed: u64) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut warn = |code: &str, text: String| warnings.push(Warning { code: code.into(), text });
    let writes = estimate.write_bytes_per_s;
    if writes >= link {
        let text = format!(
            "clients write {writes} bytes a second, the link carries {link}: writers are slowed to the link while mirroring"
        );
        warn("writer_faster_than_link", text);
    }
    match (estimate.free_bytes, estimate.total_bytes) {
        (_, Some(0)) => warn("no_tiers", format!("{} has no tiers: it is a gateway", estimate.destination)),
        (None, _) => warn("destination_unknown", format!("{} has not reported its space", estimate.destination)),
        (Some(free), _) if needed > free => {
            warn("no_space", format!("{needed} bytes are needed at {}, {free} are free", estimate.destination));
        }
        (Some(free), Some(total)) => {
            let taken = u128::from(total.saturating_sub(free)) + u128::from(needed);
            if taken * 100 > u128::from(total) * NEARLY_FULL_PERCENT {
                warn("nearly_full", format!("{} will be more than {NEARLY_FULL_PERCENT} % full", estimate.destination));
            }
        }
        (Some(_), None) => {}
    }
    if estimate.destination_is_cordoned {
        warn("destination_cordoned", format!("{} is cordoned: it takes no new migrations", estimate.destination));
    }
    if estimate.destination_is_down {
        warn("destination_down", format!("{} is down: nothing is sent until it is back", estimate.destination));
    }
    if estimate.content.is_none() {
        warn(
            "usage_unknown",
            format!("{} has not reported the volume's usage: its whole size is assumed", estimate.source),
        );
    }
    if estimate.link_rate == RateSource::Assumed {
        warn(
            "link_rate_assumed",
            format!(
                "no migration between the two was measured: {} bytes a second are assumed",
                estimate.link_bytes_per_s
            ),
        );
    }
    if estimate.pause_ms_measured.unwrap_or(PAUSE_MS_ASSUMED) > estimate.pause_ms_max {
        warn("pause_too_short", format!("the last flip between the two took longer than {} ms", estimate.pause_ms_max));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn estimate() -> Estimate {
        Estimate {
            volume: "v".into(),
            source: "a".into(),
            destination: "b".into(),
            content: Some(Content { used_bytes: 5 * GIB, valid_bytes: 4 * GIB }),
            size_bytes: 8 * GIB,
            snapshots: 0,
            free_bytes: Some(100 * GIB),
            total_bytes: Some(200 * GIB),
            destination_is_cordoned: false,
            destination_is_down: false,
            link_bytes_per_s: GIB / 8,
            link_rate: RateSource::Given,
            throttle_bytes_per_s: None,
            write_bytes_per_s: 0,
            pause_ms_measured: None,
            pause_ms_max: 1000,
        }
    }

    #[track_caller]
    fn check(estimate: &Estimate, duration_ms: u64, fits: bool, codes: &[&str]) {
        let plan = plan(estimate);
        assert_eq!(plan.duration_ms_expected, duration_ms);
        assert_eq!(plan.fits, fits);
        assert_eq!(plan.warnings.iter().map(|warning| warning.code.as_str()).collect::<Vec<_>>(), codes);
    }

    #[test]
    fn time_space_and_what_to_warn_of() {
        check(&estimate(), 32_000, true, &[]);
        check(&Estimate { write_bytes_per_s: GIB / 32, ..estimate() }, 42_666, true, &[]);
        check(&Estimate { write_bytes_per_s: GIB, ..estimate() }, 64_000, true, &["writer_faster_than_link"]);
        check(&Estimate { throttle_bytes_per_s: Some(GIB / 16), ..estimate() }, 64_000, true, &[]);
        check(&Estimate { free_bytes: Some(GIB), ..estimate() }, 32_000, false, &["no_space"]);
        check(
            &Estimate { free_bytes: Some(6 * GIB), total_bytes: Some(12 * GIB), ..estimate() },
            32_000,
            true,
            &["nearly_full"],
        );
        check(&Estimate { free_bytes: Some(0), total_bytes: Some(0), ..estimate() }, 32_000, false, &["no_tiers"]);
        check(&Estimate { destination_is_cordoned: true, ..estimate() }, 32_000, true, &["destination_cordoned"]);
        check(&Estimate { destination_is_down: true, ..estimate() }, 32_000, true, &["destination_down"]);
        check(&Estimate { snapshots: 2, ..estimate() }, 32_000, true, &[]);
        check(&Estimate { free_bytes: None, ..estimate() }, 32_000, false, &["destination_unknown"]);
        let unknown = Estimate { content: None, link_rate: RateSource::Assumed, ..estimate() };
        check(&unknown, 64_000, true, &["usage_unknown", "link_rate_assumed"]);
    }
}
