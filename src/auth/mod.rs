//! Who signed a request, and whether that signer may make it. Pure: no I/O, no clock.

mod address;
mod nonce;
mod policy;
#[cfg(test)]
mod properties;
mod signature;

pub use address::Address;
pub use nonce::{Nonce, NonceRefused, NonceUse};
pub use policy::{AccessError, Policy, Signer};
pub use signature::{Caller, Form, Operation, ProviderSignature, Signed, Unrecoverable, forms, recover};
