//! What people ask of migrations.

use crate::Control;
use crate::config::{ACTIVE_MIGRATIONS_MAX, FINISHED_MIGRATIONS_MAX, RPC_DEADLINE};
use crate::cordons::check_takes_new;
use crate::idempotency::{Attempt, Holding, Once};
use crate::migration::knowledge::Knowledge;
use crate::migration::transition::{Stale, Transition};
use crate::planner::{self, Content, Estimate};
use crate::queries::{Tagged, check_version, find_migration, find_node, find_volume};
use crate::snapshots::of_people;
use crate::table::{Changes, NewEvent, State};
use crate::volumes::{check_not_cloned, find_idle};
use drover_base::{Generation, MigrationId, NodeId, VolumeId};
use drover_types::record::{LinkRecord, MigrationRecord, NodeRecord, Stage, VolumeRecord};
use drover_types::{
    Action, ApiError, ErrorCode, Health, Migration, MigrationPlan, Phase, PlanRequest, RateSource, StartMigration,
    TuneMigration,
};
use drover_wire::admin::{NodeReply, NodeRequest};
use std::rc::Rc;

impl Control {
    /// What a migration would bring and cost; changes nothing.
    pub async fn plan_migration(&self, request: &PlanRequest) -> Result<MigrationPlan, ApiError> {
        request.options.check()?;
        if request.link_bytes_per_s == Some(0) {
            return Err(ApiError::invalid("link_bytes_per_s", "a link carries at least one byte a second"));
        }
        let (volume, source, nodes) = {
            let state = self.ledger.state();
            let volume = find_volume(&state, &request.volume)?.volume;
            let destination = find_node(&state, &request.destination)?;
            let source = state.lease(volume).and_then(|lease| state.node(&lease.holder));
            let address = |node: &NodeRecord| (node.node.clone(), node.admin.clone());
            let both = source.into_iter().chain([destination]);
            (volume, source.map(address), both.map(address).collect::<Vec<_>>())
        };
        // What is reserved at the destination rests on it: as of now, not as of the last report.
        let polls = nodes.iter().map(|(node, admin)| self.nodes.poll(node, admin));
        let (answers, content) =
            futures::future::join(futures::future::join_all(polls), self.measure(volume, source)).await;
        for answer in answers {
            if let Err(error) = answer {
                tracing::info!(%error, "a plan rests on an older report");
            }
        }
        let state = self.ledger.state();
        let volume = find_volume(&state, &request.volume)?;
        let lease = state
            .lease(volume.volume)
            .ok_or_else(|| ApiError::new(ErrorCode::VolumeBusy, "the volume has no lease"))?;
        let destination = find_node(&state, &request.destination)?.node.clone();
        if lease.holder == destination {
            return Err(ApiError::new(ErrorCode::SameNode, format!("{} is at {destination} already", volume.name)));
        }
        Ok(planner::plan(&self.estimate(&state, volume.volume, &lease.holder, &destination, request, content)))
    }

    /// What a copy of the volume takes, its snapshots with it. `None`: the holder does not say.
    async fn measure(&self, volume: VolumeId, source: Option<(NodeId, String)>) -> Option<Content> {
        let (node, admin) = source?;
        match self.nodes.call(&node, &admin, &NodeRequest::MeasureVolume { volume }, RPC_DEADLINE).await {
            Ok(NodeReply::Measured { used_bytes, valid_bytes, size_bytes }) => {
                self.learn_size(volume, &node, size_bytes).await.ok()?;
                Some(Content { used_bytes, valid_bytes })
            }
            other => {
                tracing::info!(?other, "a plan rests on what all layers of the volume take");
                self.nodes.volume(&node, volume).map(|(status, ..)| Content::at_most(&status))
            }
        }
    }

    fn estimate(
        &self,
        state: &State,
        volume: VolumeId,
        source: &NodeId,
        destination: &NodeId,
        request: &PlanRequest,
        content: Option<Content>,
    ) -> Estimate {
        let record = state.volume(volume);
        let reported = self.nodes.volume(source, volume);
        let measured = state.links.get(&(source.clone(), destination.clone())).map(|kept| &kept.record.measured);
        let (link_bytes_per_s, link_rate) = match (request.link_bytes_per_s, measured) {
            (Some(given), _) => (given, RateSource::Given),
            (None, Some(LinkRecord { bytes_per_s: Some(measured), .. })) => (*measured, RateSource::Measured),
            (None, _) => (self.config.link_bytes_per_s_assumed, RateSource::Assumed),
        };
        let total = |node| {
            let report = self.nodes.report(node)?;
            Some(report.status.tiers.iter().map(|tier| tier.total_bytes).fold(0, u64::saturating_add))
        };
        Estimate {
            volume: record.map_or_else(String::new, |record| record.name.clone()),
            source: source.to_string(),
            destination: destination.to_string(),
            content,
            size_bytes: record.map_or(0, |record| record.size_bytes),
            snapshots: reported.as_ref().map_or(0, |(status, ..)| of_people(status)),
            free_bytes: self.nodes.free_bytes(destination),
            total_bytes: total(destination),
            destination_is_cordoned: state.cordon(destination).is_some(),
            destination_is_down: self.nodes.health(destination) == Health::Down,
            link_bytes_per_s,
            link_rate,
            throttle_bytes_per_s: request.options.throttle_bytes_per_s,
            write_bytes_per_s: reported.and_then(|(.., rate)| rate).unwrap_or(0),
            pause_ms_measured: measured.map(|measured| measured.pause_ms),
            pause_ms_max: request.options.pause_ms_max,
        }
    }

