//! Whose requests are accepted (docs/contract/http.md, "Signatures"; docs/contract/callers.md, "What is signed").

use reqwest::Method;
use serde_json::{Value, json};

use crate::given::start;
use crate::support::{App, Call, Key, Stored, agreement_id, caller, nonce, owner, workflow};

fn vectors() -> Value {
    serde_json::from_str(include_str!("../signatures.json")).unwrap()
}

/// A service that allows only these signers.
async fn app_that_allows(addresses: &[&str]) -> App {
    App::builder().var("SIGNATURE_REQUIRED", "1").var("ALLOWED_PROVIDERS", json!(addresses).to_string()).start().await
}

/// The request of a vector, as its caller sends it.
fn call_of(vector: &Value, app: &App) -> Call {
    let node = vector["client"] == "ocean-node";
    let mut call = match vector["operation"].as_str().unwrap() {
        "POST /compute" => {
            let call = Call::post("compute").with("workflow", workflow::sample()).with("agreementId", agreement_id());
            if vector["client"] == "brizo" { call } else { call.with("environment", app.namespace.clone()) }
        }
        "GET /compute" => Call::get("compute"),
        "PUT /compute" => Call::new(Method::PUT, "compute"),
        "GET /getResult" => Call::get("getResult"),
        other => panic!("{other}"),
    };
    if node {
        call = call.in_body();
    }
    for (name, value) in vector["params"].as_object().unwrap() {
        if name != "note" {
            call = call.with(name, value.clone());
        }
    }
    call.with("providerSignature", vector["providerSignature"].clone())
}

/// Returns whether the signature of a call is accepted.
async fn is_allowed(app: &App, call: &Call) -> bool {
    let answer = app.send(call.clone()).await;
    match answer.status {
        200 => true,
        // getResult of an unknown job: only an allowed signer gets a 404.
        404 => {
            let expected = format!("Owner {} mismatch for job {}", call.text("owner"), call.text("jobId"));
            answer.is_error(404, &expected);
            true
        }
        _ => {
            assert_eq!(answer.error().0, 401, "{}", answer.text());
            false
        }
    }
}

#[tokio::test]
async fn every_accepted_vector_gives_its_signer() {
    let vectors = vectors();
    for vector in vectors["accept"].as_array().unwrap() {
        let address = vector["address"].as_str().unwrap();
        // A new database for each: their nonces are years apart.
        let app = app_that_allows(&[address]).await;
        let call = call_of(vector, &app);
        assert!(is_allowed(&app, &call).await, "{vector}");
        let status_request = vector["operation"] == "GET /compute";
        if vector["client"] != "brizo" && !status_request {
            let nonce = vector["params"]["nonce"].as_str().map(str::to_owned);
            let nonce = nonce.unwrap_or_else(|| vector["params"]["nonce"].to_string());
            assert_eq!(app.database.used_nonces(address).await, [nonce], "{vector}");
        }
        if !status_request {
            let others = app_that_allows(&["0x00000000000000000000000000000000000000aa"]).await;
            assert!(!is_allowed(&others, &call).await, "{vector}");
        }
    }
}

#[tokio::test]
async fn every_rejected_vector_fails_in_every_operation() {
    let app = App::start().await;
    let key = Key::new();
    for vector in vectors()["reject"].as_array().unwrap() {
        let signature = &vector["providerSignature"];
        let length = "the signature must have 130 hex digits (65 bytes), and has";
        let wrong = match vector["why"].as_str().unwrap() {
            "empty" => format!("{length} 0 characters"),
            "64 bytes" => format!("{length} 128 characters"),
            "66 bytes" => format!("{length} 132 characters"),
            "odd number of digits" => format!("{length} 129 characters"),
            "not hex" => "the signature must be hex, and has other characters".to_owned(),
            "recovery id out of range" => {
                "v, the last byte of the signature, must be 0, 1, 27 or 28, and is 29".to_owned()
            }
            _ => "no key can have made this signature".to_owned(),
        };
        for call in [
            start(&app, &key),
            caller::provider(&key).stop(&owner(), None),
            caller::provider(&key).delete(&owner(), Some("ab")),
            caller::provider(&key).result(&owner(), "ab", 0),
            caller::brizo(&key).start(&agreement_id(), &owner(), workflow::sample()),
            caller::brizo(&key).stop(&owner(), None, Some("ab")),
            caller::ocean_node(&key).result(&owner(), "ab", 0),
        ] {
            app.send(call.with("providerSignature", signature.clone()))
                .await
                .is_error(400, &format!("Failed to recover address: {wrong}"));
        }
    }
    assert_eq!((app.database.count("usednonces").await, app.database.count("jobs").await), (0, 0));
}

