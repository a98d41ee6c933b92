//! Snapshots: the holder keeps them; here they are only asked for.

use crate::Control;
use crate::config::LONG_WORK_DEADLINE;
use crate::idempotency::{Attempt, Once};
use crate::queries::Tagged;
use crate::table::NewEvent;
use crate::volumes::{call_error, check_name, find_idle};
use drover_base::{NodeId, VolumeId};
use drover_types::{ApiError, CreateSnapshot, ErrorCode, Snapshot, Volume};
use drover_wire::admin::{NodeReply, NodeRequest, Refusal, SnapshotStatus, VolumeStatus};

/// Names of the snapshots that migrations freeze, and of layers that travel without being anybody's, begin so.
const RESERVED: &str = "drover-";

/// Those that people made.
pub(crate) fn of_people(status: &VolumeStatus) -> usize {
    status.snapshots.iter().filter(|snapshot| !snapshot.name.starts_with(RESERVED)).count()
}

impl Control {
    /// As of now where the holder answers, else as it last reported.
    pub async fn list_snapshots(&self, volume: &str) -> Result<Vec<Snapshot>, ApiError> {
        let (id, node, admin) = self.holder_of(volume)?;
        let answer = self.nodes.poll(&node, &admin).await;
        let status = match (answer, self.nodes.report(&node)) {
            (Ok(status), _) => status,
            (Err(_), Some(report)) => report.status,
            (Err(error), None) => return Err(call_error(&node, &error)),
        };
        let found = status.volumes.iter().find(|status| status.volume == id);
        let snapshots = found.map_or(&[][..], |status| &status.snapshots);
        Ok(snapshots.iter().map(|status| snapshot(id, status)).collect())
    }

    pub async fn create_snapshot(
        &self,
        volume: &str,
        request: CreateSnapshot,
        once: Option<Once>,
    ) -> Result<Snapshot, ApiError> {
        check_snapshot_name(&request.name)?;
        let holding = match self.attempt(once)? {
            Attempt::First(holding) => holding,
            Attempt::Repeated(made) => return self.show_snapshot(volume, &made).await,
        };
        let name = request.name;
        let operation = self.operation(&holding, self.idle_holder(volume)?.0).await?;
        let (id, node, admin) = self.idle_holder(volume)?;
        let asked = NodeRequest::CreateSnapshot { volume: id, name: name.clone(), operation };
        self.change(&node, &admin, &asked, &name).await?;
        let text = format!("snapshot {name} of {volume} was taken");
        let told = NewEvent::info("snapshot.created", text).node(&node).volume(id);
        self.tell_once(&holding, &name, told).await?;
        self.show_snapshot(volume, &name).await
    }

    pub async fn show_snapshot(&self, volume: &str, name: &str) -> Result<Snapshot, ApiError> {
        let snapshots = self.list_snapshots(volume).await?;
        snapshots.into_iter().find(|snapshot| snapshot.name == name).ok_or_else(|| not_found(volume, name))
    }

    pub async fn delete_snapshot(&self, volume: &str, name: &str) -> Result<(), ApiError> {
        let (id, node, admin) = self.idle_holder(volume)?;
        let asked = NodeRequest::DeleteSnapshot { volume: id, name: name.into() };
        self.change(&node, &admin, &asked, name).await?;
        let text = format!("snapshot {name} of {volume} was deleted");
        Ok(self.tell(NewEvent::info("snapshot.deleted", text).node(&node).volume(id)).await?)
    }

    /// A repetition must not go back again: what was written since the first time would be lost. Also not where nobody
    /// knows whether the first came to its end: see [`Control::operation`]. Nor must whoever decided by an earlier version
    /// of the volume.
    pub async fn rollback_to_snapshot(
        &self,
        volume: &str,
        name: &str,
        expected: Option<u64>,
        once: Option<Once>,
    ) -> Result<Tagged<Volume>, ApiError> {
        let holding = match self.attempt(once)? {
            Attempt::First(holding) => holding,
            Attempt::Repeated(_) => return self.show_volume(volume),
        };
        let operation = self.operation(&holding, self.idle_holder(volume)?.0).await?;
        self.check_volume_version(volume, expected)?;
        let (id, node, admin) = self.idle_holder(volume)?;
        let asked = NodeRequest::RollbackSnapshot { volume: id, name: name.into(), operation };
        let done = self.change(&node, &admin, &asked, name).await?;
        let text = format!("{volume} went back to snapshot {name}");
        let told = NewEvent::info("snapshot.rolled_back", text).node(&node).volume(id);
        self.tell_changed(&holding, id, name, told).await?;
        if let NodeReply::Size { size_bytes } = done {
            self.learn_size(id, &node, size_bytes).await?;
        }
        self.show_volume(volume)
    }

    fn idle_holder(&self, volume: &str) -> Result<(VolumeId, NodeId, String), ApiError> {
        find_idle(&self.ledger.state(), volume)?;
        self.holder_of(volume)
    }

    async fn change(&self, node: &NodeId, admin: &str, asked: &NodeRequest, name: &str) -> Result<NodeReply, ApiError> {
        let answer = self.nodes.call(node, admin, asked, LONG_WORK_DEADLINE).await;
        let error = match answer {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let refused = call_error(node, &error);
        Err(match (&error, asked) {
            (crate::nodes::CallError::Refused(Refusal::Conflict { .. }), NodeRequest::CreateSnapshot { .. }) => {
                let message = format!("a snapshot {name:?} cannot be made");
                ApiError { code: ErrorCode::SnapshotExists, message, ..refused }
            }
            (crate::nodes::CallError::Refused(Refusal::NotFound { .. }), _) => ApiError {
                code: ErrorCode::SnapshotNotFound,
                message: format!("there is no snapshot {name:?}"),
                ..refused
            },
            _ => refused,
        })
    }
}

pub(crate) fn check_snapshot_name(name: &str) -> Result<(), ApiError> {
    check_name("name", name)?;
    if name.starts_with(RESERVED) {
        return Err(ApiError::invalid("name", format!("names that begin with {RESERVED} are the migrations'")));
    }
    Ok(())
}

fn not_found(volume: &str, name: &str) -> ApiError {
    ApiError::new(ErrorCode::SnapshotNotFound, format!("{volume} has no snapshot {name:?}"))
}

fn snapshot(volume: VolumeId, status: &SnapshotStatus) -> Snapshot {
    Snapshot {
        volume: volume.to_string(),
        name: status.name.clone(),
        created_ms: status.created_ms,
        used_bytes: status.used_bytes,
    }
}
