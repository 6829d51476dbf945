//! What holds of every nonce, address and signature.

use k256::ecdsa::SigningKey;
use proptest::prelude::*;

use super::*;
use crate::domain::{JobId, Owner};

fn form() -> impl Strategy<Value = Form> {
    let caller = prop_oneof![Just(Caller::Provider), Just(Caller::OceanNode), Just(Caller::Brizo)];
    (caller, "[ -~]{0,80}").prop_map(|(caller, message)| Form { caller, message })
}

fn key() -> impl Strategy<Value = SigningKey> {
    any::<[u8; 32]>().prop_filter_map("not a key", |bytes| SigningKey::from_slice(&bytes).ok())
}

/// The 65 bytes of a signature.
fn sign(key: &SigningKey, form: &Form) -> Vec<u8> {
    let (signature, id) = key.sign_prehash_recoverable(&signature::digest(form));
    [signature.to_bytes().as_slice(), &[id.to_byte()]].concat()
}

proptest! {
    #[test]
    fn the_signer_is_recovered_in_every_spelling(key in key(), form in form()) {
        let bytes = sign(&key, &form);
        let signer = Address::of(key.verifying_key());
        let mut other_v = bytes.clone();
        other_v[64] += 27;
        for spelling in [
            hex::encode(&bytes),
            format!("0x{}", hex::encode(&bytes)),
            format!("0X{}", hex::encode_upper(&bytes)),
            hex::encode(&other_v),
        ] {
            prop_assert_eq!(recover(&form, &spelling), Ok(signer));
        }
    }

    #[test]
    fn a_signature_with_a_changed_byte_has_another_signer(
        key in key(), form in form(), at in 0..64_usize, change in 1..=255_u8,
    ) {
        let mut bytes = sign(&key, &form);
        bytes[at] ^= change;
        prop_assert_ne!(recover(&form, &hex::encode(bytes)), Ok(Address::of(key.verifying_key())));
    }

    #[test]
    fn a_changed_message_has_another_signer(key in key(), form in form(), more in "[ -~]{1,8}") {
        let signature = hex::encode(sign(&key, &form));
        let changed = Form { message: format!("{}{more}", form.message), ..form };
        prop_assert_ne!(recover(&changed, &signature), Ok(Address::of(key.verifying_key())));
    }

    #[test]
    fn any_text_is_a_signature_or_is_refused(form in form(), text in prop_oneof![any::<String>(), "(0x)?[0-9a-f]{130}"]) {
        let digits = address::without_0x(&text);
        let well_formed = digits.len() == 130 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        prop_assert!(well_formed || recover(&form, &text).is_err());
    }

    #[test]
    fn an_address_is_read_back_in_every_case(key in key()) {
        let address = Address::of(key.verifying_key());
        for text in [address.to_string(), address.to_lowercase(), address.to_lowercase().to_uppercase()] {
            prop_assert_eq!(text.parse(), Ok(address));
        }
    }

    #[test]
    fn a_nonce_keeps_its_text_and_is_a_number(text in prop_oneof![any::<String>(), "[0-9.eE+-]{0,70}"]) {
        if let Some(nonce) = Nonce::parse(&text) {
            prop_assert_eq!(nonce.as_str(), text.as_str());
            let number: f64 = text.parse().unwrap();
            prop_assert!(number >= 0.0 && text.len() <= 64);
        }
    }

    #[test]
    fn every_decimal_number_is_a_nonce(text in "[0-9]{1,30}(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?") {
        prop_assert!(Nonce::parse(&text).is_some(), "{}", text);
    }

    #[test]
    fn every_message_contains_the_nonce_but_that_of_a_result(owner in "[!-~]{2,42}", job in "[0-9a-f]{32}", nonce in "[0-9]{13,19}") {
        let (owner, job_id) = (Owner::parse(&owner).unwrap(), JobId::parse(&job).unwrap());
        let nonce = Nonce::parse(&nonce).unwrap();
        for operation in [Operation::Start, Operation::Status, Operation::Change, Operation::Result] {
            let signed = Signed {
                operation,
                owner: Some(&owner),
                job_id: Some(&job_id),
                agreement_id: None,
                provider_address: None,
                nonce: Some(&nonce),
            };
            for form in forms(&signed, false) {
                let unbound = operation == Operation::Result && form.caller == Caller::OceanNode;
                prop_assert!(unbound || form.message.contains(nonce.as_str()), "{:?}", form);
            }
            // The strict policy leaves Provider's form alone, which always binds the nonce.
            let strict = forms(&signed, true);
            prop_assert_eq!(strict.len(), 1);
            prop_assert!(strict[0].message.ends_with(nonce.as_str()));
        }
    }
}
