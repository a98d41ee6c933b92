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
    /// At the flip of the move that went hot first, most of what the volume holds was at the other node.
    pub mostly_remote: bool,
    /// The image, copied from the new holder by nbdcopy, has the digest it had before.
    pub image_digest: bool,
    /// `e2fsck -fn` finds it clean.
    pub file_system: bool,
}

impl Checks {
    fn all(self) -> bool {
        let Self { fio, after_rollback, prober, mostly_remote, image_digest, file_system } = self;
        fio && after_rollback && prober && mostly_remote && image_digest && file_system
    }
}

pub struct Story {
    pub first: Migration,
    pub second: Migration,
    pub hot: Migration,
    pub load: load::Done,
    pub probe: probe::Seen,
    /// The prober's longest wait in each part, in order.
    pub waits: Vec<(String, Duration)>,
    pub link_bytes: Option<u64>,
    pub checks: Checks,
}

/// The figures of bytes, flip and commit are those of the first migration that was committed, where nothing else is said.
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
    /// Of the move that went hot first: from its start to its flip.
    pub hot_flip_ms: u64,
    /// Bytes of blocks that were not at the new holder yet at its flip, and share of the accesses whose blocks were.
    pub remote_bytes_at_flip: u64,
    pub coverage_at_flip: f64,
    /// Of the blocks that clients accessed in the minute after it, the share that were there.
    pub local_share_60s: f64,
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
        let Story { first, second, hot, load, probe, waits, link_bytes, checks } = story;
        let rolled_back = first.phase == Phase::RolledBack;
        let committed = second.phase == Phase::Committed && hot.phase == Phase::Committed;
        let is_proven = [&second, &hot].iter().all(|migration| is_proven(migration.receipt.proof.as_ref()));
        let proof = second.receipt.proof;
        let share = |permille: Option<u32>| f64::from(permille.unwrap_or(0)) / 1000.0;
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
            hot_flip_ms: hot.receipt.flip_ms.unwrap_or(0),
            remote_bytes_at_flip: hot.receipt.remote_bytes_at_flip,
            coverage_at_flip: share(hot.receipt.coverage_permille_at_flip),
            local_share_60s: share(hot.receipt.local_permille_60s),
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

