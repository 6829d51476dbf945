//! `labelSelector` and `fieldSelector`.
//!
//! Source: Kubernetes documentation, "Labels and Selectors" and "Field Selectors".

use serde_json::Value;

use super::{meta, registry::Resource, status::ApiError};

/// What a list or a watch is narrowed down to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<FieldRequirement>,
}

/// One condition on labels.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
    Above(String, i64),
    Below(String, i64),
}

/// One condition on a field.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldRequirement {
    path: String,
    value: String,
    equal: bool,
}

impl Selector {
    /// Reads both selectors; `None` and empty ones select everything.
    pub(crate) fn parse(resource: &Resource, labels: Option<&str>, fields: Option<&str>) -> Result<Self, ApiError> {
        let labels = parse_labels(labels.unwrap_or_default())?;
        let fields = parse_fields(fields.unwrap_or_default())?;
        for field in &fields {
            let known = matches!(field.path.as_str(), "metadata.name" | "metadata.namespace")
                || resource.built_in().is_some_and(|built_in| built_in.fields.contains(&field.path.as_str()));
            if !known {
                return Err(ApiError::bad_request(format!("field label not supported: {}", field.path)));
            }
        }
        Ok(Self { labels, fields })
    }

    /// Whether it selects everything.
    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether the object is selected.
    pub(crate) fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.labels.iter().all(|requirement| requirement.holds(labels))
            && self.fields.iter().all(|field| {
                let mut value = object;
                for step in field.path.split('.') {
                    value = &value[step];
                }
                let text = match value {
                    Value::String(text) => text.clone(),
                    Value::Null => String::new(),
                    other => other.to_string(),
                };
                (text == field.value) == field.equal
            })
    }
}

impl Requirement {
    fn holds(&self, labels: &Value) -> bool {
        let value = |key: &String| labels.get(key).and_then(Value::as_str);
        let number = |key| value(key).and_then(|text| text.parse::<i64>().ok());
        let among = |key, values: &[String]| value(key).is_some_and(|value| values.iter().any(|known| known == value));
        match self {
            Self::In(key, values) => among(key, values),
            Self::NotIn(key, values) => !among(key, values),
            Self::Exists(key) => value(key).is_some(),
            Self::Absent(key) => value(key).is_none(),
            Self::Above(key, limit) => number(key).is_some_and(|number| number > *limit),
            Self::Below(key, limit) => number(key).is_some_and(|number| number < *limit),
        }
    }
}

fn parse_fields(text: &str) -> Result<Vec<FieldRequirement>, ApiError> {
    text.split(',')
        .filter(|term| !term.is_empty())
        .map(|term| {
            let (path, value, equal) = if let Some((path, value)) = term.split_once("!=") {
                (path, value, false)
            } else if let Some((path, value)) = term.split_once("==").or(term.split_once('=')) {
                (path, value, true)
            } else {
                return Err(ApiError::bad_request(format!(
                    "unable to parse field selector: invalid selector: '{text}'; can't understand '{term}'"
                )));
            };
            Ok(FieldRequirement { path: path.to_owned(), value: value.to_owned(), equal })
        })
        .collect()
}

fn parse_labels(text: &str) -> Result<Vec<Requirement>, ApiError> {
    let failed = |what: &str| ApiError::bad_request(format!("unable to parse requirement: {what}"));
    split_outside_parentheses(text)
        .into_iter()
        .map(|term| parse_requirement(term).ok_or_else(|| failed(&format!("found '{term}'"))))
        .collect()
}

/// Splits at the commas that separate conditions, not at those between the values of one.
fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let mut depth = 0;
    text.split(|letter| {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        letter == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|term| !term.is_empty())
    .collect()
}

fn parse_requirement(term: &str) -> Option<Requirement> {
    let key = |text: &str| {
        let text = text.trim();
        let name = text.rsplit('/').next().unwrap_or_default();
        meta::is_qualified(name).then(|| text.to_owned())
    };
    let value = |text: &str| {
        let text = text.trim();
        (text.is_empty() || meta::is_qualified(text)).then(|| text.to_owned())
    };
    if let Some(list) = term.strip_suffix(')') {
        let (head, values) = list.split_once('(')?;
        let values = values.split(',').map(value).collect::<Option<Vec<_>>>()?;
        let mut words = head.split_whitespace();
        let name = key(words.next()?)?;
        return match (words.next()?, words.next()) {
            ("in", None) => Some(Requirement::In(name, values)),
            ("notin", None) => Some(Requirement::NotIn(name, values)),
            _ => None,
        };
    }
    if let Some((name, text)) = term.split_once("!=") {
        return Some(Requirement::NotIn(key(name)?, vec![value(text)?]));
    }
    if let Some((name, text)) = term.split_once("==").or(term.split_once('=')) {
        return Some(Requirement::In(key(name)?, vec![value(text)?]));
    }
    if let Some((name, limit)) = term.split_once('>') {
        return Some(Requirement::Above(key(name)?, limit.trim().parse().ok()?));
    }
    if let Some((name, limit)) = term.split_once('<') {
        return Some(Requirement::Below(key(name)?, limit.trim().parse().ok()?));
    }
    match term.strip_prefix('!') {
        Some(name) => Some(Requirement::Absent(key(name)?)),
        None => Some(Requirement::Exists(key(term)?)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn selects(selector: &str, labels: Value) -> bool {
        let labels = json!({ "metadata": { "labels": labels } });
        Selector { labels: parse_labels(selector).unwrap(), fields: Vec::new() }.matches(&labels)
    }

    #[test]
    fn every_form_of_a_label_requirement() {
        let labels = json!({ "app": "x", "tier": "y", "number": "5" });
        for (selector, expected) in [
            ("app=x", true),
            ("app==x,tier=y", true),
            ("app=x,tier=z", false),
            ("app!=x", false),
            ("none!=x", true),
            ("app in (w, x),tier", true),
            ("app notin (w,x)", false),
            ("none notin (w)", true),
            ("app", true),
            ("none", false),
            ("!none", true),
            ("!app", false),
            ("number>4,number<6", true),
            ("number>5", false),
            ("app<5", false),
            ("", true),
        ] {
            assert_eq!(selects(selector, labels.clone()), expected, "{selector}");
        }
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for selector in ["a in", "a in x", "in (x", "a b", "=x", "a=x y", "a within (x)", "-a", "a=b/c", "a>b"] {
            assert!(parse_labels(selector).is_err(), "{selector}");
        }
    }
}
