//! The embedded cluster, from outside: through the `kube` crate, and through `kubectl` where there is one.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may")]

use std::{
    path::PathBuf,
    process::{Command, Output},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::{Method, Request, StatusCode};
use fake_kubernetes::{Authenticate, Authentication, EmbeddedCluster, Match, Options, User};
use futures_util::{AsyncBufReadExt, StreamExt, TryStreamExt};
use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{ConfigMap, Event, Namespace, PersistentVolumeClaim, Pod},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, ListParams, LogParams, Patch, PatchParams, PostParams, Preconditions,
        WatchEvent, WatchParams,
    },
    core::Status,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Nothing here takes longer, unless something is wrong.
const LIMIT: Duration = Duration::from_secs(20);
const NS: &str = "ocean-compute";
const WORKFLOWS: &str = "/apis/example.com/v1alpha/namespaces/ocean-compute/workflows";

/// A cluster with one more namespace, and a client for it.
async fn start() -> (EmbeddedCluster, Client) {
    let options = Options { namespaces: vec![NS.to_owned()], ..Options::default() };
    let cluster = EmbeddedCluster::start(options).await.unwrap();
    let client = client(&cluster);
    (cluster, client)
}

fn client(cluster: &EmbeddedCluster) -> Client {
    let mut config = Config::new(cluster.url().parse().unwrap());
    config.default_namespace = NS.to_owned();
    Client::try_from(config).unwrap()
}

fn typed<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn api<K>(client: &Client) -> Api<K>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    K::DynamicType: Default,
{
    Api::namespaced(client.clone(), NS)
}

fn workflows(client: &Client) -> Api<DynamicObject> {
    let resource = ApiResource {
        group: "example.com".to_owned(),
        version: "v1alpha".to_owned(),
        api_version: "example.com/v1alpha".to_owned(),
        kind: "WorkFlow".to_owned(),
        plural: "workflows".to_owned(),
    };
    Api::namespaced_with(client.clone(), NS, &resource)
}

/// The refusal that a call ended with.
fn refusal<T: std::fmt::Debug>(result: Result<T, kube::Error>) -> Status {
    match result {
        Err(kube::Error::Api(status)) => *status,
        other => panic!("a refusal was expected, not {other:?}"),
    }
}

/// One request as it is, with JSON in both directions.
async fn raw(client: &Client, method: Method, path: &str, body: &str, headers: &[(&str, &str)]) -> (StatusCode, Value) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = kube::client::Body::from(body.as_bytes().to_vec());
    let response = client.send(request.body(body).unwrap()).await.unwrap();
    let status = response.status();
    let bytes = response.into_body().collect_bytes().await.unwrap();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

const JSON: (&str, &str) = ("content-type", "application/json");

fn config_map(name: &str) -> ConfigMap {
    typed(json!({ "metadata": { "name": name, "labels": { "app": name } }, "data": { "key": "value" } }))
}

fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": "workflows.example.com" },
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": { "plural": "workflows", "kind": "WorkFlow", "shortNames": ["wf"] },
            "versions": [{
                "name": "v1alpha",
                "served": true,
                "storage": true,
                "subresources": { "status": {} },
                "additionalPrinterColumns": [
                    { "name": "Status", "type": "string", "jsonPath": ".status.text" },
                    { "name": "Owner", "type": "string", "jsonPath": ".spec.metadata.owner", "priority": 1 },
                    { "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" },
                ],
                "schema": { "openAPIV3Schema": {
                    "type": "object",
                    "required": ["spec"],
                    "properties": {
                        "spec": {
                            "type": "object",
                            "required": ["metadata"],
                            "properties": {
                                "attempts": { "type": "integer", "minimum": 1, "default": 1 },
                                "metadata": {
                                    "type": "object",
                                    "required": ["stages"],
                                    "x-kubernetes-preserve-unknown-fields": true,
                                    "properties": { "stages": {
                                        "type": "array",
                                        "items": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
                                    } },
                                },
                            },
                        },
                        "status": { "type": "object", "properties": { "text": { "type": "string" } } },
                    },
                } },
            }],
        },
    })
}

async fn define(client: &Client) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let created = definitions.create(&PostParams::default(), &typed(definition())).await.unwrap();
    let established = created.status.unwrap().conditions.unwrap();
    assert!(established.iter().any(|condition| condition.type_ == "Established" && condition.status == "True"));
}

fn workflow(name: &str) -> DynamicObject {
    typed(json!({
        "apiVersion": "example.com/v1alpha",
        "kind": "WorkFlow",
        "metadata": { "name": name, "labels": { "workflow": name } },
        "spec": { "metadata": { "owner": "0xabc", "stages": [{ "index": 0 }] } },
    }))
}

fn job(name: &str, backoff_limit: i32) -> Job {
    typed(json!({
        "metadata": { "name": name, "labels": { "app": "job" } },
        "spec": {
            "backoffLimit": backoff_limit,
            "template": {
                "metadata": { "labels": { "component": "algorithm" } },
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [{ "name": "algorithm", "image": "alpine" }],
                },
            },
        },
    }))
}

/// Waits for the one pod of a Job that has not ended.
async fn active_pod(cluster: &EmbeddedCluster, job: &str) -> String {
    let found = cluster.wait_for(LIMIT, |cluster| {
        cluster
            .objects("pods")
            .iter()
            .find(|pod| {
                pod["metadata"]["labels"]["job-name"] == job
                    && pod["status"]["phase"] == "Pending"
                    && pod["metadata"]["deletionTimestamp"].is_null()
            })
            .map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned())
    });
    found.await.expect("a pod of the job")
}

/// Plays the kubelet.
async fn set_phase(client: &Client, pod: &str, phase: &str) {
    let patch = Patch::Merge(json!({ "status": { "phase": phase } }));
    api::<Pod>(client).patch_status(pod, &PatchParams::default(), &patch).await.unwrap();
}

/// Waits until an object is gone.
async fn gone(cluster: &EmbeddedCluster, resource: &str, name: &str) {
    let gone = cluster.wait_for(LIMIT, |cluster| cluster.object(resource, NS, name).is_none().then_some(()));
    gone.await.unwrap_or_else(|| panic!("{resource} {name} is still there"));
}

/// A name for something on disk that no other test has.
fn scratch(what: &str) -> PathBuf {
    std::env::temp_dir().join(format!("devstack-cluster-{what}-{}", uuid::Uuid::new_v4()))
}

#[tokio::test]
async fn discovery_says_what_is_served() {
    let (_cluster, client) = start().await;
    assert_eq!(client.apiserver_version().await.unwrap().major, "1");
    let core = client.list_core_api_resources("v1").await.unwrap();
    let names: Vec<&str> = core.resources.iter().map(|resource| resource.name.as_str()).collect();
    for name in ["namespaces", "pods", "pods/log", "pods/status", "configmaps", "persistentvolumeclaims", "events"] {
        assert!(names.contains(&name), "{name}");
    }
    let groups = client.list_api_groups().await.unwrap().groups;
    assert!(groups.iter().any(|group| group.name == "batch"));
    assert!(!groups.iter().any(|group| group.name == "example.com"));

    define(&client).await;
    let custom = client.list_api_group_resources("example.com/v1alpha").await.unwrap();
    assert_eq!(custom.resources[0].short_names.as_deref(), Some(&["wf".to_owned()][..]));
    assert_eq!(custom.resources[0].singular_name, "workflow");
    let aggregated = client.list_api_groups_aggregated().await.unwrap();
    let found = aggregated
        .items
        .iter()
        .find(|group| group.metadata.as_ref().and_then(|metadata| metadata.name.as_deref()) == Some("example.com"));
    assert_eq!(found.unwrap().versions[0].resources[0].resource.as_deref(), Some("workflows"));

    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(raw(&client, Method::GET, path, "", &[]).await, (StatusCode::OK, json!("ok")));
    }
    let (_, paths) = raw(&client, Method::GET, "/openapi/v3", "", &[]).await;
    let path = paths["paths"]["apis/example.com/v1alpha"]["serverRelativeURL"].as_str().unwrap();
    let (_, document) = raw(&client, Method::GET, path, "", &[]).await;
    assert_eq!(document["components"]["schemas"]["com.example.v1alpha.WorkFlow"]["type"], "object");
}

