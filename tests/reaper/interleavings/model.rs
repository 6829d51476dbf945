//! The model: callers, engines, administrators, faults and time around a service and its reaper.

use std::collections::BTreeMap;
use std::time::Duration;

use fake_kubernetes::Match;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Pod};
use kube::Api;
use kube::api::DeleteParams;
use operator_service::kubernetes::WorkFlow;
use proptest::sample::Index;
use serde_json::{Value, json};
use sqlx::Executor;
use tokio::sync::Mutex;

use super::engine::{Stage, Thread};
use super::invariants::{Moment, Who};
use super::{Act, Event, Fate};
use crate::fixture::Fixture;
use crate::support::{Answer, Call, Cluster, Key, TestDatabase, caller, workflow};

/// How many environments there are. The second announces a limit of its own.
pub const ENVIRONMENTS: usize = 2;
/// The time limits of algorithms there, in seconds.
pub(super) const LIMITS: [f64; ENVIRONMENTS] = [3600.0, 1800.0];
pub(super) const STORAGE_EXPIRY: f64 = 100_000.0;
pub(super) const WORKFLOW_TTL: f64 = 604_800.0;
pub(super) const SETTLING: f64 = 3600.0;
/// How long problems have to last at least, in seconds.
pub(super) const RETRY_GRACE: f64 = 300.0;
pub(super) const SCHEDULE_GRACE: f64 = 900.0;
pub(super) const START_GRACE: f64 = 3600.0;
/// How long a step other than the algorithm may take.
pub(super) const LONGEST_STEP: f64 = 86_400.0;
pub(super) const OUTPUTS: &str =
    r#"[{"filename": "out.txt", "filesize": 5, "type": "output", "url": "https://example.org/out.txt"}]"#;
pub(super) const OWNER: &str = "0xC41808BBef371AD5CFc76466dDF9dEe228d2BdAA";

/// A clock for the test's database that can be set forward.
pub(super) const CLOCK: &str = include_str!("../../support/clock.sql");

/// A database, a cluster, a service and a reaper. The cases run one after another and share no state.
pub struct World {
    fixture: Fixture,
    key: Key,
    /// The namespaces of the last case.
    used: Mutex<Vec<String>>,
    /// The reaper's actions, and the statuses and reasons that jobs ended with.
    tally: Mutex<BTreeMap<String, u64>>,
}

impl World {
    pub async fn new() -> Self {
        let database = TestDatabase::empty().await;
        database.connect().await.execute(sqlx::raw_sql(CLOCK)).await.unwrap();
        database.service().migrate().await.unwrap();
        let cluster = Cluster::embedded().await;
        let fixture = Fixture::builder()
            .app(|app| app.database(database).cluster(cluster).var("SIGNATURE_REQUIRED", "0"))
            .var("ALGO_POD_TIMEOUT", 3600)
            .var("STORAGE_EXPIRY", STORAGE_EXPIRY)
            .start()
            .await;
        Self { fixture, key: Key::new(), used: Mutex::default(), tally: Mutex::default() }
    }

    /// The totals of all cases.
    pub fn tally(&self) -> String {
        let tally = self.tally.blocking_lock();
        tally.iter().map(|(what, times)| format!("{times:6} {what}\n")).collect()
    }

    /// One case.
    pub async fn case(&self, events: &[Event]) {
        let cluster = &self.fixture.app.cluster;
        cluster.stand_in().faults().clear();
        let mut namespaces = Vec::new();
        for _ in 0..ENVIRONMENTS {
            namespaces.push(cluster.another_namespace().await);
        }
        for used in std::mem::replace(&mut *self.used.lock().await, namespaces.clone()) {
            Api::<Namespace>::all(cluster.client.clone()).delete(&used, &DeleteParams::background()).await.unwrap();
        }
        self.fixture
            .app
            .database
            .execute("TRUNCATE jobs, reaperjobs, envs, sweptenvs, keptlogs, usednonces, nonces")
            .await;
        self.fixture.app.database.execute("UPDATE sweeps SET holder = NULL, helduntil = '-infinity'").await;
        self.fixture.app.database.execute("UPDATE clock.ahead SET ahead = '0'").await;
        let mut case = Case {
            fixture: &self.fixture,
            key: &self.key,
            namespaces,
            accepted: Vec::new(),
            threads: BTreeMap::new(),
            problems: BTreeMap::new(),
            passed: 0,
            down: false,
            throttled: 0,
            lost: 0,
            forbidden: None,
            alive: [true; ENVIRONMENTS],
            deleted_by_hand: false,
            history: Vec::new(),
            tally: &self.tally,
        };
        for (environment, namespace) in case.namespaces.iter().enumerate() {
            self.fixture.app.database.engine(namespace, &announcement(environment, 0), 0).await;
        }
        for (number, event) in events.iter().enumerate() {
            case.history.push(format!("{number}: {event:?}"));
            case.event(event).await;
        }
        case.end().await;
    }
}

/// What the engine of an environment announces that has this number of threads.
fn announcement(environment: usize, threads: usize) -> String {
    let limit = [Value::Null, json!(1800)][environment].clone();
    json!({ "currentJobs": threads, "maxJobDuration": limit }).to_string()
}

