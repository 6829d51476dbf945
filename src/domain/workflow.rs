//! The workflow of a job: what a caller must send, how it is completed, the document the engine reads.
//!
//! Rules from the contract: `http.md` ("POST OP/compute", checks 3 and 4), `engine.md` ("jobs.workflow").

use serde::Serialize;
use serde_json::ser::{CharEscape, CompactFormatter, Formatter};
use serde_json::{Map, Value, json};

use super::JobId;

/// How deep a workflow may be nested. Readers of JSON stop at some depth, this service's own at 128, and what is
/// stored lies a few levels deeper than what was sent.
const DEPTH_LIMIT: usize = 100;

/// A JSON object.
pub type Object = Map<String, Value>;

/// Why a workflow cannot be run, in words that tell the caller what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

/// A workflow that has passed every check.
#[derive(Debug, Clone)]
pub struct Workflow(Object);

/// What every job's workflow is completed with.
#[derive(Debug, Clone, Serialize)]
pub struct Completion {
    /// The maximum of `maxtime`, in seconds; `None` for no limit (ALGO_POD_TIMEOUT).
    #[serde(skip)]
    pub max_time: Option<u64>,
    /// How long outputs are kept after the job's end, in seconds; `None` for ever (STORAGE_EXPIRY).
    #[serde(skip)]
    pub storage_expiry: Option<u64>,
    /// Size of the volume for inputs, a Kubernetes quantity.
    #[serde(rename = "inputVolumesize")]
    pub input_volume_size: String,
    /// Size of the volume for outputs, a Kubernetes quantity.
    #[serde(rename = "outputVolumesize")]
    pub output_volume_size: String,
    /// Size of the volume for the administrators' logs, a Kubernetes quantity.
    #[serde(rename = "adminlogsVolumesize")]
    pub adminlogs_volume_size: String,
    /// CPU that the algorithm's pod asks for, a Kubernetes quantity.
    pub requests_cpu: String,
    /// Memory that the algorithm's pod asks for, a Kubernetes quantity.
    pub requests_memory: String,
    /// CPU that the algorithm's pod may use, a Kubernetes quantity.
    pub limits_cpu: String,
    /// Memory that the algorithm's pod may use, a Kubernetes quantity.
    pub limits_memory: String,
}

impl Workflow {
    /// Checks what a caller sent.
    pub fn check(workflow: Value) -> Result<Self, Invalid> {
        if is_deeper(&workflow, DEPTH_LIMIT) {
            return Err(invalid(format!("`workflow` must not be nested deeper than {DEPTH_LIMIT} levels")));
        }
        let mut workflow = match workflow {
            Value::Object(workflow) if !workflow.is_empty() => workflow,
            _ => {
                return Err(invalid("`workflow` is required in the payload and must include workflow stages"));
            }
        };
        let stages = match workflow.get_mut("stages") {
            None | Some(Value::Null) => return Err(invalid("Missing stages")),
            Some(Value::Array(stages)) => stages,
            Some(_) => return Err(invalid("`stages` must be a list")),
        };
        match stages.as_mut_slice() {
            [] => Err(invalid("Missing stages")),
            [stage] => {
                let stage = stage.as_object_mut().ok_or_else(|| invalid("`stages[0]` must be an object"))?;
                check_stage(stage)
            }
            _ => Err(invalid("Multiple stages are not supported yet")),
        }?;
        Ok(Self(workflow))
    }

    /// Adds what the service decides: each stage's limits, resources and namespace, and the chain.
    pub fn complete(&mut self, completion: &Completion, namespace: &str, chain_id: Option<Value>) {
        for compute in self.stages().filter_map(|stage| stage.get_mut("compute")?.as_object_mut()) {
            let asked = compute.get("maxtime").and_then(seconds).filter(|asked| *asked > 0);
            let granted = match (asked, completion.max_time) {
                (Some(asked), Some(limit)) => Some(asked.min(limit)),
                (asked, limit) => asked.or(limit),
            };
            if let Some(granted) = granted {
                compute.insert("maxtime".into(), granted.into());
            }
            compute.insert("resources".into(), json!(completion));
            compute.insert("namespace".into(), namespace.into());
            compute.insert("storageExpiry".into(), completion.storage_expiry.unwrap_or(0).into());
        }
        if let Some(chain_id) = chain_id {
            self.0.insert("chainId".into(), chain_id);
        }
    }

