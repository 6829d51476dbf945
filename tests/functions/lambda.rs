//! Each Lambda binary behind a runtime API, with the events of a REST API.

use operator_service::config::DatabaseUse;
use operator_service::runtime;
use reqwest::Method;
use serde_json::json;

use crate::child::{Directory, Env, run_program, stderr};
use crate::fixture::{OWNER, finished, hosts, output, parts};
use crate::origin::{Answer as File, Origin};
use crate::runtime_api::{Event, Function, Outcome, lambda};
use crate::support::caller::{brizo, ocean_node, provider};
use crate::support::{Call, ClosedPort, Cluster, Key, TestDatabase, agreement_id, nonce, workflow};

const COMPUTE: &str = env!("CARGO_BIN_EXE_compute");
const RESULTS: &str = env!("CARGO_BIN_EXE_results");
const ENVIRONMENTS: &str = env!("CARGO_BIN_EXE_environments");
const ADMIN: &str = env!("CARGO_BIN_EXE_admin");
const DOCS: &str = env!("CARGO_BIN_EXE_docs");
const MIGRATE: &str = env!("CARGO_BIN_EXE_migrate");

/// A cluster, and the variables with which a process finds it. The directory holds the kubeconfig.
async fn cluster(env: Env) -> (Cluster, Directory, Env) {
    let cluster = Cluster::start().await;
    let directory = Directory::new();
    let env = env.with_cluster(&cluster, &directory).with("DEFAULT_NAMESPACE", cluster.namespace.as_str());
    (cluster, directory, env)
}

// compute

#[tokio::test]
async fn compute_starts_shows_stops_and_deletes_a_job() {
    let (database, key, env) = parts().await;
    let (cluster, _kubeconfig, env) = cluster(env).await;
    let namespace = cluster.namespace.clone();
    database.announce(&namespace, "{}").await;
    let function = Function::start(COMPUTE, &env).await;

    let agreement = agreement_id();
    let started = function.call(&provider(&key).start(&namespace, &agreement, OWNER, workflow::sample())).await.ok();
    let job_id = started[0]["jobId"].as_str().unwrap();
    assert_eq!(started[0]["status"], 1);
    assert_eq!(started[0]["agreementId"], json!(agreement));
    assert_eq!(database.job(job_id).await.unwrap()["provider"], json!(key.address.to_lowercase()));
    assert!(cluster.workflow(&namespace, job_id).await.is_some());

    let status = function.call(&provider(&key).status(OWNER, Some(job_id))).await.ok();
    assert_eq!(status[0]["jobId"], json!(job_id));
    let running = function.call(&Call::get("runningjobs")).await.ok();
    assert_eq!(running[0]["jobId"], json!(job_id));
    assert_eq!(running[0]["chainId"], 8996);

    let stopped = function.call(&provider(&key).stop(OWNER, Some(job_id))).await.ok();
    assert_eq!(stopped[0]["stopreq"], 1);
    let deleted = function.call(&provider(&key).delete(OWNER, Some(job_id))).await.ok();
    assert_eq!(deleted[0]["removed"], 1);
}

#[tokio::test]
async fn compute_takes_bodies_in_base64_of_every_caller() {
    let (database, key, env) = parts().await;
    database.announce("ocean-compute", "{}").await;
    let function = Function::start(COMPUTE, &env).await;
    for call in [
        provider(&key).start("ocean-compute", &agreement_id(), OWNER, workflow::sample()),
        ocean_node(&key).start("ocean-compute", &agreement_id(), OWNER, workflow::of_ocean_node()),
        brizo(&key).start(&agreement_id(), OWNER, workflow::sample()),
    ] {
        let started = function.send(Event::of(&call).in_base64()).await.ok();
        let job_id = started[0]["jobId"].as_str().unwrap().to_owned();
        // Ocean Node's other requests have JSON bodies too, GET included.
        let status = ocean_node(&key).status(Some(OWNER), Some(&job_id), None);
        for event in [Event::of(&status), Event::of(&status).in_base64()] {
            assert_eq!(function.send(event).await.ok()[0]["jobId"], json!(job_id));
        }
        let stop = Event::of(&ocean_node(&key).stop(OWNER, Some(&job_id), None)).in_base64();
        assert_eq!(function.send(stop).await.ok()[0]["stopreq"], 1);
    }
}