/// A job that was accepted.
#[derive(Debug, Clone)]
pub(super) struct Accepted {
    pub(super) id: String,
    pub(super) environment: usize,
}

pub(super) struct Case<'a> {
    pub(super) fixture: &'a Fixture,
    pub(super) key: &'a Key,
    pub(super) namespaces: Vec<String>,
    pub(super) accepted: Vec<Accepted>,
    pub(super) threads: BTreeMap<String, Vec<Thread>>,
    /// By the Job's uid: since when it has had a problem, and for how long it may.
    pub(super) problems: BTreeMap<String, (i64, f64)>,
    /// By how many seconds the clock is ahead.
    pub(super) passed: i64,
    pub(super) down: bool,
    /// How many of the next requests of the service and the reaper are throttled, and how many answers are lost.
    pub(super) throttled: usize,
    pub(super) lost: usize,
    /// The environment that may not be read.
    pub(super) forbidden: Option<usize>,
    /// Whether an administrator has deleted an object.
    pub(super) deleted_by_hand: bool,
    /// Whether the engine of each environment runs.
    pub(super) alive: [bool; ENVIRONMENTS],
    pub(super) history: Vec<String>,
    pub(super) tally: &'a Mutex<BTreeMap<String, u64>>,
}

impl<'a> Case<'a> {
    pub(super) fn cluster(&self) -> &'a Cluster {
        &self.fixture.app.cluster
    }

    pub(super) fn api<K>(&self, environment: usize) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.cluster().client.clone(), &self.namespaces[environment])
    }

    pub(super) fn pick(&self, index: &Index) -> Option<Accepted> {
        (!self.accepted.is_empty()).then(|| index.get(&self.accepted).clone())
    }

    pub(super) async fn event(&mut self, event: &Event) {
        self.cluster().stand_in().clear_requests();
        match event {
            Event::Act(act) => self.act(act).await,
            Event::Time(minutes) => self.time(minutes * 60).await,
            Event::Sweep { broken, killed } => self.sweep(broken.as_ref(), *killed).await,
            Event::DryRun => {
                let before = self.moment().await;
                self.inject_faults();
                self.fixture.reaper.sweep(true, Duration::from_secs(60)).await.unwrap();
                self.clear_faults();
                let after = self.moment().await;
                for (id, row) in &after.rows {
                    assert_eq!(row.row, before.rows[id].row, "a dry run changed a row: {:#?}", self.history);
                }
                assert_eq!(after.objects, before.objects, "a dry run changed an object: {:#?}", self.history);
            }
            Event::Down => self.down = true,
            Event::Forbid(environment) => self.forbidden = Some(*environment),
            Event::Up => (self.down, self.throttled, self.lost, self.forbidden) = (false, 0, 0, None),
            Event::Throttle(times) => self.throttled = *times,
            Event::LoseAnswers(times) => self.lost = *times,
        }
    }

    /// Lets the faults that are due take effect. They are cleared before the test itself uses the cluster.
    pub(super) fn inject_faults(&mut self) {
        let faults = self.cluster().stand_in().faults();
        if self.down {
            faults.refuse_connections();
        }
        if let Some(environment) = self.forbidden {
            faults.answer(Match::any().namespace(&self.namespaces[environment]), 403);
        }
        if self.throttled > 0 {
            faults.throttle(Match::any().times(self.throttled), Duration::ZERO);
        }
        // Reads are retried anyway.
        for verb in ["create", "delete", "patch"].into_iter().filter(|_| self.lost > 0) {
            faults.lose_answer(Match::any().verb(verb).times(self.lost));
        }
        (self.throttled, self.lost) = (0, 0);
    }

    pub(super) fn clear_faults(&self) {
        self.cluster().stand_in().faults().clear();
    }

    // What callers, engines and administrators do

    pub(super) async fn act(&mut self, act: &Act) {
        let before = self.moment().await;
        let who = match act {
            Act::Start { agreement, environment, valid_for, killed } => {
                self.start(&before, *agreement, *environment, *valid_for, *killed).await;
                Who::Caller
            }
            Act::Stop { job, killed } | Act::Delete { job, killed } => {
                let Some(job) = self.pick(job) else { return };
                let provider = caller::provider(self.key);
                let call = match act {
                    Act::Stop { .. } => provider.stop(OWNER, Some(&job.id)),
                    _ => provider.delete(OWNER, Some(&job.id)),
                };
                if let Some(answer) = self.send(call, *killed).await {
                    if let Act::Delete { .. } = act {
                        assert_eq!(answer.ok()[0]["removed"], 1);
                    }
                    if !before.rows[&job.id].finished() {
                        assert_eq!(answer.ok()[0]["stopreq"], 1);
                    }
                }
                Who::Caller
            }
            Act::Announce { environment, slots } => {
                self.announce(&before, *environment, *slots).await;
                Who::Engine
            }
            Act::Engine { job, steps } => {
                let Some(job) = self.pick(job) else { return };
                for _ in 0..*steps {
                    self.step(&job.id).await;
                }
                Who::Engine
            }
            Act::Run { job, steps } => {
                let Some(job) = self.pick(job) else { return };
                if before.rows[&job.id].row["status"] == 1 {
                    self.announce(&before, job.environment, 1).await;
                }
                for left in (0..=*steps).rev() {
                    for _ in 0..4 {
                        self.step(&job.id).await;
                    }
                    if left > 0 {
                        self.pods(&job, Fate::Succeeds).await;
                    }
                }
                Who::Engine
            }
            Act::Crash { environment } => {
                self.threads.values_mut().for_each(|threads| threads.retain(|it| it.environment != *environment));
                self.alive[*environment] = false;
                Who::Engine
            }
            Act::Pods { job, fate } => {
                let Some(job) = self.pick(job) else { return };
                self.pods(&job, *fate).await;
                Who::Engine
            }
            Act::DeleteObject { job, object } => {
                let Some(job) = self.pick(job) else { return };
                self.delete_object(&job, object, &before).await;
                Who::Admin
            }
        };
        let after = self.moment().await;
        self.check(&[&before], &after, who);
    }

    pub(super) async fn announce(&mut self, before: &Moment, environment: usize, slots: i32) {
        let namespace = self.namespaces[environment].clone();
        self.alive[environment] = true;
        let threads = self.threads.values().flatten().filter(|thread| thread.environment == environment).count();
        let announcement = announcement(environment, threads);
        let given = self.fixture.app.database.engine(&namespace, &announcement, slots).await;
        assert!(given.len() <= slots as usize);
        for id in given {
            let row = &before.rows[&id];
            let waits = row.row["status"] == 1 && !row.finished() && row.row["namespace"] == namespace.as_str();
            assert!(waits, "dispatched, though it does not wait: {row:#?} {:#?}", self.history);
            assert!(
                row.row["stopreq"] == 0 && !row.removed() && row.valid_for.is_none_or(|left| left > 0.0),
                "dispatched, though called off: {row:#?} {:#?}",
                self.history
            );
            let thread = Thread { environment, stage: Stage::Given, provisioned: false };
            let threads = self.threads.entry(id).or_default();
            assert!(
                threads.is_empty(),
                "dispatched, though the engine has a thread for it: {row:#?} {:#?}",
                self.history
            );
            threads.push(thread);
        }
    }

    /// Sends a request. Closing the connection ends its handler, as a function's timeout does.
    pub(super) async fn send(&mut self, call: Call, killed: Option<usize>) -> Option<Answer> {
        self.inject_faults();
        let stand_in = self.cluster().stand_in();
        let killed = async {
            let Some(requests) = killed else { return std::future::pending().await };
            let most = stand_in.requests().len() + requests;
            while stand_in.requests().len() < most {
                tokio::task::yield_now().await;
            }
        };
        let answer = tokio::select! {
            biased;
            () = killed => None,
            answer = self.fixture.app.send(call) => Some(answer),
        };
        self.clear_faults();
        answer
    }

    pub(super) async fn start(
        &mut self,
        before: &Moment,
        agreement: usize,
        environment: usize,
        valid_for: Option<i64>,
        killed: Option<usize>,
    ) {
        let agreement = format!("0x{agreement}{agreement}");
        let namespace = &self.namespaces[environment];
        let mut call = caller::provider(self.key).start(namespace, &agreement, OWNER, workflow::sample());
        if let Some(seconds) = valid_for {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
            call = call.with("validUntil", now + self.passed + seconds);
        }
        let in_use = before.rows.values().any(|it| it.row["agreementid"] == agreement.as_str() && !it.finished());
        let id = match self.send(call, killed).await {
            Some(answer) if in_use => {
                return answer.is_error(400, "`agreementId` already in use for other job.");
            }
            Some(answer) => answer.ok()[0]["jobId"].as_str().unwrap().to_owned(),
            // Its caller does not know whether it was accepted.
            None => {
                let rows = self.moment().await.rows;
                let Some(id) = rows.into_keys().find(|id| !before.rows.contains_key(id)) else { return };
                id
            }
        };
        self.accepted.push(Accepted { id, environment });
    }

    pub(super) async fn delete_object(&mut self, job: &Accepted, object: &Index, before: &Moment) {
        let theirs: Vec<_> = before.objects.keys().filter(|(_, name)| name.starts_with(&job.id)).collect();
        if self.down || theirs.is_empty() {
            return;
        }
        self.deleted_by_hand = true;
        let (kind, name) = *object.get(&theirs);
        let params = DeleteParams::background();
        let environment = job.environment;
        match *kind {
            "configmaps" => drop(self.api::<ConfigMap>(environment).delete(name, &params).await.unwrap()),
            "persistentvolumeclaims" => {
                drop(self.api::<PersistentVolumeClaim>(environment).delete(name, &params).await.unwrap());
            }
            "jobs.batch" => drop(self.api::<Job>(environment).delete(name, &params).await.unwrap()),
            "pods" => drop(self.api::<Pod>(environment).delete(name, &params).await.unwrap()),
            _ => drop(self.api::<WorkFlow>(environment).delete(name, &params).await.unwrap()),
        }
    }
}
