//! Signatures. Each caller signs a different message in a different way (docs/contract/callers.md, "What is signed"):
//! [`forms`] lists what the caller of a request may have signed, [`recover`] returns whose key signed it.

use std::fmt;

use k256::ecdsa::{RecoveryId, Signature as EcdsaSignature, VerifyingKey};
use sha3::{Digest, Keccak256};

use super::address::without_0x;
use super::{Address, Nonce};
use crate::domain::{AgreementId, JobId, Owner, ProviderAddress};

/// Why no signer can be recovered from a signature. The beginning of the text is the Python service's; the signature
/// itself is not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unrecoverable {
    /// It has this number of characters, without `0x`.
    #[error("Failed to recover address: the signature must have 130 hex digits (65 bytes), and has {0} characters")]
    Length(usize),
    /// It has other characters.
    #[error("Failed to recover address: the signature must be hex, and has other characters")]
    NotHex,
    /// This is its last byte.
    #[error("Failed to recover address: v, the last byte of the signature, must be 0, 1, 27 or 28, and is {0}")]
    RecoveryId(u8),
    /// r or s is out of range, or r is not the coordinate of a point.
    #[error("Failed to recover address: no key can have made this signature")]
    NoKey,
}

/// The kind of a request, as far as its signature depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// POST /compute
    Start,
    /// GET /compute
    Status,
    /// PUT and DELETE /compute
    Change,
    /// GET /getResult
    Result,
}

/// The parts of a request that callers sign.
#[derive(Debug, Clone, Copy)]
pub struct Signed<'a> {
    /// The kind of the request.
    pub operation: Operation,
    /// The jobs' owner, if one is named.
    pub owner: Option<&'a Owner>,
    /// The job, if one is named.
    pub job_id: Option<&'a JobId>,
    /// The agreement, if one is named.
    pub agreement_id: Option<&'a AgreementId>,
    /// The address that the caller claims to sign with.
    pub provider_address: Option<&'a ProviderAddress>,
    /// The nonce; `None` marks the request as Brizo's (docs/contract/callers.md, "How Brizo is recognized").
    pub nonce: Option<&'a Nonce>,
}

/// The program that signs a form, which decides how the message becomes the 32 bytes that are signed. With prefix =
/// `"\x19Ethereum Signed Message:\n"`:
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// keccak(prefix, "32", keccak(M))
    Provider,
    /// As [`Caller::Provider`], without the leading zero bytes of keccak(M), and with the length of the rest in place of
    /// 32.
    OceanNode,
    /// keccak(prefix, len(M), M)
    Brizo,
}

/// A message that a caller may have signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    /// Who signs it.
    pub caller: Caller,
    /// The message, before hashing.
    pub message: String,
}

/// The messages that the caller of a request may have signed, the most likely first; never empty.
///
/// With `strict` (SIGNATURE_STRICT=1), only Provider's message is left for requests with a nonce
/// (docs/contract/callers.md, "Replay").
pub fn forms(signed: &Signed<'_>, strict: bool) -> Vec<Form> {
    let Signed { operation, owner, job_id, agreement_id, provider_address, nonce } = *signed;
    let owner = owner.map(Owner::as_str);
    let job = job_id.map(JobId::as_str);
    let Some(nonce) = nonce.map(Nonce::as_str) else {
        let job = job.filter(|_| operation != Operation::Start).unwrap_or_default();
        let address = provider_address.map(ProviderAddress::as_str).unwrap_or_default();
        let message = [address, job, agreement_id.map(AgreementId::as_str).unwrap_or_default()].concat();
        return vec![Form { caller: Caller::Brizo, message }];
    };

    let all = [owner.unwrap_or_default(), job.unwrap_or_default(), nonce].concat();
    let (provider, ocean_node) = match operation {
        Operation::Start => ([owner.unwrap_or_default(), nonce].concat(), nonce.to_owned()),
        Operation::Change => (all, nonce.to_owned()),
        Operation::Result => (all, [owner.unwrap_or_default(), job.unwrap_or_default()].concat()),
        // JavaScript's `nonce + owner + jobId`: a number and null are added, text and null are joined.
        Operation::Status => match owner {
            Some(owner) => (all, [nonce, owner, job.unwrap_or("null")].concat()),
            None => (all, [nonce, job.unwrap_or_default()].concat()),
        },
    };
    let mut forms = vec![Form { caller: Caller::Provider, message: provider }];
    if !strict {
        forms.push(Form { caller: Caller::OceanNode, message: ocean_node });
    }
    forms
}

