//! Reading and writing `metadata`, and the rules that hold for it on every kind.

use k8s_openapi::jiff::{Timestamp, fmt::temporal::DateTimePrinter};
use serde_json::{Map, Value};

use super::status::FieldError;

/// A text below `metadata`, empty if it is not there.
pub(crate) fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

/// The object's name.
pub(crate) fn name(object: &Value) -> &str {
    text(object, "name")
}

/// The object's namespace; empty for what lives in none.
pub(crate) fn namespace(object: &Value) -> &str {
    text(object, "namespace")
}

/// The object's uid.
pub(crate) fn uid(object: &Value) -> &str {
    text(object, "uid")
}

/// Whether the object is on its way out, held only by its finalizers.
pub(crate) fn deleting(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

/// The text entries of a map.
fn entries(map: &Value) -> impl Iterator<Item = (&str, &str)> {
    map.as_object().into_iter().flatten().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
}

/// The object's finalizers.
pub(crate) fn finalizers(object: &Value) -> Vec<&str> {
    list(&object["metadata"]["finalizers"]).iter().filter_map(Value::as_str).collect()
}

/// The object's owner references.
pub(crate) fn owners(object: &Value) -> &[Value] {
    list(&object["metadata"]["ownerReferences"])
}

/// The entries of a list; none if it is no list.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The value as a map that can be written to; anything else becomes an empty one.
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
    let metadata = map(map(object).entry("metadata").or_insert(Value::Null));
    match value {
        Some(value) => metadata.insert(field.to_owned(), value),
        None => metadata.shift_remove(field),
    };
}

/// Sets a field of the object itself, or removes it with `None`.
pub(crate) fn set_top(object: &mut Value, field: &str, value: Option<Value>) {
    let object = map(object);
    match value {
        Some(value) => object.insert(field.to_owned(), value),
        None => object.shift_remove(field),
    };
}

/// Adds a finalizer unless it is there.
pub(crate) fn add_finalizer(object: &mut Value, finalizer: &str) {
    let mut all: Vec<Value> = finalizers(object).into_iter().map(Value::from).collect();
    if !all.iter().any(|known| known == finalizer) {
        all.push(finalizer.into());
    }
    set(object, "finalizers", Some(all.into()));
}

/// Removes a finalizer; an empty list goes away as a whole.
pub(crate) fn remove_finalizer(object: &mut Value, finalizer: &str) {
    let left: Vec<Value> =
        finalizers(object).into_iter().filter(|known| *known != finalizer).map(Value::from).collect();
    set(object, "finalizers", (!left.is_empty()).then(|| left.into()));
}

/// The time now, to the second, as `metav1.Time` is written.
pub(crate) fn now() -> String {
    DateTimePrinter::new().precision(Some(0)).timestamp_to_string(&Timestamp::now())
}

/// Five letters and digits that make a generated name unique, from the alphabet that the real server uses
/// (no vowels and no look-alikes: `k8s.io/apimachinery/pkg/util/rand`).
pub(crate) fn random_suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    uuid::Uuid::new_v4()
        .as_bytes()
        .iter()
        .take(5)
        .map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]))
        .collect()
}

/// How the names of a kind are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NameRule {
    /// RFC 1123 subdomain, up to 253 bytes: most kinds.
    Subdomain,
    /// RFC 1123 label, up to 63 bytes: namespaces.
    Label,
    /// Anything that fits into a path: RBAC objects.
    PathSegment,
}

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
    and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
    and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and \
    must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
    validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const QUALIFIED_NAME: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with \
    an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

fn is_label(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = text.as_bytes();
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-')
}

/// Letters, digits, `-`, `_` and `.`, with a letter or digit at both ends.
pub(crate) fn is_qualified(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

impl NameRule {
    /// What is wrong with the name, if anything. Source: `k8s.io/apimachinery/pkg/util/validation`.
    pub(crate) fn check(self, name: &str) -> Vec<String> {
        let (limit, well_formed, rule) = match self {
            Self::Subdomain => (253, name.split('.').all(is_label), SUBDOMAIN),
            Self::Label => (63, is_label(name), LABEL),
            Self::PathSegment => {
                return match name {
                    "." | ".." => vec![format!("may not be '{name}'")],
                    name => ["/", "%"]
                        .iter()
                        .filter(|part| name.contains(**part))
                        .map(|part| format!("may not contain '{part}'"))
                        .collect(),
                };
            }
        };
        let mut wrong = Vec::new();
        if name.len() > limit {
            let unit = if self == Self::Label { "bytes" } else { "characters" };
            wrong.push(format!("must be no more than {limit} {unit}"));
        }
        if !well_formed {
            wrong.push(rule.to_owned());
        }
        wrong
    }
}

/// The longest text that a random suffix is put behind: names that are generated stay below 63 bytes.
pub(crate) fn generated_name(prefix: &str) -> String {
    let end = prefix
        .char_indices()
        .map(|(at, letter)| at + letter.len_utf8())
        .take_while(|end| *end <= 58)
        .last()
        .unwrap_or(0);
    format!("{}{}", &prefix[..end], random_suffix())
}

/// Checks a map of labels that stands at `field`.
pub(crate) fn check_labels(labels: &Value, field: &str, errors: &mut Vec<FieldError>) {
    for (key, value) in entries(labels) {
        check_key(key, field, errors);
        if value.len() > 63 {
            let detail = "must be no more than 63 bytes";
            errors.push(FieldError::invalid(field, &value.into(), detail));
        }
        if !value.is_empty() && !is_qualified(value) {
            errors.push(FieldError::invalid(field, &value.into(), LABEL_VALUE));
        }
    }
}

fn check_key(key: &str, field: &str, errors: &mut Vec<FieldError>) {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let mut wrong = |detail: &str| errors.push(FieldError::invalid(field, &key.into(), detail));
    if let Some(prefix) = prefix {
        for detail in NameRule::Subdomain.check(prefix) {
            wrong(&format!("prefix part {detail}"));
        }
    }
    if name.is_empty() {
        wrong("name part must be non-empty");
    }
    if name.len() > 63 {
        wrong("name part must be no more than 63 bytes");
    }
    if !is_qualified(name) {
        wrong(QUALIFIED_NAME);
    }
}

/// Checks `metadata` as it holds for every kind.
pub(crate) fn check(object: &Value, rule: NameRule) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = name(object);
    if name.is_empty() {
        let detail = "name or generateName is required";
        errors.push(FieldError::required("metadata.name", detail));
    } else {
        for detail in rule.check(name) {
            errors.push(FieldError::invalid("metadata.name", &name.into(), &detail));
        }
    }
    let metadata = &object["metadata"];
    check_labels(&metadata["labels"], "metadata.labels", &mut errors);
    let annotations = &metadata["annotations"];
    let mut size = 0;
    for (key, value) in entries(annotations) {
        check_key(&key.to_lowercase(), "metadata.annotations", &mut errors);
        size += key.len() + value.len();
    }
    if size > 256 * 1024 {
        errors.push(FieldError::too_long("metadata.annotations", 262_144));
    }
    for (index, owner) in owners(object).iter().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().unwrap_or_default().is_empty() {
                let detail = match field {
                    "apiVersion" => "version must not be empty",
                    _ => "must not be empty",
                };
                errors.push(FieldError::invalid(
                    format!("metadata.ownerReferences[{index}].{field}"),
                    &"".into(),
                    detail,
                ));
            }
        }
    }
    for finalizer in finalizers(object) {
        check_key(finalizer, "metadata.finalizers", &mut errors);
    }
    errors
}
