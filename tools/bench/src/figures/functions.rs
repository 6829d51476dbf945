//! The functions: cold starts, memory, sizes.

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, ensure};
use flate2::Compression;
use flate2::write::DeflateEncoder;
use serde_json::{Value, json};

use super::Run;
use crate::database::{Jobs, fill, some_jobs};
use crate::report::{Limit, Unit, median};
use crate::requests::{job_query, start_body};
use crate::runtime_api::{Function, event};
use crate::stack::{NAMESPACE, Variables, binary};

/// Starts of each function in a round.
const STARTS: usize = 10;
/// Requests after which the memory is read.
const REQUESTS: usize = 10_000;
const DATABASE: &str = "functions";
const OPERATOR: &str = "/api/v1/operator";
const FUNCTIONS: [&str; 6] = ["compute", "results", "environments", "admin", "docs", "reaper"];

/// A request that a function answers without any connection; the reaper has none.
fn without_connection(function: &str) -> Option<Value> {
    match function {
        "compute" => Some(event("GET", &format!("{OPERATOR}/compute"), "", None)),
        "results" => Some(event("GET", &format!("{OPERATOR}/getResult"), "", None)),
        "environments" => Some(event("GET", &format!("{OPERATOR}/environments"), "chainId=none", None)),
        "admin" => Some(event("GET", &format!("{OPERATOR}/info"), "", None)),
        "docs" => Some(event("GET", "/", "", None)),
        _ => None,
    }
}

/// A request that needs what the function connects to, and whether that includes the cluster; docs connects to nothing.
fn with_connections(run: &Run<'_>, function: &str, (owner, job): &(String, String)) -> Option<(Value, bool)> {
    let signer = run.stack.signers.first()?;
    match function {
        "compute" => Some((event("POST", &format!("{OPERATOR}/compute"), "", Some(start_body(signer))), true)),
        // Of a job without such an output: its origin would be measured too.
        "results" => {
            let query = format!("{}&index=9", job_query(signer, owner, job));
            Some((event("GET", &format!("{OPERATOR}/getResult"), &query, None), false))
        }
        "environments" => Some((event("GET", &format!("{OPERATOR}/environments"), "", None), false)),
        "admin" => Some((event("GET", &format!("{OPERATOR}/info"), &format!("jobId={job}"), None), true)),
        "reaper" => Some((json!({ "dryRun": true }), true)),
        _ => None,
    }
}

pub(super) async fn run(run: &mut Run<'_>) -> anyhow::Result<()> {
    if run.wants("zip") {
        zip(run)?;
    }
    let (cold, memory) = (run.wants("cold"), run.wants("memory"));
    if !cold && !memory {
        return Ok(());
    }
    let mut connection = run.stack.create(DATABASE).await?;
    fill(&mut connection, Jobs { number: 200, unfinished: 0, status: 1, workflow: 0 }).await?;
    let job = some_jobs(&mut connection, 1).await?.pop().context("a job")?;
    if cold {
        cold_starts(run, &job).await?;
    }
    if memory {
        memory_of_requests(run, &job).await?;
        sweep_memory(run).await?;
    }
    Ok(())
}

/// The time from the start of a process to its first reply, in seconds.
async fn cold_start(binary_name: &str, variables: &Variables, first: Value) -> anyhow::Result<f64> {
    let (mut function, begun) = Function::start(&binary(binary_name)?, variables, first).await?;
    let reply = function.reply().await.with_context(|| binary_name.to_owned())?;
    let time = begun.elapsed().as_secs_f64();
    let failed = reply.begin.contains("\"statusCode\":5");
    ensure!(!failed, "{binary_name}: {}", reply.begin);
    Ok(time)
}

/// The time of a sweep in a process that has done one, in seconds.
async fn warm_sweep(variables: &Variables, event: &Value) -> anyhow::Result<f64> {
    let (mut reaper, _) = Function::start(&binary("reaper")?, variables, event.clone()).await?;
    reaper.reply().await?;
    let begun = Instant::now();
    reaper.invoke(event.clone()).await?;
    Ok(begun.elapsed().as_secs_f64())
}

