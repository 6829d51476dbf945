//! Postgres. Every SQL statement of the service is here or in migrations/.

mod environments;
mod error;
mod jobs;
mod login;
mod migrate;
mod nonces;
mod reaper;
mod session;
mod types;

pub use environments::Announcement;
pub use error::DatabaseError;
pub use jobs::{
    Change, ChangedJobs, JobFilter, JobSelector, ListRange, NewJob, RequestedBy, ResultRow, StartOutcome, TouchedJob,
};
pub use nonces::NonceError;
pub use reaper::{After, FinishedJob, Known, LiveJob, Mirrored, Noted, SweptEnvironment, UnregisteredJob};
pub use session::Database;
