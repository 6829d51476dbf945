//! The operations that write or use a nonce, as each caller requests them, and what is true when one has succeeded.

use reqwest::Method;
use serde_json::json;
use sqlx::{Connection, PgConnection};

use super::{Answer, Call, Key, Stored, TestDatabase, agreement_id, caller, nonce, nonce_ms, owner, workflow};

/// Who sends a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    Provider,
    OceanNode,
    Brizo,
}

/// What it requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Start,
    Stop,
    Delete,
    Result,
}

/// What there is.
pub const OPERATIONS: [(Caller, Kind); 10] = [
    (Caller::Provider, Kind::Start),
    (Caller::Provider, Kind::Stop),
    (Caller::Provider, Kind::Delete),
    (Caller::Provider, Kind::Result),
    (Caller::OceanNode, Kind::Start),
    (Caller::OceanNode, Kind::Stop),
    (Caller::OceanNode, Kind::Result),
    (Caller::Brizo, Kind::Start),
    (Caller::Brizo, Kind::Stop),
    (Caller::Brizo, Kind::Delete),
];

/// The content of the file at every URL of a result.
pub const RESULT: &str = "the result";
/// In milliseconds, how old a nonce of Ocean Node is: too old for another content.
const TOO_OLD_TO_SHARE: u64 = 6_000;

/// One request that has to succeed once.
#[derive(Debug)]
pub struct Operation {
    pub caller: Caller,
    pub kind: Kind,
    pub request: Call,
    /// Another request under the same nonce, which has to be refused. Brizo has no nonces.
    pub other: Option<Call>,
    key: Key,
    agreement_id: String,
    /// The job that it stops, deletes or fetches a result of.
    job_id: Option<String>,
    /// The case of a test, for messages.
    case: String,
}

impl Operation {
    /// Makes the job that is needed, and the request. Results are at `origin`.
    pub async fn prepare(
        (caller, kind): (Caller, Kind),
        database: &TestDatabase,
        environment: &str,
        key: &Key,
        origin: &str,
        case: &str,
    ) -> Self {
        let (owner, mut agreement_id) = (owner(), agreement_id());
        let job = Stored { owner: Some(owner.clone()), provider: Some(key.address.clone()), ..Stored::running() };
        let job = match kind {
            Kind::Start => None,
            Kind::Stop | Kind::Delete => Some(job.insert(database).await),
            Kind::Result => {
                let output = json!({ "filename": "out.txt", "url": format!("{origin}/out.txt") });
                let (finished, outputs) = (Some(job.created + 60.0), Some(json!([output, output]).to_string()));
                Some(Stored { status: Some(70), finished, outputs, ..job }.insert(database).await)
            }
        };
        if let Some(job) = &job {
            agreement_id.clone_from(&job.agreement_id);
        }
        let job_id = job.as_ref().map_or("", |job| &job.job_id);
        let another = super::agreement_id();

        let provider = caller::provider(key);
        let ocean_node = caller::ocean_node(key);
        let brizo = caller::brizo(key);
        let start = |agreement: &str, nonce: u64| match caller {
            Caller::OceanNode => ocean_node.start_at(environment, agreement, &owner, workflow::of_ocean_node(), nonce),
            _ => provider.start_at(environment, agreement, &owner, workflow::sample(), nonce),
        };
        let nonce = if caller == Caller::OceanNode { nonce_ms() - TOO_OLD_TO_SHARE } else { nonce() };
        let (request, other) = match (kind, caller) {
            (Kind::Start, Caller::Brizo) => (brizo.start(&agreement_id, &owner, workflow::sample()), None),
            (Kind::Stop, Caller::Brizo) => (brizo.stop(&owner, Some(job_id), Some(&agreement_id)), None),
            (Kind::Delete, Caller::Brizo) => (brizo.delete(&owner, Some(job_id), Some(&agreement_id)), None),
            (Kind::Start, _) => (start(&agreement_id, nonce), Some(start(&another, nonce))),
            (Kind::Stop, Caller::OceanNode) => {
                (ocean_node.stop_at(&owner, Some(job_id), Some(&agreement_id), nonce), Some(start(&another, nonce)))
            }
            (Kind::Stop, _) => (provider.call(Method::PUT, &owner, Some(job_id), nonce), Some(start(&another, nonce))),
            (Kind::Delete, _) => {
                let call = |method| provider.call(method, &owner, Some(job_id), nonce);
                (call(Method::DELETE), Some(call(Method::PUT)))
            }
            (Kind::Result, Caller::OceanNode) => {
                let result = |index| ocean_node.result_at(&owner, job_id, index, nonce);
                (result(0), Some(result(1)))
            }
            (Kind::Result, _) => {
                let result = |index| provider.result_at(&owner, job_id, index, nonce);
                (result(0), Some(result(1)))
            }
        };
        let (key, case) = (key.clone(), format!("{caller:?} {kind:?}, {case}"));
        Self { caller, kind, request, other, key, agreement_id, job_id: job.map(|job| job.job_id), case }
    }

