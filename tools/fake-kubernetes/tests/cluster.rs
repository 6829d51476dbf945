//! What the embedded cluster promises, seen through the `kube` crate, and through `kubectl` if it is installed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may")]

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{Method, Request};
use fake_kubernetes::{Authenticate, Authentication, EmbeddedCluster, Match, Options, User};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Pod};
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, ListParams, LogParams, Patch, PatchParams, PostParams, Preconditions,
};
use kube::core::{GroupVersionKind, NamespaceResourceScope, Status};
use kube::{Api, Client, Config, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The longest that a test waits for something.
const LIMIT: Duration = Duration::from_secs(20);
const NS: &str = "ocean-compute";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WORKFLOWS: &str = "/apis/example.com/v1alpha/namespaces/ocean-compute/workflows";
const MAPS: &str = "/api/v1/namespaces/ocean-compute/configmaps";

fn options() -> Options {
    Options { namespaces: vec![NS.to_owned()], ..Options::default() }
}

/// A cluster with one more namespace, and a client for it.
async fn start() -> (EmbeddedCluster, Client) {
    let cluster = EmbeddedCluster::start(options()).await.unwrap();
    let client = client(&cluster);
    (cluster, client)
}

fn client(cluster: &EmbeddedCluster) -> Client {
    Client::try_from(Config::new(cluster.url().parse().unwrap())).unwrap()
}

fn typed<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn api<K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>>(client: &Client) -> Api<K> {
    Api::namespaced(client.clone(), NS)
}

async fn create<K>(client: &Client, object: Value) -> Result<K, kube::Error>
where
    K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize,
{
    api::<K>(client).create(&PostParams::default(), &typed(object)).await
}

/// The refusal that a call ended with.
fn refusal<T: Debug>(result: Result<T, kube::Error>) -> Status {
    match result {
        Err(kube::Error::Api(status)) => *status,
        other => panic!("a refusal was expected, not {other:?}"),
    }
}

/// Sends one request as it is. Returns the body as JSON, or as text.
async fn raw(client: &Client, method: Method, path: &str, body: &str, headers: &[(&str, &str)]) -> (u16, Value) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = kube::client::Body::from(body.as_bytes().to_vec());
    let response = client.send(request.body(body).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let bytes = response.into_body().collect_bytes().await.unwrap();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

fn config_map(name: &str) -> Value {
    json!({ "metadata": { "name": name, "labels": { "app": name } }, "data": { "key": "value" } })
}

fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": "workflows.example.com" },
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": { "plural": "workflows", "kind": "WorkFlow", "shortNames": ["wf"] },
            "versions": [{
                "name": "v1alpha", "served": true, "storage": true, "subresources": { "status": {} },
                "additionalPrinterColumns": [
                    { "name": "Status", "type": "string", "jsonPath": ".status.text" },
                    { "name": "Owner", "type": "string", "jsonPath": ".spec.owner", "priority": 1 },
                    { "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" },
                ],
            }],
        },
    })
}

/// Defines the WorkFlow resource and creates an object of that name.
async fn workflow(client: &Client, name: &str) -> Api<DynamicObject> {
    let defined = raw(client, Method::POST, DEFINITIONS, &definition().to_string(), &[]).await.1;
    assert_eq!(defined["status"]["conditions"][0]["type"], "Established");
    let kind = GroupVersionKind::gvk("example.com", "v1alpha", "WorkFlow");
    let resource = ApiResource::from_gvk_with_plural(&kind, "workflows");
    let object = json!({
        "apiVersion": "example.com/v1alpha", "kind": "WorkFlow", "metadata": { "name": name },
        "spec": { "owner": "0xabc", "kept": { "unknown": [1] } }, "status": { "text": "not written by a create" },
    });
    let workflows = Api::namespaced_with(client.clone(), NS, &resource);
    workflows.create(&PostParams::default(), &typed(object)).await.unwrap();
    workflows
}

fn job(name: &str, backoff_limit: i32, restart_policy: &str) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": { "backoffLimit": backoff_limit, "template": {
            "metadata": { "labels": { "component": "algorithm" } },
            "spec": { "restartPolicy": restart_policy, "containers": [{ "name": "algorithm", "image": "alpine" }] },
        } },
    })
}