/// A missing cluster delays no request and loses no job.
#[tokio::test]
async fn compute_accepts_jobs_without_a_cluster() {
    let (database, key, env) = parts().await;
    database.announce("ocean-compute", "{}").await;
    let function = Function::start(COMPUTE, &env).await;
    let call = provider(&key).start("ocean-compute", &agreement_id(), OWNER, workflow::sample());
    let started = function.call(&call).await.ok();
    let row = database.job(started[0]["jobId"].as_str().unwrap()).await.unwrap();
    assert_eq!(row["registered"], false);
}

#[tokio::test]
async fn a_stage_is_not_part_of_the_path_and_may_be_absent() {
    let (_database, _key, env) = parts().await;
    let function = Function::start(COMPUTE, &env).await;
    let event = || Event::of(&Call::get("runningjobs"));
    const PATH: &str = "/api/v1/operator/runningjobs";
    for event in [
        event(),
        event().through_custom_domain(),
        event().stage(None),
        event().stage(Some("$default")),
        // A stage that is also the beginning of the path, or looks like it.
        event().stage(Some("api")),
        event().stage(Some("v1")),
        event().stage(Some("ap")),
        // A domain name with a base path; some put the stage there.
        event().path(&format!("/operator-service{PATH}")).through_custom_domain(),
        event().path(&format!("/Prod{PATH}")),
        // Brizo makes `//api` of a URL that ends in a slash.
        event().path(&format!("/{PATH}")),
        event().path("//api/v1//operator/runningjobs").through_custom_domain(),
        event().path("/api/v1/operator/runningjobs/"),
        event().with_single_values_only(),
        event().with_multiple_values_only(),
    ] {
        let answer = function.send(event.clone()).await;
        assert_eq!((answer.status, answer.text()), (200, "[]"), "{event:?}");
    }
}

#[tokio::test]
async fn a_stage_may_be_ignored_by_the_runtime() {
    let (_database, _key, env) = parts().await;
    for variable in ["true", "false"] {
        let env = env.clone().with("AWS_LAMBDA_HTTP_IGNORE_STAGE_IN_PATH", variable);
        let function = Function::start(COMPUTE, &env).await;
        let event = Event::of(&Call::get("runningjobs"));
        assert_eq!(function.send(event.clone()).await.ok(), json!([]));
        assert_eq!(function.send(event.through_custom_domain()).await.ok(), json!([]));
    }
}

/// API Gateway has percent-decoded query values once; they are not decoded again.
#[tokio::test]
async fn query_values_are_not_decoded_again() {
    let (database, _key, env) = parts().await;
    let function = Function::start(COMPUTE, &env.with("SIGNATURE_REQUIRED", "0")).await;
    for owner in ["a b+c", "100%", "%41%42", "a&b=c?d#e", "\"quoted\"", "a/b;c,d"] {
        let job = crate::support::Stored { owner: Some(owner.to_owned()), ..Default::default() };
        let job_id = job.insert(&database).await.job_id;
        let call = Call::get("compute").with("owner", owner);
        for event in
            [Event::of(&call), Event::of(&call).with_single_values_only(), Event::of(&call).with_multiple_values_only()]
        {
            assert_eq!(function.send(event.clone()).await.ok()[0]["jobId"], json!(job_id), "{event:?}");
        }
    }
}

