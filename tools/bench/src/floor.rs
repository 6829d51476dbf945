//! The process of the bare handlers: what an endpoint cannot do without, and nothing else. Their statements are the
//! service's, from `.sqlx/`, through the same driver; connections are kept open in a list.

mod start;
mod stream;

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, anyhow};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::ListenerExt;
use axum::{Json, Router};
use k256::ecdsa::{RecoveryId, Signature, VerifyingKey};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha3::{Digest, Keccak256};
use sqlx::postgres::PgRow;
use sqlx::{Connection, FromRow, PgConnection, Row};
use tokio::sync::Semaphore;

use crate::stack::NAMESPACE;

/// As POSTGRES_POOL_SIZE of the service.
pub const CONNECTIONS: usize = 10;
/// As MAX_PAGE_BYTES, NONCE_WINDOW and the statement's time of the service.
const ARGUMENTS: (i64, f64, f64) = (5_000_000, 300.0, 1.7);

struct Floor {
    url: String,
    permits: Semaphore,
    open: Mutex<Vec<PgConnection>>,
    statements: Statements,
    cluster: String,
    client: reqwest::Client,
}

/// The service's statements.
struct Statements {
    job: &'static str,
    unfinished: &'static str,
    environments: &'static str,
    start: &'static str,
    registered: &'static str,
}

/// The statement of the service that contains all of these texts.
pub fn statement(parts: &[&str]) -> anyhow::Result<String> {
    for file in std::fs::read_dir(".sqlx").context(".sqlx")? {
        let query: Value = serde_json::from_slice(&std::fs::read(file?.path())?)?;
        let text = query["query"].as_str().unwrap_or_default();
        if parts.iter().all(|part| text.contains(part)) {
            return Ok(text.to_owned());
        }
    }
    Err(anyhow!("no statement of the service contains {parts:?}"))
}

/// What the status of one job is read with.
pub const JOB: [&str; 2] = ["FROM nonce_refusal($1", "workflowid = $7"];
/// What the environments are read with.
pub const ENVIRONMENTS: [&str; 2] = ["to_char(extract(epoch FROM lastping)", "announcement_allows(status, $1)"];

impl Statements {
    fn read() -> anyhow::Result<Self> {
        // They are needed until the end of the process.
        let read = |parts: &[&str]| anyhow::Ok(&*Box::leak(statement(parts)?.into_boxed_str()));
        Ok(Self {
            job: read(&JOB)?,
            unfinished: read(&["FROM nonce_refusal($1", "AND datefinished IS NULL"])?,
            environments: read(&ENVIRONMENTS)?,
            start: read(&["INSERT INTO jobs", "use_nonce($13"])?,
            registered: read(&["UPDATE jobs SET registered = true WHERE workflowid = $1"])?,
        })
    }
}

/// Serves until the process is ended.
pub async fn serve() -> anyhow::Result<()> {
    let variable = |name: &str| std::env::var(name).with_context(|| name.to_owned());
    let floor = Floor {
        url: variable("DATABASE_URL")?,
        permits: Semaphore::new(CONNECTIONS),
        open: Mutex::default(),
        statements: Statements::read()?,
        cluster: format!(
            "{}/apis/oceanprotocol.com/v1alpha/namespaces/{NAMESPACE}/workflows",
            variable("CLUSTER_URL")?
        ),
        client: reqwest::Client::builder().no_proxy().build()?,
    };
    let router = Router::new()
        .route("/api/v1/operator/compute", get(status).post(start::start))
        .route("/api/v1/operator/runningjobs", get(running_jobs))
        .route("/api/v1/operator/environments", get(environments))
        .route("/proxy", get(stream::proxy))
        .route("/origin/{bytes}", get(stream::origin))
        .with_state(Arc::new(floor));
    let listener = tokio::net::TcpListener::bind(variable("LISTEN")?).await?;
    Ok(axum::serve(listener.tap_io(|stream| drop(stream.set_nodelay(true))), router).await?)
}

/// Any error is the measurement's.
struct Failed(anyhow::Error);

impl<E: Into<anyhow::Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, format!("{:#}", self.0)).into_response()
    }
}

