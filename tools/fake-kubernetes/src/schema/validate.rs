//! Whether an object fits a schema, in the words of the real server.

use std::collections::HashMap;

use k8s_openapi::jiff::Timestamp;
use regex::Regex;
use serde_json::Value;

use super::below;
use crate::{meta, status::FieldError};

/// Checks values; knows the compiled patterns of the whole schema.
pub(crate) struct Validator<'a> {
    patterns: &'a HashMap<String, Regex>,
}

impl<'a> Validator<'a> {
    pub(crate) fn new(patterns: &'a HashMap<String, Regex>) -> Self {
        Self { patterns }
    }

    /// Adds what is wrong with the value that stands at `path`.
    pub(crate) fn check(&self, value: &Value, schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
        if value.is_null() && schema["nullable"] == true {
            return;
        }
        if !fits_type(value, schema, path, errors) {
            return;
        }
        if let Some(allowed) = schema["enum"].as_array()
            && !allowed.contains(value)
        {
            let allowed: Vec<String> = allowed.iter().map(Value::to_string).collect();
            errors.push(FieldError::unsupported(path, value, &allowed));
        }
        match value {
            Value::String(text) => self.check_text(text, value, schema, path, errors),
            Value::Number(_) => check_number(value, schema, path, errors),
            Value::Array(list) => self.check_list(list, schema, path, errors),
            Value::Object(_) => self.check_object(value, schema, path, errors),
            _ => {}
        }
        self.check_junctors(value, schema, path, errors);
    }

    fn check_text(&self, text: &str, value: &Value, schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
        let length = text.chars().count() as u64;
        if let Some(limit) = schema["maxLength"].as_u64().filter(|limit| length > *limit) {
            errors.push(FieldError::too_long(path, limit));
        }
        if let Some(limit) = schema["minLength"].as_u64().filter(|limit| length < *limit) {
            let detail = format!("{path} in body should be at least {limit} chars long");
            errors.push(FieldError::invalid(path, value, &detail));
        }
        if let Some(pattern) = schema["pattern"].as_str()
            && self.patterns.get(pattern).is_some_and(|regex| !regex.is_match(text))
        {
            let detail = format!("{path} in body should match '{pattern}'");
            errors.push(FieldError::invalid(path, value, &detail));
        }
        let well_formed = match schema["format"].as_str() {
            Some("date-time") => text.parse::<Timestamp>().is_ok(),
            Some("uuid") => uuid::Uuid::parse_str(text).is_ok(),
            _ => true,
        };
        if !well_formed {
            let format = schema["format"].as_str().unwrap_or_default();
            let detail = format!("{path} in body must be of type {format}: {value}");
            errors.push(FieldError::wrong_type(path, value, &detail));
        }
    }

    fn check_list(&self, list: &[Value], schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
        let length = list.len() as u64;
        if let Some(limit) = schema["maxItems"].as_u64().filter(|limit| length > *limit) {
            errors.push(FieldError::too_many(path, list.len(), limit));
        }
        if let Some(limit) = schema["minItems"].as_u64().filter(|limit| length < *limit) {
            let detail = format!("{path} in body should have at least {limit} items");
            errors.push(FieldError::invalid(path, &length.into(), &detail));
        }
        if schema["items"].is_object() {
            for (index, entry) in list.iter().enumerate() {
                self.check(entry, &schema["items"], &format!("{path}[{index}]"), errors);
            }
        }
        self.check_list_type(list, schema, path, errors);
    }

    /// Sets and maps written as lists must not say a thing twice.
    fn check_list_type(&self, list: &[Value], schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
        let keys = meta::list(&schema["x-kubernetes-list-map-keys"]);
        let identity = |entry: &Value| match schema["x-kubernetes-list-type"].as_str() {
            Some("set") => Some(entry.clone()),
            Some("map") => Some(
                keys.iter()
                    .filter_map(Value::as_str)
                    .filter_map(|key| Some((key.to_owned(), entry.get(key)?.clone())))
                    .collect::<serde_json::Map<_, _>>()
                    .into(),
            ),
            _ => None,
        };
        let mut seen = Vec::new();
        for (index, entry) in list.iter().enumerate() {
            let Some(identity) = identity(entry) else {
                return;
            };
            if seen.contains(&identity) {
                errors.push(FieldError::duplicate(format!("{path}[{index}]"), &identity));
            }
            seen.push(identity);
        }
    }

