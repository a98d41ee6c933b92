//! Snapshots of several volumes at one moment, on whichever nodes they are.
//!
//! ```text
//!   recorded ──► all are held ──► all are frozen ──► all are released ──► forgotten: all have it
//!       └──────────────┴────────────────┴── any failure, a restart ──► released and undone ──► forgotten: none has it
//! ```
//! No node is asked to freeze before all have answered that they hold, so what is frozen is of the moment of the last answer.

use crate::Control;
use crate::config::{BACKOFF_MAX, BACKOFF_MIN, GROUP_VOLUMES_MAX, LONG_WORK_DEADLINE, RPC_DEADLINE};
use crate::idempotency::{Attempt, Once};
use crate::migration::knowledge::backoff;
use crate::nodes::CallError;
use crate::snapshots::check_snapshot_name;
use crate::table::NewEvent;
use crate::volumes::{call_error, find_idle};
use drover_base::{NodeId, OperationId, VolumeId};
use drover_types::record::GroupRecord;
use drover_types::{ApiError, CreateGroupSnapshot, ErrorCode, GroupSnapshot};
use drover_wire::admin::{NodeRequest, Refusal};
use futures::channel::oneshot;
use futures::future::join_all;
use std::{cell::Cell, rc::Rc, time::Duration};

/// How long who asked waits for a failed attempt to be undone.
const UNDONE_WITHIN: Duration = Duration::from_secs(20);

impl Control {
    pub async fn create_group_snapshot(
        self: &Rc<Self>,
        request: CreateGroupSnapshot,
        once: Option<Once>,
    ) -> Result<GroupSnapshot, ApiError> {
        let CreateGroupSnapshot { name, volumes } = request;
        check_snapshot_name(&name)?;
        if volumes.is_empty() || volumes.len() > GROUP_VOLUMES_MAX {
            return Err(ApiError::invalid("volumes", format!("1 to {GROUP_VOLUMES_MAX} volumes are frozen at once")));
        }
        let holding = match self.attempt(once)? {
            Attempt::First(holding) => holding,
            Attempt::Repeated(_) => return self.show_group(&name, &volumes).await,
        };
        let hold = OperationId(self.world.random.next_u64());
        let record = self
            .ledger
            .commit(|state, changes| {
                let mut ids: Vec<VolumeId> = Vec::with_capacity(volumes.len());
                for volume in &volumes {
                    let volume = find_idle(state, volume)?;
                    if ids.contains(&volume.volume) {
                        return Err(ApiError::invalid("volumes", format!("{} is named twice", volume.name)));
                    }
                    ids.push(volume.volume);
                }
                let record = GroupRecord { hold, name: name.clone(), volumes: ids };
                changes.put(record.clone());
                Ok(record)
            })
            .await?;
        let asked = Cell::new(false);
        let taken = match self.world.timeout(self.config.hold_deadline, self.freeze(&record, &asked)).await {
            Ok(taken) => taken,
            Err(_) => Err(ApiError::new(ErrorCode::NodeFailed, "the volumes could not be frozen at one moment")
                .cause(format!("it took longer than {} s", self.config.hold_deadline.as_secs()))
                .hint("none has the snapshot; try again")),
        };
        if let Err(error) = taken {
            if !asked.get() {
                // No holder was asked for a snapshot, and those that hold their clients let them go by themselves: the
                // volumes need not wait for one that is away.
                self.ledger
                    .commit(|_, changes| {
                        changes.delete::<GroupRecord>(hold);
                        Ok::<_, ApiError>(())
                    })
                    .await?;
                return Err(error);
            }
            // It is undone also where nobody waits for it any more.
            let undone = self.undo_group(record);
            let _ = self.world.timeout(UNDONE_WITHIN, undone).await;
            return Err(error);
        }
        let text = format!("snapshot {name} of {} was taken at one moment", volumes.join(", "));
        let recorded = self
            .ledger
            .commit(|state, changes| {
                changes.delete::<GroupRecord>(hold);
                holding.remember(state, changes, &name);
                for volume in &record.volumes {
                    changes.event(NewEvent::info("snapshot.created", text.clone()).volume(*volume));
                }
                Ok::<_, ApiError>(())
            })
            .await;
        if let Err(error) = recorded {
            // Unless it turns out that it was recorded.
            drop(self.undo_group(record));
            return Err(error);
        }
        self.show_group(&name, &volumes).await
    }

