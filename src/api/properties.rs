//! What holds of the parameters of every request.

use axum::body::{Body, to_bytes};
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use proptest::prelude::*;
use serde_json::{Map, Value};
use url::form_urlencoded::Serializer;

use super::error::ApiError;
use super::input::{FromParams, Input, Params};
use crate::domain::{AgreementId, JobId, Owner};

/// All kinds of parameters.
#[derive(Debug, PartialEq)]
struct Everything {
    agreement_id: Option<AgreementId>,
    job_id: Option<JobId>,
    owner: Option<Owner>,
    nonce: Option<String>,
    chain: Option<String>,
    limit: Option<i64>,
}

const NAMES: [&str; 6] = ["agreementId", "jobId", "owner", "nonce", "chainId", "limit"];

impl<S> FromParams<S> for Everything {
    const CALL: &'static str = "GET:/everything";

    fn read(params: &Params, _: &S) -> Result<Self, ApiError> {
        Ok(Self {
            agreement_id: params.id("agreementId")?,
            job_id: params.id("jobId")?,
            owner: params.id_of_any_length("owner")?,
            nonce: params.nonce("nonce")?.map(|nonce| nonce.to_string()),
            chain: params.chain_id()?.map(|chain| chain.as_str().to_owned()),
            limit: params.count("limit")?,
        })
    }
}

/// What is read, or the status and the text of the error.
fn read(uri: &str, body: Vec<u8>) -> Result<Everything, (StatusCode, String)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let request = Request::builder().uri(uri).body(Body::from(body)).unwrap();
        match Input::<Everything>::from_request(request, &()).await {
            Ok(Input(everything)) => Ok(everything),
            Err(error) => {
                let response = error.into_response();
                let status = response.status();
                let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
                Err((status, String::from_utf8(body.to_vec()).unwrap()))
            }
        }
    })
}

fn parameters() -> impl Strategy<Value = Map<String, Value>> {
    let value = prop_oneof![
        any::<String>(),
        "[ -~]{0,40}",
        "[0-9.eE+-]{0,20}",
        "[0-9]{1,19}",
        "[0-9]{70,80}",
        "[a-z]{250,260}",
    ];
    let parameter = (prop::sample::select(&NAMES[..]), value);
    prop::collection::vec(parameter, 1..6)
        .prop_map(|list| list.into_iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect())
}

proptest! {
    #[test]
    fn the_query_string_and_the_body_are_read_alike(parameters in parameters()) {
        let pairs = parameters.iter().map(|(name, value)| (name, value.as_str().unwrap()));
        let query = Serializer::new(String::new()).extend_pairs(pairs).finish();
        let body = Value::Object(parameters.clone()).to_string();
        prop_assert_eq!(read(&format!("/?{query}"), Vec::new()), read("/", body.into_bytes()));
    }

    #[test]
    fn a_number_and_its_text_are_read_alike(number in any::<u64>(), name in prop::sample::select(&NAMES[3..])) {
        let as_number = read("/", format!("{{\"{name}\":{number}}}").into_bytes());
        let as_text = read("/", format!("{{\"{name}\":\"{number}\"}}").into_bytes());
        prop_assert_eq!(as_number, as_text);
    }

    #[test]
    fn any_body_is_read_or_is_a_400(body in prop_oneof![
        prop::collection::vec(any::<u8>(), 0..60),
        "[{}\\[\\]\":,0-9a-z\\\\ ]{0,40}".prop_map(String::into_bytes),
        any::<String>().prop_map(|text| format!("{{\"owner\":\"{text}\"}}").into_bytes()),
    ]) {
        if let Err((status, _)) = read("/", body) {
            prop_assert_eq!(status, StatusCode::BAD_REQUEST);
        }
    }

    #[test]
    fn any_query_string_is_read_or_is_a_400(query in "[!$-;=?-Z_a-z~%&+]{1,60}") {
        if let Err((status, _)) = read(&format!("/?{query}"), Vec::new()) {
            prop_assert_eq!(status, StatusCode::BAD_REQUEST);
        }
    }
}
