//! Any JSON is refused as a workflow, or is one that is kept as it was sent, can be stored, and is read back.

use operator_service::domain::workflow::{Object, Workflow, document, stored, stored_max_time};
use operator_service::domain::{ChainId, JobId, Namespace};
use operator_service::kubernetes::{WorkFlow, WorkFlowSpec};
use serde_json::Value;

use crate::service::CONFIG;

pub fn check(data: &[u8]) {
    let Ok(sent) = serde_json::from_slice::<Value>(data) else { return };
    let mut workflow = match Workflow::check(sent.clone()) {
        Ok(workflow) => workflow,
        Err(error) => {
            let error = error.to_string();
            // What the caller sent is not repeated.
            assert!(!error.is_empty() && error.len() < 200, "{error}");
            return;
        }
    };
    let kept = workflow.clone().into_object();
    assert_eq!(text(&kept), as_kept(sent).to_string());
    let again = Workflow::check(Value::Object(kept.clone())).unwrap().into_object();
    assert_eq!(text(&again), text(&kept));

    let (job_id, environment) = (JobId::random(), Namespace::stored("ocean-compute"));
    let completion = &CONFIG.jobs.completion;
    workflow.complete(completion, &environment, ChainId::parse("1", true).as_ref());
    let summary = workflow.summary();
    let completed = workflow.into_object();
    let document = document(&completed, &job_id, &environment);
    assert!(document.is_ascii());
    assert_eq!(stored(&document).map(|object| text(&object)), Some(text(&completed)));
    let max_time = stored_max_time(&document).unwrap();
    assert!(max_time > 0.0 && max_time <= completion.max_time.unwrap() as f64, "{max_time}");
    assert!(!summary.algo_did.is_empty() && !summary.algo_did.contains('\0'));
    assert_eq!(serde_json::from_str::<Vec<String>>(&summary.input_dids_json()).unwrap(), summary.input_dids);

    // A start checks the document's size; the object in the cluster has the same workflow, and must not be larger.
    let owner = Some("o".repeat(255));
    let spec = WorkFlowSpec { owner: owner.clone(), agreement_id: owner, metadata: completed };
    let object = serde_json::to_string(&WorkFlow::new(job_id.as_str(), spec.clone())).unwrap();
    assert!(object.len() <= document.len() + 1024, "{} {}", object.len(), document.len());
    let read: WorkFlow = serde_json::from_str(&object).unwrap();
    assert_eq!(text(&read.spec.metadata), text(&spec.metadata));
}

/// The JSON text, which has the order of fields and each number as it is written.
fn text(object: &Object) -> String {
    serde_json::to_string(object).unwrap()
}

/// What is kept of a workflow: all of it, but for an id where there was none, and the container's nulls.
fn as_kept(mut workflow: Value) -> Value {
    let stage = &mut workflow["stages"][0];
    let inputs = stage["input"].as_array_mut().unwrap().iter_mut();
    inputs.for_each(with_id);
    with_id(&mut stage["algorithm"]);
    let container = stage["algorithm"]["container"].as_object_mut().unwrap();
    container.retain(|_, value| !value.is_null());
    workflow
}

fn with_id(object: &mut Value) {
    if object["id"].is_null() {
        object["id"] = "".into();
    }
}
