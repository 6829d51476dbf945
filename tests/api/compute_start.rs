//! POST OP/compute

use serde_json::{Value, json};

use crate::given::{now, start, start_with};
use crate::support::{App, Call, Key, Stored, agreement_id, caller, nonce, owner, workflow};

#[tokio::test]
async fn a_start_returns_a_list_of_one_status_object() {
    let app = App::start().await;
    let key = Key::new();
    let call = start(&app, &key);
    let (agreement_id, owner) = (call.parameter("agreementId"), call.parameter("owner"));
    let answer = app.send(call).await.ok();

    let (job_id, created) = (answer[0]["jobId"].as_str().unwrap(), answer[0]["dateCreated"].as_str().unwrap());
    assert!(job_id.len() == 32 && job_id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')), "{job_id}");
    assert_eq!(created.split_once('.').unwrap().1.len(), 6, "{created}");
    assert!((created.parse::<f64>().unwrap() - now()).abs() < 120.0, "{created}");
    let expected = json!([{
        "agreementId": agreement_id,
        "jobId": job_id,
        "owner": owner,
        "status": 1,
        "statusText": "Warming up",
        "dateCreated": created,
        "dateFinished": null,
        "results": "",
        "stopreq": 0,
        "removed": 0,
        "algoDID": "did:op:5a1f",
        "inputDID": ["did:op:87bd"]
    }]);
    assert_eq!(answer, expected);
    assert_eq!(app.send(Call::get("compute").with("jobId", job_id)).await.ok(), expected);
}

#[tokio::test]
async fn all_three_callers_start_jobs() {
    let key = Key::new();
    let app = App::builder().var("SIGNATURE_REQUIRED", "1").var("ALLOWED_PROVIDERS", key.allowed()).start().await;
    let calls = [
        start(&app, &key),
        caller::ocean_node(&key).start(&app.namespace, &agreement_id(), &owner(), workflow::of_ocean_node()),
        caller::brizo(&key).start(&agreement_id(), &owner(), workflow::sample()),
    ];
    for call in calls {
        let answer = app.send(call.clone()).await.ok();
        let row = app.database.job(answer[0]["jobId"].as_str().unwrap()).await.unwrap();
        assert_eq!(row["provider"], key.address.to_lowercase());
        assert_eq!(row["owner"], call.parameter("owner"));
        assert_eq!(row["agreementid"], call.parameter("agreementId"));
        assert_eq!(row["namespace"], app.namespace.as_str());
    }
}

#[tokio::test]
async fn check_1_an_empty_payload_is_refused() {
    let app = App::start().await;
    for empty in ["", "{}", " {} \n", "null", "[]", "[{}]", "\"text\"", "5", "true"] {
        app.send(Call::post("compute").body(empty)).await.is_error(400, "payload seems empty.");
    }
}

#[tokio::test]
async fn check_2_missing_names_are_reported_in_their_order() {
    let app = App::start().await;
    let key = Key::new();
    let whole = start(&app, &key);
    // Each call lacks a parameter and all that follow it in the contract; those that it has are wrong in other ways.
    let mut call = Call::post("compute").with("something", "else");
    for name in ["workflow", "agreementId", "owner", "providerSignature"] {
        app.send(call.clone()).await.is_error(400, &format!(r#""{name}" is required in the call to POST:/compute"#));
        let wrong = if name == "workflow" { json!({}) } else { whole.parameter(name) };
        call = call.with(name, wrong);
    }
    // A request with an environment or a nonce is not Brizo's.
    app.send(call.clone().with("nonce", nonce()))
        .await
        .is_error(400, r#""environment" is required in the call to POST:/compute"#);
    app.send(call.with("environment", "nowhere"))
        .await
        .is_error(400, r#""nonce" is required in the call to POST:/compute"#);
}

#[tokio::test]
async fn check_3_a_workflow_that_is_not_an_object_is_refused() {
    let app = App::start().await;
    let key = Key::new();
    for wrong in [json!({}), json!([]), json!([{ "stages": [] }]), json!("text"), json!(""), json!(5), json!(false)] {
        app.send(start(&app, &key).with("workflow", wrong))
            .await
            .is_error(400, "`workflow` is required in the payload and must include workflow stages");
    }
}

#[tokio::test]
async fn check_4_a_workflow_without_exactly_one_complete_stage_is_refused() {
    let app = App::start().await;
    let key = Key::new();
    let send = async |change: &dyn Fn(&mut Value)| app.send(start_with(&app, &key, change)).await;

    send(&|workflow| *workflow = json!({ "other": 1 })).await.is_error(400, "Missing stages");
    send(&|workflow| workflow["stages"] = json!([])).await.is_error(400, "Missing stages");
    send(&|workflow| workflow["stages"] = json!(null)).await.is_error(400, "Missing stages");
    send(&|workflow| {
        let stage = workflow["stages"][0].clone();
        workflow["stages"] = json!([stage, stage]);
    })
    .await
    .is_error(400, "Multiple stages are not supported yet");
    send(&|workflow| workflow["stages"] = json!([{}, {}])).await.is_error(400, "Multiple stages are not supported yet");

    // In the order of the contract.
    send(&|workflow| workflow["stages"] = json!([{}])).await.is_error(400, "Missing algorithm in stage 0");
    for name in ["algorithm", "compute", "input", "output"] {
        for missing in [None, Some(Value::Null)] {
            let answer = send(&|workflow| {
                let stage = workflow["stages"][0].as_object_mut().unwrap();
                stage.shift_remove(name);
                if let Some(null) = &missing {
                    stage.insert(name.to_owned(), null.clone());
                }
            })
            .await;
            answer.is_error(400, &format!("Missing {name} in stage 0"));
        }
    }
}

#[tokio::test]
async fn check_4_wrong_types_name_the_field() {
    let app = App::start().await;
    let key = Key::new();
    for (pointer, wrong, named) in [
        ("/stages", json!("text"), "stages"),
        ("/stages", json!({ "0": {} }), "stages"),
        ("/stages/0", json!("text"), "stages[0]"),
        ("/stages/0/algorithm", json!("text"), "algorithm"),
        ("/stages/0/algorithm", json!([]), "algorithm"),
        ("/stages/0/compute", json!([]), "compute"),
        ("/stages/0/compute", json!("text"), "compute"),
        ("/stages/0/input", json!({}), "input"),
        ("/stages/0/input", json!("text"), "input"),
        ("/stages/0/input/0", json!("text"), "input"),
        ("/stages/0/output", json!([]), "output"),
        ("/stages/0/output", json!(1), "output"),
        ("/stages/0/algorithm/id", json!(5), "algorithm.id"),
        ("/stages/0/input/0/id", json!({}), "input[0].id"),
        ("/stages/0/compute/maxtime", json!("soon"), "maxtime"),
        ("/stages/0/compute/maxtime", json!([1]), "maxtime"),
        ("/stages/0/algorithm/container", json!(null), "container"),
        ("/stages/0/algorithm/container", json!("python:3"), "container"),
        ("/stages/0/algorithm/container", json!({}), "container"),
        ("/stages/0/algorithm/container/image", json!(null), "container.image"),
        ("/stages/0/algorithm/container/image", json!(""), "container.image"),
        ("/stages/0/algorithm/container/image", json!(1), "container.image"),
        ("/stages/0/algorithm/container/entrypoint", json!(null), "container.entrypoint"),
        ("/stages/0/algorithm/container/entrypoint", json!(""), "container.entrypoint"),
        ("/stages/0/algorithm/container/tag", json!(null), "container.tag"),
        ("/stages/0/algorithm/container/tag", json!(""), "container.tag"),
        ("/stages/0/algorithm/container/tag", json!(3.11), "container.tag"),
    ] {
        let call = start_with(&app, &key, |workflow| *workflow.pointer_mut(pointer).unwrap() = wrong.clone());
        let (status, text) = app.send(call).await.error();
        assert_eq!(status, 400, "{pointer} {wrong}");
        assert!(text.contains(named), "{pointer} {wrong}: {text}");
    }
    let no_container = start_with(&app, &key, |workflow| {
        workflow["stages"][0]["algorithm"].as_object_mut().unwrap().shift_remove("container");
    });
    let (status, text) = app.send(no_container).await.error();
    assert_eq!(status, 400);
    assert!(text.contains("container"), "{text}");
    // None of these requests has taken a nonce.
    assert_eq!((app.database.count("usednonces").await, app.database.count("jobs").await), (0, 0));
}

#[tokio::test]
async fn check_4_a_container_without_tag_and_sha_256_checksum_is_refused() {
    let app = App::start().await;
    let key = Key::new();
    for (tag, checksum, good) in [
        (Some("3.11"), None, true),
        (None, Some("sha256:00"), true),
        (Some(""), Some("sha256:00"), true),
        (Some("3.11"), Some(""), true),
        (None, Some("md5:00"), false),
        (None, Some(""), false),
        (None, None, false),
    ] {
        let call = start_with(&app, &key, |workflow| {
            let container = workflow["stages"][0]["algorithm"]["container"].as_object_mut().unwrap();
            container.shift_remove("tag");
            for (name, value) in [("tag", tag), ("checksum", checksum)] {
                if let Some(value) = value {
                    container.insert(name.to_owned(), value.into());
                }
            }
        });
        let answer = app.send(call).await;
        assert_eq!(answer.status, if good { 200 } else { 400 }, "{tag:?} {checksum:?} {}", answer.text());
        if !good {
            assert!(answer.error().1.contains("container.tag"), "{}", answer.text());
        }
    }
}

#[tokio::test]
async fn check_4_a_valid_until_that_is_not_in_the_future_is_refused() {
    let app = App::start().await;
    let key = Key::new();
    for wrong in [json!(0), json!(1), json!("1"), json!(now() - 5.0), json!(now() as i64 - 5), json!("soon"), json!("")]
    {
        let (status, text) = app.send(start(&app, &key).with("validUntil", wrong.clone())).await.error();
        assert_eq!(status, 400, "{wrong}");
        assert!(text.contains("validUntil"), "{text}");
    }
    let soon = now() as i64 + 60;
    for good in [json!(soon), json!(soon.to_string())] {
        let job = app.send(start(&app, &key).with("validUntil", good)).await.ok();
        let row = app.database.job(job[0]["jobId"].as_str().unwrap()).await.unwrap();
        assert_eq!(row["validuntil"], soon);
    }
    let job = app.send(start(&app, &key).without("validUntil")).await.ok();
    assert_eq!(app.database.job(job[0]["jobId"].as_str().unwrap()).await.unwrap()["validuntil"], Value::Null);
}

#[tokio::test]
async fn checks_5_to_8_are_made_in_that_order() {
    let (key, stranger) = (Key::new(), Key::new());
    let app = App::builder().var("SIGNATURE_REQUIRED", "1").var("ALLOWED_PROVIDERS", key.allowed()).start().await;
    let running = Stored::running().insert(&app.database).await;
    let used = nonce();
    app.database.old_nonce(&key.address, Some(&used.to_string())).await;
    let attempt = |key: &Key, environment: &str, agreement: &str, nonce: u64| {
        caller::provider(key).start_at(environment, agreement, &owner(), workflow::sample(), nonce)
    };

    // 5: what the later checks read is wrong, too.
    let call = attempt(&stranger, "nowhere", &running.agreement_id, used);
    let (status, text) = app.send(call.clone()).await.error();
    assert_eq!(status, 401, "{text}");
    app.send(call.with("providerSignature", "0x")).await.is_error(
        400,
        "Failed to recover address: the signature must have 130 hex digits (65 bytes), and has 0 characters",
    );
    assert_eq!(app.database.count("usednonces").await, 0);
    // 6
    app.send(attempt(&key, "nowhere", &running.agreement_id, used)).await.is_error(
        400,
        &format!("Invalid signature expected nonce ({used}) > current nonce ({used}). The signer has used it before."),
    );
    assert_eq!(app.database.count("usednonces").await, 0);
    // 7; from here on the nonce is taken
    let seventh = nonce();
    app.send(attempt(&key, "nowhere", &running.agreement_id, seventh))
        .await
        .is_error(400, "`agreementId` already in use for other job.");
    assert_eq!(app.database.used_nonces(&key.address).await, [seventh.to_string()]);
    // 8
    let eighth = nonce();
    app.send(attempt(&key, "nowhere", &agreement_id(), eighth))
        .await
        .is_error(400, "Environment invalid or does not exist");
    assert_eq!(app.database.used_nonces(&key.address).await, [seventh.to_string(), eighth.to_string()]);
    assert_eq!(app.database.count("jobs").await, 1);
}

#[tokio::test]
async fn a_request_that_is_not_authorized_does_not_reach_the_database() {
    let (key, stranger) = (Key::new(), Key::new());
    // There is no database.
    let app = App::builder()
        .var("SIGNATURE_REQUIRED", "1")
        .var("ALLOWED_PROVIDERS", key.allowed())
        .var("POSTGRES_PORT", "1")
        .start()
        .await;
    assert_eq!(app.send(start(&app, &stranger)).await.error().0, 401);
    assert_eq!(app.send(start(&app, &key).with("providerSignature", "")).await.error().0, 400);
    assert_eq!(app.send(start(&app, &key)).await.error().0, 503);
}

#[tokio::test]
async fn an_agreement_has_one_unfinished_job() {
    let app = App::start().await;
    let key = Key::new();
    let in_use = "`agreementId` already in use for other job.";
    for job in [
        Stored::default(),
        Stored::running(),
        Stored { removed: Some(1), stopreq: Some(1), ..Stored::running() },
        Stored { signer_verified: false, ..Stored::running() },
        Stored { status: Some(70), ..Stored::running() },
    ] {
        let job = job.insert(&app.database).await;
        app.send(start(&app, &key).with("agreementId", job.agreement_id)).await.is_error(400, in_use);
    }
    for job in [Stored::finished(), Stored { status: Some(31), ..Stored::finished() }] {
        let job = job.insert(&app.database).await;
        app.send(start(&app, &key).with("agreementId", job.agreement_id.clone())).await.ok();
        app.send(start(&app, &key).with("agreementId", job.agreement_id)).await.is_error(400, in_use);
    }
}
