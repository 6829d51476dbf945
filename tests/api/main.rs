//! The HTTP API, as its callers see it: a file for each route, and for each thing that concerns all of them.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

mod given;

mod admin;
mod announce;
mod compute_delete;
mod compute_start;
mod compute_status;
mod compute_stop;
mod concurrency;
mod docs;
mod environments;
mod get_result;
mod http;
mod in_doubt;
mod lists;
mod lookups;
mod migration;
mod nonces;
mod old_database;
mod outages;
mod parameters;
mod registration;
mod repeats;
mod runningjobs;
mod sessions;
mod signatures;
mod state_rules;
mod stored_jobs;
