//! POST OP/compute

use serde_json::{Value, json};

use crate::given::{now, started};
use crate::support::{App, Call, Key, Stored, agreement_id, caller, eventually, nonce, owner, workflow};

/// A start by Provider, of a fresh agreement and owner.
fn start(app: &App, key: &Key) -> Call {
    caller::provider(key).start(&app.namespace, &agreement_id(), &owner(), workflow::sample())
}

/// A start with a workflow that differs from the sample.
fn start_with(app: &App, key: &Key, change: impl FnOnce(&mut Value)) -> Call {
    let mut workflow = workflow::sample();
    change(&mut workflow);
    caller::provider(key).start(&app.namespace, &agreement_id(), &owner(), workflow)
}

/// The stored workflow after a start.
async fn stored_workflow(app: &App, call: Call) -> Value {
    let job = app.send(call).await.ok()[0].clone();
    let row = app.database.job(job["jobId"].as_str().unwrap()).await.unwrap();
    serde_json::from_str::<Value>(row["workflow"].as_str().unwrap()).unwrap()["spec"]["metadata"].clone()
}

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

#[tokio::test]
async fn the_stored_document_is_the_one_that_the_engine_reads() {
    let app = App::builder().var("ALGO_POD_TIMEOUT", "600").var("STORAGE_EXPIRY", "86400").start().await;
    let job = started(&app).await;
    let row = app.database.job(&job.job_id).await.unwrap();
    let document: Value = serde_json::from_str(row["workflow"].as_str().unwrap()).unwrap();

    let secret = document["metadata"]["secret"].as_str().unwrap();
    assert!(secret.len() == 32 && secret.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')), "{secret}");
    let mut workflow = workflow::sample();
    workflow["chainId"] = json!(8996);
    workflow["stages"][0]["compute"] = json!({
        "Instances": 1,
        "namespace": app.namespace,
        "maxtime": 600,
        "storageExpiry": 86400,
        "resources": {
            "inputVolumesize": "1Gi",
            "outputVolumesize": "1Gi",
            "adminlogsVolumesize": "1Gi",
            "requests_cpu": "200m",
            "requests_memory": "100Mi",
            "limits_cpu": "1",
            "limits_memory": "500Mi"
        }
    });
    let expected = json!({
        "apiVersion": "v0.0.1",
        "kind": "WorkFlow",
        "metadata": {
            "name": job.job_id,
            "namespace": app.namespace,
            "labels": { "workflow": job.job_id },
            "secret": secret
        },
        "spec": { "metadata": workflow }
    });
    assert_eq!(document, expected);

    let another = started(&app).await;
    let row = app.database.job(&another.job_id).await.unwrap();
    let other: Value = serde_json::from_str(row["workflow"].as_str().unwrap()).unwrap();
    assert_ne!(other["metadata"]["secret"], document["metadata"]["secret"]);
}

#[tokio::test]
async fn the_stored_row_has_the_values_of_the_request() {
    let app = App::start().await;
    let job = started(&app).await;
    let row = app.database.job(&job.job_id).await.unwrap();
    for (column, value) in [
        ("agreementid", json!(job.agreement_id)),
        ("workflowid", json!(job.job_id)),
        ("owner", json!(job.owner)),
        ("status", json!(1)),
        ("statustext", json!("Warming up")),
        ("datefinished", json!(null)),
        ("configlogurl", json!(null)),
        ("publishlogurl", json!(null)),
        ("algologurl", json!(null)),
        ("outputsurl", json!(null)),
        ("ddo", json!(null)),
        ("namespace", json!(app.namespace)),
        ("stopreq", json!(0)),
        ("removed", json!(0)),
        ("provider", json!(job.key.address.to_lowercase())),
        ("chainid", json!("8996")),
        ("reason", json!(null)),
    ] {
        assert_eq!(row[column], value, "{column}");
    }
}

#[tokio::test]
async fn a_workflow_gets_a_chain_id_only_if_one_was_sent() {
    let app = App::start().await;
    let key = Key::new();
    let workflow = stored_workflow(&app, start(&app, &key).without("chainId")).await;
    assert!(!workflow.as_object().unwrap().contains_key("chainId"), "{workflow}");
    let with_text = stored_workflow(&app, start(&app, &key).with("chainId", "8996")).await;
    assert_eq!(with_text["chainId"], "8996");
}

#[tokio::test]
async fn maxtime_is_capped_and_filled_in() {
    let limited = App::builder().var("ALGO_POD_TIMEOUT", "100").start().await;
    let key = Key::new();
    for (asked, granted) in [
        (Some(json!(3600)), 100),
        (Some(json!(101)), 100),
        (Some(json!(100)), 100),
        (Some(json!(50)), 50),
        (Some(json!(1)), 1),
        (Some(json!(0)), 100),
        (Some(json!(-5)), 100),
        (Some(json!(null)), 100),
        (None, 100),
        (Some(json!("3600")), 100),
        (Some(json!("50")), 50),
        (Some(json!(1e300)), 100),
    ] {
        let call = start_with(&limited, &key, |workflow| {
            let compute = workflow["stages"][0]["compute"].as_object_mut().unwrap();
            match &asked {
                Some(asked) => compute.insert("maxtime".to_owned(), asked.clone()),
                None => compute.shift_remove("maxtime"),
            };
        });
        assert_eq!(stored_workflow(&limited, call).await["stages"][0]["compute"]["maxtime"], granted, "{asked:?}");
    }
    for unlimited in ["0", ""] {
        let app = limited.another_process().var("ALGO_POD_TIMEOUT", unlimited).start().await;
        let workflow = stored_workflow(&app, start(&app, &key)).await;
        assert_eq!(workflow["stages"][0]["compute"]["maxtime"], 3600);
    }
}

#[tokio::test]
async fn resources_come_from_the_environment_and_not_from_the_caller() {
    let app = App::builder()
        .var("inputVolumesize", "2Gi")
        .var("outputVolumesize", "3Gi")
        .var("adminlogsVolumesize", "4Gi")
        .var("requests_cpu", "1500m")
        .var("requests_memory", "1G")
        .var("limits_cpu", "2.5")
        .var("limits_memory", "8Gi")
        .start()
        .await;
    let key = Key::new();
    let call = start_with(&app, &key, |workflow| {
        workflow["stages"][0]["compute"] = json!({
            "maxtime": 60, "resources": { "limits_cpu": "99" }, "namespace": "kube-system", "storageExpiry": 99, "kept": [1]
        });
    });
    let workflow = stored_workflow(&app, call).await;
    let expected = json!({
        "maxtime": 60,
        "kept": [1],
        "namespace": app.namespace,
        "storageExpiry": 0,
        "resources": {
            "inputVolumesize": "2Gi",
            "outputVolumesize": "3Gi",
            "adminlogsVolumesize": "4Gi",
            "requests_cpu": "1500m",
            "requests_memory": "1G",
            "limits_cpu": "2.5",
            "limits_memory": "8Gi"
        }
    });
    assert_eq!(workflow["stages"][0]["compute"], expected);
}

#[tokio::test]
async fn what_ocean_node_leaves_out_is_stored_so_that_the_engine_can_read_it() {
    let app = App::start().await;
    let key = Key::new();
    let call = caller::ocean_node(&key).start(&app.namespace, &agreement_id(), &owner(), workflow::of_ocean_node());
    let status = app.send(call).await.ok()[0].clone();
    assert_eq!((&status["algoDID"], &status["inputDID"]), (&json!("raw"), &json!([])));
    let row = app.database.job(status["jobId"].as_str().unwrap()).await.unwrap();
    let document: Value = serde_json::from_str(row["workflow"].as_str().unwrap()).unwrap();
    let stage = &document["spec"]["metadata"]["stages"][0];
    assert_eq!(stage["algorithm"]["id"], "");
    assert_eq!(stage["input"][0]["id"], "");
    assert_eq!(stage["input"][0]["remote"]["url"], "https://example.org/data.csv");
    assert_eq!(stage["algorithm"]["container"]["image"], "alpine");
    assert!(stage["algorithm"]["container"]["checksum"].as_str().unwrap().starts_with("sha256:"));
}

#[tokio::test]
async fn characters_beyond_ascii_are_stored_as_escapes() {
    let app = App::start().await;
    let key = Key::new();
    let code = "print('käse €uro 日本 😀 \u{7f} \u{0} \u{2028}')\n\t\"\\";
    let call = start_with(&app, &key, |workflow| {
        workflow["stages"][0]["algorithm"]["rawcode"] = code.into();
        workflow["stages"][0]["ключ"] = "значение".into();
    });
    let status = app.send(call).await.ok()[0].clone();
    let job_id = status["jobId"].as_str().unwrap();
    let text = app.database.job(job_id).await.unwrap()["workflow"].as_str().unwrap().to_owned();
    assert!(text.is_ascii(), "{text}");
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["spec"]["metadata"]["stages"][0]["algorithm"]["rawcode"], code);
    assert_eq!(document["spec"]["metadata"]["stages"][0]["ключ"], "значение");
    // As the engine reads it.
    let latin9: Vec<u8> = sqlx::query_scalar("SELECT convert_to(workflow, 'LATIN9') FROM jobs WHERE workflowid = $1")
        .bind(job_id)
        .fetch_one(&app.database.pool)
        .await
        .unwrap();
    assert_eq!(latin9, text.as_bytes());
}

