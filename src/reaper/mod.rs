//! The reaper: what was left lying is cleaned up, and book and cluster meet again.
//!
//! A sweep first decides what is due ([`decide`], pure), then does it. It may be killed at any line, run twice and
//! run beside itself: what it finds due it finds due again until it is done, whatever it changes it changes only if it
//! still is as it was looked at, and what it does it does in such an order that half of it is found due again.
//! docs/reaper.md has the rules and the invariants.

pub mod decide;
mod metrics;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use tokio::time::{Instant, MissedTickBehavior};
use uuid::Uuid;

use crate::config::ReaperRules;
use crate::db::{After, Database, DatabaseError, FinishedJob, LiveJob, Mirrored, SweptEnvironment, UnregisteredJob};
use crate::domain::{JobId, output, workflow};
use crate::kubernetes::{
    Cluster, ClusterError, Deleted, Listed, Step, StepState, WorkFlowSpec, WorkFlowStatus, names_namespace,
};
use crate::storage::{Storage, StorageError};
use decide::{Action, Duty, Seen};
use report::Notes;

pub use report::{Count, Entry, Kind, Outcome, Report};

/// For how long a sweep keeps others from beginning, unless it renews that.
const LEASE: f64 = 60.0;
/// How often it does, and how often in a row that may fail.
const RENEWALS: (Duration, u32) = (Duration::from_secs(15), 3);
/// After its time is up, a sweep may end what it has begun for so long.
const GRACE: Duration = Duration::from_secs(4);
/// How long the end of a log may take.
const LOG_TIME: Duration = Duration::from_secs(20);
/// As many things are done side by side.
const AT_ONCE: u32 = 8;
/// As often in a row the cluster may not be reached until it counts as gone for the rest of a run.
const MISSES: u32 = 5;
/// At least so often everything is gone through that is not due each time, in seconds.
const CHORES: f64 = 3600.0;

/// Cleans up.
#[derive(Clone)]
pub struct Reaper {
    db: Database,
    cluster: Cluster,
    outputs: Storage,
    rules: ReaperRules,
}

/// Why something about a job failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("an output could not be removed: {0}")]
    Output(#[from] StorageError),
    #[error("{0}")]
    Job(&'static str),
    /// It was not even tried: its namespace cannot be read.
    #[error("its namespace cannot be read")]
    Refusing,
}

/// How a piece of work ended, and what is to be said of it.
type Ended = Result<(Outcome, Option<String>), Failure>;

impl Reaper {
    /// A reaper of this book, this cluster and these outputs.
    pub fn new(db: Database, cluster: &Cluster, outputs: Storage, rules: ReaperRules) -> Self {
        let cluster = cluster.paced(rules.requests_per_second);
        Self { db, cluster, outputs, rules }
    }

    /// Does what is due, for so long at most; with `dry_run`, only says what is. Does nothing if another sweep is
    /// under way.
    ///
    /// # Errors
    /// If the books cannot be read. Whatever else fails is in the report.
    pub async fn sweep(&self, dry_run: bool, time: Duration) -> Result<Report, DatabaseError> {
        let until = Instant::now() + time;
        let sweep = Sweep {
            reaper: self,
            holder: Uuid::new_v4().to_string(),
            dry_run,
            until,
            notes: Notes::of(dry_run),
            misses: AtomicU32::new(0),
            refusing: Mutex::default(),
        };
        if dry_run {
            return sweep.to_its_end().await;
        }
        if !self.db.take_sweep(&sweep.holder, LEASE).await? {
            let skipped = Some("another sweep is under way".to_owned());
            return Ok(Report { skipped, ..sweep.notes.finished(false) });
        }
        let result = tokio::select! {
            result = sweep.to_its_end() => result,
            () = self.until_lost(&sweep.holder) => {
                sweep.notes.trouble("another sweep has begun: this one's lease ran out".to_owned());
                Ok(sweep.notes.finished(false))
            }
        };
        // It runs out anyway.
        if let Err(error) = self.db.leave_sweep(&sweep.holder).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "the sweep's lease could not be given back");
        }
        result
    }

    /// Renews the lease, until that is not possible any more.
    async fn until_lost(&self, holder: &str) {
        let mut tick = tokio::time::interval_at(Instant::now() + RENEWALS.0, RENEWALS.0);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failures = 0;
        while failures < RENEWALS.1 {
            tick.tick().await;
            match self.db.take_sweep(holder, LEASE).await {
                Ok(true) => failures = 0,
                Ok(false) => return,
                Err(_) => failures += 1,
            }
        }
    }
}

