//! GET /compute: lists jobs by agreement, id or owner.

use axum::extract::{RawQuery, State};
use utoipa::IntoParams;

use super::{Compute, JobStatus, Listing, limit, offset};
use crate::api::error::{ApiError, CommonErrors, ErrorBody};
use crate::api::input::{FromParams, Input, Params};
use crate::api::schemas::JobCount;
use crate::auth::{Nonce, Operation, ProviderSignature, Signed};
use crate::db::{JobFilter, ListRange};
use crate::domain::{AgreementId, JobId, Owner, ProviderAddress};

/// The parameters of GET /compute. At least one of agreementId, jobId and owner is needed; all that are given must
/// match.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub(in crate::api) struct StatusRequest {
    /// Only jobs of this agreement.
    agreement_id: Option<AgreementId>,
    /// Only the job with this id.
    job_id: Option<JobId>,
    /// Only jobs of this owner.
    owner: Option<Owner>,
    /// 65 bytes in hex over owner, jobId (if there is one) and nonce (Provider's message; other callers sign others).
    /// Required with SIGNATURE_REQUIRED=1.
    provider_signature: Option<ProviderSignature>,
    /// A clock reading, required with a signature. It may be used again, but with SIGNATURE_STRICT=1. Only Brizo sends
    /// none.
    nonce: Option<Nonce>,
    /// The address that the caller claims to sign with.
    provider_address: Option<ProviderAddress>,
    /// The maximum number of jobs in the response: 5,000, also if it is absent or larger.
    #[param(value_type = Option<JobCount>)]
    limit: i64,
    /// The number of jobs that the response skips; 0 if it is absent.
    #[param(value_type = Option<JobCount>)]
    offset: i64,
    #[param(ignore)]
    digest: [u8; 32],
}

impl FromParams<Compute> for StatusRequest {
    const CALL: &'static str = "GET:/compute";

    fn read(params: &Params, state: &Compute) -> Result<Self, ApiError> {
        let policy = &state.config.access.policy;
        let agreement_id = params.id("agreementId")?;
        let job_id = params.id("jobId")?;
        let owner = params.id("owner")?;
        if agreement_id.is_none() && job_id.is_none() && owner.is_none() {
            return Err(ApiError::bad_request("You have to specify one of agreementId, jobId or owner"));
        }
        let provider_signature = params.signature("providerSignature")?;
        let nonce = params.nonce("nonce")?;
        let provider_address = params.id_of_any_length("providerAddress")?;
        if provider_signature.is_none() && policy.signature_required {
            return Err(params.missing("providerSignature"));
        }
        // docs/contract/callers.md, "How Brizo is recognized"
        let is_brizo = provider_address.is_some() && !policy.signature_strict;
        if provider_signature.is_some() && nonce.is_none() && !is_brizo {
            return Err(params.missing("nonce"));
        }
        let (limit, offset, digest) = (limit(params)?, offset(params)?, params.digest());
        Ok(Self { agreement_id, job_id, owner, provider_signature, nonce, provider_address, limit, offset, digest })
    }
}

/// Show the status of jobs.
///
/// Newest first; an empty list if none matches. A response ends before 5 MB. With SIGNATURE_REQUIRED=1 the request has to
/// be signed; any allowed provider may ask. The parameters may also be sent in a JSON body.
#[utoipa::path(
    get,
    path = "/api/v1/operator/compute",
    tag = "compute",
    params(StatusRequest),
    responses(
        (status = 200, description = "The jobs.", body = Vec<JobStatus>, headers(
            ("Link" = String, description = "`<?…offset=N>; rel=\"next\"`, if the list goes on"),
        )),
        (status = 400, description = "None of agreementId, jobId and owner is given, or a parameter, the signature or the \
            nonce is refused; `error` says why.", body = ErrorBody),
        (status = 401, description = "The signer is not one of ALLOWED_PROVIDERS.", body = ErrorBody),
        CommonErrors,
    )
)]
pub(in crate::api) async fn status(
    State(state): State<Compute>,
    RawQuery(query): RawQuery,
    Input(request): Input<StatusRequest>,
) -> Result<Listing<JobStatus>, ApiError> {
    let policy = &state.config.access.policy;
    let mut nonce = None;
    if let Some(signature) = &request.provider_signature {
        let signed = Signed {
            operation: Operation::Status,
            owner: request.owner.as_ref(),
            job_id: request.job_id.as_ref(),
            agreement_id: request.agreement_id.as_ref(),
            provider_address: request.provider_address.as_ref(),
            nonce: request.nonce.as_ref(),
        };
        let signer = policy.signer(&signed, signature)?;
        nonce = request.nonce.as_ref().map(|nonce| policy.nonce_use(&signer, nonce, request.digest));
    }
    // Callers poll, often several times with one nonce: it is only checked, in the statement that reads the jobs.
    if policy.signature_strict
        && let Some(nonce) = nonce.take()
    {
        state.db.use_nonce(nonce).await?;
    }
    let StatusRequest { agreement_id, job_id, owner, limit, offset, .. } = request;
    let filter = JobFilter { agreement_id, job_id, owner };
    let page = state.db.list_jobs(filter, ListRange { limit, offset }, nonce).await?;
    Ok(Listing::new(page, query.as_deref()))
}
