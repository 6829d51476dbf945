//! Time, and sweeps that are whole, interrupted or killed.

use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Patch, PatchParams};
use operator_service::db::DatabaseError;
use operator_service::reaper::Report;
use serde_json::{Value, json};

use super::invariants::Who;
use super::model::{Case, ENVIRONMENTS};
use super::{Act, Break};

type Sweep<'a> = Pin<Box<dyn Future<Output = Result<Report, DatabaseError>> + 'a>>;

impl<'a> Case<'a> {
    pub(super) async fn time(&mut self, seconds: i64) {
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
                // Its kubelet has seen it by now.
                let status = pod.status.map(|status| PodStatus {
                    start_time: status.start_time.or(pod.metadata.creation_timestamp),
                    ..status
                });
                let (name, patch) = put_back(pod.metadata.name, &status, seconds);
                let pods = self.api::<Pod>(environment);
                pods.patch_status(&name, &PatchParams::default(), &patch).await.unwrap();
            }
        }
        let before = self.moment().await;
        for environment in (0..ENVIRONMENTS).filter(|environment| self.alive[*environment]).collect::<Vec<_>>() {
            self.announce(&before, environment, 0).await;
        }
    }

    // Sweeps

    pub(super) async fn sweep(&mut self, broken: Option<&(Break, Vec<Act>)>, killed: bool) {
        let mut moments = vec![self.moment().await];
        self.inject_faults();
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
                    Break::EndStep => stand_in
                        .requests()
                        .iter()
                        .any(|it| it.resource == "pods" && it.label_selector.contains(",component=")),
                }
            })
            .await;
            self.clear_faults();
            let moment = self.moment().await;
            self.check(&moments.iter().collect::<Vec<_>>(), &moment, Who::Reaper);
            if report.is_none() {
                for act in acts {
                    self.act(act).await;
                }
                moments.push(self.moment().await);
                self.inject_faults();
            }
        }
        if report.is_none() && killed && broken.is_some() {
            drop(sweep);
            self.clear_faults();
            // No other sweep runs until its lease has expired.
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
        self.clear_faults();
        let actions =
            report.jobs.iter().map(|entry| format!("{:?} {:?} {:?}", entry.kind, entry.outcome, entry.reason));
        self.history.push(format!("    {:?} {:?}", actions.collect::<Vec<_>>(), report.problems));
        for (kind, count) in &report.kinds {
            *self.tally.lock().await.entry(format!("done: {kind:?}")).or_default() += count.done;
            *self.tally.lock().await.entry(format!("failed: {kind:?}")).or_default() += count.failed;
        }
        assert_eq!(report.skipped, None, "{:#?}", self.history);
        let after = self.moment().await;
        self.check(&moments.iter().collect::<Vec<_>>(), &after, Who::Reaper);
        self.check_expiry(&moments[0], &after);
    }
}

/// A patch that sets all timestamps of a status back.
pub(super) fn put_back(name: Option<String>, status: &impl serde::Serialize, seconds: i64) -> (String, Patch<Value>) {
    pub(super) fn put(value: &mut Value, seconds: i64) {
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

/// Runs a sweep until it ends or is to be interrupted.
pub(super) async fn until(sweep: &mut Sweep<'_>, mut broken: impl FnMut() -> bool) -> Option<Report> {
    std::future::poll_fn(|context| {
        if broken() {
            return Poll::Ready(None);
        }
        sweep.as_mut().poll(context).map(|report| Some(report.unwrap()))
    })
    .await
}
