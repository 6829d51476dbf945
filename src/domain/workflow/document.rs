//! The workflow that a caller sends, and its checks (docs/contract/http.md, "POST /compute", checks 3 and 4; what the
//! engine needs: docs/contract/engine.md, "jobs.workflow").
//!
//! Fields that have no type here are kept as they were sent, for the engine. Each type holds all of its object's fields
//! in `fields`, in the order in which they were sent; those that are typed are null there until
//! [`Workflow::into_object`] puts them back. The schemas in the OpenAPI document are derived, so that they describe
//! what is parsed.

use serde_json::Value;
use utoipa::ToSchema;

use super::{Object, Summary};

/// How deep a workflow may be nested. JSON readers stop at some depth, that of this service at 128, and the stored
/// document is a few levels deeper than the workflow.
const DEPTH_LIMIT: usize = 100;

/// Why a workflow cannot be run. The text tells the caller what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidWorkflow(String);

/// A workflow. Fields that are not named here are kept, for the engine.
#[derive(Debug, Clone, ToSchema)]
pub struct Workflow {
    /// Exactly one.
    #[schema(min_items = 1, max_items = 1)]
    pub stages: Vec<Stage>,
    #[schema(ignore)]
    pub(super) fields: Object,
}

/// A stage of a workflow.
#[derive(Debug, Clone, ToSchema)]
pub struct Stage {
    /// What the algorithm reads.
    pub input: Vec<Input>,
    /// What is to be run.
    pub algorithm: Algorithm,
    /// The limits of the stage.
    pub compute: Compute,
    /// What is to be done with the outputs.
    #[schema(value_type = Object)]
    pub output: Object,
    #[schema(ignore)]
    fields: Object,
}

/// An input: a list of URLs as `url`, or a `remote` object.
#[derive(Debug, Clone, ToSchema)]
pub struct Input {
    /// The data's DID.
    pub id: Option<String>,
    #[schema(ignore)]
    fields: Object,
}

/// An algorithm: code at a `url`, a `remote` object, or `rawcode`.
#[derive(Debug, Clone, ToSchema)]
pub struct Algorithm {
    /// The algorithm's DID.
    pub id: Option<String>,
    /// What runs the algorithm.
    pub container: Container,
    #[schema(ignore)]
    fields: Object,
}

/// A container image and how to start the algorithm in it.
#[derive(Debug, Clone, ToSchema)]
pub struct Container {
    /// A shell command; `$ALGO` stands for the algorithm's file.
    #[schema(min_length = 1)]
    pub entrypoint: String,
    /// The image's name.
    #[schema(min_length = 1)]
    pub image: String,
    /// The image's tag; not needed with a checksum.
    pub tag: Option<String>,
    /// The image's digest.
    #[schema(pattern = "^sha256:")]
    pub checksum: Option<String>,
    #[schema(ignore)]
    fields: Object,
}

/// The limits of a stage.
#[derive(Debug, Clone, ToSchema)]
pub struct Compute {
    /// How long the algorithm may run, in seconds; ALGO_POD_TIMEOUT caps it.
    pub maxtime: Option<Seconds>,
    #[schema(ignore)]
    pub(super) fields: Object,
}

/// A duration in whole seconds, sent as a number or as text. What is not above 0 is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seconds(pub u64);

impl Workflow {
    /// Checks what a caller sent.
    ///
    /// # Errors
    /// If the workflow cannot be run. The error names the field.
    pub fn check(workflow: Value) -> Result<Self, InvalidWorkflow> {
        if is_deeper(&workflow, DEPTH_LIMIT) {
            return Err(invalid(format!("`workflow` must not be nested deeper than {DEPTH_LIMIT} levels")));
        }
        let mut fields = match workflow {
            Value::Object(fields) if !fields.is_empty() => fields,
            _ => return Err(invalid("`workflow` is required in the payload and must include workflow stages")),
        };
        let stages = match take(&mut fields, "stages") {
            Value::Null => return Err(invalid("Missing stages")),
            stages => list(stages, "stages")?,
        };
        if stages.len() > 1 {
            return Err(invalid("Multiple stages are not supported yet"));
        }
        let stage = stages.into_iter().next().ok_or_else(|| invalid("Missing stages"))?;
        Ok(Self { stages: vec![Stage::check(stage)?], fields })
    }

    /// What the status object shows of the workflow.
    pub fn summary(&self) -> Summary {
        let algorithm = self.stages.first().and_then(|stage| stage.algorithm.id.as_deref());
        let inputs = self.stages.first().into_iter().flat_map(|stage| &stage.input);
        Summary::new(algorithm, inputs.filter_map(|input| input.id.as_deref()), self.fields.get("chainId"))
    }

    /// The JSON object, with its fields in the order in which they were sent.
    pub fn into_object(mut self) -> Object {
        self.fields.insert("stages".into(), objects(self.stages, Stage::into_object));
        self.fields
    }
}

