//! The table of a run, for the terminal and as Markdown, and its picture.

mod picture;

use std::fmt::Write;
use std::path::Path;

use crate::Settings;

/// What a figure has to keep.
#[derive(Debug, Clone, Copy)]
pub enum Limit {
    /// At most this multiple of the floor.
    AtMost(f64),
    /// At least this multiple of the floor.
    AtLeast(f64),
    /// At most this much more than the floor.
    More(f64),
    /// At most this much; there is no floor.
    Absolute(f64),
}

/// The unit of the values.
#[derive(Debug, Clone, Copy)]
pub enum Unit {
    /// Seconds.
    Time,
    /// Requests per second.
    Rate,
    /// Bytes per second.
    Throughput,
    /// Bytes.
    Size,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Time if value < 0.01 => format!("{:.0} µs", value * 1e6),
            Self::Time => format!("{:.1} ms", value * 1e3),
            Self::Rate => format!("{value:.0}/s"),
            Self::Throughput => format!("{:.0} MB/s", value / 1e6),
            Self::Size => format!("{:.1} MB", value / 1e6),
        }
    }
}

/// A figure.
#[derive(Debug)]
pub struct Row {
    /// What was measured.
    pub figure: String,
    /// What it is compared with.
    pub floor: &'static str,
    /// The unit of both.
    pub unit: Unit,
    /// The figure and its floor in each round.
    pub rounds: Vec<[f64; 2]>,
    /// What it has to keep.
    pub limit: Limit,
    /// What is shown beside it and not compared.
    pub beside: String,
}

impl Row {
    fn median(&self, value: impl Fn(&[f64; 2]) -> f64) -> f64 {
        median(self.rounds.iter().map(value).collect())
    }

    /// The median of what the rounds are judged by: a ratio, a difference, or the value itself.
    fn result(&self) -> f64 {
        self.median(|[figure, floor]| match self.limit {
            Limit::AtMost(_) | Limit::AtLeast(_) => figure / floor,
            Limit::More(_) => figure - floor,
            Limit::Absolute(_) => *figure,
        })
    }

    /// The part of its limit that the figure takes: above 1 it does not keep it.
    fn part(&self) -> f64 {
        match self.limit {
            Limit::AtMost(limit) | Limit::More(limit) | Limit::Absolute(limit) => self.result() / limit,
            Limit::AtLeast(limit) => limit / self.result(),
        }
    }

    /// The cells of the table.
    fn cells(&self) -> [String; 7] {
        let show = |value| self.unit.show(value);
        let (result, limit) = match self.limit {
            Limit::AtMost(limit) => (format!("{:.2} x", self.result()), format!("<= {limit} x")),
            Limit::AtLeast(limit) => (format!("{:.2} x", self.result()), format!(">= {limit} x")),
            Limit::More(limit) => (format!("{:+.1} MB", self.result() / 1e6), format!("<= +{:.0} MB", limit / 1e6)),
            Limit::Absolute(limit) => (show(self.result()), format!("<= {}", show(limit))),
        };
        let floor = match self.limit {
            Limit::Absolute(_) => "-".to_owned(),
            _ => format!("{}: {}", self.floor, show(self.median(|round| round[1]))),
        };
        let holds = if self.part() <= 1.0 { "within" } else { "above" };
        let figure = show(self.median(|round| round[0]));
        [self.figure.clone(), figure, floor, result, limit, holds.to_owned(), self.beside.clone()]
    }
}

/// The median; NaN of nothing.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

/// Prints the table, and writes target/bench/performance.md and performance.svg.
pub fn write(settings: &Settings, versions: &[(&'static str, String)], rows: &[Row]) -> anyhow::Result<()> {
    let mut text = format!("`{}`", settings.command());
    for (name, value) in versions {
        write!(text, "; {name}: {value}")?;
    }
    let beside = std::env::var("BESIDE").unwrap_or_default();
    let beside = if beside.is_empty() { "not recorded" } else { &beside };
    writeln!(text, "; what else ran: {beside}.\n")?;
    writeln!(
        text,
        "| figure | median | floor | result | must be | | beside |\n| --- | --- | --- | --- | --- | --- | --- |"
    )?;
    for row in rows {
        writeln!(text, "| {} |", row.cells().join(" | "))?;
    }
    devstack::say!("{text}");
    let directory = Path::new("target/bench");
    std::fs::write(directory.join("performance.md"), text)?;
    std::fs::write(directory.join("performance.svg"), picture::draw(rows)?)?;
    devstack::say!("written to target/bench/performance.md and target/bench/performance.svg");
    Ok(())
}
