//! What the control plane has learned from answers in its present life. Lost with a restart, and asked for again.
//!
//! Every entry names what it is about (instance, generation, attempt, epoch), so that an answer that comes late, or from
//! a node that has restarted since, proves nothing.

use crate::config::{BACKOFF_MAX, BACKOFF_MIN, FLIP_BACKOFF_MAX, FLIP_BACKOFF_MIN};
use crate::lived::Moment;
use drover_base::planted::{Bug, is_planted};
use drover_base::{Epoch, Generation, InstanceId, Instant, NodeId};
use drover_types::record::{Cleanup, MigrationRecord, Shown, Stage};
use drover_wire::admin::{Position, Refusal, SendPhase, SendProgress};
use std::{collections::BTreeMap, time::Duration};

/// What a node is asked. Each can be asked again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Prepare,
    BeginSend,
    BeginMirror,
    Tune,
    Progress,
    Quiesce { attempt: u64 },
    Confirm { attempt: u64, position: Position },
    Resume { attempt: u64 },
    Grant,
    BeginProof,
    Cleanup(Cleanup),
}

impl Effect {
    /// What failures in a row are counted by.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::BeginSend => "begin_send",
            Self::BeginMirror => "begin_mirror",
            Self::Tune => "tune",
            Self::Progress => "progress",
            Self::Quiesce { .. } => "quiesce",
            Self::Confirm { .. } => "confirm",
            Self::Resume { .. } => "resume",
            Self::Grant => "grant",
            Self::BeginProof => "begin_proof",
            Self::Cleanup(_) => "cleanup",
        }
    }
}

/// What a node answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Done,
    /// Where, and for how long of the request clients were still admitted.
    Drained(Position, Duration),
    Progress(Box<SendProgress>),
    Refused(Refusal),
    /// Whether it did what it was asked is unknown.
    Unknown(String),
}

/// A request as it was made: what it was about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub node: NodeId,
    /// The node's instance as registered when it was asked.
    pub instance: InstanceId,
    pub effect: Effect,
    pub generation: Generation,
    /// The lease as it was.
    pub epoch: Epoch,
    pub revision: u64,
    pub throttle: Option<u64>,
    pub paused: bool,
    /// What a proof that is begun now would be about.
    pub proof: ProofKey,
    pub at: Instant,
}

/// What a proof is about: both sides as they are, and no word about the way back since. Whatever changes of it makes the
/// proof say nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProofKey {
    pub holder: Option<InstanceId>,
    pub other: Option<InstanceId>,
    pub generation: Generation,
    pub way_back_change: Option<(InstanceId, u64)>,
    pub way_back_open: bool,
}

impl ProofKey {
    pub fn new(record: &MigrationRecord, instance: impl Fn(&NodeId) -> Option<InstanceId>) -> Self {
        let (holder, other) = record.sides();
        Self {
            holder: instance(holder),
            other: instance(other),
            generation: record.generation,
            way_back_change: record.way_back_change,
            way_back_open: record.way_back_open,
        }
    }
}

/// A sender's report.
#[derive(Clone, Debug)]
pub struct Report {
    pub at: Instant,
    pub node: NodeId,
    pub instance: InstanceId,
    pub progress: SendProgress,
}

#[derive(Clone, Copy, Debug)]
struct Tries {
    failures: u32,
    not_before: Instant,
}

/// The same work, in the same generation, by the same start of a node.
type Done = Option<(InstanceId, Generation)>;

