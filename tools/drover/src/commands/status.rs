//! One screen: is all well, what runs, what needs a person.

use super::{migrate, nodes, volumes};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::Output;
use drover_types::{Action, CommitPolicy, Cutover, Health, Migration, Node, Volume, WayBack};
use serde::Serialize;

/// Share of a tier, in percent, from which its filling needs a person.
const TIER_FULL_PERCENT: u64 = 80;

#[derive(Serialize)]
struct Status {
    healthy: bool,
    nodes: Vec<Node>,
    volumes: Vec<Volume>,
    /// Those that are not over.
    migrations: Vec<Migration>,
    needs_you: Vec<Need>,
}

/// Something a person has to decide or repair.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Need {
    what: String,
    command: String,
}

pub async fn run(client: &Client, output: Output) -> Result<(), Failure> {
    let nodes = nodes::list(client).await?;
    let volumes = volumes::list(client).await?;
    let mut migrations = migrate::list(client).await?;
    migrations.retain(|migration| !migration.phase.is_final());
    let needs_you = needs(&nodes, &volumes, &migrations);
    let status = Status { healthy: needs_you.is_empty(), nodes, volumes, migrations, needs_you };
    output.show(&status, show)
}

fn needs(nodes: &[Node], volumes: &[Volume], migrations: &[Migration]) -> Vec<Need> {
    let nodes = nodes.iter().flat_map(node_needs);
    let poisoned = volumes.iter().filter(|volume| volume.poisoned).map(|volume| Need {
        what: format!("volume {} is poisoned by a failed sync: its I/O fails", volume.name),
        command: format!("drover volume reopen {}", volume.name),
    });
    nodes.chain(poisoned).chain(migrations.iter().filter_map(migration_need)).collect()
}

fn node_needs(node: &Node) -> Vec<Need> {
    let command = format!("drover node show {}", node.name);
    let mut needs = Vec::new();
    if node.health == Health::Down {
        let what = format!("node {} is down: the {} volumes it holds are unavailable", node.name, node.volumes_held);
        needs.push(Need { what, command: command.clone() });
    }
    for tier in &node.tiers {
        let taken = tier.used_bytes + tier.held_bytes;
        if tier.poisoned {
            let what = format!("tier {} of {} is poisoned by a failed sync", tier.name, node.name);
            needs.push(Need { what, command: command.clone() });
        } else if tier.total_bytes > 0 && taken >= tier.total_bytes / 100 * TIER_FULL_PERCENT {
            let percent = u128::from(taken) * 100 / u128::from(tier.total_bytes);
            let what = format!("tier {} of {} is {percent} % full", tier.name, node.name);
            needs.push(Need { what, command: command.clone() });
        }
    }
    needs
}

fn migration_need(migration: &Migration) -> Option<Need> {
    let Migration { id, volume_name, .. } = migration;
    let need = |what: String, verb: &str| Some(Need { what, command: format!("drover migrate {verb} {id}") });
    let may = |action: Action| migration.actions.contains(&action);
    if let Some(error) = &migration.error {
        return need(format!("migration of {volume_name}: {}", error.message), "show");
    }
    if migration.way_back == WayBack::Closed {
        return need(format!("migration of {volume_name}: the way back is closed"), "show");
    }
    if migration.paused {
        return need(format!("migration of {volume_name} is paused"), "resume");
    }
    match &migration.waits_for {
        Some(reason) if may(Action::Cutover) && migration.options.cutover == Cutover::Manual => {
            need(format!("migration of {volume_name} waits for {reason}"), "cutover")
        }
        Some(reason) if may(Action::Commit) && migration.options.commit == CommitPolicy::Manual => {
            need(format!("migration of {volume_name} waits for {reason}"), "commit")
        }
        _ => None,
    }
}

fn show(status: &Status) -> String {
    let mut text = String::from(if status.healthy { "All is well.\n" } else { "Something needs you.\n" });
    for need in &status.needs_you {
        text.push_str(&format!("  {}\n      {}\n", need.what, need.command));
    }
    text.push_str(&format!("\n{}\n", nodes::show_nodes(&status.nodes)));
    if status.volumes.is_empty() {
        text.push_str("\nNo volumes yet: drover volume create NAME --size 10GiB\n");
    } else {
        text.push_str(&format!("\n{}\n", volumes::show_volumes(&status.volumes)));
    }
    if !status.migrations.is_empty() {
        text.push_str(&format!("\n{}\n", migrate::show_list(&status.migrations)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_types::Tier;

    fn node(health: Health, used: u64, poisoned: bool) -> Node {
        let tier = Tier {
            node: "a".into(),
            name: "fast".into(),
            class: "nvme".into(),
            total_bytes: 1000,
            used_bytes: used,
            held_bytes: 0,
            reserved_bytes: 0,
            poisoned,
        };
        Node {
            name: "a".into(),
            health,
            contact_ms_ago: None,
            instance: String::new(),
            admin_address: String::new(),
            peer_address: String::new(),
            migration_address: String::new(),
            nbd_unix: None,
            nbd_tcp: None,
            tiers: vec![tier],
            status_ms_ago: None,
            volumes_held: 1,
        }
    }

    #[test]
    fn a_node_needs_someone_when_it_is_down_full_or_poisoned() {
        for (health, used, poisoned, needs) in [
            (Health::Up, 799, false, 0),
            (Health::Unknown, 0, false, 0),
            (Health::Up, 800, false, 1),
            (Health::Down, 0, false, 1),
            (Health::Up, 0, true, 1),
            (Health::Down, 900, false, 2),
        ] {
            let found = node_needs(&node(health, used, poisoned));
            assert_eq!(found.len(), needs, "{found:?}");
        }
    }
}
