//! What `make demo` tells: one job's way through the stack, from Provider's signed request to the result.

use std::{
    collections::BTreeMap,
    fs,
    future::IntoFuture,
    net::Ipv4Addr,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::{Router, http::header, routing::get};
use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{
    postgres,
    stack::{self, Progress, Stack},
    wallet::{Wallet, keccak256},
};

const TABLE: &str = include_str!("../demo/co2.csv");
const ALGORITHM: &str = include_str!("../demo/algorithm.sh");
/// How long the job may take.
const JOB_LIMIT: Duration = Duration::from_secs(60);
/// How long an environment may take to be announced.
const ENVIRONMENT_LIMIT: Duration = Duration::from_secs(30);
/// The consumer on whose behalf Provider asks.
const OWNER: &str = "0xC41808BBef371AD5CFc76466dDF9dEe228d2BdAA";

/// Why the demo failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stack did not come up.
    #[error(transparent)]
    Stack(#[from] stack::Error),
    /// A request could not be made.
    #[error("{request}: {source}")]
    Request {
        /// Which.
        request: String,
        /// Why.
        source: reqwest::Error,
    },
    /// The service refused.
    #[error("{request} was answered with {status}: {answer}")]
    Answer {
        /// Which request.
        request: String,
        /// The answer's status.
        status: StatusCode,
        /// The answer's body.
        answer: String,
    },
    /// What came back is not what it should be.
    #[error("{0}")]
    Wrong(String),
}

/// Runs the demo in that directory, and prints it.
///
/// # Errors
/// Whatever kept the job from being started, run, or fetched with the right result. The stack is stopped in any case.
pub async fn run(directory: &Path) -> Result<(), Error> {
    let started = Instant::now();
    clear(directory)?;
    say!("Bringing up a stack of its own in {}", stack::shown(directory));
    let progress: Progress = &|what, line| say!("  {:4.1} s  {what:<9} {line}", started.elapsed().as_secs_f32());
    let options = stack::Options { directory: directory.to_owned(), demo: true };
    let mut stack = Stack::start(options, progress).await?;
    let provider = Provider::new(&stack)?;
    let story = tokio::select! {
        ended = stack.ended() => Err(Error::Wrong(ended)),
        story = provider.tell() => story,
    };
    drop(provider);
    say!("\nStopping everything");
    stack.stop().await;
    story?;
    clear(directory)?;
    say!("Done in {:.1} s: the result is right.", started.elapsed().as_secs_f32());
    Ok(())
}

/// Removes what an earlier demo left.
fn clear(directory: &Path) -> Result<(), Error> {
    let failed = |source| stack::Error::File { path: stack::shown(directory), source };
    if !directory.exists() {
        return Ok(());
    }
    let lock = stack::take_lock(directory)?;
    postgres::remove(&directory.join("postgres")).map_err(stack::Error::from)?;
    fs::remove_dir_all(directory).map_err(failed)?;
    drop(lock);
    Ok(())
}

/// Speaks to the service as Provider does.
struct Provider {
    wallet: Wallet,
    service: String,
    namespace: String,
    http: reqwest::Client,
    kubernetes: kube::Client,
    last_nonce: AtomicU64,
}

/// An answer of the service.
struct Answer {
    request: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Result<Value, Error> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Error::Wrong(format!("{} was answered with what is no JSON: {error}", self.request)))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Provider {
    fn new(stack: &Stack) -> Result<Self, Error> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(20))
            .build()
            .map_err(|source| Error::Request { request: "the HTTP client".to_owned(), source })?;
        Ok(Self {
            wallet: stack.provider.clone(),
            service: stack.places.service.clone(),
            namespace: stack.places.namespace.clone(),
            http,
            kubernetes: stack.client.clone(),
            last_nonce: AtomicU64::new(0),
        })
    }

    /// The clock in nanoseconds, as Provider has it, and never the same twice.
    fn nonce(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        let before = self.last_nonce.fetch_max(now, Ordering::SeqCst);
        if before < now { now } else { self.last_nonce.fetch_add(1, Ordering::SeqCst) + 1 }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Answer, Error> {
        let request = format!("{method} {path}");
        // No value here needs to be encoded: addresses, hex digits, numbers.
        let query: Vec<String> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let url = format!("{}/api/v1/operator/{path}?{}", self.service, query.join("&"));
        let mut builder = self.http.request(method, url.trim_end_matches('?'));
        if let Some(body) = body {
            builder = builder
                .header(header::CONTENT_TYPE, "application/json")
                .header(header::CONNECTION, "close")
                .body(body.to_string());
        }
        let failed = |source: reqwest::Error| Error::Request { request: request.clone(), source: source.without_url() };
        let response = builder.send().await.map_err(failed)?;
        let status = response.status();
        let body = response.bytes().await.map_err(failed)?.to_vec();
        let answer = Answer { request: request.clone(), body };
        if status.is_success() {
            Ok(answer)
        } else {
            Err(Error::Answer { status, answer: answer.text(), request: answer.request })
        }
    }

    /// A signed request about one job.
    async fn ask(&self, path: &str, job: &str, more: &[(&str, &str)]) -> Result<Answer, Error> {
        let nonce = self.nonce().to_string();
        let signature = self.wallet.sign(&format!("{OWNER}{job}{nonce}"));
        let mut query = vec![("owner", OWNER), ("jobId", job), ("providerSignature", &signature), ("nonce", &nonce)];
        query.extend(more);
        self.send(Method::GET, path, &query, None).await
    }

    /// The whole story.
    async fn tell(&self) -> Result<(), Error> {
        let data = serve_table().await?;
        self.environment().await?;

        say!("\nPOST /compute, signed by {}", self.wallet.address());
        say!("  data       demo/co2.csv: carbon dioxide at Mauna Loa, a line per year (NOAA)");
        say!("  algorithm  demo/algorithm.sh: the mean of each decade");
        let nonce = self.nonce();
        let agreement = format!("0x{}", hex::encode(keccak256(&nonce.to_be_bytes())));
        let submitted = Instant::now();
        let answer =
            self.send(Method::POST, "compute", &[], Some(&self.start_request(nonce, &agreement, &data))).await?;
        let first = one(&answer)?;
        let job = first["jobId"].as_str().unwrap_or_default().to_owned();
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
        say!("\ngetResult, the result\n{}", indented(&result));
        say!("getResult, the algorithm's log\n{}", indented(&log).trim_end());
        let expected = expected()?;
        if result != expected {
            return Err(Error::Wrong(format!(
                "the result is not what the algorithm should compute, which is\n{expected}"
            )));
        }
        if !log.ends_with("done\n") {
            return Err(Error::Wrong("the log lacks its last line".to_owned()));
        }
        Ok(())
    }

    /// Waits until an engine has announced the environment.
    async fn environment(&self) -> Result<(), Error> {
        let deadline = Instant::now() + ENVIRONMENT_LIMIT;
        loop {
            let announced = self.send(Method::GET, "environments", &[], None).await?.json()?;
            if announced.as_array().into_iter().flatten().any(|environment| environment["id"] == *self.namespace) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::Wrong(format!(
                    "no engine has announced {} within {ENVIRONMENT_LIMIT:?} (with KUBECONFIG, ENGINE=1 starts the stand-in)",
                    self.namespace
                )));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn start_request(&self, nonce: u64, agreement: &str, data: &str) -> Value {
        let did = |what: &str| format!("did:op:{}", hex::encode(keccak256(what.as_bytes())));
        let valid_until = nonce / 1_000_000_000 + 3600;
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
            "validUntil": valid_until,
            "nonce": nonce,
            "chainId": 1,
        })
    }

    /// Asks for the job's state until it is finished, and prints each change.
    async fn follow(&self, job: &str, agreement: &str, first: Value, submitted: Instant) -> Result<Value, Error> {
        say!("\nGET /compute, until it is finished");
        let mut state = first;
        let mut shown = Value::Null;
        let mut seen_in_cluster = false;
        loop {
            if state["status"] != shown {
                shown = state["status"].clone();
                let text = state["statusText"].as_str().unwrap_or_default();
                let status = shown.to_string();
                say!("  {:5.2} s  {status:>2}  {text}", submitted.elapsed().as_secs_f32());
            }
            if state["dateFinished"].is_string() {
                break;
            }
            // Once the engine has made its objects, and before it takes them away.
            if !seen_in_cluster && state["status"].as_i64().is_some_and(|status| status >= 20) {
                seen_in_cluster = self.show_cluster(job).await?;
            }
            if submitted.elapsed() > JOB_LIMIT {
                return Err(Error::Wrong(format!("the job is not finished after {JOB_LIMIT:?}: it stands at {shown}")));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            let more = [("providerAddress", self.wallet.address()), ("documentId", agreement)];
            state = one(&self.ask("compute", job, &more).await?)?;
        }
        if shown != 70 {
            return Err(Error::Wrong(format!("the job ended with status {shown}, not with 70")));
        }
        Ok(state)
    }

    /// Prints what the cluster has of the job; says whether there was something of the engine's.
    async fn show_cluster(&self, job: &str) -> Result<bool, Error> {
        let failed = |error: kube::Error| Error::Wrong(format!("could not look into the cluster: {error}"));
        let jobs: Api<Job> = Api::namespaced(self.kubernetes.clone(), &self.namespace);
        let found = jobs.list(&ListParams::default().labels(&format!("workflow={job}"))).await.map_err(failed)?;
        let Some(step) = found.items.first() else {
            return Ok(false);
        };
        let step = step.metadata.name.clone().unwrap_or_default();
        let kind = GroupVersionKind::gvk("oceanprotocol.com", "v1alpha", "WorkFlow");
        let resource = ApiResource::from_gvk_with_plural(&kind, "workflows");
        let workflows: Api<DynamicObject> = Api::namespaced_with(self.kubernetes.clone(), &self.namespace, &resource);
        workflows.get(job).await.map_err(failed)?;
        say!(
            "              in the cluster, namespace {}: WorkFlow {}…, Job {}…{}",
            self.namespace,
            &job[..8],
            &step[..8],
            &step[job.len()..]
        );
        Ok(true)
    }

    /// The content of the first result of that type.
    async fn result(&self, job: &str, results: &[Value], kind: &str) -> Result<String, Error> {
        let index = results
            .iter()
            .position(|file| file["type"] == kind)
            .ok_or_else(|| Error::Wrong(format!("there is no result of type {kind}")))?
            .to_string();
        Ok(self.ask("getResult", job, &[("index", &index)]).await?.text())
    }
}

