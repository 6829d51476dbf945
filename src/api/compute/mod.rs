//! Start, follow, stop and delete jobs: /compute and /runningjobs.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use futures_util::{StreamExt, stream};
use serde::Serialize;
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::input::{Params, required};
use crate::api::error::{ApiError, ErrorBody, Troubles};
use crate::auth::Nonce;
use crate::auth::{Address, Operation, Signed};
use crate::config::Config;
use crate::db::{Change, Changed, Database, NewJob, Page, RequestedBy, Started, TouchedJob, Which};
use crate::domain::workflow::Workflow;
use crate::domain::{Job, JobId, Namespace, Status};
use crate::kubernetes::{Cluster, ClusterError, WorkFlowSpec};
use crate::telemetry;

/// The most jobs in one answer, and how many there are if nothing else is asked for.
const PAGE: i64 = 5_000;
/// How many jobs of one request are ended or removed in the cluster side by side.
const CLUSTER_CALLS: usize = 8;
/// How long a request waits for the cluster before it leaves the rest to the reaper.
const CLUSTER_WAIT: Duration = Duration::from_secs(3);

/// What the group needs.
#[derive(Clone)]
pub struct Compute {
    config: Arc<Config>,
    db: Database,
    cluster: Cluster,
}

/// The group's routes.
pub fn router(config: Arc<Config>, db: Database, cluster: Cluster) -> Router {
    Router::new()
        .route("/api/v1/operator/compute", get(status).post(start).put(stop).delete(delete))
        .route("/api/v1/operator/runningjobs", get(running_jobs))
        .with_state(Compute { config, db, cluster })
}

/// A job's status.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobStatus {
    /// The agreement that the job serves.
    #[schema(example = "0x1111")]
    agreement_id: String,
    /// The job's id: 32 hex digits, no dashes.
    #[schema(example = "9f9178dcffd34130a3158ce9ca3d15ff")]
    job_id: String,
    /// Whose job it is.
    #[schema(example = "0xC41808BBef371AD5CFc76466dDF9dEe228d2BdAA")]
    owner: Option<String>,
    /// 1, 10, 20, 30, 31, 32, 40, 41, 50, 60 or 70.
    #[schema(example = 70)]
    status: Option<i32>,
    /// The words for the status.
    #[schema(example = "Job finished")]
    status_text: String,
    /// When the job was accepted: seconds since the epoch, UTC, with 6 decimals.
    #[schema(example = "1795300414.039237")]
    date_created: Option<String>,
    /// When it finished, in the same form, or null.
    date_finished: Option<String>,
    /// Empty text while there are none, then a list of the outputs.
    results: Results,
    /// 0 none, 1 a stop was asked for, 2 over its time limit.
    stopreq: i16,
    /// 1 once the job's cluster resources and outputs are gone.
    removed: i16,
    /// The algorithm's DID, or `raw`.
    #[serde(rename = "algoDID")]
    #[schema(example = "raw")]
    algo_did: String,
    /// The inputs' DIDs.
    #[serde(rename = "inputDID")]
    input_did: Vec<String>,
    /// Why the job was ended, if somebody had to.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// What a job has published: empty text while there is nothing, then one entry for each output.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Results {
    /// Nothing yet.
    None(&'static str),
    /// The outputs in the order of their indices, without their URLs.
    #[schema(value_type = Vec<Output>)]
    Outputs(Vec<Value>),
}

/// A file that a job has published.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "describes what the engine's publishing pod writes")]
pub(super) struct Output {
    /// Its name.
    #[schema(example = "out.txt")]
    filename: String,
    /// Its size in bytes.
    #[schema(example = 5)]
    filesize: u64,
    /// output, algorithmLog, configrationLog (spelled so), publishLog or filteringLog.
    #[schema(example = "output")]
    r#type: String,
}

/// An unfinished job.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunningJob {
    /// The agreement that the job serves.
    agreement_id: String,
    /// The job's id.
    job_id: String,
    /// Whose job it is.
    owner: Option<String>,
    /// See the status object.
    status: Option<i32>,
    /// The words for the status.
    status_text: String,
    /// When the job was accepted: seconds since the epoch, UTC, with 6 decimals.
    date_created: Option<String>,
    /// Where the job runs.
    namespace: Option<String>,
    /// The chain, as it was sent; absent if it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<NumberOrText>)]
    chain_id: Option<Value>,
    /// The algorithm's DID, or `raw`.
    #[serde(rename = "algoDID")]
    algo_did: String,
    /// The inputs' DIDs.
    #[serde(rename = "inputDID")]
    input_did: Vec<String>,
}

