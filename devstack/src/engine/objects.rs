//! The objects that the engine makes in the cluster: their names, labels and content are the real one's.

use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{ConfigMap, PersistentVolumeClaim, Pod},
    },
    serde::de::DeserializeOwned,
};
use serde_json::{Value, json};

use super::chain::{Died, Workflow};

/// A step of the chain, which is a Job of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Component {
    Configure,
    Algorithm,
    Publish,
}

impl Component {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Configure => "configure",
            Self::Algorithm => "algorithm",
            Self::Publish => "publish",
        }
    }

    pub(super) fn job_name(self, id: &str) -> String {
        format!("{id}-{}-job", self.as_str())
    }

    pub(super) fn selector(self, id: &str) -> String {
        format!("workflow={id},component={}", self.as_str())
    }
}

fn object<K: DeserializeOwned>(value: Value) -> Result<K, Died> {
    serde_json::from_value(value).map_err(|error| Died(format!("its object makes no sense: {error}")))
}

/// Holds the workflow twice, for whoever mounts it.
pub(super) fn config_map(id: &str, workflow: &Value) -> Result<ConfigMap, Died> {
    let yaml = serde_yaml_ng::to_string(workflow).map_err(|error| Died(error.to_string()))?;
    object(json!({
        "metadata": {"name": id},
        "data": {"workflow.yaml": yaml, "workflow.json": workflow.to_string()},
    }))
}

pub(super) fn claim(name: &str, size: &str) -> Result<PersistentVolumeClaim, Died> {
    object(json!({
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": size}},
            "storageClassName": "gp2",
        },
    }))
}

/// A step's Job. The pods of the real configure and publish steps also get the database's password and the engine's key: not here.
pub(super) fn job(id: &str, component: Component, workflow: &Workflow, suspend: bool) -> Result<Job, Died> {
    let labels = json!({
        "app": id,
        "workflow": workflow.label()?,
        "component": component.as_str(),
    });
    let pod_labels = json!({"workflow": workflow.label()?, "component": component.as_str()});
    let mut container = json!({
        "name": "workflow-executor",
        "imagePullPolicy": "Always",
        "securityContext": {"allowPrivilegeEscalation": false},
    });
    match component {
        Component::Configure | Component::Publish => {
            let pod = match component {
                Component::Configure => "oceanprotocol/pod-configuration:latest",
                _ => "oceanprotocol/pod-publishing:latest",
            };
            container["image"] = pod.into();
            container["command"] = json!(["sh", "-c", "node src/index.js"]);
            container["env"] = json!([
                {"name": "INPUTS", "value": "/data/inputs"},
                {"name": "TRANSFORMATIONS", "value": "/data/transformations"},
                {"name": "VOLUME", "value": "/data"},
                {"name": "WORKFLOW", "value": "/workflow.json"},
                {"name": "WORKFLOWID", "value": id},
            ]);
        }
        Component::Algorithm => {
            let entrypoint = workflow.entrypoint()?.replace("$ALGO", "/data/transformations/algorithm");
            container["image"] = workflow.image()?.into();
            container["command"] = json!([
                "sh",
                "-c",
                format!("mkdir -p $VOLUME/outputs $VOLUME/logs; {entrypoint} 2>&1 | tee $VOLUME/logs/algorithm.log"),
            ]);
            let env: Vec<Value> = workflow
                .environment("/data")?
                .into_iter()
                .map(|(name, value)| json!({"name": name, "value": value}))
                .collect();
            container["env"] = env.into();
            container["resources"] = json!({
                "requests": {"memory": "1Gi", "cpu": "1"},
                "limits": {"memory": "1Gi", "cpu": "1"},
            });
        }
    }
    let mut mounts = vec![json!({"mountPath": "/data/", "name": "data"})];
    let mut volumes = vec![
        json!({"name": "data", "persistentVolumeClaim": {"claimName": format!("{id}-data")}}),
        json!({"name": "workflow", "configMap": {"defaultMode": 420, "name": id}}),
    ];
    // The algorithm is not to see what the others write about it.
    if component != Component::Algorithm {
        mounts.push(json!({"mountPath": "/data/adminlogs", "name": "adminlogs"}));
        volumes.push(json!({
            "name": "adminlogs",
            "persistentVolumeClaim": {"claimName": format!("{id}-adminlogs")},
        }));
    }
    for name in ["workflow.yaml", "workflow.json"] {
        mounts.push(json!({"mountPath": format!("/{name}"), "name": "workflow", "subPath": name}));
    }
    container["volumeMounts"] = mounts.into();
    object(json!({
        "metadata": {"name": component.job_name(id), "labels": labels},
        "spec": {
            "suspend": suspend,
            "template": {
                "metadata": {"labels": pod_labels},
                "spec": {
                    "containers": [container],
                    "volumes": volumes,
                    "restartPolicy": "OnFailure",
                    "automountServiceAccountToken": false,
                },
            },
        },
    }))
}

/// The pod that a Job controller would make for the Job.
pub(super) fn pod_of(job: &Job) -> Result<Pod, Died> {
    let template = serde_json::to_value(&job.spec).map_err(|error| Died(error.to_string()))?;
    let metadata = &job.metadata;
    let name = metadata.name.clone().unwrap_or_default();
    let mut labels = template["template"]["metadata"]["labels"].clone();
    for label in ["job-name", "batch.kubernetes.io/job-name"] {
        labels[label] = name.as_str().into();
    }
    object(json!({
        "metadata": {
            "generateName": format!("{name}-"),
            "labels": labels,
            "ownerReferences": [{
                "apiVersion": "batch/v1",
                "kind": "Job",
                "name": name,
                "uid": metadata.uid,
                "controller": true,
                "blockOwnerDeletion": true,
            }],
        },
        "spec": template["template"]["spec"],
    }))
}
