//! What is measured: a file for each kind of figure.

mod functions;
mod http;
mod lists;
mod results;
mod sweeps;

use devstack::say;

use crate::Settings;
use crate::report::{Limit, Row, Unit};
use crate::stack::Stack;

/// A run in progress.
pub struct Run<'a> {
    settings: &'a Settings,
    stack: &'a Stack,
    rows: Vec<Row>,
}

impl Run<'_> {
    /// Adds a figure.
    fn add(&mut self, figure: impl Into<String>, floor: &'static str, unit: Unit, rounds: Vec<[f64; 2]>, limit: Limit) {
        self.rows.push(Row { figure: figure.into(), floor, unit, rounds, limit, beside: String::new() });
    }

    /// Returns whether a figure is to be run, and shows it.
    fn wants(&self, name: &str) -> bool {
        let wanted = self.settings.only.as_ref().is_none_or(|only| only == name);
        if wanted {
            say!("measuring {name}");
        }
        wanted
    }
}

/// Runs all figures, or the one that was asked for. Returns what was measured, also if a measurement failed.
pub async fn run(settings: &Settings, stack: &Stack) -> (Vec<Row>, anyhow::Result<()>) {
    let mut run = Run { settings, stack, rows: Vec::new() };
    let mut result = run_all(&mut run).await;
    if result.is_ok() && run.rows.is_empty() {
        result = Err(anyhow::anyhow!("no figure has the name that ONLY gives"));
    }
    (run.rows, result)
}

async fn run_all(run: &mut Run<'_>) -> anyhow::Result<()> {
    // First: a sweep lists all WorkFlow objects of the cluster, and the others leave many there.
    sweeps::run(run).await?;
    functions::run(run).await?;
    http::run(run).await?;
    lists::run(run).await?;
    results::run(run).await
}
