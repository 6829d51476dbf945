//! Jobs that are not finished: time limits, steps that cannot finish, stops, orphans.

use serde_json::{Value, json};

use crate::fixture::{Fixture, NOBODY, ago, container, count, of_job};
use crate::jobs::terminated;
use crate::support::{Call, Key, Stored, caller, left_out, workflow};

fn entry(kind: &str, outcome: &str) -> Vec<(String, String)> {
    vec![(kind.to_owned(), outcome.to_owned())]
}

#[tokio::test]
async fn an_algorithm_over_its_limit_is_ended_and_nothing_else() {
    let fixture = Fixture::builder().var("ALGO_POD_TIMEOUT", 3600).start().await;
    let over = fixture.running(3700).await;
    let under = fixture.running(3500).await;
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "timeLimits"), [1, 1, 0, 0], "{report:#}");
    assert_eq!(of_job(&report, &over), entry("timeLimits", "done"));
    assert_eq!(of_job(&report, &under), []);

    let status = fixture.status(&over).await;
    assert_eq!((&status["status"], &status["stopreq"]), (&json!(40), &json!(2)));
    assert_eq!(status["reason"], "The algorithm was stopped at its time limit of 3600 seconds.");
    assert_eq!(status["dateFinished"], Value::Null);
    // The engine needs the volumes for publishing.
    let left = ["ConfigMap", "PersistentVolumeClaim/adminlogs", "PersistentVolumeClaim/data", "WorkFlow"];
    assert_eq!(fixture.objects(&over).await, left);
    assert!(fixture.objects(&under).await.contains(&"Job/algorithm-job".to_owned()));
    assert_eq!(fixture.status(&under).await.get("reason"), None);

    let again = fixture.sweep().await;
    assert_eq!(count(&again, "timeLimits"), [0; 4], "{again:#}");
}

#[tokio::test]
async fn the_shortest_limit_applies_and_maxtime_only_if_there_is_no_other() {
    let fixture = Fixture::builder().var("ALGO_POD_TIMEOUT", 5000).start().await;
    let namespace = fixture.app.namespace.clone();
    let long = fixture.running(4500).await;
    // All callers hard-code a maxtime of 3600, which the environment may well exceed.
    fixture.sweep().await;
    assert_eq!(fixture.status(&long).await["stopreq"], 0);
    fixture.app.database.announce(&namespace, r#"{"maxJobDuration": "4000"}"#).await;
    fixture.sweep().await;
    assert_eq!(fixture.status(&long).await["reason"], "The algorithm was stopped at its time limit of 4000 seconds.");

    let fixture = Fixture::start().await;
    let long = fixture.running(3700).await;
    fixture.sweep().await;
    assert_eq!(fixture.status(&long).await["reason"], "The algorithm was stopped at its time limit of 3600 seconds.");

    let fixture = Fixture::start().await;
    let valid = fixture.running(99_999).await;
    let later = Stored { valid_until: Some(now() + 500), ..Stored::running() };
    let later = fixture.job(later).await;
    fixture.step(&later.job_id, "algorithm", 99_999).await;
    let passed = Stored { valid_until: Some(now() - 5), ..Stored::running() };
    let passed = fixture.job(passed).await;
    fixture.step(&passed.job_id, "algorithm", 10).await;
    fixture.sweep().await;
    assert_eq!(fixture.status(&valid).await["stopreq"], 2);
    // Its maxtime does not apply, because it has another limit.
    assert_eq!(fixture.status(&later).await["stopreq"], 0);
    assert_eq!(
        fixture.status(&passed).await["reason"],
        "The algorithm was stopped because the job's validUntil has passed."
    );
}

fn now() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64
}

#[tokio::test]
async fn a_stop_that_was_not_carried_out_is_carried_out_and_stays_a_stop() {
    let fixture = Fixture::builder().var("ALGO_POD_TIMEOUT", 60).start().await;
    let stopped = fixture.job(Stored { stopreq: Some(1), ..Stored::running() }).await;
    fixture.step(&stopped.job_id, "algorithm", 100).await;
    let deleted = fixture.job(Stored { removed: Some(1), stopreq: Some(1), ..Stored::running() }).await;
    fixture.step(&deleted.job_id, "algorithm", 1).await;
    let configuring = Stored { status: Some(20), stopreq: Some(1), ..Stored::default() };
    let configuring = fixture.job(configuring).await;
    fixture.step(&configuring.job_id, "configure", 1).await;
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "stops"), [2, 2, 0, 0], "{report:#}");
    for job in [&stopped, &deleted] {
        assert_eq!(fixture.objects(job).await, ["WorkFlow"]);
        let status = fixture.status(job).await;
        assert_eq!((&status["stopreq"], status.get("reason")), (&json!(1), None));
    }
    // The engine checks for stops itself before it starts the algorithm.
    assert_eq!(fixture.objects(&configuring).await, ["Job/configure-job", "WorkFlow"]);
}

