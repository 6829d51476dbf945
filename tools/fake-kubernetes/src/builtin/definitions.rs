//! CustomResourceDefinitions. What they define is served as soon as they are there.

use serde_json::{Value, json};

use crate::{meta, schema, status::FieldError};

/// Fills in names and status; the real server needs a moment for the latter, we don't.
pub(super) fn prepare(definition: &mut Value, old: Option<&Value>) {
    let definition = meta::map(definition);
    let spec = meta::map(definition.entry("spec").or_insert(Value::Null));
    spec.entry("conversion").or_insert_with(|| json!({ "strategy": "None" }));
    let names = meta::map(spec.entry("names").or_insert(Value::Null));
    let kind = names.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    names.entry("singular").or_insert_with(|| kind.to_lowercase().into());
    names.entry("listKind").or_insert_with(|| format!("{kind}List").into());
    let names = Value::Object(names.clone());

    let mut stored: Vec<Value> = old.map_or_else(Vec::new, |old| meta::list(&old["status"]["storedVersions"]).to_vec());
    for version in spec.get("versions").map(meta::list).unwrap_or_default() {
        if version["storage"] == true && !stored.contains(&version["name"]) {
            stored.push(version["name"].clone());
        }
    }
    let conditions = old.map(|old| old["status"]["conditions"].clone()).filter(Value::is_array).unwrap_or_else(|| {
        let now = meta::now();
        json!([
            {
                "type": "NamesAccepted", "status": "True", "lastTransitionTime": now,
                "reason": "NoConflicts", "message": "no conflicts found",
            },
            {
                "type": "Established", "status": "True", "lastTransitionTime": now,
                "reason": "InitialNamesAccepted",
                "message": "the initial names have been accepted",
            },
        ])
    });
    let status = json!({ "conditions": conditions, "acceptedNames": names, "storedVersions": stored });
    definition.insert("status".to_owned(), status);
}

/// The rules for names and versions, and that each schema is structural.
///
/// Source: Kubernetes documentation, "Extend the Kubernetes API with CustomResourceDefinitions".
pub(super) fn validate(definition: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let spec = &definition["spec"];
    let names = &spec["names"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (group, plural) = (text(&spec["group"]), text(&names["plural"]));

    if meta::name(definition) != format!("{plural}.{group}") {
        let detail = "must be spec.names.plural+\".\"+spec.group";
        let name = Value::from(meta::name(definition));
        errors.push(FieldError::invalid("metadata.name", &name, detail));
    }
    if group.is_empty() {
        errors.push(FieldError::required("spec.group", ""));
    } else if !group.contains('.') {
        let detail = "should be a domain with at least one dot";
        errors.push(FieldError::invalid("spec.group", &spec["group"], detail));
    }
    match text(&spec["scope"]).as_str() {
        "Namespaced" | "Cluster" => {}
        "" => errors.push(FieldError::required("spec.scope", "")),
        _ => {
            let allowed = ["\"Cluster\"".to_owned(), "\"Namespaced\"".to_owned()];
            errors.push(FieldError::unsupported("spec.scope", &spec["scope"], &allowed));
        }
    }
    for field in ["plural", "kind"] {
        if text(&names[field]).is_empty() {
            errors.push(FieldError::required(format!("spec.names.{field}"), ""));
        }
    }
    if spec["preserveUnknownFields"] == true {
        let detail =
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.push(FieldError::invalid("spec.preserveUnknownFields", &json!(true), detail));
    }
    if let Some(old) = old {
        for (field, new, old) in [
            ("spec.group", &spec["group"], &old["spec"]["group"]),
            ("spec.scope", &spec["scope"], &old["spec"]["scope"]),
            ("spec.names.kind", &names["kind"], &old["spec"]["names"]["kind"]),
            ("spec.names.plural", &names["plural"], &old["spec"]["names"]["plural"]),
        ] {
            if new != old {
                errors.push(FieldError::invalid(field, new, "field is immutable"));
            }
        }
    }

    let versions = meta::list(&spec["versions"]);
    let storage = versions.iter().filter(|version| version["storage"] == true).count();
    if storage != 1 {
        let detail = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid("spec.versions", &spec["versions"], detail));
    }
    for (index, version) in versions.iter().enumerate() {
        let field = format!("spec.versions[{index}].schema.openAPIV3Schema");
        let root = &version["schema"]["openAPIV3Schema"];
        if !root.is_object() {
            errors.push(FieldError::required(field, ""));
        } else if versions.len() == 1 {
            // The real server still thinks of the one schema as it stood in v1beta1.
            schema::check_structural(root, "spec.validation.openAPIV3Schema", errors);
        } else {
            schema::check_structural(root, &field, errors);
        }
    }
}