    /// The document that the engine reads from `jobs.workflow`.
    pub fn document(&self, job_id: &JobId, namespace: &str) -> Value {
        json!({
            "apiVersion": "v0.0.1",
            "kind": "WorkFlow",
            "metadata": {
                "name": job_id,
                "namespace": namespace,
                "labels": { "workflow": job_id },
                "secret": uuid::Uuid::new_v4().simple().to_string(),
            },
            "spec": { "metadata": self.0 },
        })
    }

    /// The workflow itself.
    pub fn into_object(self) -> Object {
        self.0
    }

    fn stages(&mut self) -> impl Iterator<Item = &mut Value> {
        self.0.get_mut("stages").and_then(Value::as_array_mut).into_iter().flatten()
    }
}

fn is_deeper(value: &Value, limit: usize) -> bool {
    let mut children: Box<dyn Iterator<Item = &Value>> = match value {
        Value::Array(items) => Box::new(items.iter()),
        Value::Object(object) => Box::new(object.values()),
        _ => return false,
    };
    limit == 0 || children.any(|child| is_deeper(child, limit - 1))
}

fn check_stage(stage: &mut Object) -> Result<(), Invalid> {
    for name in ["algorithm", "compute", "input", "output"] {
        if stage.get(name).is_none_or(Value::is_null) {
            return Err(invalid(format!("Missing {name} in stage 0")));
        }
    }

    let algorithm = object(stage, "algorithm")?;
    check_id(algorithm, "stages[0].algorithm.id")?;
    check_container(algorithm)?;

    let compute = object(stage, "compute")?;
    if compute.get("maxtime").is_some_and(|asked| !asked.is_null() && seconds(asked).is_none()) {
        return Err(invalid("`stages[0].compute.maxtime` must be a number of seconds"));
    }

    let inputs = stage.get_mut("input").and_then(Value::as_array_mut);
    let inputs = inputs.ok_or_else(|| invalid("`stages[0].input` must be a list"))?;
    for (i, input) in inputs.iter_mut().enumerate() {
        let name = format!("stages[0].input[{i}]");
        let input = input.as_object_mut().ok_or_else(|| invalid(format!("`{name}` must be an object")))?;
        check_id(input, &format!("{name}.id"))?;
    }

    object(stage, "output").map(|_| ())
}

/// The engine dies of a missing key, so an id that is absent becomes the empty one, which is reported as
/// absent.
fn check_id(holder: &mut Object, name: &str) -> Result<(), Invalid> {
    match holder.get("id") {
        Some(Value::String(_)) => {}
        None | Some(Value::Null) => {
            holder.insert("id".into(), "".into());
        }
        Some(_) => return Err(invalid(format!("`{name}` must be text"))),
    }
    Ok(())
}

/// The engine needs an entrypoint, an image, and a tag or a SHA-256 checksum.
fn check_container(algorithm: &mut Object) -> Result<(), Invalid> {
    const NAME: &str = "stages[0].algorithm.container";
    let container = match algorithm.get_mut("container") {
        None | Some(Value::Null) => return Err(invalid(format!("Missing `{NAME}`"))),
        Some(Value::Object(container)) => container,
        Some(_) => return Err(invalid(format!("`{NAME}` must be an object"))),
    };
    container.retain(|_, value| !value.is_null());
    for key in ["entrypoint", "image", "tag", "checksum"] {
        match container.get(key) {
            None | Some(Value::String(_)) => {}
            Some(_) => return Err(invalid(format!("`{NAME}.{key}` must be text"))),
        }
    }
    let text = |key: &str| container.get(key).and_then(Value::as_str).unwrap_or_default();
    for key in ["entrypoint", "image"] {
        if text(key).is_empty() {
            return Err(invalid(format!("Missing `{NAME}.{key}`")));
        }
    }
    if text("tag").is_empty() && !text("checksum").starts_with("sha256:") {
        return Err(invalid(format!("Missing `{NAME}.tag`, or a `{NAME}.checksum` that starts with `sha256:`")));
    }
    Ok(())
}

fn object<'a>(stage: &'a mut Object, name: &str) -> Result<&'a mut Object, Invalid> {
    let value = stage.get_mut(name).and_then(Value::as_object_mut);
    value.ok_or_else(|| invalid(format!("`stages[0].{name}` must be an object")))
}

