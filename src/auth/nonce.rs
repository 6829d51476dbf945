//! The nonce of a signed request.

use std::fmt;
use std::time::Duration;

use super::Address;

/// A signer's clock reading, in seconds, milliseconds, microseconds or nanoseconds, exactly as the caller
/// wrote it: the signature is over its text.
///
/// Nonces compare as decimal numbers brought to one unit by their size. That happens in the database
/// (function `nonce_ns`), which alone can compare and take one in one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nonce(String);

impl Nonce {
    /// Reads a non-negative decimal number, with or without a fraction or an exponent of up to two digits;
    /// 64 characters at most. `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let (number, exponent) = match text.split_once(['e', 'E']) {
            Some((number, exponent)) => (number, Some(exponent.strip_prefix(['+', '-']).unwrap_or(exponent))),
            None => (text, None),
        };
        let (whole, fraction) = match number.split_once('.') {
            Some((whole, fraction)) => (whole, Some(fraction)),
            None => (number, None),
        };
        let fits = text.len() <= 64
            && digits(whole)
            && fraction.is_none_or(digits)
            && exponent.is_none_or(|exponent| digits(exponent) && exponent.len() <= 2);
        fits.then(|| Self(text.to_owned()))
    }

    /// The nonce as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A request's use of a nonce.
#[derive(Debug, Clone)]
pub struct NonceUse {
    /// The signer.
    pub signer: Address,
    /// The nonce that was signed.
    pub nonce: Nonce,
    /// How far below the signer's highest, or ahead of the clock, it may lie.
    pub window: Duration,
    /// Whether other requests may use the same nonce while it is less than 5 seconds old. So in Ocean Node's forms: its
    /// nonces are milliseconds, and it sends several requests in one.
    pub shared: bool,
    /// The digest of the request, by which the same request is recognized.
    pub request: [u8; 32],
}

/// Why a nonce is refused. The texts begin with the contract's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NonceRefused {
    /// The signer has used it before.
    #[error("Invalid signature expected nonce ({highest}) > current nonce ({nonce}). The signer has used it before.")]
    Used {
        /// The signer's highest nonce, as it was written.
        highest: String,
        /// The refused nonce.
        nonce: Nonce,
    },
    /// It lies too far below the highest one that the signer has used.
    #[error(
        "Invalid signature expected nonce ({highest}) > current nonce ({nonce}). It may lie at most {} seconds below \
         the signer's highest.", window.as_secs()
    )]
    Old {
        /// The signer's highest nonce, as it was written.
        highest: String,
        /// The refused nonce.
        nonce: Nonce,
        /// How far below the highest a nonce may lie.
        window: Duration,
    },
    /// It lies too far ahead of the clock. It is not recorded, or one mistake would lock the signer out.
    #[error(
        "Invalid signature: the nonce ({nonce}) lies more than {} seconds ahead of the clock; check the signer's clock.",
        window.as_secs()
    )]
    Ahead {
        /// The refused nonce.
        nonce: Nonce,
        /// How far ahead of the clock a nonce may lie.
        window: Duration,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_was_written() {
        for text in ["1692712345123456789", "1692712345.123456", "1725031234567", "0", "1.6927123451234568e+18"] {
            assert_eq!(Nonce::parse(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn refuses_what_is_no_number() {
        for text in ["", "-1", "+1", "1.", ".5", "1e", "1e999", "0x10", "1 ", "NaN", "١", &"9".repeat(65)] {
            assert_eq!(Nonce::parse(text), None, "{text}");
        }
    }
}
