//! `/metrics` of `operator-service serve`, and that dashboards and alerts ask for metrics that exist.

use std::collections::BTreeSet;
use std::time::SystemTime;

use operator_service::telemetry::metric::METRICS;

use crate::child::{Directory, Env, OPERATOR_SERVICE, Process, Service, run, stderr};
use crate::fixture::{OWNER, get, parts};
use crate::support::caller::provider;
use crate::support::{Answer, ClosedPort, Cluster, Stored, TestDatabase, agreement_id, client, workflow};

/// A server with METRICS_PORT, and the URL of its metrics.
async fn start(env: &Env) -> (Service, String) {
    let mut service = Service::start(&env.clone().with("METRICS_PORT", "0")).await;
    let line = service.process.line("serving /metrics").await;
    let address = line.split("address=").nth(1).unwrap().trim().to_owned();
    (service, format!("http://{address}/metrics"))
}

async fn scrape(url: &str) -> String {
    let answer = Answer::of(client().get(url).send().await.unwrap()).await;
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").starts_with("application/openmetrics-text"), "{answer:?}");
    let text = answer.text().to_owned();
    assert!(text.ends_with("# EOF\n"), "{text}");
    text
}

/// The value of a metric with these labels, as it is written.
fn value(text: &str, metric: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("operator_service_{metric} ")))?;
    Some(line.parse().unwrap())
}

#[tokio::test]
async fn metrics_are_those_of_the_requests_of_the_sweeps_and_of_the_database() {
    let (database, key, env) = parts().await;
    let (cluster, directory) = (Cluster::embedded().await, Directory::new());
    let namespace = &cluster.namespace;
    let env = env.with_cluster(&cluster, &directory).with("DEFAULT_NAMESPACE", namespace);
    database.announce(namespace, "{}").await;
    let (service, url) = start(&env).await;

    let start = provider(&key).start(namespace, &agreement_id(), OWNER, workflow::sample());
    for (call, status) in [(start.clone(), 200), (start.without("agreementId"), 400)] {
        let answer = call.request(&client(), &service.url("")).send().await.unwrap();
        assert_eq!(answer.status(), status);
    }
    get(&service, "/nowhere/at/all").await;
    let odd = client()
        .request(reqwest::Method::from_bytes(b"ODD").unwrap(), service.url("/nowhere/at/all"))
        .send()
        .await
        .unwrap();
    assert_eq!(odd.status(), 404);
    // An old job that is stopped, one that waits for its registration, and one of an environment that was not announced.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    let job = |age: f64| Stored { namespace: Some(namespace.clone()), created: now - age, ..Stored::default() };
    Stored { stopreq: Some(1), ..job(9000.0) }.insert(&database).await;
    let unregistered = Stored { status_text: Some("Unregistered".to_owned()), ..job(500.0) }.insert(&database).await;
    Stored { namespace: Some("another".to_owned()), ..job(800.0) }.insert(&database).await;
    database.execute("UPDATE jobs SET registered = statustext <> 'Unregistered'").await;

    let text = scrape(&url).await;
    let compute = |status: u16| format!("{{method=\"POST\",route=\"/api/v1/operator/compute\",status=\"{status}\"}}");
    let of = |metric: &str, labels: &str| value(&text, &format!("{metric}{labels}"));
    assert_eq!(of("requests_total", &compute(200)), Some(1.0), "{text}");
    assert_eq!(of("requests_total", &compute(400)), Some(1.0));
    assert_eq!(of("requests_total", "{method=\"other\",route=\"none\",status=\"404\"}"), Some(1.0));
    assert_eq!(of("starts_total", &compute(200)), Some(1.0));
    assert_eq!(of("errors_total", &compute(400)), Some(0.0));
    for histogram in ["request_duration_seconds", "database_latency_seconds", "cluster_latency_seconds"] {
        assert_eq!(of(&format!("{histogram}_count"), &compute(200)), Some(1.0), "{histogram}");
        let sum = of(&format!("{histogram}_sum"), &compute(200)).unwrap();
        assert!(sum > 0.0 && sum < crate::LIMIT.as_secs_f64(), "{histogram}: {sum} s");
    }
    assert_eq!(of("database_up", ""), Some(1.0));
    assert!(of("database_connections", "").unwrap() >= 1.0);
    let about = |metric: &str, seconds: f64| {
        let found = of(metric, "").unwrap();
        assert!(found >= seconds && found < seconds + 100.0, "{metric} is {found}, not about {seconds}");
    };
    about("oldest_unregistered_seconds", 500.0);
    about("oldest_waiting_seconds", 9000.0);
    assert!(of("environment_silence_seconds", &format!("{{namespace=\"{namespace}\"}}")).unwrap() < 100.0);
    assert_eq!((of("reaper_runs_total", ""), of("reaper_silence_seconds", "")), (Some(0.0), None));

    for sweeps in [1.0, 2.0] {
        let output = run(&["reap"], &env).await;
        assert!(output.status.success(), "{}", stderr(&output));
        let text = scrape(&url).await;
        let of = |metric: &str, labels: &str| value(&text, &format!("{metric}{labels}"));
        assert_eq!(of("reaper_runs_total", ""), Some(sweeps));
        assert!(of("reaper_silence_seconds", "").unwrap() < 100.0);
        // The second sweep has nothing to do; what the first one did stays counted.
        for kind in ["NeverStarted", "Registrations"] {
            let labels = format!("{{kind=\"{kind}\"}}");
            assert_eq!(of("reaper_done_total", &labels), Some(1.0), "{text}");
            assert_eq!(of("reaper_left", &labels), Some(0.0));
        }
    }
    assert!(cluster.workflow(namespace, &unregistered.job_id).await.is_some());
    // A dry run is no sweep.
    assert!(run(&["reap", "--dry-run"], &env).await.status.success());
    let text = scrape(&url).await;
    assert_eq!(value(&text, "reaper_runs_total"), Some(2.0));
    assert_dashboards_find_their_metrics(&text);
}

