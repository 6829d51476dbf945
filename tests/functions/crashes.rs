//! Callers start and stop jobs while the service is killed and PostgreSQL crashes, again and again. Each repeats a
//! request until it has a response that is no 5xx, as Provider does. At the end the database is compared with what they
//! were told.
//!
//! FAULT_SECONDS sets how long it goes on; five minutes, with its figures:
//! `FAULT_SECONDS=300 make test ARGS='--test functions crashes:: -- --nocapture'`

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use devstack::postgres::{self, Postgres};
use futures_util::future::join_all;
use nix::sys::signal::Signal;
use serde_json::json;
use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::child::{Directory, Env, Service, run, stderr};
use crate::support::caller::{brizo, ocean_node, provider};
use crate::support::{Answer, Call, Cluster, Key, agreement_id, client, left_out, nonce_ms, unique, workflow};

const DEFAULT_SECONDS: u64 = 10;
/// How many callers there are of each kind.
const CALLERS: usize = 4;
/// How many requests Ocean Node sends at once, with one nonce.
const BURST: usize = 3;
/// The pause before a request is repeated.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a request may take until it is answered, outages included.
const LIMIT: Duration = Duration::from_secs(120);
/// The beginning of the owners of jobs that the engine finishes as soon as it sees them. They are not stopped.
const FINISHED_AT_ONCE: &str = "finished-at-once";

/// What a caller received about a job.
struct Request {
    agreement_id: String,
    what: What,
    /// The job that a 200 named, or the text of a refusal.
    told: Result<String, String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Start { by_brizo: bool },
    Stop,
}

/// The callers, and what they were told.
struct Callers {
    /// Where the service listens now.
    url: Mutex<String>,
    client: reqwest::Client,
    environment: String,
    end: Instant,
    told: Mutex<Vec<Request>>,
    repeats: AtomicUsize,
}

