//! Variables of AWS: what Lambda sets, and what the AWS SDK reads.

use super::variables::{Reader, Section, Unset, Variable};

const AWS_LAMBDA_FUNCTION_NAME: Variable<Unset> = Variable {
    name: "AWS_LAMBDA_FUNCTION_NAME",
    default: Unset("none"),
    description: "Set by AWS Lambda. Changes the defaults of `POSTGRES_SSLMODE`, `POSTGRES_POOL_SIZE` and \
        `RESULT_STREAM_LIMIT`.",
};
const AWS_ENDPOINT_URL_S3: Variable<Unset> = Variable {
    name: "AWS_ENDPOINT_URL_S3",
    default: Unset("`AWS_ENDPOINT_URL`"),
    description: "The URL of an S3 that is not AWS's, for `OUTPUT_BUCKETS`.",
};
const AWS_ENDPOINT_URL: Variable<Unset> = Variable {
    name: "AWS_ENDPOINT_URL",
    default: Unset("AWS's own"),
    description: "The URL of services that are not AWS's.",
};
const AWS_REGION: Variable<Unset> = Variable {
    name: "AWS_REGION",
    default: Unset("the profile's"),
    description: "The region of S3, Secrets Manager, RDS and EKS. Read by the AWS SDK, as are the variables for \
        credentials, by its [usual rules](https://docs.aws.amazon.com/sdkref/latest/guide/standardized-credentials.html).",
};

pub(super) const SECTION: Section = Section {
    title: "AWS",
    variables: &[&AWS_REGION, &AWS_ENDPOINT_URL, &AWS_ENDPOINT_URL_S3, &AWS_LAMBDA_FUNCTION_NAME],
};

/// Returns whether this process is a Lambda function.
pub(super) fn is_lambda(reader: &Reader<'_>) -> bool {
    reader.text(&AWS_LAMBDA_FUNCTION_NAME).is_some()
}

/// The URL of S3; `None` for AWS's own.
pub(super) fn s3_endpoint(reader: &mut Reader<'_>) -> Option<url::Url> {
    let variable = [&AWS_ENDPOINT_URL_S3, &AWS_ENDPOINT_URL].into_iter().find(|name| reader.text(name).is_some())?;
    reader.optional(variable, "a URL")
}
