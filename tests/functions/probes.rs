//! The probes of `operator-service serve`, and that no request is lost while servers are replaced.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use crate::child::{Env, Service, run, stderr};
use crate::fixture::{OWNER, get, parts};
use crate::support::caller::provider;
use crate::support::{ClosedPort, Key, TestDatabase, agreement_id, client, eventually, workflow};

const ENVIRONMENTS: &str = "/api/v1/operator/environments";

/// What /readyz answers: the status and what is missing.
async fn ready(service: &Service) -> (u16, Vec<String>) {
    let answer = get(service, "/readyz").await;
    let missing = answer.json()["missing"].as_array().cloned().unwrap_or_default();
    (answer.status, missing.iter().map(|one| one.as_str().unwrap().to_owned()).collect())
}

#[tokio::test]
async fn a_server_is_ready_once_its_database_has_the_schema() {
    let database = TestDatabase::empty().await;
    let env = Env::of(database.variables());
    let service = Service::start(&env).await;
    let (status, missing) = ready(&service).await;
    assert_eq!((status, missing.len()), (503, 1));
    assert!(missing[0].contains("operator-service migrate"), "{missing:?}");
    let migrated = run(&["migrate"], &env).await;
    assert!(migrated.status.success(), "{}", stderr(&migrated));
    assert_eq!(ready(&service).await, (200, vec![]));
    // A newer version's schema.
    database
        .execute(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (99990101000000, 'newer', true, '', 0)",
        )
        .await;
    assert_eq!(ready(&service).await, (200, vec![]));
    database.execute("DELETE FROM _sqlx_migrations WHERE version = (SELECT min(version) FROM _sqlx_migrations)").await;
    let (status, missing) = ready(&service).await;
    assert_eq!(status, 503);
    assert!(missing[0].contains("lacks 1 migration"), "{missing:?}");
    // Probes are not logged.
    assert!(!service.process.output().contains("answered"), "{}", service.process.output());
}

#[tokio::test]
async fn without_a_database_a_server_lives_and_is_not_ready() {
    let (_database, _key, env) = parts().await;
    let closed = ClosedPort::new();
    let service =
        Service::start(&env.with("POSTGRES_HOST", "127.0.0.1").with("POSTGRES_PORT", closed.to_string())).await;
    assert_eq!(get(&service, "/healthz").await.status, 200);
    let (status, missing) = ready(&service).await;
    assert_eq!((status, missing.len()), (503, 1));
    assert!(missing[0].contains("database"), "{missing:?}");
}

#[tokio::test]
async fn a_server_that_shuts_down_is_not_ready_and_answers_during_the_delay() {
    let (_database, _key, env) = parts().await;
    let mut service = Service::start(&env.with("SHUTDOWN_DELAY", "3")).await;
    assert_eq!(ready(&service).await, (200, vec![]));
    assert_eq!(get(&service, ENVIRONMENTS).await.header("connection"), "");
    service.process.send(Signal::SIGTERM);
    eventually("a server that is not ready", crate::LIMIT, async || {
        (ready(&service).await == (503, vec!["the server is shutting down".to_owned()])).then_some(())
    })
    .await;
    let answer = get(&service, ENVIRONMENTS).await;
    assert_eq!((answer.status, answer.header("connection")), (200, "close"));
    assert_eq!(get(&service, "/healthz").await.status, 200);
    assert!(service.process.ended().await.success());
}

/// Passes each connection on to a server that was ready when it was last asked, as a Kubernetes Service does.
struct Balancer {
    address: SocketAddr,
    servers: Arc<Mutex<Vec<(SocketAddr, bool)>>>,
}

