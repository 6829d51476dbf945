//! The document in `jobs.workflow` (docs/contract/engine.md, "jobs.workflow"). Rows of the Python service may hold
//! anything.

use serde_json::{Value, json};

use super::{Object, Seconds, to_ascii_json};
use crate::domain::{JobId, Namespace};

/// What the status object and `/runningjobs` show of a workflow.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// `stages[0].algorithm.id`, or `raw` where it is absent or empty.
    pub algo_did: String,
    /// Every `stages[0].input[].id` that is present and not empty.
    pub input_dids: Vec<String>,
    /// The chain as it was sent, if there is one.
    pub chain_id: Option<Value>,
    /// Whether the text is a document that the engine can read.
    pub readable: bool,
}

impl Summary {
    /// The summary of a readable workflow.
    pub(super) fn new<'a>(
        algorithm: Option<&str>,
        inputs: impl Iterator<Item = &'a str>,
        chain_id: Option<&Value>,
    ) -> Self {
        Self {
            algo_did: algorithm.filter(|id| !id.is_empty()).unwrap_or("raw").to_owned(),
            input_dids: inputs.filter(|id| !id.is_empty()).map(str::to_owned).collect(),
            chain_id: chain_id.filter(|chain| !chain.is_null()).cloned(),
            readable: true,
        }
    }
}

/// The document of a completed workflow, as ASCII.
pub fn document(workflow: &Object, job_id: &JobId, namespace: &Namespace) -> String {
    to_ascii_json(&json!({
        "apiVersion": "v0.0.1",
        "kind": "WorkFlow",
        "metadata": {
            "name": job_id,
            "namespace": namespace,
            "labels": { "workflow": job_id },
            "secret": uuid::Uuid::new_v4().simple().to_string(),
        },
        "spec": { "metadata": workflow },
    }))
}

/// Summarizes a document, as far as it can be read: it may be damaged, empty or missing.
pub fn summarize(document: Option<&str>) -> Summary {
    let document: Option<Value> = document.and_then(|document| serde_json::from_str(document).ok());
    let workflow = document.as_ref().and_then(|document| document.pointer("/spec/metadata"));
    let stage = workflow.and_then(|workflow| workflow.pointer("/stages/0"));
    let algorithm = stage.and_then(|stage| stage.pointer("/algorithm/id")?.as_str());
    let inputs = stage.and_then(|stage| stage.get("input")?.as_array()).into_iter().flatten();
    let summary = Summary::new(
        algorithm,
        inputs.filter_map(|input| input.get("id")?.as_str()),
        workflow.and_then(|workflow| workflow.get("chainId")),
    );
    Summary { readable: stage.is_some(), ..summary }
}

/// The `maxtime` of a document, in seconds, if there is one above 0.
pub fn stored_max_time(document: &str) -> Option<f64> {
    let maxtime = Seconds::of_json(stored_compute(document)?.get("maxtime")?)?;
    (maxtime.0 > 0).then_some(maxtime.0 as f64)
}

/// The `storageExpiry` of a document, in seconds, if there is one; 0 for never.
pub fn stored_expiry(document: &str) -> Option<u64> {
    Some(Seconds::of_json(stored_compute(document)?.get("storageExpiry")?)?.0)
}

/// The workflow of a document, as it was completed.
pub fn stored(document: &str) -> Option<Object> {
    match serde_json::from_str::<Value>(document).ok()?.pointer_mut("/spec/metadata")?.take() {
        Value::Object(workflow) => Some(workflow),
        _ => None,
    }
}

fn stored_compute(document: &str) -> Option<Value> {
    let mut document: Value = serde_json::from_str(document).ok()?;
    Some(document.pointer_mut("/spec/metadata/stages/0/compute")?.take())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_documents_show_what_is_known() {
        for damaged in
            [None, Some(""), Some("null"), Some("{\"spec\""), Some("[]"), Some(r#"{"spec": {"metadata": 7}}"#)]
        {
            let summary = summarize(damaged);
            assert_eq!(summary.algo_did, "raw");
            assert_eq!(summary.input_dids, Vec::<String>::new());
            assert!(!summary.readable);
        }
    }
}
