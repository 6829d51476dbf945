//! Identifiers. Each is checked where it arrives, and is never a bare `String` after that.
//!
//! `parse` takes what a caller sent. `stored` takes what a row holds: the Python service wrote rows without checking
//! them, so a stored identifier may be one that no caller can send.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use serde_json::Value;

/// The maximum number of characters of an identifier: what the columns of `jobs` hold.
pub const MAX_LENGTH: usize = 255;

/// The text cannot be an identifier: it is too long, or not printable ASCII, which is all that the engine can read back
/// (docs/contract/engine.md, "Database").
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("at most {MAX_LENGTH} characters, all of them printable ASCII")]
pub struct InvalidId;

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Reads what a caller sent.
            ///
            /// # Errors
            /// If it has more than 255 characters, or others than printable ASCII.
            pub fn parse(text: &str) -> Result<Self, InvalidId> {
                let storable = text.len() <= MAX_LENGTH && text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
                if storable { Ok(Self(text.to_owned())) } else { Err(InvalidId) }
            }

            /// Takes what a row holds, as it is.
            pub fn stored(text: impl Into<String>) -> Self {
                Self(text.into())
            }

            /// The identifier's text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::parse(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id! {
    /// A job's identifier: 32 hex digits without dashes, in rows of the Python service possibly other text. It is also
    /// the name of the job's objects in the cluster, if [`JobId::can_name_objects`].
    JobId
}

text_id! {
    /// The agreement that a job serves. An agreement has at most one unfinished job.
    AgreementId
}

text_id! {
    /// The account that a job belongs to. Compared as text: callers send it with or without EIP-55's checksum.
    Owner
}

text_id! {
    /// A Kubernetes namespace, which is also the identifier of the environment that runs jobs there. Names a namespace
    /// only if [`Namespace::is_valid`].
    Namespace
}

text_id! {
    /// The Ethereum address that a caller claims to sign with. Kept as it was sent, because Brizo's message contains
    /// it.
    ProviderAddress
}

impl JobId {
    /// Makes an identifier that no other job has.
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().simple().to_string())
    }

    /// Takes the name of an object in the cluster, or any other text, if objects can be named so.
    pub fn of_object(name: &str) -> Option<Self> {
        Some(Self::stored(name)).filter(Self::can_name_objects)
    }

    /// Returns whether Kubernetes objects can be named after the job (RFC 1123), with room for the longest suffix,
    /// `-configure-job`, within 63 characters.
    pub fn can_name_objects(&self) -> bool {
        let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = self.0.as_bytes();
        (1..=49).contains(&bytes.len())
            && bytes.iter().all(|&byte| alphanumeric(byte) || byte == b'-')
            && bytes.first().copied().is_some_and(alphanumeric)
            && bytes.last().copied().is_some_and(alphanumeric)
    }
}

impl Namespace {
    /// Returns whether a namespace can have this name (RFC 1123). Any other text might lead elsewhere in the path of a
    /// request to the API server.
    pub fn is_valid(&self) -> bool {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !self.0.is_empty() && self.0.len() <= 63 && self.0.bytes().all(allowed)
    }
}

/// The namespace that a job runs in: the one that its row names, else the one of requests that name no environment.
/// Rows of the Python service may name none.
pub fn effective_namespace<'a>(row: Option<&'a Namespace>, default: &'a Namespace) -> &'a Namespace {
    row.unwrap_or(default)
}

/// A blockchain, by its number (EIP-155). Compares by value, and keeps whether the caller wrote it as a JSON number or
/// as text, because the workflow and `/runningjobs` show it as it was sent.
#[derive(Debug, Clone)]
pub struct ChainId {
    digits: String,
    as_number: bool,
}

impl ChainId {
    /// The maximum number of digits of a chain id: it is a 256-bit number.
    const MAX_DIGITS: usize = 78;

    /// Reads a non-negative decimal integer, written as a JSON number or as text. `None` for anything else.
    pub fn parse(text: &str, as_number: bool) -> Option<Self> {
        let decimal = (1..=Self::MAX_DIGITS).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        decimal.then(|| Self { digits: text.to_owned(), as_number })
    }

    /// The digits as they were sent.
    pub fn as_str(&self) -> &str {
        &self.digits
    }

    /// Returns whether a JSON value names this chain, be it a number or text.
    pub fn matches(&self, value: &Value) -> bool {
        match value {
            Value::String(text) => self.has_value_of(text.trim()),
            Value::Number(number) => self.has_value_of(&number.to_string()),
            _ => false,
        }
    }

    fn has_value_of(&self, digits: &str) -> bool {
        let significant = |digits: &str| digits.trim_start_matches('0').to_owned();
        !digits.is_empty() && significant(&self.digits) == significant(digits)
    }

    /// The JSON value that the caller sent.
    pub fn to_json(&self) -> Value {
        let number = self.as_number.then(|| serde_json::from_str(&self.digits).ok()).flatten();
        number.unwrap_or_else(|| Value::String(self.digits.clone()))
    }
}

impl PartialEq for ChainId {
    fn eq(&self, other: &Self) -> bool {
        self.has_value_of(&other.digits)
    }
}

impl Serialize for ChainId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn job_ids_that_can_name_kubernetes_objects() {
        assert_eq!(JobId::random().as_str().len(), 32);
        for good in [JobId::random(), JobId::stored("old-job-1"), JobId::stored("a".repeat(49))] {
            assert!(good.can_name_objects(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a,b", "a/b", "ä", &"a".repeat(50)] {
            assert!(!JobId::stored(bad).can_name_objects(), "{bad}");
            assert_eq!(JobId::of_object(bad), None, "{bad}");
        }
        assert_eq!(JobId::of_object("old-job-1"), Some(JobId::stored("old-job-1")));
    }

    #[test]
    fn namespaces_that_kubernetes_can_have() {
        for good in ["ocean-compute", "a", &"a".repeat(63)] {
            assert!(Namespace::stored(good).is_valid(), "{good}");
        }
        for bad in ["", "..", "a/b", "A", "a b", &"a".repeat(64)] {
            assert!(!Namespace::stored(bad).is_valid(), "{bad}");
        }
    }

    #[test]
    fn callers_send_printable_ascii_only() {
        assert_eq!(Owner::parse("0xAb 1").unwrap().as_str(), "0xAb 1");
        for bad in ["ä", "a\nb", "\u{7f}", &"a".repeat(256)] {
            assert_eq!(Owner::parse(bad), Err(InvalidId), "{bad}");
        }
    }

    #[test]
    fn chain_ids_are_numbers_that_compare_by_value() {
        let chain = ChainId::parse("137", true).unwrap();
        for same in [json!(137), json!("137"), json!(" 137 "), json!("0137")] {
            assert!(chain.matches(&same), "{same}");
        }
        for other in [json!(13), json!("1370"), json!(""), json!(null), json!([137]), json!(137.5)] {
            assert!(!chain.matches(&other), "{other}");
        }
        assert_eq!(chain, ChainId::parse("137", false).unwrap());
        assert_ne!(chain, ChainId::parse("138", true).unwrap());
        assert_eq!(ChainId::parse("0137", true).unwrap().as_str(), "0137");
        assert_eq!(chain.to_json(), json!(137));
        assert_eq!(ChainId::parse("137", false).unwrap().to_json(), json!("137"));
        for bad in ["", "hello", "-1", "1.0", "1e3", "0x1", " 1", "١", &"9".repeat(79)] {
            assert!(ChainId::parse(bad, false).is_none(), "{bad}");
        }
    }
}
