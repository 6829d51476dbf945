//! GET OP/compute

use serde_json::json;

use crate::given::{job_ids, started, status_of};
use crate::support::{App, Call, Key, Stored, agreement_id, caller, nonce, owner, workflow};

#[tokio::test]
async fn a_status_request_without_a_filter_is_refused() {
    let app = App::start().await;
    let text = "You have to specify one of agreementId, jobId or owner";
    app.send(Call::get("compute")).await.is_error(400, text);
    app.send(Call::get("compute").body("{}")).await.is_error(400, text);
    app.send(Call::get("compute").with("providerAddress", "0x1234")).await.is_error(400, text);
}

#[tokio::test]
async fn jobs_are_found_by_each_filter_and_have_to_match_all() {
    let app = App::start().await;
    let owner = owner();
    let agreement = agreement_id();
    let old = Stored {
        owner: Some(owner.clone()),
        agreement_id: agreement.clone(),
        created: 1_795_300_000.0,
        ..Stored::finished()
    };
    let old = old.insert(&app.database).await;
    let new = Stored { owner: Some(owner.clone()), agreement_id: agreement.clone(), ..Stored::default() };
    let new = new.insert(&app.database).await;
    let other = Stored { owner: Some(owner.clone()), created: 1_795_300_001.0, ..Stored::default() };
    let other = other.insert(&app.database).await;
    let strangers = Stored::default().insert(&app.database).await;

    let find = async |query: &[(&str, &str)]| {
        let mut call = Call::get("compute");
        for (name, value) in query {
            call = call.with(name, *value);
        }
        app.send(call).await.ok()
    };
    let all = json!([status_of(&new), status_of(&other), status_of(&old)]);
    assert_eq!(find(&[("owner", &owner)]).await, all);
    assert_eq!(find(&[("agreementId", &agreement)]).await, json!([status_of(&new), status_of(&old)]));
    assert_eq!(find(&[("jobId", &other.job_id)]).await, json!([status_of(&other)]));
    assert_eq!(find(&[("owner", &owner), ("jobId", &old.job_id)]).await, json!([status_of(&old)]));
    assert_eq!(
        find(&[("owner", &owner), ("agreementId", &agreement)]).await,
        json!([status_of(&new), status_of(&old)])
    );
    assert_eq!(find(&[("agreementId", &agreement), ("jobId", &new.job_id)]).await, json!([status_of(&new)]));
    let three = [("agreementId", &*agreement), ("jobId", &*new.job_id), ("owner", &*owner)];
    assert_eq!(find(&three).await, json!([status_of(&new)]));

    assert_eq!(find(&[("owner", &owner), ("jobId", &strangers.job_id)]).await, json!([]));
    assert_eq!(find(&[("agreementId", &agreement), ("jobId", &other.job_id)]).await, json!([]));
    assert_eq!(find(&[("agreementId", &agreement), ("owner", strangers.owner.as_ref().unwrap())]).await, json!([]));
    assert_eq!(find(&[("jobId", "0123456789abcdef0123456789abcdef")]).await, json!([]));
    assert_eq!(find(&[("owner", "nobody")]).await, json!([]));
}

#[tokio::test]
async fn results_are_listed_without_their_urls() {
    let app = App::start().await;
    let outputs = json!([
        { "filename": "out.txt", "filesize": 5, "type": "output", "url": "https://example.org/secret/out.txt" },
        { "filename": "algo.log", "filesize": 7, "type": "algorithmLog", "url": "https://example.org/secret/algo.log", "more": [1] },
    ]);
    let job = Stored { outputs: Some(outputs.to_string()), ..Stored::finished() }.insert(&app.database).await;
    let mut expected = status_of(&job);
    expected["results"] = json!([
        { "filename": "out.txt", "filesize": 5, "type": "output" },
        { "filename": "algo.log", "filesize": 7, "type": "algorithmLog", "more": [1] },
    ]);
    assert_eq!(app.send(Call::get("compute").with("jobId", job.job_id)).await.ok(), json!([expected]));

    for none in [None, Some(""), Some("[]"), Some("null"), Some("damaged [")] {
        let job = Stored { outputs: none.map(str::to_owned), ..Stored::finished() }.insert(&app.database).await;
        let answer = app.send(Call::get("compute").with("jobId", job.job_id.clone())).await.ok();
        assert_eq!(answer, json!([status_of(&job)]), "{none:?}");
    }
}

