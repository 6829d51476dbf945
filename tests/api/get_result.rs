//! GET /getResult: which requests get a result. Origins and streaming are tested in tests/functions.

use serde_json::{Value, json};

use crate::support::{App, Call, Key, Stored, caller, owner};

fn outputs() -> String {
    // Port 1: nobody listens there, and it would not be asked anyway.
    json!([
        { "filename": "a.txt", "filesize": 1, "type": "output", "url": "http://127.0.0.1:1/a.txt" },
        { "filename": "b.txt", "filesize": 1, "type": "output" },
    ])
    .to_string()
}

#[tokio::test]
async fn missing_names_are_reported_in_the_order_of_the_contract() {
    let app = App::start().await;
    let whole = caller::provider(&Key::new()).result(&owner(), "0123456789abcdef0123456789abcdef", 0);
    for call in [Call::get("getResult").in_query(), Call::get("getResult").in_body()] {
        let mut call =
            call.with("something", "else").with("providerAddress", "0x0000000000000000000000000000000000000000");
        for name in ["owner", "providerSignature", "nonce", "index", "jobId"] {
            app.send(call.clone())
                .await
                .is_error(400, &format!(r#""{name}" is required in the call to GET:/getResult"#));
            call = call.with(name, whole.parameter(name));
        }
    }
    assert_eq!(app.database.count("usednonces").await, 0);
}

#[tokio::test]
async fn an_index_that_is_not_a_whole_number_is_refused() {
    let app = App::start().await;
    let key = Key::new();
    let job = Stored { outputs: Some(outputs()), provider: Some(key.address.clone()), ..Stored::finished() };
    let job = job.insert(&app.database).await;
    let owner = job.owner.unwrap();
    let provider = caller::provider(&key);
    for wrong in [
        json!("one"),
        json!("1.5"),
        json!(1.5),
        json!(""),
        json!("0x1"),
        json!("1e0"),
        json!("--1"),
        json!(true),
        json!([0]),
    ] {
        for call in [
            provider.result(&owner, &job.job_id, wrong.clone()),
            provider.result(&owner, &job.job_id, wrong.clone()).in_body(),
        ] {
            let (status, text) = app.send(call).await.error();
            assert_eq!(status, 400, "{wrong}");
            assert!(text.contains("index"), "{text}");
        }
    }
    for (index, text) in [
        (json!("-1"), "Negative index -1"),
        (json!(-7), "Negative index -7"),
        (json!("2"), "No such index 2 in this compute job"),
        (json!(99), "No such index 99 in this compute job"),
        (json!("99999999999999999999999"), "No such index 99999999999999999999999 in this compute job"),
    ] {
        app.send(provider.result(&owner, &job.job_id, index.clone())).await.is_error(404, text);
        app.send(provider.result(&owner, &job.job_id, index).in_body()).await.is_error(404, text);
    }
}

#[tokio::test]
async fn a_job_of_another_owner_is_a_404() {
    let app = App::start().await;
    let key = Key::new();
    let job = Stored { outputs: Some(outputs()), provider: Some(key.address.clone()), ..Stored::finished() };
    let job = job.insert(&app.database).await;
    let stranger = owner();
    app.send(caller::provider(&key).result(&stranger, &job.job_id, 0))
        .await
        .is_error(404, &format!("Owner {stranger} mismatch for job {}", job.job_id));
    let (owner, unknown) = (job.owner.unwrap(), "0123456789abcdef0123456789abcdef");
    app.send(caller::provider(&key).result(&owner, unknown, 0))
        .await
        .is_error(404, &format!("Owner {owner} mismatch for job {unknown}"));
}

#[tokio::test]
async fn a_job_of_another_provider_is_a_404() {
    let (key, colleague) = (Key::new(), Key::new());
    let allowed = json!([key.address, colleague.address]).to_string();
    let app = App::builder().var("SIGNATURE_REQUIRED", "1").var("ALLOWED_PROVIDERS", allowed).start().await;
    let own = Stored { provider: Some(key.address.clone()), ..Stored::finished() }.insert(&app.database).await;
    let owner = own.owner.clone().unwrap();
    app.send(caller::provider(&colleague).result(&owner, &own.job_id, 0))
        .await
        .is_error(404, &format!("Provider {} mismatch for job {}", colleague.address, own.job_id));
    app.send(caller::provider(&key).result(&owner, &own.job_id, 0))
        .await
        .is_error(404, &format!("No results for job {}", own.job_id));

    // Rows of the Python service name an address that nobody owns: any allowed provider will do.
    for provider in [Some(Key::new().address), None] {
        let legacy = Stored { provider, signer_verified: false, ..Stored::finished() }.insert(&app.database).await;
        let owner = legacy.owner.unwrap();
        app.send(caller::provider(&colleague).result(&owner, &legacy.job_id, 0))
            .await
            .is_error(404, &format!("No results for job {}", legacy.job_id));
        let stranger = crate::support::owner();
        app.send(caller::provider(&colleague).result(&stranger, &legacy.job_id, 0))
            .await
            .is_error(404, &format!("Owner {stranger} mismatch for job {}", legacy.job_id));
    }
}

#[tokio::test]
async fn a_job_without_results_is_a_404() {
    let app = App::start().await;
    let key = Key::new();
    for outputs in [None, Some(""), Some("[]"), Some("null"), Some("damaged {")] {
        let job =
            Stored { outputs: outputs.map(str::to_owned), provider: Some(key.address.clone()), ..Stored::running() };
        let job = job.insert(&app.database).await;
        app.send(caller::provider(&key).result(&job.owner.unwrap(), &job.job_id, 0))
            .await
            .is_error(404, &format!("No results for job {}", job.job_id));
    }
}

#[tokio::test]
async fn results_of_a_removed_job_have_expired() {
    let app = App::start().await;
    let key = Key::new();
    let job = Stored {
        outputs: Some(outputs()),
        provider: Some(key.address.clone()),
        removed: Some(1),
        ..Stored::finished()
    };
    let job = job.insert(&app.database).await;
    app.send(caller::provider(&key).result(&job.owner.unwrap(), &job.job_id, 0))
        .await
        .is_error(404, &format!("Results of job {} have expired", job.job_id));
}

#[tokio::test]
async fn provider_and_ocean_node_are_allowed_and_other_signers_are_not() {
    let key = Key::new();
    let app = App::builder().var("SIGNATURE_REQUIRED", "1").var("ALLOWED_PROVIDERS", key.allowed()).start().await;
    let job = Stored { provider: Some(key.address.clone()), ..Stored::finished() }.insert(&app.database).await;
    let owner = job.owner.unwrap();
    for call in
        [caller::provider(&key).result(&owner, &job.job_id, 0), caller::ocean_node(&key).result(&owner, &job.job_id, 0)]
    {
        app.send(call).await.is_error(404, &format!("No results for job {}", job.job_id));
    }
    let stranger = Key::new();
    let call = caller::provider(&stranger).result(&owner, &job.job_id, 0);
    let message = format!(
        "Invalid signature {} of documentId {owner}{}{},the signing ethereum account {} is not authorized to use this \
         service.",
        call.text("providerSignature"),
        job.job_id,
        call.text("nonce"),
        stranger.address
    );
    app.send(call).await.is_error(401, &message);
    assert_eq!(app.send(caller::ocean_node(&stranger).result(&owner, &job.job_id, 0)).await.error().0, 401);
}

#[tokio::test]
async fn a_404_and_a_502_take_the_nonce() {
    let app = App::start().await;
    let key = Key::new();
    let job = Stored { outputs: Some(outputs()), provider: Some(key.address.clone()), ..Stored::finished() };
    let job = job.insert(&app.database).await;
    let owner = job.owner.unwrap();

    let call = caller::provider(&key).result(&owner, &job.job_id, 7);
    assert_eq!(app.send(call.clone()).await.error().0, 404);
    let missing = call.text("nonce");
    let refused = |nonce: &str| {
        format!("Invalid signature expected nonce ({nonce}) > current nonce ({nonce}). The signer has used it before.")
    };
    app.send(call).await.is_error(400, &refused(&missing));

    // A loopback address that RESULT_HOSTS_ALLOWED does not name.
    let call = caller::provider(&key).result(&owner, &job.job_id, 0);
    let (status, text) = app.send(call.clone()).await.error();
    assert_eq!(status, 502);
    assert!(!text.contains("127.0.0.1") && !text.contains("a.txt"), "{text}");
    assert!(text.contains(&job.job_id) && text.contains('0'), "{text}");
    let failed = call.text("nonce");
    app.send(call).await.is_error(400, &refused(&failed));
    assert_eq!(app.database.used_nonces(&key.address).await, [missing, failed]);
}

#[tokio::test]
async fn outputs_that_are_damaged_in_part_keep_their_indices() {
    let app = App::start().await;
    let key = Key::new();
    let outputs = json!([null, "text", 5, { "filename": "no url" }, { "url": 5 }]).to_string();
    let job = Stored { outputs: Some(outputs), provider: Some(key.address.clone()), ..Stored::finished() };
    let job = job.insert(&app.database).await;
    let owner = job.owner.unwrap();
    for index in 0..6 {
        app.send(caller::provider(&key).result(&owner, &job.job_id, index))
            .await
            .is_error(404, &format!("No such index {index} in this compute job"));
    }
    let status = app.send(Call::get("compute").with("jobId", job.job_id)).await.ok();
    assert_eq!(status[0]["results"].as_array().unwrap().len(), 5);
    assert_eq!(status[0]["results"][3], json!({ "filename": "no url" }));
    assert_ne!(status[0]["results"][0], Value::from("text"));
}
