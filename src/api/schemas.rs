//! Schemas, in the OpenAPI document, of the types of `domain` and `auth`, which do not depend on it.

use serde_json::json;
use utoipa::openapi::Schema;
use utoipa::openapi::schema::{Object, ObjectBuilder, OneOfBuilder, Type};

use crate::auth::{Nonce, ProviderSignature};
use crate::domain::workflow::Seconds;
use crate::domain::{AgreementId, ChainId, Component, JobId, Namespace, Owner, ProviderAddress, Status};

/// Provider's signature of the owner and the nonce below, by the address below.
pub(super) const SIGNATURE_EXAMPLE: &str = "0x2e8b9ae9fd13b6830cb7db77635ca7ab0dac033abefb0d351058e0ccba9cdfcf\
                                            101e1a03edf8dc2e1b731c775bf2e5193ba653ca9767b7a5aee6d7e1dd6a53591b";

/// The most characters of a number that is sent as text.
const MAX_DIGITS: usize = 78;

/// A number of jobs: `limit` or `offset`.
pub(super) struct JobCount;

/// Gives types a schema, under their own name.
macro_rules! schema {
    ($($name:ty => $schema:expr;)*) => {
        $(
            impl utoipa::PartialSchema for $name {
                fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                    $schema.into()
                }
            }

            impl utoipa::ToSchema for $name {
                fn name() -> std::borrow::Cow<'static, str> {
                    stringify!($name).into()
                }
            }
        )*
    };
}
pub(super) use schema;

schema! {
    AgreementId => id("The agreement that a job serves.", "0x1111");
    JobId => id("A job's id: 32 hex digits without dashes.", "9f9178dcffd34130a3158ce9ca3d15ff");
    Owner => id("The account that a job belongs to.", "0xC41808BBef371AD5CFc76466dDF9dEe228d2BdAA");
    Namespace => id("A Kubernetes namespace, which is also an environment's id.", "ocean-compute");
    ProviderAddress => text("The address that a caller claims to sign with.", "0x19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A").build();
    Nonce => number_or_text(
        Type::Number,
        "A decimal number of nanoseconds, microseconds, milliseconds or seconds since the epoch.",
        r"^[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?$",
        "1695300414039237000",
    );
    ChainId => number_or_text(Type::Integer, "A chain's number.", "^[0-9]{1,78}$", "1");
    Seconds => number_or_text(Type::Number, "A number of seconds.", r"^[0-9]+(\.[0-9]+)?$", "3600");
    ProviderSignature => ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some("^(0[Xx])?[0-9A-Fa-f]{128}(00|01|1[BCbc])$"))
        .description(Some("65 bytes in hex."))
        .examples([json!(SIGNATURE_EXAMPLE)])
        .build();
    JobCount => number_or_text(Type::Integer, "A whole number.", "^[0-9]{1,18}$", "0");
    Status => ObjectBuilder::new()
        .schema_type(Type::Integer)
        .description(Some("The code of a job's state: 1, 10, 20, 30, 31, 32, 40, 41, 50, 60 or 70."))
        .examples([json!(70)])
        .build();
    Component => ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some("A step of a job."))
        .enum_values(Some(Component::ALL.map(Component::as_str)))
        .examples([json!("algorithm")])
        .build();
}

/// Text that a row can hold.
fn text(description: &str, example: &str) -> ObjectBuilder {
    let text = ObjectBuilder::new().schema_type(Type::String).max_length(Some(255)).pattern(Some("^[ -~]*$"));
    text.description(Some(description)).examples([json!(example)])
}

/// Text that a row can hold, and that does not count as absent.
fn id(description: &str, example: &str) -> Object {
    text(description, example).min_length(Some(2)).build()
}

/// A number that is not negative, which may also be sent as text.
pub(super) fn number_or_text(number: Type, description: &str, pattern: &str, example: &str) -> Schema {
    let number = ObjectBuilder::new().schema_type(number).minimum(Some(0));
    let text = ObjectBuilder::new().schema_type(Type::String).max_length(Some(MAX_DIGITS)).pattern(Some(pattern));
    // Not one schema with two types: Swagger UI takes a required parameter of two types for absent.
    OneOfBuilder::new().item(number).item(text).description(Some(description)).examples([json!(example)]).build().into()
}
