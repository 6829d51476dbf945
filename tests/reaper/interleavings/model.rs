//! The world in which things happen, and an engine that does exactly what the contract says of it (`engine.md`).

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use fake_kubernetes::Match;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Pod};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use operator_service::db::DatabaseError;
use operator_service::kubernetes::WorkFlow;
use operator_service::reaper::Report;
use proptest::sample::Index;
use serde_json::{Value, json};
use sqlx::{Executor, Row};
use tokio::sync::Mutex;

use super::{Act, Break, Event, Fate};
use crate::fixture::{Fixture, ago, container};
use crate::support::{Answer, Call, Cluster, Key, TestDatabase, caller, workflow};

/// How many environments there are. The second announces a limit of its own.
pub const ENVIRONMENTS: usize = 2;
/// The limits of algorithms there, in seconds.
const LIMITS: [f64; ENVIRONMENTS] = [3600.0, 1800.0];
const STORAGE_EXPIRY: f64 = 100_000.0;
const WORKFLOW_TTL: f64 = 604_800.0;
const SETTLING: f64 = 3600.0;
/// The shortest times that trouble has to have lasted, in seconds.
const RETRY_GRACE: f64 = 300.0;
const SCHEDULE_GRACE: f64 = 900.0;
const OUTPUTS: &str =
    r#"[{"filename": "out.txt", "filesize": 5, "type": "output", "url": "https://example.org/out.txt"}]"#;
const OWNER: &str = "0xC41808BBef371AD5CFc76466dDF9dEe228d2BdAA";

/// A clock of the database's own: its functions are found before the server's.
const CLOCK: &str = "
    CREATE SCHEMA clock;
    CREATE TABLE clock.ahead (ahead interval NOT NULL);
    INSERT INTO clock.ahead VALUES ('0');
    CREATE FUNCTION clock.now() RETURNS timestamptz LANGUAGE sql STABLE AS
        'SELECT pg_catalog.now() + ahead FROM clock.ahead';
    CREATE FUNCTION clock.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
        'SELECT pg_catalog.clock_timestamp() + ahead FROM clock.ahead';
    DO $$ BEGIN
        EXECUTE format('ALTER DATABASE %I SET search_path = public, clock, pg_catalog', current_database());
    END $$";

/// DatabaseConfig, cluster, service and reaper; what happens in one case leaves nothing to the next.
pub struct World {
    fixture: Fixture,
    key: Key,
    /// The namespaces of the last case.
    used: Mutex<Vec<String>>,
    /// How often the reaper did what, and with what status and reason jobs ended.
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

    /// What has happened in all cases.
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
        self.fixture.app.database.execute("TRUNCATE jobs, envs, sweptenvs, keptlogs, usednonces, nonces").await;
        self.fixture.app.database.execute("UPDATE sweeps SET holder = NULL, helduntil = '-infinity'").await;
        self.fixture.app.database.execute("UPDATE clock.ahead SET ahead = '0'").await;
        let mut case = Case {
            fixture: &self.fixture,
            key: &self.key,
            namespaces,
            accepted: Vec::new(),
            threads: BTreeMap::new(),
            troubles: BTreeMap::new(),
            passed: 0,
            down: false,
            throttled: 0,
            lost: 0,
            late: BTreeSet::new(),
            history: Vec::new(),
            tally: &self.tally,
        };
        for (environment, namespace) in case.namespaces.iter().enumerate() {
            self.fixture.app.database.engine(namespace, announcement(environment), 0).await;
        }
        for (number, event) in events.iter().enumerate() {
            case.history.push(format!("{number}: {event:?}"));
            case.event(event).await;
        }
        case.end().await;
    }
}

fn announcement(environment: usize) -> &'static str {
    ["{}", r#"{"maxJobDuration": 1800}"#][environment]
}

/// How far an engine's thread is with a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Given,
    Begun,
    HasVolumes,
    Waits(Component),
    /// The step is over.
    Passed(Component),
    Published,
    Finished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Component {
    Configure,
    Algorithm,
    Publish,
}

impl Component {
    fn name(self) -> &'static str {
        match self {
            Self::Configure => "configure",
            Self::Algorithm => "algorithm",
            Self::Publish => "publish",
        }
    }
}

/// A thread of an engine. Two may have the same job: one that slept before it began, and the next to be given it.
#[derive(Debug, Clone)]
struct Thread {
    environment: usize,
    stage: Stage,
    provisioned: bool,
}