#[tokio::test]
async fn numbers_in_the_workflow_keep_their_values() {
    let app = App::start().await;
    let key = Key::new();
    let call = start_with(&app, &key, |workflow| {
        workflow["stages"][0]["algorithm"]["parameters"] =
            json!({ "int": 9_007_199_254_740_993_u64, "float": 0.1, "negative": -7 });
    });
    let parameters = &stored_workflow(&app, call).await["stages"][0]["algorithm"]["parameters"];
    assert_eq!(*parameters, json!({ "int": 9_007_199_254_740_993_u64, "float": 0.1, "negative": -7 }));
}

#[tokio::test]
async fn a_workflow_of_380_kib_is_accepted() {
    let app = App::start().await;
    let key = Key::new();
    let code = "x".repeat(380 * 1024);
    let call = start_with(&app, &key, |workflow| workflow["stages"][0]["algorithm"]["rawcode"] = code.clone().into());
    assert_eq!(stored_workflow(&app, call).await["stages"][0]["algorithm"]["rawcode"], code);
}

#[tokio::test]
async fn a_started_job_is_registered_in_the_cluster() {
    let app = App::start().await;
    let job = started(&app).await;
    let object = eventually("the WorkFlow object", std::time::Duration::from_secs(10), async || {
        app.cluster.workflow(&app.namespace, &job.job_id).await
    })
    .await;
    assert_eq!(object["metadata"]["name"], job.job_id.as_str());
    assert_eq!(app.database.job(&job.job_id).await.unwrap()["registered"], true);
}

