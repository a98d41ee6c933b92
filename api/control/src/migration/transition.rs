//! What a migration may record, and when: all ordering rules of the protocol on the control plane's side.
//!
//! A transition is decided by the machine on what it knew a moment ago; it is checked here once more, on the recorded
//! state, in the step that stores it. It is stored before anything is done about it.
//!
//! ```text
//!   planned ─StartTracking─► tracking ─Began─► copying ─Converge─► converging ─BeginMirroring─► mirroring
//!               ▲                │ │               └────── StartOver ──────┴─────────────────────┘   │ ▲
//!               │                └─┴───────────────────────────────────────────────────────── BeginFlip │ GiveUpFlip
//!               │                                                                                    ▼ │
//!    committed ◄─Commit─ settling (Proven, ProofFailed, Flipped) ◄────────────MoveLease───────── flipping
//!                            │ ▲
//!                RollBack    │ │ StayAtDestination
//!                            ▼ │
//!   settling ─TakeOver─►  flipping_back (BeginFlip, GiveUpFlip) ─MoveLease─► returning ─Returned─► cleaning_up
//!   settling ─CommitAlone─► committed                                                                     │
//!   any before the flip ─RollBack───────────────────────────────────────────────────────────────────────┘ │
//!                                                                        failed ◄─Fail─┴─RolledBack─► rolled_back
//! ```
//!
//! Rules:
//! - the lease moves only under the attempt that is recorded, after *drained* and *confirmed* of that attempt, while the
//!   old holder is still the instance that drained;
//! - an attempt that was given up is named in `resume` until its holder has confirmed that it goes on; nothing moves
//!   the lease under it any more;
//! - a takeover needs the way back open, the lease run out, and the source's copy not lost, all at the moment it is stored;
//! - a commit needs the proof, which is one of every snapshot too, the way back open, and the lease at the destination; without a proof it needs that somebody asked for it and that the source has
//!   lost its copy: then there is nothing to compare with or to go back to;
//! - (epoch, revision) of the lease grows with every change of it.

use super::machine::remote_bytes;
use crate::table::{Changes, Link, NewEvent, State};
use drover_base::planted::{Bug, is_planted};
use drover_base::text::show_bytes;
use drover_base::{InstanceId, NodeId};
use drover_types::record::{
    Cleanup, CleanupTask, LeaseRecord, LegRecord, LinkRecord, MigrationRecord, Shown, SlowedRecord, Stage,
};
use drover_types::{ApiError, MigrationOptions, ProofResult, Severity};
use drover_wire::admin::{Position, PullProgress, SendProgress};
use std::time::Duration;

/// A migration that sent less spent its time on other things than sending.
const LINK_BYTES_MIN: u64 = 256 << 20;

/// That a flip's two conditions were met: what moves the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    pub attempt: u64,
    /// The instance of the old holder that drained.
    pub instance: InstanceId,
    /// Where it drained, as the other side confirmed.
    pub position: Position,
}

/// A change of a migration's record, and of its lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transition {
    StartTracking,
    /// The destination is prepared and the source tracks, durably.
    Began,
    Converge,
    BeginMirroring,
    /// The sender is gone or failed: another generation compares what the destination has.
    StartOver {
        reason: String,
    },
    BeginFlip,
    GiveUpFlip {
        reason: String,
    },
    /// The holder of the attempt that was given up goes on.
    Resumed {
        attempt: u64,
    },
    /// Clients write less than before, since their writes wait for the other side.
    Slowed {
        free_bytes_per_s: u64,
        bytes_per_s: u64,
    },
    /// They do not any more.
    Freed {
        bytes_per_s: u64,
    },
    /// A cutover that was asked for waited too long for the gate.
    RefuseCutover {
        reason: String,
    },
    MoveLease {
        handover: Handover,
    },
    /// The new holder serves.
    Flipped {
        pause_ms: u64,
    },
    Proven {
        proof: ProofResult,
    },
    ProofFailed {
        proof: ProofResult,
    },
    Commit,
    /// The source has lost its copy: for people to know and to decide.
    CopyLost,
    /// The destination keeps the only copy.
    CommitAlone,
    /// Before the flip: cancel. After it: go back by another flip.
    RollBack {
        reason: String,
        error: Option<ApiError>,
    },
    StayAtDestination {
        reason: String,
    },
    TakeOver,
    Returned,
    CleanedUp {
        cleanup: Cleanup,
    },
    RolledBack,
    Fail {
        reason: String,
    },
    Pause {
        paused: bool,
    },
    RequestCutover,
    RequestCommit,
    Tune {
        options: MigrationOptions,
    },
}

