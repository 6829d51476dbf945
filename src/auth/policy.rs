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
