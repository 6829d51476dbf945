//! Connections to the database: none is lost with a request that was given up, and none is used after the response.

use std::time::Duration;

use reqwest::Method;
use sqlx::{Connection, PgConnection};

use crate::given::start;
use crate::support::{App, Call, Key, Proxy, TestDatabase, caller, eventually, owner};

/// How long a test waits for what has to happen before it fails.
const LIMIT: Duration = Duration::from_secs(60);

/// Locks a table against everybody else, until it is closed.
async fn lock_jobs(database: &TestDatabase) -> PgConnection {
    let mut connection = database.connect().await;
    sqlx::query("BEGIN").execute(&mut connection).await.unwrap();
    sqlx::query("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE").execute(&mut connection).await.unwrap();
    connection
}

/// Waits until that many statements wait for a lock.
async fn waiting(database: &TestDatabase, number: i64) {
    let statement = "SELECT count(*) FROM pg_stat_activity \
                     WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually(&format!("{number} statements that wait"), LIMIT, async || {
        let waiting: i64 = sqlx::query_scalar(statement).fetch_one(&database.pool).await.unwrap();
        (waiting == number).then_some(())
    })
    .await;
}

#[tokio::test]
async fn ten_callers_who_give_up_do_not_use_up_the_pool() {
    let app = App::builder().var("POSTGRES_POOL_SIZE", "10").start().await;
    let key = Key::new();
    let start = || start(&app, &key);
    let status = || Call::get("compute").with("owner", owner());
    for calls in [[(); 10].map(|()| start()), [(); 10].map(|()| status())] {
        let lock = lock_jobs(&app.database).await;
        let sent = calls.clone().map(|call| {
            let request = call.request(&app.client, &app.url);
            tokio::spawn(async move { request.send().await.map(drop) })
        });
        waiting(&app.database, 10).await;
        for request in &sent {
            // Closes its connection.
            request.abort();
        }
        assert_eq!(app.send(Call::get("environments")).await.status, 200);
        lock.close().await.unwrap();
        // Their requests may have been done or not; repeated, they succeed.
        for call in calls {
            app.send(call).await.ok();
        }
    }
    assert_eq!(app.database.count("jobs").await, 10);
}

/// A Lambda environment may be frozen as soon as it has answered.
#[tokio::test]
async fn nothing_is_sent_to_the_database_after_the_response() {
    let database = TestDatabase::migrated().await;
    let proxy = Proxy::to(database.address().await).await;
    let app = App::builder().database(database).through(&proxy).start().await;
    let key = Key::new();
    for _ in 0..20 {
        for call in [
            start(&app, &key),
            caller::provider(&key).stop(&owner(), None),
            Call::get("environments"),
            Call::get("compute").with("owner", owner()),
        ] {
            assert_eq!(app.send(call.clone()).await.status, 200, "{call:?}");
            let (begun, answered) = proxy.steps();
            assert_eq!(begun, answered, "{call:?}");
            assert_eq!(app.send(Call::to_path(Method::GET, "/")).await.status, 200);
            assert_eq!(proxy.steps(), (begun, answered), "{call:?}");
        }
    }
}
