//! An engine that does exactly what docs/contract/engine.md says of it, and the pods of its Jobs.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::Fate;
use super::model::{Accepted, Case, OUTPUTS, RETRY_GRACE, SCHEDULE_GRACE, START_GRACE};
use crate::fixture::{ago, container};

/// How far a thread of an engine has come with a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Given,
    Begun,
    HasVolumes,
    Waits(Component),
    /// The step has ended.
    Passed(Component),
    Published,
    Finished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Component {
    Configure,
    Algorithm,
    Publish,
}

impl Component {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Configure => "configure",
            Self::Algorithm => "algorithm",
            Self::Publish => "publish",
        }
    }
}

/// A thread of an engine. Two may have the same job: one that was slow to begin it, and one that it was dispatched to
/// later.
#[derive(Debug, Clone)]
pub(super) struct Thread {
    pub(super) environment: usize,
    pub(super) stage: Stage,
    pub(super) provisioned: bool,
}

impl Case<'_> {
    /// One step of the thread that has a job; of two threads, of the one that has begun.
    pub(super) async fn step(&mut self, id: &str) {
        let Some(threads) = self.threads.get_mut(id).filter(|threads| !threads.is_empty()) else { return };
        let which = if threads[0].stage == Stage::Given { threads.len() - 1 } else { 0 };
        let mut thread = threads.remove(which);
        if self.continue_thread(id, &mut thread).await {
            self.threads.get_mut(id).unwrap().push(thread);
        }
    }

    /// Continues a thread. Returns false if it ends.
    pub(super) async fn continue_thread(&mut self, id: &str, thread: &mut Thread) -> bool {
        let environment = thread.environment;
        thread.stage = match thread.stage {
            Stage::Given => {
                if self.read(id, "status").await > 10 {
                    return false;
                }
                self.set_status(id, 20).await;
                Stage::Begun
            }
            Stage::Begun => {
                if !self.down {
                    self.make_volumes(id, environment).await;
                }
                Stage::HasVolumes
            }
            Stage::HasVolumes => self.make(id, environment, Component::Configure).await,
            Stage::Waits(component) => {
                // The engine retries while the cluster is down.
                if self.down {
                    return true;
                }
                let job =
                    self.api::<Job>(environment).get_opt(&format!("{id}-{}-job", component.name())).await.unwrap();
                let done = job.is_none_or(|job| job.status.and_then(|status| status.succeeded).unwrap_or(0) > 0);
                let stops = component == Component::Algorithm && self.read(id, "stopreq").await == 1;
                if !done && !stops {
                    return true;
                }
                Stage::Passed(component)
            }
            Stage::Passed(component) => {
                self.remove_job(id, environment, component).await;
                match component {
                    Component::Configure if self.read(id, "status").await == 30 => {
                        thread.provisioned = true;
                        self.set_status(id, 40).await;
                        self.make(id, environment, Component::Algorithm).await
                    }
                    Component::Configure => self.make(id, environment, Component::Publish).await,
                    Component::Algorithm => {
                        self.set_status(id, 60).await;
                        self.make(id, environment, Component::Publish).await
                    }
                    Component::Publish => Stage::Published,
                }
            }
            Stage::Published => {
                if thread.provisioned {
                    self.set_status(id, 70).await;
                }
                // In the time zone of its session.
                self.execute("UPDATE jobs SET dateFinished=NOW() AT TIME ZONE 'Asia/Kolkata' WHERE workflowId=$1", id)
                    .await;
                Stage::Finished
            }
            Stage::Finished => {
                if !self.down {
                    self.remove_volumes(id, environment).await;
                }
                return false;
            }
        };
        true
    }

    pub(super) async fn make(&mut self, id: &str, environment: usize, component: Component) -> Stage {
        if !self.down {
            let name = format!("{id}-{}-job", component.name());
            // Like the real one, it uses a Job that exists already.
            if self.api::<Job>(environment).get_opt(&name).await.unwrap().is_none() {
                self.cluster().engine_job(&self.namespaces[environment], id, component.name()).await;
            }
        }
        Stage::Waits(component)
    }

    pub(super) async fn make_volumes(&mut self, id: &str, environment: usize) {
        if self.api::<ConfigMap>(environment).get_opt(id).await.unwrap().is_none()
            && self.api::<PersistentVolumeClaim>(environment).get_opt(&format!("{id}-data")).await.unwrap().is_none()
            && self
                .api::<PersistentVolumeClaim>(environment)
                .get_opt(&format!("{id}-adminlogs"))
                .await
                .unwrap()
                .is_none()
        {
            self.cluster().engine_volumes(&self.namespaces[environment], id).await;
        }
    }

    pub(super) async fn remove_job(&self, id: &str, environment: usize, component: Component) {
        if !self.down {
            let name = format!("{id}-{}-job", component.name());
            self.api::<Job>(environment).delete(&name, &DeleteParams::foreground()).await.ok();
            self.settle().await;
        }
    }

    pub(super) async fn remove_volumes(&self, id: &str, environment: usize) {
        let params = DeleteParams::foreground();
        for name in ["data", "adminlogs"] {
            self.api::<PersistentVolumeClaim>(environment).delete(&format!("{id}-{name}"), &params).await.ok();
        }
        self.api::<ConfigMap>(environment).delete(id, &params).await.ok();
    }

    pub(super) async fn read(&self, id: &str, column: &str) -> i64 {
        self.fixture.app.database.job(id).await.unwrap()[column].as_i64().unwrap()
    }

    pub(super) async fn set_status(&self, id: &str, status: i32) {
        let text = operator_service::domain::Status::from_code(status).text();
        sqlx::query("UPDATE jobs SET status=$1,statusText=$2 WHERE workflowId=$3")
            .bind(status)
            .bind(text)
            .bind(id)
            .execute(&self.fixture.app.database.pool)
            .await
            .unwrap();
    }

    pub(super) async fn execute(&self, statement: &'static str, id: &str) {
        sqlx::query(statement).bind(id).execute(&self.fixture.app.database.pool).await.unwrap();
    }

    /// Changes the newest pod of the last step that has one.
    pub(super) async fn pods(&mut self, job: &Accepted, fate: Fate) {
        if self.down {
            return;
        }
        self.settle().await;
        for component in [Component::Publish, Component::Algorithm, Component::Configure] {
            let jobs = self.api::<Job>(job.environment);
            let name = format!("{}-{}-job", job.id, component.name());
            let Some(found) = jobs.get_opt(&name).await.unwrap() else { continue };
            let finished =
                found.status.as_ref().and_then(|status| status.conditions.as_ref()).is_some_and(|conditions| {
                    conditions
                        .iter()
                        .any(|it| matches!(it.type_.as_str(), "Complete" | "Failed") && it.status == "True")
                });
            if finished || found.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let namespace = &self.namespaces[job.environment];
            let pods = self.cluster().pods_of(namespace, &job.id, component.name()).await;
            let Some(pod) = pods.into_iter().find(|pod| pod.metadata.deletion_timestamp.is_none()) else { continue };
            let uid = found.metadata.uid.unwrap();
            let conditions = |scheduled: &str| {
                let unschedulable = match scheduled {
                    "False" => json!("Unschedulable"),
                    _ => Value::Null,
                };
                json!([
                    { "type": "PodScheduled", "status": scheduled, "reason": unschedulable, "lastTransitionTime": ago(0) },
                    // From its first moments on the node.
                    { "type": "ContainersReady", "status": "False", "lastTransitionTime": ago(7200) },
                ])
            };
            let state = |state: Value| json!([container(component.name(), state)]);
            let ended = |reason: &str, code: i32| {
                state(json!({ "terminated": {
                    "reason": reason, "exitCode": code, "startedAt": ago(0), "finishedAt": ago(0)
                }}))
            };
            let (status, problem) = match fate {
                Fate::Runs => (
                    json!({
                        "phase": "Running", "conditions": null, "containerStatuses": state(json!({
                            "running": { "startedAt": ago(0) }
                        }))
                    }),
                    None,
                ),
                Fate::Succeeds | Fate::FindsNoData => {
                    match component {
                        Component::Configure => {
                            self.set_status(&job.id, if fate == Fate::Succeeds { 30 } else { 31 }).await;
                        }
                        Component::Algorithm => {}
                        Component::Publish => {
                            let statement = "UPDATE jobs SET outputsURL=$1 WHERE workflowId=$2";
                            let query = sqlx::query(statement).bind(OUTPUTS).bind(&job.id);
                            query.execute(&self.fixture.app.database.pool).await.unwrap();
                        }
                    }
                    (json!({ "phase": "Succeeded", "containerStatuses": ended("Completed", 0) }), None)
                }
                Fate::Fails => (json!({ "phase": "Failed", "containerStatuses": ended("Error", 1) }), Some(0.0)),
                Fate::RunsOutOfMemory => {
                    (json!({ "phase": "Failed", "containerStatuses": ended("OOMKilled", 137) }), Some(0.0))
                }
                Fate::HasNoImage => (
                    json!({
                        "phase": "Pending", "conditions": conditions("True"), "containerStatuses": state(json!({
                            "waiting": { "reason": "ImagePullBackOff" }
                        }))
                    }),
                    Some(RETRY_GRACE),
                ),
                Fate::HasNoVolume => (
                    json!({
                        "phase": "Pending", "startTime": ago(0), "conditions": conditions("True"),
                        "containerStatuses": state(json!({ "waiting": { "reason": "ContainerCreating" } }))
                    }),
                    Some(START_GRACE),
                ),
                Fate::HasNoNode => {
                    (json!({ "phase": "Pending", "conditions": conditions("False") }), Some(SCHEDULE_GRACE))
                }
            };
            match problem {
                Some(grace) => self.problems.insert(uid, (self.passed, grace)),
                None => self.problems.remove(&uid),
            };
            if matches!(fate, Fate::Fails | Fate::RunsOutOfMemory) {
                let condition = |kind: &str| {
                    json!({
                        "type": kind, "status": "True", "reason": "BackoffLimitExceeded", "message": "It failed.",
                        "lastTransitionTime": ago(0), "lastProbeTime": ago(0)
                    })
                };
                let patch = json!({ "status": {
                    "conditions": [condition("FailureTarget"), condition("Failed")], "failed": 1, "active": 0, "ready": 0
                }});
                jobs.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
            }
            let patch = Patch::Merge(json!({ "status": status }));
            let pods = self.api::<Pod>(job.environment);
            pods.patch_status(&pod.metadata.name.unwrap(), &PatchParams::default(), &patch).await.unwrap();
            self.settle().await;
            return;
        }
    }
}