/// Creates a Job. Returns its pod.
async fn start_job(cluster: &EmbeddedCluster, client: &Client, name: &str, backoff_limit: i32) -> String {
    create::<Job>(client, job(name, backoff_limit, "Never")).await.unwrap();
    active_pod(cluster, name).await
}

/// Waits for a Job's pod that has not ended.
async fn active_pod(cluster: &EmbeddedCluster, job: &str) -> String {
    let found = cluster.wait_for(LIMIT, |cluster| {
        let pods = cluster.objects("pods");
        let mut of_job = pods.iter().filter(|pod| pod["metadata"]["labels"]["job-name"] == job);
        let active =
            of_job.find(|pod| pod["status"]["phase"] == "Pending" && pod["metadata"]["deletionTimestamp"].is_null());
        active.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned())
    });
    found.await.expect("a pod of the job")
}

/// Waits until a Job has the condition. Returns its status.
async fn condition(cluster: &EmbeddedCluster, job: &str, wanted: &str) -> Value {
    let found = cluster.wait_for(LIMIT, |cluster| {
        let job = cluster.object("jobs.batch", NS, job)?;
        let conditions = job["status"]["conditions"].as_array()?;
        conditions.iter().any(|condition| condition["type"] == wanted).then(|| job["status"].clone())
    });
    found.await.unwrap_or_else(|| panic!("{job} is not {wanted}"))
}

/// Writes a pod's status, as a kubelet does.
async fn set_status(client: &Client, pod: &str, status: Value) {
    let patch = Patch::Merge(json!({ "status": status }));
    api::<Pod>(client).patch_status(pod, &PatchParams::default(), &patch).await.unwrap();
}

/// A patch of the finalizers.
fn finalizers(finalizers: Value) -> Patch<Value> {
    Patch::Merge(json!({ "metadata": { "finalizers": finalizers } }))
}

/// Waits until an object is gone.
async fn gone(cluster: &EmbeddedCluster, resource: &str, namespace: &str, name: &str) {
    let gone = cluster.wait_for(LIMIT, |cluster| cluster.object(resource, namespace, name).is_none().then_some(()));
    gone.await.unwrap_or_else(|| panic!("{resource} {name} is still there"));
}

/// A path that no other test uses.
fn scratch(what: &str) -> PathBuf {
    std::env::temp_dir().join(format!("fake-kubernetes-{what}-{}", uuid::Uuid::new_v4()))
}

#[tokio::test]
async fn objects_are_created_read_and_deleted() {
    let (_cluster, client) = start().await;
    let maps: Api<ConfigMap> = api(&client);
    let created = create::<ConfigMap>(&client, config_map("a")).await.unwrap();
    assert!(created.uid().is_some() && created.creation_timestamp().is_some());
    assert_eq!(maps.get("a").await.unwrap(), created);
    assert_eq!(maps.get_metadata("a").await.unwrap().metadata, created.metadata);

    let again = refusal(create::<ConfigMap>(&client, config_map("a")).await);
    assert_eq!((again.code, again.reason.as_str()), (409, "AlreadyExists"));
    let missing = refusal(maps.get("none").await);
    assert_eq!((missing.code, missing.reason.as_str()), (404, "NotFound"));
    assert_eq!(missing.message, "configmaps \"none\" not found");
    let generated = create::<ConfigMap>(&client, json!({ "metadata": { "generateName": "gen-" } })).await.unwrap();
    assert_eq!(generated.name_any().len(), "gen-".len() + 5);

    let deleted = maps.delete("a", &DeleteParams::default()).await.unwrap().right().expect("a Status");
    assert_eq!(deleted.details.unwrap().uid, created.uid().unwrap());
    assert_eq!(refusal(maps.delete("a", &DeleteParams::default()).await).code, 404);
}

#[tokio::test]
async fn a_deletion_with_preconditions_deletes_only_the_object_that_was_seen() {
    let (_cluster, client) = start().await;
    let maps: Api<ConfigMap> = api(&client);
    let seen = create::<ConfigMap>(&client, config_map("a")).await.unwrap();
    let patch = Patch::Merge(json!({ "data": { "key": "changed" } }));
    let now = maps.patch("a", &PatchParams::default(), &patch).await.unwrap();
    let delete = async |uid: Option<String>, resource_version: Option<String>| {
        let params = DeleteParams::default().preconditions(Preconditions { uid, resource_version });
        maps.delete("a", &params).await
    };
    assert_eq!(refusal(delete(Some("other".to_owned()), None).await).code, 409);
    assert_eq!(refusal(delete(None, seen.resource_version()).await).reason, "Conflict");
    delete(seen.uid(), now.resource_version()).await.unwrap();
}