#[tokio::test]
async fn a_reason_is_shown_only_if_there_is_one() {
    let app = App::start().await;
    let reason = "The algorithm's image could not be pulled.";
    let job = Stored { reason: Some(reason.to_owned()), stopreq: Some(2), ..Stored::finished() };
    let job = job.insert(&app.database).await;
    let mut expected = status_of(&job);
    expected["reason"] = reason.into();
    assert_eq!(app.send(Call::get("compute").with("jobId", job.job_id)).await.ok(), json!([expected]));
    // The other tests in this file compare whole objects, which have no reason.
}

#[tokio::test]
async fn the_status_text_of_the_engine_is_shown() {
    let app = App::start().await;
    for (status, text) in [
        (1, "Warming up"),
        (10, "Job started"),
        (20, "Configuring volumes"),
        (30, "Provisioning success"),
        (31, "Data provisioning failed"),
        (32, "Algorithm provisioning failed"),
        (40, "Running algorithm"),
        (41, "Algorithm failed"),
        (50, "Filtering results"),
        (60, "Publishing results"),
        (70, "Job finished"),
        (70, "Job finished, in other words"),
    ] {
        let job = Stored { status: Some(status), status_text: Some(text.to_owned()), ..Stored::default() };
        let job = job.insert(&app.database).await;
        assert_eq!(
            app.send(Call::get("compute").with("jobId", job.job_id.clone())).await.ok(),
            json!([status_of(&job)])
        );
    }
}

