//! The callers' requests, signed before anything is measured: a signature costs more than most of a request.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use devstack::wallet::Wallet;
use serde_json::{Value, json};

use crate::stack::NAMESPACE;

/// The owner of all jobs that are started.
const OWNER: &str = "0xC41808BBef371AD5CFc76466dDF9dEe228d2BdAA";

/// The clock in nanoseconds, as Provider has it, and never the same twice.
fn nonce() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    let before = LAST.fetch_max(now, Ordering::SeqCst);
    if before < now { now } else { LAST.fetch_add(1, Ordering::SeqCst) + 1 }
}

/// An HTTP request without a body.
pub fn get(path_and_query: &str) -> Vec<u8> {
    format!("GET {path_and_query} HTTP/1.1\r\nhost: localhost\r\nuser-agent: bench\r\naccept: */*\r\n\r\n").into_bytes()
}

/// The parameters with which a provider asks for one job: for its status, and with an index for a result.
pub fn job_query(signer: &Wallet, owner: &str, job: &str) -> String {
    let nonce = nonce();
    let signature = signer.sign(&format!("{owner}{job}{nonce}"));
    let address = signer.address();
    format!("providerAddress={address}&owner={owner}&jobId={job}&providerSignature={signature}&nonce={nonce}")
}

/// GET /compute for each of these jobs (owner and id).
pub fn statuses(signers: &[Wallet], jobs: &[(String, String)]) -> Vec<Vec<u8>> {
    let signed = jobs.iter().zip(signers.iter().cycle());
    signed
        .map(|((owner, job), signer)| get(&format!("/api/v1/operator/compute?{}", job_query(signer, owner, job))))
        .collect()
}

/// The body of POST /compute, with an agreement of its own.
pub fn start_body(signer: &Wallet) -> Value {
    let nonce = nonce();
    json!({
        "workflow": workflow(),
        "providerSignature": signer.sign(&format!("{OWNER}{nonce}")),
        "agreementId": format!("0x{}", uuid::Uuid::new_v4().simple()),
        "owner": OWNER,
        "providerAddress": signer.address(),
        "environment": NAMESPACE,
        "validUntil": 4_102_444_800_u64,
        "nonce": nonce,
        "chainId": 8996,
    })
}

/// This number of POST /compute.
pub fn starts(signers: &[Wallet], number: usize) -> Vec<Vec<u8>> {
    let request = |signer| {
        let body = start_body(signer).to_string();
        format!(
            "POST /api/v1/operator/compute HTTP/1.1\r\nhost: localhost\r\nuser-agent: bench\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    };
    signers.iter().cycle().take(number).map(request).collect()
}

/// A workflow as Provider sends it, with what the service completes it with already in it: so the bare handler writes the
/// same object.
pub fn workflow() -> Value {
    let resources = json!({
        "inputVolumesize": "1Gi", "outputVolumesize": "1Gi", "adminlogsVolumesize": "1Gi", "requests_cpu": "200m",
        "requests_memory": "100Mi", "limits_cpu": "1", "limits_memory": "500Mi"
    });
    json!({ "chainId": 8996, "stages": [{
        "index": 0,
        "input": [{ "id": "did:op:87bd", "url": ["https://example.org/data.csv"], "index": 0 }],
        "compute": {
            "Instances": 1, "namespace": NAMESPACE, "maxtime": 3600, "resources": resources, "storageExpiry": 0
        },
        "algorithm": {
            "id": "did:op:5a1f", "url": "https://example.org/algorithm.py", "rawcode": "",
            "container": { "image": "python", "tag": "3.11", "entrypoint": "python $ALGO" }
        },
        "output": { "nodeUri": "https://example.org:8545", "brizoUri": "https://example.org:8030" }
    }] })
}

/// The document that the engine reads of a workflow.
pub fn document(job: &str, workflow: &Value) -> Value {
    json!({
        "apiVersion": "v0.0.1",
        "kind": "WorkFlow",
        "metadata": {
            "name": job, "namespace": NAMESPACE, "labels": { "workflow": job },
            "secret": "0123456789abcdef0123456789abcdef"
        },
        "spec": { "metadata": workflow }
    })
}
