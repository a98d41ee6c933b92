//! What the migration benches share: two nodes on loopback, and one move from start to commit.

use crate::record::Unit;
use drover_e2e::{Cluster, Layout};
use serde_json::{Value, json};
use std::{error::Error, path::Path, time::Duration};

/// How long a move may take.
pub const PATIENCE: Duration = Duration::from_secs(300);
pub const SECONDS: Unit = ("s", "lower");
pub const MS: Unit = ("ms", "lower");

/// Two nodes that reach each other without limit.
pub fn loopback(folder: &Path) -> Layout<'_> {
    Layout { nodes: 2, folder, tier_size: "6GiB", lease_ttl_ms: 9_000, link: None, cpus: &[], tls: None }
}

/// Moves a volume to a node and commits.
pub fn move_volume(cluster: &Cluster, volume: &str, to: usize) -> Result<Value, Box<dyn Error>> {
    move_with(cluster, volume, to, json!({ "retention_ms": 0 }))
}

/// The same to a node that counts as one that has nothing of it.
pub fn move_cold(cluster: &Cluster, volume: &str, to: usize) -> Result<Value, Box<dyn Error>> {
    move_with(cluster, volume, to, json!({ "retention_ms": 0, "dedup": false }))
}

fn move_with(cluster: &Cluster, volume: &str, to: usize, options: Value) -> Result<Value, Box<dyn Error>> {
    let migration = cluster.api.migrate(volume, &drover_e2e::node_name(to), options);
    let ended = cluster.api.wait_phase(&migration, &["committed", "rolled_back", "failed"], PATIENCE);
    if ended["phase"] == "committed" { Ok(ended) } else { Err(format!("the move ended otherwise: {ended:#}").into()) }
}