#[tokio::test]
async fn objects_are_created_read_replaced_and_deleted() {
    let (_cluster, client) = start().await;
    let maps: Api<ConfigMap> = api(&client);
    let created = maps.create(&PostParams::default(), &config_map("a")).await.unwrap();
    assert!(created.uid().is_some() && created.creation_timestamp().is_some());

    let again = refusal(maps.create(&PostParams::default(), &config_map("a")).await);
    assert_eq!((again.code, again.reason.as_str()), (409, "AlreadyExists"));
    assert_eq!(again.message, "configmaps \"a\" already exists");
    let missing = refusal(maps.get("none").await);
    assert_eq!((missing.code, missing.reason.as_str()), (404, "NotFound"));
    assert_eq!(missing.message, "configmaps \"none\" not found");
    assert_eq!(missing.details.unwrap().kind, "configmaps");

    let generated: ConfigMap = typed(json!({ "metadata": { "generateName": "gen-" } }));
    let generated = maps.create(&PostParams::default(), &generated).await.unwrap();
    assert_eq!(generated.name_any().len(), "gen-".len() + 5);

    let mut first = created.clone();
    first.data = typed(json!({ "key": "first" }));
    let first = maps.replace("a", &PostParams::default(), &first).await.unwrap();
    assert_ne!(first.resource_version(), created.resource_version());
    let stale = refusal(maps.replace("a", &PostParams::default(), &created).await);
    assert_eq!((stale.code, stale.reason.as_str()), (409, "Conflict"));
    assert_eq!(
        stale.message,
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; \
        please apply your changes to the latest version and try again"
    );
    let same = maps.replace("a", &PostParams::default(), &first).await.unwrap();
    assert_eq!(same.resource_version(), first.resource_version(), "nothing changed");

    let dry = PostParams { dry_run: true, ..PostParams::default() };
    maps.create(&dry, &config_map("dry")).await.unwrap();
    assert!(maps.get_opt("dry").await.unwrap().is_none());

    let wrong = Preconditions { uid: Some("other".to_owned()), resource_version: None };
    let params = DeleteParams::default().preconditions(wrong);
    assert_eq!(refusal(maps.delete("a", &params).await).code, 409);
    let wrong = Preconditions { uid: None, resource_version: created.resource_version() };
    let params = DeleteParams::default().preconditions(wrong);
    assert_eq!(refusal(maps.delete("a", &params).await).code, 409);
    let right = Preconditions { uid: created.uid(), resource_version: first.resource_version() };
    let params = DeleteParams::default().preconditions(right);
    let deleted = maps.delete("a", &params).await.unwrap().right().expect("a Status");
    assert_eq!(deleted.details.unwrap().uid, created.uid().unwrap());
    assert_eq!(refusal(maps.delete("a", &DeleteParams::default()).await).code, 404);
}

#[tokio::test]
async fn what_breaks_a_rule_is_refused() {
    let (_cluster, client) = start().await;
    let maps: Api<ConfigMap> = api(&client);
    let create = async |object: Value| refusal(maps.create(&PostParams::default(), &typed(object)).await);
    let name = create(json!({ "metadata": { "name": "Upper_Case" } })).await;
    assert_eq!((name.code, name.reason.as_str()), (422, "Invalid"));
    assert_eq!(name.details.unwrap().causes[0].field, "metadata.name");
    let nameless = create(json!({ "metadata": {} })).await;
    assert_eq!(
        nameless.message,
        "ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required"
    );
    let label = create(json!({ "metadata": { "name": "a", "labels": { "a": "not a label" } } })).await;
    assert_eq!(label.code, 422);
    let large = create(json!({ "metadata": { "name": "a" }, "data": { "a": "x".repeat(1024 * 1024 + 1) } })).await;
    assert_eq!(large.message, "ConfigMap \"a\" is invalid: []: Too long: may not be more than 1048576 bytes");
    let larger = create(json!({ "metadata": { "name": "a" }, "data": { "a": "x".repeat(3 * 1024 * 1024) } })).await;
    assert_eq!((larger.code, larger.reason.as_str()), (413, "RequestEntityTooLarge"));

    let other: Api<ConfigMap> = Api::namespaced(client.clone(), "none");
    let nowhere = refusal(other.create(&PostParams::default(), &config_map("a")).await);
    assert_eq!((nowhere.code, nowhere.message.as_str()), (404, "namespaces \"none\" not found"));
    assert!(other.list(&ListParams::default()).await.unwrap().items.is_empty());

    let endless = json!({ "restartPolicy": "Always", "containers": [{ "name": "a", "image": "a" }] });
    let endless: Job = typed(json!({ "metadata": { "name": "a" }, "spec": { "template": { "spec": endless } } }));
    let endless = refusal(api(&client).create(&PostParams::default(), &endless).await);
    assert_eq!(
        endless.message,
        "Job.batch \"a\" is invalid: spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""
    );
    let resources =
        json!({ "requests": { "cpu": "2", "memory": "1Gi" }, "limits": { "cpu": "1500m", "memory": "1024Mi" } });
    let greedy =
        json!({ "restartPolicy": "Never", "containers": [{ "name": "a", "image": "a", "resources": resources }] });
    let greedy: Job = typed(json!({ "metadata": { "name": "a" }, "spec": { "template": { "spec": greedy } } }));
    let greedy = refusal(api(&client).create(&PostParams::default(), &greedy).await);
    assert_eq!(
        greedy.message,
        "Job.batch \"a\" is invalid: spec.template.spec.containers[0].resources.requests: Invalid value: \"2\": \
        must be less than or equal to cpu limit of 1500m"
    );
    let long = "a".repeat(64);
    let long = refusal(api(&client).create(&PostParams::default(), &job(&long, 0)).await);
    assert!(long.message.contains("spec.template.labels") && long.message.contains("must be no more than 63 bytes"));
    let claim: PersistentVolumeClaim = typed(json!({ "metadata": { "name": "a" }, "spec": {} }));
    assert_eq!(refusal(api(&client).create(&PostParams::default(), &claim).await).code, 422);
}

