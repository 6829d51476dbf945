//! The reaper's entry points: `operator-service reap`, and its Lambda function.

use std::time::Duration;

use fake_kubernetes::Match;
use serde_json::{Value, json};

use crate::child::{Directory, Env, run, stderr};
use crate::runtime_api::Function;
use crate::support::{ClosedPort, Cluster, Stored, TestDatabase, eventually};

const REAPER: &str = env!("CARGO_BIN_EXE_reaper");

/// The event of EventBridge.
fn scheduled() -> Value {
    json!({
        "version": "0", "id": "53dc4d37-cffa-4f76-80c9-8b7d4a4d2eaa", "detail-type": "Scheduled Event",
        "source": "aws.events", "account": "123456789012", "time": "2026-11-23T12:00:00Z", "region": "eu-central-1",
        "resources": ["arn:aws:events:eu-central-1:123456789012:rule/reaper"], "detail": {}
    })
}

/// A database and a cluster with a job that was stopped before it began, and one that is not registered yet.
struct Fixture {
    database: TestDatabase,
    cluster: Cluster,
    stopped: Stored,
    unregistered: Stored,
    env: Env,
    _kubeconfig: Directory,
}

impl Fixture {
    async fn start() -> Self {
        let (database, cluster) = (TestDatabase::migrated().await, Cluster::embedded().await);
        let directory = Directory::new();
        let env = Env::of(database.variables()).with_cluster(&cluster, &directory).with("X_API_KEY", "the-api-key");
        let namespace = Some(cluster.namespace.clone());
        let job = |job: Stored| Stored { namespace: namespace.clone(), ..job }.insert(&database);
        let stopped = job(Stored { stopreq: Some(1), ..Stored::default() }).await;
        let unregistered = job(Stored::default()).await;
        database.execute("UPDATE jobs SET registered = false WHERE stopreq = 0").await;
        Self { stopped, unregistered, env, database, cluster, _kubeconfig: directory }
    }

    async fn status(&self, job: &Stored) -> Value {
        self.database.job(&job.job_id).await.unwrap()["status"].clone()
    }

    async fn is_registered(&self) -> bool {
        self.cluster.workflow(&self.cluster.namespace, &self.unregistered.job_id).await.is_some()
    }

    /// Checks that the actions on both jobs ended like this.
    fn check(&self, report: &Value, outcome: &str) {
        let (mut found, mut expected) = (Vec::new(), Vec::new());
        // The stopped job is cleaned up as well.
        for entry in report["jobs"].as_array().unwrap().iter().filter(|entry| entry["kind"] != "cleanups") {
            found.push(["job", "kind", "outcome"].map(|name| entry[name].as_str().unwrap().to_owned()));
        }
        for (job, kind) in [(&self.stopped, "neverStarted"), (&self.unregistered, "registrations")] {
            expected.push([job.job_id.clone(), kind.to_owned(), outcome.to_owned()]);
        }
        assert_eq!(found, expected, "{report:#}");
        assert_eq!((&report["dryRun"], &report["complete"]), (&json!(outcome == "planned"), &json!(true)));
    }
}

// operator-service reap

#[tokio::test]
async fn reap_prints_its_report_and_with_dry_run_what_it_would_do() {
    let fixture = Fixture::start().await;
    let report = async |arguments: &[&str]| -> Value {
        let output = run(arguments, &fixture.env).await;
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        // Nothing but JSON, for jq.
        serde_json::from_slice(&output.stdout).unwrap()
    };
    fixture.check(&report(&["reap", "--dry-run"]).await, "planned");
    assert_eq!(fixture.status(&fixture.stopped).await, 1);
    assert!(!fixture.is_registered().await);
    fixture.check(&report(&["reap"]).await, "done");
    assert_eq!(fixture.status(&fixture.stopped).await, 70);
    assert!(fixture.is_registered().await);
    assert_eq!(report(&["reap", "--limit", "30"]).await["jobs"], json!([]));
    assert_eq!(report(&["reap", "--limit", "0"]).await["complete"], false);
}

#[tokio::test]
async fn reap_reports_why_it_fails() {
    let fixture = Fixture::start().await;
    let closed = ClosedPort::new();
    let empty = TestDatabase::empty().await;
    let not_migrated = Env::of(empty.variables());
    for (env, why) in
        [(unreachable(&fixture.env, closed.to_string()), "not available"), (not_migrated, "operator-service migrate")]
    {
        for arguments in [&["reap"][..], &["reap", "--dry-run"]] {
            let output = run(arguments, &env).await;
            let message = stderr(&output);
            assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{message}");
            let last = message.lines().last().unwrap_or_default();
            assert!(last.contains("database") && last.contains(why), "{message}");
            assert!(!message.contains("the-password") && !message.contains("the-api-key"), "{message}");
        }
    }
}

/// With a database that does not exist.
fn unreachable(env: &Env, port: String) -> Env {
    env.clone().with("POSTGRES_PORT", port).with("POSTGRES_PASSWORD", "the-password")
}

// The function

