//! Carries one migration out: asks the machine what to do next, and does it.
//!
//! Invariants:
//! - what the machine decides is stored before anything is done about it;
//! - one executor a migration, doing one thing at a time: nothing that it asks is under way while it stores;
//! - a control plane that restarts starts an executor for every migration that is not over or has clean-up left.

use super::knowledge::{Answer, Asked, Effect, Knowledge, ProofKey};
use super::machine::{self, NodeView, Step, View};
use super::transition::{Facts, SourceCopy, Stale, Transition};
use super::view;
use crate::Control;
use crate::config::{LONG_WORK_DEADLINE, RPC_DEADLINE, WORK_DEADLINE};
use crate::leases::{address, grant};
use crate::ledger::StoreFailed;
use crate::nodes::CallError;
use crate::table::State;
use drover_base::{Instant, MigrationId, NodeId};
use drover_types::record::{Cleanup, CleanupTask, MigrationRecord, Stage};
use drover_types::{ApiError, ErrorCode, Migration};
use drover_wire::admin::{NodeReply, NodeRequest, Refusal, SendOptions};
use futures::future::select;
use std::{cell::RefCell, rc::Rc, time::Duration};

/// After the store failed.
const STORE_RETRY: Duration = Duration::from_millis(500);

/// What a request to drain may take beyond its own deadline before its outcome counts as unknown.
const QUIESCE_SLACK: Duration = Duration::from_millis(500);

/// The least that is waited for an answer in a flip.
const CONFIRM_DEADLINE_MIN: Duration = Duration::from_millis(50);

/// Why a transition was not stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error(transparent)]
    Stale(#[from] Stale),
    #[error(transparent)]
    Store(#[from] StoreFailed),
}

impl From<RecordError> for ApiError {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Stale(Stale(reason)) => ApiError::new(ErrorCode::PhaseConflict, reason),
            RecordError::Store(failed) => failed.into(),
        }
    }
}

pub struct Executor {
    control: Rc<Control>,
    id: MigrationId,
    knowledge: RefCell<Knowledge>,
    wake: tokio::sync::Notify,
}

impl Executor {
    pub fn new(control: Rc<Control>, record: &MigrationRecord) -> Rc<Self> {
        let mut knowledge = Knowledge::of(record);
        if record.stage == Stage::Tracking {
            knowledge.unsure = Some(record.generation);
        }
        if record.cutover_requested {
            knowledge.gate_awaited_from = Some(control.lived.now());
        }
        Rc::new(Self { control, id: record.migration, knowledge: RefCell::new(knowledge), wake: Default::default() })
    }