/// A job that was accepted.
#[derive(Debug, Clone)]
struct Accepted {
    id: String,
    environment: usize,
}

/// A row, and what its time stamps mean now.
#[derive(Debug, Clone)]
struct JobRow {
    row: Value,
    finished_age: Option<f64>,
    valid_for: Option<f64>,
}

impl JobRow {
    fn finished(&self) -> bool {
        !self.row["datefinished"].is_null()
    }

    fn settled(&self) -> bool {
        self.finished()
            && (matches!(self.row["status"].as_i64(), Some(31 | 32 | 70))
                || self.finished_age.is_some_and(|age| age > SETTLING))
    }

    fn removed(&self) -> bool {
        self.row["removed"] == 1
    }

    fn has_urls(&self) -> bool {
        self.row["outputsurl"].as_str().is_some_and(|outputs| outputs.contains("://"))
    }

    fn expired(&self) -> bool {
        self.finished_age.is_some_and(|age| age >= STORAGE_EXPIRY)
    }
}

/// What there is at a moment.
#[derive(Debug, Clone)]
struct Moment {
    rows: BTreeMap<String, JobRow>,
    /// By kind and name: what is not on its way out.
    objects: BTreeMap<(&'static str, String), Value>,
    /// For how many seconds the algorithms' Jobs have run, and whether a step is in trouble for long enough.
    running_for: BTreeMap<String, f64>,
    stuck: BTreeSet<String>,
}

const KINDS: [&str; 5] = ["configmaps", "persistentvolumeclaims", "jobs.batch", "workflows.oceanprotocol.com", "pods"];

/// Who did something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Caller,
    Engine,
    Hand,
    Reaper,
    Nobody,
}

struct Case<'a> {
    fixture: &'a Fixture,
    key: &'a Key,
    namespaces: Vec<String>,
    accepted: Vec<Accepted>,
    threads: BTreeMap<String, Vec<Thread>>,
    /// By the Job's uid: since when it has been in trouble, and how long it may be.
    troubles: BTreeMap<String, (i64, f64)>,
    /// How many seconds have passed beyond those that really have.
    passed: i64,
    down: bool,
    /// How many requests are too many, and how many answers are lost, as soon as the service or the reaper ask again.
    throttled: usize,
    lost: usize,
    /// Jobs whose volumes were made after everything of theirs had been removed.
    late: BTreeSet<String>,
    history: Vec<String>,
    tally: &'a Mutex<BTreeMap<String, u64>>,
}

type Sweep<'a> = Pin<Box<dyn Future<Output = Result<Report, DatabaseError>> + 'a>>;

