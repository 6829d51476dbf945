//! How parameters arrive (docs/contract/http.md, "Parameters").

use reqwest::Method;
use serde_json::{Value, json};

use crate::given::{job_ids, start, started, status_of};
use crate::support::{App, Call, Key, Stored, agreement_id, caller, nonce, owner, workflow};

#[tokio::test]
async fn every_method_reads_parameters_from_the_query_string() {
    let app = App::start().await;
    let key = Key::new();
    let job = Stored { provider: Some(key.address.clone()), ..Stored::running() }.insert(&app.database).await;
    let owner = job.owner.clone().unwrap();
    let provider = caller::provider(&key);

    assert_eq!(app.send(provider.status(&owner, None).in_query()).await.ok(), json!([status_of(&job)]));
    let stopped = app.send(provider.stop(&owner, Some(&job.job_id)).in_query()).await.ok();
    assert_eq!(stopped[0]["stopreq"], 1);
    let deleted = app.send(provider.delete(&owner, Some(&job.job_id)).in_query()).await.ok();
    assert_eq!(deleted[0]["removed"], 1);
    app.send(provider.result(&owner, &job.job_id, 0).in_query())
        .await
        .is_error(404, &format!("Results of job {} have expired", job.job_id));
    assert_eq!(app.send(Call::get("runningjobs").with("limit", "0")).await.ok(), json!([]));
    assert_eq!(app.send(Call::get("environments").with("chainId", "1")).await.ok().as_array().unwrap().len(), 1);
    // In a query string every value is text, and a workflow must not be: a start fails at that check.
    let start = provider.start(&app.namespace, &agreement_id(), &owner, workflow::sample()).in_query();
    app.send(start).await.is_error(400, "`workflow` is required in the payload and must include workflow stages");
}

#[tokio::test]
async fn every_method_reads_parameters_from_the_body() {
    let app = App::start().await;
    let key = Key::new();
    let job = Stored { provider: Some(key.address.clone()), ..Stored::running() }.insert(&app.database).await;
    let owner = job.owner.clone().unwrap();
    let provider = caller::provider(&key);

    assert_eq!(app.send(provider.status(&owner, None).in_body()).await.ok(), json!([status_of(&job)]));
    let stopped = app.send(provider.stop(&owner, Some(&job.job_id)).in_body()).await.ok();
    assert_eq!(stopped[0]["stopreq"], 1);
    let deleted = app.send(provider.delete(&owner, Some(&job.job_id)).in_body()).await.ok();
    assert_eq!(deleted[0]["removed"], 1);
    app.send(provider.result(&owner, &job.job_id, 0).in_body())
        .await
        .is_error(404, &format!("Results of job {} have expired", job.job_id));
    assert_eq!(app.send(Call::get("runningjobs").with("limit", 0).in_body()).await.ok(), json!([]));
    assert_eq!(
        app.send(Call::get("environments").with("chainId", 1).in_body()).await.ok().as_array().unwrap().len(),
        1
    );
    app.send(provider.start(&app.namespace, &agreement_id(), &owner, workflow::sample())).await.ok();
}

#[tokio::test]
async fn a_body_is_ignored_if_there_is_a_query_string() {
    let app = App::start().await;
    let job = Stored::default().insert(&app.database).await;
    let body = json!({ "jobId": job.job_id }).to_string();
    for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE] {
        let call = Call::new(method.clone(), "compute").with("anything", "").body(body.clone());
        let (status, _) = app.send(call).await.error();
        assert_eq!(status, 400, "{method}");
    }
    app.send(Call::get("compute").with("anything", "").body(body.clone()))
        .await
        .is_error(400, "You have to specify one of agreementId, jobId or owner");
    // An empty query string holds nothing.
    let empty = Call::to_path(Method::GET, "/api/v1/operator/compute?").body(body);
    assert_eq!(app.send(empty).await.ok(), json!([status_of(&job)]));
}

#[tokio::test]
async fn unknown_parameters_are_ignored() {
    let app = App::start().await;
    let job = Stored::default().insert(&app.database).await;
    for call in [Call::get("compute").in_query(), Call::get("compute").in_body()] {
        let call = call.with("jobId", job.job_id.clone()).with("colour", "blue").with("documentId", "7");
        assert_eq!(app.send(call).await.ok(), json!([status_of(&job)]));
    }
    let nested =
        Call::get("compute").in_body().with("jobId", job.job_id.clone()).with("x", json!([{ "y": [1, null] }]));
    assert_eq!(app.send(nested).await.ok(), json!([status_of(&job)]));
}