impl From<Job> for JobStatus {
    fn from(job: Job) -> Self {
        Self {
            status_text: status_text(&job),
            agreement_id: job.agreement_id,
            job_id: job.id,
            owner: job.owner,
            status: job.status,
            date_created: job.date_created,
            date_finished: job.date_finished,
            results: job.outputs.map_or(Results::None(""), Results::Outputs),
            stopreq: job.stop_requested,
            removed: job.removed,
            algo_did: job.summary.algo_did,
            input_did: job.summary.input_dids,
            reason: job.reason,
        }
    }
}

impl From<Job> for RunningJob {
    fn from(job: Job) -> Self {
        Self {
            status_text: status_text(&job),
            agreement_id: job.agreement_id,
            job_id: job.id,
            owner: job.owner,
            status: job.status,
            date_created: job.date_created,
            namespace: job.namespace,
            chain_id: job.summary.chain_id,
            algo_did: job.summary.algo_did,
            input_did: job.summary.input_dids,
        }
    }
}

/// The engine's own words, some of which end in a space.
fn status_text(job: &Job) -> String {
    let known = || job.status.map(|code| Status::from_code(code).text()).unwrap_or_default();
    job.status_text.as_deref().map_or_else(known, str::trim).to_owned()
}

/// A number, or text that holds one.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "describes what Params::number_text takes")]
pub(super) enum NumberOrText {
    /// As a number.
    Number(u64),
    /// As text.
    Text(String),
}

/// A workflow. Fields that are not named here are kept, for the engine.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "describes what Workflow::check takes")]
struct WorkflowBody {
    /// Exactly one.
    #[schema(min_items = 1, max_items = 1)]
    stages: Vec<StageBody>,
}

/// A stage of a workflow.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "describes what Workflow::check takes")]
struct StageBody {
    /// What the algorithm reads.
    input: Vec<InputBody>,
    /// What is to be run.
    algorithm: AlgorithmBody,
    /// Under which limits.
    compute: ComputeBody,
    /// What is to be done with the outputs.
    #[schema(value_type = Object)]
    output: Value,
}

/// An input: files at `url`, or a `remote` object.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "describes what Workflow::check takes")]
struct InputBody {
    /// The data's DID.
    id: Option<String>,
    /// Where its files are.
    url: Option<Vec<String>>,
}

/// An algorithm: code at `url`, a `remote` object, or `rawcode`.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "describes what Workflow::check takes")]
struct AlgorithmBody {
    /// The algorithm's DID.
    id: Option<String>,
    /// Where its code is.
    url: Option<String>,
    /// The code itself.
    rawcode: Option<String>,
    /// What runs it.
    container: ContainerBody,
}

/// A container image and how to start the algorithm in it.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "describes what Workflow::check takes")]
struct ContainerBody {
    /// A shell command; `$ALGO` stands for the algorithm's file.
    entrypoint: String,
    /// The image's name.
    image: String,
    /// Its tag; not needed with a checksum.
    tag: Option<String>,
    /// Its digest.
    #[schema(pattern = "^sha256:")]
    checksum: Option<String>,
}

/// Limits of a stage.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "describes what Workflow::check takes")]
struct ComputeBody {
    /// The most seconds that the algorithm may run; ALGO_POD_TIMEOUT caps it.
    maxtime: Option<NumberOrText>,
}

