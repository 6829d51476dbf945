//! A signer's nonce passes once (docs/contract/http.md, "Nonces").

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use crate::given::now;
use crate::support::{App, Call, Key, Stored, agreement_id, caller, nonce, owner, workflow};

const SECOND: u64 = 1_000_000_000;

fn start(app: &App, key: &Key, nonce: impl Into<Value>) -> Call {
    caller::provider(key).start_at(&app.namespace, &agreement_id(), &owner(), workflow::sample(), nonce)
}

fn refused(highest: &str, nonce: &str) -> String {
    format!("Invalid signature expected nonce ({highest}) > current nonce ({nonce}). The signer has used it before.")
}

fn too_old(highest: &str, nonce: &str, window: u32) -> String {
    format!(
        "Invalid signature expected nonce ({highest}) > current nonce ({nonce}). It may lie at most {window} seconds below \
         the signer's highest."
    )
}

#[tokio::test]
async fn a_nonce_passes_once() {
    let app = App::start().await;
    let key = Key::new();
    let used = nonce();
    app.send(start(&app, &key, used)).await.ok();
    let text = refused(&used.to_string(), &used.to_string());
    let provider = caller::provider(&key);
    app.send(start(&app, &key, used)).await.is_error(400, &text);
    app.send(start(&app, &key, used.to_string())).await.is_error(400, &text);
    for method in [reqwest::Method::PUT, reqwest::Method::DELETE] {
        app.send(provider.call(method, &owner(), None, used)).await.is_error(400, &text);
    }
    app.send(provider.result_at(&owner(), "ab", 0, used)).await.is_error(400, &text);
    // Another signer may.
    app.send(start(&app, &Key::new(), used)).await.ok();
}

#[tokio::test]
async fn every_signed_operation_takes_the_nonce() {
    let app = App::start().await;
    let key = Key::new();
    let provider = caller::provider(&key);
    for call in [
        start(&app, &key, nonce()),
        provider.stop(&owner(), None),
        provider.delete(&owner(), None),
        provider.result(&owner(), "ab", 0),
    ] {
        let nonce = call.text("nonce");
        app.send(call.clone()).await;
        app.send(call.with("documentId", "another")).await.is_error(400, &refused(&nonce, &nonce));
    }
    let status = provider.status(&owner(), None);
    assert_eq!(app.send(status.clone()).await.ok(), app.send(status).await.ok());
}

#[tokio::test]
async fn nonces_pass_in_any_order_within_the_window_and_a_refusal_names_the_highest() {
    let app = App::start().await;
    let key = Key::new();
    let highest = nonce();
    app.send(start(&app, &key, highest)).await.ok();
    for below in [1, SECOND, 60 * SECOND, 299 * SECOND] {
        app.send(start(&app, &key, highest - below)).await.ok();
    }
    for below in [301 * SECOND, 3600 * SECOND, highest] {
        let low = highest - below;
        app.send(start(&app, &key, low)).await.is_error(400, &too_old(&highest.to_string(), &low.to_string(), 300));
    }
    // The refusal of a used one within the window names the highest, too.
    let used = highest - SECOND;
    app.send(start(&app, &key, used)).await.is_error(400, &refused(&highest.to_string(), &used.to_string()));
}

#[tokio::test]
async fn nonce_window_sets_the_window() {
    let app = App::builder().var("NONCE_WINDOW", "10").start().await;
    let key = Key::new();
    let highest = nonce();
    app.send(start(&app, &key, highest)).await.ok();
    app.send(start(&app, &key, highest - 9 * SECOND)).await.ok();
    let low = highest - 11 * SECOND;
    app.send(start(&app, &key, low)).await.is_error(400, &too_old(&highest.to_string(), &low.to_string(), 10));
    let ahead = nonce() + 30 * SECOND;
    assert_eq!(app.send(start(&app, &key, ahead)).await.error().0, 400);

    let app = App::builder().var("NONCE_WINDOW", "0").start().await;
    let highest = nonce();
    app.send(start(&app, &key, highest)).await.ok();
    assert_eq!(app.send(start(&app, &key, highest - 1)).await.error().0, 400);
    app.send(start(&app, &key, nonce())).await.ok();
}

#[tokio::test]
async fn a_nonce_far_ahead_of_the_clock_is_refused_and_not_recorded() {
    let app = App::start().await;
    let key = Key::new();
    app.send(start(&app, &key, nonce() + 290 * SECOND)).await.ok();
    let key = Key::new();
    for ahead in [
        json!(nonce() + 310 * SECOND),
        json!(u64::MAX),
        json!("99999999999999999999999999"),
        json!("9e60"),
        json!(format!("{}.5", now() as u64 + 310)),
        json!((now() as u64 + 310) * 1000),
    ] {
        let (status, text) = app.send(start(&app, &key, ahead.clone())).await.error();
        assert_eq!(status, 400, "{ahead} {text}");
    }
    assert_eq!(app.database.used_nonces(&key.address).await, [""; 0]);
    // The signer is not locked out.
    app.send(start(&app, &key, nonce())).await.ok();
}

