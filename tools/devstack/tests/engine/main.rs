//! The engine stand-in, from a row in the database to the job's end.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod bench;
mod chain;
mod pods;
