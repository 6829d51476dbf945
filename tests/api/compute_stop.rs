//! PUT OP/compute

use std::time::Duration;

use fake_kubernetes::Match;
use reqwest::Method;
use serde_json::json;

use crate::given::{started, started_by, status_of};
use crate::support::{App, Call, Cluster, Key, Stored, agreement_id, caller, eventually, left_out, nonce, owner};

#[tokio::test]
async fn missing_names_are_reported_in_the_order_of_the_contract() {
    let app = App::start().await;
    let key = Key::new();
    let whole = caller::provider(&key).stop(&owner(), None);
    for call in [Call::new(Method::PUT, "compute").in_query(), Call::new(Method::PUT, "compute").in_body()] {
        let mut call = call.with("something", "else");
        for name in ["owner", "providerSignature", "nonce"] {
            app.send(call.clone()).await.is_error(400, &format!(r#""{name}" is required in the call to PUT:/compute"#));
            call = call.with(name, whole.parameter(name));
        }
        app.send(call.with("nonce", nonce())).await;
    }
    app.send(Call::new(Method::PUT, "compute"))
        .await
        .is_error(400, r#""owner" is required in the call to PUT:/compute"#);
}

#[tokio::test]
async fn all_three_callers_stop_jobs() {
    let key = Key::new();
    let app = App::builder().var("SIGNATURE_REQUIRED", "1").var("ALLOWED_PROVIDERS", key.allowed()).start().await;
    let owner = owner();
    for i in 0..8 {
        let job = Stored { owner: Some(owner.clone()), provider: Some(key.address.clone()), ..Stored::running() };
        let job = job.insert(&app.database).await;
        let (job_id, agreement_id) = (Some(&*job.job_id), Some(&*job.agreement_id));
        let call = match i {
            0 => caller::provider(&key).stop(&owner, job_id),
            1 => caller::provider(&key).stop(&owner, None).with("agreementId", agreement_id.unwrap()),
            2 => caller::ocean_node(&key).stop(&owner, job_id, agreement_id),
            3 => caller::ocean_node(&key).stop(&owner, job_id, None),
            4 => caller::ocean_node(&key).stop(&owner, None, agreement_id),
            5 => caller::brizo(&key).stop(&owner, job_id, agreement_id),
            6 => caller::brizo(&key).stop(&owner, job_id, None),
            _ => caller::brizo(&key).stop(&owner, None, agreement_id),
        };
        let mut expected = status_of(&job);
        expected["stopreq"] = json!(1);
        assert_eq!(app.send(call).await.ok(), json!([expected]), "{i}");
        assert_eq!(app.database.job(&job.job_id).await.unwrap()["stopreq"], 1);
    }
}

#[tokio::test]
async fn stop_marks_matching_unfinished_jobs_and_returns_all_that_match() {
    let app = App::start().await;
    let key = Key::new();
    let owner = owner();
    let of = |job: Stored, created: f64| Stored { owner: Some(owner.clone()), created, ..job };
    let waiting = of(Stored::default(), 1_795_300_004.0).insert(&app.database).await;
    let running = of(Stored::running(), 1_795_300_003.0).insert(&app.database).await;
    let overdue = of(Stored { stopreq: Some(2), ..Stored::running() }, 1_795_300_002.0).insert(&app.database).await;
    let finished = of(Stored::finished(), 1_795_300_001.0).insert(&app.database).await;
    let overrun = of(Stored { stopreq: Some(2), ..Stored::finished() }, 1_795_300_000.0).insert(&app.database).await;
    let strangers = Stored::running().insert(&app.database).await;

    let answer = app.send(caller::provider(&key).stop(&owner, None)).await.ok();
    let expected: Vec<_> = [&waiting, &running, &overdue, &finished, &overrun].into_iter().map(status_of).collect();
    let mut expected = json!(expected);
    expected[0]["stopreq"] = json!(1);
    expected[1]["stopreq"] = json!(1);
    // The contract does not define whether a stop replaces the mark of a job that is over its time limit.
    assert!(answer[2]["stopreq"].as_i64().unwrap() >= 1);
    expected[2]["stopreq"] = answer[2]["stopreq"].clone();
    assert_eq!(answer, expected);
    assert_eq!(app.database.job(&strangers.job_id).await.unwrap()["stopreq"], 0);
}

#[tokio::test]
async fn stop_does_not_change_finished_jobs() {
    let app = App::start().await;
    let key = Key::new();
    for status in [31, 32, 70, 20] {
        let job = Stored { status: Some(status), ..Stored::finished() }.insert(&app.database).await;
        let before = app.database.job(&job.job_id).await;
        let answer = app.send(caller::provider(&key).stop(job.owner.as_ref().unwrap(), Some(&job.job_id))).await.ok();
        assert_eq!(answer, json!([status_of(&job)]));
        assert_eq!(app.database.job(&job.job_id).await, before);
    }
}

#[tokio::test]
async fn stopping_unknown_jobs_returns_an_empty_list() {
    let app = App::start().await;
    let key = Key::new();
    assert_eq!(app.send(caller::provider(&key).stop(&owner(), Some("ab"))).await.ok(), json!([]));
    let job = Stored::running().insert(&app.database).await;
    assert_eq!(app.send(caller::provider(&key).stop(&owner(), Some(&job.job_id))).await.ok(), json!([]));
    assert_eq!(app.database.job(&job.job_id).await.unwrap()["stopreq"], 0);
}

#[tokio::test]
async fn with_signatures_required_only_the_signers_jobs_are_changed() {
    let (key, colleague, stranger) = (Key::new(), Key::new(), Key::new());
    let allowed = json!([key.address, colleague.address]).to_string();
    let app = App::builder().var("SIGNATURE_REQUIRED", "1").var("ALLOWED_PROVIDERS", allowed).start().await;
    let owner = owner();
    let of = |provider: Option<&Key>, signer_verified: bool, created: f64| Stored {
        owner: Some(owner.clone()),
        provider: provider.map(|key| key.address.clone()),
        signer_verified,
        created,
        ..Stored::running()
    };
    let own = of(Some(&key), true, 4.0).insert(&app.database).await;
    let others = of(Some(&colleague), true, 3.0).insert(&app.database).await;
    let legacy = of(Some(&stranger), false, 2.0).insert(&app.database).await;
    let legacy_of_nobody = of(None, false, 1.0).insert(&app.database).await;
    let jobs = [&own, &others, &legacy, &legacy_of_nobody];

    let answer = app.send(caller::provider(&key).stop(&owner, None)).await.ok();
    let stopreqs = |answer: &serde_json::Value| -> Vec<i64> {
        answer.as_array().unwrap().iter().map(|job| job["stopreq"].as_i64().unwrap()).collect()
    };
    assert_eq!(crate::given::job_ids(&answer), jobs.map(|job| &*job.job_id));
    assert_eq!(stopreqs(&answer), [1, 0, 1, 1]);
    let answer = app.send(caller::provider(&colleague).stop(&owner, Some(&others.job_id))).await.ok();
    assert_eq!(stopreqs(&answer), [1]);
    // A signer that is not allowed changes nothing.
    assert_eq!(app.send(caller::provider(&stranger).stop(&owner, Some(&legacy.job_id))).await.error().0, 401);
}

#[tokio::test]
async fn without_signatures_required_every_signer_may_stop_the_owners_jobs() {
    let app = App::start().await;
    let job = Stored { provider: Some(Key::new().address), ..Stored::running() }.insert(&app.database).await;
    let answer = app.send(caller::provider(&Key::new()).stop(job.owner.as_ref().unwrap(), None)).await.ok();
    assert_eq!(answer[0]["stopreq"], 1);
}

#[tokio::test]
async fn stop_deletes_the_algorithms_job_and_nothing_else() {
    let app = App::start().await;
    let job = started(&app).await;
    app.cluster.engine_objects(&app.namespace, &job.job_id).await;
    app.send(caller::provider(&job.key).stop(&job.owner, Some(&job.job_id))).await.ok();
    assert_eq!(
        app.cluster.objects_of(&app.namespace, &job.job_id).await,
        [
            "ConfigMap",
            "Job/configure-job",
            "Job/publish-job",
            "PersistentVolumeClaim/adminlogs",
            "PersistentVolumeClaim/data",
            "WorkFlow"
        ]
    );
}

#[tokio::test]
async fn stop_deletes_the_algorithms_pods() {
    let app = App::start().await;
    if !app.cluster.has_controllers().await {
        return left_out("needs controllers: pods of Jobs");
    }
    let job = started(&app).await;
    app.cluster.engine_objects(&app.namespace, &job.job_id).await;
    for component in ["algorithm", "publish"] {
        eventually("the pods of the Job", Duration::from_secs(30), async || {
            (!app.cluster.pods_of(&app.namespace, &job.job_id, component).await.is_empty()).then_some(())
        })
        .await;
    }
    app.send(caller::provider(&job.key).stop(&job.owner, Some(&job.job_id))).await.ok();
    eventually("the end of the algorithm's pods", Duration::from_secs(60), async || {
        let pods = app.cluster.pods_of(&app.namespace, &job.job_id, "algorithm").await;
        pods.iter().all(|pod| pod.metadata.deletion_timestamp.is_some()).then_some(())
    })
    .await;
    assert!(!app.cluster.pods_of(&app.namespace, &job.job_id, "publish").await.is_empty());
}

#[tokio::test]
async fn a_job_without_objects_in_the_cluster_is_stopped() {
    let app = App::start().await;
    for namespace in [Some(app.namespace.clone()), Some("never-made".to_owned()), None] {
        let job = Stored { namespace, ..Stored::running() }.insert(&app.database).await;
        let answer = app.send(caller::provider(&Key::new()).stop(job.owner.as_ref().unwrap(), None)).await.ok();
        assert_eq!(answer[0]["stopreq"], 1);
    }
}

#[tokio::test]
async fn jobs_are_marked_while_the_cluster_fails() {
    const DELAY: Duration = Duration::from_secs(60);
    let app = App::builder().cluster(Cluster::embedded().await).start().await;
    let faults = app.cluster.stand_in().faults();
    let bad_days: [&dyn Fn(); 4] = [
        &|| faults.refuse_connections(),
        &|| faults.delay(Match::any(), DELAY),
        &|| faults.answer(Match::any(), 500),
        &|| faults.drop_connection(Match::any()),
    ];
    for bad_day in bad_days {
        bad_day();
        let job = Stored { namespace: Some(app.namespace.clone()), ..Stored::running() }.insert(&app.database).await;
        let begun = std::time::Instant::now();
        let answer = app.send(caller::provider(&Key::new()).stop(job.owner.as_ref().unwrap(), None)).await.ok();
        assert_eq!(answer[0]["stopreq"], 1);
        assert!(begun.elapsed() < DELAY / 2, "{:?}", begun.elapsed());
        faults.clear();
    }
}

#[tokio::test]
async fn stop_changes_only_the_matching_jobs_of_the_owner() {
    let app = App::start().await;
    let key = Key::new();
    let first = started_by(&app, key.clone()).await;
    let second = Stored { owner: Some(first.owner.clone()), ..Stored::running() }.insert(&app.database).await;
    let third = Stored { owner: Some(first.owner.clone()), ..Stored::running() }.insert(&app.database).await;
    app.send(caller::provider(&key).stop(&first.owner, Some(&first.job_id))).await.ok();
    let by_agreement = caller::ocean_node(&key).stop(&first.owner, None, Some(&second.agreement_id));
    app.send(by_agreement).await.ok();
    let mismatch = caller::ocean_node(&key).stop(&first.owner, Some(&third.job_id), Some(&agreement_id()));
    assert_eq!(app.send(mismatch).await.ok(), json!([]));
    for (job_id, stopreq) in [(&first.job_id, 1), (&second.job_id, 1), (&third.job_id, 0)] {
        assert_eq!(app.database.job(job_id).await.unwrap()["stopreq"], stopreq);
    }
}
