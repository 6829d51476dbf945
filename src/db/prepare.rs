//! Prepares a database in use for its migrations.
//!
//! A migration runs in one transaction, which locks its tables until it is committed: the engine, the Python service and
//! this service wait as long as it takes. So what takes long is done beforehand: indexes are built `CONCURRENTLY`, under
//! the names that the migrations use, and rows are updated in batches. The migrations then find their work done.

use sqlx::{AssertSqlSafe, Connection, PgConnection};

/// The most rows that are updated, and locked, at once.
const BATCH_ROWS: i64 = 200;

/// What is done before the migrations run. Every step may be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Changes a table without reading it: adds columns, changes defaults.
    Table { table: String, statement: String },
    /// Builds an index.
    Index { name: String, table: String, unique: bool, definition: String },
    /// Builds the index on `nonces`.
    NoncesIndex,
    /// Updates the unfinished jobs as migration 3 does.
    UnfinishedJobs,
}

/// The index with which migration 4 replaces nonces_signer.
const NONCES_INDEX: &str = "ON nonces ((lower(provider)) COLLATE \"C\")";

/// Returns the steps that prepare these migrations: their statements `ALTER TABLE … ADD COLUMN IF NOT EXISTS`,
/// `ALTER TABLE … SET DEFAULT` and `CREATE INDEX IF NOT EXISTS`.
pub(super) fn steps<'a>(migrations: impl Iterator<Item = &'a str>) -> Vec<Step> {
    let statements: Vec<String> = migrations.flat_map(statements).collect();
    let tables = statements.iter().filter_map(|statement| Step::table(statement));
    let indexes = || statements.iter().filter_map(|statement| Step::index(statement));
    let updates = statements.iter().any(|statement| statement.starts_with("UPDATE jobs SET mirrored ="));
    let mut steps = vec![Step::NoncesIndex];
    // Before the tables are changed, which can only be done between the transactions of others: these become shorter.
    steps.extend(indexes());
    steps.extend(tables);
    // Now those, too, whose columns were missing.
    steps.extend(indexes());
    steps.extend(updates.then_some(Step::UnfinishedJobs));
    steps
}

/// The statements of a migration on one line each, without comments and without the bodies of functions. A statement
/// ends with a semicolon at the end of a line.
fn statements(sql: &str) -> Vec<String> {
    let mut in_body = false;
    let mut text = String::new();
    for line in sql.lines() {
        let code = line.split("--").next().unwrap_or_default();
        let delimiters = code.matches("$$").count() + code.matches("$function$").count();
        if !in_body {
            text.push_str(code.trim());
            text.push(if code.trim_end().ends_with(';') && delimiters == 0 { '\n' } else { ' ' });
        } else if delimiters % 2 == 1 {
            text.push('\n');
        }
        in_body ^= delimiters % 2 == 1;
    }
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.filter(|line| !line.is_empty()).collect()
}

impl Step {
    fn table(statement: &str) -> Option<Self> {
        let table = statement.strip_prefix("ALTER TABLE ")?.split(' ').next()?;
        let is_quick = statement.contains("ADD COLUMN IF NOT EXISTS ") || statement.contains(" SET DEFAULT ");
        is_quick.then(|| Self::Table { table: table.to_owned(), statement: statement.to_owned() })
    }

    fn index(statement: &str) -> Option<Self> {
        let rest = statement.strip_prefix("CREATE ")?;
        let (unique, rest) = match rest.strip_prefix("UNIQUE ") {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let (name, definition) = rest.strip_prefix("INDEX IF NOT EXISTS ")?.split_once(' ')?;
        let table = definition.strip_prefix("ON ")?.split([' ', '(']).next()?;
        // Migration 2 builds it in another collation.
        if name == "nonces_signer" {
            return None;
        }
        let definition = definition.trim_end_matches(';').to_owned();
        Some(Self::Index { name: name.to_owned(), table: table.to_owned(), unique, definition })
    }

    /// The name of the index that the step builds, if it builds one.
    pub(super) fn index_name(&self) -> Option<&str> {
        match self {
            Self::Index { name, .. } => Some(name),
            Self::NoncesIndex => Some("nonces_signer"),
            Self::Table { .. } | Self::UnfinishedJobs => None,
        }
    }

    /// Does what is missing. If a table has to be locked, everybody else waits meanwhile: at most `lock_timeout`.
    pub(super) async fn run(&self, connection: &mut PgConnection, lock_timeout: &str) -> sqlx::Result<()> {
        match self {
            Self::Table { table, statement } => {
                if exists(connection, table).await? {
                    let mut transaction = connection.begin().await?;
                    // First only against VACUUM: see lock_tables.sql.
                    let statements = format!(
                        "SET LOCAL lock_timeout = '10s'; LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE;
                         SET LOCAL lock_timeout = '{lock_timeout}'; {statement}"
                    );
                    run(&mut transaction, statements).await?;
                    transaction.commit().await?;
                }
                Ok(())
            }
            Self::Index { name, table, unique, definition } => {
                if exists(connection, table).await? {
                    match ensure_index(connection, name, *unique, definition).await {
                        // A later step adds the column; this one is repeated after it.
                        Err(error) if has_code(&error, &["42703"]) => {}
                        result => result?,
                    }
                }
                Ok(())
            }
            Self::NoncesIndex => {
                if !exists(connection, "nonces").await? {
                    return Ok(());
                }
                let has_collation = sqlx::query_scalar!(
                    r#"
                    SELECT indcollation[0] = '"C"'::regcollation AS "has_collation!"
                    FROM pg_index WHERE indexrelid = to_regclass('nonces_signer')
                    "#
                )
                .fetch_optional(&mut *connection)
                .await?;
                // An index of an earlier version stays until the functions change that use it: migration 4 replaces it.
                let name = if has_collation == Some(false) { "nonces_signer_c" } else { "nonces_signer" };
                ensure_index(connection, name, false, NONCES_INDEX).await
            }
            Self::UnfinishedJobs => update_unfinished_jobs(connection).await,
        }
    }
}

/// Returns whether a statement failed because another transaction holds a lock that it needs.
pub(super) fn is_lock_conflict(error: &sqlx::Error) -> bool {
    has_code(error, &["55P03", "40P01"])
}

fn has_code(error: &sqlx::Error, codes: &[&str]) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| codes.contains(&&*code))
}