#[tokio::test]
async fn requests_that_make_no_sense_are_answered_as_by_the_real_one() {
    let (_cluster, client) = start().await;
    define(&client).await;
    let maps = "/api/v1/namespaces/ocean-compute/configmaps";
    let merge = ("content-type", "application/merge-patch+json");
    let strategic = ("content-type", "application/strategic-merge-patch+json");
    for (method, path, body, header, code, reason) in [
        (Method::GET, "/api/v1/nothing", "", JSON, 404, "NotFound"),
        (Method::DELETE, "/api/v1/namespaces", "", JSON, 405, "MethodNotAllowed"),
        (Method::POST, maps, "{", JSON, 400, "BadRequest"),
        (Method::POST, maps, "x", ("content-type", "text/plain"), 415, "UnsupportedMediaType"),
        (Method::GET, maps, "", ("accept", "application/xml"), 406, "NotAcceptable"),
        (Method::PATCH, "/api/v1/namespaces/ocean-compute/configmaps/none", "{}", merge, 404, "NotFound"),
        (
            Method::PATCH,
            "/apis/example.com/v1alpha/namespaces/ocean-compute/workflows/a",
            "{}",
            strategic,
            415,
            "UnsupportedMediaType",
        ),
        (Method::GET, "/api/v1/pods?labelSelector=a%20b", "", JSON, 400, "BadRequest"),
        (Method::GET, "/api/v1/pods?fieldSelector=spec.none%3Da", "", JSON, 400, "BadRequest"),
        (Method::GET, "/api/v1/pods?limit=x", "", JSON, 400, "BadRequest"),
        (Method::GET, "/api/v1/pods?continue=x", "", JSON, 400, "BadRequest"),
        (Method::POST, maps, r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a"}}"#, JSON, 400, "BadRequest"),
        (Method::POST, maps, r#"{"metadata":{"name":"a","namespace":"other"}}"#, JSON, 400, "BadRequest"),
        (Method::DELETE, "/api/v1/namespaces/default?propagationPolicy=Never", "", JSON, 422, "Invalid"),
    ] {
        let (status, body) = raw(&client, method.clone(), path, body, &[header]).await;
        assert_eq!((status.as_u16(), body["reason"].as_str()), (code, Some(reason)), "{method} {path} {body}");
        assert_eq!((&body["kind"], &body["code"]), (&json!("Status"), &json!(code)));
    }
    for path in ["/nothing", "/apis/none/v1", "/apis/example.com/v1alpha/nothing"] {
        let answer = raw(&client, Method::GET, path, "", &[]).await;
        assert_eq!(answer, (StatusCode::NOT_FOUND, json!("404 page not found\n")), "{path}");
    }
    let yaml = "metadata:\n  name: from-yaml\n";
    let (status, _) = raw(&client, Method::POST, maps, yaml, &[("content-type", "application/yaml")]).await;
    assert_eq!(status, StatusCode::CREATED);
}

#[tokio::test]
async fn every_format_of_a_patch() {
    let (_cluster, client) = start().await;
    let maps: Api<ConfigMap> = api(&client);
    let params = PatchParams::default();
    maps.create(&PostParams::default(), &config_map("a")).await.unwrap();
    let data = |map: ConfigMap| json!(map.data);

    let patch = json!({ "data": { "key": null, "merged": "1" } });
    let merged = maps.patch("a", &params, &Patch::Merge(patch)).await.unwrap();
    assert_eq!(data(merged), json!({ "merged": "1" }));
    let patch = json!({ "data": { "strategic": "2" } });
    let merged = maps.patch("a", &params, &Patch::Strategic(patch)).await.unwrap();
    assert_eq!(data(merged), json!({ "merged": "1", "strategic": "2" }));

    let patch = json!([
        { "op": "test", "path": "/data/merged", "value": "1" },
        { "op": "remove", "path": "/data/merged" },
    ]);
    let json_patch = |body: String| {
        let client = client.clone();
        async move {
            let path = "/api/v1/namespaces/ocean-compute/configmaps/a";
            let header = ("content-type", "application/json-patch+json");
            raw(&client, Method::PATCH, path, &body, &[header]).await
        }
    };
    let (status, patched) = json_patch(patch.to_string()).await;
    assert_eq!((status, &patched["data"]), (StatusCode::OK, &json!({ "strategic": "2" })));
    let (status, refused) = json_patch(patch.to_string()).await;
    assert_eq!((status.as_u16(), &refused["reason"]), (422, &json!("Invalid")), "the test fails now");

    let stale = json!({ "metadata": { "resourceVersion": "1" }, "data": { "stale": "3" } });
    assert_eq!(refusal(maps.patch("a", &params, &Patch::Merge(stale)).await).code, 409);

    // Server-side apply: creates, changes nothing if nothing changed, takes away what it no longer says.
    let manager = PatchParams::apply("test");
    let applied = |data: Value| {
        Patch::Apply(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "s" }, "data": data }))
    };
    let first = maps.patch("s", &manager, &applied(json!({ "a": "1", "b": "2" }))).await.unwrap();
    assert_eq!(data(first), json!({ "a": "1", "b": "2" }));
    let other = json!({ "data": { "c": "3" } });
    maps.patch("s", &params, &Patch::Merge(other)).await.unwrap();
    let second = maps.patch("s", &manager, &applied(json!({ "a": "1" }))).await.unwrap();
    assert_eq!(data(second), json!({ "a": "1", "c": "3" }));
    let unnamed = refusal(maps.patch("s", &params, &applied(json!({}))).await);
    assert_eq!(unnamed.code, 422, "{}", unnamed.message);
}

