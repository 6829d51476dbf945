//! Namespaces.

use serde_json::{Value, json};

use crate::meta;

/// New ones are active, and labelled with their name.
pub(super) fn prepare(namespace: &mut Value, old: Option<&Value>) {
    let name = meta::name(namespace).to_owned();
    let metadata = meta::map(meta::map(namespace).entry("metadata").or_insert(Value::Null));
    meta::map(metadata.entry("labels").or_insert(Value::Null))
        .insert("kubernetes.io/metadata.name".to_owned(), name.into());
    let finalizers = old.map_or(json!(["kubernetes"]), |old| old["spec"]["finalizers"].clone());
    meta::set_top(namespace, "spec", Some(json!({ "finalizers": finalizers })));
    if old.is_none() {
        meta::set_top(namespace, "status", Some(json!({ "phase": "Active" })));
    }
}
