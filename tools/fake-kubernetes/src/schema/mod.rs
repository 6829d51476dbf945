//! The schema of a custom resource: what it drops, what it fills in, what it refuses.
//!
//! Source: Kubernetes documentation, "Extend the Kubernetes API with CustomResourceDefinitions": "Specifying a
//! structural schema", "Field pruning", "Defaulting". CEL rules (`x-kubernetes-validations`) are not evaluated.

mod structural;
mod validate;

use std::collections::HashMap;

use regex::Regex;
use serde_json::Value;

pub(crate) use structural::check as check_structural;

use super::status::FieldError;

/// A structural schema, with its patterns compiled.
#[derive(Debug)]
pub(crate) struct Schema {
    root: Value,
    patterns: HashMap<String, Regex>,
}

/// Fields of every object that no schema has to name.
const OF_EVERY_OBJECT: [&str; 3] = ["apiVersion", "kind", "metadata"];

impl Schema {
    /// Takes a schema that [`check_structural`] found nothing wrong with.
    pub(crate) fn new(root: Value) -> Self {
        let mut patterns = HashMap::new();
        collect_patterns(&root, &mut patterns);
        Self { root, patterns }
    }

    /// The schema as it was written.
    pub(crate) fn document(&self) -> &Value {
        &self.root
    }

    /// Drops the fields that the schema does not know, and says which.
    pub(crate) fn prune(&self, object: &mut Value) -> Vec<String> {
        let mut dropped = Vec::new();
        prune(object, &self.root, "", true, &mut dropped);
        dropped
    }

    /// Fills in defaults. A null where the schema allows none counts as left out.
    pub(crate) fn default(&self, object: &mut Value) {
        default(object, &self.root);
    }

    /// What is wrong with the object.
    pub(crate) fn validate(&self, object: &Value) -> Vec<FieldError> {
        self.validate_at(object, "")
    }

    /// What is wrong with the value that stands at `path`.
    fn validate_at(&self, value: &Value, path: &str) -> Vec<FieldError> {
        let mut errors = Vec::new();
        validate::Validator::new(&self.patterns).check(value, &self.root, path, &mut errors);
        errors
    }
}

fn collect_patterns(schema: &Value, patterns: &mut HashMap<String, Regex>) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::String(pattern)) = map.get("pattern")
                && let Ok(regex) = Regex::new(pattern)
            {
                patterns.insert(pattern.clone(), regex);
            }
            map.values().for_each(|value| collect_patterns(value, patterns));
        }
        Value::Array(list) => list.iter().for_each(|value| collect_patterns(value, patterns)),
        _ => {}
    }
}

/// `a.b`, or `b` at the top.
pub(crate) fn below(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

fn prune(value: &mut Value, schema: &Value, path: &str, object: bool, dropped: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            let open = schema["x-kubernetes-preserve-unknown-fields"] == true;
            let embedded = object || schema["x-kubernetes-embedded-resource"] == true;
            let properties = &schema["properties"];
            let others = &schema["additionalProperties"];
            map.retain(|field, value| {
                let path = below(path, field);
                if let Some(known) = properties.get(field) {
                    prune(value, known, &path, false, dropped);
                    return true;
                }
                match others {
                    Value::Object(_) => {
                        prune(value, others, &path, false, dropped);
                        return true;
                    }
                    Value::Bool(true) => return true,
                    _ => {}
                }
                let kept = open || (embedded && OF_EVERY_OBJECT.contains(&field.as_str()));
                if !kept {
                    dropped.push(path);
                }
                kept
            });
        }
        Value::Array(list) => {
            for (index, entry) in list.iter_mut().enumerate() {
                let path = format!("{path}[{index}]");
                prune(entry, &schema["items"], &path, false, dropped);
            }
        }
        _ => {}
    }
}

fn default(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(map) => {
            for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
                if map.get(field) == Some(&Value::Null) && schema["nullable"] != true {
                    map.shift_remove(field);
                }
                if let (false, Some(fallback)) = (map.contains_key(field), schema.get("default")) {
                    map.insert(field.clone(), fallback.clone());
                }
            }
            for (field, value) in map {
                let known = schema["properties"].get(field);
                default(value, known.unwrap_or(&schema["additionalProperties"]));
            }
        }
        Value::Array(list) => {
            for entry in list {
                default(entry, &schema["items"]);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unknown_fields_go_except_where_they_are_kept() {
        let schema = Schema::new(json!({
            "type": "object",
            "properties": {
                "spec": {
                    "type": "object",
                    "properties": {
                        "known": { "type": "string" },
                        "open": { "type": "object", "x-kubernetes-preserve-unknown-fields": true,
                            "properties": { "closed": { "type": "object", "properties": {} } } },
                        "map": { "type": "object", "additionalProperties": {
                            "type": "object", "properties": { "a": { "type": "integer" } } } },
                        "list": { "type": "array", "items": {
                            "type": "object", "properties": { "a": { "type": "integer" } } } },
                    },
                },
            },
        }));
        let mut object = json!({
            "apiVersion": "v1", "kind": "K", "metadata": { "name": "n" }, "top": 1,
            "spec": {
                "known": "k", "unknown": 1,
                "open": { "anything": { "deep": 1 }, "closed": { "gone": 1 } },
                "map": { "x": { "a": 1, "b": 2 } },
                "list": [{ "a": 1, "b": 2 }],
            },
        });
        let mut dropped = schema.prune(&mut object);
        dropped.sort();
        assert_eq!(dropped, ["spec.list[0].b", "spec.map.x.b", "spec.open.closed.gone", "spec.unknown", "top"]);
        assert_eq!(object["spec"]["open"], json!({ "anything": { "deep": 1 }, "closed": {} }));
        assert_eq!(object["metadata"]["name"], "n");
    }

    #[test]
    fn defaults_reach_into_what_is_there() {
        let schema = Schema::new(json!({
            "type": "object",
            "properties": {
                "a": { "type": "string", "default": "x" },
                "n": { "type": "string", "default": "x", "nullable": true },
                "list": { "type": "array", "items": { "type": "object", "properties": {
                    "b": { "type": "object", "default": {}, "properties": {
                        "c": { "type": "integer", "default": 1 } } } } } },
            },
        }));
        let mut object = json!({ "a": null, "n": null, "list": [{}] });
        schema.default(&mut object);
        assert_eq!(object, json!({ "a": "x", "n": null, "list": [{ "b": { "c": 1 } }] }));
    }
}
