//! The `drover` binary: the daemons and every command of people.

mod arguments;
mod client;
mod commands;
mod copy;
mod daemons;
mod demo;
mod failure;
mod output;
mod progress;

use clap::Parser;
use failure::Failure;
use output::Output;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = arguments::Arguments::parse();
    let output = arguments.global.output;
    match commands::run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report(&failure, output);
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn report(failure: &Failure, output: Output) {
    match output {
        Output::Human => eprintln!("drover: {failure}"),
        Output::Json => {
            let text = serde_json::to_string(&serde_json::json!({ "error": failure }));
            eprintln!("{}", text.expect("plain data always encodes"));
        }
    }
}
