//! What is logged, and where to.

use std::path::PathBuf;

use tracing_subscriber::EnvFilter;

use super::variables::{Reader, Section, Unset, Variable};

const LOG_LEVEL: Variable<&str> = Variable {
    name: "LOG_LEVEL",
    default: "INFO",
    description: "DEBUG, INFO, WARNING, ERROR, or a \
        [filter](https://docs.rs/tracing-subscriber/latest/tracing_subscriber/filter/struct.EnvFilter.html) such as \
        `operator_service=debug`. Libraries never log below INFO: they would log headers and URLs.",
};
const LOG_CFG: Variable<Unset> = Variable {
    name: "LOG_CFG",
    default: Unset("none"),
    description: "The path of a file to which logs are appended, in addition to standard error.",
};

pub(super) const SECTION: Section = Section { title: "Logs", variables: &[&LOG_LEVEL, &LOG_CFG] };

/// What is logged, and where to.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// LOG_LEVEL as a filter of `tracing`.
    pub filter: String,
    /// LOG_CFG
    pub file: Option<PathBuf>,
}

impl LogConfig {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let level = reader.text_or_default(&LOG_LEVEL);
        let filter = match level.to_uppercase().as_str() {
            // Python's names, which the Python service accepted.
            "WARNING" => "warn".to_owned(),
            "CRITICAL" => "error".to_owned(),
            "DEBUG" | "INFO" | "ERROR" => level.to_lowercase(),
            _ => level,
        };
        if EnvFilter::try_new(&filter).is_err() {
            reader.must_be(LOG_LEVEL.name, "DEBUG, INFO, WARNING, ERROR or a filter such as operator_service=debug");
        }
        Self { filter, file: reader.text(&LOG_CFG).map(PathBuf::from) }
    }
}
