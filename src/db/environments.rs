//! The environments that engines have announced.

use super::{Database, DatabaseError};
use crate::domain::{ChainId, Namespace};

/// An environment, as its engine last announced it.
#[derive(Debug, Clone)]
pub struct Announcement {
    /// The environment's namespace, which is also its id.
    pub namespace: Namespace,
    /// The engine's JSON text.
    pub status: Option<String>,
    /// When it was announced, in seconds since the epoch, as text.
    pub last_seen: Option<String>,
}

impl Database {
    /// Every environment that an engine has ever announced, one row each; with a chain, those that accept its jobs.
    pub async fn environments(&self, chain_id: Option<ChainId>) -> Result<Vec<Announcement>, DatabaseError> {
        self.run(async |connection| {
            Ok(sqlx::query_as!(
                Announcement,
                r#"
                SELECT namespace AS "namespace: Namespace", status,
                       to_char(extract(epoch FROM lastping), 'FM9999999999990.000000') AS last_seen
                FROM envs
                WHERE $1::text IS NULL OR announcement_allows(status, $1)
                ORDER BY namespace
                "#,
                chain_id.as_ref().map(ChainId::as_str)
            )
            .fetch_all(connection)
            .await?)
        })
        .await
    }
}
