//! The table of all variables: docs/configuration.md, `operator-service variables`.

use serde::Serialize;

use super::variables::Section;
use super::{access, aws, database, eks, jobs, log, reaper, server, storage};

const SECTIONS: [&Section; 9] = [
    &server::SECTION,
    &database::SECTION,
    &access::SECTION,
    &jobs::SECTION,
    &storage::SECTION,
    &reaper::SECTION,
    &eks::SECTION,
    &aws::SECTION,
    &log::SECTION,
];

/// One variable.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// Its default, or in words what an unset variable means.
    pub default: String,
    /// What it sets, with the unit.
    pub description: &'static str,
    /// The section that it belongs to.
    pub section: &'static str,
}

/// Lists every variable, by section.
pub fn table() -> Vec<Entry> {
    let entries = SECTIONS.into_iter().flat_map(|section| {
        section.variables.iter().map(|variable| Entry {
            name: variable.name(),
            default: variable.default(),
            description: variable.description(),
            section: section.title,
        })
    });
    entries.collect()
}

/// Writes every variable as Markdown, a heading and a table for each section.
pub fn markdown() -> String {
    let mut text = String::new();
    let mut section = "";
    for entry in table() {
        if entry.section != section {
            section = entry.section;
            let gap = if text.is_empty() { "" } else { "\n" };
            text += &format!("{gap}## {section}\n\n| variable | default | description |\n| --- | --- | --- |\n");
        }
        text += &format!("| `{}` | {} | {} |\n", entry.name, entry.default, entry.description);
    }
    text
}