#[tokio::test]
async fn invalid_objects_are_refused() {
    let (_cluster, client) = start().await;
    for (object, code) in [
        (json!({ "metadata": { "name": "Upper_Case" } }), 422),
        (json!({ "metadata": {} }), 422),
        (json!({ "metadata": { "name": "a", "labels": { "a": "not a label" } } }), 422),
        (json!({ "metadata": { "name": "a" }, "data": { "a": "x".repeat(3 * 1024 * 1024) } }), 413),
        (json!({ "metadata": { "name": "a", "namespace": "default" } }), 400),
    ] {
        assert_eq!(refusal(create::<ConfigMap>(&client, object).await).code, code);
    }
    let elsewhere: Api<ConfigMap> = Api::namespaced(client.clone(), "none");
    let nowhere = refusal(elsewhere.create(&PostParams::default(), &typed(config_map("a"))).await);
    assert_eq!((nowhere.code, nowhere.message.as_str()), (404, "namespaces \"none\" not found"));
    assert!(elsewhere.list(&ListParams::default()).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn what_is_not_implemented_is_refused_and_not_ignored() {
    let (_cluster, client) = start().await;
    create::<ConfigMap>(&client, config_map("a")).await.unwrap();
    let map = &format!("{MAPS}/a");
    for (method, path, content_type, code) in [
        (Method::GET, "/api/v1/nothing", "", 404),
        (Method::GET, "/openapi/v3", "", 404),
        (Method::GET, &format!("{MAPS}?watch=true"), "", 405),
        (Method::DELETE, MAPS, "", 405),
        (Method::DELETE, &format!("{DEFINITIONS}/any"), "", 405),
        (Method::DELETE, "/apis/batch/v1/namespaces/ocean-compute/jobs/any", "", 400),
        (Method::PUT, map, "", 405),
        (Method::PATCH, map, "application/json-patch+json", 415),
        (Method::PATCH, map, "application/strategic-merge-patch+json", 415),
        (Method::POST, &format!("{MAPS}?dryRun=All"), "", 400),
        (Method::GET, &format!("{MAPS}?fieldSelector=metadata.name%3Da"), "", 400),
        (Method::GET, &format!("{MAPS}?labelSelector=a%20b"), "", 400),
        (Method::GET, &format!("{MAPS}?continue=x"), "", 400),
    ] {
        let (status, body) = raw(&client, method.clone(), path, "{}", &[("content-type", content_type)]).await;
        assert_eq!((status, &body["kind"]), (code, &json!("Status")), "{method} {path} {body}");
    }
}

#[tokio::test]
async fn a_merge_patch_changes_what_it_names() {
    let (_cluster, client) = start().await;
    let maps: Api<ConfigMap> = api(&client);
    create::<ConfigMap>(&client, config_map("a")).await.unwrap();
    let patch = async |patch: Value| maps.patch("a", &PatchParams::default(), &Patch::Merge(patch)).await;
    let merged = patch(json!({ "data": { "key": null, "merged": "1" }, "metadata": { "uid": "x" } })).await.unwrap();
    assert_eq!(json!(merged.data), json!({ "merged": "1" }));
    assert_eq!(patch(json!({})).await.unwrap(), merged, "nothing changes");
    let stale = json!({ "metadata": { "resourceVersion": "1" }, "data": { "stale": "3" } });
    assert_eq!(refusal(patch(stale).await).code, 409);

    // A server-side apply is merged alike, and creates what does not exist.
    let apply = async |data: Value| {
        let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "b" }, "data": data });
        maps.patch("b", &PatchParams::apply("test"), &Patch::Apply(object)).await.unwrap().data
    };
    assert_eq!(json!(apply(json!({ "a": "1" })).await), json!({ "a": "1" }));
    assert_eq!(json!(apply(json!({ "b": "2" })).await), json!({ "a": "1", "b": "2" }));
}

