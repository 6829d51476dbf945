//! What applies to every route: paths, methods, CORS, bodies.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::given::{start, status_of};
use crate::support::{Answer, App, Call, Key, Stored, agreement_id, caller, owner, workflow};

const LIMIT: usize = 400 * 1024;

#[tokio::test]
async fn repeated_slashes_count_as_one() {
    let app = App::start().await;
    let job = Stored::default().insert(&app.database).await;
    for path in [
        "//api/v1/operator/compute",
        "/api//v1/operator//compute",
        "///api///v1///operator///compute",
        "/Prod//api/v1/operator/compute",
        "//Prod/api/v1/operator/compute",
    ] {
        let call = Call::to_path(Method::GET, path).with("jobId", job.job_id.clone());
        assert_eq!(app.send(call).await.ok(), json!([status_of(&job)]), "{path}");
    }
}

#[tokio::test]
async fn a_stage_prefix_makes_no_difference() {
    let key = Key::new();
    let app = App::builder().var("SIGNATURE_REQUIRED", "1").var("ALLOWED_PROVIDERS", key.allowed()).start().await;
    for prefix in ["/Prod", "/a/b", "/api", "/v1"] {
        let call = start(&app, &key);
        app.send_under(call, prefix).await.ok();
        app.send_under(caller::provider(&key).stop(&owner(), None), prefix).await.ok();
        app.send_under(Call::get("environments"), prefix).await.ok();
        app.send_under(Call::get("list"), prefix).await.ok();
    }
}

/// As behind API Gateway, where the stage is not part of the path that a function receives.
#[tokio::test]
async fn a_stage_prefix_alone_shows_the_services_own_page() {
    let app = App::start().await;
    let get = async |path: &str| app.send(Call::to_path(Method::GET, path)).await;
    let (own, spec) = (get("/").await.ok(), get("/spec").await.ok());
    for prefix in ["/Prod", "/Prod/", "//Prod//", "/v1", "/my-stage_2/"] {
        assert_eq!(get(prefix).await.ok(), own, "{prefix}");
    }
    for path in ["/Prod/spec", "/Prod/spec/", "/a/b/spec"] {
        assert_eq!(get(path).await.ok(), spec, "{path}");
    }
    let page = get("/Prod/api/v1/docs/").await;
    assert_eq!((page.status, page.body), (200, get("/api/v1/docs/").await.body));
}

#[tokio::test]
async fn an_unknown_route_is_a_404_in_json() {
    let app = App::start().await;
    for path in [
        "/nothing.html",
        "/Prod/nothing",
        "/Prod/nothing/",
        "/api",
        "/api/",
        "/api/v1",
        "/api/v1/operator",
        "/api/v1/operator/nothing",
        "/api/v1/operator/compute/more",
        "/api/v1/operator/Compute",
        "/api/v2/operator/compute",
        "/operator/compute",
        "/%00",
        "/api/v1/operator/%63ompute%2f",
    ] {
        let answer = app.send(Call::to_path(Method::GET, path)).await;
        assert_eq!(answer.error().0, 404, "{path}");
    }
}

#[tokio::test]
async fn a_wrong_method_is_a_405_in_json() {
    let app = App::start().await;
    for (method, operation) in [
        (Method::PATCH, "compute"),
        (Method::POST, "runningjobs"),
        (Method::POST, "getResult"),
        (Method::DELETE, "environments"),
        (Method::PUT, "list"),
    ] {
        let answer = app.send(Call::new(method.clone(), operation)).await;
        assert_eq!(answer.error().0, 405, "{method} {operation}");
        assert!(!answer.header("allow").is_empty());
    }
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let app = App::start().await;
    let answer = app.send(Call::new(Method::HEAD, "environments")).await;
    assert_eq!((answer.status, answer.body.len()), (200, 0));
}

