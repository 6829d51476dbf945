//! What the server logs.

use crate::child::{Directory, Service, run, stderr};
use crate::fixture::{OWNER, get, parts};
use crate::support::{Stored, eventually};

#[tokio::test]
async fn log_cfg_names_a_file_that_is_logged_to_as_well() {
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
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(message.contains("LOG_CFG"), "{message}");
}

#[tokio::test]
async fn log_level_accepts_the_python_services_names_and_filters() {
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
        // A request is logged before its response is sent.
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
    for part in ["method=GET", "/api/v1/operator/compute", "status=400", "milliseconds="] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    assert!(!line.contains("0xsigned") && !line.contains(OWNER), "{line}");
}

#[tokio::test]
async fn damaged_rows_are_logged_once_for_each_answer_with_their_number() {
    let (database, _key, env) = parts().await;
    for workflow in ["{", "null", "[]"] {
        Stored { workflow: Some(workflow.to_owned()), ..Stored::running() }.insert(&database).await;
    }
    let intact = Stored::running().insert(&database).await;
    let mut service = Service::start(&env).await;
    let logged = |service: &Service| service.process.output().matches("damaged or empty").count();
    for answers in 1..=2 {
        let listed = get(&service, "/api/v1/operator/runningjobs").await.ok();
        assert_eq!(listed.as_array().unwrap().len(), 4, "{listed:#}");
        assert!(listed.to_string().contains(&intact.job_id));
        // What was logged for the list comes before what is logged for the next request.
        get(&service, "/api/v1/operator/compute?owner=nobody").await;
        eventually("the next request's line", crate::LIMIT, async || {
            (service.process.output().matches("answered").count() == 2 * answers).then_some(())
        })
        .await;
        assert_eq!(logged(&service), answers);
    }
    assert!(service.process.line("damaged_rows=").await.contains("damaged_rows=3"));
}