#[tokio::test]
async fn a_definition_is_served_validated_pruned_and_defaulted() {
    let (_cluster, client) = start().await;
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut loose = definition();
    loose["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["attempts"] =
        json!({ "minimum": 1 });
    let loose = refusal(definitions.create(&PostParams::default(), &typed(loose)).await);
    assert_eq!(
        loose.message,
        "CustomResourceDefinition.apiextensions.k8s.io \"workflows.example.com\" is invalid: \
        spec.validation.openAPIV3Schema.properties[spec].properties[attempts].type: Required value: \
        must not be empty for specified object fields"
    );
    define(&client).await;

    let workflows = workflows(&client);
    let create = async |change: fn(&mut Value)| {
        let mut object = json!(workflow("bad"));
        change(&mut object);
        refusal(workflows.create(&PostParams::default(), &typed(object)).await).message
    };
    let invalid = "WorkFlow.example.com \"bad\" is invalid: ";
    let message = create(|object| object["spec"]["attempts"] = json!("three")).await;
    assert_eq!(
        message,
        format!(
            "{invalid}spec.attempts: Invalid value: \"string\": spec.attempts in body must be of type integer: \"string\""
        )
    );
    let message = create(|object| object["spec"]["attempts"] = json!(0)).await;
    assert_eq!(
        message,
        format!("{invalid}spec.attempts: Invalid value: 0: spec.attempts in body should be greater than or equal to 1")
    );
    let message = create(|object| object["spec"]["metadata"] = json!({})).await;
    assert_eq!(message, format!("{invalid}spec.metadata.stages: Required value"));
    let message = create(|object| object["spec"] = Value::Null).await;
    assert_eq!(message, format!("{invalid}spec: Required value"));

    let mut object = json!(workflow("a"));
    object["metadata"]["secret"] = json!("0123");
    object["spec"]["unknown"] = json!(1);
    object["spec"]["metadata"]["kept"] = json!({ "deep": [1] });
    object["status"] = json!({ "text": "not by this door" });
    let body = object.to_string();
    let (status, refused) =
        raw(&client, Method::POST, &format!("{WORKFLOWS}?fieldValidation=Strict"), &body, &[JSON]).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(
        refused["message"],
        "WorkFlow in version \"v1alpha\" cannot be handled as a WorkFlow: strict decoding error: \
        unknown field \"metadata.secret\", unknown field \"spec.unknown\""
    );
    let (status, created) = raw(&client, Method::POST, WORKFLOWS, &body, &[JSON]).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(created["metadata"]["secret"], Value::Null);
    assert_eq!(created["status"], Value::Null);
    assert_eq!(
        created["spec"],
        json!({ "metadata": { "owner": "0xabc", "stages": [{ "index": 0 }], "kept": { "deep": [1] } }, "attempts": 1 })
    );

    // With the definition its objects go.
    definitions.delete("workflows.example.com", &DeleteParams::default()).await.unwrap();
    assert_eq!(raw(&client, Method::GET, WORKFLOWS, "", &[]).await.0, StatusCode::NOT_FOUND);
    define(&client).await;
    assert!(workflows.list(&ListParams::default()).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn spec_and_status_have_a_door_each() {
    let (_cluster, client) = start().await;
    define(&client).await;
    let workflows = workflows(&client);
    let created = workflows.create(&PostParams::default(), &workflow("a")).await.unwrap();
    assert_eq!(created.metadata.generation, Some(1));

    let both = json!({ "spec": { "attempts": 2 }, "status": { "text": "x" } });
    let params = PatchParams::default();
    let patched = workflows.patch("a", &params, &Patch::Merge(&both)).await.unwrap();
    assert_eq!((&patched.data["spec"]["attempts"], patched.data.get("status")), (&json!(2), None));
    assert_eq!(patched.metadata.generation, Some(2));

    let both = json!({ "spec": { "attempts": 3 }, "status": { "text": "y" } });
    let patched = workflows.patch_status("a", &params, &Patch::Merge(&both)).await.unwrap();
    assert_eq!(patched.data["spec"]["attempts"], 2);
    assert_eq!(patched.data["status"]["text"], "y");
    assert_eq!(patched.metadata.generation, Some(2));

    let labels = json!({ "metadata": { "labels": { "x": "y" } } });
    let patched = workflows.patch("a", &params, &Patch::Merge(&labels)).await.unwrap();
    assert_eq!(patched.metadata.generation, Some(2));
    let wrong = json!({ "status": { "text": 1 } });
    assert_eq!(refusal(workflows.patch_status("a", &params, &Patch::Merge(&wrong)).await).code, 422);

    let mut unversioned = patched.clone();
    unversioned.metadata.resource_version = None;
    let unversioned = refusal(workflows.replace("a", &PostParams::default(), &unversioned).await);
    assert!(
        unversioned.message.ends_with("metadata.resourceVersion: Invalid value: 0: must be specified for an update")
    );
}

#[tokio::test]
async fn lists_are_selected_and_paged_consistently() {
    let (cluster, client) = start().await;
    let maps: Api<ConfigMap> = api(&client);
    for name in ["a", "b", "c", "d", "e"] {
        maps.create(&PostParams::default(), &config_map(name)).await.unwrap();
    }
    let names = async |params: ListParams| -> Vec<String> {
        maps.list(&params).await.unwrap().iter().map(ResourceExt::name_any).collect()
    };
    assert_eq!(names(ListParams::default().labels("app in (a, b),app!=b")).await, ["a"]);
    assert_eq!(names(ListParams::default().labels("!app")).await, [""; 0]);
    assert_eq!(names(ListParams::default().fields("metadata.name=c")).await, ["c"]);
    let everywhere: Api<ConfigMap> = Api::all(client.clone());
    assert_eq!(everywhere.list(&ListParams::default()).await.unwrap().items.len(), 5);

    let page = |token: Option<String>| {
        let params = ListParams::default().limit(2);
        token.iter().fold(params, |params, token| params.continue_token(token))
    };
    let first = maps.list(&page(None)).await.unwrap();
    assert_eq!(first.metadata.remaining_item_count, Some(3));
    maps.delete("d", &DeleteParams::default()).await.unwrap();
    maps.create(&PostParams::default(), &config_map("cc")).await.unwrap();
    let second = maps.list(&page(first.metadata.continue_.clone())).await.unwrap();
    let found: Vec<String> = second.iter().map(ResourceExt::name_any).collect();
    assert_eq!(found, ["c", "d"], "as it was when the first page was read");
    assert_eq!(second.metadata.resource_version, first.metadata.resource_version);
    let third = maps.list(&page(second.metadata.continue_.clone())).await.unwrap();
    assert_eq!((third.items.len(), third.metadata.continue_), (1, None));

    // After a compaction the refusal says how to go on all the same.
    maps.create(&PostParams::default(), &config_map("f")).await.unwrap();
    cluster.forget_history();
    let expired = refusal(maps.list(&page(first.metadata.continue_)).await);
    assert_eq!((expired.code, expired.reason.as_str()), (410, "Expired"));
    let second = maps.list(&page(expired.metadata.unwrap().continue_)).await.unwrap();
    let found: Vec<String> = second.iter().map(ResourceExt::name_any).collect();
    assert_eq!(found, ["c", "cc"], "as it is now");

    let metadata = maps.list_metadata(&ListParams::default().labels("app=a")).await.unwrap();
    assert_eq!(metadata.items[0].name_any(), "a");
    assert!(!json!(metadata).to_string().contains("value"));
}

#[tokio::test]
async fn a_watch_shows_what_happens_to_what_it_selects() {
    let (cluster, client) = start().await;
    let maps: Api<ConfigMap> = api(&client);
    let selected = WatchParams::default().labels("app=a").timeout(60);
    let before = maps.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();

    maps.create(&PostParams::default(), &config_map("a")).await.unwrap();
    maps.create(&PostParams::default(), &config_map("b")).await.unwrap();
    let data = json!({ "data": { "more": "x" } });
    maps.patch("a", &PatchParams::default(), &Patch::Merge(&data)).await.unwrap();
    let mut events = maps.watch(&selected, &before).await.unwrap().boxed();
    let mut seen = Vec::new();
    let mut next = async || match tokio::time::timeout(LIMIT, events.next()).await.unwrap() {
        Some(Ok(WatchEvent::Added(map))) => format!("added {}", map.name_any()),
        Some(Ok(WatchEvent::Modified(map))) => format!("modified {}", map.name_any()),
        Some(Ok(WatchEvent::Deleted(map))) => format!("deleted {}", map.name_any()),
        other => format!("{other:?}"),
    };
    for _ in 0..2 {
        seen.push(next().await);
    }
    // While the watch is open: out of the selection, into it again, and gone.
    let relabel = |label: &str| Patch::Merge(json!({ "metadata": { "labels": { "app": label } } }));
    maps.patch("a", &PatchParams::default(), &relabel("other")).await.unwrap();
    maps.patch("b", &PatchParams::default(), &relabel("a")).await.unwrap();
    maps.delete("b", &DeleteParams::default()).await.unwrap();
    for _ in 0..3 {
        seen.push(next().await);
    }
    assert_eq!(seen, ["added a", "modified a", "deleted a", "added b", "deleted b"]);

    let short = WatchParams::default().timeout(1);
    let last: Vec<_> = maps.watch(&short, "0").await.unwrap().try_collect().await.unwrap();
    assert!(matches!(&last[..], [WatchEvent::Added(_), WatchEvent::Bookmark(_)]), "{last:?}");

    cluster.forget_history();
    let mut events = maps.watch(&selected, &before).await.unwrap().boxed();
    match events.next().await {
        Some(Ok(WatchEvent::Error(status))) => assert_eq!((status.code, status.reason.as_str()), (410, "Expired")),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_job_makes_a_pod_and_counts_how_it_ends() {
    let (cluster, client) = start().await;
    let (jobs, pods): (Api<Job>, Api<Pod>) = (api(&client), api(&client));
    let created = jobs.create(&PostParams::default(), &job("good", 0)).await.unwrap();
    let pod = active_pod(&cluster, "good").await;
    assert!(pod.starts_with("good-"));
    let found = pods.get(&pod).await.unwrap();
    assert_eq!(found.labels()["component"], "algorithm");
    assert_eq!(found.labels()["batch.kubernetes.io/job-name"], "good");
    assert_eq!(found.labels()["controller-uid"], created.uid().unwrap());
    assert_eq!(found.owner_references()[0].uid, created.uid().unwrap());
    let by_job = ListParams::default().labels("job-name=good").fields("status.phase=Pending");
    assert_eq!(pods.list(&by_job).await.unwrap().items.len(), 1);

    let condition = async |job: &str, wanted: &str| {
        let found = cluster.wait_for(LIMIT, |cluster| {
            let job = cluster.object("jobs.batch", NS, job)?;
            let conditions = job["status"]["conditions"].as_array()?.clone();
            conditions.iter().any(|condition| condition["type"] == wanted).then(|| job["status"].clone())
        });
        found.await.unwrap_or_else(|| panic!("{job} is not {wanted}"))
    };
    set_phase(&client, &pod, "Running").await;
    let running = cluster.wait_for(LIMIT, |cluster| {
        let job = cluster.object("jobs.batch", NS, "good")?;
        (job["status"]["ready"] == 1).then(|| job["status"].clone())
    });
    assert_eq!(running.await.unwrap()["active"], 1);
    set_phase(&client, &pod, "Succeeded").await;
    let status = condition("good", "Complete").await;
    assert_eq!(status["succeeded"], 1);
    assert!(status["completionTime"].is_string() && status["startTime"].is_string());

    // Two failures are one too many.
    jobs.create(&PostParams::default(), &job("bad", 1)).await.unwrap();
    for _ in 0..2 {
        let pod = active_pod(&cluster, "bad").await;
        set_phase(&client, &pod, "Failed").await;
    }
    let status = condition("bad", "Failed").await;
    assert_eq!((&status["failed"], &status["succeeded"]), (&json!(2), &Value::Null));
    assert_eq!(status["conditions"][1]["reason"], "BackoffLimitExceeded");

    // Where containers are started again in their pod, that counts too, and the pod goes.
    let mut restarted = job("restarted", 2);
    restarted.spec.as_mut().unwrap().template.spec.as_mut().unwrap().restart_policy = Some("OnFailure".to_owned());
    jobs.create(&PostParams::default(), &restarted).await.unwrap();
    let pod = active_pod(&cluster, "restarted").await;
    for restarts in 1..=2 {
        assert!(pods.get_opt(&pod).await.unwrap().is_some());
        let status = json!({ "phase": "Running", "containerStatuses": [{
            "name": "algorithm", "image": "alpine", "imageID": "", "ready": true, "restartCount": restarts,
        }] });
        let patch = Patch::Merge(json!({ "status": status }));
        pods.patch_status(&pod, &PatchParams::default(), &patch).await.unwrap();
    }
    let status = condition("restarted", "Failed").await;
    assert_eq!((&status["failed"], &status["active"]), (&json!(1), &Value::Null));
    assert_eq!(status["conditions"][1]["reason"], "BackoffLimitExceeded");
    gone(&cluster, "pods", &pod).await;

    // What is paused has no pods.
    let mut paused = job("paused", 0);
    paused.spec.as_mut().unwrap().suspend = Some(true);
    jobs.create(&PostParams::default(), &paused).await.unwrap();
    condition("paused", "Suspended").await;
    assert!(cluster.objects("pods").iter().all(|pod| pod["metadata"]["labels"]["job-name"] != "paused"));
    let resume = Patch::Merge(json!({ "spec": { "suspend": false } }));
    jobs.patch("paused", &PatchParams::default(), &resume).await.unwrap();
    active_pod(&cluster, "paused").await;

    let change =
        json!({ "spec": { "template": { "spec": { "containers": [{ "name": "algorithm", "image": "other" }] } } } });
    let change = refusal(jobs.patch("paused", &PatchParams::default(), &Patch::Strategic(change)).await);
    assert!(change.message.ends_with("field is immutable"));
}

#[tokio::test]
async fn deletion_propagates_as_it_is_told() {
    let (cluster, client) = start().await;
    let (jobs, pods): (Api<Job>, Api<Pod>) = (api(&client), api(&client));
    let make = async |name: &str| {
        jobs.create(&PostParams::default(), &job(name, 0)).await.unwrap();
        active_pod(&cluster, name).await
    };

    let pod = make("background").await;
    jobs.delete("background", &DeleteParams::background()).await.unwrap().right().expect("a Status");
    gone(&cluster, "pods", &pod).await;

    // In the foreground the Job outlives its pods, here held by a finalizer of someone else's.
    let pod = make("foreground").await;
    let hold = Patch::Merge(json!({ "metadata": { "finalizers": ["example.com/hold"] } }));
    pods.patch(&pod, &PatchParams::default(), &hold).await.unwrap();
    let marked = jobs.delete("foreground", &DeleteParams::foreground()).await.unwrap().left().expect("the Job");
    assert_eq!(marked.finalizers(), ["foregroundDeletion"]);
    let waiting = cluster.wait_for(LIMIT, |cluster| {
        let pod = cluster.object("pods", NS, &pod)?;
        pod["metadata"]["deletionTimestamp"].is_string().then_some(())
    });
    waiting.await.expect("the pod is marked");
    assert!(jobs.get_opt("foreground").await.unwrap().is_some());
    let another = Patch::Merge(json!({ "metadata": { "finalizers": ["example.com/hold", "example.com/more"] } }));
    assert_eq!(refusal(pods.patch(&pod, &PatchParams::default(), &another).await).code, 422);
    let release = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    pods.patch(&pod, &PatchParams::default(), &release).await.unwrap();
    gone(&cluster, "pods", &pod).await;
    gone(&cluster, "jobs.batch", "foreground").await;

    let pod = make("orphan").await;
    jobs.delete("orphan", &DeleteParams::orphan()).await.unwrap();
    gone(&cluster, "jobs.batch", "orphan").await;
    assert!(pods.get(&pod).await.unwrap().owner_references().is_empty());

    // Jobs orphan their pods if nobody says anything, and the server warns of it.
    let pod = make("unsaid").await;
    let request = Request::delete("/apis/batch/v1/namespaces/ocean-compute/jobs/unsaid");
    let response = client.send(request.body(kube::client::Body::empty()).unwrap()).await.unwrap();
    let warning = response.headers()["warning"].to_str().unwrap();
    assert!(warning.contains("child pods are preserved by default"), "{warning}");
    gone(&cluster, "jobs.batch", "unsaid").await;
    pods.get(&pod).await.expect("the pod stays");

    // A pod whose Job goes on without it is replaced.
    let pod = {
        jobs.create(&PostParams::default(), &job("replaced", 5)).await.unwrap();
        active_pod(&cluster, "replaced").await
    };
    pods.delete(&pod, &DeleteParams::default()).await.unwrap();
    gone(&cluster, "pods", &pod).await;
    assert_ne!(active_pod(&cluster, "replaced").await, pod);

    // Whoever names an owner that does not exist is garbage.
    let mut lost = config_map("lost");
    lost.metadata.owner_references = typed(json!([
        { "apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "nobody" },
    ]));
    api::<ConfigMap>(&client).create(&PostParams::default(), &lost).await.unwrap();
    gone(&cluster, "configmaps", "lost").await;
}

#[tokio::test]
async fn collections_and_namespaces_are_emptied() {
    let (cluster, client) = start().await;
    let maps: Api<ConfigMap> = api(&client);
    for name in ["a", "b", "c"] {
        maps.create(&PostParams::default(), &config_map(name)).await.unwrap();
    }
    let selected = ListParams::default().labels("app in (a,b)");
    maps.delete_collection(&DeleteParams::default(), &selected).await.unwrap();
    let left: Vec<String> =
        maps.list(&ListParams::default()).await.unwrap().iter().map(ResourceExt::name_any).collect();
    assert_eq!(left, ["c"]);

    // A claim is not taken away from under a pod.
    let claim: PersistentVolumeClaim = typed(json!({
        "metadata": { "name": "data" },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } },
    }));
    let claims: Api<PersistentVolumeClaim> = api(&client);
    claims.create(&PostParams::default(), &claim).await.unwrap();
    let pod: Pod = typed(json!({ "metadata": { "name": "user" }, "spec": {
        "containers": [{ "name": "a", "image": "a" }],
        "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": "data" } }],
    } }));
    api::<Pod>(&client).create(&PostParams::default(), &pod).await.unwrap();
    let marked = claims.delete("data", &DeleteParams::default()).await.unwrap().left().expect("the claim");
    assert_eq!(marked.finalizers(), ["kubernetes.io/pvc-protection"]);

    let namespaces: Api<Namespace> = Api::all(client.clone());
    let held = Patch::Merge(json!({ "metadata": { "finalizers": ["example.com/hold"] } }));
    maps.patch("c", &PatchParams::default(), &held).await.unwrap();
    let marked = namespaces.delete(NS, &DeleteParams::default()).await.unwrap().left().expect("the namespace");
    assert_eq!(marked.status.unwrap().phase.as_deref(), Some("Terminating"));
    let late = refusal(maps.create(&PostParams::default(), &config_map("late")).await);
    assert_eq!((late.code, late.reason.as_str()), (403, "Forbidden"));
    gone(&cluster, "persistentvolumeclaims", "data").await;
    gone(&cluster, "pods", "user").await;
    assert!(namespaces.get_opt(NS).await.unwrap().is_some(), "something is held");
    maps.patch("c", &PatchParams::default(), &Patch::Merge(json!({ "metadata": { "finalizers": null } })))
        .await
        .unwrap();
    let empty = cluster.wait_for(LIMIT, |cluster| cluster.object("namespaces", "", NS).is_none().then_some(()));
    empty.await.expect("the namespace is gone");
}

#[tokio::test]
async fn logs_are_kept_cut_and_followed() {
    let (cluster, client) = start().await;
    let pods: Api<Pod> = api(&client);
    let pod: Pod =
        typed(json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "c", "image": "a" }] } }));
    pods.create(&PostParams::default(), &pod).await.unwrap();
    assert_eq!(pods.logs("p", &LogParams::default()).await.unwrap(), "");
    let write = async |text: &str, append: bool| {
        let path = format!("/api/v1/namespaces/{NS}/pods/p/log?append={append}");
        assert_eq!(raw(&client, Method::PUT, &path, text, &[]).await.0, StatusCode::OK);
    };
    write("gone\n", false).await;
    write("one\n", false).await;
    write("two\nthree\n", true).await;
    let read = async |params: LogParams| pods.logs("p", &params).await;
    assert_eq!(read(LogParams::default()).await.unwrap(), "one\ntwo\nthree\n");
    let tail = LogParams { tail_lines: Some(1), container: Some("c".to_owned()), ..LogParams::default() };
    assert_eq!(read(tail).await.unwrap(), "three\n");
    let limited = LogParams { limit_bytes: Some(5), ..LogParams::default() };
    assert_eq!(read(limited).await.unwrap(), "one\nt");
    let previous = LogParams { previous: true, ..LogParams::default() };
    assert_eq!(refusal(read(previous).await).code, 400);
    let other = LogParams { container: Some("x".to_owned()), ..LogParams::default() };
    assert_eq!(refusal(read(other).await).message, "container x is not valid for pod p");

    // A reader who follows hears of each line, and of the end.
    set_phase(&client, "p", "Running").await;
    let follow = LogParams { follow: true, tail_lines: Some(1), ..LogParams::default() };
    let mut lines = pods.log_stream("p", &follow).await.unwrap().lines();
    assert_eq!(lines.try_next().await.unwrap().as_deref(), Some("three"));
    write("four\n", true).await;
    assert_eq!(lines.try_next().await.unwrap().as_deref(), Some("four"));
    set_phase(&client, "p", "Succeeded").await;
    assert_eq!(lines.try_next().await.unwrap(), None);

    write(&"x".repeat(1024 * 1024), true).await;
    write("the end", true).await;
    let kept = read(LogParams::default()).await.unwrap();
    assert_eq!(kept.len(), 1024 * 1024);
    assert!(kept.ends_with("the end"));

    let waiting = json!({ "status": { "phase": "Pending", "containerStatuses": [{
        "name": "c", "image": "a", "imageID": "", "ready": false, "restartCount": 0,
        "state": { "waiting": { "reason": "ImagePullBackOff" } },
    }] } });
    let pod: Pod =
        typed(json!({ "metadata": { "name": "q" }, "spec": { "containers": [{ "name": "c", "image": "a" }] } }));
    pods.create(&PostParams::default(), &pod).await.unwrap();
    pods.patch_status("q", &PatchParams::default(), &Patch::Merge(&waiting)).await.unwrap();
    let waiting = refusal(pods.logs("q", &LogParams::default()).await);
    assert_eq!(waiting.message, "container \"c\" in pod \"q\" is waiting to start: ImagePullBackOff");
    drop(cluster);
}

