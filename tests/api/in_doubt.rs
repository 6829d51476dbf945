//! Nobody is left in doubt (docs/contract/http.md, "Signatures"): at whatever step of whatever operation a connection
//! to the database is lost, the response is true; and the same request, repeated, gets the response that it should have
//! had.

use std::pin::pin;
use std::time::Duration;

use futures_util::{StreamExt, stream};

use crate::given::Origin;
use crate::support::operation::{Caller, Kind, OPERATIONS, Operation};
use crate::support::{App, At, Call, Key, Proxy, eventually};

/// How long a test waits for a response before it fails.
const LIMIT: Duration = Duration::from_secs(60);
/// How many cases are tested concurrently: those that do not wait, and those that wait most of the time.
const CONCURRENCY: usize = 5;
const WAITING_CONCURRENCY: usize = 20;

/// In which state an operation finds the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pool {
    /// It has opened no connection yet.
    Cold,
    /// It has a connection, on which the same statements were run before.
    Warm,
}

/// What happens at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The connection is lost; a new one works.
    Connection(At),
    /// All connections are lost, and none works until the response has arrived.
    Database(At),
    /// The connection is lost. What was sent on it waits for a lock until the service has tried again and waits, too.
    Undecided,
    /// As `Undecided`, but it waits until the response has arrived.
    UndecidedToTheEnd,
}

/// What all cases of a test share.
struct World {
    app: App,
    key: Key,
    origin: Origin,
}

impl World {
    async fn new() -> Self {
        let (key, origin) = (Key::new(), Origin::start().await);
        let app = origin.allowed(App::builder());
        let app = app.var("SIGNATURE_REQUIRED", "1").var("ALLOWED_PROVIDERS", key.allowed()).start().await;
        Self { app, key, origin }
    }

    async fn prepare(&self, which: (Caller, Kind), case: &str) -> Operation {
        Operation::prepare(which, &self.app.database, &self.app.namespace, &self.key, &self.origin.url, case).await
    }

    /// Requests an operation from a service of its own, while the fault happens at the `nth` step. Returns whether it
    /// has such a step, and whether the first response was a success.
    async fn run(&self, which: (Caller, Kind), pool: Pool, fault: Fault, nth: usize) -> (bool, bool) {
        let database = &self.app.database;
        let proxy = Proxy::to(database.address().await).await;
        let service = self.origin.allowed(self.app.another_process()).through(&proxy);
        let service = service.var("SIGNATURE_REQUIRED", "1").var("ALLOWED_PROVIDERS", self.key.allowed()).start().await;
        // As callers do.
        let send = async |call: Call| {
            let answered = async || Some(service.send(call.clone()).await).filter(|answer| answer.status < 500);
            eventually("a response that is no 5xx", LIMIT, answered).await
        };
        if pool == Pool::Warm {
            let earlier = self.prepare(which, "without a fault").await;
            earlier.succeeded(database, &send(earlier.request.clone()).await).await;
        }

        let operation = self.prepare(which, &format!("{fault:?} at step {nth}, {pool:?}")).await;
        let mut blocker = None;
        match fault {
            Fault::Connection(at) => proxy.cut_at(nth, at),
            Fault::Database(at) => proxy.cut_all_at(nth, at),
            Fault::Undecided | Fault::UndecidedToTheEnd => {
                blocker = Some(operation.block(database).await);
                proxy.cut_at(nth, At::During);
            }
        }
        let mut first = pin!(async {
            let sent = tokio::time::timeout(LIMIT, service.send(operation.request.clone())).await;
            sent.unwrap_or_else(|_| panic!("{operation:?} is not answered"))
        });
        let mut answered = None;
        if let Some(blocker) = blocker {
            let both_wait = eventually("two that wait", LIMIT, async || {
                (fault == Fault::Undecided && blocker.waiting(database).await >= 2).then_some(())
            });
            tokio::select! {
                answer = &mut first => answered = Some(answer),
                () = both_wait => {}
            }
            blocker.release().await;
        }
        let first = match answered {
            Some(answer) => answer,
            None => first.await,
        };
        let happened = proxy.clear();
        proxy.open();
        operation.settles(database, Some(&first), send).await;
        (happened, first.status < 500)
    }
}

/// Lets the faults happen at every step of every operation.
async fn at_every_step(concurrency: usize, pools: &[Pool], faults: &[Fault]) {
    let world = &World::new().await;
    let mut cases = Vec::new();
    for which in OPERATIONS {
        for pool in pools {
            cases.extend(faults.iter().map(|fault| (which, *pool, *fault)));
        }
    }
    let cases = stream::iter(cases).for_each_concurrent(concurrency, |(which, pool, fault)| async move {
        let mut nth = 1;
        // One lost connection is no reason for a 5xx, nor is none; but a busy machine may be.
        let may_fail = |happened| match fault {
            Fault::Connection(_) => false,
            Fault::Database(_) => happened,
            Fault::Undecided | Fault::UndecidedToTheEnd => true,
        };
        let attempt = async |nth| {
            let (happened, succeeded) = world.run(which, pool, fault, nth).await;
            (succeeded || may_fail(happened)).then_some(happened)
        };
        let what = format!("{fault:?} at a step of {which:?}, {pool:?}: no success");
        while eventually(&what, LIMIT, async || attempt(nth).await).await {
            nth += 1;
        }
        assert!(nth > 1, "{which:?} has no step");
    });
    cases.await;
}

#[tokio::test]
async fn a_connection_that_is_lost_at_any_step() {
    at_every_step(
        CONCURRENCY,
        &[Pool::Cold, Pool::Warm],
        &[Fault::Connection(At::Before), Fault::Connection(At::After)],
    )
    .await;
}

#[tokio::test]
async fn a_database_that_is_lost_at_any_step() {
    at_every_step(CONCURRENCY, &[Pool::Warm], &[Fault::Database(At::Before), Fault::Database(At::After)]).await;
}

#[tokio::test]
async fn a_statement_that_is_undecided_when_its_connection_is_lost() {
    at_every_step(WAITING_CONCURRENCY, &[Pool::Warm], &[Fault::Undecided, Fault::UndecidedToTheEnd]).await;
}

/// The engine may be done with a job before its start is answered.
#[tokio::test]
async fn a_start_whose_connection_is_lost_and_whose_job_has_finished_since() {
    let world = World::new().await;
    let database = &world.app.database;
    let proxy = Proxy::to(database.address().await).await;
    let service = world.app.another_process().through(&proxy);
    let service = service.var("SIGNATURE_REQUIRED", "1").var("ALLOWED_PROVIDERS", world.key.allowed()).start().await;
    for caller in [Caller::Provider, Caller::OceanNode, Caller::Brizo] {
        // Its statement is prepared then.
        let earlier = world.prepare((caller, Kind::Start), "without a fault").await;
        earlier.succeeded(database, &service.send(earlier.request.clone()).await).await;
        let operation = world.prepare((caller, Kind::Start), "finished since").await;
        let agreement = operation.request.text("agreementId");
        proxy.cut_all_at(1, At::After);
        let finish = async {
            proxy.happened().await;
            let finish = "UPDATE jobs SET status = 70, datefinished = now() WHERE agreementid = $1";
            let finished = sqlx::query(finish).bind(&agreement).execute(&database.pool).await.unwrap();
            assert_eq!(finished.rows_affected(), 1);
            proxy.open();
        };
        let (answer, ()) = tokio::join!(service.send(operation.request.clone()), finish);
        operation.succeeded(database, &answer).await;
        assert_eq!(answer.json()[0]["status"], 70, "{caller:?}");
    }
}