#[tokio::test]
async fn odd_values_are_refused_or_kept_and_never_cause_a_5xx() {
    let app = App::start().await;
    let key = Key::new();
    let body = |placeholder: &str, raw: &str| {
        let call = start_with(&app, &key, |workflow| workflow["stages"][0]["algorithm"]["odd"] = placeholder.into());
        call.parameters().to_string().replace(&format!("\"{placeholder}\""), raw)
    };
    for odd in [
        "1e400",
        "-0",
        "123456789012345678901234567890",
        r#""\ud800""#,
        r#""\u0000""#,
        "1.7976931348623157e308",
        "{\"\": {\"\": null}}",
    ] {
        let answer = app.send(Call::post("compute").body(body("odd-value", odd))).await;
        assert!(matches!(answer.status, 200 | 400), "{odd}: {} {}", answer.status, answer.text());
        answer.json();
    }
    for odd in ["1e300", "99999999999999999999", "4102444800.75", "1e-300", "-1", "-1e300"] {
        let call = start(&app, &key).with("validUntil", "odd-value");
        let body = call.parameters().to_string().replace("\"odd-value\"", odd);
        let answer = app.send(Call::post("compute").body(body)).await;
        assert!(matches!(answer.status, 200 | 400), "{odd}: {} {}", answer.status, answer.text());
    }
}

#[tokio::test]
async fn ids_may_hold_every_character() {
    let app = App::start().await;
    let ids = ["a\0b", "käse \"\\ \u{1f600} \n", "\u{fffd}"];
    let call = start_with(&app, &Key::new(), |workflow| {
        workflow["stages"][0]["algorithm"]["id"] = ids[0].into();
        workflow["stages"][0]["input"] = ids.iter().map(|id| json!({ "id": id })).collect();
    });
    let job = app.send(call).await.ok()[0].clone();
    // Text in PostgreSQL cannot hold NUL.
    assert_eq!((&job["algoDID"], &job["inputDID"]), (&json!("a\u{fffd}b"), &json!(ids)));
    assert_eq!(app.send(Call::get("compute").with("jobId", job["jobId"].clone())).await.ok(), json!([job]));
}

#[tokio::test]
async fn a_workflow_that_is_too_large_as_it_is_stored_is_a_413() {
    let app = App::start().await;
    let key = Key::new();
    // Each character takes 2 bytes in the request, and 6 in the row.
    let call = start_with(&app, &key, |workflow| {
        workflow["stages"][0]["algorithm"]["rawcode"] = "é".repeat(100 * 1024).into();
    });
    let (status, text) = app.send(call.clone()).await.error();
    assert_eq!(status, 413, "{text}");
    assert!(text.contains("as it is stored"), "{text}");
    // The nonce is not used.
    app.send(call.with("workflow", workflow::sample())).await.ok();
    let call = start_with(&app, &key, |workflow| {
        workflow["stages"][0]["algorithm"]["rawcode"] = "é".repeat(66 * 1024).into();
    });
    app.send(call).await.ok();
}