async fn cold_starts(run: &mut Run<'_>, job: &(String, String)) -> anyhow::Result<()> {
    let plain = run.stack.variables(DATABASE);
    for function in FUNCTIONS {
        let mut rounds = Vec::new();
        for _ in 0..run.settings.rounds {
            let mut times = [Vec::new(), Vec::new()];
            for _ in 0..STARTS {
                let Some(first) = without_connection(function) else { break };
                times[0].push(cold_start(function, &plain, first.clone()).await?);
                times[1].push(cold_start("empty", &plain, first).await?);
            }
            rounds.push(times.map(median));
        }
        if without_connection(function).is_some() {
            run.add(format!("cold start of {function}"), "empty function", Unit::Time, rounds, Limit::AtMost(1.3));
        }
    }
    for function in FUNCTIONS {
        let Some((_, with_cluster)) = with_connections(run, function, job) else { continue };
        let variables = run.stack.tls_variables(DATABASE);
        let mut of_floor = variables.clone();
        of_floor.retain(|(name, _)| with_cluster || name != "CLUSTER_PORT");
        let any = event("GET", "/", "", None);
        let mut rounds = Vec::new();
        for _ in 0..run.settings.rounds {
            let mut times = [Vec::new(), Vec::new()];
            for _ in 0..STARTS {
                let Some((first, _)) = with_connections(run, function, job) else { break };
                let sweep = if function == "reaper" { warm_sweep(&variables, &first).await? } else { 0.0 };
                times[0].push(cold_start(function, &variables, first).await?);
                times[1].push(cold_start("connecting", &of_floor, any.clone()).await? + sweep);
            }
            rounds.push(times.map(median));
        }
        let what = if with_cluster { "PostgreSQL and cluster" } else { "PostgreSQL" };
        let figure = format!("cold start of {function} with {what}");
        let floor =
            if function == "reaper" { "bare connections and a sweep of a warm process" } else { "bare connections" };
        run.add(figure, floor, Unit::Time, rounds, Limit::AtMost(1.3));
    }
    Ok(())
}

/// The memory of a function after many requests, and of the empty one after as many.
async fn memory_of_requests(run: &mut Run<'_>, job: &(String, String)) -> anyhow::Result<()> {
    let variables = run.stack.tls_variables(DATABASE);
    let signer = run.stack.signers.first().context("a signer")?;
    for function in ["compute", "environments", "docs"] {
        let request = match function {
            "compute" => event("GET", &format!("{OPERATOR}/compute"), &job_query(signer, &job.0, &job.1), None),
            "environments" => event("GET", &format!("{OPERATOR}/environments"), "", None),
            _ => event("GET", "/spec", "", None),
        };
        let mut values = [0.0; 2];
        for (value, binary_name) in values.iter_mut().zip([function, "empty"]) {
            let (mut process, _) = Function::start(&binary(binary_name)?, &variables, request.clone()).await?;
            process.reply().await?;
            for _ in 1..REQUESTS {
                let reply = process.invoke(request.clone()).await?;
                let ok = binary_name == "empty" || reply.begin.contains("\"statusCode\":200");
                ensure!(ok, "{function}: {}", reply.begin);
            }
            *value = process.memory("VmHWM")?;
        }
        let figure = format!("memory of {function} after {REQUESTS} requests");
        run.add(figure, "empty function", Unit::Size, vec![values], Limit::More(20e6));
    }
    Ok(())
}

/// The memory of a sweep that has this number of WorkFlow objects to create.
async fn sweep_memory(run: &mut Run<'_>) -> anyhow::Result<()> {
    const DUE: usize = 10_000;
    let mut connection = run.stack.create("due").await?;
    fill(&mut connection, Jobs { number: DUE, unfinished: DUE, status: 1, workflow: 0 }).await?;
    for statement in ["UPDATE reaperjobs SET objectdue = now()", "UPDATE jobs SET registered = false", "VACUUM ANALYZE"]
    {
        sqlx::Executor::execute(&mut connection, statement).await?;
    }
    let mut variables = run.stack.tls_variables("due");
    variables.push(("REAP_RATE".to_owned(), "5000".to_owned()));
    let (mut reaper, _) = Function::start(&binary("reaper")?, &variables, json!({})).await?;
    let reply = reaper.reply().await?;
    let value = reaper.memory("VmHWM")?;
    let left: i64 =
        sqlx::query_scalar("SELECT count(*) FROM jobs WHERE NOT registered").fetch_one(&mut connection).await?;
    ensure!(left == 0, "the sweep left {left} jobs of {NAMESPACE}: {}", reply.begin);
    let (mut empty, _) = Function::start(&binary("empty")?, &variables, event("GET", "/", "", None)).await?;
    empty.reply().await?;
    let rounds = vec![[value, empty.memory("VmHWM")?]];
    run.add(format!("memory of a sweep with {DUE} due"), "empty function", Unit::Size, rounds, Limit::More(64e6));
    Ok(())
}

/// The size of each function in an archive. An archive's own headers have about 120 bytes.
fn zip(run: &mut Run<'_>) -> anyhow::Result<()> {
    for function in FUNCTIONS {
        // As Python's zipfile compresses, with which a deployment packs them.
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::new(6));
        encoder.write_all(&std::fs::read(binary(function)?)?)?;
        let size = encoder.finish()?.len() as f64;
        let limit = if function == "docs" { 2e6 } else { 4.5e6 };
        run.add(format!("{function}, zipped"), "-", Unit::Size, vec![[size, 0.0]], Limit::Absolute(limit));
    }
    Ok(())
}
