//! Checking the metadata that a caller sends.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value, json};

use crate::resources::Resource;
use crate::status::ApiError;
use crate::{labels, objects};

/// Drops what `ObjectMeta` does not have, and empty maps and lists.
pub(crate) fn prune_metadata(object: &mut Value) -> Result<(), ApiError> {
    let metadata: ObjectMeta = serde_json::from_value(object["metadata"].take())
        .map_err(|error| ApiError::bad_request(format!("metadata: {error}")))?;
    let mut metadata = json!(metadata);
    objects::map(&mut metadata).retain(|_, value| match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => true,
    });
    objects::set_top(object, "metadata", Some(metadata));
    Ok(())
}

/// Checks name and labels.
pub(crate) fn check(resource: &Resource, object: &Value) -> Result<(), ApiError> {
    let name = objects::name(object);
    let invalid = |field: &str, why: &str| Err(ApiError::invalid(resource, name, field, why));
    if name.is_empty() {
        return invalid("metadata.name", "Required value: name or generateName is required");
    }
    if name.len() > 253 || !name.split('.').all(is_dns_label) {
        return invalid("metadata.name", "Invalid value: must be a lowercase RFC 1123 subdomain");
    }
    for value in object["metadata"]["labels"].as_object().into_iter().flat_map(Map::values) {
        let value = value.as_str().unwrap_or_default();
        if value.len() > 63 || !(value.is_empty() || labels::is_qualified(value)) {
            return invalid("metadata.labels", &format!("Invalid value: {value:?}: must be a valid label"));
        }
    }
    Ok(())
}

/// Whether the text is a label of RFC 1123, in lower case.
fn is_dns_label(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(allowed) && !text.starts_with('-') && !text.ends_with('-')
}
