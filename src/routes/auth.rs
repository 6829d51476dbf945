//! Who may make a signed request (contract: `http.md`, "Signatures").

use axum::http::StatusCode;

use crate::config::Access;
use crate::error::ApiError;
use crate::job::nonce::Nonce;
use crate::signature::{self, Address, Signed, Unrecoverable};
use crate::store::NonceUse;

/// Finds who signed a request, and lets in whom the configuration allows.
pub fn signer(access: &Access, signed: &Signed<'_>, signature: &str) -> Result<Address, ApiError> {
    let forms = signature::forms(signed, access.signature_strict);
    let mut signers = forms.iter().filter_map(|form| Some((form, signature::recover(form, signature).ok()?)));
    // If no form gives a signer, the first does not either.
    let Some(first) = signers.next() else {
        return Err(ApiError::bad_request(Unrecoverable.to_string()));
    };
    let candidates = std::iter::once(first).chain(signers).map(|(_, address)| address);
    if access.signature_required {
        return candidates.into_iter().find(|address| access.allowed_providers.contains(address)).ok_or_else(|| {
            let (form, address) = first;
            let message = format!(
                "Invalid signature {signature} of documentId {},the signing ethereum account {address} is not \
                 authorized to use this service.",
                form.message
            );
            ApiError::new(StatusCode::UNAUTHORIZED, message)
        });
    }
    let claimed = signed.provider_address.and_then(Address::parse);
    Ok(candidates.into_iter().find(|address| Some(*address) == claimed).unwrap_or(first.1))
}

/// The use of a request's nonce.
pub fn nonce_use(access: &Access, signer: Address, nonce: &Nonce) -> NonceUse {
    NonceUse { signer, nonce: nonce.clone(), window: access.nonce_window }
}

/// A required parameter's absence.
pub fn required(name: &str, call: &str) -> ApiError {
    ApiError::bad_request(format!("\"{name}\" is required in the call to {call}"))
}
