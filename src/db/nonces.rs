//! The nonces that signers have used. Their rules are functions of the database (migrations/), so that one statement
//! checks and takes a nonce.

use sqlx::PgConnection;

use super::{Database, DatabaseError};
use crate::auth::{NonceRefused, NonceUse};

/// Why a nonce was not taken. Then nothing else was done, either.
#[derive(Debug, thiserror::Error)]
pub enum NonceError {
    /// The nonce is refused.
    #[error(transparent)]
    Refused(#[from] NonceRefused),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl From<sqlx::Error> for NonceError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.into())
    }
}

impl Database {
    /// Takes a nonce in a transaction of its own.
    pub async fn take_nonce(&self, nonce: NonceUse) -> Result<(), NonceError> {
        self.run(async |connection| take(connection, &nonce).await).await
    }

    /// Checks whether a nonce would pass now, without taking it.
    pub async fn check_nonce(&self, nonce: NonceUse) -> Result<(), NonceError> {
        self.run(async |connection| {
            let passes = sqlx::query_scalar!(
                r#"
                SELECT nonce_passes($1, $2, $3)
                   AND NOT EXISTS (SELECT FROM usednonces WHERE signer = $1 AND ns = nonce_ns($2)) AS "passes!"
                "#,
                nonce.signer.to_lowercase(),
                nonce.nonce.as_str(),
                nonce.window.as_secs_f64(),
            )
            .fetch_one(&mut *connection)
            .await?;
            if passes { Ok(()) } else { Err(why_refused(connection, &nonce).await?.into()) }
        })
        .await
    }

    /// Returns whether nonces were last pruned at least `seconds` ago.
    pub async fn nonce_pruning_due(&self, seconds: f64) -> Result<bool, DatabaseError> {
        self.run(async |connection| {
            Ok(sqlx::query_scalar!(
                r#"
                SELECT EXISTS (SELECT FROM sweeps WHERE nonceschored <= now() - make_interval(secs => $1)) AS "due!"
                "#,
                seconds
            )
            .fetch_one(connection)
            .await?)
        })
        .await
    }

    /// Deletes nonces that are more than `margin` seconds below their signer's highest, of up to 2,000 signers in the
    /// order of their addresses, starting after `after`. Those that are deleted count as used from then on, whatever the
    /// window is later. With `dry_run`, only counts them. Returns how many there were, and the last signer; `None` if
    /// there are no more.
    pub async fn prune_nonces(
        &self,
        margin: f64,
        after: &str,
        dry_run: bool,
    ) -> Result<(u64, Option<String>), DatabaseError> {
        self.run(async |connection| {
            let row = sqlx::query!(
                r#"
                WITH RECURSIVE signers AS (
                    (SELECT signer, 1 AS number FROM usednonces WHERE signer > $3 ORDER BY signer LIMIT 1)
                    UNION ALL
                    SELECT (SELECT used.signer FROM usednonces AS used WHERE used.signer > signers.signer
                            ORDER BY used.signer LIMIT 1), number + 1
                    FROM signers WHERE signers.signer IS NOT NULL AND number < 2000
                ), old AS (
                    SELECT used.signer, used.ns
                    FROM signers
                    CROSS JOIN LATERAL (
                        SELECT signer, ns FROM usednonces
                        WHERE usednonces.signer = signers.signer
                          AND ns < (SELECT max(highest.ns) FROM usednonces AS highest
                                    WHERE highest.signer = signers.signer) - $1::float8::numeric * 1e9
                        ORDER BY ns
                        LIMIT 5000
                    ) AS used
                    LIMIT 10000
                ), gone AS (
                    DELETE FROM usednonces USING old
                    WHERE NOT $2 AND usednonces.signer = old.signer AND usednonces.ns = old.ns
                    RETURNING usednonces.signer, usednonces.ns
                ), recorded AS (
                    INSERT INTO prunednonces (signer, ns)
                    SELECT signer, max(ns) FROM gone GROUP BY signer
                    ON CONFLICT (signer) DO UPDATE SET ns = greatest(prunednonces.ns, excluded.ns)
                )
                SELECT (SELECT count(*) FROM old) AS "old!", (SELECT max(signer) FROM signers) AS last
                "#,
                margin,
                dry_run,
                after
            )
            .fetch_one(connection)
            .await?;
            Ok((row.old as u64, row.last))
        })
        .await
    }

    /// Records that nonces were pruned to the end.
    pub async fn record_nonces_pruned(&self) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!("UPDATE sweeps SET nonceschored = now()")).await?;
        Ok(())
    }
}

/// Takes a nonce as part of the connection's transaction. Of concurrent attempts one passes: the others wait for that
/// transaction at the row's primary key, and at nothing else.
pub(super) async fn take(connection: &mut PgConnection, nonce: &NonceUse) -> Result<(), NonceError> {
    let taken = sqlx::query!(
        r#"
        INSERT INTO usednonces (signer, ns, nonce)
        SELECT $1, nonce_ns($2), $2
        WHERE nonce_passes($1, $2, $3)
        ON CONFLICT DO NOTHING
        "#,
        nonce.signer.to_lowercase(),
        nonce.nonce.as_str(),
        nonce.window.as_secs_f64(),
    )
    .execute(&mut *connection)
    .await?;
    if taken.rows_affected() == 1 { Ok(()) } else { Err(why_refused(connection, nonce).await?.into()) }
}

/// Determines why the database has refused a nonce.
async fn why_refused(connection: &mut PgConnection, nonce: &NonceUse) -> Result<NonceRefused, DatabaseError> {
    let row = sqlx::query!(
        r#"
        SELECT nonce_is_ahead($2, $3) AS "ahead!", (SELECT nonce FROM highest_nonce($1)) AS highest
        "#,
        nonce.signer.to_lowercase(),
        nonce.nonce.as_str(),
        nonce.window.as_secs_f64(),
    )
    .fetch_one(connection)
    .await?;
    let refused = nonce.nonce.clone();
    if row.ahead {
        return Ok(NonceRefused::Ahead(refused));
    }
    Ok(NonceRefused::Used { highest: row.highest.unwrap_or_else(|| refused.to_string()), nonce: refused })
}
