//! `drover up`: everything on this machine, until Ctrl-C.

use super::cluster::{Cluster, NodePlan, Plan, make_dir};
use super::process::Signals;
use crate::arguments::Up;
use crate::commands::block_on;
use crate::failure::{Context, Failure};
use crate::output::Output;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The first file that is made in the directory.
const LOCK: &str = "lock";

/// Between two looks whether the processes still run.
const CHECK_EVERY: Duration = Duration::from_millis(500);

pub fn run(up: &Up, output: Output) -> Result<(), Failure> {
    if !up.listen.ip().is_loopback() {
        return Err(Failure::usage(format!("{} can be reached by other machines", up.listen))
            .hint("`up` is for this machine; run `drover control` and `drover node` with settings of your own"));
    }
    // Before anything is written: whether somebody listens there. The control plane binds it for good.
    std::net::TcpListener::bind(up.listen).map_err(|error| {
        Failure::failed(format!("cannot listen at {}", up.listen))
            .cause(error)
            .hint("another control plane may run there; choose another address by --listen")
    })?;
    refuse_foreign(&up.data)?;
    make_dir(&up.data)?;
    let dir = up.data.canonicalize().or_fail(|| format!("cannot find {}", up.data.display()))?;
    let _lock = lock(dir.join(LOCK))?;
    let nodes = (1..=up.nodes).map(|number| NodePlan {
        name: format!("node-{number}"),
        netns: None,
        peer: None,
        tier_bytes: up.size - up.size % drover_base::units::EXTENT_BYTES,
    });
    let plan = Plan { dir, rest: up.listen.to_string(), nodes: nodes.collect() };
    block_on(async {
        let mut signals = Signals::listen()?;
        let mut cluster = tokio::select! {
            biased;
            () = signals.stop() => return Ok(()),
            cluster = Cluster::start(&plan) => cluster?,
        };
        let nodes: Vec<&str> = plan.nodes.iter().map(|node| node.name.as_str()).collect();
        let running = serde_json::json!({ "api": plan.api(), "env": plan.dir.join("env"), "nodes": nodes });
        output.show_line(&running, |_| {
            format!(
                "A control plane and {} nodes are up at {}. In another shell:\n\n  . {}/env\n  drover status\n\n\
                 Ctrl-C stops them; what is written stays in {}.",
                plan.nodes.len(),
                plan.api(),
                plan.dir.display(),
                plan.dir.display(),
            )
        })?;
        let watch = async {
            loop {
                if let Err(failure) = cluster.check() {
                    return failure;
                }
                tokio::time::sleep(CHECK_EVERY).await;
            }
        };
        let result = tokio::select! {
            biased;
            () = signals.stop() => Ok(()),
            failure = watch => Err(failure),
        };
        output.say("stopping ...");
        let late = cluster.stop().await;
        if !late.is_empty() {
            output.say(&format!("killed, since they did not stop in time: {}", late.join(", ")));
        }
        result
    })
}

/// What lies in a directory that `up` has not made is somebody else's.
fn refuse_foreign(dir: &Path) -> Result<(), Failure> {
    let is_empty = std::fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none());
    if is_empty || dir.join(LOCK).exists() {
        return Ok(());
    }
    Err(Failure::usage(format!("{} holds other things, which `up` would write over", dir.display()))
        .hint("give an empty directory, one that does not exist yet, or one of an earlier `drover up`"))
}

/// Keeps a second `up` from the same directory.
fn lock(path: PathBuf) -> Result<File, Failure> {
    let file = File::create(&path).or_fail(|| format!("cannot write {}", path.display()))?;
    file.try_lock().map_err(|error| {
        Failure::failed(format!("{} is in use", path.parent().unwrap_or(&path).display()))
            .cause(error)
            .hint("another `drover up` runs there")
    })?;
    Ok(file)
}
