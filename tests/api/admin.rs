//! The admin routes: /pgsqlinit, /info, /list, /logs

use std::collections::BTreeSet;

use futures_util::{StreamExt, stream};
use operator_service::api::routes::ROUTES;
use reqwest::Method;
use serde_json::{Value, json};

use crate::given::started;
use crate::support::{Answer, App, Call, Cluster, Stored, TestDatabase, left_out};

fn admin_routes() -> impl Iterator<Item = (&'static str, Method)> {
    let routes = ROUTES.iter().filter(|route| route.function == "admin");
    routes.map(|route| (route.path.trim_start_matches("/api/v1/operator/"), route.method.parse().unwrap()))
}

#[track_caller]
fn is_text(answer: &Answer, status: u16, text: &str) {
    assert_eq!((answer.status, answer.text()), (status, text));
    assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
}

#[tokio::test]
async fn a_missing_admin_header_is_a_400_and_a_wrong_one_a_401() {
    let admins = json!(["0xAdmin-One", "0xADMIN-two"]).to_string();
    let app = App::builder().var("ALLOWED_ADMINS", admins).start().await;
    for (route, method) in admin_routes() {
        let call = || Call::new(method.clone(), route).with("jobId", "ab");
        let missing = "Admin header is empty.\nstatus code: 400";
        is_text(&app.send(call()).await, 400, missing);
        is_text(&app.send(call().header("Admin", "")).await, 400, missing);
        let wrong = "Access admin route failed due to invalid admin address.\nstatus code: 401";
        for header in ["0xAdmin", "0xAdmin-One1", "0xAdmin-One,0xADMIN-two", "null", "*"] {
            is_text(&app.send(call().header("Admin", header)).await, 401, wrong);
        }
    }
    for header in ["0xAdmin-One", "0xadmin-one", "0XADMIN-ONE", "0xadmin-TWO"] {
        app.send(Call::get("list").header("Admin", header)).await.ok();
        app.send(Call::get("list").header("aDMIN", header)).await.ok();
    }
}

#[tokio::test]
async fn with_local_admin_requests_to_a_loopback_name_are_accepted() {
    let app = App::start().await;
    assert_eq!(app.send(Call::get("list")).await.ok(), json!([]));
    is_text(&app.send(Call::new(Method::POST, "pgsqlinit")).await, 200, "");
    // Under any loopback name, by any loopback address.
    let port = app.url.rsplit_once(':').unwrap().1.to_owned();
    for host in ["localhost", "LOCALHOST", "127.0.0.1", "127.8.9.1", "[::1]"] {
        for authority in [host.to_owned(), format!("{host}:{port}")] {
            app.send(Call::get("list").header("host", authority)).await.ok();
        }
    }
}