/// A signature as a caller sent it. Not shown: whoever has it before its nonce is used can use it.
#[derive(Clone)]
pub struct ProviderSignature(String);

impl ProviderSignature {
    /// Takes what a caller sent, which may be any text.
    pub fn sent(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ProviderSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProviderSignature")
    }
}

/// Recovers the address whose key signed the form's message.
///
/// # Errors
/// If the signature is not 65 bytes of hex, or no key could have made it. Which of these does not depend on the form.
pub fn recover(form: &Form, signature: &str) -> Result<Address, Unrecoverable> {
    let mut bytes = [0; 65];
    let digits = without_0x(signature);
    let length = digits.chars().count();
    if length != 2 * bytes.len() {
        return Err(Unrecoverable::Length(length));
    }
    hex::decode_to_slice(digits, &mut bytes).map_err(|_| Unrecoverable::NotHex)?;
    let recovery_id = match bytes[64] {
        v @ (0 | 1) => v,
        v @ (27 | 28) => v - 27,
        v => return Err(Unrecoverable::RecoveryId(v)),
    };
    let recovery_id = RecoveryId::from_byte(recovery_id).ok_or(Unrecoverable::RecoveryId(bytes[64]))?;
    let signature = EcdsaSignature::from_slice(&bytes[..64]).map_err(|_| Unrecoverable::NoKey)?;
    VerifyingKey::recover_from_prehash(&digest(form), &signature, recovery_id)
        .map(|key| Address::of(&key))
        .map_err(|_| Unrecoverable::NoKey)
}

/// The 32 bytes that secp256k1 signs for a form.
pub(super) fn digest(form: &Form) -> [u8; 32] {
    let hash = Keccak256::digest(form.message.as_bytes());
    let signed: &[u8] = match form.caller {
        Caller::Brizo => form.message.as_bytes(),
        Caller::Provider => &hash,
        Caller::OceanNode => {
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

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// The forms of a vector's request.
    fn forms_of(vector: &Value, strict: bool) -> Vec<Form> {
        let parameter = |name: &str| match &vector["params"][name] {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            number => Some(number.to_string()),
        };
        let operation = match vector["operation"].as_str().unwrap() {
            "POST /compute" => Operation::Start,
            "GET /compute" => Operation::Status,
            "PUT /compute" => Operation::Change,
            _ => Operation::Result,
        };
        let (owner, job_id) = (parameter("owner").map(Owner::stored), parameter("jobId").map(JobId::stored));
        let agreement_id = parameter("agreementId").map(AgreementId::stored);
        let provider_address = parameter("providerAddress").map(ProviderAddress::stored);
        let nonce = parameter("nonce").map(|nonce| Nonce::parse(&nonce).unwrap());
        let signed = Signed {
            operation,
            owner: owner.as_ref(),
            job_id: job_id.as_ref(),
            agreement_id: agreement_id.as_ref(),
            provider_address: provider_address.as_ref(),
            nonce: nonce.as_ref(),
        };
        forms(&signed, strict)
    }

    #[test]
    fn the_vectors_are_what_their_caller_signed() {
        let vectors: Value = serde_json::from_str(include_str!("../../tests/signatures.json")).unwrap();
        for vector in vectors["accept"].as_array().unwrap() {
            let caller = match vector["client"].as_str().unwrap() {
                "provider" => Caller::Provider,
                "ocean-node" => Caller::OceanNode,
                _ => Caller::Brizo,
            };
            let form = Form { caller, message: vector["message"].as_str().unwrap().to_owned() };
            assert!(forms_of(vector, false).contains(&form), "{vector}");
            assert_eq!(forms_of(vector, true).contains(&form), caller != Caller::OceanNode, "{vector}");
            assert_eq!(vector["digest"], format!("0x{}", hex::encode(digest(&form))));
            let signer = recover(&form, vector["providerSignature"].as_str().unwrap()).unwrap();
            assert_eq!(signer.to_string(), vector["address"]);
        }
        let form = Form { caller: Caller::Provider, message: String::new() };
        let reasons = vectors["reject"]
            .as_array()
            .unwrap()
            .iter()
            .map(|vector| recover(&form, vector["providerSignature"].as_str().unwrap()).unwrap_err());
        let (length, no_key) = (Unrecoverable::Length, Unrecoverable::NoKey);
        let expected = [
            length(0),
            Unrecoverable::NotHex,
            length(128),
            length(132),
            Unrecoverable::RecoveryId(0x1d),
            no_key,
            no_key,
            length(129),
        ];
        assert_eq!(reasons.collect::<Vec<_>>(), expected);
    }
}
