//! What fails, and how it ends.

use std::time::Duration;

use fake_kubernetes::Match;
use nix::sys::signal::Signal;
use sqlx::{Executor, PgConnection};

use crate::plan::Fault;
use crate::world::{Processes, World};

/// A fault that has begun.
pub struct Active {
    fault: Fault,
    /// The event before which it ends.
    pub until: usize,
    /// The session that holds a lock.
    lock: Option<PgConnection>,
}

/// Begins a fault. `None` if it is over at once.
pub async fn begin(fault: Fault, until: usize, world: &World, processes: &Processes) -> Option<Active> {
    let endpoint = |number: usize| &processes.endpoints[number];
    let cluster = processes.cluster.stand_in().faults();
    let mut lock = None;
    match fault {
        Fault::Cut { endpoint: number, step, at } => endpoint(number).proxy.cut_at(step, at),
        Fault::CutAll { endpoint: number, step, at } => endpoint(number).proxy.cut_all_at(step, at),
        Fault::Freeze { endpoint: number, step, at } => endpoint(number).proxy.freeze_at(step, at),
        Fault::Silence { endpoint: number } => endpoint(number).proxy.silence(),
        Fault::Crash => {
            world.down(true).await;
            world.up().await;
            return None;
        }
        Fault::Down => world.down(false).await,
        Fault::NoConnections => world.try_sql("ALTER ROLE service CONNECTION LIMIT 0").await,
        Fault::ReadOnly => {
            world.try_sql("ALTER SYSTEM SET default_transaction_read_only = on").await;
            world.try_sql("SELECT pg_reload_conf()").await;
        }
        Fault::Locked => {
            let mut session = world.connect().await.ok()?;
            session.execute("BEGIN; LOCK TABLE jobs").await.ok()?;
            lock = Some(session);
        }
        Fault::Answers { status, times } => cluster.answer(Match::any().times(times), status),
        Fault::Slow { seconds, times } => cluster.delay(Match::any().times(times), Duration::from_secs(seconds)),
        Fault::Truncates { times } => cluster.truncate_answer(Match::any().times(times)),
        Fault::LosesAnswers { times } => cluster.lose_answer(Match::any().times(times)),
        Fault::Unreachable => cluster.refuse_connections(),
        Fault::AwsThrottles => processes.aws.throttle(true),
        Fault::Kill { endpoint: number } | Fault::Terminate { endpoint: number } => {
            endpoint(number).replace(fault.signal()).await;
            return None;
        }
        Fault::Stopped { endpoint: number } => endpoint(number).signal(Signal::SIGSTOP).await,
        Fault::Clock { server: number, ahead } => endpoint(number).set_clock(ahead),
    }
    Some(Active { fault, until, lock })
}

impl Active {
    /// Ends it. Another fault of the same kind ends with it.
    pub async fn end(self, world: &World, processes: &Processes) {
        let endpoint = |number: usize| &processes.endpoints[number];
        match self.fault {
            Fault::Cut { endpoint: number, .. }
            | Fault::CutAll { endpoint: number, .. }
            | Fault::Freeze { endpoint: number, .. }
            | Fault::Silence { endpoint: number } => {
                endpoint(number).proxy.clear();
                endpoint(number).proxy.open();
            }
            Fault::Down => world.up().await,
            Fault::NoConnections => world.try_sql("ALTER ROLE service CONNECTION LIMIT -1").await,
            Fault::ReadOnly => {
                world.try_sql("ALTER SYSTEM RESET default_transaction_read_only").await;
                world.try_sql("SELECT pg_reload_conf()").await;
            }
            // Closing the session ends its transaction.
            Fault::Locked => drop(self.lock),
            Fault::Answers { .. }
            | Fault::Slow { .. }
            | Fault::Truncates { .. }
            | Fault::LosesAnswers { .. }
            | Fault::Unreachable => processes.cluster.stand_in().faults().clear(),
            Fault::AwsThrottles => processes.aws.throttle(false),
            Fault::Stopped { endpoint: number } => endpoint(number).signal(Signal::SIGCONT).await,
            Fault::Clock { server: number, .. } => endpoint(number).set_clock(0),
            Fault::Crash | Fault::Kill { .. } | Fault::Terminate { .. } => {}
        }
    }
}

/// Ends whatever may still fail.
pub async fn end_all(world: &World, processes: &Processes) {
    end_of_database(world).await;
    processes.cluster.stand_in().faults().clear();
    processes.aws.throttle(false);
    for endpoint in &processes.endpoints {
        endpoint.proxy.clear();
        endpoint.proxy.open();
        endpoint.set_clock(0);
        endpoint.signal(Signal::SIGCONT).await;
    }
}

/// Ends whatever may still fail at PostgreSQL itself.
pub async fn end_of_database(world: &World) {
    world.up().await;
    world.sql("ALTER ROLE service CONNECTION LIMIT -1").await;
    world.sql("ALTER SYSTEM RESET default_transaction_read_only").await;
    world.sql("SELECT pg_reload_conf()").await;
}
