//! Workflows.

use serde_json::{Value, json};

/// A workflow as Provider sends it.
pub fn sample() -> Value {
    json!({
        "stages": [{
            "index": 0,
            "input": [{ "id": "did:op:87bd", "url": ["https://example.org/data.csv"], "index": 0 }],
            "compute": {
                "Instances": 1,
                "namespace": "withgpu",
                "maxtime": 3600
            },
            "algorithm": {
                "id": "did:op:5a1f",
                "url": "https://example.org/algorithm.py",
                "rawcode": "",
                "container": { "image": "python", "tag": "3.11", "entrypoint": "python $ALGO" }
            },
            "output": { "nodeUri": "https://example.org:8545", "brizoUri": "https://example.org:8030" }
        }]
    })
}

/// A workflow as Ocean Node may send it: `remote` in place of a URL, an algorithm of nothing but code and container.
pub fn of_ocean_node() -> Value {
    json!({
        "stages": [{
            "index": 0,
            "input": [{ "id": null, "remote": { "type": "url", "url": "https://example.org/data.csv", "method": "GET" }, "index": 0 }],
            "algorithm": {
                "rawcode": "wc -l",
                "container": { "image": "alpine", "tag": null, "checksum": format!("sha256:{}", "0".repeat(64)), "entrypoint": "sh $ALGO" }
            },
            "compute": { "maxtime": 3600 },
            "output": {}
        }]
    })
}

/// The stored document of [`sample`].
pub fn document(job_id: &str, namespace: &str) -> Value {
    json!({
        "apiVersion": "v0.0.1",
        "kind": "WorkFlow",
        "metadata": {
            "name": job_id,
            "namespace": namespace,
            "labels": { "workflow": job_id },
            "secret": "0123456789abcdef0123456789abcdef"
        },
        "spec": { "metadata": sample() }
    })
}