    /// Something changed that the machine should look at.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    pub async fn run(self: Rc<Self>) {
        while let Some(step) = self.next() {
            match step {
                Step::End => break,
                Step::Wait { until } => self.wait(until).await,
                Step::Ask { node, effect } => self.ask(&node, effect).await,
                Step::Record(transition) => self.record_own(transition).await,
            }
        }
    }

    async fn wait(&self, until: Instant) {
        let sleep = self.control.world.timer.sleep_until(until);
        select(std::pin::pin!(self.wake.notified()), sleep).await;
    }

    fn node_view(&self, state: &State, node: &NodeId) -> NodeView {
        NodeView { instance: state.node(node).map(|node| node.instance), silence: self.control.nodes.silence(node) }
    }

    /// Runs `look` on the present state; `None` when the migration is gone or its volume has no lease.
    fn with_view<T>(&self, look: impl FnOnce(&View<'_>) -> T) -> Option<T> {
        let control = &self.control;
        let state = control.ledger.state();
        let record = state.migration(self.id)?;
        let lease = state.lease(record.volume)?;
        let at = control.lived.moment();
        self.knowledge.borrow_mut().enter(record, at);
        let knowledge = self.knowledge.borrow();
        let facts = control.facts(&state, record, lease.holder.clone(), &knowledge);
        let earlier_cleanup = state.migrations_of(record.volume).any(|other| {
            other.migration != record.migration
                && other.cleanup.iter().any(|left| left.node == record.source || left.node == record.destination)
        });
        let view = View {
            config: &control.config,
            record,
            lease,
            knowledge: &knowledge,
            source: self.node_view(&state, &record.source),
            destination: self.node_view(&state, &record.destination),
            now: at.now,
            wall_ms: control.world.clock.wall_ms(),
            lived: at.lived,
            lease_ran_out: facts.lease_ran_out(),
            source_copy: facts.source_copy,
            earlier_cleanup,
        };
        Some(look(&view))
    }

    fn next(&self) -> Option<Step> {
        if !self.control.ledger.is_sure() {
            return Some(Step::Wait { until: self.control.world.now() + STORE_RETRY });
        }
        // A lease's row goes with its volume: then only the end is left, which needs none.
        self.with_view(machine::next)
    }

    /// The migration as people see it.
    pub fn view(&self) -> Option<Migration> {
        self.with_view(|view| view::view(view.record, Some(view.knowledge), machine::waits_for(view)))
    }

    async fn record_own(&self, transition: Transition) {
        let attempted = transition.clone();
        match self.control.record(self.id, transition).await {
            Ok(_) => self.recorded(&attempted),
            Err(RecordError::Stale(Stale(reason))) => {
                tracing::info!(migration = %self.id, ?attempted, reason, "decided on what is no longer so");
                if let Transition::MoveLease { handover } = &attempted {
                    self.knowledge.borrow_mut().flip_failed = Some((handover.attempt, reason.into()));
                    self.knowledge.borrow_mut().confirmed = None;
                } else {
                    // Whatever made it stale is in the state now; do not spin on it.
                    self.control.world.sleep(Duration::from_millis(10)).await;
                }
            }
            Err(RecordError::Store(_)) => self.control.world.sleep(STORE_RETRY).await,
        }
    }

    /// What follows in memory from what was stored.
    pub fn recorded(&self, transition: &Transition) {
        let now = self.control.world.now();
        let mut knowledge = self.knowledge.borrow_mut();
        match transition {
            Transition::GiveUpFlip { .. } => knowledge.flip_given_up(now),
            Transition::Proven { .. } => knowledge.proven_at = Some(now),
            Transition::RequestCutover | Transition::BeginMirroring => {
                knowledge.gate_awaited_from = Some(self.control.lived.now());
            }
            Transition::RequestCommit => knowledge.proof_begun = None,
            Transition::Slowed { .. } | Transition::Freed { .. } => knowledge.slowed_differs_since = None,
            Transition::StartOver { .. } => {
                knowledge.unsure = None;
                knowledge.sender_lost = None;
            }
            _ => {}
        }
    }

    async fn ask(&self, node: &NodeId, effect: Effect) {
        let Some((asked, record, request, admin)) = self.prepare(node, effect) else {
            // Its address is not known; it will register.
            self.wait(self.control.world.now() + STORE_RETRY).await;
            return;
        };
        let deadline = self.deadline(&record, &asked);
        self.knowledge.borrow_mut().asking(&asked);
        let answer = match self.control.nodes.call(node, &admin, &request, deadline).await {
            Ok(NodeReply::Done) => Answer::Done,
            Ok(NodeReply::Drained { position, admitted_ms }) => {
                Answer::Drained(position, Duration::from_millis(admitted_ms))
            }
            Ok(NodeReply::Progress(progress)) => Answer::Progress(progress),
            Ok(other) => Answer::Unknown(format!("an unexpected answer: {other:?}")),
            Err(CallError::Refused(refusal)) => Answer::Refused(refusal),
            Err(error) => Answer::Unknown(error.to_string()),
        };
        self.answered(&asked, answer).await;
    }

    async fn answered(&self, asked: &Asked, answer: Answer) {
        let settled = match (&asked.effect, &answer) {
            (Effect::Resume { attempt }, Answer::Done | Answer::Refused(_)) => {
                Some(Transition::Resumed { attempt: *attempt })
            }
            (Effect::Cleanup(cleanup), Answer::Done) => Some(Transition::CleanedUp { cleanup: cleanup.clone() }),
            (Effect::Cleanup(cleanup), Answer::Refused(refusal))
                if machine::is_settled(cleanup.task, refusal) && !self.is_awaited(cleanup) =>
            {
                Some(Transition::CleanedUp { cleanup: cleanup.clone() })
            }
            _ => None,
        };
        // A stray request to resume is about no attempt that is recorded.
        let recorded = self.control.ledger.state().migration(self.id).cloned();
        let Some(record) = recorded else { return };
        self.knowledge.borrow_mut().learn(&record, asked, answer, self.control.lived.moment());
        if let Some(transition) = settled {
            let stray = matches!(transition, Transition::Resumed { attempt } if record.resume != Some(attempt));
            if !stray {
                self.record_own(transition).await;
            }
        }
    }

    /// A holder that has no volume to adopt does not let another copy go.
    fn is_awaited(&self, cleanup: &Cleanup) -> bool {
        let state = self.control.ledger.state();
        let Some(record) = state.migration(self.id) else { return false };
        let lease = state.lease(record.volume);
        lease.is_some_and(|lease| machine::is_awaited(&record.cleanup, &lease.holder, cleanup))
    }

    fn deadline(&self, record: &MigrationRecord, asked: &Asked) -> Duration {
        let pause_max = Duration::from_millis(record.options.pause_ms_max);
        match &asked.effect {
            Effect::Prepare | Effect::BeginMirror => WORK_DEADLINE,
            Effect::BeginSend => LONG_WORK_DEADLINE,
            Effect::Quiesce { .. } => pause_max + QUIESCE_SLACK,
            Effect::Confirm { attempt, .. } => {
                let began = self.knowledge.borrow().quiesce_began.filter(|(of, _)| of == attempt);
                let spent = began.map_or(Duration::ZERO, |(_, began)| asked.at.since(began));
                pause_max.saturating_sub(spent).max(CONFIRM_DEADLINE_MIN)
            }
            Effect::Cleanup(cleanup) => match cleanup.task {
                CleanupTask::End { .. } => LONG_WORK_DEADLINE,
                CleanupTask::Resume { .. } | CleanupTask::Grant => RPC_DEADLINE,
            },
            Effect::Tune | Effect::Progress | Effect::Resume { .. } | Effect::Grant | Effect::BeginProof => {
                RPC_DEADLINE
            }
        }
    }

    /// The request, and what it is about.
    fn prepare(&self, node: &NodeId, effect: Effect) -> Option<(Asked, MigrationRecord, NodeRequest, String)> {
        let state = self.control.ledger.state();
        let record = state.migration(self.id)?;
        let lease = state.lease(record.volume)?;
        let registered = state.node(node)?;
        let asked = Asked {
            node: node.clone(),
            instance: registered.instance,
            effect,
            generation: record.generation,
            epoch: lease.epoch,
            revision: lease.revision,
            throttle: record.options.throttle_bytes_per_s,
            paused: record.paused,
            proof: ProofKey::new(record, |node| state.node(node).map(|node| node.instance)),
            at: self.control.world.now(),
        };
        let request = self.request(&state, record, &asked)?;
        Some((asked, record.clone(), request, registered.admin.clone()))
    }

    fn request(&self, state: &State, record: &MigrationRecord, asked: &Asked) -> Option<NodeRequest> {
        let (migration, generation, volume, epoch) = (record.migration, record.generation, record.volume, asked.epoch);
        let ttl_ms = u64::try_from(self.control.config.ttl.as_millis()).unwrap_or(u64::MAX);
        Some(match &asked.effect {
            Effect::Prepare => NodeRequest::PrepareReceive {
                migration,
                generation,
                volume,
                name: record.volume_name.clone(),
                size_bytes: record.size_bytes,
                reserve_bytes: record.plan.space_needed_bytes,
                epoch,
                source: address(state, &record.source)?,
                tenant: state.volume(volume)?.tenant.clone(),
            },
            Effect::BeginSend => NodeRequest::BeginSend {
                migration,
                generation,
                volume,
                epoch,
                destination: address(state, &record.destination)?,
                base_snapshot: base_snapshot(migration),
                options: SendOptions {
                    throttle_bytes_per_s: record.options.throttle_bytes_per_s,
                    mirror_at_once: record.options.mirror_at_once,
                    hot_first: record.options.hot_first,
                    dedup: record.options.dedup,
                },
                compare: generation.0 > 0,
            },
            Effect::BeginMirror => NodeRequest::BeginMirror { migration, generation, ttl_ms },
            Effect::Tune => {
                NodeRequest::Tune { migration, generation, throttle_bytes_per_s: asked.throttle, paused: asked.paused }
            }
            Effect::Progress => NodeRequest::Progress { migration },
            Effect::Quiesce { attempt } => {
                let deadline_ms = record.options.pause_ms_max;
                NodeRequest::Quiesce { migration, generation, epoch, attempt: *attempt, deadline_ms }
            }
            Effect::Confirm { position, .. } => {
                NodeRequest::ConfirmPosition { migration, generation, position: *position }
            }
            Effect::Resume { attempt } => NodeRequest::ResumeHolder { migration, generation, epoch, attempt: *attempt },
            Effect::Grant => NodeRequest::SetGrant { grant: grant(state, volume, &asked.node)? },
            Effect::BeginProof => NodeRequest::BeginProof { migration, generation },
            Effect::Cleanup(cleanup) => match cleanup.task {
                CleanupTask::Resume { attempt } => NodeRequest::ResumeHolder { migration, generation, epoch, attempt },
                CleanupTask::Grant => NodeRequest::SetGrant { grant: grant(state, volume, &asked.node)? },
                CleanupTask::End { drop_volume } => {
                    NodeRequest::EndMigration { migration, generation, volume, epoch, drop_volume }
                }
            },
        })
    }

    pub fn with_knowledge<T>(&self, look: impl FnOnce(&Knowledge) -> T) -> T {
        look(&self.knowledge.borrow())
    }
}

