//! Lost connections, a restarted server, a full pool: 503 within a bounded time, and the next request works again.

use std::time::Duration;

use operator_service::config::RolesConfig;
use reqwest::Method;
use serde_json::json;
use sqlx::Executor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::given::{start, status_of};
use crate::support::{
    App, AppBuilder, Call, Key, Proxy, Stored, TestDatabase, agreement_id, caller, eventually, owner, workflow,
};

/// How long a test waits for a response before it fails. What blocks the database here blocks it for ever.
const LIMIT: Duration = Duration::from_secs(60);

/// A service whose connections to the database can be cut.
async fn behind_a_proxy(configure: impl FnOnce(AppBuilder) -> AppBuilder) -> (App, Proxy) {
    let database = TestDatabase::migrated().await;
    let proxy = Proxy::to(database.address().await).await;
    let builder = App::builder().database(database).through(&proxy);
    (configure(builder).start().await, proxy)
}

/// Sends a request while the database does not answer. The response has to be a 503 in JSON.
async fn unavailable(app: &App, call: Call) {
    let answer = tokio::time::timeout(LIMIT, app.send(call.clone())).await;
    let (status, text) = answer.unwrap_or_else(|_| panic!("{call:?} is not answered")).error();
    assert_eq!(status, 503, "{call:?} {text}");
    // It does not show the address of the database or the user.
    for secret in ["127.0.0.1", "postgres", &app.database.name] {
        assert!(!text.contains(secret), "{text}");
    }
}

/// One request of each kind that needs the database.
fn one_of_each(app: &App, key: &Key) -> Vec<Call> {
    let provider = caller::provider(key);
    vec![
        provider.start(&app.namespace, &agreement_id(), &owner(), workflow::sample()),
        provider.status(&owner(), None),
        provider.stop(&owner(), None),
        provider.delete(&owner(), None),
        provider.result(&owner(), "0123456789abcdef", 0),
        Call::get("runningjobs"),
        Call::get("environments"),
        Call::get("info").with("jobId", "0123456789abcdef"),
        Call::get("list"),
        Call::get("logs").with("jobId", "0123456789abcdef").with("component", "algorithm"),
    ]
}

/// All of them succeed, as far as they can.
async fn all_work(app: &App, calls: Vec<Call>) {
    for call in calls {
        let answer = app.send(call.clone()).await;
        assert!(answer.status < 500, "{call:?} {}", answer.text());
    }
}

#[tokio::test]
async fn a_database_that_is_down_is_a_503_and_leaves_nothing_behind() {
    let (app, proxy) = behind_a_proxy(|builder| builder).await;
    let calls = one_of_each(&app, &Key::new());
    proxy.cut();
    for call in &calls {
        unavailable(&app, call.clone()).await;
    }
    unavailable(&app, Call::post("pgsqlinit")).await;
    assert_eq!((app.database.count("jobs").await, app.database.count("usednonces").await), (0, 0));
    // The same requests, with the same nonces.
    proxy.open();
    all_work(&app, calls).await;
    assert_eq!((app.database.count("jobs").await, app.database.count("usednonces").await), (1, 4));
}

#[tokio::test]
async fn a_database_that_goes_down_is_a_503() {
    let (app, proxy) = behind_a_proxy(|builder| builder).await;
    let job = Stored::default().insert(&app.database).await;
    let status = || Call::get("compute").with("jobId", job.job_id.clone());
    for _ in 0..3 {
        assert_eq!(app.send(status()).await.ok(), json!([status_of(&job)]));
        proxy.cut();
        unavailable(&app, status()).await;
        proxy.open();
    }
    assert_eq!(app.send(status()).await.ok(), json!([status_of(&job)]));
}

