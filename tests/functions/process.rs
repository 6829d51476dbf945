//! `operator-service` as a process: how it starts, what it logs, how it ends; its other subcommands.

use std::sync::Arc;

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::child::{Env, OPERATOR_SERVICE, Process, Service, run, stderr};
use crate::fixture::{Fixture, get, hosts, parts};
use crate::origin::{Answer as File, Origin};
use crate::support::{Answer, Call, ClosedPort, TestDatabase, client, eventually};

// serve

#[tokio::test]
async fn serve_has_every_route() {
    let (_database, _key, env) = parts().await;
    let service = Service::start(&env).await;
    for (path, status) in [
        ("/", 200),
        ("/spec", 200),
        ("/api/v1/docs/", 200),
        ("/api/v1/operator/environments", 200),
        ("/api/v1/operator/runningjobs", 200),
        ("/api/v1/operator/compute", 400),
        ("/api/v1/operator/getResult", 400),
        ("/api/v1/operator/info", 400),
        ("//api/v1//operator/runningjobs", 200),
        // Under the prefix of a stage, as the functions have it.
        ("/Prod/api/v1/operator/runningjobs", 200),
        ("/Prod", 200),
        ("/Prod/", 200),
        ("/Prod/spec", 200),
        ("/Prod/api/v1/docs/", 200),
        ("/Prod/nothing", 404),
        ("/nothing.html", 404),
    ] {
        assert_eq!(get(&service, path).await.status, status, "{path}");
    }
}

/// `curl http://localhost:8050/api/v1/operator/list` works as the README shows, and a page in the user's browser cannot
/// do the same through a name that resolves to this machine.
#[tokio::test]
async fn with_local_admin_the_admin_routes_are_open_to_loopback_names() {
    let (_database, _key, env) = parts().await;
    let service = Service::start(&env.with("LOCAL_ADMIN", "1")).await;
    let output = service.process.output();
    assert!(output.lines().any(|line| line.contains("WARN") && line.contains("LOCAL_ADMIN")), "{output}");
    let list = async |host: &str| {
        let request = client().get(service.url("/api/v1/operator/list")).header("host", host);
        request.send().await.unwrap().status().as_u16()
    };
    let port = service.address.port();
    // Accepted: a 503, because there is no cluster.
    for host in
        [format!("localhost:{port}"), format!("127.0.0.1:{port}"), "localhost".to_owned(), "[::1]:80".to_owned()]
    {
        assert_eq!(list(&host).await, 503, "{host}");
    }
    for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "192.168.1.2:8050", "evil:8050"] {
        assert_eq!(list(host).await, 403, "{host}");
    }
    // nginx in front of it, for instance.
    let forwarded = client().get(service.url("/api/v1/operator/list")).header("x-forwarded-for", "192.0.2.1");
    assert_eq!(forwarded.send().await.unwrap().status(), 403);
}

#[tokio::test]
async fn without_local_admin_the_admin_routes_refuse_every_request_on_every_address() {
    let (_database, _key, env) = parts().await;
    for host in ["127.0.0.1", "0.0.0.0"] {
        let service = Service::start(&env.clone().with("HOST", host)).await;
        let output = service.process.output();
        assert!(output.lines().any(|line| line.contains("WARN") && line.contains("ALLOWED_ADMINS")), "{output}");
        let url = format!("http://127.0.0.1:{}/api/v1/operator/list", service.address.port());
        let answer = Answer::of(client().get(&url).send().await.unwrap()).await;
        assert_eq!((answer.status, answer.text()), (400, "Admin header is empty.\nstatus code: 400"));
        let answer = Answer::of(client().get(&url).header("admin", "somebody").send().await.unwrap()).await;
        assert_eq!(answer.status, 401);
    }
}

#[tokio::test]
async fn local_admin_is_refused_on_an_address_that_others_can_reach() {
    let (_database, _key, env) = parts().await;
    for (host, local_admin) in [("0.0.0.0", "1"), ("127.0.0.1", "yes")] {
        let output = run(&["serve"], &env.clone().with("HOST", host).with("LOCAL_ADMIN", local_admin)).await;
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains("LOCAL_ADMIN must be 0 or"), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[tokio::test]
async fn cors_allows_every_origin_except_on_admin_routes() {
    let (_database, _key, env) = parts().await;
    let service = Service::start(&env).await;
    let preflight = async |path: &str| {
        let request =
            client().request(reqwest::Method::OPTIONS, service.url(path)).header("origin", "https://example.org");
        let request =
            request.header("access-control-request-method", "GET").header("access-control-request-headers", "range");
        Answer::of(request.send().await.unwrap()).await
    };
    const OP: &str = "/api/v1/operator";
    for path in ["compute", "runningjobs", "getResult", "environments"].map(|path| format!("{OP}/{path}")) {
        let answer = preflight(&path).await;
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, "*"), "{path}");
        assert!(answer.header("access-control-allow-methods").contains("GET"), "{path}");
    }
    for path in ["info", "list", "logs", "pgsqlinit"].map(|path| format!("{OP}/{path}")) {
        let answer = preflight(&path).await;
        assert_ne!(answer.status, 200, "{path}");
        assert_eq!(answer.header("access-control-allow-origin"), "", "{path}");
    }
}

