//! The processes that stay: a storage node, a control plane, and both together on one machine.

pub mod cluster;
mod control;
mod fsck;
mod process;
mod up;

pub use control::run as control;
pub use fsck::run as fsck;
pub use process::{Signals, die_with_parent};
pub use up::run as up;

use crate::failure::{Exit, Failure};
use drover_node::config::{ConfigError, NodeConfig};
use drover_node::daemon::DaemonError;
use std::path::Path;

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Failure::new(Exit::Usage, error.to_string())
    }
}

/// Logs to standard error; `RUST_LOG` chooses what, by glossary words (`nbd=debug`).
pub fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // A second call, in tests, changes nothing.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).try_init();
}

/// A daemon that panicked is in no state to serve: it stops at once and comes back through recovery.
pub fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::abort();
    }));
}

pub fn node(config: &Path) -> Result<(), Failure> {
    let config = NodeConfig::load(config)?;
    log();
    abort_on_panic();
    drover_node::daemon::run(config).map_err(|error| {
        let failure = Failure::failed("the node cannot run").cause(&error);
        match error {
            DaemonError::Lost { .. } => failure.hint("drover fsck --restore, with the same settings"),
            _ => failure,
        }
    })
}
