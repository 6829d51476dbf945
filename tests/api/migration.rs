//! A migration of a database in use: nobody waits for it, and its end is the same as that of an empty database.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use operator_service::config::RolesConfig;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};
use tokio::task::JoinHandle;

use crate::support::{App, Call, Stored, TestDatabase, eventually};

const LIMIT: Duration = Duration::from_secs(120);

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, work).await.expect("not done in time")
}

/// Starts a migration that may take as long as it takes.
fn migrate(database: &TestDatabase) -> JoinHandle<()> {
    let service = database.service();
    tokio::spawn(async move {
        service.migrate_within(Duration::from_secs(24 * 3600), &RolesConfig::default()).await.unwrap()
    })
}

/// What a database consists of, apart from the order of columns.
async fn schema(database: &TestDatabase) -> BTreeMap<String, String> {
    const OBJECTS: &str = "
        SELECT 'column ' || table_name || '.' || column_name, concat_ws(' ', data_type, character_maximum_length,
               column_default, is_nullable)
        FROM information_schema.columns WHERE table_schema = 'public'
        UNION ALL
        SELECT 'index ' || indexrelid::regclass, pg_get_indexdef(indexrelid) || ' ' || indisvalid
        FROM pg_index WHERE (SELECT relnamespace = 'public'::regnamespace FROM pg_class WHERE oid = indrelid)
        UNION ALL
        SELECT 'constraint ' || conname, conrelid::regclass || ' ' || pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace
        UNION ALL
        SELECT 'trigger ' || tgname, pg_get_triggerdef(oid) FROM pg_trigger
        UNION ALL
        SELECT 'function ' || oid::regprocedure, pg_get_functiondef(oid) FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace";
    let rows = sqlx::query_as(OBJECTS).fetch_all(&database.pool).await.unwrap();
    rows.into_iter().collect()
}

/// The database of the previous version of this service, with rows in it.
async fn of_the_previous_version() -> TestDatabase {
    let database = TestDatabase::of_the_python_service(1000).await;
    sqlx::migrate!().run_to(20_261_122_000_003, &database.pool).await.unwrap();
    database
        .execute(
            "INSERT INTO usednonces (signer, ns, nonce)
             SELECT '0xa' || i % 10, nonce_ns((1700000000000 + i)::text), 1700000000000 + i
             FROM generate_series(1, 1000) AS i",
        )
        .await;
    database
}

#[tokio::test]
async fn a_database_in_use_gets_the_schema_of_an_empty_one() {
    let empty = TestDatabase::empty().await;
    sqlx::migrate!().run(&empty.pool).await.unwrap();
    let expected = schema(&empty).await;

    let interrupted = TestDatabase::of_the_python_service(1000).await;
    // What builds leave behind that were interrupted: indexes that are not valid, here because the rows are not unique.
    for statement in [
        "CREATE UNIQUE INDEX CONCURRENTLY jobs_owner ON jobs (status)",
        "CREATE UNIQUE INDEX CONCURRENTLY nonces_signer ON nonces (length(provider))",
    ] {
        interrupted.pool.execute(statement).await.unwrap_err();
    }
    assert_eq!(interrupted.count("pg_index WHERE NOT indisvalid").await, 2);
    let early = TestDatabase::of_the_python_service(1000).await;
    early.execute("ALTER TABLE jobs DROP COLUMN provider, DROP COLUMN did, DROP COLUMN chainid").await;
    early.execute("DROP TABLE nonces").await;
    for database in
        [TestDatabase::of_the_python_service(1000).await, of_the_previous_version().await, interrupted, early]
    {
        in_time(migrate(&database)).await.unwrap();
        assert_eq!(schema(&database).await, expected);
        // The reaper knows every unfinished job.
        let unknown = "jobs LEFT JOIN reaperjobs USING (workflowid) WHERE datefinished IS NULL AND seensince IS NULL";
        assert_eq!(database.count(unknown).await, 0);
    }
}

