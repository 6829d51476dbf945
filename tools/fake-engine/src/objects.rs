//! The Kubernetes objects that the engine creates, named and labelled as the real one's (docs/contract/engine.md,
//! "Objects of a job").

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim};
use serde_json::{Value, json};

use crate::workflow::Workflow;

/// The only container of each pod.
pub(super) const CONTAINER: &str = "workflow-executor";

/// A step of the chain, which is a Job of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Configure,
    Algorithm,
    Filter,
    Publish,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Configure => "configure",
            Self::Algorithm => "algorithm",
            Self::Filter => "filter",
            Self::Publish => "publish",
        }
    }

    pub(super) fn job_name(self, id: &str) -> String {
        format!("{id}-{}-job", self.name())
    }

    /// The label selector of its pods.
    pub(super) fn selector(self, id: &str) -> String {
        format!("workflow={id},component={}", self.name())
    }
}

/// Holds the workflow twice, for the pods that mount it.
pub(super) fn config_map(id: &str, workflow: &Workflow) -> anyhow::Result<ConfigMap> {
    let workflow = workflow.metadata()?;
    let yaml = serde_saphyr::to_string(workflow)?;
    let data = json!({"workflow.yaml": yaml, "workflow.json": workflow.to_string()});
    Ok(serde_json::from_value(json!({"metadata": {"name": id}, "data": data}))?)
}

pub(super) fn claim(name: &str) -> anyhow::Result<PersistentVolumeClaim> {
    Ok(serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
            "storageClassName": "gp2",
        },
    }))?)
}

/// A step's Job. Like the real ones it leaves backoffLimit to the cluster, whose default is 6. The pods of the real
/// configure and publish steps also get the database's password and the engine's key: not here.
pub(super) fn job(id: &str, step: Step, workflow: &Workflow, suspend: bool) -> anyhow::Result<Job> {
    let environment = || -> anyhow::Result<Value> {
        let variables = workflow.environment("/data")?.into_iter();
        Ok(variables.map(|(name, value)| json!({"name": name, "value": value})).collect())
    };
    let mut container = json!({
        "name": CONTAINER,
        "imagePullPolicy": "Always",
        "securityContext": {"allowPrivilegeEscalation": false},
    });
    let mut mounts = vec![json!({"mountPath": "/data/", "name": "data"})];
    let mut volumes = vec![
        json!({"name": "data", "persistentVolumeClaim": {"claimName": format!("{id}-data")}}),
        json!({"name": "workflow", "configMap": {"defaultMode": 420, "name": id}}),
    ];
    match step {
        Step::Configure | Step::Publish => {
            let image = if step == Step::Configure { "pod-configuration" } else { "pod-publishing" };
            container["image"] = format!("oceanprotocol/{image}:latest").into();
            container["command"] = json!(["sh", "-c", "node src/index.js"]);
            container["env"] = json!([
                {"name": "INPUTS", "value": "/data/inputs"},
                {"name": "TRANSFORMATIONS", "value": "/data/transformations"},
                {"name": "VOLUME", "value": "/data"},
                {"name": "WORKFLOW", "value": "/workflow.json"},
                {"name": "WORKFLOWID", "value": id},
            ]);
            // Out of sight of the algorithm and the filter.
            mounts.push(json!({"mountPath": "/data/adminlogs", "name": "adminlogs"}));
            let claim = json!({"claimName": format!("{id}-adminlogs")});
            volumes.push(json!({"name": "adminlogs", "persistentVolumeClaim": claim}));
        }
        Step::Algorithm => {
            let command = workflow.entrypoint("/data/transformations/algorithm")?;
            let command =
                format!("mkdir -p $VOLUME/outputs $VOLUME/logs; {command} 2>&1 | tee $VOLUME/logs/algorithm.log");
            container["image"] = workflow.image()?.into();
            container["command"] = json!(["sh", "-c", command]);
            container["env"] = environment()?;
            let resource = |name, announced| workflow.resource(name, announced);
            container["resources"] = json!({
                "requests": {"memory": resource("requests_memory", "1Gi")?, "cpu": resource("requests_cpu", "1")?},
                "limits": {"memory": resource("limits_memory", "1Gi")?, "cpu": resource("limits_cpu", "1")?},
            });
        }
        Step::Filter => {
            container["image"] = "example/filter:latest".into();
            container["env"] = environment()?;
        }
    }
    for name in ["workflow.yaml", "workflow.json"] {
        mounts.push(json!({"mountPath": format!("/{name}"), "name": "workflow", "subPath": name}));
    }
    container["volumeMounts"] = mounts.into();
    let (label, component) = (workflow.label()?, step.name());
    Ok(serde_json::from_value(json!({
        "metadata": {
            "name": step.job_name(id),
            "labels": {"app": id, "workflow": label, "component": component},
        },
        "spec": {
            "suspend": suspend,
            "template": {
                "metadata": {"labels": {"workflow": label, "component": component}},
                "spec": {
                    "containers": [container],
                    "volumes": volumes,
                    "restartPolicy": "OnFailure",
                    "automountServiceAccountToken": false,
                },
            },
        },
    }))?)
}

/// A Kubernetes quantity as a plain number (cores, bytes); `None` if the text is not one.
pub(super) fn quantity(text: &str) -> Option<f64> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = &text[number.len()..];
    let (prefix, base) = suffix.strip_suffix('i').map_or((suffix, 1000.0), |prefix| (prefix, 1024_f64));
    let power = match prefix {
        "m" => -1,
        "" => 0,
        "k" | "K" => 1,
        "M" => 2,
        "G" => 3,
        "T" => 4,
        "P" => 5,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * base.powi(power))
}
