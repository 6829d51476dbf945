//! /getResult: which origins are asked, where redirects lead, and what is sent to them.

use reqwest::Method;
use serde_json::json;

use crate::fixture::{Fixture, OWNER, finished, hosts, with_origin};
use crate::origin::{Answer, Origin};
use crate::support::caller::provider;
use crate::support::nonce;

// Redirects

#[tokio::test]
async fn redirects_are_followed_to_hosts_that_are_allowed() {
    let (first, second) = (Origin::start().await, Origin::start().await);
    let allowed = hosts(&[&first.address.to_string(), &second.address.to_string()]);
    let fixture = Fixture::with(&[("RESULT_HOSTS_ALLOWED", &allowed)]).await;
    for status in [301, 302, 303, 307, 308] {
        first.answer("/out", Answer::redirect(status, second.url("/elsewhere/out.csv")));
        second.answer("/elsewhere/out.csv", Answer::file("hello"));
        let answer = fixture.result_at(&first.url("/out")).await;
        assert_eq!((answer.status, answer.text()), (200, "hello"), "{status}");
    }
    // On the same host, relative to the first path.
    first.answer("/a/b", Answer::redirect(302, "../c?x=1")).answer("/c", Answer::file("here"));
    assert_eq!(fixture.result_at(&first.url("/a/b")).await.text(), "here");
    assert_eq!(first.requests().last().unwrap().target, "/c?x=1");
}

#[tokio::test]
async fn a_redirect_keeps_the_range() {
    let (fixture, origin) = with_origin(&[]).await;
    origin.answer("/here", Answer::redirect(307, "/there")).answer("/there", Answer::file_with_ranges("0123456789"));
    let job = fixture.job(&origin.url("/here")).await;
    let answer = fixture.send(&fixture.ask(&job).header("range", "bytes=0-1")).await;
    assert_eq!((answer.status, answer.text()), (206, "01"));
}

#[tokio::test]
async fn redirects_are_not_followed_to_anything_else() {
    let (fixture, origin) = with_origin(&[]).await;
    let inner = Origin::start().await;
    inner.answer("/inner", Answer::file("internal"));
    let port = inner.address.port();
    for location in [
        format!("http://127.0.0.1:{port}/inner"),
        format!("http://localhost:{port}/inner"),
        format!("//127.0.0.1:{port}/inner"),
        format!("http://2130706433:{port}/inner"),
        format!("http://[::ffff:127.0.0.1]:{port}/inner"),
        format!("http://user@127.0.0.1:{port}/inner"),
        "http://169.254.169.254/latest/meta-data/iam/security-credentials/".to_owned(),
        "http://[fd00:ec2::254]/latest/meta-data/".to_owned(),
        "http://10.0.0.1/".to_owned(),
        "http://192.168.0.1/".to_owned(),
        "http://172.16.0.1/".to_owned(),
        "file:///etc/passwd".to_owned(),
        "ftp://127.0.0.1/inner".to_owned(),
        "data:text/plain,internal".to_owned(),
        "http://".to_owned(),
    ] {
        origin.answer("/here", Answer::redirect(302, location.clone()));
        let (status, text) = fixture.result_at(&origin.url("/here")).await.error();
        assert_eq!(status, 502, "{location}: {text}");
        // Refused without a connection.
        let refused = ["RESULT_HOSTS_ALLOWED", "is not an http or https URL"];
        assert!(refused.iter().any(|reason| text.contains(reason)), "{location}: {text}");
        assert!(!text.contains("://") && !text.contains("127.0.0.1") && !text.contains("169.254"), "{text}");
    }
    assert!(inner.requests().is_empty(), "{:?}", inner.requests());
}

#[tokio::test]
async fn a_host_is_allowed_by_name_and_port() {
    let (origin, inner) = (Origin::start().await, Origin::start().await);
    inner.answer("/inner", Answer::file("internal"));
    origin.answer("/here", Answer::redirect(302, inner.url("/inner")));
    // By name without a port: any port.
    let fixture = Fixture::with(&[("RESULT_HOSTS_ALLOWED", "127.0.0.1")]).await;
    assert_eq!(fixture.result_at(&origin.url("/here")).await.text(), "internal");
    // The pattern is compared with the name, not with the address that it resolves to.
    let port = origin.address.port();
    let by_name = format!("http://localhost:{port}/here");
    assert_eq!(fixture.result_at(&by_name).await.error().0, 502);
    let fixture = Fixture::with(&[("RESULT_HOSTS_ALLOWED", &hosts(&[&format!("localhost:{port}")]))]).await;
    origin.answer("/here", Answer::file("by name"));
    assert_eq!(fixture.result_at(&by_name).await.text(), "by name");
    assert_eq!(fixture.result_at(&by_name.to_uppercase().replace("HERE", "here")).await.text(), "by name");
    assert_eq!(fixture.result_at(&origin.url("/here")).await.error().0, 502);
    let another = format!("http://localhost:{}/inner", inner.address.port());
    assert_eq!(fixture.result_at(&another).await.error().0, 502);
    assert_eq!(inner.requests().len(), 1);
}

