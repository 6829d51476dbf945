//! The requests of callers, sent until they are answered, and what they were told.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use proptest::sample::Index;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::LIMIT;
use crate::plan::{Agreement, Delivery, Request, What};
use crate::support::caller::{brizo, ocean_node, provider};
use crate::support::operation::Caller;
use crate::support::{Answer, Call, Key, agreement_id, nonce, nonce_ms, owner, workflow};
use crate::world::{Processes, World};

/// The pause before a request is repeated.
const PAUSE: Duration = Duration::from_millis(50);
/// By how many seconds a nonce of Ocean Node is too old for another content.
const TOO_OLD_TO_SHARE: i64 = 6;
/// For how long several of its starts may surely share one.
const MAY_BE_SHARED: Duration = Duration::from_secs(4);

/// The keys of the callers, and one that is not allowed.
pub struct Keys {
    allowed: [Key; 3],
    stranger: Key,
}

impl Keys {
    pub fn new() -> Self {
        Self { allowed: [Key::new(), Key::new(), Key::new()], stranger: Key::new() }
    }

    /// ALLOWED_PROVIDERS.
    pub fn allowed(&self) -> String {
        json!(self.allowed.each_ref().map(|key| &key.address)).to_string()
    }

    fn of(&self, caller: Caller) -> &Key {
        &self.allowed[caller as usize]
    }
}

/// A request that was answered with no 5xx.
#[derive(Debug, Clone)]
pub struct Told {
    pub caller: Caller,
    pub what: What,
    /// The same for all deliveries of one request.
    pub request: usize,
    /// The second one under a nonce.
    pub reuses_nonce: bool,
    /// One of several starts of Ocean Node under a nonce.
    pub shares_nonce: bool,
    pub agreement_id: String,
    pub owner: String,
    /// The job that it is about.
    pub job_id: Option<String>,
    pub status: u16,
    /// The error's text, or the whole body.
    pub text: String,
    /// The body of a 200, if it is JSON.
    pub body: Value,
    /// How often the clock had been set forward, when it was sent first and when it was answered.
    pub times: (usize, usize),
    /// How many deliveries were not answered, or with a 5xx.
    pub unanswered: usize,
    /// When its nonce was taken.
    signed: Instant,
    /// Whether it was answered while its nonce could be shared.
    pub soon: bool,
}

impl Told {
    /// Whether it was refused because the clock was set forward while it was on its way: an earlier delivery may have done
    /// what it asks for, and its repetition came too late.
    pub fn was_late(&self) -> bool {
        self.times.0 != self.times.1 && self.status == 400 && self.text.contains("nonce")
    }

    /// The job that the answer to a start names.
    pub fn started(&self) -> Option<&str> {
        let start = matches!(self.what, What::Start(_) | What::Stranger | What::Nowhere);
        self.body[0]["jobId"].as_str().filter(|_| start && self.status == 200)
    }
}

/// A request that was built, with its nonce.
pub struct Built {
    pub event: Request,
    call: Call,
    told: Told,
}

/// All callers of a round.
pub struct Callers {
    pub world: Arc<World>,
    pub processes: Processes,
    /// The environment that is announced.
    pub environment: String,
    shared: Vec<String>,
    pub told: Mutex<Vec<Told>>,
    pub time: Mutex<usize>,
    requests: Mutex<usize>,
}

impl Callers {
    pub fn new(world: Arc<World>, processes: Processes) -> Self {
        Self {
            world,
            environment: processes.cluster.namespace.clone(),
            processes,
            shared: (0..4).map(|_| agreement_id()).collect(),
            told: Mutex::default(),
            time: Mutex::default(),
            requests: Mutex::default(),
        }
    }

    /// A job that was started so far.
    fn pick(&self, index: &Index) -> Option<Told> {
        let told = self.told.lock().unwrap();
        let started: Vec<&Told> = told.iter().filter(|told| told.started().is_some()).collect();
        (!started.is_empty()).then(|| index.get(&started)).map(|told| (*told).clone())
    }