#[tokio::test]
async fn the_unit_of_a_nonce_follows_from_its_size() {
    let app = App::start().await;
    let key = Key::new();
    let seconds = now() as u64;
    let whole = seconds * SECOND;
    app.send(start(&app, &key, whole)).await.ok();
    // The same instant in other words.
    for same in [
        json!(seconds),
        json!(format!("{seconds}.0")),
        json!(format!("{seconds}.000000")),
        json!(seconds * 1000),
        json!(format!("{}.00", seconds * 1000)),
        json!(seconds * 1_000_000),
        json!(whole.to_string()),
    ] {
        let text = same.as_str().map_or_else(|| same.to_string(), str::to_owned);
        app.send(start(&app, &key, same)).await.is_error(400, &refused(&whole.to_string(), &text));
    }
    // Neighbours, in each unit.
    for other in [
        json!(format!("{}.999999", seconds - 1)),
        json!(seconds * 1000 - 2),
        json!(format!("{}.5", seconds * 1000 - 3)),
        json!(seconds * 1_000_000 - 4000),
        json!(whole - 5_000_000),
        json!(seconds - 2),
    ] {
        app.send(start(&app, &key, other)).await.ok();
    }
    // Below the window, in each unit.
    for low in [
        json!((seconds - 400) * 1000),
        json!(format!("{}.25", seconds - 400)),
        json!("1"),
        json!("0"),
        json!(99_999_999_999_u64),
    ] {
        let answer = app.send(start(&app, &key, low.clone())).await;
        assert_eq!(answer.error().0, 400, "{low}");
    }
}

#[tokio::test]
async fn fractions_are_compared_to_the_last_digit() {
    let app = App::start().await;
    let key = Key::new();
    let seconds = now() as u64;
    for fraction in ["123456", "1234561", "12345", "1234560001"] {
        app.send(start(&app, &key, format!("{seconds}.{fraction}"))).await.ok();
    }
    for same in ["1234560", "12345000", "123450"] {
        let (status, _) = app.send(start(&app, &key, format!("{seconds}.{same}"))).await.error();
        assert_eq!(status, 400, "{same}");
    }
    // A double has the same value for these.
    let large = nonce();
    for nonce in [large, large - 1, large - 2, large + 1] {
        app.send(start(&app, &key, nonce)).await.ok();
    }
}

#[tokio::test]
async fn nonces_of_the_python_service_count_as_used() {
    let app = App::start().await;
    let key = Key::new();
    let highest = nonce();
    // The Python service recorded signers in any case, several rows for one signer, and invalid nonces.
    app.database.old_nonce(&key.address, Some(&(highest - 10 * SECOND).to_string())).await;
    app.database.old_nonce(&key.address.to_lowercase(), Some(&highest.to_string())).await;
    for invalid in [None, Some(""), Some("None"), Some("nan"), Some("-1"), Some("1e"), Some("0x12"), Some("inf")] {
        app.database.old_nonce(&key.address, invalid).await;
    }
    for used in [highest, highest - 10 * SECOND] {
        app.send(start(&app, &key, used)).await.is_error(400, &refused(&highest.to_string(), &used.to_string()));
    }
    let low = highest - 301 * SECOND;
    app.send(start(&app, &key, low)).await.is_error(400, &too_old(&highest.to_string(), &low.to_string(), 300));
    app.send(start(&app, &key, highest - SECOND)).await.ok();
    app.send(start(&app, &key, nonce())).await.ok();
    // A signer with only invalid nonces is not locked out.
    let other = Key::new();
    app.database.old_nonce(&other.address, None).await;
    app.database.old_nonce(&other.address, Some("junk")).await;
    app.send(start(&app, &other, nonce())).await.ok();
}

#[tokio::test]
async fn a_refusal_before_the_nonce_check_leaves_the_nonce_free() {
    let key = Key::new();
    let app = App::builder().var("SIGNATURE_REQUIRED", "1").var("ALLOWED_PROVIDERS", key.allowed()).start().await;
    let call = start(&app, &key, nonce());
    for wrong in [
        call.clone().with("workflow", json!({ "stages": [] })),
        call.clone().with("validUntil", 1),
        call.clone().with("providerSignature", "0x00"),
        call.clone().with("owner", owner()),
        call.clone().without("environment"),
    ] {
        assert!(matches!(app.send(wrong).await.error().0, 400 | 401));
    }
    app.send(call).await.ok();
}

#[tokio::test]
async fn a_refusal_after_the_nonce_check_leaves_the_nonce_taken() {
    let app = App::start().await;
    let key = Key::new();
    let running = Stored::running().insert(&app.database).await;
    for call in [
        start(&app, &key, nonce()).with("agreementId", running.agreement_id.clone()),
        start(&app, &key, nonce()).with("environment", "nowhere"),
    ] {
        assert_eq!(app.send(call.clone()).await.error().0, 400);
        let nonce = call.text("nonce");
        let mended = call.with("agreementId", agreement_id()).with("environment", app.namespace.clone());
        app.send(mended).await.is_error(400, &refused(&nonce, &nonce));
    }
}