#[tokio::test]
async fn spec_and_status_of_a_custom_resource_are_written_apart() {
    let (_cluster, client) = start().await;
    let workflows = workflow(&client, "a").await;
    let both = |text: &str| Patch::Merge(json!({ "spec": { "owner": text }, "status": { "text": text } }));
    let params = PatchParams::default();
    let created = workflows.get("a").await.unwrap();
    assert_eq!((&created.data["spec"]["kept"], created.data.get("status")), (&json!({ "unknown": [1] }), None));
    let patched = workflows.patch("a", &params, &both("x")).await.unwrap();
    assert_eq!((&patched.data["spec"]["owner"], patched.data.get("status")), (&json!("x"), None));
    let patched = workflows.patch_status("a", &params, &both("y")).await.unwrap();
    assert_eq!((&patched.data["spec"]["owner"], &patched.data["status"]["text"]), (&json!("x"), &json!("y")));
}

#[tokio::test]
async fn a_table_has_the_printer_columns_of_the_definition() {
    let (_cluster, client) = start().await;
    workflow(&client, "a").await;
    let accept = ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json");
    let (_, table) = raw(&client, Method::GET, WORKFLOWS, "", &[accept]).await;
    let columns = table["columnDefinitions"].as_array().unwrap().iter();
    let columns: Vec<_> =
        columns.map(|column| (column["name"].as_str().unwrap(), column["priority"].clone())).collect();
    assert_eq!(columns, [("Name", json!(0)), ("Status", json!(0)), ("Owner", json!(1)), ("Age", json!(0))]);
    let cells = table["rows"][0]["cells"].as_array().unwrap();
    assert_eq!(cells[..3], [json!("a"), Value::Null, json!("0xabc")]);
    assert!(cells[3].as_str().unwrap().ends_with('s'), "{cells:?}");
}

#[tokio::test]
async fn lists_are_selected_and_in_pages_of_one_state_until_their_tokens_expire() {
    let (cluster, client) = start().await;
    let maps: Api<ConfigMap> = api(&client);
    for name in ["a", "b", "c", "d", "e"] {
        create::<ConfigMap>(&client, config_map(name)).await.unwrap();
    }
    let selected = maps.list_metadata(&ListParams::default().labels("app in (a, x),app")).await.unwrap();
    assert_eq!(selected.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["a"]);
    let everywhere: Api<ConfigMap> = Api::all(client.clone());
    assert_eq!(everywhere.list(&ListParams::default()).await.unwrap().items.len(), 5);

    let page = async |token: Option<String>| {
        let params = ListParams { continue_token: token, ..ListParams::default().limit(2) };
        let list = maps.list(&params).await?;
        Ok::<_, kube::Error>((list.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), list.metadata))
    };
    let (_, first) = page(None).await.unwrap();
    assert_eq!(first.remaining_item_count, Some(3));
    maps.delete("d", &DeleteParams::default()).await.unwrap();
    create::<ConfigMap>(&client, config_map("cc")).await.unwrap();
    let (names, second) = page(first.continue_.clone()).await.unwrap();
    assert_eq!(names, ["c", "d"], "as it was when the first page was read");
    assert_eq!(second.resource_version, first.resource_version);
    let (names, third) = page(second.continue_).await.unwrap();
    assert_eq!((names, third.continue_), (vec!["e".to_owned()], None));

    cluster.forget_history();
    let expired = refusal(page(first.continue_).await);
    assert_eq!((expired.code, expired.reason.as_str()), (410, "Expired"));
    let (names, _) = page(expired.metadata.unwrap().continue_).await.unwrap();
    assert_eq!(names, ["c", "cc"], "as it is now");
}

