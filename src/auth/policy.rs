//! Who may make a signed request (docs/contract/http.md, "Signatures").

use std::time::Duration;

use super::{Address, Nonce, NonceUse, Signed, Unrecoverable, forms, recover};

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

impl Policy {
    /// Returns the signer of a request, if the policy allows it: one of the messages that the caller may have signed
    /// has to give an allowed signer.
    ///
    /// Without `signature_required`, the signer is the one that equals the request's provider address, else the one of
    /// the first form.
    ///
    /// # Errors
    /// If no form gives a signer, or none that is allowed.
    pub fn signer(&self, signed: &Signed<'_>, signature: &str) -> Result<Address, AccessError> {
        let forms = forms(signed, self.signature_strict);
        let mut signers = forms.iter().map(|form| Ok::<_, Unrecoverable>((form, recover(form, signature)?)));
        // If no form gives a signer, the first does not either.
        let first = signers.next().ok_or(Unrecoverable::NoKey)??;
        let mut candidates = std::iter::once(first).chain(signers.flatten()).map(|(_, address)| address);
        if self.signature_required {
            let allowed = candidates.find(|address| self.allowed_providers.contains(address));
            return allowed.ok_or_else(|| AccessError::NotAllowed {
                signature: signature.to_owned(),
                message: first.0.message.clone(),
                signer: first.1,
            });
        }
        let claimed = signed.provider_address.and_then(|address| address.as_str().parse().ok());
        Ok(candidates.find(|address| Some(*address) == claimed).unwrap_or(first.1))
    }

    /// A signer's use of a nonce, with this policy's window.
    pub fn nonce_use(&self, signer: Address, nonce: &Nonce) -> NonceUse {
        NonceUse { signer, nonce: nonce.clone(), window: self.nonce_window }
    }
}
