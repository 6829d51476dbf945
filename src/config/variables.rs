//! Environment variables: how each is described, and how its value is read and checked.

use std::fmt::{self, Display};
use std::path::PathBuf;
use std::str::FromStr;

use axum::http::HeaderValue;
use secrecy::SecretString;

use super::ConfigError;

/// An environment variable. It is read through this and in no other way, so that none is read without a description.
pub(super) struct Variable<T> {
    /// Its name.
    pub(super) name: &'static str,
    /// Its value where it is unset or empty.
    pub(super) default: T,
    /// What it sets, with the unit, for docs/configuration.md.
    pub(super) description: &'static str,
}

/// The default of a variable that has no value of its own: what happens then, in a few words.
pub(super) struct Unset(pub(super) &'static str);

/// The default of a variable that is 0 or 1: 0.
pub(super) struct Off;

impl Display for Unset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Display for Off {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0")
    }
}

/// Variables of every type, for the table of all variables.
pub(super) trait Described {
    fn name(&self) -> &'static str;
    fn default(&self) -> String;
    fn description(&self) -> &'static str;
}

impl<T: Display> Described for Variable<T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn default(&self) -> String {
        self.default.to_string()
    }

    fn description(&self) -> &'static str {
        self.description
    }
}

/// The variables of one part of the configuration.
pub(super) struct Section {
    /// Its heading in docs/configuration.md.
    pub(super) title: &'static str,
    /// In the order of the table.
    pub(super) variables: &'static [&'static dyn Described],
}

/// Looks a variable up by name.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Reads variables, and collects what is wrong with them so that one error names everything.
pub(super) struct Reader<'a> {
    lookup: Lookup<'a>,
    problems: Vec<String>,
}

impl<'a> Reader<'a> {
    /// Reads with `lookup` what `read` asks for. Fails if any variable is wrong.
    pub(super) fn run<T>(lookup: Lookup<'a>, read: impl FnOnce(&mut Self) -> T) -> Result<T, ConfigError> {
        let mut reader = Self { lookup, problems: Vec::new() };
        let value = read(&mut reader);
        if reader.problems.is_empty() { Ok(value) } else { Err(ConfigError(reader.problems)) }
    }

    /// Records that a variable, or several, must be something else. Never with the value, which may be a secret.
    pub(super) fn must_be(&mut self, names: &str, expected: &str) {
        self.problems.push(format!("{names} must be {expected}"));
    }

    /// The value as it is; an empty one counts as unset.
    pub(super) fn untrimmed<T>(&self, variable: &Variable<T>) -> Option<String> {
        (self.lookup)(variable.name).filter(|text| !text.is_empty())
    }

    /// The value without spaces around it; an empty one counts as unset.
    pub(super) fn text<T>(&self, variable: &Variable<T>) -> Option<String> {
        self.untrimmed(variable).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// The value or the default.
    pub(super) fn text_or_default(&self, variable: &Variable<&'static str>) -> String {
        self.text(variable).unwrap_or_else(|| variable.default.to_owned())
    }

    /// The parsed value, if the variable is set and can be parsed.
    pub(super) fn optional<T: FromStr, D>(&mut self, variable: &Variable<D>, expected: &str) -> Option<T> {
        let value = self.text(variable)?.parse().ok();
        if value.is_none() {
            self.must_be(variable.name, expected);
        }
        value
    }

    /// The parsed value or the default.
    pub(super) fn value<T: FromStr + Copy>(&mut self, variable: &Variable<T>, expected: &str) -> T {
        self.optional(variable, expected).unwrap_or(variable.default)
    }

    /// A number of seconds.
    pub(super) fn seconds(&mut self, variable: &Variable<u64>) -> u64 {
        self.value(variable, "a whole number of seconds")
    }

    /// Reads 0 or 1. Returns whether the value is 1.
    pub(super) fn flag(&mut self, variable: &Variable<Off>) -> bool {
        let value = self.text(variable);
        if !matches!(value.as_deref(), None | Some("0" | "1")) {
            self.must_be(variable.name, "0 or 1");
        }
        value.as_deref() == Some("1")
    }

    /// A secret that is sent as a header, from the first of the variables that is set.
    pub(super) fn header_secret(&mut self, variables: [&Variable<Unset>; 2]) -> Option<SecretString> {
        let (name, text) = variables.into_iter().find_map(|variable| Some((variable.name, self.text(variable)?)))?;
        if HeaderValue::from_str(&text).is_err() {
            self.must_be(name, "text that a header can hold");
        }
        Some(SecretString::from(text))
    }

    /// The path of a file that can be read.
    pub(super) fn readable_file(&mut self, variable: &Variable<Unset>) -> Option<PathBuf> {
        let path = self.text(variable).map(PathBuf::from)?;
        if std::fs::File::open(&path).is_err() {
            self.must_be(variable.name, "a file that can be read");
        }
        Some(path)
    }

    /// A Kubernetes quantity: a number, with or without a unit. The engine passes it to the cluster as it is.
    pub(super) fn quantity(&mut self, variable: &Variable<&'static str>) -> String {
        const UNITS: [&str; 15] = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi"];
        let text = self.text_or_default(variable);
        let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        let number = &text[..text.len() - unit.len()];
        if number.parse::<f64>().is_err() || !UNITS.contains(&unit) {
            self.must_be(variable.name, "a Kubernetes quantity, such as 500m, 1 or 2Gi");
        }
        text
    }

    /// A JSON list of strings, or strings separated by commas.
    pub(super) fn list(&mut self, variable: &Variable<Unset>) -> Option<Vec<String>> {
        let text = self.text(variable)?;
        if !text.starts_with('[') {
            return Some(text.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect());
        }
        let list = serde_json::from_str(&text);
        if list.is_err() {
            self.must_be(variable.name, r#"a JSON list of strings, such as ["0x…", "0x…"]"#);
        }
        Some(list.unwrap_or_default())
    }

    /// A list as [`Reader::list`] reads it, with every item parsed.
    pub(super) fn parsed_list<T: FromStr>(&mut self, variable: &Variable<Unset>, expected: &str) -> Option<Vec<T>> {
        let parsed: Result<Vec<T>, _> = self.list(variable)?.iter().map(|item| item.parse()).collect();
        if parsed.is_err() {
            self.must_be(variable.name, expected);
        }
        Some(parsed.unwrap_or_default())
    }
}
