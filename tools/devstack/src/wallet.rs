//! An Ethereum account, and how Provider signs with it.

use std::path::Path;

use anyhow::Context;
use k256::ecdsa::SigningKey;
use sha3::{Digest, Keccak256};

use crate::local;

/// An account that signs.
#[derive(Clone)]
pub struct Wallet {
    key: SigningKey,
    address: String,
}

impl Wallet {
    /// The account whose key is in that file, which is created (readable by its owner only) if it is missing.
    ///
    /// # Errors
    /// If the file cannot be read or written, or holds no key.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let key = hex::decode(local::secret(path)?).ok().and_then(|bytes| SigningKey::from_slice(&bytes).ok());
        Ok(Self::new(key.with_context(|| format!("{} holds no private key: remove it", path.display()))?))
    }

    /// A new account.
    ///
    /// # Errors
    /// If the operating system has no random bytes.
    pub fn random() -> anyhow::Result<Self> {
        // All but one in 2^128 values of 32 bytes are keys.
        Ok(Self::new(SigningKey::from_slice(&local::random()?)?))
    }

    fn new(key: SigningKey) -> Self {
        let point = key.verifying_key().to_sec1_point(false);
        let digits = hex::encode(&keccak256(&point.as_bytes()[1..])[12..]);
        // EIP-55: a letter is a capital where the hash of the digits has a nibble of 8 or more.
        let hash = hex::encode(keccak256(digits.as_bytes()));
        let digits = digits.chars().zip(hash.chars());
        let digits = digits.map(|(digit, nibble)| if nibble >= '8' { digit.to_ascii_uppercase() } else { digit });
        Self { address: format!("0x{}", digits.collect::<String>()), key }
    }

    /// The account's address, with the capitals of EIP-55.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Signs a message as Provider does: the message's hash, in turn hashed with Ethereum's prefix.
    #[must_use]
    pub fn sign(&self, message: &str) -> String {
        let mut prefixed = b"\x19Ethereum Signed Message:\n32".to_vec();
        prefixed.extend(keccak256(message.as_bytes()));
        let (signature, recovery) = self.key.sign_prehash_recoverable(&keccak256(&prefixed));
        format!("0x{}{:02x}", hex::encode(signature.to_bytes()), recovery.to_byte() + 27)
    }
}

/// Ethereum's hash.
#[must_use]
pub fn keccak256(bytes: &[u8]) -> [u8; 32] {
    Keccak256::digest(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    // The first vector of the contract's signatures.json, whose v of 1 is 28 here: both mean the same.
    #[test]
    fn signs_as_provider_does() {
        let key = hex::decode("1f990f8b013fc5c7955e0f8746f11ded231721b9cf3f99ff06cdc03492b28090").unwrap();
        let wallet = Wallet::new(SigningKey::from_slice(&key).unwrap());
        assert_eq!(wallet.address(), "0xe17D2A07EFD5b112F4d675ea2d122ddb145d117B");
        assert_eq!(
            wallet.sign("0xC41808BBef371AD5CFc76466dDF9dEe228d2BdAA1692712345123456789"),
            "0x1b6976b41436d47eb2bc40e8733ccee636da91012000c332cd8ab1593be59f61\
             32593bb4b248c299fe493ef81c34f82eb444aaae4fb7c1878cbc1c18cff5a9721c"
        );
    }
}
