//! `operator-service` as a process: how it starts, what it says, how it ends; its other subcommands.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::child::{Directory, Env, OPERATOR_SERVICE, Process, Service, run, stderr};
use crate::origin::{Answer as File, Origin};
use crate::scene::{OWNER, Scene, hosts, parts};
use crate::support::{Answer, Call, TestDatabase, client, eventually};

async fn get(service: &Service, path: &str) -> Answer {
    Answer::of(client().get(service.url(path)).send().await.unwrap()).await
}

// serve

#[tokio::test]
async fn serve_opens_every_group() {
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
        ("/Prod/api/v1/operator/runningjobs", 200),
        ("/nothing", 404),
    ] {
        assert_eq!(get(&service, path).await.status, status, "{path}");
    }
}

/// `curl http://localhost:8050/api/v1/operator/list` works as the README shows, and a page in the user's browser
/// cannot do the same by a name of its own.
#[tokio::test]
async fn on_a_loopback_address_admin_routes_are_open_to_loopback_names() {
    let (_database, _key, env) = parts().await;
    let service = Service::start(&env).await;
    let output = service.process.output();
    assert!(output.lines().any(|line| line.contains("WARN") && line.contains("ALLOWED_ADMINS")), "{output}");
    let list = async |host: &str| {
        let request = client().get(service.url("/api/v1/operator/list")).header("host", host);
        request.send().await.unwrap().status().as_u16()
    };
    let port = service.address.port();
    // Let in: there is no cluster to answer from.
    for host in
        [format!("localhost:{port}"), format!("127.0.0.1:{port}"), "localhost".to_owned(), "[::1]:80".to_owned()]
    {
        assert_eq!(list(&host).await, 503, "{host}");
    }
    for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "192.168.1.2:8050", "evil:8050"] {
        assert_eq!(list(host).await, 403, "{host}");
    }
}

#[tokio::test]
async fn on_any_other_address_admin_routes_refuse_everybody() {
    let (_database, _key, env) = parts().await;
    let service = Service::start(&env.with("HOST", "0.0.0.0")).await;
    let output = service.process.output();
    assert!(output.lines().any(|line| line.contains("WARN") && line.contains("ALLOWED_ADMINS")), "{output}");
    let url = format!("http://127.0.0.1:{}/api/v1/operator/list", service.address.port());
    let answer = Answer::of(client().get(&url).send().await.unwrap()).await;
    assert_eq!((answer.status, answer.text()), (400, "Admin header is empty.\nstatus code: 400"));
    let answer = Answer::of(client().get(&url).header("admin", "somebody").send().await.unwrap()).await;
    assert_eq!(answer.status, 401);
}

#[tokio::test]
async fn pages_of_any_site_may_ask_and_no_page_may_administrate() {
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
async fn sigterm_ends_it_after_the_requests_under_way() {
    let origin = Origin::start().await;
    let allowed = hosts(&["127.0.0.1"]);
    let mut scene = Scene::with(&[("RESULT_HOSTS_ALLOWED", &allowed)]).await;
    let gate = Arc::new(Notify::new());
    origin.answer("/out.txt", File::gated("first ", &gate, "then"));
    let job = scene.job(&origin.url("/out.txt")).await;
    let mut response = scene.begin(&scene.ask(&job)).await.unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap(), "first ");
    // One that has not even been answered.
    let slow = Origin::start().await;
    let slow_gate = Arc::new(Notify::new());
    slow.answer("/late.txt", File::late(&slow_gate, "late"));
    let late = scene.ask(&scene.job(&slow.url("/late.txt")).await).request(&scene.client, &scene.service.url(""));
    let late = tokio::spawn(late.send());
    slow.asked().await;
    // Connections on which nothing is under way hold up nobody.
    let mut idle = TcpStream::connect(scene.service.address).await.unwrap();
    let mut kept = TcpStream::connect(scene.service.address).await.unwrap();
    kept.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    assert!(kept.read(&mut [0; 1024]).await.unwrap() > 0);

    scene.service.process.send(Signal::SIGTERM);
    // New ones are not taken.
    eventually("the end of listening", crate::LIMIT, async || {
        TcpStream::connect(scene.service.address).await.is_err().then_some(())
    })
    .await;
    assert!(scene.service.process.is_running());
    gate.notify_one();
    assert_eq!(response.text().await.unwrap(), "then");
    slow_gate.notify_one();
    assert_eq!(late.await.unwrap().unwrap().text().await.unwrap(), "late");
    let told = Instant::now();
    let status = scene.service.process.ended().await;
    assert!(status.success(), "{status}");
    assert!(told.elapsed() < Duration::from_secs(10), "{:?} after the last answer", told.elapsed());
    // Both have been closed.
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).await.ok();
    kept.read_to_end(&mut rest).await.ok();
}

