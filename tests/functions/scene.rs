//! What most tests here start from: a database of their own, the service as a process in front of it, a provider
//! who may sign, and jobs that have finished.

use reqwest::Response;
use serde_json::{Value, json};

use crate::child::{Env, Service};
use crate::support::caller::provider;
use crate::support::{Answer, Call, Key, Stored, TestDatabase, client};

pub const OWNER: &str = "0xC41808BBef371AD5CFc76466dDF9dEe228d2BdAA";

/// A service that refuses whoever is not its one provider.
pub struct Scene {
    pub database: TestDatabase,
    pub provider: Key,
    pub service: Service,
    pub client: reqwest::Client,
}

impl Scene {
    /// With these variables beyond those that say where the database is and who may sign.
    pub async fn with(variables: &[(&str, &str)]) -> Self {
        let (database, provider, env) = parts().await;
        let service = Service::start(&env.and(variables)).await;
        Self { database, provider, service, client: client() }
    }

    /// The id of a new job with one output, which lies there.
    pub async fn job(&self, url: &str) -> String {
        finished(&self.provider, &output(url)).insert(&self.database).await.job_id
    }

    /// Provider's request for a job's first result.
    pub fn ask(&self, job_id: &str) -> Call {
        provider(&self.provider).result(OWNER, job_id, 0)
    }

    /// The beginning of an answer, as soon as it is there.
    pub async fn begin(&self, call: &Call) -> reqwest::Result<Response> {
        call.request(&self.client, &self.service.url("")).send().await
    }

    /// A whole answer.
    pub async fn send(&self, call: &Call) -> Answer {
        Answer::of(self.begin(call).await.unwrap()).await
    }

    /// The answer to a request for a result that lies there.
    pub async fn result_at(&self, url: &str) -> Answer {
        self.send(&self.ask(&self.job(url).await)).await
    }
}

/// A database, a provider, and the variables for a service that knows both.
pub async fn parts() -> (TestDatabase, Key, Env) {
    let database = TestDatabase::migrated().await;
    let provider = Key::new();
    let env = Env::of(database.variables())
        .with("SIGNATURE_REQUIRED", "1")
        .with("ALLOWED_PROVIDERS", provider.allowed())
        .with("DEFAULT_NAMESPACE", "ocean-compute");
    (database, provider, env)
}

/// `jobs.outputsurl` with one output.
pub fn output(url: &str) -> Value {
    json!([{ "filename": "out.txt", "filesize": 5, "type": "output", "url": url }])
}

/// A finished job of OWNER's that a provider asked for.
pub fn finished(provider: &Key, outputs: &Value) -> Stored {
    Stored {
        owner: Some(OWNER.to_owned()),
        provider: Some(provider.address.clone()),
        outputs: Some(outputs.to_string()),
        ..Stored::finished()
    }
}

/// RESULT_HOSTS_ALLOWED and its like.
pub fn hosts(names: &[&str]) -> String {
    json!(names).to_string()
}
