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
use clap::error::ErrorKind;
use failure::Failure;
use output::Output;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = match arguments::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return misused(&error),
    };
    let output = arguments.global.output;
    match commands::run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report(&failure, output);
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// Wrong arguments, or a call for help. Programs that ask for JSON get JSON here, too.
fn misused(error: &clap::Error) -> ExitCode {
    let is_help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if is_help || !wants_json(std::env::args()) {
        error.exit();
    }
    let text = error.render().to_string();
    let (message, usage) = text.split_once("\n\n").unwrap_or((&text, ""));
    let mut failure = Failure::usage(message.trim_start_matches("error: ").trim());
    if !usage.trim().is_empty() {
        failure = failure.hint(usage.trim());
    }
    report(&failure, Output::Json);
    ExitCode::from(failure.exit as u8)
}

/// Whether the arguments, which could not be understood, say `--output json`.
fn wants_json(arguments: impl Iterator<Item = String>) -> bool {
    let arguments: Vec<String> = arguments.collect();
    let split = arguments.windows(2).any(|pair| pair == ["--output", "json"]);
    split || arguments.iter().any(|argument| argument == "--output=json")
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
