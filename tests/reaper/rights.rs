//! The database's roles (infra/database/roles.sql): each does what it is for, and cannot without any of its grants.

use std::sync::Arc;

use serde_json::json;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor};

use crate::fixture::{Fixture, LIMIT, count};
use crate::jobs::{RULES, one_of_each};
use crate::support::{
    App, AppBuilder, Call, Cluster, Key, Stored, TestDatabase, agreement_id, caller, nonce, owner, workflow,
};

/// What a refusal by the database looks like; what follows from one that is only logged.
const REFUSALS: [&str; 4] =
    ["The database's user may not do this", "permission denied", "was not recorded", "was not counted"];

/// Does what a role is for, with the grants that it has; then without each of them, and has to fail.
async fn needs_each_grant(database: &TestDatabase, user: &str, mut used: impl AsyncFnMut() -> Result<(), String>) {
    const GRANTS: &str = "
        SELECT privilege_type || ' ON ' || oid::regclass AS granted
        FROM pg_class, aclexplode(relacl) WHERE grantee = $1::regrole
        UNION ALL
        SELECT format('%s (%I) ON %s', privilege_type, attname, attrelid::regclass)
        FROM pg_attribute, aclexplode(attacl) WHERE grantee = $1::regrole
        UNION ALL
        SELECT format('%s ON SCHEMA %I', privilege_type, nspname)
        FROM pg_namespace, aclexplode(nspacl) WHERE grantee = $1::regrole
        UNION ALL
        SELECT format('%s ON DATABASE %I', privilege_type, datname)
        FROM pg_database, aclexplode(datacl) WHERE grantee = $1::regrole
        ORDER BY granted";
    let role = database.role(user);
    let grants: Vec<String> = sqlx::query_scalar(AssertSqlSafe(GRANTS.replace("$1", &format!("'{role}'"))))
        .fetch_all(&database.pool)
        .await
        .unwrap();
    assert!(grants.len() > 4, "{grants:?}");
    used().await.unwrap();
    let mut superfluous = Vec::new();
    for grant in grants {
        database.pool.execute(AssertSqlSafe(format!("REVOKE {grant} FROM {role}"))).await.unwrap();
        if grant.starts_with("CONNECT") {
            database.terminate_connections().await;
        }
        match used().await {
            Ok(()) => superfluous.push(grant.clone()),
            // Without these, no table is found or no connection made.
            Err(_) if grant.contains("ON SCHEMA") || grant.contains("ON DATABASE") => {}
            Err(error) => assert!(REFUSALS.iter().any(|text| error.contains(text)), "{user} without {grant}: {error}"),
        }
        database.pool.execute(AssertSqlSafe(format!("GRANT {grant} TO {role}"))).await.unwrap();
    }
    assert!(superfluous.is_empty(), "{user} does not need {superfluous:#?}");
    used().await.unwrap();
}

/// The service with the role of a function.
fn app(database: &Arc<TestDatabase>, user: &str) -> AppBuilder {
    let builder = App::builder().database(database.clone());
    database.login(user).into_iter().fold(builder, |builder, (name, value)| builder.var(name, value))
}

/// Sends requests, each of which has this status if the role has its grants.
async fn send(app: &App, requests: Vec<(Call, u16)>) -> Result<(), String> {
    for (call, expected) in requests {
        let described = format!("{} {}", call.method, call.path_and_query());
        let answer = app.send(call).await;
        if answer.status >= 500 {
            return Err(format!("{described}: {} {}", answer.status, answer.text()));
        }
        assert_eq!(answer.status, expected, "{described}: {}", answer.text());
    }
    Ok(())
}

