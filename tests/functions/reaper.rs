//! The reaper's doors: `operator-service reap`, and its Lambda function.

use std::time::Duration;

use fake_kubernetes::Match;
use serde_json::{Value, json};

use crate::child::{Directory, Env, run, stderr};
use crate::runtime_api::Function;
use crate::support::{Cluster, Stored, TestDatabase, eventually};

const REAPER: &str = env!("CARGO_BIN_EXE_reaper");

/// What EventBridge sends.
fn scheduled() -> Value {
    json!({
        "version": "0", "id": "53dc4d37-cffa-4f76-80c9-8b7d4a4d2eaa", "detail-type": "Scheduled Event",
        "source": "aws.events", "account": "123456789012", "time": "2026-11-23T12:00:00Z", "region": "eu-central-1",
        "resources": ["arn:aws:events:eu-central-1:123456789012:rule/reaper"], "detail": {}
    })
}

/// A database and a cluster with a job that was called off, and one that is not registered yet.
struct Scene {
    database: TestDatabase,
    cluster: Cluster,
    called_off: Stored,
    waiting: Stored,
    env: Env,
    _kubeconfig: Directory,
}

impl Scene {
    async fn start() -> Self {
        let (database, cluster) = (TestDatabase::migrated().await, Cluster::embedded().await);
        let directory = Directory::new();
        let kubeconfig = directory.file("kubeconfig");
        std::fs::write(&kubeconfig, cluster.kubeconfig()).unwrap();
        let env = Env::of(database.variables())
            .with("KUBECONFIG", kubeconfig.to_str().unwrap())
            .with("X_API_KEY", "the-api-key");
        let namespace = Some(cluster.namespace.clone());
        let job = |job: Stored| Stored { namespace: namespace.clone(), ..job }.insert(&database);
        let called_off = job(Stored { stopreq: Some(1), ..Stored::default() }).await;
        let waiting = job(Stored::default()).await;
        database.execute("UPDATE jobs SET registered = false WHERE stopreq = 0").await;
        Self { called_off, waiting, env, database, cluster, _kubeconfig: directory }
    }

    async fn status(&self, job: &Stored) -> Value {
        self.database.job(&job.job_id).await.unwrap()["status"].clone()
    }

    async fn is_registered(&self) -> bool {
        self.cluster.workflow(&self.cluster.namespace, &self.waiting.job_id).await.is_some()
    }

    /// Both are done, or would be.
    fn check(&self, report: &Value, outcome: &str) {
        let (mut found, mut expected) = (Vec::new(), Vec::new());
        // What had been called off was looked through for leftovers, too.
        for entry in report["jobs"].as_array().unwrap().iter().filter(|entry| entry["kind"] != "leftovers") {
            found.push(["job", "kind", "outcome"].map(|name| entry[name].as_str().unwrap().to_owned()));
        }
        for (job, kind) in [(&self.called_off, "neverStarted"), (&self.waiting, "registrations")] {
            expected.push([job.job_id.clone(), kind.to_owned(), outcome.to_owned()]);
        }
        assert_eq!(found, expected, "{report:#}");
        assert_eq!((&report["dryRun"], &report["complete"]), (&json!(outcome == "would"), &json!(true)));
    }
}

// operator-service reap

#[tokio::test]
async fn reap_prints_what_it_did_and_with_dry_run_what_it_would_do() {
    let scene = Scene::start().await;
    let report = async |arguments: &[&str]| -> Value {
        let output = run(arguments, &scene.env).await;
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        // Nothing else is there: it is for jq.
        serde_json::from_slice(&output.stdout).unwrap()
    };
    scene.check(&report(&["reap", "--dry-run"]).await, "would");
    assert_eq!(scene.status(&scene.called_off).await, 1);
    assert!(!scene.is_registered().await);
    scene.check(&report(&["reap"]).await, "done");
    assert_eq!(scene.status(&scene.called_off).await, 70);
    assert!(scene.is_registered().await);
    assert_eq!(report(&["reap", "--limit", "30"]).await["jobs"], json!([]));
    assert_eq!(report(&["reap", "--limit", "0"]).await["complete"], false);
}