/// What a start is made of.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "camelCase", example = json!({
    "workflow": {"stages": [{
        "index": 0,
        "input": [{"id": "did:op:87bd", "url": ["https://example.org/data.csv"], "index": 0}],
        "algorithm": {
            "rawcode": "wc -l < \"$INPUTS\"/87bd/0 > \"$OUTPUTS\"/lines",
            "container": {"image": "alpine", "tag": "3", "entrypoint": "sh $ALGO"}
        },
        "compute": {"maxtime": 3600},
        "output": {}
    }]},
    "agreementId": "0x1111",
    "owner": "0xC41808BBef371AD5CFc76466dDF9dEe228d2BdAA",
    "providerSignature": "0x…",
    "environment": "ocean-compute",
    "nonce": "1795300414039237000",
    "chainId": 1
}))]
#[allow(dead_code, reason = "describes what StartRequest::read takes")]
struct StartBody {
    /// What to run. At most 400 KiB together with everything else.
    workflow: WorkflowBody,
    /// The agreement that the job serves; it may have one unfinished job.
    #[schema(min_length = 2, max_length = 255)]
    agreement_id: String,
    /// Whose job it is.
    #[schema(min_length = 2, max_length = 255)]
    owner: String,
    /// 65 bytes in hex over owner and nonce (Provider's form; other callers have others).
    provider_signature: String,
    /// The namespace to run in, as an engine announced it. Brizo sends none.
    environment: Option<String>,
    /// A clock reading of the signer that it has not used before. Brizo sends none.
    nonce: Option<NumberOrText>,
    /// The chain; also spelled `chain_id`.
    chain_id: Option<NumberOrText>,
    /// Seconds since the epoch after which the job is not to be started.
    valid_until: Option<NumberOrText>,
    /// The signer by its own account.
    provider_address: Option<String>,
}

struct StartRequest {
    workflow: Workflow,
    agreement_id: String,
    owner: String,
    signature: String,
    /// `None` marks the request as Brizo's, together with the nonce.
    environment: Option<String>,
    nonce: Option<Nonce>,
    chain_id: Option<(String, Value)>,
    valid_until: Option<i64>,
    provider_address: Option<String>,
}

impl StartRequest {
    /// Reads and checks everything that can be judged without the books (contract: `http.md`, POST OP/compute,
    /// checks 1 to 4, in that order).
    fn read(params: &Params, strict: bool) -> Result<Self, ApiError> {
        const CALL: &str = "POST:/compute";
        if params.is_empty() {
            return Err(ApiError::bad_request("payload seems empty."));
        }
        let required = |name| required(name, CALL);
        let workflow = params.value("workflow")?.ok_or_else(|| required("workflow"))?;
        let agreement_id = params.name("agreementId")?.ok_or_else(|| required("agreementId"))?;
        let owner = params.name("owner")?.ok_or_else(|| required("owner"))?;
        let signature = params.text("providerSignature")?.ok_or_else(|| required("providerSignature"))?;
        let environment = params.storable_text("environment")?;
        let nonce = params.nonce()?;
        let provider_address = params.storable_text("providerAddress")?;
        // Brizo sends neither, but names itself, for its message begins with that; of everybody else both are
        // required (contract: `clients.md`, "Replays").
        let brizo = environment.is_none() && nonce.is_none() && provider_address.is_some() && !strict;
        if !brizo {
            environment.as_ref().ok_or_else(|| required("environment"))?;
            nonce.as_ref().ok_or_else(|| required("nonce"))?;
        }
        Ok(Self {
            workflow: Workflow::check(workflow).map_err(|invalid| ApiError::bad_request(invalid.to_string()))?,
            agreement_id,
            owner,
            signature: signature.to_owned(),
            environment,
            nonce,
            chain_id: params.chain_id()?,
            valid_until: valid_until(params)?,
            provider_address,
        })
    }

    fn signed(&self) -> Signed<'_> {
        Signed {
            operation: Operation::Start,
            owner: &self.owner,
            job_id: None,
            agreement_id: Some(&self.agreement_id),
            provider_address: self.provider_address.as_deref(),
            nonce: self.nonce.as_ref().map(Nonce::as_str),
        }
    }
}

fn valid_until(params: &Params) -> Result<Option<i64>, ApiError> {
    let Some(text) = params.number_text("validUntil")? else {
        return Ok(None);
    };
    let seconds: f64 = text
        .parse()
        .ok()
        .filter(|seconds: &f64| seconds.is_finite())
        .ok_or_else(|| ApiError::bad_request("\"validUntil\" must be a number of seconds since the epoch"))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if seconds <= now.as_secs_f64() {
        return Err(ApiError::bad_request("\"validUntil\" is in the past"));
    }
    Ok(Some(seconds as i64))
}