#[tokio::test]
async fn a_job_creates_a_pod_and_completes_with_it() {
    let (cluster, client) = start().await;
    let name = start_job(&cluster, &client, "good", 0).await;
    let (job, pod) = (api::<Job>(&client).get("good").await.unwrap(), api::<Pod>(&client).get(&name).await.unwrap());
    assert!(name.starts_with("good-"));
    let labels = pod.labels();
    assert_eq!((labels["component"].as_str(), labels["batch.kubernetes.io/job-name"].as_str()), ("algorithm", "good"));
    assert_eq!(pod.owner_references()[0].uid, job.uid().unwrap());
    set_status(&client, &name, json!({ "phase": "Running" })).await;
    let ready = cluster.wait_for(LIMIT, |cluster| {
        let job = cluster.object("jobs.batch", NS, "good")?;
        (job["status"]["ready"] == 1).then(|| job["status"].clone())
    });
    assert_eq!(ready.await.unwrap()["active"], 1);
    set_status(&client, &name, json!({ "phase": "Succeeded" })).await;
    let status = condition(&cluster, "good", "Complete").await;
    assert_eq!((&status["succeeded"], &status["active"]), (&json!(1), &Value::Null));
    assert!(status["completionTime"].is_string() && status["startTime"].is_string());
}

#[tokio::test]
async fn a_job_fails_after_more_failures_than_its_backoff_limit() {
    let (cluster, client) = start().await;
    let first = start_job(&cluster, &client, "bad", 1).await;
    set_status(&client, &first, json!({ "phase": "Failed" })).await;
    let second = active_pod(&cluster, "bad").await;
    api::<Pod>(&client).delete(&second, &DeleteParams::default()).await.unwrap();
    let status = condition(&cluster, "bad", "Failed").await;
    assert_eq!((&status["failed"], &status["succeeded"]), (&json!(2), &Value::Null));
    assert_eq!(status["conditions"][1]["reason"], "BackoffLimitExceeded");
}

#[tokio::test]
async fn restarts_in_a_pod_count_as_failures_and_end_with_the_pod() {
    let (cluster, client) = start().await;
    create::<Job>(&client, job("restarted", 2, "OnFailure")).await.unwrap();
    let pod = active_pod(&cluster, "restarted").await;
    for restarts in 1..=2 {
        let container = json!({
            "name": "algorithm", "image": "a", "imageID": "", "ready": true, "restartCount": restarts,
        });
        set_status(&client, &pod, json!({ "phase": "Running", "containerStatuses": [container] })).await;
    }
    let status = condition(&cluster, "restarted", "Failed").await;
    assert_eq!((&status["failed"], &status["active"]), (&json!(1), &Value::Null));
    gone(&cluster, "pods", NS, &pod).await;
}

#[tokio::test]
async fn a_suspended_job_has_no_pods() {
    let (cluster, client) = start().await;
    let mut suspended = job("suspended", 0, "Never");
    suspended["spec"]["suspend"] = json!(true);
    create::<Job>(&client, suspended).await.unwrap();
    start_job(&cluster, &client, "later", 0).await;
    assert_eq!(cluster.objects("pods").len(), 1);
    let resume = Patch::Merge(json!({ "spec": { "suspend": false } }));
    api::<Job>(&client).patch("suspended", &PatchParams::default(), &resume).await.unwrap();
    active_pod(&cluster, "suspended").await;
}

