//! Side by side with peers: `drover-bench [nbd] [migrate]`. Prints a table and how the aims were met, and writes JSON
//! lines into `DROVER_BENCH_OUT`.
//!
//! `--rounds N` measures N pairs of everything instead of the usual number, `--part NAME` only that part of a case; its
//! rows then go to a file of their own. Needs root for the limited link, and what `scripts/setup.sh bench` installs.

mod cold;
mod fio;
mod flips;
mod hot;
mod image;
mod less;
mod live;
mod mirror;
mod moving;
mod peers;
mod pin;
mod qmp;
mod record;
mod room;
mod serving;
mod stops;

use record::Report;
use room::Need;
use std::{
    error::Error,
    process::{Command, ExitCode},
};

type Done = Result<(), Box<dyn Error>>;

/// One part of a case.
struct Part {
    name: &'static str,
    /// Pairs that are measured unless told otherwise.
    rounds: usize,
    need: Need,
    measure: fn(&mut Report, usize) -> Done,
}

/// Parts of CASE=migrate.
const MIGRATE: &[Part] = &[
    Part { name: "cold", rounds: 5, need: cold::NEED, measure: cold::run },
    Part { name: "less", rounds: 1, need: less::NEED, measure: less::run },
    Part { name: "live", rounds: 5, need: live::NEED, measure: live::run },
    Part { name: "flips", rounds: 100, need: flips::NEED, measure: flips::run },
    Part { name: "hot", rounds: 60, need: hot::NEED, measure: hot::run },
];

const CASES: [(&str, &[Part]); 2] = [("nbd", serving::PARTS), ("migrate", MIGRATE)];

const USAGE: &str =
    "usage: drover-bench [nbd] [migrate] [--rounds N] [--part tmpfs|disk|snapshot|cold|less|live|flips|hot]";

/// What the command line asks for.
#[derive(Default)]
struct Wanted {
    cases: Vec<String>,
    parts: Vec<String>,
    rounds: Option<usize>,
}

impl Wanted {
    fn has(&self, case: &str, part: &Part) -> bool {
        let is_among = |names: &[String], name: &str| names.is_empty() || names.iter().any(|known| known == name);
        is_among(&self.cases, case) && is_among(&self.parts, part.name)
    }
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
    let exists = |part: &String| CASES.iter().any(|(_, parts)| parts.iter().any(|known| known.name == part));
    match wanted.parts.iter().find(|part| !exists(part)) {
        Some(part) => Err(format!("there is no part {part:?}\n{USAGE}").into()),
        None => Ok(wanted),
    }
}

fn run(wanted: &Wanted) -> Done {
    let chosen = CASES.map(|(case, parts)| (case, parts.iter().filter(|part| wanted.has(case, part)).collect()));
    let chosen: Vec<(&str, Vec<&Part>)> =
        chosen.into_iter().filter(|(_, parts): &(_, Vec<_>)| !parts.is_empty()).collect();
    for (case, parts) in &chosen {
        parts.iter().try_for_each(|part| part.need.check(&format!("{case}, {}", part.name)))?;
    }
    for (case, parts) in chosen {
        let mut report = Report::open(case, &wanted.parts)?;
        for part in parts {
            eprintln!("{case}, {}:", part.name);
            (part.measure)(&mut report, wanted.rounds.unwrap_or(part.rounds))?;
        }
        report.print();
    }
    Ok(())
}

fn run_to_end(command: &mut Command) -> Done {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}
