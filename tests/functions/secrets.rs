//! Secrets, signatures, data URLs and raw code are not logged at any level: a run through all routes, and a search
//! through everything that was logged.

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::child::{Directory, Env, Service};
use crate::fixture::{OWNER, finished, hosts, output, parts};
use crate::origin::{Answer as File, Origin};
use crate::support::caller::{brizo, ocean_node, provider};
use crate::support::{Answer, Call, ClosedPort, Cluster, Key, TestDatabase, agreement_id, client, nonce, workflow};

/// The secrets of a run, each with its origin.
#[derive(Default)]
struct Secrets(Vec<(String, String)>);

impl Secrets {
    /// Generates a secret that is then passed to the service.
    fn generate(&mut self, what: &str) -> String {
        let secret = format!("s3cret{}", &uuid::Uuid::new_v4().simple().to_string()[..16]);
        self.add(what, &secret);
        secret
    }

    fn add(&mut self, what: &str, secret: &str) {
        assert!(secret.len() > 6, "{what} {secret:?} would be found by chance");
        self.0.push((what.to_owned(), secret.to_owned()));
    }

    /// Adds a call's signature, without the prefix that a log might drop.
    fn sign(&mut self, call: &Call) {
        let signature = call.text("providerSignature");
        self.add("a signature", signature.trim_start_matches("0x"));
    }

    fn assert_not_in(&self, place: &str, log: &str) {
        for (what, secret) in &self.0 {
            let found = log.lines().find(|line| line.to_lowercase().contains(&secret.to_lowercase()));
            assert!(found.is_none(), "{what} is in {place}: {found:?}");
        }
    }
}

#[tokio::test]
async fn at_level_trace() {
    run_all_routes("trace").await;
}

#[tokio::test]
async fn with_a_filter_that_names_the_libraries() {
    run_all_routes(
        "off,hyper=trace,hyper_util=trace,reqwest=trace,sqlx=trace,sqlx_core=trace,sqlx_postgres=trace,kube=trace,\
         kube_client=trace,tower=trace,tower_http=trace,rustls=trace,axum=trace,axum_server=trace,\
         operator_service=trace",
    )
    .await;
}

async fn run_all_routes(level: &str) {
    let mut secrets = Secrets::default();
    let (database, key, env) = parts().await;
    let cluster = Cluster::start().await;
    let directory = Directory::new();
    let file = directory.file("service.log");
    let origin = Origin::start().await;
    let admin = secrets.generate("an administrator's secret");
    let env = env
        .with("LOG_LEVEL", level)
        .with("LOG_CFG", file.to_str().unwrap())
        .with_cluster(&cluster, &directory)
        .with("DEFAULT_NAMESPACE", cluster.namespace.as_str())
        .with("RESULT_HOSTS_ALLOWED", hosts(&[&origin.address.to_string()]))
        .with("RESULT_TIMEOUT", "1")
        .with("RESULT_IDLE_TIMEOUT", "1")
        .with("X-API-KEY", secrets.generate("X-API-KEY"))
        .with("CLIENT-ID", secrets.generate("CLIENT-ID"))
        .with("ALLOWED_ADMINS", json!([admin]).to_string());
    // A generated password, unless the server requires one.
    let own = database.variables().into_iter().find(|(name, _)| name == "POSTGRES_PASSWORD").map(|(_, value)| value);
    let env = match own {
        Some(password) => {
            secrets.add("the database's password", &password);
            env
        }
        None => env.with("POSTGRES_PASSWORD", secrets.generate("the database's password")),
    };
    database.announce(&cluster.namespace, "{}").await;

    let service = Service::start(&env).await;
    let run = Run { service: &service, database: &database, cluster: &cluster, key: &key };
    jobs(&run, &mut secrets).await;
    results(&run, &origin, &mut secrets).await;
    administration(&run, &admin, &mut secrets).await;
    refusals(&run, &mut secrets).await;

    let output = service.process.output();
    let logged = std::fs::read_to_string(&file).unwrap();
    // The log is not just empty.
    for expected in ["listening", "accepted", "answered"] {
        assert!(output.contains(expected) && logged.contains(expected), "{expected} is not in {output}");
    }
    drop(service);
    secrets.assert_not_in("standard error", &output);
    secrets.assert_not_in("the file", &logged);

    without_a_database(&env, &mut secrets).await;
}