    pub async fn start_migration(
        self: &Rc<Self>,
        request: StartMigration,
        once: Option<Once>,
    ) -> Result<Tagged<Migration>, ApiError> {
        let holding = match self.attempt(once)? {
            Attempt::First(holding) => holding,
            Attempt::Repeated(made) => return self.show_migration(&made),
        };
        {
            let state = self.ledger.state();
            find_idle(&state, &request.volume)?;
            check_takes_new(&state, &find_node(&state, &request.destination)?.node)?;
        }
        let StartMigration { volume, destination, options } = request;
        let asked = PlanRequest { volume, destination, options, link_bytes_per_s: None };
        let plan = self.plan_migration(&asked).await?;
        if !plan.fits {
            let warnings: Vec<String> = plan.warnings.iter().map(|warning| warning.text.clone()).collect();
            return Err(ApiError::new(
                ErrorCode::NoSpace,
                format!("{} does not fit on {}", plan.volume, plan.destination),
            )
            .cause(warnings.join("; "))
            .hint("free space there, or choose another node"));
        }
        let migration = MigrationId(self.world.random.next_u64());
        let record = self
            .ledger
            .commit(|state, changes| {
                let record = new_record(state, changes, migration, &asked, plan)?;
                holding.remember(state, changes, &migration.to_string());
                prune(state, changes);
                changes.put(record.clone());
                Ok::<_, ApiError>(record)
            })
            .await?;
        self.execute(&record);
        self.show_migration(&migration.to_string())
    }

    /// Asks something of a migration.
    pub async fn act(
        self: &Rc<Self>,
        id: &str,
        action: Action,
        expected: Option<u64>,
        once: Option<Once>,
    ) -> Result<Tagged<Migration>, ApiError> {
        let holding = match self.attempt(once)? {
            Attempt::First(holding) => holding,
            Attempt::Repeated(made) => return self.show_migration(&made),
        };
        let transition = match action {
            Action::Pause => Transition::Pause { paused: true },
            Action::Resume => Transition::Pause { paused: false },
            Action::Cutover => Transition::RequestCutover,
            Action::Commit => Transition::RequestCommit,
            Action::Cancel | Action::Rollback => {
                Transition::RollBack { reason: "it was asked for".into(), error: None }
            }
        };
        let decide = |record: &MigrationRecord| check_action(record, action).map(|()| transition);
        self.ask_of(id, expected, Some(&holding), decide).await
    }

    pub async fn tune_migration(
        self: &Rc<Self>,
        id: &str,
        request: &TuneMigration,
        expected: Option<u64>,
    ) -> Result<Tagged<Migration>, ApiError> {
        // Two requests at once may each change another option: each is applied to what is recorded by then.
        let decide = |record: &MigrationRecord| {
            let options = request.apply(&record.options)?;
            check_not_over(record).map(|()| Transition::Tune { options })
        };
        self.ask_of(id, expected, None, decide).await
    }

    async fn ask_of(
        self: &Rc<Self>,
        id: &str,
        expected: Option<u64>,
        holding: Option<&Holding>,
        decide: impl FnOnce(&MigrationRecord) -> Result<Transition, ApiError>,
    ) -> Result<Tagged<Migration>, ApiError> {
        let (record, applied) = self
            .ledger
            .commit(|state, changes| {
                let record = find_migration(state, id)?;
                check_version(expected, state.migrations[&record.migration].version.0)?;
                let transition = decide(record)?;
                let applied = transition.clone();
                let holder = state.lease(record.volume).map(|lease| lease.holder.clone());
                let holder = holder.ok_or_else(|| conflict(record, "its volume is gone"))?;
                let store = |knowledge: &Knowledge, changes: &mut Changes| {
                    transition.store(state, record, &self.facts(state, record, holder, knowledge), changes)
                };
                let stored = match self.executor(record.migration) {
                    Some(executor) => executor.with_knowledge(|knowledge| store(knowledge, changes)),
                    None => store(&Knowledge::of(record), changes),
                };
                let stored = stored.map_err(|Stale(reason)| conflict(record, reason))?;
                if matches!(applied, Transition::RollBack { .. }) {
                    crate::drain::give_up(state, changes, record);
                }
                if let Some(holding) = holding {
                    holding.remember(state, changes, &record.migration.to_string());
                }
                Ok::<_, ApiError>((stored, applied))
            })
            .await?;
        match self.executor(record.migration) {
            Some(executor) => {
                executor.recorded(&applied);
                executor.wake();
            }
            None => self.execute(&record),
        }
        // Its volume may be in another one by now.
        self.show_migration(&record.migration.to_string())
    }
}