/// As everywhere else, the first of several values of a name is used.
#[tokio::test]
async fn of_several_values_of_a_name_the_first_is_used() {
    let (database, _key, env) = parts().await;
    let function = Function::start(COMPUTE, &env.with("SIGNATURE_REQUIRED", "0")).await;
    let first = crate::support::Stored::default().insert(&database).await;
    let mut event = Event::of(&Call::get("compute").with("jobId", "second"));
    event.0["multiValueQueryStringParameters"] = json!({ "jobId": [first.job_id, "second"] });
    assert_eq!(function.send(event).await.ok()[0]["jobId"], json!(first.job_id));
}

#[tokio::test]
async fn without_query_and_body_there_are_no_parameters() {
    let (_database, _key, env) = parts().await;
    let function = Function::start(COMPUTE, &env).await;
    let post = Call::new(Method::POST, "compute");
    function.call(&post).await.is_error(400, "payload seems empty.");
    let mut empty = Event::of(&post);
    empty.0["body"] = json!("");
    empty.0["queryStringParameters"] = json!({});
    empty.0["multiValueQueryStringParameters"] = json!({});
    function.send(empty).await.is_error(400, "payload seems empty.");
    function.call(&Call::get("compute")).await.is_error(400, "You have to specify one of agreementId, jobId or owner");
}

#[tokio::test]
async fn errors_are_responses_and_the_function_keeps_running() {
    let (database, key, env) = parts().await;
    database.announce("ocean-compute", "{}").await;
    let mut function = Function::start(COMPUTE, &env).await;

    let body = Call::new(Method::POST, "compute").body("{\"workflow\": ");
    assert_eq!(function.call(&body).await.error().0, 400);
    let huge = Call::post("compute").with("workflow", "x".repeat(400 * 1024));
    assert_eq!(function.call(&huge).await.error().0, 413);
    assert_eq!(function.send(Event::of(&huge).in_base64()).await.error().0, 413);
    let mut not_utf8 = Event::of(&Call::new(Method::POST, "compute"));
    (not_utf8.0["body"], not_utf8.0["isBase64Encoded"]) = (json!("//79"), json!(true));
    assert_eq!(function.send(not_utf8).await.error().0, 400);
    assert_eq!(function.call(&Call::get("nothing")).await.error().0, 404);
    // Other groups of routes have functions of their own.
    assert_eq!(function.call(&Call::get("environments")).await.error().0, 404);
    assert_eq!(function.call(&Call::get("compute").method(Method::PATCH)).await.error().0, 405);
    let stranger = Key::new();
    let call = provider(&stranger).start("ocean-compute", &agreement_id(), OWNER, workflow::sample());
    assert_eq!(function.call(&call).await.error().0, 401);

    // An event that is not of a REST API fails the invocation only.
    for event in [json!({}), json!({ "source": "aws.events" }), json!(null)] {
        match function.invoke(event).whole().await {
            Outcome::Failed(why) => assert!(why["errorType"].is_string(), "{why}"),
            Outcome::Answer(answer) => assert!(answer.status >= 400, "{answer:?}"),
            other => panic!("{other:?}"),
        }
    }

    let call = provider(&key).start("ocean-compute", &agreement_id(), OWNER, workflow::sample());
    function.call(&call).await.ok();
    assert!(function.process.is_running());
}

#[tokio::test]
async fn an_unreachable_database_is_a_503_and_the_function_keeps_running() {
    let (_database, _key, env) = parts().await;
    let closed = ClosedPort::new();
    let env = env.with("POSTGRES_PORT", closed.to_string()).with("POSTGRES_PASSWORD", "the-password");
    for binary in [COMPUTE, ENVIRONMENTS] {
        let operation = if binary == COMPUTE { "runningjobs" } else { "environments" };
        let mut function = Function::start(binary, &env).await;
        for _ in 0..2 {
            assert_eq!(function.call(&Call::get(operation)).await.error().0, 503);
        }
        assert!(function.process.is_running());
    }
}

