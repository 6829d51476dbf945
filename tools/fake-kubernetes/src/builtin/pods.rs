//! Pods, and the pod template inside a Job.

use serde_json::{Value, json};

use crate::{
    meta::{self, NameRule},
    quantity,
    status::FieldError,
};

/// New ones are pending. Nothing here runs them: whoever plays the kubelet writes their status.
pub(super) fn prepare(pod: &mut Value, old: Option<&Value>) {
    let pod = meta::map(pod);
    default_spec(pod.entry("spec").or_insert(Value::Null), "Always");
    if old.is_none() {
        let status = json!({ "phase": "Pending", "qosClass": "BestEffort" });
        pod.insert("status".to_owned(), status);
    }
}

/// What the real server fills in, as far as anybody looks at it.
pub(super) fn default_spec(spec: &mut Value, restart_policy: &str) {
    let spec = meta::map(spec);
    for field in ["containers", "initContainers"] {
        let Some(Value::Array(containers)) = spec.get_mut(field) else {
            continue;
        };
        for container in containers {
            let latest = container["image"].as_str().is_some_and(is_latest);
            let pull = if latest { "Always" } else { "IfNotPresent" };
            let container = meta::map(container);
            for (field, value) in [
                ("resources", json!({})),
                ("terminationMessagePath", json!("/dev/termination-log")),
                ("terminationMessagePolicy", json!("File")),
                ("imagePullPolicy", json!(pull)),
            ] {
                container.entry(field).or_insert(value);
            }
        }
    }
    for (field, value) in [
        ("restartPolicy", json!(restart_policy)),
        ("terminationGracePeriodSeconds", json!(30)),
        ("dnsPolicy", json!("ClusterFirst")),
        ("securityContext", json!({})),
        ("schedulerName", json!("default-scheduler")),
    ] {
        spec.entry(field).or_insert(value);
    }
}

fn is_latest(image: &str) -> bool {
    let name = image.rsplit('/').next().unwrap_or(image);
    !name.contains('@') && name.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

/// A pod has containers, and what it runs can't be changed but for the images.
pub(super) fn validate(pod: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    validate_spec(&pod["spec"], "spec", errors);
    let frozen = |pod: &Value| {
        let mut spec = pod["spec"].clone();
        for field in ["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "nodeName"] {
            meta::set_top(&mut spec, field, None);
        }
        for field in ["containers", "initContainers"] {
            if let Some(Value::Array(containers)) = spec.get_mut(field) {
                for container in containers {
                    meta::set_top(container, "image", None);
                    meta::set_top(container, "imagePullPolicy", None);
                }
            }
        }
        spec
    };
    if old.is_some_and(|old| frozen(old) != frozen(pod)) {
        errors.push(FieldError::forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
            `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
            `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        ));
    }
}

/// What every pod needs, also one that a Job is to make. `field` is where the spec stands.
pub(super) fn validate_spec(spec: &Value, field: &str, errors: &mut Vec<FieldError>) {
    let containers = meta::list(&spec["containers"]);
    if containers.is_empty() {
        errors.push(FieldError::required(format!("{field}.containers"), ""));
    }
    let mut names = Vec::new();
    for (list, containers) in [("initContainers", meta::list(&spec["initContainers"])), ("containers", containers)] {
        for (index, container) in containers.iter().enumerate() {
            let at = format!("{field}.{list}[{index}]");
            let name = container["name"].as_str().unwrap_or_default();
            if name.is_empty() {
                errors.push(FieldError::required(format!("{at}.name"), ""));
            } else {
                for detail in NameRule::Label.check(name) {
                    errors.push(FieldError::invalid(format!("{at}.name"), &name.into(), &detail));
                }
                if names.contains(&name) {
                    errors.push(FieldError::duplicate(format!("{at}.name"), &name.into()));
                }
                names.push(name);
            }
            if container["image"].as_str().unwrap_or_default().is_empty() {
                errors.push(FieldError::required(format!("{at}.image"), ""));
            }
            let resources = &container["resources"];
            for (name, asked) in resources["requests"].as_object().into_iter().flatten() {
                let limit = &resources["limits"][name];
                let amount = |value: &Value| quantity::parse(value.as_str()?);
                if let (Some(wanted), Some(allowed), Some(limit)) = (amount(asked), amount(limit), limit.as_str())
                    && wanted > allowed
                {
                    let detail = format!("must be less than or equal to {name} limit of {limit}");
                    errors.push(FieldError::invalid(format!("{at}.resources.requests"), asked, &detail));
                }
            }
        }
    }
}
