//! How columns become domain types. Statements name the type of such a column: `workflowid AS "job_id: JobId"`.

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgTypeInfo, PgValueRef};
use sqlx::{Decode, Encode, Postgres, Type};

use crate::domain::{AgreementId, JobId, Namespace, Owner, Status, StopRequest};

/// A domain type that is stored as `$repr`: made by `$from`, and read by `$to`.
macro_rules! column {
    ($name:ty, $repr:ty, $from:expr, $to:expr) => {
        impl Type<Postgres> for $name {
            fn type_info() -> PgTypeInfo {
                <$repr as Type<Postgres>>::type_info()
            }

            fn compatible(info: &PgTypeInfo) -> bool {
                <$repr as Type<Postgres>>::compatible(info)
            }
        }

        impl<'r> Decode<'r, Postgres> for $name {
            fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
                <$repr as Decode<'r, Postgres>>::decode(value).map($from)
            }
        }

        impl<'q> Encode<'q, Postgres> for $name {
            fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
                Encode::<Postgres>::encode_by_ref(&$to(self), buffer)
            }
        }
    };
}

column!(JobId, String, JobId::stored, JobId::as_str);
column!(AgreementId, String, AgreementId::stored, AgreementId::as_str);
column!(Owner, String, Owner::stored, Owner::as_str);
column!(Namespace, String, Namespace::stored, Namespace::as_str);
column!(Status, i32, Status::from_code, |status: &Status| status.code());
column!(StopRequest, i16, StopRequest::from_code, |request: &StopRequest| request.code());
