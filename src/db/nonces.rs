//! The nonces that signers have used. The rules are functions of the database (migrations/), so that checking
//! and taking are one statement.

use sqlx::PgConnection;

use super::{Database, DatabaseError};
use crate::auth::{NonceRefused, NonceUse};

impl Database {
    /// Takes a nonce on its own, where nothing else is written.
    pub async fn take_nonce(&self, nonce: NonceUse) -> Result<Result<(), NonceRefused>, DatabaseError> {
        self.run(async |connection| take(connection, &nonce).await).await
    }

    /// Whether a nonce would pass now, without taking it.
    pub async fn peek_nonce(&self, nonce: NonceUse) -> Result<Result<(), NonceRefused>, DatabaseError> {
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
            if passes { Ok(Ok(())) } else { why_refused(connection, &nonce).await.map(Err) }
        })
        .await
    }
}

/// Takes a nonce as part of whatever transaction the connection is in. Of many at once, one passes: the
/// others wait for that one's transaction at the row's primary key, and at nothing else.
pub(super) async fn take(
    connection: &mut PgConnection,
    nonce: &NonceUse,
) -> Result<Result<(), NonceRefused>, DatabaseError> {
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
    if taken.rows_affected() == 1 { Ok(Ok(())) } else { why_refused(connection, nonce).await.map(Err) }
}

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
    let attempt = nonce.nonce.clone();
    if row.ahead {
        return Ok(NonceRefused::Ahead(attempt));
    }
    Ok(NonceRefused::Used { highest: row.highest.unwrap_or_else(|| attempt.to_string()), nonce: attempt })
}