/// A step that is stuck, and the reason for its owner.
struct Stuck {
    component: &'static str,
    pod: Value,
    /// Whether its Job has failed.
    failed: bool,
    /// The grace in seconds.
    grace: i64,
    reason: &'static str,
}

fn waiting(component: &'static str, why: &str, seconds: i64) -> Value {
    json!({
        "phase": "Pending", "startTime": ago(seconds),
        "conditions": [
            { "type": "PodScheduled", "status": "True", "lastTransitionTime": ago(seconds) },
            { "type": "ContainersReady", "status": "False", "lastTransitionTime": ago(seconds) },
        ],
        "containerStatuses": [container(component, json!({ "waiting": { "reason": why, "message": "…" } }))]
    })
}

fn stuck(seconds: i64) -> Vec<Stuck> {
    let unschedulable = json!({
        "phase": "Pending",
        "conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "lastTransitionTime": ago(seconds),
            "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available."
        }]
    });
    let evicted = json!({
        "phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory.",
        "startTime": ago(seconds)
    });
    vec![
        Stuck {
            component: "algorithm",
            pod: waiting("algorithm", "ImagePullBackOff", seconds),
            failed: false,
            grace: 300,
            reason: "The algorithm could not begin: its image cannot be pulled.",
        },
        Stuck {
            component: "algorithm",
            pod: waiting("algorithm", "InvalidImageName", seconds),
            failed: false,
            grace: 0,
            reason: "The algorithm could not begin: its image has no valid name.",
        },
        Stuck {
            component: "algorithm",
            pod: unschedulable,
            failed: false,
            grace: 900,
            reason: "The algorithm could not begin: no node has enough nvidia.com/gpu for it.",
        },
        Stuck {
            component: "algorithm",
            pod: terminated("algorithm", "OOMKilled", 137, seconds),
            failed: true,
            grace: 0,
            reason: "The algorithm ran out of memory.",
        },
        Stuck {
            component: "publish",
            pod: terminated("publish", "Error", 3, seconds),
            failed: true,
            grace: 0,
            reason: "Publishing the results failed with exit code 3.",
        },
        Stuck {
            component: "configure",
            pod: evicted,
            failed: true,
            grace: 0,
            reason: "Fetching the job's data was evicted by a node that ran short of resources.",
        },
        Stuck {
            component: "publish",
            pod: waiting("publish", "ContainerCreating", 4 * seconds),
            failed: false,
            grace: 3600,
            reason: "Publishing the results could not begin: its pod did not start, for example because a volume could not \
                     be attached.",
        },
    ]
}

async fn stuck_job(fixture: &Fixture, stuck: &Stuck) -> Stored {
    let status = match stuck.component {
        "configure" => 20,
        "algorithm" => 40,
        _ => 60,
    };
    let job = fixture.job(Stored { status: Some(status), ..Stored::running() }).await;
    fixture.volumes(&job.job_id).await;
    fixture.app.cluster.engine_job(&fixture.app.namespace, &job.job_id, stuck.component).await;
    let pod = fixture.pod(&job.job_id, stuck.component).await;
    fixture.pod_status(&pod, stuck.pod.clone()).await;
    if stuck.failed {
        fixture.job_failed(&job.job_id, stuck.component).await;
    }
    job
}

#[tokio::test]
async fn a_step_that_cannot_finish_is_ended_alone_with_a_reason_for_its_owner() {
    let fixture = Fixture::start().await;
    let mut jobs = Vec::new();
    for stuck in stuck(1000) {
        jobs.push((stuck_job(&fixture, &stuck).await, stuck));
    }
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "stuckSteps"), [6, 6, 0, 0], "{report:#}");
    // The cluster does not record since when an image cannot be pulled. It counts from the first sweep that saw it.
    assert_eq!(fixture.status(&jobs[0].0).await.get("reason"), None);
    fixture.passed(&jobs[0].0.job_id, "seensince", 301).await;
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "stuckSteps"), [1, 1, 0, 0], "{report:#}");
    let left = ["ConfigMap", "PersistentVolumeClaim/adminlogs", "PersistentVolumeClaim/data", "WorkFlow"];
    for (job, stuck) in &jobs {
        assert_eq!(fixture.status(job).await["reason"], stuck.reason);
        assert_eq!(fixture.objects(job).await, left, "{}", stuck.reason);
        let object = fixture.app.cluster.workflow(&fixture.app.namespace, &job.job_id).await.unwrap();
        assert_eq!(object["status"]["reason"], stuck.reason);
        assert_eq!(fixture.status(job).await["dateFinished"], Value::Null, "the engine lives, and finishes it");
    }
}

