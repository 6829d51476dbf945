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

/// Runs all figures, or the one that was asked for.
pub async fn run(settings: &Settings, stack: &Stack) -> anyhow::Result<Vec<Row>> {
    let mut run = Run { settings, stack, rows: Vec::new() };
    http::run(&mut run).await?;
    functions::run(&mut run).await?;
    lists::run(&mut run).await?;
    results::run(&mut run).await?;
    sweeps::run(&mut run).await?;
    anyhow::ensure!(!run.rows.is_empty(), "no figure has the name that ONLY gives");
    Ok(run.rows)
}
