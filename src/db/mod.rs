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
pub use jobs::{Change, Changed, NewJob, Page, RequestedBy, ResultRow, Started, TouchedJob, Which};
pub use reaper::{After, FinishedJob, Known, LiveJob, Mirrored, Noted, SweptEnvironment, UnregisteredJob};
pub use session::Database;
