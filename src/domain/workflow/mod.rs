//! The workflow of a job: what a caller has to send, how the service completes it, what rows hold of it.

mod ascii_json;
mod completion;
mod document;
#[cfg(test)]
mod properties;
mod stored;

pub use ascii_json::to_ascii_json;
pub use completion::Completion;
pub use document::{Algorithm, Compute, Container, Input, InvalidWorkflow, Seconds, Stage, Workflow};
pub use stored::{Summary, document, stored, stored_max_time};

/// A JSON object. Keeps the order of its fields.
pub type Object = serde_json::Map<String, serde_json::Value>;