#[derive(Default)]
pub struct Knowledge {
    stage: Option<(Stage, Generation)>,
    /// When the stage began, in this life.
    pub since: Instant,
    /// The same in time lived through.
    pub lived_since: Duration,
    pub prepared: Done,
    /// A start of the source that was asked to begin, whatever came of it.
    pub begin_asked: Done,
    pub begun: Done,
    /// Tracking began under this generation in an earlier life of the control plane: what came of it is unknown.
    pub unsure: Option<Generation>,
    pub mirroring: Done,
    /// What was begun to be proven, and when that was answered.
    pub proof_begun: Option<(ProofKey, Instant)>,
    pub tuned: Option<(InstanceId, Generation, Option<u64>, bool)>,
    /// The sender said that it knows nothing of this migration.
    pub sender_lost: Option<(NodeId, InstanceId, Generation)>,
    pub report: Option<Report>,
    /// In time lived through.
    pub link_down_since: Option<Duration>,
    /// Attempt, the instance that drained, and where.
    pub drained: Option<(u64, InstanceId, Position)>,
    pub confirmed: Option<(u64, Position)>,
    /// An attempt that cannot succeed any more, and why.
    pub flip_failed: Option<(u64, String)>,
    pub quiesce_began: Option<(u64, Instant)>,
    pub flips_failed: u32,
    pub flip_not_before: Option<Instant>,
    /// When the new holder of the last flip said that it serves.
    pub served: Option<(NodeId, Instant)>,
    /// The lease that each node said it knows.
    pub told: BTreeMap<NodeId, (InstanceId, Epoch, u64)>,
    pub proven_at: Option<Instant>,
    /// Since when, in time lived through, a cutover that was asked for can wait for the other side: not while the copy is
    /// yet to come.
    pub gate_awaited_from: Option<Duration>,
    pub refused: Option<(Effect, Refusal)>,
    /// Senders in a row that failed by themselves.
    pub sender_failures: u32,
    pub shown: Shown,
    /// Since when reports say otherwise than the record whether clients are slowed.
    pub slowed_differs_since: Option<Instant>,
    /// Of what was sent or fetched, smoothed.
    pub rate_bytes_per_s: u64,
    tries: BTreeMap<(NodeId, &'static str), Tries>,
}

impl Knowledge {
    /// Nothing but what is recorded.
    pub fn of(record: &MigrationRecord) -> Self {
        Self { shown: record.shown, ..Self::default() }
    }

    /// The record is in this stage now.
    pub fn enter(&mut self, record: &MigrationRecord, at: Moment) {
        let stage = Some((record.stage, record.generation));
        if self.stage == stage {
            return;
        }
        let sender_changes = self.stage.is_some_and(|(before, generation)| {
            generation != record.generation || before.is_before_flip() != record.stage.is_before_flip()
        });
        if sender_changes {
            self.report = None;
            self.link_down_since = None;
            self.slowed_differs_since = None;
        }
        if record.pause_pending {
            self.flips_failed = 0;
            self.flip_not_before = None;
        }
        self.stage = stage;
        (self.since, self.lived_since) = (at.now, at.lived);
        self.refused = None;
        self.tries.clear();
    }

    pub fn is_tried(&self, node: &NodeId, effect: &Effect) -> bool {
        self.tries.contains_key(&(node.clone(), effect.name()))
    }

    /// When the node may be asked again.
    pub fn not_before(&self, node: &NodeId, effect: &Effect) -> Option<Instant> {
        self.tries.get(&(node.clone(), effect.name())).map(|tries| tries.not_before)
    }

    fn failed(&mut self, asked: &Asked, now: Instant) {
        let key = (asked.node.clone(), asked.effect.name());
        let failures = self.tries.get(&key).map_or(0, |tries| tries.failures) + 1;
        let wait = backoff(BACKOFF_MIN, BACKOFF_MAX, failures);
        self.tries.insert(key, Tries { failures, not_before: now + wait });
    }

    /// The node is about to be asked.
    pub fn asking(&mut self, asked: &Asked) {
        match asked.effect {
            Effect::BeginSend => self.begin_asked = Some((asked.instance, asked.generation)),
            Effect::Quiesce { attempt } if self.quiesce_began.is_none_or(|(of, _)| of != attempt) => {
                self.quiesce_began = Some((attempt, asked.at));
                self.served = None;
            }
            _ => {}
        }
    }

    /// A flip was given up: the next one waits.
    pub fn flip_given_up(&mut self, now: Instant) {
        self.flips_failed += 1;
        self.flip_not_before = Some(now + backoff(FLIP_BACKOFF_MIN, FLIP_BACKOFF_MAX, self.flips_failed));
        self.drained = None;
        self.confirmed = None;
    }

    /// Takes in an answer. `record` is as recorded now, which may differ from when it was asked.
    pub fn learn(&mut self, record: &MigrationRecord, asked: &Asked, answer: Answer, at: Moment) {
        let now = at.now;
        match (&asked.effect, answer) {
            (Effect::Progress, Answer::Progress(progress)) => {
                self.tries.remove(&(asked.node.clone(), asked.effect.name()));
                self.reported(record, asked, *progress, at);
            }
            (_, Answer::Done) => {
                self.tries.remove(&(asked.node.clone(), asked.effect.name()));
                self.done(asked, now);
            }
            (Effect::Quiesce { attempt }, Answer::Drained(position, admitted)) => {
                self.drained = Some((*attempt, asked.instance, position));
                if let Some((_, began)) = self.quiesce_began.as_mut().filter(|(of, _)| of == attempt) {
                    // The pause is what clients felt.
                    *began = (*began).max(asked.at + admitted);
                }
            }
            (effect, Answer::Refused(refusal)) => self.was_refused(asked, effect, refusal, now),
            (effect, Answer::Unknown(reason)) => {
                self.failed(asked, now);
                if let Effect::Quiesce { attempt } | Effect::Confirm { attempt, .. } = effect {
                    self.flip_failed = Some((*attempt, reason));
                }
            }
            (effect, answer) => {
                tracing::warn!(?effect, ?answer, node = %asked.node, "an answer to something else");
                self.failed(asked, now);
            }
        }
    }