#[tokio::test]
async fn with_local_admin_all_other_requests_are_refused() {
    let app = App::start().await;
    for (route, method) in admin_routes() {
        for host in [
            "evil.example",
            "evil.example:8050",
            "localhost.evil.example",
            "10.0.0.1",
            "127.0.0.1.nip.io:80",
            "0x7f000001.example",
        ] {
            let call = Call::new(method.clone(), route).with("jobId", "ab").header("host", host);
            let answer = app.send(call).await;
            assert_eq!(answer.error().0, 403, "{route} {host}");
        }
        // A page of another site that sends requests here.
        for origin in ["https://evil.example", "null", "http://localhost.evil.example"] {
            let call = Call::new(method.clone(), route).with("jobId", "ab").header("origin", origin);
            assert_eq!(app.send(call).await.error().0, 403, "{route} {origin}");
        }
        // A reverse proxy on this machine.
        for (name, value) in [
            ("Forwarded", "for=192.0.2.1"),
            ("X-Forwarded-For", "192.0.2.1"),
            ("x-forwarded-for", "127.0.0.1"),
            ("X-Forwarded-Host", "localhost"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Anything", ""),
            ("Via", "1.1 proxy"),
        ] {
            let call = Call::new(method.clone(), route).with("jobId", "ab").header("host", "localhost");
            let (status, text) = app.send(call.header(name, value)).await.error();
            assert_eq!(status, 403, "{route} {name}");
            assert!(text.contains("LOCAL_ADMIN") && text.contains("ALLOWED_ADMINS"), "{text}");
        }
    }
    // The other routes are open to everybody, under any name.
    assert_eq!(app.send(Call::get("runningjobs").header("host", "service.example")).await.ok(), json!([]));
    // This service's own page.
    app.send(Call::get("list").header("origin", app.url.clone())).await.ok();
}

#[tokio::test]
async fn without_allowed_admins_and_local_admin_everybody_is_refused() {
    let neither = App::builder().var("LOCAL_ADMIN", "0").start().await;
    // ALLOWED_ADMINS takes precedence over LOCAL_ADMIN.
    let nobody = App::builder().var("ALLOWED_ADMINS", "[]").start().await;
    let both = App::builder().var("ALLOWED_ADMINS", "0xanother").start().await;
    for app in [neither, nobody, both] {
        for (route, method) in admin_routes() {
            let call = || Call::new(method.clone(), route).with("jobId", "ab").header("host", "localhost");
            is_text(&app.send(call()).await, 400, "Admin header is empty.\nstatus code: 400");
            let wrong = "Access admin route failed due to invalid admin address.\nstatus code: 401";
            is_text(&app.send(call().header("Admin", "0xadmin")).await, 401, wrong);
        }
    }
}

#[tokio::test]
async fn there_is_no_cors() {
    let app = App::builder().var("ALLOWED_ADMINS", "0xadmin").start().await;
    for (route, method) in admin_routes() {
        for admin in ["0xadmin", "0xwrong"] {
            let call = Call::new(method.clone(), route).with("jobId", "ab").with("component", "algorithm");
            let answer = app.send(call.header("Admin", admin).header("origin", "https://page.example")).await;
            assert_eq!(answer.header("access-control-allow-origin"), "", "{route}");
        }
        let preflight = Call::new(Method::OPTIONS, route)
            .header("origin", "https://page.example")
            .header("access-control-request-method", method.to_string())
            .header("access-control-request-headers", "admin");
        let answer = app.send(preflight).await;
        assert!(answer.headers.keys().all(|name| !name.as_str().starts_with("access-control-")), "{answer:?}");
        assert!(answer.status >= 400, "{answer:?}");
    }
}

#[tokio::test]
async fn pgsqlinit_brings_the_schema_up_to_date() {
    let app = App::builder().unannounced().database(TestDatabase::empty().await).start().await;
    assert_eq!(app.send(Call::get("runningjobs")).await.error().0, 503);
    for _ in 0..2 {
        is_text(&app.send(Call::new(Method::POST, "pgsqlinit")).await, 200, "");
    }
    assert_eq!(app.send(Call::get("runningjobs")).await.ok(), json!([]));
    // With a body, as curl -d does.
    is_text(&app.send(Call::post("pgsqlinit").body("{}")).await, 200, "");
    assert_eq!(app.send(Call::get("pgsqlinit")).await.error().0, 405);
}

#[tokio::test]
async fn info_shows_the_workflow_object() {
    let app = App::start().await;
    let job = started(&app).await;
    for call in [Call::get("info").in_query(), Call::get("info").in_body()] {
        let answer = app.send(call.with("jobId", job.job_id.clone())).await.ok();
        assert_eq!(answer, app.cluster.workflow(&app.namespace, &job.job_id).await.unwrap());
        assert_eq!(answer["kind"], "WorkFlow");
        assert_eq!(answer["spec"]["metadata"]["chainId"], 8996);
    }
}

#[tokio::test]
async fn info_reads_the_namespace_that_the_database_has_for_the_job() {
    let app = App::start().await;
    let elsewhere = app.cluster.another_namespace().await;
    let job = Stored { namespace: Some(elsewhere.clone()), ..Stored::default() }.insert(&app.database).await;
    app.cluster.make_workflow(&elsewhere, &job.job_id).await;
    let answer = app.send(Call::get("info").with("jobId", job.job_id.clone())).await.ok();
    assert_eq!(answer["metadata"]["namespace"], elsewhere.as_str());
    // A job that the database does not have is looked for in the default namespace.
    app.cluster.make_workflow(&app.namespace, "made-by-hand").await;
    assert_eq!(
        app.send(Call::get("info").with("jobId", "made-by-hand")).await.ok()["metadata"]["name"],
        "made-by-hand"
    );
}

#[tokio::test]
async fn info_of_an_unknown_job_is_a_400() {
    let app = App::start().await;
    let unregistered = Stored { namespace: Some(app.namespace.clone()), ..Stored::default() };
    let unregistered = unregistered.insert(&app.database).await.job_id;
    for job_id in [&*unregistered, "0123456789abcdef0123456789abcdef", "No Name", "../../secrets", "a/b", "x"] {
        let answer = app.send(Call::get("info").with("jobId", job_id)).await;
        is_text(&answer, 400, &format!("The jobId {job_id} is not registered in your namespace."));
    }
    assert_eq!(app.send(Call::get("info")).await.error().0, 400);
}

#[tokio::test]
async fn list_names_the_workflows_of_every_environment() {
    let app = App::start().await;
    let [second, third] = [app.cluster.another_namespace().await, app.cluster.another_namespace().await];
    app.database.announce(&second, "{}").await;
    app.database.announce("never-made", "{}").await;
    for (namespace, name) in [(&app.namespace, "in-default"), (&second, "in-second"), (&third, "in-third")] {
        app.cluster.make_workflow(namespace, name).await;
    }
    let names = async |call: Call| -> BTreeSet<String> {
        let names = app.send(call).await.ok();
        let count = names.as_array().unwrap().len();
        let names: BTreeSet<String> = serde_json::from_value(names).unwrap();
        assert_eq!(names.len(), count);
        names
    };
    let set = |names: &[&str]| -> BTreeSet<String> { names.iter().map(|name| (*name).to_owned()).collect() };
    assert_eq!(names(Call::get("list")).await, set(&["in-default", "in-second"]));
    assert_eq!(names(Call::get("list").with("environment", second.clone())).await, set(&["in-second"]));
    assert_eq!(names(Call::get("list").with("environment", third).in_body()).await, set(&["in-third"]));
    assert_eq!(names(Call::get("list").with("environment", "never-made")).await, set(&[]));
}

#[tokio::test]
async fn list_returns_more_names_than_one_page_has() {
    let app = App::start().await;
    let names: BTreeSet<String> = (0..1234).map(|i| format!("workflow-{i}")).collect();
    stream::iter(&names).for_each_concurrent(16, |name| app.cluster.make_workflow(&app.namespace, name)).await;
    let listed = app.send(Call::get("list")).await.ok();
    assert_eq!(listed.as_array().unwrap().len(), names.len());
    assert_eq!(serde_json::from_value::<BTreeSet<String>>(listed).unwrap(), names);
}

#[tokio::test]
async fn logs_returns_the_log_of_the_pod() {
    let app = App::start().await;
    let job = started(&app).await;
    for component in ["configure", "algorithm", "filter", "publish"] {
        let log = format!("{component}: käse\nline 2\n");
        if !app.cluster.make_pod_with_log(&app.namespace, &job.job_id, component, log.as_bytes()).await {
            return left_out("needs a kubelet: logs of pods");
        }
        let call = Call::get("logs").with("jobId", job.job_id.clone()).with("component", component);
        is_text(&app.send(call.clone()).await, 200, &log);
        is_text(&app.send(call.in_body()).await, 200, &log);
    }
}

#[tokio::test]
async fn logs_reads_the_namespace_that_the_database_has_for_the_job() {
    let app = App::start().await;
    let elsewhere = app.cluster.another_namespace().await;
    let job = Stored { namespace: Some(elsewhere.clone()), ..Stored::default() }.insert(&app.database).await;
    if !app.cluster.make_pod_with_log(&elsewhere, &job.job_id, "algorithm", b"there").await {
        return left_out("needs a kubelet: logs of pods");
    }
    let call = Call::get("logs").with("jobId", job.job_id).with("component", "algorithm");
    is_text(&app.send(call).await, 200, "there");
}

#[tokio::test]
async fn logs_of_a_missing_pod_is_a_404() {
    let app = App::start().await;
    let job = started(&app).await;
    for job_id in [&*job.job_id, "0123456789abcdef0123456789abcdef", "No Name", "a,component!=b", "x"] {
        for component in ["configure", "algorithm", "filter", "publish"] {
            let answer = app.send(Call::get("logs").with("jobId", job_id).with("component", component)).await;
            is_text(&answer, 404, &format!("Pod with workflow={job_id} and component={component} not found"));
        }
    }
    for (job_id, component) in [
        (json!("ab"), Value::Null),
        (Value::Null, json!("algorithm")),
        (json!("ab"), json!("other")),
        (json!("ab"), json!("Algorithm")),
    ] {
        let call = Call::get("logs").with("jobId", job_id.clone()).with("component", component.clone());
        assert_eq!(app.send(call).await.error().0, 400, "{job_id} {component}");
    }
}

#[tokio::test]
async fn a_failing_cluster_is_a_503_in_bounded_time() {
    const DELAY: std::time::Duration = std::time::Duration::from_secs(120);
    let app = App::builder().cluster(Cluster::embedded().await).start().await;
    let faults = app.cluster.stand_in().faults();
    let all = fake_kubernetes::Match::any;
    let bad_days: [&dyn Fn(); 4] =
        [&|| faults.refuse_connections(), &|| faults.delay(all(), DELAY), &|| faults.answer(all(), 500), &|| {
            faults.drop_connection(all())
        }];
    for bad_day in bad_days {
        bad_day();
        let begun = std::time::Instant::now();
        let answers = ["info", "list", "logs"].map(|route| {
            let call =
                Call::get(route).with("jobId", "0123456789abcdef0123456789abcdef").with("component", "algorithm");
            app.send(call)
        });
        for answer in futures_util::future::join_all(answers).await {
            assert_eq!(answer.error().0, 503);
        }
        assert!(begun.elapsed() < DELAY / 2, "{:?}", begun.elapsed());
        faults.clear();
        assert_eq!(app.send(Call::get("list")).await.ok(), json!([]));
    }
}

#[tokio::test]
async fn an_environment_that_is_a_path_is_refused() {
    let app = App::start().await;
    app.cluster.make_workflow(&app.namespace, "in-default").await;
    let namespace = &app.namespace;
    for environment in [
        format!("nothing/../{namespace}"),
        format!("{namespace}/workflows?limit=1#"),
        format!("../namespaces/{namespace}"),
        "a/b".to_owned(),
        "..".to_owned(),
        "a b".to_owned(),
        "a%2fb".to_owned(),
        "a?b".to_owned(),
    ] {
        let answer = app.send(Call::get("list").with("environment", environment.clone())).await;
        match answer.status {
            200 => assert_eq!(answer.ok(), json!([]), "{environment}"),
            _ => assert_eq!(answer.error().0, 400, "{environment}"),
        }
    }
}

#[tokio::test]
async fn an_announcement_under_an_invalid_namespace_does_not_hide_the_others() {
    let app = App::start().await;
    app.cluster.make_workflow(&app.namespace, "in-default").await;
    for odd in ["a/b", "..", "a b", "Upper", "a?b#c", ""] {
        app.database.announce(odd, "{}").await;
    }
    assert_eq!(app.send(Call::get("list")).await.ok(), json!(["in-default"]));
}