    fn check_object(&self, value: &Value, schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
        let Some(map) = value.as_object() else {
            return;
        };
        for field in meta::list(&schema["required"]).iter().filter_map(Value::as_str) {
            if !map.contains_key(field) {
                errors.push(FieldError::required(below(path, field), ""));
            }
        }
        let count = map.len() as u64;
        if let Some(limit) = schema["maxProperties"].as_u64().filter(|limit| count > *limit) {
            errors.push(FieldError::too_many(path, map.len(), limit));
        }
        if let Some(limit) = schema["minProperties"].as_u64().filter(|limit| count < *limit) {
            let detail = format!("{path} in body should have at least {limit} properties");
            errors.push(FieldError::invalid(path, value, &detail));
        }
        for (field, value) in map {
            if let Some(known) = schema["properties"].get(field) {
                self.check(value, known, &below(path, field), errors);
            } else if schema["additionalProperties"].is_object() {
                self.check(value, &schema["additionalProperties"], &below(path, field), errors);
            }
        }
    }

    fn check_junctors(&self, value: &Value, schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
        let fits = |schema: &Value| {
            let mut errors = Vec::new();
            self.check(value, schema, path, &mut errors);
            errors.is_empty()
        };
        let mut refuse = |detail: &str| errors.push(FieldError::invalid(path, value, detail));
        if !meta::list(&schema["allOf"]).iter().all(fits) {
            refuse("must validate all the schemas (allOf)");
        }
        let any = meta::list(&schema["anyOf"]);
        if !any.is_empty() && !any.iter().any(fits) {
            refuse("must validate at least one schema (anyOf)");
        }
        let one = meta::list(&schema["oneOf"]);
        if !one.is_empty() && one.iter().filter(|schema| fits(schema)).count() != 1 {
            refuse("must validate one and only one schema (oneOf)");
        }
        if schema["not"].is_object() && fits(&schema["not"]) {
            refuse("must not validate the schema (not)");
        }
    }
}

/// Whether the value is of the schema's type; says so if it is not.
fn fits_type(value: &Value, schema: &Value, path: &str, errors: &mut Vec<FieldError>) -> bool {
    let (kind, fits) = if schema["x-kubernetes-int-or-string"] == true {
        ("integer,string", value.is_string() || is_integer(value))
    } else {
        let Some(kind) = schema["type"].as_str() else {
            return true;
        };
        let fits = match kind {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "integer" => is_integer(value),
            "number" => value.is_number(),
            _ => true,
        };
        (kind, fits)
    };
    if !fits {
        let found = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) if is_integer(value) => "integer",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let at = if path.is_empty() { "<nil>" } else { path };
        let detail = format!("{at} in body must be of type {kind}: \"{found}\"");
        errors.push(FieldError::wrong_type(at, &found.into(), &detail));
    }
    fits
}

fn is_integer(value: &Value) -> bool {
    value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0)
}

