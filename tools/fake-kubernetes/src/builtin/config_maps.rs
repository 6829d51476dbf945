//! ConfigMaps and Secrets.

use serde_json::Value;

use crate::{meta, status::FieldError};

/// All keys and values together. Source: Kubernetes documentation, "ConfigMaps".
const LIMIT: u64 = 1024 * 1024;

const KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or \
    'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

/// The type of a Secret is `Opaque` unless it says otherwise, and what is in `stringData` goes to `data`.
pub(super) fn prepare_secret(secret: &mut Value, _: Option<&Value>) {
    let secret = meta::map(secret);
    secret.entry("type").or_insert_with(|| "Opaque".into());
    if let Some(Value::Object(texts)) = secret.shift_remove("stringData") {
        let data = meta::map(secret.entry("data").or_insert(Value::Null));
        for (key, text) in texts {
            let text = text.as_str().unwrap_or_default().to_owned();
            let encoded = k8s_openapi::ByteString(text.into_bytes());
            if let Ok(encoded) = serde_json::to_value(encoded) {
                data.insert(key, encoded);
            }
        }
    }
}

/// Keys are file names, the whole is no larger than 1 MiB, and what is immutable stays.
pub(super) fn validate(object: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let mut size = 0;
    for field in ["data", "binaryData"] {
        for (key, value) in object[field].as_object().into_iter().flatten() {
            let well_formed =
                !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
            if !well_formed {
                let at = format!("{field}[{key}]");
                errors.push(FieldError::invalid(at, &key.as_str().into(), KEY));
            }
            size += value.as_str().unwrap_or_default().len() as u64;
        }
    }
    if size > LIMIT {
        errors.push(FieldError::too_long("[]", LIMIT));
    }
    let Some(old) = old.filter(|old| old["immutable"] == true) else {
        return;
    };
    for field in ["immutable", "data", "binaryData"] {
        if object[field] != old[field] {
            let detail = "field is immutable when `immutable` is set";
            errors.push(FieldError::forbidden(field, detail));
        }
    }
}
