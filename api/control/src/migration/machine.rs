//! What to do next about a migration: a pure function of what is recorded, what was learned, and the time.
//!
//! Each stage, told with what holds when it succeeds and when it does not:
//!
//! - **planned** → tracking, once both nodes are there and nothing of an earlier migration is left to clean up. Neither
//!   within the deadline: rolled back, nothing had begun.
//! - **tracking**: the destination makes an empty mirror and reserves its space, then the source freezes the base and
//!   tracks. Both answered → copying. Refused for lack of space, or not answered within the deadline → rolled back.
//! - **copying**, **converging**: the sender works by itself and is watched. Ready → mirroring, its lease timed in the
//!   same step. Its node restarted or it failed → tracking under the next generation, comparing.
//! - **mirroring**: told to the source until answered. All arrived and durable, and the policy agrees → flipping. Hot first:
//!   all arrived, or known at the destination to be at the source, and enough of what is accessed arrived.
//! - **flipping**: the source drains, the destination confirms, the lease moves. Any failure before the lease moved →
//!   mirroring; the source is told to go on until it confirms, and the flip is tried again later.
//! - **settling**: both are told of the lease; the destination serves and mirrors back. Nothing at the source only any more,
//!   way back whole → proof →
//!   retention → committed. The destination silent until its lease has run out, way back open, and the source still has its copy → the source takes over. Once the
//!   source has lost its copy there is no proof any more: people are told, and their commit ends it.
//! - **flipping back**, **returning**: the same flip in the other direction; then the source serves alone.
//! - **cleaning up**: both are told that it is over → rolled back. One that is away is told later, after the end. A source
//!   that took over and has nothing to adopt is asked on, and people are told.
//! - **committed**, **rolled back**, **failed**: what is left of the clean-up, then nothing.

use super::knowledge::{Effect, Knowledge, ProofKey};
use super::slowing;
use super::transition::{Handover, SourceCopy, Transition};
use crate::config::{
    CLEANUP_PATIENCE, ControlConfig, DIRTY_AT_FLIP_MAX, FLUSH_AGE_AT_FLIP_MAX, PROGRESS_AGE_MAX, PROGRESS_EVERY,
    SENDER_FAILURES_MAX,
};
use drover_base::planted::{Bug, is_planted};
use drover_base::text::show_bytes;
use drover_base::{Generation, InstanceId, Instant, NodeId};
use drover_types::record::{Cleanup, CleanupTask, LeaseRecord, MigrationRecord, Stage};
use drover_types::{ApiError, CommitPolicy, Cutover, ErrorCode, ProofResult};
use drover_wire::admin::{Proof, Refusal, SendPhase, SendProgress};
use std::time::Duration;

/// A node as the control plane sees it now.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// As registered; `None`: never.
    pub instance: Option<InstanceId>,
    /// Time lived through since its last sign of life; `None`: none since the control plane's start.
    pub silence: Option<Duration>,
}

/// All that a decision rests on.
pub struct View<'a> {
    pub config: &'a ControlConfig,
    pub record: &'a MigrationRecord,
    pub lease: &'a LeaseRecord,
    pub knowledge: &'a Knowledge,
    pub source: NodeView,
    pub destination: NodeView,
    pub now: Instant,
    pub wall_ms: u64,
    /// Time that the control plane has lived through since its start: silences and deadlines are measured in it, so that
    /// its own standstill is nobody's fault.
    pub lived: Duration,
    /// Whether the lease has certainly run out.
    pub lease_ran_out: bool,
    pub source_copy: SourceCopy,
    /// Something of an earlier migration of this volume is left to be told to one of the two nodes.
    pub earlier_cleanup: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask the node.
    Ask { node: NodeId, effect: Effect },
    /// Store this.
    Record(Transition),
    /// Nothing to do before this time, or before something changes.
    Wait { until: Instant },
    /// Nothing to do any more.
    End,
}