    /// Asserts that this is the response to a success, and that it is true.
    pub async fn succeeded(&self, database: &TestDatabase, answer: &Answer) {
        let Self { case, kind, .. } = self;
        assert_eq!(answer.status, 200, "{case}: {} {:?}", answer.text(), self.request);
        if *kind == Kind::Result {
            assert_eq!(answer.text(), RESULT, "{case}");
            return;
        }
        let jobs = self.jobs(database).await;
        let [job] = jobs.as_slice() else { panic!("{case}: not one job, but {jobs:#?}") };
        let answer = answer.json();
        assert_eq!(answer.as_array().map(Vec::len), Some(1), "{case}: {answer}");
        assert_eq!(answer[0]["jobId"], job["workflowid"], "{case}: {answer}");
        let mark = match kind {
            Kind::Start | Kind::Result => return,
            Kind::Stop => "stopreq",
            Kind::Delete => "removed",
        };
        assert_eq!((&answer[0][mark], &job[mark]), (&json!(1), &json!(1)), "{case}");
    }

    /// Asserts what has to be true after the first response, which may have been lost: if it has arrived, that it is
    /// true; that the same request gets the response of a success in the end; that it was done once; that another
    /// request under its nonce is refused. `send` sends a request until the response is no 5xx.
    pub async fn settles(&self, database: &TestDatabase, first: Option<&Answer>, send: impl AsyncFn(Call) -> Answer) {
        let Self { case, caller, kind, .. } = self;
        let succeeded = first.is_some_and(|first| first.status < 500);
        if let Some(first) = first.filter(|_| succeeded) {
            self.succeeded(database, first).await;
        }
        let again = send(self.request.clone()).await;
        match (kind, caller) {
            (Kind::Result, _) if succeeded => self.is_refused(&again, "nonce"),
            // A result is fetched once. If nobody could find out whether it was, it counts as fetched.
            (Kind::Result, _) => {
                if again.status == 200 {
                    self.succeeded(database, &again).await;
                } else {
                    self.is_refused(&again, "nonce");
                }
                self.is_refused(&send(self.request.clone()).await, "nonce");
            }
            // It has no nonce. The agreement is in use by its own job.
            (Kind::Start, Caller::Brizo) => {
                if succeeded || again.status != 200 {
                    self.is_refused(&again, "already in use");
                    assert_eq!(self.jobs(database).await.len(), 1, "{case}");
                } else {
                    self.succeeded(database, &again).await;
                }
            }
            _ => {
                self.succeeded(database, &again).await;
                self.succeeded(database, &send(self.request.clone()).await).await;
            }
        }
        if let Some(other) = &self.other {
            self.is_refused(&send(other.clone()).await, "nonce");
            let used = "SELECT count(*) FROM usednonces WHERE signer = lower($1) AND nonce = $2";
            let used = sqlx::query_scalar(used).bind(&self.key.address).bind(self.request.text("nonce"));
            let used: i64 = used.fetch_one(&database.pool).await.unwrap();
            assert_eq!(used, 1, "{case}: the nonce");
        }
    }

    /// Locks what a success writes last, as far as that can be known without the service; see [`Blocker`].
    pub async fn block(&self, database: &TestDatabase) -> Blocker {
        let mut connection = database.connect().await;
        sqlx::query("BEGIN").execute(&mut connection).await.unwrap();
        let (statement, first, second) = match (self.kind, &self.job_id) {
            // Another job of the same agreement, which may be committed or not.
            (Kind::Start, _) => (
                "INSERT INTO jobs (agreementid, workflowid, signerverified) VALUES ($1, $2, true)",
                &self.agreement_id,
                "theirs".to_owned(),
            ),
            (Kind::Stop | Kind::Delete, Some(job_id)) => (
                "SELECT 1 FROM jobs WHERE agreementid = $1 AND workflowid = $2 FOR UPDATE",
                &self.agreement_id,
                job_id.clone(),
            ),
            _ => (
                "INSERT INTO usednonces (signer, ns, nonce) VALUES (lower($1), nonce_ns($2), $2)",
                &self.key.address,
                self.request.text("nonce"),
            ),
        };
        sqlx::query(statement).bind(first).bind(second).execute(&mut connection).await.unwrap();
        let process = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await.unwrap();
        Blocker { connection, process }
    }

    /// The rows of the agreement.
    async fn jobs(&self, database: &TestDatabase) -> Vec<serde_json::Value> {
        let statement = "SELECT coalesce(jsonb_agg(to_jsonb(jobs)), '[]') FROM jobs WHERE agreementid = $1";
        let rows = database.row(statement, &self.agreement_id).await.unwrap();
        rows.as_array().unwrap().clone()
    }

    fn is_refused(&self, answer: &Answer, why: &str) {
        let (status, text) = (answer.status, answer.text());
        assert!(status == 400 && text.contains(why), "{}: {status} {text} {:?}", self.case, self.request);
    }
}

/// A transaction that holds locks until its end.
#[derive(Debug)]
pub struct Blocker {
    connection: PgConnection,
    process: i32,
}

impl Blocker {
    /// The number of statements that wait for its end, or for others that do.
    pub async fn waiting(&self, database: &TestDatabase) -> i64 {
        sqlx::query_scalar(
            "WITH RECURSIVE waiting (pid) AS (
                 SELECT $1
                 UNION
                 SELECT activity.pid FROM waiting, pg_stat_activity AS activity
                 WHERE activity.wait_event_type = 'Lock' AND waiting.pid = ANY (pg_blocking_pids(activity.pid))
             )
             SELECT count(*) - 1 FROM waiting",
        )
        .bind(self.process)
        .fetch_one(&database.pool)
        .await
        .unwrap()
    }

    /// Ends it, as if it had never been.
    pub async fn release(mut self) {
        sqlx::query("ROLLBACK").execute(&mut self.connection).await.unwrap();
        self.connection.close().await.unwrap();
    }
}
