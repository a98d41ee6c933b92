//! Exports: recorded here, served by their nodes, sent to them again whenever they register.

use crate::Control;
use crate::config::RPC_DEADLINE;
use crate::idempotency::{Attempt, Once};
use crate::nodes::{CallError, Nodes};
use crate::queries::{Tagged, check_version, find_node, find_volume};
use crate::table::{Kept, NewEvent, State};
use crate::volumes::{call_error, check_name};
use drover_base::NodeId;
use drover_types::record::{ExportRecord, NodeRecord};
use drover_types::{ApiError, CreateExport, ErrorCode, Export, VolumeState, WorkloadUsage};
use drover_wire::admin::{self, NodeRequest, Refusal};

/// Longest name of a workload.
const WORKLOAD_MAX: usize = 128;

pub(crate) fn find<'a>(state: &'a State, node: &str, name: &str) -> Result<&'a Kept<ExportRecord>, ApiError> {
    let found = NodeId::new(node).ok().and_then(|node| state.exports.get(&(node, name.to_owned())));
    found.ok_or_else(|| ApiError::new(ErrorCode::ExportNotFound, format!("{node} has no export {name:?}")))
}

pub(crate) fn wire_export(state: &State, record: &ExportRecord) -> Option<admin::Export> {
    let size_bytes = state.volume(record.volume)?.size_bytes;
    let (name, workload) = (record.name.clone(), record.workload.clone());
    Some(admin::Export { name, volume: record.volume, size_bytes, workload })
}

/// What the node last reported of the export, if the export was the same volume's then.
fn usage(nodes: &Nodes, record: &ExportRecord) -> Vec<WorkloadUsage> {
    let Some(report) = nodes.report(&record.node) else { return Vec::new() };
    let of_export = |usage: &&admin::WorkloadUsage| usage.export == record.name && usage.volume == record.volume;
    let shown = |usage: &admin::WorkloadUsage| WorkloadUsage {
        workload: usage.workload.clone(),
        connections: usage.connections,
        read_requests: usage.read_requests,
        read_bytes: usage.read_bytes,
        write_requests: usage.write_requests,
        written_bytes: usage.written_bytes,
    };
    report.status.usage.iter().filter(of_export).map(shown).collect()
}

pub(crate) fn export(state: &State, nodes: &Nodes, record: &ExportRecord) -> Export {
    Export {
        node: record.node.to_string(),
        name: record.name.clone(),
        volume: record.volume.to_string(),
        volume_name: state.volume(record.volume).map_or_else(String::new, |volume| volume.name.clone()),
        workload: record.workload.clone(),
        uris: state.node(&record.node).map_or_else(Vec::new, |node| uris(node, &record.name)),
        usage: usage(nodes, record),
    }
}

/// NBD URIs as the NBD project defines them (doc/uri.md).
fn uris(node: &NodeRecord, name: &str) -> Vec<String> {
    let unix = node.nbd_unix.as_ref().map(|path| {
        let path = path.strip_prefix("unix:").unwrap_or(path);
        format!("nbd+unix:///{}?socket={}", escaped(name), escaped(path))
    });
    let tcp = node.nbd_tcp.as_ref().map(|address| match address.strip_prefix("tls:") {
        Some(address) => format!("nbds://{address}/{}", escaped(name)),
        None => format!("nbd://{address}/{}", escaped(name)),
    });
    unix.into_iter().chain(tcp).collect()
}

fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

impl Control {
    /// The same export again is the same export.
    pub async fn create_export(&self, request: CreateExport, once: Option<Once>) -> Result<Tagged<Export>, ApiError> {
        if let Some(workload) = &request.workload
            && (workload.is_empty() || workload.len() > WORKLOAD_MAX)
        {
            return Err(ApiError::invalid("workload", format!("a workload's name has 1 to {WORKLOAD_MAX} bytes")));
        }
        let holding = match self.attempt(once)? {
            Attempt::First(holding) => holding,
            Attempt::Repeated(made) => {
                let (node, name) = made.split_once('/').unwrap_or((&made, ""));
                return self.show_export(node, name);
            }
        };
        let (record, admin, wire) = self
            .ledger
            .commit(|state, changes| {
                let volume = find_volume(state, &request.volume)?;
                let node = find_node(state, &request.node)?;
                let name = request.name.clone().unwrap_or_else(|| volume.name.clone());
                check_name("name", &name)?;
                if volume.state == VolumeState::Deleting {
                    return Err(ApiError::new(ErrorCode::VolumeBusy, format!("{} is being deleted", volume.name)));
                }
                let workload = request.workload.clone();
                let record = ExportRecord { node: node.node.clone(), name, volume: volume.volume, workload };
                match state.exports.get(&(record.node.clone(), record.name.clone())) {
                    Some(kept) if kept.record == record => {}
                    Some(kept) => {
                        let message = format!("{} exports another volume or workload as {}", record.node, record.name);
                        let error = ApiError::new(ErrorCode::ExportExists, message);
                        return Err(error.cause(format!("it is {}", kept.record.volume)));
                    }
                    None => {
                        let text = format!("{} exports {} as {}", record.node, volume.name, record.name);
                        let told = NewEvent::info("export.created", text).node(&record.node).volume(record.volume);
                        changes.event(told);
                        changes.put(record.clone());
                    }
                }
                holding.remember(state, changes, &format!("{}/{}", record.node, record.name));
                let (name, workload) = (record.name.clone(), record.workload.clone());
                let wire = admin::Export { name, volume: record.volume, size_bytes: volume.size_bytes, workload };
                Ok::<_, ApiError>((record, node.admin.clone(), wire))
            })
            .await?;
        let asked = NodeRequest::SetExport { export: wire };
        match self.nodes.call(&record.node, &admin, &asked, RPC_DEADLINE).await {
            Ok(_) => self.show_export(record.node.as_str(), &record.name),
            Err(error @ CallError::Refused(_)) => {
                self.forget_export(&record).await?;
                Err(call_error(&record.node, &error))
            }
            Err(error) => {
                Err(ApiError::new(ErrorCode::OutcomeUnknown, "the export is recorded; its node has not answered")
                    .cause(error.to_string())
                    .hint("the node is told when it registers"))
            }
        }
    }

    pub async fn delete_export(&self, node: &str, name: &str, expected: Option<u64>) -> Result<(), ApiError> {
        let (record, admin) = {
            let state = self.ledger.state();
            let kept = find(&state, node, name)?;
            check_version(expected, kept.version.0)?;
            let admin = state.node(&kept.record.node).map(|node| node.admin.clone());
            (kept.record.clone(), admin)
        };
        let asked = NodeRequest::RemoveExport { name: name.into() };
        let answer = match &admin {
            Some(admin) => self.nodes.call(&record.node, admin, &asked, RPC_DEADLINE).await,
            None => Err(CallError::Unregistered),
        };
        match answer {
            Ok(_) | Err(CallError::Refused(Refusal::NotFound { .. })) => self.forget_export(&record).await,
            Err(error) => Err(call_error(&record.node, &error)),
        }
    }

    async fn forget_export(&self, record: &ExportRecord) -> Result<(), ApiError> {
        self.ledger
            .commit(|_, changes| {
                changes.delete::<ExportRecord>((record.node.clone(), record.name.clone()));
                let text = format!("{} no longer exports {}", record.node, record.name);
                changes.event(NewEvent::info("export.deleted", text).node(&record.node).volume(record.volume));
                Ok(())
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn uris_are_escaped() {
        assert_eq!(escaped("/run/drover/a b?.sock"), "/run/drover/a%20b%3F.sock");
    }
}