/// What to do next.
pub fn next(view: &View<'_>) -> Step {
    let mut next = Next { view, ask: None, wake: view.now + WAKE_MAX };
    let decided: Decided = match view.record.stage {
        Stage::Planned => next.planned(),
        Stage::Tracking => next.tracking(),
        Stage::Copying | Stage::Converging => next.sending(),
        Stage::Mirroring => next.mirroring(),
        Stage::Flipping => next.flip(),
        Stage::Settling => next.settling(),
        Stage::FlippingBack => next.flipping_back(),
        Stage::Returning => next.returning(),
        Stage::CleaningUp => next.cleaning_up(),
        Stage::Committed | Stage::RolledBack | Stage::Failed => return next.finished(),
    };
    let decided = decided.or_else(|| slowing::decide(view.record, view.knowledge, view.now));
    match (decided, next.ask) {
        (Some(transition), _) => Step::Record(transition),
        (None, Some((node, effect))) => Step::Ask { node, effect },
        (None, None) => Step::Wait { until: next.wake },
    }
}

/// What a migration that could go on waits for.
pub struct Wait {
    /// For people to read.
    pub what: String,
    /// It goes on when somebody asks for it, and not before.
    pub needs_person: bool,
}

pub fn waits_for(view: &View<'_>) -> Option<Wait> {
    let record = view.record;
    let person = |what: &str| Some(Wait { what: what.into(), needs_person: true });
    let itself = |what: String| Some(Wait { what, needs_person: false });
    if record.paused {
        return person("to be resumed");
    }
    if view.knowledge.link_down_since.is_some() && record.stage.is_before_flip() {
        return itself(format!("{} to reach {} at its migration address", record.source, record.destination));
    }
    match record.stage {
        Stage::Planned if view.earlier_cleanup => itself("the clean-up of an earlier migration".into()),
        Stage::Mirroring => {
            let next = Next { view, ask: None, wake: view.now };
            match (next.gate(), record.options.window) {
                (Err(why), _) => itself(why),
                (Ok(()), _) if next.policy_agrees() => None,
                (Ok(()), Some(window)) => itself(format!("its window, {window} UTC")),
                (Ok(()), None) => person("the cutover"),
            }
        }
        Stage::Settling if view.source_copy == SourceCopy::Lost => person("a decision: the source has lost its copy"),
        Stage::Settling if record.proof_failed => person("a decision: the proof failed"),
        Stage::Settling if !record.way_back_open => itself("the way back to open".into()),
        Stage::Settling if left_behind(view) > 0 => itself(format!("{} to be fetched", show_bytes(left_behind(view)))),
        Stage::Settling if record.proven && record.options.commit == CommitPolicy::Manual => person("the commit"),
        Stage::Settling if record.proven => itself("the retention time".into()),
        Stage::FlippingBack => Next { view, ask: None, wake: view.now }.way_back_whole().err().and_then(itself),
        _ => None,
    }
}

/// Bytes of blocks that the holder has yet to fetch, as it last said.
fn left_behind(view: &View<'_>) -> u64 {
    view.knowledge.report.as_ref().map_or(0, |report| remote_bytes(&report.progress))
}

/// Everything is looked at again at least this often.
const WAKE_MAX: Duration = Duration::from_secs(1);

struct Next<'a> {
    view: &'a View<'a>,
    ask: Option<(NodeId, Effect)>,
    wake: Instant,
}

type Decided = Option<Transition>;

