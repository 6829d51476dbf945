//! /, /spec, /api/v1/docs/. Swagger UI in a browser is in tests/functions.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use operator_service::api::routes::ROUTES;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, Call, python};

/// The routes in the OpenAPI document, by method in lower case and path: all but the pages of the documentation.
fn documented_routes() -> BTreeSet<(String, &'static str)> {
    let documented = ROUTES.iter().filter(|route| !route.path.starts_with("/api/v1/docs"));
    documented.map(|route| (route.method.to_lowercase(), route.path)).collect()
}

fn get(path: &str) -> Call {
    Call::to_path(Method::GET, path)
}

#[tokio::test]
async fn root_shows_version_and_settings() {
    let app = App::start().await;
    let expected = json!({
        "software": "Operator service",
        "version": env!("CARGO_PKG_VERSION"),
        "address": null,
        "algoTimeLimit": null,
        "storageExpiry": null
    });
    assert_eq!(app.send(get("/")).await.ok(), expected);

    let configured = app
        .another_process()
        .var("OPERATOR_ADDRESS", "0xC41808BBef371AD5CFc76466dDF9dEe228d2BdAA")
        .var("ALGO_POD_TIMEOUT", "3600")
        .var("STORAGE_EXPIRY", "604800")
        .start()
        .await;
    let expected = json!({
        "software": "Operator service",
        "version": env!("CARGO_PKG_VERSION"),
        "address": "0xC41808BBef371AD5CFc76466dDF9dEe228d2BdAA",
        "algoTimeLimit": "3600",
        "storageExpiry": "604800"
    });
    assert_eq!(configured.send(get("/")).await.ok(), expected);
}

#[tokio::test]
async fn root_and_spec_need_no_database() {
    let app = App::builder().var("POSTGRES_PORT", "1").start().await;
    app.send(get("/")).await.ok();
    app.send(get("/spec")).await.ok();
    assert_eq!(app.send(get("/api/v1/docs/")).await.status, 200);
}

#[tokio::test]
async fn spec_is_openapi_3_1() {
    let app = App::start().await;
    let spec = app.send(get("/spec")).await.ok();
    assert!(spec["openapi"].as_str().unwrap().starts_with("3.1"), "{}", spec["openapi"]);
    assert_eq!(spec["info"]["version"], env!("CARGO_PKG_VERSION"));

    let validate = "import json, sys; from openapi_spec_validator import OpenAPIV31SpecValidator as V; \
                    V(json.load(sys.stdin)).validate()";
    let mut python = Command::new(python())
        .args(["-c", validate])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("no Python: run `make test`");
    python.stdin.take().unwrap().write_all(spec.to_string().as_bytes()).unwrap();
    let done = python.wait_with_output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[tokio::test]
async fn spec_names_every_route_and_no_other() {
    let app = App::start().await;
    let spec = app.send(get("/spec")).await.ok();
    let mut named = BTreeSet::new();
    for (path, item) in spec["paths"].as_object().unwrap() {
        for method in ["get", "put", "post", "delete", "options", "head", "patch", "trace"] {
            if item.get(method).is_some() {
                named.insert((method.to_owned(), path.as_str()));
            }
        }
    }
    assert_eq!(named, documented_routes());
}

#[tokio::test]
async fn the_router_has_the_routes_of_the_table_and_no_other_methods() {
    let app = App::start().await;
    for path in ROUTES.iter().map(|route| route.path).collect::<BTreeSet<_>>() {
        for method in ["GET", "PUT", "POST", "DELETE", "PATCH"] {
            let call = Call::to_path(method.parse().unwrap(), &path.replace("{*file}", "index.html"));
            let status = app.send(call).await.status;
            let is_route = ROUTES.iter().any(|route| (route.method, route.path) == (method, path));
            assert_eq!(status != 404 && status != 405, is_route, "{method} {path}: {status}");
        }
    }
}

#[tokio::test]
async fn spec_describes_every_parameter_body_answer_and_error() {
    let app = App::start().await;
    let spec = app.send(get("/spec")).await.ok();
    let operation = |method: &str, path: &str| spec["paths"][format!("/api/v1/operator/{path}")][method].clone();
    let parameters = |operation: &Value| -> BTreeSet<String> {
        let list = operation["parameters"].as_array().cloned().unwrap_or_default();
        list.iter().map(|parameter| parameter["name"].as_str().unwrap().to_owned()).collect()
    };
    for (method, path, expected) in [
        ("get", "compute", vec!["agreementId", "jobId", "owner"]),
        ("put", "compute", vec!["owner", "providerSignature", "nonce", "jobId", "agreementId", "providerAddress"]),
        ("delete", "compute", vec!["owner", "providerSignature", "nonce", "jobId", "agreementId", "providerAddress"]),
        ("get", "runningjobs", vec!["limit", "offset"]),
        ("get", "getResult", vec!["owner", "providerSignature", "nonce", "index", "jobId"]),
        ("get", "environments", vec!["chainId"]),
        ("post", "pgsqlinit", vec!["Admin"]),
        ("get", "info", vec!["Admin", "jobId"]),
        ("get", "list", vec!["Admin", "environment"]),
        ("get", "logs", vec!["Admin", "jobId", "component"]),
    ] {
        let found = parameters(&operation(method, path));
        for name in expected {
            assert!(found.contains(name), "{method} {path}: {name} is not among {found:?}");
        }
    }
    let body = operation("post", "compute")["requestBody"]["content"]["application/json"]["schema"].clone();
    let body = match body["$ref"].as_str() {
        Some(reference) => spec.pointer(reference.trim_start_matches('#')).unwrap().clone(),
        None => body,
    };
    for name in [
        "workflow",
        "agreementId",
        "owner",
        "providerSignature",
        "environment",
        "nonce",
        "chainId",
        "validUntil",
        "providerAddress",
    ] {
        assert!(body["properties"].get(name).is_some(), "{name}");
    }
    for (method, path, expected) in [
        ("post", "compute", vec!["200", "400", "401", "413", "503"]),
        ("get", "compute", vec!["200", "400", "503"]),
        ("put", "compute", vec!["200", "400", "401", "503"]),
        ("delete", "compute", vec!["200", "400", "401", "503"]),
        ("get", "runningjobs", vec!["200", "400", "503"]),
        ("get", "getResult", vec!["200", "206", "400", "401", "404", "416", "502", "503", "504"]),
        ("get", "environments", vec!["200", "503"]),
        ("post", "pgsqlinit", vec!["200", "400", "401", "503"]),
        ("get", "info", vec!["200", "400", "401", "503"]),
        ("get", "list", vec!["200", "400", "401", "503"]),
        ("get", "logs", vec!["200", "400", "401", "404", "503"]),
    ] {
        let responses = operation(method, path)["responses"].clone();
        for status in expected {
            assert!(responses.get(status).is_some(), "{method} {path}: no {status}");
        }
    }
    // Every reference leads somewhere.
    let text = spec.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1) {
        let pointer = reference.split('"').next().unwrap();
        assert!(spec.pointer(pointer).is_some(), "{pointer}");
    }
}