#[tokio::test]
async fn pages_of_any_origin_may_call() {
    let app = App::start().await;
    let job = Stored::default().insert(&app.database).await;
    let origin = "https://page.example";
    let answer = app.send(Call::get("compute").with("jobId", job.job_id).header("origin", origin)).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, "*"));
    for call in [
        Call::get("compute"),
        Call::get("runningjobs"),
        Call::get("environments"),
        Call::get("getResult"),
        Call::to_path(Method::GET, "/"),
        Call::to_path(Method::GET, "/spec"),
        Call::to_path(Method::GET, "/api/v1/docs/"),
    ] {
        let answer = app.send(call.clone().header("origin", origin)).await;
        assert_eq!(answer.header("access-control-allow-origin"), "*", "{call:?} {}", answer.status);
    }
    for method in ["GET", "POST", "PUT", "DELETE"] {
        let preflight = Call::new(Method::OPTIONS, "compute")
            .header("origin", origin)
            .header("access-control-request-method", method)
            .header("access-control-request-headers", "content-type,range");
        let answer = app.send(preflight).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("access-control-allow-origin"), "*");
        let methods = answer.header("access-control-allow-methods");
        assert!(methods == "*" || methods.split(',').any(|allowed| allowed.trim() == method), "{methods}");
        let headers = answer.header("access-control-allow-headers").to_lowercase();
        assert!(headers == "*" || headers.contains("content-type"), "{headers}");
    }
    // No credentials of the visitor.
    assert_eq!(answer.header("access-control-allow-credentials"), "");
}

fn padded(length: usize) -> Vec<u8> {
    let without_padding = r#"{"jobId": "0123456789abcdef", "padding": ""}"#;
    let padding = "x".repeat(length - without_padding.len());
    without_padding.replace("\"\"}", &format!("\"{padding}\"}}")).into_bytes()
}

#[tokio::test]
async fn a_body_over_400_kib_is_a_413() {
    let app = App::start().await;
    assert_eq!(app.send(Call::get("compute").body(padded(LIMIT))).await.ok(), json!([]));
    for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE] {
        for length in [LIMIT + 1, 4 * LIMIT] {
            let call = Call::new(method.clone(), "compute").body(padded(length));
            assert_eq!(app.send(call).await.error().0, 413, "{method} {length}");
        }
    }
    // One that is valid in every other way.
    let key = Key::new();
    let mut workflow = workflow::sample();
    workflow["stages"][0]["algorithm"]["rawcode"] = "x".repeat(LIMIT).into();
    let call = caller::provider(&key).start(&app.namespace, &agreement_id(), &owner(), workflow);
    assert_eq!(app.send(call).await.error().0, 413);
    assert_eq!(app.database.count("jobs").await, 0);
}

#[tokio::test]
async fn a_body_over_400_kib_is_a_413_also_where_its_length_is_not_announced() {
    let app = App::start().await;
    let chunked = async |length: usize| {
        let chunks: Vec<_> =
            padded(length).chunks(10_000).map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec())).collect();
        let body = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks));
        Answer::of(app.client.post(app.op("compute")).body(body).send().await.unwrap()).await
    };
    chunked(LIMIT).await.is_error(400, r#""workflow" is required in the call to POST:/compute"#);
    assert_eq!(chunked(LIMIT + 1).await.error().0, 413);
}

#[tokio::test]
async fn a_content_length_over_the_limit_is_refused_before_the_body_arrives() {
    // Nothing of the body is waited for.
    let app = App::start().await;
    let address = app.url.trim_start_matches("http://");
    let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = "POST /api/v1/operator/compute HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000000\r\n\r\n";
    connection.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 12];
    let read = tokio::time::timeout(Duration::from_secs(5), connection.read_exact(&mut answer));
    read.await.expect("no answer in time").unwrap();
    assert_eq!(answer, b"HTTP/1.1 413");
}

#[tokio::test]
async fn a_malformed_body_is_a_400_that_says_where() {
    let app = App::start().await;
    for body in [
        "{",
        "}",
        "{\"owner\": }",
        "{\"owner\": \"ab\"",
        "{\"owner\": \"ab\"} trailing",
        "{'owner': 'ab'}",
        "{owner: 1}",
        "{\"owner\": \"\\ud800\"}",
        "{\"owner\": \"a\nb\"}",
        "{\"owner\": 01}",
        "{\"nonce\": 1.}",
        "owner=ab&nonce=1",
        "<html></html>",
        "\u{feff}{}",
    ] {
        for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE] {
            let answer = app.send(Call::new(method.clone(), "compute").body(body)).await;
            let (status, text) = answer.error();
            assert_eq!(status, 400, "{method} {body}");
            assert!(text.contains("JSON"), "{method} {body}: {text}");
        }
    }
    for operation in ["runningjobs", "getResult", "environments", "info", "list", "logs"] {
        assert_eq!(app.send(Call::get(operation).body("{")).await.error().0, 400, "{operation}");
    }
}

