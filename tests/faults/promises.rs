//! What has to be true after a round: docs/reliability.md.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use sqlx::Row;

use crate::callers::{Callers, Told};
use crate::plan::What;
use crate::support::operation::Caller;
use crate::world::STORAGE_EXPIRY;

/// A job as it is in the end.
struct Job {
    row: Value,
    /// How long ago it finished, in seconds.
    finished: Option<f64>,
}

impl Job {
    fn agreement_id(&self) -> &str {
        self.row["agreementid"].as_str().unwrap()
    }

    fn expired(&self) -> bool {
        self.finished.is_some_and(|age| age > STORAGE_EXPIRY as f64)
    }
}

async fn jobs(callers: &Callers) -> BTreeMap<String, Job> {
    let mut connection = callers.world.connect().await.unwrap();
    let rows = sqlx::query(
        "SELECT workflowid, to_jsonb(jobs) - 'workflow', \
         extract(epoch FROM now() AT TIME ZONE 'UTC' - datefinished)::float8 FROM jobs",
    );
    let rows = rows.fetch_all(&mut connection).await.unwrap();
    let jobs: BTreeMap<_, _> =
        rows.iter().map(|row| (row.get(0), Job { row: row.get::<Json, _>(1).0, finished: row.get(2) })).collect();
    assert_eq!(jobs.len(), rows.len(), "two rows of one job");
    jobs
}

type Json = sqlx::types::Json<Value>;

/// After a sweep, while the engine still has its jobs: what was asked to stop does not run, and what did not run yet has
/// finished.
pub async fn stopped_jobs_stop(callers: &Callers) {
    let jobs = jobs(callers).await;
    for told in callers.told.lock().unwrap().iter().filter(|told| told.status == 200) {
        let (What::Stop(_) | What::Delete(_)) = told.what else { continue };
        let id = told.job_id.as_ref().unwrap();
        let answered = told.body.as_array().unwrap().iter().find(|job| job["jobId"] == **id);
        let answered = answered.unwrap_or_else(|| panic!("not the job that was asked for: {told:?}"));
        let Job { row, .. } = &jobs[id];
        let deletes = matches!(told.what, What::Delete(_));
        assert!(!deletes || row["removed"] == 1, "deleted, and there: {row} {told:?}");
        if answered["dateFinished"].is_null() {
            let ends = row["stopreq"] == 1 || deletes;
            assert!(ends, "not asked to stop: {row} {told:?}");
            let name = format!("{id}-algorithm-job");
            let runs = callers.processes.cluster.stand_in().object("jobs.batch", &callers.environment, &name);
            assert!(runs.is_none(), "stopped, and running: {row}");
            let waits = row["status"] == 1 && row["datefinished"].is_null();
            assert!(!waits, "stopped, and waiting: {row}");
        }
    }
}

/// After the last sweep.
pub async fn check(callers: &Callers) {
    let jobs = jobs(callers).await;
    let told = std::mem::take(&mut *callers.told.lock().unwrap());
    accepted_once(&told, &jobs);
    refusals(&told, &callers.environment);
    nonces(&told);
    cluster(callers, &jobs);
    expiry(&told, &jobs);
    history(callers, &jobs).await;
    let accepted = told.iter().filter(|told| told.started().is_some()).count();
    let refused = told.iter().filter(|told| matches!(told.what, What::Start(_)) && told.status != 200).count();
    for (what, number) in [("starts accepted", accepted), ("starts refused", refused), ("jobs", jobs.len())] {
        (0..number).for_each(|_| callers.world.count(what));
    }
}

