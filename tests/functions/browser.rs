//! /api/v1/docs/ in a real browser: Chromium, controlled by docs_page.py.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::child::{Env, Service};
use crate::fixture::{Fixture, OWNER};
use crate::support::{TestDatabase, client, python};

/// A reserved name, which Chromium resolves to this machine. Swagger UI does some things (asking a validator
/// on another site, for example) only if its page's host is not localhost.
const NAME: &str = "operator.test";

/// What the browser found.
#[derive(Debug, Deserialize)]
struct Seen {
    title: String,
    operations: Vec<Operation>,
    /// How many responses are described, over all operations that were opened.
    described: usize,
    tried: Vec<Tried>,
    resolver_errors: usize,
    console: Vec<ConsoleMessage>,
    requests: Vec<String>,
    failed: Vec<Value>,
}

#[derive(Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
struct Operation {
    path: String,
    method: String,
}

#[derive(Debug, Deserialize)]
struct Tried {
    request_url: String,
    status: String,
    body: String,
}

#[derive(Debug, Deserialize)]
struct ConsoleMessage {
    #[serde(rename = "type")]
    kind: String,
    text: String,
}

impl Tried {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

fn chromium() -> String {
    let chromium = std::env::var("TEST_CHROMIUM").unwrap_or_else(|_| "/usr/bin/chromium".to_owned());
    assert!(Path::new(&chromium).exists(), "there is no {chromium}: run `make test`, which installs it");
    chromium
}

async fn visit(service: &Service, prefix: &str, open_all: bool, tries: Value) -> Seen {
    let wanted = json!({
        "url": format!("http://{NAME}:{}{prefix}/api/v1/docs/", service.address.port()),
        "browser": chromium(),
        // Other names do not resolve.
        "hosts": format!("MAP {NAME} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
        "open_all": open_all,
        "tries": tries,
    });
    let mut visitor = tokio::process::Command::new(python());
    visitor.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/functions/docs_page.py")).arg(wanted.to_string());
    visitor.stdin(std::process::Stdio::null()).kill_on_drop(true);
    let output =
        tokio::time::timeout(Duration::from_secs(120), visitor.output()).await.expect("the browser does not finish");
    let output = output.unwrap_or_else(|error| panic!("{} does not start: {error}; run `make test`", python()));
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(
        !message.contains("No module named"),
        "Python lacks a module; run `make test`, which installs it: {message}"
    );
    assert!(output.status.success(), "{message}");
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn document(service: &Service) -> Value {
    let document = client().get(service.url("/spec")).send().await.unwrap().text().await.unwrap();
    serde_json::from_str(&document).unwrap()
}

/// Checks that the page is complete, without an error, and without a request to another site.
async fn assert_complete(seen: &Seen, service: &Service) {
    assert!(seen.title.contains("operator-service"), "{}", seen.title);
    let document = document(service).await;
    let mut expected = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            expected.push(Operation { path: path.clone(), method: method.to_uppercase() });
        }
    }
    assert!(expected.len() >= 13, "{expected:?}");
    let mut found: Vec<&Operation> = seen.operations.iter().collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected.iter().collect::<Vec<_>>());
    assert_eq!(seen.resolver_errors, 0);

    let own = format!("http://{NAME}:{}/", service.address.port());
    let others: Vec<_> =
        seen.requests.iter().filter(|url| !url.starts_with(&own) && !url.starts_with("data:")).collect();
    assert!(others.is_empty(), "{others:?}");
    assert!(seen.failed.is_empty(), "{:?}", seen.failed);
    // Chromium reports the 4xx responses to operations that were tried out; they are not errors of the page.
    let complaints: Vec<_> = seen
        .console
        .iter()
        .filter(|message| ["error", "warning"].contains(&message.kind.as_str()))
        .filter(|message| !message.text.starts_with("Failed to load resource: the server responded with a status of 4"))
        .collect();
    assert!(complaints.is_empty(), "{complaints:?}");
}

