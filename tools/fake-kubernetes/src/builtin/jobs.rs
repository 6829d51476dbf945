//! Jobs. The pods that they make are the Job controller's business.

use serde_json::{Value, json};

use super::pods;
use crate::{meta, status::FieldError};

/// Fills in the defaults; a new Job gets the labels by which it knows its pods.
///
/// Source: Kubernetes documentation, "Jobs", and `pkg/registry/batch/job/strategy.go`.
pub(super) fn prepare(job: &mut Value, old: Option<&Value>) {
    let name = meta::name(job).to_owned();
    let uid = meta::uid(job).to_owned();
    let job = meta::map(job);
    let spec = meta::map(job.entry("spec").or_insert(Value::Null));
    if spec.get("completions").is_none() && spec.get("parallelism").is_none() {
        spec.insert("completions".to_owned(), json!(1));
    }
    for (field, value) in [
        ("parallelism", json!(1)),
        ("backoffLimit", json!(6)),
        ("completionMode", json!("NonIndexed")),
        ("suspend", json!(false)),
        ("podReplacementPolicy", json!("TerminatingOrFailed")),
        ("manualSelector", json!(false)),
    ] {
        spec.entry(field).or_insert(value);
    }
    let manual = spec.get("manualSelector") == Some(&json!(true));
    if old.is_none() && !manual {
        let by_uid = json!({ "matchLabels": { "batch.kubernetes.io/controller-uid": uid } });
        spec.insert("selector".to_owned(), by_uid);
    }
    let template = meta::map(spec.entry("template").or_insert(Value::Null));
    if old.is_none() && !manual {
        let metadata = meta::map(template.entry("metadata").or_insert(Value::Null));
        let labels = meta::map(metadata.entry("labels").or_insert(Value::Null));
        for (label, value) in [
            ("batch.kubernetes.io/controller-uid", &uid),
            ("batch.kubernetes.io/job-name", &name),
            ("controller-uid", &uid),
            ("job-name", &name),
        ] {
            labels.insert(label.to_owned(), json!(value));
        }
    }
    pods::default_spec(template.entry("spec").or_insert(Value::Null), "Always");
    if old.is_none() {
        job.insert("status".to_owned(), json!({}));
    }
}

/// A Job's pods end some time, and what a Job runs can't be changed.
pub(super) fn validate(job: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let spec = &job["spec"];
    let template = &spec["template"];
    for field in ["parallelism", "completions", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"] {
        if spec[field].as_i64().is_some_and(|number| number < 0) {
            let detail = "must be greater than or equal to 0";
            errors.push(FieldError::invalid(format!("spec.{field}"), &spec[field], detail));
        }
    }
    let labels = &template["metadata"]["labels"];
    meta::check_labels(labels, "spec.template.labels", errors);
    pods::validate_spec(&template["spec"], "spec.template.spec", errors);
    let policy = &template["spec"]["restartPolicy"];
    let field = "spec.template.spec.restartPolicy";
    match policy.as_str() {
        Some("Never" | "OnFailure") => {}
        Some("Always") => {
            let detail = "valid values: \"OnFailure\", \"Never\"";
            errors.push(FieldError::required(field, detail));
        }
        _ => {
            let allowed = ["\"OnFailure\"".to_owned(), "\"Never\"".to_owned()];
            errors.push(FieldError::unsupported(field, policy, &allowed));
        }
    }
    if let Some(old) = old {
        for field in ["completions", "selector", "template", "completionMode"] {
            if spec[field] != old["spec"][field] {
                let at = format!("spec.{field}");
                errors.push(FieldError::invalid(at, &spec[field], "field is immutable"));
            }
        }
    }
}