impl<'a> Case<'a> {
    fn cluster(&self) -> &'a Cluster {
        &self.fixture.app.cluster
    }

    fn api<K>(&self, environment: usize) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.cluster().client.clone(), &self.namespaces[environment])
    }

    fn pick(&self, index: &Index) -> Option<Accepted> {
        (!self.accepted.is_empty()).then(|| index.get(&self.accepted).clone())
    }

    async fn event(&mut self, event: &Event) {
        self.cluster().stand_in().clear_requests();
        match event {
            Event::Act(act) => self.act(act).await,
            Event::Time(minutes) => {
                self.time(minutes * 60).await;
                let moment = self.moment().await;
                self.check(&[&moment], &moment, Who::Nobody, None);
            }
            Event::Sweep { broken, killed } => self.sweep(broken.as_ref(), *killed).await,
            Event::DryRun => {
                let before = self.moment().await;
                self.bad_days();
                self.fixture.reaper.sweep(true, Duration::from_secs(60)).await.unwrap();
                self.good_days();
                let after = self.moment().await;
                for (id, row) in &after.rows {
                    assert_eq!(row.row, before.rows[id].row, "a dry run changed a row: {:#?}", self.history);
                }
                assert_eq!(after.objects, before.objects, "a dry run changed an object: {:#?}", self.history);
            }
            Event::Down => self.down = true,
            Event::Up => (self.down, self.throttled, self.lost) = (false, 0, 0),
            Event::Throttle(times) => self.throttled = *times,
            Event::LoseAnswers(times) => self.lost = *times,
        }
    }

    /// What is on order is for the service and the reaper; whoever else asks, the test itself included, has good days.
    fn bad_days(&mut self) {
        let faults = self.cluster().stand_in().faults();
        if self.down {
            faults.refuse_connections();
        }
        if self.throttled > 0 {
            faults.throttle(Match::any().times(self.throttled), Duration::ZERO);
        }
        // Questions are asked again anyway.
        for verb in ["create", "delete", "patch"].into_iter().filter(|_| self.lost > 0) {
            faults.lose_answer(Match::any().verb(verb).times(self.lost));
        }
        (self.throttled, self.lost) = (0, 0);
    }

    fn good_days(&self) {
        self.cluster().stand_in().faults().clear();
    }

    // What others than the reaper do

    async fn act(&mut self, act: &Act) {
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
                Who::Engine
            }
            Act::Pods { job, fate } => {
                let Some(job) = self.pick(job) else { return };
                self.pods(&job, *fate).await;
                Who::Engine
            }
            Act::ByHand { job, object } => {
                let Some(job) = self.pick(job) else { return };
                self.by_hand(&job, object, &before).await;
                Who::Hand
            }
        };
        let after = self.moment().await;
        self.check(&[&before], &after, who, None);
    }

    async fn announce(&mut self, before: &Moment, environment: usize, slots: i32) {
        let namespace = self.namespaces[environment].clone();
        let given = self.fixture.app.database.engine(&namespace, announcement(environment), slots).await;
        assert!(given.len() <= slots as usize);
        for id in given {
            let row = &before.rows[&id];
            let waits = row.row["status"] == 1 && !row.finished() && row.row["namespace"] == namespace.as_str();
            assert!(waits, "handed out, though it does not wait: {row:#?} {:#?}", self.history);
            assert!(
                row.row["stopreq"] == 0 && !row.removed() && row.valid_for.is_none_or(|left| left > 0.0),
                "handed out, though called off: {row:#?} {:#?}",
                self.history
            );
            let thread = Thread { environment, stage: Stage::Given, provisioned: false };
            self.threads.entry(id).or_default().push(thread);
        }
    }

    /// Sends a request. Whoever hangs up ends its handler, as the end of a function's time does.
    async fn send(&mut self, call: Call, killed: Option<usize>) -> Option<Answer> {
        self.bad_days();
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
        self.good_days();
        answer
    }

    async fn start(
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
            // Its caller does not know, but it may have been accepted.
            None => {
                let rows = self.moment().await.rows;
                let Some(id) = rows.into_keys().find(|id| !before.rows.contains_key(id)) else { return };
                id
            }
        };
        self.accepted.push(Accepted { id, environment });
    }

    /// One step of the thread that has a job; of two, the one that is further.
    async fn step(&mut self, id: &str) {
        let Some(threads) = self.threads.get_mut(id).filter(|threads| !threads.is_empty()) else { return };
        let which = if threads[0].stage == Stage::Given { threads.len() - 1 } else { 0 };
        let mut thread = threads.remove(which);
        if self.go_on(id, &mut thread).await {
            self.threads.get_mut(id).unwrap().push(thread);
        }
    }

    /// Whether it goes on.
    async fn go_on(&mut self, id: &str, thread: &mut Thread) -> bool {
        let environment = thread.environment;
        thread.stage = match thread.stage {
            Stage::Given => {
                if self.read(id, "status").await > 10 {
                    return false;
                }
                self.set_status(id, 20).await;
                Stage::Begun
            }
            Stage::Begun => {
                if !self.down {
                    self.make_volumes(id, environment).await;
                }
                Stage::HasVolumes
            }
            Stage::HasVolumes => self.make(id, environment, Component::Configure).await,
            Stage::Waits(component) => {
                // A cluster that does not answer is asked again.
                if self.down {
                    return true;
                }
                let job =
                    self.api::<Job>(environment).get_opt(&format!("{id}-{}-job", component.name())).await.unwrap();
                let done = job.is_none_or(|job| job.status.and_then(|status| status.succeeded).unwrap_or(0) > 0);
                let stops = component == Component::Algorithm && self.read(id, "stopreq").await == 1;
                if !done && !stops {
                    return true;
                }
                Stage::Passed(component)
            }
            Stage::Passed(component) => {
                self.remove_job(id, environment, component).await;
                match component {
                    Component::Configure if self.read(id, "status").await == 30 => {
                        thread.provisioned = true;
                        self.set_status(id, 40).await;
                        self.make(id, environment, Component::Algorithm).await
                    }
                    Component::Configure => self.make(id, environment, Component::Publish).await,
                    Component::Algorithm => {
                        self.set_status(id, 60).await;
                        self.make(id, environment, Component::Publish).await
                    }
                    Component::Publish => Stage::Published,
                }
            }
            Stage::Published => {
                if thread.provisioned {
                    self.set_status(id, 70).await;
                }
                self.execute("UPDATE jobs SET dateFinished=NOW() WHERE workflowId=$1", id).await;
                Stage::Finished
            }
            Stage::Finished => {
                if !self.down {
                    self.remove_volumes(id, environment).await;
                }
                return false;
            }
        };
        true
    }

    async fn make(&mut self, id: &str, environment: usize, component: Component) -> Stage {
        if !self.down {
            let name = format!("{id}-{}-job", component.name());
            // As the real one it takes what is there for its own.
            if self.api::<Job>(environment).get_opt(&name).await.unwrap().is_none() {
                self.cluster().engine_job(&self.namespaces[environment], id, component.name()).await;
            }
        }
        Stage::Waits(component)
    }

    async fn make_volumes(&mut self, id: &str, environment: usize) {
        if self.api::<ConfigMap>(environment).get_opt(id).await.unwrap().is_none()
            && self.api::<PersistentVolumeClaim>(environment).get_opt(&format!("{id}-data")).await.unwrap().is_none()
            && self
                .api::<PersistentVolumeClaim>(environment)
                .get_opt(&format!("{id}-adminlogs"))
                .await
                .unwrap()
                .is_none()
        {
            self.cluster().engine_volumes(&self.namespaces[environment], id).await;
            if self.fixture.app.database.job(id).await.unwrap()["tidied"] == true {
                self.late.insert(id.to_owned());
            }
        }
    }

    async fn remove_job(&self, id: &str, environment: usize, component: Component) {
        if !self.down {
            let name = format!("{id}-{}-job", component.name());
            self.api::<Job>(environment).delete(&name, &DeleteParams::foreground()).await.ok();
            self.settle().await;
        }
    }

    async fn remove_volumes(&self, id: &str, environment: usize) {
        let params = DeleteParams::foreground();
        for name in ["data", "adminlogs"] {
            self.api::<PersistentVolumeClaim>(environment).delete(&format!("{id}-{name}"), &params).await.ok();
        }
        self.api::<ConfigMap>(environment).delete(id, &params).await.ok();
    }

    async fn read(&self, id: &str, column: &str) -> i64 {
        self.fixture.app.database.job(id).await.unwrap()[column].as_i64().unwrap()
    }

    async fn set_status(&self, id: &str, status: i32) {
        let text = operator_service::domain::Status::from_code(status).text();
        sqlx::query("UPDATE jobs SET status=$1,statusText=$2 WHERE workflowId=$3")
            .bind(status)
            .bind(text)
            .bind(id)
            .execute(&self.fixture.app.database.pool)
            .await
            .unwrap();
    }

    async fn execute(&self, statement: &'static str, id: &str) {
        sqlx::query(statement).bind(id).execute(&self.fixture.app.database.pool).await.unwrap();
    }

    /// The newest pod of the last step that has one does something.
    async fn pods(&mut self, job: &Accepted, fate: Fate) {
        if self.down {
            return;
        }
        self.settle().await;
        for component in [Component::Publish, Component::Algorithm, Component::Configure] {
            let jobs = self.api::<Job>(job.environment);
            let name = format!("{}-{}-job", job.id, component.name());
            let Some(found) = jobs.get_opt(&name).await.unwrap() else { continue };
            let finished =
                found.status.as_ref().and_then(|status| status.conditions.as_ref()).is_some_and(|conditions| {
                    conditions
                        .iter()
                        .any(|it| matches!(it.type_.as_str(), "Complete" | "Failed") && it.status == "True")
                });
            if finished || found.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let namespace = &self.namespaces[job.environment];
            let pods = self.cluster().pods_of(namespace, &job.id, component.name()).await;
            let Some(pod) = pods.into_iter().find(|pod| pod.metadata.deletion_timestamp.is_none()) else { continue };
            let uid = found.metadata.uid.unwrap();
            let conditions = |scheduled: &str| {
                let unschedulable = match scheduled {
                    "False" => json!("Unschedulable"),
                    _ => Value::Null,
                };
                json!([
                    { "type": "PodScheduled", "status": scheduled, "reason": unschedulable, "lastTransitionTime": ago(0) },
                    { "type": "ContainersReady", "status": "False", "lastTransitionTime": ago(0) },
                ])
            };
            let state = |state: Value| json!([container(component.name(), state)]);
            let ended = |reason: &str, code: i32| {
                state(json!({ "terminated": {
                    "reason": reason, "exitCode": code, "startedAt": ago(0), "finishedAt": ago(0)
                }}))
            };
            let (status, trouble) = match fate {
                Fate::Runs => (
                    json!({
                        "phase": "Running", "conditions": null, "containerStatuses": state(json!({
                            "running": { "startedAt": ago(0) }
                        }))
                    }),
                    None,
                ),
                Fate::Succeeds | Fate::FindsNoData => {
                    match component {
                        Component::Configure => {
                            self.set_status(&job.id, if fate == Fate::Succeeds { 30 } else { 31 }).await;
                        }
                        Component::Algorithm => {}
                        Component::Publish => {
                            let statement = "UPDATE jobs SET outputsURL=$1 WHERE workflowId=$2";
                            let query = sqlx::query(statement).bind(OUTPUTS).bind(&job.id);
                            query.execute(&self.fixture.app.database.pool).await.unwrap();
                        }
                    }
                    (json!({ "phase": "Succeeded", "containerStatuses": ended("Completed", 0) }), None)
                }
                Fate::Fails => (json!({ "phase": "Failed", "containerStatuses": ended("Error", 1) }), Some(0.0)),
                Fate::RunsOutOfMemory => {
                    (json!({ "phase": "Failed", "containerStatuses": ended("OOMKilled", 137) }), Some(0.0))
                }
                Fate::HasNoImage => (
                    json!({
                        "phase": "Pending", "conditions": conditions("True"), "containerStatuses": state(json!({
                            "waiting": { "reason": "ImagePullBackOff" }
                        }))
                    }),
                    Some(RETRY_GRACE),
                ),
                Fate::HasNoNode => {
                    (json!({ "phase": "Pending", "conditions": conditions("False") }), Some(SCHEDULE_GRACE))
                }
            };
            match trouble {
                Some(grace) => self.troubles.insert(uid, (self.passed, grace)),
                None => self.troubles.remove(&uid),
            };
            if matches!(fate, Fate::Fails | Fate::RunsOutOfMemory) {
                let condition = |kind: &str| {
                    json!({
                        "type": kind, "status": "True", "reason": "BackoffLimitExceeded", "message": "It failed.",
                        "lastTransitionTime": ago(0), "lastProbeTime": ago(0)
                    })
                };
                let patch = json!({ "status": {
                    "conditions": [condition("FailureTarget"), condition("Failed")], "failed": 1, "active": 0, "ready": 0
                }});
                jobs.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
            }
            let patch = Patch::Merge(json!({ "status": status }));
            let pods = self.api::<Pod>(job.environment);
            pods.patch_status(&pod.metadata.name.unwrap(), &PatchParams::default(), &patch).await.unwrap();
            self.settle().await;
            return;
        }
    }

    async fn by_hand(&mut self, job: &Accepted, object: &Index, before: &Moment) {
        let theirs: Vec<_> = before.objects.keys().filter(|(_, name)| name.starts_with(&job.id)).collect();
        if self.down || theirs.is_empty() {
            return;
        }
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

    // Time

    async fn time(&mut self, seconds: i64) {
        self.passed += seconds;
        sqlx::query("UPDATE clock.ahead SET ahead = ahead + make_interval(secs => $1)")
            .bind(seconds as f64)
            .execute(&self.fixture.app.database.pool)
            .await
            .unwrap();
        for environment in 0..ENVIRONMENTS {
            for job in self.api::<Job>(environment).list(&Default::default()).await.unwrap() {
                let (name, patch) = put_back(job.metadata.name, &job.status, seconds);
                let jobs = self.api::<Job>(environment);
                jobs.patch_status(&name, &PatchParams::default(), &patch).await.unwrap();
            }
            for pod in self.api::<Pod>(environment).list(&Default::default()).await.unwrap() {
                let (name, patch) = put_back(pod.metadata.name, &pod.status, seconds);
                let pods = self.api::<Pod>(environment);
                pods.patch_status(&name, &PatchParams::default(), &patch).await.unwrap();
            }
        }
    }

    // Sweeps

    async fn sweep(&mut self, broken: Option<&(Break, Vec<Act>)>, killed: bool) {
        let mut moments = vec![self.moment().await];
        let clean = !self.down && self.throttled + self.lost == 0;
        self.bad_days();
        let stand_in = self.cluster().stand_in();
        let reaper = &self.fixture.reaper;
        let mut sweep: Sweep<'a> = Box::pin(reaper.sweep(false, Duration::from_secs(60)));
        let mut report = None;
        if let Some((at, acts)) = broken {
            let mut polls = 0;
            report = until(&mut sweep, || {
                polls += 1;
                match *at {
                    Break::Requests(most) => stand_in.requests().len() >= most,
                    Break::Polls(most) => polls > most,
                }
            })
            .await;
            self.good_days();
            let moment = self.moment().await;
            self.check(&moments.iter().collect::<Vec<_>>(), &moment, Who::Reaper, None);
            if report.is_none() {
                for act in acts {
                    self.act(act).await;
                }
                moments.push(self.moment().await);
                self.bad_days();
            }
        }
        if report.is_none() && killed && broken.is_some() {
            drop(sweep);
            self.good_days();
            // Nobody else sweeps until its lease has run out.
            let skipped = self.fixture.reaper.sweep(false, Duration::from_secs(60)).await.unwrap();
            let held: bool =
                sqlx::query_scalar("SELECT holder IS NOT NULL AND helduntil > clock_timestamp() FROM sweeps")
                    .fetch_one(&self.fixture.app.database.pool)
                    .await
                    .unwrap();
            assert_eq!(skipped.skipped.is_some(), held, "{:#?}", self.history);
            self.fixture.app.database.execute("UPDATE sweeps SET helduntil = clock_timestamp()").await;
            return;
        }
        let report = match report {
            Some(report) => report,
            None => sweep.await.unwrap(),
        };
        self.good_days();
        for (kind, count) in &report.kinds {
            *self.tally.lock().await.entry(format!("done: {kind:?}")).or_default() += count.done;
            *self.tally.lock().await.entry(format!("failed: {kind:?}")).or_default() += count.failed;
        }
        assert_eq!(report.skipped, None, "{:#?}", self.history);
        let after = self.moment().await;
        self.check(&moments.iter().collect::<Vec<_>>(), &after, Who::Reaper, Some(&report).filter(|_| clean));
    }

    // Invariants

    async fn moment(&self) -> Moment {
        self.settle().await;
        let rows = sqlx::query(
            "SELECT workflowid, (to_jsonb(jobs) - 'workflow')::text,
                    extract(epoch FROM clock_timestamp() AT TIME ZONE 'UTC' - datefinished)::float8,
                    (validuntil - extract(epoch FROM clock_timestamp()))::float8
             FROM jobs",
        )
        .fetch_all(&self.fixture.app.database.pool)
        .await
        .unwrap();
        let rows = rows.into_iter().map(|row| {
            let text: String = row.get(1);
            let row_of =
                JobRow { row: serde_json::from_str(&text).unwrap(), finished_age: row.get(2), valid_for: row.get(3) };
            (row.get(0), row_of)
        });
        let rows = rows.collect();
        let mut objects = BTreeMap::new();
        let (mut running_for, mut stuck) = (BTreeMap::new(), BTreeSet::new());
        for kind in KINDS {
            for object in self.cluster().stand_in().objects(kind) {
                let metadata = &object["metadata"];
                let ours = self.namespaces.iter().any(|namespace| metadata["namespace"] == namespace.as_str());
                if !ours || !metadata["deletionTimestamp"].is_null() {
                    continue;
                }
                let name = metadata["name"].as_str().unwrap().to_owned();
                if kind == "jobs.batch" {
                    let started = object["status"]["startTime"].as_str().unwrap_or_default();
                    if let Ok(started) = started.parse::<k8s_openapi::jiff::Timestamp>() {
                        let age = k8s_openapi::jiff::Timestamp::now().duration_since(started).as_secs_f64();
                        running_for.insert(name.clone(), age);
                    }
                    let uid = metadata["uid"].as_str().unwrap();
                    if self
                        .troubles
                        .get(uid)
                        .is_some_and(|(since, grace)| (self.passed - since) as f64 + 60.0 >= *grace)
                    {
                        stuck.insert(name.clone());
                    }
                }
                objects.insert((kind, name), Value::clone(&object));
            }
        }
        Moment { rows, objects, running_for, stuck }
    }

    /// Lets the cluster's controllers come to rest.
    async fn settle(&self) {
        let mut revision = self.cluster().stand_in().revision();
        loop {
            let before = *revision.borrow_and_update();
            for _ in 0..30 {
                tokio::task::yield_now().await;
            }
            if *revision.borrow_and_update() == before {
                return;
            }
        }
    }

    /// From any of `before`, one after the other, to `after`, by the hands of `who`. With the report of a sweep that
    /// nothing kept from its work.
    fn check(&self, before: &[&Moment], after: &Moment, who: Who, report: Option<&Report>) {
        let last = *before.last().unwrap();
        let told = || self.history.join("\n");
        for Accepted { id, .. } in &self.accepted {
            assert!(after.rows.contains_key(id), "{id} was accepted, and is lost:\n{}", told());
        }
        let mut active = BTreeSet::new();
        for (id, new) in &after.rows {
            if !new.finished() {
                let agreement = new.row["agreementid"].as_str().unwrap();
                assert!(active.insert(agreement), "two unfinished jobs of {agreement}:\n{}", told());
            }
            let Some(old) = last.rows.get(id) else { continue };
            let pair = || format!("{:#} -> {:#}\n{}", old.row, new.row, told());
            let end = |row: &Value| ["status", "statustext", "datefinished"].map(|column| row[column].clone());
            if old.finished() && (who != Who::Engine || old.row["closed"] == true) {
                assert_eq!(end(&old.row), end(&new.row), "what is finished has changed: {}", pair());
            }
            if matches!(old.row["status"].as_i64(), Some(31 | 32)) {
                assert_ne!(new.row["status"], 41, "{}", pair());
            }
            if old.row["stopreq"] == 1 {
                assert_eq!(new.row["stopreq"], 1, "{}", pair());
            }
            if who != Who::Caller && new.removed() && !old.removed() {
                assert!(who == Who::Reaper && new.expired(), "removed before its time: {}", pair());
            }
            if old.has_urls() && !new.has_urls() {
                let may = who == Who::Reaper && new.removed() && new.settled() && (old.removed() || new.expired());
                assert!(may, "outputs forgotten: {}", pair());
            }
            if old.row["reason"].is_null() && !new.row["reason"].is_null() {
                assert_eq!(who, Who::Reaper, "{}", pair());
                let ended = last.objects.iter().any(|(key, object)| {
                    key.0 == "jobs.batch"
                        && key.1.starts_with(id)
                        && after.objects.get(key).is_none_or(|it| it["metadata"]["uid"] != object["metadata"]["uid"])
                });
                let done = ended || (new.finished() && !old.finished());
                assert!(report.is_none() || done || before.len() > 1, "a reason for nothing: {}", pair());
            }
        }
        for ((kind, name), object) in &last.objects {
            let still = after.objects.get(&(*kind, name.clone()));
            if still.is_some_and(|it| it["metadata"]["uid"] == object["metadata"]["uid"]) {
                continue;
            }
            let Some(id) = name.get(..32) else { continue };
            let Some(new) = after.rows.get(id) else { continue };
            let lost = || format!("{kind} {name} is gone, though {:#}\n{}", new.row, told());
            let removed = new.settled() && (who == Who::Reaper || new.removed());
            match (who, *kind) {
                (Who::Engine | Who::Hand, _) | (_, "pods") => {}
                (Who::Nobody, _) => panic!("{}", lost()),
                (_, "configmaps" | "persistentvolumeclaims") => assert!(removed, "{}", lost()),
                (_, "jobs.batch") => {
                    let stopped = new.row["stopreq"] == 1 || new.removed();
                    let over = |moment: &&Moment| {
                        let limit = LIMITS[self.accepted.iter().find(|it| it.id == id).unwrap().environment];
                        new.row["stopreq"] == 2
                            || moment.running_for.get(name).is_some_and(|age| *age + 5.0 > limit)
                            || new.valid_for.is_some_and(|left| left < 0.0)
                    };
                    let algorithm = name.ends_with("-algorithm-job");
                    let may = removed
                        || algorithm && stopped
                        || who == Who::Reaper
                            && (before.iter().any(|moment| moment.stuck.contains(name))
                                || algorithm && before.iter().any(over));
                    assert!(may, "{}", lost());
                }
                _ => {
                    let old = new.finished_age.is_some_and(|age| age >= WORKFLOW_TTL);
                    assert!(new.settled() && (new.removed() || who == Who::Reaper && old), "{}", lost());
                }
            }
        }
    }

    /// Every engine is gone, the cluster is there, and time passes.
    async fn end(&mut self) {
        self.event(&Event::Up).await;
        self.threads.clear();
        for _ in 0..8 {
            self.history.push("the end: eight hours, a sweep".to_owned());
            self.event(&Event::Time(480)).await;
            self.event(&Event::Sweep { broken: None, killed: false }).await;
        }
        let told = self.history.join("\n");
        let moment = self.moment().await;
        for (id, row) in &moment.rows {
            let row_of = &row.row;
            let end = format!("ended: {} {} {}", row_of["status"], row_of["outputsurl"].is_string(), row_of["reason"]);
            *self.tally.lock().await.entry(end).or_default() += 1;
            let waits =
                row.row["status"] == 1 && row.row["stopreq"] == 0 && row.valid_for.is_none_or(|left| left > 0.0);
            assert!(row.finished() || waits, "left behind: {:#}\n{told}", row.row);
            let named = |kinds: &[&str]| -> Vec<_> {
                let of_kinds = moment.objects.keys().filter(|(kind, _)| kinds.contains(kind));
                of_kinds.filter(|(_, name)| name.starts_with(id.as_str())).collect()
            };
            if row.finished() {
                let kinds: &[&str] = match self.late.contains(id) {
                    true => &["jobs.batch", "pods"],
                    false => &["jobs.batch", "pods", "configmaps", "persistentvolumeclaims"],
                };
                let left = named(kinds);
                assert!(left.is_empty(), "not removed: {left:?} {:#}\n{told}", row.row);
            }
            assert!(!(row.finished() && row.removed() && row.has_urls()), "not forgotten: {:#}\n{told}", row.row);
            if let Some(object) = moment.objects.get(&("workflows.oceanprotocol.com", id.clone())) {
                let deleted = row.removed() && !row.expired();
                assert!(!(row.finished() && deleted), "its WorkFlow object stays: {:#}\n{told}", row.row);
                let said = &object["status"];
                for (says, column) in [("status", "status"), ("statusText", "statustext"), ("reason", "reason")] {
                    assert_eq!(said[says], row.row[column], "{object:#}\n{:#}\n{told}", row.row);
                }
                assert_eq!(said["dateFinished"].is_null(), !row.finished(), "{object:#}\n{:#}\n{told}", row.row);
            }
        }
        let report = self.fixture.reaper.sweep(false, Duration::from_secs(60)).await.unwrap();
        assert!(report.complete && report.kinds.values().all(|count| count.found == 0), "{report:#?}\n{told}");
    }
}