/// Returns whether a table exists.
pub(super) async fn exists(connection: &mut PgConnection, table: &str) -> sqlx::Result<bool> {
    let exists = sqlx::query_scalar!(r#"SELECT to_regclass($1) IS NOT NULL AS "exists!""#, table);
    exists.fetch_one(connection).await
}

/// Builds an index unless it exists, without keeping anybody from writing to its table. An index that an interrupted
/// build has left is built again. (None can be under construction: builds hold the migrator's lock.)
async fn ensure_index(connection: &mut PgConnection, name: &str, unique: bool, definition: &str) -> sqlx::Result<()> {
    let is_valid = sqlx::query_scalar!("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)", name);
    match is_valid.fetch_optional(&mut *connection).await? {
        Some(true) => return Ok(()),
        Some(false) => run(connection, format!("DROP INDEX CONCURRENTLY {name}")).await?,
        None => {}
    }
    tracing::info!(name, "building an index");
    let unique = if unique { "UNIQUE " } else { "" };
    run(connection, format!("CREATE {unique}INDEX CONCURRENTLY {name} {definition}")).await
}

/// Updates the unfinished jobs as migration 3 does, which then changes none of them. Rows that others have locked are
/// left to the migration.
async fn update_unfinished_jobs(connection: &mut PgConnection) -> sqlx::Result<()> {
    loop {
        // Unchecked: migration 5 drops these columns.
        let changed = sqlx::query(
            "UPDATE jobs SET mirrored = false, reapat = '-infinity', tidied = false
             WHERE ctid = ANY (ARRAY(SELECT ctid FROM jobs
                                     WHERE datefinished IS NULL AND (mirrored OR tidied OR reapat <> '-infinity')
                                     LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED))",
        );
        let changed = changed.bind(BATCH_ROWS).execute(&mut *connection).await?;
        if changed.rows_affected() == 0 {
            return Ok(());
        }
    }
}

async fn run(connection: &mut PgConnection, statement: String) -> sqlx::Result<()> {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_and_indexes_of_the_migrations_are_found() {
        let migrations = sqlx::migrate!();
        let steps = steps(migrations.iter().map(|migration| migration.sql.as_str()));
        let described: Vec<String> = steps
            .iter()
            .map(|step| match step {
                Step::Table { table, statement } => format!("{table}: {}", statement.split(' ').nth(3).unwrap()),
                Step::Index { name, unique, .. } => format!("{name}{}", if *unique { " (unique)" } else { "" }),
                other => format!("{other:?}"),
            })
            .collect();
        let indexes = [
            "uniq_agreementid_workflowid (unique)",
            "indx_owner_jobs",
            "unique_namespace (unique)",
            "jobs_active_agreement (unique)",
            "jobs_agreement",
            "jobs_workflowid",
            "jobs_owner",
            "jobs_unfinished",
            "jobs_pending",
            "jobs_unregistered",
            "jobs_reap",
            "jobs_shared_expiry",
            "jobs_unmirrored",
            "jobs_namespace",
            "usednonces_content (unique)",
            "jobs_unsummarized",
            "reaperjobs_object",
            "reaperjobs_expiry",
            "reaperjobs_configured",
            "jobs_dispatched",
            "jobs_called_off",
            "jobs_without_object",
            "jobs_valid_until",
        ];
        let tables = [
            "jobs: ADD",
            "jobs: ADD",
            "jobs: ADD",
            "jobs: ADD",
            "jobs: ADD",
            "jobs: ALTER",
            "usednonces: ADD",
            "jobs: ADD",
            "envs: ADD",
            "sweeps: ADD",
            "sweeps: ADD",
        ];
        let expected = [&["NoncesIndex"], &indexes[..], &tables, &indexes, &["UnfinishedJobs"]].concat();
        assert_eq!(described, expected);
    }
}
