//! Results in buckets, and results that are too large for one answer.

use axum::http::header::{ACCEPT_RANGES, RANGE};
use axum::http::{HeaderMap, StatusCode};
use devstack::wallet::Wallet;
use reqwest::Response;
use serde_json::json;

use crate::moto::Moto;
use crate::process::{Env, Service};
use crate::support::{Call, Stored, TestDatabase, client, nonce};

/// Requests a result as Provider does, for any signer.
async fn ask(service: &Service, job: &Stored, range: Option<&str>) -> Response {
    let (wallet, nonce) = (Wallet::random().unwrap(), nonce());
    let owner = job.owner.clone().unwrap();
    let signature = wallet.sign(&format!("{owner}{}{nonce}", job.job_id));
    let call = Call::get("getResult").with("index", "0").with("owner", owner).with("jobId", job.job_id.clone());
    let call = call.with("providerSignature", signature).with("nonce", nonce.to_string());
    let mut request = call.request(&client(), &service.url(""));
    if let Some(range) = range {
        request = request.header(RANGE, range);
    }
    request.send().await.unwrap()
}

async fn job(database: &TestDatabase, url: &str) -> Stored {
    let outputs = json!([{ "filename": "out.txt", "filesize": 5, "type": "output", "url": url }]).to_string();
    Stored { outputs: Some(outputs), signer_verified: false, ..Stored::finished() }.insert(database).await
}

#[tokio::test]
async fn objects_are_read_with_own_credentials_and_large_ones_are_redirects_to_s3() {
    let Some(moto) = Moto::start().await else { return };
    let database = TestDatabase::migrated().await;
    moto.object("outputs", "jobs/a b/out.txt", b"0123456789").await;
    let env = moto.and(Env::of(database.variables())).with("OUTPUT_BUCKETS", "outputs");

    // As the engine stores it: the object's unsigned URL at AWS.
    let job = job(&database, "https://outputs.s3.eu-west-1.amazonaws.com/jobs/a%20b/out.txt").await;
    let service = Service::start(&env).await;
    let answer = ask(&service, &job, None).await;
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    assert_eq!(answer.headers()["content-disposition"], "attachment;filename=out.txt");
    assert_eq!(answer.text().await.unwrap(), "0123456789");
    let answer = ask(&service, &job, Some("bytes=2-4")).await;
    assert_eq!((answer.status(), answer.text().await.unwrap().as_str()), (StatusCode::PARTIAL_CONTENT, "234"));

    let service = Service::start(&env.with("RESULT_STREAM_LIMIT", "9")).await;
    let answer = ask(&service, &job, None).await;
    assert_eq!(answer.status(), 302, "{}", answer.text().await.unwrap());
    assert_eq!(answer.headers()["cache-control"], "no-store");
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    assert!(location.contains("X-Amz-Expires=300") && location.contains("X-Amz-Signature="), "{location}");
    let answer = client().get(&location).send().await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "0123456789");
    // S3 sends this header; moto does not.
    assert!(location.contains("?response-content-disposition=attachment%3Bfilename%3Dout.txt&"), "{location}");
    assert!(!service.process.output().contains("X-Amz-Signature"));
    // A part that is within the limit is sent.
    assert_eq!(ask(&service, &job, Some("bytes=0-8")).await.text().await.unwrap(), "012345678");
}

#[tokio::test]
async fn a_large_file_outside_the_buckets_is_refused_before_a_byte_is_sent() {
    let database = TestDatabase::migrated().await;
    let router = axum::Router::new().route(
        "/out.bin",
        axum::routing::get(async |headers: HeaderMap| match headers.contains_key(RANGE) {
            true => (StatusCode::PARTIAL_CONTENT, [(ACCEPT_RANGES, "bytes")], vec![1; 10]),
            false => (StatusCode::OK, [(ACCEPT_RANGES, "bytes")], vec![1; 1001]),
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/out.bin", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });

    let job = job(&database, &url).await;
    let env = Env::of(database.variables()).with("RESULT_HOSTS_ALLOWED", "127.0.0.1");
    let limited = Service::start(&env.clone().with("RESULT_STREAM_LIMIT", "1000")).await;
    let answer = ask(&limited, &job, None).await;
    assert_eq!(answer.status(), 413);
    let text = answer.text().await.unwrap();
    assert!(text.contains("1001 bytes") && text.contains("Range"), "{text}");
    assert_eq!(ask(&limited, &job, Some("bytes=0-9")).await.bytes().await.unwrap().len(), 10);
    // `serve` has no limit of its own.
    let free = Service::start(&env).await;
    assert_eq!(ask(&free, &job, None).await.bytes().await.unwrap().len(), 1001);
}

/// An origin that answers with the keys that it is sent.
async fn origin() -> String {
    let keys = async |headers: HeaderMap| {
        ["x-api-key", "client-id"]
            .map(|name| headers.get(name).map_or("none", |value| value.to_str().unwrap()))
            .join(" ")
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(keys)).await.unwrap() });
    address
}

#[tokio::test]
async fn keys_for_origins_come_from_a_secret() {
    let Some(moto) = Moto::start().await else { return };
    let database = TestDatabase::migrated().await;
    let origin = origin().await;
    let job = job(&database, &format!("http://{origin}/out.txt")).await;
    let env = moto.and(Env::of(database.variables())).with("RESULT_HOSTS_ALLOWED", format!("[\"{origin}\"]"));

    let secret = moto.secret(&json!({ "X-API-KEY": "the-key", "CLIENT-ID": "the-client" })).await;
    let service = Service::start(&env.clone().with("RESULT_SECRET_ARN", secret)).await;
    let answer = ask(&service, &job, None).await;
    assert_eq!(answer.text().await.unwrap(), "the-key the-client");
    assert!(!service.process.output().contains("the-key"));

    // A secret that cannot be used: the request is not sent without its key, and nothing of the secret is logged.
    for value in
        [json!({ "X-API-KEY": "top\nsecret" }), json!({ "X-API-KEY": ["topsecret"] }), json!({ "key": "topsecret" })]
    {
        let secret = moto.secret(&value).await;
        let service = Service::start(&env.clone().with("RESULT_SECRET_ARN", secret)).await;
        let answer = ask(&service, &job, None).await;
        assert_eq!(answer.status(), 502);
        let (text, log) = (answer.text().await.unwrap(), service.process.output());
        assert!(text.contains("needs a key") && !text.contains("secret"), "{text}");
        assert!(log.contains("RESULT_SECRET_ARN") && !log.contains("topsecret"), "{log}");
    }
}