struct Run<'a> {
    service: &'a Service,
    database: &'a TestDatabase,
    cluster: &'a Cluster,
    key: &'a Key,
}

impl Run<'_> {
    async fn send(&self, call: &Call) -> Answer {
        Answer::of(call.request(&client(), &self.service.url("")).send().await.unwrap()).await
    }
}

fn secret_workflow(secrets: &mut Secrets) -> Value {
    let mut workflow = workflow::sample();
    let stage = &mut workflow["stages"][0];
    let host = secrets.generate("a data URL's host");
    let path = secrets.generate("a data URL's path");
    let token = secrets.generate("a data URL's token");
    let password = secrets.generate("a data URL's password");
    stage["input"][0]["url"] = json!([format!("https://user:{password}@{host}.example.org/{path}?token={token}")]);
    stage["algorithm"]["url"] = json!(format!("https://example.org/{}", secrets.generate("an algorithm's URL")));
    stage["algorithm"]["rawcode"] = json!(format!("print('{}')", secrets.generate("raw code")));
    stage["algorithm"]["envs"] = json!({ "TOKEN": secrets.generate("an environment secret") });
    stage["algorithm"]["container"]["entrypoint"] = json!(format!("sh {} $ALGO", secrets.generate("an entrypoint")));
    stage["output"]["secretStoreUri"] = json!(format!("https://{}.example.org", secrets.generate("an output's URI")));
    workflow
}

async fn jobs(run: &Run<'_>, secrets: &mut Secrets) {
    let namespace = &run.cluster.namespace;
    let calls = [
        provider(run.key).start(namespace, &agreement_id(), OWNER, secret_workflow(secrets)),
        ocean_node(run.key).start(namespace, &agreement_id(), OWNER, secret_workflow(secrets)),
        brizo(run.key).start(&agreement_id(), OWNER, secret_workflow(secrets)),
    ];
    for call in calls {
        secrets.sign(&call);
        let started = run.send(&call).await.ok();
        let job_id = started[0]["jobId"].as_str().unwrap();
        let row = run.database.job(job_id).await.unwrap();
        let document: Value = serde_json::from_str(row["workflow"].as_str().unwrap()).unwrap();
        secrets.add("a stored job's metadata.secret", document["metadata"]["secret"].as_str().unwrap());
        // Another request, with its nonce used and its agreement in use.
        run.send(&call.with("documentId", "another")).await.error();
        for call in [
            provider(run.key).status(OWNER, Some(job_id)),
            provider(run.key).stop(OWNER, Some(job_id)),
            ocean_node(run.key).stop(OWNER, Some(job_id), None),
            brizo(run.key).stop(OWNER, Some(job_id), None),
            provider(run.key).delete(OWNER, Some(job_id)),
        ] {
            secrets.sign(&call);
            run.send(&call).await.ok();
        }
    }
    run.send(&Call::get("runningjobs")).await.ok();
    run.send(&Call::get("environments")).await.ok();

    // Rows that are invalid already.
    let damaged = format!("{{\"spec\": \"{}\"", secrets.generate("a damaged workflow"));
    let row = crate::support::Stored { workflow: Some(damaged), ..Default::default() };
    let owner = row.insert(run.database).await.owner.unwrap();
    let damaged = format!("[{{\"url\": \"{}\"", secrets.generate("damaged outputs"));
    let row = crate::support::Stored { outputs: Some(damaged), owner: Some(owner.clone()), ..Default::default() };
    row.insert(run.database).await;
    assert_eq!(run.send(&provider(run.key).status(&owner, None)).await.ok().as_array().unwrap().len(), 2);
}