#[tokio::test]
async fn events_are_found_by_what_they_are_about() {
    let (_cluster, client) = start().await;
    let events: Api<Event> = api(&client);
    for (name, about) in [("one", "a"), ("two", "b")] {
        let event: Event = typed(json!({
            "metadata": { "name": name },
            "involvedObject": { "kind": "Pod", "namespace": NS, "name": about },
            "reason": "Failed", "message": "it failed", "type": "Warning",
        }));
        events.create(&PostParams::default(), &event).await.unwrap();
    }
    let about = ListParams::default().fields("involvedObject.name=b,involvedObject.kind=Pod");
    let found = events.list(&about).await.unwrap();
    assert_eq!(found.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["two"]);
}

#[tokio::test]
async fn bad_days_come_on_order() {
    let (cluster, client) = start().await;
    let maps: Api<ConfigMap> = api(&client);
    let faults = cluster.faults();
    let get = Match::any().verb("get").resource("configmaps");
    maps.create(&PostParams::default(), &config_map("a")).await.unwrap();

    faults.answer(get.clone(), 500);
    assert_eq!(refusal(maps.get("a").await).code, 500);
    maps.list(&ListParams::default()).await.expect("lists are not concerned");
    faults.clear();
    maps.get("a").await.expect("all is well again");

    faults.answer(Match::any().namespace(NS), 403);
    assert_eq!(refusal(maps.get("a").await).reason, "Forbidden");
    faults.clear();
    let request =
        || Request::get("/api/v1/namespaces/ocean-compute/configmaps/a").body(kube::client::Body::empty()).unwrap();
    faults.throttle(get.clone().times(1), Duration::from_secs(7));
    let http = plain_get(&cluster, "/api/v1/namespaces/ocean-compute/configmaps/a").await;
    assert!(http.starts_with("HTTP/1.1 429") && http.to_lowercase().contains("retry-after: 7"), "{http}");
    assert_eq!(client.send(request()).await.unwrap().status(), StatusCode::OK, "once only");

    let begun = Instant::now();
    faults.delay(get.clone(), Duration::from_millis(200));
    maps.get("a").await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(200));
    faults.clear();

    faults.drop_connection(get.clone());
    assert!(matches!(maps.get("a").await, Err(error) if !matches!(error, kube::Error::Api(_))));
    faults.clear();

    // The answer is lost, the deed is done.
    faults.lose_answer(Match::any().verb("create").name("").times(1));
    assert!(maps.create(&PostParams::default(), &config_map("b")).await.is_err());
    maps.get("b").await.expect("it was created");

    faults.refuse_connections();
    assert!(maps.get("a").await.is_err());
    let refused = tokio::net::TcpStream::connect(cluster.addr());
    assert!(refused.await.is_err(), "nothing listens");
    faults.clear();
    // The listener comes back by itself; until then connections are refused.
    let back = async {
        while maps.get("a").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, back).await.expect("connections are taken again");
}

