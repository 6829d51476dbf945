//! An Ethereum account, and how Provider signs with it.

use std::{fmt, io, path::Path};

use fake_engine::local;
use k256::ecdsa::{SigningKey, VerifyingKey};
use sha3::{Digest, Keccak256};

/// An account that signs. Its key does not print.
#[derive(Clone)]
pub struct Wallet {
    key: SigningKey,
    address: String,
}

impl fmt::Debug for Wallet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Wallet").field(&self.address).finish()
    }
}

impl Wallet {
    /// The account whose key is in that file, which is made (readable by its owner only) if it is missing.
    ///
    /// # Errors
    /// If the file can't be read or written, or holds no key.
    pub fn load(path: &Path) -> io::Result<Self> {
        let wrong = || {
            io::Error::new(io::ErrorKind::InvalidData, format!("{} holds no private key: remove it", path.display()))
        };
        let bytes = hex::decode(local::secret(path)?).map_err(|_| wrong())?;
        let key = SigningKey::from_slice(&bytes).map_err(|_| wrong())?;
        Ok(Self::new(key))
    }

    /// A new account.
    ///
    /// # Errors
    /// If the operating system has no random bytes to give.
    pub fn random() -> io::Result<Self> {
        // All but one in 2^128 values of 32 bytes are keys.
        let key = SigningKey::from_slice(&local::random::<32>()?).map_err(io::Error::other)?;
        Ok(Self::new(key))
    }

    fn new(key: SigningKey) -> Self {
        let address = address(key.verifying_key());
        Self { key, address }
    }

    /// The account's address, with the capitals of EIP-55.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Signs a message as Provider and Ocean Node do: the message's hash, in turn hashed with Ethereum's prefix.
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

fn address(key: &VerifyingKey) -> String {
    let point = key.to_sec1_point(false);
    let digits = hex::encode(&keccak256(&point.as_bytes()[1..])[12..]);
    let checksum = keccak256(digits.as_bytes());
    let mixed = digits.char_indices().map(|(i, digit)| {
        let nibble = checksum[i / 2] >> (4 * (1 - i % 2)) & 0xf;
        if nibble >= 8 { digit.to_ascii_uppercase() } else { digit }
    });
    format!("0x{}", mixed.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    // The first vector of the contract's signatures.json.
    #[test]
    fn signs_as_provider_does() {
        let key = hex::decode("1f990f8b013fc5c7955e0f8746f11ded231721b9cf3f99ff06cdc03492b28090").unwrap();
        let wallet = Wallet::new(SigningKey::from_slice(&key).unwrap());
        assert_eq!(wallet.address(), "0xe17D2A07EFD5b112F4d675ea2d122ddb145d117B");
        let signature = wallet.sign("0xC41808BBef371AD5CFc76466dDF9dEe228d2BdAA1692712345123456789");
        // v is 28 here, and 1 in the vector: both stand for the same.
        assert_eq!(
            signature,
            "0x1b6976b41436d47eb2bc40e8733ccee636da91012000c332cd8ab1593be59f61\
             32593bb4b248c299fe493ef81c34f82eb444aaae4fb7c1878cbc1c18cff5a9721c"
        );
    }
}
