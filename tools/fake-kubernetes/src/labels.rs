//! `labelSelector`, in the forms that are used here: `a`, `a=b` and `a in (b, c)`.
//!
//! Source: Kubernetes documentation, "Labels and Selectors".

use serde_json::Value;

use crate::status::ApiError;

/// A condition on one label: its values, or just that there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Requirement {
    label: String,
    values: Option<Vec<String>>,
}

/// Whether an object satisfies all requirements.
pub(crate) fn matches(selector: &[Requirement], object: &Value) -> bool {
    selector.iter().all(|Requirement { label, values }| {
        let value = object["metadata"]["labels"].get(label).and_then(Value::as_str);
        value.is_some_and(|value| values.as_ref().is_none_or(|values| values.iter().any(|known| known == value)))
    })
}

/// Parses a selector. An empty one has no requirements.
pub(crate) fn parse(text: &str) -> Result<Vec<Requirement>, ApiError> {
    let mut within = false;
    let terms = text.split(|letter| {
        within = (within || letter == '(') && letter != ')';
        letter == ',' && !within
    });
    terms
        .map(str::trim)
        .filter(|term| !term.is_empty())
        .map(|term| {
            requirement(term).ok_or_else(|| ApiError::bad_request(format!("unable to parse requirement: {term}")))
        })
        .collect()
}

fn requirement(term: &str) -> Option<Requirement> {
    let (label, values) = if let Some(list) = term.strip_suffix(')') {
        let (label, values) = list.split_once(" in (")?;
        (label, Some(values.split(',').map(str::trim).collect::<Vec<_>>()))
    } else if let Some((label, value)) = term.split_once("==").or(term.split_once('=')) {
        (label, Some(vec![value.trim()]))
    } else {
        (term, None)
    };
    let label = label.trim();
    let name = label.rsplit('/').next().unwrap_or_default();
    let valid = |value: &&str| value.is_empty() || is_qualified(value);
    if !is_qualified(name) || !values.iter().flatten().all(valid) {
        return None;
    }
    let values = values.map(|values| values.into_iter().map(str::to_owned).collect());
    Some(Requirement { label: label.to_owned(), values })
}

/// Letters, digits, `-`, `_` and `.`, with a letter or digit at both ends.
pub(crate) fn is_qualified(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_is_selected_by_its_labels() {
        let object = json!({ "metadata": { "labels": { "app": "x", "tier": "y", "a.b/c": "z" } } });
        for selector in ["", "app=x", "app==x,tier=y", "app in (w, x),tier", "a.b/c"] {
            assert!(matches(&parse(selector).unwrap(), &object), "{selector}");
        }
        for selector in ["app=y", "app=x,tier=z", "app in (v,w)", "none", "none=x"] {
            assert!(!matches(&parse(selector).unwrap(), &object), "{selector}");
        }
        for selector in ["a in", "a in x", "in (x", "a b", "=x", "a=x y", "a within (x)", "-a", "a=b/c", "a!=b", "!a"] {
            assert!(parse(selector).is_err(), "{selector}");
        }
    }
}