#[tokio::test]
async fn endless_redirects_are_a_502() {
    let (fixture, origin) = with_origin(&[]).await;
    origin.answer("/round", Answer::redirect(302, "/round"));
    let (status, text) = fixture.result_at(&origin.url("/round")).await.error();
    assert_eq!(status, 502, "{text}");
    assert!(origin.requests().len() <= 21, "{}", origin.requests().len());
    // A redirect without a location is an error of the origin.
    origin.answer("/nowhere", Answer::status(302, ""));
    assert_eq!(fixture.result_at(&origin.url("/nowhere")).await.error().0, 502);
}

// Addresses that are refused

#[tokio::test]
async fn addresses_that_are_not_public_are_refused_however_they_are_written() {
    let fixture = Fixture::with(&[("RESULT_TIMEOUT", "20")]).await;
    let inner = Origin::start().await;
    inner.answer("/inner", Answer::file("internal"));
    let port = inner.address.port();
    // The same port on the IPv6 loopback address, if there is one.
    let inner_v6 = Origin::listen(&format!("[::1]:{port}")).await.ok();
    let hosts = [
        "127.0.0.1",
        "127.0.0.2",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "017700000001",
        "127.0.0.1.",
        "1２7.0.0.1",
        "127。0。0。1",
        "%31%32%37.0.0.1",
        "0.0.0.0",
        "0",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[2002:7f00:1::]",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "user:password@127.0.0.1",
        "example.org@127.0.0.1",
        "10.0.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "169.254.170.2",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "[fc00::1]",
        "224.0.0.1",
        "255.255.255.255",
    ];
    for host in hosts {
        let url = format!("http://{host}:{port}/inner");
        let (status, text) = fixture.result_at(&url).await.error();
        assert_eq!(status, 502, "{url}: {text}");
        // Refused without a connection, and the message says what to change. (Not every resolver knows `localhost.`.)
        assert!(host == "localhost." || text.contains("RESULT_HOSTS_ALLOWED"), "{url}: {text}");
        assert!(!text.contains(&port.to_string()) && !text.contains("inner"), "{text}");
    }
    assert!(inner.requests().is_empty(), "{:?}", inner.requests());
    assert!(inner_v6.is_none_or(|inner| inner.requests().is_empty()));
}

#[tokio::test]
async fn only_http_and_https_are_fetched() {
    let (fixture, origin) = with_origin(&[]).await;
    let address = origin.address.to_string();
    for url in [
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "/etc/passwd",
        "ftp://{address}/out.txt",
        "gopher://{address}/out.txt",
        "ws://{address}/out.txt",
        "unix:///var/run/docker.sock",
        "data:text/plain,hello",
        "javascript:alert(1)",
        "s3://bucket/key",
        "//{address}/out.txt",
        "http://",
        "http:///",
        "http://{address}:99999/",
        "not a URL",
    ] {
        let url = url.replace("{address}", &address);
        let (status, text) = fixture.result_at(&url).await.error();
        assert_eq!(status, 502, "{url}: {text}");
    }
    assert!(origin.requests().is_empty(), "{:?}", origin.requests());
}

/// An output without a URL, or with one that is not a string, is ignored.
#[tokio::test]
async fn an_output_without_a_url_is_no_such_index() {
    let (fixture, _origin) = with_origin(&[]).await;
    let outputs = json!([{ "filename": "a" }, { "filename": "b", "url": 7 }, null, "http://127.0.0.1/"]);
    let job = finished(&fixture.provider, &outputs).insert(&fixture.database).await.job_id;
    for index in 0..4 {
        let text = format!("No such index {index} in this compute job");
        fixture.send(&provider(&fixture.provider).result(OWNER, &job, index)).await.is_error(404, &text);
    }
}

// Secrets that are sent to origins

#[tokio::test]
async fn credentials_in_a_url_are_used_and_never_shown() {
    let (fixture, origin) = with_origin(&[]).await;
    let url = format!("http://user:pass%20word@{}/out.txt", origin.address);
    origin.answer("/out.txt", Answer::file("hello"));
    let answer = fixture.result_at(&url).await;
    assert_eq!(answer.text(), "hello");
    // Of "user:pass word"
    assert_eq!(origin.requests()[0].header("authorization"), Some("Basic dXNlcjpwYXNzIHdvcmQ="));
    assert!(!format!("{:?}", answer.headers).contains("pass"));

    origin.answer("/out.txt", Answer::status(403, ""));
    let (_, text) = fixture.result_at(&url).await.error();
    assert!(!text.contains("user") && !text.contains("pass"), "{text}");

    let job = fixture.job(&url).await;
    let status = fixture.send(&provider(&fixture.provider).call(Method::GET, OWNER, Some(&job), nonce())).await.ok();
    assert_eq!(status[0]["results"], json!([{ "filename": "out.txt", "filesize": 5, "type": "output" }]));
}

