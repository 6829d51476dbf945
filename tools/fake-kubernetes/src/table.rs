//! Objects as `Table`, which `kubectl get` prints: the name, and the printer columns of a definition or the age.
//!
//! Source: Kubernetes API concepts, "Receiving resources as Tables".

use jsonpath_rust::JsonPath;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::resources::Resource;

/// The table of some objects; `metadata` is the list's.
pub(crate) fn table(resource: &Resource, objects: &[&Value], metadata: &Value) -> Value {
    let mut columns = vec![json!({ "name": "Name", "type": "string", "jsonPath": ".metadata.name" })];
    if resource.columns.is_empty() {
        columns.push(json!({ "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" }));
    }
    columns.extend(resource.columns.iter().cloned());
    let definitions = columns.iter().map(|column| {
        json!({
            "name": column["name"],
            "type": column["type"],
            "format": column["format"].as_str().unwrap_or_default(),
            "description": column["description"].as_str().unwrap_or_default(),
            "priority": column["priority"].as_i64().unwrap_or_default(),
        })
    });
    let rows = objects.iter().map(|object| {
        let cells: Vec<Value> = columns.iter().map(|column| cell(column, object)).collect();
        json!({ "cells": cells, "object": metadata_only(object) })
    });
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": definitions.collect::<Vec<_>>(),
        "rows": rows.collect::<Vec<_>>(),
    })
}

fn cell(column: &Value, object: &Value) -> Value {
    let path = format!("${}", column["jsonPath"].as_str().unwrap_or_default());
    let found = object.query(&path).unwrap_or_default().into_iter().find(|value| !value.is_null());
    match found {
        Some(Value::String(time)) if column["type"] == "date" => age(time).into(),
        Some(value) => value.clone(),
        None => Value::Null,
    }
}

/// An object's `PartialObjectMetadata`.
pub(crate) fn metadata_only(object: &Value) -> Value {
    json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"] })
}

/// The time since then, in its largest unit.
fn age(time: &str) -> String {
    let Ok(time) = time.parse::<Timestamp>() else {
        return "<invalid>".to_owned();
    };
    let seconds = Timestamp::now().duration_since(time).as_secs();
    match seconds {
        ..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}
