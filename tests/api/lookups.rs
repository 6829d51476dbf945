//! No request reads a whole table.

use std::time::Duration;

use reqwest::Method;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor, Row};

use crate::support::{App, Call, Key, Stored, TestDatabase, agreement_id, caller, eventually, nonce, owner, workflow};

const FILL: [&str; 6] = [
    "INSERT INTO jobs (agreementid, workflowid, owner, status, statustext, datecreated, datefinished, namespace, workflow, \
                       provider, signerverified) \
     SELECT 'agreement' || i / 2, md5(i::text), 'owner' || i % 20000, 70, 'Job finished', now() - i * interval '1 minute', \
            now(), 'ocean-compute', '{}', '0x' || md5((i % 7)::text), i % 2 = 0 \
     FROM generate_series(1, 60000) AS i",
    "INSERT INTO jobs (agreementid, workflowid, owner, status, statustext, namespace, workflow) \
     SELECT 'unfinished' || i, md5('u' || i), 'owner' || i, 40, 'Running algorithm', 'ocean-compute', '{}' \
     FROM generate_series(1, 50) AS i",
    "INSERT INTO jobs (agreementid, workflowid, owner, status, namespace, workflow, registered) \
     SELECT 'waiting' || i, md5('w' || i), 'owner' || i, 1, 'ocean-compute', '{}', true FROM generate_series(1, 50000) AS i",
    "INSERT INTO nonces (provider, nonce) \
     SELECT '0x' || md5(i::text), (1692712345000000000 + i)::text FROM generate_series(1, 100000) AS i",
    "INSERT INTO usednonces (signer, ns, nonce) \
     SELECT '0x' || md5((i % 1000)::text), 1692712345000000000 + i, (1692712345000000000 + i)::text \
     FROM generate_series(1, 100000) AS i",
    "ANALYZE",
];

/// The number of sequential scans and of index scans of each table, as the server counts them.
async fn scans(database: &TestDatabase) -> Vec<(String, i64, i64)> {
    // A connection reports its counts at its end, at the latest. This connection is not ended.
    let mut connection = database.connect().await;
    let statement = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                     WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'";
    eventually("the end of all connections", Duration::from_secs(20), async || {
        let left: i64 = sqlx::query_scalar(statement).fetch_one(&mut connection).await.unwrap();
        (left == 0).then_some(())
    })
    .await;
    let rows = sqlx::query(
        "SELECT relname::text, seq_scan, coalesce(idx_scan, 0) FROM pg_stat_user_tables \
         WHERE relname IN ('jobs', 'nonces', 'usednonces') ORDER BY relname",
    );
    let rows = rows.fetch_all(&mut connection).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

/// The nodes of a plan that read a table: its name, and the index that finds the rows.
fn reads(plan: &Value) -> Vec<(String, Option<String>)> {
    let text = |name: &str| plan.get(name).and_then(Value::as_str).map(str::to_owned);
    let node = text("Node Type").unwrap_or_default();
    let mut reads = match text("Relation Name") {
        Some(table) if node == "Seq Scan" => vec![(table, None)],
        Some(table) if text("Index Name").is_some() => vec![(table, text("Index Name"))],
        _ if node == "Bitmap Index Scan" => vec![("(bitmap)".to_owned(), text("Index Name"))],
        _ => Vec::new(),
    };
    for child in plan.get("Plans").and_then(Value::as_array).into_iter().flatten() {
        reads.extend(self::reads(child));
    }
    reads
}

/// The plan that the server keeps for each statement of the service, once it has been executed more than five times: the
/// one for any values.
#[tokio::test]
async fn the_generic_plan_of_every_statement_uses_the_narrowest_index() {
    let database = TestDatabase::migrated().await;
    for statement in FILL {
        database.execute(statement).await;
    }
    // An owner with very many jobs.
    database
        .execute(
            "INSERT INTO jobs (agreementid, workflowid, owner, status, datecreated, datefinished, namespace, signerverified) \
             SELECT 'of-many' || i, md5('many' || i), 'many', 70, now(), now(), 'ocean-compute', true \
             FROM generate_series(1, 100000) AS i",
        )
        .await;
    database.execute("ANALYZE").await;
    let mut connection = database.connect().await;
    connection.execute("SET plan_cache_mode = force_generic_plan").await.unwrap();
    let mut checked = 0;
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.sqlx")).unwrap() {
        let recorded: Value = serde_json::from_slice(&std::fs::read(file.unwrap().path()).unwrap()).unwrap();
        let query = recorded["query"].as_str().unwrap();
        const TABLES: [&str; 6] =
            ["FROM jobs", "UPDATE jobs", "JOIN jobs", "FROM reaperjobs", "UPDATE reaperjobs", "FROM usednonces"];
        if !TABLES.iter().any(|table| query.contains(table)) {
            continue;
        }
        let parameters = recorded["describe"]["parameters"]["Left"].as_array().unwrap().len();
        let values = if parameters == 0 { String::new() } else { format!("({})", vec!["NULL"; parameters].join(", ")) };
        connection.execute(AssertSqlSafe(format!("PREPARE statement AS {query}"))).await.unwrap();
        let explain = AssertSqlSafe(format!("EXPLAIN (FORMAT JSON) EXECUTE statement {values}"));
        let plan = connection.fetch_one(explain).await.unwrap();
        let plan: Value = serde_json::from_str(plan.try_get_raw(0).unwrap().as_str().unwrap()).unwrap();
        connection.execute("DEALLOCATE statement").await.unwrap();
        let reads = reads(&plan[0]["Plan"]);
        println!("{}\n    {reads:?}", query.split_whitespace().collect::<Vec<_>>().join(" "));
        for (table, index) in &reads {
            let index = index.as_deref();
            assert!(
                index.is_some() || !matches!(&**table, "jobs" | "reaperjobs" | "nonces" | "usednonces"),
                "{query}\n{plan:#}"
            );
            // One job is not searched for among all of its owner's.
            let of_one_job = ["workflowid = $", "agreementid = $"].iter().any(|condition| query.contains(condition));
            let of_owner = index.is_some_and(|index| matches!(index, "jobs_owner" | "indx_owner_jobs"));
            assert!(!(of_one_job && of_owner), "{query}\n{plan:#}");
        }
        checked += 1;
    }
    assert!(checked > 20, "{checked}");
}

