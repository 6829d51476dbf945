//! What a laptop lacks to run operator-service, up together and down together. Nothing in the service knows that it
//! exists.
//!
//! - [`postgres`]: a PostgreSQL server of its own
//! - [`apiserver`]: the real Kubernetes API, without controllers; the embedded stand-in is [`fake_kubernetes`]
//! - [`stack`]: a database, a cluster, an engine ([`fake_engine`]) and the service
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
pub mod demo;
pub mod postgres;
pub mod stack;
pub mod wallet;
