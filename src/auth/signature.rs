//! Signatures. Each caller signs another message in another way (docs/contract/callers.md, "What is signed"): [`forms`]
//! lists what the caller of a request may have signed, [`recover`] returns whose key signed it.

use k256::ecdsa::{RecoveryId, Signature as EcdsaSignature, VerifyingKey};
use sha3::{Digest, Keccak256};

use super::Address;
use super::address::without_0x;

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
