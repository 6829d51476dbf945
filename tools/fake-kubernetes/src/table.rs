//! Lists as `Table`, which is what `kubectl get` prints.
//!
//! Source: Kubernetes API concepts, "Receiving resources as Tables".

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::{json_path::JsonPath, meta};

/// A column of a resource's table.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    name: String,
    kind: String,
    format: String,
    description: String,
    priority: i64,
    cell: Cell,
}

#[derive(Clone, Debug)]
enum Cell {
    Code(fn(&Value) -> Value),
    Path(JsonPath),
}

/// A column of a built-in resource: name, type, priority, and what stands in it.
pub(crate) type BuiltInColumn = (&'static str, &'static str, i64, fn(&Value) -> Value);

impl Column {
    /// The columns of a built-in resource.
    pub(crate) fn of_built_in(columns: &[BuiltInColumn]) -> Vec<Self> {
        columns
            .iter()
            .map(|(name, kind, priority, code)| Self {
                name: (*name).to_owned(),
                kind: (*kind).to_owned(),
                format: if *name == "Name" { "name" } else { "" }.to_owned(),
                description: String::new(),
                priority: *priority,
                cell: Cell::Code(*code),
            })
            .collect()
    }

    /// The columns of a custom resource: its name, then `additionalPrinterColumns`, or the age if there are none.
    pub(crate) fn of_definition(columns: &Value) -> Vec<Self> {
        let mut all = Self::of_built_in(&NAME_AND_AGE[..1]);
        let columns = meta::list(columns);
        if columns.is_empty() {
            all.extend(Self::of_built_in(&NAME_AND_AGE[1..]));
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        all.extend(columns.iter().map(|column| Self {
            name: text(&column["name"]),
            kind: text(&column["type"]),
            format: text(&column["format"]),
            description: match text(&column["description"]) {
                none if none.is_empty() => {
                    format!("Custom resource definition column (in JSONPath format): {}", text(&column["jsonPath"]))
                }
                description => description,
            },
            priority: column["priority"].as_i64().unwrap_or_default(),
            cell: Cell::Path(JsonPath::parse(&text(&column["jsonPath"]))),
        }));
        all
    }

    fn definition(&self) -> Value {
        json!({
            "name": self.name,
            "type": self.kind,
            "format": self.format,
            "description": self.description,
            "priority": self.priority,
        })
    }

    fn cell(&self, object: &Value) -> Value {
        match &self.cell {
            Cell::Code(code) => code(object),
            Cell::Path(path) => {
                let found = path.find(object);
                match (self.kind.as_str(), found.first()) {
                    ("date", Some(Value::String(time))) => age(time).into(),
                    (_, None) => Value::Null,
                    ("string", Some(_)) => {
                        let texts: Vec<String> = found.into_iter().map(plain).collect();
                        texts.join(",").into()
                    }
                    (_, Some(value)) => (*value).clone(),
                }
            }
        }
    }
}

/// A value as text, without quotes around strings.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// How much of each object a row carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Include {
    None,
    Metadata,
    Object,
}

/// The table of these objects; `metadata` is the list's.
pub(crate) fn render<'a>(
    columns: &[Column],
    objects: impl IntoIterator<Item = &'a Value>,
    include: Include,
    metadata: Value,
) -> Value {
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|object| {
            let cells: Vec<Value> = columns.iter().map(|column| column.cell(object)).collect();
            match include {
                Include::None => json!({ "cells": cells, "object": null }),
                Include::Metadata => json!({ "cells": cells, "object": partial(object) }),
                Include::Object => json!({ "cells": cells, "object": object }),
            }
        })
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": columns.iter().map(Column::definition).collect::<Vec<_>>(),
        "rows": rows,
    })
}

/// An object's `PartialObjectMetadata`.
pub(crate) fn partial(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object["metadata"],
    })
}

/// How long ago that was, as kubectl writes it.
pub(crate) fn age(time: &str) -> String {
    time.parse::<Timestamp>()
        .map_or_else(|_| "<invalid>".to_owned(), |time| human(Timestamp::now().as_second() - time.as_second()))
}

/// Source: `k8s.io/apimachinery/pkg/util/duration.HumanDuration`.
fn human(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let pair = |large: i64, unit: &str, small: i64, rest: &str| {
        if small == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{small}{rest}") }
    };
    match () {
        () if seconds < -1 => "<invalid>".to_owned(),
        () if seconds < 0 => "0s".to_owned(),
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => pair(minutes, "m", seconds % 60, "s"),
        () if hours < 3 => format!("{minutes}m"),
        () if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if days < 8 => pair(days, "d", hours % 24, "h"),
        () if days < 730 => format!("{days}d"),
        () if days < 8 * 365 => pair(days / 365, "y", days % 365, "d"),
        () => format!("{}y", days / 365),
    }
}