impl Next<'_> {
    fn record(&self) -> &MigrationRecord {
        self.view.record
    }
    fn known(&self) -> &Knowledge {
        self.view.knowledge
    }
    fn node(&self, node: &NodeId) -> &NodeView {
        if *node == self.record().source { &self.view.source } else { &self.view.destination }
    }
    /// The side that holds and sends, and the other.
    fn sides(&self) -> (NodeId, NodeId) {
        let (holder, other) = self.record().sides();
        (holder.clone(), other.clone())
    }

    /// Proposes to ask the node, unless something else was proposed or it was asked in vain a moment ago.
    fn ask(&mut self, node: &NodeId, effect: Effect) {
        if self.ask.is_some() || self.node(node).instance.is_none() {
            return;
        }
        match self.known().not_before(node, &effect) {
            Some(not_before) if not_before > self.view.now => self.wake_at(not_before),
            _ => self.ask = Some((node.clone(), effect)),
        }
    }

    /// `at` lies in the future: what is due is done, not waited for.
    fn wake_at(&mut self, at: Instant) {
        debug_assert!(at > self.view.now, "a wait that has passed would spin");
        self.wake = self.wake.min(at);
    }

    /// How long the node has been away, the time before the control plane's start not counted.
    fn away(&self, node: &NodeId) -> Duration {
        self.node(node).silence.unwrap_or(self.view.lived)
    }

    /// How long the migration has been in its stage.
    fn in_stage(&self) -> Duration {
        self.view.lived.saturating_sub(self.known().lived_since)
    }

    fn peer_deadline(&self) -> Duration {
        Duration::from_millis(self.record().options.peer_deadline_ms)
    }

    fn give_up(&self, code: ErrorCode, reason: String) -> Decided {
        let error = ApiError::new(code, format!("the migration was rolled back: {reason}"));
        Some(Transition::RollBack { reason, error: Some(error) })
    }

    /// Before the flip: a side that stays away ends the migration.
    fn deadlines(&self) -> Decided {
        let deadline = self.peer_deadline();
        for node in [&self.record().source, &self.record().destination] {
            if self.away(node) >= deadline {
                return self.give_up(ErrorCode::NodeUnreachable, format!("{node} has been away for {deadline:?}"));
            }
        }
        match self.known().link_down_since {
            Some(since) if self.view.lived.saturating_sub(since) >= deadline => {
                let (source, destination) = self.sides();
                let reason =
                    format!("{source} could not reach {destination} at its migration address for {deadline:?}");
                self.give_up(ErrorCode::NodeUnreachable, reason)
            }
            _ => None,
        }
    }

    fn stage_deadline(&self, what: &str) -> Decided {
        if self.in_stage() < self.peer_deadline() {
            return None;
        }
        let cause = self.known().refused.as_ref().map_or(String::new(), |(_, refusal)| format!(": {refusal}"));
        self.give_up(ErrorCode::NodeFailed, format!("{what} did not come to an end{cause}"))
    }

    fn planned(&mut self) -> Decided {
        let registered = self.view.source.instance.is_some() && self.view.destination.instance.is_some();
        if registered && !self.view.earlier_cleanup {
            return Some(Transition::StartTracking);
        }
        self.deadlines().or_else(|| self.stage_deadline("the preparation"))
    }

    fn tracking(&mut self) -> Decided {
        if let Some((Effect::Prepare | Effect::BeginSend, Refusal::NoSpace { needed, free })) = &self.known().refused {
            return self.give_up(ErrorCode::NoSpace, format!("{needed} bytes are needed, {free} are free"));
        }
        let (source, destination) = self.sides();
        let generation = self.record().generation;
        let restarted =
            |(instance, of): (InstanceId, _)| of == generation && Some(instance) != self.view.source.instance;
        if self.known().unsure == Some(generation) {
            return Some(Transition::StartOver { reason: "the control plane restarted while tracking began".into() });
        }
        if self.known().begin_asked.is_some_and(restarted) {
            return Some(Transition::StartOver { reason: format!("{source} restarted while tracking began") });
        }
        let done = |done: Option<(InstanceId, _)>, node: &NodeView| {
            done.is_some_and(|done| Some(done.0) == node.instance && done.1 == generation)
        };
        let prepared = done(self.known().prepared, &self.view.destination);
        let begun = done(self.known().begun, &self.view.source);
        if prepared && begun {
            return Some(Transition::Began);
        }
        let late = self.deadlines().or_else(|| self.stage_deadline("the preparation"));
        if late.is_some() {
            return late;
        }
        if generation > Generation(0) {
            // It started over: the source's lease has no limit any more, whether or not the destination can be reached.
            self.tell(&source);
        }
        self.resume(&source);
        if prepared {
            self.ask(&source, Effect::BeginSend);
        } else {
            self.ask(&destination, Effect::Prepare);
        }
        None
    }

    /// Whether the sender before the flip has to start over, and why.
    fn sender_is_lost(&self) -> Decided {
        let source = &self.view.source;
        let generation = self.record().generation;
        if let Some((node, instance, of)) = &self.known().sender_lost
            && *node == self.record().source
            && Some(*instance) == source.instance
            && *of == generation
        {
            return Some(Transition::StartOver { reason: format!("{node} no longer sends") });
        }
        let restarted =
            self.known().begun.is_some_and(|(instance, of)| of == generation && Some(instance) != source.instance);
        if restarted {
            return Some(Transition::StartOver { reason: format!("{} has restarted", self.record().source) });
        }
        let report = self.known().report.as_ref()?;
        if report.progress.phase != SendPhase::Failed {
            return None;
        }
        let error = report.progress.error.clone().unwrap_or_else(|| "the sender failed".into());
        if self.known().sender_failures >= SENDER_FAILURES_MAX {
            return self.give_up(ErrorCode::NodeFailed, error);
        }
        Some(Transition::StartOver { reason: error })
    }

    fn tune(&mut self, sender: &NodeId) {
        let record = self.record();
        let wanted = (record.options.throttle_bytes_per_s, record.paused);
        let generation = record.generation;
        let told = self
            .known()
            .tuned
            .filter(|(instance, of, ..)| Some(*instance) == self.node(sender).instance && *of == generation);
        if told.map(|(_, _, throttle, paused)| (throttle, paused)) != Some(wanted) {
            self.ask(sender, Effect::Tune);
        }
    }

    fn poll(&mut self, sender: &NodeId) {
        let due = self.known().report.as_ref().map(|report| report.at + PROGRESS_EVERY);
        match due {
            Some(due) if due > self.view.now => self.wake_at(due),
            _ => self.ask(sender, Effect::Progress),
        }
    }

    /// The sender's report, if recent and of its present start.
    fn fresh(&self) -> Option<&SendProgress> {
        let report = self.known().report.as_ref()?;
        let (holder, _) = self.record().sides();
        let recent = self.view.now.since(report.at) <= PROGRESS_AGE_MAX
            && report.node == *holder
            && Some(report.instance) == self.node(holder).instance;
        recent.then_some(&report.progress)
    }

    /// No attempt is under way: a holder that drained goes on.
    fn resume(&mut self, holder: &NodeId) {
        let stray = self.fresh().is_some_and(|progress| progress.phase == SendPhase::Drained);
        match self.record().resume {
            Some(attempt) => self.ask(holder, Effect::Resume { attempt }),
            // A delayed request to drain reached it after its attempt was over.
            None if stray => self.ask(holder, Effect::Resume { attempt: self.record().attempts }),
            None => {}
        }
    }

    fn sending(&mut self) -> Decided {
        let lost = self.sender_is_lost().or_else(|| self.deadlines());
        if lost.is_some() {
            return lost;
        }
        let (source, _) = self.sides();
        if let Some(progress) = self.fresh() {
            let options = &self.record().options;
            let at_once = (options.mirror_at_once || options.hot_first) && progress.phase >= SendPhase::Copying;
            let ready = progress.ready_to_mirror || progress.phase >= SendPhase::Mirroring || at_once;
            if ready && progress.link_up && !self.record().paused {
                return Some(Transition::BeginMirroring);
            }
            if self.record().stage == Stage::Copying && progress.phase >= SendPhase::Converging {
                return Some(Transition::Converge);
            }
        }
        self.resume(&source);
        self.tune(&source);
        self.poll(&source);
        None
    }

    fn mirroring(&mut self) -> Decided {
        let lost = self.sender_is_lost().or_else(|| self.deadlines());
        if lost.is_some() {
            return lost;
        }
        let (source, _) = self.sides();
        let mirroring =
            self.known().mirroring == self.view.source.instance.map(|instance| (instance, self.record().generation));
        match self.gate() {
            Ok(()) if mirroring && self.policy_agrees() => match self.known().flip_not_before {
                Some(not_before) if not_before > self.view.now => self.wake_at(not_before),
                _ => return Some(Transition::BeginFlip),
            },
            Err(reason) if self.cutover_is_late() => return Some(Transition::RefuseCutover { reason }),
            _ => {}
        }
        self.resume(&source);
        if !mirroring && !self.record().paused {
            self.ask(&source, Effect::BeginMirror);
        }
        self.tune(&source);
        self.poll(&source);
        None
    }

    /// Whether everything is in place for a flip, the policy apart.
    fn gate(&self) -> Result<(), String> {
        if self.record().paused {
            return Err("sending is paused".into());
        }
        if self.record().resume.is_some() {
            return Err("the last attempt's holder has yet to confirm that it goes on".into());
        }
        if self.node(&self.record().destination).instance.is_none() {
            return Err("the destination is not there".into());
        }
        self.whole(false)?;
        self.covered()
    }

    /// Hot first: whether enough of what is accessed has arrived.
    fn covered(&self) -> Result<(), String> {
        let options = &self.record().options;
        let Some(progress) = self.fresh().filter(|_| options.hot_first) else { return Ok(()) };
        let permille = progress.coverage_permille.unwrap_or(0);
        if permille >= options.coverage_percent * 10 {
            return Ok(());
        }
        let (percent, tenth) = (permille / 10, permille % 10);
        Err(format!(
            "the destination has {percent}.{tenth} % of what is accessed, {} % are asked for; {} are still at the source only",
            options.coverage_percent,
            show_bytes(progress.remote_bytes)
        ))
    }

    /// Whether the other side has everything, as of the sender's last report.
    fn whole(&self, proving: bool) -> Result<(), String> {
        let progress = self.fresh().ok_or("there is no recent report of the sender")?;
        let synced = match progress.phase {
            SendPhase::Synced | SendPhase::Proven => true,
            SendPhase::Proving => proving,
            _ => false,
        };
        if !synced || !progress.link_up {
            return Err(format!("{} bytes have yet to arrive", progress.dirty_bytes));
        }
        if progress.dirty_bytes > DIRTY_AT_FLIP_MAX {
            return Err(format!("{} bytes are not durable at the other side", progress.dirty_bytes));
        }
        match progress.last_flush_ms_ago {
            Some(ago) if Duration::from_millis(ago) <= FLUSH_AGE_AT_FLIP_MAX => Ok(()),
            Some(ago) => Err(format!("the other side last flushed {ago} ms ago")),
            None => Err("the other side has not flushed yet".into()),
        }
    }

    fn policy_agrees(&self) -> bool {
        let options = &self.record().options;
        self.record().cutover_requested
            || match options.cutover {
                Cutover::Auto => true,
                Cutover::Manual => false,
                Cutover::Window => options.window.is_some_and(|window| window.contains(self.view.wall_ms)),
            }
    }

    fn cutover_is_late(&self) -> bool {
        let waits = self.known().gate_awaited_from.map(|from| self.view.lived.saturating_sub(from));
        self.record().cutover_requested && waits.is_some_and(|waits| waits >= self.view.config.gate_deadline)
    }

    /// One attempt: drain, confirm, move the lease.
    fn flip(&mut self) -> Decided {
        let attempt = self.record().attempt.unwrap_or_default();
        let (holder, other) = self.sides();
        if is_planted(Bug::FlipWithoutDrain) {
            let handover = Handover { attempt, instance: InstanceId(0), position: Default::default() };
            return Some(Transition::MoveLease { handover });
        }
        if let Some((failed, reason)) = &self.known().flip_failed
            && *failed == attempt
        {
            return Some(Transition::GiveUpFlip { reason: reason.clone() });
        }
        let pause_max = Duration::from_millis(self.record().options.pause_ms_max);
        let began = self.known().quiesce_began.filter(|(of, _)| *of == attempt);
        let late = began.is_some_and(|(_, began)| self.view.now.since(began) >= pause_max);
        let drained = self.known().drained.filter(|(of, ..)| *of == attempt);
        match drained {
            Some((_, instance, _)) if Some(instance) != self.node(&holder).instance => {
                Some(Transition::GiveUpFlip { reason: format!("{holder} restarted after it drained") })
            }
            Some((_, instance, position)) if self.known().confirmed == Some((attempt, position)) => {
                let handover = Handover { attempt, instance, position };
                Some(Transition::MoveLease { handover })
            }
            _ if late => Some(Transition::GiveUpFlip { reason: format!("it took longer than {pause_max:?}") }),
            Some((_, _, position)) => {
                self.ask(&other, Effect::Confirm { attempt, position });
                None
            }
            None if self.node(&holder).instance.is_none() => {
                Some(Transition::GiveUpFlip { reason: format!("{holder} is not there") })
            }
            None => {
                self.ask(&holder, Effect::Quiesce { attempt });
                None
            }
        }
    }

    fn is_told(&self, node: &NodeId) -> bool {
        let lease = self.view.lease;
        let told = self.known().told.get(node);
        told.is_some_and(|told| {
            Some(told.0) == self.node(node).instance && (told.1, told.2) == (lease.epoch, lease.revision)
        })
    }

    fn tell(&mut self, node: &NodeId) {
        if !self.is_told(node) {
            self.ask(node, Effect::Grant);
        }
    }

    /// The holder is certainly not serving any more, and the source can.
    fn takeover(&self) -> Decided {
        let source_there = self.away(&self.record().source) < crate::nodes::SILENT_AFTER;
        let has_copy = self.view.source_copy == SourceCopy::There || is_planted(Bug::TakeoverWithoutCopy);
        let due = self.record().way_back_open && self.view.lease_ran_out && source_there && has_copy;
        due.then_some(Transition::TakeOver)
    }

    /// The source says that it does not store the volume.
    fn copy_lost(&self) -> Decided {
        let record = self.record();
        if self.view.source_copy != SourceCopy::Lost {
            None
        } else if !record.copy_lost {
            Some(Transition::CopyLost)
        } else {
            let is_meant = record.stage == Stage::Settling && record.commit_requested;
            is_meant.then_some(Transition::CommitAlone)
        }
    }

    fn settling(&mut self) -> Decided {
        let decided = self.takeover().or_else(|| self.copy_lost());
        if decided.is_some() {
            return decided;
        }
        let (holder, other) = self.sides();
        let flipped = self.flipped(&holder, &other);
        if flipped.is_some() {
            return flipped;
        }
        self.tell(&holder);
        self.tell(&other);
        let told = self.is_told(&holder) && self.is_told(&other);
        if told {
            self.resume(&holder);
            let decided = self.release();
            if decided.is_some() {
                return decided;
            }
            self.tune(&holder);
        }
        self.poll(&holder);
        None
    }

    /// The new holder serves: how long was the pause? Clients of the other side wait until that was told, too: it comes
    /// before the figure is stored, unless it was tried in vain.
    fn flipped(&self, holder: &NodeId, other: &NodeId) -> Decided {
        if !self.record().pause_pending || !self.is_told(holder) {
            return None;
        }
        let may_be_told = self.node(other).instance.is_some() && !self.known().is_tried(other, &Effect::Grant);
        if !self.is_told(other) && may_be_told {
            return None;
        }
        let began = self.known().quiesce_began.filter(|(attempt, _)| *attempt == self.record().attempts);
        let served = self.known().served.as_ref().filter(|(node, _)| node == holder);
        let pause_ms = match (began, served) {
            (Some((_, began)), Some((_, served))) => served.since(began).as_millis() as u64,
            // The control plane restarted in between.
            _ => self.view.wall_ms.saturating_sub(self.record().attempt_began_ms),
        };
        Some(Transition::Flipped { pause_ms })
    }

    /// Proof, retention, commit.
    fn release(&mut self) -> Decided {
        let record = self.record();
        if is_planted(Bug::ProofSkipped) && record.way_back_open && record.options.commit == CommitPolicy::Auto {
            return Some(Transition::Commit);
        }
        if !record.way_back_open || record.proof_failed || record.resume.is_some() || self.whole(true).is_err() {
            return None;
        }
        let progress = self.fresh()?.clone();
        if remote_bytes(&progress) > 0 {
            return None;
        }
        let (holder, _) = self.sides();
        if record.proven {
            let proven_at = self.known().proven_at.unwrap_or(self.known().since);
            let until = proven_at + Duration::from_millis(record.options.retention_ms);
            let by_itself = record.options.commit == CommitPolicy::Auto;
            if (by_itself && until <= self.view.now) || record.commit_requested {
                return Some(Transition::Commit);
            }
            if by_itself {
                self.wake_at(until);
            }
            return None;
        }
        let about = ProofKey::new(record, |node| self.node(node).instance);
        let begun = self.known().proof_begun.as_ref().filter(|(begun, _)| *begun == about).map(|(_, at)| *at);
        let Some(begun) = begun else {
            self.ask(&holder, Effect::BeginProof);
            return None;
        };
        if self.known().report.as_ref().is_none_or(|report| report.at <= begun) {
            // It may tell of an earlier proof.
            return None;
        }
        match progress.proof {
            Some(proof) if is_sound(&proof) && progress.phase == SendPhase::Proven => {
                Some(Transition::Proven { proof: result(&proof) })
            }
            Some(proof) if proof.regions_different > 0 || proof.regions_thicker > 0 => {
                Some(Transition::ProofFailed { proof: result(&proof) })
            }
            _ => None,
        }
    }

    /// Whether a rollback after the flip would lose nothing now.
    fn way_back_whole(&self) -> Result<(), String> {
        if !self.record().way_back_open {
            return Err("the way back is closed: the source lacks writes".into());
        }
        let (holder, other) = self.record().sides();
        if !self.is_told(holder) || !self.is_told(other) {
            return Err("both sides have yet to adopt the lease".into());
        }
        if self.record().resume.is_some() {
            return Err("the last attempt's holder has yet to confirm that it goes on".into());
        }
        self.whole(true)
    }

    fn flipping_back(&mut self) -> Decided {
        if self.record().attempt.is_some() {
            return self.takeover().or_else(|| self.flip());
        }
        let takeover = self.takeover();
        if takeover.is_some() {
            return takeover;
        }
        let (holder, other) = self.sides();
        match self.way_back_whole() {
            Ok(()) => match self.known().flip_not_before {
                Some(not_before) if not_before > self.view.now => self.wake_at(not_before),
                _ => return Some(Transition::BeginFlip),
            },
            Err(reason) => {
                if self.in_stage() >= self.view.config.rollback_deadline {
                    return Some(Transition::StayAtDestination { reason });
                }
            }
        }
        self.tell(&holder);
        self.tell(&other);
        self.resume(&holder);
        self.poll(&holder);
        None
    }

    fn returning(&mut self) -> Decided {
        let (source, destination) = self.sides();
        let flipped = self.flipped(&source, &destination);
        if flipped.is_some() {
            return flipped;
        }
        let destination_tried = self.is_told(&destination) || self.known().is_tried(&destination, &Effect::Grant);
        if self.is_told(&source) && destination_tried {
            return Some(Transition::Returned);
        }
        self.tell(&source);
        self.tell(&destination);
        None
    }

    fn cleaning_up(&mut self) -> Decided {
        let record = self.record();
        if record.cleanup.is_empty() {
            return Some(Transition::RolledBack);
        }
        let source_done = record.cleanup.iter().all(|cleanup| cleanup.node != record.source);
        let destination_done = record.cleanup.iter().all(|cleanup| cleanup.node != record.destination);
        let patient = self.in_stage() < CLEANUP_PATIENCE;
        let left_for_later = |node: &NodeId| !patient && self.away(node) >= CLEANUP_PATIENCE;
        if source_done && left_for_later(&record.destination) || destination_done && left_for_later(&record.source) {
            return Some(Transition::RolledBack);
        }
        let gone = |node: &NodeId| self.away(node) >= self.peer_deadline();
        if !source_done && !destination_done && gone(&record.source) && gone(&record.destination) {
            return Some(Transition::Fail { reason: format!("{} is gone, and so is its copy", record.source) });
        }
        if record.cleanup.iter().any(|task| is_awaited(&record.cleanup, &self.view.lease.holder, task)) {
            let lost = self.copy_lost();
            if lost.is_some() {
                return lost;
            }
        }
        self.ask_cleanup();
        None
    }

    /// The first thing left for each node, in order; after a commit strictly one after the other: the source's copy is
    /// dropped only when the destination no longer counts on it. After a takeover, too, no copy is dropped before the
    /// new holder has adopted its lease: until then it may turn out to have none.
    fn ask_cleanup(&mut self) {
        let strict = self.record().stage == Stage::Committed;
        let mut seen: Vec<&NodeId> = Vec::new();
        let mut adopted = true;
        let cleanup: Vec<Cleanup> = self.record().cleanup.clone();
        for pending in &cleanup {
            adopted &= !is_awaited(&cleanup, &self.view.lease.holder, pending);
            let must_wait = pending.task == CleanupTask::End { drop_volume: true } && !adopted;
            if !must_wait && !seen.contains(&&pending.node) {
                self.ask(&pending.node, Effect::Cleanup(pending.clone()));
            }
            seen.push(&pending.node);
            if strict {
                break;
            }
        }
    }

    fn finished(mut self) -> Step {
        if self.record().cleanup.is_empty() {
            return Step::End;
        }
        self.ask_cleanup();
        match self.ask {
            Some((node, effect)) => Step::Ask { node, effect },
            None => Step::Wait { until: self.wake },
        }
    }
}

