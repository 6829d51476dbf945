//! The Python service's database: migrated, served, and still usable for the Python service (docs/contract/engine.md,
//! "Rows of the Python service").

use std::sync::Arc;
use std::time::Duration;

use operator_service::config::RolesConfig;
use serde_json::{Value, json};
use sqlx::Executor;

use crate::given::job_ids;
use crate::support::{App, Call, Key, TestDatabase, agreement_id, caller, eventually, nonce, owner, workflow};

const MILLION: u32 = 1_000_000;

/// The rows of a table, with the columns that the Python service has.
async fn rows(database: &TestDatabase) -> (Vec<Value>, Vec<Value>, (i64, i64)) {
    const NEW: &str = "to_jsonb(jobs) - '{signerverified,registered,validuntil,dispatchedat,reason,\
                       algodid,inputdids,workflowchain}'::text[]";
    let text = format!("SELECT ({NEW})::text FROM jobs ORDER BY agreementid, workflowid");
    let jobs: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(text)).fetch_all(&database.pool).await.unwrap();
    let envs: Vec<String> = sqlx::query_scalar(
        "SELECT (to_jsonb(envs) - '{announcedat,idleat}'::text[])::text FROM envs ORDER BY namespace",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    let nonces = sqlx::query_as("SELECT count(*), sum(hashtext(provider || coalesce(nonce, '')))::bigint FROM nonces")
        .fetch_one(&database.pool)
        .await
        .unwrap();
    let parse = |rows: Vec<String>| rows.iter().map(|row| serde_json::from_str(row).unwrap()).collect();
    (parse(jobs), parse(envs), nonces)
}

/// How long a test waits before it fails.
async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("the migration hangs")
}

async fn migrated() -> TestDatabase {
    let database = TestDatabase::of_the_python_service(1000).await;
    let migrated =
        in_time(database.service().migrate_to_the_end(Duration::from_secs(60), &RolesConfig::default())).await.unwrap();
    assert!(migrated.complete);
    database
}

async fn serve(database: TestDatabase) -> App {
    App::builder().database(database).unannounced().start().await
}

