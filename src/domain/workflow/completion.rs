//! Completes a workflow with what the service decides.

use serde::Serialize;
use serde_json::json;

use super::Workflow;
use crate::domain::{ChainId, Namespace};

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
    /// CPU request of the algorithm's pod, a Kubernetes quantity.
    pub requests_cpu: String,
    /// Memory request of the algorithm's pod, a Kubernetes quantity.
    pub requests_memory: String,
    /// CPU limit of the algorithm's pod, a Kubernetes quantity.
    pub limits_cpu: String,
    /// Memory limit of the algorithm's pod, a Kubernetes quantity.
    pub limits_memory: String,
}

impl Completion {
    /// The `maxtime` that a job gets; `None` if it asks for none and there is no limit.
    fn max_time(&self, requested: Option<u64>) -> Option<u64> {
        match (requested.filter(|requested| *requested > 0), self.max_time) {
            (Some(requested), Some(limit)) => Some(requested.min(limit)),
            (requested, limit) => requested.or(limit),
        }
    }
}

impl Workflow {
    /// Adds what the service decides: each stage's limits, resources and namespace, and the chain. Replaces what the
    /// caller sent under these names.
    pub fn complete(&mut self, completion: &Completion, namespace: &Namespace, chain_id: Option<&ChainId>) {
        for stage in &mut self.stages {
            let compute = &mut stage.compute;
            if let Some(granted) = completion.max_time(compute.maxtime.map(|requested| requested.0)) {
                compute.fields.insert("maxtime".into(), granted.into());
            }
            compute.fields.insert("resources".into(), json!(completion));
            compute.fields.insert("namespace".into(), namespace.as_str().into());
            compute.fields.insert("storageExpiry".into(), completion.storage_expiry.unwrap_or(0).into());
        }
        if let Some(chain_id) = chain_id {
            self.fields.insert("chainId".into(), chain_id.to_json());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn completion(max_time: Option<u64>) -> Completion {
        let [size, cpu, memory] = ["1Gi", "200m", "100Mi"].map(str::to_owned);
        Completion {
            max_time,
            storage_expiry: None,
            input_volume_size: size.clone(),
            output_volume_size: size.clone(),
            adminlogs_volume_size: size,
            requests_cpu: cpu.clone(),
            requests_memory: memory.clone(),
            limits_cpu: cpu,
            limits_memory: memory,
        }
    }

    #[test]
    fn a_stage_gets_what_the_service_decides() {
        let sent = json!({ "stages": [{
            "input": [], "algorithm": { "container": { "entrypoint": "e", "image": "i", "tag": "t" } }, "output": {},
            "compute": { "maxtime": "60", "namespace": "another", "kept": 1 },
        }]});
        let mut workflow = Workflow::check(sent).unwrap();
        let chain = ChainId::parse("1", true);
        workflow.complete(&completion(Some(50)), &Namespace::stored("n"), chain.as_ref());
        let completed = Value::Object(workflow.into_object());
        let compute = &completed["stages"][0]["compute"];
        assert_eq!(
            (&compute["maxtime"], &compute["namespace"], &compute["kept"]),
            (&json!(50), &json!("n"), &json!(1))
        );
        assert_eq!((&compute["resources"]["inputVolumesize"], &compute["storageExpiry"]), (&json!("1Gi"), &json!(0)));
        assert_eq!(completed["chainId"], 1);
    }

    #[test]
    fn the_shorter_time_applies_and_0_is_none() {
        for (limit, requested, expected) in [
            (Some(50), Some(60), Some(50)),
            (Some(50), Some(40), Some(40)),
            (Some(50), Some(0), Some(50)),
            (Some(50), None, Some(50)),
            (None, Some(40), Some(40)),
            (None, Some(0), None),
            (None, None, None),
        ] {
            assert_eq!(completion(limit).max_time(requested), expected, "{limit:?} {requested:?}");
        }
    }
}