#[tokio::test]
async fn a_deletion_in_the_background_deletes_the_dependents_afterwards() {
    let (cluster, client) = start().await;
    let pod = start_job(&cluster, &client, "j", 0).await;
    api::<Job>(&client).delete("j", &DeleteParams::background()).await.unwrap().right().expect("a Status");
    gone(&cluster, "pods", NS, &pod).await;

    let mut lost = config_map("lost");
    lost["metadata"]["ownerReferences"] =
        json!([{ "apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "none" }]);
    create::<ConfigMap>(&client, lost).await.unwrap();
    gone(&cluster, "configmaps", NS, "lost").await;
}

#[tokio::test]
async fn a_deletion_in_the_foreground_waits_for_the_dependents_and_their_finalizers() {
    let (cluster, client) = start().await;
    let (jobs, pods): (Api<Job>, Api<Pod>) = (api(&client), api(&client));
    let params = PatchParams::default();
    let pod = start_job(&cluster, &client, "j", 0).await;
    pods.patch(&pod, &params, &finalizers(json!(["example.com/hold"]))).await.unwrap();
    let marked = jobs.delete("j", &DeleteParams::foreground()).await.unwrap().left().expect("the Job");
    assert_eq!(marked.finalizers(), ["foregroundDeletion"]);
    let waits = cluster.wait_for(LIMIT, |cluster| {
        let pod = cluster.object("pods", NS, &pod)?;
        pod["metadata"]["deletionTimestamp"].is_string().then_some(())
    });
    waits.await.expect("the pod is marked");
    assert!(jobs.get_opt("j").await.unwrap().is_some());
    pods.patch(&pod, &params, &finalizers(Value::Null)).await.unwrap();
    gone(&cluster, "pods", NS, &pod).await;
    gone(&cluster, "jobs.batch", NS, "j").await;
}

#[tokio::test]
async fn a_claim_is_bound_by_a_pod_and_outlives_it() {
    let (cluster, client) = start().await;
    let claims: Api<PersistentVolumeClaim> = api(&client);
    create::<PersistentVolumeClaim>(&client, json!({ "metadata": { "name": "data" }, "spec": {} })).await.unwrap();
    let pod = json!({ "metadata": { "name": "p" }, "spec": {
        "containers": [{ "name": "a", "image": "a" }],
        "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": "data" } }],
    } });
    create::<Pod>(&client, pod).await.unwrap();
    set_status(&client, "p", json!({ "phase": "Running" })).await;
    let bound = cluster.wait_for(LIMIT, |cluster| {
        (cluster.object("persistentvolumeclaims", NS, "data")?["status"]["phase"] == "Bound").then_some(())
    });
    bound.await.expect("the claim is bound");
    let marked = claims.delete("data", &DeleteParams::default()).await.unwrap().left().expect("the claim");
    assert_eq!(marked.finalizers(), ["kubernetes.io/pvc-protection"]);
    api::<Pod>(&client).delete("p", &DeleteParams::default()).await.unwrap();
    gone(&cluster, "persistentvolumeclaims", NS, "data").await;
}

#[tokio::test]
async fn a_deleted_namespace_goes_with_its_content() {
    let (cluster, client) = start().await;
    let (maps, namespaces): (Api<ConfigMap>, Api<Namespace>) = (api(&client), Api::all(client.clone()));
    create::<ConfigMap>(&client, config_map("free")).await.unwrap();
    create::<ConfigMap>(&client, config_map("held")).await.unwrap();
    maps.patch("held", &PatchParams::default(), &finalizers(json!(["example.com/hold"]))).await.unwrap();
    let marked = namespaces.delete(NS, &DeleteParams::default()).await.unwrap().left().expect("the namespace");
    assert_eq!(marked.status.unwrap().phase.as_deref(), Some("Terminating"));
    assert_eq!(refusal(create::<ConfigMap>(&client, config_map("late")).await).code, 403);
    gone(&cluster, "configmaps", NS, "free").await;
    assert!(namespaces.get_opt(NS).await.unwrap().is_some(), "something is held");
    maps.patch("held", &PatchParams::default(), &finalizers(Value::Null)).await.unwrap();
    gone(&cluster, "namespaces", "", NS).await;
}

#[tokio::test]
async fn logs_are_written_and_read() {
    let (_cluster, client) = start().await;
    for name in ["p", "q"] {
        let pod = json!({ "metadata": { "name": name }, "spec": { "containers": [{ "name": "c", "image": "a" }] } });
        create::<Pod>(&client, pod).await.unwrap();
    }
    let write = async |text: &str, append: bool| {
        let path = format!("/api/v1/namespaces/{NS}/pods/p/log?append={append}");
        assert_eq!(raw(&client, Method::PUT, &path, text, &[]).await.0, 200);
    };
    let read = async |params: LogParams| api::<Pod>(&client).logs("p", &params).await;
    assert_eq!(read(LogParams::default()).await.unwrap(), "");
    write("gone\n", false).await;
    write("one\n", false).await;
    write("two\nthree\n", true).await;
    assert_eq!(read(LogParams::default()).await.unwrap(), "one\ntwo\nthree\n");
    let tail = LogParams { tail_lines: Some(1), container: Some("c".to_owned()), ..LogParams::default() };
    assert_eq!(read(tail).await.unwrap(), "three\n");
    assert_eq!(read(LogParams { limit_bytes: Some(5), ..LogParams::default() }).await.unwrap(), "one\nt");
    for refused in [
        LogParams { previous: true, ..LogParams::default() },
        LogParams { follow: true, ..LogParams::default() },
        LogParams { container: Some("x".to_owned()), ..LogParams::default() },
    ] {
        assert_eq!(refusal(read(refused).await).code, 400);
    }
    let waiting = json!({
        "name": "c", "image": "a", "imageID": "", "ready": false, "restartCount": 0,
        "state": { "waiting": { "reason": "ImagePullBackOff" } },
    });
    set_status(&client, "q", json!({ "phase": "Pending", "containerStatuses": [waiting] })).await;
    let waiting = refusal(api::<Pod>(&client).logs("q", &LogParams::default()).await);
    assert!(waiting.code == 400 && waiting.message.contains("waiting to start: ImagePullBackOff"), "{waiting:?}");
}

