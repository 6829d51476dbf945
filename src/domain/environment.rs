//! What an engine announces of its environment (`envs.status`).

use serde_json::{Map, Value};

use super::ChainId;

/// Returns whether an announcement accepts jobs of a chain: its `allowedChainId` is absent, empty, not a list, or
/// contains the chain.
///
/// An announcement that is not a JSON object accepts every job, as one without the list does.
pub fn allows_chain(announcement: &str, chain_id: Option<&ChainId>) -> bool {
    parse(announcement).is_none_or(|announcement| object_allows_chain(&announcement, chain_id))
}

/// As [`allows_chain`], of a parsed announcement.
pub fn object_allows_chain(announcement: &Map<String, Value>, chain_id: Option<&ChainId>) -> bool {
    let Some(allowed) = announcement.get("allowedChainId").and_then(Value::as_array) else {
        return true;
    };
    allowed.is_empty() || chain_id.is_some_and(|chain| allowed.iter().any(|allowed| chain.matches(allowed)))
}

/// The announcement as an object; `None` if the text is not one.
pub fn parse(announcement: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(announcement).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_compare_by_value() {
        let chain = |text| ChainId::parse(text, false);
        let both = r#"{"allowedChainId": [1, "137"]}"#;
        assert!(allows_chain(both, chain("1").as_ref()));
        assert!(allows_chain(both, chain("137").as_ref()));
        assert!(!allows_chain(both, chain("13").as_ref()));
        assert!(!allows_chain(both, None));
        for open in [r#"{"allowedChainId": []}"#, "{}", r#"{"allowedChainId": null}"#, "damaged"] {
            assert!(allows_chain(open, chain("5").as_ref()), "{open}");
            assert!(allows_chain(open, None), "{open}");
        }
    }
}