fn check_number(value: &Value, schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let number = value.as_f64().unwrap_or_default();
    let mut refuse = |detail: String| {
        errors.push(FieldError::invalid(path, value, &format!("{path} in body {detail}")));
    };
    if let Some(limit) = schema["maximum"].as_f64() {
        let exclusive = schema["exclusiveMaximum"] == true;
        if number > limit || (exclusive && number >= limit) {
            let or_equal = if exclusive { "" } else { " or equal to" };
            refuse(format!("should be less than{or_equal} {limit}"));
        }
    }
    if let Some(limit) = schema["minimum"].as_f64() {
        let exclusive = schema["exclusiveMinimum"] == true;
        if number < limit || (exclusive && number <= limit) {
            let or_equal = if exclusive { "" } else { " or equal to" };
            refuse(format!("should be greater than{or_equal} {limit}"));
        }
    }
    if let Some(step) = schema["multipleOf"].as_f64().filter(|step| *step > 0.0)
        && (number / step).fract() != 0.0
    {
        refuse(format!("should be a multiple of {step}"));
    }
    let (kind, fits) = match schema["format"].as_str() {
        Some("int32") => ("int32", value.as_i64().is_none_or(|number| i32::try_from(number).is_ok())),
        Some("int64") => ("int64", !value.is_u64() || value.is_i64()),
        _ => return,
    };
    if !fits {
        refuse(format!("must be of type {kind}: {value}"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::Schema, *};
    use crate::status::FieldError;

    fn errors(schema: Value, value: Value) -> Vec<FieldError> {
        Schema::new(json!({ "type": "object", "properties": { "x": schema } })).validate(&json!({ "x": value }))
    }

    #[test]
    fn every_keyword_lets_pass_and_refuses() {
        for (schema, good, bad) in [
            (json!({ "type": "string" }), json!("a"), json!(1)),
            (json!({ "type": "integer" }), json!(1.0), json!(1.5)),
            (json!({ "type": "number" }), json!(1.5), json!("1.5")),
            (json!({ "type": "boolean" }), json!(true), json!(0)),
            (json!({ "type": "string", "nullable": true }), json!(null), json!(1)),
            (json!({ "type": "string" }), json!(""), json!(null)),
            (json!({ "type": "string", "enum": ["a"] }), json!("a"), json!("b")),
            (json!({ "type": "string", "pattern": "^a+$" }), json!("aa"), json!("ab")),
            (json!({ "type": "string", "minLength": 2 }), json!("ää"), json!("ä")),
            (json!({ "type": "string", "maxLength": 2 }), json!("ää"), json!("äää")),
            (json!({ "type": "string", "format": "date-time" }), json!("2024-01-01T00:00:00Z"), json!("x")),
            (json!({ "type": "integer", "minimum": 1 }), json!(1), json!(0)),
            (json!({ "type": "integer", "maximum": 1, "exclusiveMaximum": true }), json!(0), json!(1)),
            (json!({ "type": "integer", "multipleOf": 5 }), json!(10), json!(11)),
            (json!({ "type": "integer", "format": "int32" }), json!(1), json!(3_000_000_000_i64)),
            (json!({ "type": "array", "items": { "type": "string" } }), json!(["a"]), json!([1])),
            (json!({ "type": "array", "minItems": 1, "items": { "type": "string" } }), json!(["a"]), json!([])),
            (json!({ "type": "array", "maxItems": 1, "items": { "type": "string" } }), json!([]), json!(["a", "b"])),
            (
                json!({ "type": "array", "x-kubernetes-list-type": "set", "items": { "type": "string" } }),
                json!(["a", "b"]),
                json!(["a", "a"]),
            ),
            (json!({ "type": "object", "required": ["a"] }), json!({ "a": 1 }), json!({})),
            (
                json!({ "type": "object", "additionalProperties": { "type": "string" } }),
                json!({ "a": "b" }),
                json!({ "a": 1 }),
            ),
            (json!({ "x-kubernetes-int-or-string": true }), json!("1"), json!(1.5)),
            (json!({ "type": "integer", "anyOf": [{ "minimum": 5 }, { "maximum": 1 }] }), json!(1), json!(3)),
            (json!({ "type": "integer", "oneOf": [{ "minimum": 1 }, { "minimum": 5 }] }), json!(3), json!(7)),
            (json!({ "type": "integer", "allOf": [{ "minimum": 1 }, { "minimum": 5 }] }), json!(7), json!(3)),
            (json!({ "type": "integer", "not": { "minimum": 5 } }), json!(3), json!(7)),
        ] {
            assert_eq!(errors(schema.clone(), good.clone()), [], "{schema} {good}");
            assert_ne!(errors(schema.clone(), bad.clone()), [], "{schema} {bad}");
        }
    }
}
