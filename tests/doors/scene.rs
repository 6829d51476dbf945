//! What most tests here start from: a database of their own, the service as a process in front of it, a provider
//! who may sign, and jobs that are in the books already.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use devstack::wallet::{Wallet, keccak256};
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};

use crate::process::{Env, Service};
use crate::support::Database;

pub const OWNER: &str = "0xC41808BBef371AD5CFc76466dDF9dEe228d2BdAA";
pub const OP: &str = "/api/v1/operator";

pub fn client() -> Client {
    // Only the first call does anything.
    rustls::crypto::ring::default_provider().install_default().ok();
    Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap()
}

/// A clock reading in nanoseconds that no other call has returned.
pub fn nonce() -> String {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let last = LAST.fetch_max(now, Ordering::SeqCst).max(now);
    LAST.fetch_add(1, Ordering::SeqCst);
    last.to_string()
}

/// A job's id. Ocean Node leaves out the zeros that a hash begins with; of these ids none makes such a one, so that
/// both ways of hashing give the same.
pub fn job_id(owner: &str) -> String {
    loop {
        let id = uuid::Uuid::new_v4().simple().to_string();
        if keccak256(format!("{owner}{id}").as_bytes())[0] != 0 {
            return id;
        }
    }
}

/// A job in the books that has finished.
pub struct Finished {
    pub id: String,
    pub owner: String,
    /// Null for none.
    pub outputs: Value,
    pub provider: String,
    pub signer_verified: bool,
    pub removed: i16,
}

impl Finished {
    pub fn with_url(url: &str) -> Self {
        Self::with_outputs(json!([{"filename": "out.txt", "filesize": 5, "type": "output", "url": url}]))
    }

    pub fn with_outputs(outputs: Value) -> Self {
        let id = job_id(OWNER);
        Self { id, owner: OWNER.to_owned(), outputs, provider: String::new(), signer_verified: true, removed: 0 }
    }

    pub fn of_the_old_service(mut self) -> Self {
        self.signer_verified = false;
        self.provider = "0x000000000000000000000000000000000000dEaD".to_owned();
        self
    }

    pub fn removed(mut self) -> Self {
        self.removed = 1;
        self
    }
}

/// A request for a result, as Provider makes it.
#[derive(Debug, Clone)]
pub struct Ask {
    pub job_id: String,
    pub owner: String,
    pub index: String,
    pub nonce: String,
    pub signature: String,
}

impl Ask {
    pub fn signed(wallet: &Wallet, job_id: &str) -> Self {
        Self::signed_as(wallet, job_id, OWNER)
    }

    pub fn signed_as(wallet: &Wallet, job_id: &str, owner: &str) -> Self {
        let nonce = nonce();
        let signature = wallet.sign(&format!("{owner}{job_id}{nonce}"));
        Self { job_id: job_id.to_owned(), owner: owner.to_owned(), index: "0".to_owned(), nonce, signature }
    }

    pub fn index(mut self, index: &str) -> Self {
        self.index = index.to_owned();
        self
    }

    pub fn query(&self) -> Vec<(&'static str, String)> {
        vec![
            ("index", self.index.clone()),
            ("owner", self.owner.clone()),
            ("jobId", self.job_id.clone()),
            ("consumerSignature", "0x00".to_owned()),
            ("providerSignature", self.signature.clone()),
            ("nonce", self.nonce.clone()),
        ]
    }
}

pub struct Scene {
    pub database: Database,
    pub provider: Wallet,
    pub service: Service,
    pub client: Client,
    pub env: Env,
}

impl Scene {
    /// The service with these variables beyond those that say where the database is and who may sign.
    pub async fn with(variables: &[(&str, &str)]) -> Self {
        let (database, provider, env) = Self::parts().await;
        let env = env.and(variables);
        let service = Service::start(&env).await;
        Self { database, provider, service, client: client(), env }
    }

    /// What a service needs, before it is started.
    pub async fn parts() -> (Database, Wallet, Env) {
        let database = Database::migrated().await;
        let provider = Wallet::random().unwrap();
        let env = Env::of(database.env())
            .with("SIGNATURE_REQUIRED", "1")
            .with("ALLOWED_PROVIDERS", json!([provider.address()]).to_string());
        (database, provider, env)
    }

    /// Writes a finished job into the books.
    pub async fn book(&self, job: Finished) -> String {
        book(&self.database, &self.provider, job).await
    }

    pub fn ask(&self, job_id: &str) -> Ask {
        Ask::signed(&self.provider, job_id)
    }

    pub async fn send(&self, ask: &Ask) -> Response {
        self.client.get(self.service.url(&format!("{OP}/getResult"))).query(&ask.query()).send().await.unwrap()
    }

    pub async fn send_with_range(&self, ask: &Ask, range: &str) -> Response {
        let request = self.client.get(self.service.url(&format!("{OP}/getResult"))).query(&ask.query());
        request.header("range", range).send().await.unwrap()
    }

    /// Asks for the first result of a job that lies there.
    pub async fn result_at(&self, url: &str) -> Response {
        let job_id = self.book(Finished::with_url(url)).await;
        self.send(&self.ask(&job_id)).await
    }
}

pub async fn book(database: &Database, provider: &Wallet, job: Finished) -> String {
    let provider = if job.provider.is_empty() { provider.address().to_lowercase() } else { job.provider };
    let outputs = (!job.outputs.is_null()).then(|| job.outputs.to_string());
    sqlx::query(
        "INSERT INTO jobs (agreementid, workflowid, owner, status, statustext, datefinished, outputsurl, namespace,
                           workflow, provider, signerverified, removed)
         VALUES ($1, $2, $3, 70, 'Job finished', now(), $4, 'ocean-compute', '{}', $5, $6, $7)",
    )
    .bind(format!("agreement-of-{}", job.id))
    .bind(&job.id)
    .bind(&job.owner)
    .bind(outputs)
    .bind(provider)
    .bind(job.signer_verified)
    .bind(job.removed)
    .execute(database.pool())
    .await
    .unwrap();
    job.id
}

/// The text of an error, which has to be JSON with nothing else in it.
pub async fn error(response: Response, status: u16) -> String {
    let found = response.status();
    let content_type = response.headers().get("content-type").cloned();
    let body = response.text().await.unwrap();
    assert_eq!(found, StatusCode::from_u16(status).unwrap(), "{body}");
    assert_eq!(content_type.unwrap(), "application/json", "{body}");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
    body["error"].as_str().unwrap().to_owned()
}
