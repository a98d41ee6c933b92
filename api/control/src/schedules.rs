//! Snapshots that are taken by the clock, and taken away again when there are enough.
//!
//! ```text
//!   moments  ──┬────────┬────────┬────────┬──►   multiples of `every` after `at`, by UTC
//!              due ──► recorded, with an id ──► asked of the holder until it answers ──► counted as made ──► pruned
//! ```
//! - Which moment was dealt with last is recorded before anything is asked, and the snapshot has an operation's id: a
//!   restart takes none twice. Moments that passed meanwhile are not made up for: only the last of them is due.
//! - While the volume is in a migration, or busy otherwise, a moment is passed over, and told as an event.
//! - Only what is recorded as made here is pruned. A snapshot stays while any rule keeps it: a rule keeps the newest of each
//!   of its last periods that have one.

use crate::Control;
use crate::config::LONG_WORK_DEADLINE;
use crate::nodes::CallError;
use crate::queries::find_volume;
use crate::table::NewEvent;
use crate::volumes::find_idle;
use drover_base::{NodeId, OperationId, VolumeId};
use drover_types::record::{DueRecord, MadeRecord, ScheduleRecord};
use drover_types::{ApiError, ErrorCode, Keep, Schedule, VolumeSchedule};
use drover_wire::admin::{NodeRequest, Refusal};
use std::{collections::BTreeSet, rc::Rc, time::Duration};

/// How often it is looked whether a moment has come: a snapshot is late by no more.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A snapshot costs its volume's clients a flush, and every read of old data a lookup.
const EVERY_S_MIN: u64 = 60;
const EVERY_S_MAX: u64 = 366 * 86_400;
const RULES_MAX: usize = 8;
/// Half of what a volume may have at all: the rest is for people.
const KEPT_MAX: u64 = 128;

impl Control {
    pub fn show_schedule(&self, volume: &str) -> Result<VolumeSchedule, ApiError> {
        let state = self.ledger.state();
        let volume = find_volume(&state, volume)?;
        let record = state.schedules.get(&volume.volume).map(|kept| &kept.record);
        let record = record.ok_or_else(|| {
            ApiError::new(ErrorCode::ScheduleNotFound, format!("{} has no schedule of snapshots", volume.name))
        })?;
        Ok(VolumeSchedule {
            volume: volume.volume.to_string(),
            schedule: schedule_of(record),
            next_ms: 1000 * (moment(record, self.world.clock.wall_ms() / 1000) + record.every_s),
            made: record.made.iter().map(|made| made.name.clone()).collect(),
        })
    }

    /// What was made under the schedule before is kept by the rules of the new one.
    pub async fn set_schedule(&self, volume: &str, schedule: Schedule) -> Result<VolumeSchedule, ApiError> {
        check(&schedule)?;
        self.ledger
            .commit(|state, changes| {
                let record = find_volume(state, volume)?;
                let before = state.schedules.get(&record.volume).map(|kept| &kept.record);
                let Schedule { every_s, at_s, keep } = schedule;
                let mut next = ScheduleRecord {
                    volume: record.volume,
                    every_s,
                    at_s,
                    keep,
                    last_s: 0,
                    due: before.and_then(|before| before.due.clone()),
                    made: before.map(|before| before.made.clone()).unwrap_or_default(),
                };
                // The first is due at the next moment, not at once.
                next.last_s = moment(&next, changes.wall_ms() / 1000);
                let text = format!("{} gets a snapshot every {every_s} s", record.name);
                changes.event(NewEvent::info("schedule.set", text).volume(record.volume));
                changes.put(next);
                Ok::<_, ApiError>(())
            })
            .await?;
        self.show_schedule(volume)
    }

    /// What was made stays.
    pub async fn delete_schedule(&self, volume: &str) -> Result<(), ApiError> {
        self.show_schedule(volume)?;
        self.ledger
            .commit(|state, changes| {
                let record = find_volume(state, volume)?;
                changes.delete::<ScheduleRecord>(record.volume);
                let text = format!("{} gets no more snapshots by the clock; those it has stay", record.name);
                changes.event(NewEvent::info("schedule.deleted", text).volume(record.volume));
                Ok::<_, ApiError>(())
            })
            .await
    }

