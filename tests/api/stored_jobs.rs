//! What POST OP/compute stores.

use serde_json::{Value, json};

use crate::given::{start, start_with, started};
use crate::support::{App, Call, Key, agreement_id, caller, eventually, owner, workflow};

/// The stored workflow after a start.
async fn stored_workflow(app: &App, call: Call) -> Value {
    let job = app.send(call).await.ok()[0].clone();
    let row = app.database.job(job["jobId"].as_str().unwrap()).await.unwrap();
    serde_json::from_str::<Value>(row["workflow"].as_str().unwrap()).unwrap()["spec"]["metadata"].clone()
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
