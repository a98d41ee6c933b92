//! How far long work is: a bar on a terminal, a line now and then elsewhere, nothing where programs read.

use crate::output::{Output, is_terminal};
use drover_base::text::show_bytes;
use indicatif::{ProgressBar, ProgressStyle};
use std::time::{Duration, Instant};

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

pub enum Progress {
    Bar(ProgressBar),
    Lines { last: Instant, what: String },
    Silent,
}

impl Progress {
    pub fn new(output: Output, what: &str) -> Self {
        if output.is_json() {
            return Self::Silent;
        }
        if !is_terminal() {
            return Self::Lines { last: Instant::now(), what: what.into() };
        }
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template("{prefix} {bar:30} {percent:>3} %  {msg}");
        bar.set_style(style.expect("the template is well-formed"));
        bar.set_prefix(what.to_owned());
        Self::Bar(bar)
    }

    /// `note` stands beside the amounts.
    pub fn set(&mut self, done: u64, total: u64, note: &str) {
        let amounts = format!("{} of {}  {note}", show_bytes(done), show_bytes(total));
        match self {
            Self::Bar(bar) => {
                bar.set_length(total.max(1));
                bar.set_position(done.min(total));
                bar.set_message(amounts);
            }
            Self::Lines { last, what } if last.elapsed() >= LINE_EVERY => {
                *last = Instant::now();
                eprintln!("{what}: {amounts}");
            }
            Self::Lines { .. } | Self::Silent => {}
        }
    }

    /// A line of its own, above the bar.
    pub fn say(&self, text: &str) {
        match self {
            Self::Bar(bar) => bar.println(text),
            Self::Lines { .. } => eprintln!("{text}"),
            Self::Silent => {}
        }
    }

    pub fn finish(self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
