//! Lists end before 5 MB and say where they go on, and read no workflow (docs/contract/http.md, "Lists").

use serde_json::{Value, json};

use crate::given::job_ids;
use crate::support::{Answer, App, Call, Key, Stored, caller, owner, workflow};

const MAX_PAGE_BYTES: usize = 5_000_000;

/// The query string that a response's `Link` header leads to, if there is one.
fn next(answer: &Answer) -> Option<String> {
    let link = answer.headers.get("link")?.to_str().unwrap();
    Some(link.strip_prefix("<?").unwrap().strip_suffix(">; rel=\"next\"").unwrap().to_owned())
}

/// Follows the links of a list. Returns all job ids, and the number of responses.
async fn follow(app: &App, call: Call) -> (Vec<String>, usize) {
    let (method, path) = (call.method.clone(), call.path.split('?').next().unwrap().to_owned());
    let mut answer = app.send(call).await;
    let (mut ids, mut pages) = (Vec::new(), 0);
    loop {
        assert!(answer.body.len() < MAX_PAGE_BYTES, "{}", answer.body.len());
        let page = answer.ok();
        assert!(!page.as_array().unwrap().is_empty());
        ids.extend(job_ids(&page).into_iter().map(str::to_owned));
        pages += 1;
        let Some(query) = next(&answer) else { return (ids, pages) };
        answer = app.send(Call::to_path(method.clone(), &format!("{path}?{query}"))).await;
    }
}

/// Jobs of one owner, newest first, whose lists take about 400 kB each.
async fn large_jobs(app: &App, count: u32, job: impl Fn() -> Stored) -> (String, Vec<String>) {
    let owner = owner();
    let mut ids = Vec::new();
    for i in 0..count {
        let stored = Stored { owner: Some(owner.clone()), created: 1_795_300_000.0 - f64::from(i), ..job() };
        ids.push(stored.insert(&app.database).await.job_id);
    }
    (owner, ids)
}

fn with_outputs() -> Stored {
    let outputs: Vec<_> = (0..4000)
        .map(|i| json!({"filename": format!("{i:0>60}"), "filesize": 1, "type": "output", "url": "http://x"}))
        .collect();
    Stored { outputs: Some(json!(outputs).to_string()), ..Stored::finished() }
}

fn with_inputs() -> Stored {
    let mut document = workflow::document("x", "y");
    let inputs: Vec<_> = (0..5000).map(|i| json!({"id": format!("did:op:{i:0>64}"), "index": i})).collect();
    document["spec"]["metadata"]["stages"][0]["input"] = json!(inputs);
    Stored { workflow: Some(document.to_string()), ..Stored::running() }
}

#[tokio::test]
async fn a_list_of_jobs_ends_before_5_mb_and_links_to_the_next_page() {
    let app = App::start().await;
    let (owner, ids) = large_jobs(&app, 30, with_outputs).await;
    let (listed, pages) = follow(&app, Call::get("compute").with("owner", owner)).await;
    assert_eq!(listed, ids);
    assert!(pages > 2, "{pages}");
}

#[tokio::test]
async fn the_list_of_running_jobs_ends_before_5_mb_and_links_to_the_next_page() {
    let app = App::start().await;
    let (_, mut ids) = large_jobs(&app, 30, with_inputs).await;
    ids.reverse();
    let (listed, pages) = follow(&app, Call::get("runningjobs")).await;
    assert_eq!(listed, ids);
    assert!(pages > 2, "{pages}");
}

#[tokio::test]
async fn the_next_page_of_a_stop_is_the_same_request_and_changes_nothing() {
    let app = App::start().await;
    let (owner, ids) = large_jobs(&app, 30, with_inputs).await;
    let key = Key::new();
    let call = caller::provider(&key).stop(&owner, None);
    let first = app.send(call).await;
    assert_eq!(app.database.count("jobs WHERE stopreq = 1").await, 30);
    app.database.execute("UPDATE jobs SET stopreq = 0").await;
    let call = Call::to_path(reqwest::Method::PUT, &format!("/api/v1/operator/compute?{}", next(&first).unwrap()));
    let (listed, _) = follow(&app, call).await;
    assert_eq!(listed, ids[first.ok().as_array().unwrap().len()..]);
    assert_eq!(app.database.count("jobs WHERE stopreq = 1").await, 0);
}

#[tokio::test]
async fn pages_have_links_as_long_as_there_are_jobs() {
    let app = App::start().await;
    let owner = owner();
    for _ in 0..4 {
        Stored { owner: Some(owner.clone()), ..Stored::default() }.insert(&app.database).await;
    }
    let page = |limit: &str, offset: &str| {
        Call::get("compute").with("owner", owner.clone()).with("limit", limit).with("offset", offset)
    };
    for (limit, offset, goes_on) in [
        ("2", "0", Some("2")),
        ("3", "0", Some("3")),
        ("4", "0", None),
        ("2", "2", None),
        ("2", "9", None),
        ("0", "0", None),
    ] {
        let query = next(&app.send(page(limit, offset)).await);
        let expected = goes_on.map(|goes_on| format!("owner={owner}&limit={limit}&offset={goes_on}"));
        assert_eq!(query, expected, "{limit} {offset}");
    }
    // A job that is too large for a page is a page of its own.
    let outputs = json!([{ "filename": "x".repeat(6_000_000) }]).to_string();
    let huge = Stored { outputs: Some(outputs), ..Stored::finished() }.insert(&app.database).await;
    let answer = app.send(Call::get("compute").with("jobId", huge.job_id.clone())).await;
    assert_eq!((job_ids(&answer.ok()), next(&answer)), (vec![&*huge.job_id], None));
}

#[tokio::test]
async fn no_list_reads_a_workflow() {
    let app = App::start().await;
    let key = Key::new();
    let (owner, agreement) = (owner(), crate::support::agreement_id());
    let call = caller::provider(&key).start(&app.namespace, &agreement, &owner, workflow::sample());
    let started = app.send(call).await.ok();
    let running = app.send(Call::get("runningjobs")).await.ok();
    app.database.execute("UPDATE jobs SET workflow = 'nothing that anybody could read'").await;
    assert_eq!(app.send(Call::get("compute").with("owner", owner.clone())).await.ok(), started);
    assert_eq!(app.send(Call::get("runningjobs")).await.ok(), running);
    assert_eq!(running[0]["chainId"], 8996);
    let stopped: Value = app.send(caller::provider(&key).stop(&owner, None)).await.ok();
    assert_eq!((&stopped[0]["algoDID"], &stopped[0]["inputDID"]), (&started[0]["algoDID"], &started[0]["inputDID"]));
}
