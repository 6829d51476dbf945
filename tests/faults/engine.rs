//! An engine that does what docs/contract/engine.md says. It is never killed, and takes up what a fault kept it from.

use k8s_openapi::api::batch::v1::Job;
use kube::Api;
use kube::api::DeleteParams;
use proptest::sample::Index;
use serde_json::json;
use sqlx::{PgConnection, Row};

use crate::callers::Callers;

/// How far a thread has come with its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Dispatched,
    Begun,
    /// The Job of its algorithm was created.
    Running,
    /// That Job was deleted.
    Ended,
    Finished,
}

#[derive(Debug)]
struct Thread {
    id: String,
    stage: Stage,
}

#[derive(Default)]
pub struct Engine {
    threads: Vec<Thread>,
}

impl Engine {
    /// What it announces.
    fn status(&self) -> String {
        json!({ "currentJobs": self.threads.len() }).to_string()
    }

    /// Announces itself and takes this number of jobs, in one transaction with a change of the clock in seconds.
    pub async fn announce(&mut self, callers: &Callers, jobs: i32, forward: i64) -> sqlx::Result<()> {
        let mut connection = callers.world.connect().await?;
        let mut transaction = sqlx::Connection::begin(&mut connection).await?;
        let clock = "UPDATE clock.ahead SET ahead = ahead + make_interval(secs => $1) WHERE $1 > 0";
        sqlx::query(clock).bind(forward as f64).execute(&mut *transaction).await?;
        let announce = sqlx::query("SELECT * FROM announce($1, $2, $3)");
        let announce = announce.bind(&callers.environment).bind(self.status()).bind(jobs);
        let dispatched = announce.fetch_all(&mut *transaction).await?;
        transaction.commit().await?;
        self.threads.extend(dispatched.iter().map(|row| Thread { id: row.get(0), stage: Stage::Dispatched }));
        Ok(())
    }

    /// Does what it has to do, as far as nothing keeps it from that: begins jobs, and publishes those of which somebody has
    /// deleted the algorithm. Returns whether nothing of that is left.
    pub async fn catch_up(&mut self, callers: &Callers) -> bool {
        let mut all = true;
        for thread in &mut self.threads {
            let begun = thread.continue_to(Stage::Running, callers).await;
            let stage = if begun && thread.is_deleted(callers) { Stage::Finished } else { Stage::Running };
            all &= begun && thread.continue_to(stage, callers).await;
        }
        self.threads.retain(|thread| thread.stage < Stage::Finished);
        all
    }

    /// Finishes one of its jobs, as far as nothing keeps it from that.
    pub async fn finish(&mut self, callers: &Callers, index: &Index) {
        if !self.threads.is_empty() {
            let number = index.index(self.threads.len());
            if self.threads[number].continue_to(Stage::Finished, callers).await {
                self.threads.remove(number);
            }
        }
    }

    /// Finishes all its jobs. Nothing fails any more.
    pub async fn finish_all(&mut self, callers: &Callers) {
        for mut thread in self.threads.drain(..) {
            assert!(thread.continue_to(Stage::Finished, callers).await, "{thread:?}");
        }
    }
}

impl Thread {
    /// Returns whether it has come that far.
    async fn continue_to(&mut self, stage: Stage, callers: &Callers) -> bool {
        while self.stage < stage {
            match self.step(callers).await {
                Ok(next) => self.stage = next,
                Err(_) => return false,
            }
        }
        true
    }

    /// Whether somebody has deleted its Job.
    fn is_deleted(&self, callers: &Callers) -> bool {
        callers.processes.cluster.stand_in().object("jobs.batch", &callers.environment, &self.job_name()).is_none()
    }

    /// The name of its algorithm's Job.
    fn job_name(&self) -> String {
        format!("{}-algorithm-job", self.id)
    }

    async fn set_status(&self, connection: &mut PgConnection, status: i32, text: &str) -> sqlx::Result<()> {
        let update = sqlx::query("UPDATE jobs SET status = $2, statusText = $3 WHERE workflowId = $1");
        update.bind(&self.id).bind(status).bind(text).execute(connection).await.map(drop)
    }

    async fn step(&self, callers: &Callers) -> Result<Stage, Box<dyn std::error::Error + Send + Sync>> {
        let cluster = &callers.processes.cluster;
        let jobs = Api::<Job>::namespaced(cluster.client.clone(), &callers.environment);
        let name = self.job_name();
        let mut connection = callers.world.connect().await?;
        Ok(match self.stage {
            Stage::Dispatched => {
                self.set_status(&mut connection, 20, "Configuring volumes").await?;
                Stage::Begun
            }
            Stage::Begun => {
                if jobs.get_opt(&name).await?.is_none() {
                    cluster.try_engine_job(&callers.environment, &self.id, "algorithm").await?;
                }
                self.set_status(&mut connection, 40, "Running algorithm").await?;
                Stage::Running
            }
            Stage::Running => {
                if jobs.get_opt(&name).await?.is_some() {
                    jobs.delete(&name, &DeleteParams::background()).await?;
                }
                Stage::Ended
            }
            Stage::Ended | Stage::Finished => {
                let url = &callers.processes.output;
                let outputs = json!([{ "filename": "out.txt", "filesize": 10, "type": "output", "url": url }]);
                sqlx::query(
                    "UPDATE jobs SET status = 70, statusText = 'Job finished', outputsURL = $2, dateFinished = NOW() \
                     WHERE workflowId = $1",
                )
                .bind(&self.id)
                .bind(outputs.to_string())
                .execute(&mut connection)
                .await?;
                Stage::Finished
            }
        })
    }
}
