//! One screen: is all well, what runs, what needs a person.

use super::{drains, migrate, nodes, volumes};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::Output;
use drover_types::{Drain, DrainWaiting, Health, Migration, Node, Phase, Volume, WayBack};
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
    /// Those of nodes that are not drained yet.
    drains: Vec<Drain>,
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
    let drains = drains::unfinished(client, &nodes).await?;
    let needs_you = needs(&nodes, &volumes, &migrations, &drains);
    migrations.retain(|migration| !migration.phase.is_final());
    let status = Status { healthy: needs_you.is_empty(), nodes, volumes, migrations, drains, needs_you };
    output.show(&status, show)
}

fn needs(nodes: &[Node], volumes: &[Volume], migrations: &[Migration], drains: &[Drain]) -> Vec<Need> {
    let nodes = nodes.iter().flat_map(node_needs);
    let poisoned = volumes.iter().filter(|volume| volume.poisoned).map(|volume| Need {
        what: format!("volume {} is poisoned by a failed sync: its I/O fails", volume.name),
        command: format!("drover volume reopen {}", volume.name),
    });
    let running = migrations.iter().filter(|migration| !migration.phase.is_final());
    let migrations = running.chain(failed(migrations)).filter_map(migration_need);
    nodes.chain(poisoned).chain(migrations).chain(drains.iter().flat_map(drain_needs)).collect()
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

/// Its migrations are told of by themselves.
fn drain_needs(drain: &Drain) -> Vec<Need> {
    let waiting = drain.waiting.iter().filter(|waiting| waiting.needs_you);
    let need = |waiting: &DrainWaiting| Need {
        what: format!("drain of {}: {} waits for {}", drain.node, waiting.volume_name, waiting.waits_for),
        command: format!("drover node drain {}", drain.node),
    };
    waiting.map(need).collect()
}

fn migration_need(migration: &Migration) -> Option<Need> {
    let Migration { id, volume_name, .. } = migration;
    let need = |what: String, verb: &str| Some(Need { what, command: format!("drover migrate {verb} {id}") });
    if let Some(error) = &migration.error {
        return need(format!("migration of {volume_name}: {}", error.message), "show");
    }
    if migration.way_back == WayBack::Closed {
        return need(format!("migration of {volume_name}: the way back is closed"), "show");
    }
    let reason = migration.waits_for.as_ref().filter(|_| migration.needs_you)?;
    let verb = match migration.phase {
        _ if migration.paused => "resume",
        Phase::Settling => "commit",
        _ => "cutover",
    };
    need(format!("migration of {volume_name} waits for {reason}"), verb)
}

/// Migrations that ended without anybody's will, as long as no later one of the volume has begun.
fn failed(migrations: &[Migration]) -> Vec<&Migration> {
    let is_last = |ended: &Migration| {
        !migrations.iter().any(|other| other.volume == ended.volume && other.created_ms > ended.created_ms)
    };
    migrations.iter().filter(|migration| migration.phase == Phase::Failed && is_last(migration)).collect()
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
    for drain in &status.drains {
        text.push_str(&format!("\n{}\n", drains::show(drain)));
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
            cordon: None,
            drain: None,
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

    fn migration(phase: Phase, waits_for: Option<&str>, needs_you: bool) -> Migration {
        let json = serde_json::json!({
            "id": "m1", "volume": "v1", "volume_name": "disk", "source": "a", "destination": "b", "phase": phase,
            "paused": false, "waits_for": waits_for, "needs_you": needs_you, "bytes_total": 0, "bytes_done": 0,
            "bytes_left": 0, "permille": 0, "rate_bytes_per_s": 0, "generation": 1,
            "options": drover_types::MigrationOptions::default(), "way_back": "none", "actions": [],
            "plan": drover_types::MigrationPlan::default(), "receipt": drover_types::Receipt::default(),
            "created_ms": 5, "cleanup_pending": [], "events": ""
        });
        serde_json::from_value(json).expect("a migration")
    }

    #[test]
    fn a_migration_needs_someone_when_it_waits_for_a_person() {
        let command = |phase, waits_for, needs_you| {
            migration_need(&migration(phase, waits_for, needs_you)).map(|need| need.command)
        };
        assert_eq!(command(Phase::Settling, Some("the retention time"), false), None);
        assert_eq!(command(Phase::Settling, Some("the commit: snapshots"), true).unwrap(), "drover migrate commit m1");
        assert_eq!(command(Phase::Mirroring, Some("the cutover"), true).unwrap(), "drover migrate cutover m1");
        let paused = Migration { paused: true, ..migration(Phase::Settling, Some("to be resumed"), true) };
        assert_eq!(migration_need(&paused).unwrap().command, "drover migrate resume m1");
    }

    #[test]
    fn a_failed_migration_is_told_until_the_volume_moves_again() {
        let error = drover_types::ApiError::new(drover_types::ErrorCode::Internal, "both sides were away");
        let gone = Migration { error: Some(error), ..migration(Phase::Failed, None, false) };
        let told = |migrations: &[Migration]| needs(&[], &[], migrations, &[]).len();
        assert_eq!(told(std::slice::from_ref(&gone)), 1);
        let later = Migration { created_ms: 6, ..migration(Phase::Committed, None, false) };
        assert_eq!(told(&[gone, later]), 0);
    }
}
