//! The task of a drain: looks at what has become of its moves, and begins further ones.

use super::place::Placed;
use super::review::review;
use super::view::Standing;
use crate::Control;
use crate::config::{BACKOFF_MAX, DRAIN_EVERY, DRAIN_PLACE_EVERY_MS};
use crate::table::NewEvent;
use drover_base::{MigrationId, NodeId, VolumeId};
use drover_types::record::DrainRecord;
use drover_types::{ApiError, DrainState};
use std::rc::Rc;

impl Control {
    /// Goes on with the node's drain, if no task does so.
    pub(crate) fn carry_out_drain(self: &Rc<Self>, node: NodeId) {
        if !self.drain_tasks.borrow_mut().insert(node.clone()) {
            return;
        }
        let this = self.clone();
        self.world
            .spawn(async move {
                loop {
                    match this.look_at_drain(&node).await {
                        Ok(true) => this.world.sleep(DRAIN_EVERY).await,
                        // Nothing waits from the look to here: a drain that is asked for now finds no task.
                        Ok(false) => break,
                        Err(error) => {
                            tracing::warn!(%node, %error, "a drain has to wait");
                            this.world.sleep(BACKOFF_MAX).await;
                        }
                    }
                }
                this.drain_tasks.borrow_mut().remove(&node);
            })
            .detach();
    }

    /// Whether there is more to do.
    async fn look_at_drain(self: &Rc<Self>, node: &NodeId) -> Result<bool, ApiError> {
        let reviewed = self.ledger.commit(|state, changes| Ok::<_, ApiError>(review(state, changes, node))).await?;
        match reviewed {
            Some(record) if record.state == DrainState::Running => {
                self.begin_moves(&record).await?;
                Ok(true)
            }
            // What is under way is watched to its end: the node may be empty then.
            Some(record) => Ok(record.state != DrainState::Drained && self.moves_under_way(&record).0 > 0),
            None => Ok(false),
        }
    }

    /// How many migrations have to end, and how many of them take a place among those that go on at once: one that waits
    /// for a person takes none.
    fn moves_under_way(&self, record: &DrainRecord) -> (usize, usize) {
        let standings = self.standings(record);
        let moving = standings.values().filter_map(|standing| match standing {
            Standing::Moving(migration) => Some(migration.needs_you),
            Standing::Ready { .. } | Standing::Waits { .. } => None,
        });
        moving.fold((0, 0), |(all, going), needs_you| (all + 1, going + usize::from(!needs_you)))
    }

    async fn begin_moves(self: &Rc<Self>, record: &DrainRecord) -> Result<(), ApiError> {
        let mut going = self.moves_under_way(record).1;
        for volume in self.turns(record) {
            let still_runs =
                self.ledger.state().drain(&record.node).is_some_and(|now| now.state == DrainState::Running);
            if !still_runs || going >= record.parallel as usize {
                break;
            }
            match self.place(record, volume).await {
                Placed::Begun(migration) => {
                    going += 1;
                    self.note_begun(&record.node, volume, migration).await?;
                }
                Placed::NotYet => {}
                Placed::Refused(error) => self.not_placed(&record.node, volume, error).await?,
            }
        }
        Ok(())
    }

    /// However short a move is, its end is not missed. What a restart leaves out here is found among the migrations.
    async fn note_begun(&self, node: &NodeId, volume: VolumeId, migration: MigrationId) -> Result<(), ApiError> {
        self.ledger
            .commit(|state, changes| {
                if let Some(drain) = state.drain(node) {
                    let mut drain = drain.clone();
                    let tried = drain.tried(volume);
                    (tried.migration, tried.unplaced) = (Some(migration), false);
                    changes.put(drain);
                }
                Ok(())
            })
            .await
    }

    /// Nobody takes the volume now: told once, and tried again later.
    async fn not_placed(&self, node: &NodeId, volume: VolumeId, error: ApiError) -> Result<(), ApiError> {
        self.ledger
            .commit(|state, changes| {
                let Some(drain) = state.drain(node) else { return Ok(()) };
                let mut drain = drain.clone();
                let tried = drain.tried(volume);
                let is_new = !tried.unplaced || tried.problem.as_ref().is_none_or(|known| known.code != error.code);
                if is_new {
                    let name = state.volume(volume).map_or_else(|| volume.to_string(), |volume| volume.name.clone());
                    let text = format!("{name} cannot leave {node}: {error}");
                    changes.event(NewEvent::warning("node.drain_waits", text).node(node).volume(volume));
                }
                tried.not_before_ms = changes.wall_ms().saturating_add(DRAIN_PLACE_EVERY_MS);
                (tried.problem, tried.unplaced) = (Some(error), true);
                changes.put(drain);
                Ok(())
            })
            .await
    }
}
