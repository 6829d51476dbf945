//! The four ways of saying what should change.
//!
//! Source: Kubernetes documentation, "Update API Objects in Place Using kubectl patch"; RFC 6902, RFC 7386.

use serde_json::{Map, Value};

use super::{
    meta,
    registry::{Form, Resource},
    status::ApiError,
};

/// A patch's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl Format {
    /// The format that a media type stands for. Custom resources have no strategic merge: nobody told the
    /// server how their lists are to be merged.
    pub(crate) fn of(media_type: &str, resource: &Resource) -> Result<Self, ApiError> {
        let built_in = matches!(resource.form, Form::BuiltIn(_));
        match media_type {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" if built_in => Ok(Self::Strategic),
            "application/apply-patch+yaml" => Ok(Self::Apply),
            _ => {
                let mut accepted = vec!["application/json-patch+json", "application/merge-patch+json"];
                if built_in {
                    accepted.push("application/strategic-merge-patch+json");
                }
                accepted.push("application/apply-patch+yaml");
                Err(ApiError::unsupported_media_type(&accepted))
            }
        }
    }

    /// The object with the patch applied to it. Server-side apply is merged like this too; what it takes
    /// away is [`super::apply`]'s business.
    pub(crate) fn patch(self, object: &Value, patch: &Value) -> Result<Value, ApiError> {
        let mut object = object.clone();
        match self {
            Self::Json => {
                let patch: json_patch::Patch = serde_json::from_value(patch.clone())
                    .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
                json_patch::patch(&mut object, &patch).map_err(|_| ApiError::unprocessable())?;
            }
            _ if !patch.is_object() => {
                return Err(ApiError::bad_request("error decoding patch: it must be a JSON object"));
            }
            Self::Merge => json_patch::merge(&mut object, patch),
            Self::Strategic | Self::Apply => merge_map(meta::map(&mut object), patch),
        }
        Ok(object)
    }
}

/// Lists whose entries are told apart by one of their fields (`patchMergeKey` in the API's Go types).
const MERGE_KEYS: [(&str, &str); 14] = [
    ("conditions", "type"),
    ("containers", "name"),
    ("env", "name"),
    ("ephemeralContainers", "name"),
    ("hostAliases", "ip"),
    ("imagePullSecrets", "name"),
    ("initContainers", "name"),
    ("ownerReferences", "uid"),
    ("ports", "containerPort"),
    ("secrets", "name"),
    ("topologySpreadConstraints", "topologyKey"),
    ("volumeDevices", "devicePath"),
    ("volumeMounts", "mountPath"),
    ("volumes", "name"),
];

/// Lists of plain values that are merged as sets.
const SETS: [&str; 1] = ["finalizers"];

fn merge_map(target: &mut Map<String, Value>, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        return;
    };
    if patch.get("$patch").is_some_and(|directive| directive == "replace") {
        target.clear();
    }
    for (field, value) in patch {
        if field == "$patch" || field.starts_with("$setElementOrder/") {
            continue;
        }
        if field == "$retainKeys" {
            target.retain(|known, _| meta::list(value).iter().any(|kept| kept == known));
            continue;
        }
        if let Some(field) = field.strip_prefix("$deleteFromPrimitiveList/") {
            if let Some(Value::Array(list)) = target.get_mut(field) {
                list.retain(|entry| !meta::list(value).contains(entry));
            }
            continue;
        }
        match value {
            Value::Null => {
                target.shift_remove(field);
            }
            Value::Object(nested) if nested.get("$patch").is_some_and(|what| what == "delete") => {
                target.shift_remove(field);
            }
            Value::Object(_) => {
                let entry = target.entry(field.clone()).or_insert(Value::Null);
                merge_map(meta::map(entry), value);
            }
            Value::Array(entries) => merge_list(target, field, entries),
            value => {
                target.insert(field.clone(), value.clone());
            }
        }
    }
}

fn merge_list(target: &mut Map<String, Value>, field: &str, entries: &[Value]) {
    let replace = entries.iter().any(|entry| entry.get("$patch").is_some_and(|what| what == "replace"));
    let key = MERGE_KEYS
        .iter()
        .find(|(list, _)| *list == field)
        .map(|(_, key)| *key)
        .filter(|key| !replace && entries.iter().all(|entry| entry.get(key).is_some()));
    let list = target.entry(field.to_owned()).or_insert_with(|| Value::Array(Vec::new()));
    let Value::Array(list) = list else {
        *list = entries.to_vec().into();
        return;
    };
    if let Some(key) = key {
        for entry in entries {
            let known = list.iter().position(|known| known.get(key) == entry.get(key));
            let delete = entry.get("$patch").is_some_and(|what| what == "delete");
            match known {
                Some(at) if delete => {
                    list.remove(at);
                }
                Some(at) => merge_map(meta::map(&mut list[at]), entry),
                None if delete => {}
                None => {
                    let mut added = Map::new();
                    merge_map(&mut added, entry);
                    list.push(added.into());
                }
            }
        }
    } else if SETS.contains(&field) {
        for entry in entries {
            if !list.contains(entry) {
                list.push(entry.clone());
            }
        }
    } else {
        *list = entries.iter().filter(|entry| entry.get("$patch").is_none()).cloned().collect();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn strategic_merge_knows_lists_by_their_keys() {
        let object = json!({ "spec": {
            "containers": [{ "name": "a", "image": "1", "env": [{ "name": "X", "value": "1" }] }, { "name": "b" }],
            "args": ["1", "2"],
            "strategy": { "type": "old", "old": {} },
        }, "metadata": { "finalizers": ["f"] } });
        let patch = json!({ "spec": {
            "$setElementOrder/containers": [{ "name": "c" }, { "name": "a" }],
            "containers": [
                { "name": "a", "env": [{ "name": "Y", "value": "2" }] },
                { "name": "b", "$patch": "delete" },
                { "name": "c", "image": "3" },
            ],
            "args": ["3"],
            "strategy": { "$retainKeys": ["type"], "type": "new" },
        }, "metadata": { "finalizers": ["g"] } });
        let merged = Format::Strategic.patch(&object, &patch).unwrap();
        assert_eq!(
            merged,
            json!({ "spec": {
                "containers": [
                    { "name": "a", "image": "1", "env": [{ "name": "X", "value": "1" }, { "name": "Y", "value": "2" }] },
                    { "name": "c", "image": "3" },
                ],
                "args": ["3"],
                "strategy": { "type": "new" },
            }, "metadata": { "finalizers": ["f", "g"] } })
        );
    }
}
