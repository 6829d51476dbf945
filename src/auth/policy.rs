//! Who may make a signed request (docs/contract/http.md, "Signatures").

use std::time::Duration;

use super::{Address, Caller, Form, Nonce, NonceUse, ProviderSignature, Signed, Unrecoverable, forms, recover};

/// The rules by which signatures and nonces are accepted.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Whether a signer has to be one of `allowed_providers` (SIGNATURE_REQUIRED=1).
    pub signature_required: bool,
    /// Whether only Provider's form of signature is accepted (SIGNATURE_STRICT=1).
    pub signature_strict: bool,
    /// The signers that are allowed (ALLOWED_PROVIDERS).
    pub allowed_providers: Vec<Address>,
    /// How far a nonce may lie below its signer's highest, or ahead of the clock (NONCE_WINDOW).
    pub nonce_window: Duration,
}

/// Why a signed request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// No signer can be recovered from any of the messages.
    #[error(transparent)]
    Unrecoverable(#[from] Unrecoverable),
    /// The signer is not allowed. The text is the Python service's.
    #[error(
        "Invalid signature {signature} of documentId {message},the signing ethereum account {signer} is not authorized \
         to use this service."
    )]
    NotAllowed {
        /// The signature as it was sent.
        signature: String,
        /// The message of the most likely form.
        message: String,
        /// The signer of that message.
        signer: Address,
    },
}

/// The signer of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// The signer's address.
    pub address: Address,
    /// The program whose form of signature it is.
    pub caller: Caller,
}

impl Policy {
    /// Returns the signer of a request, if the policy allows it: one of the messages that the caller may have signed
    /// has to give an allowed signer.
    ///
    /// Without `signature_required`, the signer is the one that equals the request's provider address, else the one of
    /// the first form.
    ///
    /// # Errors
    /// If no form gives a signer, or none that is allowed.
    pub fn signer(&self, signed: &Signed<'_>, signature: &ProviderSignature) -> Result<Signer, AccessError> {
        let claimed: Option<Address> = signed.provider_address.and_then(|address| address.as_str().parse().ok());
        let is_expected = |address: Address| match self.signature_required {
            true => self.allowed_providers.contains(&address),
            false => claimed.is_none_or(|claimed| claimed == address),
        };
        // A recovery takes most of a request's time: the next form is tried only if this one does not fit.
        let mut first = None;
        for form in forms(signed, self.signature_strict) {
            let address = recover(&form, signature.as_str())?;
            if is_expected(address) {
                return Ok(Signer { address, caller: form.caller });
            }
            first = first.or(Some((address, form)));
        }
        // There is always a form.
        let (address, form) = first.ok_or(Unrecoverable::NoKey)?;
        if self.signature_required {
            let Form { message, .. } = form;
            return Err(AccessError::NotAllowed { signature: signature.as_str().to_owned(), message, signer: address });
        }
        Ok(Signer { address, caller: form.caller })
    }

    /// A request's use of a nonce, with this policy's window. `request` is the request's digest.
    pub fn nonce_use(&self, signer: &Signer, nonce: &Nonce, request: [u8; 32]) -> NonceUse {
        NonceUse {
            signer: signer.address,
            nonce: nonce.clone(),
            window: self.nonce_window,
            shared: signer.caller == Caller::OceanNode,
            request,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Operation, forms};
    use crate::domain::{Owner, ProviderAddress};

    /// Any 65 bytes from which an address can be recovered.
    const SIGNATURE: &str = "0x2e8b9ae9fd13b6830cb7db77635ca7ab0dac033abefb0d351058e0ccba9cdfcf\
                             101e1a03edf8dc2e1b731c775bf2e5193ba653ca9767b7a5aee6d7e1dd6a53591b";

    #[test]
    fn the_signer_is_the_one_that_is_allowed_or_claimed_or_the_first() {
        let (owner, nonce) = (Owner::stored("0xOwner"), Nonce::parse("1695300414039237000").unwrap());
        let signed = Signed {
            operation: Operation::Start,
            owner: Some(&owner),
            job_id: None,
            agreement_id: None,
            provider_address: None,
            nonce: Some(&nonce),
        };
        let signers: Vec<Signer> = forms(&signed, false)
            .iter()
            .map(|form| Signer { address: recover(form, SIGNATURE).unwrap(), caller: form.caller })
            .collect();
        let [first, second] = &signers[..] else { panic!("{signers:?}") };
        let policy = |signature_required, allowed: &[&Signer]| Policy {
            signature_required,
            signature_strict: false,
            allowed_providers: allowed.iter().map(|signer| signer.address).collect(),
            nonce_window: Duration::from_secs(300),
        };
        let signature = ProviderSignature::sent(SIGNATURE);

        for allowed in [first, second] {
            assert_eq!(policy(true, &[allowed]).signer(&signed, &signature).as_ref(), Ok(allowed));
            let claimed = ProviderAddress::stored(allowed.address.to_string());
            let signed = Signed { provider_address: Some(&claimed), ..signed };
            assert_eq!(policy(false, &[]).signer(&signed, &signature).as_ref(), Ok(allowed));
            let shared = policy(true, &[]).nonce_use(allowed, &nonce, [1; 32]).shared;
            assert_eq!(shared, allowed.caller == Caller::OceanNode);
        }
        assert_eq!(policy(false, &[]).signer(&signed, &signature).as_ref(), Ok(first));
        assert_eq!(format!("{signature:?} {:?}", first.address), format!("ProviderSignature {}", first.address));
        let refused = policy(true, &[]).signer(&signed, &signature);
        assert!(
            matches!(refused, Err(AccessError::NotAllowed { signer, .. }) if signer == first.address),
            "{refused:?}"
        );
    }
}
