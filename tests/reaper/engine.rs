//! With the fake engine: jobs that fail, from their start over HTTP to their end.

use std::path::PathBuf;
use std::time::Duration;

use fake_engine::{Engine, Options};
use serde_json::{Value, json};

use crate::fixture::{Fixture, FixtureBuilder};
use crate::support::{Key, agreement_id, caller, eventually, left_out, owner, unique, workflow};

/// A fixture for an engine. `None` with a real cluster, where the fake engine cannot play the kubelet.
async fn with_engine(fixture: FixtureBuilder) -> Option<(Fixture, Options)> {
    let fixture = fixture.app(|app| app.unannounced()).var("REAP_RETRY_GRACE", 1).var("REAP_SCHEDULE_GRACE", 1);
    let fixture = fixture.start().await;
    if !fixture.app.cluster.is_embedded() {
        left_out("the stand-in for the engine has its own tests with other clusters");
        return None;
    }
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(unique("engine"));
    let database = fixture.app.database.connect_options();
    let mut options = Options::new(database, &fixture.app.namespace, fake_engine::Cluster::Embedded, directory);
    options.interval = Duration::from_millis(100);
    Some((fixture, options))
}

async fn start_engine(fixture: &Fixture, options: &Options) -> Engine {
    Engine::start(options.clone(), fixture.app.cluster.client.clone()).await.unwrap()
}

/// Starts a job that runs a script.
async fn start(fixture: &Fixture, script: &str, image: &str) -> String {
    let mut workflow = workflow::sample();
    let algorithm = &mut workflow["stages"][0]["algorithm"];
    algorithm["rawcode"] = json!(script);
    algorithm["container"] = json!({ "image": image, "tag": "1", "entrypoint": "sh $ALGO" });
    workflow["stages"][0]["input"] = json!([]);
    let key = Key::new();
    let start = caller::provider(&key).start(&fixture.app.namespace, &agreement_id(), &owner(), workflow);
    fixture.app.send(start).await.ok()[0]["jobId"].as_str().unwrap().to_owned()
}

/// Sweeps until a job is as wanted. Returns its status object.
async fn until(fixture: &Fixture, what: &str, job_id: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    eventually(what, Duration::from_secs(60), async || {
        fixture.sweep().await;
        let status = crate::support::Call::get("compute").with("jobId", job_id);
        let status = fixture.app.send(status).await.ok()[0].clone();
        wanted(&status).then_some(status)
    })
    .await
}

async fn finished(fixture: &Fixture, job_id: &str) -> Value {
    until(fixture, "the job's end", job_id, |status| !status["dateFinished"].is_null()).await
}

async fn object_status(fixture: &Fixture, job_id: &str) -> (Value, Value) {
    let mut object = fixture.app.cluster.workflow(&fixture.app.namespace, job_id).await.unwrap();
    (object["status"]["statusText"].take(), object["status"]["reason"].take())
}

#[tokio::test]
async fn jobs_that_fail_end_with_a_reason_for_their_owner() {
    let limits = Fixture::builder().var("limits_memory", "48Mi").var("requests_memory", "16Mi");
    let Some((fixture, mut options)) = with_engine(limits).await else { return };
    // The engine deletes a failed step when it looks at it next: a sweep has to come between, also on a busy machine.
    options.interval = Duration::from_secs(3);
    let engine = start_engine(&fixture, &options).await;
    let fails = start(&fixture, "echo no data; exit 3", "python").await;
    let greedy = start(&fixture, "echo begin; tail -c 200M /dev/zero | tail", "python").await;
    let imageless = start(&fixture, "true", "registry/does-not-exist").await;
    let fine = start(&fixture, "echo 1 > $VOLUME/outputs/one.txt", "python").await;
    for (job_id, reason) in [
        (&fails, "The algorithm failed with exit code 3."),
        (&greedy, "The algorithm ran out of memory: 48Mi were allowed."),
        (&imageless, "The algorithm could not begin: its image cannot be pulled."),
    ] {
        let status = finished(&fixture, job_id).await;
        // The logs at least are published.
        assert_eq!((&status["status"], &status["reason"]), (&json!(70), &json!(reason)));
        assert!(!status["results"].as_array().unwrap().is_empty());
    }
    let status = finished(&fixture, &fine).await;
    assert_eq!((&status["status"], status.get("reason")), (&json!(70), None));
    fixture.sweep().await;
    assert_eq!(object_status(&fixture, &greedy).await.1, "The algorithm ran out of memory: 48Mi were allowed.");
    assert_eq!(object_status(&fixture, &fine).await, (json!("Job finished"), Value::Null));
    for job_id in [&fails, &greedy, &imageless, &fine] {
        assert_eq!(fixture.app.cluster.objects_of(&fixture.app.namespace, job_id).await, ["WorkFlow"]);
    }
    engine.stop().await;
}

#[tokio::test]
async fn an_algorithm_that_hangs_is_stopped_and_what_it_has_is_published() {
    let Some((fixture, options)) = with_engine(Fixture::builder().var("ALGO_POD_TIMEOUT", 2)).await else { return };
    let engine = start_engine(&fixture, &options).await;
    let hangs = start(&fixture, "echo half > $VOLUME/outputs/half.txt; sleep 1000", "python").await;
    let status = finished(&fixture, &hangs).await;
    assert_eq!((&status["status"], &status["stopreq"]), (&json!(70), &json!(2)));
    assert_eq!(status["reason"], "The algorithm was stopped at its time limit of 2 seconds.");
    assert!(status["results"].to_string().contains("half.txt"));
    engine.stop().await;
}

#[tokio::test]
async fn a_job_whose_engine_was_killed_is_finished_and_the_next_engine_works() {
    let Some((fixture, options)) = with_engine(Fixture::builder().var("ALGO_POD_TIMEOUT", 3)).await else { return };
    let fixture = Fixture {
        reaper: fixture.another_reaper(&[("ALGO_POD_TIMEOUT", "3"), ("REAP_ABSENT_GRACE", "0")]).await,
        ..fixture
    };
    let engine = start_engine(&fixture, &options).await;
    let orphan = start(&fixture, "sleep 1000", "python").await;
    until(&fixture, "the algorithm", &orphan, |status| status["status"] == 40).await;
    engine.stop().await;
    let engine = start_engine(&fixture, &options).await;
    let status = finished(&fixture, &orphan).await;
    assert_eq!(status["status"], 41);
    let fine = start(&fixture, "echo 1 > $VOLUME/outputs/one.txt", "python").await;
    assert_eq!(finished(&fixture, &fine).await["status"], 70);
    // Its volumes are deleted when it is settled.
    fixture.passed(&orphan, "datefinished", 3700).await;
    fixture.passed(&orphan, "expirydue", 3700).await;
    fixture.sweep().await;
    assert_eq!(fixture.app.cluster.objects_of(&fixture.app.namespace, &orphan).await, ["WorkFlow"]);
    engine.stop().await;
}
