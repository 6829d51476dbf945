//! Carries out a plan.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::callers::{Built, Callers};
use crate::child::Process;
use crate::engine::Engine;
use crate::faults::{self, Active};
use crate::plan::{Delivery, Event};
use crate::promises;
use crate::world::{Processes, STORAGE_EXPIRY, World};

/// How many requests are sent at once.
const IN_FLIGHT: usize = 12;
/// How long no request may be answered, until what fails now ends.
const PATIENCE: Duration = Duration::from_secs(1);
/// By how many seconds the clock is set forward before the last sweeps: longer than each grace of the reaper.
const GRACE: i64 = 7200;

/// A round, and what runs in it.
struct Round {
    callers: Arc<Callers>,
    requests: JoinSet<()>,
    late: VecDeque<(usize, Built)>,
    faults: Vec<Active>,
    engine: Engine,
    /// Sweeps that may still run, with the event at which they are killed.
    sweeps: Vec<(Process, Option<usize>)>,
    /// What the others have logged.
    logs: Vec<String>,
}

/// Carries out a plan, and checks what has to be true then.
pub async fn run(world: &Arc<World>, plan: &[Event]) {
    // What an earlier round that failed has left.
    faults::end_of_database(world).await;
    world.empty().await;
    let processes = Processes::start(world).await;
    let callers = Arc::new(Callers::new(world.clone(), processes));
    let mut round = Round {
        callers: callers.clone(),
        requests: JoinSet::new(),
        late: VecDeque::new(),
        faults: Vec::new(),
        engine: Engine::default(),
        sweeps: Vec::new(),
        logs: Vec::new(),
    };
    round.engine.announce(&callers, 0, 0).await.unwrap();
    for (number, event) in plan.iter().enumerate() {
        round.advance(number).await;
        round.event(number, event).await;
    }
    round.end().await;
    for endpoint in &callers.processes.endpoints {
        endpoint.shut_down().await;
    }
    callers.processes.check_logs(&round.logs).await;
}

impl Round {
    /// Does what is due before an event.
    async fn advance(&mut self, number: usize) {
        let (over, active) = self.faults.drain(..).partition(|fault| fault.until <= number);
        self.faults = active;
        self.end_faults(over).await;
        while let Some((_, built)) = self.late.pop_front_if(|(due, _)| *due <= number) {
            self.send(built).await;
        }
        for (sweep, killed) in &mut self.sweeps {
            if killed.is_some_and(|at| at <= number) && sweep.is_running() {
                sweep.send(Signal::SIGKILL);
            }
        }
        while let Some(answered) = self.requests.try_join_next() {
            passed(answered);
        }
    }

    async fn end_faults(&self, faults: Vec<Active>) {
        for fault in faults {
            fault.end(&self.callers.world, &self.callers.processes).await;
        }
    }

    async fn end_all_faults(&mut self) {
        self.faults.clear();
        faults::end_all(&self.callers.world, &self.callers.processes).await;
    }

    async fn event(&mut self, number: usize, event: &Event) {
        let callers = &self.callers.clone();
        match event {
            Event::Request(request) => {
                let Some(built) = callers.build(request) else { return };
                match built.event.delivery {
                    Delivery::Late(by) => self.late.push_back((number + by, built)),
                    _ => self.send(built).await,
                }
            }
            // What fails is done later.
            Event::Dispatch => {
                if self.engine.announce(callers, 1, 0).await.is_ok() {
                    self.engine.catch_up(callers).await;
                }
            }
            Event::Finish(index) => self.engine.finish(callers, index).await,
            Event::Time => {
                // Otherwise a job would be without its Job for that long.
                if self.engine.catch_up(callers).await {
                    // Counted before and after: a request in between may be on either side of it.
                    *callers.time.lock().unwrap() += 1;
                    let set = self.engine.announce(callers, 0, 2 * STORAGE_EXPIRY).await.is_ok();
                    *callers.time.lock().unwrap() += 1;
                    callers.world.count(if set { "time" } else { "time, failed" });
                }
            }
            Event::Sweep { killed_after } => {
                callers.world.count(if killed_after.is_some() { "sweep, to be killed" } else { "sweep" });
                self.sweeps.push((callers.processes.sweep(), killed_after.map(|events| number + events)));
            }
            Event::Fault { fault, lasts } => {
                callers.world.count(format!("fault: {}", fault.name()));
                self.faults.extend(faults::begin(*fault, number + lasts, &callers.world, &callers.processes).await);
            }
        }
    }

    async fn send(&mut self, built: Built) {
        while self.requests.len() >= IN_FLIGHT {
            match timeout(PATIENCE, self.requests.join_next()).await {
                Ok(answered) => answered.into_iter().for_each(passed),
                // The end of one fault may have failed because of another.
                Err(_) => self.end_all_faults().await,
            }
        }
        let callers = self.callers.clone();
        self.requests.spawn(async move { callers.deliver(built).await });
    }

    /// Lets everything come to its end without faults, and checks it.
    async fn end(&mut self) {
        self.end_all_faults().await;
        while let Some((_, built)) = self.late.pop_front() {
            self.send(built).await;
        }
        while let Some(answered) = self.requests.join_next().await {
            passed(answered);
        }
        for (mut sweep, _) in self.sweeps.drain(..) {
            sweep.ended().await;
            self.logs.push(sweep.output());
        }
        self.sweep().await;
        promises::stopped_jobs_stop(&self.callers).await;
        self.engine.finish_all(&self.callers).await;
        self.sweep().await;
        promises::check(&self.callers).await;
    }

    /// Lets the reaper do all that is due.
    async fn sweep(&mut self) {
        assert!(self.engine.catch_up(&self.callers).await);
        // The lease of a sweep that was killed has ended then.
        self.engine.announce(&self.callers, 0, GRACE).await.unwrap();
        for _ in 0..2 {
            assert!(self.engine.catch_up(&self.callers).await);
            let mut sweep = self.callers.processes.sweep();
            let status = sweep.ended().await;
            assert!(status.success(), "{}", sweep.output());
            self.logs.push(sweep.output());
        }
    }
}

/// Fails with what made a request's task fail.
fn passed(task: Result<(), tokio::task::JoinError>) {
    if let Err(error) = task {
        std::panic::resume_unwind(error.into_panic());
    }
}