    fn done(&mut self, asked: &Asked, now: Instant) {
        let done = Some((asked.instance, asked.generation));
        match &asked.effect {
            Effect::Prepare => self.prepared = done,
            Effect::BeginSend => self.begun = done,
            Effect::BeginMirror => self.mirroring = done,
            Effect::BeginProof => self.proof_begun = Some((asked.proof.clone(), now)),
            Effect::Tune => self.tuned = Some((asked.instance, asked.generation, asked.throttle, asked.paused)),
            Effect::Confirm { attempt, position } => self.confirmed = Some((*attempt, *position)),
            Effect::Grant => {
                self.served.get_or_insert((asked.node.clone(), now));
                self.told.insert(asked.node.clone(), (asked.instance, asked.epoch, asked.revision));
            }
            // The executor records these.
            Effect::Resume { .. } | Effect::Cleanup(_) => {}
            Effect::Progress | Effect::Quiesce { .. } => {}
        }
    }

    fn was_refused(&mut self, asked: &Asked, effect: &Effect, refusal: Refusal, now: Instant) {
        self.failed(asked, now);
        match effect {
            Effect::Quiesce { attempt } | Effect::Confirm { attempt, .. } => {
                self.flip_failed = Some((*attempt, refusal.to_string()));
            }
            Effect::Progress | Effect::Tune | Effect::BeginMirror | Effect::BeginProof => {
                if matches!(refusal, Refusal::NotFound { .. }) {
                    self.sender_lost = Some((asked.node.clone(), asked.instance, asked.generation));
                }
            }
            _ => {}
        }
        self.refused = Some((effect.clone(), refusal));
    }

    /// A report of an older generation, of another sender, or of an earlier start of this one, says nothing.
    fn reported(&mut self, record: &MigrationRecord, asked: &Asked, progress: SendProgress, at: Moment) {
        let current = progress.migration == record.migration
            && progress.generation == record.generation
            && *record.sides().0 == asked.node
            && asked.generation == record.generation;
        if !current && !is_planted(Bug::StaleProgressAccepted) {
            tracing::info!(migration = %record.migration, ?progress.generation, "a stale report was passed over");
            return;
        }
        self.link_down_since = match (progress.link_up, self.link_down_since) {
            (true, _) => None,
            (false, since) => since.or(Some(at.lived)),
        };
        match (progress.phase, self.report.as_ref().map(|report| report.progress.phase)) {
            (SendPhase::Failed, Some(SendPhase::Failed)) | (SendPhase::Connecting, _) => {}
            (SendPhase::Failed, _) => self.sender_failures += 1,
            _ => self.sender_failures = 0,
        }
        // A sender that fell back (its link broke) has to be told again to mirror.
        if matches!(progress.phase, SendPhase::Comparing | SendPhase::Copying | SendPhase::Converging) {
            self.mirroring = None;
        }
        self.measure(&progress, at.now);
        let differs = super::slowing::is_slowed(record, &progress) != record.slowed.is_some();
        self.slowed_differs_since = self.slowed_differs_since.or(Some(at.now)).filter(|_| differs);
        super::view::show(record, &progress, &mut self.shown);
        self.report = Some(Report { at: at.now, node: asked.node.clone(), instance: asked.instance, progress });
    }

    fn measure(&mut self, progress: &SendProgress, now: Instant) {
        let Some(earlier) = &self.report else { return };
        let millis = now.since(earlier.at).as_millis().max(1);
        let moved = progress.moved_bytes().saturating_sub(earlier.progress.moved_bytes());
        let rate = u64::try_from(u128::from(moved) * 1000 / millis).unwrap_or(u64::MAX);
        // A report weighs by the share of a second that it covers, half at most.
        let weight = u64::try_from(millis).unwrap_or(1000).min(500);
        let smoothed =
            u128::from(self.rate_bytes_per_s) * u128::from(1000 - weight) + u128::from(rate) * u128::from(weight);
        self.rate_bytes_per_s = u64::try_from(smoothed / 1000).unwrap_or(u64::MAX);
    }
}

/// `least` doubled with each failure after the first, at most `most`.
pub fn backoff(least: Duration, most: Duration, failures: u32) -> Duration {
    least.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(most)
}
