//! The time of a sweep, which is handed down to its duties.

use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use crate::db::DatabaseError;

/// The time until which something new may be begun.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget(Instant);

/// Why a duty ended before everything was done. What is left is due in the next sweep.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stop {
    #[error("the time is over")]
    OutOfTime,
    #[error("the cluster is not available")]
    ClusterDown,
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl Budget {
    pub(super) fn until(deadline: Instant) -> Self {
        Self(deadline)
    }

    pub(super) fn deadline(self) -> Instant {
        self.0
    }

    /// Half of the time that is left.
    pub(super) fn half(self) -> Self {
        let now = Instant::now();
        Self(now + self.0.saturating_duration_since(now) / 2)
    }

    pub(super) fn check(self) -> Result<(), Stop> {
        if Instant::now() < self.0 { Ok(()) } else { Err(Stop::OutOfTime) }
    }

    /// Performs actions, at most `limit` concurrently, and begins none when the time is over.
    pub(super) async fn for_each<'f, T>(
        self,
        limit: usize,
        items: Vec<T>,
        action: impl Fn(T) -> BoxFuture<'f, ()>,
    ) -> Result<(), Stop> {
        let mut result = Ok(());
        let in_time = items.into_iter().map_while(|item| {
            result = self.check();
            result.is_ok().then(|| action(item))
        });
        stream::iter(in_time).buffer_unordered(limit).collect::<()>().await;
        result
    }
}