#[tokio::test]
async fn faults_come_on_request() {
    let (cluster, client) = start().await;
    let maps: Api<ConfigMap> = api(&client);
    let faults = cluster.faults();
    let get = Match::any().verb("get").resource("configmaps");
    create::<ConfigMap>(&client, config_map("a")).await.unwrap();

    faults.answer(get.clone().name("a"), 500);
    assert_eq!(refusal(maps.get("a").await).code, 500);
    maps.list(&ListParams::default()).await.expect("other requests are served");
    faults.clear();
    faults.answer(Match::any().namespace(NS).times(1), 403);
    assert_eq!(refusal(maps.get("a").await).reason, "Forbidden");
    maps.get("a").await.expect("once only");

    faults.throttle(get.clone().times(1), Duration::from_secs(7));
    let answer = reqwest::Client::new().get(format!("{}{MAPS}/a", cluster.url())).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers()["retry-after"].to_str().unwrap()), (429, "7"));

    let begun = Instant::now();
    faults.delay(get.clone(), Duration::from_millis(200));
    maps.get("a").await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(200));
    faults.clear();

    faults.drop_connection(get.clone());
    assert!(matches!(maps.get("a").await, Err(error) if !matches!(error, kube::Error::Api(_))));
    faults.clear();

    faults.lose_answer(Match::any().verb("create").times(1));
    assert!(create::<ConfigMap>(&client, config_map("b")).await.is_err());
    maps.get("b").await.expect("it was created all the same");

    faults.refuse_connections();
    assert!(maps.get("a").await.is_err());
    assert!(tokio::net::TcpStream::connect(cluster.addr()).await.is_err(), "nothing listens");
    faults.clear();
    // The listener comes back by itself; until then connections are refused.
    let back = async {
        while maps.get("a").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, back).await.expect("connections are accepted again");
}

#[tokio::test]
async fn requests_are_recorded_as_access_rules_see_them() {
    let (cluster, client) = start().await;
    let maps: Api<ConfigMap> = api(&client);
    cluster.clear_requests();
    create::<ConfigMap>(&client, config_map("a")).await.unwrap();
    maps.list(&ListParams::default().labels("app=a")).await.unwrap();
    api::<Job>(&client).get_opt("none").await.unwrap();
    api::<Pod>(&client).patch_status("none", &PatchParams::default(), &Patch::Merge(json!({}))).await.unwrap_err();
    Api::<Namespace>::all(client.clone()).get("default").await.unwrap();
    let requests = cluster.requests();
    let seen = requests.iter().map(|request| {
        [&request.verb, &request.group, &request.resource, &request.subresource, &request.namespace, &request.name]
            .map(String::as_str)
    });
    let expected = [
        ["create", "", "configmaps", "", NS, ""],
        ["list", "", "configmaps", "", NS, ""],
        ["get", "batch", "jobs", "", NS, "none"],
        ["patch", "", "pods", "status", NS, "none"],
        ["get", "", "namespaces", "", "", "default"],
    ];
    assert_eq!(seen.collect::<Vec<_>>(), expected);
    assert_eq!((requests[1].label_selector.as_str(), requests[1].path.as_str()), ("app=a", MAPS));
}