#[tokio::test]
async fn reap_says_why_it_cannot() {
    let scene = Scene::start().await;
    let port = devstack::local::free_port().unwrap().to_string();
    let empty = TestDatabase::empty().await;
    let not_migrated = Env::of(empty.variables());
    for (env, why) in [(unreachable(&scene.env, port), "not available"), (not_migrated, "operator-service migrate")] {
        for arguments in [&["reap"][..], &["reap", "--dry-run"]] {
            let output = run(arguments, &env).await;
            let said = stderr(&output);
            assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{said}");
            let last = said.lines().last().unwrap_or_default();
            assert!(last.contains("database") && last.contains(why), "{said}");
            assert!(!said.contains("the-password") && !said.contains("the-api-key"), "{said}");
        }
    }
}

/// With a database that is not there.
fn unreachable(env: &Env, port: String) -> Env {
    env.clone().with("POSTGRES_PORT", port).with("POSTGRES_PASSWORD", "the-password")
}

// The function

/// The metrics of the invocations so far, without those of each kind of work.
async fn metrics(function: &Function, invocations: usize) -> Vec<Value> {
    eventually("the lines", crate::LIMIT, async || {
        let output = function.process.output();
        let lines = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let lines: Vec<_> = lines.filter(|line| !line["_aws"].is_null() && line["Kind"].is_null()).collect();
        (lines.len() == invocations).then_some(lines)
    })
    .await
}

#[tokio::test]
async fn a_schedule_makes_it_sweep_and_its_metrics_say_how_much() {
    let scene = Scene::start().await;
    let age = "UPDATE jobs SET datecreated = (now() AT TIME ZONE 'UTC') - interval '90 s'";
    scene.database.execute(age).await;
    let function = Function::start_with(REAPER, &[], &scene.env, Duration::from_secs(40)).await;
    scene.check(&function.invoke(json!({ "dryRun": true })).json().await.unwrap(), "would");
    assert_eq!(scene.status(&scene.called_off).await, 1);
    // One that cannot be done yet.
    let faults = scene.cluster.stand_in().faults();
    faults.answer(Match::any().verb("create"), 500);
    let report = function.invoke(scheduled()).json().await.unwrap();
    assert_eq!(report["kinds"]["neverStarted"]["done"], 1, "{report:#}");
    assert_eq!(report["kinds"]["registrations"]["failed"], 1, "{report:#}");
    faults.clear();
    scene.database.execute("UPDATE jobs SET registerat = '-infinity'").await;
    let by_scheduler = json!({ "source": "aws.scheduler", "time": "2026-11-23T12:01:00Z" });
    let report = function.invoke(by_scheduler).json().await.unwrap();
    assert_eq!(report["kinds"]["registrations"]["done"], 1, "{report:#}");
    for nothing in [json!({}), Value::Null, json!([]), json!({ "dryRun": "yes" })] {
        assert_eq!(function.invoke(nothing).json().await.unwrap()["jobs"], json!([]));
    }

    let lines = metrics(&function, 7).await;
    let names = ["ReaperRuns", "ReaperDone", "ReaperFailed", "ReaperLeft", "OldestUnregistered"];
    let metric = |line: &Value, name: &str| line[name].as_f64();
    // What changes nothing is no run.
    assert_eq!(names.map(|name| metric(&lines[0], name)), [None; 5]);
    for (line, runs) in lines[1..].iter().zip(1..) {
        let defined = line["_aws"]["CloudWatchMetrics"][0]["Metrics"].as_array().unwrap();
        for name in names {
            assert!(defined.iter().any(|metric| metric["Name"] == name), "{name} {line:#}");
        }
        assert_eq!(metric(line, "ReaperRuns"), Some(1.0), "{runs}");
    }
    assert_eq!(metric(&lines[1], "ReaperFailed"), Some(1.0));
    assert!(metric(&lines[1], "OldestUnregistered").unwrap() >= 90.0);
    assert!(metric(&lines[2], "ReaperDone").unwrap() >= 1.0);
    assert_eq!(
        ["ReaperFailed", "ReaperLeft", "OldestUnregistered"].map(|name| metric(&lines[2], name)),
        [Some(0.0); 3]
    );
    let output = function.process.output();
    let of_kind = |line: &Value| line["Kind"] == "Registrations" && line["ReaperFound"] == 1.0;
    let kinds = output.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(of_kind);
    assert_eq!(kinds.map(|line| line["ReaperDone"].as_f64()).collect::<Vec<_>>(), [Some(0.0), Some(1.0)]);
    assert!(!output.contains("the-api-key"), "{output}");
}