#[tokio::test]
async fn sigterm_ends_it_after_the_requests_in_flight() {
    let origin = Origin::start().await;
    let allowed = hosts(&["127.0.0.1"]);
    let mut fixture = Fixture::with(&[("RESULT_HOSTS_ALLOWED", &allowed)]).await;
    let gate = Arc::new(Notify::new());
    origin.answer("/out.txt", File::gated("first ", &gate, "then"));
    let job = fixture.job(&origin.url("/out.txt")).await;
    let mut response = fixture.begin(&fixture.ask(&job)).await.unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap(), "first ");
    // One whose response has not begun.
    let slow = Origin::start().await;
    let slow_gate = Arc::new(Notify::new());
    slow.answer("/late.txt", File::late(&slow_gate, "late"));
    let late =
        fixture.ask(&fixture.job(&slow.url("/late.txt")).await).request(&fixture.client, &fixture.service.url(""));
    let late = tokio::spawn(late.send());
    slow.asked().await;
    // Two connections without a request in flight.
    let mut idle = TcpStream::connect(fixture.service.address).await.unwrap();
    let mut kept = TcpStream::connect(fixture.service.address).await.unwrap();
    kept.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    assert!(kept.read(&mut [0; 1024]).await.unwrap() > 0);

    fixture.service.process.send(Signal::SIGTERM);
    // New connections are refused.
    eventually("the end of listening", crate::LIMIT, async || {
        TcpStream::connect(fixture.service.address).await.is_err().then_some(())
    })
    .await;
    // Idle connections are closed while requests are still in flight: the process does not wait for their clients.
    for connection in [&mut idle, &mut kept] {
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(crate::LIMIT, connection.read_to_end(&mut rest)).await;
        closed.expect("an idle connection stays open").ok();
    }
    assert!(fixture.service.process.is_running());
    gate.notify_one();
    assert_eq!(response.text().await.unwrap(), "then");
    slow_gate.notify_one();
    assert_eq!(late.await.unwrap().unwrap().text().await.unwrap(), "late");
    let status = fixture.service.process.ended().await;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn sigint_and_sigterm_end_it_if_no_request_is_in_flight() {
    let (_database, _key, env) = parts().await;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut service = Service::start(&env).await;
        get(&service, "/api/v1/operator/environments").await;
        service.process.send(signal);
        let status = service.process.ended().await;
        assert!(status.success(), "{signal}: {status}");
    }
}

#[tokio::test]
async fn a_port_in_use_is_reported() {
    let (_database, _key, env) = parts().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(&["serve"], &env.with("PORT", taken.local_addr().unwrap().port().to_string())).await;
    assert_eq!(output.status.code(), Some(1));
    let message = stderr(&output);
    let last = message.lines().last().unwrap_or_default();
    for part in [address.as_str(), "PORT", "in use"] {
        assert!(last.contains(part), "{part} is not in {message}");
    }
    assert!(!message.contains("panicked"), "{message}");
}

