//! `drover fsck`: shows what the check of a stopped node found.

use crate::arguments::Fsck;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use drover_base::text::show_bytes;
use drover_base::units::{BLOCK_BYTES, EXTENT_BYTES};
use drover_node::config::NodeConfig;
use drover_node::daemon::{self, Checked, DaemonError};
use serde::Serialize;

#[derive(Serialize)]
struct Shown {
    sound: bool,
    restored: bool,
    volumes: u64,
    layers: u64,
    regions: u64,
    /// By device number.
    used_bytes: Vec<u64>,
    valid_bytes: u64,
    /// Still at another node.
    remote_bytes: u64,
    problems: Vec<Found>,
    #[serde(skip_serializing_if = "Option::is_none")]
    moved_to: Option<String>,
}

#[derive(Serialize)]
struct Found {
    subject: String,
    what: String,
}

pub fn run(arguments: &Fsck, output: Output) -> Result<(), Failure> {
    let config = NodeConfig::load(&arguments.config)?;
    let checked = if arguments.restore { daemon::restore(&config) } else { daemon::check(&config) };
    let shown = shown(checked.map_err(|error| refused(&error))?, arguments.restore);
    output.show(&shown, show)?;
    if shown.sound { Ok(()) } else { Err(Failure::failed("the metadata is damaged").hint(RESTORE_HINT)) }
}

const RESTORE_HINT: &str = "drover fsck --restore brings the volumes back as of the last checkpoint";

fn refused(error: &DaemonError) -> Failure {
    let exit = match error {
        DaemonError::Running { .. } | DaemonError::Sound { .. } => Exit::Conflict,
        DaemonError::NoMeta { .. } | DaemonError::Lost { .. } | DaemonError::NoCheckpoint => Exit::NotFound,
        _ => Exit::Failed,
    };
    let failure = Failure::new(exit, "the check was not made").cause(error);
    match error {
        DaemonError::Running { .. } => failure.hint("stop the node first"),
        DaemonError::Sound { .. } => failure.hint("to restore all the same, move the metadata away yourself"),
        DaemonError::NoMeta { .. } | DaemonError::Lost { .. } | DaemonError::Meta { .. } => failure.hint(RESTORE_HINT),
        _ => failure,
    }
}

fn shown(checked: Checked, restored: bool) -> Shown {
    let Checked { report, moved_to } = checked;
    let problems = report.problems.into_iter().map(|problem| Found { subject: problem.subject, what: problem.what });
    let problems: Vec<Found> = problems.collect();
    Shown {
        sound: problems.is_empty(),
        restored,
        volumes: report.volumes,
        layers: report.layers,
        regions: report.regions,
        used_bytes: report.slots_used.iter().map(|slots| slots * EXTENT_BYTES).collect(),
        valid_bytes: report.valid_blocks * BLOCK_BYTES,
        remote_bytes: report.remote_blocks * BLOCK_BYTES,
        problems,
        moved_to: moved_to.map(|path| path.display().to_string()),
    }
}

fn show(shown: &Shown) -> String {
    let mut text = String::new();
    if shown.restored {
        text.push_str(
            "restored from the checkpoint; blocks are as of then, or later where they were overwritten in place; \
             snapshots that were deleted since are back, with blocks that may be newer than they are\n",
        );
    }
    if let Some(place) = &shown.moved_to {
        text.push_str(&format!("what was there before lies in {place}\n"));
    }
    for problem in &shown.problems {
        text.push_str(&format!("problem: {}: {}\n", problem.subject, problem.what));
    }
    let used: u64 = shown.used_bytes.iter().sum();
    text.push_str(&format!(
        "{}: {} volumes, {} layers, {} regions mapped, {} used, {} of it valid",
        if shown.sound { "sound" } else { "DAMAGED" },
        shown.volumes,
        shown.layers,
        shown.regions,
        show_bytes(used),
        show_bytes(shown.valid_bytes),
    ));
    if shown.remote_bytes > 0 {
        text.push_str(&format!(", {} still at another node", show_bytes(shown.remote_bytes)));
    }
    text
}