#[tokio::test]
async fn sigint_and_sigterm_end_it_at_once_where_nothing_is_under_way() {
    let (_database, _key, env) = parts().await;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut service = Service::start(&env).await;
        get(&service, "/api/v1/operator/environments").await;
        let told = Instant::now();
        service.process.send(signal);
        let status = service.process.ended().await;
        assert!(status.success(), "{signal}: {status}");
        assert!(told.elapsed() < Duration::from_secs(5), "{signal}: {:?}", told.elapsed());
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_said_to_be() {
    let (_database, _key, env) = parts().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(&["serve"], &env.with("PORT", taken.local_addr().unwrap().port().to_string())).await;
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    let last = said.lines().last().unwrap_or_default();
    for part in [address.as_str(), "PORT", "in use"] {
        assert!(last.contains(part), "{part} is not in {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

#[tokio::test]
async fn a_wrong_configuration_is_one_message_that_names_it_all() {
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
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
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
        let named = said.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|word| word == name);
        assert!(named, "{name} is not named in {said}");
    }
    for secret in ["the-password", "the-admin"] {
        assert!(!said.contains(secret), "{secret} is in {said}");
    }
}

#[tokio::test]
async fn a_certificate_or_key_that_cannot_be_used_is_named_at_start() {
    let (_database, _key, env) = parts().await;
    for (name, value) in [
        ("POSTGRES_CA_FILE", "/nowhere/ca.pem"),
        // No header can hold it; without a word it would never be sent.
        ("X_API_KEY", "line\nbreak"),
    ] {
        let env = env.clone().with(name, value).with("PORT", "0");
        let mut process = Process::start(OPERATOR_SERVICE, &["serve"], &env);
        let ended = tokio::time::timeout(Duration::from_secs(3), process.ended()).await;
        let output = process.output();
        assert!(ended.is_ok_and(|status| status.code() == Some(1)), "{name}: {output}");
        assert!(output.contains(name) && !output.contains("line\nbreak"), "{output}");
    }
}

#[tokio::test]
async fn a_database_that_is_not_there_is_no_reason_not_to_start() {
    let (_database, _key, env) = parts().await;
    let port = devstack::local::free_port().unwrap().to_string();
    let service = Service::start(&env.with("POSTGRES_PORT", port)).await;
    assert_eq!(get(&service, "/").await.status, 200);
    assert_eq!(get(&service, "/api/v1/operator/environments").await.error().0, 503);
}

/// Someone who opens connections and says nothing, or little, keeps nobody else out and is not waited for.
#[tokio::test]
async fn a_caller_that_does_not_finish_its_request_is_cut_off() {
    let (_database, _key, env) = parts().await;
    let service = Service::start(&env).await;
    let mut slow = TcpStream::connect(service.address).await.unwrap();
    slow.write_all(b"GET /api/v1/operator/runningjobs HTTP/1.1\r\nhost: localhost\r\nx-slow: ").await.unwrap();
    let mut without_body = TcpStream::connect(service.address).await.unwrap();
    let head = b"POST /api/v1/operator/compute HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n{";
    without_body.write_all(head).await.unwrap();
    assert_eq!(get(&service, "/api/v1/operator/runningjobs").await.status, 200);
    let mut said = Vec::new();
    tokio::time::timeout(crate::LIMIT, slow.read_to_end(&mut said)).await.expect("is waited for").ok();
    let mut said = vec![0; 4096];
    let length =
        tokio::time::timeout(crate::LIMIT, without_body.read(&mut said)).await.expect("is waited for").unwrap();
    let said = String::from_utf8_lossy(&said[..length]).into_owned();
    assert!(said.starts_with("HTTP/1.1 408"), "{said}");
}

// Logs

#[tokio::test]
async fn log_cfg_names_a_file_that_gets_the_log_too() {
    let (_database, _key, env) = parts().await;
    let directory = Directory::new();
    let file = directory.file("service.log");
    std::fs::write(&file, "what was there before\n").unwrap();
    let service = Service::start(&env.clone().with("LOG_CFG", file.to_str().unwrap())).await;
    get(&service, "/api/v1/operator/runningjobs").await;
    let logged = eventually("the request's line", crate::LIMIT, async || {
        let logged = std::fs::read_to_string(&file).unwrap();
        logged.contains("/api/v1/operator/runningjobs").then_some(logged)
    })
    .await;
    assert!(logged.starts_with("what was there before\n"), "{logged}");
    assert!(logged.contains("listening") && logged.contains("status=200"), "{logged}");
    // To standard error as well.
    assert!(service.process.output().contains("/api/v1/operator/runningjobs"));

    let nowhere = directory.file("no/such/directory/service.log");
    let output = run(&["serve"], &env.with("LOG_CFG", nowhere.to_str().unwrap())).await;
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("LOG_CFG"), "{said}");
}

#[tokio::test]
async fn log_level_takes_the_old_services_names_and_filters() {
    let (_database, _key, env) = parts().await;
    for (level, info, warning) in [
        ("DEBUG", true, true),
        ("INFO", true, true),
        ("info", true, true),
        ("WARNING", false, true),
        ("warning", false, true),
        ("warn", false, true),
        ("ERROR", false, false),
        ("operator_service=info", true, true),
        ("operator_service=error", false, false),
        ("warn,operator_service::telemetry=info", true, true),
    ] {
        let service = Service::start_quietly(&env.clone().with("LOG_LEVEL", level)).await;
        get(&service, "/api/v1/operator/runningjobs").await;
        // What is logged of a request is there before its answer is.
        let output = service.process.output();
        assert_eq!(output.contains("answered"), info, "{level}: {output}");
        assert_eq!(output.contains("ALLOWED_ADMINS"), warning, "{level}: {output}");
    }
}

#[tokio::test]
async fn a_request_is_logged_without_its_parameters() {
    let (_database, _key, env) = parts().await;
    let mut service = Service::start(&env).await;
    get(&service, &format!("/api/v1/operator/compute?owner={OWNER}&providerSignature=0xsigned")).await;
    let line = service.process.line("answered").await;
    for part in ["method=GET", "/api/v1/operator/compute", "status=200", "milliseconds="] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    assert!(!line.contains("0xsigned") && !line.contains(OWNER), "{line}");
}

// migrate

#[tokio::test]
async fn migrate_may_run_twice_and_two_at_once() {
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
async fn migrate_says_why_it_cannot() {
    let database = TestDatabase::empty().await;
    let port = devstack::local::free_port().unwrap().to_string();
    let env = Env::of(database.variables()).with("POSTGRES_PORT", port).with("POSTGRES_PASSWORD", "the-password");
    let output = run(&["migrate"], &env).await;
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("database") && !said.contains("the-password"), "{said}");
    let output = run(&["migrate"], &Env::default()).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("POSTGRES_HOST"), "{}", stderr(&output));
}