/// Why a transition cannot be stored: what it was decided on is no longer so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Stale(pub &'static str);

/// Whether the source still stores the volume, as it said itself since this stage began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceCopy {
    Unknown,
    There,
    Lost,
}

/// What is known at the moment of storing, beside the recorded state.
pub struct Facts<'a> {
    pub ttl: Duration,
    pub drift: Duration,
    /// Since the lease was last renewed.
    pub lease_age: Duration,
    /// Since the holder's last sign of life.
    pub holder_silence: Option<Duration>,
    pub source_copy: SourceCopy,
    /// The sender's last report.
    pub progress: Option<&'a SendProgress>,
    /// What was shown as progress.
    pub shown: Shown,
}

/// A holder that was silent for this long is taken for dead by the planted bug, whatever its lease says.
const PLANTED_SILENCE: Duration = Duration::from_secs(3);

impl Facts<'_> {
    /// Whether the holder has certainly stopped.
    pub fn lease_ran_out(&self) -> bool {
        if is_planted(Bug::TakeoverWithoutWait) {
            return self.holder_silence.is_none_or(|silence| silence > PLANTED_SILENCE);
        }
        self.lease_age >= self.ttl + self.drift
    }
}

/// A record and its lease on their way to the next state.
struct Draft<'a> {
    state: &'a State,
    facts: &'a Facts<'a>,
    changes: &'a mut Changes,
    record: MigrationRecord,
    lease: LeaseRecord,
    lease_changed: bool,
}

fn ensure(condition: bool, otherwise: &'static str) -> Result<(), Stale> {
    if condition { Ok(()) } else { Err(Stale(otherwise)) }
}

impl Transition {
    /// Checks the transition against the recorded state and adds what it changes.
    pub fn store(
        self,
        state: &State,
        record: &MigrationRecord,
        facts: &Facts<'_>,
        changes: &mut Changes,
    ) -> Result<MigrationRecord, Stale> {
        let lease = state.lease(record.volume).ok_or(Stale("the volume has no lease"))?.clone();
        let mut draft = Draft { state, facts, changes, record: record.clone(), lease, lease_changed: false };
        draft.apply(self)?;
        draft.finish()
    }
}

