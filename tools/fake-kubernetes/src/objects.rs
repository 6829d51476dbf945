//! Reading and writing an object's metadata.

use k8s_openapi::jiff::Timestamp;
use k8s_openapi::jiff::fmt::temporal::DateTimePrinter;
use serde_json::{Map, Value, json};

/// A text below `metadata`; empty if there is none.
pub(crate) fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

pub(crate) fn name(object: &Value) -> &str {
    text(object, "name")
}

/// The object's namespace; empty for objects outside namespaces.
pub(crate) fn namespace(object: &Value) -> &str {
    text(object, "namespace")
}

pub(crate) fn uid(object: &Value) -> &str {
    text(object, "uid")
}

/// Whether the object is deleted and only waits for its finalizers.
pub(crate) fn deleting(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

pub(crate) fn finalizers(object: &Value) -> Vec<&str> {
    list(&object["metadata"]["finalizers"]).iter().filter_map(Value::as_str).collect()
}

pub(crate) fn owners(object: &Value) -> &[Value] {
    list(&object["metadata"]["ownerReferences"])
}

/// The entries of a list; none if the value is no list.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Whether the object has the condition with status True.
pub(crate) fn has_condition(object: &Value, kind: &str) -> bool {
    list(&object["status"]["conditions"])
        .iter()
        .any(|condition| condition["type"] == kind && condition["status"] == "True")
}

/// The value as a map. Anything else becomes an empty one.
pub(crate) fn map(value: &mut Value) -> &mut Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => {
            *other = Value::Object(Map::new());
            map(other)
        }
    }
}

/// Sets a field below `metadata`, or removes it with `None`.
pub(crate) fn set(object: &mut Value, field: &str, value: Option<Value>) {
    set_top(map(object).entry("metadata").or_insert(Value::Null), field, value);
}

/// Sets a field of the object itself, or removes it with `None`.
pub(crate) fn set_top(object: &mut Value, field: &str, value: Option<Value>) {
    match value {
        Some(value) => map(object).insert(field.to_owned(), value),
        None => map(object).shift_remove(field),
    };
}

pub(crate) fn add_finalizer(object: &mut Value, finalizer: &str) {
    if !finalizers(object).contains(&finalizer) {
        let all: Vec<&str> = finalizers(object).into_iter().chain([finalizer]).collect();
        let all = json!(all);
        set(object, "finalizers", Some(all));
    }
}

pub(crate) fn remove_finalizer(object: &mut Value, finalizer: &str) {
    let left: Vec<&str> = finalizers(object).into_iter().filter(|known| *known != finalizer).collect();
    let left = (!left.is_empty()).then(|| json!(left));
    set(object, "finalizers", left);
}

/// The time now in whole seconds, as `metav1.Time` is written.
pub(crate) fn now() -> String {
    DateTimePrinter::new().precision(Some(0)).timestamp_to_string(&Timestamp::now())
}

/// A name for an object with `generateName`: the prefix, cut so that the name is a label, and five letters or digits
/// of the real server's alphabet (`k8s.io/apimachinery/pkg/util/rand`).
pub(crate) fn generated_name(prefix: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let random = uuid::Uuid::new_v4();
    let suffix = random.as_bytes().iter().take(5).map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]));
    prefix.chars().take(58).chain(suffix).collect()
}