/// Where the schema is missing, whoever asks is told what to do.
#[tokio::test]
async fn without_a_schema_requests_say_what_to_do() {
    let database = TestDatabase::empty().await;
    let service = Service::start(&Env::of(database.variables())).await;
    let (status, text) = get(&service, "/api/v1/operator/runningjobs").await.error();
    assert_eq!(status, 503);
    assert!(text.contains("migrate") && text.contains("pgsqlinit"), "{text}");
    assert!(run(&["migrate"], &Env::of(database.variables())).await.status.success());
    assert_eq!(get(&service, "/api/v1/operator/runningjobs").await.status, 200);
}

// What is printed

#[tokio::test]
async fn crd_prints_what_infra_holds() {
    let output = run(&["crd"], &Env::default()).await;
    assert!(output.status.success(), "{}", stderr(&output));
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/infra/kubernetes/crd.yaml");
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(
        printed == std::fs::read_to_string(file).unwrap(),
        "infra/kubernetes/crd.yaml is not current: it has to be\n{printed}"
    );
}

#[tokio::test]
async fn openapi_prints_what_spec_answers() {
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
async fn without_a_subcommand_it_says_which_there_are() {
    for arguments in [&[][..], &["nonsense"], &["serve", "nonsense"]] {
        let output = run(arguments, &Env::default()).await;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains("Usage"), "{}", stderr(&output));
    }
    let output = run(&["--help"], &Env::default()).await;
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    for command in ["serve", "migrate", "crd", "openapi"] {
        assert!(help.contains(command), "{help}");
    }
}
