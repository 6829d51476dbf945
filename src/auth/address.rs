//! Ethereum addresses.

use std::fmt;
use std::str::FromStr;

use k256::ecdsa::VerifyingKey;
use sha3::{Digest, Keccak256};

/// An Ethereum address. Compares by value; prints with the checksum of EIP-55.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address([u8; 20]);

impl Address {
    /// The form in which the database keeps an address: `0x` and lower-case digits, as the Python service wrote it.
    pub fn to_lowercase(self) -> String {
        format!("0x{}", hex::encode(self.0))
    }

    /// The address of a key's holder: the last 20 bytes of the key's hash.
    pub(super) fn of(key: &VerifyingKey) -> Self {
        let point = key.to_sec1_point(false);
        let hash = Keccak256::digest(&point.as_bytes()[1..]);
        let mut bytes = [0; 20];
        bytes.copy_from_slice(&hash[12..]);
        Self(bytes)
    }
}

impl FromStr for Address {
    type Err = hex::FromHexError;

    /// Reads 40 hex digits, with or without `0x`, in any case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 20];
        hex::decode_to_slice(without_0x(text.trim()), &mut bytes)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = hex::encode(self.0);
        let checksum = Keccak256::digest(digits.as_bytes());
        f.write_str("0x")?;
        for (i, digit) in digits.chars().enumerate() {
            let nibble = checksum[i / 2] >> (4 * (1 - i % 2)) & 0xf;
            let digit = if nibble >= 8 { digit.to_ascii_uppercase() } else { digit };
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Hex digits without the `0x` that may stand before them.
pub(super) fn without_0x(text: &str) -> &str {
    text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text)
}