impl Stage {
    fn check(stage: Value) -> Result<Self, InvalidWorkflow> {
        let mut fields = object(stage, "stages[0]")?;
        for name in ["algorithm", "compute", "input", "output"] {
            if fields.get(name).is_none_or(Value::is_null) {
                return Err(invalid(format!("Missing {name} in stage 0")));
            }
        }
        Ok(Self {
            algorithm: Algorithm::check(take(&mut fields, "algorithm"))?,
            compute: Compute::check(take(&mut fields, "compute"))?,
            input: list(take(&mut fields, "input"), "stages[0].input")?
                .into_iter()
                .enumerate()
                .map(|(index, input)| Input::check(input, &format!("stages[0].input[{index}]")))
                .collect::<Result<_, _>>()?,
            output: object(take(&mut fields, "output"), "stages[0].output")?,
            fields,
        })
    }

    fn into_object(mut self) -> Object {
        self.fields.insert("input".into(), objects(self.input, Input::into_object));
        self.fields.insert("algorithm".into(), self.algorithm.into_object().into());
        self.fields.insert("compute".into(), self.compute.fields.into());
        self.fields.insert("output".into(), self.output.into());
        self.fields
    }
}

impl Input {
    fn check(input: Value, path: &str) -> Result<Self, InvalidWorkflow> {
        let mut fields = object(input, path)?;
        Ok(Self { id: optional_text(take(&mut fields, "id"), &format!("{path}.id"))?, fields })
    }

    fn into_object(mut self) -> Object {
        insert_id(&mut self.fields, self.id);
        self.fields
    }
}

impl Algorithm {
    fn check(algorithm: Value) -> Result<Self, InvalidWorkflow> {
        let mut fields = object(algorithm, "stages[0].algorithm")?;
        Ok(Self {
            id: optional_text(take(&mut fields, "id"), "stages[0].algorithm.id")?,
            container: Container::check(take(&mut fields, "container"))?,
            fields,
        })
    }

    fn into_object(mut self) -> Object {
        insert_id(&mut self.fields, self.id);
        self.fields.insert("container".into(), self.container.into_object().into());
        self.fields
    }
}

impl Container {
    const PATH: &str = "stages[0].algorithm.container";

    /// Checks that there is what the engine needs: an entrypoint, an image, and a tag or a SHA-256 checksum.
    fn check(container: Value) -> Result<Self, InvalidWorkflow> {
        let path = Self::PATH;
        if container.is_null() {
            return Err(invalid(format!("Missing `{path}`")));
        }
        let mut fields = object(container, path)?;
        fields.retain(|_, value| !value.is_null());
        let [entrypoint, image, tag, checksum] = ["entrypoint", "image", "tag", "checksum"]
            .map(|name| optional_text(take(&mut fields, name), &format!("{path}.{name}")));
        let (entrypoint, image, tag, checksum) = (entrypoint?, image?, tag?, checksum?);

        let required = |text: Option<String>, name: &str| {
            text.filter(|text| !text.is_empty()).ok_or_else(|| invalid(format!("Missing `{path}.{name}`")))
        };
        let container = Self {
            entrypoint: required(entrypoint, "entrypoint")?,
            image: required(image, "image")?,
            tag,
            checksum,
            fields,
        };
        let has_tag = container.tag.as_ref().is_some_and(|tag| !tag.is_empty());
        if has_tag || container.checksum.as_ref().is_some_and(|checksum| checksum.starts_with("sha256:")) {
            return Ok(container);
        }
        Err(invalid(format!("Missing `{path}.tag`, or a `{path}.checksum` that starts with `sha256:`")))
    }

    fn into_object(mut self) -> Object {
        self.fields.insert("entrypoint".into(), self.entrypoint.into());
        self.fields.insert("image".into(), self.image.into());
        for (name, value) in [("tag", self.tag), ("checksum", self.checksum)] {
            if let Some(value) = value {
                self.fields.insert(name.into(), value.into());
            }
        }
        self.fields
    }
}

impl Compute {
    fn check(compute: Value) -> Result<Self, InvalidWorkflow> {
        let fields = object(compute, "stages[0].compute")?;
        let maxtime = match fields.get("maxtime") {
            None | Some(Value::Null) => None,
            Some(requested) => Some(
                Seconds::of_json(requested)
                    .ok_or_else(|| invalid("`stages[0].compute.maxtime` must be a number of seconds"))?,
            ),
        };
        Ok(Self { maxtime, fields })
    }
}

impl Seconds {
    /// Reads a JSON number, or text that holds one; `None` for anything else.
    pub fn of_json(value: &Value) -> Option<Self> {
        let seconds = match value {
            Value::Number(number) => number.as_f64()?,
            Value::String(text) => text.trim().parse().ok().filter(|seconds: &f64| seconds.is_finite())?,
            _ => return None,
        };
        // Saturates: a negative number of seconds is 0.
        Some(Self(seconds as u64))
    }
}