/// Start a job.
///
/// The job is in the books once this answers with 200, and will be run; should the cluster be unreachable, it is
/// registered there later. A 5xx leaves nothing behind, not even the nonce: the same request may be sent again.
#[utoipa::path(
    post,
    path = "/api/v1/operator/compute",
    tag = "compute",
    request_body(content = StartBody, description = "What to run, for whom, and who says so."),
    responses(
        (status = 200, description = "The job, in a list of one.", body = Vec<JobStatus>),
        (status = 400, description = "What to change: a parameter, the workflow, the signature, the nonce, the \
            agreement (which has an unfinished job) or the environment.", body = ErrorBody),
        (status = 401, description = "The signer is not one of ALLOWED_PROVIDERS.", body = ErrorBody),
        Troubles,
    )
)]
pub(super) async fn start(State(compute): State<Compute>, params: Params) -> Result<Json<Vec<JobStatus>>, ApiError> {
    let Compute { config, db, cluster } = compute;
    let mut request = StartRequest::read(&params, config.access.policy.signature_strict)?;
    let signer = config.access.policy.signer(&request.signed(), &request.signature)?;

    let job_id = JobId::random();
    let namespace = request.environment.clone().unwrap_or_else(|| config.jobs.default_namespace.to_string());
    let (chain_text, chain_value) = request.chain_id.take().unzip();
    request.workflow.complete(&config.jobs.completion, &namespace, chain_value);

    let new_job = NewJob {
        job_id: job_id.clone(),
        agreement_id: request.agreement_id.clone(),
        owner: request.owner.clone(),
        provider: signer,
        environment: namespace.clone(),
        must_be_announced: request.environment.is_some(),
        chain_id: chain_text,
        valid_until: request.valid_until,
        workflow: crate::domain::workflow::to_ascii_json(&request.workflow.document(&job_id, &namespace)),
    };
    let nonce = request.nonce.as_ref().map(|nonce| config.access.policy.nonce_use(signer, nonce));
    let job = match db.start(new_job, nonce).await? {
        Started::Accepted(job) => job,
        Started::NonceRefused(refused) => return Err(refused.into()),
        Started::AgreementInUse => {
            return Err(ApiError::bad_request("`agreementId` already in use for other job."));
        }
        Started::EnvironmentUnknown => {
            return Err(ApiError::bad_request("Environment invalid or does not exist"));
        }
    };
    tracing::info!(job = %job_id, environment = namespace, "accepted");
    telemetry::set_job(job_id.as_str());
    telemetry::count_start();

    // From here on the job is accepted whatever happens; what is not registered now, the reaper registers.
    let spec = WorkFlowSpec {
        owner: Some(request.owner),
        agreement_id: Some(request.agreement_id),
        metadata: request.workflow.into_object(),
    };
    register(&db, &cluster, &job_id, &namespace, spec).await;
    Ok(Json(vec![JobStatus::from(*job)]))
}

async fn register(db: &Database, cluster: &Cluster, job_id: &JobId, namespace: &str, spec: WorkFlowSpec) {
    let registered = async {
        cluster.create_workflow(job_id, &Namespace::stored(namespace), spec).await.map_err(|error| {
            tracing::warn!(job = %job_id, error = &error as &dyn std::error::Error, "not yet registered in the cluster");
        })?;
        db.registered(job_id).await.map_err(|error| {
            tracing::warn!(job = %job_id, error = &error as &dyn std::error::Error, "registered, but not yet marked so");
        })
    };
    if tokio::time::timeout(CLUSTER_WAIT, registered).await.is_err() {
        tracing::warn!(job = %job_id, "not yet registered in the cluster: it did not answer in time");
    }
}

/// Which jobs. At least one is needed; all that are given must match.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
#[allow(dead_code, reason = "describes what which() and page() take")]
struct StatusParams {
    /// Jobs of this agreement.
    agreement_id: Option<String>,
    /// The job of this id.
    job_id: Option<String>,
    /// Jobs of this owner.
    owner: Option<String>,
    /// At most so many; 5,000 if absent or more.
    #[param(minimum = 0)]
    limit: Option<i64>,
    /// After leaving out so many.
    #[param(minimum = 0)]
    offset: Option<i64>,
}

fn which(params: &Params) -> Result<Which, ApiError> {
    Ok(Which { agreement_id: params.name("agreementId")?, job_id: params.name("jobId")?, owner: params.name("owner")? })
}

fn page(params: &Params) -> Result<Page, ApiError> {
    Ok(Page { limit: params.count("limit")?.unwrap_or(PAGE).min(PAGE), offset: params.count("offset")?.unwrap_or(0) })
}