/// Every start that was answered with a job has made it, one that was refused has made none, and there is no other job.
fn accepted_once(told: &[Told], jobs: &BTreeMap<String, Job>) {
    let mut by_agreement: BTreeMap<&str, Vec<&Told>> = BTreeMap::new();
    for told in told.iter().filter(|told| matches!(told.what, What::Start(_) | What::Stranger | What::Nowhere)) {
        by_agreement.entry(&told.agreement_id).or_default().push(told);
    }
    for job in jobs.values() {
        assert!(by_agreement.contains_key(job.agreement_id()), "nobody has started it: {}", job.row);
    }
    for (agreement, told) in by_agreement {
        let stored: BTreeSet<&str> =
            jobs.iter().filter(|(_, job)| job.agreement_id() == agreement).map(|(id, _)| id.as_str()).collect();
        let accepted: BTreeSet<&str> = told.iter().filter_map(|told| told.started()).collect();
        let lost: Vec<_> = accepted.difference(&stored).collect();
        assert!(lost.is_empty(), "accepted and lost: {lost:?} {told:#?}");
        // Brizo has no nonces: each delivery that is not answered may have made a job, and a later one another, when that
        // has finished.
        let own = |told: &&Told| if told.caller == Caller::Brizo { told.unanswered } else { 0 };
        let late = told.iter().filter(|told| told.was_late()).count();
        let explained = told.iter().map(own).sum::<usize>() + late;
        let unknown: Vec<_> = stored.difference(&accepted).collect();
        assert!(unknown.len() <= explained, "no caller received {unknown:?} {told:#?}");
        // One request makes one job, however often it is sent.
        let requests: BTreeSet<usize> = told.iter().map(|told| told.request).collect();
        for request in requests {
            let of_request = told.iter().filter(|told| told.request == request && told.caller != Caller::Brizo);
            let ids: BTreeSet<&str> = of_request.clone().filter_map(|told| told.started()).collect();
            assert!(ids.len() <= 1, "one request has made {ids:?} {told:#?}");
            let first = of_request.clone().next().map(|told| told.times.0);
            let in_time = of_request.clone().all(|told| Some(told.times.0) == first && Some(told.times.1) == first);
            let refused = of_request.clone().find(|told| told.status != 200 && !told.reuses_nonce);
            assert!(ids.is_empty() || refused.is_none() || !in_time, "done, and refused: {refused:?} {told:#?}");
        }
    }
}

/// What may not be accepted is refused.
fn refusals(told: &[Told], environment: &str) {
    for told in told {
        match &told.what {
            // A fresh nonce is checked after the signature, an environment after the nonce.
            What::Stranger => assert_eq!(told.status, 401, "{told:?}"),
            What::Nowhere => assert_eq!(told.status, 400, "{told:?}"),
            What::Migrate => assert_eq!(told.status, 200, "{told:?}"),
            What::Environments => {
                let listed = told.body.as_array().unwrap().iter().any(|env| env["id"] == *environment);
                assert!(told.status == 200 && listed, "{told:?}");
            }
            _ if told.shares_nonce && told.status != 200 => {
                assert!(!told.soon && told.text.contains("nonce"), "{told:?}");
            }
            _ if told.reuses_nonce => assert!(told.status == 400 && told.text.contains("nonce"), "{told:?}"),
            _ => {}
        }
    }
}

/// A result is given once for a nonce. (That no other request passes under a used nonce is part of [`refusals`].)
fn nonces(told: &[Told]) {
    let mut results: BTreeMap<usize, usize> = BTreeMap::new();
    for told in
        told.iter().filter(|told| matches!(told.what, What::Result(_)) && told.status == 200 && !told.reuses_nonce)
    {
        *results.entry(told.request).or_default() += 1;
    }
    for (request, times) in results {
        assert_eq!(times, 1, "{:#?}", told.iter().filter(|told| told.request == request).collect::<Vec<_>>());
    }
}

