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
}

impl Summary {
    pub(super) fn new<'a>(
        algorithm: Option<&str>,
        inputs: impl Iterator<Item = &'a str>,
        chain_id: Option<&Value>,
    ) -> Self {
        Self {
            // Text in PostgreSQL cannot hold NUL.
            algo_did: algorithm.filter(|id| !id.is_empty()).unwrap_or("raw").replace('\0', "\u{fffd}"),
            input_dids: inputs.filter(|id| !id.is_empty()).map(str::to_owned).collect(),
            chain_id: chain_id.filter(|chain| !chain.is_null()).cloned(),
        }
    }

    /// The inputs' ids as JSON, in ASCII.
    pub fn input_dids_json(&self) -> String {
        to_ascii_json(&json!(self.input_dids))
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

/// The `maxtime` of a document, in seconds, if there is one above 0.
pub fn stored_max_time(document: &str) -> Option<f64> {
    let maxtime = Seconds::of_json(stored_compute(document)?.get("maxtime")?)?;
    (maxtime.0 > 0).then_some(maxtime.0 as f64)
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
    fn a_number_is_the_same_each_time_it_is_read() {
        let sent: Value = serde_json::from_str(r#"{"a":18446723073901234567890}"#).unwrap();
        let Value::Object(workflow) = sent else { panic!() };
        let document = document(&workflow, &JobId::random(), &Namespace::stored("n"));
        assert_eq!(stored(&document), Some(workflow));
    }

    #[test]
    fn the_time_that_a_stored_workflow_asks_for() {
        let stored = |compute: Value| {
            let stages = json!([{ "input": [], "compute": compute }]);
            json!({ "spec": { "metadata": { "stages": stages } } }).to_string()
        };
        for (compute, expected) in [
            (json!({ "maxtime": 60 }), Some(60.0)),
            (json!({ "maxtime": " 60.9 " }), Some(60.0)),
            (json!({ "maxtime": 0 }), None),
            (json!({ "maxtime": [60] }), None),
            (json!({}), None),
        ] {
            assert_eq!(stored_max_time(&stored(compute.clone())), expected, "{compute}");
        }
        assert_eq!(stored_max_time("{"), None);
        let summary = Summary::new(None, ["did:1", "", "did:ä"].into_iter(), None);
        assert_eq!(summary.input_dids_json(), r#"["did:1","did:\u00e4"]"#);
    }
}