/// One run.
struct Sweep<'a> {
    reaper: &'a Reaper,
    /// Its name, as the lease has it.
    holder: String,
    dry_run: bool,
    until: Instant,
    notes: Notes,
    /// How often in a row the cluster could not be reached.
    misses: AtomicU32,
    /// The namespaces that may not be read.
    refusing: Mutex<BTreeSet<String>>,
}

impl Sweep<'_> {
    async fn to_its_end(&self) -> Result<Report, DatabaseError> {
        // On the heap, here and below, or the compiler loses count of what is nested.
        let environments = self.db().swept_environments().await?;
        let complete = match tokio::time::timeout_at(self.until + GRACE, self.everything(&environments).boxed()).await {
            Ok(enough) => enough && Instant::now() < self.until,
            Err(_) => false,
        };
        let report = self.notes.finished(complete);
        for (kind, count) in report.kinds.iter().filter(|(_, count)| count.found > 0) {
            let Count { found, done, failed, left } = count;
            tracing::info!(?kind, found, done, failed, left, dry_run = self.dry_run, "the reaper's sweep");
        }
        tracing::debug!(complete, "the reaper's sweep has ended");
        Ok(report)
    }

    fn db(&self) -> &Database {
        &self.reaper.db
    }

    fn cluster(&self) -> &Cluster {
        &self.reaper.cluster
    }

    fn rules(&self) -> &ReaperRules {
        &self.reaper.rules
    }

    /// What is most urgent comes first, but may take no more than half of the time that is left, so that everything
    /// has its turn in each run. Says whether there was time for all.
    async fn everything(&self, environments: &[SweptEnvironment]) -> bool {
        // Now, in case there is no time for it in the end.
        let mut enough = self.went_well(self.look_at_registrations().await);
        enough &= self.went_well(self.environments(environments, self.half()).boxed().await);
        enough &= self.went_well(self.registrations(self.half()).boxed().await);
        enough &= self.went_well(self.mirrors(self.half()).boxed().await);
        enough &= self.went_well(self.finished(self.half()).boxed().await);
        enough &= self.went_well(self.searches(environments, self.half()).boxed().await);
        enough &= self.went_well(self.nonces(self.until).boxed().await);
        enough & self.went_well(self.look_at_registrations().await)
    }

    async fn look_at_registrations(&self) -> Result<bool, DatabaseError> {
        let seconds = self.db().oldest_unregistered().await?;
        self.notes.lock().oldest_unregistered = seconds.max(0.0) as u64;
        Ok(true)
    }

    /// Whether there was time for something. That the books could not be read for a part of the run is told of.
    fn went_well(&self, enough: Result<bool, DatabaseError>) -> bool {
        enough.unwrap_or_else(|error| {
            self.notes.trouble(error.to_string());
            false
        })
    }

    fn half(&self) -> Instant {
        let now = Instant::now();
        now + self.until.saturating_duration_since(now) / 2
    }

    /// Whether the cluster has not been there for so long that it is not asked any more in this run.
    fn cluster_is_gone(&self) -> bool {
        self.misses.load(Ordering::Relaxed) >= MISSES
    }

    fn refuses(&self, namespace: &str) -> bool {
        self.refusing.lock().unwrap_or_else(PoisonError::into_inner).contains(namespace)
    }

    /// Notes how the cluster answered.
    fn heard<T>(&self, answer: Result<T, ClusterError>) -> Result<T, ClusterError> {
        match &answer {
            Err(error) if is_outage(error) => {
                self.misses.fetch_add(1, Ordering::Relaxed);
            }
            _ => self.misses.store(0, Ordering::Relaxed),
        }
        answer
    }

    /// A namespace could not even be read: nothing more is asked of it in this run, if it is not only for the moment.
    fn unreadable(&self, namespace: &str, error: &ClusterError) {
        if matches!(error, ClusterError::Refused { code: 401 | 403, .. }) {
            self.refuse(namespace);
        }
        self.notes.trouble(format!("{namespace}: {error}"));
    }

    fn refuse(&self, namespace: &str) {
        self.refusing.lock().unwrap_or_else(PoisonError::into_inner).insert(namespace.to_owned());
    }

    /// Does things side by side, until there is no more time. Says whether there was enough.
    async fn side_by_side<T, F>(&self, things: Vec<T>, until: Instant, does: impl Fn(T) -> F) -> bool
    where
        F: Future<Output = ()> + Send,
    {
        let at_once = AT_ONCE.min(self.rules().requests_per_second.get()) as usize;
        let mut enough = true;
        let in_time = things.into_iter().take_while(|_| {
            enough &= Instant::now() < until;
            enough
        });
        stream::iter(in_time.map(|thing| does(thing).boxed())).buffer_unordered(at_once).collect::<()>().await;
        enough
    }

    /// Notes how a piece of work for a job ended. One that fails for itself is left alone for a while; one that failed
    /// with many others is not.
    async fn note(&self, job_id: &str, kind: Kind, ended: Ended) {
        let error = match ended {
            Ok((outcome, reason)) => return self.notes.job(job_id, kind, outcome, reason),
            Err(Failure::Refusing) => return,
            Err(error) => error,
        };
        let pause = match &error {
            Failure::Database(_) => false,
            Failure::Cluster(error) => !is_outage(error),
            _ => true,
        };
        self.notes.job(job_id, kind, Outcome::Failed, Some(error.to_string()));
        if !pause {
            return;
        }
        let noted = match kind {
            Kind::Registrations => self.db().registration_failed(job_id).await,
            _ => self.db().job_failed(job_id).await,
        };
        if let Err(error) = noted {
            self.notes.trouble(error.to_string());
        }
    }

    // The unfinished jobs

    async fn environments(&self, environments: &[SweptEnvironment], until: Instant) -> Result<bool, DatabaseError> {
        let mut enough = self.live_jobs(None, Seen::Unknown, None, until).await?;
        for environment in environments {
            if Instant::now() >= until {
                return Ok(false);
            }
            enough &= self.environment(environment, until).await?;
        }
        Ok(enough)
    }

    async fn environment(&self, environment: &SweptEnvironment, until: Instant) -> Result<bool, DatabaseError> {
        let namespace = environment.namespace.as_str();
        let announced = decide::announced_limit(environment.announcement.as_deref());
        if environment.pausing {
            self.refuse(namespace);
        }
        let steps = match environment.pausing || self.cluster_is_gone() {
            true => None,
            false => match self.heard(self.steps(namespace, until).await) {
                Ok(steps) => Some(steps),
                Err(error) => {
                    self.unreadable(namespace, &error);
                    if matches!(error, ClusterError::Refused { .. } | ClusterError::NoNamespace) && !self.dry_run {
                        self.db().environment_failed(namespace).await?;
                    }
                    None
                }
            },
        };
        let Some(steps) = steps else {
            let enough = self.live_jobs(Some(namespace), Seen::Unknown, announced, until).await?;
            if !self.dry_run {
                self.db().environment_passed(namespace).await?;
            }
            return Ok(enough);
        };
        let none = Vec::new();
        let of_job = |job_id: &str| Seen::Steps(steps.get(job_id).unwrap_or(&none));
        let mut enough = self.live_jobs_seen(Some(namespace), &of_job, announced, until).await?;
        let names = steps.iter().filter(|(_, steps)| !steps.iter().all(is_going)).map(|(name, _)| name.clone());
        enough &= self.leftovers(namespace, names.collect(), until).await?;
        if !self.dry_run {
            self.db().environment_swept(namespace, false).await?;
        }
        Ok(enough)
    }

    /// A cluster that is slow keeps nobody else from their turn.
    async fn steps(&self, namespace: &str, until: Instant) -> Result<BTreeMap<String, Vec<Step>>, ClusterError> {
        let steps = tokio::time::timeout_at(until, self.cluster().steps(namespace).boxed()).await;
        steps.unwrap_or(Err(ClusterError::TimedOut))
    }

    async fn live_jobs(
        &self,
        namespace: Option<&str>,
        seen: Seen<'_>,
        announced: Option<f64>,
        until: Instant,
    ) -> Result<bool, DatabaseError> {
        self.live_jobs_seen(namespace, &|_| seen, announced, until).await
    }

    async fn live_jobs_seen<'s>(
        &self,
        namespace: Option<&str>,
        seen: &(dyn Fn(&str) -> Seen<'s> + Sync),
        announced: Option<f64>,
        until: Instant,
    ) -> Result<bool, DatabaseError> {
        let limited = announced.is_some() || self.rules().algorithm_limit.is_some();
        let mut after = Some(After::default());
        while let Some(from) = after {
            let (jobs, next) = self.db().live_jobs(namespace, limited, &from).await?;
            let due: Vec<(LiveJob, Action)> = jobs
                .into_iter()
                .filter_map(|job| {
                    let action = decide::live(&job, seen(&job.job_id), announced, self.rules())?;
                    Some((job, action))
                })
                .collect();
            for kind in due.iter().filter_map(|(_, action)| kind_of(action)) {
                self.notes.found(kind, 1);
            }
            if !self.side_by_side(due, until, |(job, action)| self.act(job, action)).await {
                return Ok(false);
            }
            after = next;
        }
        Ok(true)
    }

    async fn act(&self, job: LiveJob, action: Action) {
        let Some(kind) = kind_of(&action) else {
            if let Action::NoteAbsence(absent) = action
                && !self.dry_run
                && let Err(error) = self.db().note_absence(&job.job_id, absent).await
            {
                self.notes.trouble(error.to_string());
            }
            return;
        };
        let ended = match self.dry_run {
            true => Ok((Outcome::Would, reason_of(&action))),
            false => self.carry_out(&job, action).boxed().await,
        };
        self.note(&job.job_id, kind, ended).await;
    }

    async fn carry_out(&self, job: &LiveJob, action: Action) -> Ended {
        let overtaken = || (Outcome::Left, Some("it went on meanwhile".to_owned()));
        match action {
            Action::NoteAbsence(_) => Ok((Outcome::Done, None)),
            Action::HandBack => {
                let grace = self.rules().dispatch_grace;
                let handed_back = self.db().hand_back(&job.job_id, job.status, grace).await?;
                Ok(if handed_back { (Outcome::Done, None) } else { overtaken() })
            }
            Action::Finish { status, reason, absent, .. } => {
                // A slow engine may have made something since all were listed.
                if absent
                    && let Some((id, namespace)) = place(&job.job_id, job.namespace.as_deref())
                    && self.heard(self.cluster().has_steps(&id, namespace).await)?
                {
                    return Ok(overtaken());
                }
                let finished = self.db().finish(job, status, &reason, absent).await?;
                Ok(if finished { (Outcome::Done, Some(reason)) } else { overtaken() })
            }
            Action::End { step, reason, timed_out, .. } => {
                let Some(namespace) = job.namespace.as_deref() else { return Ok(overtaken()) };
                self.keep_log(&step, namespace).await?;
                // Before the step ends: from then on the engine may finish the job at any moment.
                let mut noted = None;
                if let Some(reason) = &reason {
                    noted = self.db().note_reason(&job.job_id, reason, timed_out).await?;
                    if noted.is_none() {
                        return Ok(overtaken());
                    }
                }
                let ended = self.heard(self.cluster().end_step(&step, namespace).await);
                // After any other error it may have been done.
                let not_done =
                    matches!(ended, Ok(Deleted::Changed) | Err(ClusterError::Refused { code: 400..500, .. }));
                if let (true, Some(reason), Some(noted)) = (not_done, &reason, noted) {
                    self.db().withdraw_reason(&job.job_id, reason, noted, &self.holder).await?;
                }
                let ended = ended?;
                self.db().job_worked(&job.job_id).await?;
                Ok(match ended {
                    Deleted::Gone => (Outcome::Done, reason),
                    Deleted::Held(by) => (Outcome::Done, Some(format!("its Job is held by {}", by.join(", ")))),
                    Deleted::Changed => overtaken(),
                })
            }
        }
    }

    /// Keeps the end of a log whose pod is going to go. A node that does not hand it out keeps nobody waiting, and says
    /// nothing about the cluster.
    async fn keep_log(&self, step: &Step, namespace: &str) -> Result<(), Failure> {
        let log = tokio::time::timeout(LOG_TIME, self.cluster().end_of_log(step, namespace).boxed()).await;
        match log.unwrap_or(Err(ClusterError::TimedOut)) {
            Ok(None) => {}
            Ok(Some(log)) => self.db().keep_log(&step.job_id, step.component.as_str(), log).await?,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(job = %step.job_id, error, "the log of a step that is ended could not be kept");
            }
        }
        Ok(())
    }

    /// What engines left of finished jobs: their Jobs were seen.
    async fn leftovers(&self, namespace: &str, names: Vec<String>, until: Instant) -> Result<bool, DatabaseError> {
        let known = self.db().known(names).await?;
        let due: Vec<_> = known.into_iter().filter(|job| job.settled && !job.due).collect();
        self.notes.found(Kind::Leftovers, due.len() as u64);
        let tidy = |job: crate::db::Known| async move {
            let ended = match self.dry_run {
                true => Ok((Outcome::Would, None)),
                false => self.tidy(&job.job_id, Some(namespace)).await,
            };
            self.note(&job.job_id, Kind::Leftovers, ended).await;
        };
        Ok(self.side_by_side(due, until, tidy).await)
    }

    /// Removes what the engine made for a job. What cannot have had objects has none.
    async fn tidy(&self, job_id: &str, namespace: Option<&str>) -> Ended {
        let Some((id, namespace)) = place(job_id, namespace) else { return Ok((Outcome::Done, None)) };
        if self.refuses(namespace) {
            return Err(Failure::Refusing);
        }
        let held = self.heard(self.cluster().tidy(&id, namespace).await)?;
        let reason = (!held.is_empty()).then(|| format!("held by others' finalizers: {}", held.join("; ")));
        Ok((Outcome::Done, reason))
    }

    // Book and cluster

    async fn registrations(&self, until: Instant) -> Result<bool, DatabaseError> {
        let mut after = Some(After::default());
        while let Some(from) = after {
            let (jobs, next) = self.db().unregistered_jobs(&from).await?;
            self.notes.found(Kind::Registrations, jobs.len() as u64);
            if self.cluster_is_gone() {
                return Ok(false);
            }
            let register = |job: UnregisteredJob| async move {
                let ended = match self.dry_run {
                    true => Ok((Outcome::Would, None)),
                    false => self.register(&job).await,
                };
                self.note(&job.job_id, Kind::Registrations, ended).await;
            };
            if !self.side_by_side(jobs, until, register).await {
                return Ok(false);
            }
            after = next;
        }
        Ok(true)
    }

    async fn register(&self, job: &UnregisteredJob) -> Ended {
        let id = JobId::of_object(&job.job_id).ok_or(Failure::Job("its id can name no object"))?;
        let namespace = job.namespace.as_deref().ok_or(Failure::Job("it has no namespace"))?;
        let metadata = job.workflow.as_deref().and_then(workflow::stored);
        let metadata = metadata.ok_or(Failure::Job("its workflow cannot be read"))?;
        let spec = WorkFlowSpec { owner: job.owner.clone(), agreement_id: Some(job.agreement_id.clone()), metadata };
        self.heard(self.cluster().register(&id, namespace, spec).await)?;
        self.db().registered(&id).await?;
        Ok((Outcome::Done, None))
    }

    async fn mirrors(&self, until: Instant) -> Result<bool, DatabaseError> {
        // From anywhere on, and then the rest: those that fail keep none from their turn.
        let unwritable: Mutex<BTreeSet<String>> = Mutex::default();
        let middle = Uuid::new_v4().simple().to_string();
        let (mut last, mut end) = (middle.clone(), None);
        loop {
            let jobs = self.db().unmirrored_jobs(&last, end.as_deref()).await?;
            let Some(job) = jobs.last() else {
                if end.is_some() {
                    return Ok(true);
                }
                (last, end) = (String::new(), Some(middle.clone()));
                continue;
            };
            last = job.job_id.clone();
            self.notes.found(Kind::Mirrors, jobs.len() as u64);
            if self.cluster_is_gone() {
                return Ok(false);
            }
            let unwritable = &unwritable;
            let mirror = |job: Mirrored| async move {
                let skipped = job.namespace.as_ref().is_some_and(|namespace| {
                    unwritable.lock().unwrap_or_else(PoisonError::into_inner).contains(namespace)
                });
                if self.dry_run || skipped {
                    return;
                }
                match self.mirror(&job).await {
                    Err(Failure::Refusing) => {}
                    Ok(()) => self.notes.ended(Kind::Mirrors, 1, Outcome::Done),
                    Err(error) => {
                        let reason = Some(error.to_string());
                        if let (Failure::Cluster(ClusterError::Refused { code: 403, .. }), Some(namespace)) =
                            (&error, &job.namespace)
                        {
                            unwritable.lock().unwrap_or_else(PoisonError::into_inner).insert(namespace.clone());
                        }
                        self.notes.job(&job.job_id, Kind::Mirrors, Outcome::Failed, reason);
                    }
                }
            };
            if !self.side_by_side(jobs, until, mirror).await {
                return Ok(false);
            }
        }
    }

    async fn mirror(&self, job: &Mirrored) -> Result<(), Failure> {
        if let Some((id, namespace)) = place(&job.job_id, job.namespace.as_deref()) {
            if self.refuses(namespace) {
                return Err(Failure::Refusing);
            }
            let status = WorkFlowStatus {
                status: job.status,
                status_text: job.status_text.clone(),
                reason: job.reason.clone(),
                date_finished: job.date_finished.clone(),
            };
            // Whether there is one or not: nothing is said that is not so.
            self.heard(self.cluster().mirror(id.as_str(), namespace, &status).await)?;
        }
        Ok(self.db().mirrored(job.clone()).await?)
    }

    // The finished jobs

    async fn finished(&self, until: Instant) -> Result<bool, DatabaseError> {
        let now = Instant::now();
        // Half of the time, so that with very many to be read some are removed, too.
        let reading = now + until.saturating_duration_since(now) / 2;
        let enough = self.dry_run || self.schedule(reading).await?;
        let shared = self.rules().storage_expiry.map(|seconds| seconds.min(i64::MAX as u64 / 2) as i64);
        let mut after = Some(After::default());
        while let Some(from) = after {
            let (jobs, next) = self.db().due_jobs(shared, self.dry_run, &from).await?;
            let due: Vec<_> = jobs
                .into_iter()
                .map(|job| {
                    let (duty, seconds) = decide::finished(&job, self.rules());
                    (job, duty, seconds)
                })
                .collect();
            for duty in due.iter().filter_map(|(_, duty, _)| *duty) {
                self.notes.found(kind_of_duty(duty), 1);
            }
            if self.cluster_is_gone() {
                return Ok(false);
            }
            let does = |(job, duty, seconds): (FinishedJob, Option<Duty>, Option<f64>)| async move {
                self.do_duty(&job, duty, seconds).await;
            };
            if !self.side_by_side(due, until, does).await {
                return Ok(false);
            }
            after = next;
        }
        Ok(enough)
    }

    /// Reads from their workflows for how long the outputs of finished jobs are kept.
    async fn schedule(&self, until: Instant) -> Result<bool, DatabaseError> {
        let mut after = Some(After::default());
        while let Some(from) = after {
            if Instant::now() >= until {
                return Ok(false);
            }
            let (jobs, next) = self.db().unscheduled_jobs(&from).await?;
            let expiries = jobs.into_iter().map(|(id, document)| {
                let expiry = decide::own_expiry(document.as_deref());
                (id, expiry)
            });
            self.db().schedule(expiries.collect()).await?;
            after = next;
        }
        Ok(true)
    }

    async fn do_duty(&self, job: &FinishedJob, duty: Option<Duty>, seconds: Option<f64>) {
        let ended = match (duty, self.dry_run) {
            (Some(_), true) => Ok((Outcome::Would, None)),
            (None, true) => return,
            (Some(Duty::Tidy), false) => self.tidy_away(job, seconds).boxed().await,
            (Some(Duty::Purge), false) => self.purge(job).boxed().await,
            (None, false) => {
                let waits = job.removed && seconds.is_some();
                if let Err(error) = self.db().look_again(&job.job_id, seconds, waits).await {
                    self.notes.trouble(error.to_string());
                }
                return;
            }
        };
        if let Some(duty) = duty {
            self.note(&job.job_id, kind_of_duty(duty), ended).await;
        }
    }

    async fn tidy_away(&self, job: &FinishedJob, seconds: Option<f64>) -> Ended {
        let ended = self.tidy(&job.job_id, job.namespace.as_deref()).await?;
        self.db().tidied(&job.job_id).await?;
        self.db().look_again(&job.job_id, seconds, false).await?;
        Ok(ended)
    }

    /// Objects first, then files, then the book: whoever dies in between leaves a job that is due again.
    async fn purge(&self, job: &FinishedJob) -> Ended {
        let ended = self.tidy(&job.job_id, job.namespace.as_deref()).await?;
        if job.removed
            && let Some((id, namespace)) = place(&job.job_id, job.namespace.as_deref())
        {
            self.heard(self.cluster().delete_workflow(id.as_str(), namespace, None).await)?;
        }
        let outputs = job.outputs.as_deref().and_then(output::parse);
        let mut removals = Vec::new();
        for url in outputs.iter().flatten().filter_map(output::url_of) {
            removals.push(self.reaper.outputs.remove(url));
        }
        stream::iter(removals).buffer_unordered(AT_ONCE as usize).try_collect::<Vec<bool>>().await?;
        let unread = outputs.is_none() && job.outputs.as_deref().is_some_and(|text| !matches!(text, "" | "[]"));
        let without_urls = outputs.map(|outputs| workflow::to_ascii_json(&output::without_urls(outputs).into()));
        if !self.db().purged(&job.job_id, job.outputs.clone(), without_urls).await? {
            return Ok((Outcome::Left, Some("something was published meanwhile".to_owned())));
        }
        self.db().look_again(&job.job_id, None, false).await?;
        Ok(match unread {
            true => (Outcome::Done, Some("its outputs could not be read: files of it may be left".to_owned())),
            false => ended,
        })
    }

    // Chores

    async fn searches(&self, environments: &[SweptEnvironment], until: Instant) -> Result<bool, DatabaseError> {
        let rules = self.rules();
        let often = rules.workflow_ttl.unwrap_or(CHORES).min(rules.unknown_grace).min(CHORES);
        for environment in environments.iter().filter(|it| it.searched_age >= often && !it.pausing) {
            if Instant::now() >= until || self.cluster_is_gone() {
                return Ok(false);
            }
            if !self.search(&environment.namespace, until).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Goes through the WorkFlow objects of a namespace.
    async fn search(&self, namespace: &str, until: Instant) -> Result<bool, DatabaseError> {
        let mut from = None;
        loop {
            let page = match self.heard(self.cluster().workflows(namespace, from).await) {
                Ok(page) => page,
                Err(error) => {
                    self.unreadable(namespace, &error);
                    return Ok(true);
                }
            };
            let known = self.db().known(page.items.iter().map(|item| item.name.clone()).collect()).await?;
            let due: Vec<(Listed, Kind)> = page
                .items
                .into_iter()
                .filter_map(|item| {
                    let known = known.iter().find(|known| known.job_id == item.name);
                    decide::object(&item, known, self.rules()).map(|kind| (item, kind))
                })
                .collect();
            for (_, kind) in &due {
                self.notes.found(*kind, 1);
            }
            let remove = |(item, kind): (Listed, Kind)| async move {
                let ended = match self.dry_run {
                    true => Ok((Outcome::Would, None)),
                    false => self.remove_object(&item, namespace).await,
                };
                self.note(&item.name, kind, ended).await;
            };
            if !self.side_by_side(due, until, remove).await {
                return Ok(false);
            }
            from = page.next;
            if from.is_none() {
                break;
            }
        }
        if !self.dry_run {
            self.db().environment_swept(namespace, true).await?;
        }
        Ok(true)
    }

    async fn remove_object(&self, item: &Listed, namespace: &str) -> Ended {
        let deleted = self.cluster().delete_workflow(&item.name, namespace, Some(item)).await;
        Ok(match self.heard(deleted)? {
            Deleted::Gone => (Outcome::Done, None),
            Deleted::Changed => (Outcome::Left, Some("it was changed meanwhile".to_owned())),
            Deleted::Held(by) => {
                (Outcome::Done, Some(format!("held by others' finalizers: WorkFlow {} ({})", item.name, by.join(", "))))
            }
        })
    }

    async fn nonces(&self, until: Instant) -> Result<bool, DatabaseError> {
        if !self.db().nonces_due(CHORES).await? {
            return Ok(true);
        }
        let mut after = String::new();
        loop {
            let (count, last) = self.db().forget_nonces(self.rules().nonces_kept, &after, self.dry_run).await?;
            self.notes.found(Kind::Nonces, count);
            if !self.dry_run {
                self.notes.ended(Kind::Nonces, count, Outcome::Done);
            }
            // Of those signers there may be more to forget.
            if count == 0 || self.dry_run {
                match last {
                    Some(last) => after = last,
                    None => break,
                }
            }
            if Instant::now() >= until {
                return Ok(false);
            }
        }
        if !self.dry_run {
            self.db().nonces_forgotten().await?;
        }
        Ok(true)
    }
}

/// Whether nobody's request would have fared better.
fn is_outage(error: &ClusterError) -> bool {
    matches!(
        error,
        ClusterError::Unavailable(_)
            | ClusterError::Untrusted(_)
            | ClusterError::TimedOut
            | ClusterError::Aws(_)
            | ClusterError::Configuration(_)
            | ClusterError::Refused { code: 429 | 503 | 504, .. }
    )
}

/// Where a job's objects are and what they are called after, if it can have any.
fn place<'a>(job_id: &str, namespace: Option<&'a str>) -> Option<(JobId, &'a str)> {
    Some((JobId::of_object(job_id)?, namespace.filter(|namespace| names_namespace(namespace))?))
}

fn is_going(step: &Step) -> bool {
    step.state == StepState::Going
}

fn kind_of(action: &Action) -> Option<Kind> {
    match action {
        Action::Finish { kind, .. } | Action::End { kind, .. } => Some(*kind),
        Action::HandBack => Some(Kind::HandBacks),
        Action::NoteAbsence(_) => None,
    }
}

fn reason_of(action: &Action) -> Option<String> {
    match action {
        Action::Finish { reason, .. } => Some(reason.clone()),
        Action::End { reason, .. } => reason.clone(),
        Action::HandBack | Action::NoteAbsence(_) => None,
    }
}

fn kind_of_duty(duty: Duty) -> Kind {
    match duty {
        Duty::Tidy => Kind::Leftovers,
        Duty::Purge => Kind::Expired,
    }
}
