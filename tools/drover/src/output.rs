//! How results are shown: for people, or as JSON with one value on standard output.

use crate::failure::Failure;
use comfy_table::{Table, presets};
use serde::Serialize;
use std::io::{IsTerminal, Write};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    #[default]
    Human,
    /// One JSON value; commands that go on print one a line.
    Json,
}

impl Output {
    pub fn is_json(self) -> bool {
        self == Self::Json
    }

    /// Shows a result: `value` as JSON, or what `human` makes of it.
    pub fn show<T: Serialize + ?Sized>(self, value: &T, human: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        let text = match self {
            Self::Json => serde_json::to_string_pretty(value).expect("plain data always encodes"),
            Self::Human => human(value),
        };
        print_line(text.trim_end())
    }

    /// As [`Self::show`], as one line of many.
    pub fn show_line<T: Serialize + ?Sized>(self, value: &T, human: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        let text = match self {
            Self::Json => serde_json::to_string(value).expect("plain data always encodes"),
            Self::Human => human(value),
        };
        print_line(&text)
    }

    /// Tells people how it goes on; nothing where programs read.
    pub fn say(self, text: &str) {
        if self == Self::Human {
            eprintln!("{text}");
        }
    }
}

/// Prints to standard output; a reader that left ends the program quietly.
pub fn print_line(text: &str) -> Result<(), Failure> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => result.map_err(|error| Failure::failed("cannot print").cause(error)),
    }
}

pub fn is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// A table without frames: a line of headings, then the rows.
pub fn table<const N: usize>(headings: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(headings);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// `value`, or a dash.
pub fn or_dash<T: std::fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}

/// Milliseconds as people read them.
pub fn show_ms(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{:.1} s", ms as f64 / 1e3),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms / 1_000 % 60),
        _ => format!("{} h {} min", ms / 3_600_000, ms / 60_000 % 60),
    }
}