#[tokio::test]
async fn a_problem_that_may_end_by_itself_has_its_grace() {
    let fixture = Fixture::start().await;
    for stuck in stuck(100).into_iter().filter(|stuck| stuck.grace > 100) {
        let job = stuck_job(&fixture, &stuck).await;
        fixture.sweep().await;
        fixture.passed(&job.job_id, "seensince", 200).await;
        fixture.sweep().await;
        assert_eq!(fixture.status(&job).await.get("reason"), None, "{}", stuck.reason);
        assert!(fixture.objects(&job).await.contains(&format!("Job/{}-job", stuck.component)), "{}", stuck.reason);
    }
    let graces = ["REAP_RETRY_GRACE", "REAP_SCHEDULE_GRACE", "REAP_START_GRACE"].map(|name| (name, "50"));
    let report = fixture.another_reaper(&graces).await.sweep(false, std::time::Duration::from_secs(60)).await.unwrap();
    assert_eq!(report.total().done, 3 + 3, "three steps, and their objects that say so: {report:#?}");
}

#[tokio::test]
async fn the_end_of_a_log_outlives_its_pod() {
    let fixture = Fixture::builder().var("ALGO_POD_TIMEOUT", 3600).start().await;
    if !fixture.app.cluster.is_embedded() {
        return left_out("there is no kubelet that would have a log");
    }
    let job = fixture.running(4000).await;
    let pod = fixture.pod(&job.job_id, "algorithm").await;
    let lines: String = (0..20_000).map(|line| format!("line {line:08}\n")).collect();
    fixture.app.cluster.write_log(&fixture.app.namespace, &pod, lines.as_bytes()).await;
    fixture.sweep().await;
    assert_eq!(fixture.app.cluster.pods_of(&fixture.app.namespace, &job.job_id, "algorithm").await.len(), 0);
    let (status, log) = fixture.log(&job, "algorithm").await;
    assert_eq!((status, log.len()), (200, 64 * 1024));
    assert!(log.ends_with("line 00019999\n"));
    assert_eq!(fixture.log(&job, "publish").await.0, 404);
}