#[tokio::test]
async fn ids_of_fewer_than_two_characters_count_as_absent() {
    let app = App::start().await;
    for name in ["agreementId", "jobId", "owner"] {
        for short in ["", "x"] {
            for call in [Call::get("compute").in_query(), Call::get("compute").in_body()] {
                app.send(call.with(name, short))
                    .await
                    .is_error(400, "You have to specify one of agreementId, jobId or owner");
            }
        }
    }
    // An absent filter beside a present one selects nothing less.
    let job = Stored::default().insert(&app.database).await;
    let call = Call::get("compute").with("jobId", job.job_id.clone()).with("owner", "0").with("agreementId", "");
    assert_eq!(app.send(call).await.ok(), json!([status_of(&job)]));
    // Two characters are enough.
    assert_eq!(app.send(Call::get("compute").with("owner", "xy")).await.ok(), json!([]));

    let key = Key::new();
    let start = start(&app, &key);
    app.send(start.clone().with("agreementId", "1"))
        .await
        .is_error(400, r#""agreementId" is required in the call to POST:/compute"#);
    app.send(start.with("owner", "1")).await.is_error(400, r#""owner" is required in the call to POST:/compute"#);
}

#[tokio::test]
async fn null_counts_as_absent() {
    let app = App::start().await;
    let nulls = json!({ "agreementId": null, "jobId": null, "owner": null }).to_string();
    app.send(Call::get("compute").body(nulls))
        .await
        .is_error(400, "You have to specify one of agreementId, jobId or owner");

    let key = Key::new();
    let start = start(&app, &key);
    for name in ["workflow", "agreementId", "owner", "providerSignature", "environment", "nonce"] {
        app.send(start.clone().with(name, Value::Null))
            .await
            .is_error(400, &format!(r#""{name}" is required in the call to POST:/compute"#));
    }
    let optional =
        start.with("chainId", Value::Null).with("validUntil", Value::Null).with("providerAddress", Value::Null);
    let job = app.send(optional).await.ok();
    let row = app.database.job(job[0]["jobId"].as_str().unwrap()).await.unwrap();
    assert_eq!((&row["chainid"], &row["validuntil"]), (&Value::Null, &Value::Null));
}

#[tokio::test]
async fn the_first_of_several_parameters_with_one_name_counts() {
    let app = App::start().await;
    let [first, second] =
        [Stored::default().insert(&app.database).await, Stored::default().insert(&app.database).await];
    let path = format!("/api/v1/operator/compute?jobId={}&jobId={}", first.job_id, second.job_id);
    assert_eq!(app.send(Call::to_path(Method::GET, &path)).await.ok(), json!([status_of(&first)]));
}

#[tokio::test]
async fn values_are_percent_decoded_once() {
    let app = App::start().await;
    let job = Stored { owner: Some("a b+c%20&d=é".replace('é', "e")), ..Stored::default() }.insert(&app.database).await;
    let call = Call::get("compute").with("owner", job.owner.clone());
    assert_eq!(app.send(call).await.ok(), json!([status_of(&job)]));
    let plus = Call::to_path(Method::GET, "/api/v1/operator/compute?owner=a+b%2Bc%2520%26d%3De");
    assert_eq!(app.send(plus).await.ok(), json!([status_of(&job)]));
}

#[tokio::test]
async fn chain_id_has_two_spellings_and_two_types() {
    let app = App::start().await;
    let key = Key::new();
    for (name, value) in
        [("chainId", json!(8996)), ("chain_id", json!(8996)), ("chainId", json!("8996")), ("chain_id", json!("8996"))]
    {
        let start = start(&app, &key);
        let job = app.send(start.without("chainId").with(name, value.clone())).await.ok();
        let row = app.database.job(job[0]["jobId"].as_str().unwrap()).await.unwrap();
        assert_eq!(row["chainid"], "8996", "{name} {value}");
        let document: Value = serde_json::from_str(row["workflow"].as_str().unwrap()).unwrap();
        assert_eq!(document["spec"]["metadata"]["chainId"], value, "{name}");
    }
    app.database.announce("on-chain-5", r#"{"allowedChainId": [5]}"#).await;
    for name in ["chainId", "chain_id"] {
        let found = app.send(Call::get("environments").with(name, "5")).await.ok();
        assert!(found.as_array().unwrap().iter().any(|environment| environment["id"] == "on-chain-5"), "{name}");
    }
}

#[tokio::test]
async fn a_chain_id_that_is_not_a_whole_number_is_refused() {
    let app = App::start().await;
    let key = Key::new();
    let start = || start(&app, &key);
    for name in ["chainId", "chain_id"] {
        let wrong = format!("\"{name}\" must be a whole number of at most 78 digits");
        for value in
            [json!("hello"), json!("-1"), json!(-1), json!("1.5"), json!(1.5), json!("0x1"), json!("9".repeat(79))]
        {
            app.send(start().without("chainId").with(name, value.clone())).await.is_error(400, &wrong);
            app.send(Call::get("environments").with(name, value.clone())).await.is_error(400, &wrong);
            app.send(Call::get("environments").with(name, value).in_body()).await.is_error(400, &wrong);
        }
        for absent in [json!(""), json!(null)] {
            let job = app.send(start().without("chainId").with(name, absent.clone())).await.ok();
            let row = app.database.job(job[0]["jobId"].as_str().unwrap()).await.unwrap();
            assert_eq!(row["chainid"], Value::Null, "{name} {absent}");
            let found = app.send(Call::get("environments").with(name, absent).in_body()).await.ok();
            assert_eq!(found.as_array().unwrap().len(), 1);
        }
    }
    assert_eq!(app.database.count("usednonces").await, 4);
}

#[tokio::test]
async fn a_nonce_is_kept_exactly_as_it_was_written() {
    let app = App::start().await;
    let seconds = nonce() / 1_000_000_000;
    // As JSON: numbers, and text.
    let written = [
        nonce().to_string(),
        format!("{seconds}.123456"),
        format!("{}.1234560", seconds - 1),
        format!("{}.0", seconds - 2),
        format!("{}.5e0", seconds - 3),
        format!("\"{}.50\"", seconds - 4),
        format!("\"{}\"", seconds - 5),
        format!("\"{}\"", nonce()),
    ];
    for json in written {
        let signed = json.trim_matches('"').to_owned();
        let key = Key::new();
        let call = caller::provider(&key).start_at(
            &app.namespace,
            &agreement_id(),
            &owner(),
            workflow::sample(),
            signed.clone(),
        );
        let body =
            call.parameters().to_string().replace(&format!("\"nonce\":\"{signed}\""), &format!("\"nonce\":{json}"));
        assert!(body.contains(&format!("\"nonce\":{json}")), "{body}");
        app.send(Call::post("compute").body(body)).await.ok();
        assert_eq!(app.database.used_nonces(&key.address).await, [signed]);
    }
}

#[tokio::test]
async fn numbers_may_be_text_and_other_types_are_refused() {
    let app = App::start().await;
    let key = Key::new();
    let start = || start(&app, &key);
    app.send(start().with("validUntil", "4102444800")).await.ok();
    for name in ["nonce", "chainId", "validUntil"] {
        for wrong in [json!(true), json!([1]), json!({ "a": 1 })] {
            let (status, text) = app.send(start().with(name, wrong)).await.error();
            assert_eq!(status, 400);
            assert!(text.contains(name), "{text}");
        }
    }
    for name in ["agreementId", "owner", "providerSignature", "environment", "providerAddress"] {
        for wrong in [json!(12), json!(["ab"]), json!({ "a": 1 })] {
            let (status, text) = app.send(start().with(name, wrong)).await.error();
            assert_eq!(status, 400);
            assert!(text.contains(name), "{text}");
        }
    }
    for wrong in ["", "abc", "-1", "1.5.2", "0x10", "NaN", "1e999", "١"] {
        let (status, text) = app.send(start().with("nonce", wrong)).await.error();
        assert_eq!(status, 400, "{wrong}");
        assert!(text.contains("nonce"), "{text}");
    }
}

#[tokio::test]
async fn text_that_the_database_cannot_store_is_a_400() {
    let app = App::start().await;
    let job = started(&app).await;
    let key = job.key;
    for name in ["agreementId", "owner", "environment", "providerAddress", "chainId"] {
        for text in ["a\u{0}b".to_owned(), "x".repeat(256), "käse".to_owned(), "line\nbreak".to_owned()] {
            let start = start(&app, &key);
            let (status, message) = app.send(start.with(name, text.clone())).await.error();
            assert_eq!(status, 400, "{name} {text}");
            assert!(message.contains(name), "{message}");
        }
    }
    for path in ["compute?owner=%00%00", "compute?jobId=%ff%fe", "compute?agreementId=a%00"] {
        let (status, _) = app.send(Call::to_path(Method::GET, &format!("/api/v1/operator/{path}"))).await.error();
        assert_eq!(status, 400, "{path}");
    }
}

#[tokio::test]
async fn limit_and_offset_select_a_part_of_a_list() {
    let app = App::start().await;
    let owner = owner();
    let mut jobs = Vec::new();
    for i in 0..5 {
        let created = 1_795_300_000.0 + f64::from(i);
        jobs.push(
            Stored { owner: Some(owner.clone()), created, ..Stored::default() }.insert(&app.database).await.job_id,
        );
    }
    let page = |operation: &str, limit: Value, offset: Value| {
        Call::get(operation).with("owner", owner.clone()).with("limit", limit).with("offset", offset)
    };
    let newest_first = app.send(page("compute", json!("2"), json!("1"))).await.ok();
    assert_eq!(job_ids(&newest_first), [&*jobs[3], &*jobs[2]]);
    let newest_first = app.send(page("compute", json!(2), json!(3)).in_body()).await.ok();
    assert_eq!(job_ids(&newest_first), [&*jobs[1], &*jobs[0]]);
    let oldest_first = app.send(page("runningjobs", json!("2"), json!("1"))).await.ok();
    assert_eq!(job_ids(&oldest_first), [&*jobs[1], &*jobs[2]]);
    assert_eq!(app.send(page("compute", json!("0"), json!("0"))).await.ok(), json!([]));
    assert_eq!(app.send(page("compute", json!("9"), json!("99"))).await.ok(), json!([]));
    for wrong in ["-1", "x", "1.5", "99999999999999999999"] {
        for name in ["limit", "offset"] {
            for operation in ["compute", "runningjobs"] {
                let call = Call::get(operation).with("owner", owner.clone()).with(name, wrong);
                let (status, text) = app.send(call).await.error();
                assert_eq!(status, 400, "{name}={wrong}");
                assert!(text.contains(name), "{text}");
            }
        }
    }
}
