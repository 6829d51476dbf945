//! The jobs of a database, made with SQL.

use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};

use crate::requests::{document, workflow};
use crate::stack::NAMESPACE;

/// Takes the place of a job's id in what every job has.
const JOB: &str = "<job>";

/// What a database holds.
#[derive(Debug, Clone, Copy)]
pub struct Jobs {
    /// Jobs in all.
    pub number: usize,
    /// Those of them that are unfinished.
    pub unfinished: usize,
    /// The status of these: 1 waiting, 40 running.
    pub status: i32,
    /// The length of a workflow, in bytes, if it is more than that of a usual one.
    pub workflow: usize,
}

/// Inserts the jobs as this service leaves them there, and has the planner know them.
pub async fn fill(connection: &mut PgConnection, jobs: Jobs) -> anyhow::Result<()> {
    let Jobs { number, unfinished, status, workflow: length } = jobs;
    let text = document(JOB, &workflow()).to_string();
    let outputs = r#"[{"filename": "out.csv", "filesize": 5, "url": "https://example.org/<job>/out.csv", "type": "output"},
        {"filename": "algorithm.log", "filesize": 5, "url": "https://example.org/<job>/log", "type": "algorithmLog"}]"#;
    // As long as wanted, and not to be compressed; each job's is another.
    let padding = length.saturating_sub(text.len());
    let blocks = padding.div_ceil(32).max(1);
    let insert = format!(
        r#"
        INSERT INTO jobs (agreementid, workflowid, owner, status, statustext, datecreated, datefinished, outputsurl,
                          namespace, workflow, provider, chainid, algodid, inputdids, workflowchain, signerverified)
        SELECT md5('agreement' || n), md5('job' || n), '0x' || left(md5('owner' || n / 20) || md5('owner'), 40),
               CASE WHEN n > {unfinished} THEN 70 ELSE {status} END,
               CASE WHEN n > {unfinished} THEN 'Job finished' ELSE 'Unfinished' END,
               now() - interval '30 days' - n * interval '1 second',
               CASE WHEN n > {unfinished} THEN now() - interval '29 days' - n * interval '1 second' END,
               CASE WHEN n > {unfinished} THEN replace($2, '{JOB}', md5('job' || n)) END,
               '{NAMESPACE}', replace($1, '{JOB}', md5('job' || n)) || left(padding, {padding}), '0x' || repeat('0', 40), '8996',
               'did:op:5a1f', '["did:op:87bd"]', '8996', true
        FROM generate_series(1, {number}) AS n
        CROSS JOIN LATERAL (SELECT CASE WHEN {padding} = 0 THEN '' ELSE string_agg(md5(n || ' ' || block), '') END AS padding
                            FROM generate_series(1, {blocks}) AS block) AS padded
        "#
    );
    // Without the triggers, which would write the same rows of `reaperjobs` one by one. Nothing is due for any job.
    connection.execute("SET session_replication_role = replica").await?;
    sqlx::query(AssertSqlSafe(insert)).bind(text).bind(outputs).execute(&mut *connection).await?;
    let record = "INSERT INTO reaperjobs (workflowid) SELECT workflowid FROM jobs ON CONFLICT DO NOTHING";
    connection.execute(record).await?;
    connection.execute("RESET session_replication_role").await?;
    connection.execute("VACUUM ANALYZE").await?;
    Ok(())
}

/// Owners and ids of up to `limit` jobs, from everywhere in the table.
pub async fn some_jobs(connection: &mut PgConnection, limit: usize) -> anyhow::Result<Vec<(String, String)>> {
    let statement = format!(
        "SELECT owner, workflowid FROM jobs WHERE agreementid NOT LIKE '0x%' ORDER BY md5(workflowid) LIMIT {limit}"
    );
    let rows = connection.fetch_all(AssertSqlSafe(statement)).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Deletes the jobs that were started since [`fill`], so that each round meets the same.
pub async fn delete_started(connection: &mut PgConnection) -> anyhow::Result<()> {
    connection
        .execute(
            "DELETE FROM reaperjobs WHERE workflowid IN (SELECT workflowid FROM jobs WHERE agreementid LIKE '0x%')",
        )
        .await?;
    connection.execute("DELETE FROM jobs WHERE agreementid LIKE '0x%'").await?;
    connection.execute("VACUUM usednonces, jobs, reaperjobs").await?;
    Ok(())
}