/// Every metric that the dashboard and the alert rules name is in this text.
fn assert_dashboards_find_their_metrics(text: &str) {
    let names: BTreeSet<&str> = text.lines().filter_map(|line| line.split(['{', ' ']).next()).collect();
    for file in ["dashboard.json", "alerts.yaml"] {
        let path = format!("{}/infra/prometheus/{file}", env!("CARGO_MANIFEST_DIR"));
        let file_text = std::fs::read_to_string(path).unwrap();
        let in_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
        let asked: BTreeSet<&str> =
            file_text.split(|c| !in_name(c)).filter(|word| word.starts_with("operator_service_")).collect();
        assert!(asked.len() >= 8, "{file} asks for {asked:?}");
        for name in asked {
            assert!(names.contains(name), "{file} asks for {name}, which /metrics does not have:\n{text}");
        }
    }
}

#[tokio::test]
async fn without_metrics_port_the_server_has_no_metrics() {
    let (_database, _key, env) = parts().await;
    let service = Service::start(&env).await;
    let answer = get(&service, "/metrics").await;
    assert!(!answer.text().contains("operator_service_"), "{answer:?}");
    assert!(!service.process.output().contains("/metrics"), "{}", service.process.output());
    // The port of its own has no other route.
    let (_service, url) = start(&env).await;
    let answer = client().get(url.replace("/metrics", "/api/v1/operator/environments")).send().await.unwrap();
    assert_eq!(answer.status(), 404);
}

#[tokio::test]
async fn without_a_database_metrics_say_so() {
    let database = TestDatabase::empty().await;
    let closed = ClosedPort::new();
    for env in [
        Env::of(database.variables()),
        Env::of(database.variables()).with("POSTGRES_HOST", "127.0.0.1").with("POSTGRES_PORT", closed.to_string()),
    ] {
        let (_service, url) = start(&env).await;
        let text = scrape(&url).await;
        assert_eq!(value(&text, "database_up"), Some(0.0), "{text}");
        assert!(!text.contains("oldest_waiting"), "{text}");
    }
}

#[tokio::test]
async fn a_metrics_port_in_use_is_reported() {
    let (_database, _key, env) = parts().await;
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut process = Process::start(OPERATOR_SERVICE, &["serve"], &env.with("METRICS_PORT", port).with("PORT", "0"));
    assert_eq!(process.ended().await.code(), Some(1));
    assert!(process.output().contains("METRICS_PORT"), "{}", process.output());
}

#[tokio::test]
async fn metrics_prints_the_table_of_docs_metrics_md() {
    let output = run(&["metrics"], &Env::default()).await;
    assert!(output.status.success(), "{}", stderr(&output));
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(table.lines().count(), METRICS.len() + 2);
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    assert!(page.ends_with(&table), "docs/metrics.md is outdated: `make docs` writes it. It has to end with\n{table}");
}

#[tokio::test]
async fn cloudwatchs_alarms_and_dashboard_ask_for_metrics_that_exist() {
    let template = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/infra/monitoring.yaml")).unwrap();
    // `Namespace: OperatorService` with `MetricName: …` after it, and `["OperatorService", "…", …` with `[".", "…", …`.
    let mut asked = BTreeSet::new();
    for (line, next) in template.lines().zip(template.lines().skip(1)) {
        if line.trim() == "Namespace: OperatorService" {
            asked.insert(next.trim().strip_prefix("MetricName: ").unwrap());
        }
        if line.contains("[\"OperatorService\", ") {
            let after = |start: &'static str| line.split(start).skip(1).filter_map(|rest| rest.split('"').next());
            asked.extend(after("[\"OperatorService\", \"").chain(after("[\".\", \"")));
        }
    }
    assert!(asked.len() >= 10, "{asked:?}");
    let known: BTreeSet<&str> = METRICS.iter().filter(|one| one.is_in_cloudwatch()).map(|one| one.name).collect();
    assert!(asked.is_subset(&known), "{:?} are unknown", asked.difference(&known));
}
