//! PostgreSQL. The statements of the reaper's duties are beside their rules in src/reaper/; all others are here and in
//! migrations/.

mod cursor;
mod environments;
mod error;
mod jobs;
mod login;
mod measurements;
mod migrate;
mod nonces;
mod prepare;
mod roles;
mod session;
mod step_logs;
mod summaries;
mod types;

pub use cursor::Cursor;
pub(crate) use cursor::{PAGE_ROWS, end_of_page};
pub use environments::Announcement;
pub use error::DatabaseError;
pub use jobs::{
    Change, ChangedJobs, JobFilter, JobSelector, ListRange, NewJob, Page, RequestedBy, ResultRow, StartOutcome,
    TouchedJob,
};
pub use measurements::{PoolStatus, Waits};
pub use migrate::Migrated;
pub use nonces::NonceError;
pub use session::Database;
pub(crate) use types::column;
