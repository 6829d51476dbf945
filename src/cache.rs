//! A cached value: made on first use, used until it expires by the wall clock, and then made again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use tokio::sync::Mutex;

/// Caches a value. Of concurrent callers one makes it and the others wait. If that fails, it fails for all of them, and
/// the next caller tries again.
///
/// Expiry is by the wall clock: the monotonic clock of a frozen Lambda environment may stop while credentials and
/// tokens expire.
#[derive(Debug)]
pub(crate) struct Cached<T, E> {
    slot: Mutex<Slot<T, E>>,
    /// The number of attempts to make a value, failed ones included.
    attempts: AtomicU64,
}

#[derive(Debug)]
struct Slot<T, E> {
    /// The value, when it was made and when it expires.
    value: Option<(Versioned<T>, SystemTime, SystemTime)>,
    /// The last attempt that failed, and its error.
    failed: Option<(u64, E)>,
}

/// A cached value and its version: the number of the attempt that made it.
#[derive(Debug, Clone)]
pub(crate) struct Versioned<T> {
    pub(crate) value: T,
    pub(crate) version: u64,
}

impl<T, E> Default for Cached<T, E> {
    fn default() -> Self {
        Self { slot: Mutex::new(Slot { value: None, failed: None }), attempts: AtomicU64::new(0) }
    }
}

impl<T: Clone, E: Clone> Cached<T, E> {
    /// Returns the cached value if it has not expired at `now` and its version is not the `refused` one, else the one
    /// that `make` returns with its expiry.
    pub(crate) async fn get(
        &self,
        now: SystemTime,
        refused: Option<u64>,
        make: impl AsyncFnOnce() -> Result<(T, SystemTime), E>,
    ) -> Result<Versioned<T>, E> {
        let attempts_before = self.attempts.load(Ordering::SeqCst);
        let mut slot = self.slot.lock().await;
        if let Some((cached, since, until)) = &slot.value
            // After the clock was set back, a value that was made in its future has no known age.
            && (*since..*until).contains(&now)
            && refused != Some(cached.version)
        {
            return Ok(cached.clone());
        }
        if let Some((failed, error)) = &slot.failed
            && *failed > attempts_before
        {
            return Err(error.clone());
        }
        let made = make().await;
        let version = self.attempts.fetch_add(1, Ordering::SeqCst) + 1;
        match made {
            Ok((value, until)) => {
                let made = Versioned { value, version };
                slot.value = Some((made.clone(), now, until));
                Ok(made)
            }
            Err(error) => {
                slot.failed = Some((version, error.clone()));
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[tokio::test]
    async fn a_value_is_used_until_it_expires_by_the_wall_clock() {
        let cached = Cached::<u32, ()>::default();
        let get =
            async |now: u64, value: u32| cached.get(at(now), None, async || Ok((value, at(110)))).await.unwrap().value;
        assert_eq!(get(100, 1).await, 1);
        assert_eq!(get(109, 2).await, 1);
        assert_eq!(get(110, 3).await, 3);
        // The clock was set back to before the value was made.
        assert_eq!(get(50, 4).await, 4);
    }

    #[tokio::test]
    async fn a_refused_value_is_made_again_once() {
        let cached = Cached::<u32, ()>::default();
        let first = cached.get(at(0), None, async || Ok((1, at(9)))).await.unwrap();
        let second = cached.get(at(1), Some(first.version), async || Ok((2, at(9)))).await.unwrap();
        assert_eq!(second.value, 2);
        // Another caller whose first value was refused as well gets the second.
        let third = cached.get(at(1), Some(first.version), async || Ok((3, at(9)))).await.unwrap();
        assert_eq!(third.value, 2);
    }

    #[tokio::test]
    async fn one_caller_makes_the_value_or_fails_for_all() {
        for fails in [false, true] {
            let cached = Arc::new(Cached::<u32, u32>::default());
            let made = Arc::new(AtomicU64::new(0));
            let all = (0..50).map(|_| {
                let (cached, made) = (cached.clone(), made.clone());
                tokio::spawn(async move {
                    let make = async || {
                        made.fetch_add(1, Ordering::SeqCst);
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        if fails { Err(7) } else { Ok((7, at(9))) }
                    };
                    cached.get(at(0), None, make).await.map(|made| made.value)
                })
            });
            for result in futures_util::future::join_all(all).await {
                assert_eq!(result.unwrap(), if fails { Err(7) } else { Ok(7) });
            }
            assert_eq!(made.load(Ordering::SeqCst), 1);
            // A later caller tries again.
            let later = cached.get(at(10), None, async || Ok((8, at(20)))).await;
            assert_eq!(later.unwrap().value, 8);
        }
    }

    #[tokio::test]
    async fn a_waiting_caller_takes_over_from_a_cancelled_one() {
        let cached = Arc::new(Cached::<u32, ()>::default());
        let maker = tokio::spawn({
            let cached = cached.clone();
            async move { cached.get(at(0), None, async || std::future::pending().await).await.map(|made| made.value) }
        });
        tokio::task::yield_now().await;
        let waiter = tokio::spawn({
            let cached = cached.clone();
            async move { cached.get(at(0), None, async || Ok((2, at(9)))).await.map(|made| made.value) }
        });
        tokio::task::yield_now().await;
        maker.abort();
        assert_eq!(waiter.await.unwrap(), Ok(2));
    }
}