#[tokio::test]
async fn a_wrong_configuration_is_one_message_that_names_every_variable() {
    let wrong = Env::default().and(&[
        ("HOST", "localhost"),
        ("PORT", "65536"),
        ("POSTGRES_PORT", "many"),
        ("POSTGRES_PASSWORD", "the-password"),
        ("POSTGRES_SSLMODE", "maybe"),
        ("POSTGRES_POOL_SIZE", "0"),
        ("SIGNATURE_REQUIRED", "yes"),
        ("SIGNATURE_STRICT", "2"),
        ("ALLOWED_PROVIDERS", "[\"0x12\"]"),
        ("ALLOWED_ADMINS", "[the-admin"),
        ("NONCE_WINDOW", "-1"),
        ("ALGO_POD_TIMEOUT", "1h"),
        ("STORAGE_EXPIRY", "never"),
        ("inputVolumesize", "big"),
        ("outputVolumesize", "1 Gi"),
        ("adminlogsVolumesize", "Gi"),
        ("requests_cpu", "lots"),
        ("requests_memory", "-1"),
        ("limits_cpu", "1,5"),
        ("limits_memory", "1GB"),
        ("RESULT_HOSTS_ALLOWED", "[\"http://a/b\"]"),
        ("RESULT_API_KEY_HOSTS", "[1]"),
        ("RESULT_TIMEOUT", "1.5"),
        ("RESULT_IDLE_TIMEOUT", "x"),
        ("LOG_LEVEL", "a=b=c"),
    ]);
    let output = run(&["serve"], &wrong).await;
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    for name in [
        "HOST",
        "PORT",
        "POSTGRES_HOST",
        "POSTGRES_DB",
        "POSTGRES_USER",
        "POSTGRES_PORT",
        "POSTGRES_SSLMODE",
        "POSTGRES_POOL_SIZE",
        "SIGNATURE_REQUIRED",
        "SIGNATURE_STRICT",
        "ALLOWED_PROVIDERS",
        "ALLOWED_ADMINS",
        "NONCE_WINDOW",
        "ALGO_POD_TIMEOUT",
        "STORAGE_EXPIRY",
        "inputVolumesize",
        "outputVolumesize",
        "adminlogsVolumesize",
        "requests_cpu",
        "requests_memory",
        "limits_cpu",
        "limits_memory",
        "RESULT_HOSTS_ALLOWED",
        "RESULT_API_KEY_HOSTS",
        "RESULT_TIMEOUT",
        "RESULT_IDLE_TIMEOUT",
        "LOG_LEVEL",
    ] {
        let named = message.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|word| word == name);
        assert!(named, "{name} is not named in {message}");
    }
    for secret in ["the-password", "the-admin"] {
        assert!(!message.contains(secret), "{secret} is in {message}");
    }
}

#[tokio::test]
async fn a_certificate_or_key_that_cannot_be_used_is_named_at_start() {
    let (_database, _key, env) = parts().await;
    for (name, value) in [
        ("POSTGRES_CA_FILE", "/nowhere/ca.pem"),
        // No header can hold it: it would never be sent.
        ("X_API_KEY", "line\nbreak"),
    ] {
        let env = env.clone().with(name, value).with("PORT", "0");
        let mut process = Process::start(OPERATOR_SERVICE, &["serve"], &env);
        let status = process.ended().await;
        let output = process.output();
        assert_eq!(status.code(), Some(1), "{name}: {output}");
        assert!(output.contains(name) && !output.contains("line\nbreak"), "{output}");
    }
}

#[tokio::test]
async fn it_starts_without_a_database() {
    let (_database, _key, env) = parts().await;
    let closed = ClosedPort::new();
    let service = Service::start(&env.with("POSTGRES_PORT", closed.to_string())).await;
    assert_eq!(get(&service, "/").await.status, 200);
    assert_eq!(get(&service, "/api/v1/operator/environments").await.error().0, 503);
}

/// Clients that connect and send nothing, or not everything, do not delay others, and are disconnected.
#[tokio::test]
async fn a_client_that_does_not_finish_its_request_is_disconnected() {
    let (_database, _key, env) = parts().await;
    let service = Service::start(&env).await;
    let mut slow = TcpStream::connect(service.address).await.unwrap();
    slow.write_all(b"GET /api/v1/operator/runningjobs HTTP/1.1\r\nhost: localhost\r\nx-slow: ").await.unwrap();
    let mut without_body = TcpStream::connect(service.address).await.unwrap();
    let head = b"POST /api/v1/operator/compute HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n{";
    without_body.write_all(head).await.unwrap();
    assert_eq!(get(&service, "/api/v1/operator/runningjobs").await.status, 200);
    tokio::time::timeout(crate::LIMIT, slow.read_to_end(&mut Vec::new()))
        .await
        .expect("the connection stays open")
        .ok();
    let mut response = vec![0; 4096];
    let length = tokio::time::timeout(crate::LIMIT, without_body.read(&mut response))
        .await
        .expect("the connection stays open")
        .unwrap();
    let response = String::from_utf8_lossy(&response[..length]).into_owned();
    assert!(response.starts_with("HTTP/1.1 408"), "{response}");
}

// migrate

#[tokio::test]
async fn migrate_may_run_twice_and_concurrently() {
    let database = TestDatabase::empty().await;
    let env = Env::of(database.variables());
    let (one, other) = tokio::join!(run(&["migrate"], &env), run(&["migrate"], &env));
    for output in [one, other, run(&["migrate"], &env).await] {
        assert!(output.status.success(), "{}", stderr(&output));
    }
    assert_eq!(database.count("jobs").await, 0);
    assert_eq!(database.engine("ocean-compute", "{}", 1).await, Vec::<String>::new());
}

