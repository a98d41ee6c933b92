//! One line a comparison: on the screen as a table, in a file as JSON lines.

use serde::Serialize;
use std::{fs, io::Write, path::PathBuf};

/// A comparison of ours with a peer or a limit, measured interleaved in one run.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub bench: &'static str,
    pub case: String,
    /// Median of ours, in `unit`.
    pub ours: f64,
    /// Median of the peer's, in `unit`.
    pub peer: f64,
    pub peer_name: String,
    /// Ours divided by the peer's.
    pub ratio: f64,
    pub unit: &'static str,
    /// `higher` or `lower`.
    pub better: &'static str,
}

/// Rows of one bench, written to `DROVER_BENCH_OUT/<bench>.jsonl` as they come.
pub struct Report {
    bench: &'static str,
    file: fs::File,
    rows: Vec<Row>,
}

impl Report {
    /// Replaces the bench's former file.
    pub fn open(bench: &'static str) -> std::io::Result<Self> {
        let folder = std::env::var_os("DROVER_BENCH_OUT").map(PathBuf::from).unwrap_or_else(default_folder);
        fs::create_dir_all(&folder)?;
        let path = folder.join(format!("{bench}.jsonl"));
        eprintln!("writing {}", path.display());
        Ok(Self { bench, file: fs::File::create(path)?, rows: Vec::new() })
    }

    /// Adds the row of two series measured in turn; each has at least one value.
    pub fn compare(
        &mut self,
        case: impl Into<String>,
        peer_name: &str,
        (unit, better): (&'static str, &'static str),
        ours: &[f64],
        peer: &[f64],
    ) -> std::io::Result<()> {
        let (ours, peer) = (median(ours), median(peer));
        let row = Row {
            bench: self.bench,
            case: case.into(),
            ours,
            peer,
            peer_name: peer_name.into(),
            ratio: ours / peer,
            unit,
            better,
        };
        writeln!(self.file, "{}", serde_json::to_string(&row)?)?;
        eprintln!("  {}: {:.1} against {:.1} {} ({})", row.case, row.ours, row.peer, row.unit, row.peer_name);
        self.rows.push(row);
        Ok(())
    }

    /// Prints the table.
    pub fn print(&self) {
        println!("\n{:<44} {:>12} {:>12} {:>7}  {:<8} against", self.bench, "ours", "peer", "ratio", "unit");
        for row in &self.rows {
            println!(
                "{:<44} {:>12.1} {:>12.1} {:>7.2}  {:<8} {} ({} is better)",
                row.case, row.ours, row.peer, row.ratio, row.unit, row.peer_name, row.better
            );
        }
    }
}

fn default_folder() -> PathBuf {
    let cache = std::env::var_os("DROVER_CACHE").map(PathBuf::from).unwrap_or_else(std::env::temp_dir);
    cache.join("bench")
}

/// Median of at least one value.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// The value below which the share `rank` (0 to 1) of the values lies, by the nearest rank.
pub fn percentile(values: &[f64], rank: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1).expect("a series has at least one value");
    sorted[(last as f64 * rank).round() as usize]
}