/// The name of the snapshot that a migration freezes.
pub fn base_snapshot(migration: MigrationId) -> String {
    format!("drover-{migration}")
}

impl Control {
    /// What is known of a migration beside its record.
    pub(crate) fn facts<'a>(
        &self,
        state: &State,
        record: &MigrationRecord,
        holder: NodeId,
        knowledge: &'a Knowledge,
    ) -> Facts<'a> {
        let own = knowledge.report.as_ref().filter(|report| report.node == *record.sides().0);
        Facts {
            ttl: self.config.ttl,
            drift: self.config.drift,
            lease_age: self.renewals.age(record.volume),
            holder_silence: self.nodes.silence(&holder),
            source_copy: self.source_copy(state, record, knowledge),
            progress: own.map(|report| &report.progress),
            shown: knowledge.shown,
        }
    }

    fn source_copy(&self, state: &State, record: &MigrationRecord, knowledge: &Knowledge) -> SourceCopy {
        let registered = state.node(&record.source).map(|node| node.instance);
        let report = self.nodes.report(&record.source).filter(|report| Some(report.status.instance) == registered);
        let Some(report) = report else { return SourceCopy::Unknown };
        match report.status.volumes.iter().any(|volume| volume.volume == record.volume) {
            true => SourceCopy::There,
            // One of before may be older than the volume.
            false if report.at < knowledge.since => SourceCopy::Unknown,
            false => SourceCopy::Lost,
        }
    }

    /// Stores a transition of a migration, if it still applies.
    pub(crate) async fn record(&self, id: MigrationId, transition: Transition) -> Result<MigrationRecord, RecordError> {
        let executor = self.executor(id);
        let moves = matches!(transition, Transition::MoveLease { .. } | Transition::BeginMirroring);
        let record = self
            .ledger
            .commit(|state, changes| {
                let record = state.migration(id).ok_or(Stale("there is no such migration"))?;
                let holder = state.lease(record.volume).ok_or(Stale("the volume has no lease"))?.holder.clone();
                match &executor {
                    Some(executor) => executor.with_knowledge(|knowledge| {
                        let facts = self.facts(state, record, holder, knowledge);
                        transition.store(state, record, &facts, changes)
                    }),
                    None => {
                        let knowledge = Knowledge::of(record);
                        transition.store(state, record, &self.facts(state, record, holder, &knowledge), changes)
                    }
                }
                .map_err(RecordError::Stale)
            })
            .await?;
        if moves {
            // The holder's time begins no earlier than this.
            self.renewals.renewed(record.volume);
        }
        Ok(record)
    }

    /// Refusals that a person should know of once.
    pub(crate) fn refusal_error(node: &NodeId, refusal: &Refusal) -> ApiError {
        let (code, hint) = match refusal {
            Refusal::NotFound { .. } => (ErrorCode::VolumeNotFound, None),
            Refusal::Conflict { .. } => (ErrorCode::PhaseConflict, None),
            Refusal::NoSpace { .. } => (ErrorCode::NoSpace, Some("free space on the node, or choose another")),
            Refusal::NoTiers => (ErrorCode::NoSpace, Some("choose a node with tiers")),
            Refusal::Taken { .. } => (ErrorCode::NodeFailed, None),
            Refusal::Invalid { .. } => (ErrorCode::MalformedRequest, None),
            Refusal::Epoch { .. } | Refusal::Generation { .. } => {
                (ErrorCode::Unavailable, Some("try again in a moment"))
            }
            Refusal::Deadline { .. } | Refusal::Io(_) | Refusal::Failed { .. } => (ErrorCode::NodeFailed, None),
        };
        let error = ApiError::new(code, format!("{node} refused")).cause(refusal.to_string());
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}
