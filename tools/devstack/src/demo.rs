//! What `make demo` shows: one job's way through the stack, from Provider's signed request to the result.

use std::fs;
use std::future::IntoFuture;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use axum::http::header;
use axum::routing::get;
use k8s_openapi::api::batch::v1::Job;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::local::shown;
use crate::postgres;
use crate::stack::{self, Options, Progress, Stack};
use crate::wallet::{Wallet, keccak256};

const TABLE: &str = include_str!("../demo/co2.csv");
const ALGORITHM: &str = include_str!("../demo/algorithm.sh");
/// What the algorithm should compute.
const RESULT: &str = include_str!("../demo/result.csv");
/// Maximum duration of the job.
const JOB_LIMIT: Duration = Duration::from_secs(60);
/// Maximum time until an environment is announced.
const ENVIRONMENT_LIMIT: Duration = Duration::from_secs(30);
/// The consumer on whose behalf Provider asks.
const OWNER: &str = "0xC41808BBef371AD5CFc76466dDF9dEe228d2BdAA";

/// Runs the demo in that directory, and prints it.
///
/// # Errors
/// Whatever kept the job from being started, run, or fetched with the right result. The stack is stopped in any case.
pub async fn run(directory: &Path) -> anyhow::Result<()> {
    let started = Instant::now();
    clear(directory)?;
    say!("Bringing up a stack of its own in {}", shown(directory));
    let progress: Progress<'_> = &|what, line| say!("  {:4.1} s  {what:<9} {line}", started.elapsed().as_secs_f32());
    let mut stack = Stack::start(Options { directory: directory.to_owned(), demo: true }, progress).await?;
    let provider = Provider {
        wallet: stack.provider.clone(),
        service: stack.url.clone(),
        namespace: stack.namespace.clone(),
        http: reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20)).build()?,
        kubernetes: stack.client.clone(),
        last_nonce: AtomicU64::new(0),
    };
    let shown = tokio::select! {
        ended = stack.ended() => Err(ended),
        shown = provider.show() => shown,
    };
    say!("\nStopping everything");
    let stopped = stack.stop().await;
    shown.and(stopped)?;
    clear(directory)?;
    say!("Done in {:.1} s: the result is right.", started.elapsed().as_secs_f32());
    Ok(())
}

/// Removes what an earlier demo left.
fn clear(directory: &Path) -> anyhow::Result<()> {
    if directory.exists() {
        let _lock = stack::lock(directory)?;
        postgres::remove(&directory.join("postgres"))?;
        fs::remove_dir_all(directory).with_context(|| shown(directory))?;
    }
    Ok(())
}

/// Calls the service as Provider does.
struct Provider {
    wallet: Wallet,
    service: String,
    namespace: String,
    http: reqwest::Client,
    kubernetes: kube::Client,
    last_nonce: AtomicU64,
}

impl Provider {
    /// The clock in nanoseconds, as Provider has it, and never the same twice.
    fn nonce(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        let before = self.last_nonce.fetch_max(now, Ordering::SeqCst);
        if before < now { now } else { self.last_nonce.fetch_add(1, Ordering::SeqCst) + 1 }
    }

    async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<String> {
        let mut request = self.http.request(method.clone(), format!("{}/api/v1/operator/{path}", self.service));
        if let Some(body) = body {
            request = request.header(header::CONTENT_TYPE, "application/json").body(body.to_string());
        }
        let route = format!("{method} {}", path.split('?').next().unwrap_or(path));
        let answer = request.send().await.map_err(reqwest::Error::without_url).with_context(|| route.clone())?;
        let status = answer.status();
        let text = answer.text().await.map_err(reqwest::Error::without_url).with_context(|| route.clone())?;
        ensure!(status.is_success(), "{route} was answered with {status}: {text}");
        Ok(text)
    }

    /// A signed request about one job.
    async fn ask(&self, path: &str, job: &str, more: &str) -> anyhow::Result<String> {
        let nonce = self.nonce();
        let signature = self.wallet.sign(&format!("{OWNER}{job}{nonce}"));
        let query = format!("owner={OWNER}&jobId={job}&providerSignature={signature}&nonce={nonce}&{more}");
        self.send(Method::GET, &format!("{path}?{query}"), None).await
    }

    /// The whole demo.
    async fn show(&self) -> anyhow::Result<()> {
        let data = serve_table().await.context("could not serve the data")?;
        self.wait_for_environment().await?;

        say!("\nPOST /compute, signed by {}", self.wallet.address());
        say!("  data       demo/co2.csv: carbon dioxide at Mauna Loa, a line per year (NOAA)");
        say!("  algorithm  demo/algorithm.sh: the mean of each decade");
        let nonce = self.nonce();
        let agreement = format!("0x{}", hex::encode(keccak256(&nonce.to_be_bytes())));
        let submitted = Instant::now();
        let body = self.start_request(nonce, &agreement, &data);
        let first = one(&self.send(Method::POST, "compute", Some(&body)).await?)?;
        let job = first["jobId"].as_str().context("the answer has no jobId")?.to_owned();
        say!("  job        {job}");

        let finished = self.follow(&job, &agreement, first, submitted).await?;
        let results = finished["results"].as_array().cloned().unwrap_or_default();
        say!("\nIts results");
        for (index, file) in results.iter().enumerate() {
            let text = |field: &str| file[field].as_str().unwrap_or_default().to_owned();
            say!("  {index}  {:<15} {:<14} {:>4} bytes", text("type"), text("filename"), file["filesize"]);
        }
        let result = self.result(&job, &results, "output").await?;
        let log = self.result(&job, &results, "algorithmLog").await?;
        let indented = |text: &str| text.lines().map(|line| format!("  {line}\n")).collect::<String>();
        say!("\ngetResult, the result\n{}", indented(&result));
        say!("getResult, the algorithm's log\n{}", indented(&log).trim_end());
        ensure!(result == RESULT, "the result is not what the algorithm should compute, which is\n{RESULT}");
        ensure!(log.ends_with("done\n"), "the log lacks its last line");
        Ok(())
    }

