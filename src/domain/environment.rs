//! What an engine announces of its environment (`envs.status`).

use serde_json::{Map, Value};

/// The announcement as an object; `None` if the text is not one.
pub fn parse(announcement: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(announcement).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_is_an_object() {
        assert_eq!(Value::from(parse(r#"{"b":1,"a":2}"#).unwrap()).to_string(), r#"{"b":1,"a":2}"#);
        for damaged in ["", "{", "[]", "null"] {
            assert_eq!(parse(damaged), None, "{damaged}");
        }
    }
}
