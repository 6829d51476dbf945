//! The outputs that a job has published (`jobs.outputsurl`; docs/contract/engine.md, "Database").

use serde_json::Value;

/// The job's outputs, in the order of their indices; `None` if there are none or the text is damaged.
pub fn parse(outputs: &str) -> Option<Vec<Value>> {
    serde_json::from_str(outputs).ok().filter(|outputs: &Vec<Value>| !outputs.is_empty())
}

/// The outputs as callers may see them: without their `url`. An entry that is not an object becomes null, and keeps its
/// index.
pub fn without_urls(outputs: Vec<Value>) -> Vec<Value> {
    outputs
        .into_iter()
        .map(|output| match output {
            Value::Object(mut output) => {
                output.shift_remove("url");
                Value::Object(output)
            }
            _ => Value::Null,
        })
        .collect()
}

/// The URL of one output; `None` if there is no such output or it has no URL.
pub fn url(outputs: &[Value], index: usize) -> Option<&str> {
    url_of(outputs.get(index)?)
}

/// The URL of an output, if it has one.
pub fn url_of(output: &Value) -> Option<&str> {
    output.get("url")?.as_str()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn outputs_have_urls_which_are_not_shown() {
        for none in ["", "[]", "{}", "[", "null"] {
            assert_eq!(parse(none), None, "{none}");
        }
        let outputs = parse(r#"[{"filename":"a","url":"https://a"},{"filename":"b"},7,{"url":8}]"#).unwrap();
        let urls: Vec<_> = (0..5).map(|index| url(&outputs, index)).collect();
        assert_eq!(urls, [Some("https://a"), None, None, None, None]);
        let shown = [json!({ "filename": "a" }), json!({ "filename": "b" }), Value::Null, json!({})];
        assert_eq!(without_urls(outputs), shown);
    }
}