    pub(crate) fn spawn_schedules(self: &Rc<Self>) {
        let this = self.clone();
        self.world
            .spawn(async move {
                loop {
                    this.world.sleep(LOOK_EVERY).await;
                    let volumes: Vec<VolumeId> = this.ledger.state().schedules.keys().copied().collect();
                    let kept = volumes.into_iter().map(|volume| this.keep_schedule(volume));
                    for result in futures::future::join_all(kept).await {
                        if let Err(error) = result {
                            tracing::info!(%error, "a schedule waits");
                        }
                    }
                }
            })
            .detach();
    }

    /// One look at one schedule.
    async fn keep_schedule(&self, volume: VolumeId) -> Result<(), ApiError> {
        self.pass_moment(volume).await?;
        if let Some(due) = self.schedule(volume).and_then(|record| record.due) {
            self.take_due(volume, due).await?;
        }
        self.prune_made(volume).await
    }

    fn schedule(&self, volume: VolumeId) -> Option<ScheduleRecord> {
        self.ledger.state().schedules.get(&volume).map(|kept| kept.record.clone())
    }

    /// Records that a moment has come, and what is to be done about it.
    async fn pass_moment(&self, volume: VolumeId) -> Result<(), ApiError> {
        let now_s = self.world.clock.wall_ms() / 1000;
        let is_due = |record: &ScheduleRecord| {
            record.due.is_none() && (moment(record, now_s) > record.last_s || is_ahead(record, now_s))
        };
        if !self.schedule(volume).is_some_and(|record| is_due(&record)) {
            return Ok(());
        }
        let operation = OperationId(self.world.random.next_u64());
        self.ledger
            .commit(|state, changes| {
                let Some(kept) = state.schedules.get(&volume) else { return Ok(()) };
                let mut record = kept.record.clone();
                let at_s = moment(&record, now_s);
                if is_ahead(&record, now_s) {
                    record.last_s = at_s;
                    let text =
                        "the clock was ahead when a snapshot was last taken: it goes on by the clock as it is now";
                    changes.event(NewEvent::warning("schedule.clock", text.to_owned()).volume(volume));
                    changes.put(record);
                    return Ok(());
                }
                if at_s <= record.last_s {
                    return Ok(());
                }
                record.last_s = at_s;
                match find_idle(state, &volume.to_string()) {
                    Ok(_) => {
                        record.due = Some(DueRecord { operation, epoch: state.epoch(volume), at_s, name: name(at_s) })
                    }
                    Err(error) => {
                        let text = format!("{} was not taken: {}", name(at_s), error.message);
                        changes.event(NewEvent::warning("schedule.skipped", text).volume(volume));
                    }
                }
                changes.put(record);
                Ok::<_, ApiError>(())
            })
            .await
    }

    async fn take_due(&self, volume: VolumeId, due: DueRecord) -> Result<(), ApiError> {
        let DueRecord { operation, epoch, at_s, name } = due;
        let has_moved = self.ledger.state().epoch(volume) != epoch;
        let answer = match self.admin_of(volume) {
            // Where it was nobody knows whether it was done; where it is now it was not.
            _ if has_moved => Err("the volume has moved".into()),
            Err(error) => return Err(error),
            Ok((node, admin)) => {
                let asked = NodeRequest::CreateSnapshot { volume, name: name.clone(), operation };
                match self.nodes.call(&node, &admin, &asked, LONG_WORK_DEADLINE).await {
                    Ok(_) => Ok(node),
                    Err(CallError::Refused(refusal)) => Err(refusal.to_string()),
                    Err(error) => return Err(crate::volumes::call_error(&node, &error)),
                }
            }
        };
        self.taken(volume, operation, MadeRecord { at_s, name }, answer).await
    }

    async fn taken(
        &self,
        volume: VolumeId,
        operation: OperationId,
        made: MadeRecord,
        answer: Result<NodeId, String>,
    ) -> Result<(), ApiError> {
        self.ledger
            .commit(|state, changes| {
                let Some(kept) = state.schedules.get(&volume) else { return Ok(()) };
                let mut record = kept.record.clone();
                if record.due.as_ref().is_none_or(|due| due.operation != operation) {
                    return Ok(());
                }
                record.due = None;
                match answer {
                    Ok(node) => {
                        let text = format!("snapshot {} was taken by its schedule", made.name);
                        changes.event(NewEvent::info("snapshot.created", text).node(&node).volume(volume));
                        record.made.push(made);
                    }
                    Err(why) => {
                        let text = format!("{} was not taken: {why}", made.name);
                        changes.event(NewEvent::warning("schedule.skipped", text).volume(volume));
                    }
                }
                changes.put(record);
                Ok::<_, ApiError>(())
            })
            .await
    }