/// Follow jobs.
///
/// Newest first; an empty list where nothing is found. The parameters may also stand in a JSON body.
#[utoipa::path(
    get,
    path = "/api/v1/operator/compute",
    tag = "compute",
    params(StatusParams),
    responses(
        (status = 200, description = "The jobs.", body = Vec<JobStatus>),
        (status = 400, description = "None of the three is given, or one cannot be read.", body = ErrorBody),
        Troubles,
    )
)]
pub(super) async fn status(State(compute): State<Compute>, params: Params) -> Result<Json<Vec<JobStatus>>, ApiError> {
    let which = which(&params)?;
    if which == Which::default() {
        return Err(ApiError::bad_request("You have to specify one of agreementId, jobId or owner"));
    }
    let jobs = compute.db.jobs(which, page(&params)?).await?;
    Ok(Json(jobs.into_iter().map(JobStatus::from).collect()))
}

/// What a stop or a delete is made of, in the query string or in a JSON body.
#[derive(Debug, IntoParams, ToSchema)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
#[schema(rename_all = "camelCase")]
#[allow(dead_code, reason = "describes what ChangeRequest::read takes")]
struct ChangeParams {
    /// Whose jobs. Required.
    #[param(example = "0xC41808BBef371AD5CFc76466dDF9dEe228d2BdAA")]
    owner: Option<String>,
    /// 65 bytes in hex over owner, jobId (if given) and nonce (Provider's form). Required.
    provider_signature: Option<String>,
    /// A clock reading of the signer that it has not used before. Required of everybody but Brizo.
    nonce: Option<NumberOrText>,
    /// The job of this id only.
    job_id: Option<String>,
    /// Jobs of this agreement only.
    agreement_id: Option<String>,
    /// The signer by its own account.
    provider_address: Option<String>,
    /// At most so many jobs in the answer; 5,000 if absent or more.
    #[param(minimum = 0)]
    limit: Option<i64>,
    /// After leaving out so many in the answer.
    #[param(minimum = 0)]
    offset: Option<i64>,
}

struct ChangeRequest {
    which: Which,
    owner: String,
    signature: String,
    nonce: Option<Nonce>,
    provider_address: Option<String>,
    page: Page,
}

impl ChangeRequest {
    fn read(params: &Params, call: &str, config: &Config) -> Result<Self, ApiError> {
        let access = &config.access;
        let which = which(params)?;
        let owner = which.owner.clone().ok_or_else(|| required("owner", call))?;
        let signature = params.text("providerSignature")?.ok_or_else(|| required("providerSignature", call))?;
        let nonce = params.nonce()?;
        let provider_address = params.storable_text("providerAddress")?;
        if nonce.is_none() {
            // Brizo has no nonce but names itself (contract: `clients.md`, "Replays").
            if provider_address.is_none() || access.policy.signature_strict {
                return Err(required("nonce", call));
            }
            // Without a job or agreement its signature would be over its own address alone.
            if access.policy.signature_required && which.job_id.is_none() && which.agreement_id.is_none() {
                return Err(required("jobId", call));
            }
        }
        let signature = signature.to_owned();
        Ok(Self { which, owner, signature, nonce, provider_address, page: page(params)? })
    }

    fn signed(&self) -> Signed<'_> {
        Signed {
            operation: Operation::Change,
            owner: &self.owner,
            job_id: self.which.job_id.as_deref(),
            agreement_id: self.which.agreement_id.as_deref(),
            provider_address: self.provider_address.as_deref(),
            nonce: self.nonce.as_ref().map(Nonce::as_str),
        }
    }
}

/// Stop jobs.
///
/// Marks every unfinished job that matches as asked to stop and ends its algorithm; what it has put out by then is
/// published. With signatures required only jobs of the signer are touched. Answers with all that match.
#[utoipa::path(
    put,
    path = "/api/v1/operator/compute",
    tag = "compute",
    params(ChangeParams),
    request_body(content = ChangeParams, description = "The same parameters, where the query string is empty."),
    responses(
        (status = 200, description = "The jobs that match, newest first.", body = Vec<JobStatus>),
        (status = 400, description = "What to change: a parameter, the signature or the nonce.", body = ErrorBody),
        (status = 401, description = "The signer is not one of ALLOWED_PROVIDERS.", body = ErrorBody),
        Troubles,
    )
)]
pub(super) async fn stop(State(compute): State<Compute>, params: Params) -> Result<Json<Vec<JobStatus>>, ApiError> {
    change(compute, &params, Change::Stop, "PUT:/compute").await
}

