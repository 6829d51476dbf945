//! POST /compute: starts a job.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use utoipa::ToSchema;

use super::valid_until::ValidUntil;
use super::{CLUSTER_TIMEOUT, Compute, JobStatus};
use crate::api::error::{ApiError, CommonErrors, ErrorBody};
use crate::api::input::{BODY_LIMIT, FromParams, Input, Params};
use crate::api::schemas::SIGNATURE_EXAMPLE;
use crate::auth::{Nonce, Operation, ProviderSignature, Signed};
use crate::db::{NewJob, StartOutcome};
use crate::domain::workflow::{Workflow, document};
use crate::domain::{AgreementId, ChainId, JobId, Namespace, Owner, ProviderAddress};
use crate::kubernetes::WorkFlowSpec;
use crate::telemetry;

/// The parameters of POST /compute.
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
    "providerSignature": SIGNATURE_EXAMPLE,
    "environment": "ocean-compute",
    "nonce": "1695300414039237000",
    "chainId": 1
}))]
pub(in crate::api) struct StartRequest {
    /// The workflow to run. The whole body may have 400 KiB.
    workflow: Workflow,
    /// The agreement that the job serves; it may have one unfinished job.
    agreement_id: AgreementId,
    /// The account that the job belongs to.
    owner: Owner,
    /// 65 bytes in hex over owner and nonce (Provider's message; other callers sign others).
    provider_signature: ProviderSignature,
    /// The namespace to run in, as an engine announced it. Only Brizo may leave it out.
    #[schema(value_type = Namespace)]
    environment: Option<Namespace>,
    /// A clock reading that the signer has not used before. Only Brizo may leave it out.
    #[schema(value_type = Nonce)]
    nonce: Option<Nonce>,
    /// The chain; also spelled `chain_id`.
    chain_id: Option<ChainId>,
    /// The time after which the job may not be started.
    valid_until: Option<ValidUntil>,
    /// The address that the caller claims to sign with.
    provider_address: Option<ProviderAddress>,
    #[schema(ignore)]
    digest: [u8; 32],
}

impl FromParams<Compute> for StartRequest {
    const CALL: &'static str = "POST:/compute";

    /// Checks 1 to 4 of docs/contract/http.md, "POST /compute", in that order.
    fn read(params: &Params, state: &Compute) -> Result<Self, ApiError> {
        if params.is_empty() {
            return Err(ApiError::bad_request("payload seems empty."));
        }
        let workflow = params.required("workflow", Params::value)?;
        let agreement_id = params.required("agreementId", Params::id)?;
        let owner = params.required("owner", Params::id)?;
        let provider_signature = params.required("providerSignature", Params::signature)?;
        let environment = params.id_of_any_length("environment")?;
        let nonce = params.nonce("nonce")?;
        let provider_address = params.id_of_any_length("providerAddress")?;
        // docs/contract/callers.md, "How Brizo is recognized"
        let is_brizo = environment.is_none() && nonce.is_none() && provider_address.is_some();
        if !is_brizo || state.config.access.policy.signature_strict {
            environment.as_ref().ok_or_else(|| params.missing("environment"))?;
            nonce.as_ref().ok_or_else(|| params.missing("nonce"))?;
        }
        Ok(Self {
            workflow: Workflow::check(workflow)?,
            agreement_id,
            owner,
            provider_signature,
            environment,
            nonce,
            chain_id: params.chain_id()?,
            valid_until: ValidUntil::read(params)?,
            provider_address,
            digest: params.digest(),
        })
    }
}

