//! Side by side with peers: `drover-bench nbd|migrate`. Needs root for the limited link, and fio, qemu-utils, nbdkit,
//! libnbd-bin, iproute2. Prints a table, and JSON lines into `DROVER_BENCH_OUT`.

mod fio;
mod migrating;
mod peers;
mod qmp;
mod record;
mod serving;

use std::{error::Error, process::ExitCode};

fn main() -> ExitCode {
    let cases: Vec<String> = std::env::args().skip(1).collect();
    match run(&cases) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cases: &[String]) -> Result<(), Box<dyn Error>> {
    if let Some(unknown) = cases.iter().find(|case| !["nbd", "migrate"].contains(&case.as_str())) {
        return Err(format!("there is no case {unknown:?}; the cases are nbd and migrate").into());
    }
    let wanted = |name: &str| cases.is_empty() || cases.iter().any(|case| case == name);
    if wanted("nbd") {
        let mut report = record::Report::open("nbd")?;
        serving::run(&mut report)?;
        report.print();
    }
    if wanted("migrate") {
        let mut report = record::Report::open("migrate")?;
        migrating::run(&mut report)?;
        report.print();
    }
    Ok(())
}