impl Balancer {
    /// How often it asks for readiness. (Kubernetes asks every few seconds; the servers' SHUTDOWN_DELAY is shorter here too.)
    const INTERVAL: Duration = Duration::from_millis(50);

    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let servers: Arc<Mutex<Vec<(SocketAddr, bool)>>> = Arc::default();
        let (asked, chosen) = (servers.clone(), servers.clone());
        tokio::spawn(async move {
            loop {
                let addresses: Vec<_> = asked.lock().unwrap().iter().map(|(server, _)| *server).collect();
                for server in addresses {
                    let answer = client().get(format!("http://{server}/readyz")).send().await;
                    let ready = answer.is_ok_and(|answer| answer.status() == 200);
                    asked
                        .lock()
                        .unwrap()
                        .iter_mut()
                        .filter(|(known, _)| *known == server)
                        .for_each(|one| one.1 = ready);
                }
                tokio::time::sleep(Self::INTERVAL).await;
            }
        });
        tokio::spawn(async move {
            for turn in 0.. {
                let (mut client, _) = listener.accept().await.unwrap();
                let ready: Vec<_> = chosen.lock().unwrap().iter().filter(|one| one.1).map(|one| one.0).collect();
                let Some(server) = ready.get(turn % ready.len().max(1)).copied() else { continue };
                tokio::spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(server).await {
                        copy_bidirectional(&mut client, &mut server).await.ok();
                    }
                });
            }
        });
        Self { address, servers }
    }

    /// Adds a server, and waits until it is ready.
    async fn add(&self, service: &Service) {
        self.servers.lock().unwrap().push((service.address, false));
        eventually("a ready server", crate::LIMIT, async || self.is_ready(service).then_some(())).await;
    }

    fn is_ready(&self, service: &Service) -> bool {
        self.servers.lock().unwrap().contains(&(service.address, true))
    }
}

/// Sends starts and other requests one after the other until it is told to stop. Returns those that failed.
async fn load(address: SocketAddr, key: Key, answered: Arc<AtomicUsize>, stop: Arc<AtomicBool>) -> Vec<String> {
    let (client, base, mut failed) = (client(), format!("http://{address}"), Vec::new());
    while !stop.load(SeqCst) {
        let start = provider(&key).start("ocean-compute", &agreement_id(), OWNER, workflow::sample());
        for request in [start.request(&client, &base), client.get(format!("{base}{ENVIRONMENTS}"))] {
            match request.send().await {
                Ok(answer) if answer.status() == 200 => answered.fetch_add(1, SeqCst),
                Ok(answer) => {
                    failed.push(format!("{}: {:?}", answer.status(), answer.text().await));
                    0
                }
                Err(error) => {
                    failed.push(format!("{error:?}"));
                    0
                }
            };
        }
    }
    failed
}

#[tokio::test]
async fn a_rolling_update_loses_no_request() {
    let (database, key, env) = parts().await;
    database.announce("ocean-compute", "{}").await;
    // The cluster cannot be reached: starts are accepted, and registered later.
    let env = env.with("KUBECONFIG", "/nowhere").with("SHUTDOWN_DELAY", "2");
    let balancer = Balancer::start().await;
    let mut service = Service::start(&env).await;
    balancer.add(&service).await;
    let (answered, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> =
        (0..4).map(|_| tokio::spawn(load(balancer.address, key.clone(), answered.clone(), stop.clone()))).collect();
    let more = async |number: usize| {
        let enough = answered.load(SeqCst) + number;
        eventually("more answers", crate::LIMIT, async || (answered.load(SeqCst) >= enough).then_some(())).await;
    };
    more(50).await;
    for _ in 0..2 {
        let next = Service::start(&env).await;
        balancer.add(&next).await;
        service.process.send(Signal::SIGTERM);
        assert!(service.process.ended().await.success());
        assert!(!balancer.is_ready(&service));
        more(50).await;
        service = next;
    }
    stop.store(true, SeqCst);
    for client in clients {
        assert_eq!(client.await.unwrap(), Vec::<String>::new());
    }
    assert_eq!(database.count("jobs").await * 2, answered.load(SeqCst) as i64);
}