const NAME: BuiltInColumn = ("Name", "string", 0, |object| object["metadata"]["name"].clone());
const AGE: BuiltInColumn = ("Age", "string", 0, |object| {
    object["metadata"]["creationTimestamp"].as_str().map_or_else(|| "<unknown>".to_owned(), age).into()
});

/// Kinds that have nothing else to show.
pub(crate) const NAME_AND_AGE: &[BuiltInColumn] = &[NAME, AGE];

/// Kinds that show when they were made.
pub(crate) const CREATED_AT: &[BuiltInColumn] =
    &[NAME, ("Created At", "date", 0, |object| object["metadata"]["creationTimestamp"].clone())];

pub(crate) const NAMESPACES: &[BuiltInColumn] =
    &[NAME, ("Status", "string", 0, |object| object["status"]["phase"].clone()), AGE];

pub(crate) const CONFIG_MAPS: &[BuiltInColumn] =
    &[NAME, ("Data", "string", 0, |object| (size(&object["data"]) + size(&object["binaryData"])).into()), AGE];

pub(crate) const SECRETS: &[BuiltInColumn] = &[
    NAME,
    ("Type", "string", 0, |object| object["type"].clone()),
    ("Data", "string", 0, |object| size(&object["data"]).into()),
    AGE,
];

pub(crate) const SERVICE_ACCOUNTS: &[BuiltInColumn] =
    &[NAME, ("Secrets", "string", 0, |object| meta::list(&object["secrets"]).len().into()), AGE];

pub(crate) const ROLE_BINDINGS: &[BuiltInColumn] = &[
    NAME,
    ("Role", "string", 0, |object| {
        let role = &object["roleRef"];
        format!("{}/{}", plain(&role["kind"]), plain(&role["name"])).into()
    }),
    AGE,
];

pub(crate) const NETWORK_POLICIES: &[BuiltInColumn] = &[
    NAME,
    ("Pod-Selector", "string", 0, |object| label_text(&object["spec"]["podSelector"]["matchLabels"]).into()),
    AGE,
];

pub(crate) const CLAIMS: &[BuiltInColumn] = &[
    NAME,
    ("Status", "string", 0, |object| {
        if meta::deleting(object) { "Terminating".into() } else { object["status"]["phase"].clone() }
    }),
    ("Volume", "string", 0, |object| or_empty(&object["spec"]["volumeName"])),
    ("Capacity", "string", 0, |object| or_empty(&object["status"]["capacity"]["storage"])),
    ("Access Modes", "string", 0, |object| {
        let modes: Vec<&str> = meta::list(&object["status"]["accessModes"])
            .iter()
            .filter_map(Value::as_str)
            .map(|mode| match mode {
                "ReadWriteOnce" => "RWO",
                "ReadOnlyMany" => "ROX",
                "ReadWriteMany" => "RWX",
                "ReadWriteOncePod" => "RWOP",
                other => other,
            })
            .collect();
        modes.join(",").into()
    }),
    ("StorageClass", "string", 0, |object| or_empty(&object["spec"]["storageClassName"])),
    ("VolumeAttributesClass", "string", 0, |_| "<unset>".into()),
    AGE,
    ("VolumeMode", "string", 1, |object| or_empty(&object["spec"]["volumeMode"])),
];

pub(crate) const PODS: &[BuiltInColumn] = &[
    NAME,
    ("Ready", "string", 0, |object| {
        let containers = meta::list(&object["spec"]["containers"]).len();
        let ready =
            meta::list(&object["status"]["containerStatuses"]).iter().filter(|status| status["ready"] == true).count();
        format!("{ready}/{containers}").into()
    }),
    ("Status", "string", 0, |object| pod_status(object).into()),
    ("Restarts", "string", 0, |object| {
        let restarts: i64 = meta::list(&object["status"]["containerStatuses"])
            .iter()
            .filter_map(|status| status["restartCount"].as_i64())
            .sum();
        restarts.to_string().into()
    }),
    AGE,
    ("IP", "string", 1, |object| or_none(&object["status"]["podIP"])),
    ("Node", "string", 1, |object| or_none(&object["spec"]["nodeName"])),
    ("Nominated Node", "string", 1, |object| or_none(&object["status"]["nominatedNodeName"])),
    ("Readiness Gates", "string", 1, |_| "<none>".into()),
];

