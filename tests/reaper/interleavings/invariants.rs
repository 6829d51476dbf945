//! The invariants of docs/reaper.md.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use sqlx::Row;

use super::Event;
use super::model::{
    Accepted, Case, ENVIRONMENTS, LIMITS, LONGEST_STEP, SETTLING, START_GRACE, STORAGE_EXPIRY, WORKFLOW_TTL,
};

/// A row, with the ages of its timestamps.
#[derive(Debug, Clone)]
pub(super) struct JobRow {
    pub(super) row: Value,
    pub(super) finished_age: Option<f64>,
    pub(super) valid_for: Option<f64>,
}

impl JobRow {
    pub(super) fn finished(&self) -> bool {
        !self.row["datefinished"].is_null()
    }

    pub(super) fn settled(&self) -> bool {
        self.finished()
            && (matches!(self.row["status"].as_i64(), Some(31 | 32 | 70))
                || self.finished_age.is_some_and(|age| age > SETTLING))
    }

    pub(super) fn removed(&self) -> bool {
        self.row["removed"] == 1
    }

    pub(super) fn has_urls(&self) -> bool {
        self.row["outputsurl"].as_str().is_some_and(|outputs| outputs.contains("://"))
    }

    pub(super) fn expired(&self) -> bool {
        self.finished_age.is_some_and(|age| age >= STORAGE_EXPIRY)
    }
}

/// The state at a moment.
#[derive(Debug, Clone)]
pub(super) struct Moment {
    pub(super) rows: BTreeMap<String, JobRow>,
    /// By kind and name, without those that are terminating.
    pub(super) objects: BTreeMap<(&'static str, String), Value>,
    /// For how many seconds the algorithms' Jobs have run, and the Jobs whose problem has lasted for its grace.
    pub(super) running_for: BTreeMap<String, f64>,
    pub(super) stuck: BTreeSet<String>,
    /// The Jobs that have not succeeded.
    pub(super) open: BTreeSet<String>,
}

impl Moment {
    /// Whether a step of a job is at work, or in trouble for less than its grace.
    fn is_at_work(&self, id: &str) -> bool {
        self.open.iter().any(|name| name.starts_with(id) && !self.stuck.contains(name))
    }

    /// The uids of a job's Jobs that have not succeeded.
    fn open_uids(&self, id: &str) -> BTreeSet<&str> {
        let jobs = self.objects.iter().filter(|((kind, name), _)| *kind == "jobs.batch" && self.open.contains(name));
        jobs.filter(|((_, name), _)| name.starts_with(id))
            .filter_map(|(_, it)| it["metadata"]["uid"].as_str())
            .collect()
    }
}

pub(super) const KINDS: [&str; 5] =
    ["configmaps", "persistentvolumeclaims", "jobs.batch", "workflows.oceanprotocol.com", "pods"];

/// How many seconds ago a Job or pod was started.
fn started_age(object: &Value) -> Option<f64> {
    let started = object["status"]["startTime"].as_str()?.parse::<Timestamp>().ok()?;
    Some(Timestamp::now().duration_since(started).as_secs_f64())
}

/// Whether no container of a pod has started for the grace.
fn never_started(pod: &Value) -> bool {
    let containers = pod["status"]["containerStatuses"].as_array();
    let has_started = containers.into_iter().flatten().any(|it| it["state"]["waiting"].is_null());
    !has_started && started_age(pod).is_some_and(|age| age + 60.0 >= START_GRACE)
}

/// Who made a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    Caller,
    Engine,
    Admin,
    Reaper,
}

