//! Emptying nodes. The control plane does it; the command begins it, and looks.

use super::nodes::path;
use crate::arguments::NodeDrain;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Output, show_ms, table};
use crate::progress::Progress;
use drover_base::text::show_bytes;
use drover_types::{Drain, DrainNode, DrainState, Node};
use std::collections::BTreeSet;
use std::time::Duration;

/// Between two looks at a drain that is watched.
const WATCH_EVERY: Duration = Duration::from_millis(500);

pub async fn run(client: &Client, output: Output, drain: NodeDrain) -> Result<(), Failure> {
    let at = format!("{}/drain", path(&drain.name));
    if drain.cancel {
        let drain: Drain = client.post(&format!("{at}/cancel"), &serde_json::json!({})).await?;
        return output.show(&drain, show);
    }
    let request = DrainNode {
        to: Some(drain.to).filter(|to| !to.is_empty()),
        parallel: drain.parallel,
        deadline_ms: drain.deadline,
        throttle_bytes_per_s: drain.throttle,
    };
    let begun: Drain = client.post(&at, &request).await?;
    if drain.no_wait {
        return output.show(&begun, show);
    }
    watch(client, output, &at, &drain.name).await
}

/// Of the nodes that are not drained yet.
pub async fn unfinished(client: &Client, nodes: &[Node]) -> Result<Vec<Drain>, Failure> {
    let mut drains = Vec::new();
    for node in nodes.iter().filter(|node| node.drain.is_some_and(|state| state != DrainState::Drained)) {
        drains.push(client.get(&format!("{}/drain", path(&node.name))).await?);
    }
    Ok(drains)
}

async fn watch(client: &Client, output: Output, at: &str, name: &str) -> Result<(), Failure> {
    let mut progress = Progress::new(output, name);
    let (mut total, mut moving, mut last) = (0, BTreeSet::new(), None);
    loop {
        let seen: Drain = client.get(at).await?;
        let now: BTreeSet<String> =
            seen.moves.iter().map(|moved| format!("{} moves to {}", moved.volume_name, moved.destination)).collect();
        for begun in now.difference(&moving) {
            progress.say(begun);
        }
        let stand = (seen.state, seen.volumes_left, now.clone());
        if output.is_json() && last.as_ref() != Some(&stand) {
            output.show_line(&seen, |_| String::new())?;
        }
        (moving, last) = (now, Some(stand));
        total = total.max(seen.bytes_left);
        let eta = seen.eta_s.map_or(String::new(), |eta| format!(", {} left", show_ms(eta * 1000)));
        let left = format!("{} volumes left, {}/s{eta}", seen.volumes_left, show_bytes(seen.rate_bytes_per_s));
        progress.set(total - seen.bytes_left, total, &left);
        if seen.state != DrainState::Running || is_stuck(&seen) {
            progress.finish();
            if !output.is_json() {
                output.show(&seen, show)?;
            }
            return finished(&seen);
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

/// Whether all that is left waits for a person.
fn is_stuck(drain: &Drain) -> bool {
    drain.needs_you
        && drain.moves.iter().all(|moved| moved.needs_you)
        && drain.waiting.iter().all(|waiting| waiting.needs_you)
}

/// Who drains a node wants to know whether it is empty.
fn finished(drain: &Drain) -> Result<(), Failure> {
    let Drain { node, volumes_left, .. } = drain;
    let again = format!("drover node drain {node}");
    match drain.state {
        DrainState::Drained => Ok(()),
        DrainState::Running => {
            Err(Failure::failed(format!("{node} is not empty: {volumes_left} volumes wait for you")).hint(again))
        }
        state => {
            Err(Failure::failed(format!("the drain of {node} is over ({}): {volumes_left} volumes left", state.name()))
                .hint(again))
        }
    }
}

pub fn show(drain: &Drain) -> String {
    let mut text = format!(
        "drain of {}: {}, {} volumes moved, {} left with {}",
        drain.node,
        drain.state.name(),
        drain.volumes_moved,
        drain.volumes_left,
        show_bytes(drain.bytes_left),
    );
    let moving = drain.moves.iter().map(|moved| {
        let waits = moved.waits_for.as_ref().map_or(String::new(), |what| format!(", waits for {what}"));
        let done = format!("{:.1} %", f64::from(moved.permille) / 10.0);
        [
            moved.volume_name.clone(),
            format!("{} to {}: {}{waits}", moved.migration, moved.destination, moved.phase),
            done,
        ]
    });
    let waiting = drain
        .waiting
        .iter()
        .map(|waiting| [waiting.volume_name.clone(), format!("waits for {}", waiting.waits_for), String::new()]);
    if !drain.moves.is_empty() || !drain.waiting.is_empty() {
        text.push_str(&format!("\n{}", table(["VOLUME", "WHAT", "DONE"], moving.chain(waiting))));
    }
    if !drain.exports.is_empty() {
        let exports = drain.exports.join(", ");
        text.push_str(&format!("\nit goes on serving {exports} as a gateway, until they are detached"));
    }
    text
}