pub(crate) const JOBS: &[BuiltInColumn] = &[
    NAME,
    ("Status", "string", 0, |object| job_status(object).into()),
    ("Completions", "string", 0, |object| {
        let succeeded = object["status"]["succeeded"].as_i64().unwrap_or_default();
        match object["spec"]["completions"].as_i64() {
            Some(completions) => format!("{succeeded}/{completions}"),
            None => format!("{succeeded}/1"),
        }
        .into()
    }),
    ("Duration", "string", 0, |object| {
        let second = |field: &str| {
            let time = object["status"][field].as_str()?;
            Some(time.parse::<Timestamp>().ok()?.as_second())
        };
        match (second("startTime"), second("completionTime")) {
            (None, _) => String::new(),
            (Some(start), None) => human(Timestamp::now().as_second() - start),
            (Some(start), Some(end)) => human(end - start),
        }
        .into()
    }),
    AGE,
    ("Containers", "string", 1, |object| container_texts(object, "name")),
    ("Images", "string", 1, |object| container_texts(object, "image")),
    ("Selector", "string", 1, |object| label_text(&object["spec"]["selector"]["matchLabels"]).into()),
];

pub(crate) const EVENTS: &[BuiltInColumn] = &[
    ("Last Seen", "string", 0, |object| {
        [&object["lastTimestamp"], &object["eventTime"]]
            .into_iter()
            .find_map(Value::as_str)
            .map_or_else(|| "<unknown>".to_owned(), age)
            .into()
    }),
    ("Type", "string", 0, |object| object["type"].clone()),
    ("Reason", "string", 0, |object| object["reason"].clone()),
    ("Object", "string", 0, |object| {
        let about = &object["involvedObject"];
        format!("{}/{}", plain(&about["kind"]).to_lowercase(), plain(&about["name"])).into()
    }),
    ("Subobject", "string", 1, |object| or_empty(&object["involvedObject"]["fieldPath"])),
    ("Source", "string", 1, |object| or_empty(&object["source"]["component"])),
    ("Message", "string", 0, |object| object["message"].as_str().unwrap_or_default().trim().into()),
    ("First Seen", "string", 1, |object| {
        object["firstTimestamp"].as_str().map_or_else(|| "<unknown>".to_owned(), age).into()
    }),
    ("Count", "string", 1, |object| object["count"].as_i64().unwrap_or(1).into()),
    ("Name", "string", 1, |object| object["metadata"]["name"].clone()),
];

fn size(map: &Value) -> usize {
    map.as_object().map_or(0, serde_json::Map::len)
}

fn or_empty(value: &Value) -> Value {
    value.as_str().unwrap_or_default().into()
}

fn or_none(value: &Value) -> Value {
    value.as_str().unwrap_or("<none>").into()
}

fn label_text(labels: &Value) -> String {
    let texts: Vec<String> =
        labels.as_object().into_iter().flatten().map(|(key, value)| format!("{key}={}", plain(value))).collect();
    if texts.is_empty() { "<none>".to_owned() } else { texts.join(",") }
}

fn container_texts(job: &Value, field: &str) -> Value {
    let texts: Vec<String> = meta::list(&job["spec"]["template"]["spec"]["containers"])
        .iter()
        .map(|container| plain(&container[field]))
        .collect();
    texts.join(",").into()
}

/// Source: `pkg/printers/internalversion.printPod`, as far as one container goes.
fn pod_status(pod: &Value) -> String {
    let status = &pod["status"];
    let mut text = plain(&status["phase"]);
    if let Some(reason) = status["reason"].as_str() {
        text = reason.to_owned();
    }
    for container in meta::list(&status["containerStatuses"]) {
        let state = &container["state"];
        for field in ["waiting", "terminated"] {
            if let Some(reason) = state[field]["reason"].as_str() {
                text = reason.to_owned();
            } else if let Some(code) = state[field]["exitCode"].as_i64() {
                text = format!("ExitCode:{code}");
            }
        }
    }
    if meta::deleting(pod) {
        text = "Terminating".to_owned();
    }
    text
}

/// Source: `pkg/printers/internalversion.printJob`.
fn job_status(job: &Value) -> &'static str {
    let has = |wanted: &str| {
        meta::list(&job["status"]["conditions"])
            .iter()
            .any(|condition| condition["type"] == wanted && condition["status"] == "True")
    };
    match () {
        () if has("Complete") => "Complete",
        () if has("Failed") => "Failed",
        () if meta::deleting(job) => "Terminating",
        () if has("Suspended") => "Suspended",
        () if has("FailureTarget") => "FailureTarget",
        () if has("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    }
}

#[cfg(test)]
mod tests {
    use super::human;

    #[test]
    fn durations_read_as_kubectl_writes_them() {
        for (seconds, text) in [
            (-5, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (150, "2m30s"),
            (600, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (9 * 3600, "9h"),
            (2 * 86_400, "2d"),
            (2 * 86_400 + 3600, "2d1h"),
            (9 * 86_400, "9d"),
            (800 * 86_400, "2y70d"),
            (9 * 365 * 86_400, "9y"),
        ] {
            assert_eq!(human(seconds), text, "{seconds}");
        }
    }
}
