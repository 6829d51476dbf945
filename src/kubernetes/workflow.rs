//! The WorkFlow resource: `oceanprotocol.com/v1alpha`, plural `workflows`, short name `wf`.
//!
//! The engine of 2019 and 2020 starts a job when such an object is created; otherwise it is for kubectl
//! (docs/contract/engine.md, "WorkFlow objects"). The CRD is generated from these types: `operator-service crd` prints
//! infra/kubernetes/crd.yaml. Their doc comments are its descriptions.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{CustomResource, CustomResourceExt};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::domain::workflow::Object;

/// A compute job of Ocean Protocol, as it was requested.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "oceanprotocol.com",
    version = "v1alpha",
    kind = "WorkFlow",
    plural = "workflows",
    singular = "workflow",
    shortname = "wf",
    namespaced,
    status = "WorkFlowStatus",
    doc = "A compute job of Ocean Protocol, as it was requested.",
    printcolumn = r#"{"name": "Status", "type": "string", "jsonPath": ".status.statusText"}"#,
    printcolumn = r#"{"name": "Reason", "type": "string", "jsonPath": ".status.reason"}"#,
    printcolumn = r#"{"name": "Owner", "type": "string", "jsonPath": ".spec.owner"}"#,
    printcolumn = r#"{"name": "Agreement", "type": "string", "jsonPath": ".spec.agreementId"}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct WorkFlowSpec {
    /// The account that the job belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The agreement that the job serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement_id: Option<String>,
    /// The workflow with its stages, completed with the service's own values.
    #[schemars(schema_with = "workflow_schema")]
    pub metadata: Object,
}

/// The job's state in the database.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkFlowStatus {
    /// The status code: 1 warming up, 10 started, 20 configuring volumes, 30 provisioned, 31 and 32 provisioning
    /// failed, 40 running, 41 failed, 50 filtering, 60 publishing, 70 finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<i32>,
    /// The status in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_text: Option<String>,
    /// Why the service ended the job or one of its steps, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When the job finished, in seconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub date_finished: Option<String>,
}

/// The schema of a workflow: it names the fields that all callers send, and keeps all others.
fn workflow_schema(_: &mut SchemaGenerator) -> Schema {
    let open = json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    json_schema!({
        "description": "The workflow with its stages. Fields that are not named here are kept.",
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
        "required": ["stages"],
        "properties": {
            "stages": {
                "type": "array",
                "items": {
                    "type": "object",
                    "x-kubernetes-preserve-unknown-fields": true,
                    "properties": {
                        "algorithm": open,
                        "compute": open,
                        "input": { "type": "array", "items": open },
                        "output": open,
                    },
                },
            },
        },
    })
}

/// The CustomResourceDefinition of WorkFlow objects.
pub fn definition() -> CustomResourceDefinition {
    WorkFlow::crd()
}