#[tokio::test]
async fn signatures_are_read_with_and_without_0x_in_any_case_and_with_both_kinds_of_v() {
    let key = Key::new();
    let app = app_that_allows(&[&key.address]).await;
    let change_v = |signature: &str, by: i32| {
        let v = i32::from_str_radix(&signature[signature.len() - 2..], 16).unwrap() + by;
        format!("{}{v:02x}", &signature[..signature.len() - 2])
    };
    let spellings: [&dyn Fn(&str) -> String; 5] = [
        &|signature| signature[2..].to_owned(),
        &|signature| signature.to_uppercase().replace("0X", "0x"),
        &|signature| signature[2..].to_uppercase(),
        &|signature| change_v(signature, 27),
        &|signature| signature.to_owned(),
    ];
    for spelling in spellings {
        let call = start(&app, &key);
        let signature = spelling(&call.text("providerSignature"));
        app.send(call.with("providerSignature", signature)).await.ok();
    }
}

#[tokio::test]
async fn allowed_providers_are_compared_without_case() {
    let key = Key::new();
    for address in [key.address.clone(), key.address.to_lowercase(), key.address.to_uppercase().replace("0X", "0x")] {
        let app = app_that_allows(&[&owner(), &address]).await;
        let call = start(&app, &key);
        app.send(call).await.ok();
    }
}

#[tokio::test]
async fn a_refusal_names_the_message_and_its_signer() {
    let (key, stranger) = (Key::new(), Key::new());
    let app = app_that_allows(&[&key.address]).await;
    let (owner, agreement, job_id) = (owner(), agreement_id(), "9f9178dcffd34130a3158ce9ca3d15ff");
    let provider = caller::provider(&stranger);
    let brizo = caller::brizo(&stranger);
    let start = provider.start(&app.namespace, &agreement, &owner, workflow::sample());
    let stop = provider.stop(&owner, Some(job_id));
    let stop_all = provider.stop(&owner, None);
    let result = provider.result(&owner, job_id, 0);
    let address = &stranger.address;
    for (call, message) in [
        (start.clone(), format!("{owner}{}", start.text("nonce"))),
        (stop.clone(), format!("{owner}{job_id}{}", stop.text("nonce"))),
        (stop.clone().method(Method::DELETE), format!("{owner}{job_id}{}", stop.text("nonce"))),
        (stop_all.clone(), format!("{owner}{}", stop_all.text("nonce"))),
        (result.clone(), format!("{owner}{job_id}{}", result.text("nonce"))),
        (brizo.start(&agreement, &owner, workflow::sample()), format!("{address}{agreement}")),
        (brizo.stop(&owner, Some(job_id), Some(&agreement)), format!("{address}{job_id}{agreement}")),
        (brizo.stop(&owner, None, Some(&agreement)), format!("{address}{agreement}")),
    ] {
        let text = format!(
            "Invalid signature {} of documentId {message},the signing ethereum account {address} is not authorized to \
             use this service.",
            call.text("providerSignature")
        );
        app.send(call).await.is_error(401, &text);
    }
    // Message and address are those of the first form, also where it was another that was signed.
    let call = caller::ocean_node(&stranger).start(&app.namespace, &agreement, &owner, workflow::sample());
    let begin = format!(
        "Invalid signature {} of documentId {owner}{},the signing ethereum account 0x",
        call.text("providerSignature"),
        call.text("nonce")
    );
    let (status, text) = app.send(call).await.error();
    assert_eq!(status, 401);
    assert!(text.starts_with(&begin) && text.ends_with(" is not authorized to use this service."), "{text}");
    assert!(!text.contains(address.as_str()), "{text}");
    assert_eq!((app.database.count("usednonces").await, app.database.count("jobs").await), (0, 0));
}