#[tokio::test]
async fn credentials_in_a_url_are_sent_to_its_host_only() {
    let (first, second) = (Origin::start().await, Origin::start().await);
    let fixture = Fixture::with(&[("RESULT_HOSTS_ALLOWED", "127.0.0.1")]).await;
    first.answer("/out.txt", Answer::redirect(302, second.url("/out.txt")));
    second.answer("/out.txt", Answer::file("hello"));
    assert_eq!(fixture.result_at(&format!("http://user:password@{}/out.txt", first.address)).await.text(), "hello");
    let request = &second.requests()[0];
    for header in ["authorization", "referer", "cookie"] {
        assert_eq!(request.header(header), None);
    }
}

#[tokio::test]
async fn api_keys_are_sent_to_their_hosts_only() {
    let (keyed, other) = (Origin::start().await, Origin::start().await);
    keyed.answer("/out.txt", Answer::file("hello"));
    other.answer("/out.txt", Answer::file("hello"));
    other.answer("/to-keyed", Answer::redirect(302, keyed.url("/out.txt")));
    keyed.answer("/to-other", Answer::redirect(302, other.url("/out.txt")));
    let both = hosts(&[&keyed.address.to_string(), &other.address.to_string()]);
    let only = hosts(&[&keyed.address.to_string()]);
    let fixture = Fixture::with(&[
        ("RESULT_HOSTS_ALLOWED", &both),
        ("RESULT_API_KEY_HOSTS", &only),
        ("X-API-KEY", "the-key"),
        ("CLIENT-ID", "the-client"),
    ])
    .await;
    let last = |origin: &Origin| {
        let request = origin.requests().last().unwrap().clone();
        (request.header("x-api-key").map(str::to_owned), request.header("client-id").map(str::to_owned))
    };
    let sent = (Some("the-key".to_owned()), Some("the-client".to_owned()));

    assert_eq!(fixture.result_at(&keyed.url("/out.txt")).await.text(), "hello");
    assert_eq!(last(&keyed), sent);
    assert_eq!(fixture.result_at(&other.url("/out.txt")).await.text(), "hello");
    assert_eq!(last(&other), (None, None));
    // Redirects do not pass them on, and do not obtain them for another host.
    assert_eq!(fixture.result_at(&keyed.url("/to-other")).await.text(), "hello");
    assert_eq!(last(&keyed), sent);
    assert_eq!(last(&other), (None, None));
    assert_eq!(fixture.result_at(&other.url("/to-keyed")).await.text(), "hello");
    assert_eq!(last(&other), (None, None));
}

/// A Lambda function's variables cannot hold a dash.
#[tokio::test]
async fn api_keys_are_sent_to_the_hosts_allowed_if_they_have_none_of_their_own() {
    let origin = Origin::start().await;
    origin.answer("/out.txt", Answer::file("hello"));
    let allowed = hosts(&[&origin.address.to_string()]);
    let variables = [("RESULT_HOSTS_ALLOWED", &*allowed), ("X_API_KEY", "the-key"), ("CLIENT_ID", "the-client")];
    let fixture = Fixture::with(&variables).await;
    assert_eq!(fixture.result_at(&origin.url("/out.txt")).await.text(), "hello");
    let request = &origin.requests()[0];
    assert_eq!(request.header("x-api-key"), Some("the-key"));
    assert_eq!(request.header("client-id"), Some("the-client"));
    assert!(!fixture.service.process.output().contains("are sent to no host"));
}

#[tokio::test]
async fn api_keys_that_are_sent_to_no_host_are_logged_at_start() {
    let fixture = Fixture::with(&[("X-API-KEY", "the-key")]).await;
    let output = fixture.service.process.output();
    let line = output.lines().find(|line| line.contains("RESULT_API_KEY_HOSTS")).unwrap_or_else(|| panic!("{output}"));
    assert!(line.contains("WARN") && !line.contains("the-key"), "{line}");
}

/// Credentials of a caller are not for origins.
#[tokio::test]
async fn the_callers_headers_are_not_passed_on() {
    let (fixture, origin) = with_origin(&[]).await;
    origin.answer("/out.txt", Answer::file("hello"));
    let job = fixture.job(&origin.url("/out.txt")).await;
    let call =
        fixture.ask(&job).header("cookie", "a=b").header("authorization", "Bearer x").header("x-api-key", "mine");
    assert_eq!(fixture.send(&call).await.text(), "hello");
    for header in ["cookie", "authorization", "x-api-key", "x-forwarded-for"] {
        assert_eq!(origin.requests()[0].header(header), None);
    }
}

/// A proxy would resolve names itself, without the checks on addresses.
#[tokio::test]
async fn proxies_of_the_environment_are_not_used() {
    let (origin, proxy) = (Origin::start().await, Origin::start().await);
    origin.answer("/out.txt", Answer::file("hello"));
    let (proxy_url, allowed) = (proxy.url(""), hosts(&[&origin.address.to_string()]));
    let fixture = Fixture::with(&[
        ("RESULT_HOSTS_ALLOWED", &allowed),
        ("http_proxy", &proxy_url),
        ("HTTP_PROXY", &proxy_url),
        ("all_proxy", &proxy_url),
    ])
    .await;
    assert_eq!(fixture.result_at(&origin.url("/out.txt")).await.text(), "hello");
    assert!(proxy.requests().is_empty());
}
