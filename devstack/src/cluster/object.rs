//! What happens to an object on its way in: reading it, giving it what it lacks, refusing what is wrong.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::{
    call::Call,
    meta::{self, NameRule},
    registry::{Form, Resource},
    schema::below,
    status::{ApiError, FieldError},
};

/// An object as it was sent, after reading.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) object: Value,
    /// Fields that nobody knows, and that are gone now.
    pub(crate) unknown: Vec<String>,
}

/// Reads an object: its kind must be the resource's, its fields of the right types. Unknown fields are
/// dropped, as the real server drops them; `metadata` has no others than `ObjectMeta`'s on any kind.
pub(crate) fn decode(resource: &Resource, mut body: Value) -> Result<Decoded, String> {
    let expected = [
        ("apiVersion", resource.api_version()),
        ("kind", resource.kind.clone()),
    ];
    if !body.is_object() {
        return Err("json: cannot unmarshal into Go value: it must be an object".to_owned());
    }
    for (field, expected) in expected {
        match body.get(field).and_then(Value::as_str) {
            None | Some("") => meta::set_top(&mut body, field, Some(expected.into())),
            Some(found) if found == expected => {}
            Some(found) => {
                return Err(format!("{field} is {found:?}, but {expected:?} is expected here"));
            }
        }
    }
    let mut unknown = Vec::new();
    let object = match &resource.form {
        Form::BuiltIn(built_in) => {
            let object = (built_in.decode)(body.clone())?;
            unknown_fields(&body, &object, "", &mut unknown);
            object
        }
        Form::Custom(schema) => {
            let sent = body["metadata"].take();
            let metadata: Option<ObjectMeta> = serde_json::from_value(sent.clone())
                .map_err(|error| format!("unable to decode metadata: {error}"))?;
            let metadata = json!(metadata.unwrap_or_default());
            unknown_fields(&sent, &metadata, "metadata", &mut unknown);
            body["metadata"] = metadata;
            unknown.extend(schema.prune(&mut body));
            schema.default(&mut body);
            body
        }
    };
    Ok(Decoded { object, unknown })
}

/// The fields of `sent` that reading it did not keep.
fn unknown_fields(sent: &Value, kept: &Value, path: &str, unknown: &mut Vec<String>) {
    match (sent, kept) {
        (Value::Object(sent), Value::Object(kept)) => {
            for (field, value) in sent.iter().filter(|(_, value)| !value.is_null()) {
                let path = below(path, field);
                match kept.get(field) {
                    Some(kept) => unknown_fields(value, kept, &path, unknown),
                    None => unknown.push(path),
                }
            }
        }
        (Value::Array(sent), Value::Array(kept)) => {
            for (index, (sent, kept)) in sent.iter().zip(kept).enumerate() {
                unknown_fields(sent, kept, &format!("{path}[{index}]"), unknown);
            }
        }
        _ => {}
    }
}

/// What the caller wants to hear about unknown fields: `fieldValidation` is Strict, Warn (the default) or Ignore.
/// Returns warnings.
///
/// Source: Kubernetes API concepts, "Field validation".
pub(crate) fn field_validation(call: &Call, unknown: &[String]) -> Result<Vec<String>, String> {
    let texts: Vec<String> = unknown
        .iter()
        .map(|field| format!("unknown field \"{field}\""))
        .collect();
    match call.get("fieldValidation") {
        Some("Ignore") => Ok(Vec::new()),
        Some("Strict") if !texts.is_empty() => {
            Err(format!("strict decoding error: {}", texts.join(", ")))
        }
        _ => Ok(texts),
    }
}

/// The refusal of a body that can't be read as the resource's kind.
pub(crate) fn undecodable(resource: &Resource, why: &str) -> ApiError {
    ApiError::bad_request(format!(
        "{kind} in version \"{}\" cannot be handled as a {kind}: {why}",
        resource.version,
        kind = resource.kind
    ))
}

/// Fills in what the rules of the kind say; the old object on an update.
pub(crate) fn prepare(resource: &Resource, object: &mut Value, old: Option<&Value>) {
    if let Some(built_in) = resource.built_in() {
        (built_in.prepare)(object, old);
    }
}

/// Refuses what breaks the rules of the kind; the old object on an update.
pub(crate) fn validate(
    resource: &Resource,
    object: &Value,
    old: Option<&Value>,
) -> Result<(), ApiError> {
    let rule = resource
        .built_in()
        .map_or(NameRule::Subdomain, |built_in| built_in.names);
    let mut errors = meta::check(object, rule);
    if let Some(old) = old.filter(|old| meta::deleting(old)) {
        let known = meta::finalizers(old);
        let added: Vec<String> = meta::finalizers(object)
            .into_iter()
            .filter(|finalizer| !known.contains(finalizer))
            .map(|finalizer| format!("{finalizer:?}"))
            .collect();
        if !added.is_empty() {
            errors.push(FieldError::forbidden(
                "metadata.finalizers",
                &format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    added.join(", ")
                ),
            ));
        }
    }
    match &resource.form {
        Form::BuiltIn(built_in) => (built_in.validate)(object, old, &mut errors),
        Form::Custom(schema) => errors.extend(schema.validate(object)),
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(ApiError::invalid(resource, meta::name(object), &errors))
    }
}

/// Whether changes of the resource's spec are counted.
pub(crate) fn counts_generations(resource: &Resource) -> bool {
    resource
        .built_in()
        .is_none_or(|built_in| built_in.generation)
}

/// Whether something changed that `metadata.generation` counts: neither metadata nor, where that has a
/// door of its own, status.
pub(crate) fn spec_changed(resource: &Resource, old: &Value, new: &Value) -> bool {
    let counted = |object: &Value| {
        let mut object = object.clone();
        meta::set_top(&mut object, "metadata", None);
        if resource.status {
            meta::set_top(&mut object, "status", None);
        }
        object
    };
    counted(old) != counted(new)
}