#[tokio::test]
async fn the_signed_message_decides_and_not_the_named_address() {
    let key = Key::new();
    let app = app_that_allows(&[&key.address]).await;
    let provider = caller::provider(&key);
    let start = || provider.start(&app.namespace, &agreement_id(), &owner(), workflow::sample());
    let stop = || provider.stop(&owner(), Some("9f9178dcffd34130a3158ce9ca3d15ff"));
    for call in [
        start().with("owner", owner()),
        start().with("nonce", nonce()),
        stop().with("owner", owner()),
        stop().with("nonce", nonce()),
        stop().with("jobId", "0123456789abcdef0123456789abcdef"),
        stop().without("jobId"),
        // Only Brizo's message contains Provider's address; elsewhere it does not matter.
        caller::provider(&Key::new())
            .start(&app.namespace, &agreement_id(), &owner(), workflow::sample())
            .with("providerAddress", key.address.clone()),
        caller::brizo(&key).start(&agreement_id(), &owner(), workflow::sample()).with("agreementId", agreement_id()),
    ] {
        assert_eq!(app.send(call.clone()).await.error().0, 401, "{call:?}");
    }
    assert_eq!(app.database.count("usednonces").await, 0);
}

#[tokio::test]
async fn with_signature_strict_only_providers_form_counts() {
    let key = Key::new();
    let app = App::builder()
        .var("SIGNATURE_REQUIRED", "1")
        .var("SIGNATURE_STRICT", "1")
        .var("ALLOWED_PROVIDERS", key.allowed())
        .start()
        .await;
    let job = Stored { provider: Some(key.address.clone()), ..Stored::running() }.insert(&app.database).await;
    let owner = job.owner.clone().unwrap();
    let (provider, node, brizo) = (caller::provider(&key), caller::ocean_node(&key), caller::brizo(&key));
    app.send(provider.start(&app.namespace, &agreement_id(), &owner, workflow::sample())).await.ok();
    app.send(provider.stop(&owner, Some(&job.job_id))).await.ok();
    assert_eq!(app.send(provider.result(&owner, &job.job_id, 0)).await.error().0, 404);

    for call in [
        node.start(&app.namespace, &agreement_id(), &owner, workflow::sample()),
        node.stop(&owner, Some(&job.job_id), None),
        node.result(&owner, &job.job_id, 0),
    ] {
        assert_eq!(app.send(call).await.error().0, 401);
    }
    let (status, text) = app.send(brizo.start(&agreement_id(), &owner, workflow::sample())).await.error();
    assert_eq!(status, 400);
    assert!(text.ends_with("is required in the call to POST:/compute"), "{text}");
    app.send(brizo.stop(&owner, Some(&job.job_id), Some(&job.agreement_id)))
        .await
        .is_error(400, r#""nonce" is required in the call to PUT:/compute"#);
}

/// The provider that the database has for a job.
async fn provider_of(app: &App, call: Call) -> String {
    let job = app.send(call).await.ok();
    let row = app.database.job(job[0]["jobId"].as_str().unwrap()).await.unwrap();
    row["provider"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn without_signatures_required_the_signer_is_the_named_address_if_one_form_gives_it() {
    let app = App::start().await;
    let key = Key::new();
    let address = key.address.to_lowercase();
    let (provider, node) = (caller::provider(&key), caller::ocean_node(&key));
    let providers = || provider.start(&app.namespace, &agreement_id(), &owner(), workflow::sample());
    let nodes = || node.start(&app.namespace, &agreement_id(), &owner(), workflow::sample());

    assert_eq!(provider_of(&app, providers()).await, address);
    assert_eq!(provider_of(&app, providers().without("providerAddress")).await, address);
    assert_eq!(provider_of(&app, providers().with("providerAddress", owner())).await, address);
    assert_eq!(provider_of(&app, providers().with("providerAddress", "nonsense")).await, address);

    assert_eq!(provider_of(&app, nodes()).await, address);
    assert_eq!(provider_of(&app, nodes().with("providerAddress", address.clone())).await, address);
    assert_eq!(
        provider_of(&app, nodes().with("providerAddress", key.address.to_uppercase().replace("0X", "0x"))).await,
        address
    );
    // Otherwise it is the signer of the first form.
    assert_ne!(provider_of(&app, nodes().without("providerAddress")).await, address);
    assert_ne!(provider_of(&app, nodes().with("providerAddress", owner())).await, address);
    // The nonces are recorded for these signers.
    assert_eq!(app.database.used_nonces(&key.address).await.len(), 7);
}

#[tokio::test]
async fn a_start_without_environment_and_nonce_is_brizos() {
    let key = Key::new();
    let app = App::builder()
        .var("SIGNATURE_REQUIRED", "1")
        .var("ALLOWED_PROVIDERS", key.allowed())
        .unannounced()
        .start()
        .await;
    let brizo = caller::brizo(&key);
    let start = || brizo.start(&agreement_id(), &owner(), workflow::sample());
    let job = app.send(start()).await.ok();
    let row = app.database.job(job[0]["jobId"].as_str().unwrap()).await.unwrap();
    assert_eq!(row["namespace"], app.namespace.as_str());

    app.send(start().with("environment", app.namespace.clone()))
        .await
        .is_error(400, r#""nonce" is required in the call to POST:/compute"#);
    app.send(start().with("nonce", nonce()))
        .await
        .is_error(400, r#""environment" is required in the call to POST:/compute"#);
    // It can be repeated, but the agreement has its job.
    let call = start();
    app.send(call.clone()).await.ok();
    app.send(call).await.is_error(400, "`agreementId` already in use for other job.");
    assert_eq!(app.database.count("usednonces").await, 0);
}

#[tokio::test]
async fn a_request_without_a_nonce_is_brizos_if_it_names_its_signer() {
    let key = Key::new();
    let app = app_that_allows(&[&key.address]).await;
    let job = Stored { provider: Some(key.address.clone()), ..Stored::running() }.insert(&app.database).await;
    let owner = job.owner.clone().unwrap();
    let brizo = caller::brizo(&key);
    for (method, name) in [(Method::PUT, "PUT"), (Method::DELETE, "DELETE")] {
        let call = brizo.stop(&owner, Some(&job.job_id), Some(&job.agreement_id)).method(method.clone());
        app.send(call.clone()).await.ok();
        app.send(call.clone().without("providerAddress"))
            .await
            .is_error(400, &format!(r#""nonce" is required in the call to {name}:/compute"#));
        // With a nonce it is another caller's, who signs otherwise.
        assert_eq!(app.send(call.with("nonce", nonce())).await.error().0, 401);
        // Its signature without job and agreement would be over its own address alone.
        let (status, text) = app.send(brizo.stop(&owner, None, None).method(method)).await.error();
        assert_eq!(status, 400);
        assert!(text.contains("jobId") || text.contains("agreementId"), "{text}");
    }
    app.send(caller::provider(&key).result(&owner, &job.job_id, 0).without("nonce"))
        .await
        .is_error(400, r#""nonce" is required in the call to GET:/getResult"#);
}

#[tokio::test]
async fn without_signatures_required_brizo_needs_neither_job_nor_agreement() {
    let app = App::start().await;
    let job = Stored::running().insert(&app.database).await;
    let call = caller::brizo(&Key::new()).stop(job.owner.as_ref().unwrap(), None, None);
    assert_eq!(app.send(call).await.ok()[0]["stopreq"], 1);
}

#[tokio::test]
async fn hashes_that_ocean_node_trims_are_recovered() {
    // The hash of one nonce in 256 begins with a zero byte.
    let key = Key::new();
    let app = app_that_allows(&[&key.address]).await;
    for _ in 0..60 {
        let call = caller::ocean_node(&key).stop("0xab", None, None);
        assert_eq!(app.send(call.clone()).await.ok(), json!([]), "{call:?}");
    }
    let vectors = vectors();
    assert!(vectors["accept"].as_array().unwrap().iter().any(|vector| vector["params"].get("note").is_some()));
}