fn is_proven(proof: Option<&ProofResult>) -> bool {
    proof.is_some_and(|proof| {
        proof.regions_different == 0 && proof.regions_equal == proof.regions_total && proof.regions_total > 0
    })
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
         hot first     back after {} with {} still remote; {:.1} % of what is accessed was there, {:.1} % in the next minute\n\
         data          fio {}, after the rollback {}, prober {}, mostly remote {}, image's digest {}, e2fsck {}\n\
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
        show_ms(receipt.hot_flip_ms),
        show_bytes(receipt.remote_bytes_at_flip),
        receipt.coverage_at_flip * 100.0,
        receipt.local_share_60s * 100.0,
        yes(checks.fio),
        yes(checks.after_rollback),
        yes(checks.prober),
        yes(checks.mostly_remote),
        yes(checks.image_digest),
        yes(checks.file_system),
        yes(receipt.verified),
        show_ms(receipt.took_ms),
        if receipt.sabotage { "\nOne byte was damaged on purpose: it must NOT be verified." } else { "" },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_types::{MigrationOptions, MigrationPlan, WayBack};

    fn migration(phase: Phase, scale: u64) -> Migration {
        let receipt = drover_types::Receipt {
            held_bytes: scale,
            logical_bytes: 2 * scale,
            wire_bytes: 3 * scale,
            flip_ms: Some(4 * scale),
            remote_bytes_at_flip: 6 * scale,
            coverage_permille_at_flip: Some(970),
            local_permille_60s: Some(930),
            commit_ms: (phase == Phase::Committed).then_some(5 * scale),
            proof: Some(ProofResult { regions_total: 7, regions_equal: 7, ..Default::default() }),
            ..Default::default()
        };
        Migration {
            id: "mig-0000000000000001".into(),
            volume: "vol-0000000000000001".into(),
            volume_name: "demo".into(),
            source: "node-1".into(),
            destination: "node-2".into(),
            phase,
            paused: false,
            waits_for: None,
            needs_you: false,
            bytes_total: 0,
            bytes_done: 0,
            bytes_left: 0,
            remote_bytes: None,
            coverage_permille: None,
            permille: 1000,
            rate_bytes_per_s: 0,
            eta_s: None,
            slowed: None,
            generation: 1,
            options: MigrationOptions::default(),
            way_back: WayBack::None,
            actions: vec![],
            plan: MigrationPlan::default(),
            receipt,
            error: None,
            created_ms: 0,
            ended_ms: None,
            cleanup_pending: vec![],
            events: String::new(),
        }
    }

    /// All went as it should.
    fn story() -> Story {
        Story {
            first: migration(Phase::RolledBack, 1_000),
            second: migration(Phase::Committed, 10),
            hot: migration(Phase::Committed, 20),
            load: load::Done { written_bytes: 100, read_bytes: 90, errors: 0 },
            probe: probe::Seen { requests: 50, errors: 0, longest: Duration::from_micros(12_346) },
            waits: vec![("before".into(), Duration::from_micros(1_500)), ("there: flipping".into(), Duration::ZERO)],
            link_bytes: Some(33),
            checks: Checks {
                fio: true,
                after_rollback: true,
                prober: true,
                mostly_remote: true,
                image_digest: true,
                file_system: true,
            },
        }
    }

    fn receipt(story: Story) -> Receipt {
        Receipt::new(story, "a link", false, Duration::from_millis(1_234))
    }

    #[test]
    fn a_receipt_has_the_figures_of_the_committed_move_and_of_all_clients() {
        let receipt = receipt(story());
        assert!(receipt.verified && receipt.rolled_back && receipt.committed);
        assert_eq!(
            (receipt.held_bytes, receipt.logical_bytes, receipt.wire_bytes),
            (10, 20, 30),
            "not the first move's"
        );
        assert_eq!((receipt.flip_ms, receipt.commit_ms, receipt.took_ms), (40, 50, 1_234));
        assert_eq!((receipt.written_bytes, receipt.verified_bytes, receipt.probe_requests), (100, 90, 50));
        assert_eq!((receipt.link_bytes, receipt.link, receipt.sabotage), (Some(33), "a link", false));
        assert_eq!((receipt.hot_flip_ms, receipt.remote_bytes_at_flip), (80, 120), "the third move's");
        assert_eq!((receipt.coverage_at_flip, receipt.local_share_60s), (0.97, 0.93));
        assert_eq!(receipt.pause_ms_max, 12.35, "hundredths of a millisecond");
        let parts: Vec<_> = receipt.pause_ms_by_part.iter().map(|part| (part.part.as_str(), part.pause_ms)).collect();
        assert_eq!(parts, [("before", 1.5), ("there: flipping", 0.0)]);
        assert_eq!(receipt.proof.as_ref().map(|proof| proof.regions_equal), Some(7));
        let shown = show(&receipt);
        for part in
            ["12.35 ms of 50 requests", "0 I/O errors", "7 of 7 regions equal", "verified      yes", "33 B crossed"]
        {
            assert!(shown.contains(part), "{part} is not in {shown}");
        }
    }

    #[test]
    fn errors_of_fio_and_of_the_prober_are_summed() {
        let mut story = story();
        (story.load.errors, story.probe.errors) = (2, 3);
        assert_eq!(receipt(story).io_errors, 5);
    }

    /// What one of them finds wrong is enough.
    #[test]
    fn nothing_is_verified_unless_every_check_says_so() {
        type Spoil = fn(&mut Story);
        let spoils: [(&str, Spoil); 15] = [
            ("fio", |story| story.checks.fio = false),
            ("after the rollback", |story| story.checks.after_rollback = false),
            ("the prober", |story| story.checks.prober = false),
            ("the digest", |story| story.checks.image_digest = false),
            ("e2fsck", |story| story.checks.file_system = false),
            ("not rolled back", |story| story.first.phase = Phase::Committed),
            ("not committed", |story| story.second.phase = Phase::RolledBack),
            ("little was remote", |story| story.checks.mostly_remote = false),
            ("the hot one not committed", |story| story.hot.phase = Phase::RolledBack),
            ("the hot one not proven", |story| story.hot.receipt.proof = None),
            ("no proof", |story| story.second.receipt.proof = None),
            ("a region differs", |story| proof(story).regions_different = 1),
            ("a region was not compared", |story| proof(story).regions_equal = 6),
            ("nothing was compared", |story| *proof(story) = ProofResult::default()),
            ("the first move's proof is not asked for", |story| {
                story.first.receipt.proof = story.second.receipt.proof.take();
            }),
        ];
        for (what, spoil) in spoils {
            let mut story = story();
            spoil(&mut story);
            let receipt = receipt(story);
            assert!(!receipt.verified, "{what}");
            assert!(show(&receipt).contains("verified      NO"), "{what}");
        }
    }

    fn proof(story: &mut Story) -> &mut ProofResult {
        story.second.receipt.proof.as_mut().expect("the story has one")
    }
}
