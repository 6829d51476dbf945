//! What engines have announced.

use super::{Database, DatabaseError};

/// An environment, as its engine last announced it.
#[derive(Debug, Clone)]
pub struct Announcement {
    /// The environment's namespace, which is also its id.
    pub namespace: String,
    /// The engine's JSON text.
    pub status: Option<String>,
    /// When, in seconds since the epoch, as text.
    pub last_seen: Option<String>,
}

impl Database {
    /// Every environment that an engine has announced: one row for each engine there ever was.
    pub async fn environments(&self) -> Result<Vec<Announcement>, DatabaseError> {
        self.run(async |connection| {
                Ok(sqlx::query_as!(
                    Announcement,
                    r#"
                    SELECT namespace, status, to_char(extract(epoch FROM lastping), 'FM9999999999990.000000') AS last_seen
                    FROM envs
                    ORDER BY namespace
                    "#
                )
                .fetch_all(connection)
                .await?)
        })
        .await
    }
}
