//! What an engine announces of its environment (`envs.status`).

use serde_json::{Map, Value};

/// Whether an announcement lets jobs of a chain in: its `allowedChainId` is absent, empty, no list, or holds
/// the chain, compared by value whether either side wrote it as a number or as text.
///
/// An announcement that is no JSON object lets in everybody, as one without the list does.
pub fn allows_chain(announcement: &str, chain_id: Option<&str>) -> bool {
    match parse(announcement) {
        Some(announcement) => object_allows_chain(&announcement, chain_id),
        None => true,
    }
}

/// As [`allows_chain`], of an announcement that has been read.
pub fn object_allows_chain(announcement: &Map<String, Value>, chain_id: Option<&str>) -> bool {
    let Some(allowed) = announcement.get("allowedChainId").and_then(Value::as_array) else {
        return true;
    };
    allowed.is_empty()
        || chain_id.is_some_and(|chain| {
            allowed.iter().any(|allowed| match allowed {
                Value::String(allowed) => allowed.trim() == chain.trim(),
                Value::Number(allowed) => allowed.to_string() == chain.trim(),
                _ => false,
            })
        })
}

/// The announcement as an object; `None` if the text is none.
pub fn parse(announcement: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(announcement).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_compare_by_value() {
        let both = r#"{"allowedChainId": [1, "137"]}"#;
        assert!(allows_chain(both, Some("1")));
        assert!(allows_chain(both, Some("137")));
        assert!(!allows_chain(both, Some("13")));
        assert!(!allows_chain(both, None));
        for open in [r#"{"allowedChainId": []}"#, "{}", r#"{"allowedChainId": null}"#, "damaged"] {
            assert!(allows_chain(open, Some("5")), "{open}");
            assert!(allows_chain(open, None), "{open}");
        }
    }
}
