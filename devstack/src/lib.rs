//! What a laptop lacks to run operator-service: a Kubernetes API, a private Postgres and a stand-in for
//! the engine. Nothing in the service knows that it exists.
//!
//! - [`postgres`]: a PostgreSQL server of its own
//! - [`cluster`]: an embedded stand-in for the Kubernetes API; [`apiserver`]: the real one, without controllers
//! - [`eks`]: how an EKS cluster knows its callers, for the embedded one
//! - [`engine`]: what operator-engine does with a job
//! - [`stack`]: all of these and the service, up together and down together
//! - [`demo`]: one job's way through the stack

/// Prints a line. Unlike `println!` it does not mind that nobody reads any more (`make demo | head`).
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($argument)*);
    }};
}

pub mod apiserver;
pub mod cluster;
pub mod demo;
pub mod eks;
pub mod engine;
pub mod local;
pub mod postgres;
pub mod process;
pub mod quantity;
pub mod stack;
pub mod wallet;

/// Makes ring the process's crypto provider, unless it has one. The HTTP clients here need that.
pub fn install_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