#[tokio::test]
async fn compute() {
    let database = Arc::new(TestDatabase::with_roles().await);
    let key = Key::new();
    let signed = app(&database, "compute").var("SIGNATURE_REQUIRED", "1").var("ALLOWED_PROVIDERS", key.allowed());
    let app = signed.start().await;
    let (provider, node) = (caller::provider(&key), caller::ocean_node(&key));
    needs_each_grant(&database, "compute", async || {
        let (owner, agreement) = (owner(), agreement_id());
        let start = provider.start(&app.namespace, &agreement, &owner, workflow::sample());
        // Accepted, and answered the same again.
        send(&app, vec![(start.clone(), 200), (start.clone(), 200)]).await?;
        let job = "SELECT to_jsonb(jobs) FROM jobs WHERE owner = $1";
        let job = database.row(job, &owner).await.unwrap();
        if job["registered"] != true {
            return Err("the job's registration was not recorded".to_owned());
        }
        let job_id = job["workflowid"].as_str();
        let reused =
            provider.start_at(&app.namespace, &agreement_id(), &owner, workflow::sample(), start.text("nonce"));
        let old = provider.start_at(&app.namespace, &agreement_id(), &owner, workflow::sample(), nonce() / 2);
        let stop = provider.stop(&owner, job_id);
        send(
            &app,
            vec![
                (reused, 400),
                (old, 400),
                (provider.start(&app.namespace, &agreement, &owner, workflow::sample()), 400),
                (provider.start("unannounced", &agreement_id(), &owner, workflow::sample()), 400),
                (provider.status(&owner, job_id), 200),
                (provider.status(&owner, None), 200),
                (node.status(None, None, Some(&agreement)), 200),
                (Call::get("runningjobs"), 200),
                (stop.clone(), 200),
                (stop, 200),
                (node.stop(&owner, None, Some(&agreement)), 200),
                (provider.delete(&owner, None), 200),
            ],
        )
        .await
    })
    .await;
}

#[tokio::test]
async fn results() {
    let database = Arc::new(TestDatabase::with_roles().await);
    let key = Key::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = listener.local_addr().unwrap();
    let router = axum::Router::new().fallback(async || "the result");
    let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let signed = app(&database, "results").var("SIGNATURE_REQUIRED", "1").var("ALLOWED_PROVIDERS", key.allowed());
    let app = signed.var("RESULT_HOSTS_ALLOWED", origin.to_string()).start().await;
    let outputs =
        json!([{ "filename": "out.txt", "filesize": 5, "type": "output", "url": format!("http://{origin}/out.txt") }]);
    let job = Stored { provider: Some(key.address.clone()), outputs: Some(outputs.to_string()), ..Stored::finished() };
    let removed =
        Stored { removed: Some(1), ..Stored { job_id: uuid::Uuid::new_v4().simple().to_string(), ..job.clone() } };
    let (job, removed) = (job.insert(&database).await, removed.insert(&database).await);
    let owner = job.owner.as_deref().unwrap();
    let provider = caller::provider(&key);
    needs_each_grant(&database, "results", async || {
        let fetch = provider.result(owner, &job.job_id, 0);
        let of_node = caller::ocean_node(&key).result(owner, &job.job_id, 0);
        let expired = provider.result(owner, &removed.job_id, 0);
        let unknown = provider.result(owner, &agreement_id()[2..], 0);
        send(&app, vec![(fetch.clone(), 200), (fetch, 400), (of_node, 200), (expired, 404), (unknown, 404)]).await
    })
    .await;
    server.abort();
}

#[tokio::test]
async fn environments() {
    let database = Arc::new(TestDatabase::with_roles().await);
    let app = app(&database, "environments").start().await;
    needs_each_grant(&database, "environments", async || {
        send(&app, vec![(Call::get("environments"), 200), (Call::get("environments").with("chainId", 1), 200)]).await
    })
    .await;
}

#[tokio::test]
async fn admin() {
    let database = Arc::new(TestDatabase::with_roles().await);
    let app = app(&database, "admin").start().await;
    let job = Stored { namespace: Some(app.namespace.clone()), ..Stored::finished() }.insert(&database).await;
    app.cluster.make_workflow(&app.namespace, &job.job_id).await;
    let log = "INSERT INTO keptlogs (workflowid, component, log) VALUES ($1, 'algorithm', 'the log')";
    sqlx::query(log).bind(&job.job_id).execute(&database.pool).await.unwrap();
    needs_each_grant(&database, "admin", async || {
        let of_job = |operation| Call::get(operation).with("jobId", job.job_id.as_str());
        send(
            &app,
            vec![
                (Call::get("list"), 200),
                (of_job("info"), 200),
                (of_job("logs").with("component", "algorithm"), 200),
                (Call::post("pgsqlinit"), 200),
            ],
        )
        .await
    })
    .await;
    // It may not do what is missing.
    database.execute("DELETE FROM _sqlx_migrations WHERE version = (SELECT max(version) FROM _sqlx_migrations)").await;
    let (status, text) = app.send(Call::post("pgsqlinit")).await.error();
    assert_eq!(status, 503);
    assert!(text.contains("operator-service migrate"), "{text}");
}