/// Delete jobs.
///
/// Marks every job that matches as removed: from then on its results have expired. What belongs to a finished job
/// in the cluster goes at once, an unfinished one is stopped first; stored output files go with the next sweep.
/// With signatures required only jobs of the signer are touched. Answers with all that match.
#[utoipa::path(
    delete,
    path = "/api/v1/operator/compute",
    tag = "compute",
    params(ChangeParams),
    responses(
        (status = 200, description = "The jobs that match, newest first.", body = Vec<JobStatus>),
        (status = 400, description = "What to change: a parameter, the signature or the nonce.", body = ErrorBody),
        (status = 401, description = "The signer is not one of ALLOWED_PROVIDERS.", body = ErrorBody),
        Troubles,
    )
)]
pub(super) async fn delete(State(compute): State<Compute>, params: Params) -> Result<Json<Vec<JobStatus>>, ApiError> {
    change(compute, &params, Change::Delete, "DELETE:/compute").await
}

async fn change(
    compute: Compute,
    params: &Params,
    change: Change,
    call: &str,
) -> Result<Json<Vec<JobStatus>>, ApiError> {
    let Compute { config, db, cluster } = compute;
    let request = ChangeRequest::read(params, call, &config)?;
    let signer: Address = config.access.policy.signer(&request.signed(), &request.signature)?;
    let by = if config.access.policy.signature_required { RequestedBy::Signer(signer) } else { RequestedBy::Anyone };
    let nonce = request.nonce.as_ref().map(|nonce| config.access.policy.nonce_use(signer, nonce));
    let Changed { touched, jobs } = db.change(change, request.which, by, nonce, request.page).await??;
    if let [job] = touched.as_slice() {
        telemetry::set_job(&job.job_id);
    }
    telemetry::count_stops(touched.iter().filter(|job| job.unfinished).count());
    carry_out(&cluster, config.jobs.default_namespace.as_str(), change, touched).await;
    Ok(Json(jobs.into_iter().map(JobStatus::from).collect()))
}

/// Brings the cluster in line with what the books now say, as far as it answers in time; the reaper does the rest.
async fn carry_out(cluster: &Cluster, default_namespace: &str, change: Change, touched: Vec<TouchedJob>) {
    let calls = stream::iter(touched).for_each_concurrent(CLUSTER_CALLS, |job| async move {
        let Some(job_id) = JobId::of_object(&job.job_id) else {
            return;
        };
        let namespace = Namespace::stored(job.namespace.as_deref().unwrap_or(default_namespace));
        let result: Result<(), ClusterError> = match change {
            _ if job.unfinished => cluster.delete_algorithm(&job_id, &namespace).await,
            Change::Delete if job.settled => {
                let objects = cluster.delete_engine_objects(&job_id, &namespace).await;
                let workflow = cluster.delete_workflow(&job_id, &namespace, None).await;
                objects.and(workflow).map(|_| ())
            }
            _ => return,
        };
        match result {
            Ok(()) => tracing::info!(job = %job_id, ?change, "carried out in the cluster"),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(job = %job_id, ?change, error, "not yet carried out in the cluster");
            }
        }
    });
    if tokio::time::timeout(CLUSTER_WAIT, calls).await.is_err() {
        tracing::warn!(?change, "not all carried out in the cluster in time");
    }
}

/// Which part of the list.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "describes what page() takes")]
struct PageParams {
    /// At most so many; 5,000 if absent or more.
    #[param(minimum = 0)]
    limit: Option<i64>,
    /// After leaving out so many.
    #[param(minimum = 0)]
    offset: Option<i64>,
}

/// List the unfinished jobs.
///
/// Oldest first.
#[utoipa::path(
    get,
    path = "/api/v1/operator/runningjobs",
    tag = "compute",
    params(PageParams),
    responses(
        (status = 200, description = "The jobs.", body = Vec<RunningJob>),
        (status = 400, description = "A parameter cannot be read.", body = ErrorBody),
        Troubles,
    )
)]
pub(super) async fn running_jobs(
    State(compute): State<Compute>,
    params: Params,
) -> Result<Json<Vec<RunningJob>>, ApiError> {
    let jobs = compute.db.unfinished(page(&params)?).await?;
    Ok(Json(jobs.into_iter().map(RunningJob::from).collect()))
}
