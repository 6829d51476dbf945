//! Containers that fail, and pods that do not run.

use std::fs;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{LogParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::bench::{Bench, ENDLESS, ends, until};

/// Never ends, and holds far more memory than 64 MiB in a process that it starts.
const HUNGRY: &str = "echo hungry; echo part > $OUTPUTS/part.txt; sleep 300 & echo $! > $VOLUME/child
    (head -c 200000000 /dev/zero; sleep 300) | tail -c 190000000 > /dev/null\n";

#[tokio::test]
async fn an_image_that_does_not_exist_is_waited_for() {
    let bench = Bench::embedded("image").await;
    let mut stage = bench.stage("echo never > $OUTPUTS/out.txt\n");
    stage["algorithm"]["container"]["image"] = json!("example/does-not-exist");
    let id = bench.submit(&stage).await;
    let waits = |pod: &Value| !pod["status"]["containerStatuses"][0]["state"]["waiting"].is_null();
    let pod = bench.pod(&id, "algorithm", "a pod that waits", waits).await;
    assert_eq!(pod["status"]["phase"], "Pending");
    let message = "Back-off pulling image \"example/does-not-exist:3\"";
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
    assert_eq!(waiting, &json!({"reason": "ImagePullBackOff", "message": message}));
    let conditions = pod["status"]["conditions"].as_array().unwrap().iter();
    let conditions: Vec<_> = conditions.map(|met| json!([met["type"], met["status"]])).collect();
    let expected =
        [["Initialized", "True"], ["Ready", "False"], ["ContainersReady", "False"], ["PodScheduled", "True"]];
    assert_eq!(json!(conditions), json!(expected));
    bench.waits_until_deleted(&id).await;
}

#[tokio::test]
async fn an_algorithm_that_takes_too_much_memory_is_killed() {
    // Killed as a whole: tee has no exit code to hide it with.
    let bench = Bench::start("memory", |options| options.ignore_exit_code = true).await;
    let mut stage = bench.stage(HUNGRY);
    stage["compute"]["resources"] = json!({"requests_memory": "16Mi", "limits_memory": "64Mi"});
    let id = bench.submit(&stage).await;
    let child = bench.file(&id, "child").await;
    let status = bench.failed_job(&id, "algorithm").await;
    assert_eq!(status["conditions"][1]["reason"], "BackoffLimitExceeded");
    let pod = bench.pod(&id, "algorithm", "a failed pod", |pod| pod["status"]["phase"] == "Failed").await;
    let limits = &pod["spec"]["containers"][0]["resources"]["limits"];
    assert_eq!(limits, &json!({"cpu": "1", "memory": "64Mi"}));
    let terminated = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&terminated["reason"], &terminated["exitCode"]), (&json!("OOMKilled"), &json!(137)));
    ends(&child).await;
    assert_eq!(bench.waits_until_deleted(&id).await[0]["filename"], "part.txt");
}

#[tokio::test]
async fn a_container_that_fails_is_started_again_in_its_pod() {
    let bench = Bench::start("restarts", |options| options.restart_pause = Some(Duration::from_secs(3000))).await;
    let id = bench.run("echo run >> $VOLUME/runs; echo only once; exit 3\n").await;
    let waits = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff";
    let pod = bench.pod(&id, "algorithm", "a pod that waits", waits).await;
    let container = &pod["status"]["containerStatuses"][0];
    assert_eq!((&pod["status"]["phase"], &container["restartCount"]), (&json!("Running"), &json!(1)));
    let last = &container["lastState"]["terminated"];
    assert_eq!((&last["reason"], &last["exitCode"]), (&json!("Error"), &json!(3)));
    assert_eq!(fs::read_to_string(bench.volume(&id).join("runs")).unwrap(), "run\nrun\n");
    let name = pod["metadata"]["name"].as_str().unwrap();
    assert_eq!(bench.api::<Pod>().logs(name, &LogParams::default()).await.unwrap(), "only once\n");
    let status = &bench.job(&id, "algorithm").await["status"];
    assert_eq!(status["active"], 1);
    assert!(status["failed"].is_null() && status["conditions"].is_null(), "{status}");
    bench.waits_until_deleted(&id).await;
}

#[tokio::test]
async fn a_job_that_has_had_its_restarts_takes_its_pod_along() {
    let bench = Bench::start("restarted", |options| options.restart_pause = Some(Duration::from_millis(1))).await;
    let id = bench.run("exit 3\n").await;
    let status = bench.failed_job(&id, "algorithm").await;
    assert_eq!(status["conditions"][1]["reason"], "BackoffLimitExceeded");
    assert_eq!((&status["failed"], &status["active"]), (&json!(1), &Value::Null));
    until("the pod's end", async || bench.pods(&id, "algorithm").await.is_empty().then_some(())).await;
    bench.waits_until_deleted(&id).await;
}

#[tokio::test]
async fn a_pod_that_asks_for_more_than_there_is_stays_pending() {
    let bench = Bench::embedded("pending").await;
    let mut stage = bench.stage("echo never > $OUTPUTS/out.txt\n");
    stage["compute"]["resources"] =
        json!({"requests_cpu": "1000", "limits_cpu": 1000, "requests_memory": "1Pi", "limits_memory": "1Pi"});
    let id = bench.submit(&stage).await;
    let judged = |pod: &Value| pod["status"]["conditions"].is_array();
    let mut status = bench.pod(&id, "algorithm", "conditions", judged).await["status"].take();
    assert_eq!(status["phase"], "Pending");
    assert!(status["containerStatuses"].is_null() && status["startTime"].is_null(), "{status}");
    let condition = status["conditions"][0].as_object_mut().unwrap();
    condition.remove("lastTransitionTime");
    let message = "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory.";
    let expected = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message});
    assert_eq!(status["conditions"][0], expected);
    assert_eq!(bench.job(&id, "algorithm").await["status"]["active"], 1);
    assert_eq!(bench.waits_until_deleted(&id).await[0]["type"], "configrationLog");
}

#[tokio::test]
async fn an_evicted_pod_is_replaced_until_there_were_too_many() {
    let bench = Bench::embedded("evicted").await;
    let id = bench.run(ENDLESS).await;
    let message = "The node was low on resource: memory.";
    let evicted = Patch::Merge(json!({"status": {"phase": "Failed", "reason": "Evicted", "message": message}}));
    for number in 0..7 {
        let pod = bench.pod(&id, "algorithm", "a running pod", |pod| pod["status"]["phase"] == "Running").await;
        let status = &bench.job(&id, "algorithm").await["status"];
        assert_eq!((status["failed"].as_i64().unwrap_or_default(), &status["active"]), (number, &json!(1)));
        let child = bench.file(&id, "child").await;
        fs::remove_file(bench.volume(&id).join("child")).unwrap();
        let name = pod["metadata"]["name"].as_str().unwrap();
        let patched = bench.api::<Pod>().patch_status(name, &PatchParams::default(), &evicted).await;
        patched.unwrap();
        ends(&child).await;
        let found = serde_json::to_value(bench.api::<Pod>().get(name).await.unwrap()).unwrap();
        assert_eq!((&found["status"]["phase"], &found["status"]["reason"]), (&json!("Failed"), &json!("Evicted")));
    }
    let status = bench.failed_job(&id, "algorithm").await;
    assert_eq!((&status["failed"], &status["conditions"][1]["reason"]), (&json!(7), &json!("BackoffLimitExceeded")));
    assert_eq!(bench.names::<Pod>().await.len(), 7);
    bench.waits_until_deleted(&id).await;
}