#[tokio::test]
async fn a_5xx_leaves_the_nonce_free() {
    let app = App::start().await;
    let key = Key::new();
    let running = Stored::running().insert(&app.database).await;
    let running_owner = running.owner.clone().unwrap();
    let provider = caller::provider(&key);
    let calls = [
        start(&app, &key, nonce()),
        provider.stop(&running_owner, None),
        provider.delete(&running_owner, None),
        provider.result(&running_owner, &running.job_id, 0),
    ];
    // Statements on jobs wait, as with an overloaded server.
    let mut lock = app.database.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    for answer in futures_util::future::join_all(calls.iter().map(|call| app.send(call.clone()))).await {
        assert_eq!(answer.error().0, 503);
    }
    lock.rollback().await.unwrap();
    assert_eq!(app.database.used_nonces(&key.address).await, [""; 0]);
    assert_eq!(app.database.job(&running.job_id).await.unwrap()["stopreq"], 0);
    assert_eq!(app.database.count("jobs").await, 1);
    let [start, stop, delete, result] = calls;
    app.send(start).await.ok();
    assert_eq!(app.send(stop).await.ok()[0]["stopreq"], 1);
    assert_eq!(app.send(delete).await.ok()[0]["removed"], 1);
    assert_eq!(app.send(result).await.error().0, 404);
}

#[tokio::test]
async fn nonces_in_all_units_of_the_callers_are_compared() {
    let app = App::start().await;
    let key = Key::new();
    // Provider's nanoseconds, Ocean Node's milliseconds, a Python float, one key.
    app.send(start(&app, &key, nonce())).await.ok();
    app.send(caller::ocean_node(&key).start(&app.namespace, &agreement_id(), &owner(), workflow::sample())).await.ok();
    app.send(start(&app, &key, format!("{:.6}", now()))).await.ok();
    app.send(start(&app, &key, nonce())).await.ok();
    assert_eq!(app.database.used_nonces(&key.address).await.len(), 4);
}

#[tokio::test]
async fn used_nonces_are_shared_between_processes() {
    let app = App::start().await;
    let other = app.another_process().start().await;
    let key = Key::new();
    let call = start(&app, &key, nonce());
    app.send(call.clone()).await.ok();
    assert_eq!(other.send(call.with("agreementId", agreement_id())).await.error().0, 400);
}

/// A nonce as a caller may write it.
#[derive(Debug, Clone)]
struct Written {
    /// Its time, in seconds from now, and the nanoseconds after that.
    seconds: i64,
    nanoseconds: i64,
    /// The number of nanoseconds in its unit.
    unit: i64,
    /// Whether it is text with an exponent: `1.6923e12`.
    exponent: bool,
}

impl Written {
    /// The nonce as text, and its time in nanoseconds.
    fn at(&self, now: i64) -> (String, i64) {
        let time = (now + self.seconds) * SECOND as i64 + self.nanoseconds;
        let (whole, rest) = (time / self.unit, time % self.unit);
        let (whole, digits) = (whole.to_string(), self.unit.ilog10() as usize);
        let fraction = if digits > 0 { format!("{rest:0digits$}") } else { String::new() };
        let text = match self.exponent {
            true => format!("{}.{}{fraction}e{}", &whole[..1], &whole[1..], whole.len() - 1),
            false if rest == 0 => whole,
            false => format!("{whole}.{fraction}"),
        };
        (text, time)
    }
}

fn written() -> impl Strategy<Value = Written> {
    // Few, so that some are equal. None is near the end of the window, which moves with the clock.
    let seconds = prop_oneof![-330..=-310_i64, -290..=-288_i64, -2..=2_i64, 320..=330_i64];
    let nanoseconds = prop_oneof![Just(0), Just(1), Just(1000), Just(500_000_000_i64)];
    let unit = prop::sample::select(&[1, 1000, 1_000_000, 1_000_000_000_i64][..]);
    (seconds, nanoseconds, unit, any::<bool>()).prop_map(|(seconds, nanoseconds, unit, exponent)| Written {
        seconds,
        nanoseconds,
        unit,
        exponent,
    })
}

/// However nonces are written, and in whatever order they arrive, the rules compare their times.
#[test]
fn any_nonces_pass_as_their_times_do() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let app = runtime.block_on(App::start());
    let config = Config { failure_persistence: None, ..Config::with_cases(48) };
    let result = TestRunner::new(config).run(&prop::collection::vec(written(), 1..16), |nonces| {
        let (key, now, window) = (Key::new(), now() as i64, 300 * SECOND as i64);
        let mut used = Vec::new();
        for (text, time) in nonces.iter().map(|nonce| nonce.at(now)) {
            let highest = used.iter().max().copied().unwrap_or_default();
            let passes = time < now * SECOND as i64 + window && time >= highest - window && !used.contains(&time);
            let call = caller::provider(&key).result_at(&owner(), "ab", 0, text.clone());
            let answer = runtime.block_on(app.send(call));
            let text = format!("{text}: {} {}", answer.status, answer.text());
            prop_assert_eq!(answer.status != 400, passes, "{}", text);
            if passes {
                used.push(time);
            }
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}