fn conflict(record: &MigrationRecord, reason: &str) -> ApiError {
    ApiError::new(ErrorCode::PhaseConflict, format!("{} is {}: {reason}", record.migration, record.phase()))
}

fn check_not_over(record: &MigrationRecord) -> Result<(), ApiError> {
    if record.stage.is_final() { Err(conflict(record, "it is over")) } else { Ok(()) }
}

fn check_action(record: &MigrationRecord, action: Action) -> Result<(), ApiError> {
    check_not_over(record)?;
    match action {
        Action::Cancel | Action::Rollback if record.phase() == Phase::RollingBack => {
            Err(conflict(record, "it is going back already"))
        }
        Action::Cancel if !record.stage.is_before_flip() => {
            Err(conflict(record, "the volume has flipped").hint("to go back, ask for a rollback"))
        }
        Action::Rollback if record.stage == Stage::Settling && !record.way_back_open => {
            let message = format!("{} cannot go back now", record.migration);
            Err(ApiError::new(ErrorCode::WayBackClosed, message)
                .cause("the source lacks writes that were acknowledged")
                .hint("the way back opens by itself once they were sent"))
        }
        _ => Ok(()),
    }
}

fn new_record(
    state: &State,
    changes: &mut Changes,
    migration: MigrationId,
    asked: &PlanRequest,
    plan: MigrationPlan,
) -> Result<MigrationRecord, ApiError> {
    let volume = find_idle(state, &asked.volume)?;
    check_not_cloned(state, volume)?;
    let destination = find_node(state, &asked.destination)?.node.clone();
    check_takes_new(state, &destination)?;
    let lease = state.lease(volume.volume).filter(|lease| lease.holder.as_str() == plan.source);
    let lease =
        lease.ok_or_else(|| ApiError::new(ErrorCode::VolumeBusy, "the volume moved meanwhile").hint("plan again"))?;
    let active = state.migrations.values().filter(|kept| !kept.record.stage.is_final()).count();
    if active >= ACTIVE_MIGRATIONS_MAX {
        let message = format!("{active} migrations are under way, which is the most");
        return Err(ApiError::new(ErrorCode::NodeBusy, message).hint("wait until one of them has ended"));
    }
    let text = format!(
        "{} moves from {} to {destination}: {} bytes in about {} s, {} ms of pause",
        volume.name,
        lease.holder,
        plan.bytes_to_send,
        plan.duration_ms_expected.div_ceil(1000),
        plan.pause_ms_expected
    );
    changes.event(NewEvent::info("migration.planned", text).volume(volume.volume).migration(migration));
    for warning in &plan.warnings {
        let event = NewEvent::warning("migration.warning", warning.text.clone());
        changes.event(event.volume(volume.volume).migration(migration));
    }
    let mut record = blank(migration, volume, lease.holder.clone(), destination);
    record.receipt.held_bytes = plan.bytes_to_send;
    record.plan = plan;
    record.options = asked.options.clone();
    record.created_ms = changes.wall_ms();
    Ok(record)
}

/// A migration of which nothing has begun.
pub(crate) fn blank(migration: MigrationId, of: &VolumeRecord, source: NodeId, destination: NodeId) -> MigrationRecord {
    MigrationRecord {
        migration,
        volume: of.volume,
        volume_name: of.name.clone(),
        size_bytes: of.size_bytes,
        source,
        destination,
        stage: Stage::Planned,
        generation: Generation(0),
        options: Default::default(),
        paused: false,
        cutover_requested: false,
        commit_requested: false,
        copy_lost: false,
        way_back_open: false,
        way_back_change: None,
        proven: false,
        proof_failed: false,
        attempts: 0,
        attempt: None,
        attempt_began_ms: 0,
        pause_pending: false,
        resume: None,
        plan: Default::default(),
        receipt: Default::default(),
        earlier: Default::default(),
        shown: Default::default(),
        slowed: None,
        error: None,
        created_ms: 0,
        ended_ms: None,
        cleanup: Vec::new(),
    }
}

/// Forgets the oldest of too many finished migrations.
fn prune(state: &State, changes: &mut Changes) {
    let records = state.migrations.values().map(|kept| &kept.record);
    let mut finished: Vec<_> = records
        .filter(|record| record.stage.is_final() && record.cleanup.is_empty())
        .map(|record| (record.ended_ms, record.migration))
        .collect();
    finished.sort();
    let excess = (finished.len() + 1).saturating_sub(FINISHED_MIGRATIONS_MAX);
    for (_, migration) in finished.into_iter().take(excess) {
        changes.delete::<MigrationRecord>(migration);
    }
}