    /// Signs a request. `None` if there is no job that it could be about.
    pub fn build(&self, event: &Request) -> Option<Built> {
        let mut event = event.clone();
        if matches!(event.delivery, Delivery::Burst(_)) {
            let what = What::Start(Agreement::Fresh);
            event = Request { caller: Caller::OceanNode, what, ahead: 0, ..event };
        }
        let job = match &event.what {
            What::Stop(index) | What::Delete(index) | What::Status(index) | What::Result(index) => {
                Some(self.pick(index)?)
            }
            _ => None,
        };
        // A job's provider asks for it. Ocean Node deletes none, and Brizo fetches no results and names no environment.
        event.caller = job.as_ref().map_or(event.caller, |job| job.caller);
        match (event.caller, &event.what) {
            (Caller::OceanNode, What::Delete(index)) => event.what = What::Stop(*index),
            (Caller::Brizo, What::Result(index)) => event.what = What::Status(*index),
            (Caller::Brizo, What::Nowhere) => event.caller = Caller::Provider,
            _ => {}
        }
        if event.caller == Caller::OceanNode && event.delivery == Delivery::Reused {
            event.ahead = event.ahead.min(-TOO_OLD_TO_SHARE);
        }
        let agreement_id = match (&job, &event.what) {
            (Some(job), _) => job.agreement_id.clone(),
            (None, What::Start(Agreement::Shared(number))) => self.shared[*number].clone(),
            (None, _) => agreement_id(),
        };
        let owner = job.as_ref().map_or_else(owner, |job| job.owner.clone());
        let job_id = job.as_ref().and_then(Told::started).map(str::to_owned);
        let nonce = match event.caller {
            Caller::OceanNode => nonce_ms().saturating_add_signed(event.ahead * 1_000),
            _ => nonce().saturating_add_signed(event.ahead * 1_000_000_000),
        };
        let told = Told {
            caller: event.caller,
            what: event.what.clone(),
            request: self.next_request(),
            reuses_nonce: false,
            shares_nonce: matches!(event.delivery, Delivery::Burst(_)),
            agreement_id,
            owner,
            job_id,
            status: 0,
            text: String::new(),
            body: Value::Null,
            times: Default::default(),
            unanswered: 0,
            signed: Instant::now(),
            soon: false,
        };
        let call = self.call(&told, nonce);
        Some(Built { event, call, told })
    }

    fn next_request(&self) -> usize {
        let mut requests = self.requests.lock().unwrap();
        *requests += 1;
        *requests
    }

    /// Another start by the caller of a request, under its nonce.
    fn another_start(&self, call: &Call, told: &Told) -> (Call, Told) {
        let what = What::Start(Agreement::Fresh);
        let (request, agreement_id) = (self.next_request(), agreement_id());
        let told = Told { what, request, agreement_id, job_id: None, ..told.clone() };
        (self.call(&told, call.text("nonce").parse().unwrap()), told)
    }

    fn call(&self, told: &Told, nonce: u64) -> Call {
        let Told { caller, what, agreement_id, owner, .. } = told;
        let key = if matches!(what, What::Stranger) {
            &self.processes.keys.stranger
        } else {
            self.processes.keys.of(*caller)
        };
        let (job, agreement) = (told.job_id.as_deref(), Some(agreement_id.as_str()));
        let node = || ocean_node(key);
        let method = match what {
            What::Stop(_) => Method::PUT,
            What::Delete(_) => Method::DELETE,
            What::Status(_) => Method::GET,
            What::Result(_) => {
                return match caller {
                    Caller::OceanNode => node().result_at(owner, job.unwrap(), 0, nonce),
                    _ => provider(key).result_at(owner, job.unwrap(), 0, nonce),
                };
            }
            What::Environments => return Call::get("environments"),
            What::Migrate => {
                return Call::new(Method::POST, "pgsqlinit").header("admin", self.processes.admin.as_str());
            }
            What::Start(_) | What::Stranger | What::Nowhere => {
                let environment = if matches!(what, What::Nowhere) { "nowhere" } else { &self.environment };
                let workflow = self.workflow();
                return match caller {
                    Caller::Provider => provider(key).start_at(environment, agreement_id, owner, workflow, nonce),
                    Caller::OceanNode => node().start_at(environment, agreement_id, owner, workflow, nonce),
                    Caller::Brizo => brizo(key).start(agreement_id, owner, workflow),
                };
            }
        };
        match (caller, method) {
            (Caller::OceanNode, Method::PUT) => node().stop_at(owner, job, agreement, nonce),
            (Caller::OceanNode, _) => node().status(Some(owner), job, None),
            (Caller::Brizo, Method::PUT) => brizo(key).stop(owner, job, agreement),
            (Caller::Brizo, Method::DELETE) => brizo(key).delete(owner, job, agreement),
            (Caller::Brizo, _) => brizo(key).status(owner, job, agreement),
            (Caller::Provider, method) => provider(key).call(method, owner, job, nonce),
        }
    }