#[tokio::test]
async fn migrating_keeps_every_row_and_can_be_repeated() {
    let database = TestDatabase::of_the_python_service(MILLION).await;
    let before = rows(&database).await;
    assert_eq!((before.0.len(), before.1.len(), before.2.0), (5009, 2, 1_000_004));
    for _ in 0..2 {
        in_time(database.service().migrate()).await.unwrap();
        assert_eq!(rows(&database).await, before);
    }
    // None of these rows names its true signer.
    assert_eq!(database.count("jobs WHERE signerverified").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_migrations_all_succeed() {
    let database = TestDatabase::of_the_python_service(MILLION).await;
    let before = rows(&database).await;
    let stores = [database.service(), database.service(), database.service()];
    let done = in_time(futures_util::future::join_all(stores.iter().map(|store| store.migrate()))).await;
    for result in done {
        result.unwrap();
    }
    assert_eq!(rows(&database).await, before);

    let empty = TestDatabase::empty().await;
    let stores = [empty.service(), empty.service(), empty.service()];
    for result in in_time(futures_util::future::join_all(stores.iter().map(|store| store.migrate()))).await {
        result.unwrap();
    }
    let app = App::builder().database(empty).start().await;
    assert_eq!(app.send(Call::get("runningjobs")).await.ok(), json!([]));
}

#[tokio::test]
async fn pgsqlinit_migrates_the_old_database() {
    let database = TestDatabase::of_the_python_service(MILLION).await;
    let before = rows(&database).await;
    let app = serve(database).await;
    let answer = in_time(app.send(Call::post("pgsqlinit"))).await;
    assert_eq!((answer.status, answer.text()), (200, ""));
    assert_eq!(rows(&app.database).await, before);
    assert_eq!(app.send(Call::get("compute").with("agreementId", "0xdouble")).await.ok().as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn schemas_of_earlier_versions_of_the_python_service_are_migrated() {
    let database = TestDatabase::of_the_python_service(0).await;
    database.execute("ALTER TABLE jobs DROP COLUMN provider, DROP COLUMN did, DROP COLUMN chainid").await;
    for statement in ["DROP INDEX indx_owner_jobs", "DROP TABLE nonces"] {
        database.execute(statement).await;
    }
    in_time(database.service().migrate()).await.unwrap();
    let app = serve(database).await;
    assert_eq!(app.send(Call::get("compute").with("agreementId", "0xdouble")).await.ok().as_array().unwrap().len(), 2);
    crate::given::started_by(&announced(app).await, Key::new()).await;
}

async fn announced(app: App) -> App {
    app.database.announce(&app.namespace, "{}").await;
    app
}

#[tokio::test]
async fn a_database_in_use_is_migrated() {
    let database = Arc::new(TestDatabase::of_the_python_service(MILLION).await);
    // A long transaction of the Python service.
    let mut busy = database.pool.begin().await.unwrap();
    sqlx::query("UPDATE jobs SET stopreq=1 WHERE workflowId='by-hand'").execute(&mut *busy).await.unwrap();
    let migrating = tokio::spawn({
        let store = database.service();
        async move { store.migrate().await }
    });
    eventually("the migration waits for the transaction, or has ended", Duration::from_secs(60), async || {
        const WAITING: &str = "SELECT count(*) FROM pg_stat_activity
                               WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let waiting: i64 = sqlx::query_scalar(WAITING).fetch_one(&database.pool).await.unwrap();
        (waiting > 0 || migrating.is_finished()).then_some(())
    })
    .await;
    busy.commit().await.unwrap();
    // It either succeeded or failed, in bounded time, and can be repeated.
    let _ = in_time(migrating).await.unwrap();
    in_time(database.service().migrate()).await.unwrap();
    assert_eq!(database.count("jobs WHERE stopreq = 1").await, 1);
}

#[tokio::test]
async fn rows_of_the_python_service_are_served() {
    let app = serve(migrated().await).await;
    let found = app.send(Call::get("compute").with("owner", "0xOldOwner")).await.ok();
    let status =
        |agreement: &str, job: &str, status: i32, text: &str, created: &str, finished: Value, results: Value| {
            json!({
                "agreementId": agreement, "jobId": job, "owner": "0xOldOwner", "status": status, "statusText": text,
                "dateCreated": created, "dateFinished": finished, "results": results, "stopreq": 0, "removed": 0,
                "algoDID": "did:op:algo", "inputDID": ["did:op:data"]
            })
        };
    let expected = json!([
        status(
            "0xfailed",
            "f0000000000000000000000000000002",
            31,
            "Data provisioning failed",
            "1709546400.000000",
            json!("1709546460.000000"),
            json!("")
        ),
        status(
            "0xdouble",
            "d0000000000000000000000000000002",
            1,
            "Warming up",
            "1709373601.000000",
            json!(null),
            json!("")
        ),
        status(
            "0xdouble",
            "d0000000000000000000000000000001",
            40,
            "Running algorithm",
            "1709373600.000000",
            json!(null),
            json!("")
        ),
        status(
            "0xfinished",
            "f0000000000000000000000000000001",
            70,
            "Job finished",
            "1709287200.123456",
            json!("1709287500.000000"),
            json!([{ "filename": "out.txt", "filesize": 5, "type": "output" }])
        ),
    ]);
    assert_eq!(found, expected);
}

#[tokio::test]
async fn damaged_rows_of_the_python_service_are_served_with_what_is_known() {
    let app = serve(migrated().await).await;
    let found = app.send(Call::get("compute").with("owner", "0xDamaged")).await.ok();
    assert_eq!(
        job_ids(&found),
        [
            "b0000000000000000000000000000004",
            "b0000000000000000000000000000003",
            "b0000000000000000000000000000002",
            "b0000000000000000000000000000001"
        ]
    );
    for job in found.as_array().unwrap() {
        assert_eq!((&job["algoDID"], &job["inputDID"]), (&json!("raw"), &json!([])));
        assert_eq!((&job["results"], &job["stopreq"], &job["removed"]), (&json!(""), &json!(0), &json!(0)));
    }
    let by_hand = app.send(Call::get("compute").with("jobId", "by-hand")).await.ok();
    assert_eq!(by_hand[0]["agreementId"], "0xbyhand");
    let running = app.send(Call::get("runningjobs")).await.ok();
    assert_eq!(
        job_ids(&running),
        [
            "d0000000000000000000000000000001",
            "d0000000000000000000000000000002",
            "b0000000000000000000000000000001",
            "b0000000000000000000000000000002",
            "b0000000000000000000000000000003",
            "b0000000000000000000000000000004",
            "by-hand"
        ]
    );
    // Announcements, too.
    let environments = app.send(Call::get("environments")).await.ok();
    let sound =
        environments.as_array().unwrap().iter().find(|environment| environment["id"] == "ocean-compute").unwrap();
    assert_eq!(
        *sound,
        json!({ "allowedChainId": [8996], "cpuNumber": 2, "id": "ocean-compute", "lastSeen": "1709632800.000000" })
    );
}

#[tokio::test]
async fn jobs_can_be_started_in_the_migrated_database() {
    let app = announced(serve(migrated().await).await).await;
    crate::given::started(&app).await;
    let key = Key::new();
    let start = |agreement: &str| caller::provider(&key).start(&app.namespace, agreement, &owner(), workflow::sample());
    for unfinished in ["0xdouble", "0xdamaged", "0xempty", "0xnull", "0xbyhand"] {
        app.send(start(unfinished)).await.is_error(400, "`agreementId` already in use for other job.");
    }
    for finished in ["0xfinished", "0xfailed"] {
        app.send(start(finished)).await.ok();
    }
}

#[tokio::test]
async fn jobs_of_the_python_service_may_be_changed_by_any_allowed_provider() {
    let key = Key::new();
    let app = App::builder()
        .database(migrated().await)
        .var("SIGNATURE_REQUIRED", "1")
        .var("ALLOWED_PROVIDERS", key.allowed())
        .unannounced()
        .start()
        .await;
    let provider = caller::provider(&key);
    let stopped = app.send(provider.stop("0xOldOwner", Some("d0000000000000000000000000000001"))).await.ok();
    assert_eq!(stopped[0]["stopreq"], 1);
    // The signer is accepted, and the origin is contacted.
    let (status, _) = app.send(provider.result("0xOldOwner", "f0000000000000000000000000000001", 0)).await.error();
    assert_eq!(status, 502);
    app.send(provider.result("0xOther", "f0000000000000000000000000000001", 0))
        .await
        .is_error(404, "Owner 0xOther mismatch for job f0000000000000000000000000000001");
    let deleted = app.send(provider.delete("0xOldOwner", Some("f0000000000000000000000000000001"))).await.ok();
    assert_eq!(deleted[0]["removed"], 1);
}

#[tokio::test]
async fn the_python_service_can_write_to_the_migrated_schema() {
    let app = announced(serve(migrated().await).await).await;
    let pool = &app.database.pool;
    let insert = async |agreement: &str, job: &str| {
        let statement = "INSERT INTO jobs (agreementId,workflowId,owner,status,statusText,workflow,namespace,provider) \
                         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
        sqlx::query(statement)
            .bind(agreement)
            .bind(job)
            .bind("0xOldOwner")
            .bind(1)
            .bind("Warming up")
            .bind(workflow::document(job, &app.namespace).to_string())
            .bind(&app.namespace)
            .bind("0x00000000000000000000000000000000000000ff")
            .execute(pool)
            .await
            .unwrap()
    };
    // Two unfinished jobs of one agreement, which the Python service accepts; also beside one of this service.
    let ours = crate::given::started(&app).await;
    insert("0xnew", "e0000000000000000000000000000001").await;
    insert("0xnew", "e0000000000000000000000000000002").await;
    insert(&ours.agreement_id, "e0000000000000000000000000000003").await;
    insert("0xdouble", "e0000000000000000000000000000004").await;
    for job in ["e0000000000000000000000000000001", "e0000000000000000000000000000003"] {
        for statement in
            ["UPDATE jobs SET stopreq=1 WHERE workflowId=$1", " UPDATE jobs SET removed=1 WHERE workflowId=$1"]
        {
            assert_eq!(sqlx::query(statement).bind(job).execute(pool).await.unwrap().rows_affected(), 1);
        }
    }
    let key = Key::new();
    sqlx::query("INSERT INTO nonces (provider, nonce) VALUES ($1, $2)")
        .bind("0xnew")
        .bind("1")
        .execute(pool)
        .await
        .unwrap();
    let old_nonce = nonce().to_string();
    sqlx::query("INSERT INTO nonces (provider, nonce) VALUES ($1, $2)")
        .bind(&key.address)
        .bind("1")
        .execute(pool)
        .await
        .unwrap();
    sqlx::query("UPDATE nonces SET nonce=$1 WHERE provider=$2")
        .bind(&old_nonce)
        .bind(&key.address)
        .execute(pool)
        .await
        .unwrap();

    // This service treats its rows as rows of the Python service.
    let found = app.send(Call::get("compute").with("agreementId", "0xnew")).await.ok();
    assert_eq!(found.as_array().unwrap().len(), 2);
    app.send(caller::provider(&key).start(&app.namespace, "0xnew", &owner(), workflow::sample()))
        .await
        .is_error(400, "`agreementId` already in use for other job.");
    app.send(caller::provider(&key).start_at(
        &app.namespace,
        &agreement_id(),
        &owner(),
        workflow::sample(),
        old_nonce.clone(),
    ))
    .await
    .error();
    let dispatched = app.database.engine(&app.namespace, "{}", 100).await;
    for job in ["e0000000000000000000000000000002", "e0000000000000000000000000000004"] {
        assert!(dispatched.iter().any(|dispatched| dispatched == job), "{dispatched:?}");
    }
    assert!(!dispatched.iter().any(|dispatched| dispatched == "e0000000000000000000000000000001"));
}

#[tokio::test]
async fn the_python_services_own_pgsqlinit_still_works() {
    let app = serve(migrated().await).await;
    for statement in [
        "CREATE TABLE IF NOT EXISTS jobs (agreementId varchar(255) NOT NULL, workflowId varchar(255) NOT NULL)",
        "CREATE unique INDEX IF NOT EXISTS uniq_agreementId_workflowId ON jobs (agreementId,workflowId)",
        "CREATE TABLE IF NOT EXISTS envs (namespace varchar(255) NOT NULL)",
        "CREATE unique INDEX IF NOT EXISTS unique_namespace ON envs (namespace)",
        "CREATE TABLE IF NOT EXISTS nonces (provider varchar(255) NOT NULL, nonce varchar(255))",
        "ALTER TABLE jobs ADD COLUMN IF NOT EXISTS did varchar(255)",
        "ALTER TABLE jobs ADD COLUMN IF NOT EXISTS chainid varchar(255)",
        "CREATE INDEX IF NOT EXISTS indx_owner_jobs ON jobs(owner)",
        "CREATE OR REPLACE FUNCTION announce(environment varchar(255), fullstatus text, lmt int) \
           RETURNS TABLE (workflow varchar(255)) LANGUAGE plpgsql AS $function$ \
           BEGIN RETURN QUERY SELECT workflowid FROM jobs WHERE namespace=environment AND status=1 LIMIT lmt; END \
         $function$",
    ] {
        app.database.execute(statement).await;
    }
    in_time(app.database.service().migrate()).await.unwrap();
    assert_eq!(app.send(Call::get("compute").with("agreementId", "0xdouble")).await.ok().as_array().unwrap().len(), 2);
}

/// The definition of announce() in the database.
async fn announce(database: &TestDatabase) -> String {
    const DEFINITION: &str = "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE proname = 'announce'";
    sqlx::query_scalar(DEFINITION).fetch_one(&database.pool).await.unwrap()
}

/// Replaces announce() with the Python service's, as its POST /pgsqlinit does.
async fn replace_announce(database: &TestDatabase) -> String {
    let old = include_str!("../python_service.sql");
    let begin = old.find("CREATE FUNCTION announce(").unwrap();
    let end = begin + old[begin..].find("$$;").unwrap() + "$$;".len();
    let statement = old[begin..end].replacen("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1);
    database.pool.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(statement))).await.unwrap();
    announce(database).await
}

#[tokio::test]
async fn every_migration_replaces_the_python_services_announce() {
    // As the migrations alone make it.
    let database = TestDatabase::empty().await;
    sqlx::migrate!().run(&database.pool).await.unwrap();
    let ours = announce(&database).await;
    for _ in 0..2 {
        in_time(database.service().migrate()).await.unwrap();
        assert_eq!(announce(&database).await, ours);
    }
    assert_ne!(replace_announce(&database).await, ours);
    in_time(database.service().migrate()).await.unwrap();
    assert_eq!(announce(&database).await, ours);

    let job = crate::support::Stored::default().insert(&database).await;
    assert_eq!(database.engine("ocean-compute", "{}", 10).await, [job.job_id]);
    assert!(database.engine("ocean-compute", "{}", 10).await.is_empty());
}

/// A deployment that is rolled back leaves the schema of the newer version.
#[tokio::test]
async fn objects_of_a_newer_version_are_kept() {
    let database = TestDatabase::migrated().await;
    let newer = replace_announce(&database).await;
    database
        .execute(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             VALUES (99991231000001, 'of a newer version', true, '', 0)",
        )
        .await;
    in_time(database.service().migrate()).await.unwrap();
    assert_eq!(announce(&database).await, newer);
}
