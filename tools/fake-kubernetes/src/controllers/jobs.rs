//! Jobs make pods and count how they end.
//!
//! Source: Kubernetes documentation, "Jobs". As in a real cluster each pod carries a finalizer until its end
//! has been counted. Failed pods are replaced at once, without the real controller's growing pauses. Where failed
//! containers are restarted in their pods (restartPolicy OnFailure), the restarts count as well, and a Job that
//! has had too many takes its pods along.

use std::sync::Arc;

use serde_json::{Value, json};

use super::garbage::release;
use crate::{
    meta,
    registry::Registry,
    store::{Change, Event, Key, State},
    verbs::{
        create,
        delete::{self, Propagation},
    },
};

/// Holds a pod until its Job has counted it.
const TRACKING: &str = "batch.kubernetes.io/job-tracking";
const JOBS: &str = "jobs.batch";
const PODS: &str = "pods";

pub(super) fn react(state: &mut State, registry: &Registry, change: &Change) {
    match &*change.key.resource {
        JOBS if change.event == Event::Deleted => {
            for pod in pods_of(state, &change.object) {
                release(state, &pod, TRACKING);
            }
        }
        JOBS => reconcile(state, registry, &change.key),
        PODS => match job_of(state, &change.object) {
            Some(job) => reconcile(state, registry, &job),
            None => release(state, &change.key, TRACKING),
        },
        _ => {}
    }
}

/// The Job that controls a pod, if it exists.
fn job_of(state: &State, pod: &Value) -> Option<Key> {
    let owner = meta::owners(pod).iter().find(|owner| owner["controller"] == true && owner["kind"] == "Job")?;
    let key = state.by_uid(owner["uid"].as_str()?)?;
    (&*key.resource == JOBS).then(|| key.clone())
}

fn pods_of(state: &State, job: &Value) -> Vec<Key> {
    let mut keys = state.dependents(meta::uid(job));
    keys.retain(|key| &*key.resource == PODS);
    keys
}

/// How the pods of a Job stand.
#[derive(Debug, Default)]
struct Count {
    active: i64,
    ready: i64,
    succeeded: i64,
    failed: i64,
    /// Of containers in pods that have not ended.
    restarts: i64,
}

fn reconcile(state: &mut State, registry: &Registry, key: &Key) {
    let Some(job) = state.get(key).cloned() else {
        return;
    };
    let pods = pods_of(state, &job);
    if is_finished(&job) || meta::deleting(&job) {
        for pod in pods {
            release(state, &pod, TRACKING);
        }
        return;
    }
    let count = count(state, &job, &pods);
    let spec = &job["spec"];
    let number = |field: &str, fallback| spec[field].as_i64().unwrap_or(fallback);
    let completions = number("completions", 1);
    let limit = number("backoffLimit", 6);
    let restarts_in_place = spec["template"]["spec"]["restartPolicy"] == "OnFailure";
    let failed = count.failed > limit || (restarts_in_place && count.restarts >= limit.max(1));
    let complete = !failed && count.succeeded >= completions;

    let mut count = count;
    if failed || is_suspended(&job) {
        for pod in &pods {
            let unfinished = state.get(pod).is_some_and(|pod| !has_ended(pod) && !meta::deleting(pod));
            if unfinished {
                delete::remove(state, pod, Propagation::Background);
                count.failed += i64::from(failed);
            }
        }
        count.active = 0;
        count.ready = 0;
    } else if !complete && !is_suspended(&job) {
        let wanted = number("parallelism", 1).min(completions - count.succeeded);
        for _ in count.active..wanted {
            if make_pod(state, registry, &job) {
                count.active += 1;
            }
        }
    }
    let status = status(&job, &count, complete, failed);
    if status != job["status"] {
        let mut job = Value::clone(&job);
        meta::set_top(&mut job, "status", Some(status));
        state.put(key, job);
    }
    // Only after the Job's status says so: a pod must not be forgotten uncounted.
    for pod in pods {
        let counted = state.get(&pod).is_some_and(|pod| has_ended(pod) || meta::deleting(pod));
        if counted {
            release(state, &pod, TRACKING);
        }
    }
}

