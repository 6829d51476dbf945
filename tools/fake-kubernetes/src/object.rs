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

/// Why an object can't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    /// It does not say what it is.
    #[error("Object '{0}' is missing in '{1}'")]
    Missing(&'static str, String),
    /// It is of another kind.
    #[error("converting ({0}) to ({1}): unknown conversion")]
    Kind(String, String),
    /// It is of another version.
    #[error("the API version in the data ({0}) does not match the expected API version ({1})")]
    Version(String, String),
    /// A field is wrong or unknown.
    #[error("{0}")]
    Field(String),
}

impl Unreadable {
    /// The refusal of a body that is to become an object of the resource.
    pub(crate) fn refuse(&self, resource: &Resource) -> ApiError {
        let kind = &resource.kind;
        match self {
            Self::Missing(_, text) => ApiError::bad_request(format!(
                "the object provided is unrecognized (must be of type {kind}): {self} ({})",
                summary(text.as_bytes())
            )),
            Self::Kind(found, _) if resource.schema().is_some() => {
                let detail = format!("must be {kind}");
                let error = FieldError::invalid("kind", &found.as_str().into(), &detail);
                ApiError::invalid_kind(&resource.group, found, "", &[error])
            }
            Self::Kind(found, _) => ApiError::bad_request(format!(
                "{found} in version \"{}\" cannot be handled as a {kind}: {self}",
                resource.version
            )),
            Self::Version(..) => ApiError::bad_request(self.to_string()),
            Self::Field(_) => ApiError::bad_request(format!(
                "{kind} in version \"{}\" cannot be handled as a {kind}: {self}",
                resource.version
            )),
        }
    }
}

/// The beginning of a body, for messages.
pub(crate) fn summary(body: &[u8]) -> String {
    match body {
        [] => "<empty>".to_owned(),
        body if body.len() > 30 => format!("{} ...", String::from_utf8_lossy(&body[..30])),
        body => String::from_utf8_lossy(body).into_owned(),
    }
}

/// Reads an object: its kind must be the resource's, its fields of the right types. Unknown fields are
/// dropped, as the real server drops them; `metadata` has no others than `ObjectMeta`'s on any kind.
pub(crate) fn decode(resource: &Resource, mut body: Value) -> Result<Decoded, Unreadable> {
    check_type(resource, &mut body)?;
    let mut unknown = Vec::new();
    let mut object = match &resource.form {
        Form::BuiltIn(built_in) => {
            let object = (built_in.decode)(body.clone()).map_err(Unreadable::Field)?;
            unknown_fields(&body, &object, "", &mut unknown);
            object
        }
        Form::Custom(schema) => {
            let sent = body["metadata"].take();
            let metadata: Option<ObjectMeta> = serde_json::from_value(sent.clone())
                .map_err(|error| Unreadable::Field(format!("metadata: {error}")))?;
            let metadata = json!(metadata.unwrap_or_default());
            unknown_fields(&sent, &metadata, "metadata", &mut unknown);
            body["metadata"] = metadata;
            unknown.extend(schema.prune(&mut body));
            schema.default(&mut body);
            body
        }
    };
    drop_empty(&mut object["metadata"]);
    Ok(Decoded { object, unknown })
}

/// An object may only be what its resource holds. Built-in ones need not say it.
fn check_type(resource: &Resource, body: &mut Value) -> Result<(), Unreadable> {
    let implied = resource.built_in().is_some() && body.is_object();
    let text = |field: &str| body[field].as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text("apiVersion"), text("kind"));
    for (field, name, found) in [("kind", "Kind", &kind), ("apiVersion", "apiVersion", &version)] {
        if found.is_empty() && !implied {
            return Err(Unreadable::Missing(name, body.to_string()));
        }
        if found.is_empty() {
            let expected = match field {
                "kind" => resource.kind.clone(),
                _ => resource.api_version(),
            };
            meta::set_top(body, field, Some(expected.into()));
        }
    }
    if !version.is_empty() && version != resource.api_version() {
        return Err(Unreadable::Version(version, resource.api_version()));
    }
    if !kind.is_empty() && kind != resource.kind {
        return Err(Unreadable::Kind(kind, resource.kind.clone()));
    }
    Ok(())
}

/// Metadata does not hold on to empty maps and lists.
fn drop_empty(metadata: &mut Value) {
    meta::map(metadata).retain(|_, value| match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => true,
    });
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
pub(crate) fn field_validation(call: &Call, unknown: &[String]) -> Result<Vec<String>, Unreadable> {
    let texts: Vec<String> = unknown.iter().map(|field| format!("unknown field \"{field}\"")).collect();
    match call.get("fieldValidation") {
        Some("Ignore") => Ok(Vec::new()),
        Some("Strict") if !texts.is_empty() => {
            let why = format!("strict decoding error: {}", texts.join(", "));
            Err(Unreadable::Field(why))
        }
        _ => Ok(texts),
    }
}

/// Fills in what the rules of the kind say; the old object on an update.
pub(crate) fn prepare(resource: &Resource, object: &mut Value, old: Option<&Value>) {
    if let Some(built_in) = resource.built_in() {
        (built_in.prepare)(object, old);
    }
}

/// Refuses what breaks the rules of the kind; the old object on an update.
pub(crate) fn validate(resource: &Resource, object: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    let rule = resource.built_in().map_or(NameRule::Subdomain, |built_in| built_in.names);
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
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid(resource, meta::name(object), &errors)) }
}

/// Whether changes of the resource's spec are counted.
pub(crate) fn counts_generations(resource: &Resource) -> bool {
    resource.built_in().is_none_or(|built_in| built_in.generation)
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