#[tokio::test]
async fn cors_allows_every_origin_except_on_admin_routes() {
    let (_database, _key, env) = parts().await;
    let preflight = |operation: &str| {
        Call::new(Method::OPTIONS, operation)
            .header("origin", "https://example.org")
            .header("access-control-request-method", "PUT")
            .header("access-control-request-headers", "content-type, admin")
    };
    let function = Function::start(COMPUTE, &env).await;
    let answer = function.call(&preflight("compute")).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, "*"));
    assert!(answer.header("access-control-allow-methods").contains("PUT"));
    let answer = function.call(&Call::get("runningjobs").header("origin", "https://example.org")).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, "*"));

    let function = Function::start(ADMIN, &env.with("ALLOWED_ADMINS", r#"["secret"]"#)).await;
    for call in [preflight("list"), Call::get("list").header("origin", "https://example.org").header("admin", "secret")]
    {
        let answer = function.call(&call).await;
        let names: Vec<_> = answer.headers.keys().filter(|name| name.as_str().starts_with("access-control")).collect();
        assert!(names.is_empty(), "{names:?}");
    }
}

// environments

#[tokio::test]
async fn environments_shows_what_was_announced() {
    let (database, _key, env) = parts().await;
    database.announce("one", r#"{"cpuNumber": 8, "allowedChainId": [1, 8996]}"#).await;
    database.announce("two", r#"{"cpuNumber": 4, "allowedChainId": ["137"]}"#).await;
    let function = Function::start(ENVIRONMENTS, &env).await;
    let ids = async |call: &Call| -> Vec<String> {
        let found = function.call(call).await.ok();
        found.as_array().unwrap().iter().map(|found| found["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&Call::get("environments")).await, ["one", "two"]);
    assert_eq!(ids(&Call::get("environments").with("chainId", 8996)).await, ["one"]);
    assert_eq!(ids(&Call::get("environments").with("chain_id", "137")).await, ["two"]);
}

// admin

#[tokio::test]
async fn admin_refuses_every_request_if_no_admins_are_configured() {
    let (_database, _key, env) = parts().await;
    let function = Function::start(ADMIN, &env).await;
    for (method, operation) in
        [(Method::GET, "list"), (Method::GET, "info"), (Method::GET, "logs"), (Method::POST, "pgsqlinit")]
    {
        let call = Call::new(method, operation);
        // Neither a loopback name nor an empty header is accepted.
        let mut local = Event::of(&call);
        local.0["headers"]["Host"] = json!("localhost:8050");
        local.0["multiValueHeaders"]["Host"] = json!(["localhost:8050"]);
        for event in [Event::of(&call), local, Event::of(&call.clone().header("admin", ""))] {
            let answer = function.send(event).await;
            assert_eq!((answer.status, answer.text()), (400, "Admin header is empty.\nstatus code: 400"));
        }
        let answer = function.call(&call.header("admin", "somebody")).await;
        let text = "Access admin route failed due to invalid admin address.\nstatus code: 401";
        assert_eq!((answer.status, answer.text()), (401, text));
    }
}

#[tokio::test]
async fn admin_accepts_the_configured_admins() {
    let database = TestDatabase::empty().await;
    let (cluster, _kubeconfig, env) = cluster(Env::of(database.variables())).await;
    let env = env.with("ALLOWED_ADMINS", r#"["0xAdmin", "other"]"#);
    let function = Function::start(ADMIN, &env).await;
    let namespace = cluster.namespace.clone();
    for _ in 0..2 {
        let answer = function.call(&Call::new(Method::POST, "pgsqlinit").header("admin", "0xADMIN")).await;
        assert_eq!((answer.status, answer.text()), (200, ""));
    }
    assert_eq!(database.count("jobs").await, 0);

    let admin = |operation: &str| Call::get(operation).header("Admin", "0xadmin");
    cluster.make_workflow(&namespace, "9f9178dcffd34130a3158ce9ca3d15ff").await;
    let names = function.call(&admin("list")).await.ok();
    assert_eq!(names, json!(["9f9178dcffd34130a3158ce9ca3d15ff"]));
    let info = function.call(&admin("info").with("jobId", "9f9178dcffd34130a3158ce9ca3d15ff")).await.ok();
    assert_eq!(info["metadata"]["name"], "9f9178dcffd34130a3158ce9ca3d15ff");
    let unknown = function.call(&admin("info").with("jobId", "unknown-job")).await;
    assert_eq!(unknown.text(), "The jobId unknown-job is not registered in your namespace.");
    let logs = admin("logs").with("jobId", "9f9178dcffd34130a3158ce9ca3d15ff").with("component", "algorithm");
    let answer = function.call(&logs).await;
    let text = "Pod with workflow=9f9178dcffd34130a3158ce9ca3d15ff and component=algorithm not found";
    assert_eq!((answer.status, answer.text()), (404, text));
    let answer = function.call(&Call::get("list").header("admin", "0xadmi")).await;
    assert_eq!(answer.status, 401);
}

// docs

#[tokio::test]
async fn docs_needs_no_database() {
    let function = Function::start(DOCS, &Env::default().with("OPERATOR_ADDRESS", "0xabc")).await;
    let root = function.send(Event::of(&Call::to_path(Method::GET, "/"))).await.ok();
    assert_eq!(root["software"], "Operator service");
    assert_eq!(root["address"], "0xabc");
    assert_eq!((&root["algoTimeLimit"], &root["storageExpiry"]), (&json!(null), &json!(null)));
    let root = function.send(Event::of(&Call::to_path(Method::GET, "/")).through_custom_domain()).await;
    assert_eq!(root.status, 200);
    let spec = function.call(&Call::to_path(Method::GET, "/spec")).await.ok();
    assert!(spec["openapi"].as_str().unwrap().starts_with("3.1"), "{spec}");

    let page = function.call(&Call::to_path(Method::GET, "/api/v1/docs/")).await;
    assert_eq!(page.status, 200);
    assert!(page.header("content-type").starts_with("text/html"));
    let mut files = Vec::new();
    for attribute in ["src=\"", "href=\""] {
        files.extend(page.text().split(attribute).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()));
    }
    assert!(files.len() >= 4, "{files:?}");
    for file in files {
        assert!(!file.contains("//"), "{file} is on another site");
        let path = format!("/api/v1/docs/{}", file.trim_start_matches("./"));
        let answer = function.call(&Call::to_path(Method::GET, &path)).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(!answer.body.is_empty(), "{path}");
        if path.ends_with(".png") {
            assert!(answer.body.starts_with(b"\x89PNG"), "{path} was changed on the way");
        }
    }
    let answer = function.call(&Call::to_path(Method::GET, "/api/v1/docs")).await;
    assert_eq!((answer.status, answer.header("location")), (308, "docs/index.html"));
    assert_eq!(function.call(&Call::to_path(Method::GET, "/api/v1/docs/nothing.js")).await.error().0, 404);
}

// All

/// The test binary is the function: no route of the real ones panics.
#[test]
fn a_panic_is_a_500_and_the_function_keeps_running() {
    const NAME: &str = "lambda::a_panic_is_a_500_and_the_function_keeps_running";
    if std::env::var_os("AWS_LAMBDA_RUNTIME_API").is_some() {
        let routes = |_| {
            let panics = axum::routing::get(async || -> &'static str { panic!("the-reason") });
            let works = axum::routing::get(async || "hello");
            Ok(axum::Router::new().route("/api/v1/panics", panics).route("/api/v1/works", works))
        };
        match std::env::var_os("STREAMING") {
            None => runtime::run(runtime::lambda::run_router(DatabaseUse::Optional, routes)),
            Some(_) => runtime::run(runtime::lambda::run_streaming(DatabaseUse::Optional, routes)),
        };
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let this = std::env::current_exe().unwrap();
        for env in [Env::default(), Env::default().with("STREAMING", "1")] {
            let arguments = ["--exact", NAME, "--nocapture"];
            let mut function = Function::start_with(&this, &arguments, &env, crate::LIMIT).await;
            for _ in 0..2 {
                let answer = function.call(&Call::to_path(Method::GET, "/api/v1/panics")).await;
                answer.is_error(500, "An internal error occurred; it has been logged");
            }
            assert_eq!(function.call(&Call::to_path(Method::GET, "/api/v1/works")).await.text(), "hello");
            assert!(function.process.is_running());
            assert!(function.process.output().contains("a handler panicked"), "{}", function.process.output());
        }
    });
}

#[tokio::test]
async fn a_wrong_configuration_ends_the_function_with_one_message_that_names_every_variable() {
    let nowhere = "127.0.0.1:9".parse().unwrap();
    let env = lambda(
        &Env::default().and(&[
            ("POSTGRES_PORT", "many"),
            ("SIGNATURE_REQUIRED", "yes"),
            ("NONCE_WINDOW", "-1"),
            ("ALGO_POD_TIMEOUT", "1h"),
            ("RESULT_HOSTS_ALLOWED", "[\"http://a/b\"]"),
            ("LOG_LEVEL", "a=b=c"),
            // For one's own machine only.
            ("LOCAL_ADMIN", "1"),
        ]),
        nowhere,
    );
    let everywhere =
        ["SIGNATURE_REQUIRED", "NONCE_WINDOW", "ALGO_POD_TIMEOUT", "RESULT_HOSTS_ALLOWED", "LOG_LEVEL", "LOCAL_ADMIN"];
    let of_database = ["POSTGRES_HOST", "POSTGRES_DB", "POSTGRES_USER", "POSTGRES_PORT"];
    for binary in [COMPUTE, RESULTS, ENVIRONMENTS, ADMIN, DOCS, MIGRATE] {
        let output = run_program(binary, &[], &env).await;
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{binary}: {message}");
        assert_eq!(message.lines().count(), 1, "{binary}: {message}");
        let named = everywhere.iter().chain(of_database.iter().filter(|_| binary != DOCS));
        for name in named {
            assert!(message.contains(name), "{binary} does not name {name}: {message}");
        }
    }
}

#[tokio::test]
async fn logs_are_json_and_contain_no_event() {
    let (database, key, env) = parts().await;
    let origin = Origin::start().await;
    origin.answer("/the-path/out.txt", File::file("hello"));
    database.announce("ocean-compute", "{}").await;
    let env = env.with("LOG_LEVEL", "trace").with("RESULT_HOSTS_ALLOWED", hosts(&[&origin.address.to_string()]));
    let compute = Function::start(COMPUTE, &env).await;
    let mut workflow = workflow::sample();
    workflow["stages"][0]["algorithm"]["rawcode"] = json!("print('the-raw-code')");
    workflow["stages"][0]["input"][0]["url"] = json!(["https://example.org/the-data-url"]);
    let start = provider(&key).start("ocean-compute", &agreement_id(), OWNER, workflow);
    compute.call(&start).await.ok();
    compute.call(&provider(&key).status(OWNER, None).with("unknown", nonce())).await.ok();

    let results = Function::start(RESULTS, &env).await;
    let [found, missing] = ["out.txt", "missing"].map(|name| {
        let url = format!("http://user:the-password@{}/the-path/{name}?token=the-token", origin.address);
        finished(&key, &output(&url))
    });
    let found = provider(&key).result(OWNER, &found.insert(&database).await.job_id, 0);
    let missing = provider(&key).result(OWNER, &missing.insert(&database).await.job_id, 0);
    assert_eq!(results.call(&found).await.text(), "hello");
    assert_eq!(results.call(&missing).await.error().0, 502);

    let output = compute.process.output() + &results.process.output();
    assert!(output.matches("answered").count() >= 4, "{output}");
    for line in output.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    let signatures = [start, found, missing].map(|call| call.text("providerSignature")[2..].to_owned());
    let planted = ["the-raw-code", "the-data-url", "the-password", "the-path", "the-token"].map(str::to_owned);
    for secret in signatures.iter().chain(&planted) {
        assert!(!output.contains(secret), "{secret} is in {output}");
    }
}
