//! What operator-service needs on a developer's machine: a PostgreSQL, a Kubernetes API and an engine. Nothing in the
//! service knows that it exists.

/// Prints a line. Unlike `println!` it does not panic when nobody reads any more (`make demo | head`).
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($argument)*);
    }};
}

pub mod apiserver;
mod cluster;
pub mod demo;
pub mod local;
pub mod postgres;
mod service;
pub mod stack;
pub mod wallet;

pub use fake_engine::process;