impl Draft<'_> {
    fn apply(&mut self, transition: Transition) -> Result<(), Stale> {
        match transition {
            Transition::StartTracking => self.start_tracking(),
            Transition::Began => self.advance(&[Stage::Tracking], Stage::Copying, "tracking is on; copying the base"),
            Transition::Converge => self.advance(
                &[Stage::Copying],
                Stage::Converging,
                "the base was copied; sending what changed, in rounds",
            ),
            Transition::BeginMirroring => self.begin_mirroring(),
            Transition::StartOver { reason } => self.start_over(&reason),
            Transition::BeginFlip => self.begin_flip(),
            Transition::GiveUpFlip { reason } => self.give_up_flip(&reason),
            Transition::Resumed { attempt } => {
                ensure(self.record.resume == Some(attempt), "another attempt is to be resumed")?;
                self.record.resume = None;
                Ok(())
            }
            Transition::Slowed { free_bytes_per_s, bytes_per_s } => self.slowed(free_bytes_per_s, bytes_per_s),
            Transition::Freed { bytes_per_s } => {
                ensure(self.record.slowed.is_some(), "clients are not slowed")?;
                self.freed(&format!("they write {}/s now", show_bytes(bytes_per_s)));
                Ok(())
            }
            Transition::RefuseCutover { reason } => {
                self.record.cutover_requested = false;
                self.warn("migration.cutover_refused", format!("the cutover was refused: {reason}"));
                Ok(())
            }
            Transition::MoveLease { handover } => self.move_lease(&handover),
            Transition::Flipped { pause_ms } => self.flipped(pause_ms),
            Transition::Proven { proof } => self.proven(proof),
            Transition::ProofFailed { proof } => self.proof_failed(proof),
            Transition::Commit => self.commit(),
            Transition::CopyLost => self.copy_lost(),
            Transition::CommitAlone => self.commit_alone(),
            Transition::RollBack { reason, error } => self.roll_back(&reason, error),
            Transition::StayAtDestination { reason } => self.stay_at_destination(&reason),
            Transition::TakeOver => self.take_over(),
            Transition::Returned => self.returned(),
            Transition::CleanedUp { cleanup } => self.cleaned_up(&cleanup),
            Transition::RolledBack => self.rolled_back(),
            Transition::Fail { reason } => self.fail(&reason),
            Transition::Pause { paused } => self.pause(paused),
            Transition::RequestCutover => {
                ensure(self.record.stage.is_before_flip(), "the volume has flipped already")?;
                self.record.cutover_requested = true;
                self.tell("migration.cutover_requested", "the cutover was asked for".into());
                Ok(())
            }
            Transition::RequestCommit => {
                ensure(self.record.stage == Stage::Settling, "only a settling migration can be committed")?;
                self.record.commit_requested = true;
                self.record.proof_failed = false;
                self.record.error = None;
                self.tell("migration.commit_requested", "the commit was asked for".into());
                Ok(())
            }
            Transition::Tune { options } => {
                ensure(!self.record.stage.is_final(), "the migration is over")?;
                self.record.options = options;
                self.tell("migration.tuned", "its options were changed".into());
                Ok(())
            }
        }
    }

    fn finish(mut self) -> Result<MigrationRecord, Stale> {
        if self.lease_changed {
            self.changes.put(self.lease);
        }
        self.record.shown = self.facts.shown;
        self.changes.put(self.record.clone());
        Ok(self.record)
    }

    fn event(&self, event: NewEvent) -> NewEvent {
        event.volume(self.record.volume).migration(self.record.migration)
    }
    fn tell(&mut self, kind: &'static str, text: String) {
        let event = self.event(NewEvent::info(kind, text));
        self.changes.event(event);
    }
    fn warn(&mut self, kind: &'static str, text: String) {
        let event = self.event(NewEvent::warning(kind, text));
        self.changes.event(event);
    }

    fn since_start_ms(&self) -> u64 {
        self.changes.wall_ms().saturating_sub(self.record.created_ms)
    }

    fn leg(&self, other: &NodeId) -> LegRecord {
        LegRecord { migration: self.record.migration, generation: self.record.generation, other: other.clone() }
    }

    /// Changes the lease within its epoch.
    fn change_lease(&mut self, ttl_ms: Option<u64>, leg: Option<LegRecord>) {
        self.lease.revision += 1;
        self.lease.ttl_ms = ttl_ms;
        self.lease.leg = leg;
        self.lease_changed = true;
    }

    /// Hands the lease to `holder` under the next epoch.
    fn hand_over(&mut self, holder: NodeId, ttl_ms: Option<u64>, leg: Option<LegRecord>) {
        self.lease.epoch = self.lease.epoch.next();
        self.lease.revision = 0;
        self.lease.holder = holder;
        self.lease.ttl_ms = ttl_ms;
        self.lease.leg = leg;
        self.lease_changed = true;
        self.changes.moves_data();
    }

    fn ttl_ms(&self) -> u64 {
        u64::try_from(self.facts.ttl.as_millis()).unwrap_or(u64::MAX)
    }

    fn advance(&mut self, from: &[Stage], to: Stage, text: &str) -> Result<(), Stale> {
        ensure(from.contains(&self.record.stage), "the migration is in another phase")?;
        self.enter(to, text.into());
        Ok(())
    }

    fn enter(&mut self, stage: Stage, text: String) {
        self.record.stage = stage;
        let kind = match stage.phase() {
            drover_types::Phase::Planned => "migration.planned",
            drover_types::Phase::Tracking => "migration.tracking",
            drover_types::Phase::Copying => "migration.copying",
            drover_types::Phase::Converging => "migration.converging",
            drover_types::Phase::Mirroring => "migration.mirroring",
            drover_types::Phase::Flipping => "migration.flipping",
            drover_types::Phase::Settling => "migration.settling",
            drover_types::Phase::Committed => "migration.committed",
            drover_types::Phase::RollingBack => "migration.rolling_back",
            drover_types::Phase::RolledBack => "migration.rolled_back",
            drover_types::Phase::Failed => "migration.failed",
        };
        let severity = if stage == Stage::Failed { Severity::Error } else { Severity::Info };
        let event = self.event(NewEvent::new(severity, kind, text));
        self.changes.event(event);
    }

    fn start_tracking(&mut self) -> Result<(), Stale> {
        ensure(self.record.stage == Stage::Planned, "the migration has begun already")?;
        ensure(
            self.lease.holder == self.record.source && self.lease.leg.is_none(),
            "the lease is not the source's alone",
        )?;
        let leg = self.leg(&self.record.destination.clone());
        self.change_lease(self.lease.ttl_ms, Some(leg));
        let text = format!("preparing {}, then freezing the base at {}", self.record.destination, self.record.source);
        self.enter(Stage::Tracking, text);
        Ok(())
    }

    fn begin_mirroring(&mut self) -> Result<(), Stale> {
        ensure(matches!(self.record.stage, Stage::Copying | Stage::Converging), "the migration is in another phase")?;
        let leg = self.lease.leg.clone();
        self.change_lease(Some(self.ttl_ms()), leg);
        self.enter(Stage::Mirroring, "every write goes to both sides from now on; the lease is timed".into());
        Ok(())
    }

    fn start_over(&mut self, reason: &str) -> Result<(), Stale> {
        let stages = [Stage::Tracking, Stage::Copying, Stage::Converging, Stage::Mirroring];
        ensure(stages.contains(&self.record.stage), "the migration is in another phase")?;
        self.add_sent();
        self.record.generation.0 += 1;
        self.record.receipt.restarts += 1;
        let leg = self.leg(&self.record.destination.clone());
        // Only the source has everything until it mirrors again: no lease may run out meanwhile.
        self.change_lease(None, Some(leg));
        self.warn(
            "migration.start_over",
            format!("{reason}: both sides are compared, only what differs is sent again"),
        );
        self.enter(Stage::Tracking, format!("generation {} begins", self.record.generation.0));
        Ok(())
    }

    /// The generation ends: its figures go to the sum of the earlier ones.
    fn add_sent(&mut self) {
        if let Some(progress) = self.facts.progress {
            let (logical, wire) = (progress.logical_bytes, progress.wire_bytes);
            self.record.earlier.add(logical, wire, progress.deduplicated_bytes, progress.rounds);
        }
    }

    fn begin_flip(&mut self) -> Result<(), Stale> {
        ensure(self.record.attempt.is_none() && self.record.resume.is_none(), "an attempt is not over")?;
        let back = match self.record.stage {
            Stage::Mirroring => false,
            Stage::FlippingBack => {
                ensure(self.record.way_back_open, "the way back is closed")?;
                true
            }
            _ => return Err(Stale("the migration is in another phase")),
        };
        self.record.attempts += 1;
        self.record.attempt = Some(self.record.attempts);
        self.record.attempt_began_ms = self.changes.wall_ms();
        let (holder, other) = self.record.sides();
        let text = format!("attempt {}: {holder} stops admitting, {other} takes over", self.record.attempts);
        if back {
            self.tell("migration.flipping_back", text);
        } else {
            self.enter(Stage::Flipping, text);
        }
        Ok(())
    }

    fn give_up_flip(&mut self, reason: &str) -> Result<(), Stale> {
        ensure(matches!(self.record.stage, Stage::Flipping | Stage::FlippingBack), "no flip is under way")?;
        let attempt = self.record.attempt.take().ok_or(Stale("no attempt is under way"))?;
        self.record.resume = Some(attempt);
        self.record.receipt.flips_given_up += 1;
        if self.record.stage == Stage::Flipping {
            self.record.stage = Stage::Mirroring;
        }
        self.warn("migration.flip_given_up", format!("attempt {attempt} was given up, the holder goes on: {reason}"));
        Ok(())
    }

    fn move_lease(&mut self, handover: &Handover) -> Result<(), Stale> {
        ensure(self.record.attempt == Some(handover.attempt), "the attempt was given up")?;
        let (holder, other) = self.record.sides();
        let (holder, other) = (holder.clone(), other.clone());
        ensure(self.lease.holder == holder, "the lease is elsewhere")?;
        let instance = self.state.node(&holder).map(|node| node.instance);
        let unchecked = is_planted(Bug::FlipWithoutDrain);
        ensure(unchecked || instance == Some(handover.instance), "the old holder restarted after it drained")?;
        let to = match self.record.stage {
            Stage::Flipping => Stage::Settling,
            Stage::FlippingBack => {
                ensure(self.record.way_back_open, "the way back is closed")?;
                Stage::Returning
            }
            _ => return Err(Stale("no flip is under way")),
        };
        let leg = self.leg(&holder);
        self.hand_over(other.clone(), Some(self.ttl_ms()), Some(leg));
        let since_ms = self.since_start_ms();
        self.record.attempt = None;
        self.record.pause_pending = true;
        self.record.way_back_open = true;
        self.record.way_back_change = None;
        self.record.proven = false;
        self.record.proof_failed = false;
        self.record.receipt.flips += 1;
        if to == Stage::Settling {
            self.add_sent();
            let earlier = self.record.earlier;
            let receipt = &mut self.record.receipt;
            receipt.flip_ms = Some(since_ms);
            receipt.take_sent(earlier);
            receipt.snapshots = self.facts.progress.map_or(receipt.snapshots, |progress| progress.snapshots);
            if let Some(progress) = self.facts.progress.filter(|_| self.record.options.hot_first) {
                receipt.remote_bytes_at_flip = progress.remote_bytes;
                receipt.coverage_permille_at_flip = progress.coverage_permille;
            }
        }
        self.enter(to, format!("{other} holds the lease under epoch {}", self.lease.epoch));
        Ok(())
    }

    fn flipped(&mut self, pause_ms: u64) -> Result<(), Stale> {
        ensure(self.record.pause_pending, "the pause was recorded already")?;
        self.record.pause_pending = false;
        self.record.receipt.pause_ms_max = self.record.receipt.pause_ms_max.max(pause_ms);
        let holder = self.lease.holder.clone();
        self.tell("migration.flipped", format!("{holder} serves; the pause was {pause_ms} ms"));
        if self.record.stage == Stage::Settling {
            let link = (self.record.source.clone(), self.record.destination.clone());
            let sent_ms = self.record.receipt.flip_ms.unwrap_or_default().max(1);
            let sent_bytes = self.record.receipt.wire_bytes;
            let tells = sent_bytes >= LINK_BYTES_MIN && self.record.options.throttle_bytes_per_s.is_none();
            let measured = u128::from(sent_bytes) * 1000 / u128::from(sent_ms);
            let measured = tells.then_some(u64::try_from(measured).unwrap_or(u64::MAX));
            let known = self.state.links.get(&link).and_then(|kept| kept.record.measured.bytes_per_s);
            let bytes_per_s = measured.max(known);
            self.changes.put(Link { from: link.0, to: link.1, measured: LinkRecord { bytes_per_s, pause_ms } });
        }
        Ok(())
    }

    /// From when everything was fetched on, what clients access is there.
    fn note_first_minute(&mut self) {
        let pull = self.facts.progress.and_then(|progress| progress.pull.as_ref());
        self.record.receipt.local_permille_60s = pull.and_then(PullProgress::local_permille_60s);
    }

    fn proven(&mut self, proof: ProofResult) -> Result<(), Stale> {
        ensure(self.record.stage == Stage::Settling && self.record.way_back_open, "the way back closed meanwhile")?;
        self.note_first_minute();
        self.record.proven = true;
        let since =
            if self.record.receipt.compared_after_flip { " since they were compared after a restart" } else { "" };
        let with = match self.record.receipt.snapshots {
            0 => String::new(),
            count => format!(", those of {count} snapshots among them"),
        };
        let text = format!(
            "both sides are equal in all {} regions{with}{since}; the retention time begins",
            proof.regions_total
        );
        self.record.receipt.proof = Some(proof);
        self.tell("migration.proven", text);
        Ok(())
    }

    fn proof_failed(&mut self, proof: ProofResult) -> Result<(), Stale> {
        ensure(self.record.stage == Stage::Settling, "the migration is in another phase")?;
        self.record.proof_failed = true;
        let text = format!(
            "the proof failed: of {} regions {} differ and {} hold more at the destination; the source is not released",
            proof.regions_total, proof.regions_different, proof.regions_thicker
        );
        self.record.receipt.proof = Some(proof);
        let error = ApiError::new(drover_types::ErrorCode::NodeFailed, text.clone())
            .cause("the digests of both sides were compared at the same place of the mirror stream")
            .hint("roll back, or commit to have the proof repeated");
        self.record.error = Some(error);
        let event = self.event(NewEvent::error("migration.proof_failed", text));
        self.changes.event(event);
        Ok(())
    }

    fn commit(&mut self) -> Result<(), Stale> {
        ensure(self.record.stage == Stage::Settling, "the migration is in another phase")?;
        ensure(self.lease.holder == self.record.destination, "the lease is elsewhere")?;
        ensure(self.record.way_back_open, "the way back is closed")?;
        ensure(self.record.proven || is_planted(Bug::ProofSkipped), "the sides were not proven equal")?;
        let (source, destination) = (&self.record.source, &self.record.destination);
        self.keep_at_destination(format!("{destination} keeps the volume; {source} lets it go"));
        Ok(())
    }

    fn copy_lost(&mut self) -> Result<(), Stale> {
        let stages = [Stage::Settling, Stage::CleaningUp];
        ensure(stages.contains(&self.record.stage), "the migration is in another phase")?;
        ensure(self.facts.source_copy == SourceCopy::Lost, "the source has its copy")?;
        let (source, destination) = (self.record.source.clone(), self.record.destination.clone());
        let left = self.facts.progress.map_or(0, remote_bytes);
        let with = match left {
            0 => String::new(),
            left => format!(
                ", and with it {} that had yet to be fetched: they give errors until overwritten",
                show_bytes(left)
            ),
        };
        let message = format!("{source} has lost its copy of {}{with}", self.record.volume_name);
        let error = ApiError::new(drover_types::ErrorCode::VolumeNotFound, message.clone());
        let error = if self.record.stage == Stage::Settling {
            error.cause(format!("there is no way back any more; {destination} has the only copy")).hint(format!(
                "if {source} cannot be given its disks back, commit the migration: {destination} keeps the volume"
            ))
        } else {
            error.cause(format!("it had taken over from {destination}, and nobody serves the volume")).hint(format!(
                "give {source} the disks and the metadata back that it had, and it serves by itself; until then \
                 {destination} drops nothing"
            ))
        };
        self.record.error = Some(error);
        self.record.copy_lost = true;
        // One that was asked for before knew nothing of it.
        self.record.commit_requested = false;
        self.warn("migration.copy_lost", message);
        Ok(())
    }

    fn commit_alone(&mut self) -> Result<(), Stale> {
        ensure(self.record.stage == Stage::Settling, "the migration is in another phase")?;
        ensure(self.lease.holder == self.record.destination, "the lease is elsewhere")?;
        ensure(self.record.commit_requested && self.record.copy_lost, "nobody asked for it knowing that")?;
        ensure(self.facts.source_copy == SourceCopy::Lost, "the source has its copy")?;
        self.record.way_back_open = false;
        let (source, destination) = (&self.record.source, &self.record.destination);
        self.keep_at_destination(format!("{destination} keeps the volume, unproven: {source} has lost its copy"));
        Ok(())
    }

    fn keep_at_destination(&mut self, text: String) {
        self.change_lease(None, None);
        let (source, destination) = (self.record.source.clone(), self.record.destination.clone());
        self.clean_up(&[
            (&destination, CleanupTask::Grant),
            (&destination, CleanupTask::End { drop_volume: false }),
            (&source, CleanupTask::End { drop_volume: true }),
        ]);
        self.record.receipt.return_wire_bytes = self.facts.progress.map_or(0, |progress| progress.wire_bytes);
        self.record.receipt.commit_ms = Some(self.since_start_ms());
        self.end(Stage::Committed, text);
    }

    fn clean_up(&mut self, tasks: &[(&NodeId, CleanupTask)]) {
        let cleanup = |(node, task): &(&NodeId, CleanupTask)| Cleanup { node: (*node).clone(), task: *task };
        self.record.cleanup = tasks.iter().map(cleanup).collect();
    }

    fn slowed(&mut self, free_bytes_per_s: u64, bytes_per_s: u64) -> Result<(), Stale> {
        ensure(self.record.slowed.is_none(), "that is recorded already")?;
        ensure(matches!(self.record.stage, Stage::Mirroring | Stage::Settling), "nothing is mirrored")?;
        self.record.slowed = Some(SlowedRecord { since_ms: self.changes.wall_ms(), free_bytes_per_s });
        let (_, other) = self.record.sides();
        let text = format!(
            "clients are slowed to the link: they write {}/s, before it was {}/s; so that the migration ends, every write \
             waits until {other} has it, too",
            show_bytes(bytes_per_s),
            show_bytes(free_bytes_per_s),
        );
        self.warn("migration.writers_slowed", text);
        Ok(())
    }

    /// Ends the spell, if there is one.
    fn freed(&mut self, why: &str) {
        let Some(SlowedRecord { since_ms, .. }) = self.record.slowed.take() else { return };
        let lasted_ms = self.changes.wall_ms().saturating_sub(since_ms);
        self.record.receipt.slowed_ms += lasted_ms;
        let lasted_s = lasted_ms.div_ceil(1000);
        self.tell("migration.writers_freed", format!("clients are no longer slowed, after {lasted_s} s: {why}"));
    }

    fn end(&mut self, stage: Stage, text: String) {
        self.freed("the migration is over");
        self.record.receipt.total_ms = Some(self.since_start_ms());
        self.record.ended_ms = Some(self.changes.wall_ms());
        self.enter(stage, text);
    }

    fn roll_back(&mut self, reason: &str, error: Option<ApiError>) -> Result<(), Stale> {
        match self.record.stage {
            Stage::Planned => {
                self.record.error = error;
                self.record.receipt.rolled_back = true;
                self.end(Stage::RolledBack, format!("nothing had begun: {reason}"));
                Ok(())
            }
            stage if stage.is_before_flip() => {
                self.record.error = error;
                self.cancel(reason);
                Ok(())
            }
            Stage::Settling => {
                ensure(self.record.way_back_open, "the way back is closed")?;
                self.record.proven = false;
                self.enter(Stage::FlippingBack, format!("going back to {}: {reason}", self.record.source));
                Ok(())
            }
            _ => Err(Stale("the migration is in another phase")),
        }
    }

    /// Before the flip: the lease is the source's and stays so.
    fn cancel(&mut self, reason: &str) {
        self.add_sent();
        let (source, destination) = (self.record.source.clone(), self.record.destination.clone());
        let mut tasks = Vec::new();
        if let Some(attempt) = self.record.attempt.take().or(self.record.resume.take()) {
            tasks.push((&source, CleanupTask::Resume { attempt }));
        }
        tasks.push((&source, CleanupTask::End { drop_volume: false }));
        tasks.push((&destination, CleanupTask::End { drop_volume: true }));
        tasks.push((&source, CleanupTask::Grant));
        self.clean_up(&tasks);
        self.change_lease(None, None);
        self.enter(Stage::CleaningUp, format!("{source} goes on alone: {reason}"));
    }

    fn stay_at_destination(&mut self, reason: &str) -> Result<(), Stale> {
        ensure(self.record.stage == Stage::FlippingBack && self.record.attempt.is_none(), "a flip is under way")?;
        self.warn("migration.rollback_given_up", format!("the volume stays at {}: {reason}", self.record.destination));
        self.record.stage = Stage::Settling;
        Ok(())
    }

    fn take_over(&mut self) -> Result<(), Stale> {
        let stages = [Stage::Settling, Stage::FlippingBack];
        ensure(stages.contains(&self.record.stage), "the migration is in another phase")?;
        ensure(self.lease.holder == self.record.destination, "the lease is elsewhere")?;
        ensure(self.record.way_back_open, "the way back is closed: the source lacks acknowledged writes")?;
        ensure(self.facts.lease_ran_out(), "the lease was renewed")?;
        let has_copy = self.facts.source_copy == SourceCopy::There || is_planted(Bug::TakeoverWithoutCopy);
        ensure(has_copy, "the source has lost its copy")?;
        let (source, destination) = (self.record.source.clone(), self.record.destination.clone());
        self.hand_over(source.clone(), None, None);
        self.record.attempt = None;
        self.record.resume = None;
        self.record.pause_pending = false;
        self.record.proven = false;
        // The source's grant stands first: no copy is dropped before it has adopted it.
        self.clean_up(&[
            (&source, CleanupTask::Grant),
            (&source, CleanupTask::End { drop_volume: false }),
            (&destination, CleanupTask::Grant),
            (&destination, CleanupTask::End { drop_volume: true }),
        ]);
        let text = format!(
            "{destination} is gone and its lease has run out: {source} takes over, nothing acknowledged is lost"
        );
        self.warn("migration.taken_over", text);
        self.enter(Stage::CleaningUp, format!("{source} holds the lease under epoch {}", self.lease.epoch));
        Ok(())
    }

    fn returned(&mut self) -> Result<(), Stale> {
        ensure(self.record.stage == Stage::Returning, "the migration is in another phase")?;
        let (source, destination) = (self.record.source.clone(), self.record.destination.clone());
        self.change_lease(None, None);
        self.clean_up(&[
            (&source, CleanupTask::End { drop_volume: false }),
            (&destination, CleanupTask::Grant),
            (&destination, CleanupTask::End { drop_volume: true }),
            (&source, CleanupTask::Grant),
        ]);
        self.enter(Stage::CleaningUp, format!("{source} serves again; {destination} lets its copy go"));
        Ok(())
    }

    fn cleaned_up(&mut self, cleanup: &Cleanup) -> Result<(), Stale> {
        let at = self.record.cleanup.iter().position(|pending| pending == cleanup);
        self.record.cleanup.remove(at.ok_or(Stale("that is done already"))?);
        Ok(())
    }

    fn rolled_back(&mut self) -> Result<(), Stale> {
        ensure(self.record.stage == Stage::CleaningUp, "the migration is in another phase")?;
        self.record.receipt.rolled_back = true;
        self.end(Stage::RolledBack, format!("the volume is at {} as before", self.record.source));
        Ok(())
    }

    fn fail(&mut self, reason: &str) -> Result<(), Stale> {
        ensure(self.record.stage == Stage::CleaningUp, "the migration is in another phase")?;
        let error = ApiError::new(drover_types::ErrorCode::NodeUnreachable, reason)
            .hint("the lease is the source's; both nodes are told when they return");
        self.record.error.get_or_insert(error);
        self.end(Stage::Failed, reason.into());
        Ok(())
    }

    fn pause(&mut self, paused: bool) -> Result<(), Stale> {
        let sends = self.record.stage.is_before_flip() || self.record.stage == Stage::Settling;
        ensure(sends, "the migration sends nothing any more")?;
        if self.record.paused != paused {
            self.record.paused = paused;
            let text = if paused { "sending is paused; writes are still tracked" } else { "sending goes on" };
            self.tell(if paused { "migration.paused" } else { "migration.resumed" }, text.into());
        }
        Ok(())
    }
}
