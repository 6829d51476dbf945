//! Whether a schema is structural, which is what the API server demands of every one.
//!
//! Source: `k8s.io/apiextensions-apiserver/pkg/apiserver/schema/validation.go`.

use regex::Regex;
use serde_json::Value;

use super::{OF_EVERY_OBJECT, Schema, below};
use crate::{meta, status::FieldError};

/// Adds what is wrong with the schema that stands at `path`.
pub(crate) fn check(root: &Value, path: &str, errors: &mut Vec<FieldError>) {
    match root["type"].as_str() {
        None | Some("") => {
            let detail = "must not be empty at the root";
            errors.push(FieldError::required(below(path, "type"), detail));
        }
        Some("object") => {}
        Some(_) => {
            let detail = "must be object at the root";
            errors.push(FieldError::invalid(below(path, "type"), &root["type"], detail));
        }
    }
    check_node(root, path, Place::Root, errors);
}

/// Where in a schema a node stands: the rules differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Root,
    Field,
    Items,
}

fn check_node(schema: &Value, path: &str, place: Place, errors: &mut Vec<FieldError>) {
    let open = schema["x-kubernetes-preserve-unknown-fields"] == true;
    let int_or_string = schema["x-kubernetes-int-or-string"] == true;
    let kind = schema["type"].as_str().unwrap_or_default();

    if kind.is_empty() && !open && !int_or_string && schema["$ref"].is_null() {
        let at = below(path, "type");
        match place {
            Place::Root => {}
            Place::Field => errors.push(FieldError::required(at, "must not be empty for specified object fields")),
            Place::Items => errors.push(FieldError::required(at, "must not be empty for specified array items")),
        }
    }
    const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
    if !kind.is_empty() && !TYPES.contains(&kind) {
        let allowed: Vec<String> = TYPES.iter().map(|kind| format!("\"{kind}\"")).collect();
        errors.push(FieldError::unsupported(below(path, "type"), &schema["type"], &allowed));
    }
    if schema["x-kubernetes-preserve-unknown-fields"] == false {
        errors.push(FieldError::invalid(
            below(path, "x-kubernetes-preserve-unknown-fields"),
            &false.into(),
            "must be true or undefined",
        ));
    }
    if schema["x-kubernetes-embedded-resource"] == true && kind != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(FieldError::invalid(below(path, "type"), &schema["type"], detail));
    }
    check_forbidden(schema, path, errors);
    if let Some(pattern) = schema["pattern"].as_str()
        && let Err(error) = Regex::new(pattern)
    {
        let detail = format!("must be a valid regular expression, but isn't: {error}");
        errors.push(FieldError::invalid(below(path, "pattern"), &schema["pattern"], &detail));
    }
    if let Some(fallback) = schema.get("default").filter(|fallback| !fallback.is_null()) {
        let found = Schema::new(schema.clone()).validate_at(fallback, &below(path, "default"));
        errors.extend(found);
    }
    if place == Place::Root {
        check_metadata(&schema["properties"]["metadata"], &below(path, "properties[metadata]"), errors);
    }

    for (field, property) in schema["properties"].as_object().into_iter().flatten() {
        let implied = place == Place::Root && OF_EVERY_OBJECT.contains(&field.as_str());
        if !(implied && property.get("type").is_none()) {
            let path = format!("{path}.properties[{field}]");
            check_node(property, &path, Place::Field, errors);
        }
    }
    if schema["additionalProperties"].is_object() {
        let path = below(path, "additionalProperties");
        check_node(&schema["additionalProperties"], &path, Place::Field, errors);
    }
    match &schema["items"] {
        Value::Object(_) => {
            check_node(&schema["items"], &below(path, "items"), Place::Items, errors);
        }
        Value::Array(_) => {
            errors.push(FieldError::forbidden(below(path, "items"), "items must be a schema object and not an array"))
        }
        _ if kind == "array" => {
            errors.push(FieldError::required(below(path, "items"), "must be specified"));
        }
        _ => {}
    }
    for junctor in ["allOf", "anyOf", "oneOf"] {
        for (index, nested) in meta::list(&schema[junctor]).iter().enumerate() {
            check_nested(nested, &format!("{path}.{junctor}[{index}]"), int_or_string, errors);
        }
    }
    if schema["not"].is_object() {
        check_nested(&schema["not"], &below(path, "not"), int_or_string, errors);
    }
}

/// What no schema of a custom resource may use.
fn check_forbidden(schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if schema["properties"].is_object() && !schema["additionalProperties"].is_null() {
        errors.push(FieldError::forbidden(
            below(path, "additionalProperties"),
            "additionalProperties and properties are mutual exclusive",
        ));
    }
    if schema["additionalProperties"] == false && !schema["properties"].is_object() {
        errors.push(FieldError::forbidden(
            below(path, "additionalProperties"),
            "additionalProperties cannot be set to false",
        ));
    }
    if schema["uniqueItems"] == true {
        errors.push(FieldError::forbidden(
            below(path, "uniqueItems"),
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        ));
    }
    for field in ["definitions", "dependencies", "id", "patternProperties", "$ref"] {
        if schema.get(field).is_some_and(|value| !value.is_null()) {
            let detail = format!("{field} is not supported");
            errors.push(FieldError::forbidden(below(path, field), &detail));
        }
    }
}

/// `metadata` at the root is implied; only name and generateName may be narrowed down.
fn check_metadata(metadata: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let more = metadata["properties"]
        .as_object()
        .is_some_and(|fields| fields.keys().any(|field| field != "name" && field != "generateName"));
    if more {
        errors.push(FieldError::forbidden(
            path,
            "must not specify anything other than name and generateName, but metadata is implicitly specified",
        ));
    }
}

/// Inside allOf, anyOf, oneOf and not, a schema may only narrow down.
fn check_nested(schema: &Value, path: &str, int_or_string: bool, errors: &mut Vec<FieldError>) {
    let structure = ["type", "description", "default", "title", "nullable", "additionalProperties"];
    for field in structure {
        let here = schema.get(field).is_some_and(|value| !value.is_null());
        if here && !(field == "type" && int_or_string) {
            let detail = "must be empty to be structural";
            errors.push(FieldError::forbidden(below(path, field), detail));
        }
    }
    for (field, property) in schema["properties"].as_object().into_iter().flatten() {
        check_nested(property, &format!("{path}.properties[{field}]"), false, errors);
    }
    if schema["items"].is_object() {
        check_nested(&schema["items"], &below(path, "items"), false, errors);
    }
}