/// A patch of the status by which all its time stamps lie further back.
fn put_back(name: Option<String>, status: &impl serde::Serialize, seconds: i64) -> (String, Patch<Value>) {
    fn put(value: &mut Value, seconds: i64) {
        match value {
            Value::Object(fields) => fields.values_mut().for_each(|value| put(value, seconds)),
            Value::Array(items) => items.iter_mut().for_each(|value| put(value, seconds)),
            Value::String(text) => {
                if let Ok(time) = text.parse::<k8s_openapi::jiff::Timestamp>() {
                    let span = k8s_openapi::jiff::SignedDuration::from_secs(seconds);
                    *text = time.saturating_sub(span).unwrap().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
                }
            }
            _ => {}
        }
    }
    let mut status = serde_json::to_value(status).unwrap();
    put(&mut status, seconds);
    (name.unwrap(), Patch::Merge(json!({ "status": status })))
}

/// Goes on with a sweep until it ends, or is to be broken off.
async fn until(sweep: &mut Sweep<'_>, mut broken: impl FnMut() -> bool) -> Option<Report> {
    std::future::poll_fn(|context| {
        if broken() {
            return Poll::Ready(None);
        }
        sweep.as_mut().poll(context).map(|report| Some(report.unwrap()))
    })
    .await
}