/// The schema that a schema refers to.
fn resolved<'a>(spec: &'a Value, schema: &'a Value) -> &'a Value {
    let reference = schema["$ref"].as_str();
    // An optional one is a choice between null and a reference.
    let reference = reference.or_else(|| schema["oneOf"].as_array()?.iter().find_map(|choice| choice["$ref"].as_str()));
    reference.map_or(schema, |reference| spec.pointer(reference.trim_start_matches('#')).unwrap())
}

/// The example of a parameter or of a property, else that of its schema, else its default.
fn example<'a>(spec: &'a Value, described: &'a Value) -> &'a Value {
    let schema = resolved(spec, described.get("schema").unwrap_or(described));
    let candidates = [&described["example"], &described["examples"][0], &schema["example"], &schema["examples"][0]];
    let found = candidates.into_iter().chain([&schema["default"]]).find(|example| !example.is_null());
    found.unwrap_or(&schema["enum"][0])
}

#[tokio::test]
async fn every_example_of_the_spec_is_accepted() {
    let app = App::builder().var("ALLOWED_ADMINS", r#"["0xadmin"]"#).unannounced().start().await;
    app.database.announce("ocean-compute", "{}").await;
    let spec = app.send(get("/spec")).await.ok();
    // Each list of parameters and each body, with all their examples at once and with each of the examples alone
    // missing.
    let (mut sent, mut examples) = (Vec::new(), 0);
    for (method, path) in documented_routes() {
        let operation = &spec["paths"][path][&method];
        let call = || Call::to_path(method.to_uppercase().parse().unwrap(), path).header("Admin", "0xadmin");
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        let in_query: Vec<&Value> = parameters.filter(|parameter| parameter["in"] == "query").collect();
        let query = in_query.iter().fold(call(), |call, parameter| {
            let value = example(&spec, parameter);
            assert!(!value.is_null(), "{method} {path}: no example of {parameter}");
            call.with(parameter["name"].as_str().unwrap(), value.clone())
        });
        examples += in_query.len();
        sent.push(query.clone().in_query());
        sent.push(query.in_body());

        let body = resolved(&spec, &operation["requestBody"]["content"]["application/json"]["schema"]);
        let whole = body["example"].as_object().cloned();
        let properties = body["properties"].as_object().into_iter().flatten();
        let mut properties: Vec<(String, Value)> = properties
            .map(|(name, property)| (name.clone(), example(&spec, property).clone()))
            .filter(|(_, value)| !value.is_null())
            .collect();
        examples += properties.len();
        properties.extend(whole.into_iter().flatten());
        sent.push(properties.into_iter().fold(call().in_body(), |call, (name, value)| call.with(&name, value)));
    }
    assert!(examples > 40, "{examples}");
    for call in sent {
        let answer = app.send(call.clone()).await;
        let text = answer.text();
        // Without parameters, those that need some answer so; a nonce that was used before was read.
        let read = call.parameters() == json!({}) || text.contains("Invalid signature expected nonce");
        let read = read || text.contains("not registered") || answer.status != 400;
        assert!(read, "{call:?}: {} {text}", answer.status);
    }
}

/// Brizo alone may leave out nonce and environment (docs/contract/callers.md, "How Brizo is recognized").
#[tokio::test]
async fn what_every_caller_but_brizo_must_send_is_documented_as_required() {
    let app = App::start().await;
    let spec = app.send(get("/spec")).await.ok();
    let operation = |method: &str| &spec["paths"]["/api/v1/operator/compute"][method];
    for method in ["put", "delete"] {
        let parameters = operation(method)["parameters"].as_array().unwrap();
        let required = parameters.iter().filter(|parameter| parameter["required"] == true);
        let required: Vec<&str> = required.map(|parameter| parameter["name"].as_str().unwrap()).collect();
        assert_eq!(required, ["owner", "providerSignature", "nonce"], "{method}");
        let body = resolved(&spec, &operation(method)["requestBody"]["content"]["application/json"]["schema"]);
        assert_eq!(body["required"], json!(["owner", "providerSignature", "nonce"]), "{method}");
        assert_eq!(operation(method)["requestBody"].get("required").unwrap_or(&json!(false)), false, "{method}");
    }
    let body = resolved(&spec, &operation("post")["requestBody"]["content"]["application/json"]["schema"]);
    assert_eq!(
        body["required"],
        json!(["workflow", "agreementId", "owner", "providerSignature", "environment", "nonce"])
    );
}

#[tokio::test]
async fn the_server_is_relative_so_that_it_is_right_behind_a_stage() {
    let app = App::start().await;
    let spec = app.send(get("/spec")).await.ok();
    for server in spec["servers"].as_array().unwrap() {
        let url = server["url"].as_str().unwrap();
        assert!(!url.contains("://") && !url.starts_with('/'), "{url}");
        let base = url::Url::parse("https://host.example/Prod/spec").unwrap().join(url).unwrap();
        assert_eq!(base.as_str(), "https://host.example/Prod/");
    }
}

#[tokio::test]
async fn docs_are_served_from_the_binary() {
    let app = App::start().await;
    let page = app.send(get("/api/v1/docs/")).await;
    assert_eq!(page.status, 200);
    assert!(page.header("content-type").starts_with("text/html"), "{}", page.header("content-type"));
    // Nothing from another site, and nothing from this one's root.
    let mut files = Vec::new();
    for attribute in ["src=\"", "href=\""] {
        files.extend(page.text().split(attribute).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()));
    }
    assert!(files.len() >= 3, "{files:?}");
    for file in files {
        assert!(!file.contains("//") && !file.starts_with('/'), "{file}");
        let answer = app.send(get(&format!("/api/v1/docs/{}", file.trim_start_matches("./")))).await;
        assert_eq!(answer.status, 200, "{file}");
        assert!(!answer.body.is_empty(), "{file}");
    }
    let without_slash = app.send(get("/api/v1/docs")).await;
    assert!((301..=308).contains(&without_slash.status), "{}", without_slash.status);
    let to = url::Url::parse("https://host.example/Prod/api/v1/docs").unwrap().join(without_slash.header("location"));
    let to = to.unwrap();
    assert!(to.as_str().starts_with("https://host.example/Prod/api/v1/docs/"), "{to}");
    assert_eq!(app.send(get(to.path())).await.text(), page.text());
    assert_eq!(app.send(get("/api/v1/docs/nothing.js")).await.error().0, 404);
    assert_eq!(app.send(get("/api/v1/docs/..%2f..%2fCargo.toml")).await.error().0, 404);
}

#[tokio::test]
async fn documentation_works_behind_a_stage() {
    let app = App::start().await;
    let spec = app.send(get("/spec")).await.ok();
    assert_eq!(app.send_under(get("/spec"), "/Prod").await.ok(), spec);
    assert_eq!(app.send_under(get("/api/v1/docs/"), "/Prod").await.status, 200);
    assert_eq!(app.send_under(get("/api/v1/docs/index.html"), "/Prod").await.status, 200);
}
