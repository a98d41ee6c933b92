//! What the demo brought, for people and as one JSON object.

use super::{load, probe};
use crate::output::show_ms;
use drover_base::text::show_bytes;
use drover_types::{Migration, Phase, ProofResult};
use serde::Serialize;
use std::time::Duration;

/// What was compared, and whether it was as it should be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Checks {
    /// Everything fio read back was what it had written.
    pub fio: bool,
    /// So was what was written after the first flip, read after the rollback.
    pub after_rollback: bool,
    /// Everything the prober read back, too.
    pub prober: bool,
    /// The image, copied from the new holder by nbdcopy, has the digest it had before.
    pub image_digest: bool,
    /// `e2fsck -fn` finds it clean.
    pub file_system: bool,
}

impl Checks {
    fn all(self) -> bool {
        self.fio && self.after_rollback && self.prober && self.image_digest && self.file_system
    }
}

pub struct Story {
    pub first: Migration,
    pub second: Migration,
    pub load: load::Done,
    pub probe: probe::Seen,
    /// The prober's longest wait in each part, in order.
    pub waits: Vec<(String, Duration)>,
    pub link_bytes: Option<u64>,
    pub checks: Checks,
}

/// The figures of bytes, flip and commit are those of the migration that was committed.
#[derive(Serialize)]
pub struct Receipt {
    pub verified: bool,
    pub io_errors: u64,
    pub rolled_back: bool,
    pub committed: bool,
    /// Longest wait of a request of the prober, at any time from the first migration to the end.
    pub pause_ms_max: f64,
    /// The same by parts: before the first move, and the phases of the ways there, back and there again.
    pub pause_ms_by_part: Vec<Part>,
    /// From the start to the flip, and to the commit.
    pub flip_ms: u64,
    pub commit_ms: u64,
    /// Bytes of blocks that held data.
    pub held_bytes: u64,
    /// Bytes of blocks sent until the flip, resends included, and what they were on the wire.
    pub logical_bytes: u64,
    pub wire_bytes: u64,
    /// What node-1's interface sent until the flip, headers and other traffic included; absent without a link of its own.
    pub link_bytes: Option<u64>,
    pub link: &'static str,
    pub checks: Checks,
    pub proof: Option<ProofResult>,
    pub written_bytes: u64,
    pub verified_bytes: u64,
    pub probe_requests: u64,
    pub sabotage: bool,
    pub took_ms: u64,
}

#[derive(Serialize)]
pub struct Part {
    pub part: String,
    pub pause_ms: f64,
}

fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e5).round() / 1e2
}

impl Receipt {
    pub fn new(story: Story, link: &'static str, sabotage: bool, took: Duration) -> Self {
        let Story { first, second, load, probe, waits, link_bytes, checks } = story;
        let rolled_back = first.phase == Phase::RolledBack;
        let committed = second.phase == Phase::Committed;
        let proof = second.receipt.proof;
        let is_proven = proof.as_ref().is_some_and(|proof| proof.regions_different == 0 && proof.regions_equal > 0);
        Self {
            verified: checks.all() && rolled_back && committed && is_proven,
            io_errors: load.errors + probe.errors,
            rolled_back,
            committed,
            pause_ms_max: ms(probe.longest),
            pause_ms_by_part: waits.into_iter().map(|(part, longest)| Part { part, pause_ms: ms(longest) }).collect(),
            flip_ms: second.receipt.flip_ms.unwrap_or(0),
            commit_ms: second.receipt.commit_ms.unwrap_or(0),
            held_bytes: second.receipt.held_bytes,
            logical_bytes: second.receipt.logical_bytes,
            wire_bytes: second.receipt.wire_bytes,
            link_bytes,
            link,
            checks,
            proof,
            written_bytes: load.written_bytes,
            verified_bytes: load.read_bytes,
            probe_requests: probe.requests,
            sabotage,
            took_ms: took.as_millis() as u64,
        }
    }
}

pub fn show(receipt: &Receipt) -> String {
    let yes = |is: bool| if is { "yes" } else { "NO" };
    let parts = receipt.pause_ms_by_part.iter();
    let parts: Vec<String> =
        parts.map(|part| format!("\n                {:>8.1} ms  {}", part.pause_ms, part.part)).collect();
    let proof = receipt.proof.as_ref().map_or("none".into(), |proof| {
        format!("{} of {} regions equal, {} thicker", proof.regions_equal, proof.regions_total, proof.regions_thicker)
    });
    let checks = &receipt.checks;
    format!(
        "\nRECEIPT\n\
         moved         {} held, {} of blocks sent, {} on the wire\n\
         link          {}{}\n\
         flip          after {}\n\
         commit        after {}; proof: {proof}\n\
         longest pause {} ms of {} requests of a 1 ms prober{}\n\
         clients       {} I/O errors; fio wrote {} and verified {}\n\
         rolled back   {}, then moved again and committed: {}\n\
         data          fio {}, after the rollback {}, prober {}, image's digest {}, e2fsck {}\n\
         verified      {}\n\
         took          {}{}",
        show_bytes(receipt.held_bytes),
        show_bytes(receipt.logical_bytes),
        show_bytes(receipt.wire_bytes),
        receipt.link,
        receipt.link_bytes.map_or(String::new(), |bytes| format!("; {} crossed it until the flip", show_bytes(bytes))),
        show_ms(receipt.flip_ms),
        show_ms(receipt.commit_ms),
        receipt.pause_ms_max,
        receipt.probe_requests,
        parts.concat(),
        receipt.io_errors,
        show_bytes(receipt.written_bytes),
        show_bytes(receipt.verified_bytes),
        yes(receipt.rolled_back),
        yes(receipt.committed),
        yes(checks.fio),
        yes(checks.after_rollback),
        yes(checks.prober),
        yes(checks.image_digest),
        yes(checks.file_system),
        yes(receipt.verified),
        show_ms(receipt.took_ms),
        if receipt.sabotage { "\nOne byte was damaged on purpose: it must NOT be verified." } else { "" },
    )
}
