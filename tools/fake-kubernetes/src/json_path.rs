//! The part of JSONPath that printer columns use: fields, quoted fields, indexes, `[*]` and `[?(@.a=="b")]`.

use serde_json::Value;

/// A parsed path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JsonPath(Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    Where(JsonPath, String),
}

impl JsonPath {
    /// Reads a path; what can't be read finds nothing.
    pub(crate) fn parse(text: &str) -> Self {
        let mut steps = Vec::new();
        let mut rest = text.trim().trim_start_matches('$');
        while !rest.is_empty() {
            let (step, left) = if let Some(inside) = rest.strip_prefix('[') {
                let (inside, left) = bracket(inside);
                (Self::bracketed(inside), left)
            } else {
                let (name, left) = field(rest.strip_prefix('.').unwrap_or(rest));
                (Some(Step::Field(name)), left)
            };
            steps.push(step.unwrap_or(Step::Where(Self(Vec::new()), String::new())));
            rest = left;
        }
        Self(steps)
    }

    fn bracketed(inside: &str) -> Option<Step> {
        if inside == "*" {
            return Some(Step::All);
        }
        if let Some(condition) = inside.strip_prefix("?(@") {
            let (path, value) = condition.strip_suffix(')')?.split_once("==")?;
            let value = value.trim().trim_matches(['"', '\'']);
            return Some(Step::Where(Self::parse(path), value.to_owned()));
        }
        match inside.trim_matches(['"', '\'']) {
            name if name.len() < inside.len() => Some(Step::Field(name.to_owned())),
            number => number.parse().ok().map(Step::Index),
        }
    }

    /// Everything that the path leads to.
    pub(crate) fn find<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![value];
        for step in &self.0 {
            found = found.into_iter().flat_map(|value| step.take(value)).collect();
        }
        found.retain(|value| !value.is_null());
        found
    }
}

impl Step {
    fn take<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        match (self, value) {
            (Self::Field(name), Value::Object(map)) => map.get(name).into_iter().collect(),
            (Self::Index(index), Value::Array(list)) => {
                let at = if *index < 0 {
                    list.len().checked_sub(index.unsigned_abs() as usize)
                } else {
                    usize::try_from(*index).ok()
                };
                at.and_then(|at| list.get(at)).into_iter().collect()
            }
            (Self::All, Value::Array(list)) => list.iter().collect(),
            (Self::All, Value::Object(map)) => map.values().collect(),
            (Self::Where(path, wanted), Value::Array(list)) => list
                .iter()
                .filter(|entry| {
                    path.find(entry).first().is_some_and(|found| match found {
                        Value::String(text) => text == wanted,
                        other => other.to_string() == *wanted,
                    })
                })
                .collect(),
            _ => Vec::new(),
        }
    }
}

/// What stands before the closing bracket, and what comes after it.
fn bracket(text: &str) -> (&str, &str) {
    let mut quote = None;
    for (at, letter) in text.char_indices() {
        match (quote, letter) {
            (None, ']') => return (&text[..at], &text[at + 1..]),
            (None, '"' | '\'') => quote = Some(letter),
            (Some(open), letter) if open == letter => quote = None,
            _ => {}
        }
    }
    (text, "")
}

/// A field's name, in which a dot may be escaped, and what comes after it.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => name.extend(letters.next().map(|(_, letter)| letter)),
            '.' | '[' => return (name, &text[at..]),
            letter => name.push(letter),
        }
    }
    (name, "")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_paths_that_printer_columns_use() {
        let object = json!({
            "metadata": { "labels": { "a.b/c": "label" } },
            "status": {
                "list": [1, 2, 3],
                "conditions": [
                    { "type": "Ready", "status": "True" },
                    { "type": "Other", "status": "False" },
                ],
            },
        });
        for (path, found) in [
            (".status.list[0]", json!([1])),
            (".status.list[-1]", json!([3])),
            (".status.list[*]", json!([1, 2, 3])),
            (".metadata.labels.a\\.b/c", json!(["label"])),
            (".metadata.labels['a.b/c']", json!(["label"])),
            (r#".status.conditions[?(@.type=="Ready")].status"#, json!(["True"])),
            (".status.missing.deeper", json!([])),
            (".status.list[x]", json!([])),
        ] {
            let values = JsonPath::parse(path).find(&object);
            assert_eq!(json!(values), found, "{path}");
        }
    }
}