async fn results(run: &Run<'_>, origin: &Origin, secrets: &mut Secrets) {
    let nowhere = ClosedPort::new();
    let path = secrets.generate("a result's path");
    let token = secrets.generate("a result's token");
    let user = secrets.generate("a result's user");
    let password = secrets.generate("a result's password");
    let elsewhere = secrets.generate("where a redirect goes");
    let host = secrets.generate("a result's host");
    let of = |address: &str, kind: &str| format!("http://{user}:{password}@{address}/{path}/{kind}?token={token}");
    let address = origin.address.to_string();
    let at = |kind: &str| format!("/{path}/{kind}");
    let moved = |location: String| File::redirect(302, location);
    let cookie = secrets.generate("an origin's cookie");
    let words = secrets.generate("an origin's message");
    origin
        .answer(&at("whole"), File::file("hello").header("set-cookie", cookie))
        .answer(&at("refused"), File::status(403, words))
        .answer(&at("silent"), File::silent())
        .answer(&at("gibberish"), File::gibberish())
        .answer(&at("early"), File::closes_early("part", 100))
        .answer(&at("stalls"), File::falls_silent("part", 100))
        .answer(&at("moved"), moved(format!("/{elsewhere}")))
        .answer(&format!("/{elsewhere}"), File::file("there"))
        .answer(&at("inside"), moved(format!("http://10.0.0.1/{elsewhere}")))
        .answer(&at("outside"), moved(format!("http://{host}.invalid/{elsewhere}")))
        .answer(&at("round"), moved(at("round")));
    let mut urls: Vec<String> = [
        "whole",
        "refused",
        "silent",
        "gibberish",
        "early",
        "stalls",
        "moved",
        "inside",
        "outside",
        "round",
        "missing",
    ]
    .iter()
    .map(|kind| of(&address, kind))
    .collect();
    urls.extend([
        of(&format!("127.0.0.1:{nowhere}"), "unreachable"),
        of("169.254.169.254", "metadata"),
        of(&format!("{host}.invalid"), "unknown"),
        of("127.0.0.1:99999", "no-port"),
        format!("ftp://{user}:{password}@example.org/{path}"),
        format!("not a URL {token}"),
    ]);
    let mut calls = Vec::new();
    for url in urls {
        let job = finished(run.key, &output(&url)).insert(run.database).await.job_id;
        calls.push(provider(run.key).result(OWNER, &job, 0));
        calls.push(ocean_node(run.key).result(OWNER, &job, 0));
        calls.push(provider(run.key).status(OWNER, Some(&job)));
    }
    calls.iter().for_each(|call| secrets.sign(call));
    let fetch = async |call: &Call| {
        // Some responses are incomplete on purpose.
        if let Ok(response) = call.request(&client(), &run.service.url("")).send().await {
            response.bytes().await.ok();
        }
    };
    join_all(calls.iter().map(fetch)).await;
    assert!(origin.requests().iter().any(|request| request.header("x-api-key").is_some()), "no key was ever sent");
}

async fn administration(run: &Run<'_>, admin: &str, secrets: &mut Secrets) {
    let wrong = secrets.generate("a wrong administrator's secret");
    let job_id = "9f9178dcffd34130a3158ce9ca3d15ff";
    run.cluster.make_workflow(&run.cluster.namespace, job_id).await;
    for (method, operation) in
        [(Method::POST, "pgsqlinit"), (Method::GET, "list"), (Method::GET, "info"), (Method::GET, "logs")]
    {
        let call = Call::new(method, operation).with("jobId", job_id).with("component", "algorithm");
        assert_eq!(run.send(&call.clone().header("admin", wrong.as_str())).await.status, 401);
        let status = run.send(&call.header("admin", admin)).await.status;
        assert!(status == 200 || (operation, status) == ("logs", 404), "{operation} {status}");
    }
}

