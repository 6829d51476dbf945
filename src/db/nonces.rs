//! The nonces that signers have used. Their rules are functions of the database (migrations/), so that one statement
//! checks and takes a nonce.

use uuid::Uuid;

use super::session::STATEMENT_EXPIRY;
use super::{Database, DatabaseError};
use crate::auth::{NonceRefused, NonceUse};

/// Why a request's nonce was not accepted. Then nothing else was done, either.
#[derive(Debug, thiserror::Error)]
pub enum NonceError {
    /// The nonce is refused.
    #[error(transparent)]
    Refused(#[from] NonceRefused),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

/// The arguments of the functions `nonce_refusal` and `use_nonce`. Without a nonce, all are NULL.
#[derive(Debug, Default)]
pub(super) struct NonceArguments {
    pub signer: Option<String>,
    pub nonce: Option<String>,
    pub window: Option<f64>,
    pub shared: Option<bool>,
    pub request: Option<Vec<u8>>,
}

impl NonceArguments {
    pub(super) fn new(nonce: Option<&NonceUse>) -> Self {
        nonce.map_or_else(Self::default, |nonce| Self {
            signer: Some(nonce.signer.to_lowercase()),
            nonce: Some(nonce.nonce.to_string()),
            window: Some(nonce.window.as_secs_f64()),
            shared: Some(nonce.shared),
            request: Some(nonce.request.to_vec()),
        })
    }
}

/// What these functions return.
#[derive(Debug)]
pub(super) struct NonceResult {
    pub refusal: Option<String>,
    pub highest: Option<String>,
    pub made: Option<String>,
}

/// Whether a request may go on.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It may: its nonce is accepted, or it has none.
    Accepted,
    /// The same request has used the nonce.
    Repeated {
        /// What it made (`usednonces.made`).
        made: String,
        /// Why it is refused, if it cannot be answered as it was.
        refused: NonceRefused,
    },
    /// It may not.
    Refused(NonceRefused),
}

impl Verdict {
    /// Whether a request may go on that may not be repeated.
    pub(super) fn once(self) -> Result<(), NonceRefused> {
        match self {
            Self::Accepted => Ok(()),
            Self::Repeated { refused, .. } | Self::Refused(refused) => Err(refused),
        }
    }
}

impl NonceResult {
    pub(super) fn verdict(self, nonce: Option<&NonceUse>) -> Verdict {
        let (Some(refusal), Some(NonceUse { nonce, window, .. })) = (self.refusal, nonce) else {
            return Verdict::Accepted;
        };
        let (nonce, window) = (nonce.clone(), *window);
        let highest = self.highest.unwrap_or_else(|| nonce.to_string());
        let refused = match refusal.as_str() {
            "ahead" => NonceRefused::Ahead { nonce, window },
            "old" => NonceRefused::Old { highest, nonce, window },
            _ => NonceRefused::Used { highest, nonce },
        };
        match self.made {
            Some(made) => Verdict::Repeated { made, refused },
            None => Verdict::Refused(refused),
        }
    }
}

impl Database {
    /// Uses a nonce for a request that may not be repeated.
    pub async fn use_nonce(&self, nonce: NonceUse) -> Result<(), NonceError> {
        let attempt = Uuid::new_v4().simple().to_string();
        let result = self.run(async |connection| {
            let arguments = NonceArguments::new(Some(&nonce));
            Ok(sqlx::query_as!(
                NonceResult,
                "SELECT refusal, highest, made FROM use_nonce($1, $2, $3, $4, $5, $6)
                 WHERE in_time($7, (refusal IS NULL)::int)",
                arguments.signer,
                arguments.nonce,
                arguments.window,
                arguments.shared,
                arguments.request,
                attempt,
                STATEMENT_EXPIRY.as_secs_f64()
            )
            .fetch_one(connection)
            .await?)
        });
        result.await?.verdict(Some(&nonce)).once()?;
        Ok(())
    }

    /// Returns whether nonces were last pruned at least `seconds` ago.
    pub async fn nonce_pruning_due(&self, seconds: f64) -> Result<bool, DatabaseError> {
        self.run(async |connection| {
            Ok(sqlx::query_scalar!(
                r#"
                SELECT EXISTS (SELECT FROM sweeps WHERE noncespruned <= now() - make_interval(secs => $1)) AS "due!"
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
        self.run_once(async |connection| {
            let row = sqlx::query!(
                r#"
                WITH RECURSIVE signers AS (
                    (SELECT signer, 1 AS number FROM usednonces WHERE signer > $3 ORDER BY signer LIMIT 1)
                    UNION ALL
                    SELECT (SELECT used.signer FROM usednonces AS used WHERE used.signer > signers.signer
                            ORDER BY used.signer LIMIT 1), number + 1
                    FROM signers WHERE signers.signer IS NOT NULL AND number < 2000
                ), old AS (
                    SELECT used.place
                    FROM signers
                    CROSS JOIN LATERAL (
                        SELECT ctid AS place FROM usednonces
                        WHERE usednonces.signer = signers.signer
                          AND ns < (SELECT max(highest.ns) FROM usednonces AS highest
                                    WHERE highest.signer = signers.signer) - $1::float8::numeric * 1e9
                        ORDER BY ns
                        LIMIT 5000
                    ) AS used
                    LIMIT 10000
                ), gone AS (
                    DELETE FROM usednonces
                    WHERE NOT $2 AND ctid = ANY (ARRAY(SELECT place FROM old))
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
        self.execute(sqlx::query!("UPDATE sweeps SET noncespruned = now()")).await?;
        Ok(())
    }
}