/// The statements of the Python service and of the engine (docs/contract/engine.md), about job `$1`.
const STATEMENTS: [&str; 7] = [
    "INSERT INTO nonces (provider, nonce) VALUES ($1, '1692712345')",
    "INSERT INTO jobs (agreementId,workflowId,owner,status,statusText,workflow,namespace)
     VALUES ('0x' || $1, $1, '0xOldOwner', 1, 'Warming up', '{}', 'ocean-compute')",
    "UPDATE jobs SET stopreq=1 WHERE agreementId='0x' || $1 AND workflowId=$1",
    "SELECT workflow FROM jobs WHERE agreementId='0x' || $1 AND workflowId=$1 LIMIT 1",
    "UPDATE jobs SET status=40, statusText='Running algorithm' WHERE agreementId='0x' || $1 AND workflowId=$1",
    "UPDATE jobs SET outputsURL='[]' WHERE agreementId='0x' || $1 AND workflowId=$1",
    "UPDATE jobs SET dateFinished=NOW() WHERE agreementId='0x' || $1 AND workflowId=$1",
];
/// Those that read a whole table in a database of the Python service.
const SLOW_STATEMENTS: [&str; 2] =
    ["SELECT announce('ocean-compute', $1, 1)", "SELECT nonce FROM nonces WHERE provider = $1 LIMIT 1"];
/// The time between two slow statements: with this interval the engine announces itself.
const SLOW_INTERVAL: Duration = Duration::from_secs(5);

/// Engines and instances of the Python service, which execute their statements until they are stopped.
struct Users {
    stopped: Arc<AtomicBool>,
    statements: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<Duration>>,
}

impl Users {
    async fn start(database: &TestDatabase, number: usize) -> Self {
        let (stopped, statements) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = Vec::new();
        for user in 0..number {
            let mut connection = database.connect().await;
            connection.execute("SET application_name = 'user'").await.unwrap();
            let (stopped, statements) = (Arc::clone(&stopped), Arc::clone(&statements));
            tasks.push(tokio::spawn(async move {
                let mut longest = Duration::ZERO;
                let mut slow_due = Instant::now();
                while !stopped.load(Ordering::SeqCst) {
                    let job = uuid::Uuid::new_v4().simple().to_string();
                    let slow = SLOW_STATEMENTS.get(user).filter(|_| Instant::now() >= slow_due);
                    for statement in STATEMENTS.iter().chain(slow).copied() {
                        let begun = Instant::now();
                        sqlx::query(statement).bind(&job).execute(&mut connection).await.unwrap();
                        longest = longest.max(begun.elapsed());
                        statements.fetch_add(1, Ordering::SeqCst);
                    }
                    if slow.is_some() {
                        slow_due = Instant::now() + SLOW_INTERVAL;
                    }
                }
                longest
            }));
        }
        Self { stopped, statements, tasks }
    }

    /// Waits until they have executed this many more statements.
    async fn progress(&self, statements: u64) {
        let before = self.statements.load(Ordering::SeqCst);
        eventually("the users' statements are executed", LIMIT, async || {
            (self.statements.load(Ordering::SeqCst) >= before + statements).then_some(())
        })
        .await;
    }

    /// Stops them. Returns how many statements they have executed, and the duration of the longest.
    async fn stop(self) -> (u64, Duration) {
        self.stopped.store(true, Ordering::SeqCst);
        let longest = futures_util::future::join_all(self.tasks).await.into_iter().map(Result::unwrap).max();
        (self.statements.load(Ordering::SeqCst), longest.unwrap())
    }
}

/// What the migration waits for must not keep others from writing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_go_on_while_the_migration_waits() {
    for (isolation, statement) in [
        // A concurrent build of an index waits for every older snapshot.
        ("REPEATABLE READ", "SELECT count(*) FROM jobs"),
        // A change of a table waits for everybody who uses it.
        ("READ COMMITTED", "UPDATE jobs SET stopreq = 1 WHERE workflowid = 'by-hand'"),
        ("READ COMMITTED", "INSERT INTO nonces (provider, nonce) VALUES ('0x', '1')"),
    ] {
        let database = TestDatabase::of_the_python_service(1000).await;
        let mut blocker = database.connect().await;
        let begin = format!("BEGIN ISOLATION LEVEL {isolation}; {statement}");
        blocker.execute(sqlx::raw_sql(AssertSqlSafe(begin))).await.unwrap();
        let migrating = migrate(&database);
        eventually("the migration waits", LIMIT, async || {
            const WAITING: &str = "pg_stat_activity WHERE datname = current_database()
                                   AND application_name = 'operator-service' AND wait_event_type = 'Lock'";
            (database.count(WAITING).await > 0).then_some(())
        })
        .await;
        let users = Users::start(&database, 3).await;
        users.progress(500).await;
        assert!(!migrating.is_finished());
        blocker.execute("COMMIT").await.unwrap();
        in_time(migrating).await.unwrap();
        users.progress(50).await;
        users.stop().await;
    }
}

