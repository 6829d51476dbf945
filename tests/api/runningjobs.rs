//! GET OP/runningjobs

use serde_json::json;

use crate::support::{App, Call, Stored, workflow};

#[tokio::test]
async fn runningjobs_lists_every_unfinished_job_oldest_first() {
    let app = App::start().await;
    assert_eq!(app.send(Call::get("runningjobs")).await.ok(), json!([]));

    let young = Stored { created: 1_795_300_002.0, ..Stored::running() }.insert(&app.database).await;
    let mut on_a_chain = workflow::document("x", "y");
    on_a_chain["spec"]["metadata"]["chainId"] = json!(8996);
    let old = Stored { created: 1_795_300_000.25, workflow: Some(on_a_chain.to_string()), ..Stored::default() };
    let old = old.insert(&app.database).await;
    let stopped = Stored { created: 1_795_300_001.0, stopreq: Some(1), removed: Some(1), ..Stored::default() };
    let stopped = stopped.insert(&app.database).await;
    Stored::finished().insert(&app.database).await;

    let running = |job: &Stored| {
        json!({
            "agreementId": job.agreement_id,
            "jobId": job.job_id,
            "owner": job.owner,
            "status": job.status,
            "statusText": job.status_text,
            "dateCreated": format!("{:.6}", job.created),
            "namespace": job.namespace,
            "algoDID": "did:op:5a1f",
            "inputDID": ["did:op:87bd"]
        })
    };
    let mut oldest = running(&old);
    oldest["chainId"] = json!(8996);
    let expected = json!([oldest, running(&stopped), running(&young)]);
    assert_eq!(app.send(Call::get("runningjobs")).await.ok(), expected);
    assert_eq!(app.send(Call::get("runningjobs").body("{}")).await.ok(), expected);
    assert_eq!(
        app.send(Call::get("runningjobs").with("limit", "1").with("offset", "1")).await.ok(),
        json!([expected[1]])
    );
}