#[tokio::test]
async fn a_job_without_steps_is_finished_after_two_sweeps() {
    let fixture = Fixture::start().await;
    let orphan = fixture.job(Stored::running()).await;
    fixture.volumes(&orphan.job_id).await;
    let published = Stored { outputs: Some(r#"[{"filename": "a", "url": "https://a/"}]"#.into()), ..Stored::running() };
    let published = fixture.job(published).await;
    let not_provisioned = fixture.job(Stored { status: Some(31), ..Stored::running() }).await;
    let jobs = [&orphan, &published, &not_provisioned];
    fixture.sweep().await;
    fixture.sweep().await;
    for job in jobs {
        assert_eq!(fixture.status(job).await["dateFinished"], Value::Null, "the second sweep came too soon");
        fixture.passed(&job.job_id, "seensince", 301).await;
    }
    // Between two steps there is no Job for a moment.
    let alive = fixture.job(Stored::running()).await;
    fixture.sweep().await;
    fixture.passed(&alive.job_id, "seensince", 301).await;
    fixture.step(&alive.job_id, "publish", 1).await;
    fixture.sweep().await;
    assert_eq!(fixture.state_of(&alive).await["seen"], Value::Null);

    for (job, status, reason) in [
        (&orphan, 41, "The environment lost the job while it ran."),
        (&published, 70, "The environment lost the job while it ran. Its results had been published."),
        (&not_provisioned, 31, "The environment lost the job while it ran."),
    ] {
        let found = fixture.status(job).await;
        assert_eq!((&found["status"], &found["reason"]), (&json!(status), &json!(reason)));
        assert_ne!(found["dateFinished"], Value::Null);
    }
    // The agreement may have another job.
    let key = Key::new();
    let start = caller::provider(&key).start(
        &fixture.app.namespace,
        &orphan.agreement_id,
        orphan.owner.as_deref().unwrap(),
        workflow::sample(),
    );
    assert_eq!(fixture.app.send(start).await.ok()[0]["status"], 1);
}

#[tokio::test]
async fn an_engine_that_returns_to_a_job_finished_by_the_reaper_changes_nothing() {
    let fixture = Fixture::start().await;
    let orphan = fixture.job(Stored::running()).await;
    fixture.sweep().await;
    fixture.passed(&orphan.job_id, "seensince", 301).await;
    fixture.sweep().await;
    let finished = fixture.status(&orphan).await;
    assert_eq!(finished["status"], 41);
    for statement in [
        "UPDATE jobs SET status = 60, statusText = 'Publishing results' WHERE workflowId = $1",
        "UPDATE jobs SET status = 70, statusText = 'Job finished' WHERE workflowId = $1",
        "UPDATE jobs SET dateFinished = NOW() + interval '1 day' WHERE workflowId = $1",
        "UPDATE jobs SET dateFinished = NULL WHERE workflowId = $1",
    ] {
        sqlx::query(statement).bind(&orphan.job_id).execute(&fixture.app.database.pool).await.unwrap();
    }
    assert_eq!(fixture.status(&orphan).await, finished);
}

/// The status of a Job that has succeeded.
fn succeeded() -> Value {
    let condition = |kind: &str| {
        json!({
            "type": kind, "status": "True", "reason": "CompletionsReached", "lastTransitionTime": ago(0),
            "lastProbeTime": ago(0), "message": "Reached expected number of succeeded pods"
        })
    };
    json!({
        "succeeded": 1, "active": 0, "ready": 0, "completionTime": ago(0),
        "conditions": [condition("SuccessCriteriaMet"), condition("Complete")]
    })
}

#[tokio::test]
async fn a_job_that_no_engine_continues_is_finished_and_one_that_is_published_for_long_is_not() {
    let fixture = Fixture::builder().var("ALGO_POD_TIMEOUT", 3600).start().await;
    let publishing = fixture.job(Stored { status: Some(60), ..Stored::running() }).await;
    fixture.step(&publishing.job_id, "publish", 24 * 3600 - 100).await;
    let endless = fixture.job(Stored { status: Some(60), ..Stored::running() }).await;
    fixture.step(&endless.job_id, "publish", 24 * 3600 + 1).await;
    let idle = fixture.job(Stored { status: Some(60), ..Stored::running() }).await;
    fixture.step(&idle.job_id, "algorithm", 10_000).await;
    fixture.job_status(&idle.job_id, "algorithm", succeeded()).await;
    fixture.sweep().await;
    // A step that does not end is ended after a day. That frees the engine's slot.
    let status = fixture.status(&endless).await;
    assert_eq!(status["reason"], "Publishing the results did not end within 86400 seconds.");
    assert_eq!((&status["dateFinished"], fixture.objects(&endless).await), (&Value::Null, vec!["WorkFlow".to_owned()]));
    for job in [&publishing, &idle] {
        fixture.passed(&job.job_id, "seensince", 3601).await;
    }
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "orphans"), [1, 1, 0, 0], "{report:#}");
    let status = fixture.status(&idle).await;
    assert_eq!(status["reason"], "The environment did not continue the job.");
    assert_eq!((&status["status"], &status["stopreq"]), (&json!(41), &json!(0)));
    // Its outputs may still be published for an hour.
    assert_eq!(fixture.objects(&idle).await, ["Job/algorithm-job", "WorkFlow"]);
    fixture.passed(&idle.job_id, "datefinished", 3601).await;
    fixture.sweep().await;
    assert_eq!(fixture.objects(&idle).await, ["WorkFlow"]);
    assert_eq!(fixture.status(&publishing).await["dateFinished"], Value::Null);
    assert_eq!(fixture.objects(&publishing).await, ["Job/publish-job", "WorkFlow"]);
}

#[tokio::test]
async fn a_stop_over_http_while_the_cluster_is_down_is_carried_out_later() {
    let fixture = Fixture::builder().app(|app| app.kubeconfig(NOBODY)).start().await;
    let job = fixture.running(10).await;
    let key = Key::new();
    let call = caller::provider(&key).stop(job.owner.as_deref().unwrap(), Some(&job.job_id));
    assert_eq!(fixture.app.send(call).await.ok()[0]["stopreq"], 1);
    assert!(fixture.objects(&job).await.contains(&"Job/algorithm-job".to_owned()));
    fixture.sweep().await;
    assert!(!fixture.objects(&job).await.contains(&"Job/algorithm-job".to_owned()));
    let stopped = fixture.app.send(Call::get("compute").with("jobId", job.job_id.as_str())).await.ok();
    assert_eq!(stopped[0]["stopreq"], 1);
}