fn has_ended(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

/// Adds the pods that have ended since the last time to what the status says. A pod that was deleted before
/// it ended has failed, unless it had to make room for a pause.
fn count(state: &State, job: &Value, pods: &[Key]) -> Count {
    let mut count = Count {
        succeeded: job["status"]["succeeded"].as_i64().unwrap_or_default(),
        failed: job["status"]["failed"].as_i64().unwrap_or_default(),
        ..Count::default()
    };
    for pod in pods.iter().filter_map(|key| state.get(key)) {
        let tracked = meta::finalizers(pod).contains(&TRACKING);
        match pod["status"]["phase"].as_str() {
            Some("Succeeded") => count.succeeded += i64::from(tracked),
            Some("Failed") => count.failed += i64::from(tracked),
            _ if meta::deleting(pod) => count.failed += i64::from(tracked && !is_suspended(job)),
            phase => {
                count.active += 1;
                count.ready += i64::from(phase == Some("Running"));
                let containers = meta::list(&pod["status"]["containerStatuses"]);
                count.restarts += containers.iter().filter_map(|status| status["restartCount"].as_i64()).sum::<i64>();
            }
        }
    }
    count
}

fn is_suspended(job: &Value) -> bool {
    job["spec"]["suspend"] == true
}

fn is_finished(job: &Value) -> bool {
    meta::list(&job["status"]["conditions"]).iter().any(|condition| {
        condition["status"] == "True" && matches!(condition["type"].as_str(), Some("Complete" | "Failed"))
    })
}

fn status(job: &Value, count: &Count, complete: bool, failed: bool) -> Value {
    let now = meta::now();
    let old = &job["status"];
    let mut status = json!({
        "ready": count.ready,
        "terminating": 0,
        "uncountedTerminatedPods": {},
    });
    for (field, number) in [("active", count.active), ("succeeded", count.succeeded), ("failed", count.failed)] {
        if number > 0 {
            status[field] = number.into();
        }
    }
    if let Some(conditions) = old.get("conditions") {
        status["conditions"] = conditions.clone();
    }
    match old.get("startTime") {
        _ if is_suspended(job) => {}
        Some(start) => status["startTime"] = start.clone(),
        None => status["startTime"] = json!(now),
    }
    let condition = |kind: &str, state: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": state, "lastProbeTime": now, "lastTransitionTime": now,
            "reason": reason, "message": message,
        })
    };
    let was_suspended = meta::list(&old["conditions"])
        .iter()
        .any(|condition| condition["type"] == "Suspended" && condition["status"] == "True");
    let (kinds, reason, message) = if complete {
        status["completionTime"] = json!(now);
        let message = "Reached expected number of succeeded pods";
        (["SuccessCriteriaMet", "Complete"], "CompletionsReached", message)
    } else if failed {
        let message = "Job has reached the specified backoff limit";
        (["FailureTarget", "Failed"], "BackoffLimitExceeded", message)
    } else {
        if is_suspended(job) && !was_suspended {
            status["conditions"] = json!([condition("Suspended", "True", "JobSuspended", "Job suspended")]);
        } else if !is_suspended(job) && was_suspended {
            status["conditions"] = json!([condition("Suspended", "False", "JobResumed", "Job resumed")]);
        }
        return status;
    };
    status["conditions"] = kinds.iter().map(|kind| condition(kind, "True", reason, message)).collect();
    status
}

/// Makes a pod from the Job's template. Says whether there is one now: a namespace that is being emptied
/// takes no more.
fn make_pod(state: &mut State, registry: &Registry, job: &Arc<Value>) -> bool {
    let Some(pods) = registry.by_id(state, PODS) else {
        return false;
    };
    let template = &job["spec"]["template"];
    let mut metadata = json!({
        "generateName": format!("{}-", meta::name(job)),
        "labels": template["metadata"]["labels"],
        "ownerReferences": [{
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": meta::name(job),
            "uid": meta::uid(job),
            "controller": true,
            "blockOwnerDeletion": true,
        }],
        "finalizers": [TRACKING],
    });
    if let Some(annotations) = template["metadata"].get("annotations") {
        metadata["annotations"] = annotations.clone();
    }
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": template["spec"],
    });
    match create::insert(state, &pods, meta::namespace(job), pod, false) {
        Ok(_) => true,
        Err(error) => {
            tracing::debug!(job = meta::name(job), ?error, "no pod can be made");
            false
        }
    }
}
