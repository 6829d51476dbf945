//! What the integration tests share.
//!
//! - [`App`]: the service's router on a free loopback port, with a database and a cluster of its own.
//!   `App::start().await`, or `App::builder().var("SIGNATURE_REQUIRED", "1").start().await`; `.database(..)` and
//!   `.cluster(..)` let it share another's. `app.send(call).await` gives an [`Answer`].
//! - [`Call`]: a request. [`caller`] builds those of Provider, Ocean Node and Brizo, signed; `Call::get("compute")`
//!   and its like build any other. `.with("name", value)`, `.without("name")`, `.in_query()`, `.in_body()`.
//! - [`TestDatabase`]: a database of the test's own in the server that TEST_DATABASE_URL names, dropped at the end;
//!   [`Stored`] puts rows into `jobs` as engines and services leave them there.
//! - [`Cluster`]: the API server that TEST_KUBECONFIG names, if set, else an embedded one of the test's own, with
//!   a namespace of the test's own; `Cluster::embedded()` where a test orders faults. Tests that need controllers
//!   or a kubelet ask it for them, and call [`left_out`] where there are none. What the service asks an embedded one
//!   for, its Role has to allow ([`Guarded`]).
//! - [`Key`]: an Ethereum key that signs with eth-account (signer.py); [`nonce`] gives nonces.
//! - [`workflow`]: what to run. [`Proxy`]: a proxy to the database whose connections can be cut.
//! - [`ClosedPort`]: a port on which nothing listens.
//! - [`eventually`]: waits for a condition, with a limit.

#![allow(dead_code, unused_imports, reason = "each test binary uses its part")]

mod app;
pub mod caller;
mod closed_port;
mod cluster;
mod database;
pub mod operation;
mod proxy;
mod role;
mod signer;
pub mod workflow;

use std::io::Write;
use std::time::Duration;

pub use app::{Answer, App, AppBuilder, client};
pub use caller::Call;
pub use closed_port::ClosedPort;
pub use cluster::Cluster;
pub use database::{Stored, TestDatabase};
pub use proxy::{At, Proxy};
pub use role::Guarded;
pub use signer::{Key, nonce, nonce_ms};

/// The Python of the tests, which has what tests/requirements.txt lists.
pub fn python() -> String {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/.local/venv/bin/python");
    let installed = || if std::path::Path::new(own).exists() { own } else { "python3" }.to_owned();
    std::env::var("TEST_PYTHON").unwrap_or_else(|_| installed())
}

/// A name that no other test uses.
pub fn unique(what: &str) -> String {
    format!("{what}-{}", &uuid::Uuid::new_v4().simple().to_string()[..12])
}

/// An agreement's id that no other test uses.
pub fn agreement_id() -> String {
    format!("0x{}", uuid::Uuid::new_v4().simple())
}

/// An owner that no other test uses.
pub fn owner() -> String {
    format!("0x{}", &format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())[..40])
}

/// Calls `look` until it returns something. Panics with `what` after `limit`.
pub async fn eventually<T>(what: &str, limit: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Reports that a test was left out, and why: on standard output and in the file that LEFT_OUT_REPORT names.
pub fn left_out(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    println!("LEFT OUT {test}: {why}");
    if let Some(report) = std::env::var_os("LEFT_OUT_REPORT") {
        let mut report = std::fs::OpenOptions::new().create(true).append(true).open(report).unwrap();
        // One write, so that lines of tests that run at once do not mix.
        report.write_all(format!("{test}: {why}\n").as_bytes()).unwrap();
    }
}
