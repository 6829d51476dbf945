//! GET OP/environments

use serde_json::{Value, json};

use crate::support::{App, Call, Key, caller};

/// The environments' ids.
async fn ids(app: &App, call: Call) -> Vec<String> {
    let found = app.send(call).await.ok();
    found.as_array().unwrap().iter().map(|environment| environment["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn environments_are_the_announcements_with_id_and_last_seen() {
    let app = App::builder().unannounced().start().await;
    assert_eq!(app.send(Call::get("environments")).await.ok(), json!([]));

    let announcement = json!({
        "id": "the engine's own", "lastSeen": 1, "cpuNumber": 4, "cpuType": "AMD", "gpuNumber": 0, "ramGB": 16, "diskGB": 100,
        "priceMin": 1.5, "desc": "käse", "currentJobs": 0, "maxJobs": 5, "storageExpiry": 604_800, "maxJobDuration": 3600,
        "feeToken": "0x1", "allowedChainId": [8996], "nested": { "a": [null] }
    });
    app.database.announce("ocean-compute", &announcement.to_string()).await;
    app.database.execute("UPDATE envs SET lastping = to_timestamp(1795300414.039237) AT TIME ZONE 'UTC'").await;
    let mut expected = announcement;
    expected["id"] = "ocean-compute".into();
    expected["lastSeen"] = "1795300414.039237".into();
    assert_eq!(app.send(Call::get("environments")).await.ok(), json!([expected]));
}

#[tokio::test]
async fn last_seen_is_in_seconds_since_the_epoch() {
    let app = App::start().await;
    let before = crate::given::now();
    app.database.announce("ocean-compute", "{}").await;
    let found = app.send(Call::get("environments")).await.ok();
    let found = found.as_array().unwrap().iter().find(|environment| environment["id"] == "ocean-compute").unwrap();
    let seen: f64 = found["lastSeen"].as_str().unwrap().parse().unwrap();
    assert!((seen - before).abs() < 120.0, "{seen} {before}");
}

#[tokio::test]
async fn chains_are_compared_by_value_however_they_are_written() {
    let app = App::builder().unannounced().start().await;
    for (namespace, status) in [
        ("a-absent", "{}"),
        ("b-empty", r#"{"allowedChainId": []}"#),
        ("c-number", r#"{"allowedChainId": [1, 5]}"#),
        ("d-text", r#"{"allowedChainId": ["5"]}"#),
        ("e-other", r#"{"allowedChainId": [55, "15"]}"#),
        ("f-null", r#"{"allowedChainId": null}"#),
    ] {
        app.database.announce(namespace, status).await;
    }
    let all = ["a-absent", "b-empty", "c-number", "d-text", "e-other", "f-null"];
    assert_eq!(ids(&app, Call::get("environments")).await, all);
    let on_5 = ["a-absent", "b-empty", "c-number", "d-text", "f-null"];
    for call in [
        Call::get("environments").with("chainId", "5"),
        Call::get("environments").with("chain_id", "5"),
        Call::get("environments").with("chainId", 5).in_body(),
        Call::get("environments").with("chain_id", "5").in_body(),
    ] {
        assert_eq!(ids(&app, call.clone()).await, on_5, "{call:?}");
    }
    assert_eq!(ids(&app, Call::get("environments").with("chainId", "7")).await, ["a-absent", "b-empty", "f-null"]);
}

#[tokio::test]
async fn damaged_announcements_do_not_hide_the_others() {
    let app = App::builder().unannounced().start().await;
    app.database.announce("good", r#"{"cpuNumber": 1}"#).await;
    for (namespace, status) in [("damaged", "{\"cpu"), ("empty", ""), ("list", "[1]"), ("null", "null")] {
        app.database.announce(namespace, status).await;
    }
    app.database.execute("INSERT INTO envs (namespace) VALUES ('nothing')").await;
    let found = app.send(Call::get("environments")).await.ok();
    let good = found.as_array().unwrap().iter().find(|environment| environment["id"] == "good").unwrap();
    assert_eq!(good["cpuNumber"], Value::from(1));
}

#[tokio::test]
async fn both_spellings_of_the_callers_work() {
    let app = App::start().await;
    // Provider, Ocean Node
    for (name, chain) in [("chainId", "8996"), ("chain_id", "8996")] {
        assert_eq!(ids(&app, Call::get("environments").with(name, chain)).await, [&*app.namespace]);
    }
}

#[tokio::test]
async fn a_start_needs_an_environment_that_is_announced_for_its_chain() {
    let app = App::builder().unannounced().start().await;
    let key = Key::new();
    let start = async |environment: &str, chain: Value| {
        let call = caller::provider(&key).start(
            environment,
            &crate::support::agreement_id(),
            &crate::support::owner(),
            crate::support::workflow::sample(),
        );
        let answer = app.send(call.with("chainId", chain)).await;
        if answer.status != 200 {
            answer.is_error(400, "Environment invalid or does not exist");
        }
        answer.status
    };
    app.database.announce(&app.namespace, r#"{"allowedChainId": [1, "137"]}"#).await;
    for (chain, status) in [
        (json!(1), 200),
        (json!("1"), 200),
        (json!(137), 200),
        (json!("137"), 200),
        (json!(13), 400),
        (Value::Null, 400),
    ] {
        assert_eq!(start(&app.namespace, chain.clone()).await, status, "{chain}");
    }
    assert_eq!(start("never-heard-of", json!(1)).await, 400);
    app.database.announce(&app.namespace, r#"{"allowedChainId": []}"#).await;
    assert_eq!(start(&app.namespace, json!(99)).await, 200);
    app.database.announce(&app.namespace, "{}").await;
    assert_eq!(start(&app.namespace, Value::Null).await, 200);
}
