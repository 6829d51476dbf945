//! What PUT /compute and DELETE /compute share.

use futures_util::{StreamExt, stream};
use utoipa::{IntoParams, ToSchema};

use super::{CLUSTER_TIMEOUT, Compute, JobStatus, Listing, limit, offset};
use crate::api::error::ApiError;
use crate::api::input::Params;
use crate::api::schemas::JobCount;
use crate::auth::{Nonce, Operation, ProviderSignature, Signed};
use crate::db::{Change, ChangedJobs, JobSelector, ListRange, RequestedBy, TouchedJob};
use crate::domain::{AgreementId, JobId, Namespace, Owner, ProviderAddress, effective_namespace};
use crate::kubernetes::{Cluster, ClusterError, EngineObject};
use crate::telemetry;

/// The number of jobs of one request that are changed in the cluster concurrently.
const CLUSTER_CONCURRENCY: usize = 8;

/// The parameters of PUT and DELETE /compute.
#[derive(Debug, IntoParams, ToSchema)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
#[schema(rename_all = "camelCase")]
pub(in crate::api) struct ChangeRequest {
    /// The account that the jobs belong to.
    owner: Owner,
    /// 65 bytes in hex over owner, jobId (if there is one) and nonce (Provider's message; other callers sign others).
    provider_signature: ProviderSignature,
    /// A clock reading that the signer has not used before. Only Brizo may leave it out.
    #[param(value_type = Nonce)]
    #[schema(value_type = Nonce)]
    nonce: Option<Nonce>,
    /// Only the job with this id.
    job_id: Option<JobId>,
    /// Only jobs of this agreement.
    agreement_id: Option<AgreementId>,
    /// The address that the caller claims to sign with.
    provider_address: Option<ProviderAddress>,
    /// The maximum number of jobs in the response: 5,000, also if it is absent or larger.
    #[param(value_type = Option<JobCount>)]
    #[schema(value_type = Option<JobCount>)]
    limit: i64,
    /// The number of jobs that the response skips; 0 if it is absent.
    #[param(value_type = Option<JobCount>)]
    #[schema(value_type = Option<JobCount>)]
    offset: i64,
    #[param(ignore)]
    #[schema(ignore)]
    digest: [u8; 32],
}

impl ChangeRequest {
    pub(super) fn read(params: &Params, state: &Compute) -> Result<Self, ApiError> {
        let policy = &state.config.access.policy;
        let agreement_id = params.id("agreementId")?;
        let job_id = params.id("jobId")?;
        let owner = params.required("owner", Params::id)?;
        let provider_signature = params.required("providerSignature", Params::signature)?;
        let nonce = params.nonce("nonce")?;
        let provider_address = params.id_of_any_length("providerAddress")?;
        if nonce.is_none() {
            // docs/contract/callers.md, "How Brizo is recognized"
            if provider_address.is_none() || policy.signature_strict {
                return Err(params.missing("nonce"));
            }
            // Otherwise the signature would cover the signer's address alone, and be valid for every job.
            if policy.signature_required && job_id.is_none() && agreement_id.is_none() {
                return Err(params.missing("jobId"));
            }
        }
        let (limit, offset) = (limit(params)?, offset(params)?);
        let digest = params.digest();
        Ok(Self { owner, provider_signature, nonce, job_id, agreement_id, provider_address, limit, offset, digest })
    }
}

/// Changes jobs in the database and then in the cluster. Returns all jobs that match. The same request again changes
/// nothing.
pub(super) async fn change(
    state: Compute,
    change: Change,
    request: ChangeRequest,
    query: Option<&str>,
) -> Result<Listing<JobStatus>, ApiError> {
    let policy = &state.config.access.policy;
    let signed = Signed {
        operation: Operation::Change,
        owner: Some(&request.owner),
        job_id: request.job_id.as_ref(),
        agreement_id: request.agreement_id.as_ref(),
        provider_address: request.provider_address.as_ref(),
        nonce: request.nonce.as_ref(),
    };
    let signer = policy.signer(&signed, &request.provider_signature)?;
    let requested_by =
        if policy.signature_required { RequestedBy::Signer(signer.address) } else { RequestedBy::Anyone };
    let nonce = request.nonce.as_ref().map(|nonce| policy.nonce_use(&signer, nonce, request.digest));

    let ChangeRequest { owner, job_id, agreement_id, limit, offset, .. } = request;
    let selector = JobSelector { owner, job_id, agreement_id };
    let ChangedJobs { touched, page } =
        state.db.change(change, selector, requested_by, nonce, ListRange { limit, offset }).await?;
    if let [job] = touched.as_slice() {
        telemetry::set_job(job.job_id.as_str());
    }
    telemetry::count_stops(touched.iter().filter(|job| job.unfinished).count());
    change_in_cluster(&state, change, touched).await;
    Ok(Listing::new(page, query))
}

/// Applies a committed change to the cluster, as far as the cluster answers in time. The reaper does the rest.
async fn change_in_cluster(state: &Compute, change: Change, touched: Vec<TouchedJob>) {
    let calls = stream::iter(touched).for_each_concurrent(CLUSTER_CONCURRENCY, |job| async move {
        let TouchedJob { job_id, namespace, unfinished, settled } = job;
        if !job_id.can_name_objects() {
            return;
        }
        let namespace = effective_namespace(namespace.as_ref(), &state.config.jobs.default_namespace);
        let result = match change {
            _ if unfinished => state.cluster.delete_algorithm(&job_id, namespace).await,
            Change::Delete if settled => delete_objects(&state.cluster, &job_id, namespace).await,
            _ => return,
        };
        match result {
            Ok(()) => tracing::info!(job = %job_id, ?change, "changed in the cluster"),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(job = %job_id, ?change, error, "the cluster could not be changed; the reaper does it later");
            }
        }
    });
    if tokio::time::timeout(CLUSTER_TIMEOUT, calls).await.is_err() {
        tracing::warn!(?change, "not all jobs were changed in the cluster in time; the reaper changes the rest");
    }
}

/// Deletes what the engine created for a job, and its WorkFlow object. If one fails, the other is still tried.
async fn delete_objects(cluster: &Cluster, job_id: &JobId, namespace: &Namespace) -> Result<(), ClusterError> {
    let objects = cluster.delete_engine_objects(job_id, namespace, &EngineObject::possible(job_id)).await;
    let workflow = cluster.delete_workflow(job_id, namespace, None).await;
    objects.and(workflow).map(|_| ())
}
