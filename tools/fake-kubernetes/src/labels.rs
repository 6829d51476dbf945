//! `labelSelector`.
//!
//! Source: Kubernetes documentation, "Labels and Selectors".

use serde_json::Value;

use crate::objects;
use crate::status::ApiError;

/// A condition on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Requirement {
    label: String,
    condition: Condition,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
}

/// Whether an object satisfies all requirements.
pub(crate) fn matches(selector: &[Requirement], object: &Value) -> bool {
    selector.iter().all(|Requirement { label, condition }| {
        let value = object["metadata"]["labels"].get(label).and_then(Value::as_str);
        let among = |values: &[String]| value.is_some_and(|value| values.iter().any(|known| known == value));
        match condition {
            Condition::In(values) => among(values),
            Condition::NotIn(values) => !among(values),
            Condition::Exists => value.is_some(),
            Condition::Absent => value.is_none(),
        }
    })
}

/// Parses a selector. An empty one has no requirements.
pub(crate) fn parse(text: &str) -> Result<Vec<Requirement>, ApiError> {
    let mut depth = 0;
    let terms = text.split(|letter| {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        letter == ',' && depth == 0
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
    let (label, condition) = if let Some(list) = term.strip_suffix(')') {
        let (head, values) = list.split_once('(')?;
        let (label, operator) = head.trim().split_once(' ')?;
        let values = values.split(',').map(value).collect::<Option<Vec<_>>>()?;
        match operator.trim() {
            "in" => (label, Condition::In(values)),
            "notin" => (label, Condition::NotIn(values)),
            _ => return None,
        }
    } else if let Some((label, text)) = term.split_once("!=") {
        (label, Condition::NotIn(vec![value(text)?]))
    } else if let Some((label, text)) = term.split_once("==").or(term.split_once('=')) {
        (label, Condition::In(vec![value(text)?]))
    } else if let Some(label) = term.strip_prefix('!') {
        (label, Condition::Absent)
    } else {
        (term, Condition::Exists)
    };
    let label = label.trim();
    let name = label.rsplit('/').next().unwrap_or_default();
    objects::is_qualified(name).then(|| Requirement { label: label.to_owned(), condition })
}

fn value(text: &str) -> Option<String> {
    let text = text.trim();
    (text.is_empty() || objects::is_qualified(text)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_form_of_a_requirement() {
        let object = json!({ "metadata": { "labels": { "app": "x", "tier": "y", "a.b/c": "z" } } });
        for (selector, expected) in [
            ("", true),
            ("app=x", true),
            ("app==x,tier=y", true),
            ("app=x,tier=z", false),
            ("app!=x", false),
            ("none!=x", true),
            ("app in (w, x),tier", true),
            ("app notin (w,x)", false),
            ("none notin (w)", true),
            ("a.b/c", true),
            ("none", false),
            ("!none", true),
            ("!app", false),
        ] {
            assert_eq!(matches(&parse(selector).unwrap(), &object), expected, "{selector}");
        }
    }

    #[test]
    fn a_malformed_selector_is_refused() {
        for selector in ["a in", "a in x", "in (x", "a b", "=x", "a=x y", "a within (x)", "-a", "a=b/c", "a>1"] {
            assert!(parse(selector).is_err(), "{selector}");
        }
    }
}