/// Start a job.
///
/// A job that was answered with 200 will be run: if the cluster cannot be reached, it is registered there later. After a
/// 5xx or no response, the same request may be sent again within NONCE_WINDOW: it starts the job, or returns the job that
/// it has started.
#[utoipa::path(
    post,
    path = "/api/v1/operator/compute",
    tag = "compute",
    request_body(content = StartRequest),
    responses(
        (status = 200, description = "The job, in a list of one.", body = Vec<JobStatus>),
        (status = 400, description = "A parameter, the workflow, the signature, the nonce, the agreement (which has an \
            unfinished job) or the environment is refused; `error` says why.", body = ErrorBody),
        (status = 401, description = "The signer is not one of ALLOWED_PROVIDERS.", body = ErrorBody),
        CommonErrors,
    )
)]
pub(in crate::api) async fn start(
    State(state): State<Compute>,
    Input(mut request): Input<StartRequest>,
) -> Result<Json<Vec<JobStatus>>, ApiError> {
    let policy = &state.config.access.policy;
    let signed = Signed {
        operation: Operation::Start,
        owner: Some(&request.owner),
        job_id: None,
        agreement_id: Some(&request.agreement_id),
        provider_address: request.provider_address.as_ref(),
        nonce: request.nonce.as_ref(),
    };
    let signer = policy.signer(&signed, &request.provider_signature)?;

    let job_id = JobId::random();
    let must_be_announced = request.environment.is_some();
    let environment = request.environment.unwrap_or_else(|| state.config.jobs.default_namespace.clone());
    request.workflow.complete(&state.config.jobs.completion, &environment, request.chain_id.as_ref());
    let summary = request.workflow.summary();
    let workflow = request.workflow.into_object();
    let document = document(&workflow, &job_id, &environment);
    if document.len() > BODY_LIMIT {
        return Err(too_large(&document));
    }
    let job = NewJob {
        job_id: job_id.clone(),
        agreement_id: request.agreement_id.clone(),
        owner: request.owner.clone(),
        provider: signer.address,
        environment: environment.clone(),
        must_be_announced,
        chain_id: request.chain_id,
        valid_until: request.valid_until.map(ValidUntil::seconds),
        workflow: document,
        summary,
    };
    let nonce = request.nonce.as_ref().map(|nonce| policy.nonce_use(&signer, nonce, request.digest));
    // Checks 6 to 8, in one transaction.
    let job = match state.db.start(job, nonce).await? {
        StartOutcome::Accepted(job) => job,
        StartOutcome::Repeated(job) => {
            telemetry::set_job(job.id.as_str());
            return Ok(Json(vec![JobStatus::from(*job)]));
        }
        StartOutcome::AgreementInUse => {
            return Err(ApiError::bad_request("`agreementId` already in use for other job."));
        }
        StartOutcome::EnvironmentUnknown => {
            return Err(ApiError::bad_request("Environment invalid or does not exist"));
        }
    };
    tracing::info!(job = %job_id, %environment, "accepted");
    telemetry::set_job(job_id.as_str());
    telemetry::count_start();

    let spec = WorkFlowSpec {
        owner: Some(request.owner.to_string()),
        agreement_id: Some(request.agreement_id.to_string()),
        metadata: workflow,
    };
    register(&state, &job_id, &environment, spec).await;
    Ok(Json(vec![JobStatus::from(*job)]))
}

/// The error for a workflow that is too large as it is stored (docs/contract/engine.md, "jobs.workflow").
fn too_large(document: &str) -> ApiError {
    let message = format!(
        "`workflow` is too large: as it is stored, where each character beyond ASCII takes 6 or 12 bytes, it has {} bytes \
         of at most {BODY_LIMIT}",
        document.len()
    );
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
}

/// Registers an accepted job in the cluster. If that fails, the reaper does it later.
async fn register(state: &Compute, job_id: &JobId, environment: &Namespace, spec: WorkFlowSpec) {
    let registered = async {
        state.cluster.create_workflow(job_id, environment, spec).await.map_err(|error| {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(job = %job_id, error, "not yet registered in the cluster");
        })?;
        state.db.record_registration(job_id).await.map_err(|error| {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(job = %job_id, error, "registered in the cluster, but not yet marked as registered");
        })
    };
    if tokio::time::timeout(CLUSTER_TIMEOUT, registered).await.is_err() {
        tracing::warn!(job = %job_id, "not yet registered in the cluster: it did not answer in time");
    }
}
