//! What each command does, one file a noun. All but the daemons, `fsck` and `demo` are clients of the REST interface.

mod drains;
mod events;
mod exports;
mod migrate;
mod nodes;
mod snapshots;
mod status;
mod tenants;
mod tls;
mod volumes;

pub use exports::{Reach, create as create_export};
pub use migrate::{ask, get as get_migration};
pub use volumes::{create as create_volume, get as get_volume, remove as remove_volume};

use crate::arguments::{Arguments, Command};
use crate::client::Client;
use crate::failure::{Context, Failure};
use crate::output::{self, Output};
use crate::{copy, daemons, demo};
use clap::CommandFactory;
use std::future::Future;
use std::io::{IsTerminal, Write};

pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { global, command } = arguments;
    let output = global.output;
    let client = || Client::new(global.api.as_deref(), global.token.as_deref());
    match command {
        Command::Status => block_on(status::run(&client()?, output)),
        Command::Up(up) => daemons::up(&up, output),
        Command::Node(node) => match (node.config, node.command) {
            (_, Some(query)) => block_on(nodes::run(&client()?, output, query)),
            (Some(config), None) => daemons::node(&config),
            (None, None) => Err(Failure::usage("a node needs its settings").hint("drover node --config node.toml")),
        },
        Command::Control(file) => daemons::control(&file.config),
        Command::Volume(command) => block_on(volumes::run(&client()?, output, command)),
        Command::Snapshot(command) => block_on(snapshots::run(&client()?, output, command)),
        Command::Tenant(command) => block_on(tenants::run(&client()?, output, command)),
        Command::Migrate(command) => block_on(migrate::run(&client()?, output, command)),
        Command::Import(import) => block_on(copy::import(&client()?, output, &import)),
        Command::Export(export) => block_on(copy::export(&client()?, output, &export)),
        Command::Fsck(fsck) => daemons::fsck(&fsck, output),
        Command::Tls(command) => tls::run(output, command),
        Command::Events(events) => block_on(events::run(&client()?, output, &events)),
        Command::Demo(arguments) => demo::run(&arguments, output),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "drover", &mut script);
            output::print_line(String::from_utf8_lossy(&script).trim_end())
        }
    }
}

/// Runs a command's future on this thread.
pub fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    drover_runtime::block_on(future).or_fail(|| "cannot start the runtime".into())?
}

/// Asks on a terminal whether to go on; without one, `--yes` is needed.
fn confirm(question: &str, is_yes: bool) -> Result<(), Failure> {
    if is_yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(question).hint("add --yes to answer that in advance"));
    }
    eprint!("{question} [y/N] ");
    // The question may stay invisible; the answer still counts.
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).or_fail(|| "cannot read the answer".into())?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::failed("nothing was done")),
    }
}

/// A result of a change, shown as what it made.
fn show_done(output: Output, text: &str) -> Result<(), Failure> {
    output.show(&serde_json::json!({ "done": true }), |_| text.to_owned())
}
