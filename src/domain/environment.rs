//! What an engine announces of its environment (`envs.status`).

use serde_json::{Map, Value};

/// The announcement as an object; `None` if the text is not one.
pub fn parse(announcement: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(announcement).ok()
}