#[tokio::test]
async fn a_body_that_is_not_utf_8_is_a_400() {
    let app = App::start().await;
    for body in
        [&b"{\"owner\": \"\xff\xfe\"}"[..], b"\xff", b"\x80{}", b"{\"owner\": \"k\xe4se\"}", b"\0\0\0", b"\xc0\xaf"]
    {
        for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE] {
            assert_eq!(app.send(Call::new(method, "compute").body(body)).await.error().0, 400, "{body:?}");
        }
    }
}

#[tokio::test]
async fn a_deeply_nested_body_is_a_400_or_ignored() {
    let app = App::start().await;
    let depth = 100_000;
    let lists = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let objects = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    let key = Key::new();
    let start = start(&app, &key);
    let with_workflow = |workflow: String| {
        let placeholder = "\"the-workflow\"";
        let body = start.clone().with("workflow", "the-workflow").parameters().to_string();
        body.replace(placeholder, &workflow)
    };
    let in_stage = format!("{{\"stages\": [{{\"algorithm\": {}}}]}}", objects(50_000));
    for body in [
        lists(depth),
        objects(50_000),
        "[".repeat(LIMIT),
        "{\"a\":".repeat(80_000),
        format!("{{\"workflow\": {}}}", lists(depth)),
        with_workflow(lists(depth)),
        with_workflow(objects(50_000)),
        with_workflow(in_stage),
    ] {
        let (status, _) = app.send(Call::post("compute").body(body.clone())).await.error();
        assert!((400..500).contains(&status), "{status} {}…", &body[..40]);
    }
    // It is still there.
    app.send(start).await.ok();
}

#[tokio::test]
async fn a_workflow_that_is_nested_too_deeply_is_refused_and_not_stored() {
    let app = App::start().await;
    let key = Key::new();
    for depth in [20, 60, 100, 110, 120, 125, 130] {
        let mut deep = json!("bottom");
        for _ in 0..depth {
            deep = json!([deep]);
        }
        let mut workflow = workflow::sample();
        workflow["stages"][0]["algorithm"]["deep"] = deep;
        let call = caller::provider(&key).start(&app.namespace, &agreement_id(), &owner(), workflow);
        let answer = app.send(call).await;
        match answer.status {
            // What was accepted can be read again, by everybody.
            200 => {
                let job = answer.ok()[0].clone();
                assert_eq!(job["algoDID"], "did:op:5a1f", "{depth}");
                let found = app.send(Call::get("compute").with("jobId", job["jobId"].clone())).await.ok();
                assert_eq!(found, json!([job]), "{depth}");
            }
            _ => assert_eq!(answer.error().0, 400, "{depth}"),
        }
    }
}

#[tokio::test]
async fn escaped_names_in_json_are_read() {
    let app = App::start().await;
    let job = Stored::default().insert(&app.database).await;
    let body = format!(r#"{{"\u006aobId": "\u0030{}"}}"#, &job.job_id[1..]);
    let same = job.job_id.starts_with('0');
    let expected = if same { json!([status_of(&job)]) } else { json!([]) };
    assert_eq!(app.send(Call::get("compute").body(body)).await.ok(), expected);
    let body = format!(r#"{{"\u006aobId": "{}"}}"#, job.job_id);
    assert_eq!(app.send(Call::get("compute").body(body)).await.ok(), json!([status_of(&job)]));
}

#[tokio::test]
async fn a_body_is_read_whatever_its_content_type() {
    let app = App::start().await;
    let job = Stored::default().insert(&app.database).await;
    let body = json!({ "jobId": job.job_id }).to_string();
    for content_type in
        ["application/json", "application/json; charset=utf-8", "text/plain", "application/x-www-form-urlencoded"]
    {
        let call = Call::get("compute").body(body.clone()).header("content-type", content_type);
        assert_eq!(app.send(call).await.ok(), json!([status_of(&job)]), "{content_type}");
    }
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_a_408() {
    let app = App::start().await;
    let mut connection = tokio::net::TcpStream::connect(app.url.trim_start_matches("http://")).await.unwrap();
    let head = "POST /api/v1/operator/compute HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{";
    connection.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 12];
    let read = tokio::time::timeout(Duration::from_secs(29), connection.read_exact(&mut answer));
    read.await.expect("no answer in time").unwrap();
    assert_eq!(answer, b"HTTP/1.1 408");
}