/// The one status object of an answer.
fn one(answer: &Answer) -> Result<Value, Error> {
    match answer.json()? {
        Value::Array(mut list) if list.len() == 1 => Ok(list.remove(0)),
        other => {
            Err(Error::Wrong(format!("{} should be answered with one status object, not with {other}", answer.request)))
        }
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

/// Serves the table where the engine can fetch it; says its URL.
async fn serve_table() -> Result<String, Error> {
    let failed = |error: std::io::Error| Error::Wrong(format!("could not serve the data: {error}"));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let router = Router::new().route("/co2.csv", get(|| async { ([(header::CONTENT_TYPE, "text/csv")], TABLE) }));
    tokio::spawn(axum::serve(listener, router).into_future());
    Ok(format!("http://{address}/co2.csv"))
}

/// What the algorithm should compute, computed without it.
fn expected() -> Result<String, Error> {
    let mut decades: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
    for line in TABLE.lines().skip(1) {
        let parsed =
            line.split_once(',').and_then(|(year, mean)| Some((year.parse::<u32>().ok()?, mean.parse().ok()?)));
        let (year, mean) = parsed.ok_or_else(|| Error::Wrong(format!("demo/co2.csv: {line}")))?;
        decades.entry(year - year % 10).or_default().push(mean);
    }
    let mut text = "decade,years,mean_ppm,rise_ppm\n".to_owned();
    let mut before: Option<f64> = None;
    for (decade, means) in decades {
        let years = means.len();
        let mean = means.iter().sum::<f64>() / f64::from(u32::try_from(years).unwrap_or(u32::MAX));
        let rise = before.map(|before| format!("{:.2}", mean - before)).unwrap_or_default();
        text.push_str(&format!("{decade},{years},{mean:.2},{rise}\n"));
        before = Some(mean);
    }
    Ok(text)
}
