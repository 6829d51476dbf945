//! The service as a process that is killed at every step of every operation: the same request, sent to the next
//! process, gets the response that it should have had (docs/contract/http.md, "Signatures").

use std::pin::pin;

use futures_util::{StreamExt, stream};
use nix::sys::signal::Signal;

use crate::LIMIT;
use crate::child::{Env, Service};
use crate::fixture::{hosts, parts};
use crate::origin::{self, Origin};
use crate::support::operation::{Blocker, Caller, Kind, OPERATIONS, Operation, RESULT};
use crate::support::{Answer, At, Call, Key, Proxy, TestDatabase, client, eventually};

/// How many operations are tested concurrently.
const CONCURRENCY: usize = 4;
const ENVIRONMENT: &str = "ocean-compute";

/// What all cases of a test share.
struct World {
    database: TestDatabase,
    key: Key,
    env: Env,
    origin: Origin,
    /// The process that is started after the one that was killed.
    next: Service,
    client: reqwest::Client,
}

impl World {
    async fn new() -> Self {
        let (database, key, env) = parts().await;
        database.announce(ENVIRONMENT, "{}").await;
        let origin = Origin::start().await;
        origin.answer("/out.txt", origin::Answer::file(RESULT));
        let env = env.with("RESULT_HOSTS_ALLOWED", hosts(&[&origin.address.to_string()]));
        let next = Service::start(&env).await;
        Self { database, key, env, origin, next, client: client() }
    }

    /// Kills a process of its own at the `nth` step of an operation. Returns the operation, what blocks it, and whether
    /// it has such a step.
    async fn killed(
        &self,
        which: (Caller, Kind),
        nth: usize,
        at: At,
        undecided: bool,
    ) -> (Operation, Option<Blocker>, bool) {
        let proxy = Proxy::to(self.database.address().await).await;
        let env = self.env.clone().and(&[("POSTGRES_HOST", "127.0.0.1"), ("POSTGRES_SSLMODE", "disable")]);
        let mut service = Service::start(&env.with("POSTGRES_PORT", proxy.port.to_string())).await;
        let (url, case) = (self.origin.url(""), format!("killed {at:?} step {nth}, undecided: {undecided}"));
        let operation = Operation::prepare(which, &self.database, ENVIRONMENT, &self.key, &url, &case).await;
        let blocker = if undecided { Some(operation.block(&self.database).await) } else { None };
        proxy.freeze_at(nth, at);
        let happened = tokio::select! {
            response = operation.request.request(&self.client, &service.url("")).send() => {
                response.unwrap();
                false
            }
            () = proxy.happened() => true,
        };
        service.process.send(Signal::SIGKILL);
        service.process.ended().await;
        (operation, blocker, happened)
    }

    /// Sends a request to the next process, until the response is no 5xx.
    async fn send(&self, call: Call) -> Answer {
        eventually("a response that is no 5xx", LIMIT, async || {
            let response = call.request(&self.client, &self.next.url("")).send().await;
            Some(Answer::of(response.unwrap()).await).filter(|answer| answer.status < 500)
        })
        .await
    }
}

#[tokio::test]
async fn a_process_that_is_killed_at_any_step() {
    let world = &World::new().await;
    let cases = OPERATIONS.into_iter().flat_map(|which| [At::Before, At::During, At::After].map(|at| (which, at)));
    let cases = stream::iter(cases).for_each_concurrent(CONCURRENCY, |(which, at)| async move {
        for nth in 1.. {
            let (operation, _, happened) = world.killed(which, nth, at, false).await;
            operation.settles(&world.database, None, async |call| world.send(call).await).await;
            if !happened {
                assert!(nth > 1, "{which:?} has no step");
                break;
            }
        }
    });
    cases.await;
}

/// What the process has sent waits for a lock when it is killed, and until the next process waits, too.
#[tokio::test]
async fn a_process_that_is_killed_while_its_statement_is_undecided() {
    let world = &World::new().await;
    let brizos_start = (Caller::Brizo, Kind::Start);
    let repeatable = OPERATIONS.into_iter().filter(|which| which.1 != Kind::Result && *which != brizos_start);
    let cases = stream::iter(repeatable).for_each_concurrent(CONCURRENCY, |which| async move {
        for nth in 1.. {
            let (operation, blocker, happened) = world.killed(which, nth, At::During, true).await;
            let blocker = blocker.unwrap();
            let mut again = pin!(world.send(operation.request.clone()));
            let both_wait = eventually("two that wait", LIMIT, async || {
                (blocker.waiting(&world.database).await >= 2).then_some(())
            });
            let answered = tokio::select! {
                answer = &mut again => Some(answer),
                () = both_wait => None,
            };
            blocker.release().await;
            let answer = match answered {
                Some(answer) => answer,
                None => again.await,
            };
            operation.settles(&world.database, Some(&answer), async |call| world.send(call).await).await;
            if !happened {
                assert!(nth > 1, "{which:?} has no step");
                break;
            }
        }
    });
    cases.await;
}
