//! What the service is about: jobs, their workflows, states and outputs, and the environments that run them. Pure: no
//! I/O, no clock, no framework.

pub mod environment;
pub mod output;
pub mod workflow;

mod component;
mod ids;
mod job;
mod status;

pub use component::Component;
pub use ids::{AgreementId, ChainId, InvalidId, JobId, Namespace, Owner, ProviderAddress, effective_namespace};
pub use job::Job;
pub use status::{Status, StopRequest};