/// A number of seconds, such as a `maxtime`, as whole seconds, 0 where it is not above that; `None` if it is no number.
fn seconds(value: &Value) -> Option<u64> {
    let seconds = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse().ok().filter(|seconds: &f64| seconds.is_finite())?,
        _ => return None,
    };
    // Saturates: a negative number of seconds is 0.
    Some(seconds as u64)
}

fn invalid(text: impl Into<String>) -> Invalid {
    Invalid(text.into())
}

/// What anyone may know of a stored workflow.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// `stages[0].algorithm.id`, or `raw` where it is absent or empty.
    pub algo_did: String,
    /// Every `stages[0].input[].id` that is present and not empty.
    pub input_dids: Vec<String>,
    /// The chain as it was sent, if it was.
    pub chain_id: Option<Value>,
    /// Whether the text could be read as the document that the engine expects.
    pub readable: bool,
}

/// Reads what can be read of a stored workflow, be it damaged, empty or missing.
pub fn summarize(document: Option<&str>) -> Summary {
    let document: Option<Value> = document.and_then(|document| serde_json::from_str(document).ok());
    let workflow = document.as_ref().and_then(|document| document.pointer("/spec/metadata"));
    let stage = workflow.and_then(|workflow| workflow.pointer("/stages/0"));
    let id = |holder: &Value| holder.get("id")?.as_str().filter(|id| !id.is_empty()).map(str::to_owned);

    let algorithm = stage.and_then(|stage| stage.get("algorithm"));
    let inputs = stage.and_then(|stage| stage.get("input")?.as_array());
    Summary {
        algo_did: algorithm.and_then(id).unwrap_or_else(|| "raw".to_owned()),
        input_dids: inputs.into_iter().flatten().filter_map(id).collect(),
        chain_id: workflow.and_then(|workflow| workflow.get("chainId")).filter(|chain| !chain.is_null()).cloned(),
        readable: stage.is_some(),
    }
}

/// The `maxtime` of a stored workflow, in seconds, if there is one above 0.
pub fn stored_max_time(document: &str) -> Option<f64> {
    let seconds = stored_compute(document)?.get("maxtime").and_then(seconds)?;
    Some(seconds as f64).filter(|seconds| *seconds > 0.0)
}

/// The `storageExpiry` of a stored workflow, in seconds, if there is one; 0 for never.
pub fn stored_expiry(document: &str) -> Option<u64> {
    stored_compute(document)?.get("storageExpiry").and_then(seconds)
}

/// The workflow of a stored document, as it was completed.
pub fn stored(document: &str) -> Option<Object> {
    match serde_json::from_str::<Value>(document).ok()?.pointer_mut("/spec/metadata")?.take() {
        Value::Object(workflow) => Some(workflow),
        _ => None,
    }
}

fn stored_compute(document: &str) -> Option<Value> {
    let mut document: Value = serde_json::from_str(document).ok()?;
    Some(document.pointer_mut("/spec/metadata/stages/0/compute")?.take())
}

/// JSON text with every character beyond ASCII escaped: the engine reads the database as LATIN9
/// (contract: `engine.md`), so nothing outside it may stand there as it is.
pub fn to_ascii_json(value: &Value) -> String {
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, Ascii);
    // Writing a `Value` to memory cannot fail; if it ever did, `to_string` says the same without the escapes.
    match value.serialize(&mut serializer) {
        Ok(()) => String::from_utf8_lossy(&text).into_owned(),
        Err(_) => value.to_string(),
    }
}

struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + std::io::Write>(&mut self, to: &mut W, part: &str) -> std::io::Result<()> {
        for character in part.chars() {
            if character.is_ascii() {
                to.write_all(&[character as u8])?;
            } else {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(to, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + std::io::Write>(&mut self, to: &mut W, escape: CharEscape) -> std::io::Result<()> {
        CompactFormatter.write_char_escape(to, escape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_for_the_engine_is_ascii_and_means_the_same() {
        let value = json!({"käse": "πλ😀\u{0}\n\"\\"});
        let text = to_ascii_json(&value);
        assert!(text.is_ascii(), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }

    #[test]
    fn damaged_workflows_show_what_is_known() {
        for damaged in
            [None, Some(""), Some("null"), Some("{\"spec\""), Some("[]"), Some(r#"{"spec": {"metadata": 7}}"#)]
        {
            let summary = summarize(damaged);
            assert_eq!(summary.algo_did, "raw");
            assert_eq!(summary.input_dids, Vec::<String>::new());
            assert!(!summary.readable);
        }
    }
}