/// One GET without a client that might retry.
async fn plain_get(cluster: &EmbeddedCluster, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(cluster.addr()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn requests_are_recorded_as_the_access_rules_see_them() {
    let (cluster, client) = start().await;
    let maps: Api<ConfigMap> = api(&client);
    cluster.clear_requests();
    maps.create(&PostParams::default(), &config_map("a")).await.unwrap();
    maps.list(&ListParams::default().labels("app=a")).await.unwrap();
    api::<Job>(&client).get_opt("none").await.unwrap();
    api::<Pod>(&client).patch_status("none", &PatchParams::default(), &Patch::Merge(json!({}))).await.unwrap_err();
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    let seen: Vec<String> = cluster
        .requests()
        .iter()
        .map(|request| {
            format!(
                "{} {}/{}/{} {}/{} {}",
                request.verb,
                request.group,
                request.resource,
                request.subresource,
                request.namespace,
                request.name,
                request.label_selector
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            "create /configmaps/ ocean-compute/ ",
            "list /configmaps/ ocean-compute/ app=a",
            "get batch/jobs/ ocean-compute/none ",
            "patch /pods/status ocean-compute/none ",
            "delete /configmaps/ ocean-compute/a ",
        ]
    );
    cluster.clear_requests();
    assert!(cluster.requests().is_empty());
}

#[tokio::test]
async fn what_was_answered_survives_a_restart() {
    let state = scratch("state");
    let options = || Options { namespaces: vec![NS.to_owned()], state: Some(state.clone()), ..Options::default() };
    let cluster = EmbeddedCluster::start(options()).await.unwrap();
    let client = self::client(&cluster);
    define(&client).await;
    workflows(&client).create(&PostParams::default(), &workflow("a")).await.unwrap();
    api::<Job>(&client).create(&PostParams::default(), &job("j", 0)).await.unwrap();
    let pod = active_pod(&cluster, "j").await;
    let log = format!("/api/v1/namespaces/{NS}/pods/{pod}/log");
    raw(&client, Method::PUT, &log, "a log\n", &[]).await;
    let before = *cluster.revision().borrow();
    let uid = workflows(&client).get("a").await.unwrap().uid();
    // Not shut down: dropped, as when the process is killed.
    drop(cluster);

    let cluster = EmbeddedCluster::start(options()).await.unwrap();
    let client = self::client(&cluster);
    assert!(*cluster.revision().borrow() >= before);
    assert_eq!(workflows(&client).get("a").await.unwrap().uid(), uid);
    assert_eq!(api::<Pod>(&client).logs(&pod, &LogParams::default()).await.unwrap(), "a log\n");
    set_phase(&client, &pod, "Succeeded").await;
    let complete = cluster
        .wait_for(LIMIT, |cluster| (cluster.object("jobs.batch", NS, "j")?["status"]["succeeded"] == 1).then_some(()));
    complete.await.expect("the controllers go on where they were");
    cluster.shutdown().await;

    // A line that was cut off by a crash is left out; what is no state at all is refused.
    let mut text = std::fs::read_to_string(&state).unwrap();
    text.push_str("{\"what\":\"put\",\"rev");
    std::fs::write(&state, &text).unwrap();
    EmbeddedCluster::start(options()).await.unwrap().shutdown().await;
    std::fs::write(&state, "something else\n").unwrap();
    assert!(EmbeddedCluster::start(options()).await.is_err());
    std::fs::remove_file(&state).unwrap();
}

/// Knows one token.
struct Doorkeeper;

impl Authenticate for Doorkeeper {
    fn authenticate<'a>(&'a self, token: Option<&'a str>) -> Authentication<'a> {
        Box::pin(async move {
            match token {
                Some("right") => Ok(User { name: "someone".to_owned() }),
                _ => Err("no such token".to_owned()),
            }
        })
    }
}

#[tokio::test]
async fn an_authenticator_lets_in_whom_it_knows() {
    let options = Options { authenticator: Some(Arc::new(Doorkeeper)), ..Options::default() };
    let cluster = EmbeddedCluster::start(options).await.unwrap();
    let client = client(&cluster);
    let path = "/api/v1/namespaces/default";
    let (status, body) = raw(&client, Method::GET, path, "", &[]).await;
    assert_eq!((status.as_u16(), &body["reason"]), (401, &json!("Unauthorized")));
    let wrong = ("authorization", "Bearer wrong");
    assert_eq!(raw(&client, Method::GET, path, "", &[wrong]).await.0, StatusCode::UNAUTHORIZED);
    let right = ("authorization", "Bearer right");
    assert_eq!(raw(&client, Method::GET, path, "", &[right]).await.0, StatusCode::OK);
    assert_eq!(cluster.requests().last().unwrap().user, "someone");
}

#[tokio::test]
async fn tables_are_what_kubectl_prints() {
    let (cluster, client) = start().await;
    define(&client).await;
    workflows(&client).create(&PostParams::default(), &workflow("a")).await.unwrap();
    api::<Job>(&client).create(&PostParams::default(), &job("j", 0)).await.unwrap();
    let pod = active_pod(&cluster, "j").await;
    let accept = ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json");
    let table = async |path: &str| {
        let (_, table) = raw(&client, Method::GET, path, "", &[accept]).await;
        assert_eq!(table["kind"], "Table", "{path}");
        table
    };
    let workflows = table(WORKFLOWS).await;
    let columns: Vec<&str> = workflows["columnDefinitions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|column| column["name"].as_str().unwrap())
        .collect();
    assert_eq!(columns, ["Name", "Status", "Owner", "Age"]);
    assert_eq!(workflows["columnDefinitions"][2]["priority"], 1);
    assert_eq!(workflows["rows"][0]["cells"].as_array().unwrap()[..3], [json!("a"), json!(null), json!("0xabc")]);
    assert_eq!(workflows["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let bare = table(&format!("{WORKFLOWS}?includeObject=None")).await;
    assert_eq!(bare["rows"][0]["object"], Value::Null);
    let whole = table(&format!("{WORKFLOWS}/a?includeObject=Object")).await;
    assert_eq!(whole["rows"][0]["object"]["kind"], "WorkFlow");
    let jobs = table("/apis/batch/v1/namespaces/ocean-compute/jobs").await;
    assert_eq!(jobs["rows"][0]["cells"].as_array().unwrap()[..3], [json!("j"), json!("Running"), json!("0/1")]);
    let pods = table("/api/v1/pods").await;
    assert_eq!(pods["rows"][0]["cells"].as_array().unwrap()[..3], [json!(pod), json!("0/1"), json!("Pending")]);
}

/// `kubectl` against a cluster, with a configuration and a cache of its own.
struct Kubectl {
    home: PathBuf,
}

impl Kubectl {
    /// None, and a line about it, if there is no kubectl.
    fn find(cluster: &EmbeddedCluster) -> Option<Self> {
        if Command::new("kubectl").arg("--help").output().is_err() {
            println!("left out: kubectl is not in PATH");
            return None;
        }
        let home = scratch("kubectl");
        std::fs::create_dir_all(&home).unwrap();
        std::fs::write(home.join("config"), cluster.kubeconfig()).unwrap();
        Some(Self { home })
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("kubectl");
        command
            .args(line.split_whitespace())
            .current_dir(&self.home)
            .env("HOME", &self.home)
            .env("KUBECONFIG", self.home.join("config"));
        command
    }

    /// Runs it while the cluster goes on.
    async fn run(&self, line: &str) -> Output {
        let mut command = tokio::process::Command::from(self.command(line));
        let output = tokio::time::timeout(LIMIT, command.kill_on_drop(true).output());
        output.await.unwrap_or_else(|_| panic!("kubectl {line} does not end")).unwrap()
    }

    async fn ok(&self, line: &str) -> String {
        let output = self.run(line).await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "kubectl {line}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    async fn refused(&self, line: &str) -> String {
        let output = self.run(line).await;
        assert!(!output.status.success(), "kubectl {line} should fail");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn file(&self, name: &str, content: &Value) {
        std::fs::write(self.home.join(name), content.to_string()).unwrap();
    }
}

impl Drop for Kubectl {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_works_unchanged() {
    let (cluster, client) = start().await;
    let Some(kubectl) = Kubectl::find(&cluster) else {
        return;
    };
    kubectl.file("crd.json", &definition());
    kubectl.file("wf.json", &json!(workflow("w")));
    let mut wrong = json!(workflow("wrong"));
    wrong["metadata"]["secret"] = json!("0123");
    kubectl.file("wrong.json", &wrong);
    let mut typed_job = json!(job("j", 0));
    typed_job["apiVersion"] = json!("batch/v1");
    typed_job["kind"] = json!("Job");
    kubectl.file("job.json", &typed_job);

    kubectl.ok("create -f crd.json").await;
    kubectl.ok("wait --for=condition=Established crd/workflows.example.com --timeout=10s").await;
    let namespace = format!("-n {NS}");
    assert_eq!(kubectl.ok(&format!("apply {namespace} -f wf.json")).await, "workflow.example.com/w created\n");
    assert_eq!(kubectl.ok(&format!("apply {namespace} -f wf.json")).await, "workflow.example.com/w unchanged\n");
    assert_eq!(
        kubectl.ok(&format!("apply {namespace} --server-side --force-conflicts -f wf.json")).await,
        "workflow.example.com/w serverside-applied\n"
    );
    let refused = kubectl.refused(&format!("create {namespace} -f wrong.json")).await;
    assert!(refused.contains("strict decoding error: unknown field \"metadata.secret\""), "{refused}");

    let columns = kubectl.ok(&format!("get wf {namespace}")).await;
    assert!(columns.starts_with("NAME   STATUS   AGE\nw "), "{columns}");
    assert!(kubectl.ok("get wf -A -o wide").await.contains("0xabc"));
    assert!(kubectl.ok(&format!("describe wf w {namespace}")).await.contains("Owner:  0xabc"));
    assert!(kubectl.ok("explain wf.spec").await.contains("attempts"));
    assert!(kubectl.ok("api-resources --api-group=example.com").await.contains("wf"));

    kubectl.ok(&format!("create {namespace} -f job.json")).await;
    let pod = active_pod(&cluster, "j").await;
    assert!(kubectl.ok(&format!("get jobs,pods {namespace} -o wide")).await.contains(&pod));
    assert!(kubectl.ok(&format!("get all {namespace}")).await.contains("job.batch/j"));
    assert!(kubectl.ok(&format!("describe job j {namespace}")).await.contains("1 Active"));
    assert!(kubectl.ok(&format!("describe pod {pod} {namespace}")).await.contains("Controlled By:  Job/j"));

    raw(&client, Method::PUT, &format!("/api/v1/namespaces/{NS}/pods/{pod}/log"), "hello\n", &[]).await;
    assert_eq!(kubectl.ok(&format!("logs {pod} {namespace}")).await, "hello\n");
    set_phase(&client, &pod, "Succeeded").await;
    assert_eq!(kubectl.ok(&format!("logs -f job/j {namespace}")).await, "hello\n");
    kubectl.ok(&format!("wait --for=condition=Complete job/j {namespace} --timeout=10s")).await;

    // A watch sees what happens while it is open.
    let mut watch = kubectl.command(&format!("get wf {namespace} -w --no-headers"));
    watch.stdout(std::process::Stdio::piped());
    let mut watch = tokio::process::Command::from(watch).kill_on_drop(true).spawn().unwrap();
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(watch.stdout.take().unwrap()));
    assert!(lines.next_line().await.unwrap().unwrap().starts_with('w'));
    let status = Patch::Merge(json!({ "status": { "text": "running" } }));
    workflows(&client).patch_status("w", &PatchParams::default(), &status).await.unwrap();
    assert!(lines.next_line().await.unwrap().unwrap().contains("running"));
    watch.kill().await.unwrap();

    kubectl.ok(&format!("label wf w x=y {namespace}")).await;
    kubectl.ok(&format!("patch wf w --type=merge -p {{\"spec\":{{\"attempts\":2}}}} {namespace}")).await;
    let missing = kubectl.refused(&format!("get wf none {namespace}")).await;
    assert_eq!(missing, "Error from server (NotFound): workflows.example.com \"none\" not found\n");

    // Deleting waits until it is so.
    kubectl.ok(&format!("delete job j {namespace} --cascade=foreground")).await;
    assert!(cluster.object("pods", NS, &pod).is_none());
    kubectl.ok(&format!("delete wf --all {namespace}")).await;
    kubectl.ok(&format!("delete ns {NS}")).await;
    assert!(cluster.object("namespaces", "", NS).is_none());
    kubectl.ok("delete crd workflows.example.com").await;
}