#[tokio::test]
async fn the_page_is_complete_and_its_operations_can_be_tried_out() {
    let fixture = Fixture::with(&[]).await;
    fixture.database.announce("ocean-compute", r#"{"cpuNumber": 8}"#).await;
    let workflow = json!({ "workflow": {}, "agreementId": "0x1111", "owner": OWNER, "providerSignature": "0x00",
                           "environment": "ocean-compute", "nonce": 1 });
    let operations = document(&fixture.service).await;
    let signature = &operations["components"]["schemas"]["ProviderSignature"]["examples"][0];
    let tries = json!([
        { "method": "GET", "path": "/api/v1/operator/environments", "parameters": { "chainId": "1" } },
        { "method": "GET", "path": "/" },
        {
            "method": "GET",
            "path": "/api/v1/operator/compute",
            "parameters": { "owner": OWNER, "providerSignature": signature, "nonce": "1" },
        },
        {
            "method": "PUT",
            "path": "/api/v1/operator/compute",
            "parameters": { "owner": OWNER, "providerSignature": "00".repeat(65), "nonce": "1795300414039237000", "jobId": "" },
        },
        { "method": "POST", "path": "/api/v1/operator/compute", "body": workflow.to_string() },
        {
            "method": "GET",
            "path": "/api/v1/operator/getResult",
            "parameters": { "owner": OWNER, "providerSignature": "00".repeat(65), "nonce": "1", "index": "0", "jobId": "ab" },
        },
    ]);
    let seen = visit(&fixture.service, "", true, tries).await;
    assert_complete(&seen, &fixture.service).await;
    let operations =
        operations["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap().values());
    let answers: usize = operations.map(|operation| operation["responses"].as_object().unwrap().len()).sum();
    assert_eq!(seen.described, answers);

    let own = format!("http://{NAME}:{}", fixture.service.address.port());
    let [environments, root, status, stop, start, result] = &seen.tried[..] else { panic!("{:?}", seen.tried) };
    assert_eq!(environments.status, "200");
    assert_eq!(environments.json()[0]["id"], "ocean-compute");
    assert_eq!(environments.request_url, format!("{own}/api/v1/operator/environments?chainId=1"));
    assert_eq!((root.status.as_str(), &root.json()["software"]), ("200", &json!("Operator service")));
    // The signature of the example, by a signer that is not allowed here.
    assert_eq!(status.status, "401", "{}", status.json());
    let unrecoverable = json!({ "error": "Failed to recover address: no key can have made this signature" });
    assert_eq!((stop.status.as_str(), stop.json()), ("400", unrecoverable));
    // Errors of this route are files, which the page does not show.
    assert_eq!(result.status, "400");
    assert!(stop.request_url.starts_with(&format!("{own}/api/v1/operator/compute?")), "{}", stop.request_url);
    let text = "`workflow` is required in the payload and must include workflow stages";
    assert_eq!((start.status.as_str(), start.json()), ("400", json!({ "error": text })));
}

/// As behind an API Gateway stage, or a proxy with several services.
#[tokio::test]
async fn the_page_works_behind_a_prefix() {
    let database = TestDatabase::migrated().await;
    database.announce("ocean-compute", "{}").await;
    let service = Service::start(&Env::of(database.variables())).await;
    let tries = json!([{ "method": "GET", "path": "/api/v1/operator/environments" }]);
    let seen = visit(&service, "/Prod", false, tries).await;
    assert_complete(&seen, &service).await;
    let own = format!("http://{NAME}:{}/Prod/", service.address.port());
    assert!(seen.requests.iter().all(|url| url.starts_with(&own) || url.starts_with("data:")), "{:?}", seen.requests);
    assert_eq!(seen.tried[0].status, "200");
    assert_eq!(seen.tried[0].json()[0]["id"], "ocean-compute");
    let requested = &seen.tried[0].request_url;
    assert!(requested.starts_with(&format!("{own}api/v1/operator/environments")), "{requested}");
}