#[tokio::test]
async fn it_stops_before_its_deadline_and_says_what_is_left() {
    let scene = Scene::start().await;
    let time = Duration::from_secs(12);
    let function = Function::start_with(REAPER, &[], &scene.env, time).await;
    // Two seconds for what would take for ever.
    scene.cluster.stand_in().faults().delay(Match::any(), Duration::from_secs(60));
    let started = tokio::time::Instant::now();
    let report = function.invoke(scheduled()).json().await.unwrap();
    assert!(started.elapsed() < time);
    assert_eq!(report["complete"], false, "{report:#}");
    assert_eq!(scene.database.job(&scene.waiting.job_id).await.unwrap()["registered"], false);
    assert_eq!(metrics(&function, 1).await[0]["ReaperRuns"], 1.0);

    // No time at all.
    scene.database.execute("UPDATE jobs SET registerat = '-infinity'").await;
    let function = Function::start_with(REAPER, &[], &scene.env, Duration::from_secs(9)).await;
    let report = function.invoke(scheduled()).json().await.unwrap();
    assert_eq!((&report["complete"], &report["skipped"]), (&json!(false), &Value::Null), "{report:#}");
    assert_eq!(report["kinds"]["registrations"]["left"], 1, "{report:#}");
    assert!(metrics(&function, 1).await[0]["ReaperLeft"].as_f64().unwrap() >= 1.0);
}

#[tokio::test]
async fn a_database_that_is_not_there_fails_the_function() {
    let scene = Scene::start().await;
    let port = devstack::local::free_port().unwrap().to_string();
    let mut function = Function::start(REAPER, &unreachable(&scene.env, port)).await;
    for _ in 0..2 {
        let failed = function.invoke(scheduled()).json().await.unwrap_err();
        let message = failed["errorMessage"].as_str().unwrap();
        assert!(message.starts_with("The database is not available"), "{message}");
    }
    let lines = metrics(&function, 2).await;
    assert!(lines.iter().all(|line| line["ReaperRuns"].is_null() && line["message"] == "failed"), "{lines:?}");
    assert!(function.process.is_running());
    assert!(!function.process.output().contains("the-password"));
}

/// Whoever may start jobs may start many large ones.
#[tokio::test]
async fn large_workflows_do_not_fill_its_memory() {
    let scene = Scene::start().await;
    sqlx::query(
        "INSERT INTO jobs (agreementid, workflowid, status, statustext, datefinished, namespace, mirrored, workflow)
         SELECT 'agreement', md5(i::text), 40, 'Running algorithm', CASE WHEN i % 2 = 0 THEN now() END, $1, true,
                '{\"' || repeat('x', 400 * 1024) || '\": 0}'
         FROM generate_series(1, 400) AS i",
    )
    .bind(&scene.cluster.namespace)
    .execute(&scene.database.pool)
    .await
    .unwrap();
    let function = Function::start_with(REAPER, &[], &scene.env, Duration::from_secs(60)).await;
    for event in [json!({ "dryRun": true }), scheduled()] {
        let report = function.invoke(event).json().await.unwrap();
        assert_eq!((&report["complete"], &report["troubles"]), (&json!(true), &json!([])), "{report:#}");
    }
    let memory = function.process.memory("VmHWM");
    assert!(memory < 80 * 1024, "{memory} KiB");
}
