//! PostgreSQL. Every SQL statement of the service is here or in migrations/.

mod cursor;
mod environments;
mod error;
mod finished_jobs;
mod jobs;
mod login;
mod migrate;
mod nonces;
mod prepare;
mod registrations;
mod retries;
mod session;
mod status_sync;
mod step_logs;
mod summaries;
mod sweeps;
mod types;
mod unfinished_jobs;

pub use cursor::Cursor;
pub use environments::Announcement;
pub use error::DatabaseError;
pub use finished_jobs::{FinishedJob, KnownJob, UnscheduledJob};
pub use jobs::{
    Change, ChangedJobs, JobFilter, JobSelector, ListRange, NewJob, Page, RequestedBy, ResultRow, StartOutcome,
    TouchedJob,
};
pub use migrate::Migrated;
pub use nonces::NonceError;
pub use registrations::UnregisteredJob;
pub use session::Database;
pub use status_sync::StatusToSync;
pub use sweeps::SweptEnvironment;
pub use unfinished_jobs::{NewlyRecorded, UnfinishedJob};