#[tokio::test]
async fn answered_changes_survive_a_kill() {
    let state = scratch("state");
    let options = || Options { state: Some(state.clone()), ..options() };
    let cluster = EmbeddedCluster::start(options()).await.unwrap();
    let client = self::client(&cluster);
    let uid = workflow(&client, "a").await.get("a").await.unwrap().uid().unwrap();
    let pod = start_job(&cluster, &client, "j", 0).await;
    raw(&client, Method::PUT, &format!("/api/v1/namespaces/{NS}/pods/{pod}/log"), "a log\n", &[]).await;
    let before = *cluster.revision().borrow();
    // Dropped without a shutdown, and a line cut off by the kill.
    drop(cluster);
    let mut text = std::fs::read_to_string(&state).unwrap();
    text.push_str("{\"put\":[\"po");
    std::fs::write(&state, &text).unwrap();

    let cluster = EmbeddedCluster::start(options()).await.unwrap();
    let client = self::client(&cluster);
    assert!(*cluster.revision().borrow() >= before);
    assert_eq!(cluster.object("workflows.example.com", NS, "a").unwrap()["metadata"]["uid"], json!(uid));
    assert_eq!(api::<Pod>(&client).logs(&pod, &LogParams::default()).await.unwrap(), "a log\n");
    set_status(&client, &pod, json!({ "phase": "Succeeded" })).await;
    condition(&cluster, "j", "Complete").await;
    cluster.shutdown().await;

    std::fs::write(&state, "something else\n").unwrap();
    assert!(EmbeddedCluster::start(options()).await.is_err());
    std::fs::remove_file(&state).unwrap();
}

/// Accepts one token.
struct OneToken;

impl Authenticate for OneToken {
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
async fn an_authenticator_decides_who_is_served() {
    let options = Options { authenticator: Some(Arc::new(OneToken)), ..options() };
    let cluster = EmbeddedCluster::start(options).await.unwrap();
    let client = client(&cluster);
    let get = async |headers: &[(&str, &str)]| raw(&client, Method::GET, MAPS, "", headers).await;
    let (status, body) = get(&[]).await;
    assert_eq!((status, &body["reason"]), (401, &json!("Unauthorized")));
    assert_eq!(get(&[("authorization", "Bearer wrong")]).await.0, 401);
    assert_eq!(get(&[("authorization", "Bearer right")]).await.0, 200);
    let users: Vec<String> = cluster.requests().into_iter().map(|request| request.user).collect();
    assert_eq!(users, ["", "", "someone"]);
}

/// Runs kubectl with a home directory of its own. Returns its output.
async fn kubectl(home: &Path, arguments: &str) -> String {
    let mut command = tokio::process::Command::new("kubectl");
    command.args(arguments.split(' ')).current_dir(home).env("HOME", home).env("KUBECONFIG", home.join("config"));
    let output = tokio::time::timeout(LIMIT, command.kill_on_drop(true).output()).await.unwrap().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    text(output.stdout) + &text(output.stderr)
}

#[tokio::test]
async fn kubectl_prints_workflows_and_logs() {
    if Command::new("kubectl").arg("--help").output().is_err() {
        println!("left out: kubectl is not in PATH");
        return;
    }
    let (cluster, client) = start().await;
    let home = scratch("kubectl");
    std::fs::create_dir_all(&home).unwrap();
    std::fs::write(home.join("config"), cluster.kubeconfig()).unwrap();
    let workflows = workflow(&client, "w").await;
    let status = Patch::Merge(json!({ "status": { "text": "running" } }));
    workflows.patch_status("w", &PatchParams::default(), &status).await.unwrap();
    let columns = kubectl(&home, "get wf -n ocean-compute").await;
    assert!(columns.starts_with("NAME   STATUS    AGE\nw      running   "), "{columns}");
    let wide = kubectl(&home, "get workflows -A -o wide").await;
    assert!(wide.contains("NAMESPACE") && wide.contains("0xabc"), "{wide}");
    assert!(kubectl(&home, "get wf w -n ocean-compute -o yaml").await.contains("kind: WorkFlow"));
    let missing = "Error from server (NotFound): workflows.example.com \"none\" not found\n";
    assert_eq!(kubectl(&home, "get wf none -n ocean-compute").await, missing);

    let pod = start_job(&cluster, &client, "j", 0).await;
    raw(&client, Method::PUT, &format!("/api/v1/namespaces/{NS}/pods/{pod}/log"), "hello\n", &[]).await;
    assert!(kubectl(&home, "get jobs,pods -n ocean-compute").await.contains(&pod));
    assert_eq!(kubectl(&home, &format!("logs {pod} -n ocean-compute")).await, "hello\n");
    assert_eq!(kubectl(&home, "logs -l job-name=j -n ocean-compute").await, "hello\n");
    std::fs::remove_dir_all(&home).unwrap();
}