    /// Waits until an engine has announced the environment.
    async fn wait_for_environment(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + ENVIRONMENT_LIMIT;
        loop {
            let announced: Value = serde_json::from_str(&self.send(Method::GET, "environments", None).await?)?;
            if announced.as_array().into_iter().flatten().any(|environment| environment["id"] == *self.namespace) {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "no engine has announced {} in {ENVIRONMENT_LIMIT:?} (with KUBECONFIG, ENGINE=1 starts the stand-in)",
                self.namespace
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn start_request(&self, nonce: u64, agreement: &str, data: &str) -> Value {
        let did = |what: &str| format!("did:op:{}", hex::encode(keccak256(what.as_bytes())));
        json!({
            "workflow": {"stages": [{
                "index": 0,
                "input": [{"index": 0, "id": did("co2"), "url": [data]}],
                "compute": {"Instances": 1, "namespace": self.namespace, "maxtime": 3600},
                "algorithm": {
                    "id": did("mean of each decade"),
                    "url": null,
                    "rawcode": ALGORITHM,
                    "container": {"image": "alpine", "tag": "3", "entrypoint": "sh $ALGO"},
                },
                "output": {"metadataUri": "", "owner": OWNER, "publishOutput": 0, "publishAlgorithmLog": 0},
            }]},
            "providerSignature": self.wallet.sign(&format!("{OWNER}{nonce}")),
            "agreementId": agreement,
            "owner": OWNER,
            "providerAddress": self.wallet.address(),
            "environment": self.namespace,
            "validUntil": nonce / 1_000_000_000 + 3600,
            "nonce": nonce,
            "chainId": 1,
        })
    }

    /// Asks for the job's state until it is finished, and prints each change.
    async fn follow(&self, job: &str, agreement: &str, first: Value, submitted: Instant) -> anyhow::Result<Value> {
        say!("\nGET /compute, until it is finished");
        let mut state = first;
        let mut shown = Value::Null;
        let mut seen_in_cluster = false;
        loop {
            if state["status"] != shown {
                shown = state["status"].clone();
                let text = state["statusText"].as_str().unwrap_or_default();
                say!("  {:5.2} s  {:>2}  {text}", submitted.elapsed().as_secs_f32(), shown.to_string());
            }
            if state["dateFinished"].is_string() {
                break;
            }
            // Once the engine has created its objects, and before it deletes them.
            if !seen_in_cluster && state["status"].as_i64().is_some_and(|status| status >= 20) {
                seen_in_cluster = self.show_objects(job).await.context("could not look into the cluster")?;
            }
            ensure!(
                submitted.elapsed() < JOB_LIMIT,
                "the job is not finished after {JOB_LIMIT:?}, its status is {shown}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
            let more = format!("providerAddress={}&documentId={agreement}", self.wallet.address());
            state = one(&self.ask("compute", job, &more).await?)?;
        }
        ensure!(shown == 70, "the job ended with status {shown}, not with 70");
        Ok(state)
    }

    /// Prints the job's objects in the cluster; returns whether the engine has created one.
    async fn show_objects(&self, job: &str) -> anyhow::Result<bool> {
        let jobs: Api<Job> = Api::namespaced(self.kubernetes.clone(), &self.namespace);
        let found = jobs.list(&ListParams::default().labels(&format!("workflow={job}"))).await?;
        let Some(step) = found.items.first().and_then(|step| step.metadata.name.as_deref()) else {
            return Ok(false);
        };
        let kind = GroupVersionKind::gvk("oceanprotocol.com", "v1alpha", "WorkFlow");
        let resource = ApiResource::from_gvk_with_plural(&kind, "workflows");
        let workflows: Api<DynamicObject> = Api::namespaced_with(self.kubernetes.clone(), &self.namespace, &resource);
        workflows.get(job).await?;
        let (short, end) = (&job[..8], step.strip_prefix(job).unwrap_or(step));
        say!("              in the cluster, namespace {}: WorkFlow {short}…, Job {short}…{end}", self.namespace);
        Ok(true)
    }

    /// The content of the first result of that type.
    async fn result(&self, job: &str, results: &[Value], kind: &str) -> anyhow::Result<String> {
        let index = results.iter().position(|file| file["type"] == kind);
        let index = index.with_context(|| format!("there is no result of type {kind}"))?;
        self.ask("getResult", job, &format!("index={index}")).await
    }
}

/// The one status object of an answer.
fn one(answer: &str) -> anyhow::Result<Value> {
    match serde_json::from_str(answer)? {
        Value::Array(mut list) if list.len() == 1 => Ok(list.remove(0)),
        other => bail!("expected one status object, not {other}"),
    }
}

/// Serves the table where the engine can fetch it; returns its URL.
async fn serve_table() -> std::io::Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let table = get(|| async { ([(header::CONTENT_TYPE, "text/csv")], TABLE) });
    tokio::spawn(axum::serve(listener, axum::Router::new().route("/co2.csv", table)).into_future());
    Ok(format!("http://{address}/co2.csv"))
}