#[tokio::test]
async fn migrate_reports_why_it_fails() {
    let database = TestDatabase::empty().await;
    let closed = ClosedPort::new();
    let env = Env::of(database.variables())
        .with("POSTGRES_PORT", closed.to_string())
        .with("POSTGRES_PASSWORD", "the-password");
    let output = run(&["migrate"], &env).await;
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("database") && !message.contains("the-password"), "{message}");
    let output = run(&["migrate"], &Env::default()).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("POSTGRES_HOST"), "{}", stderr(&output));
}

#[tokio::test]
async fn without_a_schema_responses_say_what_to_do() {
    let database = TestDatabase::empty().await;
    let service = Service::start(&Env::of(database.variables())).await;
    let (status, text) = get(&service, "/api/v1/operator/runningjobs").await.error();
    assert_eq!(status, 503);
    assert!(text.contains("migrate") && text.contains("pgsqlinit"), "{text}");
    assert!(run(&["migrate"], &Env::of(database.variables())).await.status.success());
    assert_eq!(get(&service, "/api/v1/operator/runningjobs").await.status, 200);
}

// Subcommands that print something

#[tokio::test]
async fn crd_prints_what_infra_holds() {
    let output = run(&["crd"], &Env::default()).await;
    assert!(output.status.success(), "{}", stderr(&output));
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/infra/kubernetes/crd.yaml");
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(
        printed == std::fs::read_to_string(file).unwrap(),
        "infra/kubernetes/crd.yaml is outdated: `make crd` writes\n{printed}"
    );
}

#[tokio::test]
async fn variables_prints_what_docs_configuration_md_contains() {
    let printed = async |arguments: &[&str]| {
        let output = run(arguments, &Env::default()).await;
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let markdown = printed(&["variables"]).await;
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md")).unwrap();
    assert!(
        page.ends_with(&format!("\n\n{markdown}")),
        "docs/configuration.md is outdated: `make docs` writes it. It has to end with\n{markdown}"
    );

    let list: Vec<Value> = serde_json::from_str(&printed(&["variables", "--format", "json"]).await).unwrap();
    assert_eq!(markdown.matches("\n| `").count(), list.len());
    for variable in list {
        let [name, default, description, section] =
            ["name", "default", "description", "section"].map(|key| variable[key].as_str().unwrap());
        let (_, rows) = markdown.split_once(&format!("## {section}\n")).unwrap();
        assert!(rows.contains(&format!("| `{name}` | {default} | {description} |\n")), "{variable}");
    }
}

/// Every route that the table names exists in the server, with its method.
#[tokio::test]
async fn routes_prints_the_routes_that_are_served() {
    let (_database, _key, env) = parts().await;
    let output = run(&["routes"], &Env::default()).await;
    assert!(output.status.success(), "{}", stderr(&output));
    let routes: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let service = Service::start(&env).await;
    for route in &routes {
        let [function, method, path] = ["function", "method", "path"].map(|key| route[key].as_str().unwrap());
        assert!(["compute", "results", "environments", "admin", "docs"].contains(&function), "{route}");
        let url = service.url(&path.replace("{*file}", "index.html"));
        let response = Answer::of(client().request(method.parse().unwrap(), url).send().await.unwrap()).await;
        assert!(![404, 405].contains(&response.status), "{route}: {}", response.status);
    }
}

#[tokio::test]
async fn openapi_prints_the_document_at_spec() {
    let (_database, _key, env) = parts().await;
    let output = run(&["openapi"], &Env::default()).await;
    assert!(output.status.success(), "{}", stderr(&output));
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(printed["openapi"].as_str().unwrap().starts_with("3.1"));
    let service = Service::start(&env).await;
    let url = service.url("");
    let call = Call::to_path(reqwest::Method::GET, "/spec");
    let served = Answer::of(call.request(&client(), &url).send().await.unwrap()).await.ok();
    assert_eq!(printed, served);
}

#[tokio::test]
async fn without_a_subcommand_it_lists_them() {
    for arguments in [&[][..], &["nonsense"], &["serve", "nonsense"]] {
        let output = run(arguments, &Env::default()).await;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains("Usage"), "{}", stderr(&output));
    }
    let output = run(&["--help"], &Env::default()).await;
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    for command in ["serve", "migrate", "reap", "crd", "openapi", "variables", "routes", "eks-token"] {
        assert!(help.contains(command), "{help}");
    }
}
