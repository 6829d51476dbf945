//! The time that requests take, and how many are answered per second.

use std::sync::Arc;

use anyhow::{Context, ensure};
use sqlx::PgConnection;

use super::Run;
use crate::database::{Jobs, delete_started, fill, some_jobs};
use crate::floor::{CONNECTIONS, ENVIRONMENTS, JOB, statement};
use crate::load::{Requests, Sample, Target, alternate};
use crate::report::{Limit, Unit};
use crate::requests::{get, starts, statuses};
use crate::stack::Server;

/// Jobs of the small database, and the unfinished ones of both.
const SMALL: Jobs = Jobs { number: 100, unfinished: 10, status: 1, workflow: 0 };
const UNFINISHED: usize = 10_000;
/// Starts are signed before each round: this many for a second, on one connection.
const STARTS_PER_SECOND: f64 = 2_000.0;
/// Jobs whose status is asked for.
const STATUSES: usize = 2_000;
pub(super) const BARE: &str = "bare handler";

/// A database with the service and the bare handlers.
pub(super) struct Site {
    connection: PgConnection,
    pub(super) database: &'static str,
    pub(super) service: Server,
    pub(super) floor: Server,
    statuses: Arc<Requests>,
}

impl Site {
    pub(super) async fn open(run: &Run<'_>, database: &'static str, jobs: Jobs) -> anyhow::Result<Self> {
        let mut connection = run.stack.create(database).await?;
        fill(&mut connection, jobs).await?;
        let known = some_jobs(&mut connection, STATUSES).await?;
        let (service, floor) = (run.stack.serve(database, &[]).await?, run.stack.floor(database).await?);
        let statuses = Requests::repeated(statuses(&run.stack.signers, &known));
        Ok(Self { connection, database, service, floor, statuses })
    }
}

pub(super) fn target(server: &Server, requests: &Arc<Requests>) -> Target {
    Target { address: server.address, requests: requests.clone() }
}

/// Median and 99th percentile of several rounds.
#[derive(Default)]
pub(super) struct Times {
    p50: Vec<[f64; 2]>,
    p99: Vec<[f64; 2]>,
}

impl Times {
    pub(super) fn add(&mut self, samples: &[Sample; 2]) {
        let [figure, floor] = samples;
        self.p50.push([figure.quantile(0.5), floor.quantile(0.5)]);
        self.p99.push([figure.quantile(0.99), floor.quantile(0.99)]);
    }

    pub(super) fn report_median(self, run: &mut Run<'_>, what: &str, floor: &'static str, limit: f64) {
        run.add(format!("{what}, p50"), floor, Unit::Time, self.p50, Limit::AtMost(limit));
    }

    fn report(self, run: &mut Run<'_>, what: &str, floor: &'static str, limit: f64) {
        run.add(format!("{what}, p50"), floor, Unit::Time, self.p50, Limit::AtMost(limit));
        run.add(format!("{what}, p99"), floor, Unit::Time, self.p99, Limit::AtMost(limit));
    }
}

pub(super) async fn run(run: &mut Run<'_>) -> anyhow::Result<()> {
    let mut small = None;
    for (name, connections) in [("status", 1), ("status-32", 32), ("start", 1), ("start-32", 32), ("rate", 64)] {
        if !run.wants(name) {
            continue;
        }
        if small.is_none() {
            small = Some(Site::open(run, "small", SMALL).await?);
        }
        let site = small.as_mut().context("the small database")?;
        match name {
            "rate" => rates(run, site, connections).await?,
            "start" | "start-32" => start_times(run, site, connections).await?,
            _ => status_times(run, site, connections).await?,
        }
    }
    if run.wants("size") {
        let jobs = Jobs { number: run.settings.jobs, unfinished: UNFINISHED.min(run.settings.jobs / 10), ..SMALL };
        let mut large = Site::open(run, "large", jobs).await?;
        let mut small = match small {
            Some(small) => small,
            None => Site::open(run, "small", SMALL).await?,
        };
        sizes(run, &mut large, &mut small, jobs).await?;
        run.stack.drop(large.database).await?;
    }
    Ok(())
}

async fn status_times(run: &mut Run<'_>, site: &Site, connections: usize) -> anyhow::Result<()> {
    let mut times = Times::default();
    for _ in 0..run.settings.rounds {
        let (service, floor) = (target(&site.service, &site.statuses), target(&site.floor, &site.statuses));
        times.add(&alternate(&service, &floor, connections, run.settings.time).await?);
    }
    times.report(run, &format!("status by job, {connections} connections"), BARE, 1.2);
    Ok(())
}

