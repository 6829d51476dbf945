//! What can be done with a resource: one file per verb, none of them knows a kind.

pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod log;
pub(crate) mod read;
pub(crate) mod update;
pub(crate) mod watch;