impl Callers {
    fn url(&self) -> String {
        self.url.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends a request until it gets a response that is no 5xx.
    async fn send(&self, agreement_id: &str, what: What, call: Call) -> Option<String> {
        let answered = async {
            loop {
                let attempt = async {
                    let response = call.request(&self.client, &self.url()).send().await?;
                    let (status, headers) = (response.status().as_u16(), response.headers().clone());
                    reqwest::Result::Ok(Answer { status, headers, body: response.bytes().await? })
                };
                match attempt.await {
                    Ok(answer) if answer.status < 500 => return answer,
                    _ => self.repeats.fetch_add(1, Relaxed),
                };
                sleep(PAUSE).await;
            }
        };
        let answer = timeout(LIMIT, answered).await.unwrap_or_else(|_| panic!("{call:?} is never answered"));
        let told = if answer.status == 200 {
            let job = &answer.ok()[0];
            assert_eq!(job["agreementId"], agreement_id);
            Ok(job["jobId"].as_str().unwrap().to_owned())
        } else {
            Err(answer.error().1)
        };
        let request = Request { agreement_id: agreement_id.to_owned(), what, told: told.clone() };
        self.told.lock().unwrap().push(request);
        told.ok()
    }

    /// Starts jobs, and stops every second one, until the end.
    async fn provider(&self, key: &Key) {
        for round in 0.. {
            if Instant::now() > self.end {
                return;
            }
            let (owner, agreement) = (owner(round), agreement_id());
            let start = provider(key).start(&self.environment, &agreement, &owner, workflow::sample());
            let job = self.send(&agreement, What::Start { by_brizo: false }, start).await;
            if let Some(job) = job.filter(|_| stops(round)) {
                self.send(&agreement, What::Stop, provider(key).stop(&owner, Some(&job))).await;
            }
        }
    }

    /// As [`Self::provider`], several at once with one nonce.
    async fn ocean_node(&self, key: &Key) {
        for round in 0.. {
            if Instant::now() > self.end {
                return;
            }
            let (of_starts, of_stops) = (nonce_ms(), nonce_ms());
            join_all((0..BURST).map(async |_| {
                let (owner, agreement) = (owner(round), agreement_id());
                let document = workflow::of_ocean_node();
                let start = ocean_node(key).start_at(&self.environment, &agreement, &owner, document, of_starts);
                let job = self.send(&agreement, What::Start { by_brizo: false }, start).await;
                if let Some(job) = job.filter(|_| stops(round)) {
                    let stop = ocean_node(key).stop_at(&owner, Some(&job), Some(&agreement), of_stops);
                    self.send(&agreement, What::Stop, stop).await;
                }
            }))
            .await;
        }
    }

    /// Starts jobs and stops all. It has no nonces: a repeated start is recognized by the agreement of an unfinished
    /// job.
    async fn brizo(&self, key: &Key) {
        while Instant::now() < self.end {
            let (owner, agreement) = (owner(1), agreement_id());
            let start = brizo(key).start(&agreement, &owner, workflow::sample());
            self.send(&agreement, What::Start { by_brizo: true }, start).await;
            self.send(&agreement, What::Stop, brizo(key).stop(&owner, None, Some(&agreement))).await;
        }
    }
}

fn stops(round: usize) -> bool {
    round % 2 == 1
}

fn owner(round: usize) -> String {
    if stops(round) { unique("owner") } else { unique(FINISHED_AT_ONCE) }
}

/// A job in the database.
struct Stored {
    id: String,
    stop_requested: bool,
}

/// The figures. Of the last four there may be none.
#[derive(Default)]
struct Figures {
    seconds: u64,
    kills: usize,
    crashes: usize,
    requests: usize,
    repeats: usize,
    jobs: usize,
    /// Starts of Brizo that were refused because their own job is there.
    brizo_in_use: usize,
    /// Refused and not done: such as another content under a nonce of Ocean Node, after an outage.
    refused: usize,
    lost: usize,
    twice: usize,
    in_doubt: usize,
    unknown: usize,
    /// What is wrong.
    examples: Vec<String>,
}

impl Figures {
    /// Compares what callers were told with what is there.
    fn compare(&mut self, told: &[Request], stored: &HashMap<String, Vec<Stored>>) {
        self.requests = told.len();
        self.jobs = stored.values().map(Vec::len).sum();
        let mut known: HashMap<&str, bool> = stored.values().flatten().map(|job| (&*job.id, false)).collect();
        for Request { agreement_id, what, told } in told {
            let jobs = stored.get(agreement_id).map(Vec::as_slice).unwrap_or_default();
            let done = |job: &Stored| *what != What::Stop || job.stop_requested;
            let (count, wrong) = match told {
                Ok(id) => {
                    if let Some(known) = known.get_mut(id.as_str()) {
                        *known = true;
                    }
                    (&mut self.lost, !jobs.iter().any(|job| job.id == *id && done(job)))
                }
                Err(text) if *what == (What::Start { by_brizo: true }) && text.contains("in use") => {
                    known.extend(jobs.iter().map(|job| (&*job.id, true)));
                    self.brizo_in_use += 1;
                    (&mut self.in_doubt, jobs.len() != 1)
                }
                Err(_) => {
                    let wrong = jobs.iter().any(done);
                    self.refused += usize::from(!wrong);
                    (&mut self.in_doubt, wrong)
                }
            };
            if wrong {
                *count += 1;
                self.examples.push(format!("{agreement_id}: {told:?}"));
            }
        }
        self.twice = stored.values().filter(|jobs| jobs.len() > 1).count();
        self.unknown = known.values().filter(|known| !**known).count();
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seconds, kills, crashes, requests, repeats, jobs, brizo_in_use, refused, .. } = self;
        let Self { lost, twice, in_doubt, unknown, .. } = self;
        writeln!(f, "{seconds} s: the service was killed {kills} times, PostgreSQL crashed {crashes} times")?;
        writeln!(f, "requests {requests}, repeats {repeats}, jobs {jobs}")?;
        writeln!(f, "refused: {brizo_in_use} starts of Brizo for their own job, {refused} others that were not done")?;
        write!(f, "lost {lost}, twice {twice}, in doubt {in_doubt}, unknown to their caller {unknown}")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_kill_and_no_crash_loses_a_job_or_leaves_a_caller_in_doubt() {
    let directory = Directory::new();
    // Its commits have to survive, so it cannot be the tests' own.
    let options = || postgres::Options::durable(directory.file("postgres"));
    let mut server = match Postgres::start(options()).await {
        Ok(server) => server,
        Err(error) => return left_out(&format!("it crashes a PostgreSQL of its own: {error:#}")),
    };
    let url = server.url("postgres");
    let connect = async || PgConnection::connect(&url).await;
    let cluster = Cluster::start().await;
    let keys = [Key::new(), Key::new(), Key::new()];
    let env = Env::of([
        ("POSTGRES_HOST", "127.0.0.1"),
        ("POSTGRES_PORT", &*server.port.to_string()),
        ("POSTGRES_DB", "postgres"),
        ("POSTGRES_USER", "operator"),
        ("POSTGRES_PASSWORD", &*server.password),
        ("SIGNATURE_REQUIRED", "1"),
        ("ALLOWED_PROVIDERS", &*json!(keys.each_ref().map(|key| &*key.address)).to_string()),
        ("DEFAULT_NAMESPACE", &*cluster.namespace),
    ]);
    let env = env.with_cluster(&cluster, &directory);
    let migrated = run(&["migrate"], &env).await;
    assert!(migrated.status.success(), "{}", stderr(&migrated));
    let announce = sqlx::query("SELECT announce($1, '{}', 0)").bind(&cluster.namespace);
    announce.execute(&mut connect().await.unwrap()).await.unwrap();

    let seconds = std::env::var("FAULT_SECONDS").map_or(DEFAULT_SECONDS, |text| text.parse().unwrap());
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut service = Service::start(&env).await;
    let callers = Callers {
        url: Mutex::new(service.url("")),
        client: client(),
        environment: cluster.namespace.clone(),
        end,
        told: Mutex::default(),
        repeats: AtomicUsize::new(0),
    };
    let mut figures = Figures { seconds, ..Figures::default() };
    let kill = async {
        while next(&end, 1, 4).await {
            service.process.send(Signal::SIGKILL);
            service.process.ended().await;
            service = Service::start(&env).await;
            *callers.url.lock().unwrap() = service.url("");
            figures.kills += 1;
        }
    };
    let crash = async {
        while next(&end, 4, 16).await {
            server.crash().await.unwrap();
            server = Postgres::start(options()).await.unwrap();
            figures.crashes += 1;
        }
        server
    };
    let engine = async {
        while next(&end, 0, 1).await {
            let finish = "UPDATE jobs SET status = 70, statustext = 'Job finished', datefinished = now() \
                          WHERE starts_with(owner, $1) AND datefinished IS NULL";
            // During an outage it fails.
            if let Ok(mut connection) = connect().await {
                sqlx::query(finish).bind(FINISHED_AT_ONCE).execute(&mut connection).await.ok();
            }
        }
    };
    let requests = async {
        let [first, second, third] = &keys;
        let provider = join_all((0..CALLERS).map(|_| callers.provider(first)));
        let ocean_node = join_all((0..CALLERS).map(|_| callers.ocean_node(second)));
        let brizo = join_all((0..CALLERS).map(|_| callers.brizo(third)));
        tokio::join!(provider, ocean_node, brizo);
    };
    let ((), server, (), ()) = tokio::join!(kill, crash, engine, requests);

    let rows = sqlx::query_as("SELECT agreementid, workflowid, stopreq = 1 FROM jobs");
    let rows: Vec<(String, String, bool)> = rows.fetch_all(&mut connect().await.unwrap()).await.unwrap();
    let mut stored: HashMap<String, Vec<Stored>> = HashMap::new();
    for (agreement_id, id, stop_requested) in rows {
        stored.entry(agreement_id).or_default().push(Stored { id, stop_requested });
    }
    figures.repeats = callers.repeats.into_inner();
    figures.compare(&callers.told.into_inner().unwrap(), &stored);
    println!("{figures}");
    server.stop().await.unwrap();
    postgres::remove(&directory.file("postgres")).unwrap();
    let Figures { lost, twice, in_doubt, unknown, examples, .. } = &figures;
    assert_eq!([lost, twice, in_doubt, unknown], [&0; 4], "{figures}\n{}", examples.join("\n"));
}

/// Waits for a random time between two numbers of seconds. Returns false at the end.
async fn next(end: &Instant, least: u64, most: u64) -> bool {
    let random = u64::from(u16::from_be_bytes(uuid::Uuid::new_v4().as_bytes()[..2].try_into().unwrap()));
    let next = Instant::now() + Duration::from_millis(least * 1000 + random * (most - least) * 1000 / 65_536);
    sleep_until(next.min(*end)).await;
    next < *end
}
