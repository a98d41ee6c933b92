//! Side by side with peers: `drover-bench [nbd] [migrate]`. Prints a table and how the aims were met, and writes JSON
//! lines into `DROVER_BENCH_OUT`.
//!
//! `--rounds N` measures N pairs of everything instead of the usual number, `--part NAME` only that part of a case; its
//! rows then go to a file of their own. Needs root for the limited link, and what `scripts/setup.sh bench` installs.

mod fio;
mod image;
mod live;
mod migrating;
mod mirror;
mod peers;
mod pin;
mod qmp;
mod record;
mod serving;

use record::Report;
use std::{error::Error, process::ExitCode};

type Done = Result<(), Box<dyn Error>>;

/// One part of a case: its name, the pairs it measures unless told otherwise, and what measures them.
type Part = (&'static str, usize, fn(&mut Report, usize) -> Done);

const CASES: [(&str, &[Part]); 2] = [("nbd", serving::PARTS), ("migrate", migrating::PARTS)];

const USAGE: &str = "usage: drover-bench [nbd] [migrate] [--rounds N] [--part tmpfs|disk|snapshot|cold|live|flips]";

/// What the command line asks for.
#[derive(Default)]
struct Wanted {
    cases: Vec<String>,
    parts: Vec<String>,
    rounds: Option<usize>,
}

fn main() -> ExitCode {
    let done = parse(std::env::args().skip(1)).and_then(|wanted| run(&wanted));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Wanted, Box<dyn Error>> {
    let mut wanted = Wanted::default();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--rounds" => {
                let rounds = words.next().and_then(|number| number.parse().ok()).filter(|rounds| *rounds > 0);
                wanted.rounds = Some(rounds.ok_or_else(|| format!("--rounds takes a number from 1\n{USAGE}"))?);
            }
            "--part" => wanted.parts.push(words.next().ok_or(USAGE)?),
            case if CASES.iter().any(|(name, _)| *name == case) => wanted.cases.push(word),
            other => return Err(format!("{other:?} is not understood\n{USAGE}").into()),
        }
    }
    let exists = |part: &String| CASES.iter().any(|(_, parts)| parts.iter().any(|(name, ..)| name == part));
    match wanted.parts.iter().find(|part| !exists(part)) {
        Some(part) => Err(format!("there is no part {part:?}\n{USAGE}").into()),
        None => Ok(wanted),
    }
}

fn run(wanted: &Wanted) -> Done {
    for (case, parts) in CASES {
        if !wanted.cases.is_empty() && !wanted.cases.iter().any(|name| name == case) {
            continue;
        }
        let is_chosen = |name: &str| wanted.parts.is_empty() || wanted.parts.iter().any(|part| part == name);
        let chosen: Vec<&Part> = parts.iter().filter(|(name, ..)| is_chosen(name)).collect();
        if chosen.is_empty() {
            continue;
        }
        let mut report = Report::open(case, &wanted.parts)?;
        for (name, rounds, measure) in chosen {
            eprintln!("{case}, {name}:");
            measure(&mut report, wanted.rounds.unwrap_or(*rounds))?;
        }
        report.print();
    }
    Ok(())
}