/// The metrics of the invocations so far, without those by kind.
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
async fn it_sweeps_on_a_schedule_and_reports_metrics() {
    let fixture = Fixture::start().await;
    let age = "UPDATE jobs SET datecreated = (now() AT TIME ZONE 'UTC') - interval '90 s'";
    fixture.database.execute(age).await;
    let function = Function::start_with(REAPER, &[], &fixture.env, Duration::from_secs(40)).await;
    fixture.check(&function.invoke(json!({ "dryRun": true })).json().await.unwrap(), "planned");
    assert_eq!(fixture.status(&fixture.stopped).await, 1);
    // A registration that fails.
    let faults = fixture.cluster.stand_in().faults();
    faults.answer(Match::any().verb("create"), 500);
    let report = function.invoke(scheduled()).json().await.unwrap();
    assert_eq!(report["kinds"]["neverStarted"]["done"], 1, "{report:#}");
    assert_eq!(report["kinds"]["registrations"]["failed"], 1, "{report:#}");
    faults.clear();
    fixture.database.execute("UPDATE reaperjobs SET objectdue = '-infinity'").await;
    let by_scheduler = json!({ "source": "aws.scheduler", "time": "2026-11-23T12:01:00Z" });
    let report = function.invoke(by_scheduler).json().await.unwrap();
    assert_eq!(report["kinds"]["registrations"]["done"], 1, "{report:#}");
    for nothing in [json!({}), Value::Null, json!([]), json!({ "dryRun": "yes" })] {
        assert_eq!(function.invoke(nothing).json().await.unwrap()["jobs"], json!([]));
    }

    let lines = metrics(&function, 7).await;
    let names = ["ReaperRuns", "ReaperDone", "ReaperFailed", "ReaperLeft", "OldestUnregistered"];
    let metric = |line: &Value, name: &str| line[name].as_f64();
    // A dry run has no metrics.
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
async fn it_stops_before_its_deadline_and_reports_what_is_left() {
    let fixture = Fixture::start().await;
    let time = Duration::from_secs(12);
    let function = Function::start_with(REAPER, &[], &fixture.env, time).await;
    // Two seconds until the margin, for requests of which each takes a minute.
    fixture.cluster.stand_in().faults().delay(Match::any(), Duration::from_secs(60));
    let started = tokio::time::Instant::now();
    let report = function.invoke(scheduled()).json().await.unwrap();
    assert!(started.elapsed() < time);
    assert_eq!(report["complete"], false, "{report:#}");
    assert_eq!(fixture.database.job(&fixture.unregistered.job_id).await.unwrap()["registered"], false);
    assert_eq!(metrics(&function, 1).await[0]["ReaperRuns"], 1.0);

    // No time at all.
    fixture.database.execute("UPDATE reaperjobs SET objectdue = '-infinity'").await;
    let function = Function::start_with(REAPER, &[], &fixture.env, Duration::from_secs(9)).await;
    let report = function.invoke(scheduled()).json().await.unwrap();
    assert_eq!((&report["complete"], &report["skipped"]), (&json!(false), &Value::Null), "{report:#}");
    assert_eq!(report["kinds"]["registrations"]["left"], 1, "{report:#}");
    assert!(metrics(&function, 1).await[0]["ReaperLeft"].as_f64().unwrap() >= 1.0);
}

#[tokio::test]
async fn an_unreachable_database_fails_the_invocation() {
    let fixture = Fixture::start().await;
    let closed = ClosedPort::new();
    let mut function = Function::start(REAPER, &unreachable(&fixture.env, closed.to_string())).await;
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

/// Inserts jobs with workflows of 400 KiB, of which every second one is finished.
async fn insert_large_jobs(fixture: &Fixture, numbers: std::ops::Range<i32>) {
    sqlx::query(
        "INSERT INTO jobs (agreementid, workflowid, status, statustext, datefinished, namespace, workflow)
         SELECT 'agreement', md5(i::text), 40, 'Running algorithm', CASE WHEN i % 2 = 0 THEN now() END, $1,
                '{\"' || repeat('x', 400 * 1024) || '\": 0}'
         FROM generate_series($2, $3 - 1) AS i",
    )
    .bind(&fixture.cluster.namespace)
    .bind(numbers.start)
    .bind(numbers.end)
    .execute(&fixture.database.pool)
    .await
    .unwrap();
}

/// Callers may start many jobs with large workflows. A tenth of them and all of them are compared in one run.
#[tokio::test]
async fn large_workflows_do_not_fill_its_memory() {
    const FEW: i32 = 40;
    const ALL: i32 = 400;
    let fixture = Fixture::start().await;
    let function = Function::start_with(REAPER, &[], &fixture.env, Duration::from_secs(60)).await;
    let sweep = async || {
        for event in [json!({ "dryRun": true }), scheduled()] {
            let report = function.invoke(event).json().await.unwrap();
            assert_eq!((&report["complete"], &report["problems"]), (&json!(true), &json!([])), "{report:#}");
        }
    };
    sweep().await;
    let before = function.process.memory("VmRSS");
    let mut growth = [0; 2];
    for (growth, numbers) in growth.iter_mut().zip([0..FEW, FEW..ALL]) {
        insert_large_jobs(&fixture, numbers).await;
        sweep().await;
        *growth = function.process.memory("VmHWM").saturating_sub(before);
    }
    let [few, all] = growth;
    println!("{before} KiB, {few} KiB more for {FEW} jobs, {all} KiB more for {ALL}");
    // Half of what the further workflows would need if all of them were in memory.
    let limit = 2 * few + (ALL - FEW) as u64 * 400 / 2;
    assert!(all < limit, "{few} KiB for {FEW} jobs, but {all} KiB for {ALL}");
}
