//! Large results: the rate, and the memory that they take.

use std::time::Instant;

use anyhow::{Context, ensure};
use sqlx::PgConnection;

use super::Run;
use crate::database::{Jobs, fill, some_jobs};
use crate::load::Connection;
use crate::report::{Limit, Unit};
use crate::requests::{get, job_query};
use crate::runtime_api::{Function, event};
use crate::stack::{Server, binary};

const DATABASE: &str = "results";
const PATH: &str = "/api/v1/operator/getResult";
/// Bytes of a result: through `serve`, and through the function.
const LARGE: u64 = 1_000_000_000;
const MEDIUM: u64 = 100_000_000;
/// A result that is fetched first: what the first one allocates is not for its length.
const SMALL: u64 = 1_000;
/// The growth that is allowed, in bytes.
const GROWTH: f64 = 16e6;

/// A finished job whose output can have any length.
struct Job {
    connection: PgConnection,
    owner: String,
    id: String,
    origin: Server,
}

impl Job {
    /// Makes the output this long. Returns the parameters of a request for it.
    async fn output(&mut self, run: &Run<'_>, length: u64) -> anyhow::Result<String> {
        let signer = run.stack.signers.first().context("a signer")?;
        let outputs = serde_json::json!([{
            "filename": "result.bin", "filesize": length, "url": self.url(length), "type": "output"
        }]);
        sqlx::query("UPDATE jobs SET outputsurl = $1, provider = $2 WHERE workflowid = $3")
            .bind(outputs.to_string())
            .bind(signer.address().to_lowercase())
            .bind(&self.id)
            .execute(&mut self.connection)
            .await?;
        Ok(format!("{}&index=0", job_query(signer, &self.owner, &self.id)))
    }

    fn url(&self, length: u64) -> String {
        format!("http://{}/origin/{length}", self.origin.address)
    }
}

/// Fetches a file. Returns bytes per second.
async fn fetch(server: &Server, path_and_query: &str, length: u64) -> anyhow::Result<f64> {
    let mut connection = Connection::open(server.address).await?;
    let begun = Instant::now();
    let received = connection.exchange(&get(path_and_query)).await?;
    ensure!(received == length, "{received} bytes were received of {length}");
    Ok(length as f64 / begun.elapsed().as_secs_f64())
}

pub(super) async fn run(run: &mut Run<'_>) -> anyhow::Result<()> {
    if !run.wants("results") {
        return Ok(());
    }
    let mut connection = run.stack.create(DATABASE).await?;
    fill(&mut connection, Jobs { number: 100, unfinished: 0, status: 1, workflow: 0 }).await?;
    let (owner, id) = some_jobs(&mut connection, 1).await?.pop().context("a job")?;
    let mut job = Job { connection, owner, id, origin: run.stack.floor(DATABASE).await? };
    let allowed = ("RESULT_HOSTS_ALLOWED", r#"["127.0.0.1"]"#.to_owned());
    let service = run.stack.serve(DATABASE, std::slice::from_ref(&allowed)).await?;
    let proxy = run.stack.floor(DATABASE).await?;

    let query = job.output(run, SMALL).await?;
    fetch(&service, &format!("{PATH}?{query}"), SMALL).await?;
    let before = service.memory("VmRSS")?;
    let mut rounds = Vec::new();
    for _ in 0..run.settings.rounds {
        let query = job.output(run, LARGE).await?;
        let of_service = fetch(&service, &format!("{PATH}?{query}"), LARGE).await?;
        rounds.push([of_service, fetch(&proxy, &format!("/proxy?{}", job.url(LARGE)), LARGE).await?]);
    }
    let growth = service.memory("VmHWM")? - before;
    run.add("result of 1 GB through serve", "bare proxy", Unit::Throughput, rounds, Limit::AtLeast(0.85));
    run.add("memory that results of 1 GB add to serve", "-", Unit::Size, vec![[growth, 0.0]], Limit::Absolute(GROWTH));

    let mut variables = run.stack.tls_variables(DATABASE);
    variables.push((allowed.0.to_owned(), allowed.1));
    let first = event("GET", PATH, &job.output(run, SMALL).await?, None);
    let (mut function, _) = Function::start(&binary("results")?, &variables, first).await?;
    function.reply().await?;
    let before = function.memory("VmRSS")?;
    let mut rounds = Vec::new();
    for _ in 0..run.settings.rounds {
        let query = job.output(run, MEDIUM).await?;
        let begun = Instant::now();
        let reply = function.invoke(event("GET", PATH, &query, None)).await?;
        ensure!(reply.length as u64 >= MEDIUM, "{} bytes: {}", reply.length, reply.begin);
        let of_function = MEDIUM as f64 / begun.elapsed().as_secs_f64();
        rounds.push([of_function, fetch(&proxy, &format!("/proxy?{}", job.url(MEDIUM)), MEDIUM).await?]);
    }
    let growth = function.memory("VmHWM")? - before;
    run.add("result of 100 MB through the function", "bare proxy", Unit::Throughput, rounds, Limit::AtLeast(0.85));
    let what = "memory that results of 100 MB add to the function";
    run.add(what, "-", Unit::Size, vec![[growth, 0.0]], Limit::Absolute(GROWTH));
    Ok(())
}