#[tokio::test]
async fn reaper() {
    let database = Arc::new(TestDatabase::with_roles().await);
    let cluster = Cluster::embedded().await;
    let builder = Fixture::builder().app(|app| app.database(database.clone()).cluster(cluster));
    let variables = RULES.map(|(name, value)| (name, value.to_owned())).into_iter().chain(database.login("reaper"));
    let fixture = variables.fold(builder, |builder, (name, value)| builder.var(name, value)).start().await;
    const IDLE: &str = r#"{"currentJobs": 0}"#;
    let duties =
        ["timeLimits", "stuckSteps", "expiries", "orphans", "registrations", "requeues", "neverStarted", "nonces"];
    needs_each_grant(&database, "reaper", async || {
        let runs = database.count("sweeps, generate_series(1, runs)").await;
        fixture.expire_lease().await;
        let dispatched = fixture.row(Stored::default()).await;
        database.engine(&fixture.app.namespace, IDLE, 100).await;
        fixture.passed(&dispatched.job_id, "dispatchedat", 301).await;
        database.engine(&fixture.app.namespace, IDLE, 0).await;
        one_of_each(&fixture).await;
        fixture.row(Stored { stopreq: Some(1), ..Stored::default() }).await;
        database
            .execute(
                "UPDATE jobs SET algodid = NULL; UPDATE sweptenvs SET scanned = '-infinity';
                 UPDATE sweeps SET noncespruned = '-infinity';
                 INSERT INTO usednonces (signer, ns, nonce)
                 SELECT gen_random_uuid()::text, number * 1e17, number::text FROM generate_series(1, 9) AS number;
                 INSERT INTO usednonces (signer, ns, nonce)
                 SELECT signer, number * 1e15, number::text
                 FROM (SELECT gen_random_uuid()::text AS signer) AS new, generate_series(1, 2) AS number",
            )
            .await;
        let planned = fixture.reaper.sweep(true, LIMIT).await.map_err(|error| error.to_string())?;
        let report = fixture.try_sweep().await.map_err(|error| error.to_string())?;
        if !planned.complete || report["complete"] != true || report["problems"] != json!([]) {
            return Err(format!("{planned:?} {report:#}"));
        }
        for duty in duties {
            let [found, done, failed, left] = count(&report, duty);
            if failed > 0 {
                return Err(format!("{duty}: {report:#}"));
            }
            assert!(found > 0 && found == done + left, "{duty}: {report:#}");
        }
        match database.count("sweeps, generate_series(1, runs)").await > runs {
            true => Ok(()),
            false => Err("the sweep was not counted".to_owned()),
        }
    })
    .await;
}

#[tokio::test]
async fn engine() {
    let database = Arc::new(TestDatabase::with_roles().await);
    let [(_, user), (_, password)] = database.login("engine");
    let login = database.connect_options().username(&user).password(&password).application_name("operator-service");
    needs_each_grant(&database, "engine", async || {
        let readable = Stored::default().insert(&database).await;
        let unreadable = Stored { workflow: None, ..Stored::default() }.insert(&database).await;
        let mut engine = login.connect().await.map_err(|error| error.to_string())?;
        let mut run = async |statement: &str| {
            let text = statement.replace("$1", &format!("'{}'", readable.job_id));
            let rows = sqlx::query(AssertSqlSafe(text)).fetch_all(&mut engine).await;
            rows.map_err(|error| format!("{statement}: {error}"))
        };
        run("SELECT * FROM announce('ocean-compute', '{\"currentJobs\": 0}', 100)").await?;
        for column in ["workflow", "status", "stopreq"] {
            run(&format!("SELECT {column} FROM jobs WHERE workflowId = $1 LIMIT 1")).await?;
        }
        run("UPDATE jobs SET status = 20, statusText = 'Configuring volumes' WHERE workflowId = $1").await?;
        run("UPDATE jobs SET stopreq = 2 WHERE workflowId = $1").await?;
        for column in ["outputsURL", "configlogURL", "publishlogURL", "algologURL"] {
            run(&format!("UPDATE jobs SET {column} = '[]' WHERE workflowId = $1")).await?;
        }
        run("UPDATE jobs SET dateFinished = NOW() WHERE workflowId = $1").await?;
        let row = database.job(&unreadable.job_id).await.unwrap();
        assert_eq!(row["status"], 41);
        Ok(())
    })
    .await;
}
