//! The service against its OpenAPI document: schemathesis sends what the document allows, and what it does not.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use serde_json::json;

use crate::child::{Directory, Env, Service};
use crate::fixture::{OWNER, finished, get, hosts, output};
use crate::origin::{Answer, Origin};
use crate::support::{Cluster, Key, Stored, TestDatabase, python};

const ADMIN: &str = "0x0000000000000000000000000000000000000001";
const TIME_LIMIT: Duration = Duration::from_secs(300);

#[tokio::test]
async fn the_service_answers_as_its_document_says() {
    let database = TestDatabase::migrated().await;
    let cluster = Cluster::embedded().await;
    let origin = Origin::start().await;
    let namespace = &cluster.namespace;
    database.announce(namespace, "{}").await;
    origin.answer("/out.txt", Answer::file_with_ranges("hello"));
    // Rows in which no signer is verified: any signature is accepted for them.
    let job = |outputs| Stored {
        signer_verified: false,
        namespace: Some(namespace.clone()),
        ..finished(&Key::new(), &outputs)
    };
    let finished_job = job(output(&origin.url("/out.txt"))).insert(&database).await.job_id;
    let to_change = Stored { owner: Some("0xAnother".to_owned()), ..job(json!([])) }.insert(&database).await;
    cluster.make_workflow(namespace, &finished_job).await;
    for component in ["configure", "algorithm", "filter", "publish"] {
        assert!(cluster.make_pod_with_log(namespace, &finished_job, component, b"a line\n").await);
    }
    let directory = Directory::new();
    let variables = [
        ("SIGNATURE_REQUIRED", "0"),
        ("ALLOWED_ADMINS", &hosts(&[ADMIN])),
        ("RESULT_HOSTS_ALLOWED", &hosts(&[&origin.address.to_string()])),
        ("DEFAULT_NAMESPACE", namespace),
    ];
    let env = Env::of(database.variables()).with_cluster(&cluster, &directory).and(&variables);
    let service = Service::start(&env).await;

    let document = get(&service, "/spec").await.json();
    let facts = json!({
        "environment": namespace,
        "providerSignature": document["components"]["schemas"]["ProviderSignature"]["examples"][0],
        "finished": { "owner": OWNER, "jobId": finished_job },
        "to change": { "owner": to_change.owner, "jobId": to_change.job_id },
    });
    let counts = directory.file("counts");
    let mut schemathesis = tokio::process::Command::new(python());
    // It writes into the directory in which it is started.
    schemathesis.current_dir(directory.file(""));
    schemathesis.args(["-m", "schemathesis.cli", "--no-color", "--config-file"]);
    schemathesis.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/functions/schemathesis.toml"));
    schemathesis.arg("run").arg(service.url("/spec"));
    let hooks = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/functions/schemathesis_hooks.py");
    schemathesis.env("SCHEMATHESIS_HOOKS", hooks).env("PYTHONDONTWRITEBYTECODE", "1");
    schemathesis.env("ADMIN", ADMIN).env("FACTS", facts.to_string()).env("COUNTS", &counts);
    schemathesis.stdin(std::process::Stdio::null()).kill_on_drop(true);
    let ended = tokio::time::timeout(TIME_LIMIT, schemathesis.output()).await.expect("schemathesis does not end");
    let ended = ended.unwrap_or_else(|error| panic!("{} does not start: {error}; run `make test`", python()));
    let printed = [ended.stdout, ended.stderr].concat();
    let printed = String::from_utf8_lossy(&printed);
    assert!(ended.status.success(), "{printed}");

    // By operation: how many cases that the document allows were sent, and how many of them were accepted.
    let counts: BTreeMap<String, (u32, u32)> = serde_json::from_slice(&fs::read(counts).unwrap()).unwrap();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let operation = format!("{} {path}", method.to_uppercase());
            assert!(counts.contains_key(&operation), "no case of {operation}");
        }
    }
    for (operation, (sent, accepted)) in &counts {
        println!("{operation}: {accepted} of {sent}");
    }
    for (operation, (sent, accepted)) in counts {
        assert!(2 * accepted >= sent, "{operation}: {accepted} of {sent} were accepted");
    }
}
