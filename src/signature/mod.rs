//! Who signed a request. Pure: no I/O, no clock.
//!
//! Each caller signs another message in another way (contract: `clients.md`, "The callers"); [`forms`]
//! lists what the caller of a request may have signed, [`recover`] tells who did.

use std::fmt;

use k256::ecdsa::{RecoveryId, Signature as EcdsaSignature, VerifyingKey};
use sha3::{Digest, Keccak256};

/// An Ethereum address. Compares by value; prints with the checksum of EIP-55.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address([u8; 20]);

impl Address {
    /// Reads 40 hex digits, with or without `0x`, in any case.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 20];
        hex::decode_to_slice(without_0x(text), &mut bytes).ok()?;
        Some(Self(bytes))
    }

    /// The form in which the books keep an address: `0x` and lower-case digits, as the old service did.
    pub fn to_lowercase(self) -> String {
        format!("0x{}", hex::encode(self.0))
    }

    fn of(key: &VerifyingKey) -> Self {
        let point = key.to_sec1_point(false);
        let hash = Keccak256::digest(&point.as_bytes()[1..]);
        let mut bytes = [0; 20];
        bytes.copy_from_slice(&hash[12..]);
        Self(bytes)
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

/// The signature is not 65 bytes of hex, or no key could have made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Failed to recover address")]
pub struct Unrecoverable;

/// What a request asks for, as far as its signature is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// POST /compute
    Start,
    /// PUT and DELETE /compute
    Change,
    /// GET /getResult
    Result,
}

/// The parts of a request that callers sign.
#[derive(Debug, Clone, Copy)]
pub struct Signed<'a> {
    /// What is asked for.
    pub operation: Operation,
    /// The job's owner.
    pub owner: &'a str,
    /// The job, if one is named.
    pub job_id: Option<&'a str>,
    /// The agreement, if one is named.
    pub agreement_id: Option<&'a str>,
    /// The signer by its own account.
    pub provider_address: Option<&'a str>,
    /// The nonce as it was written; `None` marks the request as Brizo's.
    pub nonce: Option<&'a str>,
}

/// How a message becomes the 32 bytes that are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hashing {
    /// keccak(prefix, "32", keccak(M))
    Hashed,
    /// As [`Hashing::Hashed`], but leading zero bytes of keccak(M) dropped and the rest's length in place of 32.
    HashedTrimmed,
    /// keccak(prefix, len(M), M)
    Personal,
}

/// A message that a caller may have signed, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    /// The message, before hashing.
    pub message: String,
    /// How it is hashed.
    pub hashing: Hashing,
}

/// What the caller of a request may have signed, the most likely first; never empty.
///
/// Provider's form binds owner, job and nonce. Ocean Node's bind less, Brizo's has no nonce: with `strict`
/// only Provider's is left (`SIGNATURE_STRICT`).
pub fn forms(signed: &Signed<'_>, strict: bool) -> Vec<Form> {
    let Signed { operation, owner, job_id, agreement_id, provider_address, nonce } = *signed;
    let job = job_id.unwrap_or_default();
    let Some(nonce) = nonce else {
        let job = if operation == Operation::Start { "" } else { job };
        let message = [provider_address.unwrap_or_default(), job, agreement_id.unwrap_or_default()].concat();
        return vec![Form { message, hashing: Hashing::Personal }];
    };

    let (provider, ocean_node) = match operation {
        Operation::Start => ([owner, nonce].concat(), nonce.to_owned()),
        Operation::Change => ([owner, job, nonce].concat(), nonce.to_owned()),
        Operation::Result => ([owner, job, nonce].concat(), [owner, job].concat()),
    };
    let mut forms = vec![Form { message: provider, hashing: Hashing::Hashed }];
    if !strict {
        forms.push(Form { message: ocean_node, hashing: Hashing::HashedTrimmed });
    }
    forms
}

/// The address whose key signed the form's message.
pub fn recover(form: &Form, signature: &str) -> Result<Address, Unrecoverable> {
    let mut bytes = [0; 65];
    hex::decode_to_slice(without_0x(signature), &mut bytes).map_err(|_| Unrecoverable)?;
    let recovery_id = match bytes[64] {
        v @ (0 | 1) => v,
        v @ (27 | 28) => v - 27,
        _ => return Err(Unrecoverable),
    };
    let recovery_id = RecoveryId::from_byte(recovery_id).ok_or(Unrecoverable)?;
    let signature = EcdsaSignature::from_slice(&bytes[..64]).map_err(|_| Unrecoverable)?;
    VerifyingKey::recover_from_prehash(&digest(form), &signature, recovery_id)
        .map(|key| Address::of(&key))
        .map_err(|_| Unrecoverable)
}

/// The 32 bytes that secp256k1 signs for a form.
fn digest(form: &Form) -> [u8; 32] {
    let hash = Keccak256::digest(form.message.as_bytes());
    let signed: &[u8] = match form.hashing {
        Hashing::Personal => form.message.as_bytes(),
        Hashing::Hashed => &hash,
        Hashing::HashedTrimmed => {
            let zeros = hash.iter().take_while(|byte| **byte == 0).count();
            &hash[zeros..]
        }
    };
    let mut keccak = Keccak256::new();
    keccak.update("\x19Ethereum Signed Message:\n");
    keccak.update(signed.len().to_string());
    keccak.update(signed);
    keccak.finalize().into()
}

fn without_0x(text: &str) -> &str {
    text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text)
}