    /// Takes away what no rule keeps. What is gone already is forgotten.
    async fn prune_made(&self, volume: VolumeId) -> Result<(), ApiError> {
        let Some(record) = self.schedule(volume) else { return Ok(()) };
        let kept = kept(&record);
        for made in record.made.iter().filter(|made| !kept.contains(&made.at_s)) {
            if find_idle(&self.ledger.state(), &volume.to_string()).is_err() {
                return Ok(());
            }
            let (node, admin) = self.admin_of(volume)?;
            let asked = NodeRequest::DeleteSnapshot { volume, name: made.name.clone() };
            match self.nodes.call(&node, &admin, &asked, LONG_WORK_DEADLINE).await {
                Ok(_) | Err(CallError::Refused(Refusal::NotFound { .. })) => {}
                Err(error) => return Err(crate::volumes::call_error(&node, &error)),
            }
            self.ledger
                .commit(|state, changes| {
                    let Some(kept) = state.schedules.get(&volume) else { return Ok(()) };
                    let mut record = kept.record.clone();
                    record.made.retain(|other| other != made);
                    changes.put(record);
                    let text = format!("snapshot {} was deleted: its schedule keeps it no longer", made.name);
                    changes.event(NewEvent::info("snapshot.deleted", text).node(&node).volume(volume));
                    Ok::<_, ApiError>(())
                })
                .await?;
        }
        Ok(())
    }
}

/// The last moment lies so far ahead that the clock must have been wrong then.
fn is_ahead(record: &ScheduleRecord, now_s: u64) -> bool {
    record.last_s > now_s.saturating_add(record.every_s)
}

/// The last moment of the schedule up to now, in seconds since 1970.
fn moment(record: &ScheduleRecord, now_s: u64) -> u64 {
    let at_s = record.at_s % record.every_s;
    match now_s.checked_sub(at_s) {
        Some(since) => since - since % record.every_s + at_s,
        None => 0,
    }
}

/// Those that a rule keeps, by their moments.
fn kept(record: &ScheduleRecord) -> BTreeSet<u64> {
    let mut moments: Vec<u64> = record.made.iter().map(|made| made.at_s).collect();
    moments.sort_unstable();
    let mut kept = BTreeSet::new();
    for rule in &record.keep {
        let mut periods = BTreeSet::new();
        for moment in moments.iter().rev() {
            if periods.len() as u64 == rule.count {
                break;
            }
            if periods.insert(moment / rule.every_s) {
                kept.insert(*moment);
            }
        }
    }
    kept
}

fn check(schedule: &Schedule) -> Result<(), ApiError> {
    let periods = EVERY_S_MIN..=EVERY_S_MAX;
    if !periods.contains(&schedule.every_s) {
        return Err(ApiError::invalid("every_s", format!("{EVERY_S_MIN} to {EVERY_S_MAX} seconds")));
    }
    if schedule.at_s >= schedule.every_s {
        return Err(ApiError::invalid("at_s", "it lies within `every_s`"));
    }
    if schedule.keep.is_empty() || schedule.keep.len() > RULES_MAX {
        return Err(ApiError::invalid("keep", format!("1 to {RULES_MAX} rules")));
    }
    if schedule.keep.iter().any(|rule| rule.count == 0 || !periods.contains(&rule.every_s)) {
        return Err(ApiError::invalid("keep", "a rule keeps at least one, of a period such as `every_s` may be"));
    }
    let all: u64 = schedule.keep.iter().map(|rule| rule.count.min(KEPT_MAX + 1)).sum();
    if all > KEPT_MAX {
        return Err(ApiError::invalid("keep", format!("at most {KEPT_MAX} together")));
    }
    Ok(())
}

fn schedule_of(record: &ScheduleRecord) -> Schedule {
    let keep: Vec<Keep> = record.keep.clone();
    Schedule { every_s: record.every_s, at_s: record.at_s, keep }
}

/// `auto-2026-11-21-040506`, by UTC.
fn name(at_s: u64) -> String {
    let text: String = drover_types::utc(at_s * 1000).replace(' ', "-").replace(':', "");
    format!("auto-{text}")
}