/// Whom the migration blocks, and for how long: looks every few milliseconds.
struct Watch {
    stopped: Arc<AtomicBool>,
    task: JoinHandle<BTreeMap<String, Duration>>,
}

impl Watch {
    async fn start(database: &TestDatabase) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let mut connection = database.connect().await;
        let stop = Arc::clone(&stopped);
        let task = tokio::spawn(async move {
            let mut longest = BTreeMap::new();
            let mut since: BTreeMap<i32, Instant> = BTreeMap::new();
            while !stop.load(Ordering::SeqCst) {
                let blocked = blocked_users(&mut connection).await;
                since.retain(|pid, _| blocked.contains_key(pid));
                for (pid, by) in blocked {
                    let duration = since.entry(pid).or_insert_with(Instant::now).elapsed();
                    let longest: &mut Duration = longest.entry(by).or_default();
                    *longest = duration.max(*longest);
                }
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            longest
        });
        Self { stopped, task }
    }

    /// The longest time that a user waited for a lock, by the migration's statement meanwhile.
    async fn stop(self) -> BTreeMap<String, Duration> {
        self.stopped.store(true, Ordering::SeqCst);
        self.task.await.unwrap()
    }
}

/// The users that wait for a lock, with the first words of what the migration executes.
async fn blocked_users(connection: &mut PgConnection) -> BTreeMap<i32, String> {
    const BLOCKED: &str = "
        SELECT waiting.pid, coalesce((SELECT substr(migration.query, 1, 24) FROM pg_stat_activity AS migration
                                      WHERE migration.pid = ANY (pg_blocking_pids(waiting.pid))
                                        AND migration.application_name = 'operator-service' LIMIT 1), 'others')
        FROM pg_stat_activity AS waiting
        WHERE waiting.datname = current_database() AND waiting.application_name = 'user'
          AND waiting.wait_event_type = 'Lock'";
    let rows = sqlx::query(BLOCKED).fetch_all(connection).await.unwrap();
    rows.into_iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// The number of rows that the environment asks for: large ones are for figures (docs/upgrade.md, "The migration").
fn rows(variable: &str, default: u32) -> u32 {
    std::env::var(variable).map_or(default, |number| number.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_index_is_built_while_others_wait() {
    let (nonces, jobs) = (rows("MIGRATION_NONCES", 200_000), rows("MIGRATION_JOBS", 5_000));
    let database = TestDatabase::of_the_python_service(nonces).await;
    // With 5,000 unfinished ones in a large one.
    let more = format!(
        "INSERT INTO jobs (agreementid, workflowid, owner, status, statustext, datecreated, datefinished, namespace, workflow)
         SELECT '0xb' || i, md5('b' || i), '0xowner' || i % 500, CASE WHEN i % 200 = 0 THEN 40 ELSE 70 END, 'Job finished',
                timestamp '2023-01-01' + i * interval '1 minute',
                CASE WHEN i % 200 > 0 THEN timestamp '2023-01-02' + i * interval '1 minute' END, 'ocean-compute',
                (SELECT workflow FROM jobs WHERE workflowid = 'f0000000000000000000000000000001')
         FROM generate_series(1, {jobs} - 5000) AS i"
    );
    database.pool.execute(AssertSqlSafe(more)).await.unwrap();
    let users = Users::start(&database, 4).await;
    users.progress(100).await;
    let watch = Watch::start(&database).await;
    let begun = Instant::now();
    let service = database.service();
    service.migrate_within(Duration::from_secs(24 * 3600), &RolesConfig::default()).await.unwrap();
    let schema_done = begun.elapsed();
    println!("{nonces} nonces, {jobs} jobs: the schema is up to date after {schema_done:?}");
    let blocked = watch.stop().await;
    println!("the longest waits for locks: {blocked:?}");
    for by in blocked.keys() {
        assert!(!by.contains("INDEX"), "others waited while an index was built: {blocked:?}");
    }
    let watch = Watch::start(&database).await;
    let migrated = service.migrate_to_the_end(Duration::from_secs(24 * 3600), &RolesConfig::default()).await.unwrap();
    let done = begun.elapsed();
    let blocked = watch.stop().await;
    let (statements, longest) = users.stop().await;
    println!(
        "{} jobs are summarized after {done:?}; the longest waits for locks: {blocked:?}",
        migrated.summarized_jobs
    );
    println!("{statements} statements of others, the longest {longest:?}");
    assert!(migrated.complete && migrated.summarized_jobs > u64::from(jobs), "{migrated:?}");
}

#[tokio::test]
async fn a_migration_without_enough_time_says_how_far_it_came_and_goes_on_the_next_time() {
    let database = TestDatabase::of_the_python_service(1000).await;
    let mut blocker = database.connect().await;
    blocker.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM jobs").await.unwrap();
    let service = database.service();
    let error = service.migrate_within(Duration::from_secs(2), &RolesConfig::default()).await.unwrap_err().to_string();
    assert!(error.contains("building index 1 of ") && error.contains("run `operator-service migrate`"), "{error}");
    blocker.execute("COMMIT").await.unwrap();
    in_time(migrate(&database)).await.unwrap();
    assert_eq!(database.count("pg_index WHERE NOT indisvalid").await, 0);
    // The statement of the first attempt ended by itself, and was not repeated.
    assert_eq!(database.count("pg_index WHERE indexrelid::regclass::text LIKE 'nonces_signer%'").await, 1);
}

/// A workflow's document whose `spec.metadata` is this text.
fn document(workflow: &str) -> String {
    format!(r#"{{"kind": "WorkFlow", "spec": {{"metadata": {workflow}}}}}"#)
}

#[tokio::test]
async fn the_database_summarizes_workflows_as_the_service_does() {
    let database = TestDatabase::migrated().await;
    let mut documents: Vec<Option<String>> = [
        r#""#,
        " ",
        "null",
        "7",
        r#""text""#,
        "[]",
        "{}",
        "{\"spec\"",
        "{\"spec\": 1} {}",
        r#"{"spec": []}"#,
        "\u{feff}{}",
    ]
    .map(|text| Some(text.to_owned()))
    .to_vec();
    documents.push(None);
    let stages = |stage: &str| document(&format!(r#"{{"stages": [{stage}], "chainId": 1}}"#));
    let algorithms =
        [r#"{"id": "did:op:a"}"#, r#"{"id": ""}"#, r#"{"id": 7}"#, r#"{"id": null}"#, "{}", "[]", "null", "7"];
    documents.extend(algorithms.map(|algorithm| Some(stages(&format!(r#"{{"algorithm": {algorithm}}}"#)))));
    let inputs = [
        "[]",
        "{}",
        "null",
        r#"[{"id": "did:op:1"}, {"id": ""}, {"id": "did:op:2"}, {"id": 3}, {}, [], null, "did:op:4", {"id": null}]"#,
        r#"[{"id": "did:op:1", "id": "did:op:2"}]"#,
        r#"[{"id": "käse \u00e9 \ud83d\ude00 \" \\ \\u0000 \n"}]"#,
        r#"[{"id": "\ud83d"}]"#,
        r#"[{"id": "a", "id": ""}]"#,
    ];
    documents.extend(inputs.map(|input| Some(stages(&format!(r#"{{"algorithm": {{"id": "a"}}, "input": {input}}}"#)))));
    for metadata in [
        "7",
        "[]",
        "null",
        "{}",
        r#"{"stages": []}"#,
        r#"{"stages": [null]}"#,
        r#"{"stages": [7]}"#,
        r#"{"stages": {"0": {"algorithm": {"id": "a"}}}}"#,
        r#"{"stages": [{"algorithm": {"id": "a"}}, {"algorithm": {"id": "b"}}]}"#,
        r#"{"stages": [{"algorithm": {"id": "a"}}], "stages": []}"#,
        r#"{"stages": [{"algorithm": {"id": "a", "rawcode": "\u0000 \\\\u0000 \\\u0000"}}]}"#,
    ] {
        documents.push(Some(document(metadata)));
    }
    let chains =
        ["1", r#""1""#, "1.0", "1e2", "-0", "18446744073709551615", "null", "true", r#"{"a": [1, 2]}"#, r#""""#];
    documents.extend(chains.map(|chain| Some(document(&format!(r#"{{"stages": [{{}}], "chainId": {chain}}}"#)))));
    documents.push(Some(r#"{"spec": {"metadata": {"stages": [{}]}}, "spec": {}}"#.to_owned()));
    documents.push(Some(Stored::default().workflow.unwrap()));

    let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    for document in documents {
        let (algorithm, inputs, chain): (String, String, Option<String>) =
            sqlx::query_as("SELECT * FROM workflow_summary($1)")
                .bind(&document)
                .fetch_one(&database.pool)
                .await
                .unwrap();
        let summary = json!([algorithm, parse(&inputs), chain.as_deref().map(parse)]);
        assert_eq!(summary, expected_summary(document.as_deref()), "{document:?}");
    }
    // Text cannot hold NUL, and objects nest deeper than either reads.
    for (document, algorithm) in [
        (stages(r#"{"algorithm": {"id": "a\u0000b"}}"#), "a\u{fffd}b".to_owned()),
        ("[".repeat(1_000_000), String::new()),
    ] {
        let summary: String = sqlx::query_scalar("SELECT algodid FROM workflow_summary($1)")
            .bind(&document)
            .fetch_one(&database.pool)
            .await
            .unwrap();
        assert_eq!(summary, algorithm);
    }
}

/// Algorithm, inputs and chain of a document.
fn expected_summary(document: Option<&str>) -> Value {
    let document: Value = document.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let workflow = document.pointer("/spec/metadata");
    let chain = workflow.and_then(|workflow| workflow.get("chainId")).filter(|chain| !chain.is_null());
    let Some(stage) = workflow.and_then(|workflow| workflow.pointer("/stages/0")) else {
        return json!(["", [], chain]);
    };
    let algorithm = stage.pointer("/algorithm/id").and_then(Value::as_str).filter(|id| !id.is_empty());
    let inputs = stage.get("input").and_then(Value::as_array).into_iter().flatten();
    let inputs: Vec<_> = inputs.filter_map(|input| input.get("id")?.as_str()).filter(|id| !id.is_empty()).collect();
    json!([algorithm.unwrap_or("raw"), inputs, chain])
}

#[tokio::test]
async fn old_jobs_are_summarized_after_the_migration_and_new_ones_when_they_are_written() {
    let database = TestDatabase::of_the_python_service(1000).await;
    in_time(migrate(&database)).await.unwrap();
    assert_eq!(database.count("jobs WHERE algodid IS NULL").await, 5009);
    let service = database.service();

    // The unfinished ones first.
    let (count, next) = service.summarize_jobs(&Default::default()).await.unwrap();
    assert!(count < 5009 && next.is_some());
    assert_eq!(database.count("jobs WHERE algodid IS NULL AND datefinished IS NULL").await, 0);

    // A row that somebody has locked waits, and nobody waits for it.
    let mut transaction = database.pool.begin().await.unwrap();
    transaction.execute("UPDATE jobs SET stopreq = 1 WHERE agreementid = '0xa1'").await.unwrap();
    let long = Duration::from_secs(24 * 3600);
    let migrated = in_time(service.migrate_to_the_end(long, &RolesConfig::default())).await.unwrap();
    assert_eq!((migrated.summarized_jobs, migrated.complete), (5008 - count, false));
    transaction.rollback().await.unwrap();
    let migrated = in_time(service.migrate_to_the_end(long, &RolesConfig::default())).await.unwrap();
    assert_eq!((migrated.summarized_jobs, migrated.complete), (1, true));

    // The Python service's new rows need nobody.
    database
        .execute(
            "INSERT INTO jobs (agreementId, workflowId, workflow)
             SELECT '0xnew', 'new', workflow FROM jobs WHERE workflowid = 'f0000000000000000000000000000001'",
        )
        .await;
    for job in ["new", "f0000000000000000000000000000001"] {
        let row = database.job(job).await.unwrap();
        assert_eq!((&row["algodid"], &row["inputdids"]), (&json!("did:op:algo"), &json!(r#"["did:op:data"]"#)));
    }
    let damaged = database.job("b0000000000000000000000000000001").await.unwrap();
    assert_eq!((&damaged["algodid"], &damaged["inputdids"]), (&json!(""), &json!("[]")));
    drop(App::builder().database(database).unannounced().start().await.send(Call::get("runningjobs")).await.ok());
}