/// Starts for one target and one round.
fn new_starts(run: &Run<'_>) -> Arc<Requests> {
    let number = (STARTS_PER_SECOND * run.settings.time.as_secs_f64()).ceil() as usize;
    Requests::once(starts(&run.stack.signers, number))
}

async fn start_times(run: &mut Run<'_>, site: &mut Site, connections: usize) -> anyhow::Result<()> {
    let mut times = Times::default();
    for _ in 0..run.settings.rounds {
        let (service, floor) = (target(&site.service, &new_starts(run)), target(&site.floor, &new_starts(run)));
        times.add(&alternate(&service, &floor, connections, run.settings.time).await?);
        delete_started(&mut site.connection).await?;
    }
    times.report(run, &format!("start, {connections} connections"), BARE, 1.2);
    Ok(())
}

async fn rates(run: &mut Run<'_>, site: &Site, connections: usize) -> anyhow::Result<()> {
    let environments = Requests::repeated(vec![get("/api/v1/operator/environments")]);
    for (what, requests, parts) in
        [("signed status", &site.statuses, JOB), ("/environments", &environments, ENVIRONMENTS)]
    {
        let mut rounds = Vec::new();
        for _ in 0..run.settings.rounds {
            let (service, floor) = (target(&site.service, requests), target(&site.floor, requests));
            let samples = alternate(&service, &floor, connections, run.settings.time).await?;
            rounds.push([samples[0].rate(), samples[1].rate()]);
        }
        let figure = format!("{what} per second, {connections} connections");
        run.add(figure, BARE, Unit::Rate, rounds, Limit::AtLeast(0.85));
        let beside = format!("pgbench: {:.0}/s", pgbench(run, site.database, &parts).await?);
        if let Some(row) = run.rows.last_mut() {
            row.beside = beside;
        }
    }
    Ok(())
}

/// Transactions per second of pgbench with the service's statement, as a prepared one on as many connections.
async fn pgbench(run: &Run<'_>, database: &str, parts: &[&str]) -> anyhow::Result<f64> {
    let mut text = statement(parts)?;
    let (signer, nonce, window) = ("'0x0'::text", "'1700000000000000000'::text", "300::float8");
    let job = "md5('job' || :n)::text";
    let arguments = match parts == JOB {
        true => vec![signer, nonce, window, "5000", "0", "5000000", job, "NULL", "NULL::text"],
        false => vec!["NULL"],
    };
    for (number, argument) in arguments.iter().enumerate().rev() {
        text = text.replace(&format!("${}", number + 1), argument);
    }
    let script = run.stack.directory.join("pgbench.sql");
    std::fs::write(&script, format!("\\set n random(1, {})\n{};\n", SMALL.number, text.replace('\n', " ")))?;
    let (clients, seconds) = (CONNECTIONS.to_string(), run.settings.time.as_secs().max(1).to_string());
    let mut pgbench = tokio::process::Command::new("pgbench");
    pgbench.args(["--no-vacuum", "--protocol=prepared", "--jobs=1", "--client", &clients, "--time", &seconds]);
    let output = pgbench
        .arg("--file")
        .arg(&script)
        .envs([("PGAPPNAME", "pgbench"), ("PGSSLMODE", "disable")])
        .arg(run.stack.url(database))
        .output()
        .await;
    let output = output.context("pgbench")?;
    ensure!(output.status.success(), "pgbench: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let rate = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    rate.with_context(|| format!("pgbench printed no rate: {text}"))
}

/// Status and start with many jobs, against the same with few.
async fn sizes(run: &mut Run<'_>, large: &mut Site, small: &mut Site, jobs: Jobs) -> anyhow::Result<()> {
    let (mut statuses, mut starts) = (Times::default(), Times::default());
    for _ in 0..run.settings.rounds {
        let (one, other) = (target(&large.service, &large.statuses), target(&small.service, &small.statuses));
        statuses.add(&alternate(&one, &other, 1, run.settings.time).await?);
        let (one, other) = (target(&large.service, &new_starts(run)), target(&small.service, &new_starts(run)));
        starts.add(&alternate(&one, &other, 1, run.settings.time).await?);
        for site in [&mut *large, &mut *small] {
            delete_started(&mut site.connection).await?;
        }
    }
    let with = format!("with {} jobs, {} unfinished", jobs.number, jobs.unfinished);
    statuses.report(run, &format!("status {with}"), "with 100 jobs", 1.1);
    starts.report(run, &format!("start {with}"), "with 100 jobs", 1.1);
    Ok(())
}