/// Takes a field's value, and leaves null in its place, which keeps the order. Null if there is no such field.
fn take(fields: &mut Object, name: &str) -> Value {
    fields.get_mut(name).map(Value::take).unwrap_or_default()
}

/// Inserts an id. The engine fails if the key is missing, so an absent id becomes empty text.
fn insert_id(fields: &mut Object, id: Option<String>) {
    fields.insert("id".into(), id.unwrap_or_default().into());
}

fn object(value: Value, path: &str) -> Result<Object, InvalidWorkflow> {
    match value {
        Value::Object(fields) => Ok(fields),
        _ => Err(invalid(format!("`{path}` must be an object"))),
    }
}

fn list(value: Value, path: &str) -> Result<Vec<Value>, InvalidWorkflow> {
    match value {
        Value::Array(items) => Ok(items),
        _ => Err(invalid(format!("`{path}` must be a list"))),
    }
}

fn optional_text(value: Value, path: &str) -> Result<Option<String>, InvalidWorkflow> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        _ => Err(invalid(format!("`{path}` must be text"))),
    }
}

fn objects<T>(items: Vec<T>, into_object: impl Fn(T) -> Object) -> Value {
    items.into_iter().map(|item| Value::Object(into_object(item))).collect()
}

fn invalid(text: impl Into<String>) -> InvalidWorkflow {
    InvalidWorkflow(text.into())
}

fn is_deeper(value: &Value, limit: usize) -> bool {
    let is_deeper = |child: &Value| limit == 0 || is_deeper(child, limit - 1);
    match value {
        Value::Array(items) => limit == 0 || items.iter().any(is_deeper),
        Value::Object(fields) => limit == 0 || fields.values().any(is_deeper),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_typed_keeps_its_place_and_value() {
        let sent = concat!(
            r#"{"x":null,"stages":[{"output":{"b":1,"a":2},"index":0,"input":[{"url":[],"id":"did:1"},"#,
            r#"{"remote":{"z":1e300,"a":-0.0},"id":""}],"algorithm":{"rawcode":"","container":{"tag":"3","odd":[null],"#,
            r#""entrypoint":"sh $ALGO","image":"alpine"},"id":"did:2"},"compute":{"maxtime":"60","Instances":1}}],"#,
            r#""y":9007199254740993}"#
        );
        let workflow = Workflow::check(serde_json::from_str(sent).unwrap()).unwrap();
        let summary = workflow.summary();
        assert_eq!((summary.algo_did.as_str(), summary.input_dids), ("did:2", vec!["did:1".to_owned()]));
        assert_eq!(Value::Object(workflow.into_object()).to_string(), sent.replace("1e300", "1e+300"));
    }

    #[test]
    fn an_absent_id_is_added_and_nulls_of_the_container_are_dropped() {
        let sent = r#"{"stages":[{"input":[{}],"algorithm":{"id":null,"container":{"tag":null,"checksum":"sha256:00","image":"i","entrypoint":"e"}},"compute":{"maxtime":null},"output":{}}]}"#;
        let stored = r#"{"stages":[{"input":[{"id":""}],"algorithm":{"id":"","container":{"checksum":"sha256:00","image":"i","entrypoint":"e"}},"compute":{"maxtime":null},"output":{}}]}"#;
        let workflow = Workflow::check(serde_json::from_str(sent).unwrap()).unwrap();
        assert_eq!(Value::Object(workflow.into_object()).to_string(), stored);
    }

    #[test]
    fn a_workflow_has_one_stage() {
        for (sent, error) in [
            ("{}", "`workflow` is required in the payload and must include workflow stages"),
            ("[]", "`workflow` is required in the payload and must include workflow stages"),
            (r#"{"x":1}"#, "Missing stages"),
            (r#"{"stages":[]}"#, "Missing stages"),
            (r#"{"stages":[1]}"#, "`stages[0]` must be an object"),
            (r#"{"stages":[1,1]}"#, "Multiple stages are not supported yet"),
        ] {
            let refused = Workflow::check(serde_json::from_str(sent).unwrap()).unwrap_err();
            assert_eq!(refused.to_string(), error, "{sent}");
        }
    }

    #[test]
    fn a_workflow_has_a_depth() {
        let nested = |depth: usize, open: &str, close: &str| -> Value {
            serde_json::from_str(&format!("[1,{}1{}]", open.repeat(depth - 1), close.repeat(depth - 1))).unwrap()
        };
        for (open, close) in [("[1,", "]"), (r#"{"a":1,"b":"#, "}")] {
            assert!(!is_deeper(&nested(5, open, close), 5));
            assert!(is_deeper(&nested(6, open, close), 5));
        }
        assert!(is_deeper(&serde_json::json!([]), 0) && is_deeper(&serde_json::json!({}), 0));
        let deep = serde_json::json!({ "stages": nested(DEPTH_LIMIT, "[", "]") });
        assert_eq!(
            Workflow::check(deep).unwrap_err().to_string(),
            "`workflow` must not be nested deeper than 100 levels"
        );
    }
}