/// Makes a request that can be sent repeatedly.
type Request<'a> = Box<dyn Fn() -> Call + 'a>;

#[tokio::test]
async fn every_lookup_uses_an_index() {
    let key = Key::new();
    // One connection, so that its statements are repeated until the server uses generic plans.
    let app = App::builder().var("POSTGRES_POOL_SIZE", "1").start().await;
    for statement in FILL {
        app.database.execute(statement).await;
    }
    app.database.old_nonce(&key.address, Some("1692712345000000000")).await;
    let job = Stored { provider: Some(key.address.clone()), ..Stored::finished() }.insert(&app.database).await;
    let job_owner = job.owner.clone().unwrap();

    let provider = caller::provider(&key);
    let requests: Vec<(&str, Request<'_>)> = vec![
        ("a start", {
            let (key, namespace) = (key.clone(), app.namespace.clone());
            Box::new(move || caller::provider(&key).start(&namespace, &agreement_id(), &owner(), workflow::sample()))
        }),
        ("a start of an agreement in use", {
            let (key, namespace) = (key.clone(), app.namespace.clone());
            Box::new(move || caller::provider(&key).start(&namespace, "unfinished7", &owner(), workflow::sample()))
        }),
        ("status by job", Box::new(|| Call::get("compute").with("jobId", job.job_id.clone()))),
        ("status by agreement", Box::new(|| Call::get("compute").with("agreementId", "agreement77"))),
        ("a signed status", Box::new(|| provider.status(&job_owner, Some(&job.job_id)))),
        ("status by owner", Box::new(|| Call::get("compute").with("owner", "owner77"))),
        ("status by job and owner", {
            Box::new(|| Call::get("compute").with("owner", job_owner.clone()).with("jobId", job.job_id.clone()))
        }),
        ("status by agreement and owner", {
            Box::new(|| Call::get("compute").with("owner", "owner77").with("agreementId", "agreement77"))
        }),
        ("status by all three", {
            Box::new(|| {
                Call::get("compute")
                    .with("owner", job_owner.clone())
                    .with("agreementId", job.agreement_id.clone())
                    .with("jobId", job.job_id.clone())
            })
        }),
        ("a stop by owner", Box::new(|| provider.stop(&job_owner, None))),
        ("a stop by job", Box::new(|| provider.stop(&job_owner, Some(&job.job_id)))),
        ("a delete by job", Box::new(|| provider.call(Method::DELETE, "nobody", Some(&job.job_id), nonce()))),
        ("a result", Box::new(|| provider.result(&job_owner, &job.job_id, 0))),
        ("the unfinished jobs", Box::new(|| Call::get("runningjobs"))),
        ("the environments", Box::new(|| Call::get("environments").with("chainId", "1"))),
        ("info", Box::new(|| Call::get("info").with("jobId", job.job_id.clone()))),
        ("list", Box::new(|| Call::get("list"))),
    ];
    let mut before = scans(&app.database).await;
    let mut wrong = Vec::new();
    for (what, request) in &requests {
        for _ in 0..12 {
            let answer = app.send(request()).await;
            let expected = match *what {
                "a start of an agreement in use" | "info" => 400,
                "a result" => 404,
                _ => 200,
            };
            assert_eq!(answer.status, expected, "{what}: {}", answer.text());
        }
        let after = scans(&app.database).await;
        for (before, after) in before.iter().zip(&after) {
            if after.1 > before.1 {
                wrong.push(format!("{what}: {} times {} whole", after.1 - before.1, after.0));
            }
        }
        before = after;
    }
    let engine = app.database.engine("ocean-compute", "{}", 5).await;
    assert_eq!(engine, [""; 0]);
    let after = scans(&app.database).await;
    if after[0].1 > before[0].1 {
        wrong.push("announce(): jobs".to_owned());
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // The counts are not all zero.
    assert!(after.iter().all(|(_, _, through_an_index)| *through_an_index > 0), "{after:?}");
}
