//! A job's document, read as trustingly as the real engine reads it: what is missing is an error that costs a slot.

use anyhow::{Context, bail};
use serde_json::Value;

/// What `jobs.workflow` holds (docs/contract/engine.md, "jobs.workflow").
pub(super) struct Workflow(Value);

impl Workflow {
    /// `None` if the document is not an object.
    pub(super) fn parse(text: &str) -> anyhow::Result<Option<Self>> {
        if let Some(odd) = text.chars().find(|c| !in_latin9(*c)) {
            // PostgreSQL cannot convert it for a client of that encoding.
            bail!("its workflow holds {odd:?}, which LATIN9 lacks");
        }
        let document: Value = serde_json::from_str(text)?;
        Ok(document.is_object().then_some(Self(document)))
    }

    fn at(&self, pointer: &str) -> anyhow::Result<&Value> {
        self.0.pointer(pointer).with_context(|| format!("its workflow has no {pointer}"))
    }

    fn text(&self, pointer: &str) -> anyhow::Result<&str> {
        self.at(pointer)?.as_str().with_context(|| format!("{pointer} of its workflow is not a string"))
    }

    pub(super) fn label(&self) -> anyhow::Result<&str> {
        self.text("/metadata/labels/workflow")
    }

    /// The caller's workflow, as it was submitted and completed.
    pub(super) fn metadata(&self) -> anyhow::Result<&Value> {
        self.at("/spec/metadata")
    }

    pub(super) fn stage(&self) -> anyhow::Result<&Value> {
        self.at("/spec/metadata/stages/0")
    }

    /// The algorithm's command line, with its path in place of `$ALGO`.
    pub(super) fn entrypoint(&self, algorithm: &str) -> anyhow::Result<String> {
        let entrypoint = self.text("/spec/metadata/stages/0/algorithm/container/entrypoint")?;
        Ok(entrypoint.replace("$ALGO", algorithm))
    }

    pub(super) fn image(&self) -> anyhow::Result<String> {
        let image = self.text("/spec/metadata/stages/0/algorithm/container/image")?;
        match self.text("/spec/metadata/stages/0/algorithm/container/checksum") {
            Ok(checksum) if checksum.starts_with("sha256:") => Ok(format!("{image}@{checksum}")),
            _ => Ok(format!("{image}:{}", self.text("/spec/metadata/stages/0/algorithm/container/tag")?)),
        }
    }

    /// The inputs with their DIDs, without `did:op:`.
    pub(super) fn inputs(&self) -> anyhow::Result<Vec<(String, &Value)>> {
        let inputs =
            self.at("/spec/metadata/stages/0/input")?.as_array().context("its workflow's input is not a list")?;
        let did = |input: &Value| Some(input["id"].as_str()?.replace("did:op:", ""));
        inputs.iter().map(|input| Ok((did(input).context("an input of its workflow has no id")?, input))).collect()
    }

    /// The environment variables that an algorithm gets, where its volume is mounted at that path.
    pub(super) fn environment(&self, volume: &str) -> anyhow::Result<[(&'static str, String); 7]> {
        let dids: Vec<String> = self.inputs()?.into_iter().map(|(did, _)| did).collect();
        let algorithm = self.text("/spec/metadata/stages/0/algorithm/id")?;
        Ok([
            ("DIDS", Value::from(dids).to_string()),
            ("TRANSFORMATION_DID", algorithm.replace("did:op:", "")),
            ("VOLUME", volume.to_owned()),
            ("LOGS", format!("{volume}/logs")),
            ("INPUTS", format!("{volume}/inputs")),
            ("OUTPUTS", format!("{volume}/outputs")),
            ("secret", self.text("/metadata/secret")?.to_owned()),
        ])
    }

    /// The amount that the algorithm requests or is limited to, as its stage says. The real engine, since 2021,
    /// overwrites these by what its environment announces; here the announced amount is only the default, so that one
    /// job alone can have too little or request too much.
    pub(super) fn resource(&self, name: &str, announced: &str) -> anyhow::Result<String> {
        Ok(match &self.stage()?["compute"]["resources"][name] {
            Value::String(text) if !text.is_empty() => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => announced.to_owned(),
        })
    }
}

/// Whether ISO 8859-15 has the character: it is Latin-1 with eight characters replaced.
fn in_latin9(c: char) -> bool {
    match c {
        '¤' | '¦' | '¨' | '´' | '¸' | '¼' | '½' | '¾' => false,
        'Š' | 'š' | 'Ž' | 'ž' | 'Œ' | 'œ' | 'Ÿ' | '€' => true,
        c => u32::from(c) < 256,
    }
}
