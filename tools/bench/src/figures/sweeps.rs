//! A sweep that has nothing to do.

use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tokio::process::Command;

use super::Run;
use crate::database::{Jobs, fill};
use crate::report::{Limit, Unit, median};
use crate::stack::{NAMESPACE, binary};

/// Running jobs. The two databases have the same, whose Kubernetes Jobs are in the one cluster.
const RUNNING: usize = 100;
const FEW: usize = 200;
/// Sweeps in a round.
const SWEEPS: usize = 5;

/// The seconds that `operator-service reap` takes.
async fn sweep(run: &Run<'_>, database: &str) -> anyhow::Result<f64> {
    let mut reap = Command::new(binary("operator-service")?);
    reap.arg("reap").env_clear().envs(run.stack.variables(database)).env("REAP_SCHEDULE_GRACE", "1000000");
    let begun = Instant::now();
    let output = reap.output().await?;
    let time = begun.elapsed().as_secs_f64();
    let report: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{database}: {}", String::from_utf8_lossy(&output.stderr)))?;
    let (kinds, problems) = (&report["kinds"], &report["problems"]);
    ensure!(output.status.success() && report["complete"] == true, "{database}: {kinds} {problems}");
    Ok(time)
}

/// Creates what the engine would have created for running jobs.
async fn create_steps(run: &Run<'_>) -> anyhow::Result<()> {
    let url = format!("{}/apis/batch/v1/namespaces/{NAMESPACE}/jobs", run.stack.cluster_url());
    let client = reqwest::Client::builder().no_proxy().build()?;
    let mut connection = run.stack.connect("many").await?;
    let jobs: Vec<String> =
        sqlx::query_scalar("SELECT workflowid FROM jobs WHERE status = 40").fetch_all(&mut connection).await?;
    for job in jobs {
        let labels = json!({ "workflow": job, "component": "algorithm" });
        let object = json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": { "name": format!("{job}-algorithm-job"), "labels": labels },
            "spec": { "template": { "metadata": { "labels": labels }, "spec": {
                "restartPolicy": "Never", "containers": [{ "name": "algorithm", "image": "localhost/nothing" }]
            } } }
        });
        let sent = client.post(&url).header("content-type", "application/json").body(object.to_string());
        let answer = sent.send().await?;
        ensure!(answer.status().is_success(), "a Job was refused: {}", answer.text().await?);
    }
    Ok(())
}

pub(super) async fn run(run: &mut Run<'_>) -> anyhow::Result<()> {
    if !run.wants("sweep") {
        return Ok(());
    }
    for (database, number) in [("many", run.settings.jobs), ("few", FEW)] {
        let mut connection = run.stack.create(database).await?;
        fill(&mut connection, Jobs { number, unfinished: RUNNING, status: 40, workflow: 0 }).await?;
    }
    create_steps(run).await?;
    // The first one records what it sees, and does what is due once an hour or a day.
    for database in ["many", "few"] {
        sweep(run, database).await?;
    }
    let mut rounds = Vec::new();
    for _ in 0..run.settings.rounds {
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..SWEEPS {
            times[0].push(sweep(run, "many").await?);
            times[1].push(sweep(run, "few").await?);
        }
        rounds.push(times.map(median));
    }
    let figure = format!("idle sweep with {} jobs, {RUNNING} running", run.settings.jobs);
    run.add(figure, "with 200 jobs", Unit::Time, rounds, Limit::AtMost(1.1));
    run.stack.drop("many").await?;
    run.stack.drop("few").await
}