    fn workflow(&self) -> Value {
        let mut document = workflow::sample();
        let token = format!("data-token-{}", uuid::Uuid::new_v4().simple());
        document["stages"][0]["input"][0]["url"] = json!([format!("https://example.org/data.csv?token={token}")]);
        self.processes.secrets.lock().unwrap().push(token);
        document
    }

    /// Sends a request as its event says, and records what the caller is told.
    pub async fn deliver(&self, built: Built) {
        let Built { event, call, told } = built;
        let signature = call.text("providerSignature");
        if signature.len() > 10 {
            self.processes.secrets.lock().unwrap().push(signature);
        }
        match event.delivery {
            Delivery::Once | Delivery::Late(_) => drop(self.send(&call, told, event.endpoint).await),
            Delivery::Doubled => {
                let first = self.send(&call, told.clone(), event.endpoint);
                tokio::join!(first, self.send(&call, told, event.endpoint + 1));
            }
            Delivery::Burst(others) => {
                let others = (0..others).map(|_| self.another_start(&call, &told)).collect::<Vec<_>>();
                let all = std::iter::once((call, told)).chain(others).enumerate();
                join_all(all.map(async |(number, (call, told))| self.send(&call, told, event.endpoint + number).await))
                    .await;
            }
            Delivery::Repeated => {
                self.send(&call, told.clone(), event.endpoint).await;
                self.send(&call, told, event.endpoint + 1).await;
            }
            Delivery::Reused => {
                let status = self.send(&call, told.clone(), event.endpoint).await;
                let uses_nonce = !matches!(event.what, What::Status(_) | What::Environments | What::Migrate)
                    && event.caller != Caller::Brizo;
                if status == 200 && uses_nonce {
                    let (call, told) = self.another_start(&call, &told);
                    self.send(&call, Told { reuses_nonce: true, ..told }, event.endpoint).await;
                }
            }
        }
    }

    /// Sends a request until the response is no 5xx. Returns its status.
    async fn send(&self, call: &Call, mut told: Told, endpoint: usize) -> u16 {
        let endpoints: Vec<_> =
            self.processes.endpoints.iter().filter(|endpoint| endpoint.serves(told.what.group())).collect();
        told.times.0 = *self.time.lock().unwrap();
        let started = Instant::now();
        for attempt in 0.. {
            let endpoint = endpoints[(endpoint + attempt) % endpoints.len()];
            let in_time = started.elapsed() < 4 * LIMIT;
            assert!(in_time, "never answered: {told:?} {:#?}", endpoint.errors().await);
            match endpoint.send(call).await {
                Some(answer) if answer.status < 500 => {
                    told.times.1 = *self.time.lock().unwrap();
                    told.unanswered = attempt;
                    told.soon = told.times == (0, 0) && told.signed.elapsed() < MAY_BE_SHARED;
                    return self.record(told, &answer);
                }
                Some(answer) => {
                    self.world.count("answered 503");
                    assert_eq!(answer.status, 503, "{told:?} {} {:#?}", answer.text(), endpoint.errors().await);
                }
                None => self.world.count("not answered"),
            }
            sleep(PAUSE).await;
        }
        unreachable!()
    }

    fn record(&self, mut told: Told, answer: &Answer) -> u16 {
        let name = format!("{:?}", told.what);
        let name = name.split('(').next().unwrap_or_default();
        self.world.count(format!("{name} {:?}: {}", told.caller, answer.status));
        told.status = answer.status;
        told.text = answer.text().to_owned();
        told.body = serde_json::from_slice(&answer.body).unwrap_or_default();
        self.told.lock().unwrap().push(told);
        answer.status
    }
}
