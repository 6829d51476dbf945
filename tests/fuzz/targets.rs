//! Fuzz targets: what reads text from callers, origins and engines, over a corpus and in libFuzzer.
//!
//! `cargo test --test fuzz` runs each target over its corpus. `make fuzz` lets libFuzzer look for inputs that reach more of the
//! code, with the corpus as a beginning ([`engine`]). No target needs a database, a cluster or a network: what a request
//! wants of the database, it asks a closed port.

#[path = "../support/closed_port.rs"]
mod closed_port;
mod content_disposition;
mod engine;
mod events;
mod outputs;
mod requests;
mod service;
mod workflows;

#[test]
fn requests() {
    engine::run("requests", "requests", requests::check);
}

#[test]
fn events() {
    engine::run("events", "requests", events::check);
}

#[test]
fn workflows() {
    engine::run("workflows", "workflows", workflows::check);
}

#[test]
fn content_disposition() {
    engine::run("content_disposition", "content_disposition", content_disposition::check);
}

#[test]
fn outputs() {
    engine::run("outputs", "outputs", outputs::check);
}
