//! Jobs create pods and count how they end.
//!
//! Source: Kubernetes documentation, "Jobs". As in a real cluster each pod carries a finalizer until its end is
//! counted. Failed pods are replaced at once, without the real controller's growing pauses. Where failed containers are
//! restarted in their pods (restartPolicy OnFailure), the restarts count as well, and a Job that has had too many
//! deletes its pods.

use serde_json::{Value, json};

use super::garbage::release;
use crate::objects;
use crate::resources::{self, JOBS, PODS};
use crate::store::{Change, Key, State};
use crate::verbs::{self, Propagation};

/// Holds a pod until its Job has counted it.
const TRACKING: &str = "batch.kubernetes.io/job-tracking";

pub(super) fn react(state: &mut State, change: &Change) {
    match change.key.resource.as_str() {
        JOBS if change.deleted => release_pods(state, &change.object),
        JOBS => reconcile(state, &change.key),
        PODS => match job_of(state, &change.object) {
            Some(job) => reconcile(state, &job),
            None => release(state, &change.key, TRACKING),
        },
        _ => {}
    }
}

/// Whether a pod has ended.
pub(super) fn has_ended(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

/// The Job that controls a pod, if it exists.
fn job_of(state: &State, pod: &Value) -> Option<Key> {
    let owner = objects::owners(pod).iter().find(|owner| owner["controller"] == true)?;
    state.by_uid(owner["uid"].as_str()?).filter(|key| key.resource == JOBS).cloned()
}

fn pods_of(state: &State, job: &Value) -> Vec<Key> {
    let mut keys = state.dependents(objects::uid(job));
    keys.retain(|key| key.resource == PODS);
    keys
}

fn release_pods(state: &mut State, job: &Value) {
    for pod in pods_of(state, job) {
        release(state, &pod, TRACKING);
    }
}

/// The pods of a Job by state.
#[derive(Debug, Default)]
struct Count {
    active: i64,
    ready: i64,
    succeeded: i64,
    failed: i64,
    /// Of containers in pods that have not ended.
    restarts: i64,
}

fn reconcile(state: &mut State, key: &Key) {
    let Some(job) = state.get(key).cloned() else {
        return;
    };
    let finished = ["Complete", "Failed"].iter().any(|kind| objects::has_condition(&job, kind));
    if finished || objects::deleting(&job) {
        return release_pods(state, &job);
    }
    let pods = pods_of(state, &job);
    let mut count = count(state, &job, &pods);
    let spec = &job["spec"];
    let number = |field: &str, default| spec[field].as_i64().unwrap_or(default);
    let completions = number("completions", 1);
    let limit = number("backoffLimit", 6);
    let restarts_in_place = spec["template"]["spec"]["restartPolicy"] == "OnFailure";
    let failed = count.failed > limit || (restarts_in_place && count.restarts >= limit.max(1));
    let complete = !failed && count.succeeded >= completions;

    if failed {
        for pod in &pods {
            let active = state.get(pod).is_some_and(|pod| !has_ended(pod) && !objects::deleting(pod));
            if active {
                verbs::remove(state, pod, Propagation::Background);
                count.failed += 1;
            }
        }
        (count.active, count.ready) = (0, 0);
    } else if !complete && spec["suspend"] != true {
        let wanted = number("parallelism", 1).min(completions - count.succeeded);
        for _ in count.active..wanted {
            count.active += i64::from(create_pod(state, &job));
        }
    }
    let status = status(&job["status"], &count, complete, failed);
    if status != job["status"] {
        let mut job = Value::clone(&job);
        objects::set_top(&mut job, "status", Some(status));
        state.put(key, job);
    }
    // Released only after the Job's status counts them.
    for pod in pods {
        let counted = state.get(&pod).is_some_and(|pod| has_ended(pod) || objects::deleting(pod));
        if counted {
            release(state, &pod, TRACKING);
        }
    }
}

/// Adds the pods that have ended since the last time to the numbers of the status. A pod that was deleted before it
/// ended has failed.
fn count(state: &State, job: &Value, pods: &[Key]) -> Count {
    let mut count = Count {
        succeeded: job["status"]["succeeded"].as_i64().unwrap_or_default(),
        failed: job["status"]["failed"].as_i64().unwrap_or_default(),
        ..Count::default()
    };
    for pod in pods.iter().filter_map(|key| state.get(key)) {
        let tracked = i64::from(objects::finalizers(pod).contains(&TRACKING));
        match pod["status"]["phase"].as_str() {
            Some("Succeeded") => count.succeeded += tracked,
            Some("Failed") => count.failed += tracked,
            _ if objects::deleting(pod) => count.failed += tracked,
            phase => {
                count.active += 1;
                count.ready += i64::from(phase == Some("Running"));
                let containers = objects::list(&pod["status"]["containerStatuses"]);
                count.restarts += containers.iter().filter_map(|status| status["restartCount"].as_i64()).sum::<i64>();
            }
        }
    }
    count
}

fn status(old: &Value, count: &Count, complete: bool, failed: bool) -> Value {
    let now = objects::now();
    let mut status = json!({
        "ready": count.ready,
        "terminating": 0,
        "uncountedTerminatedPods": {},
        "startTime": old.get("startTime").cloned().unwrap_or_else(|| json!(now)),
    });
    for (field, number) in [("active", count.active), ("succeeded", count.succeeded), ("failed", count.failed)] {
        if number > 0 {
            status[field] = number.into();
        }
    }
    let conditions = |kinds: [&str; 2], reason: &str, message: &str| {
        let condition = |kind| {
            json!({
                "type": kind, "status": "True", "lastProbeTime": now, "lastTransitionTime": now,
                "reason": reason, "message": message,
            })
        };
        json!(kinds.map(condition))
    };
    if complete {
        status["completionTime"] = json!(now);
        let message = "Reached expected number of succeeded pods";
        status["conditions"] = conditions(["SuccessCriteriaMet", "Complete"], "CompletionsReached", message);
    } else if failed {
        let message = "Job has reached the specified backoff limit";
        status["conditions"] = conditions(["FailureTarget", "Failed"], "BackoffLimitExceeded", message);
    } else if let Some(conditions) = old.get("conditions") {
        status["conditions"] = conditions.clone();
    }
    status
}

/// Creates a pod from the Job's template. Returns false if it is refused: a deleted namespace takes no more.
fn create_pod(state: &mut State, job: &Value) -> bool {
    let template = &job["spec"]["template"];
    let (name, uid) = (objects::name(job), objects::uid(job));
    let mut labels = template["metadata"]["labels"].clone();
    for (label, value) in [("controller-uid", uid), ("job-name", name)] {
        objects::set_top(&mut labels, label, Some(value.into()));
        objects::set_top(&mut labels, &format!("batch.kubernetes.io/{label}"), Some(value.into()));
    }
    let pod = json!({
        "metadata": {
            "generateName": format!("{name}-"),
            "labels": labels,
            "annotations": template["metadata"]["annotations"],
            "ownerReferences": [{
                "apiVersion": "batch/v1",
                "kind": "Job",
                "name": name,
                "uid": uid,
                "controller": true,
                "blockOwnerDeletion": true,
            }],
            "finalizers": [TRACKING],
        },
        "spec": template["spec"],
    });
    let created = verbs::create(state, &resources::pods(), objects::namespace(job), pod);
    if let Err(error) = &created {
        tracing::debug!(job = name, %error, "the pod of a Job is refused");
    }
    created.is_ok()
}