impl Case<'_> {
    pub(super) async fn moment(&self) -> Moment {
        self.settle().await;
        let rows = sqlx::query(
            "SELECT workflowid, (to_jsonb(jobs) - 'workflow' || jsonb_build_object('closed', closed))::text,
                    extract(epoch FROM clock_timestamp() AT TIME ZONE 'UTC' - datefinished)::float8,
                    (validuntil - extract(epoch FROM clock_timestamp()))::float8
             FROM jobs JOIN reaperjobs USING (workflowid)",
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
        let (mut running_for, mut stuck, mut open) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        for kind in KINDS {
            for object in self.cluster().stand_in().objects(kind) {
                let metadata = &object["metadata"];
                let ours = self.namespaces.iter().any(|namespace| metadata["namespace"] == namespace.as_str());
                if !ours || !metadata["deletionTimestamp"].is_null() {
                    continue;
                }
                let name = metadata["name"].as_str().unwrap().to_owned();
                if kind == "jobs.batch" {
                    if object["status"]["succeeded"].as_i64().unwrap_or(0) == 0 {
                        open.insert(name.clone());
                    }
                    if let Some(age) = started_age(&object) {
                        running_for.insert(name.clone(), age);
                        if age + 60.0 >= LONGEST_STEP && !name.ends_with("-algorithm-job") {
                            stuck.insert(name.clone());
                        }
                    }
                    let uid = metadata["uid"].as_str().unwrap();
                    if self
                        .problems
                        .get(uid)
                        .is_some_and(|(since, grace)| (self.passed - since) as f64 + 60.0 >= *grace)
                    {
                        stuck.insert(name.clone());
                    }
                }
                if kind == "pods" && never_started(&object) {
                    let label = |name: &str| metadata["labels"][name].as_str().unwrap();
                    stuck.insert(format!("{}-{}-job", label("workflow"), label("component")));
                }
                objects.insert((kind, name), Value::clone(&object));
            }
        }
        Moment { rows, objects, running_for, stuck, open }
    }

    /// Waits until the cluster's controllers are idle.
    pub(super) async fn settle(&self) {
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

    /// Checks the changes that `who` made from the states in `before`, one after another, to `after`.
    pub(super) fn check(&self, before: &[&Moment], after: &Moment, who: Who) {
        let last = *before.last().unwrap();
        let history = || self.history.join("\n");
        for Accepted { id, .. } in &self.accepted {
            assert!(after.rows.contains_key(id), "{id} was accepted, and is lost:\n{}", history());
        }
        let mut active = BTreeSet::new();
        for (id, new) in &after.rows {
            if !new.finished() {
                let agreement = new.row["agreementid"].as_str().unwrap();
                assert!(active.insert(agreement), "two unfinished jobs of {agreement}:\n{}", history());
            }
            let Some(old) = last.rows.get(id) else { continue };
            let pair = || format!("{:#} -> {:#}\n{}", old.row, new.row, history());
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
                let open = before.iter().flat_map(|moment| moment.open_uids(id));
                let ended = open.collect::<BTreeSet<_>>().difference(&after.open_uids(id)).next().is_some();
                let done = ended || (new.finished() && !old.finished());
                assert!(done, "a reason for nothing: {}", pair());
            }
            if new.finished() && !old.finished() {
                assert!(new.finished_age.is_some_and(|age| age.abs() < 60.0), "finished at another time: {}", pair());
                let has_engine = self.threads.get(id).is_some_and(|threads| !threads.is_empty());
                let at_work = has_engine && before.iter().all(|moment| moment.is_at_work(id));
                assert!(who != Who::Reaper || !at_work, "finished, though its engine lives: {}", pair());
            }
        }
        for ((kind, name), object) in &last.objects {
            let still = after.objects.get(&(*kind, name.clone()));
            if still.is_some_and(|it| it["metadata"]["uid"] == object["metadata"]["uid"]) {
                continue;
            }
            let Some(id) = name.get(..32) else { continue };
            let Some(new) = after.rows.get(id) else { continue };
            let lost = || format!("{kind} {name} is gone, though {:#}\n{}", new.row, history());
            let removed = new.settled() && (who == Who::Reaper || new.removed());
            match (who, *kind) {
                (Who::Engine | Who::Admin, _) | (_, "pods") => {}
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

    /// Checks what a sweep that was not interrupted has done, whatever it could not reach: outputs go.
    pub(super) fn check_expiry(&self, before: &Moment, after: &Moment) {
        let due = |(_, row): &(&String, &JobRow)| row.settled() && (row.removed() || row.expired());
        for (id, _) in before.rows.iter().filter(due) {
            let new = &after.rows[id];
            let history = || self.history.join("\n");
            assert!(new.removed() && !new.has_urls(), "outputs that have expired stay: {:#}\n{}", new.row, history());
        }
    }

    /// Checks the end: without engines, with the cluster up, and after enough time.
    pub(super) async fn end(&mut self) {
        self.event(&Event::Up).await;
        self.threads.clear();
        self.alive = [false; ENVIRONMENTS];
        for _ in 0..8 {
            self.history.push("the end: eight hours, a sweep".to_owned());
            self.event(&Event::Time(480)).await;
            self.event(&Event::Sweep { broken: None, killed: false }).await;
        }
        let history = self.history.join("\n");
        let moment = self.moment().await;
        for (id, row) in &moment.rows {
            let row_of = &row.row;
            let end = format!("ended: {} {} {}", row_of["status"], row_of["outputsurl"].is_string(), row_of["reason"]);
            *self.tally.lock().await.entry(end).or_default() += 1;
            let waits =
                row.row["status"] == 1 && row.row["stopreq"] == 0 && row.valid_for.is_none_or(|left| left > 0.0);
            let steps = moment.objects.iter().filter(|((kind, name), _)| *kind == "jobs.batch" && name.starts_with(id));
            let steps = || steps.map(|(_, object)| format!("{:#}", object["status"])).collect::<Vec<_>>();
            assert!(row.finished() || waits, "left behind: {:#} {:#?}\n{history}", row.row, steps());
            let named = |kinds: &[&str]| -> Vec<_> {
                let of_kinds = moment.objects.keys().filter(|(kind, _)| kinds.contains(kind));
                of_kinds.filter(|(_, name)| name.starts_with(id.as_str())).collect()
            };
            if row.finished() {
                let mut left = named(&["jobs.batch", "pods", "persistentvolumeclaims"]);
                // A ConfigMap is found by the objects beside it: an administrator may have deleted these.
                if !self.deleted_by_hand {
                    left.extend(named(&["configmaps"]));
                }
                assert!(left.is_empty(), "not removed: {left:?} {:#}\n{history}", row.row);
            }
            assert!(!(row.finished() && row.removed() && row.has_urls()), "not forgotten: {:#}\n{history}", row.row);
            if let Some(object) = moment.objects.get(&("workflows.oceanprotocol.com", id.clone())) {
                let deleted = row.removed() && !row.expired();
                assert!(!(row.finished() && deleted), "its WorkFlow object stays: {:#}\n{history}", row.row);
                let said = &object["status"];
                for (says, column) in [("status", "status"), ("statusText", "statustext"), ("reason", "reason")] {
                    assert_eq!(said[says], row.row[column], "{object:#}\n{:#}\n{history}", row.row);
                }
                assert_eq!(said["dateFinished"].is_null(), !row.finished(), "{object:#}\n{:#}\n{history}", row.row);
            }
        }
        self.cluster().stand_in().clear_requests();
        let report = self.fixture.reaper.sweep(false, Duration::from_secs(60)).await.unwrap();
        let requests = self.cluster().stand_in().requests();
        assert!(requests.iter().all(|request| request.verb == "list"), "{requests:#?}\n{history}");
        assert!(report.complete && report.kinds.values().all(|count| count.found == 0), "{report:#?}\n{history}");
    }
}
