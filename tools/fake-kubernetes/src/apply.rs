//! Server-side apply, as far as one manager per field goes: what a manager applied once and leaves out
//! the next time is taken away. Conflicts between managers are not looked for; lists are owned as a whole.
//!
//! Source: Kubernetes documentation, "Server-Side Apply".

use serde_json::{Map, Value, json};

use super::meta;

/// The object after `applied` was merged into it by `manager`: removes what the manager no longer sets, and
/// notes what it sets now.
pub(crate) fn settle(merged: &mut Value, applied: &Value, manager: &str, api_version: &str) {
    let now = fields(applied, true);
    let mut entries = meta::list(&merged["metadata"]["managedFields"]).to_vec();
    let is_ours = |entry: &Value| entry["manager"] == manager && entry["operation"] == "Apply";
    let before = entries.iter().find(|entry| is_ours(entry)).cloned();
    entries.retain(|entry| !is_ours(entry));
    if let Some(before) = before {
        let kept: Vec<&Value> = entries.iter().map(|entry| &entry["fieldsV1"]).chain([&now]).collect();
        remove(merged, &before["fieldsV1"], &kept);
    }
    entries.push(json!({
        "manager": manager,
        "operation": "Apply",
        "apiVersion": api_version,
        "time": meta::now(),
        "fieldsType": "FieldsV1",
        "fieldsV1": now,
    }));
    meta::set(merged, "managedFields", Some(entries.into()));
}

/// The fields that a configuration sets, as `FieldsV1` writes them. What every object has is left out.
fn fields(value: &Value, top: bool) -> Value {
    let implied = |field: &str| top && ["apiVersion", "kind"].contains(&field);
    let identity = |field: &str| ["name", "namespace", "resourceVersion", "uid", "managedFields"].contains(&field);
    let set: Map<String, Value> = value
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(field, _)| !implied(field))
        .map(|(field, value)| {
            let mut nested = fields(value, false);
            if top && field == "metadata" {
                meta::map(&mut nested).retain(|field, _| !identity(field.trim_start_matches("f:")));
            }
            (format!("f:{field}"), nested)
        })
        .collect();
    set.into()
}

/// Removes the fields in `owned` that nobody in `kept` has.
fn remove(value: &mut Value, owned: &Value, kept: &[&Value]) {
    let (Value::Object(map), Some(owned)) = (value, owned.as_object()) else {
        return;
    };
    for (field, nested) in owned {
        let still: Vec<&Value> = kept.iter().filter_map(|kept| kept.get(field)).collect();
        let name = field.trim_start_matches("f:");
        if still.is_empty() {
            map.shift_remove(name);
        } else if let Some(value) = map.get_mut(name) {
            remove(value, nested, &still);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_longer_applied_goes_unless_another_manager_has_it() {
        let mut live =
            json!({ "metadata": { "name": "n", "labels": { "a": "1", "b": "2" } }, "spec": { "x": 1, "y": 2 } });
        settle(
            &mut live,
            &json!({ "metadata": { "name": "n", "labels": { "a": "1" } }, "spec": { "x": 1 } }),
            "one",
            "v1",
        );
        settle(
            &mut live,
            &json!({ "metadata": { "name": "n", "labels": { "b": "2" } }, "spec": { "x": 1 } }),
            "two",
            "v1",
        );
        settle(&mut live, &json!({ "metadata": { "name": "n" }, "spec": { "z": 3 } }), "one", "v1");
        assert_eq!(live["metadata"]["labels"], json!({ "b": "2" }));
        assert_eq!(live["metadata"]["name"], "n");
        assert_eq!(live["spec"], json!({ "x": 1, "y": 2 }));
        assert_eq!(live["metadata"]["managedFields"].as_array().unwrap().len(), 2);
    }
}
