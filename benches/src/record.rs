//! One line a comparison: on the screen as a table, in a file as JSON lines; and the aims, met or not.

use serde::Serialize;
use std::{fs, io::Write, path::PathBuf};

/// A comparison of ours with a peer or with ourselves, measured in turn in one run.
#[derive(Clone, Debug, Serialize)]
struct Row {
    bench: &'static str,
    case: String,
    /// Median of ours, in `unit`.
    ours: f64,
    /// Median of the peer's, in `unit`.
    peer: f64,
    peer_name: String,
    /// Ours divided by the peer's.
    ratio: f64,
    unit: &'static str,
    better: &'static str,
    /// See [`spread`]; told on the screen only.
    #[serde(skip)]
    spread: f64,
}

/// What is measured and which way is better.
pub type Unit = (&'static str, &'static str);
pub const IOPS: Unit = ("IOPS", "higher");

/// What one of the aims asks and what was seen.
struct Aim {
    what: String,
    is_met: bool,
}

/// Rows of one bench, written to `DROVER_BENCH_OUT/<bench>.jsonl` as they come.
pub struct Report {
    bench: &'static str,
    file: fs::File,
    rows: Vec<Row>,
    aims: Vec<Aim>,
}

impl Report {
    /// Replaces the bench's former file. Where only parts are measured they have a file of their own.
    pub fn open(bench: &'static str, parts: &[String]) -> std::io::Result<Self> {
        let folder = std::env::var_os("DROVER_BENCH_OUT").map(PathBuf::from).unwrap_or_else(default_folder);
        fs::create_dir_all(&folder)?;
        let name: Vec<&str> = std::iter::once(bench).chain(parts.iter().map(String::as_str)).collect();
        let path = folder.join(format!("{}.jsonl", name.join("-")));
        eprintln!("writing {}", path.display());
        Ok(Self { bench, file: fs::File::create(path)?, rows: Vec::new(), aims: Vec::new() })
    }

    /// Adds the row of two series measured in turn, each with at least one value; returns its ratio.
    pub fn compare(
        &mut self,
        case: impl Into<String>,
        peer_name: &str,
        (unit, better): Unit,
        ours: &[f64],
        peer: &[f64],
    ) -> std::io::Result<f64> {
        let spread = spread(ours).max(spread(peer));
        let (ours, peer) = (median(ours), median(peer));
        let ratio = ours / peer;
        let row = Row {
            bench: self.bench,
            case: case.into(),
            ours,
            peer,
            peer_name: peer_name.into(),
            ratio,
            unit,
            better,
            spread,
        };
        writeln!(self.file, "{}", serde_json::to_string(&row)?)?;
        eprintln!("  {}: {ratio:.2} ({ours:.1} against {peer:.1} {unit}, {peer_name})", row.case);
        self.rows.push(row);
        Ok(ratio)
    }

    /// Notes an aim and whether it was met.
    pub fn aim(&mut self, what: String, is_met: bool) {
        self.aims.push(Aim { what, is_met });
    }

    /// Prints the table.
    pub fn print(&self) {
        let width = self.rows.iter().map(|row| row.case.len()).max().unwrap_or(0);
        println!(
            "\n{:<width$} {:>6} {:>10} {:>10} {:<6} {:>6}  against",
            self.bench, "ratio", "ours", "peer", "", "+-"
        );
        for Row { case, ours, peer, peer_name, ratio, unit, better, spread, .. } in &self.rows {
            println!(
                "{case:<width$} {ratio:>6.2} {ours:>10.1} {peer:>10.1} {unit:<6} {:>5.0}%  {peer_name} ({better} is better)",
                spread * 100.0
            );
        }
        println!();
        for Aim { what, is_met } in &self.aims {
            println!("{:<8} {what}", if *is_met { "met" } else { "NOT MET" });
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

/// Half the distance between the quartiles, as a share of the median.
fn spread(values: &[f64]) -> f64 {
    (percentile(values, 0.75) - percentile(values, 0.25)) / 2.0 / median(values)
}

/// The value below which the share `rank` (0 to 1) of the values lies, by the nearest rank.
pub fn percentile(values: &[f64], rank: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let count = sorted.len();
    assert!(count > 0, "a series has at least one value");
    sorted[((count as f64 * rank).ceil() as usize).clamp(1, count) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_the_nearest_rank() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        for (rank, expected) in [(0.0, 1.0), (0.5, 50.0), (0.99, 99.0), (1.0, 100.0)] {
            assert_eq!(percentile(&values, rank), expected, "{rank}");
        }
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(spread(&[10.0, 8.0, 12.0, 9.0, 11.0]), 0.1);
    }
}
