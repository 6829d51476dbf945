//! How columns become domain types. Statements name the type of such a column: `workflowid AS "job_id: JobId"`.

use crate::domain::{AgreementId, JobId, Namespace, Owner, Status, StopRequest};

/// A type that is stored as `$repr`: made by `$from`, and read by `$to`.
macro_rules! column {
    ($name:ty, $repr:ty, $from:expr, $to:expr) => {
        impl sqlx::Type<sqlx::Postgres> for $name {
            fn type_info() -> sqlx::postgres::PgTypeInfo {
                <$repr as sqlx::Type<sqlx::Postgres>>::type_info()
            }

            fn compatible(info: &sqlx::postgres::PgTypeInfo) -> bool {
                <$repr as sqlx::Type<sqlx::Postgres>>::compatible(info)
            }
        }

        impl<'r> sqlx::Decode<'r, sqlx::Postgres> for $name {
            fn decode(value: sqlx::postgres::PgValueRef<'r>) -> Result<Self, sqlx::error::BoxDynError> {
                <$repr as sqlx::Decode<'r, sqlx::Postgres>>::decode(value).map($from)
            }
        }

        impl<'q> sqlx::Encode<'q, sqlx::Postgres> for $name {
            fn encode_by_ref(
                &self,
                buffer: &mut sqlx::postgres::PgArgumentBuffer,
            ) -> Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
                sqlx::Encode::<sqlx::Postgres>::encode_by_ref(&$to(self), buffer)
            }
        }
    };
}

pub(crate) use column;

column!(JobId, String, JobId::stored, JobId::as_str);
column!(AgreementId, String, AgreementId::stored, AgreementId::as_str);
column!(Owner, String, Owner::stored, Owner::as_str);
column!(Namespace, String, Namespace::stored, Namespace::as_str);
column!(Status, i32, Status::from_code, |status: &Status| status.code());
column!(StopRequest, i16, StopRequest::from_code, |request: &StopRequest| request.code());
