//! Why an operation on the database failed, and whether the same request may succeed later.

use sqlx::migrate::MigrateError;

use crate::aws::AwsError;

/// Why the database could not be read or written. No transaction was committed in part.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The database cannot be reached, is full, is restarting, or was too slow.
    #[error("The database is not available, please try again")]
    Unavailable(#[source] sqlx::Error),
    /// The server's certificate was refused.
    #[error(
        "The database's certificate was refused: its name or its authority is not the one that POSTGRES_SSLMODE and \
         POSTGRES_CA_FILE ask for"
    )]
    Untrusted(#[source] sqlx::Error),
    /// The password could not be obtained.
    #[error("The database cannot be logged in to, please try again: {0}")]
    NoPassword(#[source] AwsError),
    /// All connections of this process are in use, or no new one was opened in time. Nothing was sent.
    #[error("The database is not available, please try again: no connection was free in time")]
    NoConnection,
    /// Something between service and database gives each transaction another session.
    #[error(
        "The database is behind a pooler in transaction mode, which this service cannot use: connect to the database, to \
         RDS Proxy, or to a pooler in session mode"
    )]
    Pooler(#[source] sqlx::Error),
    /// A statement took longer than its limit.
    #[error("The database did not answer in time, please try again")]
    TimedOut,
    /// The user lacks a right.
    #[error(
        "The database's user may not do this. The tables belong to the user of `operator-service migrate`, which grants the \
         roles of POSTGRES_ROLES what they need"
    )]
    NotAllowed(#[source] sqlx::Error),
    /// The password of a role could not be obtained.
    #[error("The password of a database role cannot be set: {0}")]
    RolePassword(#[source] AwsError),
    /// The schema is older than this program.
    #[error("The database's schema is not up to date: run `operator-service migrate` or POST /pgsqlinit")]
    NotMigrated(#[source] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("The database's schema could not be brought up to date: {0}")]
    Migration(#[source] MigrateError),
    /// There was not enough time to bring the schema up to date; with what was being done.
    #[error(
        "The database's schema is not up to date yet ({0}): run `operator-service migrate`, or deploy again. It goes on \
         where this stopped"
    )]
    MigrationUnfinished(String),
    /// A statement failed for a reason that no outage explains: a defect of this service.
    #[error("An internal error occurred; it has been logged")]
    Bug(#[source] sqlx::Error),
}

impl DatabaseError {
    /// Returns whether the same operation may succeed a little later. Rights that were granted a moment ago may not be
    /// in effect yet, so a refused login counts too.
    pub fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::Unavailable(_) | Self::NoPassword(_) | Self::RolePassword(_) | Self::NoConnection | Self::TimedOut
        )
    }

    /// Returns whether the operation may have been done, or would be done if it were run again at once: its connection
    /// was lost, it took too long, or the server rolled it back in favour of another.
    pub(super) fn outcome_is_unknown(&self) -> bool {
        match self {
            Self::TimedOut => true,
            Self::Unavailable(sqlx::Error::Database(error)) => {
                let code = error.code().unwrap_or_default();
                ["08", "40", "57P"].iter().any(|class| code.starts_with(class))
            }
            Self::Unavailable(_) => true,
            _ => false,
        }
    }
}

impl From<MigrateError> for DatabaseError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error.into(),
            error => Self::Migration(error),
        }
    }
}

impl From<sqlx::Error> for DatabaseError {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as E;
        match &error {
            E::Database(database) => match database.code().as_deref() {
                Some("42P01" | "42703" | "42883") => Self::NotMigrated(error),
                Some("42501") => Self::NotAllowed(error),
                Some(code) if is_of_pooler(code, database.message()) => Self::Pooler(error),
                Some(code) if is_transient(code) => Self::Unavailable(error),
                _ => Self::Bug(error),
            },
            E::Io(io) if is_untrusted(io) => Self::Untrusted(error),
            E::Io(_) | E::Tls(_) | E::Protocol(_) => Self::Unavailable(error),
            _ => Self::Bug(error),
        }
    }
}

/// Returns whether a SQLSTATE says that the same request may succeed later
/// (<https://www.postgresql.org/docs/current/errcodes-appendix.html>): connections (08), authentication (28), an
/// unknown database (3D), rollbacks (40), resources (53), locks and read-only replicas (55, 25006), an operator's
/// intervention (57), the system (58).
fn is_transient(code: &str) -> bool {
    code == "25006" || ["08", "28", "3D", "40", "53", "55", "57", "58"].iter().any(|class| code.starts_with(class))
}

/// Returns whether an error comes from a pooler in transaction mode: a prepared statement does not exist, or exists
/// already, in the session that another client had before, or the pooler knows a parameter of the connection's start-up not
/// (<https://www.pgbouncer.org/config.html#ignore_startup_parameters>).
fn is_of_pooler(code: &str, message: &str) -> bool {
    matches!(code, "26000" | "42P05") || (code == "08P01" && message.contains("startup parameter"))
}

fn is_untrusted(error: &std::io::Error) -> bool {
    let tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    matches!(tls, Some(rustls::Error::InvalidCertificate(_)))
}

/// Returns whether the database refused the password or the user.
pub(super) fn is_refused(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("28P01" | "28000"))
}
