//! The status object, which all routes of /compute return (docs/contract/http.md, "Status object").

use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa::openapi::Schema;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Type};

use crate::api::schemas::schema;
use crate::domain::{AgreementId, Job, JobId, Owner, Status, StopRequest};

/// A job's status.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobStatus {
    /// The agreement that the job serves.
    agreement_id: AgreementId,
    /// The job's id: 32 hex digits without dashes.
    job_id: JobId,
    /// The account that the job belongs to.
    owner: Option<Owner>,
    /// The code of the job's state.
    status: Option<Status>,
    /// The text of the job's state.
    #[schema(example = "Job finished")]
    status_text: String,
    /// When the job was accepted: seconds since the epoch, UTC, with 6 decimals.
    #[schema(example = "1795300414.039237")]
    date_created: Option<String>,
    /// When it finished, in the same form, or null.
    date_finished: Option<String>,
    /// Empty text while there are none, then a list of the outputs.
    results: PublishedOutputs,
    /// 0 none, 1 a stop was requested, 2 over its time limit.
    #[schema(value_type = i16, example = 0)]
    stopreq: StopRequest,
    /// 1 once the job was deleted or its outputs have expired, else 0.
    #[schema(example = 0)]
    removed: u8,
    /// The algorithm's DID, or `raw`.
    #[serde(rename = "algoDID")]
    #[schema(example = "raw")]
    algo_did: String,
    /// The inputs' DIDs.
    #[serde(rename = "inputDID")]
    input_did: Vec<String>,
    /// Why the reaper ended the job or one of its steps, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// The outputs that a job has published; empty text while there are none.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum PublishedOutputs {
    /// Nothing yet.
    None(&'static str),
    /// The outputs in the order of their indices, without their URLs.
    List(Vec<Value>),
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
            results: job.outputs.map_or(PublishedOutputs::None(""), PublishedOutputs::List),
            stopreq: job.stop_requested,
            removed: job.removed.into(),
            algo_did: job.summary.algo_did,
            input_did: job.summary.input_dids,
            reason: job.reason,
        }
    }
}

/// The engine's text without the space that it may end in, else the contract's text.
pub(super) fn status_text(job: &Job) -> String {
    let of_contract = || job.status.map(Status::text).unwrap_or_default();
    job.status_text.as_deref().map_or_else(of_contract, str::trim).to_owned()
}

schema! {
    PublishedOutputs => outputs();
}

/// The schema of [`PublishedOutputs`].
fn outputs() -> Schema {
    let property = |schema_type, description: &str, example| {
        ObjectBuilder::new().schema_type(schema_type).description(Some(description)).examples([example])
    };
    let kind = "output, algorithmLog, configrationLog (spelled so), publishLog or filteringLog.";
    let output = ObjectBuilder::new()
        .property("filename", property(Type::String, "The file's name.", json!("out.txt")))
        .property("filesize", property(Type::Integer, "Its size in bytes.", json!(5)))
        .property("type", property(Type::String, kind, json!("output")));
    let none = ObjectBuilder::new().schema_type(Type::String).description(Some("Nothing yet.")).max_length(Some(0));
    let outputs = ArrayBuilder::new().items(output).description(Some("The outputs in the order of their indices."));
    OneOfBuilder::new().item(none).item(outputs).build().into()
}