impl Floor {
    /// Runs an operation on a connection.
    async fn run<T>(&self, operation: impl AsyncFnOnce(&mut PgConnection) -> sqlx::Result<T>) -> anyhow::Result<T> {
        let _permit = self.permits.acquire().await?;
        let free = self.open.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut connection = match free {
            Some(connection) => connection,
            None => PgConnection::connect(&self.url).await?,
        };
        let result = operation(&mut connection).await?;
        self.open.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        Ok(result)
    }
}

/// Recovers the signer of a message, as Provider signs.
fn recover(message: &str, signature: &str) -> anyhow::Result<String> {
    let bytes = hex::decode(signature.trim_start_matches("0x"))?;
    let (last, rest) = bytes.split_last().context("an empty signature")?;
    let mut prefixed = b"\x19Ethereum Signed Message:\n32".to_vec();
    prefixed.extend(Keccak256::digest(message));
    let recovery = RecoveryId::from_byte(last - 27).context("v")?;
    let key =
        VerifyingKey::recover_from_prehash(&Keccak256::digest(&prefixed), &Signature::from_slice(rest)?, recovery)?;
    let hash = Keccak256::digest(&key.to_sec1_point(false).as_bytes()[1..]);
    Ok(format!("0x{}", hex::encode(&hash[12..])))
}

/// The columns of a job in lists.
#[derive(Serialize)]
struct JobRow {
    agreement_id: Option<String>,
    job_id: Option<String>,
    owner: Option<String>,
    status: Option<i32>,
    status_text: Option<String>,
    date_created: Option<String>,
    date_finished: Option<String>,
    outputs: Option<String>,
    namespace: Option<String>,
    stop_requested: Option<i16>,
    removed: Option<i16>,
    algo_did: Option<String>,
    input_dids: Option<String>,
    workflow_chain: Option<String>,
    reason: Option<String>,
}

impl FromRow<'_, PgRow> for JobRow {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            agreement_id: row.try_get(3)?,
            job_id: row.try_get(4)?,
            owner: row.try_get(5)?,
            status: row.try_get(6)?,
            status_text: row.try_get(7)?,
            date_created: row.try_get(8)?,
            date_finished: row.try_get(9)?,
            outputs: row.try_get(10)?,
            namespace: row.try_get(11)?,
            stop_requested: row.try_get(12)?,
            removed: row.try_get(13)?,
            algo_did: row.try_get(14)?,
            input_dids: row.try_get(15)?,
            workflow_chain: row.try_get(16)?,
            reason: row.try_get(17)?,
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StatusRequest {
    owner: String,
    job_id: String,
    nonce: String,
    provider_signature: String,
}

async fn status(
    State(floor): State<Arc<Floor>>,
    Query(request): Query<StatusRequest>,
) -> Result<Json<Vec<JobRow>>, Failed> {
    let StatusRequest { owner, job_id, nonce, provider_signature } = request;
    let signer = recover(&format!("{owner}{job_id}{nonce}"), &provider_signature)?;
    let rows = floor.run(async |connection| {
        let (bytes, window, _) = ARGUMENTS;
        let query =
            sqlx::query_as(floor.statements.job).bind(signer).bind(nonce).bind(window).bind(5_000_i64).bind(0_i64);
        query.bind(bytes).bind(job_id).bind(None::<String>).bind(owner).fetch_all(connection).await
    });
    Ok(Json(rows.await?))
}

async fn running_jobs(State(floor): State<Arc<Floor>>) -> Result<Json<Vec<JobRow>>, Failed> {
    let rows = floor.run(async |connection| {
        let none = None::<String>;
        let query = sqlx::query_as(floor.statements.unfinished).bind(&none).bind(&none).bind(None::<f64>);
        query.bind(5_000_i64).bind(0_i64).bind(ARGUMENTS.0).fetch_all(connection).await
    });
    Ok(Json(rows.await?))
}

/// Namespace, announcement and its time.
type EnvironmentRow = (String, Option<String>, Option<String>);

async fn environments(State(floor): State<Arc<Floor>>) -> Result<Json<Vec<EnvironmentRow>>, Failed> {
    let rows = floor.run(async |connection| {
        sqlx::query_as(floor.statements.environments).bind(None::<String>).fetch_all(connection).await
    });
    Ok(Json(rows.await?))
}