#[tokio::test]
async fn a_database_that_stops_answering_is_a_503_in_bounded_time() {
    let (app, proxy) = behind_a_proxy(|builder| builder).await;
    let key = Key::new();
    all_work(&app, one_of_each(&app, &key)).await;
    let calls = one_of_each(&app, &key);
    proxy.silence();
    futures_util::future::join_all(calls.iter().map(|call| unavailable(&app, call.clone()))).await;
    // New connections get no response, either.
    futures_util::future::join_all(calls.iter().map(|call| unavailable(&app, call.clone()))).await;
    proxy.open();
    eventually("the end of the outage", LIMIT, async || {
        (app.send(Call::get("runningjobs")).await.status == 200).then_some(())
    })
    .await;
    let answer = app.send(Call::get("runningjobs")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test]
async fn a_request_that_times_out_leaves_nothing_behind() {
    let (app, proxy) = behind_a_proxy(|builder| builder.var("POSTGRES_POOL_SIZE", "2")).await;
    all_work(&app, one_of_each(&app, &Key::new())).await;
    let jobs = app.database.count("jobs").await;
    let key = Key::new();
    let start = start(&app, &key);
    proxy.silence();
    unavailable(&app, start.clone()).await;
    proxy.open();
    // Whatever arrived late was not committed, or is the same job.
    let answer = app.send(start.clone()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(app.database.count("jobs").await, jobs + 1);
}

#[tokio::test]
async fn connections_that_the_server_ended_are_replaced() {
    let app = App::start().await;
    let key = Key::new();
    for _ in 0..3 {
        for call in one_of_each(&app, &key) {
            app.database.terminate_connections().await;
            let answer = app.send(call.clone()).await;
            assert!(answer.status < 500, "{call:?} {}", answer.text());
        }
    }
    // Also with a pool that is full of closed connections.
    // Several are opened, because the first requests wait for a lock.
    let mut lock = app.database.pool.begin().await.unwrap();
    lock.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let several_wait = async {
        const WAITING: &str = "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        eventually("requests that wait", LIMIT, async || (app.database.count(WAITING).await > 1).then_some(())).await;
        lock.rollback().await.unwrap();
    };
    let many = futures_util::future::join_all((0..30).map(|_| app.send(Call::get("runningjobs"))));
    let (many, ()) = tokio::join!(many, several_wait);
    assert!(many.iter().all(|answer| answer.status == 200));
    assert!(app.database.terminate_connections().await > 1);
    let many = futures_util::future::join_all((0..30).map(|_| app.send(Call::get("runningjobs")))).await;
    for answer in many {
        answer.ok();
    }
}

#[tokio::test]
async fn a_full_pool_is_a_503_and_the_next_request_works() {
    let app = App::builder().var("POSTGRES_POOL_SIZE", "2").start().await;
    let key = Key::new();
    // Two starts wait for the end of another transaction, and use all connections of the pool.
    let agreement = agreement_id();
    let mut other = app.database.pool.begin().await.unwrap();
    sqlx::query("INSERT INTO jobs (agreementid, workflowid, signerverified) VALUES ($1, 'theirs', true)")
        .bind(&agreement)
        .execute(&mut *other)
        .await
        .unwrap();
    let start = || caller::provider(&key).start(&app.namespace, &agreement, &owner(), workflow::sample());
    let waiting: Vec<Call> = (0..6).map(|_| start()).collect();
    futures_util::future::join_all(waiting.iter().map(|call| unavailable(&app, call.clone()))).await;
    other.rollback().await.unwrap();
    app.send(waiting[0].clone()).await.ok();
    app.send(waiting[1].clone()).await.is_error(400, "`agreementId` already in use for other job.");
    assert_eq!(app.database.count("jobs").await, 1);
}

#[tokio::test]
async fn a_locked_table_is_a_503_in_bounded_time() {
    let app = App::start().await;
    let job = Stored::running().insert(&app.database).await;
    let owner = job.owner.clone().unwrap();
    let mut lock = app.database.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE jobs, envs, usednonces IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    let key = Key::new();
    let calls = one_of_each(&app, &key);
    futures_util::future::join_all(calls.iter().map(|call| unavailable(&app, call.clone()))).await;
    let stop = caller::provider(&key).call(Method::PUT, &owner, None, crate::support::nonce());
    unavailable(&app, stop.clone()).await;
    lock.rollback().await.unwrap();
    all_work(&app, calls).await;
    assert_eq!(app.send(stop).await.ok()[0]["stopreq"], 1);
}

#[tokio::test]
async fn a_missing_database_or_a_refused_login_is_a_503() {
    for (name, value) in [
        ("POSTGRES_DB", "no-such-database"),
        ("POSTGRES_USER", "no-such-user"),
        ("POSTGRES_PORT", "1"),
        ("POSTGRES_HOST", "no-such-host.invalid"),
    ] {
        let app = App::builder().var(name, value).start().await;
        let answer = tokio::time::timeout(LIMIT, app.send(Call::get("runningjobs"))).await;
        let (status, text) = answer.expect(name).error();
        assert_eq!(status, 503, "{name} {text}");
        assert!(!text.contains(value), "{text}");
    }
}

#[tokio::test]
async fn a_database_without_the_schema_is_a_503_that_says_what_to_do() {
    let app = App::builder().database(TestDatabase::empty().await).unannounced().start().await;
    for call in one_of_each(&app, &Key::new()) {
        let (status, text) = app.send(call.clone()).await.error();
        assert_eq!(status, 503, "{call:?}");
        assert!(text.contains("migrate") || text.contains("pgsqlinit"), "{text}");
    }
    assert_eq!(app.send(Call::post("pgsqlinit")).await.status, 200);
    app.database.announce(&app.namespace, "{}").await;
    all_work(&app, one_of_each(&app, &Key::new())).await;
}

#[tokio::test]
async fn routes_without_a_database_are_answered_during_an_outage() {
    let (app, proxy) = behind_a_proxy(|builder| builder).await;
    proxy.silence();
    for path in ["/", "/spec", "/api/v1/docs/"] {
        assert_eq!(app.send(Call::to_path(Method::GET, path)).await.status, 200, "{path}");
    }
    // Wrong requests are answered without a database, too.
    app.send(Call::get("compute")).await.is_error(400, "You have to specify one of agreementId, jobId or owner");
}

/// With the limits that POSTGRES_ROLE_LIMITS sets.
#[tokio::test]
async fn a_statement_that_was_given_up_ends_at_the_server_too() {
    let database = TestDatabase::empty().await;
    let limits = RolesConfig { limits_own: true, ..RolesConfig::default() };
    database.service().migrate_within(LIMIT, &limits).await.unwrap();
    let mut other = database.connect().await;
    other.execute("SET idle_in_transaction_session_timeout = 0").await.unwrap();
    let app = App::builder().database(database).start().await;
    other.execute("BEGIN; LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let start = start(&app, &Key::new());
    unavailable(&app, start).await;
    eventually("no statement is left", LIMIT, async || {
        const ACTIVE: &str = "pg_stat_activity WHERE datname = current_database() \
                              AND application_name = 'operator-service' AND state <> 'idle'";
        (app.database.count(ACTIVE).await == 0).then_some(())
    })
    .await;
    // The table is still locked.
    other.execute("COMMIT").await.unwrap();
    // A migration has no limits.
    app.database.service().migrate_within(LIMIT, &limits).await.unwrap();
}

/// What the service says if a pooler gives it a session that another client has had.
#[tokio::test]
async fn a_pooler_in_transaction_mode_is_named() {
    let app = App::builder().var("POSTGRES_POOL_SIZE", "1").start().await;
    // Reading this table makes the session forget its prepared statements.
    for statement in [
        "ALTER TABLE envs RENAME TO rows",
        "CREATE FUNCTION forget() RETURNS text LANGUAGE plpgsql AS 'BEGIN DEALLOCATE ALL; RETURN NULL; END'",
        "CREATE VIEW envs AS SELECT namespace, coalesce(forget(), status) AS status, lastping FROM rows",
    ] {
        app.database.execute(statement).await;
    }
    app.send(Call::get("environments")).await.ok();
    let (status, text) = app.send(Call::get("environments")).await.error();
    assert_eq!(status, 503);
    assert!(text.contains("pooler in transaction mode"), "{text}");

    // One that refuses the start-up.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            assert!(client.read(&mut [0; 1024]).await.unwrap() > 0);
            let fields = b"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: extra_float_digits\0\0";
            let length = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
            client.write_all(&[b"E", &length[..], fields].concat()).await.ok();
        }
    });
    let pooler = App::builder()
        .var("POSTGRES_HOST", "127.0.0.1")
        .var("POSTGRES_PORT", port)
        .var("POSTGRES_SSLMODE", "disable")
        .start()
        .await;
    let (status, text) = pooler.send(Call::get("environments")).await.error();
    assert_eq!(status, 503);
    assert!(text.contains("pooler in transaction mode"), "{text}");
}