async fn refusals(run: &Run<'_>, secrets: &mut Secrets) {
    let namespace = &run.cluster.namespace;
    let stranger = Key::new();
    let call = provider(&stranger).start(namespace, &agreement_id(), OWNER, secret_workflow(secrets));
    secrets.sign(&call);
    assert_eq!(run.send(&call).await.status, 401);
    let call = provider(&stranger).stop(OWNER, None);
    secrets.sign(&call);
    assert_eq!(run.send(&call).await.status, 401);
    let garbage = secrets.generate("an invalid signature");
    let call = call.with("providerSignature", garbage).with("nonce", nonce());
    assert_eq!(run.send(&call).await.status, 400);

    let marker = secrets.generate("a malformed body");
    for body in [
        format!("{{\"workflow\": \"{marker}\""),
        format!("{{\"{marker}\": {{}}}}"),
        format!("{{\"workflow\": \"{marker}\", \"agreementId\": 7}}"),
        format!("\"{marker}\""),
        marker.clone(),
        format!("{{\"workflow\": {}1, \"x\": \"{marker}\"", "[".repeat(1000)),
        format!("{{\"workflow\": \"{}{marker}\"}}", "x".repeat(400 * 1024)),
    ] {
        let status = run.send(&Call::new(Method::POST, "compute").body(body)).await.status;
        assert!([400, 413].contains(&status), "{status}");
    }
    let not_utf8 = [marker.as_bytes(), b"\xff\xfe"].concat();
    assert_eq!(run.send(&Call::new(Method::POST, "compute").body(not_utf8)).await.status, 400);

    // Unknown routes and headers.
    let lost = secrets.generate("an unknown parameter");
    let header = secrets.generate("a header");
    for path in [format!("/no/route?token={lost}"), format!("/no/{lost}"), format!("/api/v1/docs/{lost}")] {
        let call = Call::to_path(Method::GET, &path).header("authorization", format!("Bearer {header}"));
        assert_eq!(run.send(&call).await.status, 404);
    }
    // Not HTTP.
    let mut raw = tokio::net::TcpStream::connect(run.service.address).await.unwrap();
    let text =
        format!("{} nonsense {}\r\n\r\n", secrets.generate("a request line"), secrets.generate("a request line"));
    tokio::io::AsyncWriteExt::write_all(&mut raw, text.as_bytes()).await.unwrap();
    tokio::io::AsyncReadExt::read_to_end(&mut raw, &mut Vec::new()).await.ok();
}

/// With a database that is down, and with one that refuses the login.
async fn without_a_database(env: &Env, secrets: &mut Secrets) {
    let password = secrets.generate("the password for a database that is down");
    let directory = Directory::new();
    let file = directory.file("service.log");
    let env = env.clone().with("POSTGRES_PASSWORD", password).with("LOG_CFG", file.to_str().unwrap());
    let closed = ClosedPort::new();
    let down = env.clone().with("POSTGRES_PORT", closed.to_string());
    let refused = env.with("POSTGRES_DB", "no_such_database");
    let key = Key::new();
    for env in [down, refused] {
        let env = env.with("ALLOWED_PROVIDERS", key.allowed());
        let service = Service::start(&env).await;
        let url = service.url("");
        let calls = [
            provider(&key).start("ocean-compute", &agreement_id(), OWNER, secret_workflow(secrets)),
            provider(&key).stop(OWNER, None),
            provider(&key).result(OWNER, "9f9178dcffd34130a3158ce9ca3d15ff", 0),
        ];
        calls.iter().for_each(|call| secrets.sign(call));
        let send = async |call: &Call| Answer::of(call.request(&client(), &url).send().await.unwrap()).await.error();
        for (status, text) in join_all(calls.iter().map(send)).await {
            assert_eq!(status, 503, "{text}");
            secrets.assert_not_in("an answer", &text);
        }
        let output = service.process.output();
        assert!(output.contains("ERROR"), "{output}");
        secrets.assert_not_in("standard error", &output);
        secrets.assert_not_in("the file", &std::fs::read_to_string(&file).unwrap());
    }
}