#[tokio::test]
async fn damaged_rows_are_served_with_what_is_known() {
    let app = App::start().await;
    let owner = owner();
    let sound = Stored { owner: Some(owner.clone()), created: 1_795_300_000.0, ..Stored::default() };
    let sound = sound.insert(&app.database).await;
    let damaged = [
        None,
        Some(""),
        Some("null"),
        Some("{\"spec\": {\"metadata\": {\"stages\": [{\"algorithm\""),
        Some("[]"),
        Some("{}"),
        Some(r#"{"spec": {"metadata": {"stages": []}}}"#),
        Some(r#"{"spec": {"metadata": {"stages": [{"algorithm": 5, "input": {}}]}}}"#),
    ];
    let mut expected = Vec::new();
    for (i, workflow) in (0_u32..).zip(damaged) {
        let created = 1_795_300_001.0 + f64::from(i);
        let workflow = workflow.map(str::to_owned);
        let job = Stored { owner: Some(owner.clone()), created, workflow, ..Stored::default() };
        let mut status = status_of(&job.insert(&app.database).await);
        status["algoDID"] = "raw".into();
        status["inputDID"] = json!([]);
        expected.insert(0, status);
    }
    expected.push(status_of(&sound));
    assert_eq!(app.send(Call::get("compute").with("owner", owner)).await.ok(), json!(expected));
    assert_eq!(app.send(Call::get("runningjobs")).await.ok().as_array().unwrap().len(), damaged.len() + 1);
    // Such rows do not prevent a start.
    started(&app).await;
}

#[tokio::test]
async fn ids_that_are_absent_or_empty_are_not_reported() {
    let app = App::start().await;
    let key = Key::new();
    let mut workflow = workflow::sample();
    workflow["stages"][0]["algorithm"]["id"] = "".into();
    workflow["stages"][0]["input"] = json!([
        { "id": "did:op:1", "index": 0 }, { "id": "", "index": 1 }, { "index": 2 }, { "id": null, "index": 3 }, { "id": "did:op:2", "index": 4 }
    ]);
    let start = caller::provider(&key).start(&app.namespace, &agreement_id(), &owner(), workflow);
    let job = app.send(start).await.ok()[0].clone();
    assert_eq!((&job["algoDID"], &job["inputDID"]), (&json!("raw"), &json!(["did:op:1", "did:op:2"])));
    let found = app.send(Call::get("compute").with("jobId", job["jobId"].clone())).await.ok();
    assert_eq!(found, json!([job]));
}

#[tokio::test]
async fn a_list_has_at_most_5000_jobs() {
    let app = App::start().await;
    app.database
        .execute(
            "INSERT INTO jobs (agreementid, workflowid, owner, status, statustext, datecreated, workflow) \
             SELECT 'a' || i, md5(i::text), 'the-owner', 1, 'Warming up', to_timestamp(1795300000 + i) AT TIME ZONE 'UTC', '{}' \
             FROM generate_series(1, 5003) AS i",
        )
        .await;
    for limit in [None, Some("5000"), Some("5001"), Some("999999999")] {
        let mut status = Call::get("compute").with("owner", "the-owner");
        let mut running = Call::get("runningjobs");
        if let Some(limit) = limit {
            (status, running) = (status.with("limit", limit), running.with("limit", limit));
        }
        let (status, running) = (app.send(status).await.ok(), app.send(running).await.ok());
        assert_eq!(status.as_array().unwrap().len(), 5000, "{limit:?}");
        assert_eq!(status[0]["agreementId"], "a5003");
        assert_eq!(running.as_array().unwrap().len(), 5000, "{limit:?}");
        assert_eq!(running[0]["agreementId"], "a1");
    }
    let rest = app.send(Call::get("compute").with("owner", "the-owner").with("offset", "5000")).await.ok();
    assert_eq!(job_ids(&rest).len(), 3);
}

#[tokio::test]
async fn with_required_signatures_a_status_has_to_be_signed_by_an_allowed_provider() {
    let key = Key::new();
    let app = App::builder().var("SIGNATURE_REQUIRED", "1").var("ALLOWED_PROVIDERS", key.allowed()).start().await;
    let job = Stored::running().insert(&app.database).await;
    let (owner, job_id, agreement) = (job.owner.clone().unwrap(), &*job.job_id, &*job.agreement_id);
    let unsigned = Call::get("compute").with("jobId", job_id);
    app.send(unsigned.clone()).await.is_error(400, "\"providerSignature\" is required in the call to GET:/compute");
    app.send(unsigned.with("providerSignature", key.hashed("x")))
        .await
        .is_error(400, "\"nonce\" is required in the call to GET:/compute");
    let (provider, node, brizo) = (caller::provider(&key), caller::ocean_node(&key), caller::brizo(&key));
    for call in [
        provider.status(&owner, None),
        provider.status(&owner, Some(job_id)),
        node.status(Some(&owner), None, None),
        node.status(Some(&owner), Some(job_id), Some(agreement)),
        node.status(None, Some(job_id), None),
        node.status(None, None, Some(agreement)),
        brizo.status(&owner, Some(job_id), None),
        brizo.status(&owner, None, Some(agreement)),
    ] {
        assert_eq!(app.send(call.clone()).await.ok(), json!([status_of(&job)]), "{call:?}");
        // Another job, signed by nobody.
        assert_eq!(app.send(call.with("jobId", "another")).await.error().0, 401);
    }
    // Any allowed provider may ask, not only the job's own; no other.
    let stranger = Key::new();
    assert_eq!(app.send(caller::provider(&stranger).status(&owner, None)).await.error().0, 401);
    assert_eq!(app.database.count("usednonces").await, 0);
}

#[tokio::test]
async fn the_nonce_of_a_status_has_to_be_fresh_and_may_be_used_again() {
    let app = App::start().await;
    let job = Stored::running().insert(&app.database).await;
    let (key, owner) = (Key::new(), job.owner.clone().unwrap());
    let provider = caller::provider(&key);
    let now = nonce();
    let status = |nonce: u64| provider.call(reqwest::Method::GET, &owner, None, nonce);
    for _ in 0..3 {
        assert_eq!(app.send(status(now)).await.ok(), json!([status_of(&job)]));
    }
    app.send(provider.call(reqwest::Method::PUT, &owner, None, now)).await.ok();
    app.send(status(now)).await.ok();
    for stale in [now - 301_000_000_000, now + 310_000_000_000] {
        assert_eq!(app.send(status(stale)).await.error().0, 400);
    }
    assert_eq!(app.database.used_nonces(&key.address).await, [now.to_string()]);
    // Without a signature, nothing is checked.
    app.send(Call::get("compute").with("owner", owner.clone()).with("nonce", 1)).await.ok();
    assert!(
        app.send(status(now + 2).with("providerSignature", "0x12")).await.error().1.starts_with("Failed to recover")
    );
}

#[tokio::test]
async fn a_strict_status_uses_its_nonce() {
    let app = App::builder().var("SIGNATURE_STRICT", "1").start().await;
    let key = Key::new();
    let call = caller::provider(&key).status(&owner(), None);
    app.send(call.clone()).await.ok();
    assert_eq!(app.send(call).await.error().0, 400);
    assert_eq!(app.database.count("usednonces").await, 1);
}
