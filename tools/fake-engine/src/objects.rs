//! The objects that the engine makes in the cluster: their names, labels and content are the real one's.

use fake_kubernetes::quantity;
use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{ConfigMap, PersistentVolumeClaim, Pod},
    },
    serde::de::DeserializeOwned,
};
use serde_json::{Value, json};

use super::{
    chain::{Died, Workflow},
    pod::CONTAINER,
};

/// A step of the chain, which is a Job of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Component {
    Configure,
    Algorithm,
    Filter,
    Publish,
}

impl Component {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Configure => "configure",
            Self::Algorithm => "algorithm",
            Self::Filter => "filter",
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

/// What the algorithm asks for and may use: what its stage says. The real engine, since 2021, writes what its
/// environment announces over that; here the announced amounts only fill in, so that one job alone can have too little,
/// or ask for too much.
fn resources(workflow: &Workflow) -> Result<Value, Died> {
    let said = &workflow.stage()?["compute"]["resources"];
    let amount = |name: &str, announced: &str| match &said[name] {
        Value::String(text) if !text.is_empty() => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => announced.to_owned(),
    };
    Ok(json!({
        "requests": {"memory": amount("requests_memory", "1Gi"), "cpu": amount("requests_cpu", "1")},
        "limits": {"memory": amount("limits_memory", "1Gi"), "cpu": amount("limits_cpu", "1")},
    }))
}

/// The algorithm's memory limit in bytes, if there is one.
pub(super) fn memory_limit(workflow: &Workflow) -> Option<u64> {
    let resources = resources(workflow).ok()?;
    let bytes = quantity::parse(resources["limits"]["memory"].as_str()?)?;
    (bytes > 0.0).then_some(bytes as u64)
}

/// Why a machine with so many cores and so much memory (bytes) can't take the pod, in the scheduler's words; nothing if
/// it can.
pub(super) fn insufficient(pod: &Pod, cores: f64, memory: f64) -> Option<String> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let requests: Vec<_> = containers.filter_map(|container| container.resources.as_ref()?.requests.as_ref()).collect();
    let short = |name: &str, there: f64| {
        let asked: f64 = requests.iter().filter_map(|requests| quantity::parse(&requests.get(name)?.0)).sum();
        (asked > there).then(|| format!("1 Insufficient {name}"))
    };
    let reasons: Vec<String> = short("cpu", cores).into_iter().chain(short("memory", memory)).collect();
    (!reasons.is_empty()).then(|| format!("0/1 nodes are available: {}.", reasons.join(", ")))
}

/// The environment as a container's.
fn environment(workflow: &Workflow) -> Result<Value, Died> {
    let variables = workflow.environment("/data")?.into_iter();
    Ok(variables.map(|(name, value)| json!({"name": name, "value": value})).collect())
}

/// A step's Job. As the real ones, it leaves backoffLimit to the cluster, which is 6. The pods of the real configure
/// and publish steps also get the database's password and the engine's key: not here.
pub(super) fn job(id: &str, component: Component, workflow: &Workflow, suspend: bool) -> Result<Job, Died> {
    let labels = json!({
        "app": id,
        "workflow": workflow.label()?,
        "component": component.as_str(),
    });
    let pod_labels = json!({"workflow": workflow.label()?, "component": component.as_str()});
    let mut container = json!({
        "name": CONTAINER,
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
            container["env"] = environment(workflow)?;
            container["resources"] = resources(workflow)?;
        }
        Component::Filter => {
            container["image"] = "example/filter:latest".into();
            container["env"] = environment(workflow)?;
        }
    }
    let mut mounts = vec![json!({"mountPath": "/data/", "name": "data"})];
    let mut volumes = vec![
        json!({"name": "data", "persistentVolumeClaim": {"claimName": format!("{id}-data")}}),
        json!({"name": "workflow", "configMap": {"defaultMode": 420, "name": id}}),
    ];
    // Algorithm and filter are not to see what the others write about them.
    if matches!(component, Component::Configure | Component::Publish) {
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
