//! PersistentVolumeClaims. The controllers bind them to volumes that are names only.

use serde_json::{Value, json};

use crate::{meta, status::FieldError};

/// Holds a claim while a pod uses it. Source: Kubernetes documentation, "Storage Object in Use Protection".
pub(crate) const PROTECTION: &str = "kubernetes.io/pvc-protection";

/// New ones are pending, and protected.
pub(super) fn prepare(claim: &mut Value, old: Option<&Value>) {
    let spec = meta::map(meta::map(claim).entry("spec").or_insert(Value::Null));
    spec.entry("volumeMode").or_insert_with(|| "Filesystem".into());
    if old.is_none() {
        meta::add_finalizer(claim, PROTECTION);
        meta::set_top(claim, "status", Some(json!({ "phase": "Pending" })));
    }
}

/// What a claim has to say, and that it may later ask for more storage only.
pub(super) fn validate(claim: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let spec = &claim["spec"];
    if meta::list(&spec["accessModes"]).is_empty() {
        let detail = "at least 1 access mode is required";
        errors.push(FieldError::required("spec.accessModes", detail));
    }
    const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    for mode in meta::list(&spec["accessModes"]) {
        if !MODES.iter().any(|known| mode == known) {
            let allowed = MODES.map(|mode| format!("\"{mode}\""));
            errors.push(FieldError::unsupported("spec.accessModes", mode, &allowed));
        }
    }
    if spec["resources"]["requests"]["storage"].is_null() {
        errors.push(FieldError::required("spec.resources[storage]", ""));
    }
    let frozen = |claim: &Value| {
        let mut spec = claim["spec"].clone();
        meta::set_top(&mut spec, "resources", None);
        spec
    };
    if old.is_some_and(|old| frozen(old) != frozen(claim)) {
        errors.push(FieldError::forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        ));
    }
}
