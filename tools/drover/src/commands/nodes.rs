//! Storage nodes.

use super::{confirm, drains, show_done};
use crate::arguments::NodeQuery;
use crate::client::{Client, escape};
use crate::failure::{Exit, Failure};
use crate::output::{Output, or_dash, show_ms, table};
use drover_base::text::show_bytes;
use drover_types::{CordonNode, DrainState, Health, Node, Tier};
use std::time::{Duration, Instant};

pub async fn run(client: &Client, output: Output, query: NodeQuery) -> Result<(), Failure> {
    match query {
        NodeQuery::List => output.show(&list(client).await?, |nodes| show_nodes(nodes)),
        NodeQuery::Show { name } => {
            let node: Node = client.get(&path(&name)).await?;
            output.show(&node, show_node)
        }
        NodeQuery::Cordon { name, reason } => {
            let node: Node = client.post(&format!("{}/cordon", path(&name)), &CordonNode { reason }).await?;
            output.show(&node, |node| format!("{} takes no new volumes and no new migrations", node.name))
        }
        NodeQuery::Uncordon { name } => {
            let node: Node = client.post(&format!("{}/uncordon", path(&name)), &serde_json::json!({})).await?;
            output.show(&node, |node| format!("{} takes volumes and migrations again", node.name))
        }
        NodeQuery::Drain(drain) => drains::run(client, output, drain).await,
        NodeQuery::Forget { name, yes } => {
            confirm(&format!("Node {name} will be forgotten, as it is gone for good. Go on?"), yes)?;
            client.delete(&path(&name)).await?;
            show_done(output, &format!("node {name} is forgotten"))
        }
    }
}

pub fn path(name: &str) -> String {
    format!("/v1/nodes/{}", escape(name))
}

pub async fn list(client: &Client) -> Result<Vec<Node>, Failure> {
    client.list("/v1/nodes").await
}

/// Bytes that new data could take.
pub fn free_bytes(node: &Node) -> u64 {
    let taken = |tier: &Tier| tier.used_bytes + tier.held_bytes + tier.reserved_bytes;
    node.tiers.iter().filter(|tier| !tier.poisoned).map(|tier| tier.total_bytes.saturating_sub(taken(tier))).sum()
}

/// How long a node that has just registered may take until its tiers are known.
const REPORT_DEADLINE: Duration = Duration::from_secs(10);

/// The node that is up, takes new volumes, and has the most room.
pub async fn roomiest(client: &Client) -> Result<String, Failure> {
    let begin = Instant::now();
    loop {
        let mut nodes = list(client).await?;
        nodes.retain(|node| node.health == Health::Up && node.cordon.is_none());
        let all_reported = nodes.iter().all(|node| node.status_ms_ago.is_some());
        if !all_reported && begin.elapsed() < REPORT_DEADLINE {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        }
        nodes.retain(|node| !node.tiers.is_empty());
        // Of equals, the first by name.
        let best = nodes.iter().max_by(|a, b| free_bytes(a).cmp(&free_bytes(b)).then_with(|| b.name.cmp(&a.name)));
        return best.map(|node| node.name.clone()).ok_or_else(|| {
            Failure::new(Exit::Conflict, "no node with tiers is up and not cordoned").hint("see `drover node list`")
        });
    }
}

pub fn show_health(health: Health) -> &'static str {
    match health {
        Health::Up => "up",
        Health::Unknown => "unknown",
        Health::Down => "down",
    }
}

fn show_state(node: &Node) -> String {
    let taken = match (&node.cordon, node.drain) {
        (_, Some(DrainState::Running)) => ", being drained",
        (_, Some(DrainState::Drained)) => ", drained",
        (Some(_), _) => ", cordoned",
        (None, _) => "",
    };
    format!("{}{taken}", show_health(node.health))
}

pub fn show_nodes(nodes: &[Node]) -> String {
    let rows = nodes.iter().map(|node| {
        let used: u64 = node.tiers.iter().map(|tier| tier.used_bytes).sum();
        let total: u64 = node.tiers.iter().map(|tier| tier.total_bytes).sum();
        let space = if node.tiers.is_empty() {
            "gateway".into()
        } else {
            format!("{} of {}", show_bytes(used), show_bytes(total))
        };
        [node.name.clone(), show_state(node), space, node.volumes_held.to_string()]
    });
    table(["NODE", "STATE", "USED", "VOLUMES"], rows)
}

fn show_node(node: &Node) -> String {
    let mut text = format!(
        "node       {}\nhealth     {}, last heard {} ago\ninstance   {}\nadmin      {}\npeer       {}\nmigration  {}\nnbd        {} {}\nvolumes    {}\n",
        node.name,
        show_health(node.health),
        or_dash(node.contact_ms_ago.map(show_ms)),
        node.instance,
        node.admin_address,
        node.peer_address,
        node.migration_address,
        node.nbd_unix.as_deref().unwrap_or("-"),
        node.nbd_tcp.as_deref().unwrap_or(""),
        node.volumes_held,
    );
    if let Some(cordon) = &node.cordon {
        let reason = cordon.reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
        text.push_str(&format!("cordoned   it takes no new volumes and no new migrations{reason}\n"));
    }
    if let Some(drain) = node.drain {
        text.push_str(&format!("drain      {}\n", drain.name()));
    }
    let rows = node.tiers.iter().map(|tier| {
        [
            tier.name.clone(),
            tier.class.clone(),
            show_bytes(tier.total_bytes),
            show_bytes(tier.used_bytes),
            show_bytes(tier.held_bytes),
            show_bytes(tier.reserved_bytes),
            if tier.poisoned { "poisoned".into() } else { "ok".into() },
        ]
    });
    text.push('\n');
    text.push_str(&table(["TIER", "CLASS", "SIZE", "USED", "HELD", "RESERVED", "STATE"], rows));
    text
}