/// The cluster has a WorkFlow object for each job that was not removed, with its status, and nothing else. One that was not
/// created before its job finished may be missing.
fn cluster(callers: &Callers, jobs: &BTreeMap<String, Job>) {
    let stand_in = callers.processes.cluster.stand_in();
    let mut objects = BTreeMap::new();
    for object in stand_in.objects("workflows.oceanprotocol.com") {
        assert_eq!(object["metadata"]["namespace"], *callers.environment, "{object:#}");
        objects.insert(object["metadata"]["name"].as_str().unwrap().to_owned(), object);
    }
    for (id, Job { row, .. }) in jobs {
        let Some(object) = objects.remove(id) else {
            // None is created for a job that has finished meanwhile.
            let never_had = row["registered"] == false && !row["datefinished"].is_null();
            assert!(row["removed"] == 1 || never_had, "without its WorkFlow object: {row}");
            continue;
        };
        assert_eq!(row["removed"], 0, "removed, and its WorkFlow object is there: {row}");
        assert_eq!(object["status"]["status"], row["status"], "{object:#} {row}");
    }
    assert!(objects.is_empty(), "WorkFlow objects without a job: {:?}", objects.keys());
    let left = stand_in.objects("jobs.batch");
    assert!(left.is_empty(), "Jobs are left: {left:#?}");
}

/// Outputs go when they have expired or their job was deleted, and not before.
fn expiry(told: &[Told], jobs: &BTreeMap<String, Job>) {
    for (id, job) in jobs {
        let deletes =
            told.iter().filter(|told| matches!(told.what, What::Delete(_)) && told.job_id.as_ref() == Some(id));
        let has_to_be = job.expired() || deletes.clone().any(|told| told.status == 200);
        let may_be = has_to_be || deletes.clone().any(Told::was_late);
        let removed = job.row["removed"] == 1;
        assert!(if removed { may_be } else { !has_to_be }, "removed or not: {}", job.row);
        let outputs = job.row["outputsurl"].as_str().unwrap_or_default();
        // Without a reason it has ended because it has published its outputs.
        let published = job.finished.is_some() && job.row["reason"].is_null();
        assert_eq!(outputs.contains("url\""), !removed && published, "outputs: {}", job.row);
    }
}

/// At no time did an agreement have two unfinished jobs, did a job's status go back or a finished job change, or did
/// anybody but its engine end a job that ran.
async fn history(callers: &Callers, jobs: &BTreeMap<String, Job>) {
    let mut connection = callers.world.connect().await.unwrap();
    let rows = sqlx::query("SELECT who, old, new FROM history.changes ORDER BY number");
    let mut active: BTreeSet<String> = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for row in rows.fetch_all(&mut connection).await.unwrap() {
        let who: String = row.get(0);
        let (old, new) = (row.get::<Option<Json>, _>(1), row.get::<Option<Json>, _>(2));
        let Some(sqlx::types::Json(new)) = new else { panic!("a row was deleted: {old:?}") };
        let agreement = new["agreementid"].as_str().unwrap().to_owned();
        let pair = || format!("{who}: {old:?} -> {new}");
        let finished = !new["datefinished"].is_null();
        seen.insert(new["workflowid"].as_str().unwrap().to_owned());
        let Some(sqlx::types::Json(before)) = &old else {
            assert!(active.insert(agreement), "two unfinished jobs of one agreement: {}", pair());
            continue;
        };
        if !before["datefinished"].is_null() {
            for column in ["status", "datefinished"] {
                assert_eq!(before[column], new[column], "what is finished has changed: {}", pair());
            }
            continue;
        }
        let (from, to) = (before["status"].as_i64().unwrap(), new["status"].as_i64().unwrap());
        assert!(to >= from || (from, to) == (10, 1), "its status went back: {}", pair());
        for mark in ["stopreq", "removed"] {
            assert!(before[mark].as_i64() <= new[mark].as_i64(), "{mark} was taken back: {}", pair());
        }
        if finished {
            active.remove(&agreement);
            // The test is the engine. The reaper ends what was stopped before an engine began it.
            let stopped = from <= 10 && (before["stopreq"] == 1 || before["removed"] == 1);
            assert!(who == "test" || stopped, "ended, and not by its engine: {}", pair());
        }
    }
    assert_eq!(seen, jobs.keys().cloned().collect(), "rows without a history");
}