/// Bytes of blocks that the holder has yet to fetch.
pub fn remote_bytes(progress: &SendProgress) -> u64 {
    progress.pull.as_ref().map_or(0, |pull| pull.remote_bytes)
}

fn is_sound(proof: &Proof) -> bool {
    proof.regions_equal == proof.regions_total && proof.regions_different == 0 && proof.regions_thicker == 0
}

fn result(proof: &Proof) -> ProofResult {
    ProofResult {
        regions_total: proof.regions_total,
        regions_equal: proof.regions_equal,
        regions_different: proof.regions_different,
        regions_thicker: proof.regions_thicker,
    }
}

/// Whether a copy is dropped only after `task`: it tells the holder, and what drops a copy stands behind it.
pub fn is_awaited(cleanup: &[Cleanup], holder: &NodeId, task: &Cleanup) -> bool {
    let drops = |pending: &Cleanup| pending.task == CleanupTask::End { drop_volume: true };
    let at = cleanup.iter().position(|pending| pending == task);
    let is_grant = task.task == CleanupTask::Grant && task.node == *holder;
    is_grant && at.is_some_and(|at| cleanup[at..].iter().any(drops))
}

/// Whether a refusal of a clean-up means that there is nothing left to do.
pub fn is_settled(task: CleanupTask, refusal: &Refusal) -> bool {
    match task {
        CleanupTask::Resume { .. } => true,
        CleanupTask::Grant | CleanupTask::End { .. } => matches!(refusal, Refusal::NotFound { .. }),
    }
}