    async fn show_group(&self, name: &str, volumes: &[String]) -> Result<GroupSnapshot, ApiError> {
        let shown = join_all(volumes.iter().map(|volume| self.show_snapshot(volume, name))).await;
        Ok(GroupSnapshot { name: name.into(), snapshots: shown.into_iter().collect::<Result<_, _>>()? })
    }

    /// `asked` becomes true when a snapshot may have been made.
    async fn freeze(&self, record: &GroupRecord, asked: &Cell<bool>) -> Result<(), ApiError> {
        let GroupRecord { hold, name, .. } = record;
        let hold = *hold;
        let deadline_ms = self.config.hold_deadline.as_millis() as u64;
        let held = self.ask_all(record, |volume| NodeRequest::HoldVolume { volume, hold, deadline_ms }).await;
        let frozen = match held {
            Ok(()) => {
                asked.set(true);
                let freeze = |volume| NodeRequest::SnapshotHeld { volume, name: name.clone(), hold };
                self.ask_all(record, freeze).await
            }
            held => held,
        };
        // One that does not hear of it lets its clients in when its time is over.
        let _ = self.ask_all(record, |volume| NodeRequest::ReleaseVolume { volume, hold }).await;
        frozen
    }

    /// Asks every holder at once, and answers when all have.
    async fn ask_all(&self, record: &GroupRecord, request: impl Fn(VolumeId) -> NodeRequest) -> Result<(), ApiError> {
        let asks = record.volumes.iter().map(|volume| {
            let request = request(*volume);
            async move {
                let (node, admin) = self.admin_of(*volume)?;
                let answer = self.nodes.call(&node, &admin, &request, LONG_WORK_DEADLINE).await;
                answer.map(drop).map_err(|error| match (&error, &request) {
                    (CallError::Refused(Refusal::Conflict { .. }), NodeRequest::SnapshotHeld { name, .. }) => {
                        let message = format!("a snapshot {name:?} of {volume} cannot be made");
                        ApiError { code: ErrorCode::SnapshotExists, message, ..call_error(&node, &error) }
                    }
                    _ => call_error(&node, &error),
                })
            }
        });
        join_all(asks).await.into_iter().collect()
    }

    pub(crate) fn admin_of(&self, volume: VolumeId) -> Result<(NodeId, String), ApiError> {
        let state = self.ledger.state();
        let holder = state.lease(volume).and_then(|lease| state.node(&lease.holder));
        let holder = holder.ok_or_else(|| ApiError::new(ErrorCode::NodeNotFound, format!("nobody holds {volume}")))?;
        Ok((holder.node.clone(), holder.admin.clone()))
    }

    /// Takes back what some of the volumes may have got, until every holder has answered. Completes when it is done.
    pub(crate) fn undo_group(self: &Rc<Self>, record: GroupRecord) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let this = self.clone();
        self.world
            .spawn(async move {
                let GroupRecord { hold, name, .. } = &record;
                for failures in 1u32.. {
                    if this.ledger.quiet().await.is_ok() && !this.ledger.state().groups.contains_key(hold) {
                        break;
                    }
                    let undo = |volume| NodeRequest::UndoSnapshot { volume, name: name.clone(), hold: *hold };
                    let undone = this.ask_all(&record, undo).await;
                    let forgotten = match &undone {
                        Ok(()) => {
                            let forget = |_: &crate::table::State, changes: &mut crate::table::Changes| {
                                changes.delete::<GroupRecord>(*hold);
                                Ok::<_, ApiError>(())
                            };
                            this.ledger.commit(forget).await.is_ok()
                        }
                        Err(error) => {
                            tracing::info!(name, %error, "a snapshot of several volumes is not undone yet");
                            false
                        }
                    };
                    if forgotten {
                        break;
                    }
                    this.world.sleep(backoff(BACKOFF_MIN, BACKOFF_MAX, failures).max(RPC_DEADLINE / 20)).await;
                }
                let _ = sender.send(());
            })
            .detach();
        receiver
    }
}
