//! What most of these tests start with: a database of their own, the service as a process that uses it, a provider
//! whose signature is accepted, and finished jobs.

use reqwest::Response;
use serde_json::{Value, json};

use crate::child::{Env, Service};
use crate::origin::Origin;
use crate::support::caller::provider;
use crate::support::{Answer, Call, Key, Stored, TestDatabase, client};

pub const OWNER: &str = "0xC41808BBef371AD5CFc76466dDF9dEe228d2BdAA";

/// A service that accepts the signatures of one provider only.
pub struct Fixture {
    pub database: TestDatabase,
    pub provider: Key,
    pub service: Service,
    pub client: reqwest::Client,
}

impl Fixture {
    /// Starts the service with these variables in addition to those for the database and the provider.
    pub async fn with(variables: &[(&str, &str)]) -> Self {
        let (database, provider, env) = parts().await;
        let service = Service::start(&env.and(variables)).await;
        Self { database, provider, service, client: client() }
    }

    /// Inserts a job with one output at this URL, and returns its id.
    pub async fn job(&self, url: &str) -> String {
        finished(&self.provider, &output(url)).insert(&self.database).await.job_id
    }

    /// The provider's request for a job's first result.
    pub fn ask(&self, job_id: &str) -> Call {
        provider(&self.provider).result(OWNER, job_id, 0)
    }

    /// Sends a request, and returns as soon as its response begins.
    pub async fn begin(&self, call: &Call) -> reqwest::Result<Response> {
        call.request(&self.client, &self.service.url("")).send().await
    }

    /// Sends a request, and returns the whole response.
    pub async fn send(&self, call: &Call) -> Answer {
        Answer::of(self.begin(call).await.unwrap()).await
    }

    /// Requests a result that is at this URL.
    pub async fn result_at(&self, url: &str) -> Answer {
        self.send(&self.ask(&self.job(url).await)).await
    }
}

/// A service and an origin that it may fetch from.
pub async fn with_origin(variables: &[(&str, &str)]) -> (Fixture, Origin) {
    let origin = Origin::start().await;
    let allowed = hosts(&[&origin.address.to_string()]);
    let mut all = vec![("RESULT_HOSTS_ALLOWED", allowed.as_str()), ("RESULT_TIMEOUT", "10")];
    all.extend(variables);
    (Fixture::with(&all).await, origin)
}

/// A database, a provider, and the variables of a service that uses both.
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

/// A finished job of OWNER that the provider started.
pub fn finished(provider: &Key, outputs: &Value) -> Stored {
    Stored {
        owner: Some(OWNER.to_owned()),
        provider: Some(provider.address.clone()),
        outputs: Some(outputs.to_string()),
        ..Stored::finished()
    }
}

/// A list of hosts, for RESULT_HOSTS_ALLOWED and others.
pub fn hosts(names: &[&str]) -> String {
    json!(names).to_string()
}

/// What the server answers to a GET.
pub async fn get(service: &Service, path: &str) -> Answer {
    Answer::of(client().get(service.url(path)).send().await.unwrap()).await
}
