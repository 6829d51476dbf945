//! The line that each Lambda binary logs of a request, with its metrics (docs/metrics.md).

use std::collections::BTreeSet;

use operator_service::api::routes::ROUTES;
use reqwest::Method;
use serde_json::{Value, json};

use crate::fixture::{OWNER, finished, hosts, output, parts};
use crate::origin::{Answer as File, Origin};
use crate::runtime_api::{Event, Function, Outcome, TRACE};
use crate::support::Call;
use crate::support::caller::provider;

/// The lines with metrics that a function has printed so far.
fn lines(function: &Function) -> Vec<Value> {
    let output = function.process.output();
    let lines = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| !line["_aws"].is_null()).collect()
}

/// Sends a request twice. Asserts what every line has, and that the metrics are these; returns the lines.
async fn assert_lines(function: &Function, call: &Call, route: &str, status: u16, metrics: &[&str]) -> Vec<Value> {
    let mut ids = Vec::new();
    for _ in 0..2 {
        let reply = function.invoke(Event::of(call).0);
        ids.push(reply.id.clone());
        let Outcome::Answer(_) = reply.whole().await else { panic!("{}", function.process.output()) };
    }
    let lines = lines(function);
    assert_eq!(lines.len(), 2, "{}", function.process.output());
    for (number, (line, id)) in lines.iter().zip(ids).enumerate() {
        assert_eq!((&line["request_id"], &line["xray"]), (&json!(id), &json!(TRACE)));
        let about = ["FunctionName", "message", "method", "route"].map(|name| line[name].as_str().unwrap());
        assert_eq!(about, ["function", "answered", "GET", route]);
        assert!(line["milliseconds"].is_u64(), "{line}");
        let directive = &line["_aws"]["CloudWatchMetrics"][0];
        assert_eq!(directive["Namespace"], "OperatorService");
        let named = directive["Metrics"].as_array().unwrap().iter().map(|metric| metric["Name"].as_str().unwrap());
        assert_eq!(named.collect::<Vec<_>>(), metrics, "{route}");
        assert!(metrics.iter().all(|name| line[name].is_number()), "{line}");
        assert_eq!(line["ColdStarts"], if number == 0 { 1.0 } else { 0.0 });
    }
    assert_eq!(lines[0]["status"], status, "{}", lines[0]);
    assert_eq!(lines[0]["Errors"], if status >= 500 { 1.0 } else { 0.0 });
    lines
}

#[tokio::test]
async fn every_http_function_logs_each_request_with_its_metrics() {
    const PLAIN: [&str; 5] = ["Requests", "Errors", "Starts", "Stops", "ColdStarts"];
    const DATABASE: [&str; 6] = ["Requests", "Errors", "Starts", "Stops", "DatabaseLatency", "ColdStarts"];
    const CLUSTER: [&str; 7] =
        ["Requests", "Errors", "Starts", "Stops", "ClusterLatency", "DatabaseLatency", "ColdStarts"];
    let (database, key, env) = parts().await;
    let origin = Origin::start().await;
    origin.answer("/out.txt", File::file("hello"));
    let job = finished(&key, &output(&origin.url("/out.txt"))).insert(&database).await.job_id;
    let env = env
        .with("ALLOWED_ADMINS", "0xadmin")
        .with("RESULT_HOSTS_ALLOWED", hosts(&[&origin.address.to_string()]))
        // Nothing listens there.
        .with("KUBECONFIG", "/nowhere");
    // A function that is added to the table of routes has to be added here.
    for name in ROUTES.iter().map(|route| route.function).collect::<BTreeSet<_>>() {
        let (binary, call, route, status, metrics) = match name {
            "compute" => {
                let call = provider(&key).status(OWNER, Some(&job));
                (env!("CARGO_BIN_EXE_compute"), call, "/api/v1/operator/compute", 200, &DATABASE[..])
            }
            "results" => {
                let call = provider(&key).result(OWNER, &job, 0);
                (env!("CARGO_BIN_EXE_results"), call, "/api/v1/operator/getResult", 200, &DATABASE[..])
            }
            "environments" => {
                let call = Call::get("environments");
                (env!("CARGO_BIN_EXE_environments"), call, "/api/v1/operator/environments", 200, &DATABASE[..])
            }
            "admin" => {
                let call = Call::get("list").header("Admin", "0xadmin");
                (env!("CARGO_BIN_EXE_admin"), call, "/api/v1/operator/list", 503, &CLUSTER[..])
            }
            "docs" => (env!("CARGO_BIN_EXE_docs"), Call::to_path(Method::GET, "/"), "/", 200, &PLAIN[..]),
            other => panic!("what does the function {other} log?"),
        };
        let function = Function::start(binary, &env).await;
        let lines = assert_lines(&function, &call, route, status, metrics).await;
        if name == "results" {
            // The second has a used nonce.
            assert_eq!(lines[1]["status"], 400);
            assert!(lines.iter().all(|line| line["job"] == json!(job)), "{lines:?}");
        }
    }
}
